//! What follows when a file that `[runtime] watch` names changes: the runtime restarts in place, once, or asks for a reload each time.
//!
//! Nothing happens while the files still change or one of them is missing, while an update is under way, or while somebody
//! holds the inhibitor: a lock on `run/inhibit`, which `refit bus inhibit COMMAND` holds as long as the command runs. What a reload
//! was last asked for is carried, so that a change in the midst of an update or a crash is not missed.

mod look;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use refit_base::lock;
use refit_bus::{self as bus, Bus, Level, Origin, Progress, Request, RequestRefused};
use refit_updater::{durable, modes};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc;

use self::look::{Look, Places, look};
use crate::carry::Registry;
use crate::config::{WatchRequest, Watched};
use crate::events::Events;
use crate::home::Home;
use crate::update::Manager;

/// How long a change waits for the end of an inhibitor to be told, before it looks by itself.
const INHIBITOR_LOOK: Duration = Duration::from_secs(5);
/// How often it is looked whether a reload still has to be confirmed, if no event says so.
const CONFIRM_LOOK: Duration = Duration::from_millis(250);

/// Who is asked, and by whom.
pub(super) struct Watch {
    pub(super) bus: Bus,
    pub(super) manager: Arc<Manager>,
    pub(super) events: Arc<Events>,
    pub(super) registry: Arc<Registry>,
    pub(super) home: Home,
    pub(super) watched: Vec<Watched>,
    pub(super) settle: Duration,
}

