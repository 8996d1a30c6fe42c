//! The part that a process has in a reload which is told of it by a signal.
//!
//! A signal has no answer. It is sent when everybody has agreed, and only to a program that does not ignore it. Then the process is
//! watched for a moment, or for as long as it says itself that it is reloading: if it ends, it has failed.

use std::sync::Arc;
use std::time::Duration;

use refit_bus::Failure;
use rustix::process::Signal;
use tokio::sync::watch;

use super::aside::Aside;
use super::context::RunContext;
use super::view::{Announced, State, View};
use crate::config::{self, Component};
use crate::process::disposition;
use crate::process::stat::is_ending;

/// How long a process is watched after the signal: one that it ends has ended by then.
const SETTLE: Duration = Duration::from_millis(250);
/// How long a `reload_check` may take: it reads settings, and may look up names on the network.
pub(super) const CHECK_MAX: Duration = Duration::from_secs(30);
/// How many of its last lines explain why it refuses.
const CHECK_LINES: usize = 4;
/// How often it is looked whether it lives.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long it may take until it is known how it ended, and what follows.
const END_KNOWN_MAX: Duration = Duration::from_secs(2);

/// Returns why the component has no part in a reload now.
pub(super) fn exempt(signal: Option<config::Signal>, view: &View) -> Option<String> {
    if signal.is_none() {
        return Some("it has no reload_signal".to_owned());
    }
    let state = view.state.name();
    (view.state != State::Running).then(|| format!("it is {state}"))
}

/// Looks whether the process can be told.
///
/// # Errors
/// There is no process, or it ignores the signal.
pub(super) fn prepare(signal: Option<config::Signal>, view: &View) -> Result<(), Failure> {
    let (Some(signal), Some(pid)) = (signal, view.pid) else { return Err(gone()) };
    // One that has ended meanwhile is noticed when it is told.
    if disposition::ignores(pid, number(signal)).unwrap_or(false) {
        return Err(Failure::new(format!("the process {pid} ignores {}, its reload_signal", signal.name())));
    }
    Ok(())
}

/// Runs the command that allows a reload, if the component has one, beside its process `pid`.
///
/// # Errors
/// It did not end with 0, so that the reload is refused.
pub(super) async fn check(component: &Component, pid: Option<i32>, context: &Arc<RunContext>) -> Result<(), Failure> {
    let Some(words) = &component.spawn.reload_check else { return Ok(()) };
    let instances = context.registry.instances();
    let Some(carried) = instances.iter().find(|one| one.component == component.name && Some(one.pid) == pid) else {
        return Err(gone());
    };
    let what = "its reload_check";
    let (limit, lines) = (CHECK_MAX, CHECK_LINES);
    Aside { what, words, limit, lines, with_listeners: true, component, carried, context }.run().await
}

/// Watches the process `pid` after it was told.
///
/// # Errors
/// It has ended.
pub(super) async fn settle(signal: config::Signal, pid: i32, mut view: watch::Receiver<View>) -> Result<(), Failure> {
    let settled = tokio::time::sleep(SETTLE);
    tokio::pin!(settled);
    let mut is_over = false;
    loop {
        if is_ending(pid) || view.borrow().pid != Some(pid) {
            break;
        }
        if is_over && view.borrow().announced != Some(Announced::Reloading) {
            return Ok(());
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = &mut settled, if !is_over => is_over = true,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
    let known = tokio::time::timeout(END_KNOWN_MAX, view.wait_for(|view| view.pid != Some(pid)));
    let (how, next) = match known.await {
        Ok(Ok(view)) => {
            let how = view.reason.clone().unwrap_or_else(|| "ended".to_owned());
            let next = match view.state {
                State::Starting | State::Running | State::Backoff | State::Waiting => "; it is started again",
                State::Stopping | State::Stopped | State::Failed | State::Done => "; it is not started again",
            };
            (how, next)
        }
        Ok(Err(_)) | Err(_) => ("ended".to_owned(), ""),
    };
    Err(Failure::lost(format!("the process {pid} got {}, its reload_signal, and {how}{next}", signal.name())))
}

/// Returns the signal that a definition names.
pub(super) fn number(signal: config::Signal) -> Signal {
    match signal {
        config::Signal::Hup => Signal::HUP,
        config::Signal::Int => Signal::INT,
        config::Signal::Quit => Signal::QUIT,
        config::Signal::Abrt => Signal::ABORT,
        config::Signal::Usr1 => Signal::USR1,
        config::Signal::Usr2 => Signal::USR2,
        config::Signal::Term => Signal::TERM,
        config::Signal::Winch => Signal::WINCH,
        config::Signal::Pwr => Signal::POWER,
    }
}

/// Returns the failure of a component that has no process any more.
pub(super) fn gone() -> Failure {
    Failure::lost("it has no process that serves any more")
}
