//! A repository: written, served, read; and what a server without keys can do, which is nothing.

use std::fs;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;

use refit_updater::digest::Digest;
use refit_updater::keys::{Keys, Rotation};
use refit_updater::pack::PackOptions;
use refit_updater::receive::{Class, ReceiveError, Received};
use refit_updater::repository::author::{
    self, Checked, Outcome, Repository, RepositoryError, TEMP_PREFIX, Terms, Trouble, contents,
};
use refit_updater::repository::{Answer, Directory, Offer, Server, check};
use semver::Version;

use crate::support::{Home, Vendor, chain, far, noise, now, options, put, snapshot};

fn terms() -> Terms {
    Terms { now: now(), expires: far(), timestamp_expires: "2030-01-15T00:00:00Z".parse().unwrap() }
}

/// A vendor with a repository.
struct Published {
    vendor: Vendor,
    dir: PathBuf,
}

impl Published {
    fn new() -> Self {
        let vendor = Vendor::new();
        let dir = vendor.dir.path().join("repository");
        Repository::init(&dir, &vendor.keys, &terms()).unwrap();
        Self { vendor, dir }
    }

    fn add(&self, version: &str) -> Offer {
        let (path, ..) = self.vendor.pack_file(&self.vendor.tree(version), &options());
        Repository::open(&self.dir).unwrap().add(&path, &self.vendor.keys, &terms()).unwrap().offer
    }

    fn keys_dir(&self) -> PathBuf {
        self.vendor.dir.path().join("keys")
    }

    /// Gives every role a new key. Returns the keys; those of `vendor` are retired.
    fn rotate(&self) -> Keys {
        self.rotate_roles(&["root", "timestamp", "snapshot", "targets"])
    }

