//! `refit component`: one component.

mod act;
mod logs;

use refit_base::Exit;

use super::client::{Client, ClientError};
use super::component_table::print_components;
use super::context::Context;
use super::said::Said;
use crate::wire::Components;

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
            let answer: Said<Components> = client.get("/api/v1/components").await?;
            if context.json {
                context.print(&answer.to_string());
            } else {
                print_components(context, &answer.components);
            }
        }
        Component::Start { name } => act::run(context, &client, name, act::Action::Start).await?,
        Component::Stop { name } => act::run(context, &client, name, act::Action::Stop).await?,
        Component::Restart { name } => act::run(context, &client, name, act::Action::Restart).await?,
        Component::Logs(logs) => return logs::run(context, &client, logs).await,
    }
    Ok(Exit::Done)
}
