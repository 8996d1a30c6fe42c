//! The names of Refit's sockets, kept while it runs: a cleaner may remove them, and nobody could connect any more.
//!
//! A socket lives on without its name, with all that waits in it, but a name that is gone cannot be found out from it. So each has a
//! [second one](names), out of the way. When the first is gone, or leads elsewhere, it is made again from that, and the directories with it.
//! Where both are gone, the next image, which is asked for, binds a new socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use refit_bus::{Bus, Origin, State};
use refit_updater::{durable, modes};
use tokio::sync::mpsc;

use crate::carry::{CarriedInstance, Registry};
use crate::component;
use crate::home::{Home, names};
use crate::update::Manager;

/// How often it is looked where no change would be told: a socket outside of the home.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The same where the system tells of no changes at all.
const LOOK_EVERY_BLIND: Duration = Duration::from_secs(5);
/// And once more after something was told: a process may have been about to be recorded.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Several names that go at once are looked at once.
const SETTLE: Duration = Duration::from_millis(50);

/// Device and number of a file.
type File = (u64, u64);

/// A socket with a name.
struct Named {
    path: PathBuf,
    /// Its second name, below `run/.sockets/`.
    second: String,
    /// Whose it is, if not the runtime's own.
    instance: Option<CarriedInstance>,
}

/// Keeps the names.
pub(super) struct SocketNames {
    home: Home,
    registry: Arc<Registry>,
    bus: Bus,
    manager: Arc<Manager>,
    /// What each is, by its path.
    known: BTreeMap<PathBuf, File>,
    /// Those of which it was said that they cannot be kept.
    told: BTreeSet<PathBuf>,
}

impl SocketNames {
    pub(super) fn new(home: Home, registry: Arc<Registry>, bus: Bus, manager: Arc<Manager>) -> Self {
        Self { home, registry, bus, manager, known: BTreeMap::new(), told: BTreeSet::new() }
    }