    /// Makes the next root, with new keys for these roles.
    fn rotate_roles(&self, roles: &[&'static str]) -> Keys {
        let rotation = Rotation {
            roles: roles.iter().copied().collect(),
            root_expires: far(),
            root_keys: None,
            root_threshold: None,
            root_dir: None,
            outside: Vec::new(),
            passphrase: None,
        };
        Keys::open(&self.keys_dir()).unwrap().rotate(&rotation).unwrap().0
    }

    /// Copies the keys, as somebody who steals them.
    fn steal(&self) -> Keys {
        let stolen = self.vendor.dir.path().join("stolen");
        copy(&self.keys_dir(), &stolen);
        Keys::open(&stolen).unwrap()
    }

    fn refresh(&self, keys: &Keys) -> Result<Vec<String>, RepositoryError> {
        let contents = Repository::open(&self.dir).unwrap().refresh(keys, &terms())?;
        Ok(contents.releases.into_iter().map(|offer| offer.version.to_string()).collect())
    }

    fn check(&self) -> Checked {
        let mut last = None;
        let found = author::check(&self.dir, self.vendor.keys.root(), now(), &mut |progress| {
            assert!(last.is_none_or(|last| last <= progress.bytes) && progress.bytes <= progress.bytes_total);
            last = Some(progress.bytes);
        });
        let found = found.unwrap();
        assert_eq!(last, Some(found.contents.releases.iter().map(|offer| offer.payload_bytes).sum()));
        found
    }

    fn server(&self) -> Counted {
        let directory = Directory(self.dir.clone());
        Counted { directory, asked: Vec::new(), breaks: 0, break_after: 10, ends_quietly: true, knows_ranges: true }
    }
}

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

fn fetch_from(home: &Home, server: &mut impl Server, version: &str) -> Result<Received, ReceiveError> {
    let version = Version::parse(version).unwrap();
    home.receiver(&AtomicBool::new(false)).fetch(server, &version, &mut |_| {})
}

fn versions(home: &Home, dir: &Path) -> Vec<String> {
    let offers = check(&mut Directory(dir.to_owned()), &home.trust, &home.policy).unwrap();
    offers.into_iter().map(|offer| offer.version.to_string()).collect()
}

#[test]
fn a_release_comes_from_a_package_or_from_a_repository_and_is_the_same() {
    let published = Published::new();
    assert_eq!(published.add("1.0.0").target_name(), "shop/1.0.0/x86_64/manifest.json");
    published.add("1.1.0");
    let (one, other) = (Home::new(&published.vendor), Home::new(&published.vendor));
    assert_eq!(versions(&one, &published.dir), ["1.0.0", "1.1.0"]);
    let fetched = fetch_from(&one, &mut published.server(), "1.1.0").unwrap();
    let received = other.receive(&published.vendor.package("1.1.0")).unwrap();
    assert_eq!((fetched.digest, &fetched.manifest), (received.digest, &received.manifest));
    let release = one.store.admit(fetched, &[]).unwrap();
    one.assert_whole(&release);
    let error = fetch_from(&one, &mut published.server(), "1.2.0").unwrap_err();
    assert_eq!(error.code(), "not-offered");
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
    let mut server = published.server();
    server.breaks = 2;
    let first = fetch_from(&home, &mut server, "1.0.0").unwrap();
    let asked = ranges(&server);
    assert_eq!((asked.len(), asked[0].start, asked[1].start, asked[2].start), (3, 0, 10, 20), "{asked:?}");
    home.assert_whole(&home.store.admit(first, &[]).unwrap());

    let mut server = published.server();
    let second = fetch_from(&home, &mut server, "1.1.0").unwrap();
    let bytes: u64 = ranges(&server).iter().map(|range| range.end - range.start).sum();
    assert!((300_000..400_000).contains(&bytes), "{bytes} of {}", second.manifest.payload_bytes());
    home.assert_whole(&home.store.admit(second, &[]).unwrap());

    // A server that knows no ranges is asked once, and once more for each time that the line breaks.
    let plain = Home::new(&published.vendor);
    for (version, breaks) in [("1.0.0", 0), ("1.1.0", 2)] {
        let mut server = published.server();
        (server.knows_ranges, server.breaks, server.break_after) = (false, breaks, 100);
        let fetched = fetch_from(&plain, &mut server, version).unwrap();
        assert_eq!(ranges(&server).len(), 1 + breaks as usize, "{:?}", server.asked);
        plain.assert_whole(&plain.store.admit(fetched, &[]).unwrap());
    }
    // Where it breaks in what is read, and where in what is passed over.
    for break_after in [100, 1 << 20] {
        let home = Home::new(&published.vendor);
        let first = fetch_from(&home, &mut published.server(), "1.0.0").unwrap();
        home.store.admit(first, &[]).unwrap();
        let mut server = published.server();
        (server.knows_ranges, server.breaks, server.break_after, server.ends_quietly) = (false, 1, break_after, false);
        let second = fetch_from(&home, &mut server, "1.1.0").unwrap();
        assert_eq!(ranges(&server).len(), 2, "{:?}", server.asked);
        home.assert_whole(&home.store.admit(second, &[]).unwrap());
    }

    let mut server = published.server();
    (server.breaks, server.break_after) = (u32::MAX, 0);
    let error = fetch_from(&Home::new(&published.vendor), &mut server, "1.0.0").unwrap_err();
    assert_eq!(error.code(), "package-interrupted", "{}", chain(&error));
}

#[test]
fn no_byte_that_is_served_can_be_changed() {
    let published = Published::new();
    let offer = published.add("1.0.0");
    let home = Home::new(&published.vendor);
    let before = home.snapshot();
    let mut server = published.server();
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
            let outcome = fetch_from(&home, &mut published.server(), "1.0.0");
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
    fetch_from(&home, &mut published.server(), "1.0.0").unwrap();
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
    assert_eq!(error.code(), "rolled-back", "{}", chain(&error));
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
    fetch_from(&home, &mut published.server(), "1.0.0").unwrap();
}

/// Packs 6.6.6 with stolen keys and adds it to the repository in `dir`, which they still fit.
fn add_with(vendor: &Vendor, stolen: &Keys, dir: &Path) {
    let out = vendor.out("stolen.refit");
    refit_updater::pack::pack(&vendor.tree("6.6.6"), &out, stolen, &options(), &mut |_| {}).unwrap();
    Repository::open(dir).unwrap().add(&out, stolen, &terms()).unwrap();
}

#[test]
fn what_a_retired_key_signed_is_not_signed_anew() {
    let published = Published::new();
    published.add("1.0.0");
    let (stolen, forged) = (published.steal(), published.vendor.dir.path().join("forged"));
    copy(&published.dir, &forged);
    add_with(&published.vendor, &stolen, &forged);
    let keys = published.rotate();
    let whole = published.vendor.dir.path().join("whole");
    copy(&published.dir, &whole);
    // Before the repository has the new root, and after: whoever writes to the directory takes that away again.
    for is_refreshed in [false, true] {
        if is_refreshed {
            fs::remove_dir_all(&published.dir).unwrap();
            copy(&whole, &published.dir);
            assert_eq!(published.refresh(&keys).unwrap(), ["1.0.0"]);
            assert!(published.dir.join("metadata/2.root.json").exists());
        }
        fs::remove_dir_all(&published.dir).unwrap();
        copy(&forged, &published.dir);
        let before = snapshot(&published.dir);
        let error = published.refresh(&keys).unwrap_err();
        assert!(matches!(error, RepositoryError::Retired { signed: 1, newest: 2, source: None, .. }), "{error:?}");
        assert_eq!(error.class(), Class::Refused);
        assert!(error.remedy().contains("--accept-retired"), "{}", error.remedy());
        let tree = published.vendor.tree("1.1.0");
        let out = published.vendor.out("new.refit");
        refit_updater::pack::pack(&tree, &out, &keys, &options(), &mut |_| {}).unwrap();
        let error = Repository::open(&published.dir).unwrap().add(&out, &keys, &terms()).unwrap_err();
        assert!(matches!(error, RepositoryError::Retired { .. }), "{error:?}");
        assert_eq!(snapshot(&published.dir), before);
    }
    // A next root that the stolen root key signed leads nowhere, either.
    let fake = Rotation {
        roles: ["root", "timestamp", "snapshot", "targets"].into(),
        root_expires: far(),
        root_keys: None,
        root_threshold: None,
        root_dir: None,
        outside: Vec::new(),
        passphrase: None,
    };
    let (fake, _) = stolen.rotate(&fake).unwrap();
    Repository::open(&forged).unwrap().refresh(&fake, &terms()).unwrap();
    fs::remove_dir_all(&published.dir).unwrap();
    copy(&forged, &published.dir);
    let error = published.refresh(&keys).unwrap_err();
    assert!(matches!(error, RepositoryError::Metadata { .. }), "{error:?}");
}

#[test]
fn after_a_rotation_what_was_published_last_goes_on_without_being_told() {
    for power_failed in [None, Some("before the timestamp"), Some("after it")] {
        let published = Published::new();
        published.add("1.0.0");
        // A second repository with the same keys, and one that nobody has published to since.
        let older = published.vendor.dir.path().join("older");
        copy(&published.dir, &older);
        Repository::init(&published.vendor.dir.path().join("other"), &published.vendor.keys, &terms()).unwrap();
        let record = published.keys_dir().join("published.json");
        match power_failed {
            None => drop(published.add("1.1.0")),
            Some("before the timestamp") => {
                // Nothing can be written where the targets go: what was to be published is remembered, and is not there.
                let in_the_way = published.dir.join("metadata/3.targets.json");
                fs::create_dir(&in_the_way).unwrap();
                let (path, ..) = published.vendor.pack_file(&published.vendor.tree("1.1.0"), &options());
                let add = Repository::open(&published.dir).unwrap().add(&path, &published.vendor.keys, &terms());
                assert!(matches!(add.unwrap_err(), RepositoryError::Io { .. }));
                fs::remove_dir(&in_the_way).unwrap();
            }
            Some(_after) => {
                let before = Digest::of(&fs::read(published.dir.join("metadata/timestamp.json")).unwrap());
                published.add("1.1.0");
                let text = fs::read_to_string(&record).unwrap();
                let after = Digest::of(&fs::read(published.dir.join("metadata/timestamp.json")).unwrap());
                let one = format!(r#"{{"timestamp":"{after}"}}"#);
                assert!(text.contains(&one), "{text}");
                let both = format!(r#"{{"timestamp":"{after}","before":"{before}"}}"#);
                put(&published.keys_dir(), "published.json", text.replace(&one, &both).as_bytes(), 0o644);
            }
        }
        published.rotate();
        let keys = published.rotate();
        let found = published.refresh(&keys).unwrap();
        assert_eq!(found.last().unwrap(), if power_failed == Some("before the timestamp") { "1.0.0" } else { "1.1.0" });
        let home = Home::new(&published.vendor);
        assert_eq!(versions(&home, &published.dir), found);
        Repository::open(&published.vendor.dir.path().join("other")).unwrap().refresh(&keys, &terms()).unwrap();
        // What these keys published, but not last, is as any other.
        let error = Repository::open(&older).unwrap().refresh(&keys, &terms()).unwrap_err();
        assert!(matches!(error, RepositoryError::Retired { signed: 1, newest: 3, .. }), "{error:?}");
        // With the new keys everything is as before, and neither they nor their directory are taken for anything else.
        assert_eq!(published.refresh(&Keys::open(&published.keys_dir()).unwrap()).unwrap(), found);
    }
}

/// Names, to the child, the directory of the vendor for whom it is to publish.
#[cfg(feature = "fault")]
const VENDOR_VARIABLE: &str = "SUITE_PUBLISH_VENDOR";

/// Not a test by itself: what the child of the test below does.
#[test]
#[cfg(feature = "fault")]
fn child_publishes_a_release() {
    let Some(dir) = std::env::var_os(VENDOR_VARIABLE).map(PathBuf::from) else { return };
    let keys = Keys::open(&dir.join("keys")).unwrap();
    let mut repository = Repository::open(&dir.join("repository")).unwrap();
    repository.add(&dir.join("out/package.refit"), &keys, &terms()).unwrap();
}

#[test]
#[cfg(feature = "fault")]
fn wherever_publishing_dies_a_rotation_and_a_refresh_go_on() {
    use std::os::unix::process::ExitStatusExt;
    let (mut found, mut left) = (Vec::new(), 0);
    for point in ["temp_synced", "switched"] {
        for nth in 1.. {
            let published = Published::new();
            published.add("1.0.0");
            published.vendor.pack_file(&published.vendor.tree("1.1.0"), &options());
            let dir = published.vendor.dir.path();
            put(dir, "fault", format!("{point} {nth}").as_bytes(), 0o644);
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "repository::child_publishes_a_release"]).env(VENDOR_VARIABLE, dir);
            let status = child.env("REFIT_FAULT_FILE", dir.join("fault")).output().unwrap().status;
            left += leftovers(&published.dir).len();
            let releases = published.refresh(&published.rotate()).unwrap();
            assert_eq!(leftovers(&published.dir), Vec::<PathBuf>::new());
            assert_eq!(versions(&Home::new(&published.vendor), &published.dir), releases);
            found.push(releases.len());
            if status.success() {
                assert!(nth > 7, "payload, manifest, three files of metadata, and twice what is remembered: {nth}");
                break;
            }
            assert_eq!(status.signal(), Some(6), "{point} {nth}");
        }
    }
    assert!(found.contains(&1) && found.contains(&2), "old and new: {found:?}");
    assert!(left > 0, "some of them left what was not whole yet");
}

/// Not a test by itself: what the child of the test below does.
#[test]
#[cfg(feature = "fault")]
fn child_makes_a_repository() {
    let Some(dir) = std::env::var_os(VENDOR_VARIABLE).map(PathBuf::from) else { return };
    let keys = Keys::open(&dir.join("keys")).unwrap();
    Repository::init(&dir.join("repository"), &keys, &terms()).unwrap();
}

#[test]
#[cfg(feature = "fault")]
fn wherever_an_init_dies_there_is_a_repository_or_the_next_makes_it() {
    use std::os::unix::process::ExitStatusExt;
    let (mut made, mut begun) = (0, 0);
    for point in ["temp_synced", "switched"] {
        for nth in 1.. {
            let vendor = Vendor::new();
            let dir = vendor.dir.path();
            put(dir, "fault", format!("{point} {nth}").as_bytes(), 0o644);
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "repository::child_makes_a_repository"]).env(VENDOR_VARIABLE, dir);
            let status = child.env("REFIT_FAULT_FILE", dir.join("fault")).output().unwrap().status;
            let repository = dir.join("repository");
            match Repository::open(&repository) {
                Ok(_repository) => made += 1,
                Err(RepositoryError::None { .. }) => {
                    begun += 1;
                    drop(Repository::init(&repository, &vendor.keys, &terms()).unwrap());
                }
                Err(error) => panic!("{point} {nth}: {error:?}"),
            }
            assert_eq!(versions(&Home::new(&vendor), &repository), Vec::<String>::new());
            assert_eq!(leftovers(&repository), Vec::<PathBuf>::new());
            if status.success() {
                break;
            }
            assert_eq!(status.signal(), Some(6), "{point} {nth}");
        }
    }
    assert!(made > 2 && begun > 4, "{made} {begun}");
}

