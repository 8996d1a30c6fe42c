//! The API from outside: who gets in, packages and updates over HTTP, events across an exec, problems, the page.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::appliance::{Appliance, component, text};
use crate::http::{Answer, At, Request};
use crate::release::Release;
use crate::wait::{LIMIT, until};

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
}

/// Returns a request to the admin listener that says who asks.
fn asked(appliance: &Appliance, method: &str, path: &str) -> Request {
    Request::new(&appliance.admin(), method, path).header("Authorization", &basic("admin", appliance.password()))
}

fn assert_problem(answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!((&problem["status"], &problem["code"]), (&status.into(), &code.into()), "{problem}");
    assert!(["type", "title", "detail", "remedy"].iter().all(|key| problem[key].is_string()), "{problem}");
    problem
}

/// Uploads a package; returns its description.
fn upload(appliance: &Appliance, release: &Release) -> Value {
    let bytes = fs::read(release.package()).expect("read the package");
    let answer = asked(appliance, "PUT", "/api/v1/packages").body(bytes).send();
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

/// Waits for the outcome of a ticket, asking with `request`, whoever answers.
fn outcome(request: &dyn Fn(&str) -> Request, id: &str) -> Value {
    let path = format!("/api/v1/bus/requests/{id}?wait_ms=2000");
    until(LIMIT, "the ticket has an outcome", || {
        let answer = request(&path).try_send().ok()?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let ticket = answer.json()["ticket"].clone();
        (ticket["state"] != "accepted").then_some(ticket)
    })
}

#[test]
fn the_admin_listener_asks_for_a_password_and_the_socket_does_not() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let (socket, admin) = (appliance.socket(), appliance.admin());
    for path in ["status", "releases", "history", "components", "events", "components/shop/logs"] {
        let path = format!("/api/v1/{path}");
        let answer = Request::new(&admin, "GET", &path).send();
        assert_problem(&answer, 401, "not_logged_in");
    }
    for (method, path) in [("PUT", "packages"), ("POST", "updates"), ("POST", "rollback"), ("POST", "bus/requests")] {
        let path = format!("/api/v1/{path}");
        assert_eq!(Request::new(&admin, method, &path).send().status, 401, "{method} {path}");
    }
    assert_eq!(Request::new(&admin, "GET", "/metrics").send().status, 401);
    let wrong = Request::new(&admin, "GET", "/api/v1/status").header("Authorization", &basic("admin", "not this one"));
    assert_eq!(wrong.send().status, 401);
    let known = asked(&appliance, "GET", "/api/v1/status").send();
    assert_eq!(known.status, 200);
    let local = Request::new(&socket, "GET", "/api/v1/status").send();
    assert_eq!(local.status, 200);
    let (mut known, mut local) = (known.json(), local.json());
    known["time"] = Value::Null;
    local["time"] = Value::Null;
    assert_eq!(known["runtime"], local["runtime"], "the same API on both");
    let status = appliance.refit(&["status", "--json"]).ends_with(0).objects().remove(0);
    assert_eq!(status["components"], known["components"]);
    for key in ["appliance", "release", "previous", "guard", "runtime", "bus", "components", "listeners", "update"] {
        assert!(status.get(key).is_some(), "{key}: {status}");
    }
    for key in ["name", "state", "pid", "generation", "health", "handover"] {
        assert!(component(&status, "shop").get(key).is_some(), "{key}: {status}");
    }
}

#[test]
fn a_session_survives_an_update_and_ends_when_asked() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let admin = appliance.admin();
    let login =
        Request::new(&admin, "POST", "/api/v1/session").json(&json!({ "password": appliance.password() })).send();
    assert_eq!(login.status, 200, "{}", login.text());
    let cookie = login.header("set-cookie").to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().expect("a pair").to_owned();
    let status = || Request::new(&admin, "GET", "/api/v1/status").header("Cookie", &cookie).send().status;
    assert_eq!(status(), 200);
    appliance.install(&Release::shop("1.1.0"), &[]).ends_with(0);
    assert_eq!(status(), 200, "nobody has to log in again after an update");
    appliance.kill_runtime();
    assert_eq!(status(), 200, "nor after a crash");
    let logout = Request::new(&admin, "DELETE", "/api/v1/session").header("Cookie", &cookie).send();
    assert_eq!(logout.status, 204);
    assert_eq!(status(), 401);
}

