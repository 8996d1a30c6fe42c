//! Three trees to one: what becomes of each entry, whatever kind it is on which side.
//!
//! The decisions are the table in `docs/formats/merging.md`, which a test makes from this code. Two rules stand above it: what the admin made is
//! in the result, whole, and where the release's default is not, it lies beside and is reported.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::tree::{Attributes, Content, Entry, Kind, Tree};
use super::{Clash, MergedFile, NEW_SUFFIX, Outcome, merged_name};

/// Texts longer than this are not merged line by line: nobody edits them by hand.
const MERGE_BYTES_MAX: u64 = 1 << 20;
/// The longest name that gets a suffix: a file system takes 255 bytes.
const STEM_BYTES_MAX: usize = 240;

/// What a merge made.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) tree: Tree,
    pub(super) files: Vec<MergedFile>,
}

/// Merges what `theirs` made of `base` into `ours`. What cannot be merged gets `suffix` after its name.
pub(super) fn merge_trees(base: &Tree, ours: &Tree, theirs: &Tree, suffix: &str) -> Merged {
    let result = Tree { top: ours.top.clone(), ..Tree::default() };
    let mut merge =
        Merge { base, ours, theirs, suffix, result, files: Vec::new(), beside: Vec::new(), replaced: Vec::new() };
    let paths: BTreeSet<&PathBuf> = [base, ours, theirs].iter().flat_map(|tree| tree.entries.keys()).collect();
    let mut settled: Option<&Path> = None;
    for path in paths {
        if settled.is_some_and(|whole| path.starts_with(whole)) {
            continue;
        }
        settled = merge.take(path).then_some(path);
    }
    merge.put_beside();
    merge.files.sort_by(|one, other| one.path.cmp(&other.path));
    Merged { tree: merge.result, files: merge.files }
}

/// What becomes of an entry, and of all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// It is gone on both sides.
    Gone,
    /// It is a directory, and each entry in it is decided by itself.
    Enter,
    /// Both sides have the same.
    Same,
    /// It is as the release has it, or gone with it.
    Release,
    /// It is as the admin has it, or stays away.
    Admin,
    /// It is this text, which has the changes of both.
    Text(Vec<u8>),
    /// It is as the admin has it, and the release's lies beside it.
    Beside(Clash),
}

struct Merge<'a> {
    base: &'a Tree,
    ours: &'a Tree,
    theirs: &'a Tree,
    suffix: &'a str,
    result: Tree,
    files: Vec<MergedFile>,
    /// What lies beside, by its path in `theirs` and its new one.
    beside: Vec<(PathBuf, PathBuf)>,
    /// What an earlier conflict left and nobody changed.
    replaced: Vec<PathBuf>,
}

impl<'a> Merge<'a> {
    /// Decides on `path`. Returns whether all below it is decided, too.
    fn take(&mut self, path: &'a Path) -> bool {
        if self.replaced.iter().any(|gone| path.starts_with(gone)) {
            return false;
        }
        let [base, ours, theirs] = self.sides(path);
        let decision = self.decide(path);
        self.end_conflict(path, &decision);
        match decision {
            Decision::Gone => return false,
            Decision::Enter => {
                self.enter(path);
                return false;
            }
            Decision::Same => self.take_same(path),
            Decision::Release => self.take_release(path),
            Decision::Admin => self.take_admin(path),
            Decision::Text(text) => {
                let attributes = merge_attributes(base, ours, theirs, false);
                self.put(path, Entry { kind: Kind::File(Content::Text(text)), attributes });
                self.report(path, Outcome::Merged);
            }
            Decision::Beside(because) => {
                let name = self.free_name(path);
                for (at, entry) in self.ours.below(path) {
                    self.put(at, self.kept(at, entry));
                }
                self.report(path, Outcome::Conflict { new_default: name.display().to_string(), because });
                self.beside.push((path.to_owned(), name));
            }
        }
        true
    }

