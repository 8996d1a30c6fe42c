//! The life of one process image: adopt what was handed over, run the bus, describe what is left.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use refit_base::clock;
use refit_base::{Chain, Exit};
use refit_bus::{self as bus, Bus, Ended, Engine, Failure, Options, Origin, Request};
use refit_updater::Store;
use refit_updater::journal::{self, Journal};
use refit_updater::release::Release;
use refit_updater::trust::Trust;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::error::{RuntimeError, io_error};
use super::observer::{SiteObserver, trace};
use super::watch::Watch;
use super::{End, Given, guard_link, settings, signals};
use crate::api::{self, ApiServer, App};
use crate::auth::Sessions;
use crate::carry::{self, CarriedInstance, Carry, Registry, RegistryParts};
use crate::component::{self, CarriedParts, Process, RunContext};
use crate::config::{self, Config, Programs};
use crate::events::Events;
use crate::handover::exec;
use crate::handover::inherit::Inheritance;
use crate::handover::listener::Listeners;
use crate::handover::unix;
use crate::handover::{Named, names, notify};
use crate::home::{Home, HomeError};
use crate::http::{Parked, Server};
use crate::logs::{self, Logs};
use crate::peers::{self, Peers};
use crate::process::cgroup::Cgroups;
use crate::requests::{RequestDispatcher, Requests};
use crate::tickets::Tickets;
use crate::update::{Manager, Parts, Times};

/// How long a report to the guard may wait for a place in its queue: a guard that hangs must not hang the runtime.
const GUARD_WAIT_MAX: Duration = Duration::from_secs(1);

/// A database that migrates may ask for hours; every component has a deadline of its own.
const TRANSITION_MAX: Duration = Duration::from_secs(24 * 3600);

/// What is read from disk before anything else.
struct OnDisk {
    store: Store,
    trust: Trust,
    journal: Journal,
    release: Release,
    config: Arc<Config>,
}

/// Reads it. `fresh` is whether no component runs yet: then their programs have to be there.
fn read_disk(given: &Given, fresh: bool) -> Result<OnDisk, RuntimeError> {
    let home = given.home.path();
    let journal = journal::load(home)?.ok_or_else(|| HomeError::Empty { home: home.to_owned() })?;
    let store = Store::open(home)?;
    let trust = Trust::of(home);
    let release = store.release(journal.state.wanted())?;
    let local = home.join(config::LOCAL_FILE);
    let config = if fresh {
        let search = given.environment.get(OsStr::new("PATH")).map(OsString::as_os_str);
        Config::load_with_programs(&Programs::here(&release.dir, search), &local)?
    } else {
        Config::load(&release.dir, &local)?
    };
    let config = Arc::new(config);
    Ok(OnDisk { store, trust, journal, release, config })
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
    let inherited_bus = inherited.take(names::BUS).map(UnixListener::from);
    let parked_parts = inherited.take_all(names::PARKED);
    let before = Carry::newest(&states).map_err(io_error("read the state of the image before"))?;
    drop(states);

    let disk = read_disk(given, before.instances.is_empty())?;
    let had: Vec<String> = inherited.names();
    let listeners = Listeners::adopt(&disk.config.listeners, &mut inherited)?;
    if disk.config.listeners.get(config::ADMIN).is_some_and(|address| !address.ip().is_loopback()) {
        tracing::warn!("the admin listener speaks plain HTTP and is not bound to the loopback address");
    }
    let were_there = [inherited_api.is_some(), inherited_bus.is_some()];
    let api_socket = unix::listener(given.home.socket(), api::SOCKET_MODE, inherited_api)?;
    let bus_socket = unix::listener(given.home.bus_socket(), peers::SOCKET_MODE, inherited_bus)?;
    let sockets = Sockets { api: api_socket, bus: bus_socket };
    let mut listeners = listeners;
    for part in inherited.take_rest() {
        // A listener of the release before: it may be wanted again.
        tracing::info!(listener.name = part.name, "a listener that this release does not have is kept aside");
        listeners.keep_aside(part);
    }

    let connect = |address: &Path| notify::connect(address, GUARD_WAIT_MAX);
    let guard = given.notify.as_deref().and_then(|address| match connect(address) {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!(%error, "cannot reach the guard");
            None
        }
    });
    let output = logs::Place {
        dir: given.home.log(),
        limits: disk.config.log,
        components: disk.config.components.iter().map(|component| component.name.clone()).collect(),
        journal: given.environment.get(OsStr::new(logs::journal::VARIABLE)).map(PathBuf::from),
    };
    let registry = registry(&before, guard, output);
    for older in stored.iter().filter_map(|number| number.parse().ok()).filter(|number| *number != before.sequence) {
        registry.drop_state(older); // a crash came between keeping the newer and dropping the older
    }
    store_with_guard(&registry, &listeners, &had, &sockets, were_there)?;
    let micros = disk.config.update.watchdog.as_micros();
    registry.tell_guard(&format!("WATCHDOG_USEC={micros}\nWATCHDOG=1"), &[]);

    let (reaped_sender, reaped) = watch::channel(BTreeMap::new());
    let context = Arc::new(RunContext {
        home: given.home.clone(),
        release_dir: disk.release.dir.clone(),
        version: disk.release.version.clone(),
        config_dir: disk.store.config_dir(&disk.release.version),
        listeners: Mutex::new(listeners),
        registry: Arc::clone(&registry),
        reaped,
        environment: given.environment.clone(),
        cgroups: cgroups(&disk.config, &given.home, &before.instances),
    });
    let mut tasks = JoinSet::new();
    let components = components(&disk, &context, before.instances.clone(), &mut instance_parts, &mut tasks)?;
    let (bus, engine) = Bus::new(Options { transition: TRANSITION_MAX, ..Options::default() });
    trace(&bus);
    let manager = Arc::new(Manager::new(Parts {
        store: disk.store,
        trust: disk.trust,
        journal: disk.journal,
        config: Arc::clone(&disk.config),
        digest: disk.release.digest,
        context: Arc::clone(&context),
        components: components.clone(),
        installed: given.installed.clone(),
        bus: bus.clone(),
        times: Times { trial_ns: before.trial_ns, exec_ns: before.exec_ns, begun_ns },
    }));

    let parked = unpark(parked_parts, &before.parked);
    let parts = Assembled { config: disk.config, context, components, manager, bus, engine, parked, before };
    let end = run_image(parts, guard_channel, lock, reaped_sender, sockets, tasks).await;
    registry.logs.close().await;
    end
}

