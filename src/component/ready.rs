//! Whether a process serves, as `ready` defines it.

use std::time::{Duration, Instant};

use refit_base::lock;
use refit_bus::Failure;

use super::context::RunContext;
use super::instance::Instance;
use super::reports;
use crate::config::Component;

/// Waits until the process serves, as `ready` defines it, or its time is over. A
/// process that asks for more time by `EXTEND_TIMEOUT_USEC` gets it.
///
/// # Errors
/// It ended before, or did not become ready in time.
pub(super) async fn wait_ready(
    instance: &Instance,
    component: &Component,
    context: &RunContext,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let limit = component.start_timeout;
    let became_ready = async {
        match component.ready {
            crate::config::Ready::Notify => {
                let mut said = instance.said.clone();
                // The sender lives as long as the instance.
                let waited = said.wait_for(|said| said.ready).await.is_ok();
                if !waited {
                    std::future::pending::<()>().await;
                }
            }
            crate::config::Ready::Listen => accepts(component, context, limit).await,
            crate::config::Ready::Exec | crate::config::Ready::Started => {}
        }
    };
    // Cancel-safe: all only wait, or write down what they have seen. A process that is ready and then ends is the actor's to notice.
    tokio::select! {
        biased;
        () = became_ready => Ok(()),
        how = instance.wait() => {
            let text = format!("{how} before it was ready, after {} ms", begun.elapsed().as_millis());
            Err(instance.failure(text, context).await)
        }
        // What it asked for of the image before, it gets of this one.
        () = reports::deadline(&instance.said, instance.since, begun, limit) => {
            let asked = instance.said.borrow().extended.is_some();
            let more = if asked { format!(", nor in the {:.1} s that it asked for", begun.elapsed().as_secs_f32()) } else { String::new() };
            let text = format!("was not ready within {} s{more}{}", limit.as_secs_f32(), silence(instance, component));
            Err(instance.failure(text, context).await)
        }
        never = instance.record_news(context) => match never {},
    }
}

/// Waits until somebody accepts on every listener of the component; on the address of its health probe if it binds its own.
async fn accepts(component: &Component, context: &RunContext, limit: Duration) {
    /// How often a port that nobody listens on yet is tried.
    const TRY_AGAIN: Duration = Duration::from_millis(20);
    if component.listeners.is_empty()
        && let Some(address) = component.health.as_ref().and_then(crate::config::Health::address)
    {
        while tokio::net::TcpStream::connect(&address).await.is_err() {
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
    for name in &component.listeners {
        let listener = {
            let listeners = lock(&context.listeners);
            listeners.get(name).and_then(|listener| listener.try_clone().ok())
        };
        let Some(listener) = listener else { continue };
        loop {
            match crate::handover::listener::answers(&listener, limit).await {
                Ok(true) => break,
                Ok(false) => {} // the caller's limit may have been moved
                Err(error) => {
                    tracing::warn!(component.name, listener.name = name, %error, "cannot try a listener");
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// Returns what there is to say of a process that did not report.
fn silence(instance: &Instance, component: &Component) -> String {
    let said = instance.said.borrow();
    if let (crate::config::Ready::Notify, Some(reason)) = (component.ready, said.refused) {
        return format!("; a notification was refused: {reason}");
    }
    match (component.ready, &said.status) {
        (_, Some(status)) => format!("; it last said {status:?}"),
        (crate::config::Ready::Notify, None) if !said.anything => {
            "; it never said anything on NOTIFY_SOCKET".to_owned()
        }
        (crate::config::Ready::Notify, None) => "; it never said READY=1 on NOTIFY_SOCKET".to_owned(),
        (crate::config::Ready::Listen | crate::config::Ready::Exec | crate::config::Ready::Started, None) => {
            String::new()
        }
    }
}
