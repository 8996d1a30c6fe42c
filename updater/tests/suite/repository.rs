//! A repository as appliances read it; and what a server without keys can do, which is nothing.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use refit_author::pack::PackOptions;
use refit_author::publish::{Repository, RepositoryError, Terms};
use refit_base::Reported;
use refit_fixtures_vendor::{
    Home, Published, Vendor, chain, copy, fetch_from, noise, options, put, snapshot, terms, versions,
};
use refit_updater::repository::{Answer, Directory, Server, check};

/// A directory that says what was asked of it, and may break off.
struct Counted {
    directory: Directory,
    asked: Vec<(String, Option<Range<u64>>)>,
    /// How many answers end early, and after how many bytes.
    breaks: u32,
    break_after: u64,
    /// Whether an answer that ends early looks as if it were whole, or fails.
    ends_quietly: bool,
    knows_ranges: bool,
}

impl Counted {
    fn new(published: &Published) -> Self {
        let directory = Directory(published.dir.clone());
        Self { directory, asked: Vec::new(), breaks: 0, break_after: 10, ends_quietly: true, knows_ranges: true }
    }
}

impl Server for Counted {
    fn open(&mut self, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Answer>> {
        self.asked.push((path.to_owned(), range.clone()));
        let found = self.directory.open(path, range.clone().filter(|_| self.knows_ranges))?;
        if range.is_some() && self.breaks > 0 {
            self.breaks -= 1;
            let cut = |answer: Answer| -> Box<dyn Read + Send> {
                let input = answer.input.take(self.break_after);
                if self.ends_quietly { Box::new(input) } else { Box::new(input.chain(Broken)) }
            };
            return Ok(found.map(|answer| Answer { whole: answer.whole, input: cut(answer) }));
        }
        Ok(found)
    }
}

/// A line that is cut.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn a_release_comes_from_a_package_or_from_a_repository_and_is_the_same() {
    let published = Published::new();
    assert_eq!(published.add("1.0.0").target_name(), "shop/1.0.0/x86_64/manifest.json");
    published.add("1.1.0");
    let (one, other) = (Home::new(&published.vendor), Home::new(&published.vendor));
    assert_eq!(versions(&one, &published.dir), ["1.0.0", "1.1.0"]);
    let fetched = fetch_from(&one, &mut Counted::new(&published), "1.1.0").unwrap();
    let received = other.receive(&published.vendor.package("1.1.0")).unwrap();
    assert_eq!((fetched.digest, &fetched.manifest), (received.digest, &received.manifest));
    let release = one.store.admit(fetched, &[]).unwrap();
    one.assert_whole(&release);
    let error = fetch_from(&one, &mut Counted::new(&published), "1.2.0").unwrap_err();
    assert_eq!(error.code(), "not_offered");
}

