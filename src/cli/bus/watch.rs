//! `refit bus watch`: what happens on the appliance, until interrupted.

use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::ProgressBar;
use refit_base::Exit;

use super::timeline::Timeline;
use crate::cli::client::{Client, ClientError};
use crate::cli::context::{Context, say};
use crate::cli::events::read_events;
use crate::cli::said::Said;
use crate::cli::silence::Silence;
use crate::wire::{Bus, EventRecord};

/// The pause before a broken stream is opened again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

pub(super) async fn run(context: &Context, client: &Client) -> Result<Exit, ClientError> {
    let mut after = None;
    let (mut silence, hidden) = (Silence::of(client), ProgressBar::hidden());
    let mut timeline = Timeline::new(context.has_colours());
    if !context.json {
        let bus: Bus = client.get("/api/v1/bus").await?;
        context.print(&timeline.begin(&bus.state));
    }
    loop {
        let mut newest = after;
        let mut answers = false;
        let show = |record: Option<&Said<EventRecord>>| {
            answers = true;
            let Some(record) = record else { return ControlFlow::Continue(()) };
            newest = Some(record.id);
            if context.json {
                context.print(&record.to_string());
            } else if let Some(line) = timeline.line(record) {
                context.print(&line);
            }
            ControlFlow::Continue(())
        };
        let read = read_events(client, after, show).await;
        // Only the first connection has to succeed: later ones wait for the next process image.
        let is_first = after.is_none() && newest.is_none() && !answers;
        after = newest;
        match read {
            Err(error) if is_first || !error.is_silence() => return Err(error),
            Err(error) => {
                if answers {
                    silence.end(&hidden);
                }
                match silence.extend(&hidden, error) {
                    Err(ClientError::Ended { .. }) => {
                        say("the appliance has ended");
                        return Ok(Exit::Done);
                    }
                    lasted => lasted?,
                }
            }
            Ok(()) => silence.end(&hidden),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}
