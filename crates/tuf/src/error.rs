//! Why metadata is not accepted.

use std::io;

use jiff::Timestamp;

/// Why metadata, or a target, is not accepted. What was accepted before it stays so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TufError {
    /// Bytes that are no metadata of the role their name says.
    #[error("{name} is not the metadata its name says")]
    Format {
        /// The file.
        name: String,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// Metadata of another role.
    #[error("{name} says that it is {found:?}, not {expected:?}")]
    Type {
        /// The file.
        name: String,
        /// The role it must have.
        expected: &'static str,
        /// The role it says.
        found: String,
    },
    /// Metadata of a specification that this client does not know.
    #[error("{name} follows version {found:?} of the specification, 1.x is known")]
    Specification {
        /// The file.
        name: String,
        /// The version it says.
        found: String,
    },
    /// Too few signatures of the keys that its role has.
    #[error("{name} is not signed as it must be")]
    Signature {
        /// The file.
        name: String,
        /// What the check found.
        #[source]
        source: Box<tough::schema::Error>,
    },
    /// Another version than its name, or the metadata that leads to it, says.
    #[error("{name} has version {found}, {expected} was announced")]
    Version {
        /// The file.
        name: String,
        /// The version announced.
        expected: u64,
        /// The version it has.
        found: u64,
    },
    /// A version below one that was accepted before.
    #[error("{name} has version {found}, and {seen} was seen before")]
    Rollback {
        /// The file.
        name: String,
        /// The version offered.
        found: u64,
        /// The version seen.
        seen: u64,
    },
    /// A snapshot that no longer lists what one before it listed.
    #[error("the snapshot no longer lists {name}")]
    Removed {
        /// The file.
        name: String,
    },
    /// A file that the metadata which leads to it does not list.
    #[error("the signed metadata lists no {name}")]
    Unlisted {
        /// The file.
        name: String,
    },
    /// Another length than was signed.
    #[error("{name} has {found} bytes, {signed} were signed")]
    Length {
        /// The file.
        name: String,
        /// Bytes it has.
        found: u64,
        /// Bytes that were signed.
        signed: u64,
    },
    /// Another content than was signed.
    #[error("{name} differs from its signed {algorithm} digest")]
    Content {
        /// The file.
        name: String,
        /// The digest's algorithm.
        algorithm: &'static str,
    },
    /// Only digests that this client cannot compute.
    #[error("{name} was signed with no digest that is known here")]
    NoDigest {
        /// The file.
        name: String,
    },
    /// Metadata that is past its date.
    #[error("{name} expired at {at}")]
    Expired {
        /// The file.
        name: String,
        /// When.
        at: Timestamp,
    },
    /// A delegated role that takes the name of another.
    #[error("a delegated role must not be called {name:?}")]
    Name {
        /// Its name.
        name: String,
    },
    /// A key that is listed under another id than its own.
    #[error("{name} lists another key as {id}")]
    KeyId {
        /// The file.
        name: String,
        /// The id.
        id: String,
    },
    /// More delegated roles than are looked through.
    #[error("more than {max} delegated roles were asked for {target:?}")]
    Delegations {
        /// What was looked for.
        target: String,
        /// How many roles are asked.
        max: usize,
    },
    /// More roots than are followed at once.
    #[error("there are more than {max} newer roots")]
    Roots {
        /// How many are followed.
        max: usize,
    },
    /// A file that must be there.
    #[error("{name} is missing")]
    Missing {
        /// The file.
        name: String,
    },
    /// A file that could not be had.
    #[error("cannot get {name}")]
    Fetch {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was accepted could not be kept.
    #[error("cannot keep {name}")]
    Keep {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TufError {
    /// Returns whether it is the transport or the disk that failed, not the metadata.
    #[must_use]
    pub fn is_transport(&self) -> bool {
        match self {
            Self::Fetch { .. } | Self::Keep { .. } => true,
            Self::Format { .. }
            | Self::Type { .. }
            | Self::Specification { .. }
            | Self::Signature { .. }
            | Self::Version { .. }
            | Self::Rollback { .. }
            | Self::Removed { .. }
            | Self::Unlisted { .. }
            | Self::Length { .. }
            | Self::Content { .. }
            | Self::NoDigest { .. }
            | Self::Expired { .. }
            | Self::Name { .. }
            | Self::KeyId { .. }
            | Self::Delegations { .. }
            | Self::Roots { .. }
            | Self::Missing { .. } => false,
        }
    }
}
