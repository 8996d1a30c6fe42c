//! The signed part of metadata, as it is written.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use jiff::Timestamp;
use refit_updater::digest::Digest;
use serde_json::{Map, Value, json};

/// The version of the TUF specification that the metadata follows.
pub(super) const SPEC_VERSION: &str = "1.0.0";

/// Returns a target: its length, its digest, and what the vendor says of it.
pub(crate) fn target(bytes: &[u8], custom: Value) -> Value {
    json!({ "length": bytes.len(), "hashes": { "sha256": Digest::of(bytes).to_string() }, "custom": custom })
}

/// Returns the targets role with these targets.
pub(crate) fn targets(targets: &BTreeMap<String, Value>, version: NonZeroU64, expires: Timestamp) -> Value {
    role("targets", version, expires, ("targets", json!(targets)))
}

/// Returns the snapshot of this targets role.
pub(crate) fn snapshot(targets: &[u8], targets_version: NonZeroU64, version: NonZeroU64, expires: Timestamp) -> Value {
    role("snapshot", version, expires, ("meta", json!({ "targets.json": meta(targets, targets_version) })))
}

/// Returns the timestamp of this snapshot.
pub(crate) fn timestamp(
    snapshot: &[u8],
    snapshot_version: NonZeroU64,
    version: NonZeroU64,
    expires: Timestamp,
) -> Value {
    role("timestamp", version, expires, ("meta", json!({ "snapshot.json": meta(snapshot, snapshot_version) })))
}

fn meta(bytes: &[u8], version: NonZeroU64) -> Value {
    json!({ "version": version, "length": bytes.len(), "hashes": { "sha256": Digest::of(bytes).to_string() } })
}

fn role(kind: &str, version: NonZeroU64, expires: Timestamp, (name, content): (&str, Value)) -> Value {
    let mut role = Map::new();
    role.insert("_type".to_owned(), json!(kind));
    role.insert("spec_version".to_owned(), json!(SPEC_VERSION));
    role.insert("version".to_owned(), json!(version));
    role.insert("expires".to_owned(), json!(whole_seconds(expires)));
    role.insert(name.to_owned(), content);
    Value::Object(role)
}

/// Dates in metadata have no fractions of a second: other implementations refuse them.
pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