    /// Keeps them as long as this image lives.
    pub(super) async fn keep(mut self) {
        let (seen, mut changes) = mpsc::channel(1);
        let tell = move |event: Result<notify::Event, notify::Error>| {
            if event.as_ref().map_or(true, |event| concerns(event.kind)) {
                seen.try_send(()).ok(); // one that does not fit says no more than the one that waits
            }
        };
        let mut watcher = RecommendedWatcher::new(tell, notify::Config::default())
            .inspect_err(|error| tracing::debug!(%error, "cannot watch the directory of sockets"))
            .ok();
        let (mut watched, mut was_told) = (None, true);
        loop {
            let is_watched = self.watch(watcher.as_mut(), &mut watched);
            let looked = tokio::task::spawn_blocking(move || {
                let is_lost = self.look();
                (self, is_lost)
            });
            let is_lost = match looked.await {
                Ok((names, is_lost)) => {
                    self = names;
                    is_lost
                }
                Err(_) => return, // the image ends
            };
            if is_lost && self.bus.state() == State::Running {
                self.manager.restart_or_log(&self.bus, Origin("a socket whose name is gone".to_owned())).await;
            } else if is_lost {
                self.told.clear(); // it is asked for when the site runs
            }
            let every = match (is_watched, was_told) {
                (true, false) => LOOK_EVERY,
                (true, true) => LOOK_AGAIN,
                (false, _) => LOOK_EVERY_BLIND,
            };
            // Cancel-safe: what was told once is looked at in any case.
            was_told = match tokio::time::timeout(every, changes.recv()).await {
                Ok(Some(())) => true,
                Err(_nothing) => false,
                Ok(None) => {
                    tokio::time::sleep(LOOK_EVERY_BLIND).await; // nobody tells
                    false
                }
            };
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// Has `watcher` watch the home, and `run/` as it is now. Returns whether it does.
    fn watch(&self, watcher: Option<&mut RecommendedWatcher>, watched: &mut Option<File>) -> bool {
        let Some(watcher) = watcher else { return false };
        let run = self.home.run();
        let now = file(&run);
        if now != *watched {
            watcher.unwatch(&run).ok(); // it may be gone, and its watch with it
            watcher.watch(self.home.path(), RecursiveMode::NonRecursive).ok();
            *watched = watcher.watch(&run, RecursiveMode::Recursive).ok().and(now);
        }
        watched.is_some()
    }

    /// Gives each socket its names. Returns whether one has lost both, which nobody was told before.
    fn look(&mut self) -> bool {
        if self.home.require().is_err() {
            return false; // with the home they went elsewhere: nothing is made in the place that it had
        }
        let mut is_lost = false;
        let own = [self.home.socket(), self.home.bus_socket()];
        let own = own.into_iter().map(|path| {
            let second = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Named { path, second, instance: None }
        });
        let of_instances = self.registry.instances().into_iter().filter_map(|instance| {
            let path = instance.notify_path.clone()?;
            Some(Named { path, second: names::key_of_process(&instance.id), instance: Some(instance) })
        });
        let all: Vec<Named> = own.chain(of_instances).collect();
        self.forget_others(&all);
        let seconds = self.home.socket_names();
        for socket in all {
            match self.hold(&socket, &seconds) {
                Ok(false) => drop(self.told.remove(&socket.path)),
                // Of one that ended just now it was no loss.
                Ok(true) if self.is_forgotten(&socket) => self.take_back(&socket),
                Ok(true) => {
                    tracing::warn!(path = %socket.path.display(), "the name of a socket was gone; it was made again");
                }
                Err(error) => {
                    if self.told.insert(socket.path.clone()) {
                        let path = socket.path.display();
                        tracing::warn!(%path, %error, "the name of a socket is gone and cannot be made again; the next image does it");
                        // That of a process is bound again when the next image adopts it: none is asked for because of it alone.
                        is_lost |= socket.instance.is_none();
                    }
                }
            }
        }
        is_lost
    }

    /// Removes second names of sockets that are no more.
    fn forget_others(&mut self, all: &[Named]) {
        let paths: BTreeSet<&Path> = all.iter().map(|socket| socket.path.as_path()).collect();
        let seconds: BTreeSet<&str> = all.iter().map(|socket| socket.second.as_str()).collect();
        self.known.retain(|path, _| paths.contains(path.as_path()));
        let dir = self.home.socket_names();
        for (below, prefix) in [(dir.clone(), ""), (dir.join("notify"), "notify/")] {
            for entry in fs::read_dir(below).into_iter().flatten().flatten() {
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if name != "notify" && !seconds.contains(name.as_str()) {
                    durable::remove_tree(&entry.path()).ok(); // one that stays leads to nothing
                }
            }
        }
    }

    /// Sees to it that a socket has both names, the second in `all`. Returns whether the first had to be made again.
    fn hold(&mut self, socket: &Named, all: &Path) -> io::Result<bool> {
        let Named { path, .. } = socket;
        let now = socket_at(path);
        let known = self.known.get(path).copied();
        let seconds = names::second_names(all, path, &socket.second);
        let second = seconds.iter().find(|second| match known {
            Some(known) => socket_at(second) == Some(known),
            // Of an image before this one, which may have died in between.
            None => now.is_none() && socket_at(second).is_some(),
        });
        match (now, second) {
            (Some(now), Some(_)) if known == Some(now) => Ok(false),
            (Some(now), None) => {
                self.known.insert(path.clone(), now);
                names::give_second_name(&self.home, path, &socket.second);
                Ok(false)
            }
            (_, Some(_)) if self.is_forgotten(socket) => Ok(false),
            (_, Some(second)) => {
                make_directory(&self.home, socket)?;
                durable::remove_tree(path)?;
                durable::hard_link(second, path)?;
                self.known.extend(socket_at(path).map(|now| (path.clone(), now)));
                Ok(true)
            }
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Returns whether it is the socket of a process that has ended since the look began.
    fn is_forgotten(&self, socket: &Named) -> bool {
        let is_known =
            |instance: &CarriedInstance| self.registry.instances().iter().any(|other| other.id == instance.id);
        socket.instance.as_ref().is_some_and(|instance| !is_known(instance))
    }

    /// Removes the name again that was given to the socket of a process which has been forgotten meanwhile.
    fn take_back(&self, socket: &Named) {
        if let Some(instance) = &socket.instance {
            component::remove_notify_socket(&self.home, instance);
        }
    }
}

/// Makes the directory of a socket where it is missing.
fn make_directory(home: &Home, socket: &Named) -> io::Result<()> {
    durable::create_dirs(&home.run(), modes::of("run"))?;
    match &socket.instance {
        Some(instance) => component::make_notify_place(home, instance, &socket.path),
        None => Ok(()),
    }
}

/// Returns what the socket at `path` is; `None` if none is there.
fn socket_at(path: &Path) -> Option<File> {
    let found = fs::symlink_metadata(path).ok()?;
    found.file_type().is_socket().then(|| (found.dev(), found.ino()))
}

fn file(path: &Path) -> Option<File> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Returns whether a name may have come or gone.
fn concerns(kind: EventKind) -> bool {
    match kind {
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => false,
    }
}