    /// Sees to what an earlier conflict about `path` has left and nobody changed: where the conflict is over it goes; where the new default is
    /// another, and the admin's still stands, that takes its place.
    fn end_conflict(&mut self, path: &Path, decision: &Decision) {
        let left = self.left_beside(path);
        match decision {
            Decision::Admin if self.theirs.entries.contains_key(path) => return, // it waits as before
            Decision::Beside(_) => return,                                       // its name is taken for the next
            Decision::Text(_) => {
                if let Some(name) = left.first() {
                    self.beside.push((path.to_owned(), name.clone()));
                }
            }
            Decision::Gone | Decision::Enter | Decision::Same | Decision::Release | Decision::Admin => {
                for name in &left {
                    self.report(name, Outcome::Removed);
                }
            }
        }
        self.replaced.extend(left);
    }

    /// Returns the names beside `path` at which an earlier merge has put the default of that time, if it still lies there as it was.
    fn left_beside(&self, path: &Path) -> Vec<PathBuf> {
        if self.suffix != NEW_SUFFIX || !self.base.entries.contains_key(path) {
            return Vec::new();
        }
        let mut first = path.as_os_str().to_owned();
        first.push(self.suffix);
        let named = self.ours.entries.range(PathBuf::from(&first)..).map(|(at, _)| at);
        let named = named.take_while(|at| at.as_os_str().as_bytes().starts_with(first.as_bytes()));
        let beside =
            named.filter(|at| at.to_str().and_then(merged_name).is_some_and(|merged| Path::new(merged) == path));
        let is_default = |at: &PathBuf| [self.base, self.theirs].iter().any(|tree| tree.entries.contains_key(at));
        beside.filter(|at| !is_default(at) && same_at(self.ours, at, self.base, path)).cloned().collect()
    }

    fn sides(&self, path: &Path) -> [Option<&'a Entry>; 3] {
        [self.base, self.ours, self.theirs].map(|tree| tree.entries.get(path))
    }

    fn decide(&self, path: &Path) -> Decision {
        let [base, ours, theirs] = self.sides(path);
        let is_dir = |entry: Option<&Entry>| entry.is_some_and(Entry::is_dir);
        let admin_changed = || !same(self.base, self.ours, path);
        let release_changed = || !same(self.base, self.theirs, path);
        match (ours, theirs) {
            (None, None) => Decision::Gone,
            (Some(ours), None) if ours.is_dir() => Decision::Enter,
            (None, Some(theirs)) if theirs.is_dir() && (base.is_none() || is_dir(base)) => Decision::Enter,
            (Some(_), None) if base.is_some() && !admin_changed() => Decision::Release,
            (Some(_), None) => Decision::Admin,
            (None, Some(_)) if base.is_none() => Decision::Release,
            (None, Some(_)) if !release_changed() => Decision::Admin,
            (None, Some(_)) => Decision::Beside(Clash::Removed),
            (Some(ours), Some(theirs)) if ours.is_dir() && theirs.is_dir() => Decision::Enter,
            (Some(ours), Some(theirs)) => {
                if matches!(ours.kind, Kind::Opaque(_)) {
                    Decision::Beside(Clash::Unread)
                } else if same(self.ours, self.theirs, path) {
                    Decision::Same
                } else if !admin_changed() {
                    Decision::Release
                } else if !release_changed() {
                    Decision::Admin
                } else {
                    clash(base, ours, theirs)
                }
            }
        }
    }

    /// Puts the directory `path` into the result, unless only what lies in it keeps it there.
    fn enter(&mut self, path: &Path) {
        let [base, ours, theirs] = self.sides(path);
        let was_default = base.is_some_and(Entry::is_dir);
        let stays = match (ours, theirs) {
            (Some(_), Some(_)) => true,
            (Some(_), None) | (None, Some(_)) => !was_default,
            (None, None) => false,
        };
        if stays {
            self.put_dir(path);
        }
    }

    fn put_dir(&mut self, path: &Path) {
        let [base, ours, theirs] = self.sides(path).map(|side| side.filter(|entry| entry.is_dir()));
        let attributes = match (ours, theirs) {
            (None, None) => return, // never asked
            _one => merge_attributes(base, ours, theirs, true),
        };
        self.put(path, Entry { kind: Kind::Directory, attributes });
    }

