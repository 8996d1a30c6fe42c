//! The table of components, as `refit status` and `refit component list` print it.

use super::context::Context;
use super::table::{cell, print_table};
use crate::wire::{Component, Limit, LimitBy};

/// Prints the table of components.
pub(super) fn print_components(context: &Context, components: &[Component]) {
    let rows: Vec<Vec<String>> = components
        .iter()
        .map(|row| {
            let about = row.reason.clone().or_else(|| row.status.clone());
            vec![
                row.name.clone(),
                row.state.to_string(),
                row.health.to_string(),
                cell(row.pid),
                row.generation.to_string(),
                row.handover.to_string(),
                cell(row.release.as_ref()),
                row.peers.len().to_string(),
                about.unwrap_or_else(|| runs(row)),
            ]
        })
        .collect();
    print_table(
        context,
        &["COMPONENT", "STATE", "HEALTH", "PID", "GEN", "HANDOVER", "RELEASE", "PEERS", "SAYS"],
        &rows,
    );
    for row in components {
        let limits: Vec<String> = row.limits.iter().map(limit).collect();
        if !limits.is_empty() {
            context.print(&format!("limits of {}: {}", row.name, limits.join(", ")));
        }
    }
}

/// Returns when a component ran that runs and ends, and when it is to run again.
fn runs(component: &Component) -> String {
    let last = component.last_run.as_ref().map(|run| run.ended_at.as_ref().unwrap_or(&run.started_at));
    let last = last.map(|at| format!("ran at {at}"));
    let next = component.next_run_at.as_ref().map(|at| format!("next run at {at}"));
    let said: Vec<String> = last.into_iter().chain(next).collect();
    cell((!said.is_empty()).then(|| said.join(", ")))
}

/// Returns one limit, and what keeps it.
fn limit((name, limit): (&String, &Limit)) -> String {
    let value = match name.as_str() {
        "memory" => indicatif::BinaryBytes(limit.value).to_string(),
        "cpu" => format!("{}%", limit.value),
        _ => limit.value.to_string(),
    };
    let by = if limit.by == LimitBy::None { "not enforced" } else { limit.by.name() };
    format!("{name} {value} ({by})")
}
