//! `refit status`: how the appliance is.

use refit_base::Exit;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::component_table::print_components;
use super::context::Context;
use super::notes;
use super::table::{cell, list, print_table};

pub(super) async fn run(context: &Context) -> Result<Exit, ClientError> {
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
    if let Some(line) = notes::unconfirmed(&status["bus"]["unconfirmed"]) {
        context.print(&line);
    }
    if let Some(update) = status["update"].as_object() {
        context.print(&format!(
            "{} {} -> {}: {}",
            cell(&update["kind"]),
            cell(&update["from"]),
            cell(&update["to"]),
            cell(&update["step"]),
        ));
    }
    if let Some(line) = reception_line(&status["receiving"]) {
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
            notes::unmerged(&release["version"], &file["path"], &file["new_default"], &file["because"])
        ));
    }
    if status["read_only"] == true {
        context.print(
            "warning: the disk of the home is read-only: what runs goes on, and nothing that changes is kept; repair the disk, or mount it \
             so that it can be written to",
        );
    }
    for found in list(&status["config"]["unread"]) {
        context.print(&format!("warning: {}", notes::unread(&release["version"], &found["path"], &found["why"])));
    }
    context.print("");
    print_components(context, &status["components"]);
    context.print("");
    let rows: Vec<Vec<String>> =
        list(&status["listeners"]).map(|row| vec![cell(&row["name"]), cell(&row["address"])]).collect();
    print_table(context, &["LISTENER", "ADDRESS"], &rows);
    for missing in list(&status["listeners"]).filter(|listener| listener["failure"].is_string()) {
        let [name, address, failure] = ["name", "address", "failure"].map(|key| cell(&missing[key]));
        context.print(&format!(
            "warning: cannot listen on {address} for the listener {name}: {failure}; it is tried again"
        ));
    }
    for fault in list(&status["faults"]) {
        let priority = fault["priority"].as_i64().map_or_else(String::new, |number| format!(" (priority {number})"));
        context.print(&format!(
            "fault: {} {}: {}{priority}",
            cell(&fault["component"]),
            cell(&fault["phase"]),
            cell(&fault["cause"])
        ));
        for line in list(&fault["output"]).filter_map(Value::as_str) {
            context.print(&format!("    {line}"));
        }
    }
    Ok(Exit::Done)
}

/// Returns what arrives and how far it is.
fn reception_line(receiving: &Value) -> Option<String> {
    let step = receiving["step"].as_str()?;
    let what = receiving["version"].as_str().map_or("a package".to_owned(), |version| format!("release {version}"));
    let bytes = |key: &str| receiving[key].as_u64().map(|bytes| indicatif::BinaryBytes(bytes).to_string());
    let progress = match (bytes("received_bytes"), bytes("total_bytes")) {
        (Some(received), Some(total)) => format!(", {received} of {total}"),
        (Some(received), None) => format!(", {received}"),
        (None, _) => String::new(),
    };
    Some(format!("receiving {what} since {}: {step}{progress}", cell(&receiving["since"])))
}