    /// Adds an entry to the result, and the directories above it.
    fn put(&mut self, path: &Path, entry: Entry) {
        if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty())
            && !self.result.entries.contains_key(above)
        {
            self.put_dir(above);
        }
        if let Kind::Opaque(why) = &entry.kind {
            // Where the release has something, too, it lies beside, and that is reported.
            if !self.theirs.entries.contains_key(path) {
                self.report(path, Outcome::NotCarried { why: why.clone() });
            }
            return;
        }
        self.result.entries.insert(path.to_owned(), entry);
    }

    /// Returns `entry`, which the admin has at `path` and keeps: its mode follows the release where the admin did not change it.
    fn kept(&self, path: &Path, entry: &Entry) -> Entry {
        let [base, _, theirs] = self.sides(path);
        let theirs = theirs.filter(|theirs| theirs.is_dir() == entry.is_dir());
        Entry { kind: entry.kind.clone(), attributes: merge_attributes(base, Some(entry), theirs, true) }
    }

    fn take_same(&mut self, path: &Path) {
        for (at, entry) in self.ours.below(path) {
            let kept = self.kept(at, entry);
            let is_as_before = kept.attributes.same_rights(&entry.attributes);
            self.put(at, kept);
            if !entry.is_dir() {
                self.report(at, if is_as_before { Outcome::Unchanged } else { Outcome::Updated });
            }
        }
    }

    fn take_release(&mut self, path: &Path) {
        for (at, entry) in self.ours.below(path) {
            if !entry.is_dir() && self.theirs.entries.get(at).is_none_or(Entry::is_dir) {
                self.report(at, Outcome::Removed);
            }
        }
        for (at, entry) in self.theirs.below(path) {
            let [base, ours, theirs] = self.sides(at);
            let attributes = merge_attributes(base, ours, theirs, false);
            self.put(at, Entry { kind: entry.kind.clone(), attributes });
            if !entry.is_dir() {
                let had = ours.is_some_and(|ours| !ours.is_dir());
                self.report(at, if had { Outcome::Updated } else { Outcome::Added });
            }
        }
    }

    fn take_admin(&mut self, path: &Path) {
        let mut any = false;
        for (at, entry) in self.ours.below(path) {
            self.put(at, self.kept(at, entry));
            if !entry.is_dir() && !matches!(entry.kind, Kind::Opaque(_)) {
                any = true;
                self.report(at, Outcome::KeptAdmin);
            }
        }
        if !any && !matches!(self.ours.entries.get(path).map(|entry| &entry.kind), Some(Kind::Opaque(_))) {
            self.report(path, Outcome::KeptAdmin);
        }
    }

    fn report(&mut self, path: &Path, outcome: Outcome) {
        self.files.push(MergedFile { path: path.display().to_string(), outcome });
    }

    /// Returns a name beside `path` that nothing has. What an earlier conflict left there, as it left it, gives way.
    fn free_name(&mut self, path: &Path) -> PathBuf {
        let mut stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        while stem.len() > STEM_BYTES_MAX {
            stem.pop();
        }
        let stem = path.with_file_name(stem);
        let named = |number: usize| {
            let mut name = stem.clone().into_os_string();
            name.push(self.suffix);
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        let first = named(0);
        let is_others = self.base.entries.contains_key(&first) || self.theirs.entries.contains_key(&first);
        if self.ours.entries.contains_key(&first) && !is_others && same_at(self.ours, &first, self.base, path) {
            self.replaced.push(first.clone());
            return first;
        }
        let is_free = |name: &PathBuf| {
            ![self.ours, self.theirs].iter().any(|tree| tree.entries.contains_key(name))
                && !self.beside.iter().any(|(_, taken)| taken == name)
        };
        // There are fewer names than numbers.
        (0..).map(named).find(is_free).unwrap_or(first)
    }

    /// Puts what could not be merged under its new names.
    fn put_beside(&mut self) {
        for (path, name) in std::mem::take(&mut self.beside) {
            for (at, entry) in self.theirs.below(&path) {
                let below = at.strip_prefix(&path).unwrap_or(at);
                let at = if below.as_os_str().is_empty() { name.clone() } else { name.join(below) };
                self.put(&at, entry.clone());
            }
        }
    }
}

