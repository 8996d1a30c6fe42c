//! Sessions: who is logged in, and as long as what.
//!
//! A session is a random token, of which only the digest is kept here and carried to the next process image, so that nobody has
//! to log in again after an update. The token is in a cookie, which a browser sends to every port of the host; so whatever
//! changes something takes a second secret, which other pages do not get. A session ends with its account and with its
//! password, after a time without use, and after an absolute time.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit_base::{clock, lock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::accounts::load;
use super::attempts::{Attempts, From};
use super::password::Hashes;
use crate::home::Home;

/// A session that is not used so long is over.
const IDLE_MAX: Duration = Duration::from_secs(12 * 3600);
/// A session is over so long after its beginning, however much it is used.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many sessions an account may have; the one that was not used for the longest time goes first.
const SESSIONS_MAX: usize = 32;
/// How many sessions there may be of all accounts; the same.
const ALL_SESSIONS_MAX: usize = 256;
/// How many passwords that were right are remembered.
const CHECKED_MAX: usize = 100;
/// How often it is looked whether who reads a stream may still read it: nothing tells of an account that is changed on the disk.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

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
    /// When it began, on the same clock.
    #[serde(default)]
    pub begun_ns: Option<u64>,
    /// The digest of the second secret; `None` where an older release has written it: then it only looks.
    #[serde(default)]
    pub secret: Option<String>,
    /// The digest of the account's stored password.
    #[serde(default)]
    pub password: Option<String>,
}

/// Why a login was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Wrong account or password.
    #[error("the account or the password is wrong")]
    Wrong,
    /// Too many wrong ones lately from there.
    #[error("too many wrong passwords came from this address")]
    TooMany,
    /// Too many at once, of all.
    #[error("too many passwords are being checked at once")]
    Busy,
}

/// An account that has proved who it is, and what that is good as long as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The account.
    pub user: String,
    /// The digest of its stored password.
    password: String,
    /// The digest of the session's token, if it is by a session.
    session: Option<String>,
}

impl Login {
    /// Returns whether it is by a session's cookie, which a browser sends unasked.
    pub fn is_by_session(&self) -> bool {
        self.session.is_some()
    }
}

/// What a browser needs for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// For the cookie.
    pub token: String,
    /// The second secret: for every change.
    pub secret: String,
}

/// Who is logged in.
#[derive(Debug)]
pub struct Sessions {
    sessions: Mutex<VecDeque<CarriedSession>>,
    attempts: Attempts,
    hashes: Arc<Hashes>,
    /// Credentials that were checked before: hashing each request's password anew would be a load that anybody can make.
    checked: Mutex<VecDeque<(String, String)>>,
    /// The accounts as they were read last.
    accounts: Mutex<Option<Accounts>>,
    /// Counts the sessions that ended, for streams.
    ended: watch::Sender<u64>,
}

/// The accounts' hashes by name, and which state of the file that is.
#[derive(Debug)]
struct Accounts {
    stamp: (u64, u64, i64, i64),
    hashes: BTreeMap<String, String>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

fn random() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

impl Sessions {
    /// Returns the sessions that were carried over.
    pub fn new(carried: Vec<CarriedSession>) -> Self {
        let now_ns = clock::monotonic_ns();
        let mut sessions = carried;
        for session in &mut sessions {
            session.used_ns.get_or_insert(now_ns);
            session.begun_ns.get_or_insert(now_ns);
        }
        Self {
            sessions: Mutex::new(sessions.into()),
            attempts: Attempts::default(),
            hashes: Arc::default(),
            checked: Mutex::default(),
            accounts: Mutex::default(),
            ended: watch::channel(0).0,
        }
    }

    /// Checks a password that comes `from` there.
    ///
    /// # Errors
    /// It is wrong, or nobody may try any more from there for a while, or too many try at once.
    pub async fn check_password(
        &self,
        home: &Home,
        user: &str,
        password: &str,
        from: From,
    ) -> Result<Login, LoginError> {
        let stored = self.stored(home, user);
        let key = digest(&format!("{user}\0{password}"));
        let login = |stored: &str| Login { user: user.to_owned(), password: digest(stored), session: None };
        if let Some(stored) = &stored
            && lock(&self.checked).iter().any(|(hash, good)| hash == stored && *good == key)
        {
            return Ok(login(stored));
        }
        let refused = |error: LoginError| {
            self.attempts.log(user, from, Some(&error.to_string()));
            error
        };
        let Some(attempt) = self.attempts.begin(from) else { return Err(refused(LoginError::TooMany)) };
        let is_right = self.hashes.is_of(stored.clone(), password.to_owned()).await;
        match (is_right, stored) {
            (Ok(true), Some(stored)) => {
                attempt.forgive();
                let login = login(&stored);
                let mut checked = lock(&self.checked);
                if checked.len() == CHECKED_MAX {
                    checked.pop_front();
                }
                checked.push_back((stored, key));
                Ok(login)
            }
            (Ok(_), _) => Err(refused(LoginError::Wrong)),
            (Err(_crowded), _) => {
                attempt.forgive();
                Err(refused(LoginError::Busy))
            }
        }
    }

