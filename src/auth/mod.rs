//! Who may use the page: accounts with a password, and sessions.
//!
//! Passwords are kept as Argon2id hashes in `auth/users.json`. A session is a random token, of which only the digest is kept
//! here and carried to the next process image, so that nobody has to log in again after an update.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version};
use refit_base::clock;
use refit_base::{Exit, Reported};
use refit_updater::durable;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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
/// A session that is not used so long is over.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(12 * 3600);
/// How many sessions there may be; the oldest goes first.
const SESSIONS_MAX: usize = 100;
/// So many wrong passwords within [`FAILURES_WITHIN`] close the door until the first of them is that old.
const FAILURES_MAX: usize = 10;
/// See [`FAILURES_MAX`].
const FAILURES_WITHIN: Duration = Duration::from_secs(60);

/// What is wrong with the accounts, or with a password.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file cannot be used.
    #[error("cannot use the accounts {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
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
    fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::Damaged { .. } => "accounts_unusable",
            Self::Length => "password_length",
            Self::Hash { .. } => "password_hash",
        }
    }

    fn remedy(&self) -> &str {
        match self {
            Self::Io { .. } => "check the disk and the permissions of the home",
            Self::Damaged { .. } => "set the password anew with `refit user passwd`",
            Self::Length => "choose another one; nothing was changed",
            Self::Hash { .. } => "try again; nothing was changed",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Io { .. } => Exit::Disk,
            Self::Damaged { .. } => Exit::Config,
            Self::Length => Exit::Usage,
            Self::Hash { .. } => Exit::Failed,
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
fn load(home: &Home) -> Result<BTreeMap<String, String>, AuthError> {
    let path = home.users();
    let bytes = match durable::read_limited(&path, USERS_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(AuthError::Io { path, source }),
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

/// Sets the password of the account `name`, which is made if it does not exist.
///
/// # Errors
/// The password is too short, or the file cannot be written. Nothing was changed.
pub fn set_password(home: &Home, name: &str, password: &str) -> Result<(), AuthError> {
    if password.chars().count() < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
        return Err(AuthError::Length);
    }
    let hash: PasswordHash =
        hasher()?.hash_password(password.as_bytes()).map_err(|reason| AuthError::Hash { reason })?;
    let mut users = match load(home) {
        Ok(users) => users,
        Err(AuthError::Damaged { .. }) => BTreeMap::new(), // the remedy for a damaged file is this command
        Err(error) => return Err(error),
    };
    users.insert(name.to_owned(), hash.to_string());
    let document = UsersV1 {
        format: USERS_FORMAT,
        users: users.into_iter().map(|(name, password)| (name, UserV1 { password })).collect(),
    };
    let path = home.users();
    let dir = home.path().join("auth");
    let written = durable::create_dirs(&dir).and_then(|()| {
        let bytes = serde_json::to_vec_pretty(&document).map_err(io::Error::from)?;
        durable::replace_with_mode(&dir, "users.json", &bytes, 0o600)
    });
    written.map_err(|source| AuthError::Io { path, source })
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

/// A session for the next process image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedSession {
    /// The digest of its token.
    pub digest: String,
    /// The account.
    pub user: String,
    /// When it was last used, in seconds since the epoch.
    pub used_at: i64,
}

/// Why a login was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Wrong account or password.
    Wrong,
    /// Too many wrong ones lately.
    TooMany,
}

/// Who is logged in.
#[derive(Debug, Default)]
pub struct Sessions {
    sessions: Mutex<VecDeque<CarriedSession>>,
    failures: Mutex<VecDeque<Instant>>,
    /// Credentials that were checked before: hashing each request's password anew would be a load that anybody can make.
    checked: Mutex<VecDeque<(String, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

impl Sessions {
    /// Returns the sessions that were carried over.
    pub fn new(carried: Vec<CarriedSession>) -> Self {
        Self { sessions: Mutex::new(carried.into()), ..Self::default() }
    }

    /// Checks a password. Takes the time of a hash; call it where that may be.
    ///
    /// # Errors
    /// It is wrong, or nobody may try any more for a while.
    pub fn check_password(&self, home: &Home, user: &str, password: &str) -> Result<(), Refusal> {
        let stored = load(home).ok().and_then(|users| users.get(user).cloned());
        let stored = stored.ok_or(Refusal::Wrong);
        let key = digest(&format!("{user}\0{password}"));
        if let Ok(stored) = &stored
            && lock(&self.checked).iter().any(|(hash, good)| hash == stored && *good == key)
        {
            return Ok(());
        }
        {
            let mut failures = lock(&self.failures);
            while failures.front().is_some_and(|at| at.elapsed() > FAILURES_WITHIN) {
                failures.pop_front();
            }
            if failures.len() >= FAILURES_MAX {
                return Err(Refusal::TooMany);
            }
        }
        let checked = stored.and_then(|stored| {
            let hash = PasswordHash::new(&stored).map_err(|_| Refusal::Wrong)?;
            Argon2::default().verify_password(password.as_bytes(), &hash).map_err(|_| Refusal::Wrong)?;
            Ok(stored)
        });
        match checked {
            Ok(stored) => {
                let mut checked = lock(&self.checked);
                if checked.len() == SESSIONS_MAX {
                    checked.pop_front();
                }
                checked.push_back((stored, key));
                Ok(())
            }
            Err(refusal) => {
                lock(&self.failures).push_back(Instant::now());
                Err(refusal)
            }
        }
    }

    /// Begins a session of `user`. Returns its token.
    pub fn begin(&self, user: &str) -> String {
        let token: String = hex::encode(rand::random::<[u8; 32]>());
        let mut sessions = lock(&self.sessions);
        if sessions.len() == SESSIONS_MAX {
            sessions.pop_front();
        }
        let used_at = clock::now().as_second();
        sessions.push_back(CarriedSession { digest: digest(&token), user: user.to_owned(), used_at });
        token
    }

    /// Returns whose session `token` is.
    pub fn user(&self, token: &str) -> Option<String> {
        let now = clock::now().as_second();
        let idle_max = i64::try_from(SESSION_IDLE_MAX.as_secs()).unwrap_or(i64::MAX);
        let digest = digest(token);
        let mut sessions = lock(&self.sessions);
        sessions.retain(|session| now - session.used_at <= idle_max);
        let session = sessions.iter_mut().find(|session| session.digest == digest)?;
        session.used_at = now;
        Some(session.user.clone())
    }

    /// Ends the session of `token`.
    pub fn end(&self, token: &str) {
        let digest = digest(token);
        lock(&self.sessions).retain(|session| session.digest != digest);
    }

    /// Returns all sessions, for the next image.
    pub fn carried(&self) -> Vec<CarriedSession> {
        lock(&self.sessions).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_password_opens_and_too_many_wrong_ones_close_the_door() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(Path::new("/"), dir.path());
        assert!(!has_accounts(&home).expect("read"));
        assert!(matches!(set_password(&home, ADMIN, "short"), Err(AuthError::Length)));
        let password = new_password();
        set_password(&home, ADMIN, &password).expect("set");
        let sessions = Sessions::default();
        assert_eq!(sessions.check_password(&home, ADMIN, &password), Ok(()));
        assert_eq!(sessions.check_password(&home, "nobody", &password), Err(Refusal::Wrong));
        for _ in 1..FAILURES_MAX {
            assert_eq!(sessions.check_password(&home, ADMIN, "wrong password"), Err(Refusal::Wrong));
        }
        assert_eq!(sessions.check_password(&home, ADMIN, "wrong password"), Err(Refusal::TooMany));
        assert_eq!(sessions.check_password(&home, ADMIN, &password), Ok(()), "who proved it before stays in");
    }

    #[test]
    fn a_session_is_carried_without_its_token() {
        let sessions = Sessions::default();
        let token = sessions.begin(ADMIN);
        let next = Sessions::new(sessions.carried());
        assert_eq!(next.user(&token).as_deref(), Some(ADMIN));
        assert!(!serde_json::to_string(&next.carried()).expect("json").contains(&token));
        next.end(&token);
        assert_eq!(next.user(&token), None);
    }
}
