//! In which state a component's process begins, and how it is watched and limited: the keys, and what they mean.
//!
//! Accounts are names of the machine: whether they exist is found out when the process starts, not here.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use toml::Spanned;

use super::check::{Checker, Source, one_of};
use super::expand::{Names, Place, Variable};
use super::raw::RawComponent;
use super::signal::Signal;
use super::value;

/// What new files of a component may be when it says nothing: everybody may read, the owner may write.
const UMASK_DEFAULT: u32 = 0o022;
/// A component that has to report more often than this would do little else.
const WATCHDOG_MIN: Duration = Duration::from_millis(100);
/// Fewer open files than this and no program gets as far as its first line: streams, listeners, libraries.
const FILES_MIN: u64 = 16;
/// Less memory than this and no program can be loaded.
const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// What Refit itself says to a component besides its [variables](Variable): nobody else may.
const RESERVED: [&str; 8] = [
    "REFIT_HEALTH",
    "REFIT_STOP_SIGNAL",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// In which state a component's process begins, and how it is watched and limited.
///
/// What says nothing is left out of the fingerprint, so that a new key is no new process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spawn {
    /// The group it runs as; the account's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its further groups; the account's if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supplementary_groups: Option<Vec<String>>,
    /// Where it runs: a relative path is below the release; the release's directory if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// The mode bits that its new files do not get.
    #[serde(skip_serializing_if = "is_default_umask")]
    pub umask: u32,
    /// Whether set-user-ID programs give it no rights.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_new_privs: bool,
    /// What it may use.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// How often it has to say that it is alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Duration>,
    /// Which of its processes may report on `NOTIFY_SOCKET`.
    #[serde(skip_serializing_if = "NotifyAccess::is_default")]
    pub notify_access: NotifyAccess,
    /// The signal that tells it to read its settings again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload_signal: Option<Signal>,
    /// The command whose end with 0 allows a reload by the signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload_check: Option<Vec<String>>,
    /// The signal that tells it to end.
    #[serde(skip_serializing_if = "Signal::is_default")]
    pub stop_signal: Signal,
    /// The variable that gets the numbers of its listeners' descriptors, each followed by a semicolon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<String>,
}

/// Which processes of a component may report on `NOTIFY_SOCKET`; the words are systemd's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifyAccess {
    /// The process that was started, and all that it starts.
    #[default]
    All,
    /// The process that was started.
    Main,
    /// None: there is no `NOTIFY_SOCKET`.
    None,
}

impl NotifyAccess {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_default_umask(umask: &u32) -> bool {
    *umask == UMASK_DEFAULT
}

/// What a component may use. What is absent is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processor time, in percent of one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    /// Open files of each process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

impl Limits {
    /// Returns whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Checker<'_> {
    /// Returns what the two files say about the state that a component's process begins in.
    pub(super) fn spawn(&mut self, raw: &RawComponent, local: &RawComponent, names: &Names<'_>) -> Spawn {
        let group = self.pick(raw.group.clone(), local.group.clone());
        let groups = local.supplementary_groups.clone().or_else(|| raw.supplementary_groups.clone());
        let directory = self.pick(raw.working_directory.clone(), local.working_directory.clone());
        let umask = self.pick(raw.umask.clone(), local.umask.clone());
        let watchdog = self.pick(raw.watchdog.clone(), local.watchdog.clone());
        let reload = self.pick(raw.reload_signal.clone(), local.reload_signal.clone());
        let stop = self.pick(raw.stop_signal.clone(), local.stop_signal.clone());
        Spawn {
            group: group.map(|group| group.value),
            supplementary_groups: groups.map(|groups| groups.into_iter().map(Spanned::into_inner).collect()),
            working_directory: self.text_value(directory, None, |text| {
                if text.is_empty() || text.contains('\0') || text.split('/').any(|part| part == "..") {
                    return Err(format!("{text:?} is not a working directory: write a path without \"..\""));
                }
                names.check(text, Place::Value)?;
                Ok(Some(text.to_owned()))
            }),
            umask: self.text_value(umask, UMASK_DEFAULT, value::umask),
            no_new_privs: local.no_new_privs.or(raw.no_new_privs).unwrap_or(false),
            limits: self.limits(raw, local),
            watchdog: self.text_value(watchdog, None, |text| {
                let watchdog = value::duration(text)?;
                if watchdog < WATCHDOG_MIN {
                    return Err(format!("a watchdog of {text:?} is too short: at least 100ms"));
                }
                Ok(Some(watchdog))
            }),
            notify_access: self.notify_access(raw, local),
            reload_signal: self
                .text_value(reload, None, |text| Signal::read(text, "reload_signal", &Signal::OF_RELOAD).map(Some)),
            reload_check: None, // known when its program is
            stop_signal: self
                .text_value(stop, Signal::default(), |text| Signal::read(text, "stop_signal", &Signal::OF_STOP)),
            pass: self.pass(raw, local),
        }
    }

