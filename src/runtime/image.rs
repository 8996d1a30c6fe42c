//! The life of one process image: adopt what was handed over, run the bus, describe what is left.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use refit_updater::Store;
use refit_updater::journal::{self, Journal, JournalError};
use refit_updater::release::{Release, StoreError};
use refit_updater::trust::{Trust, TrustError};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{End, Given, guard_link, signals};
use crate::api::{self, ApiSocketError, App, Parked, Server};
use crate::auth::Sessions;
use crate::bus::{self, Bus, BusEvent, Cycle, Ended, Fault, Hooks, Origin, Participant, Replacement, Request, Seat};
use crate::clock;
use crate::component::{self, CarriedParts, Estate, EstateParts, Logs, Process, Surroundings};
use crate::config::{self, Config, ConfigError};
use crate::error::{Chain, Exit, Reported};
use crate::events::Events;
use crate::handover::carry::{CarriedInstance, Carry};
use crate::handover::exec;
use crate::handover::inherit::Inheritance;
use crate::handover::listener::{BindError, Listeners};
use crate::handover::{Named, names, notify};
use crate::home::HomeError;
use crate::tickets::Tickets;
use crate::update::{Manager, Parts, Times, UpdateError};

/// Why the runtime could not start.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The home has no appliance.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The release cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The trust cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A listener cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The API's socket cannot be had.
    #[error(transparent)]
    ApiSocket(#[from] ApiSocketError),
    /// The update manager cannot begin.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// Components wait for each other.
    #[error(transparent)]
    Cycle(#[from] Cycle),
    /// The system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
}

impl Reported for RuntimeError {
    fn code(&self) -> &str {
        match self {
            Self::Home(error) => error.code(),
            Self::Journal(_) => "journal_unusable",
            Self::Store(_) => "release_unusable",
            Self::Trust(_) => "trust_unusable",
            Self::Config(error) => error.code(),
            Self::Bind(_) | Self::ApiSocket(_) => "address_in_use",
            Self::Update(error) => error.code(),
            Self::Cycle(_) => "configuration_refused",
            Self::Io { .. } => "system_refused",
        }
    }

    fn remedy(&self) -> &str {
        match self {
            Self::Home(error) => error.remedy(),
            Self::Journal(error) => error.remedy(),
            Self::Store(error) => error.remedy(),
            Self::Trust(error) => error.remedy(),
            Self::Config(error) => error.remedy(),
            Self::Bind(_) => {
                "stop the program that uses it, or override the listener in local.toml; nothing was started"
            }
            Self::ApiSocket(_) => "check the permissions of the home; nothing was started",
            Self::Update(error) => error.remedy(),
            Self::Cycle(_) => "correct appliance.toml; nothing was started",
            Self::Io { .. } => "check the limits of the system",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Home(error) => error.exit(),
            Self::Journal(JournalError::Format { .. } | JournalError::Damaged { .. }) => Exit::Config,
            Self::Journal(JournalError::Read { .. } | JournalError::Write { .. }) => Exit::Disk,
            Self::Store(_) | Self::Bind(_) | Self::ApiSocket(_) | Self::Io { .. } => Exit::Failed,
            Self::Trust(_) | Self::Cycle(_) => Exit::Config,
            Self::Config(error) => error.exit(),
            Self::Update(error) => error.exit(),
        }
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> RuntimeError {
    move |source| RuntimeError::Io { what, source }
}

/// How long a report to the guard may wait for a place in its queue: a guard that hangs must not hang the runtime.
const GUARD_WAIT_MAX: Duration = Duration::from_secs(1);

/// What is read from disk before anything else.
struct OnDisk {
    store: Store,
    trust: Trust,
    journal: Journal,
    release: Release,
    config: Arc<Config>,
}

fn read_disk(given: &Given) -> Result<OnDisk, RuntimeError> {
    let home = given.home.path();
    let journal = journal::load(home)?.ok_or_else(|| HomeError::Empty { home: home.to_owned() })?;
    let store = Store::open(home)?;
    let trust = Trust::of(home);
    let release = store.release(journal.state.wanted())?;
    let config = Arc::new(Config::load(&release.dir, &home.join(config::LOCAL_FILE))?);
    Ok(OnDisk { store, trust, journal, release, config })
}

/// What the bus asks and tells: the update manager decides about failed starts, the events hear everything.
struct BusHooks {
    manager: Arc<Manager>,
    events: Arc<Events>,
}

impl Hooks for BusHooks {
    fn observe(&self, event: &BusEvent) {
        match event {
            BusEvent::State(state) => {
                tracing::info!(bus.state = state.name(), "bus");
                self.events.publish("bus.state", json!({ "state": state }));
                if *state == bus::State::Exiting {
                    self.manager.about_to_exec();
                }
            }
            BusEvent::Fault(fault) => {
                tracing::warn!(component.name = fault.component, phase = fault.phase, cause = fault.cause, "fault");
                self.events.publish("fault", json!(fault));
            }
            BusEvent::Request { name, origin } => {
                tracing::info!(request = name, origin = origin.0, "request");
                self.events.publish("bus.request", json!({ "request": name, "origin": origin.0 }));
            }
        }
    }

    fn start_failed(&self, faults: &[Fault]) -> Option<Arc<Replacement>> {
        self.manager.start_failed(faults)
    }
}

/// Lives from what was handed over to an end.
pub(super) async fn live(given: &Given, mut inherited: Inheritance) -> Result<End, RuntimeError> {
    let begun_ns = clock::monotonic_ns();
    let guard_channel = inherited.take(names::GUARD);
    let lock = inherited.take(names::LOCK);
    let (stored, states): (Vec<String>, Vec<OwnedFd>) =
        inherited.take_all(names::STATE).into_iter().map(|part| (part.name, part.descriptor)).unzip();
    let mut instance_parts = inherited.take_all(names::INSTANCE);
    let inherited_api = inherited.take(names::API).map(UnixListener::from);
    let parked_parts = inherited.take_all(names::PARKED);
    let before = Carry::newest(&states).map_err(io_error("read the state of the image before"))?;
    drop(states);

    let disk = read_disk(given)?;
    let had: Vec<String> = inherited.names();
    let listeners = Listeners::adopt(&disk.config.listeners, &mut inherited)?;
    if disk.config.listeners.get(config::ADMIN).is_some_and(|address| !address.ip().is_loopback()) {
        tracing::warn!("the admin listener speaks plain HTTP and is not bound to the loopback address");
    }
    let api_was_there = inherited_api.is_some();
    let api_socket = api::api_socket(&given.home, inherited_api)?;
    let mut listeners = listeners;
    for part in inherited.take_rest() {
        // A listener of the release before: it may be wanted again.
        tracing::info!(listener.name = part.name, "a listener that this release does not have is kept aside");
        listeners.keep_aside(part);
    }

    let connected = |address: &Path| {
        let socket = notify::connect(address)?;
        socket.set_write_timeout(Some(GUARD_WAIT_MAX))?;
        Ok::<_, io::Error>(socket)
    };
    let guard = given.notify.as_deref().and_then(|address| match connected(address) {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!(%error, "cannot reach the guard");
            None
        }
    });
    let estate = estate(&before, guard);
    for older in stored.iter().filter_map(|number| number.parse().ok()).filter(|number| *number != before.sequence) {
        estate.drop_state(older); // a crash came between keeping the newer and dropping the older
    }
    store_with_guard(&estate, &listeners, &had, &api_socket, api_was_there)?;
    let micros = disk.config.update.watchdog.as_micros();
    estate.tell_guard(&format!("WATCHDOG_USEC={micros}\nWATCHDOG=1"), &[]);

    let (reaped_sender, reaped) = watch::channel(BTreeMap::new());
    let around = Arc::new(Surroundings {
        home: given.home.clone(),
        release_dir: disk.release.dir.clone(),
        version: disk.release.version.clone(),
        config_dir: disk.store.config_dir(&disk.release.version),
        listeners: Mutex::new(listeners),
        estate: Arc::clone(&estate),
        reaped,
        environment: given.environment.clone(),
    });
    let mut tasks = JoinSet::new();
    let components = components(&disk, &around, before.instances.clone(), &mut instance_parts, &mut tasks)?;
    let (bus, seat) = Bus::open();
    let manager = Arc::new(Manager::new(Parts {
        store: disk.store,
        trust: disk.trust,
        journal: disk.journal,
        config: Arc::clone(&disk.config),
        around: Arc::clone(&around),
        components: components.clone(),
        installed: given.installed.clone(),
        bus: bus.clone(),
        times: Times { trial_ns: before.trial_ns, exec_ns: before.exec_ns, begun_ns },
    }));

    let parked = unpark(parked_parts, &before.parked);
    let parts = Assembled { config: disk.config, around, components, manager, bus, seat, parked, before };
    run_image(parts, guard_channel, lock, reaped_sender, api_socket, tasks).await
}

fn estate(before: &Carry, guard: Option<std::os::unix::net::UnixDatagram>) -> Arc<Estate> {
    let stem = format!("{:x}", clock::now().as_millisecond());
    Arc::new(Estate::new(
        before,
        before.generation + 1,
        guard,
        EstateParts {
            events: Arc::new(Events::new(before.events.clone())),
            tickets: Arc::new(Tickets::new(before.tickets.clone(), stem)),
            logs: Arc::new(Logs::new(before.logs.clone())),
            sessions: Arc::new(Sessions::new(before.sessions.clone())),
        },
    ))
}

/// Gives the guard what it does not keep yet under its present name, and has it drop what is not wanted any more.
fn store_with_guard(
    estate: &Estate,
    listeners: &Listeners,
    had: &[String],
    api_socket: &UnixListener,
    api_was_there: bool,
) -> Result<(), RuntimeError> {
    let described = listeners.describe().map_err(io_error("describe the listeners"))?;
    for part in &described {
        let fresh = listeners.is_fresh(&part.name);
        if fresh || !had.contains(&part.name) {
            estate.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={}", part.name), &[]);
            estate.store(&part.name, &part.descriptor);
        }
    }
    for name in had {
        if !described.iter().any(|part| part.name == *name) {
            estate.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        }
    }
    if !api_was_there {
        let socket = api_socket.try_clone().map_err(io_error("duplicate the API's socket"))?;
        estate.store(names::API, &OwnedFd::from(socket));
    }
    Ok(())
}

/// Makes the components of this release, each with its processes from the image before. Processes of components that the
/// release does not have are ended.
fn components(
    disk: &OnDisk,
    around: &Arc<Surroundings>,
    carried: Vec<CarriedInstance>,
    parts: &mut Vec<Named>,
    tasks: &mut JoinSet<()>,
) -> Result<Vec<Arc<Process>>, RuntimeError> {
    let fingerprints = Manager::fingerprints(&disk.config, &disk.release, &around.config_dir)
        .map_err(io_error("read the live configuration"))?;
    let mut by_component: BTreeMap<String, Vec<(CarriedInstance, CarriedParts)>> = BTreeMap::new();
    for instance in carried {
        let Some(found) = CarriedParts::find(&instance.id, parts) else { continue };
        by_component.entry(instance.component.clone()).or_default().push((instance, found));
    }
    let components = disk
        .config
        .components
        .iter()
        .zip(fingerprints)
        .map(|(definition, fingerprint)| {
            let carried = by_component.remove(&definition.name).unwrap_or_default();
            Arc::new(Process::new(definition.clone(), fingerprint, Arc::clone(around), carried, tasks))
        })
        .collect();
    for (instance, parts) in by_component.into_values().flatten() {
        component::end_stray(instance, parts, Arc::clone(around), tasks);
    }
    Ok(components)
}

/// Returns the connections that the image before left, with what it had read of them.
fn unpark(parts: Vec<Named>, read: &BTreeMap<String, String>) -> Vec<Parked> {
    parts
        .into_iter()
        .filter_map(|part| {
            // A connection whose beginning is lost would be answered wrongly: it is closed.
            let read = BASE64.decode(read.get(&part.name)?).ok()?;
            let listener = part.name.split('.').next()?.to_owned();
            Some(Parked { listener, socket: part.descriptor, read: read.into() })
        })
        .collect()
}

/// What one image is made of.
struct Assembled {
    config: Arc<Config>,
    around: Arc<Surroundings>,
    components: Vec<Arc<Process>>,
    manager: Arc<Manager>,
    bus: Bus,
    seat: Seat,
    /// The connections of the image before.
    parked: Vec<Parked>,
    before: Carry,
}

async fn run_image(
    parts: Assembled,
    guard_channel: Option<OwnedFd>,
    lock: Option<OwnedFd>,
    reaped: watch::Sender<BTreeMap<i32, String>>,
    api_socket: UnixListener,
    mut tasks: JoinSet<()>,
) -> Result<End, RuntimeError> {
    let Assembled { config, around, components, manager, bus, seat, parked, before } = parts;
    let estate = Arc::clone(&around.estate);
    let hooks = Arc::new(BusHooks { manager: Arc::clone(&manager), events: Arc::clone(&estate.events) });
    let admin = {
        let listeners = around.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let admin = listeners.get(config::ADMIN).map(std::net::TcpListener::try_clone);
        admin.transpose().map_err(io_error("duplicate the admin listener"))?
    };
    let app = Arc::new(App {
        manager: Arc::clone(&manager),
        bus: bus.clone(),
        config: Arc::clone(&config),
        around: Arc::clone(&around),
        components: components.iter().map(|part| (part.definition().name.clone(), Arc::clone(part))).collect(),
        guard_pid: std::os::unix::process::parent_id(),
        started_at: clock::stamp(),
        stopping: CancellationToken::new(),
    });
    let socket = api_socket.try_clone().map_err(io_error("duplicate the API's socket"))?;
    let server = Arc::new(Server::new(app, socket, admin, before, parked));
    let participants = components.iter().map(|component| Arc::clone(component) as Arc<dyn Participant>).collect();
    let engine = seat.engine(vec![Arc::clone(&server) as Arc<dyn Participant>], participants, hooks)?;

    let now = CancellationToken::new();
    let signals =
        signals::listen(bus.clone(), Arc::clone(&manager), now.clone()).map_err(io_error("receive signals"))?;
    tasks.spawn(signals);
    exec::unblock_signals().map_err(io_error("receive signals"))?;
    tasks.spawn(guard_link::feed_watchdog(Arc::clone(&estate), config.update.watchdog));
    let kept_channel = keep(guard_channel.as_ref())?;
    if let Some(channel) = guard_channel {
        let bus = bus.clone();
        tasks.spawn(async move {
            if let Err(error) = guard_link::listen(channel, reaped).await {
                tracing::warn!(%error, "cannot hear the guard");
            }
            tracing::error!("the guard is gone; ending, so that the next one finds a clean place");
            drop(bus.request(Request::Exit, Origin("guard lost".to_owned())));
        });
    }
    for component in &components {
        tasks.spawn(publish_changes(Arc::clone(component), Arc::clone(&estate)));
    }
    // Held before anybody can ask: until the disk is tidy nothing is received.
    let permit = manager.hold_receiving();
    let tidied = tell_running(bus.clone(), Arc::clone(&manager), Arc::clone(&estate), config.name.clone(), permit);
    tasks.spawn(tidied);

    drop(bus.request(Request::Start, Origin("start".to_owned())));
    // Cancel-safe: when the third signal comes nothing of the bus is wanted any more.
    let ended = tokio::select! {
        ended = engine.run() => ended,
        () = now.cancelled() => {
            tracing::error!(state = bus.state().name(), "ending now; what had not ended yet is killed");
            return Ok(End::Exit(Exit::Failed));
        }
    };
    match &ended.replacement {
        Some(replacement) => {
            manager.end();
            tasks.shutdown().await;
            // Until the next image says that it is ready, nothing is.
            estate.tell_guard("RELOADING=1", &[]);
            let descriptors = describe(&around, &server, manager.trial_ns(), api_socket, kept_channel, lock)
                .map_err(io_error("describe what is handed over"))?;
            Ok(End::Replace { program: replacement.program.clone(), label: replacement.label.clone(), descriptors })
        }
        None => {
            if ended.asked && !manager.gives_way() {
                // Without it the guard would start the next runtime.
                estate.tell_guard("STOPPING=1", &[]);
            }
            for component in &components {
                // Those that the bus never started, but that ran: taken over from an image before.
                if let Err(failure) = component.stop_alone().await {
                    tracing::warn!(component.name = component.definition().name, %failure, "cannot stop");
                }
            }
            manager.end();
            tasks.shutdown().await;
            Ok(End::Exit(exit_status(&ended)))
        }
    }
}

fn keep(channel: Option<&OwnedFd>) -> Result<Option<OwnedFd>, RuntimeError> {
    channel.map(OwnedFd::try_clone).transpose().map_err(io_error("duplicate the channel to the guard"))
}

/// Says why it ends if nobody asked. Returns the status.
fn exit_status(ended: &Ended) -> Exit {
    if let Some(fault) = ended.faults.first() {
        if !ended.asked {
            let text = format!("component {} failed to {}: {}", fault.component, fault.phase, fault.cause);
            super::say(&text, Exit::Failed);
        }
        return Exit::Failed;
    }
    Exit::Done
}

/// Publishes what changes of a component.
async fn publish_changes(component: Arc<Process>, estate: Arc<Estate>) {
    let mut views = component.view();
    let mut last = None;
    loop {
        let view = views.borrow_and_update().clone();
        let seen = Some((view.state, view.pid, view.health.clone(), view.status.clone()));
        if seen != last {
            last = seen;
            let data = json!({
                "name": view.name, "state": view.state, "pid": view.pid, "health": view.health.name(),
                "reason": view.reason, "status": view.status,
            });
            estate.events.publish("component", data);
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Tidies the disk, and tells the guard and the update manager when the site runs.
async fn tell_running(
    bus: Bus,
    manager: Arc<Manager>,
    estate: Arc<Estate>,
    name: String,
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
) {
    let mut states = bus.watch();
    // After the first accept: what waits for the disk is not on the way there.
    let entered = states.wait_for(|state| !matches!(state, bus::State::Initial | bus::State::Entering)).await.is_ok();
    if let (true, Some(permit)) = (entered, permit)
        && let Err(error) = manager.tidy(permit).await
    {
        tracing::error!(error = %Chain(&error), "cannot tidy the home; the next start tries again");
    }
    if states.wait_for(|state| *state == bus::State::Running).await.is_ok() {
        let status = format!("READY=1\nSTATUS={name} is running");
        estate.tell_guard(&status, &[]);
        manager.site_runs();
        estate.tickets.settle_carried();
        estate.save();
    }
}

/// Returns everything that the next image is handed.
fn describe(
    around: &Surroundings,
    server: &Server,
    trial_ns: Option<u64>,
    api_socket: UnixListener,
    channel: Option<OwnedFd>,
    lock: Option<OwnedFd>,
) -> io::Result<Vec<Named>> {
    let listeners = around.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut parts = listeners.describe()?;
    drop(listeners);
    let named = |name: &str, descriptor: OwnedFd| Named { name: name.to_owned(), descriptor };
    parts.push(named(names::API, api_socket.into()));
    parts.extend(channel.map(|channel| named(names::GUARD, channel)));
    parts.extend(lock.map(|lock| named(names::LOCK, lock)));
    parts.extend(around.estate.describe()?);
    let mut carry = around.estate.save();
    carry.stopped_accepting_ns = server.stopped_accepting_ns();
    carry.exec_ns = Some(clock::monotonic_ns());
    carry.trial_ns = trial_ns;
    for (number, Parked { listener, socket, read }) in server.take_parked().into_iter().enumerate() {
        let name = format!("{listener}.{number}");
        parts.push(named(&format!("{}{name}", names::PARKED), socket));
        carry.parked.insert(name, BASE64.encode(read));
    }
    parts.push(named(&component::state_name(carry.sequence), carry.seal()?));
    Ok(parts)
}
