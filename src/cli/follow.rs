//! Following an update to its end, across the exec that breaks every connection.

use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use refit_base::{Exit, clock};
use refit_updater::journal::State;
use semver::Version;

use super::at_rest::Files;
use super::client::{Client, ClientError};
use super::context::{Context, say};
use super::events::read_events;
use super::notes;
use super::outcome::{Lookup, find_update, ticket, update_in};
use super::said::Said;
use super::silence::Silence;
use super::table::{any_cell, cell, print_table};
use crate::wire::event::{ConfigMerged, UpdateProgress, UpdateStep};
use crate::wire::{
    Asked, Attempt, ConfirmationState, Destination, Event, EventRecord, History, How, Reply, RequestName, Ticket,
    TicketAnswer, TicketState,
};

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
    body: &Destination,
    to: Option<&Version>,
) -> Result<Exit, ClientError> {
    let begun = clock::stamp();
    match client.post::<TicketAnswer>(path, body).await {
        Ok(answer) => follow(context, client, &answer.ticket.id).await,
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
    let (mut silence, mut outcome) = (Silence::of(client), Lookup::of(client, id));
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
                    return conclude_ended(context, error, |attempts| {
                        attempts.into_iter().find(|attempt| attempt.id == id)
                    });
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
    find: impl FnOnce(Vec<Attempt>) -> Option<Attempt>,
) -> Result<Exit, ClientError> {
    if !matches!(error, ClientError::Ended { .. }) {
        return Err(error);
    }
    let Ok(files) = Files::look(context) else { return Err(error) };
    let attempts = History::newest_first(files.history().unwrap_or_default()).history;
    if let Some(attempt) = find(attempts) {
        return Ok(conclude(context, &ticket(attempt)));
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
    let take = |record: Option<&Said<EventRecord>>| {
        // Silence: what came of it is looked up.
        let Some(record) = record else { return ControlFlow::Break(()) };
        display.last_event = record.id;
        show_event(context, record, id, display);
        if display.finished { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    read_events(client, after, take).await
}

/// Shows an event, if it is one of the update `id`.
fn show_event(context: &Context, record: &Said<EventRecord>, id: &str, display: &mut UpdateDisplay) {
    if record.event.update() != Some(id) {
        return;
    }
    if context.json {
        context.print(&record.to_string());
    }
    if let Event::UpdateStep(UpdateStep { step, text, .. }) = &record.event {
        display.bar.set_style(ProgressStyle::default_spinner());
        display.bar.set_message(text.clone());
        let line = format!("{step:<13} {text}");
        display.bar.suspend(|| context.print_text(&line));
        display.finished = step.is_final();
    } else if let Event::UpdateConfig(ConfigMerged { from, version, files, .. }) = &record.event {
        for (is_warning, said) in files.iter().filter_map(|file| notes::merged(from, version, file)) {
            let line = format!("{:<13} {said}", if is_warning { "warning" } else { "configuration" });
            display.bar.suspend(|| context.print_text(&line));
        }
    } else if let Event::UpdateProgress(UpdateProgress { progress, text, .. }) = &record.event {
        if let Ok(style) = ProgressStyle::with_template("{msg} [{wide_bar}] {percent}%") {
            display.bar.set_style(style);
        }
        display.bar.set_length(1000);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
        display.bar.set_position((progress.clamp(0.0, 1.0) * 1000.0) as u64);
        display.bar.set_message(text.clone());
    }
}

/// Returns the exit status of a ticket with an outcome, and says why if it is not a good one.
pub(super) fn conclude(context: &Context, answer: &Said<TicketAnswer>) -> Exit {
    let Ticket { request, state, reason, exit, asked, confirmation, .. } = &answer.ticket;
    if context.json {
        context.print(&answer.to_string());
    } else {
        show_asked(context, asked);
    }
    if matches!(state, TicketState::Done | TicketState::Already) {
        let confirmation = confirmation.as_deref().filter(|found| found.state == ConfirmationState::Waiting);
        if let Some(found) = confirmation {
            context.print_text(&notes::unconfirmed(&found.until, found.generation));
        }
        return Exit::Done;
    }
    let reason = reason.as_deref().unwrap_or("no reason was given");
    let more = if answer.ticket.is_update() && reason.starts_with("rolled back") {
        // Only what was started has printed anything.
        "; see `refit history --json` for the last output"
    } else if *request == RequestName::Reload && reason.contains("nobody listens to it") {
        "; a component hears of a reload by its `reload_signal` in appliance.toml, or as a peer that listens on the bus"
    } else {
        ""
    };
    say(&format!("the {request} {state}: {reason}{more}"));
    exit.map_or(Exit::Failed, |code| Exit::from_code(code.into()))
}

/// Shows who was asked and what each answered, a line for each.
fn show_asked(context: &Context, asked: &[Asked]) {
    let rows: Vec<Vec<String>> = asked
        .iter()
        .filter(|one| one.how != How::Runtime || one.answer != Reply::Ok)
        .map(|one| {
            let is_signal = one.how == How::Signal;
            let how = if is_signal { any_cell(&one.value) } else { one.how.to_string() };
            let said =
                if one.reason.is_none() && !is_signal { any_cell(&one.value) } else { cell(one.reason.as_ref()) };
            vec![one.name.clone(), how, one.answer.to_string(), cell(one.priority), said]
        })
        .collect();
    if !rows.is_empty() {
        print_table(context, &["ASKED", "BY", "ANSWER", "PRIORITY", "SAID"], &rows);
    }
}

/// Waits for the outcome of a ticket without showing steps.
pub(super) async fn wait_for_outcome(context: &Context, client: &Client, id: &str) -> Result<Exit, ClientError> {
    let (mut silence, hidden, mut outcome) = (Silence::of(client), ProgressBar::hidden(), Lookup::of(client, id));
    loop {
        match outcome.look_up(WAIT).await {
            Ok(Some(ticket)) => return Ok(conclude(context, &ticket)),
            Ok(None) => silence.end(&hidden),
            Err(error) if error.is_silence() => {
                if let Err(error) = silence.extend(&hidden, error) {
                    return conclude_ended(context, error, |attempts| {
                        attempts.into_iter().find(|attempt| attempt.id == id)
                    });
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// Waits until the appliance has ended, as the ticket `id` asks. Nobody is left to answer then: that nobody answers is the outcome.
pub(super) async fn wait_for_exit(
    context: &Context,
    client: &Client,
    answer: &TicketAnswer,
) -> Result<Exit, ClientError> {
    let (mut silence, hidden) = (Silence::of(client), ProgressBar::hidden());
    let mut outcome = Lookup::of(client, &answer.ticket.id);
    loop {
        match outcome.look_up(Duration::ZERO).await {
            // A runtime that ended before it was done was started again.
            Ok(Some(ticket)) => return Ok(conclude(context, &ticket)),
            Ok(None) => silence.end(&hidden),
            Err(ClientError::Unavailable { .. }) => {
                let exit = Some(Exit::Done.code());
                let ticket = Ticket { state: TicketState::Done, exit, ..answer.ticket.clone() };
                return Ok(conclude(context, &Said::here(TicketAnswer { ticket })));
            }
            Err(error) if error.is_silence() => silence.extend(&hidden, error)?,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
