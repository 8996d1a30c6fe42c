//! What became of a request: from its ticket, and where that is lost from the history.
//!
//! Tickets survive an exec, and a crash of the runtime as long as its guard lives. An update is in the history besides, and while it is
//! under way in the status: its outcome is known as long as the home is.

use std::time::{Duration, Instant};

use refit_base::Exit;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::table::list;

/// A ticket that stays open so long although nothing is under way is one that was forgotten. Releases before 0.2 did that.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

/// Looks a request up, as often as it is asked.
pub(super) struct Outcome<'a> {
    client: &'a Client,
    id: &'a str,
    /// Since when the ticket is open although nothing is under way.
    idle_since: Option<Instant>,
}

impl<'a> Outcome<'a> {
    /// Returns the outcome of the ticket `id`. Nothing is asked yet.
    pub(super) const fn of(client: &'a Client, id: &'a str) -> Self {
        Self { client, id, idle_since: None }
    }

    /// Returns the ticket once nothing more will happen; `None` before. The appliance may take as long as `wait` to see whether that
    /// comes.
    ///
    /// # Errors
    /// The appliance does not answer; or it knows nothing of the request, and never will.
    pub(super) async fn look_up(&mut self, wait: Duration) -> Result<Option<Value>, ClientError> {
        let path = format!("/api/v1/bus/requests/{}?wait_ms={}", self.id, wait.as_millis());
        match self.client.get_after(wait, &path).await {
            Ok(mut answer) if answer["ticket"]["state"] == "accepted" => {
                let ticket = answer["ticket"].take();
                self.look_whether_forgotten(&ticket).await
            }
            Ok(mut answer) => Ok(Some(answer["ticket"].take())),
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
    async fn look_whether_forgotten(&mut self, ticket: &Value) -> Result<Option<Value>, ClientError> {
        let is_update = ticket["request"] == "update" || ticket["request"] == "rollback";
        if !is_update || self.is_under_way().await? {
            self.idle_since = None;
            return Ok(None);
        }
        if self.idle_since.get_or_insert_with(Instant::now).elapsed() < FORGOTTEN_AFTER {
            return Ok(None);
        }
        let request = ticket["request"].as_str().unwrap_or("request").to_owned();
        self.look_in_history().await?.ok_or(ClientError::Lost { request }).map(Some)
    }

    /// Returns whether it is what the appliance is doing, or may be: a site on its way somewhere has not settled what was left open.
    async fn is_under_way(&self) -> Result<bool, ClientError> {
        let status = self.client.get("/api/v1/status").await?;
        let rests = status["bus"]["state"] == "Running" || status["bus"]["state"] == "Idle";
        Ok(status["update"]["id"] == self.id || !rests)
    }

    /// Returns the ticket as the history has it.
    async fn look_in_history(&self) -> Result<Option<Value>, ClientError> {
        let history = self.client.get("/api/v1/history").await?;
        Ok(list(&history["history"]).find(|entry| entry["id"] == self.id).map(ticket))
    }
}

/// Returns the name of the update that was asked for at `begun`, of a release `to` if that is known, by somebody who was not told it: it
/// is under way, or the newest of the history.
///
/// # Errors
/// The appliance does not answer.
pub(super) async fn find_update(client: &Client, begun: &str, to: Option<&str>) -> Result<Option<String>, ClientError> {
    let name = |entry: &Value| entry["id"].as_str().map(str::to_owned);
    let status = client.get("/api/v1/status").await?;
    let update = &status["update"];
    if !update.is_null()
        && to.is_none_or(|to| update["to"] == to)
        && update["started_at"].as_str().is_some_and(|at| at >= begun)
    {
        return Ok(name(update));
    }
    let history = client.get("/api/v1/history").await?;
    let entries: Vec<Value> = list(&history["history"]).cloned().collect();
    Ok(update_in(&entries, begun, to).and_then(name))
}

/// Returns the same of the history alone, newest first.
pub(super) fn update_in<'e>(entries: &'e [Value], begun: &str, to: Option<&str>) -> Option<&'e Value> {
    let is_attempt = |entry: &Value| entry["kind"] == "update" || entry["kind"] == "rollback";
    let fits = |entry: &&Value| is_attempt(entry) && to.is_none_or(|to| entry["to"] == to);
    entries.iter().filter(fits).find(|entry| entry["at"].as_str().is_some_and(|at| at >= begun))
}

/// Returns the ticket of an attempt that ended, as the history has it.
pub(super) fn ticket(entry: &Value) -> Value {
    let why = entry["reason"].as_str().unwrap_or("no reason is known");
    let (state, reason, exit) = match entry["outcome"].as_str() {
        Some("done") => ("done", None, Exit::Done),
        Some("rolled-back") => {
            let from = entry["from"].as_str().unwrap_or("the release before");
            ("failed", Some(format!("rolled back to {from}: {why}")), Exit::Failed)
        }
        Some(_) | None => ("failed", Some(why.to_owned()), Exit::Failed),
    };
    json!({
        "id": entry["id"], "request": entry["kind"], "origin": entry["who"], "state": state, "reason": reason,
        "exit": entry["exit"].as_u64().unwrap_or(exit.code().into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_history_says_what_the_ticket_said() {
        let entry = |outcome: &str| {
            json!({ "id": "a-1", "kind": "update", "who": "cli", "from": "1.0.0", "to": "1.1.0", "outcome": outcome,
                "reason": if outcome == "done" { Value::Null } else { json!("it broke") } })
        };
        let said = |outcome: &str| {
            let ticket = ticket(&entry(outcome));
            (ticket["state"].clone(), ticket["reason"].clone(), ticket["exit"].clone())
        };
        assert_eq!(said("done"), (json!("done"), Value::Null, json!(0)));
        assert_eq!(said("rolled-back"), (json!("failed"), json!("rolled back to 1.0.0: it broke"), json!(70)));
        assert_eq!(said("failed"), (json!("failed"), json!("it broke"), json!(70)));
        let full = json!({ "outcome": "failed", "reason": "the disk is full", "exit": 74 });
        assert_eq!(ticket(&full)["exit"], 74);
    }
}
