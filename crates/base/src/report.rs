//! What a failure looks like to a person, a script and a program.
//!
//! [`Exit`] is the exit status, fixed by the command-line contract; [`Class`] is the part of it that a library can tell;
//! [`Reported`] is what every error at a boundary can say about itself.

use std::error::Error;

use crate::Chain;

/// The exit statuses of every `refit` command (the numbers of sysexits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done as asked.
    Done,
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
            Self::Usage => 64,
            Self::Refused => 65,
            Self::Unavailable => 69,
            Self::Failed => 70,
            Self::Disk => 74,
            Self::TryLater => 75,
            Self::Config => 78,
        }
    }

    /// Returns the status whose number is `code`; any other number means that something failed.
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

/// What kind of failure it was; decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The package is refused: trying it again changes nothing.
    Refused,
    /// The disk is full or failing.
    Disk,
    /// It was cancelled, or its bytes stopped coming: it may be tried again.
    Busy,
    /// The machine or this program failed.
    Internal,
}

impl From<Class> for Exit {
    fn from(class: Class) -> Self {
        match class {
            Class::Refused => Self::Refused,
            Class::Disk => Self::Disk,
            Class::Busy => Self::TryLater,
            Class::Internal => Self::Failed,
        }
    }
}

/// An error that reaches a person: it has a code for programs, a remedy for people and an exit status for scripts.
pub trait Reported: Error {
    /// Returns a stable name in snake case.
    fn code(&self) -> &str;
    /// Returns what to do about it.
    fn remedy(&self) -> &str;
    /// Returns the exit status of a command that fails with it.
    fn exit(&self) -> Exit;
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
