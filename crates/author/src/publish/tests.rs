//! What only somebody with the keys can put into a repository.

use std::collections::BTreeMap;
use std::fs;

use refit_base::Reported;
use refit_updater::manifest::{Codec, Manifest};
use refit_updater::package::{END_BYTES, MANIFEST_NAME, PAYLOAD_NAME, Package, filling, header};

use super::*;
use crate::pack::{METADATA_VERSION, PackOptions, pack};

/// Returns how a package is packed that is good until `expires`.
fn options(expires: Timestamp) -> PackOptions {
    PackOptions {
        codec: Codec::Zstd,
        level: None,
        arch: "any".to_owned(),
        expires,
        released: Timestamp::UNIX_EPOCH,
        metadata_version: METADATA_VERSION,
    }
}

#[test]
fn a_list_that_nobody_would_read_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let far: Timestamp = "2100-01-01T00:00:00Z".parse().unwrap();
    let terms = Terms { now: Timestamp::UNIX_EPOCH, expires: far, timestamp_expires: far };
    let keys = Keys::init(&at("keys"), far).unwrap();
    let mut repository = Repository::init(&at("repository"), &keys, &terms).unwrap();
    let files = || {
        let mut found = BTreeMap::new();
        let mut dirs = vec![at("repository")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let content = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
                if path.is_dir() {
                    dirs.push(path.clone());
                }
                found.insert(path, content);
            }
        }
        found
    };
    let fill = |repository: &mut Repository, bytes: u64| {
        let note = "x".repeat(usize::try_from(bytes).unwrap());
        let targets = BTreeMap::from([("filler".to_owned(), signed_part::target(b"", json!({ "note": note })))]);
        let current = repository.current(&keys).unwrap();
        let signed = repository.sign_next(&keys, &terms, &current, Some(targets))?;
        repository.write(&keys, &signed)
    };
    // To the very byte: the longest list is one that can be read.
    fill(&mut repository, 0).unwrap();
    let empty = repository.contents(&keys).unwrap().list_bytes;
    let before = files();
    let error = fill(&mut repository, LIST_BYTES_MAX - empty + 1).unwrap_err();
    assert!(matches!(error, RepositoryError::Full { bytes, .. } if bytes == LIST_BYTES_MAX + 1), "{error}");
    assert!(files() == before);
    fill(&mut repository, LIST_BYTES_MAX - empty).unwrap();
    assert_eq!(repository.contents(&keys).unwrap().list_bytes, LIST_BYTES_MAX);

    fs::create_dir_all(at("tree/bin")).unwrap();
    durable::write_new(&at("tree/appliance.toml"), b"[appliance]\nname = \"shop\"\nversion = \"1.0.0\"\n", 0o644)
        .unwrap();
    pack(&at("tree"), &at("shop.refit"), &keys, &options(far), &mut |_| {}).unwrap();
    let before = files();
    let error = repository.add(&at("shop.refit"), &keys, &terms).unwrap_err();
    assert!(matches!(error, RepositoryError::Full { .. }), "{error}");
    assert!(error.remedy().contains("new repository"), "{}", error.remedy());
    assert!(files() == before, "no payload, no manifest, no metadata");
    repository.refresh(&keys, &terms).unwrap();
}

#[test]
fn what_was_signed_is_verified_before_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let far: Timestamp = "2100-01-01T00:00:00Z".parse().unwrap();
    let terms = Terms { now: Timestamp::UNIX_EPOCH, expires: far, timestamp_expires: far };
    let (own, copy) = (dir.path().join("keys"), dir.path().join("copy"));
    let keys = Keys::init(&own, far).unwrap();
    let mut repository = Repository::init(&dir.path().join("repository"), &keys, &terms).unwrap();
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(&own).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let rotation = crate::keys::Rotation {
        roles: ["timestamp"].into(),
        root_expires: far,
        root_keys: None,
        root_threshold: None,
        root_dir: None,
        outside: Vec::new(),
        passphrase: None,
    };
    let (keys, _) = keys.rotate(&rotation).unwrap();
    repository.refresh(&keys, &terms).unwrap();
    // Whatever was or was not seen of the keys before they signed.
    let copy = Keys::open(&copy).unwrap();
    let current = repository.current(&copy).unwrap();
    for targets in [None, Some(BTreeMap::new())] {
        let error = repository.sign_next(&copy, &terms, &current, targets).unwrap_err();
        assert!(matches!(error, RepositoryError::OlderKeys { keys: 1, newest: 2, .. }), "{error:?}");
    }
    repository.sign_next(&keys, &terms, &current, None).unwrap();
}

