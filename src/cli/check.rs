//! `refit check`: asks the repository whether there is a newer release.

use refit_base::Exit;
use reqwest::Method;

use super::client::{Client, ClientError};
use super::context::Context;
use super::said::Said;
use super::table::{cell, print_table, short};
use crate::wire::Repository;

pub(super) async fn run(context: &Context) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    let found: Said<Repository> = client.json_long(client.request(Method::GET, "/api/v1/repository")).await?;
    if context.json {
        context.print(&found.to_string());
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = found
        .releases
        .iter()
        .rev()
        .map(|release| {
            vec![
                release.version.to_string(),
                cell(release.released),
                release.payload_bytes.to_string(),
                cell(release.requires.as_ref()),
                short(&cell(release.digest)),
                cell(release.failed_before.as_ref()),
            ]
        })
        .collect();
    print_table(context, &["RELEASE", "MADE", "BYTES", "REQUIRES", "DIGEST", "FAILED HERE"], &rows);
    context.print("");
    let failed = found.releases.last().filter(|newest| newest.failed_before.is_some());
    context.print(&match (&found.newer, failed) {
        (Some(version), _) => {
            format!("release {version} is newer than {}: refit install {version}", found.current)
        }
        (None, Some(newest)) => {
            format!("release {0} failed here; refit install {0} tries it again", newest.version)
        }
        (None, None) => format!("release {} is the newest", found.current),
    });
    Ok(Exit::Done)
}
