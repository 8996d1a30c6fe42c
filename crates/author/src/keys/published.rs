//! What was published last with a directory of keys: `published.json`, beside the roots.
//!
//! It has the digest of the newest `timestamp.json` of each repository that was written with this directory, and nothing
//! secret. After a rotation it tells what the owner of the retired keys published from what somebody else made with a stolen
//! one: signatures cannot. A new digest is written down before the first file of the repository, beside the one that it
//! replaces, and that one is dropped after the last: wherever the power fails, what the repository then has is remembered.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use refit_base::{FileError, file_error};
use refit_updater::digest::Digest;
use refit_updater::durable;
use serde::{Deserialize, Serialize};

use super::Keys;

/// Where it lies in a directory of keys. It is no name of a key or root.
const PUBLISHED_NAME: &str = "published.json";
/// The format of [`PublishedFile`].
const FORMAT: u64 = 1;
/// Repositories that are remembered; with one more the one that was published to least recently is forgotten. Nobody has as
/// many that are in use, and the file stays below 200 KiB.
const REPOSITORIES_MAX: usize = 1000;
/// A larger file is something else.
const PUBLISHED_BYTES_MAX: u64 = 1 << 20;

/// Why it is not known what was published, or not remembered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishedError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not what was written.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The file is of another format.
    #[error("{} has format {found}, {FORMAT} is known", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it says.
        found: u64,
    },
}

/// What every format of the file begins with.
#[derive(Debug, Deserialize)]
struct Head {
    format: u64,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishedFile {
    format: u64,
    /// The one that was published to last is the last.
    repositories: Vec<Published>,
}

/// What one repository has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    /// Digest of its newest `timestamp.json`.
    timestamp: Digest,
    /// Digest of the one before, until the newest is sure to be in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Digest>,
}

impl Published {
    fn is(&self, timestamp: Digest) -> bool {
        self.timestamp == timestamp || self.before == Some(timestamp)
    }
}

impl Keys {
    /// Returns whether the `timestamp.json` with this digest is what was published last to some repository.
    ///
    /// # Errors
    /// What was published is not known.
    pub(crate) fn has_published(&self, timestamp: Digest) -> Result<bool, PublishedError> {
        Ok(read(&self.dir)?.iter().any(|published| published.is(timestamp)))
    }

    /// Remembers that the `timestamp.json` `next` is about to be published, where there is `before` now.
    ///
    /// # Errors
    /// It is not remembered; what was remembered is.
    pub(crate) fn begin_publishing(&self, next: Digest, before: Option<Digest>) -> Result<(), PublishedError> {
        self.remember(Published { timestamp: next, before })
    }

    /// Remembers that the `timestamp.json` `next` is published.
    ///
    /// # Errors
    /// The one that it replaced may be remembered, too.
    pub(crate) fn end_publishing(&self, next: Digest) -> Result<(), PublishedError> {
        self.remember(Published { timestamp: next, before: None })
    }

    /// Puts `next` in the place of what is known of its repository.
    fn remember(&self, next: Published) -> Result<(), PublishedError> {
        let path = self.dir.join(PUBLISHED_NAME);
        let dir = File::open(&self.dir).map_err(file_error("open", &self.dir))?;
        // Of two at the same moment neither forgets what the other wrote. Some network file systems have no locks on
        // directories; there one may, and its repository is as one that nobody knows.
        drop(dir.lock());
        let mut repositories = read(&self.dir)?;
        repositories.retain(|known| {
            let same = known.is(next.timestamp) || next.before.is_some_and(|before| known.is(before));
            !same
        });
        repositories.push(next);
        let surplus = repositories.len().saturating_sub(REPOSITORIES_MAX);
        repositories.drain(..surplus);
        let file = PublishedFile { format: FORMAT, repositories };
        let bytes =
            serde_json::to_vec(&file).map_err(|source| PublishedError::Damaged { path: path.clone(), source })?;
        Ok(durable::replace(&self.dir, PUBLISHED_NAME, &bytes).map_err(file_error("write", &path))?)
    }
}

