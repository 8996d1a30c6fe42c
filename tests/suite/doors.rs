//! Strangers at the doors: crowds, half requests, guesses, other pages, and what a session is good for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::appliance::{Appliance, text};
use crate::http::{Answer, At, Request};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

const CROWD: &str = include_str!("doors/crowd.py");

/// Begins a crowd at the admin listener.
fn crowd(appliance: &Appliance, name: &str, words: &[&str]) -> Child {
    let mut python = Command::new("python3");
    python.args(["-c", CROWD, name, &appliance.address("admin").to_string()]).args(words);
    python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run python3")
}

/// Returns what a crowd prints next.
fn said(crowd: &mut BufReader<impl Read>) -> Value {
    let mut line = String::new();
    crowd.read_line(&mut line).expect("read");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

/// Sends these bytes to the admin listener, and returns the status of the answer, 0 if there is none.
fn raw(appliance: &Appliance, bytes: &str) -> u16 {
    let mut stream = TcpStream::connect(appliance.address("admin")).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    stream.write_all(bytes.as_bytes()).expect("send");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("read");
    line.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// A session, as a browser has it.
struct Session {
    at: At,
    cookie: String,
    secret: String,
}

impl Session {
    fn begin(appliance: &Appliance, password: &str) -> Self {
        let answer = Request::new(&appliance.admin(), "POST", "/api/v1/session").json(&json!({ "password": password }));
        let answer = answer.send();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let cookie = answer.header("set-cookie").split(';').next().expect("a pair").to_owned();
        Self { at: appliance.admin(), cookie, secret: text(&answer.json()["secret"]) }
    }

    fn request(&self, method: &str, path: &str) -> Request {
        Request::new(&self.at, method, path).header("Cookie", &self.cookie)
    }

    fn status(&self) -> u16 {
        self.request("GET", "/api/v1/status").send().status
    }

    fn reload(&self, headers: &[(&str, &str)]) -> Answer {
        let request = self.request("POST", "/api/v1/bus/requests").json(&json!({ "request": "start" }));
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send()
    }
}

#[test]
fn a_crowd_with_half_requests_keeps_nobody_out_and_takes_no_descriptors_of_others() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    for half in ["head", "body"] {
        let mut strangers = crowd(&appliance, "half_sent", &["1100", half]);
        let mut out = BufReader::new(strangers.stdout.take().expect("piped"));
        assert_eq!(said(&mut out), json!({ "open": 1100 }));
        let open: usize = process::descriptors(appliance.runtime_pid()).values().sum();
        assert!(open < 700, "{half}: {open} descriptors");
        assert_eq!(Request::new(&appliance.admin(), "GET", "/healthz").send().status, 200, "{half}");
        assert_eq!(Request::new(&appliance.admin(), "GET", "/").send().status, 200, "{half}");
        appliance.refit(&["status"]).ends_with(0);
        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
        // All of them go, the last when a head, or a body, has had its time.
        eventually(LIMIT, "the crowd is gone", || process::socket_inodes(appliance.runtime_pid()).len() < 60);
        strangers.stdin.take().expect("piped").write_all(b"\n").expect("tell");
        assert!(said(&mut out)["closed"].as_u64() > Some(1000), "{half}");
        assert!(strangers.wait().expect("wait").success());
    }
}

#[test]
fn six_hundred_guesses_at_once_are_ten_and_keep_nobody_else_out() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let before = memory_kib(appliance.runtime_pid());
    let mut guessing = crowd(&appliance, "logins", &["600"]);
    let mut out = BufReader::new(guessing.stdout.take().expect("piped"));
    let answers = said(&mut out);
    assert!(guessing.wait().expect("wait").success());
    assert!(answers["401"].as_u64() <= Some(10) && answers["429"].as_u64() > Some(400), "{answers}");
    let mut elsewhere = crowd(&appliance, "from_elsewhere", &[appliance.password()]);
    let mut out = BufReader::new(elsewhere.stdout.take().expect("piped"));
    assert_eq!(said(&mut out), json!({ "status": 200 }));
    assert!(elsewhere.wait().expect("wait").success());
    let grown = memory_kib(appliance.runtime_pid()).saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more");
    let log = appliance.log();
    let lines = log.lines().filter(|line| line.contains("a login was refused")).count();
    assert!((1..=20).contains(&lines), "{lines} lines");
    assert!(log.contains("logged in") && log.contains("from=\"127.0.0.2\""), "{log}");
}

