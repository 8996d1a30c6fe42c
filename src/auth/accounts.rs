//! Accounts: names and the Argon2id hashes of their passwords, in `auth/users.json`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, Version};
use refit_base::{Exit, FileError, Report, Reported, file_error};
use refit_updater::{durable, modes};
use serde::{Deserialize, Serialize};

use crate::home::Home;

/// The account that every appliance begins with.
pub const ADMIN: &str = "admin";
/// The version of the file's format.
const USERS_FORMAT: u32 = 1;
/// The largest file that is read.
const USERS_BYTES_MAX: u64 = 1 << 20;
/// The shortest password that is accepted: what NIST SP 800-63B asks for.
pub const PASSWORD_CHARS_MIN: usize = 8;
/// The longest one: hashing takes time by length.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Memory and passes of a hash: of the settings that OWASP's password storage cheat sheet holds equal, the one whose
/// memory a small appliance has to spare.
const HASH_KIB: u32 = 12 << 10;
/// See [`HASH_KIB`].
const HASH_PASSES: u32 = 3;

/// What an error says that the file is needed for.
const ACTION: &str = "use the accounts";

/// What is wrong with the accounts, or with a password.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is damaged or of another format.
    #[error("the accounts {} are damaged or of another format", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The password is too short or too long.
    #[error("a password has at least {PASSWORD_CHARS_MIN} characters and at most {PASSWORD_BYTES_MAX} bytes")]
    Length,
    /// The password cannot be hashed.
    #[error("cannot hash the password: {reason}")]
    Hash {
        /// Why.
        reason: argon2::password_hash::Error,
    },
}

impl Reported for AuthError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::File(_) => {
                Report::new("accounts_unusable", Exit::Disk, "check the disk and the permissions of the home")
            }
            Self::Damaged { .. } => {
                Report::new("accounts_unusable", Exit::Config, "set the password anew with `refit user passwd`")
            }
            Self::Length => Report::new("password_length", Exit::Usage, "choose another one; nothing was changed"),
            Self::Hash { .. } => Report::new("password_hash", Exit::Failed, "try again; nothing was changed"),
        }
    }
}

/// The file as it is on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsersV1 {
    format: u32,
    users: BTreeMap<String, UserV1>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserV1 {
    password: String,
}

/// Returns the accounts' hashes, by name; none if the file does not exist.
///
/// # Errors
/// The file cannot be read or is damaged.
pub(super) fn load(home: &Home) -> Result<BTreeMap<String, String>, AuthError> {
    let path = home.users();
    let bytes = match durable::read_limited(&path, USERS_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(file_error(ACTION, &path)(error).into()),
    };
    match serde_json::from_slice::<UsersV1>(&bytes) {
        Ok(users) if users.format == USERS_FORMAT => {
            Ok(users.users.into_iter().map(|(name, user)| (name, user.password)).collect())
        }
        Ok(_) | Err(_) => Err(AuthError::Damaged { path }),
    }
}

/// Returns what makes new hashes; those that are stored say themselves how they were made.
fn hasher() -> Result<Argon2<'static>, AuthError> {
    let params =
        Params::new(HASH_KIB, HASH_PASSES, 1, None).map_err(|reason| AuthError::Hash { reason: reason.into() })?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Returns the hash of a password, as it is stored.
pub(super) fn hash(password: &str) -> Result<String, AuthError> {
    let hash: PasswordHash =
        hasher()?.hash_password(password.as_bytes()).map_err(|reason| AuthError::Hash { reason })?;
    Ok(hash.to_string())
}

/// Sets the password of the account `name`, which is made if it does not exist.
///
/// # Errors
/// The password is too short, or the file cannot be written. Nothing was changed.
pub fn set_password(home: &Home, name: &str, password: &str) -> Result<(), AuthError> {
    if password.chars().count() < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
        return Err(AuthError::Length);
    }
    let hash = hash(password)?;
    let mut users = match load(home) {
        Ok(users) => users,
        Err(AuthError::Damaged { .. }) => BTreeMap::new(), // the remedy for a damaged file is this command
        Err(error) => return Err(error),
    };
    users.insert(name.to_owned(), hash);
    let document = UsersV1 {
        format: USERS_FORMAT,
        users: users.into_iter().map(|(name, password)| (name, UserV1 { password })).collect(),
    };
    let dir = home.path().join("auth");
    let written = durable::create_dirs(&dir, modes::of("auth")).and_then(|()| {
        let bytes = serde_json::to_vec_pretty(&document).map_err(io::Error::from)?;
        durable::replace_with_mode(&dir, "users.json", &bytes, modes::of("auth/*"))
    });
    Ok(written.map_err(file_error(ACTION, &home.users()))?)
}

/// Returns whether the home has any account.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn has_accounts(home: &Home) -> Result<bool, AuthError> {
    Ok(!load(home)?.is_empty())
}

/// Returns a password that nobody guesses and everybody can type.
pub fn new_password() -> String {
    /// Without letters and digits that look alike.
    const LETTERS: &[u8] = b"abcdefghjkmnpqrstuvwxyz23456789";
    let mut password = String::new();
    for position in 0..16 {
        if position > 0 && position % 4 == 0 {
            password.push('-');
        }
        password.push(char::from(LETTERS[rand::random_range(0..LETTERS.len())]));
    }
    password
}
