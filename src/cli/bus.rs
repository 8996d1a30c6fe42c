//! `refit bus`: the bus from a shell.

use std::ops::ControlFlow;
use std::time::Duration;

use refit_base::Exit;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::context::Context;
use super::follow::{self, read_events};
use super::table::{cell, print_table};
use super::timeline::Timeline;

/// The pause before a broken stream is opened again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Bus {
    /// Show the state; with --json the channels, their listeners and the peers, too.
    State,
    /// Ask for start, stop, reload, restart, exit or rollback, and wait for the outcome.
    Request {
        /// What is asked.
        #[arg(value_parser = ["start", "stop", "reload", "restart", "exit", "rollback"])]
        request: String,
        /// Return as soon as the request is accepted.
        #[arg(long)]
        no_wait: bool,
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
        command: Vec<std::ffi::OsString>,
    },
}

pub(super) async fn run(context: &Context, bus: &Bus) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    match bus {
        Bus::State => {
            let bus = client.get("/api/v1/bus").await?;
            if context.json {
                context.print(&bus.to_string());
            } else {
                context.print(&cell(&bus["state"]));
            }
            Ok(Exit::Done)
        }
        Bus::Request { request, no_wait } => {
            let answer = client.post("/api/v1/bus/requests", &json!({ "request": request })).await?;
            let id = answer["ticket"]["id"].as_str().unwrap_or_default();
            if *no_wait {
                context.print(&if context.json { answer.to_string() } else { id.to_owned() });
                return Ok(Exit::Done);
            }
            if answer["ticket"]["state"] != "accepted" {
                return Ok(follow::conclude(context, &answer["ticket"]));
            }
            if request == "exit" {
                // Nobody is left to answer when it is done; that nobody answers is the outcome.
                wait_for_the_end(&client).await;
                let mut ticket = answer["ticket"].clone();
                (ticket["state"], ticket["exit"]) = (json!("done"), json!(Exit::Done.code()));
                return Ok(follow::conclude(context, &ticket));
            }
            follow::wait(context, &client, id).await
        }
        Bus::Publish { channel, argument } => publish(context, &client, channel, argument.as_ref()).await,
        Bus::Watch => watch(context, &client).await,
        Bus::Inhibit { command } => Ok(super::inhibit::main(context, command)),
    }
}

async fn publish(
    context: &Context,
    client: &Client,
    channel: &str,
    argument: Option<&Value>,
) -> Result<Exit, ClientError> {
    let body = json!({ "channel": channel, "argument": argument });
    let answer = client.post("/api/v1/bus/publications", &body).await?;
    let answers = answer["report"]["answers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let good = answers.iter().all(|one| one["outcome"] == "ok" || one["outcome"] == "skipped");
    if context.json {
        context.print(&answer.to_string());
    } else if answers.is_empty() {
        context.print(&format!("nobody listens on {channel}"));
    } else {
        let rows: Vec<Vec<String>> = answers
            .iter()
            .map(|one| {
                let said = if one["outcome"] == "ok" { &one["value"] } else { &one["reason"] };
                let took = format!("{} ms", one["elapsed_us"].as_u64().unwrap_or(0) / 1000);
                vec![cell(&one["listener"]), cell(&one["outcome"]), took, cell(said)]
            })
            .collect();
        print_table(context, &["LISTENER", "OUTCOME", "TOOK", "SAID"], &rows);
    }
    Ok(if good { Exit::Done } else { Exit::Failed })
}

async fn wait_for_the_end(client: &Client) {
    while !matches!(client.get("/api/v1/status").await, Err(ClientError::Unavailable { .. })) {
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

async fn watch(context: &Context, client: &Client) -> Result<Exit, ClientError> {
    let mut after = None;
    let mut timeline = Timeline::new(context.has_colours());
    if !context.json {
        let state = client.get("/api/v1/bus").await?;
        context.print(&timeline.begin(&cell(&state["state"])));
    }
    loop {
        let mut newest = after;
        let show = |event: Option<&Value>| {
            let Some(event) = event else { return ControlFlow::Continue(()) };
            newest = event["id"].as_u64().or(newest);
            if context.json {
                context.print(&event.to_string());
            } else if let Some(line) = timeline.line(event) {
                context.print(&line);
            }
            ControlFlow::Continue(())
        };
        match read_events(client, after, show).await {
            // Only the first connection has to succeed: later ones wait for the next process image.
            Err(error) if after.is_none() => return Err(error),
            Ok(()) | Err(_) => after = newest,
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}
