//! What a component says of itself over `NOTIFY_SOCKET`: read within limits, and made sense of.
//!
//! `READY`, `STATUS`, `ERRNO`, `STOPPING`, `RELOADING`, `EXTEND_TIMEOUT_USEC`, `WATCHDOG` and `WATCHDOG_USEC` mean what
//! sd_notify(3) says, if their sender is [believed](super::senders); `BARRIER` is answered by closing its descriptor. The rest is
//! passed over: `MAINPID` because the process that was started is the component, and the
//! descriptor store because listeners are not the component's to keep. Noise is said once for each process and does no harm; whoever
//! sends more than anybody needs is read more slowly, and waits.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use refit_base::clock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::senders::Senders;
use crate::awake;
use crate::carry::CarriedInstance;
use crate::handover::notify::{self, Notification, Refused};

/// The longest status text that a component may set.
const STATUS_CHARS_MAX: usize = 200;
/// The most that one message moves a deadline: whoever needs longer says so again.
pub(super) const EXTEND_MAX: Duration = Duration::from_secs(3600);
/// So many messages are read at once: more than any start has.
const BURST_MAX: u32 = 200;
/// And then one in so long: a hundred a second is a status line that nobody could read.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest watchdog time that a component may set for itself: a year is none.
const WATCHDOG_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A deadline that moves by less is not recorded: who needs time asks for it again and again.
const EXTENSION_STEP: Duration = Duration::from_secs(1);

/// So many are read of a process that has ended: more than the kernel queues, and somebody else may go on.
const REST_MAX: u32 = 1024;

/// A step that a component announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// It stops by itself.
    Stopping,
    /// It reads its settings again.
    Reloading,
}

impl Announced {
    const ALL: [Self; 2] = [Self::Stopping, Self::Reloading];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stopping => "stopping",
            Self::Reloading => "reloading",
        }
    }
}

/// What a process has said so far.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// It serves.
    pub(super) ready: bool,
    /// How it is, in its own words.
    pub(super) status: Option<String>,
    /// The number of the error that it ends with.
    pub(super) errno: Option<i32>,
    /// What it is about to do.
    pub(super) announced: Option<Announced>,
    /// When it last asked for more time, and until when.
    pub(super) extended: Option<(Instant, Instant)>,
    /// When it last gave a sign of life.
    pub(super) alive: Option<Instant>,
    /// How often it has to, if it has said so itself; zero is never.
    pub(super) watchdog: Option<Duration>,
    /// It wants to be taken for dead.
    pub(super) triggered: bool,
    /// Whether it ever said anything.
    pub(super) anything: bool,
    /// Why something that came on its socket was not believed.
    pub(super) refused: Option<&'static str>,
}

impl Said {
    /// Returns what is recorded of a process, which an earlier image may have heard. The time that it asked for counts as asked for
    /// now.
    pub(super) fn carried(carried: &CarriedInstance) -> Self {
        let now = Instant::now();
        let left = carried.extended_until_ns.map(|until| until.saturating_sub(clock::monotonic_ns()));
        let left = left.map(Duration::from_nanos).filter(|left| !left.is_zero());
        let announced = Announced::ALL.into_iter().find(|step| carried.announced.as_deref() == Some(step.name()));
        Self {
            ready: carried.ready,
            anything: carried.ready || carried.status.is_some() || left.is_some(),
            status: carried.status.clone(),
            errno: carried.errno,
            announced,
            extended: left.map(|left| (now, now + left.min(EXTEND_MAX))),
            alive: None,
            watchdog: carried.watchdog_us.map(Duration::from_micros),
            triggered: false,
            refused: None,
        }
    }

