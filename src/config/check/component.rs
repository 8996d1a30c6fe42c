//! One component: what is written of it in both files, checked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use refit_bus as bus;
use toml::Spanned;

use super::names::{Kind, Reference};
use super::{At, Checker, Source, at, one_of};
use crate::config::expand::{Names, Place};
use crate::config::raw::{RawComponent, RawHealth, RawRestart};
use crate::config::{
    ALLOW_READ, Allowed, Component, Handover, Health, HealthAction, Probe, RELOAD_TIMEOUT_DEFAULT, Ready, Restart,
    RestartPolicy, TRANSITIONS, value,
};

const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const HEALTH_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const HEALTH_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
const HEALTH_THRESHOLD_DEFAULT: u32 = 3;
/// Probing faster than this would be load, not care.
const HEALTH_INTERVAL_MIN: Duration = Duration::from_millis(50);
const RESTART_BACKOFF_DEFAULT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const RESTART_LIMIT_DEFAULT: (u32, Duration) = (5, Duration::from_secs(60));

const HANDOVERS: [(&str, Handover); 3] =
    [("overlap", Handover::Overlap), ("restart", Handover::Restart), ("keep", Handover::Keep)];
const READIES: [(&str, Ready); 5] = [
    ("notify", Ready::Notify),
    ("listen", Ready::Listen),
    ("health", Ready::Health),
    ("exec", Ready::Exec),
    ("started", Ready::Started),
];

