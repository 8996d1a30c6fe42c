//! What a home remembers: never lost in silence, whatever happens to its files.

use std::fs;

use refit_author::keys::Keys;
use refit_author::pack::PackOptions;
use refit_base::{Exit, Reported};
use refit_fixtures_vendor::{Home, Vendor, chain, now, options, put, rotation};
use refit_updater::receive::ReceiveError;
use refit_updater::trust::Trust;

/// A home that has accepted a package whose metadata has version 2.
fn accepted(vendor: &Vendor) -> Home {
    let home = Home::new(vendor);
    let package = vendor.pack(&vendor.tree("1.0.0"), &PackOptions { metadata_version: 2, ..options() });
    home.receive(&package).unwrap();
    home
}

#[test]
fn a_torn_missing_or_altered_file_is_an_error_and_never_a_reset() {
    fn check(home: &Home, package: &[u8], what: &str) {
        let before = home.snapshot();
        let error = home.receive(package).unwrap_err();
        assert!(matches!(error, ReceiveError::Trust { .. }), "{what}: {}", chain(&error));
        assert!(error.remedy().contains("refit trust reset"), "{what}: {}; {}", chain(&error), error.remedy());
        assert_eq!(home.snapshot(), before, "{what}");
    }
    let vendor = Vendor::new();
    let newer = vendor.pack(&vendor.tree("1.1.0"), &PackOptions { metadata_version: 3, ..options() });
    for name in ["root.json", "packages.json", "repository.json"] {
        let home = accepted(&vendor);
        let path = home.dir.path().join("trust").join(name);
        let whole = fs::read(&path).unwrap();
        for (what, torn) in [
            ("empty", Vec::new()),
            ("the first half", whole[..whole.len() / 2].to_vec()),
            ("without its end", whole[..whole.len() - 1].to_vec()),
            ("zeros", vec![0; whole.len()]),
            ("an empty object", b"{}".to_vec()),
            ("another format", br#"{"format":99,"time":null,"released":null}"#.to_vec()),
        ] {
            put(&home.dir.path().join("trust"), name, &torn, 0o644);
            check(&home, &newer, &format!("{name}: {what}"));
            assert!(home.trust.status(now()).is_err(), "{name}: {what}");
        }
        fs::remove_file(&path).unwrap();
        check(&home, &newer, &format!("{name}: missing"));
        put(&home.dir.path().join("trust"), name, &whole, 0o644);
        home.receive(&newer).unwrap();
    }
}

#[test]
fn metadata_that_nobody_signed_is_no_memory() {
    let vendor = Vendor::new();
    let home = accepted(&vendor);
    let path = home.dir.path().join("trust/packages.json");
    let text = fs::read_to_string(&path).unwrap();
    let altered = text.replacen("\\\"version\\\":2", "\\\"version\\\":1", 1);
    assert_ne!(altered, text);
    put(&home.dir.path().join("trust"), "packages.json", altered.as_bytes(), 0o644);
    let error = home.receive(&vendor.package("1.1.0")).unwrap_err();
    assert_eq!((error.exit(), error.code()), (Exit::Disk, "trust_unreadable"), "{}", chain(&error));
}

#[test]
fn an_older_root_beside_newer_metadata_is_told() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let first = fs::read(home.dir.path().join("trust/root.json")).unwrap();
    let keys = Keys::open(&vendor.dir.path().join("keys")).unwrap();
    let (keys, _) = keys.rotate(&rotation(&["targets"])).unwrap();
    let vendor = Vendor { keys, ..vendor };
    home.receive(&vendor.package("1.0.0")).unwrap();
    put(&home.dir.path().join("trust"), "root.json", &first, 0o644);
    let error = home.receive(&vendor.package("1.1.0")).unwrap_err();
    assert!(error.to_string().ends_with("has version 1, but version 2 was trusted before"), "{error}");
}

#[test]
fn a_reset_is_asked_for_and_needs_a_real_root() {
    let vendor = Vendor::new();
    let home = accepted(&vendor);
    let older = vendor.package("1.1.0");
    assert_eq!(home.receive(&older).unwrap_err().code(), "rolled_back");
    let before = home.snapshot();
    assert!(Trust::reset(home.dir.path(), b"{}").is_err());
    assert_eq!(home.snapshot(), before);
    fs::remove_file(home.dir.path().join("trust/packages.json")).unwrap();
    Trust::reset(home.dir.path(), vendor.keys.root()).unwrap();
    home.receive(&older).unwrap();
}

#[test]
fn a_reset_that_fails_halfway_trusts_nothing() {
    let vendor = Vendor::new();
    let home = accepted(&vendor);
    let older = vendor.package("1.1.0");
    let blocked = home.dir.path().join("trust/repository.json");
    fs::remove_file(&blocked).unwrap();
    fs::create_dir(&blocked).unwrap();
    Trust::reset(home.dir.path(), vendor.keys.root()).unwrap_err();
    // What was seen may be forgotten by now, but nobody profits from it.
    assert_eq!(home.receive(&older).unwrap_err().code(), "no_trust");
    fs::remove_dir(&blocked).unwrap();
    Trust::reset(home.dir.path(), vendor.keys.root()).unwrap();
    home.receive(&older).unwrap();
}

#[test]
fn status_warns_before_something_expires_and_of_a_wrong_clock() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let fresh = home.trust.status(now()).unwrap();
    assert_eq!(fresh.warning, None);
    assert_eq!(fresh.roles.iter().map(|role| role.role).collect::<Vec<_>>(), ["root"]);

    let expires = "2029-12-31T00:00:00Z".parse().unwrap();
    home.receive(&vendor.pack(&vendor.tree("1.0.0"), &PackOptions { expires, ..options() })).unwrap();
    let status = home.trust.status(now()).unwrap();
    assert_eq!(status.warning, None, "an accepted package does not become worse");
    let found: Vec<_> = status.roles.iter().map(|role| (role.role, role.source, role.expires_in_days)).collect();
    assert_eq!(found[1..], [("timestamp", "package", -1), ("snapshot", "package", -1), ("targets", "package", -1)]);

    let warning = |at: &str| home.trust.status(at.parse().unwrap()).unwrap().warning.unwrap_or_default();
    assert_eq!(warning("2099-10-01T00:00:00Z"), "");
    assert!(warning("2099-12-01T00:00:00Z").starts_with("the trusted root metadata expires at 2100-01-01T00:00:00Z"));
    assert!(warning("2100-01-01T00:00:00Z").starts_with("the trusted root metadata expired at"));
    let behind = warning("2029-11-30T00:00:00Z");
    assert!(behind.ends_with("made at 2029-12-01T00:00:00Z: set the clock"), "{behind}");
}

#[test]
fn a_clock_before_the_release_is_said_at_receive() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    let package = vendor.package("1.0.0");
    assert_eq!(home.receive(&package).unwrap().clock_behind, None);
    home.policy.now = "2001-01-01T00:00:00Z".parse().unwrap();
    let received = home.receive(&package).unwrap();
    assert_eq!(received.clock_behind, Some("2029-12-01T00:00:00Z".parse().unwrap()));
    assert_eq!(received.expired, None);
}
