//! From what is written to what is meant, collecting every mistake on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use refit_updater::trust::Expired;
use semver::Version;
use toml::Spanned;

use super::raw::{Raw, RawComponent, RawHealth, RawRestart};
use super::{Component, Config, Handover, Health, Mistake, Probe, Ready, Restart, RestartPolicy, Update, value};
use crate::bus;

const PROBATION_DEFAULT: Duration = Duration::from_secs(10);
const START_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const KEEP_DEFAULT: u32 = 3;
const WATCHDOG_DEFAULT: Duration = Duration::from_secs(30);
/// A shorter one would end a runtime that only waits for a slow disk.
const WATCHDOG_MIN: Duration = Duration::from_secs(1);
const DRAIN_GRACE_DEFAULT: Duration = Duration::from_secs(2);
const HEALTH_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const HEALTH_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
const HEALTH_THRESHOLD_DEFAULT: u32 = 3;
/// Probing faster than this would be load, not care.
const HEALTH_INTERVAL_MIN: Duration = Duration::from_millis(50);
const RESTART_BACKOFF_DEFAULT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const RESTART_LIMIT_DEFAULT: (u32, Duration) = (5, Duration::from_secs(60));

/// Which file a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Release,
    Local,
}

/// A value with the place it was written at.
#[derive(Debug, Clone)]
struct At<T> {
    value: T,
    source: Source,
    span: Range<usize>,
}

fn at<T>(spanned: Spanned<T>, source: Source) -> At<T> {
    let span = spanned.span();
    At { value: spanned.into_inner(), source, span }
}

/// The two files, and what is wrong in them.
struct Checker<'a> {
    release: (&'a Path, &'a str),
    local: Option<(&'a Path, &'a str)>,
    mistakes: Vec<Mistake>,
}

/// Returns the configuration that `text`, overridden by `local`, means.
///
/// # Errors
/// Every mistake in both.
pub(super) fn parse(path: &Path, text: &str, local: Option<(&Path, &str)>) -> Result<Config, Vec<Mistake>> {
    let mut checker = Checker { release: (path, text), local, mistakes: Vec::new() };
    let base = checker.read(Source::Release);
    let over = if local.is_some() { checker.read(Source::Local) } else { Some(Raw::default()) };
    let (Some(base), Some(over)) = (base, over) else { return Err(checker.mistakes) };
    let config = checker.config(base, over);
    match config {
        Some(config) if checker.mistakes.is_empty() => Ok(config),
        Some(_) | None => Err(checker.mistakes),
    }
}