#[test]
fn many_wrong_passwords_close_the_door() {
    /// More than are allowed within a minute.
    const TRIES: usize = 15;
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let login = |password: &str| {
        let body = json!({ "user": "admin", "password": password });
        Request::new(&appliance.admin(), "POST", "/api/v1/session").json(&body).send()
    };
    let answers: Vec<Answer> = (0..TRIES).map(|number| login(&format!("guess number {number}"))).collect();
    assert_eq!(answers[0].status, 401);
    let last = answers.last().expect("an answer");
    let problem = assert_problem(last, 429, "too_many_logins");
    assert!(text(&problem["remedy"]).contains("minute"), "{problem}");
    assert_eq!(login(appliance.password()).status, 429, "the right one does not help now");
}

#[test]
fn a_package_is_uploaded_and_installed_by_its_digest() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let package = upload(&appliance, &Release::shop("1.1.0"));
    assert_eq!((&package["version"], &package["from"]), (&"1.1.0".into(), &"1.0.0".into()), "{package}");
    let changed = package["changes"]["changed"].to_string();
    for path in ["bin/shop", "lib/prices.txt", "config/shop.toml"] {
        assert!(changed.contains(path), "{path}: {changed}");
    }
    assert!(!changed.contains("bin/stock") && package["linked_bytes"].as_u64() > Some(0), "{package}");
    assert_eq!(appliance.status()["release"]["version"], "1.0.0", "nothing is installed before it is asked for");

    let body = json!({ "digest": package["digest"] });
    let answer = asked(&appliance, "POST", "/api/v1/updates").json(&body).send();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let ticket = answer.json()["ticket"].clone();
    let ticket = outcome(&|path| asked(&appliance, "GET", path), &text(&ticket["id"]));
    assert_eq!(ticket["state"], "done", "{ticket}");
    appliance.settled("1.1.0");
    assert_eq!(appliance.history()[0]["who"], "admin (web)");

    let answer = asked(&appliance, "POST", "/api/v1/rollback").send();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let ticket = outcome(&|path| asked(&appliance, "GET", path), &text(&answer.json()["ticket"]["id"]));
    assert_eq!(ticket["state"], "done", "{ticket}");
    appliance.settled("1.0.0");
}

#[test]
fn what_is_refused_says_why_and_what_to_do() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let answer = asked(&appliance, "PUT", "/api/v1/packages").body(vec![7; 5000]).send();
    let problem = assert_problem(&answer, 422, "package_refused");
    assert_eq!((&problem["exit"], &problem["reason_code"]), (&65.into(), &"not_a_package".into()), "{problem}");
    let older = fs::read(Release::shop("0.9.0").package()).expect("read");
    let problem =
        assert_problem(&asked(&appliance, "PUT", "/api/v1/packages").body(older).send(), 422, "package_refused");
    assert!(text(&problem["detail"]).contains("0.9.0"), "{problem}");
    assert_eq!(problem["reason_code"], "not_newer", "{problem}");
    for (release, reason) in [
        (Release::shop("1.1.0").of_appliance("another"), "other_appliance"),
        (Release::shop("1.1.0").by_a_stranger(), "signature_invalid"),
    ] {
        let package = fs::read(release.package()).expect("read");
        let answer = asked(&appliance, "PUT", "/api/v1/packages").body(package).send();
        assert_eq!(assert_problem(&answer, 422, "package_refused")["reason_code"], reason);
    }
    assert_problem(&asked(&appliance, "GET", "/api/v1/repository").send(), 422, "no_repository");
    let nobodys = json!({ "digest": "0".repeat(64) });
    assert_problem(&asked(&appliance, "POST", "/api/v1/updates").json(&nobodys).send(), 404, "package_unknown");
    let runs = json!({ "version": "1.0.0" });
    assert_problem(&asked(&appliance, "POST", "/api/v1/updates").json(&runs).send(), 409, "release_runs");
    let runs = json!({ "request": "update", "version": "1.0.0" });
    assert_problem(&asked(&appliance, "POST", "/api/v1/bus/requests").json(&runs).send(), 409, "release_runs");
    assert_problem(&asked(&appliance, "POST", "/api/v1/rollback").send(), 404, "no_previous_release");
    assert_problem(&asked(&appliance, "GET", "/api/v1/nowhere").send(), 404, "not_found");
    let broken = asked(&appliance, "POST", "/api/v1/updates").header("Content-Type", "application/json");
    assert_problem(&broken.body(b"{".to_vec()).send(), 400, "bad_request");
    appliance.settled("1.0.0");
    assert!(appliance.history().is_empty());
}