/// What is watched, and how it looked when the last request for it was made.
struct Seen {
    watched: Watched,
    before: Look,
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
        let places = Arc::new(Mutex::new(Places::default()));
        let told = Arc::clone(&places);
        // One that does not fit says no more than the one that waits.
        let tell = move |event| {
            if concerns(event, &lock(&told)) {
                seen.try_send(()).ok();
            }
        };
        let mut watcher = RecommendedWatcher::new(tell, notify::Config::default())?;
        self.rewatch(&mut watcher, &places)?;
        let mut files = self.files();
        // What has changed since the image before looked is noticed at once.
        let mut look_again = changed(&files).is_some();
        while look_again || changes.recv().await.is_some() {
            look_again = false;
            while let Ok(Some(())) = tokio::time::timeout(self.settle, changes.recv()).await {}
            self.rewatch(&mut watcher, &places)?;
            let Some(Watched { path, request }) = changed(&files) else { continue };
            self.until_allowed(&path, request, &mut changes).await;
            // It was taken back, or is being written again.
            let Some(Watched { path, request }) = changed(&files).filter(|now| now.request == request) else {
                continue;
            };
            let origin = Origin(format!("change of {}", path.display()));
            match request {
                WatchRequest::Restart => {
                    self.manager.restart_or_log(&self.bus, origin).await;
                    return Ok(());
                }
                WatchRequest::Reload => {
                    self.take(&mut files);
                    self.reload(origin).await;
                    look_again = true; // more may have changed meanwhile
                }
            }
        }
        Ok(())
    }

    /// Has the watcher watch where a change is told now.
    fn rewatch(&self, watcher: &mut RecommendedWatcher, places: &Mutex<Places>) -> Result<(), notify::Error> {
        /// What is made while it is looked at is looked at again; somebody who never ends has another change for each look.
        const LOOKS_MAX: usize = 8;
        for _ in 0..LOOKS_MAX {
            let mut wanted = Places::default();
            wanted.add(&self.home.inhibitor());
            for Watched { path, .. } in &self.watched {
                wanted.add(path);
            }
            let before = std::mem::replace(&mut *lock(places), wanted.clone());
            if before == wanted {
                return Ok(());
            }
            for dir in before.dirs.iter().filter(|(dir, is)| wanted.dirs.get(*dir) != Some(is)).map(|(dir, _)| dir) {
                watcher.unwatch(dir).ok(); // it may be gone, and its watch with it
            }
            for dir in wanted.dirs.iter().filter(|(dir, is)| before.dirs.get(*dir) != Some(is)).map(|(dir, _)| dir) {
                match watcher.watch(dir, RecursiveMode::NonRecursive) {
                    Err(error) if !matches!(error.kind, notify::ErrorKind::PathNotFound) && dir.exists() => {
                        return Err(error);
                    }
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Returns how everything looks. What a reload is asked for looked so when one was last asked, maybe by the image before.
    fn files(&self) -> Vec<Seen> {
        let carried = self.registry.watched();
        let seen = |watched: &Watched| {
            let before = match watched.request {
                WatchRequest::Restart => None,
                WatchRequest::Reload => carried.get(&name(&watched.path)).cloned(),
            };
            Seen { watched: watched.clone(), before: before.or_else(|| look(&watched.path)) }
        };
        let files: Vec<Seen> = self.watched.iter().map(seen).collect();
        self.carry(&files);
        files
    }

    /// Takes everything that a reload is asked for as it looks now.
    fn take(&self, files: &mut [Seen]) {
        for file in files.iter_mut().filter(|file| file.watched.request == WatchRequest::Reload) {
            file.before = look(&file.watched.path);
        }
        self.carry(files);
    }

    fn carry(&self, files: &[Seen]) {
        let reloads = files.iter().filter(|file| file.watched.request == WatchRequest::Reload);
        let looks = reloads.filter_map(|file| Some((name(&file.watched.path), file.before.clone()?)));
        self.registry.set_watched(looks.collect());
    }

    /// Asks for a reload, and logs what became of it if that is nothing. One that has to be confirmed is waited for.
    async fn reload(&self, origin: Origin) {
        let mut told = false;
        let reason = loop {
            let mut newest = self.events.watch();
            match self.bus.request(Request::Reload, origin.clone()).outcome().await {
                Progress::Done | Progress::Accepted | Progress::Already => return,
                Progress::Refused(reason) if reason == RequestRefused::Unconfirmed.to_string() => {
                    if !std::mem::replace(&mut told, true) {
                        let text =
                            format!("{}: the reload waits until it is known whether the last one stays", origin.0);
                        self.bus.log(Level::Info, text);
                    }
                    // The event comes before the bus takes another: looked at again in any case.
                    drop(tokio::time::timeout(CONFIRM_LOOK, newest.changed()).await);
                    while self.bus.unconfirmed().is_some() {
                        drop(tokio::time::timeout(CONFIRM_LOOK, newest.changed()).await);
                    }
                }
                Progress::Failed(reason) | Progress::Refused(reason) => break reason,
            }
        };
        let text = format!("{}: the reload has failed: {reason}; the next change asks for one again", origin.0);
        self.bus.log(Level::Error, text);
    }

    /// Waits until the site runs, no update is under way and nobody holds the inhibitor, whose end is a change in its directory.
    async fn until_allowed(&self, changed: &Path, request: WatchRequest, changes: &mut mpsc::Receiver<()>) {
        let mut told = false;
        let mut tell = |why: &str| {
            if !std::mem::replace(&mut told, true) {
                let request = request.name();
                self.bus.log(Level::Info, format!("{} changed; the {request} waits for {why}", changed.display()));
            }
        };
        loop {
            let mut newest = self.events.watch();
            if self.manager.view().is_some() {
                tell("the end of the update");
                drop(newest.changed().await); // its sender lives as long as this image
                continue;
            }
            let mut states = self.bus.watch();
            if request == WatchRequest::Reload && *states.borrow_and_update() != bus::State::Running {
                drop(states.changed().await);
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

/// Returns whether an event may mean that something watched looks otherwise, or that an inhibitor has ended.
fn concerns(event: Result<notify::Event, notify::Error>, places: &Places) -> bool {
    let Ok(event) = event else { return true };
    // Who reads changes nothing: this task does so itself.
    let is_read = match event.kind {
        EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => false,
    };
    !is_read && (event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(|path| places.concern(path)))
}

/// Returns the first that looks otherwise; none of a request for which one is missing that was there. A reload comes before a restart.
fn changed(files: &[Seen]) -> Option<Watched> {
    [WatchRequest::Reload, WatchRequest::Restart].into_iter().find_map(|request| {
        let of_request = files.iter().filter(|file| file.watched.request == request);
        let now: Vec<(&Seen, Look)> = of_request.map(|file| (file, look(&file.watched.path))).collect();
        if now.iter().any(|(file, now)| file.before.is_some() && now.is_none()) {
            return None;
        }
        now.into_iter().find(|(file, now)| file.before != *now).map(|(file, _)| file.watched.clone())
    })
}

fn name(path: &Path) -> String {
    path.display().to_string()
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
