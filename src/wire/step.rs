//! The steps of an update.

use serde::Serialize;
use utoipa::openapi::Schema;

pub use refit_updater::attempt::Step;

use super::names;

/// Returns the schema of a step.
pub(super) fn schema() -> Schema {
    names::schema(Step::ABOUT, Step::MEANINGS)
}

/// A step as the page shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownStep {
    /// The step that is published when it is reached.
    pub name: Step,
    /// What the status calls it while it is under way.
    pub phase: Step,
    /// What the page calls it.
    pub title: &'static str,
    /// What it means until the appliance says more.
    pub meaning: &'static str,
    /// Whether it is over when it is reached.
    pub instant: bool,
}

/// The steps that an update goes through, in their order, as the page shows them.
pub fn shown() -> Vec<ShownStep> {
    let step = |name: Step, title, meaning| ShownStep { phase: name.clone(), name, title, meaning, instant: false };
    let instant = |name, title, meaning| ShownStep { instant: true, ..step(name, title, meaning) };
    vec![
        instant(Step::Received, "Received", "the package has arrived"),
        instant(Step::Verified, "Verified", "signatures and digests are right"),
        ShownStep { phase: Step::Staging, ..instant(Step::Staged, "Staged", "unpacked beside the running release") },
        step(Step::Preflight, "Preflight", "a dry run of the new release"),
        instant(Step::Trial, "Trial", "noted on disk, so that a power cut goes back, too"),
        step(Step::Stopping, "Stopping", "components stop, sockets stay open"),
        step(Step::Exec, "Exec", "the runtime replaces itself"),
        step(Step::Starting, "Starting", "components start on the same sockets"),
        step(Step::Probation, "Probation", "watched until it has proved healthy"),
        instant(Step::Committed, "Committed", "the new release is good"),
    ]
}