    fn pass(&mut self, raw: &RawComponent, local: &RawComponent) -> Option<String> {
        let pass = self.pick(raw.pass.clone(), local.pass.clone())?;
        let has_listeners = local.listeners.as_ref().or(raw.listeners.as_ref()).is_some_and(|list| !list.is_empty());
        let is_in_env =
            [&raw.env, &local.env].into_iter().flatten().any(|env| env.keys().any(|key| *key.get_ref() == pass.value));
        self.text_value(Some(pass), None, |name| {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if is_reserved(name) {
                return Err(format!("{name} is set by refit itself"));
            }
            if name.is_empty() || !name.chars().all(good) || name.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(format!("{name:?} cannot be a variable of an environment: use letters, digits and _"));
            }
            if !has_listeners {
                return Err("pass needs listeners: name those that the program is given".to_owned());
            }
            if is_in_env {
                return Err(format!("env sets {name}, too: remove it there"));
            }
            Ok(Some(name.to_owned()))
        })
    }

    fn notify_access(&mut self, raw: &RawComponent, local: &RawComponent) -> NotifyAccess {
        let Some(written) = self.pick(raw.notify_access.clone(), local.notify_access.clone()) else {
            return NotifyAccess::default();
        };
        let (source, span) = (written.source, written.span.clone());
        let names = [("all", NotifyAccess::All), ("main", NotifyAccess::Main), ("none", NotifyAccess::None)];
        let access =
            self.text_value(Some(written), NotifyAccess::default(), |text| one_of(text, "notify_access", &names));
        let ready = local.ready.as_ref().or(raw.ready.as_ref());
        let needs = [
            ("ready = \"notify\"", ready.is_some_and(|ready| ready.get_ref() == "notify")),
            ("watchdog", local.watchdog.is_some() || raw.watchdog.is_some()),
        ];
        for (key, _) in needs.into_iter().filter(|(_, needed)| *needed && access == NotifyAccess::None) {
            let what = format!("{key} needs notifications: use notify_access = \"all\" or \"main\"");
            self.wrong(source, &span, what);
        }
        access
    }

    fn limits(&mut self, raw: &RawComponent, local: &RawComponent) -> Limits {
        let (raw, local) = (raw.limits.clone().unwrap_or_default(), local.limits.clone().unwrap_or_default());
        let memory = self.pick(raw.memory, local.memory);
        let cpu = self.pick(raw.cpu, local.cpu);
        let mut count = |base, over, least: u64, what: &str| {
            let written = self.pick::<u64>(base, over)?;
            if written.value < least {
                let text = format!("a limit of {} {what} is too low: at least {least}", written.value);
                self.wrong(written.source, &written.span, text);
            }
            Some(written.value)
        };
        let files = count(raw.files, local.files, FILES_MIN, "files");
        let processes = count(raw.processes, local.processes, 1, "processes");
        Limits {
            memory: self.text_value(memory, None, |text| {
                let bytes = value::bytes(text)?;
                if bytes < MEMORY_BYTES_MIN {
                    return Err(format!("a memory limit of {text:?} is too low: at least 1MiB"));
                }
                Ok(Some(bytes))
            }),
            cpu: self.text_value(cpu, None, |text| value::percent(text).map(Some)),
            files,
            processes,
        }
    }

    /// Returns the variables that the two files add to a component's environment.
    pub(super) fn environment(
        &mut self,
        base: Option<BTreeMap<Spanned<String>, String>>,
        over: Option<BTreeMap<Spanned<String>, String>>,
        names: &Names<'_>,
    ) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::new();
        for (source, table) in [(Source::Release, base), (Source::Local, over)] {
            for (key, value) in table.into_iter().flatten() {
                let (span, key) = (key.span(), key.into_inner());
                if is_reserved(&key) {
                    self.wrong(source, &span, format!("{key} is set by refit itself"));
                } else if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                    self.wrong(source, &span, format!("{key:?} cannot be a variable of an environment"));
                } else if let Err(what) = names.check(&value, Place::Value) {
                    self.wrong(source, &span, format!("{key}: {what}"));
                }
                environment.insert(key, value);
            }
        }
        environment
    }
}