#[test]
fn keys_that_could_not_remember_need_somebody_who_vouches() {
    let published = Published::new();
    // A directory in its place: nobody, whatever the permissions, writes a file there.
    let record = published.keys_dir().join("published.json");
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    let (path, ..) = published.vendor.pack_file(&published.vendor.tree("1.0.0"), &options());
    let mut repository = Repository::open(&published.dir).unwrap();
    repository.add(&path, &published.vendor.keys, &terms()).unwrap();
    let why = chain(repository.not_remembered().unwrap());
    assert!(why.starts_with("cannot read") && why.contains("published.json"), "{why}");
    drop(repository);
    let keys = published.rotate();
    let error = published.refresh(&keys).unwrap_err();
    assert!(matches!(error, RepositoryError::Retired { source: Some(_), .. }), "{}", chain(&error));
    fs::remove_dir(&record).unwrap();

    let mut repository = Repository::open(&published.dir).unwrap();
    let accepted = repository.accept_retired(&keys).unwrap();
    let manifest = refit_updater::package::Package::open(&fs::read(&path).unwrap()[..]).unwrap().manifest().to_vec();
    let found: Vec<_> = accepted.iter().map(|one| (one.offer.version.to_string(), one.digest.as_str())).collect();
    assert_eq!(found, [("1.0.0".to_owned(), Digest::of(&manifest).to_string().as_str())]);
    // Somebody vouches for what was shown, and not for what is put there afterwards.
    let (stolen, shown) = (published.vendor.dir.path().join("stolen"), published.vendor.dir.path().join("shown"));
    copy(&published.dir, &shown);
    fs::create_dir(&stolen).unwrap();
    copy(&published.keys_dir().join("retired"), &stolen);
    put(&stolen, "1.root.json", &fs::read(published.keys_dir().join("1.root.json")).unwrap(), 0o644);
    let forged = published.vendor.dir.path().join("forged");
    copy(&published.dir, &forged);
    add_with(&published.vendor, &Keys::open(&stolen).unwrap(), &forged);
    copy(&forged, &published.dir);
    let error = repository.refresh(&keys, &terms()).unwrap_err();
    assert!(matches!(error, RepositoryError::Retired { .. }), "{}", chain(&error));
    copy(&shown, &published.dir);
    assert_eq!(repository.refresh(&keys, &terms()).unwrap().releases.len(), 1);
    assert!(repository.not_remembered().is_none());
    assert_eq!(repository.accept_retired(&keys).unwrap(), [], "nothing is signed by retired keys any more");
}