fn registry(before: &Carry, guard: Option<std::os::unix::net::UnixDatagram>, output: logs::Place) -> Arc<Registry> {
    let stem = format!("{:x}", clock::now().as_millisecond());
    Arc::new(Registry::new(
        before,
        before.generation + 1,
        guard,
        RegistryParts {
            events: Arc::new(match before.exec_ns {
                Some(_in_order) => Events::new(before.events.clone()),
                None => Events::after_crash(before.events.clone(), before.generation),
            }),
            tickets: Arc::new(Tickets::new(before.tickets.clone(), stem)),
            logs: Arc::new(Logs::open(before.output(), Some(output))),
            sessions: Arc::new(Sessions::new(before.sessions.clone())),
        },
    ))
}

/// The runtime's own Unix sockets.
struct Sockets {
    api: UnixListener,
    bus: UnixListener,
}

/// Gives the guard what it does not keep yet under its present name, and has it drop what is not wanted any more.
fn store_with_guard(
    registry: &Registry,
    listeners: &Listeners,
    had: &[String],
    sockets: &Sockets,
    [api_was_there, bus_was_there]: [bool; 2],
) -> Result<(), RuntimeError> {
    let described = listeners.describe().map_err(io_error("describe the listeners"))?;
    for part in &described {
        let fresh = listeners.is_fresh(&part.name);
        if fresh || !had.contains(&part.name) {
            registry.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={}", part.name), &[]);
            registry.store(&part.name, &part.descriptor);
        }
    }
    for name in had {
        if !described.iter().any(|part| part.name == *name) {
            registry.tell_guard(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        }
    }
    for (name, socket, was_there) in
        [(names::API, &sockets.api, api_was_there), (names::BUS, &sockets.bus, bus_was_there)]
    {
        if !was_there {
            let socket = socket.try_clone().map_err(io_error("duplicate a socket of the runtime's own"))?;
            registry.store(name, &OwnedFd::from(socket));
        }
    }
    Ok(())
}

/// Returns the control groups of this home, without those of processes that are no more.
fn cgroups(config: &Config, home: &Home, instances: &[CarriedInstance]) -> Cgroups {
    if !config.cgroups {
        return Cgroups::none("`[runtime] cgroups` says that there are to be none");
    }
    let limits = config.components.iter().any(|component| !component.spawn.limits.is_empty());
    let kept = instances.iter().map(|instance| instance.id.clone()).collect();
    Cgroups::open(home.path(), limits, &kept)
}

/// Makes the components of this release, each with its processes from the image before. Processes of components that the
/// release does not have are ended.
fn components(
    disk: &OnDisk,
    context: &Arc<RunContext>,
    carried: Vec<CarriedInstance>,
    parts: &mut Vec<Named>,
    tasks: &mut JoinSet<()>,
) -> Result<Vec<Arc<Process>>, RuntimeError> {
    let fingerprints = Manager::fingerprints(&disk.config, &disk.release, &context.config_dir)
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
            Arc::new(Process::new(definition.clone(), fingerprint, Arc::clone(context), carried, tasks))
        })
        .collect();
    for (instance, parts) in by_component.into_values().flatten() {
        component::end_stray(instance, parts, Arc::clone(context), tasks);
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
    context: Arc<RunContext>,
    components: Vec<Arc<Process>>,
    manager: Arc<Manager>,
    bus: Bus,
    engine: Engine,
    /// The connections of the image before.
    parked: Vec<Parked>,
    before: Carry,
}

