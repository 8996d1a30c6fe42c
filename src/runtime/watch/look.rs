//! How a watched path looks, and where a change of that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

/// What makes a file another one: not its time alone, which package managers keep. None if nothing is there.
pub(super) type Look = Option<String>;

/// So many links lead from one to the next at most, as for the kernel.
const LINKS_MAX: usize = 40;
/// So much of a directory is looked at: certificates and settings fit, and nobody watches a disk this way.
const ENTRIES_MAX: usize = 4096;

/// Returns how what lies at `path` looks, behind links; of a directory, all that lies below it.
pub(super) fn look(path: &Path) -> Look {
    let found = fs::metadata(path).ok()?;
    if !found.is_dir() {
        return Some(described(&found));
    }
    let mut hash = Sha256::new();
    for (path, found) in below(path) {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update(described(&found));
        hash.update(fs::metadata(&path).map_or_else(|_| String::new(), |found| described(&found)));
    }
    Some(hex::encode(hash.finalize()))
}

fn described(found: &Metadata) -> String {
    // The time of a directory changes with its entries, which are looked at themselves.
    let (size, at, part) = if found.is_dir() { (0, 0, 0) } else { (found.size(), found.ctime(), found.ctime_nsec()) };
    format!("{}:{}:{size}:{at}.{part} ", found.dev(), found.ino())
}

/// Returns what lies below a directory, in a fixed order; links are not followed.
fn below(dir: &Path) -> BTreeMap<PathBuf, Metadata> {
    let (mut all, mut dirs) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue }; // it is gone
            if all.len() == ENTRIES_MAX {
                return all;
            }
            if found.is_dir() {
                dirs.push(entry.path());
            }
            all.insert(entry.path(), found);
        }
    }
    all
}

/// Where a change is told.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The directories that are watched, each with what makes it another one.
    pub(super) dirs: BTreeMap<PathBuf, (u64, u64)>,
    /// The names in them that mean something.
    pub(super) names: BTreeSet<PathBuf>,
    /// Those in which every name does.
    pub(super) whole: BTreeSet<PathBuf>,
}

impl Places {
    /// Returns whether something that happened at `path` may change how a watched path looks.
    pub(super) fn concern(&self, path: &Path) -> bool {
        self.names.contains(path)
            || self.dirs.contains_key(path)
            || path.parent().is_some_and(|dir| self.whole.contains(dir))
    }

    /// Adds where a change of what `path` leads to is told: the directory that it lies in, that of each link on the way, and that in which
    /// the first name is missing.
    pub(super) fn add(&mut self, path: &Path) {
        let mut at = PathBuf::from("/");
        let mut names = reversed(path);
        let mut links = 0;
        while let Some(name) = names.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let found = fs::symlink_metadata(&next);
            let is_link = found.as_ref().is_ok_and(Metadata::is_symlink);
            if is_link || found.is_err() || names.is_empty() {
                self.watch(&at);
                self.names.insert(next.clone());
            }
            if found.is_err() {
                return;
            }
            if !is_link {
                at = next;
                continue;
            }
            links += 1;
            let Ok(target) = fs::read_link(&next) else { return };
            if links > LINKS_MAX {
                return;
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            names.extend(reversed(&target));
        }
        if at.is_dir() {
            for (path, found) in below(&at) {
                if found.is_dir() {
                    self.watch(&path);
                    self.whole.insert(path);
                }
            }
            self.watch(&at);
            self.whole.insert(at);
        }
    }

    fn watch(&mut self, dir: &Path) {
        if let Ok(found) = fs::metadata(dir) {
            self.dirs.insert(dir.to_owned(), (found.dev(), found.ino()));
        }
    }
}

/// Returns the names of a path, the last first.
fn reversed(path: &Path) -> Vec<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    let mut names: Vec<OsString> = names.map(|part| part.as_os_str().to_owned()).collect();
    names.reverse();
    names
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's files need not be durable")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn places(path: &Path) -> Places {
        let mut places = Places::default();
        places.add(path);
        places
    }

    #[test]
    fn each_way_of_being_replaced_is_told_where_it_happens() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |path: &str| dir.path().canonicalize().expect("it is there").join(path);
        for sub in ["live", "archive", "v1", "v2", "tree/sub"] {
            fs::create_dir_all(at(sub)).expect("a directory");
        }
        for file in ["plain", "archive/1", "archive/2", "v1/tls", "v2/tls", "tree/sub/x"] {
            fs::write(at(file), file).expect("written");
        }
        symlink("../archive/1", at("live/cert")).expect("a link");
        symlink("v1", at("current")).expect("a link");
        for (path, told_of, not_of) in [
            ("plain", &["plain"][..], "other"),
            ("live/cert", &["live/cert", "archive/1"], "archive/2"),
            ("current/tls", &["current", "v1/tls"], "plain"),
            ("missing/sub/cert", &["missing"], "plain"),
            ("live/missing", &["live/missing"], "live/cert"),
            ("tree", &["tree", "tree/new", "tree/sub/x", "tree/sub/new"], "plain"),
        ] {
            let found = places(&at(path));
            for name in told_of {
                assert!(found.concern(&at(name)), "{path}: {name} in {found:?}");
                let parent = at(name).parent().expect("below a directory").to_owned();
                assert!(found.dirs.contains_key(&parent), "{path}: {parent:?} in {found:?}");
            }
            assert!(!found.concern(&at(not_of)), "{path}: {not_of}");
        }
        let changes = |path: &str, change: &dyn Fn()| {
            let before = look(&at(path));
            change();
            before != look(&at(path))
        };
        let replace = |path: &str| {
            fs::write(at("new"), "new").expect("written");
            fs::rename(at("new"), at(path)).expect("renamed");
        };
        let relink = |target: &str, path: &str| {
            symlink(target, at("new")).expect("a link");
            fs::rename(at("new"), at(path)).expect("renamed");
        };
        assert!(!changes("plain", &|| {}) && !changes("tree", &|| {}));
        assert!(changes("plain", &|| replace("plain")));
        assert!(changes("live/cert", &|| replace("archive/1")));
        assert!(changes("live/cert", &|| relink("../archive/2", "live/cert")));
        assert!(changes("current/tls", &|| relink("v2", "current")));
        assert!(changes("tree", &|| replace("tree/sub/x")));
        assert!(changes("tree", &|| fs::write(at("tree/y"), "").expect("written")));
        assert!(changes("missing/cert", &|| {
            fs::create_dir(at("missing")).expect("a directory");
            fs::write(at("missing/cert"), "").expect("written");
        }));
    }

    #[test]
    fn links_that_lead_in_a_circle_end() {
        let dir = tempfile::tempdir().expect("a directory");
        symlink("b", dir.path().join("a")).expect("a link");
        symlink("a", dir.path().join("b")).expect("a link");
        assert!(places(&dir.path().join("a")).concern(&dir.path().canonicalize().expect("there").join("a")));
        assert_eq!(look(&dir.path().join("a")), None);
    }
}
