//! What went wrong with a directory of keys.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use refit_base::{Exit, FileError, Report, Reported};
use tough::schema::RoleType;

/// What went wrong with a directory of keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The new root is there, and a key that it retires is where it was.
    #[error("root {version} is written, but cannot put {} into retired/", path.display())]
    Retire {
        /// The new root's version.
        version: u64,
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another run changes the directory.
    #[error("{} is being changed by another run", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// There are keys already.
    #[error("{} holds keys already", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// No root file.
    #[error("{} holds no 1.root.json", dir.display())]
    NoRoot {
        /// The directory.
        dir: PathBuf,
    },
    /// A file that is no root, or a gap in the numbers.
    #[error("{} is no root, or not the one its name says", path.display())]
    Root {
        /// The file.
        path: PathBuf,
    },
    /// A file that is no private key.
    #[error("{} is no ed25519 key in PKCS#8", path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// A file that is no public key of a kind that signs.
    #[error("{} is no public key of ed25519, ECDSA P-256 or RSA in PEM", path.display())]
    PublicKey {
        /// The file.
        path: PathBuf,
    },
    /// A file that does not describe a key outside.
    #[error("{} does not describe a key with `public` and `command`", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A description without a program.
    #[error("{} names no program to sign with", path.display())]
    NoCommand {
        /// The file.
        path: PathBuf,
    },
    /// A key with a passphrase, and none was given.
    #[error("{} is protected by a passphrase", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A wrong passphrase, or a damaged file.
    #[error("{} cannot be opened with this passphrase", path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
    },
    /// The passphrase could not be read.
    #[error("cannot read the passphrase of {}", path.display())]
    NoPassphrase {
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The private key does not belong to the public one beside it.
    #[error("{} is not the private key of the public key beside it", path.display())]
    OtherKey {
        /// The private key's file.
        path: PathBuf,
    },
    /// The program that signs could not be run.
    #[error("cannot run {program:?}, which signs for {}", path.display())]
    Run {
        /// The program.
        program: String,
        /// The description that names it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program that signs failed.
    #[error("{program:?}, which signs for {}, {how}", path.display())]
    Failed {
        /// The program.
        program: String,
        /// The description that names it.
        path: PathBuf,
        /// How it ended.
        how: String,
    },
    /// The program that signs took too long.
    #[error("{program:?}, which signs for {}, gave no signature within {} s{said}", path.display(), limit.as_secs_f64())]
    Late {
        /// The program.
        program: String,
        /// The description that names it.
        path: PathBuf,
        /// How long it may take.
        limit: Duration,
        /// What it said meanwhile, behind a colon, if it did.
        said: String,
    },
    /// The program gave something that is no signature of its key.
    #[error("{program:?} gave {bytes} bytes that are no signature with {}", path.display())]
    NoSignature {
        /// The program.
        program: String,
        /// The public key's description.
        path: PathBuf,
        /// How many bytes it gave.
        bytes: usize,
    },
    /// Too few of a role's keys are here.
    #[error("role {role} needs {threshold} signatures, {have} of its keys are here")]
    TooFew {
        /// The role.
        role: RoleType,
        /// How many signatures it needs.
        threshold: u64,
        /// How many keys are here.
        have: u64,
    },
    /// More signatures asked for than keys to make them.
    #[error("a threshold of {threshold} cannot be met with {keys} keys")]
    Threshold {
        /// The threshold.
        threshold: u64,
        /// The keys.
        keys: u64,
    },
    /// Keys for a role that gets none.
    #[error("keys of role {role} are named or counted, and it is not among the roles that get new ones")]
    NotRotated {
        /// The role.
        role: RoleType,
    },
    /// A key outside would be replaced by one in a file.
    #[error("the key of role {role} is outside ({key}), and nobody said which one follows it")]
    Outside {
        /// The role.
        role: RoleType,
        /// Its description, or its id.
        key: String,
    },
    /// A key that may be outside would be replaced by one in a file.
    #[error("no key of role {role} is here; it may be outside, and nobody said which one follows it")]
    Absent {
        /// The role.
        role: RoleType,
    },
    /// The cryptographic library failed.
    #[error("cannot make a key")]
    Generate,
    /// Metadata could not be written as JSON.
    #[error("cannot encode the metadata of role {role}")]
    Encode {
        /// The role.
        role: RoleType,
        /// Why.
        #[source]
        source: Box<serde_json::Error>,
    },
    /// A version of zero.
    #[error("metadata versions begin with 1")]
    VersionZero,
    /// As many roots as a package may have.
    #[error("there are {max} roots already, and no package may have more")]
    Roots {
        /// How many.
        max: usize,
    },
}

impl KeysError {
    /// Returns whether a disk failed or is full; anything else is wrong with what was named, or with what it holds.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        use io::ErrorKind::{AlreadyExists, FileTooLarge, InvalidFilename, IsADirectory, NotADirectory, NotFound};
        use io::ErrorKind::{PermissionDenied, UnexpectedEof};
        let (source, reads) = if let Self::File(FileError { action, source, .. }) = self {
            (source, *action == "read")
        } else if let Self::Retire { source, .. } = self {
            (source, false)
        } else {
            return false;
        };
        let what_is_there =
            [AlreadyExists, InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied, UnexpectedEof];
        let too_large = reads && source.kind() == FileTooLarge;
        !too_large && !what_is_there.contains(&source.kind())
    }
}

