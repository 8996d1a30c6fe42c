//! `refit status`, `releases`, `history`: how things are.

use refit_base::Exit;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::context::Context;

/// Returns what JSON says, as a table cell.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Returns the elements of a list; of anything else, none.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Returns as much of a digest as people compare at a glance.
pub(super) fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// Prints `rows` under `head`, the columns as wide as they need to be.
pub(super) fn table(context: &Context, head: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = head.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}", width = *width)).collect();
        padded.join("  ").trim_end().to_owned()
    };
    context.print(&line(head.to_vec()));
    for row in rows {
        context.print(&line(row.iter().map(String::as_str).collect()));
    }
}

pub(super) async fn status(context: &Context) -> Result<Exit, ClientError> {
    let status = Client::new(&context.home)?.get("/api/v1/status").await?;
    if context.json {
        context.print(&status.to_string());
        return Ok(Exit::Done);
    }
    let release = &status["release"];
    context.print(&format!(
        "{} {} ({}), bus {}",
        cell(&status["appliance"]),
        cell(&release["version"]),
        cell(&release["state"]),
        cell(&status["bus"]["state"]),
    ));
    let runtime = &status["runtime"];
    context.print(&format!(
        "guard {}, runtime {} (image {} since {}), previous release {}",
        status["guard"]["pid"],
        runtime["pid"],
        runtime["generation"],
        cell(&runtime["started_at"]),
        cell(&status["previous"]),
    ));
    if let Some(update) = status["update"].as_object() {
        context.print(&format!(
            "{} {} -> {}: {}",
            cell(&update["kind"]),
            cell(&update["from"]),
            cell(&update["to"]),
            cell(&update["step"]),
        ));
    }
    if let Some(line) = reception(&status["receiving"]) {
        context.print(&line);
    }
    for package in list(&status["staged"]) {
        context.print(&format!(
            "release {} is staged since {}: refit install {}",
            cell(&package["version"]),
            cell(&package["received_at"]),
            cell(&package["digest"]),
        ));
    }
    for warning in list(&status["trust"]["warnings"]).filter_map(Value::as_str) {
        context.print(&format!("warning: {warning}"));
    }
    for file in list(&status["config"]["unmerged"]) {
        context.print(&format!(
            "warning: {}",
            unmerged(&status["release"]["version"], &file["path"], &file["new_default"])
        ));
    }
    context.print("");
    components(context, &status["components"]);
    context.print("");
    let rows: Vec<Vec<String>> =
        list(&status["listeners"]).map(|row| vec![cell(&row["name"]), cell(&row["address"])]).collect();
    table(context, &["LISTENER", "ADDRESS"], &rows);
    for fault in list(&status["faults"]) {
        context.print(&format!(
            "fault: {} {}: {}",
            cell(&fault["component"]),
            cell(&fault["phase"]),
            cell(&fault["cause"])
        ));
    }
    Ok(Exit::Done)
}

/// Returns what an admin should know of a configuration file that was not merged.
pub(super) fn unmerged(version: &Value, path: &Value, new_default: &Value) -> String {
    let dir = format!("config/{}", cell(version));
    format!(
        "{dir}/{} is as you left it; the release's default, which changed the same lines, is {dir}/{}: take from it what you need, then \
         remove it",
        cell(path),
        cell(new_default),
    )
}

/// Returns what arrives and how far it is.
fn reception(receiving: &Value) -> Option<String> {
    let step = receiving["step"].as_str()?;
    let what = receiving["version"].as_str().map_or("a package".to_owned(), |version| format!("release {version}"));
    let bytes = |key: &str| receiving[key].as_u64().map(|bytes| indicatif::BinaryBytes(bytes).to_string());
    let far = match (bytes("received_bytes"), bytes("total_bytes")) {
        (Some(received), Some(total)) => format!(", {received} of {total}"),
        (Some(received), None) => format!(", {received}"),
        (None, _) => String::new(),
    };
    Some(format!("receiving {what} since {}: {step}{far}", cell(&receiving["since"])))
}

/// Prints the table of components.
pub(super) fn components(context: &Context, components: &Value) {
    let rows: Vec<Vec<String>> = list(components)
        .map(|row| {
            let about = if row["reason"].is_null() { &row["status"] } else { &row["reason"] };
            let peers = row["peers"].as_array().map_or(0, Vec::len).to_string();
            ["name", "state", "health", "pid", "generation", "handover", "release"]
                .iter()
                .map(|key| cell(&row[*key]))
                .chain([peers, cell(about)])
                .collect()
        })
        .collect();
    table(context, &["COMPONENT", "STATE", "HEALTH", "PID", "GEN", "HANDOVER", "RELEASE", "PEERS", "SAYS"], &rows);
    for row in list(components) {
        let limits: Vec<String> = row["limits"].as_object().into_iter().flatten().map(limit).collect();
        if !limits.is_empty() {
            context.print(&format!("limits of {}: {}", cell(&row["name"]), limits.join(", ")));
        }
    }
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

pub(super) async fn releases(context: &Context) -> Result<Exit, ClientError> {
    let releases = Client::new(&context.home)?.get("/api/v1/releases").await?;
    if context.json {
        context.print(&releases.to_string());
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = list(&releases["releases"])
        .map(|row| {
            vec![
                cell(&row["version"]),
                cell(&row["state"]),
                cell(&row["installed_bytes"]),
                short(&cell(&row["digest"])),
                cell(&row["reason"]),
            ]
        })
        .collect();
    table(context, &["RELEASE", "STATE", "BYTES", "DIGEST", "WHY"], &rows);
    let staged: Vec<Vec<String>> = list(&releases["staged"])
        .map(|row| ["version", "received_at", "installed_bytes", "digest"].map(|key| cell(&row[key])).to_vec())
        .collect();
    if !staged.is_empty() {
        context.print("");
        table(context, &["STAGED", "RECEIVED", "BYTES", "DIGEST"], &staged);
    }
    Ok(Exit::Done)
}

pub(super) async fn history(context: &Context) -> Result<Exit, ClientError> {
    let history = Client::new(&context.home)?.get("/api/v1/history").await?;
    if context.json {
        context.print(&history.to_string());
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = list(&history["history"])
        .map(|row| {
            vec![
                cell(&row["at"]),
                cell(&row["kind"]),
                cell(&row["from"]),
                cell(&row["to"]),
                cell(&row["outcome"]),
                format!("{} ms", row["duration_ms"]),
                cell(&row["who"]),
                cell(&row["reason"]),
            ]
        })
        .collect();
    table(context, &["WHEN", "KIND", "FROM", "TO", "OUTCOME", "TOOK", "WHO", "WHY"], &rows);
    Ok(Exit::Done)
}
