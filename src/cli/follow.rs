//! Following an update to its end, across the exec that breaks every connection.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use refit_base::Exit;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::context::Context;
use super::events::read_events;
use super::notes;
use super::table::list;

/// How long the appliance may be unreachable before following is given up: the guard needs that long in the worst case.
const UNREACHABLE_MAX: Duration = Duration::from_secs(120);
/// The pause before the next try; a local socket costs little.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// A silence that people are told of: replacing the runtime takes less.
const SILENCE_TOLD: Duration = Duration::from_secs(3);

/// For how long the appliance has not answered.
#[derive(Default)]
struct Silence {
    since: Option<Instant>,
    /// What the bar said before.
    interrupted: Option<String>,
}

impl Silence {
    /// Returns `error` when it has lasted too long. Before that people are told, on `bar` or, where there is none to be seen, in a
    /// line on standard error, once.
    fn extend(&mut self, bar: &ProgressBar, error: ClientError) -> Result<(), ClientError> {
        let lasted = self.since.get_or_insert_with(Instant::now).elapsed();
        let Some(left) = UNREACHABLE_MAX.checked_sub(lasted).filter(|left| !left.is_zero()) else {
            bar.finish_and_clear();
            return Err(error);
        };
        if lasted < SILENCE_TOLD {
            return Ok(());
        }
        let text = format!("the appliance does not answer; it is waited for {} s more", left.as_secs());
        if self.interrupted.is_none() {
            self.interrupted = Some(bar.message());
            if bar.is_hidden() {
                drop(writeln!(io::stderr().lock(), "refit: {text}")); // as in `Context::print`
            }
        }
        bar.set_message(text);
        Ok(())
    }

    /// It answers.
    fn end(&mut self, bar: &ProgressBar) {
        if let Some(message) = self.interrupted.take() {
            bar.set_message(message);
        }
        self.since = None;
    }
}

/// How an update is displayed, and how much of it was.
struct UpdateDisplay {
    bar: ProgressBar,
    last_event: u64,
    finished: bool,
}

/// Follows the ticket `id` to its end. Returns the exit status that it means.
pub(super) async fn follow(context: &Context, client: &Client, id: &str) -> Result<Exit, ClientError> {
    let bar = if context.is_watched() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut display = UpdateDisplay { bar, last_event: 0, finished: false };
    let mut silence = Silence::default();
    loop {
        match show_events(context, client, id, &mut display).await {
            Ok(()) => silence.end(&display.bar),
            Err(error @ (ClientError::Unavailable { .. } | ClientError::Broken { .. })) => {
                silence.extend(&display.bar, error)?;
            }
            Err(error) => return Err(error),
        }
        // The stream ended: with the update, or because the runtime replaced itself.
        match get_ticket(client, id).await {
            Ok(ticket) if ticket["state"] != "accepted" => {
                display.bar.finish_and_clear();
                return Ok(conclude(context, &ticket));
            }
            Ok(_) | Err(ClientError::Unavailable { .. } | ClientError::Broken { .. }) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// Reads events until the stream breaks or is silent for a while, or the update has ended.
async fn show_events(
    context: &Context,
    client: &Client,
    id: &str,
    display: &mut UpdateDisplay,
) -> Result<(), ClientError> {
    let after = Some(display.last_event);
    let take = |event: Option<&Value>| {
        // Silence: what came of it is looked up.
        let Some(event) = event else { return ControlFlow::Break(()) };
        display.last_event = event["id"].as_u64().unwrap_or(display.last_event);
        if event["data"]["id"] == id {
            show_event(context, event, display);
        }
        if display.finished { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    read_events(client, after, take).await
}

/// Shows one event of the update.
fn show_event(context: &Context, event: &Value, display: &mut UpdateDisplay) {
    if context.json {
        context.print(&event.to_string());
    }
    let data = &event["data"];
    let text = data["text"].as_str().unwrap_or_default();
    match event["event"].as_str().unwrap_or_default() {
        "update.step" => {
            let step = data["step"].as_str().unwrap_or_default();
            display.bar.set_style(ProgressStyle::default_spinner());
            display.bar.set_message(text.to_owned());
            if !context.json {
                let line = format!("{step:<13} {text}");
                display.bar.suspend(|| context.print(&line));
            }
            display.finished = matches!(step, "committed" | "rolled-back" | "failed");
        }
        "update.config" if !context.json => {
            for file in list(&data["files"]) {
                let new_default = &file["outcome"]["conflict"]["new_default"];
                if new_default.is_string() {
                    let line =
                        format!("{:<13} {}", "warning", notes::unmerged(&data["version"], &file["path"], new_default));
                    display.bar.suspend(|| context.print(&line));
                }
            }
        }
        "update.progress" => {
            if let Ok(style) = ProgressStyle::with_template("{msg} [{wide_bar}] {percent}%") {
                display.bar.set_style(style);
            }
            display.bar.set_length(1000);
            let progress = data["progress"].as_f64().unwrap_or(0.0).clamp(0.0, 1.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
            display.bar.set_position((progress * 1000.0) as u64);
            display.bar.set_message(text.to_owned());
        }
        _ => {}
    }
}

async fn get_ticket(client: &Client, id: &str) -> Result<Value, ClientError> {
    let mut answer = client.get(&format!("/api/v1/bus/requests/{id}")).await?;
    Ok(answer["ticket"].take())
}

/// Returns the exit status of a ticket with an outcome, and says why if it is not a good one.
pub(super) fn conclude(context: &Context, ticket: &Value) -> Exit {
    let state = ticket["state"].as_str().unwrap_or_default();
    if context.json {
        context.print(&json!({ "ticket": ticket }).to_string());
    }
    if state == "done" || state == "already" {
        return Exit::Done;
    }
    let request = ticket["request"].as_str().unwrap_or("request");
    let reason = ticket["reason"].as_str().unwrap_or("no reason was given");
    let line = format!("the {request} {state}: {reason}; see `refit history --json` for the last output");
    drop(writeln!(io::stderr().lock(), "refit: {line}"));
    let code = ticket["exit"].as_i64().and_then(|code| i32::try_from(code).ok());
    code.map_or(Exit::Failed, Exit::from_code)
}

/// Waits for the outcome of a ticket without showing steps.
pub(super) async fn wait_for_outcome(context: &Context, client: &Client, id: &str) -> Result<Exit, ClientError> {
    let (mut silence, hidden) = (Silence::default(), ProgressBar::hidden());
    loop {
        match client.get(&format!("/api/v1/bus/requests/{id}?wait_ms=10000")).await {
            Ok(answer) if answer["ticket"]["state"] != "accepted" => return Ok(conclude(context, &answer["ticket"])),
            Ok(_) => silence.end(&hidden),
            Err(error @ (ClientError::Unavailable { .. } | ClientError::Broken { .. })) => {
                silence.extend(&hidden, error)?;
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}