#[test]
fn the_package_that_was_checked_is_the_one_that_is_published() {
    let published = Published::new();
    // Two of one name and length; `add` reads the first from a pipe, whose name is the other's from then on.
    let pack = |seed: u64| {
        let tree = published.vendor.tree("1.0.0");
        put(&tree, "lib/big", &noise(seed, 300_000), 0o644);
        published.vendor.pack(&tree, &options())
    };
    let (checked, other) = (pack(1), pack(2));
    assert_eq!(checked.len(), other.len());
    let out = published.vendor.dir.path().join("pipe");
    put(&out, "other.refit", &other, 0o644);
    let path = out.join("package.refit");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut pipe = fs::OpenOptions::new().write(true).open(&path).unwrap();
            pipe.write_all(&checked).unwrap();
            fs::rename(out.join("other.refit"), &path).unwrap();
        });
        Repository::open(&published.dir).unwrap().add(&path, &published.vendor.keys, &terms()).unwrap();
        writer.join().unwrap();
    });
    let home = Home::new(&published.vendor);
    let fetched = fetch_from(&home, &mut published.server(), "1.0.0").unwrap();
    assert_eq!(fetched.digest, home.receive(&checked).unwrap().digest);
}

#[test]
fn what_may_not_be_published() {
    let published = Published::new();
    published.add("1.0.0");
    let open = || Repository::open(&published.dir).unwrap();
    let before = snapshot(&published.dir);
    // The same package again is no news; another of the same name is refused.
    published.add("1.0.0");
    assert_eq!(snapshot(&published.dir), before);
    let tree = published.vendor.tree("1.0.0");
    put(&tree, "bin/shop", b"another shop", 0o755);
    let (path, ..) = published.vendor.pack_file(&tree, &options());
    let error = open().add(&path, &published.vendor.keys, &terms()).unwrap_err();
    assert!(matches!(error, RepositoryError::Taken { .. }), "{error}");
    // Somebody else's package, and keys that are not this repository's.
    let other = Vendor::new();
    let (path, ..) = other.pack_file(&other.tree("1.1.0"), &options());
    let error = open().add(&path, &published.vendor.keys, &terms()).unwrap_err();
    assert!(matches!(error, RepositoryError::Package { .. }), "{error}");
    let error = open().add(&path, &other.keys, &terms()).unwrap_err();
    assert!(matches!(error, RepositoryError::Metadata { .. }), "{error}");
    // A package with a byte that differs.
    let (path, mut package, _) = published.vendor.pack_file(&published.vendor.tree("1.1.0"), &options());
    let middle = package.len() - 1500;
    package[middle] ^= 1;
    put(path.parent().unwrap(), "package.refit", &package, 0o644);
    let error = open().add(&path, &published.vendor.keys, &terms()).unwrap_err();
    assert!(matches!(error, RepositoryError::Package { .. }), "{error}");
    assert_eq!(snapshot(&published.dir), before);
    let error = Repository::init(&published.dir, &published.vendor.keys, &terms()).unwrap_err();
    assert!(matches!(error, RepositoryError::Exists { .. }), "{error}");
    assert!(matches!(Repository::open(other.dir.path()).unwrap_err(), RepositoryError::None { .. }));
}

