//! `refit history`: what was tried on this appliance.

use refit_base::Exit;

use super::client::{Client, ClientError};
use super::context::Context;
use super::table::{cell, list, print_table};

pub(super) async fn run(context: &Context) -> Result<Exit, ClientError> {
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
    print_table(context, &["WHEN", "KIND", "FROM", "TO", "OUTCOME", "TOOK", "WHO", "WHY"], &rows);
    Ok(Exit::Done)
}
