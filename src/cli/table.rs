//! Answers as tables.

use std::fmt::Display;

use serde_json::Value;

use super::context::Context;

/// Returns what `value` says, as a table cell; a dash if there is none.
pub(super) fn cell(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Returns what somebody answered in any JSON, as a table cell.
pub(super) fn any_cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Returns as much of a digest as people compare at a glance.
pub(super) fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// Prints `rows` under `head`, the columns as wide as they need to be.
pub(super) fn print_table(context: &Context, head: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = head.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}", width = *width)).collect();
        padded.join("  ").trim_end().to_owned()
    };
    context.print(&line(head.to_vec()));
    for row in rows {
        context.print(&line(row.iter().map(String::as_str).collect()));
    }
}
