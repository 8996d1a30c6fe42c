//! What Refit's own variables say to the processes of a component, and what its texts mean with them.

use std::ffi::OsString;
use std::path::Path;

use semver::Version;

use super::context::RunContext;
use crate::config::{self, Component, Reference};
use crate::handover::fd::FIRST;
use crate::home::Home;

/// What the variables of one component say.
pub(super) struct Variables<'a> {
    component: &'a Component,
    values: [(&'static str, OsString); config::VARIABLES.len()],
}

impl<'a> Variables<'a> {
    /// Returns those of a process of `component` with this launch token.
    pub(super) fn new(component: &'a Component, token: &str, context: &RunContext) -> Self {
        Self::of(component, token, &context.home, &context.version, &context.release_dir, &context.config_dir)
    }

    /// Returns those of a process that is not started.
    pub(super) fn supposed(component: &'a Component, home: &Home, version: &Version, release: &Path) -> Self {
        Self::of(component, "", home, version, release, &home.config(version))
    }

    fn of(
        component: &'a Component,
        token: &str,
        home: &Home,
        version: &Version,
        release: &Path,
        config_dir: &Path,
    ) -> Self {
        let values = config::VARIABLES.map(|variable| {
            let value = match variable {
                config::Variable::Home => home.path().into(),
                config::Variable::Socket => home.socket().into(),
                config::Variable::Bus => home.bus_socket().into(),
                config::Variable::Token => token.into(),
                config::Variable::Component => component.name.clone().into(),
                config::Variable::Version => version.to_string().into(),
                config::Variable::Release => release.into(),
                config::Variable::Config => config_dir.into(),
                config::Variable::Data => home.data().into(),
            };
            (variable.name(), value)
        });
        Self { component, values }
    }

    /// Returns each with its value.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &OsString)> {
        self.values.iter().map(|(name, value)| (*name, value))
    }

    /// Returns what a value of the environment, or a directory, means.
    pub(super) fn value(&self, text: &str) -> OsString {
        config::expand(text, |reference| self.refer(reference))
    }

    fn refer(&self, reference: Reference<'_>) -> Option<OsString> {
        match reference {
            Reference::Variable(name) => self.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()),
            Reference::Listener(name) => self.descriptor(name).map(|number| number.to_string().into()),
        }
    }

    /// Returns what the words of a command mean.
    pub(super) fn words(&self, words: &[String]) -> Vec<OsString> {
        let word = |text: &String| {
            config::expand(text, |reference| match reference {
                Reference::Variable(name) => self.env(name).or_else(|| self.refer(reference)),
                Reference::Listener(_) => self.refer(reference),
            })
        };
        words.iter().map(word).collect()
    }

    /// Returns what the component's own `env` says of a variable.
    pub(super) fn env(&self, name: &str) -> Option<OsString> {
        self.component.env.get(name).map(|text| self.value(text))
    }

    /// Returns the number of a listener's descriptor in the component.
    fn descriptor(&self, listener: &str) -> Option<i32> {
        let position = self.component.listeners.iter().position(|name| name == listener)?;
        Some(FIRST + i32::try_from(position).ok()?)
    }

    /// Returns the numbers of all of its listeners' descriptors, as nginx passes them on.
    pub(super) fn descriptors(&self) -> OsString {
        let numbers = self.component.listeners.iter().filter_map(|name| self.descriptor(name));
        numbers.map(|number| format!("{number};")).collect::<String>().into()
    }
}