async fn run_image(
    parts: Assembled,
    guard_channel: Option<OwnedFd>,
    lock: Option<OwnedFd>,
    reaped: watch::Sender<BTreeMap<i32, String>>,
    sockets: Sockets,
    mut tasks: JoinSet<()>,
) -> Result<End, RuntimeError> {
    let Assembled { config, context, components, manager, bus, engine, parked, before } = parts;
    let registry = Arc::clone(&context.registry);
    let requests = Arc::new(RequestDispatcher {
        bus: bus.clone(),
        manager: Arc::clone(&manager),
        registry: Arc::clone(&registry),
    });
    let socket = sockets.bus.try_clone().map_err(io_error("duplicate the socket of the bus"))?;
    let parts = peers::Parts {
        bus: bus.clone(),
        registry: Arc::clone(&registry),
        config: Arc::clone(&config),
        requests: Arc::clone(&requests) as Arc<dyn Requests>,
    };
    let peers = Arc::new(Peers::new(parts));
    peers::attach(&peers, socket);
    let observer = Arc::new(SiteObserver {
        manager: Arc::clone(&manager),
        events: Arc::clone(&registry.events),
        peers: Arc::clone(&peers),
    });
    let admin = {
        let listeners = context.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let admin = listeners.get(config::ADMIN).map(std::net::TcpListener::try_clone);
        admin.transpose().map_err(io_error("duplicate the admin listener"))?
    };
    let app = Arc::new(App {
        requests,
        peers,
        manager: Arc::clone(&manager),
        bus: bus.clone(),
        config: Arc::clone(&config),
        context: Arc::clone(&context),
        components: components.iter().map(|part| (part.definition().name.clone(), Arc::clone(part))).collect(),
        guard_pid: std::os::unix::process::parent_id(),
        started_at: clock::stamp(),
        stopping: CancellationToken::new(),
    });
    let socket = sockets.api.try_clone().map_err(io_error("duplicate the API's socket"))?;
    let server = Arc::new(ApiServer::new(app, socket, admin, &before, parked));
    server.attach(&bus);
    settings::attach(&bus, Arc::clone(&config), context.release_dir.clone(), &context.home);
    for component in &components {
        bus.attach(Arc::clone(component) as Arc<dyn bus::Component>)?;
    }
    let engine = engine.with_observer(observer);

    let now = CancellationToken::new();
    let signals = signals::listen(bus.clone(), Arc::clone(&manager), Arc::clone(&registry.logs), now.clone())
        .map_err(io_error("receive signals"))?;
    tasks.spawn(signals);
    exec::unblock_signals().map_err(io_error("receive signals"))?;
    tasks.spawn(guard_link::feed_watchdog(Arc::clone(&registry), config.update.watchdog));
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
    if !config.watch.paths.is_empty() {
        let watch = Watch {
            bus: bus.clone(),
            manager: Arc::clone(&manager),
            events: Arc::clone(&registry.events),
            home: context.home.clone(),
            paths: config.watch.paths.iter().map(|path| context.home.path().join(path)).collect(),
            settle: config.watch.settle,
        };
        tasks.spawn(watch.run());
    }
    for component in &components {
        tasks.spawn(publish_changes(Arc::clone(component), Arc::clone(&registry), bus.clone()));
    }
    // Held before anybody can ask: until the disk is tidy nothing is received.
    let permit = manager.hold_receiving();
    let tidied = tell_running(bus.clone(), Arc::clone(&manager), Arc::clone(&registry), config.name.clone(), permit);
    tasks.spawn(tidied);

    drop(bus.request(Request::Start, Origin("start".to_owned())));
    // Cancel-safe: when the third signal comes nothing of the bus is wanted any more.
    let ended = tokio::select! {
        ended = engine.run() => ended,
        () = now.cancelled() => {
            let alive = components.iter().filter(|component| component.view().borrow().pid.is_some());
            let names: Vec<&str> = alive.map(|component| component.definition().name.as_str()).collect();
            let unfinished = names.join(", ");
            tracing::error!(state = bus.state().name(), unfinished, "ending now; what had not ended yet is killed");
            return Ok(End::Exit(Exit::Failed));
        }
    };
    match &ended.replacement {
        Some(replacement) => {
            manager.end();
            registry.logs.pause().await;
            tasks.shutdown().await;
            // Until the next image says that it is ready, nothing is.
            registry.tell_guard("RELOADING=1", &[]);
            let descriptors = describe(&context, server.http(), manager.trial_ns(), sockets, kept_channel, lock)
                .map_err(io_error("describe what is handed over"))?;
            Ok(End::Replace { program: replacement.program.clone(), label: replacement.label.clone(), descriptors })
        }
        None => {
            if ended.asked && !manager.yields_to_guard() {
                // Without it the guard would start the next runtime.
                registry.tell_guard("STOPPING=1", &[]);
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
async fn publish_changes(component: Arc<Process>, registry: Arc<Registry>, bus: Bus) {
    let mut views = component.view();
    let mut last = None;
    loop {
        let view = views.borrow_and_update().clone();
        let seen = Some((view.state, view.pid, view.health.clone(), view.status.clone()));
        if seen != last {
            let has_failed = view.state == component::State::Failed;
            // A start that fails is the bus's to record; one that gave up while the site runs is nobody else's.
            if has_failed && bus.state() == bus::State::Running && last.is_some_and(|(state, ..)| state != view.state) {
                let reason = view.reason.clone().unwrap_or_default();
                bus.fault(&view.name, "run", Failure { reason, output: view.output.clone() });
            }
            last = seen;
            let data = json!({
                "name": view.name, "state": view.state, "pid": view.pid, "health": view.health.name(),
                "reason": view.reason, "status": view.status,
            });
            registry.events.publish("component", data);
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
    registry: Arc<Registry>,
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
        registry.tell_guard(&status, &[]);
        manager.site_runs();
        registry.tickets.settle_carried();
        registry.save();
    }
}

/// Returns everything that the next image is handed.
fn describe(
    context: &RunContext,
    server: &Server,
    trial_ns: Option<u64>,
    sockets: Sockets,
    channel: Option<OwnedFd>,
    lock: Option<OwnedFd>,
) -> io::Result<Vec<Named>> {
    let listeners = context.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut parts = listeners.describe()?;
    drop(listeners);
    let named = |name: &str, descriptor: OwnedFd| Named { name: name.to_owned(), descriptor };
    parts.push(named(names::API, sockets.api.into()));
    parts.push(named(names::BUS, sockets.bus.into()));
    parts.extend(channel.map(|channel| named(names::GUARD, channel)));
    parts.extend(lock.map(|lock| named(names::LOCK, lock)));
    parts.extend(context.registry.describe()?);
    let mut carry = context.registry.save();
    carry.stopped_accepting_ns = server.stopped_accepting_ns();
    carry.logs_complete = true; // nobody reads any more; the guard's copy may be read after lines that it does not have
    carry.exec_ns = Some(clock::monotonic_ns());
    carry.trial_ns = trial_ns;
    for (number, Parked { listener, socket, read }) in server.take_parked().into_iter().enumerate() {
        let name = format!("{listener}.{number}");
        parts.push(named(&format!("{}{name}", names::PARKED), socket));
        carry.parked.insert(name, BASE64.encode(read));
    }
    parts.push(named(&carry::state_name(carry.sequence), carry.seal()?));
    Ok(parts)
}
