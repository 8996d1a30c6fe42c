//! Web servers on a socket of Refit's: the old process and the new one share it for a moment.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{TARGET, fails, idle, lacks, late, record};
use crate::appliance::{Appliance, Ran, free_port};
use crate::load::{LoadOptions, LoadReport};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// Connections that do nothing while a server that closes such is replaced.
const IDLE_CONNECTIONS: u64 = 5;

/// What a request meets whose connection was closed before it was read.
const UNREAD: &str = "closed before a byte of the answer";

/// The most that the three processes that end on a journey may lose so: what each accepts in the moment before.
const UNREAD_MAX: u64 = 6;

/// A server, and what the journey has to know of it.
struct Server {
    /// Its directory in the fixtures.
    dir: &'static str,
    /// The first word of its command.
    program: &'static str,
    /// The address that its release names.
    address: &'static str,
    /// Its configuration, where the listener's address is written once more.
    configuration: Option<&'static str>,
    /// Returns a release that has this version answer.
    version: fn(Release, &str) -> Release,
    /// Returns a release whose program ends at its start.
    broken: fn(Release) -> Release,
    /// Whether clients may keep connections: it says before it closes one, or never closes one that is idle.
    keeps_connections: bool,
    /// Whether it closes connections that it has accepted, and not read from, when it ends.
    closes_unread: bool,
}

/// Connections that asked once and are kept, without a word.
struct Idle(Vec<TcpStream>);

