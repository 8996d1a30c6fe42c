//! JSON without a type: object literals, and values that are looked up by a text.

use crate::parser::without_tests;
use crate::tokens::{Token, is_word};

/// Words that an array may follow.
const BEFORE_ARRAYS: [&str; 8] = ["in", "return", "match", "if", "else", "mut", "as", "dyn"];

/// Returns a line for each `json!` in the code of `file`, tests excepted. What an attribute gives as an example is no code.
pub(crate) fn literals(file: &str, text: &str) -> Vec<String> {
    let tokens = without_tests(text);
    let is_literal = |at: &usize| {
        let words: Vec<&str> = tokens[*at..].iter().take(2).map(|token| token.text.as_str()).collect();
        let is_example = *at > 1 && tokens[at - 1].text == "=" && tokens[at - 2].text == "example";
        words == ["json", "!"] && !is_example
    };
    (0..tokens.len()).filter(is_literal).map(|at| format!("{file}:{}: json!", tokens[at].line)).collect()
}

/// Returns a line for each place in `file` that looks something up by a text in brackets, tests excepted.
pub(crate) fn lookups(file: &str, text: &str) -> Vec<String> {
    let tokens = without_tests(text);
    // Texts are no tokens: what was looked up by one has empty brackets.
    let is_lookup = |three: &&[Token]| {
        let [before, open, close] = three else { return false };
        let is_value = matches!(before.text.as_str(), ")" | "]" | "?")
            || (is_word(&before.text) && !BEFORE_ARRAYS.contains(&before.text.as_str()));
        is_value && open.text == "[" && close.text == "]"
    };
    tokens
        .windows(3)
        .filter(is_lookup)
        .map(|three| format!("{file}:{}: {}[..]", three[0].line, three[0].text))
        .collect()
}

#[test]
fn json_without_a_type_is_found() {
    let rows = [
        ("let x = json!({ \"a\": 1 });", 1, 0),
        ("#[schema(example = json!([\"a\"]))] struct A;", 0, 0),
        ("#[cfg(test)] mod tests { fn f() { json!(null); x[\"a\"]; } }", 0, 0),
        ("x[\"a\"][\"b\"].as_str()", 0, 2),
        ("f(x)?[\"a\"]", 0, 1),
        ("for x in [\"a\"] { vec![\"b\"]; f(&[\"c\"]); x[0]; x[n]; }", 0, 0),
        ("/// `json!` and x[\"a\"]\nlet x: [u8; 0] = [];", 0, 0),
    ];
    for (text, expected, looked_up) in rows {
        assert_eq!((literals("f", text).len(), lookups("f", text).len()), (expected, looked_up), "{text}");
    }
}
