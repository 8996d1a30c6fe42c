//! How the appliance is as a whole.

use refit_base::names;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::describe_names;

names! {
    /// How the appliance is as a whole.
    pub enum Condition {
        /// Everything is as it has to be.
        Well = "well",
        /// It serves, and something needs somebody.
        Degraded = "degraded",
        /// It does not serve.
        Down = "down",
    }
}

describe_names!(Condition);

/// How the appliance is as a whole, and why it is not well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Overall {
    /// The worst of all.
    pub state: Condition,
    /// What is not as it has to be, a line each; none if it is well.
    #[serde(default)]
    #[schema(example = json!(["component web is stopped"]))]
    pub reasons: Vec<String>,
}
