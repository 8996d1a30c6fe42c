//! `refit releases`: the releases on this appliance.

use refit_base::Exit;

use super::client::{Client, ClientError};
use super::context::Context;
use super::table::{cell, list, print_table, short};

pub(super) async fn run(context: &Context) -> Result<Exit, ClientError> {
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
    print_table(context, &["RELEASE", "STATE", "BYTES", "DIGEST", "WHY"], &rows);
    let staged: Vec<Vec<String>> = list(&releases["staged"])
        .map(|row| ["version", "received_at", "installed_bytes", "digest"].map(|key| cell(&row[key])).to_vec())
        .collect();
    if !staged.is_empty() {
        context.print("");
        print_table(context, &["STAGED", "RECEIVED", "BYTES", "DIGEST"], &staged);
    }
    Ok(Exit::Done)
}
