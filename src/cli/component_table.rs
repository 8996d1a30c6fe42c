//! The table of components, as `refit status` and `refit component list` print it.

use serde_json::Value;

use super::context::Context;
use super::table::{cell, list, print_table};

/// Prints the table of components.
pub(super) fn print_components(context: &Context, components: &Value) {
    let rows: Vec<Vec<String>> = list(components)
        .map(|row| {
            let about = if row["reason"].is_null() { &row["status"] } else { &row["reason"] };
            let about = if about.is_null() { runs(row) } else { cell(about) };
            let peers = row["peers"].as_array().map_or(0, Vec::len).to_string();
            ["name", "state", "health", "pid", "generation", "handover", "release"]
                .iter()
                .map(|key| cell(&row[*key]))
                .chain([peers, about])
                .collect()
        })
        .collect();
    print_table(
        context,
        &["COMPONENT", "STATE", "HEALTH", "PID", "GEN", "HANDOVER", "RELEASE", "PEERS", "SAYS"],
        &rows,
    );
    for row in list(components) {
        let limits: Vec<String> = row["limits"].as_object().into_iter().flatten().map(limit).collect();
        if !limits.is_empty() {
            context.print(&format!("limits of {}: {}", cell(&row["name"]), limits.join(", ")));
        }
    }
}

/// Returns when a component ran that runs and ends, and when it is to run again.
fn runs(component: &Value) -> String {
    let last = ["ended_at", "started_at"].iter().find_map(|key| component["last_run"][*key].as_str());
    let last = last.map(|at| format!("ran at {at}"));
    let next = component["next_run_at"].as_str().map(|at| format!("next run at {at}"));
    let said: Vec<String> = last.into_iter().chain(next).collect();
    if said.is_empty() { cell(&Value::Null) } else { said.join(", ") }
}

/// Returns one limit, and what keeps it.
fn limit((name, limit): (&String, &Value)) -> String {
    let number = limit["value"].as_u64().unwrap_or_default();
    let value = match name.as_str() {
        "memory" => indicatif::BinaryBytes(number).to_string(),
        "cpu" => format!("{number}%"),
        _ => number.to_string(),
    };
    let by = match limit["by"].as_str() {
        Some("none") | None => "not enforced",
        Some(by) => by,
    };
    format!("{name} {value} ({by})")
}
