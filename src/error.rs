//! What a failure looks like to a person, a script and a program.
//!
//! [`Exit`] is the exit status, fixed by the command-line contract; [`Reported`] is what every error at a boundary can say
//! about itself; [`Chain`] joins the causes of an error into one line, only for readers.

use std::error::Error;
use std::fmt;

use refit_updater::Class;

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

/// An error with its causes on one line: `what failed: why: why that`.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", one_line(&self.0.to_string()))?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {}", one_line(&cause.to_string()))?;
            source = cause.source();
        }
        Ok(())
    }
}

/// Characters of one cause that are shown from its beginning and from its end, which says why: whatever it quotes between
/// them, a message and a line of the log stay readable.
const CAUSE_CHARS_MAX: (usize, usize) = (400, 200);

/// Returns `text` without line breaks, and not too long: messages of libraries may have several lines, ours never do, and
/// both may quote what an attacker wrote.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (first, last) = CAUSE_CHARS_MAX;
    let begin = line.char_indices().nth(first).map(|(at, _)| at);
    let end = line.char_indices().nth_back(last).map(|(at, _)| at);
    match begin.zip(end) {
        Some((begin, end)) if begin < end => format!("{} [...] {}", &line[..begin], &line[end..]),
        Some(_) | None => line,
    }
}

/// Returns the whole message for a person: what failed, why, and what to do.
pub fn message(error: &dyn Reported, as_error: &dyn Error) -> String {
    let remedy = error.remedy();
    if remedy.is_empty() { format!("{}", Chain(as_error)) } else { format!("{}; {remedy}", Chain(as_error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_not_too_long() {
        assert_eq!(one_line("one\n  two"), "one two");
        let short = "x".repeat(600);
        assert_eq!(one_line(&short), short);
        let long = one_line(&format!("path \"{}\" is too long", "\u{e9}".repeat(1 << 20)));
        assert!(long.starts_with("path \"\u{e9}") && long.contains(" [...] ") && long.ends_with("\" is too long"));
        assert!(long.chars().count() < 620, "{}", long.chars().count());
    }

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
