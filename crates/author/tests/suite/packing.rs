//! Packages as they are made and shown, and what is not packed.

use std::fs;
use std::path::Path;

use refit_author::inspect::{InspectError, inspect};
use refit_author::pack::PackError;
use refit_base::{Exit, Reported};
use refit_fixtures_vendor::{Vendor, manifest_of, noise, now, options, put};
use refit_updater::manifest::Body;

#[test]
fn packing_twice_makes_the_same_bytes() {
    let vendor = Vendor::new();
    let tree = vendor.tree("1.0.0");
    for number in 0..40 {
        put(&tree, &format!("share/{number}"), &noise(number, 1000 * number as usize), 0o644);
    }
    let first = vendor.pack(&tree, &options());
    let keys = refit_author::keys::Keys::open(&vendor.dir.path().join("keys")).unwrap();
    let moved = vendor.dir.path().join("moved");
    fs::rename(&tree, &moved).unwrap();
    let out = vendor.out("second.refit");
    refit_author::pack::pack(&moved, &out, &keys, &options(), &mut |_| {}).unwrap();
    assert!(first == fs::read(&out).unwrap());
}

#[test]
fn a_package_takes_the_place_of_a_file_and_of_nothing_else() {
    let vendor = Vendor::new();
    let tree = vendor.tree("1.0.0");
    let dir = vendor.dir.path().join("places");
    let pack = |name: &str| {
        let mut is_begun = false;
        let out = dir.join(name);
        let done = refit_author::pack::pack(&tree, &out, &vendor.keys, &options(), &mut |_| is_begun = true);
        (done, is_begun)
    };
    put(&dir, "elsewhere/old.refit", b"an old one", 0o600);
    fs::create_dir(dir.join("directory")).unwrap();
    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    for (name, target) in [
        ("link", "elsewhere/old.refit"),
        ("dangling", "elsewhere/new.refit"),
        ("chain", "link"),
        ("to-pipe", "pipe"),
        ("loop", "loop"),
    ] {
        refit_updater::durable::symlink(Path::new(target), &dir.join(name)).unwrap();
    }
    let kinds = || -> Vec<_> {
        let mut kinds: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.file_type().unwrap()))
            .collect();
        kinds.sort_by(|one, other| one.0.cmp(&other.0));
        kinds
    };
    let before = kinds();
    for name in ["pipe", "socket", "directory", "to-pipe"] {
        let (done, is_begun) = pack(name);
        assert!(matches!(done.unwrap_err(), PackError::OutType { .. }), "{name}");
        assert!(!is_begun, "{name}: refused before any work");
    }
    assert!(matches!(pack("loop").0.unwrap_err(), PackError::File(_)));
    assert_eq!(kinds(), before);
    drop(socket);
    let package = vendor.package("1.0.0");
    for (name, file) in [("link", "old"), ("chain", "old"), ("dangling", "new"), ("elsewhere/old.refit", "old")] {
        let file = dir.join(format!("elsewhere/{file}.refit"));
        fs::remove_file(&file).ok();
        put(&dir, "elsewhere/beside", b"", 0o644);
        pack(name).0.unwrap();
        assert!(fs::read(&file).unwrap() == package, "{name}");
        assert_eq!(fs::symlink_metadata(dir.join(name)).unwrap().is_symlink(), !name.contains('/'), "{name}");
    }
    // A link from outside the tree into it.
    refit_updater::durable::symlink(&tree.join("share/out.refit"), &dir.join("inside")).unwrap();
    assert!(matches!(pack("inside").0.unwrap_err(), PackError::OutInside { .. }));
}