/// Reads what was published with the keys in `dir`: nothing yet if there is no file.
fn read(dir: &Path) -> Result<Vec<Published>, PublishedError> {
    let path = dir.join(PUBLISHED_NAME);
    if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(Vec::new());
    }
    let bytes = durable::read_limited(&path, PUBLISHED_BYTES_MAX).map_err(file_error("read", &path))?;
    let damaged = |source| PublishedError::Damaged { path: path.clone(), source };
    let Head { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(PublishedError::Format { path, found: format });
    }
    let file: PublishedFile = serde_json::from_slice(&bytes).map_err(damaged)?;
    Ok(file.repositories)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (tempfile::TempDir, Keys) {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::init(dir.path(), jiff::Timestamp::MAX).unwrap();
        (dir, keys)
    }

    fn digest(number: usize) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    #[test]
    fn while_one_replaces_another_both_are_known_and_afterwards_only_the_newer() {
        let (_dir, keys) = keys();
        let known = |number: usize| keys.has_published(digest(number)).unwrap();
        assert!(!known(1));
        keys.begin_publishing(digest(1), None).unwrap();
        keys.end_publishing(digest(1)).unwrap();
        // Another repository, which what follows leaves alone.
        keys.begin_publishing(digest(7), None).unwrap();
        keys.begin_publishing(digest(2), Some(digest(1))).unwrap();
        assert!(known(1) && known(2) && known(7));
        // The power failed before 2 was there; what replaces 1 now takes its place.
        keys.begin_publishing(digest(3), Some(digest(1))).unwrap();
        assert!(known(1) && !known(2) && known(3) && known(7));
        // It failed after 3 was there, and before that was written down.
        keys.begin_publishing(digest(4), Some(digest(3))).unwrap();
        keys.end_publishing(digest(4)).unwrap();
        assert!(!known(1) && !known(3) && known(4) && known(7));
    }

    #[test]
    fn of_too_many_the_least_recent_is_forgotten() {
        let (dir, keys) = keys();
        let repositories = (0..REPOSITORIES_MAX).map(|number| Published { timestamp: digest(number), before: None });
        let file = PublishedFile { format: FORMAT, repositories: repositories.collect() };
        durable::replace(dir.path(), PUBLISHED_NAME, &serde_json::to_vec(&file).unwrap()).unwrap();
        keys.begin_publishing(digest(REPOSITORIES_MAX), Some(digest(0))).unwrap();
        assert!(keys.has_published(digest(0)).unwrap() && keys.has_published(digest(1)).unwrap());
        keys.begin_publishing(digest(REPOSITORIES_MAX + 1), None).unwrap();
        assert!(!keys.has_published(digest(1)).unwrap() && keys.has_published(digest(2)).unwrap());
        assert!(fs::metadata(dir.path().join(PUBLISHED_NAME)).unwrap().len() < 200 << 10);
    }

    #[test]
    fn what_cannot_be_read_is_no_empty_memory_and_is_not_written_over() {
        fn check(text: &str, expected: &str) {
            let (dir, keys) = keys();
            durable::replace(dir.path(), PUBLISHED_NAME, text.as_bytes()).unwrap();
            for error in [keys.has_published(digest(1)).unwrap_err(), keys.end_publishing(digest(1)).unwrap_err()] {
                assert!(error.to_string().ends_with(expected), "{error}");
            }
            assert_eq!(fs::read_to_string(dir.path().join(PUBLISHED_NAME)).unwrap(), text);
        }
        check("", "published.json is damaged");
        check(r#"{"format":1}"#, "published.json is damaged");
        check(r#"{"format":1,"repositories":[],"more":1}"#, "published.json is damaged");
        check(r#"{"format":2,"known":{}}"#, "published.json has format 2, 1 is known");
    }
}
