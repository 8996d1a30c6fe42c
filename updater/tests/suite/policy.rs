//! What is signed and still not for this appliance, or not now.

use jiff::Timestamp;
use refit_author::pack::PackOptions;
use refit_base::{Exit, Reported};
use refit_fixtures_vendor::{Home, Vendor, now, options, put};
use refit_updater::Manifest;
use refit_updater::manifest::{ARCH_ANY, About, Codec};
use refit_updater::receive::Policy;
use refit_updater::trust::Expired;
use semver::Version;

#[test]
fn policy_by_rows() {
    fn check(appliance: &str, arch: &str, version: &str, requires: Option<&str>, downgrade: bool, expected: &str) {
        let about = About {
            appliance: appliance.to_owned(),
            version: Version::parse(version).unwrap(),
            arch: arch.to_owned(),
            requires: requires.map(|version| Version::parse(version).unwrap()),
            codec: Codec::Zstd,
        };
        let manifest = Manifest::new(about, Vec::new(), Vec::new()).unwrap();
        let policy = Policy {
            appliance: Some("shop".to_owned()),
            arch: "x86_64".to_owned(),
            current: Some(Version::new(1, 1, 0)),
            allow_downgrade: downgrade,
            expired: Expired::Warn,
            now: now(),
        };
        let found = policy.check(&manifest).map_or_else(|error| error.to_string(), |()| "accepted".to_owned());
        assert_eq!(found, expected, "{appliance} {arch} {version} {requires:?} {downgrade}");
    }
    check("shop", "x86_64", "1.2.0", None, false, "accepted");
    check("shop", ARCH_ANY, "1.2.0", Some("1.1.0"), false, "accepted");
    check("shop", "x86_64", "1.0.0", None, true, "accepted");
    check("till", "x86_64", "1.2.0", None, false, "the package is for \"till\", this appliance is \"shop\"");
    check("shop", "aarch64", "1.2.0", None, false, "the package is for aarch64, this machine is x86_64");
    check(
        "shop",
        "x86_64",
        "1.1.0",
        None,
        false,
        "the package has version 1.1.0, which is not newer than 1.1.0, the current release",
    );
    check(
        "shop",
        "x86_64",
        "1.1.0+build.2",
        None,
        false,
        "the package has version 1.1.0+build.2, which is not newer than 1.1.0, the current release",
    );
    check(
        "shop",
        "x86_64",
        "1.1.0-rc.1",
        None,
        false,
        "the package has version 1.1.0-rc.1, which is not newer than 1.1.0, the current release",
    );
    check(
        "shop",
        "x86_64",
        "1.9.0",
        Some("1.2.0"),
        true,
        "the package updates from 1.2.0 or newer, and 1.1.0 is the current release",
    );
}

#[test]
fn refused_packages_change_nothing() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    home.install(&vendor.package("1.1.0"));
    home.policy.current = Some(Version::new(1, 1, 0));
    let before = home.snapshot();
    fn check(home: &Home, package: &[u8], expected: &str) {
        let error = home.receive(package).unwrap_err();
        assert_eq!((error.exit(), error.code()), (Exit::Refused, expected));
        assert!(!error.remedy().is_empty());
    }
    check(&home, &vendor.package("1.0.0"), "not_newer");
    check(&home, &vendor.package("1.1.0"), "not_newer");
    let tree = vendor.tree("1.2.0");
    check(&home, &vendor.pack(&tree, &PackOptions { arch: "riscv64".to_owned(), ..options() }), "other_arch");
    put(&tree, "appliance.toml", b"[appliance]\nname = \"till\"\nversion = \"1.2.0\"\n", 0o644);
    check(&home, &vendor.pack(&tree, &options()), "other_appliance");
    let description = b"[appliance]\nname = \"shop\"\nversion = \"1.2.0\"\nrequires = \"1.1.5\"\n";
    put(&tree, "appliance.toml", description, 0o644);
    check(&home, &vendor.pack(&tree, &options()), "requires_newer");
    assert_eq!(home.snapshot(), before);

    home.policy.allow_downgrade = true;
    home.install(&vendor.package("1.0.0"));
}

#[test]
fn expired_metadata_is_accepted_or_refused_by_policy() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    let expires: Timestamp = "2029-12-31T00:00:00Z".parse().unwrap();
    let package = vendor.pack(&vendor.tree("1.0.0"), &PackOptions { expires, ..options() });
    home.policy.expired = Expired::Refuse;
    let error = home.receive(&package).unwrap_err();
    assert_eq!(error.code(), "expired");
    assert!(error.to_string().ends_with("expired at 2029-12-31T00:00:00Z"), "{error}");
    home.policy.expired = Expired::Warn;
    assert!(home.receive(&package).unwrap().expired.is_some());
    // A clock that was set back does not make it fresh.
    home.policy.expired = Expired::Refuse;
    home.policy.now = "2029-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(home.receive(&package).unwrap_err().code(), "clock_wrong");
}

#[test]
fn metadata_versions_only_go_upward() {
    let vendor = Vendor::new();
    let mut home = Home::new(&vendor);
    home.policy.allow_downgrade = true;
    let older = vendor.package("1.0.0");
    let fenced = vendor.pack(&vendor.tree("1.1.0"), &PackOptions { metadata_version: 2, ..options() });
    home.install(&older);
    home.receive(&older).unwrap();
    home.install(&fenced);
    let before = home.snapshot();
    let error = home.receive(&older).unwrap_err();
    assert_eq!(error.code(), "rolled_back", "the vendor closed the way back, and no operator opens it");
    assert_eq!(home.snapshot(), before);
    home.receive(&fenced).unwrap();
}

#[test]
fn receiving_works_inside_and_outside_of_a_runtime() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let package = vendor.package("1.0.0");
    home.receive(&package).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { home.receive(&package).unwrap() });
    runtime.block_on(async {
        tokio::task::spawn_blocking(move || home.receive(&package).map(|_| ())).await.unwrap().unwrap()
    });
}