#[test]
fn only_what_is_missing_is_fetched_and_a_broken_line_goes_on_where_it_broke() {
    let published = Published::new();
    let tree = |version: &str| {
        let dir = published.vendor.tree(version);
        put(&dir, "lib/big-a", &noise(1, 3 << 20), 0o644);
        put(&dir, "lib/big-b", &noise(if version == "1.0.0" { 2 } else { 3 }, 300_000), 0o644);
        put(&dir, "lib/big-c", &noise(4, 3 << 20), 0o644);
        dir
    };
    for version in ["1.0.0", "1.1.0"] {
        let (path, ..) = published.vendor.pack_file(&tree(version), &options());
        Repository::open(&published.dir).unwrap().add(&path, &published.vendor.keys, &terms()).unwrap();
    }
    let home = Home::new(&published.vendor);
    let ranges =
        |server: &Counted| -> Vec<Range<u64>> { server.asked.iter().filter_map(|(_, range)| range.clone()).collect() };
    let mut server = Counted::new(&published);
    server.breaks = 2;
    let first = fetch_from(&home, &mut server, "1.0.0").unwrap();
    let asked = ranges(&server);
    assert_eq!((asked.len(), asked[0].start, asked[1].start, asked[2].start), (3, 0, 10, 20), "{asked:?}");
    home.assert_whole(&home.store.admit(first, &[]).unwrap());

    let mut server = Counted::new(&published);
    let second = fetch_from(&home, &mut server, "1.1.0").unwrap();
    let bytes: u64 = ranges(&server).iter().map(|range| range.end - range.start).sum();
    assert!((300_000..400_000).contains(&bytes), "{bytes} of {}", second.manifest.payload_bytes());
    home.assert_whole(&home.store.admit(second, &[]).unwrap());

    // A server that knows no ranges is asked once, and once more for each time that the line breaks.
    let plain = Home::new(&published.vendor);
    for (version, breaks) in [("1.0.0", 0), ("1.1.0", 2)] {
        let mut server = Counted::new(&published);
        (server.knows_ranges, server.breaks, server.break_after) = (false, breaks, 100);
        let fetched = fetch_from(&plain, &mut server, version).unwrap();
        assert_eq!(ranges(&server).len(), 1 + breaks as usize, "{:?}", server.asked);
        plain.assert_whole(&plain.store.admit(fetched, &[]).unwrap());
    }
    // Where it breaks in what is read, and where in what is passed over.
    for break_after in [100, 1 << 20] {
        let home = Home::new(&published.vendor);
        let first = fetch_from(&home, &mut Counted::new(&published), "1.0.0").unwrap();
        home.store.admit(first, &[]).unwrap();
        let mut server = Counted::new(&published);
        (server.knows_ranges, server.breaks, server.break_after, server.ends_quietly) = (false, 1, break_after, false);
        let second = fetch_from(&home, &mut server, "1.1.0").unwrap();
        assert_eq!(ranges(&server).len(), 2, "{:?}", server.asked);
        home.assert_whole(&home.store.admit(second, &[]).unwrap());
    }

    let mut server = Counted::new(&published);
    (server.breaks, server.break_after) = (u32::MAX, 0);
    let error = fetch_from(&Home::new(&published.vendor), &mut server, "1.0.0").unwrap_err();
    assert_eq!(error.code(), "package_interrupted", "{}", chain(&error));
}

#[test]
fn no_byte_that_is_served_can_be_changed() {
    let published = Published::new();
    let offer = published.add("1.0.0");
    let home = Home::new(&published.vendor);
    let before = home.snapshot();
    let mut server = Counted::new(&published);
    fetch_from(&Home::new(&published.vendor), &mut server, "1.0.0").unwrap();
    let read: Vec<PathBuf> = server.asked.iter().map(|(path, _)| published.dir.join(path)).collect();
    let files: Vec<_> = snapshot(&published.dir).into_iter().filter(|(path, ..)| read.contains(path)).collect();
    assert_eq!(files.len(), 5, "timestamp, snapshot, targets, manifest, payload: {read:?}");
    let mut altered = 0;
    for (path, mode, content) in &files {
        let step = (content.len() / 40).max(1);
        for index in (0..content.len()).step_by(step) {
            let mut bytes = content.clone();
            bytes[index] ^= 0x01;
            put(path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap(), &bytes, mode & 0o777);
            let outcome = fetch_from(&home, &mut Counted::new(&published), "1.0.0");
            // The metadata may be whole, and remembered, before what it leads to is refused; nothing else may change.
            assert!(outcome.is_err(), "byte {index} of {}", path.display());
            altered += 1;
            assert!(home.store.versions().unwrap().is_empty());
        }
        put(path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap(), content, mode & 0o777);
    }
    assert!(altered > 100, "{altered} changes to {offer:?}");
    let changed: Vec<_> = home.snapshot().into_iter().filter(|entry| !before.contains(entry)).collect();
    assert!(
        changed.iter().all(|(path, ..)| path.ends_with("trust") || path.ends_with("repository.json")),
        "{changed:?}"
    );
    fetch_from(&home, &mut Counted::new(&published), "1.0.0").unwrap();
}

