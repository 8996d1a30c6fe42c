//! For how long a component's process is to live.

use std::time::Duration;

use serde::Serialize;

/// For how long a component's process is to live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// As long as the site runs.
    #[default]
    Service,
    /// It runs once at each start of the site, and has ended well when others that wait for it begin.
    Once,
    /// It runs so often while the site runs, and ends each time.
    Every(Duration),
}

impl Kind {
    /// Returns the name that API and page show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Once => "once",
            Self::Every(_) => "every",
        }
    }

    /// Returns how long the start, or one run, of a component may take that says nothing about it, where `start_timeout` is that of all.
    pub(super) fn start_timeout(self, start_timeout: Duration) -> Duration {
        match self {
            Self::Service | Self::Once => start_timeout,
            // One that takes longer than its period has missed the next.
            Self::Every(period) => start_timeout.max(period),
        }
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
