//! Requests, whoever makes them: the bus takes some, the update manager the others, and all get a ticket.

mod asked;
mod confirm;

use std::sync::Arc;

use refit_base::{Chain, Exit, Report, Reported};
use refit_bus::{Bus, Level, Origin, Progress, Request, RequestKind, Ticket};
use refit_updater::attempt::Kind;
use semver::Version;

use crate::carry::Registry;
use crate::config::Config;
use crate::update::{Manager, Target, UpdateError};
use crate::wire;
use crate::wire::event::{RequestOutcome, Requested};
use crate::wire::{Event, RequestBody, RequestName, TicketState};

/// Why there is no ticket.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no such request.
    #[error("{request:?} is no request: use one of {}", RequestKind::ALL.map(RequestKind::name).join(", "))]
    Unknown {
        /// What was asked.
        request: String,
    },
    /// It does not say what to go to.
    #[error(
        "name the digest of a received package, or the version of an installed release; no repository is configured that has others"
    )]
    Nowhere,
    /// A rollback goes to a release that is there.
    #[error("a rollback goes to a version, not to a digest")]
    Forward,
    /// How long a confirmation is waited for is not understood.
    #[error("confirm_within: {why}")]
    Within {
        /// What is wrong with it.
        why: String,
    },
    /// Only a reload waits to be confirmed.
    #[error("only a reload can wait to be confirmed: {request} takes neither confirm_within nor restores")]
    NotAReload {
        /// What was asked.
        request: String,
    },
    /// Without a confirmation nothing is ever restored.
    #[error("restores says what follows when a reload is not confirmed: it needs confirm_within")]
    RestoresAlone,
    /// The update manager refuses.
    #[error(transparent)]
    Update(#[from] UpdateError),
}

impl Reported for RequestError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Unknown { .. }
            | Self::Nowhere
            | Self::Forward
            | Self::Within { .. }
            | Self::NotAReload { .. }
            | Self::RestoresAlone => {
                Report::new("bad_request", Exit::Usage, "see the documentation of the API; nothing was changed")
            }
            Self::Update(error) => error.report(),
        }
    }
}

/// A request that was taken.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The ticket, with its outcome if that is known already.
    pub ticket: wire::Ticket,
    /// The number of the request in this process image; none for an update that is being prepared.
    pub number: Option<u64>,
    /// The number of the request that it was merged with.
    pub merged_with: Option<u64>,
}

/// Takes requests.
pub trait Requests: Send + Sync + 'static {
    /// Makes a request for `origin`. Never waits for its outcome.
    ///
    /// # Errors
    /// It is no request, or the update manager refuses; nothing has changed.
    fn submit(&self, body: RequestBody, origin: &str) -> Result<Accepted, RequestError>;
}

/// Takes the requests of an appliance, and gives each to whom it concerns.
pub struct RequestDispatcher {
    /// The bus.
    pub bus: Bus,
    /// The update manager.
    pub manager: Arc<Manager>,
    /// Where the tickets are.
    pub registry: Arc<Registry>,
    /// What the components are told by.
    pub config: Arc<Config>,
}

impl Requests for RequestDispatcher {
    fn submit(&self, body: RequestBody, origin: &str) -> Result<Accepted, RequestError> {
        let kind = RequestKind::from_name(&body.request)
            .ok_or_else(|| RequestError::Unknown { request: body.request.chars().take(32).collect() })?;
        let terms = confirm::terms(kind.name(), body.confirm_within.as_deref(), body.restores)?;
        let request = match kind {
            RequestKind::Start => Request::Start,
            RequestKind::Stop => Request::Stop,
            RequestKind::Reload => terms.map_or(Request::Reload, Request::ReloadProvisionally),
            RequestKind::Confirm => Request::Confirm,
            RequestKind::Restart => return Ok(self.restart(origin)),
            RequestKind::Exit => Request::Exit,
            RequestKind::Update if self.is_to_be_fetched(&body) => return self.fetch(body.version, origin),
            RequestKind::Update => return self.begin(body, Kind::Update, origin),
            RequestKind::Rollback => return self.begin(body, Kind::Rollback, origin),
        };
        let opened = self.registry.tickets.open(request.kind().into(), origin);
        let id = opened.id.clone();
        let ticket = self.bus.request(request, Origin(origin.to_owned()));
        let (number, merged_with) = (Some(ticket.number()), ticket.merged_with());
        // What the bus has taken is accepted, however soon it is done: whoever asks gets the same answer each time.
        let answer = match ticket.progress() {
            Progress::Accepted | Progress::Done | Progress::Failed(_) => {
                self.registry.save(); // whoever is given the ticket finds it again, also after a crash
                // Resolved by a task of its own: whoever asked may have gone when the outcome comes.
                self.manager.spawn(follow(Arc::clone(&self.registry), Arc::clone(&self.config), id, ticket));
                opened
            }
            progress @ (Progress::Already | Progress::Refused(_)) => {
                resolve(&self.registry, &id, progress);
                self.registry.tickets.get(&id).unwrap_or(opened)
            }
        };
        Ok(Accepted { ticket: answer, number, merged_with })
    }
}

