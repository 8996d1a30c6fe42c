//! The table of all kinds on all sides, and what no cell of it can say.

use std::fmt::Write as _;

use super::*;

const SUFFIX: &str = ".new";
/// Where the table is published.
const PUBLISHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/formats/merging.md");
const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- end of the table -->";

fn entry(kind: Kind) -> Entry {
    Entry { kind, attributes: Attributes { mode: 0o644, ..Attributes::default() } }
}

fn text(text: &str) -> Entry {
    entry(Kind::File(Content::Text(text.into())))
}

fn tree(entries: &[(&str, Entry)]) -> Tree {
    Tree { entries: entries.iter().map(|(path, entry)| (path.into(), entry.clone())).collect(), ..Tree::default() }
}

/// Returns a tree that has `kind` at `x`, made by `whom`.
fn side(kind: &str, whom: &str) -> Tree {
    match kind {
        "nothing" => tree(&[]),
        "file" => tree(&[("x", text(whom))]),
        "link" => tree(&[("x", entry(Kind::Link(whom.into())))]),
        "directory" => tree(&[("x", entry(Kind::Directory)), ("x/in", text(whom)), (&format!("x/{whom}"), text(whom))]),
        "unreadable" => tree(&[("x", entry(Kind::Opaque("it is a socket".to_owned())))]),
        other => panic!("{other}"),
    }
}

/// Returns what the tree has at `path` and below, as a text.
fn shown(tree: &Tree, path: &str) -> String {
    let mut text = String::new();
    for (at, entry) in tree.below(Path::new(path)) {
        let below = at.strip_prefix(path).unwrap().display();
        match &entry.kind {
            Kind::Directory => write!(text, "[{below}/]").unwrap(),
            Kind::File(Content::Text(held)) => write!(text, "[{below} {}]", String::from_utf8_lossy(held)).unwrap(),
            Kind::Link(target) => write!(text, "[{below} -> {}]", target.display()).unwrap(),
            Kind::File(Content::At { .. }) | Kind::Opaque(_) => panic!("{entry:?}"),
        }
    }
    text
}

/// Returns the cell of the table, after looking that nothing is lost and nothing concealed.
fn cell(base: &Tree, ours: &Tree, theirs: &Tree) -> &'static str {
    let Merged { tree, files } = merge_trees(base, ours, theirs, SUFFIX);
    let is_opaque = ours.first_opaque().is_some();
    let (is, beside) = (shown(&tree, "x"), shown(&tree, "x.new"));
    let mine = if is_opaque { String::new() } else { shown(ours, "x") };
    let [old, new] = [base, theirs].map(|side| shown(side, "x"));
    let reported = |wanted: fn(&Outcome) -> bool| files.iter().any(|file| wanted(&file.outcome));
    let mut conflicts: Vec<&String> = Vec::new();
    for file in &files {
        if let Outcome::Conflict { new_default, .. } = &file.outcome {
            conflicts.push(new_default);
        }
    }
    let lie_beside = tree.entries.keys().filter(|path| path.extension().is_some_and(|name| name == "new"));
    let is_reported = |path: &PathBuf| conflicts.iter().any(|name| Path::new(name) == path);
    assert!(lie_beside.clone().all(is_reported) && lie_beside.count() == conflicts.len(), "{files:?} {tree:?}");
    let is_conflict = !beside.is_empty();
    if is_conflict {
        assert_eq!((&is, &beside), (&mine, &new), "the admin's is in its place, and the release's beside it");
        return "beside";
    }
    if is_opaque {
        assert!(is.is_empty() && reported(|outcome| matches!(outcome, Outcome::NotCarried { .. })), "{files:?}");
        return "named";
    }
    let both_dirs = [ours, theirs].iter().all(|side| side.entries.get(Path::new("x")).is_some_and(Entry::is_dir));
    if !mine.is_empty() && mine != old && mine != new {
        // The admin's own file of a directory is in it whatever else is.
        assert!(is == mine || is.contains("[admin admin]"), "{is} is not {mine}");
    }
    match () {
        () if both_dirs && mine != new && is != mine && is != new => "each entry",
        () if is == mine && is == new => "both",
        () if is == mine => "admin",
        () if is == new => "release",
        () => "each entry",
    }
}

/// Returns the table: a row for each old default and what the admin made of it, a column for each new default.
fn table() -> String {
    let (kinds, mut text) = (["nothing", "file", "link", "directory"], String::new());
    text.push_str(
        "| old default | admin's | no default | default unchanged | a new file | a new link | a new directory |\n",
    );
    text.push_str("|---|---|---|---|---|---|---|\n");
    for old in kinds {
        let base = side(old, "old");
        for mine in ["unchanged", "nothing", "file", "link", "directory", "unreadable"] {
            if old == "nothing" && mine == "unchanged" {
                continue;
            }
            let ours = if mine == "unchanged" { base.clone() } else { side(mine, "admin") };
            write!(text, "| {old} | {mine} |").unwrap();
            for new in ["nothing", "unchanged", "file", "link", "directory"] {
                let theirs = if new == "unchanged" { base.clone() } else { side(new, "new") };
                write!(text, " {} |", cell(&base, &ours, &theirs)).unwrap();
            }
            text.push('\n');
        }
    }
    text
}

