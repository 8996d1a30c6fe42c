//! What is wrong between the parts: two of one name or address, references to nobody, components that wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;

use super::super::raw::RawComponent;
use super::super::{cycle, value};
use super::{At, Checker, Source, at};
use crate::handover::beside::clash;

/// A component's name where one was written that names it.
pub(super) struct Reference {
    /// Which component refers.
    pub(super) from: usize,
    /// What was written.
    pub(super) to: At<String>,
    /// What it has to be the name of.
    pub(super) to_what: Kind,
}

/// What can be referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Listener,
    Component,
}

impl Checker<'_> {
    /// Finds listeners that cannot be bound side by side. The later one is where the mistake is.
    pub(super) fn clashes(&mut self, listeners: &BTreeMap<String, At<SocketAddr>>) {
        let mut in_order: Vec<(&String, &At<SocketAddr>)> = listeners.iter().collect();
        in_order.sort_by_key(|(_, address)| (address.source == Source::Local, address.span.start));
        for (index, (name, address)) in in_order.iter().enumerate() {
            let other = in_order[..index].iter().find(|(_, other)| clash(other.value, address.value));
            if let Some((other, its)) = other {
                let what = if its.value == address.value {
                    format!("the listeners {other} and {name} have one address, {}", address.value)
                } else {
                    format!("the listener {name} cannot have {} beside {other}, which has {}", address.value, its.value)
                };
                self.wrong(address.source, &address.span, what);
            }
        }
    }

    /// Returns the components of one file that have a name, with their indices; each name once.
    pub(super) fn named(
        &mut self,
        written: Vec<Spanned<RawComponent>>,
        source: Source,
    ) -> Vec<(usize, At<String>, RawComponent)> {
        let mut named: Vec<(usize, At<String>, RawComponent)> = Vec::new();
        for (index, raw) in written.into_iter().enumerate() {
            let span = raw.span();
            let raw = raw.into_inner();
            let Some(name) = raw.name.clone() else {
                if !self.is_taken_out(source, &format!("component.{index}.name")) {
                    self.wrong(source, &span, "a [[component]] has no name".to_owned());
                }
                continue;
            };
            let name = at(name, source);
            if let Err(what) = value::name(&name.value) {
                self.wrong(source, &name.span, what);
            }
            if named.iter().any(|(_, other, _)| other.value == name.value) {
                self.wrong(source, &name.span, format!("there are two components {:?}", name.value));
            } else {
                named.push((index, name, raw));
            }
        }
        named
    }

    /// Finds references to what is not there, and components that wait for each other.
    pub(super) fn references(&mut self, references: &[Reference], names: &[String], listeners: &BTreeSet<String>) {
        let mut edges: cycle::Edges<(Source, Range<usize>)> = vec![Vec::new(); names.len()];
        for Reference { from, to, to_what } in references {
            let known = match to_what {
                Kind::Listener => listeners.contains(&to.value),
                Kind::Component => match names.iter().position(|name| *name == to.value) {
                    Some(index) => {
                        edges[*from].push((index, (to.source, to.span.clone())));
                        true
                    }
                    None => false,
                },
            };
            if !known {
                let what = match to_what {
                    Kind::Listener => "listener",
                    Kind::Component => "component",
                };
                self.wrong(to.source, &to.span, format!("there is no {what} {:?}", to.value));
            }
        }
        for (way, (source, span)) in cycle::circles(&edges) {
            let mut members: Vec<&str> = way.iter().map(|index| names[*index].as_str()).collect();
            let what = if let [alone] = members[..] {
                format!("the component {alone} waits for itself")
            } else {
                members.extend(members.first().copied());
                format!("the components wait for each other: {}", members.join(" -> "))
            };
            self.wrong(source, &span, what);
        }
    }
}