/// Returns a package with a hook, as it was packed before these were refused.
fn package_with_hook(dir: &Path, keys: &Keys, far: Timestamp) -> PathBuf {
    fs::create_dir_all(dir.join("tree/later")).unwrap();
    let write = |name: &str, bytes: &[u8]| durable::write_new(&dir.join("tree").join(name), bytes, 0o755).unwrap();
    write("appliance.toml", b"[appliance]\nname = \"shop\"\nversion = \"1.0.0\"\n");
    write("later/migrate", b"#!/bin/sh\n");
    let (clean, out) = (dir.join("clean.refit"), dir.join("hook.refit"));
    pack(&dir.join("tree"), &clean, keys, &options(far), &mut |_| {}).unwrap();
    let package = Package::open(File::open(&clean).unwrap()).unwrap();
    let text = String::from_utf8(package.manifest().to_vec()).unwrap();
    let manifest = text.replace("\"later", "\"hooks");
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        if file["path"] == "hooks/migrate" {
            file["kind"] = json!("hook");
        }
    }
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let parsed = Manifest::parse(&manifest).unwrap();
    let mut payload = Vec::new();
    let frames = package.into_payload(parsed.payload_bytes()).unwrap();
    let take = |stored: &[u8]| -> Result<(), PayloadError> {
        payload.extend_from_slice(stored);
        Ok(())
    };
    check_payload(frames, &parsed, take).unwrap();
    let mut entries = keys.sign_package(&manifest, far, Timestamp::UNIX_EPOCH, METADATA_VERSION).unwrap();
    entries.extend([(MANIFEST_NAME.to_owned(), manifest), (PAYLOAD_NAME.to_owned(), payload)]);
    let mut bytes = Vec::new();
    for (name, content) in &entries {
        bytes.extend_from_slice(&header(name, content.len() as u64).unwrap());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + filling(content.len() as u64), 0);
    }
    bytes.resize(bytes.len() + usize::try_from(END_BYTES).unwrap(), 0);
    durable::write_new(&out, &bytes, 0o644).unwrap();
    out
}

#[test]
fn a_release_with_hooks_is_neither_added_nor_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let far: Timestamp = "2100-01-01T00:00:00Z".parse().unwrap();
    let terms = Terms { now: Timestamp::UNIX_EPOCH, expires: far, timestamp_expires: far };
    let keys = Keys::init(&dir.path().join("keys"), far).unwrap();
    let package = package_with_hook(dir.path(), &keys, far);
    let repository_dir = dir.path().join("repository");
    let mut repository = Repository::init(&repository_dir, &keys, &terms).unwrap();
    let error = repository.add(&package, &keys, &terms).unwrap_err();
    assert!(matches!(&error, RepositoryError::Hooks { hook, .. } if hook == "hooks/migrate"), "{error}");
    assert!(error.remedy().contains("take hooks/ out"), "{}", error.remedy());
    assert_eq!(repository.contents(&keys).unwrap().releases, []);

    // One that was added before is still listed, and named by whoever checks.
    let signed = open_signed(&package, keys.root()).unwrap();
    let (bytes, manifest) = (signed.bytes, signed.manifest);
    let offer = Offer {
        appliance: manifest.appliance().to_owned(),
        version: manifest.version().clone(),
        arch: manifest.arch().to_owned(),
        released: None,
        requires: None,
        payload_bytes: manifest.payload_bytes(),
        installed_bytes: manifest.installed_bytes(),
    };
    let (name, target) = (offer.target_name(), signed_part::target(&bytes, json!(offer)));
    let typed: Target = serde_json::from_value(target.clone()).unwrap();
    let current = repository.current(&keys).unwrap();
    let list = repository.sign_next(&keys, &terms, &current, Some([(name.clone(), target)].into())).unwrap();
    repository.write(&keys, &list).unwrap();
    let problems = check(&repository_dir, keys.root(), terms.now, &mut |_| {}).unwrap().problems;
    assert!(problems.iter().all(|problem| matches!(problem.why, FileProblem::Missing)), "{problems:?}");
    let manifest_path = repository_dir.join(TARGETS_DIR).join(typed.consistent_path(&name).unwrap());
    durable::create_dirs(manifest_path.parent().unwrap(), OPEN_DIR).unwrap();
    replace(&manifest_path, &bytes).unwrap();
    let problems = check(&repository_dir, keys.root(), terms.now, &mut |_| {}).unwrap().problems;
    assert!(matches!(&problems[0].why, FileProblem::Hooks(hook) if hook == "hooks/migrate"), "{problems:?}");
}
