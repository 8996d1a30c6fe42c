//! An appliance that does not answer for a while: waited for, said, and in the end given up.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::client::{Client, ClientError};
use super::context::say;

/// How long the appliance may be unreachable before it is given up: the guard needs that long in the worst case.
const UNREACHABLE_MAX: Duration = Duration::from_secs(120);
/// The same where the guard says that no runtime starts: one that goes back to another release does so in less.
const TROUBLE_MAX: Duration = Duration::from_secs(10);
/// A silence that people are told of: replacing the runtime takes less.
const SILENCE_TOLD: Duration = Duration::from_secs(3);

/// The same where no guard has the home any more: a service manager that starts it again, or a hand, takes less.
const ENDED_MAX: Duration = SILENCE_TOLD;

/// For how long the appliance has not answered.
pub(super) struct Silence<'a> {
    client: &'a Client,
    since: Option<Instant>,
    /// What the bar said before.
    interrupted: Option<String>,
}

impl<'a> Silence<'a> {
    /// Returns that of an appliance that has answered so far.
    pub(super) const fn of(client: &'a Client) -> Self {
        Self { client, since: None, interrupted: None }
    }

    /// Returns `error` when it has lasted too long. Before that people are told, on `bar` or, where there is none to be seen, in a
    /// line on standard error, once.
    pub(super) fn extend(&mut self, bar: &ProgressBar, error: ClientError) -> Result<(), ClientError> {
        // One that took its time to be noticed began before.
        let noticed = if let ClientError::Silent { after, .. } = &error { *after } else { Duration::ZERO };
        let begun = || Instant::now().checked_sub(noticed).unwrap_or_else(Instant::now);
        let lasted = self.since.get_or_insert_with(begun).elapsed();
        let has_ended = self.client.has_ended();
        let limit = if matches!(error, ClientError::NoRuntime { .. }) {
            TROUBLE_MAX
        } else if has_ended {
            ENDED_MAX
        } else {
            UNREACHABLE_MAX
        };
        let Some(left) = limit.checked_sub(lasted).filter(|left| !left.is_zero()) else {
            bar.finish_and_clear();
            return Err(if has_ended { self.client.ended() } else { error });
        };
        if lasted < SILENCE_TOLD {
            return Ok(());
        }
        let text = format!("the appliance does not answer; it is waited for {} s more", left.as_secs());
        if self.interrupted.is_none() {
            self.interrupted = Some(bar.message());
            if bar.is_hidden() {
                say(&text);
            }
        }
        bar.set_message(text);
        Ok(())
    }

    /// It answers.
    pub(super) fn end(&mut self, bar: &ProgressBar) {
        if let Some(message) = self.interrupted.take() {
            bar.set_message(message);
        }
        self.since = None;
    }
}
