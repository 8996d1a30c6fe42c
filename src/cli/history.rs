//! `refit history`: what was tried on this appliance.

use refit_base::Exit;

use super::at_rest::{self, AtRestError, Files};
use super::client::{Client, ClientError};
use super::context::Context;
use super::said::Said;
use super::table::{cell, print_table};
use crate::wire::History;

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
    print(context, &Said::here(History::newest_first(Files::look(context)?.history()?)));
    Ok(())
}

fn print(context: &Context, history: &Said<History>) -> Exit {
    if context.json {
        context.print(&history.to_string());
        return Exit::Done;
    }
    let rows: Vec<Vec<String>> = history
        .history
        .iter()
        .map(|row| {
            vec![
                row.at.clone(),
                row.kind.to_string(),
                row.from.to_string(),
                row.to.to_string(),
                row.outcome.to_string(),
                format!("{} ms", row.duration_ms),
                row.who.clone(),
                cell(row.reason.as_ref()),
            ]
        })
        .collect();
    print_table(context, &["WHEN", "KIND", "FROM", "TO", "OUTCOME", "TOOK", "WHO", "WHY"], &rows);
    Exit::Done
}
