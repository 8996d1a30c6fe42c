//! A repository as its vendor writes, checks and mends it; and what must not be signed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use refit_author::keys::Keys;
use refit_author::publish::{self, FileProblem, Outcome, Repository, RepositoryError, TEMP_PREFIX, contents};
use refit_base::{Exit, Reported};
use refit_fixtures_vendor::{
    ALL, Home, Published, Vendor, chain, copy, fetch_from, noise, now, options, put, rotation, snapshot, terms,
    versions,
};
use refit_updater::digest::Digest;
use refit_updater::repository::Directory;

/// Packs 6.6.6 with stolen keys and adds it to the repository in `dir`, which they still fit.
fn add_with(vendor: &Vendor, stolen: &Keys, dir: &Path) {
    let out = vendor.out("stolen.refit");
    refit_author::pack::pack(&vendor.tree("6.6.6"), &out, stolen, &options(), &mut |_| {}).unwrap();
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
        assert_eq!(error.exit(), Exit::Refused);
        assert!(error.remedy().contains("--accept-retired"), "{}", error.remedy());
        let tree = published.vendor.tree("1.1.0");
        let out = published.vendor.out("new.refit");
        refit_author::pack::pack(&tree, &out, &keys, &options(), &mut |_| {}).unwrap();
        let error = Repository::open(&published.dir).unwrap().add(&out, &keys, &terms()).unwrap_err();
        assert!(matches!(error, RepositoryError::Retired { .. }), "{error:?}");
        assert_eq!(snapshot(&published.dir), before);
    }
    // A next root that the stolen root key signed leads nowhere, either.
    let (fake, _) = stolen.rotate(&rotation(&ALL)).unwrap();
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
                assert!(matches!(add.unwrap_err(), RepositoryError::File(_)));
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
#[ignore = "run by the test below, until a point at which it dies"]
fn child_publishes_a_release() {
    let dir = PathBuf::from(std::env::var_os(VENDOR_VARIABLE).expect("its parent names the directory"));
    let keys = Keys::open(&dir.join("keys")).unwrap();
    let mut repository = Repository::open(&dir.join("repository")).unwrap();
    repository.add(&dir.join("out/package.refit"), &keys, &terms()).unwrap();
}

#[test]
#[cfg(feature = "fault")]
fn wherever_publishing_dies_a_rotation_and_a_refresh_go_on() {
    use std::os::unix::process::ExitStatusExt;

    use refit_fixtures::tools::{assert_passed, child};
    let (mut found, mut left) = (Vec::new(), 0);
    for point in ["temp_synced", "switched"] {
        for nth in 1.. {
            let published = Published::new();
            published.add("1.0.0");
            published.vendor.pack_file(&published.vendor.tree("1.1.0"), &options());
            let dir = published.vendor.dir.path();
            put(dir, "fault", format!("{point} {nth}").as_bytes(), 0o644);
            let mut child = child("publishing::child_publishes_a_release");
            let output = child.env(VENDOR_VARIABLE, dir).env("REFIT_FAULT_FILE", dir.join("fault")).output().unwrap();
            left += leftovers(&published.dir).len();
            let releases = published.refresh(&published.rotate()).unwrap();
            assert_eq!(leftovers(&published.dir), Vec::<PathBuf>::new());
            assert_eq!(versions(&Home::new(&published.vendor), &published.dir), releases);
            found.push(releases.len());
            if output.status.success() {
                assert_passed(&output);
                assert!(nth > 7, "payload, manifest, three files of metadata, and twice what is remembered: {nth}");
                break;
            }
            assert_eq!(output.status.signal(), Some(6), "{point} {nth}");
        }
    }
    assert!(found.contains(&1) && found.contains(&2), "old and new: {found:?}");
    assert!(left > 0, "some of them left what was not whole yet");
}

/// Not a test by itself: what the child of the test below does.
#[test]
#[cfg(feature = "fault")]
#[ignore = "run by the test below, until a point at which it dies"]
fn child_makes_a_repository() {
    let dir = PathBuf::from(std::env::var_os(VENDOR_VARIABLE).expect("its parent names the directory"));
    let keys = Keys::open(&dir.join("keys")).unwrap();
    Repository::init(&dir.join("repository"), &keys, &terms()).unwrap();
}

