//! How long a transition of the whole site may take: what all that it calls one after the other may take together.

use std::time::Duration;

use refit_bus::{self as bus, Options};

use crate::component;
use crate::config::{Component, Config, TRANSITIONS};
use crate::peers::limits::CALL_LIMIT_MAX;

/// What the runtime's own listeners take: its servers, the disk, the check of a reload. Each has a limit of its own, below a minute.
const OWN_MAX: Duration = Duration::from_secs(120);

/// Returns the longest time that a transition of the appliance `config` may take: the sum along its longest chain of components, with what
/// listens of them, besides the runtime's own listeners and the operator's.
pub(super) fn longest(config: &Config) -> Duration {
    let waves = component::waves(config);
    let along = |channel: &str| -> Duration { waves.iter().map(|wave| time_of(wave, config, channel)).sum() };
    let chain = TRANSITIONS.into_iter().map(along).max().unwrap_or_default();
    let chain = chain.saturating_add(waves.iter().map(|wave| revert(wave, config)).sum());
    chain.saturating_add(CALL_LIMIT_MAX).saturating_add(OWN_MAX)
}

/// Returns the longest time that the appliance `config` may take to end, unless a component asks for more.
pub(super) fn ending(config: &Config) -> Duration {
    let grace = Options::default().grace;
    let of = |wave: &Vec<String>| -> Duration {
        let components = || wave.iter().filter_map(|name| config.component(name));
        let own = components().map(|component| component.stop_timeout.saturating_add(grace)).max();
        let listening = components().map(|component| component.time_on(bus::STOP).saturating_add(grace));
        own.unwrap_or_default().saturating_add(listening.sum()).saturating_add(revert(wave, config))
    };
    let chain: Duration = component::waves(config).iter().map(of).sum();
    chain.saturating_add(CALL_LIMIT_MAX).saturating_add(OWN_MAX)
}

/// Returns how long what listens of components that stand beside each other may take to revert a reload that was not confirmed, before
/// the site goes down.
fn revert(wave: &[String], config: &Config) -> Duration {
    let grace = Options::default().grace;
    let components = wave.iter().filter_map(|name| config.component(name));
    components.map(|component| component.time_on(bus::RELOAD).saturating_add(grace)).sum()
}

/// Returns how long components that stand beside each other may take on a channel: themselves at the same time, then what listens of them,
/// by its priorities; and who is given up has its grace.
fn time_of(wave: &[String], config: &Config, channel: &str) -> Duration {
    let grace = Options::default().grace;
    let components: Vec<&Component> = wave.iter().filter_map(|name| config.component(name)).collect();
    let own = components.iter().map(|component| {
        let limits = component::limits(component);
        let own = match channel {
            bus::START => limits.start,
            bus::STOP => limits.stop,
            bus::RELOAD => limits.reload,
            _ => None,
        };
        own.unwrap_or_default().saturating_add(grace)
    });
    let listening = components.iter().map(|component| component.time_on(channel).saturating_add(grace));
    own.max().unwrap_or_default().saturating_add(listening.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(components: &str) -> Config {
        let dir = tempfile::tempdir().expect("a directory");
        let head = "[appliance]\nname = \"a\"\nversion = \"1.0.0\"\n";
        let path = dir.path().join(crate::config::FILE);
        refit_updater::durable::write_new(&path, format!("{head}{components}").as_bytes(), 0o640).expect("written");
        Config::load(dir.path(), &dir.path().join(crate::config::NO_LOCAL_FILE)).expect("good")
    }

    #[test]
    fn it_is_the_sum_along_the_chain() {
        let component = |name: &str, more: &str| {
            format!(
                "[[component]]\nname = \"{name}\"\ncommand = [\"bin/x\"]\nnotify_access = \"none\"\n\
                 start_timeout = \"100s\"\nstop_timeout = \"1000s\"\n{more}\n"
            )
        };
        let base = longest(&config(""));
        assert_eq!(base, CALL_LIMIT_MAX + OWN_MAX);
        // The start: until it is ready, its end if it is not, what listens of it; and some seconds.
        let one = longest(&config(&component("a", ""))) - base;
        assert!(one >= Duration::from_secs(2000) && one < Duration::from_secs(2030), "{one:?}");
        let beside = config(&[component("a", ""), component("b", "")].concat());
        let listens = longest(&beside) - base - one;
        assert!(listens >= Duration::from_secs(1000) && listens < Duration::from_secs(1020), "{listens:?}");
        let chain =
            config(&[component("a", ""), component("b", "after = [\"a\"]"), component("c", "priority = 60")].concat());
        assert_eq!(longest(&chain) - base, one * 3, "a priority is a place in the chain, too");
        let end = ending(&chain) - base;
        assert!(end >= Duration::from_secs(6000) && end < Duration::from_secs(6060), "{end:?}");
        // One that may ask for more time has hours.
        let reports = config("[[component]]\nname = \"a\"\ncommand = [\"bin/x\"]\n");
        assert!(longest(&reports) > Duration::from_secs(24 * 3600));
    }
}
