//! What lives for how long, and what goes with that; the directories that a component is given.

use std::collections::BTreeMap;
use std::path::{Component as Part, Path};
use std::time::Duration;

use toml::Spanned;

use super::{At, Checker, Source, at, one_of};
use crate::config::raw::RawComponent;
use crate::config::{Kind, value};

/// What has to run more often than this is a service.
const EVERY_MIN: Duration = Duration::from_secs(1);

/// Who is given a directory below `data/`: the component, and its account.
type Given = (String, Option<String>);

impl Checker<'_> {
    /// Returns for how long the component's process is to live. What only a process that serves can have is a mistake in another.
    pub(super) fn kind(&mut self, raw: &RawComponent, local: &RawComponent) -> Kind {
        let kind = self.pick(raw.kind.clone(), local.kind.clone());
        let every = self.pick(raw.every.clone(), local.every.clone());
        let names = [("service", Kind::Service), ("once", Kind::Once)];
        let written = kind.clone();
        let is_once = self.text_value(kind, Kind::Service, |text| match text {
            "every" => Err("a component that runs again and again says how often: every = \"5m\"".to_owned()),
            text => one_of(text, "kind", &names),
        }) == Kind::Once;
        let period = self.text_value(every.clone(), None, |text| {
            let period = value::duration(text)?;
            if period < EVERY_MIN {
                return Err(format!("a period of {text:?} is too short: at least 1s"));
            }
            Ok(Some(period))
        });
        let (kind, what, place) = match (is_once, period, written, every) {
            (true, Some(_), Some(kind), _) => {
                self.wrong(kind.source, &kind.span, "a component runs once or every so often, not both".to_owned());
                return Kind::Once;
            }
            (true, _, Some(kind), _) => (Kind::Once, "runs once", kind),
            (_, Some(period), _, Some(every)) => (Kind::Every(period), "runs every so often", every),
            (_, _, _, _) => return Kind::Service,
        };
        for key in serving_keys(kind, [raw, local]) {
            let text = format!("a component that {what} ends each time: it cannot have {key}");
            self.wrong(place.source, &place.span, text);
        }
        kind
    }

    /// Returns the directories below `data/` that the component is given.
    pub(super) fn data(&mut self, raw: &RawComponent, local: &RawComponent) -> Vec<String> {
        let source = if local.data.is_some() { Source::Local } else { Source::Release };
        let written = local.data.clone().or_else(|| raw.data.clone()).unwrap_or_default();
        written
            .into_iter()
            .map(|dir| {
                let At { value: dir, span, .. } = at(dir, source);
                let inside = Path::new(&dir).components().all(|part| matches!(part, Part::Normal(_)));
                if dir.is_empty() || dir.contains('\0') || !inside {
                    let what = format!("{dir:?} is not a directory below data/: write a relative path without \"..\"");
                    self.wrong(source, &span, what);
                }
                dir.trim_end_matches('/').to_owned()
            })
            .collect()
    }

    /// Finds a directory that two accounts are given: each start of one component would take it from the other.
    pub(super) fn shared_data(
        &mut self,
        given: &mut BTreeMap<String, Given>,
        name: &At<String>,
        user: Option<&String>,
        dirs: &[String],
    ) {
        for dir in dirs {
            match given.get(dir) {
                Some((other, account)) if account.as_ref() != user => {
                    let what =
                        format!("the components {other} and {} have data/{dir}, but not the same user", name.value);
                    self.wrong(name.source, &name.span, what);
                }
                Some(_) => {}
                None => {
                    given.insert(dir.clone(), (name.value.clone(), user.cloned()));
                }
            }
        }
    }
}

/// Returns the keys among those written that only a process which serves can have.
fn serving_keys(kind: Kind, written: [&RawComponent; 2]) -> Vec<&'static str> {
    let is_written = |key: fn(&RawComponent) -> bool| written.into_iter().any(key);
    let has = |list: &Option<Vec<Spanned<String>>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let rows = [
        ("listeners", written.iter().any(|raw| has(&raw.listeners))),
        ("handover", is_written(|raw| raw.handover.is_some())),
        ("ready", is_written(|raw| raw.ready.is_some())),
        ("health", is_written(|raw| raw.health.is_some())),
        ("watchdog", is_written(|raw| raw.watchdog.is_some())),
        ("reload_signal", is_written(|raw| raw.reload_signal.is_some())),
        ("reload_check", is_written(|raw| raw.reload_check.is_some())),
        ("restart", matches!(kind, Kind::Every(_)) && is_written(|raw| raw.restart.is_some())),
    ];
    rows.into_iter().filter(|(_, written)| *written).map(|(key, _)| key).collect()
}