#[test]
fn an_older_copy_of_the_keys_changes_nothing() {
    for roles in [["root", "timestamp", "snapshot", "targets"].as_slice(), &["targets"], &["timestamp"]] {
        let published = Published::new();
        published.add("1.0.0");
        let stale = published.steal();
        let keys = published.rotate_roles(roles);
        published.refresh(&keys).unwrap();
        let out = published.vendor.out("stale.refit");
        refit_updater::pack::pack(&published.vendor.tree("1.1.0"), &out, &stale, &options(), &mut |_| {}).unwrap();
        let before = (snapshot(&published.dir), snapshot(&published.vendor.dir.path().join("stolen")));
        let mut repository = Repository::open(&published.dir).unwrap();
        for error in [
            repository.refresh(&stale, &terms()).unwrap_err(),
            repository.add(&out, &stale, &terms()).unwrap_err(),
            repository.check_keys(&stale).unwrap_err(),
        ] {
            assert!(matches!(error, RepositoryError::OlderKeys { keys: 1, newest: 2, .. }), "{}", chain(&error));
            assert_eq!(error.class(), Class::Refused);
            assert!(error.to_string().contains("an older copy"), "{error}");
        }
        drop(repository);
        assert_eq!((snapshot(&published.dir), snapshot(&published.vendor.dir.path().join("stolen"))), before);
        assert_eq!(published.refresh(&keys).unwrap(), ["1.0.0"]);
        assert_eq!(versions(&Home::new(&published.vendor), &published.dir), ["1.0.0"]);
    }
}