#[test]
fn what_is_no_package_and_no_root_is_called_that() {
    let vendor = Vendor::new();
    let (path, ..) = vendor.pack_file(&vendor.tree("1.0.0"), &options());
    let dir = path.parent().unwrap();
    let error = inspect(dir, None, false, now()).unwrap_err();
    assert!(matches!(error, InspectError::Directory { .. }), "{error}");
    let error = inspect(&dir.join("missing"), None, false, now()).unwrap_err();
    assert!(matches!(error, InspectError::Open { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Disk);
    for root in [&b"{}"[..], &fs::read(&path).unwrap()] {
        let error = inspect(&path, Some(root), false, now()).unwrap_err();
        assert!(matches!(error, InspectError::NotARoot { .. }), "{error}");
        assert!(error.to_string().contains("no root") && error.remedy().contains("root.json"), "{error}");
    }
    // A file whose disk fails: there is one that gives an error for every byte from 0 on.
    let error = inspect(Path::new("/proc/self/mem"), None, false, now()).unwrap_err();
    assert!(matches!(error, InspectError::Read { .. }), "{error:?}");
    assert_eq!(error.exit(), Exit::Disk);
    assert!(!error.remedy().contains("send"), "{}", error.remedy());
}

#[test]
fn a_packer_refuses_what_an_appliance_would() {
    let vendor = Vendor::new();
    fn check(vendor: &Vendor, spoil: impl Fn(&std::path::Path), expected: &str) {
        let tree = vendor.tree("1.0.0");
        spoil(&tree);
        let out = vendor.out("never.refit");
        let mut begun = |progress| panic!("refused only after {progress:?}");
        let error = refit_author::pack::pack(&tree, &out, &vendor.keys, &options(), &mut begun).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!out.exists() && fs::read_dir(out.parent().unwrap()).unwrap().count() == 0);
        fs::remove_dir_all(&tree).unwrap();
    }
    use std::os::unix::fs::symlink;
    check(&vendor, |dir| symlink("/etc/passwd", dir.join("out")).unwrap(), "is not inside the release");
    check(&vendor, |dir| symlink("../../x", dir.join("share/out")).unwrap(), "is not inside the release");
    check(&vendor, |dir| put(dir, "bin/suid", b"", 0o4755), "set-id");
    check(&vendor, |dir| put(dir, ".refit/manifest.json", b"", 0o644), "is reserved");
    check(&vendor, |dir| put(dir, "share/EMPTY", b"", 0o644), "upper and lower case");
    check(&vendor, |dir| put(dir, "share/a\nb", b"", 0o644), "control character");
    check(&vendor, |dir| fs::remove_file(dir.join("appliance.toml")).unwrap(), "has no appliance.toml");
    check(&vendor, |dir| put(dir, "appliance.toml", b"[appliance]\nname = 1\n", 0o644), "does not name");
    check(&vendor, |dir| put(dir, "hooks/migrate", b"", 0o755), "has \"hooks/migrate\", and no appliance runs hooks");
    check(&vendor, |dir| put(dir, "hooks", b"", 0o644), "has \"hooks\"");
    check(&vendor, |dir| fs::create_dir(dir.join("hooks")).unwrap(), "has \"hooks\"");
    check(&vendor, |dir| symlink("bin", dir.join("hooks")).unwrap(), "has \"hooks\"");
    let socket = |dir: &std::path::Path| drop(std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap());
    check(&vendor, socket, "neither file, directory nor link");
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff");
    check(&vendor, |dir| drop(fs::File::create(dir.join(name)).unwrap()), "is not UTF-8");
}

#[test]
fn what_is_only_called_like_hooks_is_packed() {
    let vendor = Vendor::new();
    let tree = vendor.tree("1.0.0");
    for name in ["hooks.txt", "share/hooks/post-receive", "lib/hooks", "hooks-old/migrate"] {
        put(&tree, name, name.as_bytes(), 0o644);
    }
    assert_eq!(manifest_of(&vendor.pack(&tree, &options())).hook(), None);
}

#[test]
fn a_manifest_lists_what_was_packed() {
    let vendor = Vendor::new();
    let manifest = manifest_of(&vendor.package("1.0.0"));
    assert_eq!((manifest.appliance(), manifest.arch()), ("shop", "x86_64"));
    let link = manifest.file("lib/libshop.so.1").unwrap();
    assert_eq!(link.body, Body::Link { target: "libshop.so".to_owned() });
    assert_eq!(manifest.directories().len(), 5);
}
