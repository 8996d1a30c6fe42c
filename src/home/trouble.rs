//! Why a guard has no runtime, in a file in `run/`: commands say so at once, and do not wait for an answer.

use std::fs;
use std::io;

use refit_updater::{durable, modes};
use serde::{Deserialize, Serialize};

use super::Home;

/// The file in `run/`.
const TROUBLE_FILE: &str = "trouble.json";
/// How much of it is read.
const BYTES_MAX: u64 = 64 << 10;

/// Why no runtime of a guard starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trouble {
    /// The guard's process.
    pub guard: i32,
    /// How many starts in a row have led to nothing.
    pub failures: u32,
    /// Why the last one did.
    pub reason: String,
}

impl Trouble {
    /// Has commands find it in `home`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, home: &Home) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        durable::replace_dispensable(&home.run(), TROUBLE_FILE, &text, modes::of("run/trouble.json"))
    }
}

/// Returns why no runtime of the process `guard` starts in `home`, if that tries in vain.
pub fn read(home: &Home, guard: i32) -> Option<Trouble> {
    let text = durable::read_limited(&home.run().join(TROUBLE_FILE), BYTES_MAX).ok()?;
    serde_json::from_slice(&text).ok().filter(|trouble: &Trouble| trouble.guard == guard)
}

/// It is over.
pub fn remove(home: &Home) {
    fs::remove_file(home.run().join(TROUBLE_FILE)).ok(); // one that stays names a guard that is gone, or is replaced
}
