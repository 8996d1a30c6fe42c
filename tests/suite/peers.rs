//! Other processes on the bus: section J of the cases, with the Python client as a component of a real appliance, and with peers
//! that behave badly.

mod client;
mod raw;
mod sections;
mod shares;
mod takeover;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use refit::bus::{self, Bus, Origin, Request, Subscription};
use refit_fixtures::tools::as_root;
use serde_json::{Value, json};

use self::raw::Raw;
use crate::appliance::{Appliance, Ran, component, refit, text};
use crate::http;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually, until};

fn release() -> Release {
    Release::bare("1.0.0").channels(&["work", "echo"])
}

/// Returns an appliance with a member `a` of the component `one` at 20 and `b` of `two` at 30 on the channel `work`.
fn two() -> Appliance {
    let release = release()
        .member("one", &["a", "work=20", "echo=50", "reload=50", "start=50"], "allow = [\"reload\"]")
        .member("two", &["b", "work=30"], "after = [\"one\"]");
    Appliance::new(&release).start()
}

impl Appliance {
    fn bus(&self) -> PathBuf {
        self.home().join("run/bus.sock")
    }

    /// Publishes. Returns each listener's answer.
    fn publish(&self, channel: &str, argument: &Value) -> Vec<Value> {
        let ran = self.refit(&["bus", "publish", channel, &argument.to_string(), "--json"]);
        assert!([0, 70].contains(&ran.code), "{}", ran.stderr);
        ran.objects()[0]["report"]["answers"].as_array().expect("answers").clone()
    }

    /// Has the member `a` do something. Returns what it answered.
    fn told(&self, argument: &Value) -> Value {
        let mut argument = argument.clone();
        argument["to"] = json!("a");
        let answers = self.publish("work", &argument);
        let own = answers.iter().find(|answer| answer["listener"] == "one/a").expect("it listens");
        assert_eq!(own["outcome"], "ok", "{own}");
        own["value"].clone()
    }

    /// Waits until these are the peers of a component.
    fn wait_peers(&self, name: &str, expected: &[&str]) -> Value {
        until(LIMIT, &format!("the peers of {name} are {expected:?}"), || {
            let found = component(&self.try_status()?, name);
            let peers = found["peers"].as_array()?;
            let names: Vec<&str> = peers.iter().filter_map(|peer| peer["name"].as_str()).collect();
            (names == expected).then(|| found.clone())
        })
    }

    fn events(&self, name: &str) -> Vec<Value> {
        let answer = http::Request::new(&self.socket(), "GET", "/api/v1/events?after=0")
            .header("Accept", "application/x-ndjson")
            .stream()
            .expect("a stream");
        // What is asked for now is told of last.
        let newest = Raw::hello(&self.bus(), json!({})).ask("request", json!({ "request": "start" }));
        let newest = newest.expect("it is so already")["ticket"]["number"].clone();
        let mut found = Vec::new();
        for line in answer {
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            if event["event"] == "bus.request" && event["data"]["number"] == newest {
                return found;
            }
            if event["event"] == name {
                found.push(event["data"].clone());
            }
        }
        panic!("the events ended")
    }
}