impl Checker<'_> {
    fn text(&self, source: Source) -> (&Path, &str) {
        match source {
            Source::Release => self.release,
            Source::Local => self.local.unwrap_or(self.release),
        }
    }

    fn read(&mut self, source: Source) -> Option<Raw> {
        let (path, text) = self.text(source);
        match toml::from_str(text) {
            Ok(raw) => Some(raw),
            Err(error) => {
                let mistake = Mistake {
                    place: error.span().map(|span| place(text, span.start)),
                    file: path.to_owned(),
                    what: error.message().lines().collect::<Vec<_>>().join(", "),
                };
                self.mistakes.push(mistake);
                None
            }
        }
    }

    fn wrong(&mut self, source: Source, span: &Range<usize>, what: String) {
        let (file, text) = self.text(source);
        let mistake = Mistake { place: Some(place(text, span.start)), file: file.to_owned(), what };
        self.mistakes.push(mistake);
    }

    fn missing(&mut self, what: &str) {
        let file: PathBuf = self.release.0.to_owned();
        self.mistakes.push(Mistake { place: None, file, what: what.to_owned() });
    }

    /// Returns the local value if there is one, else the release's.
    fn pick<T>(&self, base: Option<Spanned<T>>, over: Option<Spanned<T>>) -> Option<At<T>> {
        over.map(|value| at(value, Source::Local)).or_else(|| base.map(|value| at(value, Source::Release)))
    }

    /// Returns what `read` makes of a text, or `default`, which also stands in for a mistake.
    fn text_value<T>(
        &mut self,
        written: Option<At<String>>,
        default: T,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(written) = written else { return default };
        match read(&written.value) {
            Ok(value) => value,
            Err(what) => {
                self.wrong(written.source, &written.span, what);
                default
            }
        }
    }

    fn config(&mut self, base: Raw, over: Raw) -> Option<Config> {
        let name = self.pick(base.appliance.name, over.appliance.name);
        let version = self.pick(base.appliance.version, over.appliance.version);
        if let Some(requires) = self.pick(base.appliance.requires, over.appliance.requires) {
            self.text_value(Some(requires), Version::new(0, 0, 0), version_of);
        }
        if let Some(name) = &name
            && let Err(what) = value::name(&name.value)
        {
            let (source, span) = (name.source, name.span.clone());
            self.wrong(source, &span, what);
        }
        if name.is_none() {
            self.missing("[appliance] needs a name");
        }
        let version = match version {
            Some(version) => Some(self.text_value(Some(version), Version::new(0, 0, 0), version_of)),
            None => {
                self.missing("[appliance] needs a version");
                None
            }
        };
        let runtime = self.pick(base.runtime.binary, over.runtime.binary).and_then(|binary| {
            self.text_value(Some(binary), None, |text| {
                let inside = Path::new(text).components().all(|part| matches!(part, std::path::Component::Normal(_)));
                if inside && !text.is_empty() {
                    Ok(Some(text.to_owned()))
                } else {
                    Err(format!("{text:?} is not a path below the release"))
                }
            })
        });
        let listeners = self.listeners(base.listeners, over.listeners);
        let pick_text = |base, over| self.pick(base, over);
        let probation = pick_text(base.update.probation, over.update.probation);
        let start_timeout = pick_text(base.update.start_timeout, over.update.start_timeout);
        let watchdog = pick_text(base.update.watchdog, over.update.watchdog);
        let drain_grace = pick_text(base.update.drain_grace, over.update.drain_grace);
        let expired_offline = pick_text(base.update.expired_offline, over.update.expired_offline);
        let repository = pick_text(base.update.repository, over.update.repository);
        let keep = self.pick(base.update.keep, over.update.keep);
        let update = Update {
            probation: self.text_value(probation, PROBATION_DEFAULT, value::duration),
            start_timeout: self.text_value(start_timeout, START_TIMEOUT_DEFAULT, value::duration),
            keep: match keep {
                Some(keep) if keep.value == 0 => {
                    self.wrong(
                        keep.source,
                        &keep.span,
                        "keep at least 1 release: there must be one to go back to".into(),
                    );
                    1
                }
                Some(keep) => keep.value as usize,
                None => KEEP_DEFAULT as usize,
            },
            watchdog: self.text_value(watchdog, WATCHDOG_DEFAULT, |text| {
                let duration = value::duration(text)?;
                if duration < WATCHDOG_MIN {
                    Err(format!("a watchdog of {text:?} is too short: at least 1s"))
                } else {
                    Ok(duration)
                }
            }),
            drain_grace: self.text_value(drain_grace, DRAIN_GRACE_DEFAULT, value::duration),
            expired_offline: self.text_value(expired_offline, Expired::default(), |text| {
                one_of(text, "policy", &[("warn", Expired::Warn), ("refuse", Expired::Refuse)])
            }),
            repository: self.text_value(repository, None, |text| {
                if ["http://", "https://", "/"].iter().any(|begin| text.starts_with(begin)) {
                    Ok(Some(text.to_owned()))
                } else {
                    Err(format!("{text:?} is no repository: give an http or https address, or a directory from / on"))
                }
            }),
        };
        let components = self.components(base.component, over.component, &listeners, update.start_timeout);
        Some(Config {
            name: name?.value,
            version: version?,
            runtime,
            listeners: listeners.into_iter().map(|(name, at)| (name, at.value)).collect(),
            update,
            components,
        })
    }

    fn listeners(
        &mut self,
        base: BTreeMap<Spanned<String>, Spanned<String>>,
        over: BTreeMap<Spanned<String>, Spanned<String>>,
    ) -> BTreeMap<String, At<SocketAddr>> {
        let mut listeners: BTreeMap<String, At<SocketAddr>> = BTreeMap::new();
        for (source, table) in [(Source::Release, base), (Source::Local, over)] {
            for (name, address) in table {
                if let Err(what) = value::name(name.get_ref()) {
                    self.wrong(source, &name.span(), what);
                }
                let address = at(address, source);
                match address.value.parse() {
                    Ok(parsed) => {
                        let parsed = At { value: parsed, source, span: address.span };
                        listeners.insert(name.into_inner(), parsed);
                    }
                    Err(_) => self.wrong(
                        source,
                        &address.span,
                        format!("{:?} is not an address: write IP:PORT, such as \"127.0.0.1:8080\"", address.value),
                    ),
                }
            }
        }
        let mut seen: BTreeMap<SocketAddr, String> = BTreeMap::new();
        let mut clashes = Vec::new();
        for (name, address) in &listeners {
            if address.value.port() == 0 {
                continue; // any free port: never the same one
            }
            if let Some(other) = seen.insert(address.value, name.clone()) {
                let what = format!("the listeners {other} and {name} have one address, {}", address.value);
                clashes.push((address.source, address.span.clone(), what));
            }
        }
        for (source, span, what) in clashes {
            self.wrong(source, &span, what);
        }
        listeners
    }

    fn components(
        &mut self,
        base: Vec<RawComponent>,
        over: Vec<RawComponent>,
        listeners: &BTreeMap<String, At<SocketAddr>>,
        start_timeout: Duration,
    ) -> Vec<Component> {
        let mut over: Vec<(String, RawComponent)> =
            over.into_iter().filter_map(|raw| raw.name.clone().map(|name| (name.into_inner(), raw))).collect();
        let mut components: Vec<Component> = Vec::new();
        let mut references = Vec::new();
        for raw in base {
            let Some(name) = raw.name.clone() else {
                self.missing("a [[component]] has no name");
                continue;
            };
            let name = at(name, Source::Release);
            if let Err(what) = value::name(&name.value) {
                self.wrong(name.source, &name.span, what);
            }
            if components.iter().any(|other| other.name == name.value) {
                self.wrong(name.source, &name.span, format!("there are two components {:?}", name.value));
            }
            let local = over
                .iter()
                .position(|(other, _)| *other == name.value)
                .map_or_else(RawComponent::default, |position| over.remove(position).1);
            for (list, what) in [(&raw.listeners, "listener"), (&raw.needs, "component"), (&raw.after, "component")] {
                for reference in list.iter().flatten() {
                    references.push((at(reference.clone(), Source::Release), what));
                }
            }
            if let Some(component) = self.component(&name, raw, local, start_timeout) {
                components.push(component);
            }
        }
        for (name, raw) in over {
            if let Some(spanned) = raw.name {
                self.wrong(Source::Local, &spanned.span(), format!("the release has no component {name:?}"));
            }
        }
        let names: BTreeSet<String> = components.iter().map(|component| component.name.clone()).collect();
        for (reference, what) in references {
            let known = if what == "listener" {
                listeners.contains_key(&reference.value)
            } else {
                names.contains(&reference.value)
            };
            if !known {
                let text = format!("there is no {what} {:?}", reference.value);
                self.wrong(reference.source, &reference.span, text);
            }
        }
        let rows: Vec<(String, bus::Order)> =
            components.iter().map(|component| (component.name.clone(), crate::component::order(component))).collect();
        if let Err(cycle) = bus::waves(&rows) {
            self.missing(&cycle.to_string());
        }
        components
    }

    fn component(
        &mut self,
        name: &At<String>,
        raw: RawComponent,
        local: RawComponent,
        start_timeout: Duration,
    ) -> Option<Component> {
        let command = self.pick(raw.command, local.command);
        let command = match command {
            Some(command) if command.value.first().is_none_or(String::is_empty) => {
                self.wrong(command.source, &command.span, "the command is empty".to_owned());
                return None;
            }
            Some(command) => command.value,
            None => {
                self.wrong(name.source, &name.span, format!("the component {:?} has no command", name.value));
                return None;
            }
        };
        let words = |list: Option<Vec<Spanned<String>>>| -> Vec<String> {
            list.into_iter().flatten().map(Spanned::into_inner).collect()
        };
        let handover = self.pick(raw.handover, local.handover);
        let ready = self.pick(raw.ready, local.ready);
        let start = self.pick(raw.start_timeout, local.start_timeout);
        let stop = self.pick(raw.stop_timeout, local.stop_timeout);
        let user = self.pick(raw.user, local.user);
        let mut env = raw.env.unwrap_or_default();
        env.extend(local.env.unwrap_or_default());
        Some(Component {
            name: name.value.clone(),
            command,
            listeners: words(local.listeners.or(raw.listeners)),
            needs: words(local.needs.or(raw.needs)),
            after: words(local.after.or(raw.after)),
            priority: local.priority.or(raw.priority).unwrap_or(bus::PRIORITY_DEFAULT),
            handover: self.text_value(handover, Handover::Restart, |text| {
                one_of(
                    text,
                    "handover",
                    &[("overlap", Handover::Overlap), ("restart", Handover::Restart), ("keep", Handover::Keep)],
                )
            }),
            ready: self.text_value(ready, Ready::Exec, |text| {
                one_of(
                    text,
                    "ready",
                    &[
                        ("notify", Ready::Notify),
                        ("listen", Ready::Listen),
                        ("exec", Ready::Exec),
                        ("started", Ready::Started),
                    ],
                )
            }),
            health: self.health(name, raw.health, local.health),
            restart: self.restart(raw.restart.unwrap_or_default(), local.restart.unwrap_or_default()),
            start_timeout: self.text_value(start, start_timeout, value::duration),
            stop_timeout: self.text_value(stop, STOP_TIMEOUT_DEFAULT, value::duration),
            user: user.map(|user| user.value),
            env,
            files: local.files.or(raw.files).map(|list| words(Some(list))),
            allow: words(local.allow.or(raw.allow)),
            migrates: local.migrates.or(raw.migrates).unwrap_or(true),
        })
    }

    fn health(&mut self, name: &At<String>, raw: Option<RawHealth>, local: Option<RawHealth>) -> Option<Health> {
        if raw.is_none() && local.is_none() {
            return None;
        }
        let (raw, local) = (raw.unwrap_or_default(), local.unwrap_or_default());
        let http = self.pick(raw.http, local.http);
        let tcp = self.pick(raw.tcp, local.tcp);
        let command = self.pick(raw.command, local.command);
        let interval = self.pick(raw.interval, local.interval);
        let timeout = self.pick(raw.timeout, local.timeout);
        let threshold = self.pick(raw.threshold, local.threshold);
        let probe = match (http, tcp, command) {
            (Some(http), None, None) => {
                let url = self.text_value(Some(http), String::new(), |text| {
                    if text.starts_with("http://") {
                        Ok(text.to_owned())
                    } else {
                        Err(format!("{text:?} is not a URL that can be tried: it begins with http://"))
                    }
                });
                Probe::Http(url)
            }
            (None, Some(tcp), None) => {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                Probe::Tcp(self.text_value(Some(tcp), any, |text| {
                    text.parse().map_err(|_| format!("{text:?} is not an address: write IP:PORT"))
                }))
            }
            (None, None, Some(command)) => Probe::Command(command.value),
            (_, _, _) => {
                let what = format!("the health of {:?} needs one of http, tcp, command", name.value);
                self.wrong(name.source, &name.span, what);
                return None;
            }
        };
        Some(Health {
            probe,
            interval: self.text_value(interval, HEALTH_INTERVAL_DEFAULT, |text| {
                let interval = value::duration(text)?;
                if interval < HEALTH_INTERVAL_MIN {
                    Err(format!("an interval of {text:?} is too short: at least 50ms"))
                } else {
                    Ok(interval)
                }
            }),
            timeout: self.text_value(timeout, HEALTH_TIMEOUT_DEFAULT, value::duration),
            threshold: threshold.map_or(HEALTH_THRESHOLD_DEFAULT, |threshold| threshold.value.max(1)),
        })
    }

    fn restart(&mut self, raw: RawRestart, local: RawRestart) -> Restart {
        let policy = self.pick(raw.policy, local.policy);
        let backoff = self.pick(raw.backoff, local.backoff);
        let limit = self.pick(raw.limit, local.limit);
        Restart {
            policy: self.text_value(policy, RestartPolicy::OnFailure, |text| {
                one_of(
                    text,
                    "policy",
                    &[
                        ("no", RestartPolicy::No),
                        ("on-failure", RestartPolicy::OnFailure),
                        ("always", RestartPolicy::Always),
                    ],
                )
            }),
            backoff: self.text_value(backoff, RESTART_BACKOFF_DEFAULT, value::backoff),
            limit: self.text_value(limit, RESTART_LIMIT_DEFAULT, value::limit),
        }
    }
}

