//! Connections of the runtime's own server travel across the exec: kept ones are not closed, and half a request is not lost.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::appliance::Appliance;
use crate::load::{Load, LoadOptions};
use crate::release::Release;
use crate::wait::LIMIT;

/// Clients of `/healthz`: new connections and kept ones.
fn watchers() -> LoadOptions {
    LoadOptions { path: "/healthz".to_owned(), slow_connections: 0, ..LoadOptions::default() }
}

#[test]
fn no_connection_to_the_page_is_closed_or_lost_by_updates_and_restarts() {
    let appliance = Appliance::new(&Release::voyage("1.0.0")).start();
    let load = Load::start(appliance.address("admin"), watchers());
    load.wait_for_ok(50, LIMIT).expect("the page answers");
    appliance.install(&Release::voyage("1.1.0"), &[]).ends_with(0);
    for _ in 0..5 {
        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    }
    appliance.refit(&["rollback"]).ends_with(0);
    let report = load.finish();
    report.assert_clean();
    assert_eq!(report.closed_announced, 0, "{report}");
}

#[test]
fn a_request_of_which_one_image_read_the_beginning_is_answered_by_the_next() {
    let appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let mut connection = TcpStream::connect(appliance.address("admin")).expect("connect");
    connection.set_read_timeout(Some(LIMIT)).expect("set a limit");
    let mut ask = |first: &str, second: &str| {
        connection.write_all(first.as_bytes()).expect("send the beginning");
        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
        connection.write_all(second.as_bytes()).expect("send the rest");
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            let mut bytes = [0; 512];
            let count = connection.read(&mut bytes).expect("read the answer");
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&bytes[..count]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&answer));
    };
    ask("GET /heal", "thz HTTP/1.1\r\nHost: appliance\r\n\r\n");
    ask("", "GET /healthz HTTP/1.1\r\nHost: appliance\r\n\r\n");
    ask("GET /healthz HTTP/1.1\r\nHost: appl", "iance\r\n\r\n");
}

#[test]
fn connections_end_when_the_appliance_does() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let mut connection = TcpStream::connect(appliance.address("admin")).expect("connect");
    connection.set_read_timeout(Some(LIMIT)).expect("set a limit");
    crate::process::send(appliance.guard_pid(), nix::sys::signal::Signal::SIGTERM);
    assert_eq!(connection.read(&mut [0; 16]).expect("wait for the end"), 0);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0));
}

#[test]
fn b053_an_idle_connection_closes_at_once_and_a_request_under_way_is_finished() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    let connect = || {
        let connection = TcpStream::connect(appliance.address("admin")).expect("connect");
        connection.set_read_timeout(Some(LIMIT)).expect("set a limit");
        connection
    };
    let (mut idle, mut busy) = (connect(), connect());
    let read_until = |connection: &mut TcpStream, end: &str| {
        let mut text = String::new();
        while !text.contains(end) {
            let mut bytes = [0; 512];
            let count = connection.read(&mut bytes).expect("read the answer");
            assert!(count > 0, "closed after {text:?}");
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        text
    };
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: appliance\r\n\r\n").expect("asked");
    read_until(&mut idle, "ok\n");
    let body = "{\"user\":\"admin\",\"password\":\"wrong\"}";
    let head = format!(
        "POST /api/v1/session HTTP/1.1\r\nHost: appliance\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Expect: 100-continue\r\n\r\n",
        body.len()
    );
    busy.write_all(head.as_bytes()).expect("sent the head");
    read_until(&mut busy, "100 Continue"); // the request is under way
    crate::process::send(appliance.guard_pid(), nix::sys::signal::Signal::SIGTERM);
    assert_eq!(idle.read(&mut [0; 16]).expect("wait for its end"), 0);
    busy.write_all(body.as_bytes()).expect("sent the rest");
    let answer = read_until(&mut busy, "wrong_password");
    assert!(answer.contains("HTTP/1.1 401"), "{answer}");
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0));
}