#[test]
fn b108_attached_peers_are_counted_and_their_names_are_unique() {
    let appliance = two();
    let found = appliance.wait_peers("one", &["one/a"]);
    assert_eq!(found["peers"][0]["pid"], found["pid"]);
    let list = appliance.refit(&["component", "list"]).ends_with(0);
    assert!(list.stdout.contains("PEERS"), "{}", list.stdout);
    appliance.refit(&["component", "stop", "one"]).ends_with(0);
    appliance.wait_peers("one", &[]);
    appliance.refit(&["component", "start", "one"]).ends_with(0);
    appliance.wait_peers("one", &["one/a"]);

    let bus = appliance.bus();
    let mut first = Raw::hello(&bus, json!({ "name": "x" }));
    let mut second = Raw::connect(&bus);
    let taken = second.ask("hello", json!({ "version": 1, "name": "x" })).expect_err("taken");
    assert_eq!(taken["data"]["code"], "name", "{taken}");
    first.ask("bye", Value::Null).expect("bye");
    Raw::hello(&bus, json!({ "name": "x" }));
    let own = std::process::id();
    let _nameless = [Raw::hello(&bus, json!({})), Raw::hello(&bus, json!({}))];
    let shown = appliance.refit(&["bus", "state", "--json"]).ends_with(0).objects().remove(0);
    for name in [format!("@{own}"), format!("@{own}.2")] {
        assert!(shown["peers"].as_array().expect("peers").iter().any(|peer| peer["name"] == name), "{shown}");
    }
    let downs = appliance.events("component.down");
    assert!(downs.iter().any(|down| down["peer"] == "one/a" && down["component"] == "one"), "{downs:?}");
}

/// Takes requests for a bus that has no appliance around it.
struct BusRequests(Bus);

impl refit::requests::Requests for BusRequests {
    fn submit(
        &self,
        _: refit::wire::RequestBody,
        _: &str,
    ) -> Result<refit::requests::Accepted, refit::requests::RequestError> {
        drop(self.0.request(Request::Reload, Origin("test".to_owned())));
        Err(refit::requests::RequestError::Nowhere)
    }
}

#[test]
fn b111_external_and_in_process_listeners_share_one_order() {
    use refit::carry::{Carry, Guard, Registry, RegistryParts};
    use refit::logs::Logs;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("bus.sock");
    let socket = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let text = "[appliance]\nname = \"a\"\nversion = \"1.0.0\"\n[bus]\nchannels = [\"work\"]\n";
    std::fs::write(dir.path().join(refit::config::FILE), text).expect("written");
    let config = refit::config::Config::load(dir.path(), &dir.path().join(refit::config::LOCAL_FILE)).expect("good");
    let config = Arc::new(config);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (bus, engine) = Bus::new(bus::Options::default());
        let before = Carry::default();
        let parts = RegistryParts {
            events: Arc::new(refit::events::Events::new(Vec::new())),
            tickets: Arc::new(refit::tickets::Tickets::new(Vec::new(), "t".to_owned())),
            logs: Arc::new(Logs::open(before.output(), None)),
            sessions: Arc::default(),
        };
        let registry = Arc::new(Registry::new(&before, 1, semver::Version::new(1, 0, 0), Guard::default(), parts));
        let requests = Arc::new(BusRequests(bus.clone()));
        let parts = refit::peers::Parts { bus: bus.clone(), registry, config, requests };
        let peers = Arc::new(refit::peers::Peers::new(parts));
        refit::peers::attach(&peers, socket);
        let acknowledged = Arc::new(AtomicBool::new(false));
        for priority in [30, 10] {
            let acknowledged = Arc::clone(&acknowledged);
            let listener = bus::listener(move |_| {
                let seen = acknowledged.load(Ordering::SeqCst);
                async move { Ok(json!([priority, seen])) }
            });
            bus.subscribe(Subscription::new("work", format!("in-{priority}"), listener).priority(priority));
        }
        let running = tokio::task::spawn(engine.run());
        let start = bus.request(Request::Start, Origin("test".to_owned()));
        assert_eq!(tokio::time::timeout(LIMIT, start.outcome()).await, Ok(bus::Progress::Done));
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let seen = Arc::clone(&acknowledged);
        let child = tokio::task::spawn_blocking(move || {
            let mut peer = Raw::hello(&path, json!({ "channels": [{ "channel": "work", "priority": 20 }] }));
            ready.send(()).expect("waited for");
            let call = peer.next_of("call");
            seen.store(true, Ordering::SeqCst);
            peer.answer(&call, json!("external"));
            assert_eq!(peer.next_of("bye")["params"]["reason"], "exit");
            call
        });
        is_ready.await.expect("ready");
        let report = tokio::time::timeout(LIMIT, bus.publish("work", json!({ "n": 1 }))).await.expect("in time");
        assert_eq!(report.values(), [&json!([10, false]), &json!("external"), &json!([30, true])], "{report:?}");
        drop(bus.request(Request::Exit, Origin("test".to_owned())));
        let call = tokio::time::timeout(LIMIT, child).await.expect("in time").expect("no panic");
        assert_eq!(call["params"]["argument"], json!({ "n": 1 }));
        assert_eq!((&call["params"]["channel"], &call["params"]["state"]), (&json!("work"), &json!("Running")));
        let ended = tokio::time::timeout(LIMIT, running).await.expect("in time").expect("no panic");
        assert!(ended.faults.is_empty(), "{:?}", ended.faults);
    });
}

