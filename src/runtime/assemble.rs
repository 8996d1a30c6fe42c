//! What one image is made of, put together from what was handed over and what is on disk. Nothing runs yet.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use refit_base::{Chain, clock};
use refit_bus::{Bus, Engine, Options};
use refit_updater::Store;
use refit_updater::attempt::Begun;
use refit_updater::config::Live;
use refit_updater::decided::{self, Decided};
use refit_updater::journal::{self, Journal};
use refit_updater::release::{Damage, Release};
use refit_updater::trust::Trust;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::deaths;
use super::error::{RuntimeError, io_error};
use super::forward::HandedOver;
use super::guard_link::{self, store_with_guard};
use super::hand_over::{Sockets, unpark};
use super::observer::trace;
use super::transition;
use crate::access::operators::Operators;
use crate::auth::Sessions;
use crate::carry::{self, CarriedInstance, Carry, Registry, RegistryParts};
use crate::component::{self, CarriedParts, Process, RunContext, fingerprint};
use crate::config::{self, Config, Programs};
use crate::events::Events;
use crate::handover::channel::Deaths;
use crate::handover::inherit::{Announcement, Inheritance};
use crate::handover::listener::Listeners;
use crate::handover::{Named, channel, names};
use crate::home::{Home, HomeError};
use crate::http::Parked;
use crate::logs::{self, Logs};
use crate::process::cgroup::Cgroups;
use crate::process::descendants;
use crate::process::resources::Resources;
use crate::process::strays;
use crate::tickets::Tickets;
use crate::update::{Manager, Parts, Times};

/// How much of a configuration that cannot be read is named in the log at a start; `refit status` names all of it.
const UNREAD_SAID_MAX: usize = 20;

/// What the runtime is given by whoever starts it.
#[derive(Debug)]
pub struct Given {
    /// The home.
    pub home: Home,
    /// The variables of the handover.
    pub announcement: Announcement,
    /// The whole environment.
    pub environment: BTreeMap<OsString, OsString>,
    /// The installed `refit`.
    pub installed: PathBuf,
    /// What this process is called: the first word of its command line, which every image of it keeps.
    pub called: OsString,
    /// The guard's `NOTIFY_SOCKET`.
    pub notify: Option<PathBuf>,
    /// What this process had before it was given more: what its children and the next image get.
    pub found: Resources,
}

/// The parts of one release that run, and what they run in.
pub(super) struct Site {
    pub(super) bus: Bus,
    pub(super) manager: Arc<Manager>,
    pub(super) components: Vec<Arc<Process>>,
    pub(super) context: Arc<RunContext>,
    pub(super) config: Arc<Config>,
    pub(super) operators: Arc<Operators>,
    /// The runtimes before this one that died one after the other.
    pub(super) deaths: Option<Deaths>,
}

/// What one image is made of.
pub(super) struct Assembled {
    pub(super) site: Site,
    pub(super) engine: Engine,
    pub(super) sockets: Sockets,
    /// The tasks of this image: those of the components.
    pub(super) tasks: JoinSet<()>,
    /// The lock of the home, as long as it lives.
    pub(super) lock: Option<OwnedFd>,
    pub(super) guard_channel: Option<OwnedFd>,
    /// Where the guard's word on the ends of processes goes.
    pub(super) reaped: watch::Sender<BTreeMap<i32, String>>,
    /// The connections of the image before.
    pub(super) parked: Vec<Parked>,
    pub(super) before: Carry,
    /// The descriptors of processes that the image before does not tell of: they stay open, for a process may write there.
    pub(super) unclaimed: Vec<Named>,
    /// Connections that waited at a listener in whose place another one listens.
    pub(super) waited: HandedOver,
}

