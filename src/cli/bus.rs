//! `refit bus`: the bus from a shell.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Method, header};
use serde_json::{Value, json};

use super::Context;
use super::client::{Client, ClientError};
use super::follow;
use super::show::cell;
use crate::error::Exit;

/// The pause before a broken stream is opened again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Bus {
    /// Show the state.
    State,
    /// Ask for start, stop, reload, restart, exit, update or rollback, and wait for the outcome.
    Request {
        /// What is asked.
        #[arg(value_parser = ["start", "stop", "reload", "restart", "exit", "rollback"])]
        request: String,
        /// Return as soon as the request is accepted.
        #[arg(long)]
        no_wait: bool,
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

pub(super) async fn main(context: &Context, bus: &Bus) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    match bus {
        Bus::State => {
            let status = client.get("/api/v1/status").await?;
            if context.json {
                context.print(&status["bus"].to_string());
            } else {
                context.print(&cell(&status["bus"]["state"]));
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
            if request == "exit" {
                // Nobody is left to answer when it is done; that nobody answers is the outcome.
                return wait_for_the_end(&client).await;
            }
            follow::wait(context, &client, id).await
        }
        Bus::Watch => watch(context, &client).await,
        Bus::Inhibit { command } => Ok(super::inhibit::main(context, command)),
    }
}

async fn wait_for_the_end(client: &Client) -> Result<Exit, ClientError> {
    loop {
        match client.get("/api/v1/status").await {
            Err(ClientError::Unavailable { .. }) => return Ok(Exit::Done),
            Ok(_) | Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

async fn watch(context: &Context, client: &Client) -> Result<Exit, ClientError> {
    let mut after = None;
    loop {
        let path = after.map_or_else(|| "/api/v1/events".to_owned(), |id: u64| format!("/api/v1/events?after={id}"));
        let request = client.request(Method::GET, &path).header(header::ACCEPT, "application/x-ndjson");
        match client.send(request).await {
            Ok(answer) => {
                let mut stream = answer.bytes_stream();
                let mut pending = Vec::new();
                while let Some(Ok(chunk)) = stream.next().await {
                    pending.extend_from_slice(&chunk);
                    while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = pending.drain(..=end).collect();
                        if let Ok(event) = serde_json::from_slice::<Value>(&line) {
                            after = event["id"].as_u64().or(after);
                            print(context, &event);
                        }
                    }
                }
            }
            // Only the first connection has to succeed: later ones wait for the next process image.
            Err(error) if after.is_none() => return Err(error),
            Err(_) => {}
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

fn print(context: &Context, event: &Value) {
    if context.json {
        return context.print(&event.to_string());
    }
    let at = event["at"].as_str().unwrap_or_default();
    let time = at.split('T').nth(1).unwrap_or(at).trim_end_matches('Z');
    let data: Vec<String> = event["data"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| format!("{key}={}", cell(value)))
        .collect();
    context.print(&format!("{time}  {:<16} {}", cell(&event["event"]), data.join(" ")));
}
