//! What belongs to an entry of a configuration besides its content and time, as a record has it.
//!
//! One line of text: the mode in octal, user and group, and each extended attribute, access lists among them, as `NAME=VALUE` in
//! hexadecimal digits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::unistd::{getegid, geteuid};

use super::tree::{Attributes, Kind, Tree};

/// The account that a new entry belongs to where nothing says another.
pub(super) fn own() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// Says of each entry of `tree` whom it will belong to once it is written: what is new, to whom its directory does.
pub(super) fn settle_owners(tree: &mut Tree) {
    let own = own();
    let mut owners = BTreeMap::from([(PathBuf::new(), tree.top.owner.unwrap_or(own))]);
    for (path, entry) in &mut tree.entries {
        let above = path.parent().and_then(|above| owners.get(above)).copied().unwrap_or(own);
        let owner = *entry.attributes.owner.get_or_insert(above);
        if entry.is_dir() {
            owners.insert(path.clone(), owner);
        }
    }
}

/// Returns the rights of the entries of `tree`, whose owners are settled.
pub(super) fn of(tree: &Tree) -> BTreeMap<PathBuf, String> {
    let kept = tree.entries.iter().filter(|(_, entry)| !matches!(entry.kind, Kind::Opaque(_)));
    kept.map(|(path, entry)| (path.clone(), text(&entry.attributes))).collect()
}

fn text(attributes: &Attributes) -> String {
    let (user, group) = attributes.owner.unwrap_or_else(own);
    let mut text = format!("{:04o} {user}:{group}", attributes.mode);
    for (name, value) in &attributes.extended {
        text.push(' ');
        push_digits(&mut text, name.as_bytes());
        text.push('=');
        push_digits(&mut text, value);
    }
    text
}

fn push_digits(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
}

/// Returns what `text` says; `None` if it is none of ours.
pub(super) fn parse(text: &str) -> Option<Attributes> {
    let mut words = text.split(' ');
    let mode = u32::from_str_radix(words.next()?, 8).ok()?;
    let (user, group) = words.next()?.split_once(':')?;
    let owner = Some((user.parse().ok()?, group.parse().ok()?));
    let mut extended = BTreeMap::new();
    for word in words {
        let (name, value) = word.split_once('=')?;
        extended.insert(OsString::from_vec(digits(name)?), digits(value)?);
    }
    Some(Attributes { mode, owner, modified: None, extended })
}

fn digits(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let extended = BTreeMap::from([("user.a b".into(), vec![0, 255, b'=']), ("user.empty".into(), Vec::new())]);
        let attributes = Attributes { mode: 0o2640, owner: Some((0, 1234)), modified: None, extended };
        let text = text(&attributes);
        assert_eq!(text, "2640 0:1234 757365722e612062=00ff3d 757365722e656d707479=");
        assert_eq!(parse(&text), Some(attributes));
        for other in ["", "0640", "x 0:0", "0640 0", "0640 0:0 zz=00", "0640 0:0 00"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
