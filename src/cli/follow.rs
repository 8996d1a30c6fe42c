//! Following an update to its end, across the exec that breaks every connection.

use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use refit_base::{Exit, clock};
use refit_updater::journal::State;
use serde_json::{Value, json};

use super::at_rest::Files;
use super::client::{Client, ClientError};
use super::context::{Context, say};
use super::events::read_events;
use super::notes;
use super::outcome::{Outcome, find_update, ticket, update_in};
use super::silence::Silence;
use super::table::{cell, list, print_table};

/// The pause before the next try; a local socket costs little.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// The pause before an appliance that ends is asked again whether it still answers.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long the appliance is asked to wait for an outcome before it says that there is none yet.
const WAIT: Duration = Duration::from_secs(10);

/// How an update is displayed, and how much of it was.
struct UpdateDisplay {
    bar: ProgressBar,
    last_event: u64,
    finished: bool,
}

/// Asks for an update or a rollback and follows it to its end. `to` is the release that it goes to, if that is known. Returns the exit
/// status that it means.
pub(super) async fn ask_and_follow(
    context: &Context,
    client: &Client,
    path: &str,
    body: &Value,
    to: Option<&str>,
) -> Result<Exit, ClientError> {
    let begun = clock::stamp();
    match client.post(path, body).await {
        Ok(answer) => follow(context, client, answer["ticket"]["id"].as_str().unwrap_or_default()).await,
        Err(ClientError::Broken { .. } | ClientError::Silent { .. } | ClientError::NoRuntime { .. }) => {
            // Whether it was taken, the appliance knows when it answers again.
            let (mut silence, hidden) = (Silence::of(client), ProgressBar::hidden());
            let found = loop {
                match find_update(client, &begun, to).await {
                    Ok(found) => break found,
                    Err(error) if error.is_silence() => {
                        if let Err(error) = silence.extend(&hidden, error) {
                            return conclude_ended(context, error, |entries| update_in(entries, &begun, to));
                        }
                    }
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(TRY_AGAIN).await;
            };
            let lost = || ClientError::Lost { request: "update".to_owned() };
            follow(context, client, &found.ok_or_else(lost)?).await
        }
        Err(error) => Err(error),
    }
}

/// Follows the ticket `id` to its end. Returns the exit status that it means.
async fn follow(context: &Context, client: &Client, id: &str) -> Result<Exit, ClientError> {
    let bar = if context.is_watched() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut display = UpdateDisplay { bar, last_event: 0, finished: false };
    let (mut silence, mut outcome) = (Silence::of(client), Outcome::of(client, id));
    loop {
        let shown = show_events(context, client, id, &mut display).await;
        // The stream ended: with the update, because the runtime replaced itself, or because nothing came any more.
        let found = match shown {
            Ok(()) => outcome.look_up(Duration::ZERO).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(ticket)) => {
                display.bar.finish_and_clear();
                return Ok(conclude(context, &ticket));
            }
            Ok(None) => silence.end(&display.bar),
            Err(error) if error.is_silence() => {
                if let Err(error) = silence.extend(&display.bar, error) {
                    return conclude_ended(context, error, |entries| entries.iter().find(|entry| entry["id"] == id));
                }
            }
            Err(error) => {
                display.bar.finish_and_clear();
                return Err(error);
            }
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// Returns what became of an update of which an appliance that has ended said nothing: its files may. `find` finds it in the history, newest
/// first.
fn conclude_ended(
    context: &Context,
    error: ClientError,
    find: impl FnOnce(&[Value]) -> Option<&Value>,
) -> Result<Exit, ClientError> {
    if !matches!(error, ClientError::Ended { .. }) {
        return Err(error);
    }
    let Ok(files) = Files::look(context) else { return Err(error) };
    let newest_first: Vec<Value> = files.history().unwrap_or_default().iter().rev().map(|entry| json!(entry)).collect();
    if let Some(entry) = find(&newest_first) {
        return Ok(conclude(context, &ticket(entry)));
    }
    Err(match files.journal.map(|journal| journal.state) {
        Some(State::Trial { next, starts_left: 1.., .. }) => {
            ClientError::Waits { home: context.home.path().to_owned(), to: next }
        }
        Some(State::Idle { .. } | State::Staged { .. } | State::Trial { .. }) | None => error,
    })
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
                if let Some((is_warning, said)) = notes::merged(&data["from"], &data["version"], file) {
                    let line = format!("{:<13} {said}", if is_warning { "warning" } else { "configuration" });
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

/// Returns the exit status of a ticket with an outcome, and says why if it is not a good one.
pub(super) fn conclude(context: &Context, ticket: &Value) -> Exit {
    let state = ticket["state"].as_str().unwrap_or_default();
    if context.json {
        context.print(&json!({ "ticket": ticket }).to_string());
    }
    if !context.json {
        show_asked(context, ticket);
    }
    if state == "done" || state == "already" {
        let confirmation = &ticket["confirmation"];
        if let (false, Some(line)) =
            (context.json || confirmation["state"] != "waiting", notes::unconfirmed(confirmation))
        {
            context.print(&line);
        }
        return Exit::Done;
    }
    let request = ticket["request"].as_str().unwrap_or("request");
    let reason = ticket["reason"].as_str().unwrap_or("no reason was given");
    let more = match request {
        // Only what was started has printed anything.
        "update" | "rollback" if reason.starts_with("rolled back") => {
            "; see `refit history --json` for the last output"
        }
        "reload" if reason.contains("nobody listens to it") => {
            "; a component hears of a reload by its `reload_signal` in appliance.toml, or as a peer that listens on the bus"
        }
        _ => "",
    };
    say(&format!("the {request} {state}: {reason}{more}"));
    let code = ticket["exit"].as_i64().and_then(|code| i32::try_from(code).ok());
    code.map_or(Exit::Failed, Exit::from_code)
}

/// Shows who was asked and what each answered, a line for each.
fn show_asked(context: &Context, ticket: &Value) {
    let rows: Vec<Vec<String>> = list(&ticket["asked"])
        .filter(|one| one["how"] != "runtime" || one["answer"] != "ok")
        .map(|one| {
            let how = if one["how"] == "signal" { &one["value"] } else { &one["how"] };
            let said = if one["reason"].is_null() && one["how"] != "signal" { &one["value"] } else { &one["reason"] };
            vec![cell(&one["name"]), cell(how), cell(&one["answer"]), cell(&one["priority"]), cell(said)]
        })
        .collect();
    if !rows.is_empty() {
        print_table(context, &["ASKED", "BY", "ANSWER", "PRIORITY", "SAID"], &rows);
    }
}

/// Waits for the outcome of a ticket without showing steps.
pub(super) async fn wait_for_outcome(context: &Context, client: &Client, id: &str) -> Result<Exit, ClientError> {
    let (mut silence, hidden, mut outcome) = (Silence::of(client), ProgressBar::hidden(), Outcome::of(client, id));
    loop {
        match outcome.look_up(WAIT).await {
            Ok(Some(ticket)) => return Ok(conclude(context, &ticket)),
            Ok(None) => silence.end(&hidden),
            Err(error) if error.is_silence() => {
                if let Err(error) = silence.extend(&hidden, error) {
                    return conclude_ended(context, error, |entries| entries.iter().find(|entry| entry["id"] == id));
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// Waits until the appliance has ended, as the ticket `id` asks. Nobody is left to answer then: that nobody answers is the outcome.
pub(super) async fn wait_for_exit(context: &Context, client: &Client, ticket: &Value) -> Result<Exit, ClientError> {
    let (mut silence, hidden) = (Silence::of(client), ProgressBar::hidden());
    let mut outcome = Outcome::of(client, ticket["id"].as_str().unwrap_or_default());
    loop {
        match outcome.look_up(Duration::ZERO).await {
            // A runtime that ended before it was done was started again.
            Ok(Some(ticket)) => return Ok(conclude(context, &ticket)),
            Ok(None) => silence.end(&hidden),
            Err(ClientError::Unavailable { .. }) => {
                let mut ticket = ticket.clone();
                (ticket["state"], ticket["exit"]) = (json!("done"), json!(Exit::Done.code()));
                return Ok(conclude(context, &ticket));
            }
            Err(error) if error.is_silence() => silence.extend(&hidden, error)?,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