#[test]
fn what_is_not_understood_is_a_problem_that_names_it() {
    let appliance = Appliance::new(&Release::shop("1.0.0").channels(&["news"])).start();
    for (method, path, allowed) in [
        ("GET", "/api/v1/rollback", "POST"),
        ("DELETE", "/api/v1/status", "GET,HEAD"),
        ("POST", "/healthz", "GET,HEAD"),
        ("PUT", "/", "GET,HEAD"),
    ] {
        let answer = asked(&appliance, method, path).send();
        let problem = assert_problem(&answer, 405, "method_not_allowed");
        assert!(text(&problem["detail"]).contains(&format!("{method} {path}")), "{problem}");
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    for (method, path, named) in [
        ("GET", "events?after=x", "after"),
        ("GET", "components/shop/logs?n=x", "n: "),
        ("GET", "bus/requests/1?wait_ms=x", "wait_ms"),
        ("PUT", "packages?digest=zz", "digest"),
        ("PUT", "packages?allow_downgrade=maybe", "allow_downgrade"),
        ("PUT", "packages?alow_downgrade=true", "`alow_downgrade`"),
        ("DELETE", "packages/zz", "digest"),
    ] {
        let answer = asked(&appliance, method, &format!("/api/v1/{path}")).send();
        let problem = assert_problem(&answer, 400, "bad_request");
        assert!(text(&problem["detail"]).contains(named), "{path}: {problem}");
    }
    for (path, body) in [
        ("rollback", json!({ "wrong": "1.0.0" })),
        ("updates", json!({ "version": "1.1.0", "wrong": true })),
        ("packages", json!({ "version": "1.1.0", "wrong": true })),
        ("bus/requests", json!({ "request": "reload", "wrong": 1 })),
        ("bus/publications", json!({ "channel": "news", "wrong": 1 })),
        ("session", json!({ "password": appliance.password(), "wrong": 1 })),
    ] {
        let path = format!("/api/v1/{path}");
        for request in [asked(&appliance, "POST", &path), Request::new(&appliance.socket(), "POST", &path)] {
            let problem = assert_problem(&request.json(&body).send(), 400, "bad_request");
            assert!(text(&problem["detail"]).contains("`wrong`"), "{path}: {problem}");
        }
    }
    assert_eq!(appliance.settled("1.0.0")["bus"]["state"], "Running");
    assert!(appliance.history().is_empty());
}

#[test]
fn json_needs_no_content_type_where_there_are_no_browsers() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let reload = |request: Request| {
        let form = request.header("Content-Type", "application/x-www-form-urlencoded");
        form.body(b"{\"request\": \"reload\"}".to_vec()).send()
    };
    assert_eq!(reload(Request::new(&appliance.socket(), "POST", "/api/v1/bus/requests")).status, 202);
    let problem = reload(asked(&appliance, "POST", "/api/v1/bus/requests"));
    let problem = assert_problem(&problem, 400, "bad_request");
    assert!(text(&problem["detail"]).contains("application/json"), "{problem}");
}