#[test]
fn a_copy_of_the_keys_that_missed_only_a_later_date_goes_on() {
    let published = Published::new();
    published.add("1.0.0");
    let (copy, home) = (published.steal(), Home::new(&published.vendor));
    let keys = published.rotate_roles(&[]);
    published.refresh(&keys).unwrap();
    assert_eq!(versions(&home, &published.dir), ["1.0.0"]);
    Repository::open(&published.dir).unwrap().check_keys(&copy).unwrap();
    assert_eq!(published.refresh(&copy).unwrap(), ["1.0.0"]);
    let out = published.vendor.out("copy.refit");
    refit_updater::pack::pack(&published.vendor.tree("1.1.0"), &out, &copy, &options(), &mut |_| {}).unwrap();
    Repository::open(&published.dir).unwrap().add(&out, &copy, &terms()).unwrap();
    assert_eq!(versions(&home, &published.dir), ["1.0.0", "1.1.0"]);
    assert_eq!(home.trust.root().unwrap(), keys.root(), "the newer root stays");
    assert_eq!(published.refresh(&keys).unwrap(), ["1.0.0", "1.1.0"]);
}

#[test]
fn what_is_left_of_a_repository_is_not_begun_anew() {
    let published = Published::new();
    published.add("1.0.0");
    let (dir, keys) = (&published.dir, &published.vendor.keys);
    let timestamp = fs::read(dir.join("metadata/timestamp.json")).unwrap();
    let refused = || {
        let before = snapshot(dir);
        for error in [Repository::init(dir, keys, &terms()).unwrap_err(), Repository::open(dir).unwrap_err()] {
            assert!(matches!(error, RepositoryError::Lost { .. }), "{error:?}");
            assert!(error.to_string().starts_with("metadata/timestamp.json is missing in"), "{error}");
            assert!(error.remedy().contains("restore metadata/"), "{}", error.remedy());
        }
        assert_eq!(snapshot(dir), before);
    };
    fs::remove_file(dir.join("metadata/timestamp.json")).unwrap();
    refused();
    put(dir, "metadata/timestamp.json", &timestamp, 0o644);
    assert_eq!(published.refresh(keys).unwrap(), ["1.0.0"]);
    // The releases alone were something, too; and so was a repository without any.
    fs::remove_dir_all(dir.join("metadata")).unwrap();
    fs::create_dir(dir.join("metadata")).unwrap();
    refused();
    let empty = Published::new();
    fs::remove_file(empty.dir.join("metadata/timestamp.json")).unwrap();
    let error = Repository::init(&empty.dir, &empty.vendor.keys, &terms()).unwrap_err();
    assert!(matches!(error, RepositoryError::Lost { .. }), "{error:?}");
}