impl RequestDispatcher {
    /// Asks for a restart in place once the program is known to be good. The ticket says if it is not; otherwise the next image
    /// ends it when the site runs again, and knows what does not.
    fn restart(&self, origin: &str) -> Accepted {
        let opened = self.registry.tickets.open(RequestName::Restart, origin);
        self.registry.save();
        let (manager, bus, registry) = (Arc::clone(&self.manager), self.bus.clone(), Arc::clone(&self.registry));
        let (id, origin) = (opened.id.clone(), Origin(origin.to_owned()));
        self.manager.spawn(async move {
            match manager.restart_in_place(&bus, origin.clone()).await {
                Ok(ticket) => match ticket.outcome().await {
                    // Done with this image; the request is done when the next one runs, and that one says so.
                    Progress::Done => {}
                    progress
                    @ (Progress::Accepted | Progress::Already | Progress::Failed(_) | Progress::Refused(_)) => {
                        resolve(&registry, &id, progress);
                    }
                },
                Err(error) => {
                    let reason = format!("{}; nothing was stopped", Chain(&error));
                    report_refused(&registry, &bus, RequestName::Restart, &origin.0, &reason);
                    resolve(&registry, &id, Progress::Refused(reason));
                }
            }
        });
        Accepted { ticket: opened, number: None, merged_with: None }
    }

    /// Returns whether an update goes to a release of the repository: the one with this version, if it is not on the disk, or the newest.
    fn is_to_be_fetched(&self, body: &RequestBody) -> bool {
        let is_here = body.version.as_ref().is_some_and(|version| self.manager.is_here(version));
        body.digest.is_none() && !is_here && self.manager.receiving().repository().is_some()
    }

    /// Fetches a release of the repository, the newest if none is named, and begins the update to it. The ticket is that of both.
    fn fetch(&self, version: Option<Version>, origin: &str) -> Result<Accepted, RequestError> {
        self.manager.check_free()?;
        let opened = self.registry.tickets.open(RequestName::Update, origin);
        self.registry.save();
        let (manager, bus, registry) = (Arc::clone(&self.manager), self.bus.clone(), Arc::clone(&self.registry));
        let (ticket, origin) = (opened.clone(), origin.to_owned());
        self.manager.spawn(async move {
            match manager.fetch_and_begin(version, ticket.clone(), &origin).await {
                Ok(true) => {} // the update ends the ticket
                Ok(false) => resolve(&registry, &ticket.id, Progress::Already),
                Err(error) => {
                    let reason = refit_base::message(&error);
                    report_refused(&registry, &bus, RequestName::Update, &origin, &reason);
                    registry.tickets.fail(&ticket.id, reason, error.reason_code(), error.exit());
                    registry.save();
                }
            }
        });
        Ok(Accepted { ticket: opened, number: None, merged_with: None })
    }

    fn begin(&self, body: RequestBody, kind: Kind, origin: &str) -> Result<Accepted, RequestError> {
        let target = match (body.digest, body.version, kind) {
            (Some(digest), None, Kind::Update) => Target::Digest(digest),
            (None, Some(version), Kind::Update | Kind::Rollback) => Target::Version(version),
            (None, None, Kind::Rollback) => Target::Previous,
            (Some(_), _, Kind::Rollback) => return Err(RequestError::Forward),
            (Some(_), Some(_), Kind::Update) | (None, None, Kind::Update) => return Err(RequestError::Nowhere),
        };
        let ticket = self.manager.begin(target, kind, origin)?;
        Ok(Accepted { ticket, number: None, merged_with: None })
    }
}

/// Waits for the outcome of a request and puts it into the ticket `id`, with who was asked; and then whether it was confirmed.
async fn follow(registry: Arc<Registry>, config: Arc<Config>, id: String, ticket: Ticket) {
    let progress = ticket.clone().outcome().await;
    registry.tickets.asked(&id, asked::views(ticket.asked(), &config));
    let mut steps = ticket.watch_confirmation();
    let mut step = steps.borrow_and_update().clone();
    if let Some(step) = &step {
        registry.tickets.confirmation(&id, step.into());
    }
    resolve(&registry, &id, progress);
    while step.is_some_and(|confirmation| !confirmation.step.is_end()) && steps.changed().await.is_ok() {
        step = steps.borrow_and_update().clone();
        if let Some(step) = &step {
            registry.tickets.confirmation(&id, step.into());
            registry.save();
        }
    }
}

/// Puts an outcome into the ticket `id`.
pub(crate) fn resolve(registry: &Registry, id: &str, progress: Progress) {
    let (state, reason) = match progress {
        Progress::Done | Progress::Accepted => (TicketState::Done, None),
        Progress::Already => (TicketState::Already, None),
        Progress::Failed(reason) => (TicketState::Failed, Some(reason)),
        Progress::Refused(reason) => (TicketState::Refused, Some(reason)),
    };
    registry.tickets.resolve(id, state, reason);
    registry.save();
}

/// Refuses a request for `reason`: there is a ticket that says so, an event for the audit, and a line on the log.
pub(crate) fn refuse(registry: &Registry, bus: &Bus, request: &str, origin: &str, reason: &str) -> wire::Ticket {
    let request = RequestName::from(request);
    let ticket = registry.tickets.open(request.clone(), origin);
    resolve(registry, &ticket.id, Progress::Refused(reason.to_owned()));
    report_refused(registry, bus, request, origin, reason);
    registry.tickets.get(&ticket.id).unwrap_or(ticket)
}

/// Tells everybody that a request was refused before the bus heard of it.
fn report_refused(registry: &Registry, bus: &Bus, request: RequestName, origin: &str, reason: &str) {
    bus.log(Level::Warning, format!("request {request} of {origin}: refused: {reason}"));
    registry.events.publish(Event::BusRequest(Requested {
        number: None,
        request,
        origin: origin.to_owned(),
        outcome: RequestOutcome::Refused,
        reason: Some(reason.to_owned()),
    }));
}