impl Idle {
    fn open(at: SocketAddr) -> Self {
        let open = |_| {
            let mut stream = TcpStream::connect(at).expect("connect");
            stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
            stream.write_all(b"GET /version HTTP/1.1\r\nHost: appliance\r\n\r\n").expect("ask");
            let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
            while !answer.ends_with(b"1.0.0\n") {
                let count = stream.read(&mut buffer).expect("an answer");
                assert!(count > 0, "a whole answer: {}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&buffer[..count]);
            }
            stream
        };
        Self((0..IDLE_CONNECTIONS).map(open).collect())
    }

    /// Returns how many were closed.
    fn closed(&self) -> u64 {
        let is_open = |stream: &&TcpStream| {
            stream.set_nonblocking(true).expect("look only");
            stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        IDLE_CONNECTIONS - self.0.iter().filter(is_open).count() as u64
    }
}

/// Takes a server through an update, a rollback, and three releases of which one is good, under load. Returns what the load met.
fn journey(server: &Server) -> LoadReport {
    let [admin, http] = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    let addresses = [("admin", "127.0.0.1:8443", admin), ("http", server.address, http)];
    let release = |version: &str| {
        // Of two releases that differ in their versions alone, the second keeps the process of the first.
        let mut release = Release::fixture(server.dir, version, &addresses).file("share/release.txt", version);
        let libraries = Path::new(TARGET).join(server.dir);
        if libraries.is_dir() {
            release = release.dir("lib/python", &libraries);
        }
        if let Some(path) = server.configuration {
            release = release.changed(path, |text| text.replace(server.address, &http.to_string()));
        }
        (server.version)(release, version)
    };
    let appliance = Appliance::new(&release("1.0.0")).start();
    let options = LoadOptions {
        new_per_second: 60,
        keepalive_connections: if server.keeps_connections { 5 } else { 0 },
        keepalive_period: Duration::from_millis(100),
        slow_connections: 2,
        ..LoadOptions::default()
    };
    let load = appliance.load(options);
    load.wait_for_version("1.0.0", LIMIT).expect("1.0.0 answers");
    // Of a server that keeps idle connections these would hold up the end of the first process.
    let unused = if server.keeps_connections { None } else { Some(Idle::open(http)) };
    let first = appliance.component_pid("web");

    appliance.install(&release("1.1.0"), &[]).ends_with(0);
    load.wait_for_version("1.1.0", LIMIT).expect("1.1.0 answers");
    eventually(LIMIT, "1.0.0 has ended", || !process::is_alive(first));
    let closed = unused.map_or(0, |idle| idle.closed());
    appliance.refit(&["rollback"]).ends_with(0);
    load.wait_for_version("1.0.0", LIMIT).expect("1.0.0 answers again");

    // Neither serves anybody, nor costs the process that does.
    let serving = appliance.component_pid("web");
    fails(&appliance, &(server.broken)(release("1.2.0")), "1.0.0");
    fails(&appliance, &idle(release("1.3.0"), server.program), "1.0.0");
    assert_eq!(appliance.component_pid("web"), serving, "it was not stopped for releases that never served");

    appliance.install(&late(release("1.4.0"), server.program, 1.5), &[]).ends_with(0);
    load.wait_for_version("1.4.0", LIMIT).expect("1.4.0 answers");
    eventually(LIMIT, "1.0.0 has ended", || !process::is_alive(serving));
    let mut report = load.finish();
    assert_eq!(report.versions_seen, ["1.0.0", "1.1.0", "1.4.0"], "{report}");
    // A request that a server like this has closed the connection of is its own loss, and nothing else may be lost.
    let is_own = |failure: &String| server.closes_unread && failure.ends_with(UNREAD);
    assert!(report.failures.iter().all(is_own) && report.failed <= UNREAD_MAX, "{report}");
    assert_eq!(report.closed_unannounced, 0, "{report}");
    report.closed_unannounced = closed;
    assert!(!appliance.log().contains("an old process was killed"), "each ended by itself: {}", appliance.log());
    report
}

/// Takes a server through the journey, on which it loses no request, and keeps what it did to connections.
fn loses_nothing(name: &str, server: &Server) {
    let report = journey(server);
    record(
        name,
        &format!(
            "| {name} | {} | {} | {} | {} | {:.2} s |",
            report.ok,
            report.failed,
            report.closed_announced,
            report.closed_unannounced,
            report.longest_gap.as_secs_f64()
        ),
    );
}

fn by_environment(release: Release, _version: &str) -> Release {
    release
}

fn in_configuration(release: Release, path: &str, version: &str) -> Release {
    if version == "1.0.0" { release } else { release.changed(path, |text| text.replace("1.0.0", version)) }
}

const GO: &str = include_str!("../../../fixtures/appliances/go/web/main.go");

const GUNICORN: Server = Server {
    dir: "gunicorn",
    program: "python3",
    address: "127.0.0.1:8080",
    configuration: None,
    version: by_environment,
    broken: |release| {
        release.changed("app/main.py", |text| format!("{text}\nraise SystemExit('the database is gone')\n"))
    },
    keeps_connections: true,
    closes_unread: false,
};

#[test]
fn gunicorn_with_workers_that_answer_one_request_at_a_time() {
    if !lacks(&["python3"], &["gunicorn"]) {
        loses_nothing("gunicorn", &GUNICORN);
    }
}

#[test]
fn gunicorn_with_threads() {
    let threads = |release: Release, _: &str| {
        release.rewritten(|text| text.replace("\"--preload\"", "\"--preload\", \"--threads\", \"4\""))
    };
    if !lacks(&["python3"], &["gunicorn"]) {
        loses_nothing("gunicorn with threads", &Server { version: threads, keeps_connections: false, ..GUNICORN });
    }
}

#[test]
fn uvicorn() {
    let server = Server { dir: "uvicorn", keeps_connections: false, closes_unread: true, ..GUNICORN };
    if !lacks(&["python3"], &["uvicorn"]) {
        loses_nothing("uvicorn", &server);
    }
}

#[test]
fn cherrypy() {
    // The load speaks plain HTTP; with a certificate CherryPy has a test of its own.
    fn plain(release: Release, _version: &str) -> Release {
        let release = release.rewritten(|text| text.replace("https", "http"));
        release.file("lib/python/refit_bus.py", include_str!("../../../fixtures/peers/refit_bus.py")).changed(
            "app/main.py",
            |text| {
                let settings = [
                    "    \"server.ssl_certificate\": CERTIFICATE,\n",
                    "    \"server.ssl_private_key\": CERTIFICATE,\n",
                ];
                settings.iter().fold(text.to_owned(), |text, line| text.replace(line, ""))
            },
        )
    }
    let server = Server {
        dir: "cherrypy",
        address: "127.0.0.1:8444",
        version: plain,
        broken: |release| {
            release.changed("app/main.py", |text| text.replace("bus.connect()", "sys.exit('the database is gone')"))
        },
        keeps_connections: false,
        ..GUNICORN
    };
    if !lacks(&["python3"], &["cherrypy"]) {
        loses_nothing("CherryPy", &server);
    }
}

#[test]
fn node() {
    let server = Server {
        dir: "node",
        program: "node",
        address: "127.0.0.1:8080",
        configuration: None,
        version: by_environment,
        broken: |release| {
            release.changed("app/server.js", |text| {
                text.replace("'use strict';", "throw new Error('the database is gone');")
            })
        },
        keeps_connections: true,
        closes_unread: false,
    };
    if !lacks(&["node"], &[]) {
        loses_nothing("Node", &server);
    }
}

#[test]
fn go() {
    fn build(release: Release, source: &str) -> Release {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in
            [("go.mod", include_str!("../../../fixtures/appliances/go/web/go.mod")), ("main.go", source)]
        {
            fs::write(dir.path().join(name), text).expect("write the source");
        }
        let mut go = Command::new("go");
        go.args(["build", "-o", "bin/web", "."])
            .current_dir(dir.path())
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=mod");
        go.env("GOCACHE", Path::new(TARGET).join("go"));
        Ran::of(&mut go).ends_with(0);
        fs::remove_file(dir.path().join("go.mod"))
            .and_then(|()| fs::remove_file(dir.path().join("main.go")))
            .expect("removed");
        release.dir("", dir.path())
    }
    let server = Server {
        dir: "go",
        program: "bin/web",
        address: "127.0.0.1:8080",
        configuration: None,
        version: |release, _| build(release, GO),
        broken: |release| {
            build(release, &GO.replace("number, err :=", "log.Fatal(\"the database is gone\")\n\tnumber, err :="))
        },
        keeps_connections: false,
        closes_unread: false,
    };
    if !lacks(&["go"], &[]) {
        loses_nothing("Go", &server);
    }
}

#[test]
fn nginx() {
    let server = Server {
        dir: "nginx",
        program: "/usr/sbin/nginx",
        address: "127.0.0.1:8080",
        configuration: Some("config/nginx.conf"),
        version: |release, version| in_configuration(release, "config/nginx.conf", version),
        broken: |release| release.changed("config/nginx.conf", |text| format!("{text}\nno_such_directive on;\n")),
        keeps_connections: false,
        closes_unread: false,
    };
    if !lacks(&["/usr/sbin/nginx"], &[]) {
        loses_nothing("nginx", &server);
    }
}

#[test]
fn haproxy() {
    let server = Server {
        dir: "haproxy",
        program: "/usr/sbin/haproxy",
        address: "127.0.0.1:8080",
        configuration: None,
        version: by_environment,
        broken: |release| release.changed("config/haproxy.cfg", |text| format!("{text}\n    no_such_keyword\n")),
        keeps_connections: true,
        closes_unread: false,
    };
    if !lacks(&["/usr/sbin/haproxy"], &[]) {
        loses_nothing("HAProxy", &server);
    }
}