#[test]
fn old_metadata_is_not_served_again_and_a_frozen_repository_is_told() {
    let published = Published::new();
    published.add("1.0.0");
    let old = published.vendor.dir.path().join("old");
    copy(&published.dir, &old);
    published.add("1.1.0");
    let mut home = Home::new(&published.vendor);
    assert_eq!(versions(&home, &published.dir), ["1.0.0", "1.1.0"]);
    let error = check(&mut Directory(old.clone()), &home.trust, &home.policy).unwrap_err();
    assert_eq!(error.code(), "rolled_back", "{}", chain(&error));
    // An appliance that never saw the newer metadata notices by the date.
    home = Home::new(&published.vendor);
    home.policy.now = "2030-01-16T00:00:00Z".parse().unwrap();
    let error = check(&mut Directory(old), &home.trust, &home.policy).unwrap_err();
    assert_eq!(error.code(), "expired", "{}", chain(&error));
    let later = Terms { now: home.policy.now, timestamp_expires: "2030-02-01T00:00:00Z".parse().unwrap(), ..terms() };
    let before = Repository::open(&published.dir).unwrap().contents(&published.vendor.keys).unwrap();
    let after = Repository::open(&published.dir).unwrap().refresh(&published.vendor.keys, &later).unwrap();
    assert_eq!(after.versions[1], before.versions[1] + 1);
    assert_eq!(after.versions[2..], before.versions[2..], "only the timestamp is signed anew");
    assert_eq!(versions(&home, &published.dir), ["1.0.0", "1.1.0"]);
    // Packages have versions of their own: what the repository counts does not hinder them.
    home.receive(&published.vendor.package("1.0.0")).unwrap();
}

#[test]
fn a_rotation_reaches_the_appliance_through_the_repository() {
    let published = Published::new();
    published.add("1.0.0");
    let home = Home::new(&published.vendor);
    assert_eq!(versions(&home, &published.dir), ["1.0.0"]);
    let keys = published.rotate();
    Repository::open(&published.dir).unwrap().refresh(&keys, &terms()).unwrap();
    assert_eq!(versions(&home, &published.dir), ["1.0.0"]);
    assert_eq!(home.trust.root().unwrap(), keys.root());
    fetch_from(&home, &mut Counted::new(&published), "1.0.0").unwrap();
}

/// Puts the metadata of a package that this vendor packed into `dir`, as if it were a repository's.
fn serve_package(vendor: &Vendor, dir: &Path, metadata_version: u64) {
    let package = vendor.pack(&vendor.tree("1.0.0"), &PackOptions { metadata_version, ..options() });
    let read = refit_updater::package::Package::open(&package[..]).unwrap();
    for (name, bytes) in read.metadata().iter() {
        put(&dir.join("metadata"), &name, bytes, 0o644);
    }
}

#[test]
fn the_metadata_of_a_package_is_no_repository() {
    let published = Published::new();
    published.add("1.0.0");
    let served = published.vendor.dir.path().join("served");
    serve_package(&published.vendor, &served, 1000);
    for has_seen_the_repository in [false, true] {
        let home = Home::new(&published.vendor);
        if has_seen_the_repository {
            assert_eq!(versions(&home, &published.dir), ["1.0.0"]);
        }
        let error = check(&mut Directory(served.clone()), &home.trust, &home.policy).unwrap_err();
        assert_eq!(error.to_string(), "the repository serves the metadata of a single package");
        // Nor does a part of it count: the versions of packages and of the repository are apart.
        let targets = served.join("metadata/1000.targets.json");
        let whole = fs::read(&targets).unwrap();
        fs::remove_file(&targets).unwrap();
        let error = check(&mut Directory(served.clone()), &home.trust, &home.policy).unwrap_err();
        assert_eq!(error.code(), "repository_unreachable", "{}", chain(&error));
        put(&served.join("metadata"), "1000.targets.json", &whole, 0o644);
        assert_eq!(versions(&home, &published.dir), ["1.0.0"]);
    }
    // And the vendor does not go on from it.
    serve_package(&published.vendor, &published.dir, 1000);
    let before = snapshot(&published.dir);
    let error = Repository::open(&published.dir).unwrap().refresh(&published.vendor.keys, &terms()).unwrap_err();
    assert!(matches!(error, RepositoryError::PackageMetadata { .. }), "{error}");
    assert_eq!(snapshot(&published.dir), before);
}
