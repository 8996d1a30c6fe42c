//! The life of one process image: put together, run the bus, then end or hand over to the next image.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use refit_base::{Exit, clock, lock};
use refit_bus::{self as bus, Ended};
use refit_updater::journal::{self, Journal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::announce::{announce_running, publish_changes};
use super::assemble::{Assembled, Given, Site, assemble};
use super::error::{RuntimeError, io_error, say};
use super::explain::explain;
use super::forward::Waited;
use super::hand_over::{Sockets, describe};
use super::missing::listen_when_possible;
use super::observer::SiteObserver;
use super::sockets::SocketNames;
use super::watch::Watch;
use super::{deaths, guard_link, settings, signals, unconfirmed, wish};
use crate::api::{ApiServer, App};
use crate::carry::{Carry, SiteWish};
use crate::config::{self, Watched};
use crate::handover::inherit::Inheritance;
use crate::handover::{Named, exec};
use crate::home::Home;
use crate::http::Parked;
use crate::peers::{self, Peers};
use crate::requests::{RequestDispatcher, Requests};

/// How the life of one image ended.
pub(super) enum End {
    Exit(Exit),
    Replace { program: PathBuf, label: String, descriptors: Vec<Named> },
}

/// Lives from what was handed over to an end.
pub(super) async fn live(given: &Given, inherited: Inheritance) -> Result<End, RuntimeError> {
    let begun_ns = clock::monotonic_ns();
    let mut assembled = assemble(given, inherited, begun_ns)?;
    let _open_until_the_end = std::mem::take(&mut assembled.unclaimed);
    let registry = Arc::clone(&assembled.site.context.registry);
    let end = run(assembled).await;
    registry.logs.close().await;
    end
}

/// Runs the bus until it has ended, and ends this image.
async fn run(assembled: Assembled) -> Result<End, RuntimeError> {
    // What is named first is dropped last: the lock outlives everything that works in the home.
    let Assembled {
        lock,
        reaped,
        sockets,
        mut tasks,
        site,
        engine,
        guard_channel,
        parked,
        waited,
        before,
        unclaimed: _,
    } = assembled;
    let registry = Arc::clone(&site.context.registry);
    let wished = registry.site();
    let (server, observer) = site.attach(&sockets, &before, parked)?;
    let running = site.components.iter().filter(|component| component.view().borrow().pid.is_some());
    let running: Vec<String> = running.map(|component| component.definition().name.clone()).collect();
    let engine = engine.with_observer(observer).with_running(running);

    let now = CancellationToken::new();
    site.listen_to_signals(&now, &mut tasks)?;
    tasks.spawn(guard_link::feed_watchdog(Arc::clone(&registry), site.config.update.watchdog));
    tasks.spawn(Arc::clone(&registry).keep_saved());
    let kept_channel = guard_channel.as_ref().map(OwnedFd::try_clone).transpose();
    let kept_channel = kept_channel.map_err(io_error("duplicate the channel to the guard"))?;
    if let Some(channel) = guard_channel {
        tasks.spawn(guard_link::listen_until_lost(channel, reaped, Arc::clone(&registry), site.bus.clone()));
    }
    site.spawn_tasks(&mut tasks, before.exec_ns.is_some());
    if let Some(reload) = &before.unconfirmed {
        site.report_lost(reload, &mut tasks);
    }
    let waited = Waited::new(waited).map_err(io_error("go on with connections that waited"))?;
    tasks.spawn(Arc::clone(&waited).forward());

    wish::ask(&site.bus, wished);
    if wished == SiteWish::Stopped {
        tasks.spawn(wish::go_on_stopping(site.bus.clone(), site.components.clone(), Arc::clone(&registry)));
    }
    // Cancel-safe: when the third signal comes nothing of the bus is wanted any more.
    let ended = tokio::select! {
        ended = engine.run() => ended,
        () = now.cancelled() => {
            site.report_unfinished();
            return Ok(End::Exit(Exit::Failed));
        }
    };
    match &ended.replacement {
        Some(replacement) => {
            site.manager.end();
            registry.logs.pause().await;
            tasks.shutdown().await;
            // Until the next image says that it is ready, nothing is.
            registry.tell_guard("RELOADING=1");
            let trial_ns = site.manager.trial_ns();
            let mut descriptors = describe(&site.context, server.http(), trial_ns, sockets, kept_channel, lock)
                .map_err(io_error("describe what is handed over"))?;
            descriptors.extend(waited.take());
            Ok(End::Replace { program: replacement.program.clone(), label: replacement.label.clone(), descriptors })
        }
        None => {
            site.end(&ended, &mut tasks).await;
            Ok(End::Exit(exit_status(&ended, &site.context.home)))
        }
    }
}

impl Site {
    /// Puts everything on the bus. Returns the server of the API, and what watches the bus.
    fn attach(
        &self,
        sockets: &Sockets,
        before: &Carry,
        parked: Vec<Parked>,
    ) -> Result<(Arc<ApiServer>, Arc<SiteObserver>), RuntimeError> {
        let Self { bus, manager, components, context, config, operators, deaths: _ } = self;
        let registry = &context.registry;
        let requests = Arc::new(RequestDispatcher {
            bus: bus.clone(),
            manager: Arc::clone(manager),
            registry: Arc::clone(registry),
            config: Arc::clone(config),
        });
        let socket = sockets.bus.try_clone().map_err(io_error("duplicate the socket of the bus"))?;
        let parts = peers::Parts {
            bus: bus.clone(),
            registry: Arc::clone(registry),
            config: Arc::clone(config),
            requests: Arc::clone(&requests) as Arc<dyn Requests>,
        };
        let peers = Arc::new(Peers::with_operators(parts, Arc::clone(operators)));
        peers::attach(&peers, socket);
        let observer = Arc::new(SiteObserver {
            manager: Arc::clone(manager),
            events: Arc::clone(&registry.events),
            peers: Arc::clone(&peers),
            registry: Arc::clone(registry),
            bus: bus.clone(),
            home: context.home.path().to_owned(),
            version: context.version.clone(),
        });
        let admin = self.admin_listener().map_err(io_error("duplicate the admin listener"))?;
        let app = Arc::new(App {
            requests,
            peers,
            manager: Arc::clone(manager),
            bus: bus.clone(),
            config: Arc::clone(config),
            operators: Arc::clone(operators),
            context: Arc::clone(context),
            components: components.iter().map(|part| (part.definition().name.clone(), Arc::clone(part))).collect(),
            guard_pid: std::os::unix::process::parent_id(),
            deaths: self.deaths.as_ref().map(deaths::fault),
            started_at: clock::stamp(),
            stopping: CancellationToken::new(),
        });
        let socket = sockets.api.try_clone().map_err(io_error("duplicate the API's socket"))?;
        let server = Arc::new(ApiServer::new(app, socket, admin, before, parked));
        server.attach(bus);
        settings::attach(bus, Arc::clone(config), context.release_dir.clone(), &context.home);
        manager.attach();
        for component in components {
            bus.attach(Arc::clone(component) as Arc<dyn bus::Component>)?;
        }
        Ok((server, observer))
    }

    /// Returns a duplicate of the listener of the API and the page, if the release has one.
    fn admin_listener(&self) -> io::Result<Option<TcpListener>> {
        let listeners = lock(&self.context.listeners);
        listeners.get(config::ADMIN).map(TcpListener::try_clone).transpose()
    }

    /// Has signals become requests from now on, those that waited included. `now` is cancelled by the third that ends.
    fn listen_to_signals(&self, now: &CancellationToken, tasks: &mut JoinSet<()>) -> Result<(), RuntimeError> {
        let logs = Arc::clone(&self.context.registry.logs);
        let signals = signals::listen(self.bus.clone(), Arc::clone(&self.manager), logs, now.clone())
            .map_err(io_error("receive signals"))?;
        tasks.spawn(signals);
        exec::unblock_signals().map_err(io_error("receive signals"))
    }

    /// Starts what watches and announces while the bus runs.
    fn spawn_tasks(&self, tasks: &mut JoinSet<()>, by_exec: bool) {
        let Self { bus, manager, components, context, config, operators: _, deaths } = self;
        let registry = &context.registry;
        if let Some(deaths) = deaths.clone() {
            tracing::error!("{}", deaths.describe());
            let home = context.home.path().to_owned();
            let recorded = tokio::task::spawn_blocking(move || deaths::record(&deaths, &home));
            tasks.spawn(async move { drop(recorded.await) }); // it has said itself what was in the way
        }
        if !config.watch.watched.is_empty() {
            let below_home = |watched: &Watched| Watched { path: context.home.path().join(&watched.path), ..*watched };
            let watch = Watch {
                bus: bus.clone(),
                manager: Arc::clone(manager),
                events: Arc::clone(&registry.events),
                home: context.home.clone(),
                registry: Arc::clone(registry),
                watched: config.watch.watched.iter().map(below_home).collect(),
                settle: config.watch.settle,
            };
            tasks.spawn(watch.run());
        }
        if lock(&context.listeners).missing().next().is_some() {
            tasks.spawn(listen_when_possible(Arc::clone(context), bus.clone(), Arc::clone(manager)));
        }
        tasks.spawn(
            SocketNames::new(context.home.clone(), Arc::clone(registry), bus.clone(), Arc::clone(manager)).keep(),
        );
        for component in components {
            tasks.spawn(publish_changes(Arc::clone(component), Arc::clone(registry), bus.clone()));
        }
        // Held before anybody can ask: until the disk is tidy nothing is received.
        let permit = manager.receiving().hold();
        let (manager, registry) = (Arc::clone(manager), Arc::clone(registry));
        let home = context.home.clone();
        tasks.spawn(announce_running(bus.clone(), manager, registry, config.name.clone(), home, permit, by_exec));
    }

    /// Says that the runtime before ended while `reload` waited to be confirmed.
    fn report_lost(&self, reload: &bus::Unconfirmed, tasks: &mut JoinSet<()>) {
        let (generation, who) = (reload.generation, &reload.origin.0);
        tracing::warn!(
            generation,
            who,
            "a reload was lost that waited to be confirmed; what is on the disk is in force"
        );
        self.context.registry.events.publish(unconfirmed::lost_event(reload));
        let (entry, home) = (unconfirmed::lost(reload, &self.config.version), self.context.home.path().to_owned());
        let recorded = tokio::task::spawn_blocking(move || unconfirmed::record(&home, &entry));
        tasks.spawn(async move { drop(recorded.await) }); // it has said itself what was in the way
    }

    /// Says what is killed because nothing is waited for any longer.
    fn report_unfinished(&self) {
        let alive = self.components.iter().filter(|component| component.view().borrow().pid.is_some());
        let names: Vec<&str> = alive.map(|component| component.definition().name.as_str()).collect();
        let unfinished = names.join(", ");
        tracing::error!(state = self.bus.state().name(), unfinished, "ending now; what had not ended yet is killed");
    }

    /// Ends what the bus did not, and this image with it.
    async fn end(&self, ended: &Ended, tasks: &mut JoinSet<()>) {
        if ended.asked && !self.manager.yields_to_guard() {
            // Without it the guard would start the next runtime.
            self.context.registry.tell_guard("STOPPING=1");
        }
        wish::stop_adopted(&self.components).await;
        self.manager.end();
        tasks.shutdown().await;
    }
}

/// Says why it ends if nobody asked. Returns the status.
fn exit_status(ended: &Ended, home: &Home) -> Exit {
    if !ended.asked {
        let journal = journal::recall(home.path()).ok().flatten();
        let previous = journal.as_ref().and_then(Journal::previous);
        for fault in &ended.faults {
            say(&explain(fault, home, previous), Exit::Failed);
        }
    }
    if ended.faults.is_empty() { Exit::Done } else { Exit::Failed }
}