#[test]
fn b111_components_answer_in_the_order_of_their_priorities() {
    let appliance = two();
    let answers = appliance.publish("work", &json!({ "n": 1 }));
    let said: Vec<(&str, &Value)> =
        answers.iter().map(|answer| (answer["listener"].as_str().expect("a name"), &answer["value"])).collect();
    let expected = [json!({ "name": "a", "said": { "n": 1 } }), json!({ "name": "b", "said": { "n": 1 } })];
    assert_eq!(said, [("one/a", &expected[0]), ("two/b", &expected[1])]);
    assert_eq!(&appliance.order()[appliance.order().len() - 2..], ["work a", "work b"]);
}

#[test]
fn b112_a_child_that_dies_during_its_call_is_lost_at_once_and_the_others_are_called() {
    let release = release().member("one", &["a", "work=20", "--limit"], "restart = { policy = \"no\" }").member(
        "two",
        &["b", "work=30"],
        "",
    );
    let appliance = Appliance::new(&release).start();
    let answers = appliance.publish("work", &json!({ "do": "die", "to": "a" }));
    let reason = text(&answers[0]["reason"]);
    assert!(reason.starts_with("lost: ") && reason.contains("SIGKILL"), "{reason}");
    assert!(answers[0]["outcome"] == "failed" && answers[1]["outcome"] == "ok", "{answers:?}");
    let downs = appliance.events("component.down");
    let down = downs.iter().find(|down| down["peer"] == "one/a").expect("told");
    assert!(text(&down["reason"]).contains("SIGKILL"), "{down}");
}

#[test]
fn b112_a_child_that_fails_or_hangs_is_reported_and_the_others_are_called() {
    let release = release().member("one", &["a", "work=20", "--limit"], "stop_timeout = \"1s\"").member(
        "two",
        &["b", "work=30"],
        "",
    );
    let appliance = Appliance::new(&release).start();
    let answers = appliance.publish("work", &json!({ "do": "fail", "to": "a" }));
    assert_eq!((&answers[0]["outcome"], &answers[0]["reason"]), (&json!("failed"), &json!("as it was told")));
    assert_eq!(answers[1]["outcome"], "ok", "{answers:?}");
    let answers = appliance.publish("work", &json!({ "do": "hang", "to": "a" }));
    assert_eq!((&answers[0]["outcome"], &answers[1]["outcome"]), (&json!("timeout"), &json!("ok")), "{answers:?}");
    assert!(text(&answers[0]["reason"]).contains("not done within 2 s"), "{answers:?}");
}