fn is_reserved(variable: &str) -> bool {
    Variable::is_one(variable) || RESERVED.contains(&variable)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HEAD: &str =
        "[appliance]\nname = \"a\"\nversion = \"1.0.0\"\n[[component]]\nname = \"c\"\ncommand = [\"c\"]\n";

    fn spawn(keys: &str) -> Result<Spawn, String> {
        let text = format!("{HEAD}{keys}\n");
        super::super::check::parse(Path::new("a.toml"), &text, None, None)
            .map(|config| config.components[0].spawn.clone())
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn what_says_nothing_is_not_in_the_fingerprint() {
        let text = serde_json::to_string(&spawn("").expect("good")).expect("text");
        assert_eq!(text, "{}");
        let limited = spawn("limits = { cpu = \"50%\" }\nreload_signal = \"HUP\"").expect("good");
        let text = serde_json::to_string(&limited).expect("text");
        assert_eq!(text, r#"{"limits":{"cpu":50},"reload_signal":"HUP"}"#);
    }

    #[test]
    fn every_mistake_has_its_place() {
        let rows = [
            ("umask = \"9\"", "a.toml:7:9: \"9\" is not a umask"),
            ("limits = { memory = \"12 parsecs\" }", "a.toml:7:21: \"12 parsecs\" is not a size"),
            ("limits = { memory = \"12KiB\" }", "a.toml:7:21: a memory limit of \"12KiB\" is too low"),
            ("limits = { cpu = \"fast\" }", "a.toml:7:18: \"fast\" is not a share"),
            ("limits = { files = 3 }", "a.toml:7:20: a limit of 3 files is too low"),
            ("limits = { processes = 0 }", "a.toml:7:24: a limit of 0 processes is too low"),
            ("limits = { speed = 3 }", "unknown field `speed`"),
            ("watchdog = \"1ms\"", "a.toml:7:12: a watchdog of \"1ms\" is too short"),
            ("notify_access = \"exec\"", "a.toml:7:17: \"exec\" is no notify_access: use one of all, main, none"),
            ("notify_access = \"none\"\nready = \"notify\"", "a.toml:7:17: ready = \"notify\" needs notifications"),
            ("watchdog = \"1s\"\nnotify_access = \"none\"", "a.toml:8:17: watchdog needs notifications"),
            (
                "reload_signal = \"QUIT\"",
                "a.toml:7:17: \"QUIT\" is no reload_signal: use one of HUP, USR1, USR2, WINCH",
            ),
            ("working_directory = \"../..\"", "a.toml:7:21: \"../..\" is not a working directory"),
            ("env = { REFIT_TOKEN = \"x\" }", "a.toml:7:9: REFIT_TOKEN is set by refit itself"),
            ("env = { \"A=B\" = \"x\" }", "a.toml:7:9: \"A=B\" cannot be a variable"),
            ("kind = \"twice\"", "a.toml:7:8: \"twice\" is no kind: use one of service, once"),
            ("kind = \"every\"", "a.toml:7:8: a component that runs again and again says how often: every = \"5m\""),
            ("every = \"1ms\"", "a.toml:7:9: a period of \"1ms\" is too short: at least 1s"),
            ("every = \"often\"", "a.toml:7:9: \"often\" is not a duration"),
            ("kind = \"once\"\nevery = \"5m\"", "a.toml:7:8: a component runs once or every so often, not both"),
            (
                "kind = \"once\"\nready = \"exec\"",
                "a.toml:7:8: a component that runs once ends each time: it cannot have ready",
            ),
            (
                "every = \"5m\"\nhandover = \"keep\"",
                "a component that runs every so often ends each time: it cannot have handover",
            ),
            ("every = \"5m\"\nrestart = { limit = \"1/1m\" }", "it cannot have restart"),
            ("kind = \"once\"\nhealth = { tcp = \"127.0.0.1:1\" }", "it cannot have health"),
            ("kind = \"once\"\nwatchdog = \"5s\"", "it cannot have watchdog"),
            ("every = \"5m\"\nreload_signal = \"HUP\"", "it cannot have reload_signal"),
            ("data = [\"../x\"]", "a.toml:7:9: \"../x\" is not a directory below data/"),
            ("data = [\"x\", \"/x\"]", "a.toml:7:14: \"/x\" is not a directory below data/"),
            ("data = [\"\"]", "\"\" is not a directory below data/"),
            ("data = [\"x/../y\"]", "\"x/../y\" is not a directory below data/"),
            ("data = [\".\"]", "\".\" is not a directory below data/"),
            (
                "data = [\"x\"]\nuser = \"a\"\n[[component]]\nname = \"d\"\ncommand = [\"d\"]\ndata = [\"x\"]",
                "a.toml:10:8: the components c and d have data/x, but not the same user",
            ),
            (
                "health = { tcp = \"127.0.0.1:1\", action = \"pray\" }",
                "\"pray\" is no action: use one of report, restart",
            ),
        ];
        for (keys, expected) in rows {
            let found = spawn(keys).expect_err(keys);
            assert!(found.contains(expected), "{keys}: {found}");
        }
    }
}