#[test]
fn an_init_that_was_cut_off_goes_on() {
    let vendor = Vendor::new();
    for at in ["1.root.json", "1.targets.json", "1.snapshot.json"] {
        let dir = vendor.dir.path().join(at);
        // In the way of a file that comes next.
        let in_the_way = dir.join("metadata").join(at);
        fs::create_dir_all(&in_the_way).unwrap();
        put(&dir, ".init", b"", 0o644);
        let error = Repository::init(&dir, &vendor.keys, &terms()).unwrap_err();
        assert!(matches!(error, RepositoryError::Io { .. }), "{error:?}");
        fs::remove_dir(&in_the_way).unwrap();
        assert!(matches!(Repository::open(&dir).unwrap_err(), RepositoryError::None { .. }), "there is none yet");
        drop(Repository::init(&dir, &vendor.keys, &terms()).unwrap());
        assert!(!dir.join(".init").exists());
        // One that ended between its last two steps is a repository: what it left says nothing from the next command on.
        put(&dir, ".init", b"", 0o644);
        drop(Repository::open(&dir).unwrap());
        fs::remove_file(dir.join("metadata/timestamp.json")).unwrap();
        let error = Repository::init(&dir, &vendor.keys, &terms()).unwrap_err();
        assert!(matches!(error, RepositoryError::Lost { .. }), "{error:?}");
    }
}

#[test]
fn what_a_release_lost_is_found_and_put_back() {
    let published = Published::new();
    for version in ["1.0.0", "1.1.0"] {
        let tree = published.vendor.tree(version);
        put(&tree, "lib/big", &noise(1, 3 << 20), 0o644);
        let (path, ..) = published.vendor.pack_file(&tree, &options());
        Repository::open(&published.dir).unwrap().add(&path, &published.vendor.keys, &terms()).unwrap();
    }
    let package = published.vendor.out("package.refit"); // that of 1.1.0
    let files = published.dir.join("targets/shop/1.1.0/x86_64");
    let ending = |end: &str| {
        let mut names = fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().path());
        names.find(|path| path.to_str().unwrap().ends_with(end)).unwrap()
    };
    let (payload, manifest) = (ending(".payload"), ending(".manifest.json"));
    assert_eq!(published.check().problems.len(), 0);
    let (before, bytes) = (snapshot(&published.dir), fs::read(&payload).unwrap());
    let altered = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    let longer = [&bytes[..], b"x"].concat();
    let other_manifest = fs::read(&manifest).unwrap().iter().map(u8::to_ascii_uppercase).collect::<Vec<u8>>();
    let rows: [(&PathBuf, Option<Vec<u8>>, &str); 8] = [
        (&payload, None, "is missing"),
        (&payload, Some(bytes[..1000].to_vec()), "has 1000 bytes, "),
        (&payload, Some(longer), "were signed"),
        (&payload, Some(altered(0)), "differs from what was signed, in the "),
        (&payload, Some(altered(bytes.len() - 1)), "differs from what was signed, in the "),
        (&manifest, None, "is missing"),
        (&manifest, Some(b"{}".to_vec()), "has 2 bytes, "),
        (&manifest, Some(other_manifest), "differs from what was signed: "),
    ];
    for (path, content, expected) in rows {
        fs::remove_file(path).unwrap();
        if let Some(content) = &content {
            put(path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap(), content, 0o644);
        }
        let problems = published.check().problems;
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let name = path.strip_prefix(&published.dir).unwrap().to_str().unwrap();
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with(name) && texts[0].contains(expected), "{expected:?} is not in {texts:?}");
        for expected in [Outcome::Restored, Outcome::Present] {
            let mut repository = Repository::open(&published.dir).unwrap();
            let added = repository.add(&package, &published.vendor.keys, &terms()).unwrap();
            assert_eq!((added.outcome, added.offer.version.to_string().as_str()), (expected, "1.1.0"));
        }
        assert_eq!(snapshot(&published.dir), before);
    }
    let home = Home::new(&published.vendor);
    fetch_from(&home, &mut published.server(), "1.1.0").unwrap();
}