/// Puts together the image that began at `begun_ns` of the monotonic clock.
pub(super) fn assemble(given: &Given, mut inherited: Inheritance, begun_ns: u64) -> Result<Assembled, RuntimeError> {
    let Handed { guard_channel, lock, stored, instances: mut instance_parts, api, bus, parked, still_waiting, before } =
        take_handed(&mut inherited)?;
    if before.exec_ns.is_none() {
        given.home.repair(|what| tracing::warn!("{what}"));
    }
    let disk = read_disk(given, &before)?;
    prepare_release(&disk, before.exec_ns.is_none());
    let had: Vec<String> = inherited.names();
    let on_trial = matches!(disk.journal.state, journal::State::Trial { .. });
    let mut listeners = Listeners::adopt(&disk.config.listeners, &mut inherited);
    // On trial the release before is better. At the very first start nothing has served yet, and the one who starts it must hear.
    if (on_trial || !given.home.has_run(&disk.journal))
        && let Some(missing) = listeners.take_missing()
    {
        return Err(missing.into());
    }
    for missing in listeners.missing() {
        tracing::error!(error = %Chain(missing), "a listener cannot be had; the rest is served, and it is tried again");
    }
    let mut waited = still_waiting;
    waited.unread.extend(listeners.stop_covered());
    if !on_trial {
        listeners.close_aside(); // no release is gone back to from here
    }
    if disk.config.listeners.get(config::ADMIN).is_some_and(|address| !address.ip().is_loopback()) {
        tracing::warn!("the admin listener speaks plain HTTP and is not bound to the loopback address");
    }
    let (operators, refused) = Operators::of(&disk.config, above());
    match refused {
        Some(error) if on_trial || !given.home.has_run(&disk.journal) => return Err(error.into()),
        Some(error) => tracing::error!(error = %Chain(&error), "only root and the runtime's own account are operators"),
        None => {}
    }
    let sockets = Sockets::adopt(&given.home, operators.group(), api, bus)?;

    let guard = guard_link::connect(&given.environment, given.notify.as_deref(), guard_channel.as_ref());
    let guard = guard.map_err(RuntimeError::Guard)?;
    // On trial the release before is gone back to, which may know documents only.
    let tells_singles =
        given.environment.contains_key(OsStr::new(channel::KEEPS_PROCESSES)) && (!on_trial || before.reads_processes);
    let registry = registry(&before, carry::Guard { socket: guard, tells_singles }, given, &disk.config);
    for older in stored.iter().filter_map(|number| number.parse().ok()).filter(|number| *number != before.sequence) {
        registry.drop_state(older); // a crash came between keeping the newer and dropping the older
    }
    store_with_guard(&registry, &listeners, &had, &sockets)?;
    let micros = disk.config.update.watchdog.as_micros();
    let end = transition::ending(&disk.config).as_micros();
    registry.tell_guard(&format!("WATCHDOG_USEC={micros}\nWATCHDOG=1\n{}={end}", channel::END));

    if before.exec_ns.is_none() {
        clear_away(&given.home, &before.instances);
    }
    let (reaped_sender, reaped) = watch::channel(BTreeMap::new());
    let (bus, engine) = Bus::new(Options { transition: transition::longest(&disk.config), ..Options::default() });
    trace(&bus);
    let context = Arc::new(RunContext {
        home: given.home.clone(),
        release_dir: disk.release.dir.clone(),
        version: disk.release.version.clone(),
        config_dir: disk.store.config_dir(&disk.release.version),
        config: Arc::clone(&disk.config),
        restoring: Mutex::default(),
        listeners: Mutex::new(listeners),
        shares: shares(&disk.config),
        registry,
        reaped,
        site: bus.watch(),
        environment: given.environment.clone(),
        cgroups: cgroups(&disk.config, &given.home, &before.instances),
        overlap_ends: watch::Sender::new(!on_trial),
        found: given.found,
    });
    let mut tasks = JoinSet::new();
    let components = components(&disk, &context, before.instances.clone(), &mut instance_parts, &mut tasks)?;
    if before.exec_ns.is_none() {
        for part in &instance_parts {
            context.registry.drop_descriptor(&part.name); // of a process that was not written down, and has been ended
        }
    }
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
        is_successor: before.generation > 0,
        times: Times { trial_ns: before.trial_ns, exec_ns: before.exec_ns, begun_ns },
    }));
    Ok(Assembled {
        site: Site {
            bus,
            manager,
            components,
            context,
            config: disk.config,
            operators: Arc::new(operators),
            deaths: deaths::told(&given.environment),
        },
        engine,
        sockets,
        tasks,
        lock,
        guard_channel,
        reaped: reaped_sender,
        parked: unpark(parked, &before.parked),
        before,
        unclaimed: instance_parts,
        waited,
    })
}

/// Returns the processes that start the components: this one, and the guard, whose children their orphans become.
fn above() -> Vec<i32> {
    [Some(std::process::id()), descendants::guard()]
        .into_iter()
        .flatten()
        .filter_map(|pid| i32::try_from(pid).ok())
        .collect()
}

/// What the image before handed over, but for the listeners.
struct Handed {
    guard_channel: Option<OwnedFd>,
    lock: Option<OwnedFd>,
    /// The numbers of the documents that the guard keeps.
    stored: Vec<String>,
    /// The descriptors of the components' processes.
    instances: Vec<Named>,
    api: Option<UnixListener>,
    bus: Option<UnixListener>,
    parked: Vec<Named>,
    /// Connections that waited for the image before.
    still_waiting: HandedOver,
    /// The newest document.
    before: Carry,
}

/// Takes what is not a listener, and reads the document.
fn take_handed(inherited: &mut Inheritance) -> Result<Handed, RuntimeError> {
    let guard_channel = inherited.take(names::GUARD);
    let lock = inherited.take(names::LOCK);
    let (stored, states): (Vec<String>, Vec<OwnedFd>) =
        inherited.take_all(names::STATE).into_iter().map(|part| (part.name, part.descriptor)).unzip();
    let processes = inherited.take(names::PROCESSES);
    let instances = inherited.take_all(names::INSTANCE);
    let api = inherited.take(names::API).map(UnixListener::from);
    let bus = inherited.take(names::BUS).map(UnixListener::from);
    let parked = inherited.take_all(names::PARKED);
    let still_waiting = HandedOver::new(inherited.take_all(names::WAITED), inherited.take_all(names::JOINED));
    let before = Carry::newest(&states).and_then(|mut before| {
        processes.map_or(Ok(()), |file| before.add_processes(&file))?;
        Ok(before)
    });
    let before = before.map_err(io_error("read the state of the image before"))?;
    Ok(Handed { guard_channel, lock, stored, instances, api, bus, parked, still_waiting, before })
}

