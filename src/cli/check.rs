//! `refit check`: asks the repository whether there is a newer release.

use refit_base::Exit;
use reqwest::Method;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::context::Context;
use super::table::{cell, print_table, short};

pub(super) async fn run(context: &Context) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    let found = client.json_long(client.request(Method::GET, "/api/v1/repository")).await?;
    if context.json {
        context.print(&found.to_string());
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = found["releases"]
        .as_array()
        .into_iter()
        .flatten()
        .rev()
        .map(|release| {
            let [version, released, bytes, requires, digest, failed] =
                ["version", "released", "payload_bytes", "requires", "digest", "failed_before"]
                    .map(|key| cell(&release[key]));
            vec![version, released, bytes, requires, short(&digest), failed]
        })
        .collect();
    print_table(context, &["RELEASE", "MADE", "BYTES", "REQUIRES", "DIGEST", "FAILED HERE"], &rows);
    context.print("");
    let newest = found["releases"].as_array().and_then(|list| list.last()).unwrap_or(&Value::Null);
    context.print(&match (found["newer"].as_str(), newest["failed_before"].as_str()) {
        (Some(version), _) => {
            format!("release {version} is newer than {}: refit install {version}", cell(&found["current"]))
        }
        (None, Some(_)) => {
            format!("release {0} failed here; refit install {0} tries it again", cell(&newest["version"]))
        }
        (None, None) => format!("release {} is the newest", cell(&found["current"])),
    });
    Ok(Exit::Done)
}
