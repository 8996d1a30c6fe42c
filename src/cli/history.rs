//! `refit history`: what was tried on this appliance.

use refit_base::Exit;
use serde_json::{Value, json};

use super::at_rest::{self, AtRestError, Files};
use super::client::{Client, ClientError};
use super::context::Context;
use super::table::{cell, list, print_table};

pub(super) async fn run(context: &Context) -> Result<Exit, ClientError> {
    match Client::new(&context.home)?.get("/api/v1/history").await {
        Err(unavailable) if unavailable.is_at_rest() => {
            at_rest::instead(context, unavailable, || print_at_rest(context))
        }
        history => Ok(print(context, &history?)),
    }
}

/// Prints what the files say.
fn print_at_rest(context: &Context) -> Result<(), AtRestError> {
    let newest_first: Vec<_> = Files::look(context)?.history()?.into_iter().rev().collect();
    print(context, &json!({ "history": newest_first }));
    Ok(())
}

fn print(context: &Context, history: &Value) -> Exit {
    if context.json {
        context.print(&history.to_string());
        return Exit::Done;
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
    print_table(context, &["WHEN", "KIND", "FROM", "TO", "OUTCOME", "TOOK", "WHO", "WHY"], &rows);
    Exit::Done
}
