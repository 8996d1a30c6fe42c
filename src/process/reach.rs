//! Whether an account reaches paths, tried by a short-lived child that has become it: no rule of the system is forgotten.
//!
//! `refit reach` is that child. It begins as a component's process does, changes nothing, and answers one line of JSON.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, access};
use refit_base::Exit;
use serde::{Deserialize, Serialize};

use super::launch::{Begin, change_user};

/// What an account wants to do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// Execute the program.
    Execute,
    /// Read and execute the script: its interpreter opens it.
    ReadAndExecute,
    /// Enter the directory.
    Enter,
}

impl Want {
    const fn flags(self) -> AccessFlags {
        match self {
            Self::Execute | Self::Enter => AccessFlags::X_OK,
            Self::ReadAndExecute => AccessFlags::X_OK.union(AccessFlags::R_OK),
        }
    }

    const fn letter(self) -> &'static str {
        match self {
            Self::Execute => "x",
            Self::ReadAndExecute => "r",
            Self::Enter => "d",
        }
    }
}

/// One question: what is wanted of which path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is wanted.
    pub want: Want,
    /// The path.
    pub path: PathBuf,
}

/// Why a path is not reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Where the way ends: the path itself, or a directory above it.
    pub at: PathBuf,
    /// The number of the error.
    pub errno: i32,
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// It could not become the account.
    Account(String),
    /// For each question whether the way ends before.
    Paths(Vec<Option<Stopped>>),
}

/// What the child is told.
#[derive(Debug, clap::Args)]
pub struct Reach {
    /// The account to become.
    #[command(flatten)]
    state: Begin,
    /// A letter for what is wanted, then the path.
    #[arg(last = true)]
    questions: Vec<OsString>,
}

/// Becomes the account and answers.
pub fn main(reach: &Reach) -> Exit {
    let answer = match change_user(&reach.state, &mut Command::new("true")) {
        Err(error) => Answer::Account(error.to_string()),
        Ok(()) => Answer::Paths(reach.questions.iter().map(|question| answer(question)).collect()),
    };
    let written = serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|line| io::stdout().write_all(&line));
    if written.is_ok() { Exit::Done } else { Exit::Failed }
}

fn answer(question: &OsStr) -> Option<Stopped> {
    let (letter, path) = question.as_bytes().split_at_checked(1)?;
    let want = [Want::Execute, Want::ReadAndExecute, Want::Enter]
        .into_iter()
        .find(|want| want.letter().as_bytes() == letter)?;
    try_way(Path::new(OsStr::from_bytes(path)), want)
}

/// Goes to `path` as this process may, directory by directory. Returns where the way ends, if it does.
fn try_way(path: &Path, want: Want) -> Option<Stopped> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
    above.reverse();
    let steps = above.into_iter().map(|dir| (dir, AccessFlags::X_OK)).chain([(path, want.flags())]);
    steps.into_iter().find_map(|(at, flags)| {
        let error = access(at, flags).err()?;
        Some(Stopped { at: at.to_owned(), errno: error as i32 })
    })
}

/// Returns the command that asks for `begin`'s account, and of which [`read`] understands the output.
pub fn command(begin: &Begin, questions: &[Question]) -> Command {
    // This very program, even when its file was replaced.
    let mut command = Command::new("/proc/self/exe");
    command.arg("reach").args(begin.arguments()).arg("--");
    for Question { want, path } in questions {
        let mut word = OsString::from(want.letter());
        word.push(path);
        command.arg(word);
    }
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// Returns, for each question, where the way ends, if it does.
///
/// # Errors
/// The child could not become the account, or did not answer: why, for people.
pub fn read(output: &[u8]) -> Result<Vec<Option<Stopped>>, String> {
    match serde_json::from_slice(output) {
        Ok(Answer::Paths(paths)) => Ok(paths),
        Ok(Answer::Account(why)) => Err(why),
        Err(error) => Err(format!("the child that tried it gave no answer: {error}")),
    }
}
