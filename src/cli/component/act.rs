//! `refit component start`, `stop` and `restart`: the answer, or, where the runtime ended before it gave one, what became of the component.

use std::time::Duration;

use indicatif::ProgressBar;
use refit_base::Exit;
use reqwest::{Method, StatusCode};

use crate::cli::client::{Client, ClientError};
use crate::cli::context::{Context, say};
use crate::cli::said::Said;
use crate::cli::silence::Silence;
use crate::wire::{Acted, Component, ComponentState, Components, Problem, Status};

/// The pause before the next look; a local socket costs little.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a component can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Start,
    Stop,
    Restart,
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// What became of what was asked.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody knows yet.
    Open,
    /// It is so.
    Done,
    /// It was tried.
    Failed,
    /// It was not even tried.
    Lost,
}

pub(super) async fn run(context: &Context, client: &Client, name: &str, action: Action) -> Result<(), ClientError> {
    let before = look(client, name).await?;
    let request = client.request(Method::POST, &format!("/api/v1/components/{name}/{}", action.name()));
    let answer: Said<Acted> = match (client.json_long(request).await, before) {
        (Err(ClientError::Broken { .. } | ClientError::Silent { .. }), Some(before)) => {
            find_out(client, name, action, &before).await?
        }
        (answer, _) => answer?,
    };
    if context.json {
        context.print(&answer.to_string());
    } else {
        context.print(&format!("{name}: {}", answer.component.state));
    }
    if let Some(warning) = &answer.warning {
        say(&format!("{name} {warning}"));
    }
    Ok(())
}

/// Returns what the appliance shows of the component; `None` if it has none of that name.
async fn look(client: &Client, name: &str) -> Result<Option<Component>, ClientError> {
    let answer: Components = client.get("/api/v1/components").await?;
    Ok(answer.components.into_iter().find(|component| component.name == name))
}

/// Returns the answer as it would have been, once it is known what became of `action`, which was asked of a component that was as
/// `before` says.
async fn find_out(client: &Client, name: &str, action: Action, before: &Component) -> Result<Said<Acted>, ClientError> {
    let (mut silence, hidden) = (Silence::of(client), ProgressBar::hidden());
    loop {
        let looked = async {
            let status: Status = client.get("/api/v1/status").await?;
            Ok((status.bus.state.rests(), look(client, name).await?))
        };
        match looked.await {
            Ok((true, None)) => return Err(ClientError::Lost { request: action.name().to_owned() }),
            Ok((false, None)) => silence.end(&hidden),
            Ok((rests, Some(component))) => {
                silence.end(&hidden);
                let fate = if rests { fate(action, before, &component) } else { Fate::Open };
                match fate {
                    Fate::Open => {}
                    Fate::Done => return Ok(Said::here(Acted { component, warning: None })),
                    Fate::Lost => return Err(ClientError::Lost { request: action.name().to_owned() }),
                    Fate::Failed => {
                        let reason = component.reason.as_deref().unwrap_or("no reason is known");
                        let detail = format!("cannot {} the component {name}: {reason}", action.name());
                        let remedy = format!("see its output with `refit component logs {name}`");
                        let status = StatusCode::INTERNAL_SERVER_ERROR;
                        let problem = Problem::new(status, "component_failed", Exit::Failed, detail, &remedy);
                        return Err(ClientError::Refused { problem: Box::new(problem) });
                    }
                }
            }
            Err(error) if ClientError::is_silence(&error) => silence.extend(&hidden, error)?,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Returns what became of `action` on a component that was as `before` says, and is as `now` says while the site rests.
fn fate(action: Action, before: &Component, now: &Component) -> Fate {
    let started = |component: &Component| component.last_run.as_ref().map(|run| run.started_at.clone());
    let is_another = now.generation != before.generation || started(now) != started(before);
    match (&now.state, action) {
        (ComponentState::Starting | ComponentState::Stopping, _) => Fate::Open,
        (ComponentState::Stopped, Action::Stop) => Fate::Done,
        (ComponentState::Running | ComponentState::Done | ComponentState::Waiting, Action::Start) => Fate::Done,
        (ComponentState::Running | ComponentState::Done | ComponentState::Waiting, Action::Restart) if is_another => {
            Fate::Done
        }
        (ComponentState::Backoff | ComponentState::Failed, Action::Start | Action::Restart) if is_another => {
            Fate::Failed
        }
        (_, _) => Fate::Lost,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn component(state: &str, generation: u32, ran_at: Option<&str>) -> Component {
        let run = ran_at.map(|at| json!({ "started_at": at, "ended_at": null, "failure": null }));
        serde_json::from_value(json!({
            "name": "a", "kind": "service", "state": state, "generation": generation, "health": "none", "handover": "restart",
            "last_run": run,
        }))
        .expect("a component")
    }

    #[test]
    fn what_became_of_it_is_seen_in_the_component() {
        let at = |state: &str, generation: u32| component(state, generation, None);
        let rows = [
            (Action::Restart, "running", 1, Fate::Lost),
            (Action::Restart, "running", 2, Fate::Done),
            (Action::Restart, "stopping", 1, Fate::Open),
            (Action::Restart, "starting", 2, Fate::Open),
            (Action::Restart, "backoff", 2, Fate::Failed),
            (Action::Restart, "failed", 1, Fate::Lost),
            (Action::Stop, "stopped", 1, Fate::Done),
            (Action::Stop, "running", 1, Fate::Lost),
            (Action::Restart, "done", 2, Fate::Done),
            (Action::Restart, "waiting", 2, Fate::Done),
            (Action::Restart, "waiting", 1, Fate::Lost),
            (Action::Start, "running", 2, Fate::Done),
            (Action::Start, "waiting", 1, Fate::Done),
            (Action::Start, "stopped", 1, Fate::Lost),
            (Action::Start, "failed", 2, Fate::Failed),
        ];
        for (action, state, generation, expected) in rows {
            assert_eq!(
                fate(action, &at("running", 1), &at(state, generation)),
                expected,
                "{action:?} {state} {generation}"
            );
        }
        // One that runs and ends may have had the same number under the runtime before.
        let run = |at: &str| component("done", 1, Some(at));
        assert_eq!(fate(Action::Restart, &run("10:00"), &run("10:01")), Fate::Done);
        assert_eq!(fate(Action::Restart, &run("10:00"), &run("10:00")), Fate::Lost);
        assert_eq!(fate(Action::Start, &at("stopped", 1), &run("10:01")), Fate::Done);
    }
}
