//! What a process image was given by the one before it.
//!
//! Source of the convention: sd_listen_fds(3). A set of descriptors that was announced to another process (`LISTEN_PID`) is
//! not ours and is closed, not believed.

use std::io;

use super::{Named, fd};

/// The environment variables of the convention, which no child may inherit.
pub const VARIABLES: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The three variables as the process found them.
#[derive(Debug, Default, Clone)]
pub struct Announcement {
    /// `LISTEN_PID`.
    pub pid: Option<String>,
    /// `LISTEN_FDS`.
    pub count: Option<String>,
    /// `LISTEN_FDNAMES`.
    pub names: Option<String>,
}

impl Announcement {
    /// Returns how many descriptors were announced to the process `pid`, and their names.
    fn names_for(&self, pid: u32) -> Vec<String> {
        if self.pid.as_deref().and_then(|text| text.parse().ok()) != Some(pid) {
            return Vec::new();
        }
        let count = self.count.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0_usize);
        let mut names: Vec<String> = match self.names.as_deref() {
            Some(names) if !names.is_empty() => names.split(':').map(str::to_owned).collect(),
            Some(_) | None => Vec::new(),
        };
        names.resize(count, "unknown".to_owned());
        names
    }

    /// Returns the announced descriptors and closes all others. Only the first call in a process gets any.
    ///
    /// # Errors
    /// See [`fd::take`].
    pub fn take(&self, pid: u32) -> io::Result<Vec<Named>> {
        let names = self.names_for(pid);
        let descriptors = fd::take(names.len())?;
        Ok(names.into_iter().zip(descriptors).map(|(name, descriptor)| Named { name, descriptor }).collect())
    }
}

/// What was handed over and not taken yet.
#[derive(Debug, Default)]
pub struct Inheritance {
    parts: Vec<Named>,
}

impl Inheritance {
    /// Returns an inheritance of `parts`.
    pub fn new(parts: Vec<Named>) -> Self {
        Self { parts }
    }

    /// Returns the descriptor `name`, once.
    pub fn take(&mut self, name: &str) -> Option<std::os::fd::OwnedFd> {
        let position = self.parts.iter().position(|part| part.name == name)?;
        Some(self.parts.remove(position).descriptor)
    }

    /// Returns a duplicate of the descriptor `name`, which stays.
    pub fn duplicate(&self, name: &str) -> Option<std::os::fd::OwnedFd> {
        self.parts.iter().find(|part| part.name == name)?.descriptor.try_clone().ok()
    }

    /// Returns every descriptor whose name begins with `prefix`, with the rest of the name.
    pub fn take_all(&mut self, prefix: &str) -> Vec<Named> {
        let (taken, left) = std::mem::take(&mut self.parts).into_iter().partition(|part| part.name.starts_with(prefix));
        self.parts = left;
        let taken: Vec<Named> = taken;
        taken
            .into_iter()
            .map(|part| Named { name: part.name[prefix.len()..].to_owned(), descriptor: part.descriptor })
            .collect()
    }

    /// Returns the names of what is left.
    pub fn names(&self) -> Vec<String> {
        self.parts.iter().map(|part| part.name.clone()).collect()
    }

    /// Returns what nobody took.
    pub fn take_rest(&mut self) -> Vec<Named> {
        std::mem::take(&mut self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_announced_to_this_process_is_believed() {
        let announcement = |pid: &str, count: &str, names: Option<&str>| Announcement {
            pid: Some(pid.into()),
            count: Some(count.into()),
            names: names.map(str::to_owned),
        };
        let rows: [(Announcement, &[&str]); 5] = [
            (announcement("7", "2", Some("http:admin")), &["http", "admin"]),
            (announcement("8", "2", Some("http:admin")), &[]),
            (announcement("7", "2", None), &["unknown", "unknown"]),
            (announcement("7", "x", Some("http")), &[]),
            (Announcement::default(), &[]),
        ];
        for (row, expected) in rows {
            assert_eq!(row.names_for(7), expected, "{row:?}");
        }
    }
}