#[test]
fn a_check_needs_the_root_alone_and_names_every_problem() {
    let published = Published::new();
    published.add("1.0.0");
    let keys = published.rotate();
    published.refresh(&keys).unwrap();
    // By the first root as by the newest, and neither writes anything.
    let before = snapshot(&published.dir);
    for root in [published.vendor.keys.root(), keys.root()] {
        let found = author::check(&published.dir, root, now(), &mut |_| {}).unwrap();
        assert_eq!((found.problems.len(), found.contents.releases.len()), (0, 1));
        assert_eq!(found.contents, contents(&published.dir, root).unwrap());
    }
    assert_eq!(snapshot(&published.dir), before);
    let late = "2030-01-16T00:00:00Z".parse().unwrap();
    fs::remove_file(published.dir.join("metadata/1.root.json")).unwrap();
    for (path, ..) in snapshot(&published.dir.join("targets")).iter().filter(|(path, ..)| path.is_file()) {
        fs::remove_file(path).unwrap();
    }
    let found = author::check(&published.dir, keys.root(), late, &mut |_| {}).unwrap();
    let found: Vec<_> = found.problems.iter().map(|problem| (problem.path.as_str(), &problem.why)).collect();
    assert!(
        matches!(
            found[..],
            [
                ("metadata/1.root.json", Trouble::Missing),
                ("metadata/timestamp.json", Trouble::Expired(_)),
                (_, Trouble::Missing),
                (_, Trouble::Missing)
            ]
        ),
        "{found:?}"
    );
    assert!(found[2].0.ends_with(".manifest.json") && found[3].0.ends_with(".payload"), "{found:?}");
    let stranger = Vendor::new();
    let error = author::check(&published.dir, stranger.keys.root(), now(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, RepositoryError::Metadata { .. }), "{error:?}");
    for error in [
        author::check(&published.dir, b"{}", now(), &mut |_| {}).unwrap_err(),
        contents(&published.dir, b"{}").unwrap_err(),
    ] {
        assert!(matches!(error, RepositoryError::NotARoot { .. }), "{error:?}");
    }
    fs::remove_file(published.dir.join("metadata/3.snapshot.json")).unwrap();
    let error = contents(&published.dir, keys.root()).unwrap_err();
    assert_eq!(error.to_string(), format!("metadata/3.snapshot.json is missing in {}", published.dir.display()));
}

/// Returns what is in `dir` and is not whole.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let is_left = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(TEMP_PREFIX);
    snapshot(dir).into_iter().map(|(path, ..)| path).filter(is_left).collect()
}

#[test]
fn what_the_dead_left_is_removed_by_the_next() {
    let published = Published::new();
    published.add("1.0.0");
    let before = snapshot(&published.dir);
    for dir in ["", "metadata/", "targets/", "targets/shop/", "targets/shop/1.0.0/x86_64/"] {
        put(&published.dir, &format!("{dir}{TEMP_PREFIX}a1b2c3"), b"half", 0o600);
    }
    put(&published.dir, &format!("{TEMP_PREFIX}d4e5f6/shop-1.1.0.refit"), b"half", 0o600);
    assert_eq!(leftovers(&published.dir).len(), 6);
    let repository = Repository::open(&published.dir).unwrap();
    assert_eq!(snapshot(&published.dir), before);
    // What is on its way belongs to whoever has it open, and goes with it.
    let scratch = repository.scratch().unwrap();
    assert_eq!(leftovers(&published.dir), [scratch.path()]);
    drop(scratch);
    assert_eq!(snapshot(&published.dir), before);
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
        assert_eq!(error.code(), "repository-unreachable", "{}", chain(&error));
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

fn copy(from: &Path, to: &Path) {
    for (path, mode, content) in snapshot(from) {
        let name = path.strip_prefix(from).unwrap();
        if path.is_file() {
            put(to, name.to_str().unwrap(), &content, mode & 0o777);
        }
    }
}
