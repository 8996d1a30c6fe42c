//! Whether a process serves, as `ready` defines it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use refit_base::lock;
use refit_bus::Failure;

use super::context::RunContext;
use super::instance::Instance;
use super::{health, listens, reports};
use crate::config::{Component, Ready};

/// Waits until the process serves, as `ready` defines it, or its time is over. A
/// process that asks for more time by `EXTEND_TIMEOUT_USEC` gets it.
///
/// # Errors
/// It ended before, or did not become ready in time.
pub(super) async fn wait_ready(
    instance: &Instance,
    component: &Component,
    context: &Arc<RunContext>,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let limit = component.start_timeout;
    let seen = Mutex::new(String::new());
    let became_ready = async {
        match component.ready {
            Ready::Notify => {
                let mut said = instance.said.clone();
                // The sender lives as long as the instance.
                let waited = said.wait_for(|said| said.ready).await.is_ok();
                if !waited {
                    std::future::pending::<()>().await;
                }
            }
            Ready::Listen => return listens::wait(instance, component, context, &seen).await,
            Ready::Health => {
                let probed = health::Probed::new(component, &instance.carried, context);
                health::wait_healthy(&probed, &seen).await;
            }
            Ready::Exec | Ready::Started => {
                if listens::replaces_another(instance, component, context) {
                    return listens::wait(instance, component, context, &seen).await;
                }
            }
        }
        Ok(())
    };
    // Cancel-safe: all only wait, or write down what they have seen. A process that is ready and then ends is the actor's to notice.
    tokio::select! {
        biased;
        ready = became_ready => ready,
        how = instance.wait() => {
            let text = format!("{how} before it was ready, after {} ms", begun.elapsed().as_millis());
            Err(instance.failure(text, context).await)
        }
        // What it asked for of the image before, it gets of this one.
        () = reports::deadline(&instance.said, instance.since, begun, limit) => {
            let asked = instance.said.borrow().extended.is_some();
            let more = if asked { format!(", nor in the {:.1} s that it asked for", begun.elapsed().as_secs_f32()) } else { String::new() };
            let text = format!("was not ready within {} s{more}{}", limit.as_secs_f32(), silence(instance, component, &seen));
            Err(instance.failure(text, context).await)
        }
        never = instance.record_news(context) => match never {},
    }
}

/// Returns what there is to say of a process that did not report.
fn silence(instance: &Instance, component: &Component, seen: &Mutex<String>) -> String {
    let said = instance.said.borrow();
    if let (Ready::Notify, Some(reason)) = (component.ready, said.refused) {
        return format!("; a notification was refused: {reason}");
    }
    match (component.ready, &said.status) {
        (_, Some(status)) => format!("; it last said {status:?}"),
        (Ready::Notify, None) if !said.anything => "; it never said anything on NOTIFY_SOCKET".to_owned(),
        (Ready::Notify, None) => "; it never said READY=1 on NOTIFY_SOCKET".to_owned(),
        (Ready::Listen | Ready::Health | Ready::Exec | Ready::Started, None) => {
            let seen = lock(seen);
            if seen.is_empty() { String::new() } else { format!("; {seen}") }
        }
    }
}
