//! An appliance for the time of one measurement: its own directory, keys, packages and addresses, made with `refit` itself.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{BenchError, failed};

/// The program that is measured.
pub(crate) const REFIT: &str = env!("CARGO_BIN_EXE_refit");
/// The two releases between which the appliance goes back and forth.
pub(crate) const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
/// Their shops.
const SHOPS: [&[u8]; 2] =
    [include_bytes!(concat!(env!("OUT_DIR"), "/shop-1.0.0")), include_bytes!(concat!(env!("OUT_DIR"), "/shop-1.1.0"))];
/// The appliance may take so long to run, and an update so long to end.
const STEP_MAX: Duration = Duration::from_secs(30);
/// How often something is looked for again that cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long reading an event may block: the deadline is looked at in between.
const READ_MAX: Duration = Duration::from_secs(1);

/// What the shop needs besides its program.
const FILES: [(&str, &str); 3] = [
    ("lib/prices.txt", include_str!("../../fixtures/appliances/shop/1.0.0/lib/prices.txt")),
    ("share/style.css", include_str!("../../fixtures/appliances/shop/1.0.0/share/style.css")),
    ("config/shop.toml", include_str!("../../fixtures/appliances/shop/1.0.0/config/shop.toml")),
];

/// What an update does to the shop's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handover {
    /// The old process serves until the new one does.
    Overlap,
    /// Stopped before, started after.
    Restart,
}

impl Handover {
    /// Returns its name in `appliance.toml`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::Restart => "restart",
        }
    }
}

/// What the runtime says of one handover, on its own clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// From the request to stop accepting to the first accept of the next image.
    pub(crate) gap: Duration,
    /// From just before the exec to that accept.
    pub(crate) exec_to_accept: Duration,
}

/// An appliance that runs.
pub(crate) struct Appliance {
    dir: TempDir,
    guard: Child,
    /// The page and API.
    pub(crate) admin: SocketAddr,
    /// The shop.
    pub(crate) shop: SocketAddr,
    /// The number of the last event that was read.
    seen: u64,
}

