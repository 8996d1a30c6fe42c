//! `refit component`: one component.

mod logs;

use std::io::{self, Write};

use refit_base::Exit;
use serde_json::json;

use super::client::{Client, ClientError};
use super::component_table::print_components;
use super::context::Context;
use super::table::cell;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Component {
    /// List the components.
    List,
    /// Start a component.
    Start {
        /// Its name.
        name: String,
    },
    /// Stop a component.
    Stop {
        /// Its name.
        name: String,
    },
    /// Stop a component and start it again.
    Restart {
        /// Its name.
        name: String,
    },
    /// Show what a component printed.
    Logs(logs::Logs),
}

pub(super) async fn run(context: &Context, component: &Component) -> Result<Exit, ClientError> {
    let client = Client::new(&context.home)?;
    match component {
        Component::List => {
            let answer = client.get("/api/v1/components").await?;
            if context.json {
                context.print(&answer.to_string());
            } else {
                print_components(context, &answer["components"]);
            }
        }
        Component::Start { name } => act(context, &client, name, "start").await?,
        Component::Stop { name } => act(context, &client, name, "stop").await?,
        Component::Restart { name } => act(context, &client, name, "restart").await?,
        Component::Logs(logs) => return logs::run(context, &client, logs).await,
    }
    Ok(Exit::Done)
}

async fn act(context: &Context, client: &Client, name: &str, action: &str) -> Result<(), ClientError> {
    let answer = client.post_long(&format!("/api/v1/components/{name}/{action}"), &json!({})).await?;
    if context.json {
        context.print(&answer.to_string());
    } else {
        context.print(&format!("{name}: {}", cell(&answer["component"]["state"])));
    }
    if let Some(warning) = answer["warning"].as_str() {
        drop(writeln!(io::stderr().lock(), "refit: {name} {warning}")); // as in `Context::print`
    }
    Ok(())
}