/// Sends the `head` of a request, and its `body` only when the answer is read; then asks something else on the same connection.
/// Returns the first line of the answer.
fn answered_early<S: Read + Write>(stream: S, head: &str, body: &[u8]) -> String {
    let mut stream = BufReader::new(stream);
    let mut ask = |request: &str, body: &[u8]| {
        stream.get_mut().write_all(request.as_bytes()).expect("the head is sent");
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| line != "\r\n") {
            let mut line = String::new();
            assert!(stream.read_line(&mut line).expect("an answer") > 0, "closed after {lines:?}");
            lines.push(line);
        }
        let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        stream.read_exact(&mut vec![0; length.expect("a length")]).expect("the answer's body");
        stream.get_mut().write_all(body).expect("the body is taken, too");
        lines.swap_remove(0)
    };
    let first = ask(head, body);
    let next = ask("GET /healthz HTTP/1.1\r\nHost: appliance\r\n\r\n", b"");
    assert_eq!(next, "HTTP/1.1 200 OK\r\n");
    first
}

#[test]
fn who_is_answered_before_everything_was_sent_can_send_the_rest() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let body = vec![b' '; 8 << 20];
    let head = |path: &str| format!("{path} HTTP/1.1\r\nHost: appliance\r\nContent-Length: {}\r\n\r\n", body.len());
    let admin = TcpStream::connect(appliance.address("admin")).expect("connect");
    admin.set_read_timeout(Some(LIMIT)).expect("set a limit");
    let answer = answered_early(admin, &head("PUT /api/v1/packages"), &body);
    assert_eq!(answer, "HTTP/1.1 401 Unauthorized\r\n");
    let At::Unix(path) = appliance.socket() else { panic!("the socket is a file") };
    let socket = UnixStream::connect(path).expect("connect");
    socket.set_read_timeout(Some(LIMIT)).expect("set a limit");
    assert_eq!(answered_early(socket, &head("PUT /nowhere"), &body), "HTTP/1.1 404 Not Found\r\n");
}

#[test]
fn another_sites_page_changes_nothing() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    for (method, path) in [("POST", "bus/requests"), ("POST", "rollback"), ("PUT", "packages"), ("POST", "session")] {
        let request = asked(&appliance, method, &format!("/api/v1/{path}")).header("Sec-Fetch-Site", "cross-site");
        assert_problem(&request.json(&json!({ "request": "exit" })).send(), 403, "cross_site");
    }
    let own = asked(&appliance, "POST", "/api/v1/bus/requests").header("Sec-Fetch-Site", "same-origin");
    assert_eq!(own.json(&json!({ "request": "reload" })).send().status, 202);
}

/// An event as Server-Sent Events tell it.
#[derive(Debug)]
struct Event {
    id: u64,
    name: String,
    data: Value,
}

/// Reads events after `seen` until `last` is among them, connecting again with the last number as a browser does.
fn events_until(at: &dyn Fn() -> Request, seen: u64, last: &dyn Fn(&Event) -> bool) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    until(LIMIT, "the last event came", || {
        let seen = events.last().map_or(seen, |event| event.id);
        let lines = at().header("Last-Event-ID", &seen.to_string()).stream().ok()?;
        assert_eq!((lines.status, lines.header("content-type")), (200, "text/event-stream"));
        let (mut id, mut name, mut data) = (0, String::new(), Value::Null);
        for line in lines {
            match line.split_once(": ") {
                Some(("id", value)) => id = value.parse().expect("a number"),
                Some(("event", value)) => name = value.to_owned(),
                Some(("data", value)) => data = serde_json::from_str(value).expect("JSON"),
                Some(_) => {}
                None if line.is_empty() && id > 0 => {
                    let event = Event { id, name: std::mem::take(&mut name), data: data.take() };
                    id = 0;
                    let is_last = last(&event);
                    events.push(event);
                    if is_last {
                        return Some(());
                    }
                }
                None => {}
            }
        }
        None
    });
    events
}

fn steps(events: &[Event]) -> Vec<String> {
    events.iter().filter(|event| event.name == "update.step").map(|event| text(&event.data["step"])).collect()
}

