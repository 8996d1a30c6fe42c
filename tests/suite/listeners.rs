//! Listeners that another release, or the machine's settings, move, rename or exchange, while clients come all the time.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::appliance::{Appliance, component, free_port};
use crate::load::Load;
use crate::readiness::{SERVE, requests};
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// Returns a release with these listeners.
fn listening(version: &str, listeners: &[(&str, SocketAddr)]) -> Release {
    let bare = Release::bare(version).file("lib/serve.py", SERVE);
    listeners.iter().fold(bare, |release, (name, address)| release.listener_at(name, *address))
}

/// Adds a component that serves at `listener`, and begins as `begins` says.
fn with_server(release: Release, name: &str, begins: &str, listener: &str, handover: &str) -> Release {
    let version = release.version().to_owned();
    let keys = format!(
        "command = [\"python3\", \"lib/serve.py\", \"{version}\", \"{begins}\"]\nlisteners = [\"{listener}\"]\n\
         ready = \"listen\"\nhandover = \"{handover}\"\nstart_timeout = \"3s\""
    );
    release.component(name, &keys)
}

/// Returns an appliance whose listeners have the addresses that its releases say.
fn appliance(first: &Release) -> Appliance {
    let of_release =
        |line: &str| first.listeners().iter().any(|(name, at)| at.port() != 0 && line.starts_with(name.as_str()));
    Appliance::new(first)
        .local(|text| text.lines().filter(|line| !of_release(line)).map(|line| format!("{line}\n")).collect())
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

fn load(port: u16, version: &str) -> Load {
    let load = Load::start(at("127.0.0.1", port), requests());
    load.wait_for_version(version, LIMIT).expect("it answers");
    load
}

fn assert_shown(appliance: &Appliance, address: SocketAddr) {
    let shown = appliance.refit(&["status"]).ends_with(0).stdout;
    assert!(shown.contains(&format!(" {address}")), "{address}: {shown}");
}

/// Takes an appliance that listens at `one` to a release that listens at `other`, back, to one that fails there, and there again.
fn moves(one: &str, other: &str, handover: &str) {
    let port = free_port();
    let release = |version: &str, ip: &str, begins: &str| {
        with_server(listening(version, &[("http", at(ip, port))]), "web", begins, "http", handover)
    };
    let mut appliance = appliance(&release("1.0.0", one, "at_once")).start();
    let load = load(port, "1.0.0");
    appliance.install(&release("1.1.0", other, "at_once"), &[]).ends_with(0);
    load.wait_for_version("1.1.0", LIMIT).expect("the release at the other address answers");
    assert_shown(&appliance, at(other, port));
    appliance.refit(&["rollback"]).ends_with(0);
    load.wait_for_version("1.0.0", LIMIT).expect("the release at the first address answers");
    assert_shown(&appliance, at(one, port));
    appliance.install(&release("1.2.0", other, "exits"), &[]).complains_with(70);
    load.wait_for_version("1.0.0", LIMIT).expect("the release at the first address answers");
    assert_shown(&appliance, at(one, port));
    appliance.install(&release("1.3.0", other, "at_once"), &[]).ends_with(0);
    load.wait_for_version("1.3.0", LIMIT).expect("the release at the other address answers");
    appliance.kill_runtime();
    load.finish().assert_clean();
    assert_shown(&appliance, at(other, port));
    appliance.stop();
    drop(TcpListener::bind(at(other, port)).expect("nothing is left there"));
}

#[test]
fn a_listener_moves_to_every_address_and_back() {
    moves("127.0.0.1", "0.0.0.0", "restart");
}

#[test]
fn a_listener_moves_to_one_address_and_back() {
    moves("0.0.0.0", "127.0.0.1", "overlap");
}

#[test]
fn a_listener_moves_to_the_addresses_of_both_protocols_and_back() {
    moves("127.0.0.1", "::", "overlap");
    moves("::", "127.0.0.1", "restart");
}

#[test]
fn a_listener_is_the_same_under_another_name() {
    let [one, other] = [at("127.0.0.1", free_port()), at("127.0.0.1", free_port())];
    // Renamed, both exchanged, and each given to the other component.
    let first = listening("1.0.0", &[("http", one), ("more", other)]);
    let first =
        with_server(with_server(first, "web", "at_once", "http", "overlap"), "second", "at_once", "more", "overlap");
    let renamed = listening("1.1.0", &[("www", one), ("rest", other)]);
    let renamed =
        with_server(with_server(renamed, "web", "at_once", "www", "overlap"), "second", "at_once", "rest", "overlap");
    let exchanged = listening("1.2.0", &[("www", other), ("rest", one)]);
    let exchanged =
        with_server(with_server(exchanged, "web", "at_once", "www", "overlap"), "second", "at_once", "rest", "overlap");
    let given = listening("1.3.0", &[("www", other), ("rest", one)]);
    let given =
        with_server(with_server(given, "web", "at_once", "rest", "overlap"), "third", "at_once", "www", "overlap");
    let appliance = appliance(&first).start();
    let (load_one, load_other) = (load(one.port(), "1.0.0"), load(other.port(), "1.0.0"));
    let answers = |version: &str| {
        for load in [&load_one, &load_other] {
            load.wait_for_version(version, LIMIT).expect("it answers");
        }
    };
    for release in [&renamed, &exchanged, &given] {
        appliance.install(release, &[]).ends_with(0);
        answers(release.version());
    }
    appliance.refit(&["rollback"]).ends_with(0);
    answers("1.2.0");
    for load in [load_one, load_other] {
        load.finish().assert_clean();
    }
}

#[test]
fn settings_move_a_listener_at_a_restart_and_one_that_cannot_be_had_stops_nothing() {
    let (port, elsewhere) = (free_port(), free_port());
    let release = with_server(listening("1.0.0", &[("http", at("127.0.0.1", port))]), "web", "at_once", "http", "keep");
    let appliance = appliance(&release).start();
    let load = load(port, "1.0.0");
    let listens = |ip: &str, port: u16| appliance.set_local(|text| with_address(&text, at(ip, port)));
    let taken = TcpListener::bind(at("127.0.0.1", elsewhere)).expect("another program's");
    listens("127.0.0.1", elsewhere);
    let runtime = appliance.runtime_pid();
    let pid = appliance.component_pid("web");
    let line = appliance.refit(&["bus", "request", "restart"]).complains_with(70);
    assert!(line.contains(&format!("cannot listen on 127.0.0.1:{elsewhere} for the listener http")), "{line}");
    let line = appliance.refit(&["config", "check"]).complains_with(78);
    assert!(line.contains(&elsewhere.to_string()), "{line}");
    assert_eq!((appliance.runtime_pid(), appliance.component_pid("web")), (runtime, pid), "nothing was stopped");
    drop(taken);
    for ip in ["0.0.0.0", "127.0.0.1", "::"] {
        listens(ip, port);
        appliance.refit(&["config", "check"]).ends_with(0);
        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
        appliance.settled("1.0.0");
        assert_shown(&appliance, at(ip, port));
        load.wait_for_ok(5, LIMIT).expect("it answers");
    }
    load.finish().assert_clean();
    assert_eq!(component(&appliance.status(), "web")["state"], "running");
}

#[test]
fn a_listener_that_another_program_has_is_waited_for_while_the_rest_serves() {
    let (port, more) = (free_port(), free_port());
    let release = listening("1.0.0", &[("http", at("127.0.0.1", port)), ("more", at("127.0.0.1", more))]);
    let release =
        with_server(with_server(release, "web", "at_once", "http", "keep"), "second", "at_once", "more", "restart");
    let mut appliance = appliance(&release).start();
    appliance.stop();
    let taken = TcpListener::bind(at("127.0.0.1", more)).expect("another program's");
    let appliance = appliance.start();
    let load = load(port, "1.0.0");
    let first = appliance.component_pid("web");
    for _ in 0..2 {
        let status = appliance.status();
        let second = component(&status, "second");
        assert_eq!(second["state"], "backoff", "{second}");
        let reason = second["reason"].as_str().expect("a reason");
        assert!(reason.contains(&format!("cannot listen on 127.0.0.1:{more} for the listener more")), "{reason}");
        let listeners = status["listeners"].as_array().expect("a list");
        let missing = listeners.iter().find(|listener| listener["name"] == "more").expect("it is shown");
        assert!(missing["failure"].as_str().expect("why").contains("in use"), "{missing}");
        let shown = appliance.refit(&["status"]).ends_with(0).stdout;
        assert!(shown.contains(&format!("warning: cannot listen on 127.0.0.1:{more}")), "{shown}");
        appliance.kill_runtime();
    }
    // What restarts meanwhile is not held up by it.
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    drop(taken);
    eventually(LIMIT, "the listener is had", || {
        appliance.try_status().is_some_and(|status| component(&status, "second")["state"] == "running")
    });
    assert!(
        appliance.status()["listeners"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|listener| listener["failure"].is_null())
    );
    assert_eq!(appliance.component_pid("web"), first, "it served all the time");
    load.finish().assert_clean();
}

/// Returns the settings `text` with the listener `http` at `address`.
fn with_address(text: &str, address: SocketAddr) -> String {
    let others = text.lines().filter(|line| !line.starts_with("http ="));
    let lines = others.flat_map(|line| {
        let more = (line == "[listeners]").then(|| format!("http = \"{address}\"\n"));
        [format!("{line}\n"), more.unwrap_or_default()]
    });
    lines.collect()
}

/// A server that accepts when it may, and answers slowly.
const SLOW: &str = r#"
import os, socket, sys, threading, time
data = os.environ["REFIT_DATA"]
listener = socket.socket(fileno=3)
listener.setblocking(True)
def may(name):
    return os.path.exists(os.path.join(data, name))
def serve(connection):
    asked = connection.recv(100)
    connection.sendall(b"begun " + asked)
    while not may("end"):
        time.sleep(0.1)
    connection.sendall(b" and ended by " + sys.argv[1].encode())
    connection.close()
if sys.argv[2] == "exits":
    sys.exit(3)
while sys.argv[2] == "waits" and not may("accept"):
    time.sleep(0.02)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

/// Returns a release whose server listens at `address`.
fn slow(version: &str, address: SocketAddr, how: &str) -> Release {
    let keys = format!(
        "command = [\"python3\", \"lib/slow.py\", \"{version}\", \"{how}\"]\nlisteners = [\"http\"]\n\
         ready = \"started\"\nstop_timeout = \"2s\""
    );
    Release::bare(version).file("lib/slow.py", SLOW).listener_at("http", address).component("web", &keys)
}

/// Returns clients that have asked, and wait.
fn clients(port: u16, count: usize) -> Vec<TcpStream> {
    let ask = |number| {
        let mut client = TcpStream::connect(at("127.0.0.1", port)).expect("connected");
        client.set_read_timeout(Some(LIMIT)).expect("set");
        write!(client, "{number}").expect("asked");
        client
    };
    (0..count).map(ask).collect()
}

/// Allows the servers of `appliance` what they wait for.
fn allow(appliance: &Appliance, what: &str) {
    fs::write(appliance.home().join("data").join(what), "").expect("written");
}

/// Asserts that each was answered whole, by the release `version`.
fn assert_answered(clients: Vec<TcpStream>, version: &str) {
    for (number, mut client) in clients.into_iter().enumerate() {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap_or_else(|error| panic!("client {number}: {error}, after {answer:?}"));
        assert_eq!(answer, format!("begun {number} and ended by {version}"), "client {number}");
    }
}

#[test]
fn connections_that_waited_for_a_listener_to_move_outlive_restarts() {
    let port = free_port();
    let mut appliance = appliance(&slow("1.0.0", at("127.0.0.1", port), "waits")).start();
    let clients = clients(port, 20);
    appliance.install(&slow("1.1.0", at("0.0.0.0", port), "serves"), &[]).ends_with(0);
    for client in &clients {
        let mut bytes = [0; 5];
        eventually(LIMIT, "it is served", || client.peek(&mut bytes).is_ok_and(|count| count == 5));
    }
    for _ in 0..3 {
        appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    }
    allow(&appliance, "end");
    assert_answered(clients, "1.1.0");
    appliance.stop();
}

#[test]
fn as_many_clients_as_a_listener_lets_wait_are_kept_while_it_moves_and_back() {
    let port = free_port();
    let mut appliance = appliance(&slow("1.0.0", at("127.0.0.1", port), "waits")).start();
    let clients = clients(port, 500);
    appliance.install(&slow("1.1.0", at("0.0.0.0", port), "exits"), &[]).complains_with(70);
    allow(&appliance, "accept");
    allow(&appliance, "end");
    assert_answered(clients, "1.0.0");
    appliance.stop();
}

#[test]
fn an_appliance_that_ran_serves_the_rest_also_where_a_cleaner_took_its_log() {
    let release = |version: &str| {
        let release = listening(version, &[("http", at("127.0.0.1", 0))]);
        with_server(release, "web", "at_once", "http", "overlap").component("idle", "command = [\"sleep\", \"600\"]")
    };
    let mut appliance = Appliance::new(&release("1.0.0")).start();
    let address = appliance.address("http");
    appliance.install(&release("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    appliance.stop();
    fs::remove_dir_all(appliance.home().join("log")).expect("removed");
    fs::remove_file(appliance.home().join("history.jsonl")).expect("removed");
    let foreign = TcpListener::bind(address).expect("the port is free");
    appliance.run_guard();
    appliance.wait_running();
    assert!(component(&appliance.status(), "idle")["pid"].is_number());
    drop(foreign);
}

#[test]
fn a_trial_at_a_start_that_finds_its_port_taken_names_the_address() {
    let port = free_port();
    let release = |version: &str, listeners: &[(&str, SocketAddr)]| {
        listening(version, listeners).component("idle", "command = [\"sleep\", \"600\"]")
    };
    let mut appliance = appliance(&release("1.0.0", &[])).start();
    appliance.stop();
    appliance.install(&release("1.1.0", &[("http", at("127.0.0.1", port))]), &[]).ends_with(0);
    let foreign = TcpListener::bind(at("127.0.0.1", port)).expect("the port is free");
    appliance.run_guard();
    appliance.wait_running();
    appliance.settled("1.0.0");
    let newest = &appliance.history()[0];
    let reason = newest["reason"].as_str().expect("a reason");
    assert!(reason.contains(&format!("cannot listen on 127.0.0.1:{port} for the listener http")), "{newest}");
    drop(foreign);
}
