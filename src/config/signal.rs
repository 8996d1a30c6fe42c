//! The signals that a component can be told by.

use serde::{Deserialize, Serialize};

/// A signal that a program can handle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", from = "String")]
pub enum Signal {
    /// `SIGHUP`.
    Hup,
    /// `SIGINT`.
    Int,
    /// `SIGQUIT`.
    Quit,
    /// `SIGABRT`.
    Abrt,
    /// `SIGUSR1`.
    Usr1,
    /// `SIGUSR2`.
    Usr2,
    /// `SIGTERM`.
    #[default]
    Term,
    /// `SIGWINCH`.
    Winch,
    /// `SIGPWR`.
    Pwr,
}

/// A newer release may have told an image of this one of a signal that this one does not know.
impl From<String> for Signal {
    fn from(name: String) -> Self {
        Self::read(&name, "", &Self::OF_STOP).unwrap_or_default()
    }
}

impl Signal {
    /// Those that may tell a program to read its settings again.
    pub(super) const OF_RELOAD: [Self; 4] = [Self::Hup, Self::Usr1, Self::Usr2, Self::Winch];
    /// Those that may tell a program to end.
    pub(super) const OF_STOP: [Self; 9] =
        [Self::Term, Self::Int, Self::Quit, Self::Hup, Self::Usr1, Self::Usr2, Self::Winch, Self::Abrt, Self::Pwr];

    /// Returns the signal's name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hup => "SIGHUP",
            Self::Int => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Abrt => "SIGABRT",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
            Self::Term => "SIGTERM",
            Self::Winch => "SIGWINCH",
            Self::Pwr => "SIGPWR",
        }
    }

    /// Returns the name as it is written, without `SIG`.
    fn short(self) -> &'static str {
        self.name().trim_start_matches("SIG")
    }

    /// Returns the one among `signals` that `text`, the value of `key`, names, with `SIG` before it or without.
    ///
    /// # Errors
    /// It names none of them: what is wrong, for people.
    pub(super) fn read(text: &str, key: &str, signals: &[Self]) -> Result<Self, String> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        if let Some(signal) = signals.iter().find(|signal| signal.short() == name) {
            return Ok(*signal);
        }
        let names: Vec<&str> = signals.iter().map(|signal| signal.short()).collect();
        let names = names.join(", ");
        Err(match name {
            "KILL" | "STOP" => format!("no program can handle {text}, so it cannot be a {key}: use one of {names}"),
            _ => format!("{text:?} is no {key}: use one of {names}"),
        })
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_others_refused() {
        let stop = |text| Signal::read(text, "stop_signal", &Signal::OF_STOP);
        for signal in Signal::OF_STOP {
            assert_eq!(stop(signal.name()), Ok(signal));
            assert_eq!(stop(signal.short()), Ok(signal));
        }
        for text in ["", "SIG", "quit", "3", "SIGSIGQUIT", "CHLD"] {
            let said = stop(text).expect_err(text);
            assert!(said.contains("is no stop_signal: use one of TERM, INT, QUIT, "), "{said}");
        }
        for text in ["KILL", "SIGKILL", "STOP"] {
            let said = stop(text).expect_err(text);
            assert!(said.starts_with(&format!("no program can handle {text}, ")), "{said}");
        }
        assert!(Signal::read("QUIT", "reload_signal", &Signal::OF_RELOAD).is_err());
        for (signal, text) in [(Signal::Usr1, "\"USR1\""), (Signal::Quit, "\"QUIT\"")] {
            assert_eq!(serde_json::to_string(&signal).expect("text"), text);
            assert_eq!(serde_json::from_str::<Signal>(text).expect("a signal"), signal);
        }
        assert_eq!(serde_json::from_str::<Signal>("\"RTMIN\"").expect("a signal"), Signal::Term);
    }
}
