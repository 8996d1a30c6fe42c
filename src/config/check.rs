//! From what is written to what is meant, collecting every mistake on the way.

mod component;
mod kind;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use refit_updater::trust::Expired;
use semver::Version;
use toml::Spanned;

use super::programs::Programs;
use super::raw::{Raw, RawApi, RawAppliance, RawLog, RawUpdate, RawWatch};
use super::read::{Read, read};
use super::{Config, LogLimits, Mistake, Update, Watch, WatchRequest, Watched, value};

const PROBATION_DEFAULT: Duration = Duration::from_secs(10);
const START_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
const RECEIVE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
const KEEP_DEFAULT: u32 = 3;
const SETTLE_DEFAULT: Duration = Duration::from_secs(1);
const WATCHDOG_DEFAULT: Duration = Duration::from_secs(30);
/// A shorter one would end a runtime that only waits for a slow disk.
const WATCHDOG_MIN: Duration = Duration::from_secs(1);
const DRAIN_GRACE_DEFAULT: Duration = Duration::from_secs(2);
/// A few hours of an ordinary component, and quickly read back.
const LOG_FILE_BYTES_DEFAULT: u64 = 1 << 20;
/// A few of the longest lines.
const LOG_FILE_BYTES_MIN: u64 = 32 << 10;
/// Reading further back reads whole files.
const LOG_FILE_BYTES_MAX: u64 = 64 << 20;
/// With four, three quarters of what is kept are there right after the oldest is removed.
const LOG_FILES_DEFAULT: u32 = 4;
/// With one, nothing would be there right after it was removed.
const LOG_FILES_MIN: u32 = 2;
/// More of them are slow to list.
const LOG_FILES_MAX: u32 = 1000;
/// The smallest disk that we support is 4 GiB: less than a fiftieth of it, for sixteen components at their limits.
const LOG_TOTAL_BYTES_DEFAULT: u64 = 64 << 20;
/// Two of the smallest files, for each component.
const LOG_TOTAL_BYTES_MIN: u64 = 2 * LOG_FILE_BYTES_MIN;

/// Which file a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Release,
    Local,
}

/// A value with the place it was written at.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) source: Source,
    pub(super) span: Range<usize>,
}

fn at<T>(spanned: Spanned<T>, source: Source) -> At<T> {
    let span = spanned.span();
    At { value: spanned.into_inner(), source, span }
}

/// One file.
struct Text<'a> {
    path: &'a Path,
    text: &'a str,
    read: Read,
}

/// The two files, and what is wrong in them.
pub(super) struct Checker<'a> {
    release: Text<'a>,
    local: Text<'a>,
    programs: Option<&'a Programs>,
    mistakes: Vec<(Source, Range<usize>, String)>,
}

/// Returns the configuration that `text`, overridden by `local`, means.
///
/// # Errors
/// Every mistake in both, in the order of their lines.
pub(super) fn parse(
    path: &Path,
    text: &str,
    local: Option<(&Path, &str)>,
    programs: Option<&Programs>,
) -> Result<Config, Vec<Mistake>> {
    let (local_path, local_text) = local.unwrap_or((path, ""));
    let mut checker = Checker {
        release: Text { path, text, read: read(text) },
        local: Text { path: local_path, text: local_text, read: read(local_text) },
        programs,
        mistakes: Vec::new(),
    };
    for source in [Source::Release, Source::Local] {
        let read = match source {
            Source::Release => &mut checker.release.read,
            Source::Local => &mut checker.local.read,
        };
        for (span, what) in std::mem::take(&mut read.mistakes) {
            checker.wrong(source, &span, what);
        }
    }
    let raws = (checker.release.read.raw.take(), checker.local.read.raw.take());
    let config = match raws {
        (Some(base), Some(over)) => checker.config(base, over),
        (Some(_) | None, Some(_) | None) => None,
    };
    match config {
        Some(config) if checker.mistakes.is_empty() => Ok(config),
        Some(_) | None => Err(checker.into_mistakes()),
    }
}

