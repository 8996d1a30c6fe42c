//! Who was asked by a reload, as its ticket shows it.

use refit_bus::Asked;
use serde_json::Value;

use crate::config::Config;
use crate::wire::{self, How};

/// How many are kept in one ticket, those that failed first: tickets outlive the image, and a hundred are kept.
const ASKED_MAX: usize = 64;
/// The longest reason that is kept, in characters.
const REASON_CHARS_MAX: usize = 500;
/// The longest value that is kept, in bytes of JSON.
const VALUE_BYTES_MAX: usize = 200;

/// Returns what a ticket shows of those who were asked. A component that is not told by a signal is shown only where nothing of it
/// listens on the bus: then it was not asked.
pub(super) fn views(asked: Vec<Asked>, config: &Config) -> Vec<wire::Asked> {
    let listening: Vec<String> = asked.iter().filter_map(|one| one.component.clone()).collect();
    let mut views: Vec<wire::Asked> = asked.into_iter().filter_map(|one| view(one, &listening, config)).collect();
    if views.len() > ASKED_MAX {
        views.sort_by_key(|view| view.answer == wire::Reply::Ok); // stable: the order of the calls decides among equals
        views.truncate(ASKED_MAX);
    }
    views
}

fn view(one: Asked, listening: &[String], config: &Config) -> Option<wire::Asked> {
    let definition = config.component(&one.listener).filter(|_| one.component.is_none());
    let signal = definition.and_then(|component| component.spawn.reload_signal);
    let (how, mut value, mut reason) = match (definition, signal) {
        (_, _) if one.only_checks => (How::Runtime, one.value, one.reason),
        (None, _) => (How::Bus, one.value, one.reason),
        (Some(_), Some(signal)) => (How::Signal, signal.name().into(), one.reason),
        (Some(_), None) if listening.contains(&one.listener) => return None,
        (Some(_), None) => {
            let reason = "it has no reload_signal, and nothing of it listens to reload on the bus".to_owned();
            (How::None, Value::Null, Some(reason))
        }
    };
    if value.to_string().len() > VALUE_BYTES_MAX {
        value = Value::Null;
    }
    if let Some(reason) = &mut reason
        && let Some((end, _)) = reason.char_indices().nth(REASON_CHARS_MAX)
    {
        reason.truncate(end);
    }
    let component = one.component.or_else(|| definition.map(|component| component.name.clone()));
    Some(wire::Asked {
        name: one.listener,
        component,
        priority: Some(one.priority),
        how,
        phase: one.phase.name().into(),
        answer: one.answer.into(),
        value,
        reason,
    })
}
