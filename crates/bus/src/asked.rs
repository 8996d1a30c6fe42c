//! What a reload's ticket says: who was asked, and what each answered.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::combined;
use crate::phase::Phase;

/// How somebody answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// It did what it was asked.
    Ok,
    /// It does not take the new settings.
    Refused,
    /// It had agreed, and could not do it.
    Failed,
    /// It did not answer in time.
    Timeout,
    /// It ended before it answered.
    Gone,
    /// It was not asked.
    Skipped,
}

/// One listener of a reload, and what it answered last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The listener.
    pub listener: String,
    /// The component that it belongs to, if that is not its name.
    pub component: Option<String>,
    /// Its priority.
    pub priority: i32,
    /// Whether it may refuse a reload and has nothing to reload itself.
    pub only_checks: bool,
    /// The last phase that it was asked for.
    pub phase: Phase,
    /// How it answered.
    pub answer: Reply,
    /// Its answer, if it is more than that.
    pub value: Value,
    /// Why it did not do it.
    pub reason: Option<String>,
}

impl Asked {
    /// Returns whether it had something to reload and was asked to.
    pub(crate) fn has_part(&self) -> bool {
        !self.only_checks && self.answer != Reply::Skipped
    }

    /// Returns whether it was asked and did not do it.
    pub(crate) fn has_failed(&self) -> bool {
        match self.answer {
            Reply::Ok | Reply::Skipped => false,
            Reply::Refused | Reply::Failed | Reply::Timeout | Reply::Gone => true,
        }
    }
}

/// Returns who of `asked` did not do it, and why; `None` if there is nobody.
pub(crate) fn failures(asked: &[Asked]) -> Option<String> {
    let failed = asked.iter().filter(|one| one.has_failed());
    combined(failed.map(|one| (one.listener.as_str(), Some(one.priority), reason(one))))
}

/// Returns why nobody was asked who has something to reload; `None` if somebody was.
pub(crate) fn nobody(asked: &[Asked]) -> Option<String> {
    if asked.iter().any(Asked::has_part) {
        return None;
    }
    let skipped: Vec<String> = asked.iter().filter(|one| one.answer == Reply::Skipped).map(line).collect();
    let why = if skipped.is_empty() { "nobody listens to it".to_owned() } else { skipped.join("; ") };
    Some(format!("nobody was asked: {why}; nothing has changed"))
}

fn line(one: &Asked) -> String {
    format!("{}: {}", one.listener, reason(one))
}

fn reason(one: &Asked) -> &str {
    one.reason.as_deref().unwrap_or("no reason was given")
}
