//! A certificate stored by a worker thread of a CherryPy application: it asks the bus for a reload, new handshakes have the new
//! certificate, and a download that runs goes on; before an update that overlaps, during it, and after it. It is the recipe of
//! docs/servers/cherrypy.md.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use refit_fixtures::tools::{cannot_try, missing};
use serde_json::Value;

use crate::appliance::{Appliance, Ran, component, free_port};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// Where `.ci/run` installs what `fixtures/appliances/cherrypy/requirements.txt` names.
const PACKAGES: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../cherrypy");
const VISITOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/cherrypy/visitor.py");
const CLIENT: &str = include_str!("../../fixtures/peers/refit_bus.py");

fn release(version: &str, addresses: &[(&str, &str, SocketAddr)]) -> Release {
    Release::fixture("cherrypy", version, addresses)
        .dir("lib/python", Path::new(PACKAGES))
        .file("lib/python/refit_bus.py", CLIENT)
        .file("app/release.txt", version)
}

fn visitor(words: &[&str]) -> Command {
    let mut python = Command::new("python3");
    python.arg(VISITOR).args(words).stdin(Stdio::null());
    python
}

fn visit(words: &[&str]) -> String {
    Ran::of(&mut visitor(words)).ends_with(0).stdout.trim_end().to_owned()
}

/// Makes a certificate of its own and its key, in one file.
fn certificate(dir: &Path, name: &str) -> PathBuf {
    let (key, path) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pem")));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.args(["-subj", &format!("/CN={name}"), "-keyout"]).arg(&key).arg("-out").arg(&path);
    assert!(openssl.stderr(Stdio::null()).status().expect("openssl runs").success());
    let both = [fs::read(&key).expect("a key"), fs::read(&path).expect("a certificate")].concat();
    fs::write(&path, both).expect("written");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// A download that is under way.
struct Download {
    child: Child,
    rest: BufReader<ChildStdout>,
}

impl Download {
    fn begin(port: &str, until: &str) -> Self {
        let mut child = visitor(&["download", port, &format!("/download?until={until}")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut rest = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        rest.read_line(&mut line).expect("it begins");
        assert_eq!(line, "begun\n");
        Self { child, rest }
    }

    /// Lets it go on, and asserts that every byte arrives.
    fn finish(mut self, appliance: &Appliance, until: &str) {
        fs::write(appliance.home().join("data").join(until), "").expect("written");
        let mut line = String::new();
        self.rest.read_to_string(&mut line).expect("it ends");
        assert_eq!(line, "True 200000\n");
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.child.kill().ok(); // ended already is as good
        self.child.wait().ok();
    }
}

/// Posts a certificate to the application. Asserts that it was asked by its own reload, and said yes or no.
fn post(port: &str, pem: &Path, state: &str, answer: &str) -> Value {
    let ticket: Value = serde_json::from_str(&visit(&["post", port, "/certificate", text(pem)])).expect("a ticket");
    assert_eq!((&ticket["state"], &ticket["origin"]), (&state.into(), &"component web".into()), "{ticket}");
    let asked = ticket["asked"].as_array().expect("a list");
    let own: Vec<&Value> = asked.iter().filter(|one| one["component"] == "web").collect();
    assert_eq!(own.len(), 1, "{ticket}");
    assert_eq!((&own[0]["name"], &own[0]["answer"]), (&"web/site".into(), &answer.into()), "{ticket}");
    ticket
}

#[test]
fn b075_a_worker_of_cherrypy_stores_a_certificate_and_new_handshakes_have_it_before_and_after_an_update() {
    if missing(&["openssl", "python3"]) {
        return;
    }
    if !Path::new(PACKAGES).join("cherrypy").is_dir() {
        return cannot_try("CherryPy is not in target/cherrypy; .ci/run installs it");
    }
    let [admin, https] = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    let addresses = [("admin", "127.0.0.1:8443", admin), ("https", "127.0.0.1:8444", https)];
    let appliance = Appliance::new(&release("1.0.0", &addresses));
    let pems = ["one", "two", "three"].map(|name| certificate(appliance.scratch(), name));
    let prints = pems.each_ref().map(|pem| visit(&["of", text(pem)]));
    fs::create_dir_all(appliance.home().join("data")).expect("made");
    fs::copy(&pems[0], appliance.home().join("data/site.pem")).expect("copied");
    let appliance = appliance.start();
    let port = https.port().to_string();
    let presented = || visit(&["presented", &port]);
    assert_eq!(presented(), format!("{} 1.0.0", prints[0]));

    let first = Download::begin(&port, "first");
    let second = Download::begin(&port, "second");
    post(&port, &pems[1], "done", "ok");
    assert_eq!(presented(), format!("{} 1.0.0", prints[1]), "new handshakes have the second certificate");
    first.finish(&appliance, "first");
    // What cannot be served is refused, and the second stays.
    let broken = appliance.scratch().join("broken.pem");
    let whole = fs::read(&pems[0]).expect("read");
    fs::write(&broken, &whole[..300]).expect("written");
    let refused = post(&port, &broken, "failed", "refused");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("refused by web/site")), "{refused}");
    assert_eq!(presented(), format!("{} 1.0.0", prints[1]));

    // An update that overlaps: the old process finishes its download while the new one serves.
    let old = appliance.component_pid("web");
    appliance.install(&release("1.1.0", &addresses), &[]).ends_with(0);
    assert_ne!(appliance.component_pid("web"), old);
    eventually(LIMIT, "1.1.0 answers, with the second certificate", || presented() == format!("{} 1.1.0", prints[1]));
    assert!(process::is_alive(old), "it has a download to finish");
    let third = Download::begin(&port, "third");
    post(&port, &pems[2], "done", "ok");
    assert_eq!(presented(), format!("{} 1.1.0", prints[2]), "new handshakes have the third certificate");
    second.finish(&appliance, "second");
    third.finish(&appliance, "third");
    eventually(LIMIT, "the old process has ended", || !process::is_alive(old));
    assert!(!appliance.log().contains("an old process was killed"), "it ended by itself: {}", appliance.log());
    let peers = component(&appliance.status(), "web")["peers"].clone();
    assert_eq!((peers.as_array().map(Vec::len), &peers[0]["called"]), (Some(1), &true.into()), "{peers}");
}
