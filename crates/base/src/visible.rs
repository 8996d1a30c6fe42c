//! Text that comes from elsewhere and is shown on a terminal, which it must not steer.

use std::borrow::Cow;

/// Returns `text` with every control character but the tab written out, as in `\u{1b}`.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    written_out(text, |_, c| c == '\t')
}

/// Returns `text`, which may be several lines and have colours, with every other control character written out.
#[must_use]
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    written_out(text, |rest, c| matches!(c, '\t' | '\n') || is_colour(rest))
}

fn written_out(text: &str, may_stay: impl Fn(&str, char) -> bool) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut visible = String::with_capacity(text.len());
    for (place, c) in text.char_indices() {
        if c.is_control() && !may_stay(&text[place..], c) {
            visible.extend(c.escape_default());
        } else {
            visible.push(c);
        }
    }
    Cow::Owned(visible)
}

/// Returns whether `text` begins with a sequence that changes colours and nothing else (ECMA-48, SGR).
fn is_colour(text: &str) -> bool {
    let numbers =
        text.strip_prefix("\x1b[").map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'));
    numbers.is_some_and(|rest| rest.starts_with('m'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(visible("plain\ttext"), "plain\ttext");
        assert_eq!(visible("a\u{1b}[2Jb\r\nc\u{9b}31m"), "a\\u{1b}[2Jb\\r\\nc\\u{9b}31m");
        assert_eq!(visible_lines("a\nb\u{1b}[1;31mred\u{1b}[0m"), "a\nb\u{1b}[1;31mred\u{1b}[0m");
        assert_eq!(visible_lines("\u{1b}[2J\u{1b}]0;title\u{7}\u{1b}["), "\\u{1b}[2J\\u{1b}]0;title\\u{7}\\u{1b}[");
    }
}
