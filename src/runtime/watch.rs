//! Restart on change: when a file that `[runtime] watch` names is replaced, the runtime restarts in place, once.
//!
//! Nothing happens while the files still change or one of them is missing, while an update is under way, or while somebody
//! holds the inhibitor: a lock on `run/inhibit`, which `refit bus inhibit COMMAND` holds as long as the command runs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use refit_bus::{Bus, Level, Origin};
use refit_updater::{durable, modes};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc;

use crate::events::Events;
use crate::home::Home;
use crate::update::Manager;

/// How long a change waits for the end of an inhibitor to be told, before it looks by itself.
const INHIBITOR_LOOK: Duration = Duration::from_secs(5);

/// What makes a file another one: not its time alone, which package managers keep.
type Look = Option<(u64, u64, u64, i64, i64)>;

fn look(path: &Path) -> Look {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// Who is asked, and by whom.
pub(super) struct Watch {
    pub(super) bus: Bus,
    pub(super) manager: Arc<Manager>,
    pub(super) events: Arc<Events>,
    pub(super) home: Home,
    pub(super) paths: Vec<PathBuf>,
    pub(super) settle: Duration,
}

impl Watch {
    /// Watches until one restart is asked for.
    pub(super) async fn run(self) {
        if let Err(error) = self.watch().await {
            self.bus.log_error("the files of [runtime] watch cannot be watched", &error);
        }
    }

    async fn watch(&self) -> Result<(), notify::Error> {
        let (seen, mut changes) = mpsc::channel(1);
        // One that does not fit says no more than the one that waits.
        let tell = move |_| {
            seen.try_send(()).ok();
        };
        let mut watcher = RecommendedWatcher::new(tell, notify::Config::default())?;
        // The directories are watched: a file that is replaced by a rename is another file.
        let run = self.home.run();
        let dirs: BTreeSet<&Path> = self.paths.iter().filter_map(|path| path.parent()).chain([run.as_path()]).collect();
        for dir in dirs {
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
        }
        let before: Vec<Look> = self.paths.iter().map(|path| look(path)).collect();
        while changes.recv().await.is_some() {
            while let Ok(Some(())) = tokio::time::timeout(self.settle, changes.recv()).await {}
            let Some(changed) = self.changed(&before) else { continue };
            self.until_allowed(changed, &mut changes).await;
            if self.changed(&before).is_none() {
                continue; // it was taken back, or is being written again
            }
            let origin = Origin(format!("change of {}", changed.display()));
            self.manager.restart_or_log(&self.bus, origin).await;
            return Ok(());
        }
        Ok(())
    }

    /// Returns the first file that is another than `before`; `None` also while one is missing that was there.
    fn changed(&self, before: &[Look]) -> Option<&Path> {
        let now: Vec<Look> = self.paths.iter().map(|path| look(path)).collect();
        if before.iter().zip(&now).any(|(before, now)| before.is_some() && now.is_none()) {
            return None;
        }
        let place = before.iter().zip(&now).position(|(before, now)| before != now)?;
        self.paths.get(place).map(PathBuf::as_path)
    }

    /// Waits until no update is under way and nobody holds the inhibitor, whose end is a change in its directory.
    async fn until_allowed(&self, changed: &Path, changes: &mut mpsc::Receiver<()>) {
        let mut told = false;
        let mut tell = |why: &str| {
            if !std::mem::replace(&mut told, true) {
                self.bus.log(Level::Info, format!("{} changed; the restart waits for {why}", changed.display()));
            }
        };
        loop {
            let mut newest = self.events.watch();
            if self.manager.view().is_some() {
                tell("the end of the update");
                drop(newest.changed().await); // its sender lives as long as this image
                continue;
            }
            match Inhibitor::is_free(&self.home) {
                Ok(true) => return,
                Ok(false) => tell("the end of the inhibitor"),
                Err(error) => self.bus.log(Level::Error, format!("cannot look at the inhibitor: {error}; tried again")),
            }
            drop(tokio::time::timeout(INHIBITOR_LOOK, changes.recv()).await);
            tokio::time::sleep(self.settle).await;
        }
    }
}

/// A lock that keeps the appliance from restarting by itself. Any number may hold it at once.
#[derive(Debug)]
pub struct Inhibitor {
    _held: File,
}

impl Inhibitor {
    fn open(home: &Home) -> io::Result<File> {
        durable::open_or_create(&home.inhibitor(), modes::of("run/inhibit"))
    }

    /// Takes it, as long as it is not dropped.
    ///
    /// # Errors
    /// The lock's file cannot be used.
    pub fn hold(home: &Home) -> io::Result<Self> {
        let file = Self::open(home)?;
        flock(&file, FlockOperation::LockShared)?;
        Ok(Self { _held: file })
    }

    /// Returns whether nobody holds it.
    fn is_free(home: &Home) -> io::Result<bool> {
        match flock(Self::open(home)?, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