/// Returns how much memory a process has, in KiB.
fn memory_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_cookie_alone_changes_nothing_and_a_session_ends_with_the_password_streams_included() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let session = Session::begin(&appliance, appliance.password());
    assert_eq!(session.status(), 200);
    // Another page of this machine has set a cookie of the same name.
    let two = format!("refit_session=0000; {}", session.cookie);
    assert_eq!(Request::new(&session.at, "GET", "/api/v1/status").header("Cookie", &two).send().status, 200);
    let problem = session.reload(&[]);
    assert_eq!((problem.status, &problem.json()["code"]), (403, &json!("secret_missing")));
    assert_eq!(session.reload(&[("Refit-Secret", "0000")]).status, 403);
    assert_eq!(session.reload(&[("Refit-Secret", &session.secret)]).status, 202);
    // Another page of this machine has the cookie, and may even have got hold of the secret.
    for (name, value) in [("Origin", "http://appliance:8080"), ("Origin", "null"), ("Sec-Fetch-Site", "same-site")] {
        let problem = session.reload(&[("Refit-Secret", &session.secret), (name, value)]);
        assert_eq!((problem.status, &problem.json()["code"]), (403, &json!("cross_site")), "{name}: {value}");
    }
    let mut events = session.request("GET", "/api/v1/events").stream().expect("a stream");
    assert_eq!(events.status, 200);
    let other = Session::begin(&appliance, appliance.password());
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    assert_eq!(session.reload(&[("Refit-Secret", &session.secret)]).status, 202, "carried with its secret");
    assert!(events.by_ref().count() > 0, "it ended with the image");

    let events = session.request("GET", "/api/v1/events").stream().expect("a stream");
    assert_eq!(session.request("DELETE", "/api/v1/session").send().status, 204);
    for _ in events {} // to its end
    assert_eq!((session.status(), other.status()), (401, 200));
    let events = other.request("GET", "/api/v1/events").stream().expect("a stream");
    let set = appliance.refit(&["user", "passwd", "--generate", "--json"]).ends_with(0);
    assert_eq!(other.status(), 401);
    for _ in events {}
    let newest = Session::begin(&appliance, &text(&set.objects()[0]["password"]));
    assert_eq!(newest.status(), 200);
}

#[test]
fn requests_that_others_may_read_otherwise_are_refused_and_answers_say_what_they_are() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    for (head, status) in [
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\nHost: a\nConnection: close\n\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\nX: y\r\nConnection: close\r\n\r\n", 400),
        // A browser that was led here by a name of somebody else.
        ("POST /api/v1/session HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n", 421),
        ("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:1\r\nSec-Fetch-Site: none\r\n\r\n", 200),
        // Through a proxy with TLS that names itself, and through one that passes on what it is called: the body is missing.
        (
            "POST /api/v1/session HTTP/1.1\r\nHost: 127.0.0.1:1\r\nOrigin: https://box.example\r\nSec-Fetch-Site: same-origin\r\n\r\n",
            400,
        ),
        (
            "POST /api/v1/session HTTP/1.1\r\nHost: box.example\r\nOrigin: https://box.example\r\nSec-Fetch-Site: same-origin\r\n\r\n",
            400,
        ),
    ] {
        assert_eq!(raw(&appliance, head), status, "{head:?}");
    }
    // After one request the next is looked at, too.
    let two = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\nConnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(appliance.address("admin")).expect("connect");
    stream.write_all(two.as_bytes()).expect("send");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("read");
    assert_eq!((answers.matches("HTTP/1.1 200").count(), answers.matches("HTTP/1.1 400").count()), (1, 1), "{answers}");
    for (at, path) in [(appliance.admin(), "/api/v1/status"), (appliance.socket(), "/api/v1/status")] {
        let answer = Request::new(&at, "GET", path).send();
        assert_eq!((answer.header("cache-control"), answer.header("x-content-type-options")), ("no-store", "nosniff"));
    }
    let large = json!({ "password": "x".repeat(10_000) });
    let answer = Request::new(&appliance.admin(), "POST", "/api/v1/session").json(&large).send();
    assert_eq!((answer.status, &answer.json()["code"]), (413, &json!("too_large")), "{}", answer.text());
    let large = json!({ "request": "x".repeat(1_000_000) });
    let answer = Request::new(&appliance.socket(), "POST", "/api/v1/bus/requests").json(&large).send();
    assert_eq!(answer.status, 413, "{}", answer.text());
    let slow =
        "POST /api/v1/session HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{";
    assert_eq!(raw(&appliance, slow), 408);
}
