//! `ready = "listen"`: a process of the instance has accepted a connection on each of its listeners.
//!
//! A connection that a process of another instance takes says nothing, and another one is made.

use std::net::TcpListener;
use std::sync::Mutex;
use std::time::Duration;

use refit_base::lock;
use refit_bus::Failure;

use super::acceptors::{Acceptors, Verdict};
use super::context::RunContext;
use super::instance::Instance;
use crate::config::{Component, Handover};

/// How long one connection may wait to be accepted before it is looked at anew who might.
const TRY_MAX: Duration = Duration::from_secs(2);
/// The pause between two tries: the process that takes them may serve one connection after the other, and has clients.
const PAUSE: Duration = Duration::from_millis(50);
/// After so many tries that others have taken, more connections are made at a time: some servers are woken in an order that never
/// changes, and the first of them takes every connection that comes alone.
const ALONE_TRIES: u32 = 10;
/// The most connections at a time: each may cost a server that serves one after the other some milliseconds.
const CONNECTIONS_MAX: u32 = 8;

/// Waits until a process of the instance has accepted on each listener. What was seen meanwhile goes to `seen`. Cancel-safe.
///
/// # Errors
/// It cannot be found out.
pub(super) async fn wait(
    instance: &Instance,
    component: &Component,
    context: &RunContext,
    seen: &Mutex<String>,
) -> Result<(), Failure> {
    let acceptors = Acceptors::of(&instance.carried, component, context);
    for name in &component.listeners {
        let listener = {
            let listeners = lock(&context.listeners);
            listeners.get(name).and_then(|listener| listener.try_clone().ok())
        };
        let Some(listener) = listener else { continue };
        let mut tries = 0;
        while let Some(text) = try_once(&acceptors, name, &listener, &mut tries).await? {
            *lock(seen) = text;
            tokio::time::sleep(PAUSE).await;
            // The process may have made it shorter as it began to listen; clients wait in it.
            context.restore_queues(component);
        }
    }
    Ok(())
}

/// Returns whether the process takes over its listeners from one that serves: with the other's last word, nobody might be left
/// there, so that even one that counts as started at once has to accept first.
pub(super) fn replaces_another(instance: &Instance, component: &Component, context: &RunContext) -> bool {
    component.handover == Handover::Overlap
        && !component.listeners.is_empty()
        && Acceptors::of(&instance.carried, component, context).have_serving_predecessors()
}

/// Tries once. Returns why the process is not known to accept; `tries` counts those after which more connections are made.
async fn try_once(
    acceptors: &Acceptors<'_>,
    name: &str,
    listener: &TcpListener,
    tries: &mut u32,
) -> Result<Option<String>, Failure> {
    let rounds = *tries / ALONE_TRIES;
    let count = 1_u32.checked_shl(rounds).map_or(CONNECTIONS_MAX, |count| count.min(CONNECTIONS_MAX));
    Ok(Some(match acceptors.of_new_connections(listener, count, TRY_MAX).await {
        Ok(Verdict::Ours) => return Ok(None),
        Ok(Verdict::Others) => {
            *tries += 1;
            format!("a process that is not its own accepts on the listener {name}")
        }
        Ok(Verdict::Unseen(what)) => {
            format!("a connection to the listener {name} was {what}; if this goes on, use ready = \"notify\"")
        }
        Ok(Verdict::Nobody) => format!("no process of its own accepts on the listener {name}"),
        Ok(Verdict::Hidden(why)) => {
            return Err(Failure::new(format!(
                "whether it accepts on the listener {name}, or another process, cannot be found out: {why}; \
                 use ready = \"notify\""
            )));
        }
        Err(error) => format!("the listener {name} cannot be tried: {error}"),
    }))
}
