//! What a component printed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a line was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Nowhere: Refit says something about the lines around it.
    Refit,
    /// Where only another version of this program knows.
    #[serde(other)]
    Other,
}

impl Stream {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Refit => "refit",
            Self::Other => "other",
        }
    }
}

/// One line. It grows by optional fields only: files of older and newer releases lie side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Its number: it grows from line to line, over the whole life of the appliance.
    #[serde(default)]
    #[schema(example = 1_767_268_800_000_000_u64)]
    pub seq: u64,
    /// When it arrived, RFC 3339.
    #[schema(format = DateTime, example = "2026-01-01T12:00:00.000Z")]
    pub at: String,
    /// Where it was printed.
    pub stream: Stream,
    /// The process that printed it: component, dash, generation.
    #[schema(example = "web-2")]
    pub instance: String,
    /// The text, without its end and its priority.
    #[schema(example = "listening on 127.0.0.1:8080")]
    pub line: String,
    /// The priority that it began with, 0 (emergency) to 7 (debug).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 6)]
    pub priority: Option<u8>,
    /// Whether the line was too long and goes on in the next one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = false)]
    pub cut: bool,
}

/// Lines of a component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLines {
    /// The lines, the oldest first.
    pub lines: Vec<LogLine>,
}
