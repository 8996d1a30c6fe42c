//! An appliance of many small components that depend on one another, and what their programs take by themselves.

use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::external::CHANNELS;
use super::site::{ReleaseFile, STEP_MAX, Site, Workshop};
use super::{BenchError, failed};

/// The source of the component's program.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/support/member.rs");
/// How long one call waits for a ticket.
const TICKET_WAIT_MS: u64 = 10_000;
/// The longest report that is read.
const REPORT_BYTES_MAX: usize = 4096;

/// A program that says that it is ready, and ends when it is told to.
pub(crate) struct Program {
    /// Its file.
    pub(crate) path: PathBuf,
    bytes: Vec<u8>,
}

impl Program {
    /// Compiles it.
    ///
    /// # Errors
    /// There is no compiler, or it refuses.
    pub(crate) fn compile() -> Result<Self, BenchError> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("member");
        let mut rustc = Command::new("rustc");
        rustc
            .args(["--edition=2024", "-Copt-level=s", "-Cstrip=symbols", "-Cpanic=abort", "-o"])
            .arg(&path)
            .arg(SOURCE);
        let output = rustc.stdin(Stdio::null()).output().map_err(failed("start rustc"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(BenchError::Command { command: "rustc".to_owned(), status: output.status, output: said });
        }
        let bytes = fs::read(&path).map_err(failed("read a program"))?;
        Ok(Self { path, bytes })
    }

    /// Starts and stops it `count` times, one after the other. Returns the sums: of what it took to be ready, and to end.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn alone(&self, count: usize) -> Result<[Duration; 2], BenchError> {
        let dir = TempDir::new().map_err(failed("make a directory"))?;
        let address = dir.path().join("notify");
        let reports = UnixDatagram::bind(&address).map_err(failed("bind a socket"))?;
        reports.set_read_timeout(Some(STEP_MAX)).map_err(failed("limit a read"))?;
        let (mut starts, mut stops) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..count {
            let begun = Instant::now();
            let mut command = Command::new(&self.path);
            let child = command.env("NOTIFY_SOCKET", &address).stdin(Stdio::null()).spawn();
            let mut child = child.map_err(failed("start a program"))?;
            let ready = reports.recv(&mut [0; REPORT_BYTES_MAX]);
            let up = Instant::now();
            let ended = end(&mut child);
            stops += up.elapsed();
            starts += up - begun;
            ready.map_err(failed("hear of a program"))?;
            ended.map_err(failed("end a program"))?;
        }
        Ok([starts, stops])
    }
}

fn end(child: &mut Child) -> io::Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)), Signal::SIGTERM)?;
    child.wait().map(drop)
}

/// An appliance whose components are all [`Program`]s, and which runs.
pub(crate) struct Crowd {
    site: Site,
}

impl Crowd {
    /// Makes one of `chains` chains of `length` components, each needing the one before it in its chain.
    ///
    /// # Errors
    /// It did not start; nothing is left running.
    pub(crate) fn start(program: &Program, chains: usize, length: usize) -> Result<Self, BenchError> {
        let workshop = Workshop::new()?;
        let files = [
            ReleaseFile::text("appliance.toml", toml(chains, length)),
            ReleaseFile::program("bin/member", program.bytes.clone()),
        ];
        let package = workshop.pack("1.0.0", &files)?;
        Ok(Self { site: workshop.run(&package)? })
    }

    /// Returns its home.
    pub(crate) fn home(&self) -> PathBuf {
        self.site.home()
    }

    /// Asks the bus, and waits until it is done. Returns how long that took.
    ///
    /// # Errors
    /// It failed, or took longer than [`STEP_MAX`].
    pub(crate) fn request(&self, request: &str) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        let asked = format!("{{\"request\":\"{request}\"}}");
        let mut answer = self.site.ask("POST", "/api/v1/bus/requests", &asked)?;
        while begun.elapsed() < STEP_MAX {
            let elapsed = begun.elapsed();
            let ticket = &answer["ticket"];
            match (ticket["state"].as_str(), ticket["id"].as_str()) {
                (Some("done"), _) => return Ok(elapsed),
                (Some("accepted"), Some(id)) => {
                    let path = format!("/api/v1/bus/requests/{id}?wait_ms={TICKET_WAIT_MS}");
                    answer = self.site.ask("GET", &path, "")?;
                }
                (_, _) => return Err(BenchError::Answer { what: "a request", answer: answer.to_string() }),
            }
        }
        Err(BenchError::Late { what: "a request", limit: STEP_MAX })
    }

    /// Returns the processes that are Refit's own: the guard and the runtime.
    ///
    /// # Errors
    /// The runtime does not answer.
    pub(crate) fn own_processes(&self) -> Result<[u32; 2], BenchError> {
        let status = self.site.ask("GET", "/api/v1/status", "")?;
        let runtime = status["runtime"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let runtime = runtime.ok_or(BenchError::Answer { what: "the status", answer: status.to_string() })?;
        Ok([self.site.guard_pid(), runtime])
    }
}

fn toml(chains: usize, length: usize) -> String {
    let channels = CHANNELS.map(|(channel, _)| format!("{channel:?}")).join(", ");
    let mut text = format!(
        r#"[appliance]
name = "crowd"
version = "1.0.0"

[bus]
channels = [{channels}]

[listeners]
admin = "127.0.0.1:0"

"#
    );
    for chain in 0..chains {
        for index in 0..length {
            text.push_str(&format!(
                "\n[[component]]\nname = \"m{chain}-{index}\"\ncommand = [\"bin/member\"]\nready = \"notify\"\n"
            ));
            if let Some(before) = index.checked_sub(1) {
                text.push_str(&format!("needs = [\"m{chain}-{before}\"]\n"));
            }
        }
    }
    text
}