fn version_of(text: &str) -> Result<Version, String> {
    Version::parse(text).map_err(|error| format!("{text:?} is not a version: {error}"))
}

fn one_of<T: Copy>(text: &str, key: &str, values: &[(&str, T)]) -> Result<T, String> {
    values.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is no {key}: use one of {}", names.join(", "))
    })
}

/// Returns the line and column, from 1, of the byte `offset` of `text`.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset.min(text.len()))];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[appliance]
name = "acme"
version = "1.4.0"
[runtime]
binary = "bin/refit"
[listeners]
admin = "127.0.0.1:8443"
http = "127.0.0.1:8080"
[update]
probation = "5s"
[[component]]
name = "db"
command = ["bin/db"]
[[component]]
name = "web"
command = ["bin/web", "--workers", "4"]
listeners = ["http"]
after = ["db"]
handover = "overlap"
ready = "notify"
health = { http = "http://127.0.0.1:8080/healthz", interval = "5s" }
restart = { policy = "on-failure", backoff = "100ms..30s", limit = "5/1m" }
"#;

    fn mistakes(text: &str, local: Option<&str>) -> Vec<String> {
        match parse(Path::new("a.toml"), text, local.map(|text| (Path::new("l.toml"), text))) {
            Ok(_) => Vec::new(),
            Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_good_file_is_understood_and_overridden() {
        let local = "[listeners]\nhttp = \"127.0.0.1:0\"\n[[component]]\nname = \"web\"\nstop_timeout = \"1s\"\n";
        let config = parse(Path::new("a.toml"), GOOD, Some((Path::new("l.toml"), local))).expect("good");
        assert_eq!(config.listeners["http"].port(), 0);
        assert_eq!(config.listeners["admin"].port(), 8443);
        let web = config.component("web").expect("web");
        assert_eq!((web.stop_timeout, web.handover), (Duration::from_secs(1), Handover::Overlap));
        assert_eq!(config.update.probation, Duration::from_secs(5));
    }

    #[test]
    fn every_mistake_has_its_line_and_column() {
        let rows: [(String, &str); 11] = [
            (
                GOOD.replace("[update]", "[update]\nexpired_offline = \"never\""),
                "a.toml:11:19: \"never\" is no policy: use one of warn, refuse",
            ),
            (
                GOOD.replace("[update]", "[update]\nrepository = \"ftp://x\""),
                "a.toml:11:14: \"ftp://x\" is no repository",
            ),
            (GOOD.replace("[runtime]", "[runtime"), "a.toml:5:"),
            (GOOD.replace("binary =", "binery ="), "a.toml:6:1: unknown field `binery`"),
            (GOOD.replace("\"5s\"", "\"5 parsecs\""), "a.toml:11:13: \"5 parsecs\" is not a duration"),
            (GOOD.replace("[\"http\"]", "[\"htp\"]"), "a.toml:18:14: there is no listener \"htp\""),
            (GOOD.replace("[\"db\"]", "[\"dc\"]"), "a.toml:19:10: there is no component \"dc\""),
            (GOOD.replace(":8443", ":8080"), "the listeners admin and http have one address"),
            (GOOD.replace("\"1.4.0\"", "\"1.4\""), "a.toml:4:11: \"1.4\" is not a version"),
            (GOOD.replace("\"overlap\"", "\"swap\""), "\"swap\" is no handover: use one of overlap, restart, keep"),
            (
                GOOD.replace("command = [\"bin/db\"]", "command = [\"bin/db\"]\nneeds = [\"web\"]"),
                "wait for each other",
            ),
        ];
        for (text, expected) in rows {
            let found = mistakes(&text, None);
            assert!(found.iter().any(|line| line.contains(expected)), "{expected}: {found:?}");
            assert!(found.iter().all(|line| !line.contains('\n')), "{found:?}");
        }
    }

    #[test]
    fn all_mistakes_come_at_once_and_name_their_file() {
        let text = GOOD.replace("\"5s\"\n[[", "\"x\"\n[[").replace("[\"http\"]", "[\"htp\"]");
        let found = mistakes(&text, Some("[[component]]\nname = \"nobody\"\n"));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("l.toml:2:8: the release has no component")), "{found:?}");
    }
}
