//! The Python ancestor, `cherrypy` from PyPI, in a virtual environment of its own below the target directory.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::site::LOOK_AGAIN;
use super::{BenchError, failed};

/// What is installed. The release is named, so that two runs compare with the same.
const PACKAGE: &str = "cherrypy==18.10.0";
/// What it is asked with.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/support/ancestor.py");
/// Making the environment and installing may take so long: a network that answers needs seconds.
const INSTALL_MAX: Duration = Duration::from_secs(120);

/// Makes the environment, unless an earlier run has. Returns its interpreter.
///
/// # Errors
/// There is no Python, or no network; whatever was made is tried again the next time.
pub(crate) fn install() -> Result<PathBuf, BenchError> {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ancestor");
    let python = environment.join("bin/python");
    if python.exists() && finish(Command::new(&python).args(["-c", "import cherrypy"])).is_ok() {
        return Ok(python);
    }
    finish(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let quick = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "10"];
    finish(Command::new(&python).args(quick).arg(PACKAGE))?;
    Ok(python)
}

/// Runs a command to its end, at most [`INSTALL_MAX`].
fn finish(command: &mut Command) -> Result<(), BenchError> {
    let words = || command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let text = format!("{} {}", command.get_program().to_string_lossy(), words());
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = quiet.spawn().map_err(failed("start python3"))?;
    let begun = Instant::now();
    loop {
        match child.try_wait().map_err(failed("wait for python3"))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(BenchError::Command { command: text, status, output: "see above".to_owned() }),
            None if begun.elapsed() > INSTALL_MAX => {
                end(&mut child);
                return Err(BenchError::Late { what: "installing the ancestor", limit: INSTALL_MAX });
            }
            None => thread::sleep(LOOK_AGAIN),
        }
    }
}

fn end(child: &mut Child) {
    drop(child.kill()); // gone already is as good
    drop(child.wait());
}

/// An ancestor that does what it is asked. Dropping it ends it.
pub(crate) struct Ancestor {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Ancestor {
    /// Starts one.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(python: &Path) -> Result<Self, BenchError> {
        let (child, asked, answers) = spawn(python, &[])?;
        Ok(Self { child, asked, answers })
    }

    /// Publishes `count` times to `listeners`. Returns how long each publication took.
    ///
    /// # Errors
    /// It failed.
    pub(crate) fn publish(
        &mut self,
        listeners: usize,
        distinct: bool,
        count: usize,
    ) -> Result<Vec<Duration>, BenchError> {
        let asked = json!({ "do": "publish", "listeners": listeners, "distinct": distinct, "count": count });
        durations(&self.ask(&asked)?)
    }

    /// Starts `count` times while somebody waits for that. Returns after what time he heard of it.
    ///
    /// # Errors
    /// It failed.
    pub(crate) fn hear(&mut self, count: usize) -> Result<Vec<Duration>, BenchError> {
        durations(&self.ask(&json!({ "do": "hear", "count": count }))?)
    }

    /// Starts and stops `count` plugins that run `program`, or nothing. Returns how long both took.
    ///
    /// # Errors
    /// It failed.
    pub(crate) fn life(&mut self, count: usize, program: Option<&Path>) -> Result<[Duration; 2], BenchError> {
        let answer = self.ask(&json!({ "do": "life", "count": count, "program": program }))?;
        let part = |name: &str| answer[name].as_u64().map(Duration::from_nanos).ok_or_else(|| unexpected(&answer));
        Ok([part("start_ns")?, part("stop_ns")?])
    }

    fn ask(&mut self, asked: &Value) -> Result<Value, BenchError> {
        writeln!(self.asked, "{asked}").map_err(failed("ask the ancestor"))?;
        answer(&mut self.answers)
    }
}

impl Drop for Ancestor {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// An ancestor that only waits. Dropping it ends it.
pub(crate) struct Blocked(Child);

impl Blocked {
    /// Starts one, beside `waiters` threads that wait, too.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(python: &Path, waiters: usize) -> Result<Self, BenchError> {
        let (child, _, mut answers) = spawn(python, &["block", &waiters.to_string()])?;
        let blocked = Self(child);
        answer(&mut answers)?;
        Ok(blocked)
    }

    /// Returns its process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

type Spoken = (Child, ChildStdin, BufReader<ChildStdout>);

fn spawn(python: &Path, words: &[&str]) -> Result<Spoken, BenchError> {
    let mut command = Command::new(python);
    command.arg(SCRIPT).args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed("start the ancestor"))?;
    match (child.stdin.take(), child.stdout.take()) {
        (Some(asked), Some(answers)) => Ok((child, asked, BufReader::new(answers))),
        (_, _) => {
            end(&mut child);
            Err(BenchError::Answer { what: "the ancestor", answer: "without pipes".to_owned() })
        }
    }
}

fn answer(answers: &mut BufReader<ChildStdout>) -> Result<Value, BenchError> {
    let mut line = String::new();
    answers.read_line(&mut line).map_err(failed("read an answer of the ancestor"))?;
    serde_json::from_str(&line).map_err(|_| BenchError::Answer { what: "the ancestor", answer: line })
}

fn unexpected(answer: &Value) -> BenchError {
    BenchError::Answer { what: "the ancestor", answer: answer.to_string() }
}

fn durations(answer: &Value) -> Result<Vec<Duration>, BenchError> {
    let all = answer["ns"].as_array().ok_or_else(|| unexpected(answer))?;
    Ok(all.iter().filter_map(Value::as_u64).map(Duration::from_nanos).collect())
}
