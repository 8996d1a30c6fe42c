//! Text -> [`Raw`], and everything in it that is no TOML, no key of ours, or of the wrong type.
//!
//! The parser names one mistake in keys and types at a time. What it names is taken out and the rest is read again, so that one
//! unknown key does not hide the next, nor what is wrong with the values. A text that is no TOML says nothing else: what its
//! author meant is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer, Error};

use super::raw::Raw;

/// The most mistakes that are looked for: who has more reads the first of them.
const MISTAKES_MAX: usize = 100;

/// A text as it was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// What is in it, without the mistakes; nothing if it is no TOML.
    pub(super) raw: Option<Raw>,
    /// The mistakes, each with its place.
    pub(super) mistakes: Vec<(Range<usize>, String)>,
    /// What was taken out, as `component.0.name`: that it is missing is no second mistake.
    pub(super) taken_out: BTreeSet<String>,
    /// Where the tables begin.
    pub(super) tables: BTreeMap<String, Range<usize>>,
}

/// Reads `text`.
pub(super) fn read(text: &str) -> Read {
    let mut read = Read::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // The rest of a broken line is broken, too: one is enough.
        let mut lines = BTreeSet::new();
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            if lines.insert(text[..text.floor_char_boundary(span.start)].matches('\n').count()) {
                read.mistakes.push((span, message(&error)));
            }
        }
        return read;
    }
    let mut table = table;
    read.tables = table.get_ref().iter().map(|(key, _)| (key.get_ref().to_string(), key.span())).collect();
    while read.mistakes.len() < MISTAKES_MAX {
        let error = match Raw::deserialize(Deserializer::from(table.clone())) {
            Ok(raw) => {
                read.raw = Some(raw);
                return read;
            }
            Err(error) => error,
        };
        let Some(span) = error.span() else {
            read.mistakes.push((0..0, message(&error)));
            return read;
        };
        let mut path = Vec::new();
        let found = take_out(table.get_mut(), &span, &mut path);
        read.mistakes.push((span, message(&error)));
        if !found {
            return read;
        }
        read.taken_out.insert(path.join("."));
    }
    read
}

fn message(error: &Error) -> String {
    error.message().lines().collect::<Vec<_>>().join(", ")
}

/// Takes the innermost entry out that `span` is the key of, or the value, or a part of. Returns whether there was one, and its
/// `path`.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>, path: &mut Vec<String>) -> bool {
    let within = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let mut whole = None;
    for (key, value) in table.iter_mut() {
        let name = key.get_ref().to_string();
        path.push(name);
        // A table's own span need not have everything in it: its parts are looked at in any case.
        if !within(key.span()) && take_out_of(value, span, path) {
            return true;
        }
        if within(key.span()) || within(value.span()) {
            whole = Some(key.clone());
            break;
        }
        path.pop();
    }
    whole.is_some_and(|key| table.remove(&key).is_some())
}

/// As [`take_out`], of what is inside `value`.
fn take_out_of(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>, path: &mut Vec<String>) -> bool {
    match value.get_mut() {
        DeValue::Table(table) => take_out(table, span, path),
        DeValue::Array(array) => take_out_of_array(array, span, path),
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
            false
        }
    }
}

fn take_out_of_array(array: &mut DeArray<'_>, span: &Range<usize>, path: &mut Vec<String>) -> bool {
    let mut whole = None;
    for (index, value) in array.iter_mut().enumerate() {
        path.push(index.to_string());
        if take_out_of(value, span, path) {
            return true;
        }
        // The whole array is not one of its parts.
        if value.span() == *span && !matches!(value.get_ref(), DeValue::Table(_)) {
            whole = Some(index);
            break;
        }
        path.pop();
    }
    let Some(whole) = whole else { return false };
    let kept = std::mem::replace(array, DeArray::new()).into_iter().enumerate().filter(|(index, _)| *index != whole);
    for (_, value) in kept {
        array.push(value);
    }
    true
}