#[test]
fn b114_a_child_asks_only_for_what_it_is_allowed() {
    let appliance = two();
    let ticket = appliance.told(&json!({ "do": "request", "request": "restart" }))["ticket"].clone();
    assert_eq!((&ticket["state"], &ticket["origin"]), (&json!("refused"), &json!("component one")), "{ticket}");
    assert!(text(&ticket["reason"]).contains("allows the component one"), "{ticket}");
    let audit = appliance.events("bus.request");
    let entry = audit.iter().find(|entry| entry["outcome"] == "refused").expect("an audit entry");
    assert_eq!((&entry["origin"], &entry["request"]), (&json!("component one"), &json!("restart")), "{entry}");
    // The log is written behind what it tells.
    eventually(LIMIT, "the refusal is on the log", || {
        appliance.log().contains("request restart of component one: refused")
    });

    let ticket = appliance.told(&json!({ "do": "request", "request": "reload" }))["ticket"].clone();
    assert!(ticket["number"].is_u64() && ticket["origin"] == "component one", "{ticket}");
    eventually(LIMIT, "the reload was committed", || appliance.order().contains(&"reload-commit a".to_owned()));
    let done = appliance.told(&json!({ "do": "wait", "for": { "ticket": ticket["id"] } }));
    assert_eq!(done["ticket"]["state"], "done", "{done}");
    assert_eq!(appliance.status()["bus"]["state"], "Running");
}

#[test]
fn b114_the_same_rights_hold_on_the_other_socket_with_and_without_the_token() {
    let appliance = two();
    let post = |token: bool, path: &str, body: Value| {
        appliance.told(&json!({ "do": "http", "token": token, "path": format!("/api/v1/{path}"), "body": body }))
    };
    for token in [true, false] {
        for (path, body) in [
            ("bus/requests", json!({ "request": "exit" })),
            ("rollback", json!({})),
            ("components/two/stop", json!({})),
            ("updates", json!({ "version": "2.0.0" })),
        ] {
            let answer = post(token, path, body);
            assert_eq!(
                (&answer["status"], &answer["body"]["code"]),
                (&json!(403), &json!("not_permitted")),
                "{answer}"
            );
        }
        let answer = post(token, "bus/requests", json!({ "request": "reload" }));
        assert_eq!(answer["status"], 202, "{answer}");
        assert_eq!(answer["body"]["ticket"]["origin"], "component one", "{answer}");
    }
    let refused = appliance.told(&json!({ "do": "tokenless" }));
    assert_eq!(refused["code"], "not_known", "{refused}");
    let wrong =
        http::Request::new(&appliance.socket(), "GET", "/api/v1/status").header("Authorization", "Bearer nobody");
    assert_eq!(wrong.send().status, 403);
    assert_eq!(appliance.status()["bus"]["state"], "Running", "nothing was changed");
}

#[test]
fn b115_a_child_publishes_inside_its_own_call_until_it_is_too_deep() {
    let appliance = two();
    let own = json!({ "do": "publish", "channel": "echo", "argument": 7 });
    let report = appliance.told(&own);
    assert_eq!(report["answers"][0]["value"]["said"], 7, "{report}");
    let mut nested = json!({});
    for _ in 0..12 {
        nested = json!({ "do": "publish", "channel": "echo", "argument": nested });
    }
    let deepest = appliance.told(&nested).to_string();
    assert!(deepest.contains("not_published") && deepest.contains("8 publications"), "{deepest}");
    let unknown = appliance.told(&json!({ "do": "publish", "channel": "nowhere" }));
    assert_eq!(unknown["code"], "unknown_channel", "{unknown}");
    let built_in = appliance.told(&json!({ "do": "publish", "channel": "stop" }));
    assert_eq!(built_in["code"], "built_in_channel", "{built_in}");
}

