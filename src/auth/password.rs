//! Passwords against their stored hashes: few at a time, and in memory that is used again.
//!
//! A hash takes 12 MiB and tens of milliseconds by design. Whoever may ask for one is a stranger: so there are never more than
//! [`HASHES_MAX`] under way, whoever asks, and an account that does not exist takes as long as one that does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use argon2::password_hash::phc::{Output, PasswordHash};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use refit_base::lock;
use tokio::sync::Semaphore;

/// How many hashes are made at once: one for each processor of a small appliance, and the rest of it goes on.
const HASHES_MAX: usize = 2;
/// How many may wait for that: a second's worth. Who comes later is told to try again.
const WAITING_MAX: usize = 64;
/// What a password is compared with where there is no such account: as costly as one that was set here, and of no password.
const NO_ACCOUNT: &str =
    "$argon2id$v=19$m=12288,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Makes the hashes.
#[derive(Debug)]
pub(super) struct Hashes {
    slots: Arc<Semaphore>,
    /// Those that have a slot or wait for one.
    asked: AtomicUsize,
    /// The memory of hashes that are made, as long as others wait.
    memory: Mutex<Vec<Vec<Block>>>,
}

/// Too many wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crowded;

impl Default for Hashes {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(HASHES_MAX)), asked: AtomicUsize::new(0), memory: Mutex::default() }
    }
}

impl Hashes {
    /// Returns whether `password` is the one of the hash `stored`; `None` is that of no account, which takes as long.
    ///
    /// # Errors
    /// Too many wait.
    pub(super) async fn is_of(self: &Arc<Self>, stored: Option<String>, password: String) -> Result<bool, Crowded> {
        let asked = Asked::new(self)?;
        // A semaphore that nobody closes is never closed.
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return Err(Crowded) };
        let hashes = Arc::clone(self);
        let work = move || {
            let mut memory = lock(&hashes.memory).pop().unwrap_or_default();
            let is_account = stored.is_some();
            let is_of = matches(stored.as_deref().unwrap_or(NO_ACCOUNT), password.as_bytes(), &mut memory);
            // Given back to the system when nobody waits: an appliance has better use for it.
            if hashes.asked.load(Ordering::Relaxed) > HASHES_MAX {
                lock(&hashes.memory).push(memory);
            } else {
                lock(&hashes.memory).clear();
            }
            drop(slot);
            is_of && is_account
        };
        // A hash is made to its end, whoever still waits for it.
        let is_of = tokio::task::spawn_blocking(work).await.unwrap_or(false);
        drop(asked);
        Ok(is_of)
    }
}

/// Counts one that waits, as long as it lives.
struct Asked(Arc<Hashes>);

impl Asked {
    fn new(hashes: &Arc<Hashes>) -> Result<Self, Crowded> {
        let asked = Self(Arc::clone(hashes));
        if hashes.asked.fetch_add(1, Ordering::Relaxed) < HASHES_MAX + WAITING_MAX { Ok(asked) } else { Err(Crowded) }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns whether `password` is the one of the hash `stored`, in the PHC's format, which says itself how it was made.
fn matches(stored: &str, password: &[u8], memory: &mut Vec<Block>) -> bool {
    let mut find = || {
        let hash = PasswordHash::new(stored).ok()?;
        let (salt, expected) = (hash.salt?, hash.hash?);
        let params = Params::try_from(&hash).ok()?;
        let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
        let version = Version::try_from(hash.version.unwrap_or(u32::from(Version::V0x13))).ok()?;
        memory.resize(params.block_count(), Block::default());
        let mut found = [0; Output::MAX_LENGTH];
        let found = found.get_mut(..expected.len())?;
        let argon2 = Argon2::new(algorithm, version, params);
        argon2.hash_password_into_with_memory(password, &salt, found, memory.as_mut_slice()).ok()?;
        // In a time that says nothing about where they differ.
        Some(Output::new(found).ok()? == expected)
    };
    find().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_password_is_told_from_others_and_from_that_of_no_account() {
        let hashes = Arc::new(Hashes::default());
        let stored = super::super::accounts::hash("right horse").expect("hashed");
        let is_of = |stored: Option<&String>, password: &str| {
            let (hashes, stored, password) = (Arc::clone(&hashes), stored.cloned(), password.to_owned());
            async move { hashes.is_of(stored, password).await }
        };
        assert_eq!(is_of(Some(&stored), "right horse").await, Ok(true));
        assert_eq!(is_of(Some(&stored), "wrong horse").await, Ok(false));
        assert_eq!(is_of(None, "").await, Ok(false));
        assert_eq!(is_of(Some(&"not a hash".to_owned()), "right horse").await, Ok(false));
        let no_account = PasswordHash::new(NO_ACCOUNT).expect("a hash");
        let of_account = PasswordHash::new(&stored).expect("a hash");
        assert_eq!(Params::try_from(&no_account), Params::try_from(&of_account), "it takes as long");
        assert!(lock(&hashes.memory).is_empty(), "given back");

        let many: JoinSet<_> = (0..100).map(|_| is_of(Some(&stored), "wrong horse")).collect();
        let crowded = many.join_all().await.into_iter().filter(|answer| *answer == Err(Crowded)).count();
        assert!(crowded >= 100 - HASHES_MAX - WAITING_MAX - 10, "{crowded}");
        assert_eq!(hashes.asked.load(Ordering::Relaxed), 0);
    }
}
