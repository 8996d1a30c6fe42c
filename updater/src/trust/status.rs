//! How long what is trusted is good: for `refit status`, before something expires and not after.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::seen::{Accepted, Seen, Source};
use super::{Trust, TrustError};

/// How long before its date a root is warned of: rotating one takes people, a meeting and an update of every appliance.
const ROOT_WARN_DAYS: i64 = 60;
/// How long before their date targets and snapshots are warned of: signing anew is one command.
const SIGNED_WARN_DAYS: i64 = 14;
/// Timestamps live for days and are renewed by a clock: only one that is past its date means that nobody does it.
const TIMESTAMP_WARN_DAYS: i64 = 0;
/// Hours of a day.
const DAY_HOURS: i64 = 24;

/// One role's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoleStatus {
    /// The role.
    pub role: &'static str,
    /// Where it came from: `root`, `package` (the last one accepted) or `repository`.
    pub source: &'static str,
    /// Its version.
    pub version: u64,
    /// When it expires.
    pub expires: Timestamp,
    /// Whole days until then; negative when it is past.
    pub expires_in_days: i64,
}

/// How long what a home trusts is good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrustStatus {
    /// The trusted root and the newest metadata that was accepted.
    pub roles: Vec<RoleStatus>,
    /// The latest date of a signed release that was accepted.
    pub released: Option<Timestamp>,
    /// Whether the clock is before that: then no date can be judged.
    pub clock_behind: bool,
    /// What somebody should see to, the worst first.
    pub warnings: Vec<String>,
    /// The first of them.
    pub warning: Option<String>,
}

impl Trust {
    /// Returns how long what is trusted is good. A package that was accepted does not become worse with its date, so that
    /// of a package is shown and not warned of.
    ///
    /// # Errors
    /// The home's trust is missing or damaged.
    pub fn status(&self, now: Timestamp) -> Result<TrustStatus, TrustError> {
        let root = self.trusted_root()?;
        let mut roles = vec![role("root", "root", root.version.get(), root.expires, now)];
        let mut released = None;
        for (source, name) in [(Source::Packages, "package"), (Source::Repository, "repository")] {
            self.remembered(source)?;
            let (seen, accepted) = Seen::read(&self.dir(), source)?;
            released = released.max(seen.released);
            let Some(Accepted { timestamp, snapshot, targets, .. }) = accepted else { continue };
            let found = [
                timestamp.map(|it| ("timestamp", it.version, it.expires)),
                snapshot.map(|it| ("snapshot", it.version, it.expires)),
                targets.map(|it| ("targets", it.version, it.expires)),
            ];
            let shown = found.into_iter().flatten();
            roles.extend(shown.map(|(what, version, expires)| role(what, name, version.get(), expires, now)));
        }
        let clock_behind = released.is_some_and(|date| date > now);
        let warnings = warnings(&roles, released.filter(|_| clock_behind), now);
        let warning = warnings.first().cloned();
        Ok(TrustStatus { roles, released, clock_behind, warnings, warning })
    }
}

fn role(role: &'static str, source: &'static str, version: u64, expires: Timestamp, now: Timestamp) -> RoleStatus {
    let expires_in_days = (expires.duration_since(now).as_secs()).div_euclid(DAY_HOURS * 3600);
    RoleStatus { role, source, version, expires, expires_in_days }
}

fn warnings(roles: &[RoleStatus], behind: Option<Timestamp>, now: Timestamp) -> Vec<String> {
    if let Some(released) = behind {
        return vec![format!(
            "the clock says {now}, but a release that was accepted here was made at {released}: set the clock"
        )];
    }
    let worry = |role: &&RoleStatus| {
        let days = match (role.role, role.source) {
            (_, "package") => return false,
            ("root", _) => ROOT_WARN_DAYS,
            ("timestamp", _) => TIMESTAMP_WARN_DAYS,
            (_, _) => SIGNED_WARN_DAYS,
        };
        role.expires <= now.checked_add(SignedDuration::from_hours(days * DAY_HOURS)).unwrap_or(Timestamp::MAX)
    };
    // The root is the first of the roles. Of a repository one date is enough: one command renews them all.
    let root = roles.iter().filter(worry).find(|role| role.role == "root");
    let other = roles.iter().filter(worry).filter(|role| role.role != "root").min_by_key(|role| role.expires);
    root.into_iter().chain(other).map(|role| warning(role, now)).collect()
}

fn warning(RoleStatus { role, source, expires, .. }: &RoleStatus, now: Timestamp) -> String {
    let of = if *role == "root" { "trusted" } else { source };
    let verb = if *expires <= now { "expired" } else { "expires" };
    let what_to_do = match (*role, *expires <= now) {
        ("root", _) => "install a package, or ask the repository, with the vendor's newer root",
        (_, true) => "ask the repository with `refit check`; if it stays so, the vendor must refresh it",
        (_, false) => "the vendor should refresh the repository",
    };
    format!("the {of} {role} metadata {verb} at {expires}: {what_to_do}")
}