impl Checker<'_> {
    fn text(&self, source: Source) -> &Text<'_> {
        match source {
            Source::Release => &self.release,
            Source::Local => &self.local,
        }
    }

    pub(super) fn wrong(&mut self, source: Source, span: &Range<usize>, what: String) {
        self.mistakes.push((source, span.clone(), what));
    }

    /// Something that has to be in the release's table `table` is not, and was not taken out because it was wrong itself.
    fn missing(&mut self, table: &str, key: &str) {
        if self.is_taken_out(Source::Release, &format!("{table}.{key}")) || self.is_taken_out(Source::Release, table) {
            return;
        }
        let span = self.release.read.tables.get(table).cloned().unwrap_or(0..0);
        self.wrong(Source::Release, &span, format!("[{table}] needs a {key}"));
    }

    fn is_taken_out(&self, source: Source, path: &str) -> bool {
        self.text(source).read.taken_out.contains(path)
    }

    /// Returns the mistakes in the order of their lines, the release's first, each once.
    fn into_mistakes(mut self) -> Vec<Mistake> {
        let mut mistakes = std::mem::take(&mut self.mistakes);
        mistakes.sort_by_key(|(source, span, _)| (*source == Source::Local, span.start));
        mistakes.dedup();
        mistakes
            .into_iter()
            .map(|(source, span, what)| {
                let Text { path, text, .. } = self.text(source);
                let (line, column) = place(text, span.start);
                Mistake { line, column, file: path.to_path_buf(), what }
            })
            .collect()
    }

    /// Returns the local value if there is one, else the release's.
    pub(super) fn pick<T>(&self, base: Option<Spanned<T>>, over: Option<Spanned<T>>) -> Option<At<T>> {
        over.map(|value| at(value, Source::Local)).or_else(|| base.map(|value| at(value, Source::Release)))
    }

    /// Returns what `read` makes of a text, or `default`, which also stands in for a mistake.
    pub(super) fn text_value<T>(
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
        let (name, version) = self.appliance(base.appliance, over.appliance);
        let runtime = self.runtime_program(base.runtime.binary, over.runtime.binary);
        let settle = self.pick(base.runtime.settle, over.runtime.settle);
        let watched = self.watched(base.runtime.watch, over.runtime.watch);
        let watch = Watch { watched, settle: self.text_value(settle, SETTLE_DEFAULT, value::duration) };
        let cgroups = over.runtime.cgroups.or(base.runtime.cgroups).unwrap_or(true);
        let (listeners, listener_names) = self.listeners(base.listeners, over.listeners);
        let update = self.update(base.update, over.update);
        let channels = self.channels(base.bus.channels, over.bus.channels);
        let (operators, names) = self.api(base.api, over.api);
        let log = self.log(base.log, over.log, base.component.len());
        let components =
            self.components(base.component, over.component, &listener_names, update.start_timeout, &channels);
        Some(Config {
            name: name?.value,
            version: version?,
            runtime,
            watch,
            cgroups,
            listeners: listeners.into_iter().map(|(name, at)| (name, at.value)).collect(),
            update,
            log,
            operators,
            names,
            channels,
            components,
        })
    }

    /// Returns the files that something is asked for when they change.
    fn watched(&mut self, base: Option<Vec<Spanned<RawWatch>>>, over: Option<Vec<Spanned<RawWatch>>>) -> Vec<Watched> {
        let source = if over.is_some() { Source::Local } else { Source::Release };
        let mut watched = Vec::new();
        for entry in over.or(base).into_iter().flatten() {
            let At { value: RawWatch { path, request }, span, .. } = at(entry, source);
            if path.is_empty() || path.contains('\0') {
                self.wrong(source, &span, format!("{path:?} is not a path that can be watched"));
            }
            let requests = [WatchRequest::Restart, WatchRequest::Reload].map(|request| (request.name(), request));
            let request = request.map(|request| at(request, source));
            let request = self.text_value(request, WatchRequest::default(), |text| one_of(text, "request", &requests));
            watched.push(Watched { path: path.into(), request });
        }
        watched
    }

    /// Returns the name of the appliance and its version, if both are there.
    fn appliance(&mut self, base: RawAppliance, over: RawAppliance) -> (Option<At<String>>, Option<Version>) {
        let name = self.pick(base.name, over.name);
        let version = self.pick(base.version, over.version);
        if let Some(requires) = self.pick(base.requires, over.requires) {
            self.text_value(Some(requires), Version::new(0, 0, 0), version_of);
        }
        if let Some(name) = &name
            && let Err(what) = value::name(&name.value)
        {
            let (source, span) = (name.source, name.span.clone());
            self.wrong(source, &span, what);
        }
        if name.is_none() {
            self.missing("appliance", "name");
        }
        let version = match version {
            Some(version) => Some(self.text_value(Some(version), Version::new(0, 0, 0), version_of)),
            None => {
                self.missing("appliance", "version");
                None
            }
        };
        (name, version)
    }

    /// Returns the release's own runtime, as a path below the release; `None` for the installed one.
    fn runtime_program(&mut self, base: Option<Spanned<String>>, over: Option<Spanned<String>>) -> Option<String> {
        let programs = self.programs;
        let binary = self.pick(base, over)?;
        self.text_value(Some(binary), None, |text| {
            let inside = Path::new(text).components().all(|part| matches!(part, std::path::Component::Normal(_)));
            if !inside || text.is_empty() {
                return Err(format!("{text:?} is not a path below the release"));
            }
            // Looked at as a path, also without a slash.
            programs.map_or(Ok(()), |programs| programs.check(&format!("./{text}"), None))?;
            Ok(Some(text.to_owned()))
        })
    }

    fn update(&mut self, base: RawUpdate, over: RawUpdate) -> Update {
        let probation = self.pick(base.probation, over.probation);
        let start_timeout = self.pick(base.start_timeout, over.start_timeout);
        let watchdog = self.pick(base.watchdog, over.watchdog);
        let drain_grace = self.pick(base.drain_grace, over.drain_grace);
        let receive_timeout = self.pick(base.receive_timeout, over.receive_timeout);
        let expired_offline = self.pick(base.expired_offline, over.expired_offline);
        let repository = self.pick(base.repository, over.repository);
        let keep = self.pick(base.keep, over.keep);
        Update {
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
            receive_timeout: self.text_value(receive_timeout, RECEIVE_TIMEOUT_DEFAULT, |text| {
                let duration = value::duration(text)?;
                if duration.is_zero() { Err("nobody answers in no time at all".to_owned()) } else { Ok(duration) }
            }),
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
        }
    }

    /// Returns the group of the operators, and the names of the appliance.
    fn api(&mut self, base: RawApi, over: RawApi) -> (Option<String>, Vec<String>) {
        let operators = self.pick(base.operators, over.operators);
        let operators = self.text_value(operators, None, |group| {
            if group.is_empty() || group.contains(['\0', ':', '\n']) {
                return Err(format!("{group:?} is not the name of a group"));
            }
            Ok(Some(group.to_owned()))
        });
        let source = if over.names.is_some() { Source::Local } else { Source::Release };
        let mut names = Vec::new();
        for name in over.names.or(base.names).into_iter().flatten() {
            let At { value, span, .. } = at(name, source);
            let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '.';
            if value.is_empty() || !value.chars().all(is_name) {
                self.wrong(
                    source,
                    &span,
                    format!("{value:?} is not the name of a host: write it without port or scheme"),
                );
            }
            names.push(value);
        }
        (operators, names)
    }

    fn log(&mut self, base: RawLog, over: RawLog, components: usize) -> LogLimits {
        let file_bytes = self.pick(base.file_bytes, over.file_bytes);
        let total_bytes = self.pick(base.total_bytes, over.total_bytes);
        let files = self.pick(base.files, over.files);
        let total_min = LOG_TOTAL_BYTES_MIN * components.max(1) as u64;
        LogLimits {
            file_bytes: self.text_value(file_bytes, LOG_FILE_BYTES_DEFAULT, |text| {
                let bytes = value::bytes(text)?;
                if (LOG_FILE_BYTES_MIN..=LOG_FILE_BYTES_MAX).contains(&bytes) {
                    Ok(bytes)
                } else {
                    Err(format!("a log file of {text:?} is not between 32KiB and 64MiB"))
                }
            }),
            files: match files {
                Some(files) if !(LOG_FILES_MIN..=LOG_FILES_MAX).contains(&files.value) => {
                    let what = format!("{} log files are not between {LOG_FILES_MIN} and {LOG_FILES_MAX}", files.value);
                    self.wrong(files.source, &files.span, what);
                    LOG_FILES_DEFAULT as usize
                }
                Some(files) => files.value as usize,
                None => LOG_FILES_DEFAULT as usize,
            },
            total_bytes: self.text_value(total_bytes, LOG_TOTAL_BYTES_DEFAULT.max(total_min), |text| {
                let bytes = value::bytes(text)?;
                if bytes >= total_min {
                    Ok(bytes)
                } else {
                    Err(format!(
                        "{text:?} is too little for the logs of {components} components: at least 64KiB for each"
                    ))
                }
            }),
        }
    }

    /// Returns the listeners, and the names of all that were written, also with an address that is none.
    fn listeners(
        &mut self,
        base: BTreeMap<Spanned<String>, Spanned<String>>,
        over: BTreeMap<Spanned<String>, Spanned<String>>,
    ) -> (BTreeMap<String, At<SocketAddr>>, BTreeSet<String>) {
        let mut listeners: BTreeMap<String, At<SocketAddr>> = BTreeMap::new();
        let mut names: BTreeSet<String> = BTreeSet::new();
        for source in [Source::Release, Source::Local] {
            let taken = self.text(source).read.taken_out.iter().filter_map(|path| path.strip_prefix("listeners."));
            names.extend(taken.map(str::to_owned));
        }
        for (source, table) in [(Source::Release, base), (Source::Local, over)] {
            for (name, address) in table {
                if let Err(what) = value::name(name.get_ref()) {
                    self.wrong(source, &name.span(), what);
                }
                names.insert(name.get_ref().clone());
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
        self.clashes(&listeners);
        (listeners, names)
    }

    fn channels(&mut self, base: Option<Vec<Spanned<String>>>, over: Option<Vec<Spanned<String>>>) -> Vec<String> {
        let source = if over.is_some() { Source::Local } else { Source::Release };
        let mut channels = Vec::new();
        for channel in over.or(base).unwrap_or_default() {
            let channel = at(channel, source);
            if let Err(what) = value::channel(&channel.value) {
                self.wrong(source, &channel.span, what);
            }
            channels.push(channel.value);
        }
        channels
    }
}

fn version_of(text: &str) -> Result<Version, String> {
    Version::parse(text).map_err(|error| format!("{text:?} is not a version: {error}"))
}

pub(super) fn one_of<T: Copy>(text: &str, key: &str, values: &[(&str, T)]) -> Result<T, String> {
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
#[expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "a test's files need not be durable, and it ends when it has failed"
)]
mod tests;
