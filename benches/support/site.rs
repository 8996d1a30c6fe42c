//! A home made and run with `refit` itself, in a directory of its own, and its API.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
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
/// The appliance may take so long to run or to end, and a request so long to be done.
pub(crate) const STEP_MAX: Duration = Duration::from_secs(30);
/// How often something is looked for again that cannot be waited for.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long reading events may block: whoever waits longer looks at his deadline in between.
const READ_MAX: Duration = Duration::from_secs(1);

/// A file of a release.
pub(crate) struct ReleaseFile {
    /// Where it is in the release.
    pub(crate) path: &'static str,
    /// What is in it.
    pub(crate) bytes: Vec<u8>,
    /// Whether it is a program.
    pub(crate) runs: bool,
}

impl ReleaseFile {
    /// Returns a file that is only read.
    pub(crate) fn text(path: &'static str, text: impl Into<Vec<u8>>) -> Self {
        Self { path, bytes: text.into(), runs: false }
    }

    /// Returns a program.
    pub(crate) fn program(path: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path, bytes: bytes.into(), runs: true }
    }
}

/// Where releases are packed and a home is made.
pub(crate) struct Workshop {
    dir: TempDir,
}

impl Workshop {
    /// Makes a directory with a vendor's keys.
    ///
    /// # Errors
    /// Nothing is left.
    pub(crate) fn new() -> Result<Self, BenchError> {
        let dir = tempfile::Builder::new().prefix("refit-bench-").tempdir().map_err(failed("make a directory"))?;
        let workshop = Self { dir };
        refit(&["keys", "init"], &[&workshop.keys()])?;
        Ok(workshop)
    }

    fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    /// Packs a release. Returns its package.
    ///
    /// # Errors
    /// A file cannot be written, or `refit` refuses the release.
    pub(crate) fn pack(&self, version: &str, files: &[ReleaseFile]) -> Result<PathBuf, BenchError> {
        let tree = self.dir.path().join("trees").join(version);
        files.iter().try_for_each(|file| write_file(&tree, file)).map_err(failed("write a release"))?;
        let package = self.dir.path().join(format!("{version}.refit"));
        // Packing as fast as it can be: what is measured begins after the package was unpacked.
        refit(&["pack", "--level", "1", "--keys"], &[&self.keys(), &tree, Path::new("-o"), &package])?;
        Ok(package)
    }

    /// Makes a home of `package` and runs it, until its bus is `Running`.
    ///
    /// # Errors
    /// It did not start; nothing is left running.
    pub(crate) fn run(self, package: &Path) -> Result<Site, BenchError> {
        let home = self.dir.path().join("home");
        refit(&["init", "--root"], &[&self.keys().join("1.root.json"), package, Path::new("--home"), &home])?;
        let log = File::create(self.dir.path().join("log")).map_err(failed("make the log"))?;
        let guard = Command::new(REFIT)
            .args(["run", "--with-parent", "--home"])
            .arg(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed("start refit run"))?;
        let mut site = Site { dir: self.dir, guard };
        site.wait_running()?;
        Ok(site)
    }
}

/// An appliance that runs. Dropping it ends it.
pub(crate) struct Site {
    dir: TempDir,
    guard: Child,
}

impl Site {
    /// Returns its home.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Returns the process ID of its guard.
    pub(crate) fn guard_pid(&self) -> u32 {
        self.guard.id()
    }

    fn wait_running(&mut self) -> Result<(), BenchError> {
        let begun = Instant::now();
        while begun.elapsed() < STEP_MAX {
            if let Some(status) = self.guard.try_wait().map_err(failed("look at refit run"))? {
                let output = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                return Err(BenchError::Command { command: "refit run".to_owned(), status, output });
            }
            if self.ask("GET", "/api/v1/status", "").is_ok_and(|status| status["bus"]["state"] == "Running") {
                return Ok(());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Err(BenchError::Late { what: "the start", limit: STEP_MAX })
    }

    /// Asks the API. Returns the document that it answers.
    ///
    /// # Errors
    /// It does not answer, or not with a document.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value, BenchError> {
        let mut text = String::new();
        let mut answer = self.request(method, path, body)?;
        answer.get_ref().set_read_timeout(Some(STEP_MAX)).map_err(failed("limit a read"))?;
        answer.read_to_string(&mut text).map_err(failed("read an answer of the API"))?;
        let document = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(document).map_err(|_| BenchError::Answer { what: "the API", answer: text })
    }

    /// Sends a request to the API. Returns the answer, its head included, to be read to its end.
    ///
    /// # Errors
    /// There is nobody to ask.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> Result<BufReader<UnixStream>, BenchError> {
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
}

impl Drop for Site {
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

fn write_file(tree: &Path, file: &ReleaseFile) -> io::Result<()> {
    let path = tree.join(file.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut written = File::create(&path)?;
    written.write_all(&file.bytes)?;
    written.set_permissions(fs::Permissions::from_mode(if file.runs { 0o755 } else { 0o644 }))
}

/// Runs a command of `refit` to its end.
///
/// # Errors
/// It cannot be run, or failed.
pub(crate) fn refit(words: &[&str], paths: &[&Path]) -> Result<(), BenchError> {
    let output =
        Command::new(REFIT).args(words).args(paths).stdin(Stdio::null()).output().map_err(failed("start refit"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::Command {
        command: format!("refit {}", words.join(" ")),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
    })
}
