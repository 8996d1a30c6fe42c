//! What became of a request: from its ticket, and where that is lost from the history.
//!
//! Tickets survive an exec, and a crash of the runtime as long as its guard lives. An update is in the history besides, and while it is
//! under way in the status: its outcome is known as long as the home is.

use std::time::{Duration, Instant};

use refit_base::Exit;
use semver::Version;

use super::client::{Client, ClientError};
use super::said::Said;
use crate::wire::{Attempt, AttemptKind, History, Outcome, Status, Ticket, TicketAnswer, TicketState, Update};

/// A ticket that stays open so long although nothing is under way is one that was forgotten. Releases before 0.2 did that.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

/// Looks a request up, as often as it is asked.
pub(super) struct Lookup<'a> {
    client: &'a Client,
    id: &'a str,
    /// Since when the ticket is open although nothing is under way.
    idle_since: Option<Instant>,
}

impl<'a> Lookup<'a> {
    /// Returns the outcome of the ticket `id`. Nothing is asked yet.
    pub(super) const fn of(client: &'a Client, id: &'a str) -> Self {
        Self { client, id, idle_since: None }
    }

    /// Returns the ticket once nothing more will happen; `None` before. The appliance may take as long as `wait` to see whether that
    /// comes.
    ///
    /// # Errors
    /// The appliance does not answer; or it knows nothing of the request, and never will.
    pub(super) async fn look_up(&mut self, wait: Duration) -> Result<Option<Said<TicketAnswer>>, ClientError> {
        let path = format!("/api/v1/bus/requests/{}?wait_ms={}", self.id, wait.as_millis());
        match self.client.get_after::<Said<TicketAnswer>>(wait, &path).await {
            Ok(answer) if answer.ticket.is_final() => Ok(Some(answer)),
            Ok(answer) => self.look_whether_forgotten(&answer.ticket).await,
            Err(missing) if missing.is_missing() => {
                if self.is_under_way().await? {
                    return Ok(None);
                }
                let lost = || ClientError::Lost { request: "request".to_owned() };
                self.look_in_history().await?.ok_or_else(lost).map(Some)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the outcome of an open ticket of an update that is not under way any more, if that has stayed so.
    async fn look_whether_forgotten(&mut self, ticket: &Ticket) -> Result<Option<Said<TicketAnswer>>, ClientError> {
        if !ticket.is_update() || self.is_under_way().await? {
            self.idle_since = None;
            return Ok(None);
        }
        if self.idle_since.get_or_insert_with(Instant::now).elapsed() < FORGOTTEN_AFTER {
            return Ok(None);
        }
        let request = ticket.request.to_string();
        self.look_in_history().await?.ok_or(ClientError::Lost { request }).map(Some)
    }

    /// Returns whether it is what the appliance is doing, or may be: a site on its way somewhere has not settled what was left open.
    async fn is_under_way(&self) -> Result<bool, ClientError> {
        let status: Status = self.client.get("/api/v1/status").await?;
        Ok(status.update.is_some_and(|update| update.id == self.id) || !status.bus.state.rests())
    }

    /// Returns the ticket as the history has it.
    async fn look_in_history(&self) -> Result<Option<Said<TicketAnswer>>, ClientError> {
        let history: History = self.client.get("/api/v1/history").await?;
        Ok(history.history.into_iter().find(|attempt| attempt.id == self.id).map(ticket))
    }
}

/// Returns the name of the update that was asked for at `begun`, of a release `to` if that is known, by somebody who was not told it: it
/// is under way, or the newest of the history.
///
/// # Errors
/// The appliance does not answer.
pub(super) async fn find_update(
    client: &Client,
    begun: &str,
    to: Option<&Version>,
) -> Result<Option<String>, ClientError> {
    let fits = |update: &Update| to.is_none_or(|to| update.to == *to) && update.started_at.as_str() >= begun;
    let status: Status = client.get("/api/v1/status").await?;
    if let Some(update) = status.update.filter(fits) {
        return Ok(Some(update.id));
    }
    let history: History = client.get("/api/v1/history").await?;
    Ok(update_in(history.history, begun, to).map(|attempt| attempt.id))
}

/// Returns the same of the history alone, newest first.
pub(super) fn update_in(attempts: Vec<Attempt>, begun: &str, to: Option<&Version>) -> Option<Attempt> {
    let is_attempt = |kind: &AttemptKind| matches!(kind, AttemptKind::Update | AttemptKind::Rollback);
    let fits = |attempt: &Attempt| is_attempt(&attempt.kind) && to.is_none_or(|to| attempt.to == *to);
    attempts.into_iter().find(|attempt| fits(attempt) && attempt.at.as_str() >= begun)
}

/// Returns the ticket of an attempt that ended, as the history has it.
pub(super) fn ticket(attempt: Attempt) -> Said<TicketAnswer> {
    let why = attempt.reason.unwrap_or_else(|| "no reason is known".to_owned());
    let (state, reason, exit) = match attempt.outcome {
        Outcome::Done => (TicketState::Done, None, Exit::Done),
        Outcome::RolledBack => {
            (TicketState::Failed, Some(format!("rolled back to {}: {why}", attempt.from)), Exit::Failed)
        }
        Outcome::Failed | Outcome::Other(_) => (TicketState::Failed, Some(why), Exit::Failed),
    };
    let open = Ticket::open(attempt.id, attempt.kind.name().into(), attempt.who);
    let reason_code = attempt.reason_code;
    let ticket = Ticket { state, reason, reason_code, exit: Some(attempt.exit.unwrap_or(exit.code())), ..open };
    Said::here(TicketAnswer { ticket })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_of_the_history_says_what_the_ticket_said() {
        let said = |outcome: &str, exit: Option<u8>| {
            let attempt: Attempt = serde_json::from_value(json!({
                "id": "a-1", "at": "now", "kind": "update", "who": "cli", "from": "1.0.0", "to": "1.1.0", "outcome": outcome,
                "step": "trial", "reason": if outcome == "done" { None } else { Some("it broke") }, "exit": exit,
            }))
            .expect("an attempt");
            let Ticket { state, reason, exit, .. } = ticket(attempt).ticket.clone();
            (state, reason, exit)
        };
        let broke = |reason: &str| Some(reason.to_owned());
        assert_eq!(said("done", None), (TicketState::Done, None, Some(0)));
        assert_eq!(said("rolled-back", None), (TicketState::Failed, broke("rolled back to 1.0.0: it broke"), Some(70)));
        assert_eq!(said("failed", None), (TicketState::Failed, broke("it broke"), Some(70)));
        assert_eq!(said("failed", Some(74)).2, Some(74));
    }
}