    /// Begins a session of somebody who has logged in from there.
    pub fn begin(&self, login: &Login, from: From) -> Begun {
        let begun = Begun { token: random(), secret: random() };
        let now_ns = clock::monotonic_ns();
        {
            let mut sessions = lock(&self.sessions);
            let of_user = |session: &CarriedSession| session.user == login.user;
            if sessions.iter().filter(|session| of_user(session)).count() >= SESSIONS_MAX {
                forget_idlest(&mut sessions, of_user);
            }
            if sessions.len() >= ALL_SESSIONS_MAX {
                forget_idlest(&mut sessions, |_| true);
            }
            sessions.push_back(CarriedSession {
                digest: digest(&begun.token),
                user: login.user.clone(),
                used_at: clock::now().as_second(),
                used_ns: Some(now_ns),
                begun_ns: Some(now_ns),
                secret: Some(digest(&begun.secret)),
                password: Some(login.password.clone()),
            });
        }
        self.ended.send_modify(|count| *count += 1);
        self.attempts.log(&login.user, from, None);
        begun
    }

    /// Returns who has the session `token`, which is used by that.
    pub fn find(&self, home: &Home, token: &str) -> Option<Login> {
        let digest = digest(token);
        let user = lock(&self.sessions).iter().find(|session| session.digest == digest)?.user.clone();
        let stored = self.stored(home, &user).map(|stored| self::digest(&stored));
        let now_ns = clock::monotonic_ns();
        let mut sessions = lock(&self.sessions);
        sessions.retain_mut(|session| {
            if session.digest == digest && session.password.is_none() {
                session.password.clone_from(&stored); // an older release has begun it
            }
            let has_ended = session.digest == digest && (stored.is_none() || session.password != stored);
            !has_ended && !is_over(session, now_ns)
        });
        let session = sessions.iter_mut().find(|session| session.digest == digest)?;
        (session.used_at, session.used_ns) = (clock::now().as_second(), Some(now_ns));
        Some(Login { user, password: stored?, session: Some(digest) })
    }

    /// Returns whether `secret` is the second one of the session of `login`.
    pub fn is_secret(&self, login: &Login, secret: &str) -> bool {
        let secret = digest(secret);
        let is_its = |session: &CarriedSession| Some(&session.digest) == login.session.as_ref();
        lock(&self.sessions)
            .iter()
            .find(|session| is_its(session))
            .is_some_and(|session| session.secret == Some(secret))
    }

    /// Ends the session of `token`.
    pub fn end(&self, token: &str) {
        let digest = digest(token);
        lock(&self.sessions).retain(|session| session.digest != digest);
        self.ended.send_modify(|count| *count += 1);
    }

