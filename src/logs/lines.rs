//! Bytes of a stream -> lines of text: cut at their ends and at the limit, made readable, their priority taken off.

/// The longest line; what is longer is cut into several. Far more than a person reads, and little enough to hold for each
/// stream of two hundred components.
pub(crate) const LINE_BYTES_MAX: usize = 4096;
/// The longest UTF-8 character: a cut looks back no further for its beginning.
const CHARACTER_BYTES_MAX: usize = 4;

/// What was printed up to the end of a line, or to the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    /// The bytes, without the end.
    pub(crate) bytes: &'a [u8],
    /// Whether the line goes on in the next piece.
    pub(crate) cut: bool,
}

/// Cuts what arrives into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Goes on after the beginning of a line that somebody else has read.
    pub(crate) fn after(partial: Vec<u8>) -> Self {
        Self { partial }
    }

    /// Calls `line` for every piece that `bytes` completes.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(Piece<'_>)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            let mut text = text;
            while self.partial.len() + text.len() > LINE_BYTES_MAX {
                let (fits, rest) = text.split_at(LINE_BYTES_MAX.saturating_sub(self.partial.len()).min(text.len()));
                self.partial.extend_from_slice(fits);
                let end = boundary(&self.partial);
                line(Piece { bytes: &self.partial[..end], cut: true });
                self.partial.drain(..end);
                text = rest;
            }
            self.partial.extend_from_slice(text);
            if whole {
                line(Piece { bytes: self.partial.strip_suffix(b"\r").unwrap_or(&self.partial), cut: false });
                self.partial.clear();
            }
        }
    }

    /// Returns what is left of a last line without an end.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        (!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial))
    }
}

/// Returns where `bytes` may be cut without cutting a character; their end if the last one is whole or is none.
fn boundary(bytes: &[u8]) -> usize {
    let begin = bytes.len().saturating_sub(CHARACTER_BYTES_MAX);
    let last = bytes[begin..].iter().rposition(|byte| byte & 0b1100_0000 != 0b1000_0000).map(|at| begin + at);
    match last {
        Some(at) if at > 0 => {
            let length = match bytes[at] {
                0xC0..0xE0 => 2,
                0xE0..0xF0 => 3,
                0xF0..0xF8 => 4,
                _ => 1,
            };
            if at + length > bytes.len() { at } else { bytes.len() }
        }
        Some(_) | None => bytes.len(),
    }
}

/// Returns the text of `bytes`; what is no UTF-8 is shown as `\xFF`, byte for byte.
pub(crate) fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}

/// Returns the priority that a line begins with, as sd-daemon(3) has it (`<3>`), and the rest.
pub(crate) fn priority(bytes: &[u8]) -> (Option<u8>, &[u8]) {
    match bytes {
        [b'<', digit @ b'0'..=b'7', b'>', rest @ ..] => (Some(digit - b'0'), rest),
        _ => (None, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came out: the bytes, and whether they were cut.
    type Seen = Vec<(Vec<u8>, bool)>;

    /// Returns the pieces of `parts`, fed one after the other, and the rest.
    fn pieces(parts: &[&[u8]]) -> (Seen, Option<Vec<u8>>) {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for bytes in parts {
            lines.feed(bytes, |piece| seen.push((piece.bytes.to_vec(), piece.cut)));
        }
        (seen, lines.finish())
    }

    #[test]
    fn lines_are_cut_at_their_ends_and_at_the_limit() {
        let long = [b'x'; LINE_BYTES_MAX + 10];
        let (seen, rest) = pieces(&[b"a\nbc", b"d\r\n\n", &long]);
        let seen: Vec<(usize, bool)> = seen.iter().map(|(bytes, cut)| (bytes.len(), *cut)).collect();
        assert_eq!(seen, [(1, false), (3, false), (0, false), (LINE_BYTES_MAX, true)]);
        assert_eq!(rest.map(|rest| rest.len()), Some(10));
        let mut exact = vec![b'x'; LINE_BYTES_MAX];
        exact.push(b'\n');
        assert_eq!(pieces(&[&exact]).0, [(vec![b'x'; LINE_BYTES_MAX], false)], "as long as it may be");
    }

    #[test]
    fn whatever_is_fed_however_comes_out_whole() {
        let text = "äöü€𝄞\u{0}x".repeat(2000);
        for size in [1, 7, 4095, 4096, 4097, 100_000] {
            let parts: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let (seen, rest) = pieces(&parts);
            assert!(seen.iter().all(|(bytes, cut)| *cut && bytes.len() > LINE_BYTES_MAX - 4), "size {size}");
            let whole: Vec<u8> =
                seen.into_iter().flat_map(|(bytes, _)| bytes).chain(rest.unwrap_or_default()).collect();
            assert_eq!(whole, text.as_bytes(), "size {size}");
        }
        // Bytes that are no characters are cut anywhere, and never wait for more.
        let (seen, rest) = pieces(&[&[0x80; 10_000]]);
        assert_eq!(seen.iter().map(|(bytes, _)| bytes.len()).collect::<Vec<_>>(), [4096, 4096]);
        assert_eq!(rest.map(|rest| rest.len()), Some(10_000 - 2 * 4096));
    }

    #[test]
    fn no_character_is_cut() {
        for lead in 0..4 {
            let bytes = format!("{}{}\n", "x".repeat(lead), "€".repeat(2000));
            let (seen, _) = pieces(&[bytes.as_bytes()]);
            assert!(seen.len() > 1 && seen.iter().all(|(piece, _)| std::str::from_utf8(piece).is_ok()), "lead {lead}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_stay_visible() {
        assert_eq!(text(b"a\xff\xfeb\xe2\x82"), "a\\xFF\\xFEb\\xE2\\x82");
        assert_eq!(text("grün".as_bytes()), "grün");
    }

    #[test]
    fn a_priority_is_a_digit_in_brackets_at_the_beginning() {
        for (line, expected) in [
            (&b"<3>no disk"[..], (Some(3), &b"no disk"[..])),
            (b"<0>", (Some(0), b"")),
            (b"<8>x", (None, b"<8>x")),
            (b"x<3>", (None, b"x<3>")),
            (b"<3", (None, b"<3")),
        ] {
            assert_eq!(priority(line), expected);
        }
    }
}