#[test]
fn b115_a_child_that_waits_inside_the_call_of_a_transition_is_refused_at_once() {
    let appliance = two();
    let mut peer = Raw::hello(&appliance.bus(), json!({ "channels": [{ "channel": "reload", "priority": 1 }] }));
    let ticket = peer.ask("request", json!({ "request": "reload" })).expect("accepted")["ticket"].clone();
    let call = peer.next_of("call");
    assert_eq!((&call["params"]["phase"], &call["params"]["generation"]), (&json!("prepare"), &json!(1)), "{call}");
    assert!(call["params"]["deadline_ms"].as_u64() > Some(0), "{call}");
    for asked in [json!({ "states": ["Idle"] }), json!({ "ticket": ticket["id"] })] {
        let inside = peer.ask("wait", asked).expect_err("refused");
        assert_eq!(inside["data"]["code"], "inside", "{inside}");
    }
    peer.answer(&call, Value::Null);
    let commit = peer.next_of("call");
    assert_eq!(commit["params"]["phase"], "commit", "{commit}");
    peer.answer(&commit, Value::Null);
    assert_eq!(peer.next_of("ticket")["params"]["ticket"]["state"], "done");
}

#[test]
fn b116_an_exit_tells_terminates_and_kills_in_this_order() {
    let release = release().member("one", &["a", "stop=50", "--deaf", "--orphan"], "stop_timeout = \"1s\"");
    let mut appliance = Appliance::new(&release).start();
    appliance.refit(&["bus", "request", "exit"]).ends_with(0);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(70), "one had to be killed: {}", appliance.log());
    let order = appliance.order();
    let place = |what: &str| order.iter().position(|line| line == what).unwrap_or_else(|| panic!("{what}: {order:?}"));
    assert!(place("stop-exit a") < place("term a"), "{order:?}");
    assert!(appliance.processes().is_empty(), "no process is left");
}

#[test]
fn b118_children_resume_after_a_restart_in_place() {
    let appliance = two();
    let pids = (appliance.component_pid("one"), appliance.component_pid("two"));
    appliance.refit(&["bus", "request", "restart"]).ends_with(0);
    appliance.wait_peers("one", &["one/a"]);
    appliance.wait_peers("two", &["two/b"]);
    eventually(LIMIT, "the site runs", || appliance.status()["bus"]["state"] == "Running");
    assert_eq!((appliance.component_pid("one"), appliance.component_pid("two")), pids);
    let order = appliance.order();
    let attached = |name: &str| order.iter().filter(|line| line.starts_with("attach-") && line.ends_with(name)).count();
    assert_eq!((attached(" a"), attached(" b")), (2, 2), "{order:?}");
    assert!(!order.contains(&"start a".to_owned()), "it serves since before: {order:?}");
    assert_eq!(appliance.publish("work", &json!({})).len(), 2);
    process::send(pids.0, Signal::SIGKILL);
    let reason = until(LIMIT, "the exit status is known", || {
        let downs = appliance.events("component.down");
        let reason = text(&downs.iter().rfind(|down| down["peer"] == "one/a")?["reason"]);
        (!reason.contains("replace")).then_some(reason)
    });
    assert!(reason.contains("SIGKILL"), "{reason}");
}

#[test]
fn b119_children_outlive_a_runtime_and_end_without_an_appliance() {
    let mut appliance = two();
    let pids = [appliance.component_pid("one"), appliance.component_pid("two")];
    appliance.kill_runtime();
    appliance.wait_peers("one", &["one/a"]);
    appliance.wait_peers("two", &["two/b"]);
    assert_eq!([appliance.component_pid("one"), appliance.component_pid("two")], pids, "the same processes");
    assert_eq!(appliance.publish("work", &json!({})).len(), 2);

    let runtime = appliance.runtime_pid();
    // The guard first: otherwise it would start another runtime.
    process::send(appliance.guard_pid(), Signal::SIGSTOP);
    process::send(runtime, Signal::SIGKILL);
    appliance.kill_guard();
    eventually(LIMIT, "the children have ended by themselves", || !pids.iter().any(|pid| process::is_alive(*pid)));
    let mut appliance = appliance.start();
    appliance.wait_running();
    appliance.wait_peers("one", &["one/a"]);
}

