//! What the checks find in small sources.

use crate::circles::circles;
use crate::directions::misdirected;
use crate::tree::Tree;

fn tree(files: &[(&str, &str)]) -> Tree {
    let sources = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    Tree::read("src", &sources)
}

const TABLE: &[(&str, &str)] = &[("low", ""), ("high", "low")];

#[test]
fn an_import_against_the_table_is_found() {
    let rows = [
        ("use crate::high::Top;", "crate::high::Top"),
        ("\n\nuse {std::io, crate::{high::{self, Top as T}, low}};", "crate::high"),
        ("fn f() -> u8 { super::high::height() }", "super::high::height"),
        ("fn f(x: &'static crate::high::Top) {}", "crate::high::Top"),
        ("mod inner { use super::super::high; }", "super::super::high"),
        ("#[cfg(test)] mod tests { use super::*; } use crate::high::Top;", "crate::high::Top"),
        ("#[cfg(test)] pub(crate) use std::{fs, io}; use crate::high::Top;", "crate::high::Top"),
        ("use super::high as h; fn f() { h::height() }", "super::high"),
        ("const C: char = '\"'; use crate::high::Top; const D: &str = r#\"\"\"#;", "crate::high::Top"),
    ];
    for (low, path) in rows {
        let high = "pub struct Top; pub fn height() {}";
        let house =
            tree(&[("src/lib.rs", "pub mod low; pub mod high;"), ("src/low.rs", low), ("src/high/mod.rs", high)]);
        let line = 1 + low.chars().take_while(|c| *c == '\n').count();
        let expected = format!("src/low.rs:{line}: low must not import {path}, only \"\"");
        assert!(misdirected(&house, TABLE).contains(&expected), "{low}: {:?}", misdirected(&house, TABLE));
    }
}

#[test]
fn what_is_allowed_or_said_or_only_tested_is_not_found() {
    let low = "//! Not [`crate::high::Top`].\n/* use crate::high; */ const T: &str = \"use crate::high;\"; pub struct Low<'a>(&'a u8);
        #[cfg(test)] mod tests { use crate::high::Top; } #[cfg(test)] use crate::high::{Top, height};
        #[cfg(test)] #[allow(unused)] fn f(x: crate::high::Top) {} fn high() {}";
    let high = "use crate::low::Low; use std::high; pub struct Top; pub fn height() {}";
    let house = tree(&[("src/lib.rs", "pub mod low; pub mod high;"), ("src/low.rs", low), ("src/high.rs", high)]);
    assert_eq!(misdirected(&house, TABLE), [""; 0]);
    assert_eq!(circles(&house), [""; 0]);
    assert_eq!(house.lost(), [""; 0]);
}

#[test]
fn a_circle_is_found_through_re_exports() {
    let house = tree(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a/mod.rs", "mod x;\npub(crate) use self::x::*;\npub use y::Y;\nmod y;"),
        ("src/a/x.rs", "use super::Y;\npub struct X(Y);"),
        ("src/a/y.rs", "use crate::b;\npub struct Y;\nfn f() { b::f() }"),
        ("src/b.rs", "\nuse crate::a::X; pub fn f(x: X) {}"),
    ]);
    let circle = [
        "src/a/x.rs:1 imports super::Y of src/a/y.rs",
        "src/a/y.rs:3 imports b::f of src/b.rs",
        "src/b.rs:2 imports crate::a::X of src/a/x.rs",
    ];
    assert_eq!(circles(&house), [circle.join("\n")]);
}

#[test]
fn a_re_export_ties_a_circle_only_if_its_name_is_used() {
    let house = |parent: &str| {
        tree(&[
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", &format!("mod child;\npub use child::Child;\n{parent}")),
            ("src/a/child.rs", "use super::Parent;\nuse crate::b::B;\npub struct Child(Box<Parent>, B);"),
            ("src/b.rs", "use crate::a::Parent;\npub struct B(Box<Parent>);"),
        ])
    };
    let circle = [
        "src/a.rs:2 imports child::Child of src/a/child.rs",
        "src/a/child.rs:2 imports crate::b::B of src/b.rs",
        "src/b.rs:1 imports crate::a::Parent of src/a.rs",
    ];
    assert_eq!(circles(&house("pub struct Parent(Child);")), [circle.join("\n")]);
    assert_eq!(circles(&house("pub struct Parent;")), [""; 0]);
}

#[test]
fn a_module_and_the_one_that_declares_it_are_no_circle() {
    let parent = "mod child;\nmod sibling;\npub struct Parent(child::Child);";
    let child = ("src/child.rs", "use super::{Parent, sibling::Sibling};\npub struct Child(Box<Parent>, Sibling);");
    let house = |sibling| tree(&[("src/lib.rs", parent), child, ("src/sibling.rs", sibling)]);
    assert_eq!(circles(&house("pub struct Sibling;")), [""; 0]);
    assert_eq!(
        circles(&house("\npub struct Sibling(Box<super::child::Child>);")),
        [
            "src/child.rs:1 imports super::sibling::Sibling of src/sibling.rs\nsrc/sibling.rs:2 imports super::child::Child of src/child.rs"
        ]
    );
}

#[test]
fn a_path_that_leads_nowhere_is_found() {
    let house = tree(&[("src/lib.rs", "mod a;"), ("src/a.rs", "\nuse crate::b::B;")]);
    assert_eq!(house.lost(), ["src/a.rs:2: crate::b::B"]);
}