    /// Done when `login` is good for nothing any more: its session has ended, or its account or password is another.
    pub async fn ended(&self, home: &Home, login: &Login) {
        let mut ended = self.ended.subscribe();
        while self.is_good(home, login) {
            // Cancel-safe: both only wait. The sender lives as long as this does.
            tokio::select! {
                _ = ended.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Returns whether `login` is good. Who only reads on uses the session by that.
    fn is_good(&self, home: &Home, login: &Login) -> bool {
        let stored = self.stored(home, &login.user).map(|stored| digest(&stored));
        if stored.as_ref() != Some(&login.password) {
            return false;
        }
        let Some(digest) = &login.session else { return true };
        let now_ns = clock::monotonic_ns();
        let mut sessions = lock(&self.sessions);
        let Some(session) = sessions.iter_mut().find(|session| session.digest == *digest) else { return false };
        if is_over(session, now_ns) {
            return false;
        }
        session.used_ns = Some(now_ns);
        true
    }

    /// Returns the stored password of an account. What cannot be read now is as it was.
    fn stored(&self, home: &Home, user: &str) -> Option<String> {
        let stamp = |file: fs::Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec());
        let mut accounts = lock(&self.accounts);
        let now = match fs::metadata(home.users()) {
            Ok(file) => Some(stamp(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(_) => accounts.as_ref().map(|known| known.stamp),
        };
        let Some(now) = now else {
            *accounts = None;
            return None;
        };
        if accounts.as_ref().is_none_or(|known| known.stamp != now) {
            let hashes = load(home).unwrap_or_default();
            *accounts = Some(Accounts { stamp: now, hashes });
        }
        accounts.as_ref()?.hashes.get(user).cloned()
    }

    /// Returns all sessions, for the next image.
    pub fn carried(&self) -> Vec<CarriedSession> {
        lock(&self.sessions).iter().cloned().collect()
    }
}

fn is_over(session: &CarriedSession, now_ns: u64) -> bool {
    let since = |then: Option<u64>| Duration::from_nanos(now_ns.saturating_sub(then.unwrap_or(now_ns)));
    since(session.used_ns) > IDLE_MAX || since(session.begun_ns) > AGE_MAX
}

/// Removes, of those that are meant, the one that was not used for the longest time.
fn forget_idlest(sessions: &mut VecDeque<CarriedSession>, is_meant: impl Fn(&CarriedSession) -> bool) {
    let meant = sessions.iter().enumerate().filter(|(_, session)| is_meant(session));
    if let Some((index, _)) = meant.min_by_key(|(_, session)| session.used_ns) {
        sessions.remove(index);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::accounts::{ADMIN, AuthError, has_accounts, new_password, set_password};
    use super::super::attempts::WRONG_MAX;
    use super::*;

    const HERE: From = None;

    fn home_with(password: &str) -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(Path::new("/"), dir.path());
        set_password(&home, ADMIN, password).expect("set");
        (dir, home)
    }

    #[tokio::test]
    async fn a_password_opens_and_too_many_wrong_ones_close_the_door() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(Path::new("/"), dir.path());
        assert!(!has_accounts(&home).expect("read"));
        assert!(matches!(set_password(&home, ADMIN, "short"), Err(AuthError::Length)));
        let password = new_password();
        set_password(&home, ADMIN, &password).expect("set");
        let sessions = Sessions::default();
        let check = async |user: &str, password: &str, from: From| {
            sessions.check_password(&home, user, password, from).await.map(|login| login.user)
        };
        assert_eq!(check(ADMIN, &password, HERE).await.as_deref(), Ok(ADMIN));
        assert_eq!(check("nobody", &password, HERE).await, Err(LoginError::Wrong));
        for _ in 1..WRONG_MAX {
            assert_eq!(check(ADMIN, "wrong password", HERE).await, Err(LoginError::Wrong));
        }
        assert_eq!(check(ADMIN, "wrong password", HERE).await, Err(LoginError::TooMany));
        assert_eq!(check(ADMIN, &password, HERE).await.as_deref(), Ok(ADMIN), "who proved it before stays in");
        let elsewhere = Some("192.0.2.1".parse().expect("an address"));
        assert_eq!(check(ADMIN, "wrong password", elsewhere).await, Err(LoginError::Wrong), "others may still try");
    }

    #[tokio::test]
    async fn a_session_is_carried_without_its_secrets_and_ends_with_the_password() {
        let (_dir, home) = home_with("right horse");
        let sessions = Sessions::default();
        let login = sessions.check_password(&home, ADMIN, "right horse", HERE).await.expect("right");
        let Begun { token, secret } = sessions.begin(&login, HERE);
        let next = Sessions::new(sessions.carried());
        let found = next.find(&home, &token).expect("there");
        assert_eq!(found.user, ADMIN);
        assert!(next.is_secret(&found, &secret) && !next.is_secret(&found, &token));
        let carried = serde_json::to_string(&next.carried()).expect("json");
        assert!(!carried.contains(&token) && !carried.contains(&secret));
        next.end(&token);
        assert_eq!(next.find(&home, &token), None);
        next.ended(&home, &found).await;

        let token = next.begin(&login, HERE).token;
        let found = next.find(&home, &token).expect("there");
        set_password(&home, ADMIN, "another horse").expect("set");
        assert_eq!(next.find(&home, &token), None);
        next.ended(&home, &found).await;
        assert!(next.carried().is_empty(), "forgotten");
    }

    #[tokio::test]
    async fn many_logins_push_out_the_one_that_was_not_used_for_the_longest_time() {
        let (_dir, home) = home_with("right horse");
        let sessions = Sessions::default();
        let login = sessions.check_password(&home, ADMIN, "right horse", HERE).await.expect("right");
        let (idle, used) = (sessions.begin(&login, HERE).token, sessions.begin(&login, HERE).token);
        for _ in 0..2 * SESSIONS_MAX {
            assert!(sessions.find(&home, &used).is_some());
            sessions.begin(&login, HERE);
        }
        assert!(sessions.find(&home, &used).is_some() && sessions.find(&home, &idle).is_none());
        assert_eq!(sessions.carried().len(), SESSIONS_MAX);
    }

    #[test]
    fn a_session_is_over_after_a_time_without_use_and_after_an_absolute_one() {
        let session = |used: Duration, begun: Duration| CarriedSession {
            digest: String::new(),
            user: ADMIN.to_owned(),
            used_at: 0,
            used_ns: Some(u64::try_from(used.as_nanos()).expect("fits")),
            begun_ns: Some(u64::try_from(begun.as_nanos()).expect("fits")),
            secret: None,
            password: None,
        };
        let now = AGE_MAX + Duration::from_secs(60);
        let now_ns = u64::try_from(now.as_nanos()).expect("fits");
        let minute = Duration::from_secs(60);
        assert!(!is_over(&session(now, now - minute), now_ns));
        assert!(is_over(&session(now - IDLE_MAX - minute, now - IDLE_MAX - minute), now_ns));
        assert!(is_over(&session(now, Duration::ZERO), now_ns));
    }
}