#[test]
fn events_go_on_across_the_exec_and_none_is_missing() {
    let appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    let package = upload(&appliance, &Release::voyage("1.1.0"));
    let events = std::thread::scope(|scope| {
        let stream = || asked(&appliance, "GET", "/api/v1/events");
        let reading = scope.spawn(move || events_until(&stream, 1, &|event| event.data["step"] == "committed"));
        let body = json!({ "digest": package["digest"] });
        assert_eq!(asked(&appliance, "POST", "/api/v1/updates").json(&body).send().status, 202);
        reading.join().expect("no panic")
    });
    let numbers: Vec<u64> = events.iter().map(|event| event.id).collect();
    let expected: Vec<u64> = (2..).take(numbers.len()).collect();
    assert_eq!(numbers, expected, "every number, once, in order");
    assert_eq!(
        steps(&events),
        ["staged", "preflight", "trial", "stopping", "exec", "starting", "probation", "committed"]
    );
    assert!(events.iter().any(|event| event.name == "handover"), "the exec is told");
}

#[test]
fn the_steps_of_an_update_that_is_rolled_back() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let bad = Release::shop_with("1.2.0", ", \"--fault\", \"exit-at-start\"");
    appliance.install(&bad, &[]).complains_with(70);
    let socket = appliance.socket();
    let stream = || Request::new(&socket, "GET", "/api/v1/events");
    let events = events_until(&stream, 1, &|event| event.data["step"] == "rolled-back");
    assert_eq!(
        steps(&events),
        ["staged", "preflight", "trial", "stopping", "exec", "starting", "rolling-back", "rolled-back"]
    );
    let last = events.last().expect("an event");
    assert_eq!(last.data["component"], "shop", "{last:?}");
    assert!(last.data["output"].to_string().contains("no index for schema 2"), "{last:?}");
    assert_eq!(appliance.history()[0]["reason_code"], "start_failed");
}

#[test]
fn events_come_as_json_lines_for_who_wants_them() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let request = Request::new(&appliance.socket(), "GET", "/api/v1/events?after=0");
    let mut lines = request.header("Accept", "application/x-ndjson").stream().expect("a stream");
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    let first: Value = serde_json::from_str(&lines.next().expect("a line")).expect("JSON");
    assert_eq!(first["id"], 1, "{first}");
    assert!(first["event"].is_string() && first["at"].is_string() && first["data"].is_object(), "{first}");
}

#[test]
fn the_page_and_the_health_need_no_password() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let admin: At = appliance.admin();
    let page = Request::new(&admin, "GET", "/").send();
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"), "{}", page.header("content-type"));
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src") && !policy.contains("unsafe"), "{policy}");
    assert!(!page.text().contains("http://") && !page.text().contains("https://"), "nothing comes from elsewhere");
    let health = Request::new(&admin, "GET", "/healthz").send();
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));
    for (path, status) in [("/", 200), ("/healthz", 200), ("/api/v1/status", 401), ("/metrics", 401)] {
        let head = Request::new(&admin, "HEAD", path).send();
        assert_eq!((head.status, head.body.len()), (status, 0), "{path}");
    }
    let metrics = asked(&appliance, "GET", "/metrics").send();
    assert!(metrics.status == 200 && metrics.text().contains("# TYPE"), "{}", metrics.text());
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let rows = [
        ("/api/v1/updates", "[null, \"1.0.0\"]"),
        ("/api/v1/rollback", " [null, null]"),
        ("/api/v1/rollback", "null"),
        ("/api/v1/bus/requests", "[\"reload\", null, null, null, false]"),
        ("/api/v1/bus/publications", "[\"reload\", null]"),
        ("/api/v1/packages", "[\"1.0.0\", false, null]"),
        ("/api/v1/session", "[\"admin\", \"x\"]"),
    ];
    for (path, body) in rows {
        let answer = Request::new(&appliance.socket(), "POST", path).body(body.as_bytes().to_vec()).send();
        assert_eq!(
            (answer.status, text(&answer.json()["code"])),
            (400, "bad_request".to_owned()),
            "{path} {body}: {}",
            answer.text()
        );
    }
    assert_eq!(appliance.status()["update"], Value::Null, "nothing was tried");
}