/// What is read from disk before anything else.
struct OnDisk {
    store: Store,
    trust: Trust,
    journal: Journal,
    release: Release,
    config: Arc<Config>,
}

/// Reads it, after the image `before`. Where no component runs yet their programs have to be there.
fn read_disk(given: &Given, before: &Carry) -> Result<OnDisk, RuntimeError> {
    let home = given.home.path();
    let mut journal = journal::load(home)?.ok_or_else(|| given.home.without_journal())?;
    if let (Some(attempt), Some(carried)) = (&mut journal.attempt, &before.attempt)
        && attempt.id == carried.id
    {
        attempt.begun = Begun(Some(carried.begun_ns));
    }
    if let Some(decided) = decided(&given.environment).and_then(|decided| decided.applied_to(&journal)) {
        tracing::warn!(release.version = %decided.state.wanted(), "the journal could not be written; going by what was decided");
        journal = decided;
    }
    for name in Store::make_missing(home).map_err(HomeError::File)? {
        tracing::warn!(path = %home.join(name).display(), "a directory of the home was missing; it was made again");
    }
    let store = Store::open(home)?;
    let trust = Trust::of(home);
    let release = store.release(journal.state.wanted())?;
    let local = home.join(config::LOCAL_FILE);
    let loaded = if before.instances.is_empty() {
        let search = given.environment.get(OsStr::new("PATH")).map(OsString::as_os_str);
        Config::load_with_programs(&Programs::here(&release.dir, search), &local)
    } else {
        Config::load(&release.dir, &local)
    };
    // What was signed is nothing to be edited.
    let config = loaded.map_err(|error| match store.find_damage_of(&release, config::FILE) {
        Some(problem) => {
            RuntimeError::Damaged { version: release.version.clone(), damage: Box::new(Damage::File(problem)) }
        }
        None => error.into(),
    })?;
    let config = Arc::new(config);
    component::restore_config(&store, &release.version);
    Ok(OnDisk { store, trust, journal, release, config })
}

/// Lets the components' accounts into their configuration. Where no image handed over, gives the release the modes of its manifest, too.
fn prepare_release(disk: &OnDisk, is_first: bool) {
    if is_first {
        let repaired = disk.store.repair_modes(&disk.release);
        for repair in repaired.repairs {
            tracing::warn!("{repair}");
        }
        for failure in repaired.failures {
            tracing::warn!("{}", Chain(&failure));
        }
    }
    component::open_config(&disk.store.config_dir(&disk.release.version), &disk.config);
}

/// Returns what the guard decided and could not write.
pub(super) fn decided(environment: &BTreeMap<OsString, OsString>) -> Option<Decided> {
    Decided::parse(environment.get(OsStr::new(decided::VARIABLE))?.to_str()?)
}

/// Returns the registry of this image, which goes on after what the image `before` left.
fn registry(before: &Carry, guard: carry::Guard, given: &Given, config: &Config) -> Arc<Registry> {
    let output = logs::Place {
        dir: given.home.log(),
        limits: config.log,
        components: config.components.iter().map(|component| component.name.clone()).collect(),
        journal: given.environment.get(OsStr::new(logs::journal::VARIABLE)).map(PathBuf::from),
    };
    let stem = format!("{:x}", clock::now().as_millisecond());
    Arc::new(Registry::new(
        before,
        before.generation + 1,
        config.version.clone(),
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

/// Ends and removes what an image that crashed left unfinished: all but `instances`.
fn clear_away(home: &Home, instances: &[CarriedInstance]) {
    let tokens = instances.iter().map(|instance| instance.token.clone()).collect();
    let ended = strays::end_all(home.path(), &tokens);
    if ended > 0 {
        tracing::warn!(ended, "processes were ended that the image before had started and not written down");
    }
    component::tidy_notify_sockets(home, &instances.iter().map(|instance| instance.id.clone()).collect());
}

/// Returns the names of the listeners that each component is given.
fn shares(config: &Config) -> BTreeMap<String, Vec<String>> {
    config.components.iter().map(|component| (component.name.clone(), component.listeners.clone())).collect()
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
    let live = Live::read(&context.config_dir);
    for unread in live.unread.iter().take(UNREAD_SAID_MAX) {
        let path = context.config_dir.join(&unread.path);
        tracing::warn!(path = %path.display(), why = unread.why, "a part of the configuration cannot be read");
    }
    let fingerprints = fingerprint::of_all(&disk.config, &disk.release.manifest, &live)
        .map_err(io_error("describe the components"))?;
    let mut by_component: BTreeMap<String, Vec<(CarriedInstance, CarriedParts)>> = BTreeMap::new();
    for instance in carried {
        let Some(found) = CarriedParts::find(&instance, parts, &context.home, &context.registry) else {
            // It had ended, and the image before was about to forget it.
            component::forget_ended(instance, Arc::clone(context), tasks);
            continue;
        };
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