    /// Records all of it that the next image goes by, but for whether it serves: that is the actor's to say.
    pub(super) fn record_in(&self, carried: &mut CarriedInstance) {
        carried.status.clone_from(&self.status);
        carried.errno = self.errno;
        carried.announced = self.announced.map(|step| step.name().to_owned());
        carried.watchdog_us = self.watchdog.map(|limit| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX));
        carried.extended_until_ns = self.extended_until_ns();
    }

    /// Returns whether the next image would go by something else than `carried` says.
    pub(super) fn is_news_to(&self, carried: &CarriedInstance) -> bool {
        let mut new = CarriedInstance { extended_until_ns: carried.extended_until_ns, ..carried.clone() };
        self.record_in(&mut new);
        let step = u64::try_from(EXTENSION_STEP.as_nanos()).unwrap_or(u64::MAX);
        let recorded = carried.extended_until_ns.unwrap_or(0);
        let moved = new.extended_until_ns.is_some_and(|until| until > recorded.saturating_add(step));
        new.extended_until_ns = carried.extended_until_ns;
        moved || new != *carried
    }

    fn extended_until_ns(&self) -> Option<u64> {
        let left = self.extended?.1.saturating_duration_since(Instant::now());
        Some(clock::monotonic_ns().saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Which process is heard, and whom its socket believes.
pub(super) struct Heard {
    pub(super) component: String,
    pub(super) id: String,
    pub(super) senders: Senders,
}

/// What is heard of one process.
pub(super) struct Reports {
    socket: AsyncFd<OwnedFd>,
    said: watch::Sender<Said>,
    senders: Senders,
    refused: Refused,
    noise: Noise,
}

impl Reports {
    /// Returns what hears a process on `socket`, and tells `said`.
    pub(super) fn new(socket: AsyncFd<OwnedFd>, said: watch::Sender<Said>, heard: Heard) -> Self {
        let Heard { component, id, senders } = heard;
        Self { socket, said, senders, refused: Refused::default(), noise: Noise { component, id, told: Vec::new() } }
    }

    /// Reads what it says, for as long as it is wanted. Cancel-safe: what was received was taken.
    pub(super) async fn read(&mut self) -> Infallible {
        let (mut burst, mut last) = (BURST_MAX, Instant::now());
        loop {
            let received = self.socket.async_io(Interest::READABLE, |socket| notify::receive(socket.as_fd())).await;
            let notification = match received {
                Ok(notification) => notification,
                Err(error) => {
                    self.noise.tell("unreadable", &format!("its notifications cannot be read any more: {error}"));
                    // Whoever waits for `said` waits for its own limit.
                    return std::future::pending().await;
                }
            };
            self.hear(&notification);
            // What waits for this barrier has been heard in its turn: closing its descriptors says so.
            drop(notification);
            let earned = last.elapsed().as_millis() / PAUSE.as_millis();
            if earned > 0 {
                burst = burst.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(BURST_MAX);
                last = Instant::now();
            }
            burst = burst.saturating_sub(1);
            if burst == 0 {
                self.noise.tell("flood", "it sends more notifications than are read; it has to wait");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Takes what lies there. A process that has ended said it before: whoever hears of the end is to know it.
    pub(super) fn rest(&mut self) {
        for _ in 0..REST_MAX {
            let Ok(notification) = notify::receive(self.socket.get_ref().as_fd()) else { return };
            self.hear(&notification);
        }
    }

    /// Takes a notification, if its sender is believed.
    fn hear(&mut self, notification: &Notification) {
        match self.senders.judge(notification.sender) {
            Ok(()) => take(notification, &self.said, &mut self.noise),
            Err(reason) => {
                self.said.send_if_modified(|said| {
                    said.refused = Some(reason);
                    false // nothing that anybody waits for
                });
                if self.refused.is_news(notification.sender) {
                    let (pid, uid) = notification.sender.map_or((0, 0), |sender| (sender.pid, sender.uid));
                    tracing::warn!(
                        component.name = self.noise.component,
                        instance.id = self.noise.id,
                        sender.pid = pid,
                        sender.uid = uid,
                        reason,
                        "a notification was refused"
                    );
                }
            }
        }
    }
}

/// What was complained about: each kind once.
struct Noise {
    component: String,
    id: String,
    told: Vec<&'static str>,
}

impl Noise {
    fn tell(&mut self, kind: &'static str, what: &str) {
        if !self.told.contains(&kind) {
            self.told.push(kind);
            tracing::warn!(
                component.name = self.component,
                instance.id = self.id,
                what,
                "component misuses its notify socket"
            );
        }
    }
}

fn take(notification: &Notification, said: &watch::Sender<Said>, noise: &mut Noise) {
    if notification.truncated {
        let text = format!("a notification of more than {} bytes was passed over", notify::DATAGRAM_BYTES_MAX);
        return noise.tell("oversized", &text);
    }
    if notification.fields.is_empty() {
        noise.tell("garbage", "a notification without KEY=VALUE lines was passed over");
    }
    let now = Instant::now();
    let mut new = said.borrow().clone();
    new.anything = true;
    for (key, value) in &notification.fields {
        let micros = || value.parse().ok().map(Duration::from_micros);
        match (key.as_str(), value.as_str()) {
            ("READY", "1") => {
                new.ready = true;
                if new.announced == Some(Announced::Reloading) {
                    new.announced = None;
                }
            }
            ("STATUS", text) => {
                let text: String = text.chars().filter(|c| !c.is_control()).take(STATUS_CHARS_MAX).collect();
                new.status = (!text.is_empty()).then_some(text);
            }
            ("ERRNO", number) => new.errno = number.parse().ok(),
            ("STOPPING", "1") => new.announced = Some(Announced::Stopping),
            ("RELOADING", "1") => new.announced = Some(Announced::Reloading),
            ("WATCHDOG", "1") => new.alive = Some(now),
            ("WATCHDOG", "trigger") => new.triggered = true,
            ("WATCHDOG_USEC", _) => match micros() {
                Some(limit) => {
                    new.watchdog = Some(limit.min(WATCHDOG_MAX));
                    new.alive = Some(now);
                }
                None => noise.tell("number", &format!("{key}={value:?} is not a number of microseconds")),
            },
            ("EXTEND_TIMEOUT_USEC", _) => match micros() {
                Some(more) => {
                    if more > EXTEND_MAX {
                        let text =
                            format!("{key}={value} is cut to {} s; say it again meanwhile", EXTEND_MAX.as_secs());
                        noise.tell("extension", &text);
                    }
                    let until = now + more.min(EXTEND_MAX);
                    // Never shorter than it was.
                    let until = new.extended.map_or(until, |(_, before)| before.max(until));
                    new.extended = Some((now, until));
                }
                None => noise.tell("number", &format!("{key}={value:?} is not a number of microseconds")),
            },
            ("MAINPID", _) => {
                noise.tell("MAINPID", "MAINPID is not supported: the process that was started is the component")
            }
            ("FDSTORE" | "FDSTOREREMOVE", _) => {
                noise.tell("FDSTORE", "descriptors are not kept for components: declare a listener");
            }
            // Whatever else there is or will be says nothing that is acted on.
            (_, _) => {}
        }
    }
    said.send_replace(new);
}

/// Waits until `limit` after `begun`, or until as long after as the process has asked for since `asked_since`. A pause of the machine
/// does not count.
pub(super) async fn deadline(said: &watch::Receiver<Said>, asked_since: Instant, begun: Instant, limit: Duration) {
    let mut said = said.clone();
    let mut paused = Duration::ZERO;
    loop {
        let extended = said.borrow_and_update().extended;
        // What it asked for in an earlier step does not count in this one.
        let until =
            extended.filter(|(at, _)| *at >= asked_since).map_or(begun + limit, |(_, until)| until.max(begun + limit));
        let until = until + paused;
        if Instant::now() >= until {
            return;
        }
        // Nobody who could still ask: only time passes.
        let asks = async {
            if said.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        // Cancel-safe: both only wait.
        tokio::select! {
            more = awake::sleep_until(until, limit) => paused += more,
            () = asks => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an older release carried: it knew none of the optional fields.
    fn carried() -> CarriedInstance {
        serde_json::from_value(serde_json::json!({
            "id": "c-1", "component": "c", "generation": 1, "pid": 1, "start_ticks": 1, "token": "t", "release": "1.0.0",
            "fingerprint": "f", "started_at": "now", "ready": false, "status": null, "role": "current",
        }))
        .expect("it is read")
    }

    fn after(texts: &[&str]) -> Said {
        let said = watch::channel(Said::carried(&carried())).0;
        let mut noise = Noise { component: "c".to_owned(), id: "c-1".to_owned(), told: Vec::new() };
        for text in texts {
            let notification = Notification::of(text.as_bytes());
            take(&notification, &said, &mut noise);
        }
        said.borrow().clone()
    }

    #[test]
    fn what_is_said_is_understood() {
        assert!(after(&["READY=1"]).ready && !after(&["READY=0"]).ready && !after(&["READY"]).ready);
        assert_eq!(after(&["STATUS=a\u{1b}[31m\nERRNO=2"]).status.as_deref(), Some("a[31m"));
        assert_eq!(after(&["ERRNO=2"]).errno, Some(2));
        assert_eq!(after(&["RELOADING=1"]).announced, Some(Announced::Reloading));
        assert_eq!(after(&["RELOADING=1", "READY=1"]).announced, None);
        assert_eq!(after(&["STOPPING=1", "READY=1"]).announced, Some(Announced::Stopping));
        assert!(after(&["WATCHDOG=1"]).alive.is_some() && after(&["WATCHDOG=trigger"]).triggered);
        assert_eq!(after(&["WATCHDOG_USEC=1500000"]).watchdog, Some(Duration::from_millis(1500)));
        let noise = after(&["", "\0\0\u{fffd}", "WATCHDOG_USEC=-1", "MAINPID=1", "EXTEND_TIMEOUT_USEC=soon"]);
        assert!(noise.anything && !noise.ready && noise.watchdog.is_none() && noise.extended.is_none());
    }

    #[test]
    fn a_deadline_only_moves_away_and_not_further_than_the_bound() {
        let span = |texts: &[&str]| after(texts).extended.map(|(at, until)| until - at).expect("extended");
        assert_eq!(span(&["EXTEND_TIMEOUT_USEC=5000000"]), Duration::from_secs(5));
        assert!(span(&["EXTEND_TIMEOUT_USEC=5000000", "EXTEND_TIMEOUT_USEC=1"]) > Duration::from_secs(4));
        assert_eq!(span(&["EXTEND_TIMEOUT_USEC=999999999999999"]), EXTEND_MAX);
    }

    #[test]
    fn the_next_image_knows_what_was_said() {
        let said = after(&["STATUS=busy\nERRNO=28\nRELOADING=1\nWATCHDOG_USEC=1500000\nEXTEND_TIMEOUT_USEC=60000000"]);
        let mut recorded = carried();
        assert!(said.is_news_to(&recorded) && !after(&["WATCHDOG=1"]).is_news_to(&recorded));
        said.record_in(&mut recorded);
        assert!(!said.is_news_to(&recorded), "more time than a moment is news");
        let text = serde_json::to_string(&recorded).expect("text");
        let next = Said::carried(&serde_json::from_str(&text).expect("it is read"));
        assert_eq!((next.status.as_deref(), next.errno, next.announced), (Some("busy"), Some(28), said.announced));
        assert_eq!((next.watchdog, next.ready, next.anything), (said.watchdog, false, true));
        let (at, until) = next.extended.expect("carried over");
        assert!(until > at + Duration::from_secs(50) && until <= at + Duration::from_secs(60));
        recorded.extended_until_ns = Some(1);
        recorded.announced = Some("dancing".to_owned());
        let next = Said::carried(&recorded);
        assert!(next.extended.is_none(), "that time is over");
        assert_eq!(next.announced, None, "a newer release may announce more");
    }
}