impl Appliance {
    /// Makes an appliance with both releases installed, the second one running.
    ///
    /// # Errors
    /// It could not be made, or did not start; nothing is left running.
    pub(crate) fn start(handover: Handover) -> Result<Self, BenchError> {
        let dir = tempfile::Builder::new().prefix("refit-bench-").tempdir().map_err(failed("make a directory"))?;
        let [admin, shop] = free_addresses().map_err(failed("find free ports"))?;
        let keys = dir.path().join("keys");
        refit(&["keys", "init"], &[&keys])?;
        let mut packages = Vec::new();
        for (version, program) in VERSIONS.into_iter().zip(SHOPS) {
            let tree = dir.path().join("trees").join(version);
            write_release(&tree, version, program, &appliance_toml(version, handover, admin, shop))
                .map_err(failed("write a release"))?;
            let package = dir.path().join(format!("{version}.refit"));
            // Packing as fast as it can be: what is measured begins after the package was unpacked.
            refit(&["pack", "--level", "1", "--keys"], &[&keys, &tree, Path::new("-o"), &package])?;
            packages.push(package);
        }
        let home = dir.path().join("home");
        let [first, second] = packages.as_slice() else {
            return Err(BenchError::Answer { what: "pack", answer: "another number of packages".to_owned() });
        };
        refit(&["init", "--root"], &[&keys.join("1.root.json"), first, Path::new("--home"), &home])?;
        let log = File::create(dir.path().join("log")).map_err(failed("make the log"))?;
        let guard = Command::new(REFIT)
            .args(["run", "--with-parent", "--home"])
            .arg(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed("start refit run"))?;
        let mut appliance = Self { dir, guard, admin, shop, seen: 0 };
        appliance.wait_running()?;
        refit(&["install", "--home"], &[&home, second])?;
        appliance.seen = appliance.newest_event()?;
        Ok(appliance)
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn wait_running(&mut self) -> Result<(), BenchError> {
        let begun = Instant::now();
        while begun.elapsed() < STEP_MAX {
            if let Some(status) = self.guard.try_wait().map_err(failed("look at refit run"))? {
                let output = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                return Err(BenchError::Command { command: "run".to_owned(), status, output });
            }
            if self.status().is_ok_and(|status| status["bus"]["state"] == "Running") {
                return Ok(());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Err(BenchError::Late { what: "the start", limit: STEP_MAX })
    }

    fn status(&self) -> Result<Value, BenchError> {
        let mut answer = self.request("GET", "/api/v1/status", "")?;
        let mut text = String::new();
        io::Read::read_to_string(&mut answer, &mut text).map_err(failed("read the status"))?;
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).map_err(|_| BenchError::Answer { what: "the status", answer: text })
    }

    /// Sends a request to the API. Returns the answer, its head included, to be read to its end.
    fn request(&self, method: &str, path: &str, body: &str) -> Result<BufReader<UnixStream>, BenchError> {
        let socket = self.home().join("run/refit.sock");
        let mut stream = UnixStream::connect(socket).map_err(failed("connect to the API"))?;
        stream.set_read_timeout(Some(READ_MAX)).map_err(failed("limit a read"))?;
        // HTTP/1.0: the answer is not chunked and ends with the connection.
        let text = format!(
            "{method} {path} HTTP/1.0\r\nAccept: application/x-ndjson\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).map_err(failed("ask the API"))?;
        Ok(BufReader::new(stream))
    }

    /// Goes to the release that does not run, and waits until that is good. Returns what the runtime says of its handover.
    ///
    /// # Errors
    /// The update failed, or took longer than [`STEP_MAX`].
    pub(crate) fn update(&mut self, to: &'static str) -> Result<Told, BenchError> {
        // Upwards it is an update, downwards a rollback.
        let path = if to == VERSIONS[0] { "/api/v1/rollback" } else { "/api/v1/updates" };
        let mut answer = self.request("POST", path, &format!("{{\"version\":\"{to}\"}}"))?;
        let mut line = String::new();
        answer.read_line(&mut line).map_err(failed("read an answer"))?;
        if !line.contains(" 202 ") {
            return Err(BenchError::Answer { what: "the request to update", answer: line });
        }
        drop(answer);
        let mut told = None;
        self.events(|event| {
            let data = &event["data"];
            let micros = |name: &str| data[name].as_u64().map(Duration::from_micros);
            match (event["event"].as_str(), data["step"].as_str()) {
                (Some("handover"), _) => {
                    if let (Some(gap), Some(exec_to_accept)) = (micros("gap_us"), micros("exec_to_accept_us")) {
                        told = Some(Told { gap, exec_to_accept });
                    }
                    None
                }
                (Some("update.step"), Some("committed")) => Some(Ok(())),
                (Some("update.step"), Some(step @ ("failed" | "rolled-back"))) => Some(Err(BenchError::Update {
                    version: to,
                    step: step.to_owned(),
                    reason: data["reason"].to_string(),
                })),
                (_, _) => None,
            }
        })?;
        told.ok_or(BenchError::Answer { what: "the events", answer: "an update without a handover".to_owned() })
    }

    /// Reads events, across execs, until `verdict` has one.
    fn events(&mut self, mut verdict: impl FnMut(&Value) -> Option<Result<(), BenchError>>) -> Result<(), BenchError> {
        let deadline = Instant::now() + STEP_MAX;
        while Instant::now() < deadline {
            let Ok(answer) = self.request("GET", &format!("/api/v1/events?after={}", self.seen), "") else {
                thread::sleep(LOOK_AGAIN);
                continue;
            };
            // The stream ends with the image that wrote it, and a silent one with `READ_MAX`: then it is asked for again.
            for line in answer.lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
                let Some(id) = event["id"].as_u64() else { continue };
                self.seen = id;
                if let Some(verdict) = verdict(&event) {
                    return verdict;
                }
            }
        }
        Err(BenchError::Late { what: "an update", limit: STEP_MAX })
    }

    /// Returns the number of the newest event.
    fn newest_event(&self) -> Result<u64, BenchError> {
        let answer = self.request("GET", "/api/v1/events?after=0", "")?;
        let ids = answer.lines().map_while(Result::ok).filter_map(|line| {
            let event: Value = serde_json::from_str(&line).ok()?;
            event["id"].as_u64()
        });
        ids.last().ok_or(BenchError::Answer { what: "the events", answer: "none".to_owned() })
    }
}

impl Drop for Appliance {
    /// Ends the guard, which ends everything else.
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.guard.id()) else { return };
        let begun = Instant::now();
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM); // gone already is as good
        while matches!(self.guard.try_wait(), Ok(None)) {
            if begun.elapsed() > STEP_MAX {
                // The third request ends at once what is left.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
}

fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // Both at once, so that they differ.
    let (first, second) = (TcpListener::bind(any)?, TcpListener::bind(any)?);
    Ok([first.local_addr()?, second.local_addr()?])
}

fn appliance_toml(version: &str, handover: Handover, admin: SocketAddr, shop: SocketAddr) -> String {
    format!(
        r#"[appliance]
name = "bench"
version = "{version}"

[runtime]
binary = "bin/refit"

[listeners]
admin = "{admin}"
http = "{shop}"

[update]
probation = "300ms"
start_timeout = "20s"

[[component]]
name = "shop"
command = ["bin/shop"]
listeners = ["http"]
ready = "notify"
handover = "{handover}"
health = {{ http = "http://{shop}/healthz", interval = "100ms", timeout = "5s", threshold = 3 }}
stop_timeout = "10s"
"#,
        handover = handover.name(),
    )
}

fn write_release(tree: &Path, version: &str, shop: &[u8], appliance: &str) -> io::Result<()> {
    let write = |path: &str, parts: &[&[u8]], mode: u32| -> io::Result<()> {
        let path = tree.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::create(&path)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.set_permissions(fs::Permissions::from_mode(mode))
    };
    write("appliance.toml", &[appliance.as_bytes()], 0o644)?;
    write("bin/shop", &[shop], 0o755)?;
    // What follows the last section of an ELF file is not loaded: each release has its own `refit`.
    write("bin/refit", &[&fs::read(REFIT)?, version.as_bytes()], 0o755)?;
    FILES.iter().try_for_each(|(path, text)| write(path, &[text.as_bytes()], 0o644))
}

/// Runs a command of `refit` to its end.
fn refit(words: &[&str], paths: &[&Path]) -> Result<(), BenchError> {
    let output =
        Command::new(REFIT).args(words).args(paths).stdin(Stdio::null()).output().map_err(failed("start refit"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::Command {
        command: words.join(" "),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
    })
}