/// Returns whether two trees have the same at `path` and below.
fn same(one: &Tree, other: &Tree, path: &Path) -> bool {
    same_at(one, path, other, path)
}

pub(super) fn same_at(one: &Tree, here: &Path, other: &Tree, there: &Path) -> bool {
    let (mut one, mut other) = (one.below(here), other.below(there));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some((at, left)), Some((elsewhere, right)))
                if at.strip_prefix(here) == elsewhere.strip_prefix(there) && left.same_content(right) => {}
            _differ => return false,
        }
    }
}

/// Returns what becomes of an entry that both sides changed.
fn clash(base: Option<&Entry>, ours: &Entry, theirs: &Entry) -> Decision {
    let (Kind::File(ours), Kind::File(theirs)) = (&ours.kind, &theirs.kind) else {
        let alike = std::mem::discriminant(&ours.kind) == std::mem::discriminant(&theirs.kind);
        return Decision::Beside(if alike { Clash::Lines } else { Clash::Kind });
    };
    let merged = match base.map(|base| &base.kind) {
        Some(Kind::File(base)) => merge_text(base, ours, theirs),
        Some(Kind::Directory | Kind::Link(_) | Kind::Opaque(_)) | None => None,
    };
    merged.map_or(Decision::Beside(Clash::Lines), Decision::Text)
}

/// Returns ours with the changes from base to theirs, if all are texts and the changes do not touch.
fn merge_text(base: &Content, ours: &Content, theirs: &Content) -> Option<Vec<u8>> {
    let text = |content: &Content| -> Option<String> {
        let mut bytes = Vec::new();
        let read =
            |bytes: &mut Vec<u8>| -> io::Result<usize> { content.open()?.take(MERGE_BYTES_MAX + 1).read_to_end(bytes) };
        let length = read(&mut bytes).ok()?;
        if length as u64 > MERGE_BYTES_MAX || bytes.contains(&0) { None } else { String::from_utf8(bytes).ok() }
    };
    diffy::merge(&text(base)?, &text(ours)?, &text(theirs)?).ok().map(String::into_bytes)
}

/// Returns what belongs to an entry whose content is `ours` (`is_ours`), or else of the release: what the admin changed stays, and the rest
/// follows the release. Defaults say nothing but the mode; what an admin made at an earlier time says all of it.
fn merge_attributes(base: Option<&Entry>, ours: Option<&Entry>, theirs: Option<&Entry>, is_ours: bool) -> Attributes {
    let (ours, theirs) = match (ours, theirs) {
        (Some(ours), Some(theirs)) => (ours, theirs),
        (Some(one), None) | (None, Some(one)) => return one.attributes.clone(),
        (None, None) => return Attributes::default(),
    };
    let (admins, releases) = (&ours.attributes, &theirs.attributes);
    let based = base.filter(|base| base.is_dir() == ours.is_dir()).map(|base| &base.attributes);
    let owner = match (based.and_then(|based| based.owner), releases.owner) {
        (Some(based), Some(theirs)) if admins.owner == Some(based) => Some(theirs),
        (Some(_) | None, _) => admins.owner.or(releases.owner),
    };
    if ours.is_dir() != theirs.is_dir() {
        return Attributes { owner, ..releases.clone() };
    }
    // The access list has the mode's group in it.
    let is_admins = based.and_then(Attributes::access_list) != admins.access_list()
        || based.is_none_or(|based| based.mode != admins.mode);
    let names: BTreeSet<&OsString> = admins.extended.keys().chain(releases.extended.keys()).collect();
    let extended = names.into_iter().filter_map(|name| {
        let (was, is) = (based.and_then(|based| based.extended.get(name)), admins.extended.get(name));
        let value = if was == is { releases.extended.get(name) } else { is };
        value.map(|value| (name.clone(), value.clone()))
    });
    let extended = extended.collect();
    Attributes {
        mode: if is_admins { admins.mode } else { releases.mode },
        owner,
        modified: if is_ours { admins.modified } else { releases.modified },
        extended,
    }
}

#[cfg(test)]
mod tests;
