//! A vendor with keys and releases, and homes that trust it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use refit_updater::keys::Keys;
use refit_updater::manifest::Codec;
use refit_updater::pack::{METADATA_VERSION, PackOptions, PackReport, pack};
use refit_updater::receive::{Policy, ReceiveError, Received, Receiver};
use refit_updater::release::{Release, Store};
use refit_updater::trust::{Expired, Trust};
use refit_updater::{Manifest, durable};
use tempfile::TempDir;

/// The time of every test.
pub(crate) fn now() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

/// When every release was made.
pub(crate) fn released() -> Timestamp {
    "2029-12-01T00:00:00Z".parse().unwrap()
}

/// A date that is never reached.
pub(crate) fn far() -> Timestamp {
    "2100-01-01T00:00:00Z".parse().unwrap()
}

/// Bytes that no codec makes smaller, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// Options that differ in nothing that a test does not choose.
pub(crate) fn options() -> PackOptions {
    PackOptions {
        codec: Codec::Zstd,
        level: None,
        arch: "x86_64".to_owned(),
        expires: far(),
        released: released(),
        metadata_version: METADATA_VERSION,
    }
}

/// Writes a file of a release that is to be packed.
pub(crate) fn put(dir: &Path, name: &str, bytes: &[u8], mode: u32) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::remove_file(&path).ok();
    durable::write_new(&path, bytes, mode).unwrap();
}

/// Somebody who makes packages.
pub(crate) struct Vendor {
    pub(crate) dir: TempDir,
    pub(crate) keys: Keys,
}

impl Vendor {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let keys = Keys::init(&dir.path().join("keys"), far()).unwrap();
        Self { dir, keys }
    }

    /// A small release with something of every kind.
    pub(crate) fn tree(&self, version: &str) -> PathBuf {
        let dir = self.dir.path().join(format!("tree-{version}"));
        let description = format!("[appliance]\nname = \"shop\"\nversion = \"{version}\"\n\n[update]\nkeep = 3\n");
        put(&dir, "appliance.toml", description.as_bytes(), 0o644);
        put(&dir, "bin/shop", format!("the shop {version}").as_bytes(), 0o755);
        put(&dir, "lib/libshop.so", b"a library that stays the same", 0o644);
        put(&dir, "config/shop.conf", b"colour = red\n", 0o640);
        put(&dir, "share/empty", b"", 0o644);
        fs::create_dir_all(dir.join("share/nothing")).unwrap();
        fs::remove_file(dir.join("lib/libshop.so.1")).ok();
        durable::symlink(Path::new("libshop.so"), &dir.join("lib/libshop.so.1")).unwrap();
        // Not what the mask of whoever runs the tests makes of it.
        for name in ["bin", "lib", "config", "share", "share/nothing"] {
            fs::set_permissions(dir.join(name), Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    pub(crate) fn out(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join("out");
        fs::create_dir_all(&dir).unwrap();
        dir.join(name)
    }

    pub(crate) fn pack(&self, dir: &Path, options: &PackOptions) -> Vec<u8> {
        self.pack_file(dir, options).1
    }

    pub(crate) fn pack_file(&self, dir: &Path, options: &PackOptions) -> (PathBuf, Vec<u8>, PackReport) {
        let out = self.out("package.refit");
        let report = pack(dir, &out, &self.keys, options, &mut |_| {}).unwrap();
        let bytes = fs::read(&out).unwrap();
        assert_eq!(report.package_bytes, bytes.len() as u64);
        (out, bytes, report)
    }

    /// The small release's package.
    pub(crate) fn package(&self, version: &str) -> Vec<u8> {
        self.pack(&self.tree(version), &options())
    }
}

/// A home that trusts a vendor.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
    pub(crate) trust: Trust,
    pub(crate) policy: Policy,
}

impl Home {
    pub(crate) fn new(vendor: &Vendor) -> Self {
        Self::new_in(vendor, &std::env::temp_dir())
    }

    /// A home on the file system of `place`.
    pub(crate) fn new_in(vendor: &Vendor, place: &Path) -> Self {
        let dir = TempDir::new_in(place).unwrap();
        let store = Store::init(dir.path()).unwrap();
        let trust = Trust::install_root(dir.path(), vendor.keys.root()).unwrap();
        Self { dir, store, trust, policy: policy() }
    }

    pub(crate) fn receive(&self, package: &[u8]) -> Result<Received, ReceiveError> {
        self.receiver(&AtomicBool::new(false)).receive(package, &mut |_| {})
    }

    /// Returns what receives packages here, until `cancel`.
    pub(crate) fn receiver<'a>(&'a self, cancel: &'a AtomicBool) -> Receiver<'a> {
        Receiver { store: &self.store, trust: &self.trust, policy: &self.policy, cancel }
    }

    pub(crate) fn install(&self, package: &[u8]) -> Release {
        self.store.admit(self.receive(package).unwrap(), &[]).unwrap()
    }

    /// Everything in the home: path, mode, content.
    pub(crate) fn snapshot(&self) -> Vec<(PathBuf, u32, Vec<u8>)> {
        snapshot(self.dir.path())
    }

    pub(crate) fn assert_whole(&self, release: &Release) {
        let report = self.store.verify(&release.version, &mut |_| {}).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.files, release.manifest.files().len() as u64);
        assert_eq!(report.bytes, release.installed_bytes());
    }
}

/// What a home accepts where no release runs yet.
pub(crate) fn policy() -> Policy {
    Policy {
        appliance: Some("shop".to_owned()),
        arch: "x86_64".to_owned(),
        current: None,
        allow_downgrade: false,
        expired: Expired::Warn,
        now: now(),
    }
}

/// Everything below `dir`: path, mode, content.
pub(crate) fn snapshot(dir: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                open.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            found.push((path, metadata.permissions().mode(), content));
        }
    }
    found.sort();
    found
}

/// The error and those behind it, as a reader sees them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The manifest of a package that is in order.
pub(crate) fn manifest_of(package: &[u8]) -> Manifest {
    let package = refit_updater::package::Package::open(package).unwrap();
    Manifest::parse(package.manifest()).unwrap()
}