#[test]
#[cfg(feature = "fault")]
fn wherever_an_init_dies_there_is_a_repository_or_the_next_makes_it() {
    use std::os::unix::process::ExitStatusExt;

    use refit_fixtures::tools::{assert_passed, child};
    let (mut made, mut begun) = (0, 0);
    for point in ["temp_synced", "switched"] {
        for nth in 1.. {
            let vendor = Vendor::new();
            let dir = vendor.dir.path();
            put(dir, "fault", format!("{point} {nth}").as_bytes(), 0o644);
            let mut child = child("publishing::child_makes_a_repository");
            let output = child.env(VENDOR_VARIABLE, dir).env("REFIT_FAULT_FILE", dir.join("fault")).output().unwrap();
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
            if output.status.success() {
                assert_passed(&output);
                break;
            }
            assert_eq!(output.status.signal(), Some(6), "{point} {nth}");
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
    let found: Vec<_> = accepted.iter().map(|one| (one.offer.version.to_string(), one.digest)).collect();
    assert_eq!(found, [("1.0.0".to_owned(), Some(Digest::of(&manifest)))]);
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
    let fetched = fetch_from(&home, &mut Directory(published.dir.clone()), "1.0.0").unwrap();
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
        refit_author::pack::pack(&published.vendor.tree("1.1.0"), &out, &stale, &options(), &mut |_| {}).unwrap();
        let before = (snapshot(&published.dir), snapshot(&published.vendor.dir.path().join("stolen")));
        let mut repository = Repository::open(&published.dir).unwrap();
        for error in [
            repository.refresh(&stale, &terms()).unwrap_err(),
            repository.add(&out, &stale, &terms()).unwrap_err(),
            repository.check_keys(&stale).unwrap_err(),
        ] {
            assert!(matches!(error, RepositoryError::OlderKeys { keys: 1, newest: 2, .. }), "{}", chain(&error));
            assert_eq!(error.exit(), Exit::Refused);
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
    refit_author::pack::pack(&published.vendor.tree("1.1.0"), &out, &copy, &options(), &mut |_| {}).unwrap();
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
        assert!(matches!(error, RepositoryError::File(_)), "{error:?}");
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
    fetch_from(&home, &mut Directory(published.dir.clone()), "1.1.0").unwrap();
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
        let found = publish::check(&published.dir, root, now(), &mut |_| {}).unwrap();
        assert_eq!((found.problems.len(), found.contents.releases.len()), (0, 1));
        assert_eq!(found.contents, contents(&published.dir, root).unwrap());
    }
    assert_eq!(snapshot(&published.dir), before);
    let late = "2030-01-16T00:00:00Z".parse().unwrap();
    fs::remove_file(published.dir.join("metadata/1.root.json")).unwrap();
    for (path, ..) in snapshot(&published.dir.join("targets")).iter().filter(|(path, ..)| path.is_file()) {
        fs::remove_file(path).unwrap();
    }
    let found = publish::check(&published.dir, keys.root(), late, &mut |_| {}).unwrap();
    let found: Vec<_> = found.problems.iter().map(|problem| (problem.path.as_str(), &problem.why)).collect();
    assert!(
        matches!(
            found[..],
            [
                ("metadata/1.root.json", FileProblem::Missing),
                ("metadata/timestamp.json", FileProblem::Expired(_)),
                (_, FileProblem::Missing),
                (_, FileProblem::Missing)
            ]
        ),
        "{found:?}"
    );
    assert!(found[2].0.ends_with(".manifest.json") && found[3].0.ends_with(".payload"), "{found:?}");
    let stranger = Vendor::new();
    let error = publish::check(&published.dir, stranger.keys.root(), now(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, RepositoryError::Metadata { .. }), "{error:?}");
    for error in [
        publish::check(&published.dir, b"{}", now(), &mut |_| {}).unwrap_err(),
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
