//! What only somebody with the keys can put into a repository.

use std::collections::BTreeMap;
use std::fs;

use refit_base::Reported;
use refit_updater::manifest::Codec;

use super::*;
use crate::pack::{METADATA_VERSION, PackOptions, pack};

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
    let options = PackOptions {
        codec: Codec::Zstd,
        level: None,
        arch: "any".to_owned(),
        expires: far,
        released: Timestamp::UNIX_EPOCH,
        metadata_version: METADATA_VERSION,
    };
    pack(&at("tree"), &at("shop.refit"), &keys, &options, &mut |_| {}).unwrap();
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
