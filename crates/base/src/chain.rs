//! An error and its causes, for readers.

use std::error::Error;
use std::fmt;

/// An error with its causes on one line: `what failed: why: why that`.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", one_line(&self.0.to_string()))?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {}", one_line(&cause.to_string()))?;
            source = cause.source();
        }
        Ok(())
    }
}

/// Characters of one cause that are shown from its beginning and from its end, which says why: whatever it quotes between
/// them, a message and a line of the log stay readable.
const CAUSE_CHARS_MAX: (usize, usize) = (400, 200);

/// Returns `text` without line breaks, and not too long: messages of libraries may have several lines, ours never do, and
/// both may quote what an attacker wrote.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (first, last) = CAUSE_CHARS_MAX;
    let begin = line.char_indices().nth(first).map(|(at, _)| at);
    let end = line.char_indices().nth_back(last).map(|(at, _)| at);
    match begin.zip(end) {
        Some((begin, end)) if begin < end => format!("{} [...] {}", &line[..begin], &line[end..]),
        Some(_) | None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_not_too_long() {
        assert_eq!(one_line("one\n  two"), "one two");
        let short = "x".repeat(600);
        assert_eq!(one_line(&short), short);
        let long = one_line(&format!("path \"{}\" is too long", "\u{e9}".repeat(1 << 20)));
        assert!(long.starts_with("path \"\u{e9}") && long.contains(" [...] ") && long.ends_with("\" is too long"));
        assert!(long.chars().count() < 620, "{}", long.chars().count());
    }
}
