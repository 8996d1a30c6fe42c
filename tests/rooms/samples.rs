//! What the checks find in small sources.

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
    assert_eq!(house.lost(), [""; 0]);
}

#[test]
fn a_path_that_leads_nowhere_is_found() {
    let house = tree(&[("src/lib.rs", "mod a;"), ("src/a.rs", "\nuse crate::b::B;")]);
    assert_eq!(house.lost(), ["src/a.rs:2: crate::b::B"]);
}