#[test]
fn every_kind_on_every_side_is_decided_as_the_table_says() {
    let document = std::fs::read_to_string(PUBLISHED).unwrap();
    let published = document.split_once(BEGIN).unwrap().1.split_once(END).unwrap().0;
    let made = table();
    assert_eq!(published, made, "docs/formats/merging.md needs this table:\n{made}");
}

fn outcomes(merged: &Merged) -> Vec<(&str, Outcome)> {
    merged.files.iter().map(|file| (file.path.as_str(), file.outcome.clone())).collect()
}

fn conflict(new_default: &str, because: Clash) -> Outcome {
    Outcome::Conflict { new_default: new_default.to_owned(), because }
}

#[test]
fn every_case_of_three_texts() {
    fn check(base: Option<&str>, ours: Option<&str>, theirs: Option<&str>, expected: Option<(Outcome, Option<&str>)>) {
        let [b, o, t] =
            [base, ours, theirs].map(|side| tree(&side.map(|held| ("a", text(held))).into_iter().collect::<Vec<_>>()));
        let merged = merge_trees(&b, &o, &t, SUFFIX);
        let found = outcomes(&merged).pop().map(|(_, outcome)| outcome);
        let expected_text = expected.as_ref().and_then(|(_, text)| *text).map(|text| format!("[ {text}]"));
        assert_eq!(found, expected.map(|(outcome, _)| outcome), "base {base:?}, ours {ours:?}, theirs {theirs:?}");
        assert_eq!(
            shown(&merged.tree, "a"),
            expected_text.unwrap_or_default(),
            "base {base:?}, ours {ours:?}, theirs {theirs:?}"
        );
    }
    let clash = |because| conflict("a.new", because);
    check(None, None, None, None);
    check(Some("1"), None, None, None);
    check(None, None, Some("1"), Some((Outcome::Added, Some("1"))));
    check(None, Some("1"), None, Some((Outcome::KeptAdmin, Some("1"))));
    check(None, Some("1"), Some("1"), Some((Outcome::Unchanged, Some("1"))));
    check(None, Some("1"), Some("2"), Some((clash(Clash::Lines), Some("1"))));
    check(Some("1"), None, Some("1"), Some((Outcome::KeptAdmin, None)));
    check(Some("1"), None, Some("2"), Some((clash(Clash::Removed), None)));
    check(Some("1"), Some("1"), None, Some((Outcome::Removed, None)));
    check(Some("1"), Some("2"), None, Some((Outcome::KeptAdmin, Some("2"))));
    check(Some("1"), Some("1"), Some("1"), Some((Outcome::Unchanged, Some("1"))));
    check(Some("1"), Some("1"), Some("2"), Some((Outcome::Updated, Some("2"))));
    check(Some("1"), Some("2"), Some("1"), Some((Outcome::KeptAdmin, Some("2"))));
    check(Some("1"), Some("2"), Some("2"), Some((Outcome::Unchanged, Some("2"))));
    check(Some("1"), Some("2"), Some("3"), Some((clash(Clash::Lines), Some("2"))));
    check(Some("1\0"), Some("2\0"), Some("3\0"), Some((clash(Clash::Lines), Some("2\0"))));
    let (base, ours, theirs) = ("a\nb\nc\nd\ne\n", "A\nb\nc\nd\ne\n", "a\nb\nc\nd\nE\n");
    check(Some(base), Some(ours), Some(theirs), Some((Outcome::Merged, Some("A\nb\nc\nd\nE\n"))));
}

#[test]
fn a_name_that_is_taken_is_left_alone_unless_an_earlier_conflict_left_it() {
    let [base, theirs] = ["old", "new"].map(|held| tree(&[("x", text(held))]));
    let ours = |beside: &str| tree(&[("x", text("mine")), ("x.new", text(beside))]);
    let merged = merge_trees(&base, &ours("old"), &theirs, SUFFIX);
    assert_eq!(
        (shown(&merged.tree, "x.new").as_str(), outcomes(&merged).len()),
        ("[ new]", 1),
        "the earlier default gives way"
    );
    let merged = merge_trees(&base, &ours("a note"), &theirs, SUFFIX);
    assert_eq!(outcomes(&merged)[0], ("x", conflict("x.new.1", Clash::Lines)));
    assert_eq!((shown(&merged.tree, "x.new"), shown(&merged.tree, "x.new.1")), ("[ a note]".into(), "[ new]".into()));
    let theirs = tree(&[("x", text("new")), ("x.new", text("a default of that name"))]);
    let merged = merge_trees(&base, &tree(&[("x", text("mine"))]), &theirs, SUFFIX);
    assert_eq!(shown(&merged.tree, "x.new"), "[ a default of that name]");
    assert_eq!(shown(&merged.tree, "x.new.1"), "[ new]");
    let long = "n".repeat(255);
    let [base, ours, theirs] = ["old", "mine", "new"].map(|held| tree(&[(&long, text(held))]));
    let merged = merge_trees(&base, &ours, &theirs, SUFFIX);
    assert!(merged.tree.entries.keys().all(|path| path.as_os_str().len() <= 255), "{merged:?}");
    assert_eq!(merged.tree.entries.len(), 2);
}

