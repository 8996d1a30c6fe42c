//! An appliance for the time of one measurement: its own directory, keys, packages and addresses, made with `refit` itself.

use std::fs;
use std::io::{self, BufRead};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::site::{LOOK_AGAIN, REFIT, ReleaseFile, STEP_MAX, Site, Workshop, refit};
use super::{BenchError, failed};

/// The two releases between which the appliance goes back and forth.
pub(crate) const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
/// Their shops.
const SHOPS: [&[u8]; 2] =
    [include_bytes!(concat!(env!("OUT_DIR"), "/shop-1.0.0")), include_bytes!(concat!(env!("OUT_DIR"), "/shop-1.1.0"))];

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
    site: Site,
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
        let workshop = Workshop::new()?;
        let [admin, shop] = free_addresses().map_err(failed("find free ports"))?;
        let pack = |version: &'static str, program: &[u8]| {
            let toml = appliance_toml(version, handover, admin, shop);
            let files = release_files(version, program, toml).map_err(failed("read refit"))?;
            workshop.pack(version, &files)
        };
        let [first, second] = [pack(VERSIONS[0], SHOPS[0])?, pack(VERSIONS[1], SHOPS[1])?];
        let site = workshop.run(&first)?;
        refit(&["install", "--home"], &[&site.home(), &second])?;
        let mut appliance = Self { site, admin, shop, seen: 0 };
        appliance.seen = appliance.newest_event()?;
        Ok(appliance)
    }

    /// Goes to the release that does not run, and waits until that is good. Returns what the runtime says of its handover.
    ///
    /// # Errors
    /// The update failed, or took longer than [`STEP_MAX`].
    pub(crate) fn update(&mut self, to: &'static str) -> Result<Told, BenchError> {
        // Upwards it is an update, downwards a rollback.
        let path = if to == VERSIONS[0] { "/api/v1/rollback" } else { "/api/v1/updates" };
        let mut answer = self.site.request("POST", path, &format!("{{\"version\":\"{to}\"}}"))?;
        let mut line = String::new();
        answer.read_line(&mut line).map_err(failed("read an answer"))?;
        if !line.contains(" 202 ") {
            return Err(BenchError::Answer { what: "a request to update", answer: line });
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
            let Ok(answer) = self.site.request("GET", &format!("/api/v1/events?after={}", self.seen), "") else {
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
        let answer = self.site.request("GET", "/api/v1/events?after=0", "")?;
        let ids = answer.lines().map_while(Result::ok).filter_map(|line| {
            let event: Value = serde_json::from_str(&line).ok()?;
            event["id"].as_u64()
        });
        ids.last().ok_or(BenchError::Answer { what: "the events", answer: "none".to_owned() })
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

fn release_files(version: &str, shop: &[u8], appliance: String) -> io::Result<Vec<ReleaseFile>> {
    // What follows the last section of an ELF file is not loaded: each release has its own `refit`.
    let mut own = fs::read(REFIT)?;
    own.extend_from_slice(version.as_bytes());
    let mut files = vec![
        ReleaseFile::text("appliance.toml", appliance),
        ReleaseFile::program("bin/shop", shop),
        ReleaseFile::program("bin/refit", own),
    ];
    files.extend(FILES.iter().map(|(path, text)| ReleaseFile::text(path, *text)));
    Ok(files)
}