impl Checker<'_> {
    pub(super) fn components(
        &mut self,
        base: Vec<Spanned<RawComponent>>,
        over: Vec<Spanned<RawComponent>>,
        listeners: &BTreeSet<String>,
        start_timeout: Duration,
        channels: &[String],
    ) -> Vec<Component> {
        let mut over = self.named(over, Source::Local);
        let mut components: Vec<Component> = Vec::new();
        let mut names: Vec<String> = Vec::new();
        let mut references = Vec::new();
        let mut given = BTreeMap::new();
        for (index, name, raw) in self.named(base, Source::Release) {
            let local =
                over.iter().position(|(_, other, _)| other.value == name.value).map(|position| over.remove(position));
            let local_index = local.as_ref().map(|(index, _, _)| *index);
            let local = local.map(|(_, _, raw)| raw).unwrap_or_default();
            for (source, raw) in [(Source::Release, &raw), (Source::Local, &local)] {
                for (list, to_what) in
                    [(&raw.listeners, Kind::Listener), (&raw.needs, Kind::Component), (&raw.after, Kind::Component)]
                {
                    for written in list.iter().flatten() {
                        let to = at(written.clone(), source);
                        references.push(Reference { from: names.len(), to, to_what });
                    }
                }
            }
            names.push(name.value.clone());
            let commands = [(Source::Release, Some(index)), (Source::Local, local_index)];
            let lost = commands.iter().any(|(source, index)| {
                index.is_some_and(|index| self.is_taken_out(*source, &format!("component.{index}.command")))
            });
            let component = self.component(&name, raw, local, start_timeout, (lost, channels));
            self.shared_data(&mut given, &name, component.user.as_ref(), &component.data);
            components.push(component);
        }
        for (_, name, _) in over {
            let what = format!("the release has no component {:?}", name.value);
            self.wrong(Source::Local, &name.span, what);
        }
        self.references(&references, &names, listeners);
        components
    }

    /// Checks a program, that its words can be handed to it, and that everything is there that they refer to.
    fn command(&mut self, command: &At<Vec<String>>, path: Option<&str>, names: &Names<'_>, place: Place) {
        if command.value.iter().any(|word| word.contains('\0')) {
            self.wrong(command.source, &command.span, "a command cannot have a zero byte".to_owned());
        } else if let Some(what) = command.value.iter().find_map(|word| names.check(word, place).err()) {
            self.wrong(command.source, &command.span, what);
        } else if let (Some(programs), Some(program)) = (self.programs, command.value.first())
            && let Err(what) = programs.check(program, path)
        {
            self.wrong(command.source, &command.span, what);
        }
    }

    /// Returns the command that allows a reload, which only a component has that is told of it by a signal.
    fn reload_check(
        &mut self,
        check: Option<At<Vec<String>>>,
        has_signal: bool,
        path: Option<&str>,
        names: &Names<'_>,
    ) -> Option<Vec<String>> {
        let check = check?;
        if check.value.first().is_none_or(String::is_empty) {
            self.wrong(check.source, &check.span, "the reload_check is empty".to_owned());
            return None;
        }
        if !has_signal {
            let what =
                "a reload_check needs a reload_signal: what listens on the bus refuses a reload itself".to_owned();
            self.wrong(check.source, &check.span, what);
        }
        self.command(&check, path, names, Place::Command);
        Some(check.value)
    }

    fn component(
        &mut self,
        name: &At<String>,
        raw: RawComponent,
        local: RawComponent,
        start_timeout: Duration,
        (command_lost, channels): (bool, &[String]),
    ) -> Component {
        let words = |list: Option<Vec<Spanned<String>>>| -> Vec<String> {
            list.into_iter().flatten().map(Spanned::into_inner).collect()
        };
        let listeners = words(local.listeners.clone().or_else(|| raw.listeners.clone()));
        let mut names = Names { component: &name.value, listeners: &listeners, own: Vec::new() };
        let mut spawn = self.spawn(&raw, &local, &names);
        let kind = self.kind(&raw, &local);
        let data = self.data(&raw, &local);
        // One that stands in for a mistake, so that the rest is looked at all the same.
        let nothing = At { value: Vec::new(), source: name.source, span: name.span.clone() };
        let command = match self.pick(raw.command, local.command) {
            Some(command) if command.value.first().is_none_or(String::is_empty) => {
                self.wrong(command.source, &command.span, "the command is empty".to_owned());
                nothing
            }
            Some(command) => command,
            None => {
                if !command_lost {
                    self.wrong(name.source, &name.span, format!("the component {:?} has no command", name.value));
                }
                nothing
            }
        };
        let env = self.environment(raw.env, local.env, &names);
        names.own = env.keys().map(String::as_str).collect();
        let handover = self.pick(raw.handover, local.handover);
        let ready = self.pick(raw.ready, local.ready);
        let ready_at = ready.as_ref().map(|ready| (ready.source, ready.span.clone()));
        let start = self.pick(raw.start_timeout, local.start_timeout);
        let stop = self.pick(raw.stop_timeout, local.stop_timeout);
        let reload = self.pick(raw.reload_timeout, local.reload_timeout);
        let user = self.pick(raw.user, local.user);
        let path = env.get("PATH").map(String::as_str);
        self.command(&command, path, &names, Place::Command);
        let check = self.pick(raw.reload_check, local.reload_check);
        spawn.reload_check = self.reload_check(check, spawn.reload_signal.is_some(), path, &names);
        let health = self.health(name, raw.health, local.health, path, &names);
        let component = Component {
            name: name.value.clone(),
            kind,
            command: command.value,
            listeners: listeners.clone(),
            needs: words(local.needs.or(raw.needs)),
            after: words(local.after.or(raw.after)),
            priority: local.priority.or(raw.priority).unwrap_or(bus::PRIORITY_DEFAULT),
            handover: self.text_value(handover, Handover::Restart, |text| one_of(text, "handover", &HANDOVERS)),
            ready: self.text_value(ready, Ready::Exec, |text| one_of(text, "ready", &READIES)),
            health,
            restart: self.restart(raw.restart.unwrap_or_default(), local.restart.unwrap_or_default()),
            start_timeout: self.text_value(start, kind.start_timeout(start_timeout), value::duration),
            stop_timeout: self.text_value(stop, STOP_TIMEOUT_DEFAULT, value::duration),
            reload_timeout: self.text_value(reload, RELOAD_TIMEOUT_DEFAULT, value::duration),
            data,
            user: user.map(|user| user.value),
            env: env.clone(),
            spawn,
            files: local.files.or(raw.files).map(|list| words(Some(list))),
            allow: self.allow(raw.allow, local.allow),
            listen: self.listen(raw.listen, local.listen, channels),
            migrates: local.migrates.or(raw.migrates).unwrap_or(true),
        };
        if let Some((source, span)) = ready_at
            && let Some(what) = cannot_become_ready(&component)
        {
            self.wrong(source, &span, what.to_owned());
        }
        component
    }

    fn health(
        &mut self,
        name: &At<String>,
        raw: Option<RawHealth>,
        local: Option<RawHealth>,
        path: Option<&str>,
        names: &Names<'_>,
    ) -> Option<Health> {
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
        let action = self.pick(raw.action, local.action);
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
            (None, None, Some(command)) if command.value.first().is_none_or(String::is_empty) => {
                self.wrong(command.source, &command.span, "the health command is empty".to_owned());
                return None;
            }
            (None, None, Some(command)) => {
                self.command(&command, path, names, Place::HealthCommand);
                Probe::Command(command.value)
            }
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
            threshold: match threshold {
                Some(threshold) if threshold.value == 0 => {
                    self.wrong(threshold.source, &threshold.span, "a threshold is at least 1".to_owned());
                    HEALTH_THRESHOLD_DEFAULT
                }
                Some(threshold) => threshold.value,
                None => HEALTH_THRESHOLD_DEFAULT,
            },
            action: self.text_value(action, HealthAction::Report, |text| {
                one_of(text, "action", &[("report", HealthAction::Report), ("restart", HealthAction::Restart)])
            }),
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

    /// Returns what a component may request, and look at.
    fn allow(&mut self, raw: Option<Vec<Spanned<String>>>, local: Option<Vec<Spanned<String>>>) -> Allowed {
        let source = if local.is_some() { Source::Local } else { Source::Release };
        let mut allowed = Allowed::default();
        for word in local.or(raw).unwrap_or_default() {
            let word = at(word, source);
            // Who may reload may confirm it: that is no right of its own.
            let is_right = |ask: &bus::RequestKind| *ask != bus::RequestKind::Confirm;
            match bus::RequestKind::from_name(&word.value).filter(is_right) {
                Some(ask) => allowed.requests.push(ask),
                None if word.value == ALLOW_READ => allowed.read = true,
                None => {
                    let names = bus::RequestKind::ALL.into_iter().filter(is_right).map(bus::RequestKind::name);
                    let names: Vec<&str> = names.chain([ALLOW_READ]).collect();
                    let what = format!("{:?} is no request: use some of {}", word.value, names.join(", "));
                    self.wrong(source, &word.span, what);
                }
            }
        }
        allowed
    }

    /// Returns where a component may listen, if it says so.
    fn listen(
        &mut self,
        raw: Option<Vec<Spanned<String>>>,
        local: Option<Vec<Spanned<String>>>,
        channels: &[String],
    ) -> Option<Vec<String>> {
        let source = if local.is_some() { Source::Local } else { Source::Release };
        let mut listened = Vec::new();
        for word in local.or(raw)? {
            let word = at(word, source);
            let is_open =
                word.value == bus::LOG || word.value.starts_with("component.") || channels.contains(&word.value);
            if TRANSITIONS.contains(&word.value.as_str()) || is_open {
                listened.push(word.value);
            } else {
                let names = TRANSITIONS.join(", ");
                let what = format!("{:?} is not a channel to listen on: use some of {names}", word.value);
                self.wrong(source, &word.span, what);
            }
        }
        Some(listened)
    }
}

/// Returns why a component cannot become ready as it wants to, if it cannot.
fn cannot_become_ready(component: &Component) -> Option<&'static str> {
    match component.ready {
        Ready::Listen if component.listeners.is_empty() => Some(
            "\"listen\" is for a component with listeners; one that binds its own port is ready by \"notify\" or \"health\"",
        ),
        Ready::Health if component.health.is_none() => Some("\"health\" is for a component with a health check"),
        Ready::Health if component.handover == Handover::Overlap && !component.listeners.is_empty() => Some(
            "\"health\" cannot tell the new process from the old one, which answers on the same listener while they overlap: \
             use \"notify\" or \"listen\"",
        ),
        Ready::Notify | Ready::Listen | Ready::Health | Ready::Exec | Ready::Started => None,
    }
}
