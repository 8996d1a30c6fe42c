//! Sessions: who is logged in, and how often a wrong password may be tried.
//!
//! A session is a random token, of which only the digest is kept here and carried to the next process image, so that nobody has
//! to log in again after an update.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use refit_base::{clock, lock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::accounts::load;
use crate::home::Home;

/// A session that is not used so long is over.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(12 * 3600);
/// How many sessions there may be; the oldest goes first.
const SESSIONS_MAX: usize = 100;
/// So many wrong passwords within [`FAILURES_WITHIN`] close the door until the first of them is that old.
const FAILURES_MAX: usize = 10;
/// See [`FAILURES_MAX`].
const FAILURES_WITHIN: Duration = Duration::from_secs(60);

/// A session for the next process image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedSession {
    /// The digest of its token.
    pub digest: String,
    /// The account.
    pub user: String,
    /// When it was last used, in seconds since the epoch: for an older release.
    pub used_at: i64,
    /// The same in nanoseconds of the monotonic clock; `None` where an older release has written it.
    #[serde(default)]
    pub used_ns: Option<u64>,
}

/// Why a login was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Wrong account or password.
    #[error("the account or the password is wrong")]
    Wrong,
    /// Too many wrong ones lately.
    #[error("too many wrong passwords")]
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

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

impl Sessions {
    /// Returns the sessions that were carried over.
    pub fn new(carried: Vec<CarriedSession>) -> Self {
        let now_ns = clock::monotonic_ns();
        let mut sessions = carried;
        for session in &mut sessions {
            session.used_ns.get_or_insert(now_ns);
        }
        Self { sessions: Mutex::new(sessions.into()), ..Self::default() }
    }

    /// Checks a password. Takes the time of a hash; call it where that may be.
    ///
    /// # Errors
    /// It is wrong, or nobody may try any more for a while.
    pub fn check_password(&self, home: &Home, user: &str, password: &str) -> Result<(), LoginError> {
        let stored = load(home).ok().and_then(|users| users.get(user).cloned());
        let stored = stored.ok_or(LoginError::Wrong);
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
                return Err(LoginError::TooMany);
            }
        }
        let checked = stored.and_then(|stored| {
            let hash = PasswordHash::new(&stored).map_err(|_| LoginError::Wrong)?;
            Argon2::default().verify_password(password.as_bytes(), &hash).map_err(|_| LoginError::Wrong)?;
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
            Err(error) => {
                lock(&self.failures).push_back(Instant::now());
                Err(error)
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
        let (used_at, used_ns) = (clock::now().as_second(), Some(clock::monotonic_ns()));
        sessions.push_back(CarriedSession { digest: digest(&token), user: user.to_owned(), used_at, used_ns });
        token
    }

    /// Returns whose session `token` is.
    pub fn user(&self, token: &str) -> Option<String> {
        let now_ns = clock::monotonic_ns();
        let idle = |session: &CarriedSession| now_ns.saturating_sub(session.used_ns.unwrap_or(now_ns));
        let digest = digest(token);
        let mut sessions = lock(&self.sessions);
        sessions.retain(|session| Duration::from_nanos(idle(session)) <= SESSION_IDLE_MAX);
        let session = sessions.iter_mut().find(|session| session.digest == digest)?;
        (session.used_at, session.used_ns) = (clock::now().as_second(), Some(now_ns));
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
    use std::path::Path;

    use super::super::accounts::{ADMIN, AuthError, has_accounts, new_password, set_password};
    use super::*;

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
        assert_eq!(sessions.check_password(&home, "nobody", &password), Err(LoginError::Wrong));
        for _ in 1..FAILURES_MAX {
            assert_eq!(sessions.check_password(&home, ADMIN, "wrong password"), Err(LoginError::Wrong));
        }
        assert_eq!(sessions.check_password(&home, ADMIN, "wrong password"), Err(LoginError::TooMany));
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