/// The most that hostile peers may add to the runtime's memory in this test, in KiB: the bound is 640 KiB for each of them, and
/// there are at most 20 at a time; the rest is the allocator's.
const GROWTH_MAX_KIB: u64 = 64 * 1024;
/// What a publication may take in the median, whatever others do.
const LATENCY_MAX: Duration = Duration::from_millis(50);
/// How many times longer it may take than on the same machine without them, where that is more.
const SLOWER_MAX: u32 = 4;
/// How many flood at the same time: each needs a processor of its own to send, and there may be two.
const FLOODS: u32 = 1;
/// How many publications the median is of.
const ROUNDS: usize = 100;

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Sends `lines` as a peer that says no hello, and returns what it is told before it is cut off.
fn strange(appliance: &Appliance, line: &[u8]) -> Vec<Value> {
    let mut raw = Raw::connect(&appliance.bus());
    raw.send(line).ok(); // it may be cut off in the middle
    raw.rest()
}

#[test]
fn b120_whoever_makes_no_sense_is_refused_with_a_reason() {
    let appliance = two();
    let hello = |params: Value| format!("{}\n", json!({ "id": 1, "method": "hello", "params": params })).into_bytes();
    let oversized = vec![b'x'; 300_000];
    let rows: [(Vec<u8>, Option<&str>, &str); 9] = [
        (b"garbage\n".to_vec(), Some("not_json"), "not JSON"),
        (b"[]\n".to_vec(), Some("not_a_message"), "neither a method"),
        (b"{\"id\":1,\"method\":\"publish\",\"params\":{}}\n".to_vec(), Some("hello"), "before hello"),
        (oversized, None, "a line of more than"),
        (hello(json!({ "version": 7 })), Some("version"), "not 7"),
        (hello(json!({ "version": 1, "token": "guess" })), Some("not_known"), "belongs to no running process"),
        (hello(json!({ "version": 1, "name": "one/a" })), Some("name"), "one/a is another's"),
        (hello(json!({ "version": 1, "name": "x y" })), Some("name"), "is no name"),
        (hello(json!({ "version": 1, "channels": [{ "channel": "nope" }] })), Some("unknown_channel"), "\"nope\""),
    ];
    for (line, code, reason) in rows {
        let told = strange(&appliance, &line);
        match code {
            Some(code) => assert_eq!(told[0]["error"]["data"]["code"], code, "{told:?}"),
            None => assert!(told.is_empty(), "{told:?}"),
        }
        eventually(LIMIT, reason, || {
            appliance.log().lines().any(|line| line.contains("to the bus was refused") && line.contains(reason))
        });
    }
    let mut late = Raw::hello(&appliance.bus(), json!({ "name": "late" }));
    let unknown = late.ask("dance", json!({ "unknown": "fields" })).expect_err("no such method");
    assert_eq!((&unknown["code"], &unknown["data"]["code"]), (&json!(-32601), &json!("unknown_method")));
    late.send(b"garbage\n").expect("sent");
    assert_eq!(late.rest()[0]["error"]["data"]["code"], "not_json");
    eventually(LIMIT, "the reason is on the log", || {
        appliance.log().contains("@late is off the bus: cut off: the line")
    });
    assert_eq!(appliance.publish("work", &json!({})).len(), 2, "nobody else noticed");
}

#[test]
fn b120_another_account_is_refused() {
    if !as_root() {
        return;
    }
    let appliance = two();
    for dir in [appliance.scratch(), appliance.home(), &appliance.home().join("run")] {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set its mode");
    }
    let token = fs::read(format!("/proc/{}/environ", appliance.component_pid("one"))).expect("its environment");
    let token = String::from_utf8(token).expect("text");
    let token = token.split('\0').find_map(|word| word.strip_prefix("REFIT_TOKEN=")).expect("a token").to_owned();
    for (token, reason) in
        [(Value::Null, "neither root nor"), (json!(token), "is not the account of the component one")]
    {
        let script = "import os, socket, sys\nos.setgid(65534), os.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\n\
                      s.connect(sys.argv[1])\ns.sendall(sys.argv[2].encode())\nprint(s.makefile().readline(), end='')";
        let hello = json!({ "id": 1, "method": "hello", "params": { "version": 1, "token": token } });
        let mut python = std::process::Command::new("python3");
        python.args(["-c", script]).arg(appliance.bus()).arg(format!("{hello}\n"));
        let told = Ran::of(&mut python).ends_with(0).objects().remove(0);
        assert_eq!(told["error"]["data"]["code"], "not_known", "{told}");
        assert!(text(&told["error"]["message"]).contains(reason), "{told}");
    }
}

