//! `refit bus`: the bus from a shell.

mod inhibit;
mod timeline;
mod watch;

use std::ffi::OsString;

use indicatif::ProgressBar;
use refit_base::Exit;
use semver::Version;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::context::Context;
use super::follow::{ASK_AGAIN, conclude, wait_for_exit, wait_for_outcome};
use super::notes;
use super::said::Said;
use super::silence::Silence;
use super::table::{any_cell, cell, print_table};
use crate::wire::{
    self, Answer, AnswerOutcome, Publication, Published, RequestBody, RequestName, Ticket, TicketAnswer, TicketState,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Bus {
    /// Show the state; with --json the channels, their listeners and the peers, too.
    State,
    /// Ask for start, stop, reload, confirm, restart, exit, update or rollback, and wait for the outcome.
    Request {
        /// What is asked.
        #[arg(value_parser = ["start", "stop", "reload", "confirm", "restart", "exit", "update", "rollback"])]
        request: String,
        /// Of an update: a release on this appliance or of its repository; the newest of the repository if there is none. Of a
        /// rollback: a release on this appliance; the previous one if there is none.
        version: Option<Version>,
        /// Return as soon as the request is accepted.
        #[arg(long)]
        no_wait: bool,
        /// Of a reload: revert it unless `refit bus request confirm` follows within this time, such as 2m. Listeners that cannot revert
        /// refuse.
        #[arg(long, value_name = "TIME")]
        confirm_within: Option<String>,
        /// Of a reload that has to be confirmed: you put back by yourself what listeners read that cannot revert; if the time passes, they
        /// reload.
        #[arg(long, requires = "confirm_within")]
        restores: bool,
    },
    /// Publish on a channel of the appliance's own, and show what each listener answered.
    Publish {
        /// The channel.
        channel: String,
        /// What is said, in JSON.
        #[arg(value_parser = |text: &str| serde_json::from_str::<Value>(text))]
        argument: Option<Value>,
    },
    /// Show what happens, until interrupted.
    Watch,
    /// Run a command during which the appliance does not restart because a watched file changes.
    Inhibit {
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

pub(super) async fn run(context: &Context, bus: &Bus) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    match bus {
        Bus::State => {
            let bus: Said<wire::Bus> = client.get("/api/v1/bus").await?;
            if context.json {
                context.print(&bus.to_string());
            } else {
                context.print(bus.state.name());
                if let Some(line) =
                    bus.unconfirmed.as_ref().map(|reload| notes::unconfirmed(&reload.until, reload.generation))
                {
                    context.print(&line);
                }
            }
            Ok(Exit::Done)
        }
        Bus::Request { request, version, no_wait, confirm_within, restores } => {
            if let (Some(version), false) = (version, matches!(request.as_str(), "update" | "rollback")) {
                let what = format!("{request} goes to no version: {version} is one too many");
                return Ok(context.print_failure(&what, "usage", "only update and rollback go to one", Exit::Usage));
            }
            if let (Some(_), false) = (confirm_within, request == "reload") {
                let what = format!("{request} is not confirmed: --confirm-within is for a reload");
                return Ok(context.print_failure(&what, "usage", "leave --confirm-within out", Exit::Usage));
            }
            let body = RequestBody {
                request: request.clone(),
                digest: None,
                version: version.clone(),
                confirm_within: confirm_within.clone(),
                restores: confirm_within.is_some() && *restores,
            };
            let answer = ask(&client, &body).await?;
            let id = &answer.ticket.id;
            if *no_wait {
                context.print(&if context.json { answer.to_string() } else { id.clone() });
                return Ok(Exit::Done);
            }
            if answer.ticket.is_final() {
                return Ok(conclude(context, &answer));
            }
            if request == "exit" {
                return wait_for_exit(context, &client, &answer).await;
            }
            wait_for_outcome(context, &client, id).await
        }
        Bus::Publish { channel, argument } => publish(context, &client, channel, argument.as_ref()).await,
        Bus::Watch => watch::run(context, &client).await,
        Bus::Inhibit { command } => Ok(inhibit::run(context, command)),
    }
}

/// Asks the bus. A connection that breaks leaves open whether that was heard: what says how the site is to be is asked for once more,
/// which changes nothing if it was. Returns the answer.
async fn ask(client: &Client, body: &RequestBody) -> Result<Said<TicketAnswer>, ClientError> {
    let request = body.request.as_str();
    let post = || client.post("/api/v1/bus/requests", body);
    let (mut silence, hidden) = (Silence::of(client), ProgressBar::hidden());
    let mut answer = post().await;
    let is_broken = matches!(answer, Err(ClientError::Broken { .. }));
    if !is_broken || !["start", "stop", "exit"].contains(&request) {
        return answer;
    }
    loop {
        match answer {
            // It was heard, and is done.
            Err(ClientError::Unavailable { .. }) if request == "exit" => {
                return Ok(Said::here(TicketAnswer { ticket: unnamed(RequestName::Exit) }));
            }
            Err(error) if error.is_silence() => silence.extend(&hidden, error)?,
            answer => return answer,
        }
        tokio::time::sleep(ASK_AGAIN).await;
        answer = post().await;
    }
}

/// Returns the ticket of a request that is done and whose name nobody has heard.
fn unnamed(request: RequestName) -> Ticket {
    let open = Ticket::open(String::new(), request, String::new());
    Ticket { state: TicketState::Done, exit: Some(Exit::Done.code()), ..open }
}

async fn publish(
    context: &Context,
    client: &Client,
    channel: &str,
    argument: Option<&Value>,
) -> Result<Exit, ClientError> {
    let body = Publication { channel: channel.to_owned(), argument: argument.cloned().unwrap_or_default() };
    let published: Said<Published> = client.post_long("/api/v1/bus/publications", &body).await?;
    let answers = &published.report.answers;
    let is_good = |answer: &Answer| matches!(answer.outcome, AnswerOutcome::Ok | AnswerOutcome::Skipped);
    if context.json {
        context.print(&published.to_string());
    } else if answers.is_empty() {
        context.print(&format!("nobody listens on {channel}"));
    } else {
        let row = |answer: &Answer| {
            let value = answer.value.as_ref().filter(|_| answer.outcome == AnswerOutcome::Ok).map(any_cell);
            let took = format!("{} ms", answer.elapsed_us / 1000);
            let said = value.or_else(|| answer.reason.clone());
            vec![answer.listener.clone(), answer.outcome.to_string(), took, answer.priority.to_string(), cell(said)]
        };
        let rows: Vec<Vec<String>> = answers.iter().map(row).collect();
        print_table(context, &["LISTENER", "OUTCOME", "TOOK", "PRIORITY", "SAID"], &rows);
    }
    Ok(if answers.iter().all(is_good) { Exit::Done } else { Exit::Failed })
}
