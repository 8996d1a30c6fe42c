//! What a failure looks like to a person, a script and a program.
//!
//! [`Exit`] is the exit status, fixed by the command-line contract. [`Reported`] is what every error at a boundary can say
//! about itself, in one [`Report`]. An error that only wraps another one returns the other's report, whole or with a part
//! of its own: `Self::Store(error) => Report { exit: Exit::Disk, ..error.report() }`. So each error says once, in one
//! `match`, what it means to a script and to a person.

use std::error::Error;

use crate::Chain;

/// The exit statuses of every `refit` command (the numbers of sysexits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done as asked.
    Done,
    /// 1: the appliance serves, and something needs somebody; of `refit status --check` only, as monitoring plugins have it.
    Degraded,
    /// 2: the appliance does not serve; the same.
    Down,
    /// 64: the command line is wrong.
    Usage,
    /// 65: the package was refused.
    Refused,
    /// 69: no running appliance answers.
    Unavailable,
    /// 70: failed; also an update that was rolled back.
    Failed,
    /// 74: the disk or a socket failed.
    Disk,
    /// 75: try again later.
    TryLater,
    /// 78: the configuration is wrong.
    Config,
}

impl Exit {
    /// Returns the number that the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Degraded => 1,
            Self::Down => 2,
            Self::Usage => 64,
            Self::Refused => 65,
            Self::Unavailable => 69,
            Self::Failed => 70,
            Self::Disk => 74,
            Self::TryLater => 75,
            Self::Config => 78,
        }
    }

    /// Returns the status whose number is `code`; any other number, such as those of a check, means that something failed.
    pub const fn from_code(code: i32) -> Self {
        match code {
            0 => Self::Done,
            64 => Self::Usage,
            65 => Self::Refused,
            69 => Self::Unavailable,
            74 => Self::Disk,
            75 => Self::TryLater,
            78 => Self::Config,
            _ => Self::Failed,
        }
    }
}

/// What an error at a boundary means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report<'a> {
    /// A stable name for programs, in lower case: which operation failed.
    pub code: &'a str,
    /// The same of the cause, where it is known more precisely: a wrapper that has a code of its own leaves it as it is.
    pub reason_code: &'a str,
    /// The exit status of a command that fails with it.
    pub exit: Exit,
    /// What to do about it, for people; empty if there is nothing to do.
    pub remedy: &'a str,
}

impl<'a> Report<'a> {
    /// Returns a report.
    pub const fn new(code: &'a str, exit: Exit, remedy: &'a str) -> Self {
        Self { code, reason_code: code, exit, remedy }
    }
}

/// An error that reaches a person: it has a code for programs, a remedy for people and an exit status for scripts.
pub trait Reported: Error {
    /// Returns all of it.
    fn report(&self) -> Report<'_>;

    /// Returns a stable name for programs.
    fn code(&self) -> &str {
        self.report().code
    }

    /// Returns the stable name of the cause.
    fn reason_code(&self) -> &str {
        self.report().reason_code
    }

    /// Returns what to do about it.
    fn remedy(&self) -> &str {
        self.report().remedy
    }

    /// Returns the exit status of a command that fails with it.
    fn exit(&self) -> Exit {
        self.report().exit
    }
}

/// Returns the whole message for a person: what failed, why, and what to do.
pub fn message(error: &(impl Reported + 'static)) -> String {
    let remedy = error.remedy();
    if remedy.is_empty() { Chain(error).to_string() } else { format!("{}; {remedy}", Chain(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_comes_back_from_its_number() {
        for exit in [
            Exit::Done,
            Exit::Usage,
            Exit::Refused,
            Exit::Unavailable,
            Exit::Failed,
            Exit::Disk,
            Exit::TryLater,
            Exit::Config,
        ] {
            assert_eq!(Exit::from_code(i32::from(exit.code())), exit);
        }
        assert_eq!(Exit::from_code(1), Exit::Failed);
    }
}
