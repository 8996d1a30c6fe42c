//! Which delegated role is asked for which target.

use aws_lc_rs::digest::{SHA256, digest};

use crate::document::DelegatedRole;

/// The names of the roles that a root has: no delegated role may be called so.
const TOP_LEVEL: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

impl DelegatedRole {
    /// Returns whether the role is trusted for `target`.
    pub(crate) fn covers(&self, target: &str) -> bool {
        let by_path = self.paths.iter().flatten().any(|pattern| matches(pattern, target));
        let hash = || hex::encode(digest(&SHA256, target.as_bytes()));
        by_path
            || self.path_hash_prefixes.iter().flatten().any(|prefix| hash().starts_with(&prefix.to_ascii_lowercase()))
    }

    /// Returns whether its name is that of a role of the root.
    pub(crate) fn is_misnamed(&self) -> bool {
        TOP_LEVEL.contains(&self.name.as_str())
    }
}

/// Returns the name of a role's file, without its ending: one name for one role, and no path.
pub(crate) fn file_stem(role: &str) -> String {
    let mut stem = String::with_capacity(role.len());
    for byte in role.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            stem.push(char::from(byte));
        } else {
            stem.push_str(&format!("%{byte:02X}"));
        }
    }
    stem
}

/// Returns whether `path` matches `pattern`, in which `*` and `?` stand for characters of one part between slashes.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (Some(pattern), Some(part)) if matches_part(pattern, part) => {}
            (None, None) => return true,
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

fn matches_part(pattern: &str, part: &str) -> bool {
    let (pattern, part): (Vec<char>, Vec<char>) = (pattern.chars().collect(), part.chars().collect());
    let (mut at, mut in_pattern) = (0, 0);
    // Where the last star is, and how much of the part it stands for: going back to it is enough, the last one wins.
    let mut star = None;
    while at < part.len() {
        match pattern.get(in_pattern) {
            Some('*') => {
                star = Some((in_pattern, at));
                in_pattern += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == part[at] => {
                in_pattern += 1;
                at += 1;
            }
            Some(_) | None => match star {
                Some((before, begun)) => {
                    star = Some((before, begun + 1));
                    in_pattern = before + 1;
                    at = begun + 1;
                }
                None => return false,
            },
        }
    }
    pattern[in_pattern..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        fn check(pattern: &str, path: &str, expected: bool) {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        check("*", "file", true);
        check("*", "dir/file", false);
        check("*", "", true);
        check("dir/*", "dir/file", true);
        check("dir/*", "dir/sub/file", false);
        check("foo-?.tgz", "foo-1.tgz", true);
        check("foo-?.tgz", "foo-alpha.tgz", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-b-b", false);
        check("**", "x", true);
        check("[ab]", "a", false);
        check("README.md", "README.MD", false);
        check(&"*a".repeat(30), &"a".repeat(29), false);
    }

    #[test]
    fn names_of_files() {
        assert_eq!(file_stem("plain-role_1.a~"), "plain-role_1.a~");
        assert_eq!(file_stem("../a b?#é"), "..%2Fa%20b%3F%23%C3%A9");
    }
}
