//! The environment of another process: the only place that reads `/proc/PID/environ`.

use std::fs;
use std::io;

/// The variable with the token of a launch, which a component and everything that it starts have.
pub(crate) const TOKEN: &str = "REFIT_TOKEN";
/// The variable that a health command, and everything that it starts, has besides.
pub(crate) const HEALTH: &str = "REFIT_HEALTH";
/// The variable with the signal that tells a component's process to end, where that is another than `SIGTERM`.
pub(crate) const STOP_SIGNAL: &str = "REFIT_STOP_SIGNAL";

/// The environment that a process was started with.
#[derive(Debug, Default)]
pub(crate) struct Environment(Vec<u8>);

impl Environment {
    /// Returns the environment of the process `pid`.
    ///
    /// # Errors
    /// There is no such process, or it belongs to another account.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        fs::read(format!("/proc/{pid}/environ")).map(Self)
    }

    /// Returns whether it contains `variable`, name and value: `NAME=value`.
    pub(crate) fn contains(&self, variable: &[u8]) -> bool {
        self.variables().any(|found| found == variable)
    }

    /// Returns the value of the variable `name`.
    pub(crate) fn value(&self, name: &str) -> Option<&[u8]> {
        self.values(name).next()
    }

    /// Returns every value of the variable `name`: a process may have given it twice.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.variables().filter_map(move |found| found.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }

    fn variables(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environment = Environment(b"REFIT_TOKENS=no\0REFIT_TOKEN=a=b\0".to_vec());
        assert_eq!(environment.value(TOKEN), Some(&b"a=b"[..]));
        assert_eq!(environment.value("REFIT"), None);
        assert!(environment.contains(b"REFIT_TOKEN=a=b") && !environment.contains(b"REFIT_TOKEN=a"));
    }
}