#[test]
fn a_directory_that_a_release_drops_stays_while_the_admin_has_something_in_it() {
    let dir = || ("d", entry(Kind::Directory));
    let base = tree(&[dir(), ("d/default", text("old"))]);
    let merged = merge_trees(&base, &base, &tree(&[]), SUFFIX);
    assert_eq!((shown(&merged.tree, "d").as_str(), outcomes(&merged)), ("", vec![("d/default", Outcome::Removed)]));
    let ours = tree(&[dir(), ("d/default", text("old")), ("d/own", text("mine"))]);
    assert_eq!(shown(&merge_trees(&base, &ours, &tree(&[]), SUFFIX).tree, "d"), "[/][own mine]");
    let merged = merge_trees(&tree(&[]), &tree(&[("e", entry(Kind::Directory))]), &tree(&[]), SUFFIX);
    assert_eq!(shown(&merged.tree, "e"), "[/]", "an empty one that the admin made");
}

#[test]
fn a_mode_follows_the_release_unless_the_admin_changed_it() {
    let with =
        |mode: u32| tree(&[("a", Entry { attributes: Attributes { mode, ..Attributes::default() }, ..text("a") })]);
    for (base, ours, theirs, expected) in [
        (0o644, 0o644, 0o600, 0o600),
        (0o644, 0o640, 0o600, 0o640),
        (0o644, 0o640, 0o644, 0o640),
        (0o644, 0o644, 0o644, 0o644),
    ] {
        let merged = merge_trees(&with(base), &with(ours), &with(theirs), SUFFIX);
        assert_eq!(merged.tree.entries[Path::new("a")].attributes.mode, expected, "{base:o} {ours:o} {theirs:o}");
    }
}

#[test]
fn what_an_earlier_conflict_left_goes_when_the_conflict_is_over() {
    let live = |x: &str| tree(&[("x", text(x)), ("x.new", text("old")), ("x.new.1", text("a note"))]);
    let base = tree(&[("x", text("old"))]);
    for (theirs, ours, has) in [
        (Some("mine"), "mine", "mine"), // the release has what the admin has
        (Some("new"), "old", "new"),    // the admin took the default
        (None, "mine", "mine"),         // there is no default any more
    ] {
        let theirs = theirs.map_or_else(|| tree(&[]), |held| tree(&[("x", text(held))]));
        let merged = merge_trees(&base, &live(ours), &theirs, SUFFIX);
        assert_eq!(shown(&merged.tree, "x"), format!("[ {has}]"));
        assert_eq!((shown(&merged.tree, "x.new"), shown(&merged.tree, "x.new.1")), (String::new(), "[ a note]".into()));
        assert!(outcomes(&merged).contains(&("x.new", Outcome::Removed)), "{merged:?}");
    }
    // The default waits as before, or a newer one does.
    let merged = merge_trees(&base, &live("mine"), &base, SUFFIX);
    assert_eq!((shown(&merged.tree, "x"), shown(&merged.tree, "x.new")), ("[ mine]".into(), "[ old]".into()));
    let lines = |first: &str, last: &str| format!("{first}\nb\nc\nd\n{last}\n");
    let base = tree(&[("x", text(&lines("default", "e")))]);
    let ours = tree(&[("x", text(&lines("mine", "e"))), ("x.new", text(&lines("default", "e")))]);
    let theirs = tree(&[("x", text(&lines("default", "E")))]);
    let merged = merge_trees(&base, &ours, &theirs, SUFFIX);
    assert_eq!(shown(&merged.tree, "x"), format!("[ {}]", lines("mine", "E")));
    assert_eq!(shown(&merged.tree, "x.new"), format!("[ {}]", lines("default", "E")));
    // Of a kind.
    let base = tree(&[("x", text("file"))]);
    let ours = tree(&[("x", entry(Kind::Directory)), ("x/in", text("mine")), ("x.new", text("file"))]);
    let theirs = tree(&[("x", entry(Kind::Directory)), ("x/default", text("new"))]);
    let merged = merge_trees(&base, &ours, &theirs, SUFFIX);
    assert_eq!(
        (shown(&merged.tree, "x"), shown(&merged.tree, "x.new")),
        ("[/][default new][in mine]".into(), String::new())
    );
}