/// Returns the median time of a publication by `peer`.
fn median(peer: &mut Raw) -> Duration {
    let mut took = Vec::new();
    for number in 0..ROUNDS {
        let begun = Instant::now();
        let report = peer.ask("publish", json!({ "channel": "echo", "argument": number })).expect("published");
        took.push(begun.elapsed());
        assert_eq!(report["answers"][0]["outcome"], "ok", "{report}");
    }
    took.sort();
    took[ROUNDS / 2]
}

#[test]
fn b120_slow_and_flooding_peers_harm_nobody_else() {
    let appliance = two();
    let bus = appliance.bus();
    let runtime = appliance.runtime_pid();
    let before = resident_kib(runtime);
    let over = AtomicBool::new(false);
    // What the machine itself needs just now: it may be busy with other tests.
    let mut calm = Raw::hello(&bus, json!({ "name": "calm" }));
    let undisturbed = median(&mut calm);
    drop(calm);
    let mut took = Duration::ZERO;
    thread::scope(|scope| {
        // Reads nothing, and is called with much.
        scope.spawn(|| {
            let channels = json!([{ "channel": "work", "limit_ms": 300 }, { "channel": "log" }]);
            let slow = Raw::hello(&bus, json!({ "name": "slow", "channels": channels }));
            eventually(LIMIT, "the slow one is cut off", || {
                appliance.log().contains("@slow is off the bus: cut off: it reads too slowly")
            });
            drop(slow);
        });
        for number in 0..FLOODS {
            let (over, bus) = (&over, &bus);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let mut flood = Raw::connect(bus);
                    flood.say(&json!({ "id": 1, "method": "hello", "params": { "version": 1 } }));
                    let entry = json!({ "method": "log", "params": { "text": format!("flood {number}") } });
                    let lines = format!("{entry}\n").repeat(500);
                    while !over.load(Ordering::SeqCst) && flood.send(lines.as_bytes()).is_ok() {}
                }
            });
        }
        let filling = scope.spawn(|| {
            let mut full = Raw::hello(&bus, json!({ "name": "full" }));
            let argument = json!({ "to": "nobody", "pad": "x".repeat(100_000) });
            while !appliance.log().contains("it reads too slowly") && !over.load(Ordering::SeqCst) {
                full.ask("publish", json!({ "channel": "work", "argument": argument })).ok(); // refused is as good
            }
        });
        let mut quiet = Raw::hello(&bus, json!({ "name": "quiet" }));
        took = median(&mut quiet);
        eventually(LIMIT, "a flood is cut off", || appliance.log().contains("cut off: it floods"));
        filling.join().expect("no panic");
        over.store(true, Ordering::SeqCst);
    });
    let limit = LATENCY_MAX.max(undisturbed * SLOWER_MAX);
    assert!(took < limit, "the median of {ROUNDS} publications took {took:?}, and {undisturbed:?} without a flood");
    let grown = resident_kib(runtime).saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "the runtime has grown by {grown} KiB");
    eventually(LIMIT, "what is dropped is counted", || appliance.log().contains("log entries were dropped"));
    assert_eq!(appliance.publish("work", &json!({})).len(), 2, "nobody else was cut off");
    let end = Ran::of(refit().args(["bus", "request", "exit", "--home"]).arg(appliance.home()));
    end.ends_with(0);
}