impl Reported for KeysError {
    fn report(&self) -> Report<'_> {
        let (exit, remedy) = match self {
            // The command line names what is not there, or asks for the impossible, whatever the files hold.
            Self::File(FileError { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                (Exit::Usage, "check that the directory can be read and written")
            }
            Self::Threshold { .. } => (Exit::Usage, "ask for more keys or a lower threshold"),
            Self::NotRotated { .. } => (Exit::Usage, "rotate that role, too, or say nothing of its keys"),
            Self::Busy { .. } => (Exit::TryLater, "wait until that one has ended, then try again"),
            Self::Generate | Self::Encode { .. } => (Exit::Failed, "report this as a bug of refit"),
            Self::File(_) if self.is_disk() => (
                Exit::Disk,
                "free space on that disk or check it, then try again; `refit keys show` tells what there is",
            ),
            Self::File(_) => (Exit::Config, "check that the directory can be read and written"),
            Self::Retire { .. } => (
                if self.is_disk() { Exit::Disk } else { Exit::Config },
                "the rotation is done and needs no other; free space or check the directory: the next one puts the key aside",
            ),
            Self::Outside { .. } => (
                Exit::Config,
                "name the next key with --external ROLE=FILE, or rotate only others with --role; \
                 --external ROLE=none makes one in a file",
            ),
            Self::Absent { .. } => (
                Exit::Config,
                "name the directory of its key with --with, or the next key with --external ROLE=FILE, or rotate only others \
                 with --role; --external ROLE=none makes one in a file",
            ),
            Self::Exists { .. } => (Exit::Config, "choose an empty directory: keys are never overwritten"),
            Self::NoRoot { .. } => {
                (Exit::Config, "make keys with `refit keys init`, or name the directory that has them")
            }
            Self::Root { .. } | Self::Key { .. } | Self::PublicKey { .. } | Self::OtherKey { .. } => {
                (Exit::Config, "restore the file from a backup of the directory")
            }
            Self::Description { .. } | Self::NoCommand { .. } => (
                Exit::Config,
                "write public = \"FILE.pem\" and command = [\"PROGRAM\", ...] into it; timeout = \"10m\" may follow",
            ),
            Self::Locked { .. } => {
                (Exit::Config, "name a file with the passphrase in REFIT_KEY_PASSPHRASE_FILE, or use a terminal")
            }
            Self::Passphrase { .. } => (Exit::Config, "try again with the right passphrase"),
            Self::NoPassphrase { .. } => (Exit::Config, "check the file that REFIT_KEY_PASSPHRASE_FILE names"),
            Self::Run { .. } | Self::Failed { .. } => (Exit::Config, "run the program by hand to see what it lacks"),
            Self::Late { .. } => (
                Exit::Config,
                "see what it waits for, or give it more time in its description: timeout = \"10m\", for example",
            ),
            Self::NoSignature { .. } => (
                Exit::Config,
                "let it write the bare signature of its standard input, made with that key, and nothing else",
            ),
            Self::TooFew { .. } => (Exit::Config, "bring the role's other keys: name their directory with --with"),
            Self::VersionZero => (Exit::Config, "give a version of 1 or more"),
            Self::Roots { .. } => (Exit::Config, "begin a new chain of trust with `refit keys init`"),
        };
        Report::new("keys_unusable", exit, remedy)
    }
}
