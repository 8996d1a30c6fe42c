//! [`Listeners`]: name -> socket. The only place where an appliance gets its listeners.
//!
//! A listener is bound once in the life of an appliance and then handed from image to image. It is known by its address: one that a new
//! release gives another name is the same. One that it does not want is kept aside until that release has proved good: going back must
//! find it as it was.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::Named;
use super::beside;
use super::inherit::Inheritance;

/// The beginning of the names of listeners that are kept aside.
const ASIDE: &str = "aside.";

/// A listener that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the listener {name}")]
pub struct BindError {
    /// The listener.
    pub name: String,
    /// Its address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// A listener that was handed over, and that is not given its name yet.
struct Held {
    name: String,
    /// Whether it was in use under its name, and not kept aside.
    is_named: bool,
    listener: TcpListener,
}

impl Held {
    /// Returns whether it is the listener `name` at `address`.
    fn is_it(&self, name: &str, address: SocketAddr) -> bool {
        let is_any_port =
            || self.listener.local_addr().is_ok_and(|local| address.port() == 0 && local.ip() == address.ip());
        self.name == name && (self.is_there(name, address) || is_any_port())
    }

    /// Returns whether it is at `address`, whatever its name.
    fn is_there(&self, _name: &str, address: SocketAddr) -> bool {
        self.listener.local_addr().is_ok_and(|local| local == address) && takes_connections(&self.listener)
    }
}

/// Returns whether it is a socket of connections: a service manager may hand over others, which may have the same port.
fn takes_connections(listener: &TcpListener) -> bool {
    socket_type(listener).is_ok_and(|kind| kind == SocketType::STREAM)
}

/// The appliance's listeners.
#[derive(Debug, Default)]
pub struct Listeners {
    bound: BTreeMap<String, TcpListener>,
    aside: Vec<(String, TcpListener)>,
    /// Those among `bound` that were not handed over under their name.
    fresh: Vec<String>,
    /// Those that are wanted and cannot be had: why not.
    missing: BTreeMap<String, BindError>,
}

impl Listeners {
    /// Returns the listeners that `wanted` names: handed over where there is one of that address, whatever its name, and bound otherwise.
    /// Everything else is kept aside: the previous release may want it again. One that cannot be bound is [missing](Self::missing).
    pub fn adopt(wanted: &BTreeMap<String, SocketAddr>, inherited: &mut Inheritance) -> Self {
        let aside = inherited.take_all(ASIDE).into_iter().map(|part| (part.name, false, part.descriptor));
        let aside: Vec<_> = aside.collect();
        let named = inherited.take_rest().into_iter().map(|part| (part.name, true, part.descriptor));
        let mut held: Vec<Held> = named
            .chain(aside)
            .map(|(name, is_named, descriptor)| Held { name, is_named, listener: TcpListener::from(descriptor) })
            .collect();
        let mut bound = BTreeMap::new();
        let mut fresh = Vec::new();
        // One that keeps its name goes before one that is renamed.
        for fits in [Held::is_it as fn(&Held, &str, SocketAddr) -> bool, Held::is_there] {
            for (name, address) in wanted {
                if bound.contains_key(name) {
                    continue;
                }
                let Some(position) = held.iter().position(|held| fits(held, name, *address)) else { continue };
                let found = held.remove(position);
                if !found.is_named || found.name != *name {
                    fresh.push(name.clone());
                }
                bound.insert(name.clone(), found.listener);
            }
        }
        let aside: Vec<(String, TcpListener)> = held.into_iter().map(|held| (held.name, held.listener)).collect();
        let others: Vec<&TcpListener> =
            aside.iter().map(|(_, listener)| listener).filter(|listener| takes_connections(listener)).collect();
        let mut missing = BTreeMap::new();
        for (name, address) in wanted {
            let listens = match bound.remove(name) {
                Some(found) => beside::listen_again(&found, &others).map(|()| found),
                None => {
                    fresh.push(name.clone());
                    beside::bind_beside(*address, &others)
                }
            };
            match listens {
                Ok(listener) => drop(bound.insert(name.clone(), listener)),
                Err(source) => {
                    drop(missing.insert(name.clone(), BindError { name: name.clone(), address: *address, source }));
                }
            }
        }
        Self { bound, aside, fresh, missing }
    }

    /// Returns those that are wanted and cannot be had, with the reasons.
    pub fn missing(&self) -> impl Iterator<Item = &BindError> {
        self.missing.values()
    }

    /// Returns why one of the listeners `names` cannot be had, if that is so.
    pub fn why_missing(&self, names: &[String]) -> Option<&BindError> {
        names.iter().find_map(|name| self.missing.get(name))
    }

    /// Takes the first reason why one cannot be had.
    pub fn take_missing(&mut self) -> Option<BindError> {
        self.missing.pop_first().map(|(_, why)| why)
    }

    /// Returns whether one that is missing can be had by now.
    pub fn can_be_had(&self) -> bool {
        let held: Vec<&TcpListener> = self.held().collect();
        self.missing.values().any(|missing| beside::try_beside(missing.address, &held).is_ok())
    }

    /// Finds out whether everything that `wanted` names is held, or can be had.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn try_all(&self, wanted: &BTreeMap<String, SocketAddr>) -> Result<(), BindError> {
        let held: Vec<&TcpListener> = self.held().collect();
        for (name, address) in wanted {
            let is_held = held.iter().any(|held| held.local_addr().is_ok_and(|held| held == *address));
            // One that is missing already stays so.
            let is_missing = self.missing.get(name).is_some_and(|missing| missing.address == *address);
            if address.port() != 0 && !is_held && !is_missing {
                let cannot = |source| BindError { name: name.clone(), address: *address, source };
                beside::try_beside(*address, &held).map_err(cannot)?;
            }
        }
        Ok(())
    }

    fn held(&self) -> impl Iterator<Item = &TcpListener> {
        let all = self.bound.values().chain(self.aside.iter().map(|(_, listener)| listener));
        all.filter(|listener| takes_connections(listener))
    }

    /// Has those that are kept aside, and whose address one of the others covers or is covered by, listen no more. Returns the
    /// connections that waited there. No process may accept from them.
    pub fn stop_covered(&self) -> Vec<TcpStream> {
        let mut waiting = Vec::new();
        for (name, listener) in &self.aside {
            let Ok(address) = listener.local_addr() else { continue };
            if !takes_connections(listener)
                || !self.bound.values().any(|other| other.local_addr().is_ok_and(|other| beside::clash(other, address)))
            {
                continue;
            }
            match beside::stop_listening(listener) {
                Ok(connections) => waiting.extend(connections),
                Err(error) => {
                    tracing::warn!(listener.name = name, %address, %error, "a listener of another release cannot be stopped");
                }
            }
        }
        waiting
    }

    /// Returns whether the listener `name` was not handed over under that name.
    pub fn is_fresh(&self, name: &str) -> bool {
        self.fresh.iter().any(|fresh| fresh == name)
    }

    /// Closes what is kept aside: the release that does not want it has proved good. Returns their names as they are described.
    pub fn close_aside(&mut self) -> Vec<String> {
        self.aside.drain(..).map(|(name, _)| format!("{ASIDE}{name}")).collect()
    }

    /// Returns the listener `name`.
    pub fn get(&self, name: &str) -> Option<&TcpListener> {
        self.bound.get(name)
    }

    /// Returns each listener's name and the address it is really bound to.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.bound.iter().filter_map(|(name, listener)| Some((name.clone(), listener.local_addr().ok()?))).collect()
    }

    /// Returns a duplicate of everything, for the next image or the guard's store.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn describe(&self) -> io::Result<Vec<Named>> {
        let aside = self.aside.iter().map(|(name, listener)| (format!("{ASIDE}{name}"), listener));
        self.bound
            .iter()
            .map(|(name, listener)| (name.clone(), listener))
            .chain(aside)
            .map(|(name, listener)| Ok(Named { name, descriptor: OwnedFd::from(listener.try_clone()?) }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::bind::bind;
    use crate::handover::fd;

    fn wanted(address: SocketAddr) -> BTreeMap<String, SocketAddr> {
        BTreeMap::from([("http".to_owned(), address)])
    }
    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn a_socket_of_datagrams_is_no_listener() {
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let address = datagrams.local_addr().expect("an address");
        let parts = vec![Named { name: "http".to_owned(), descriptor: datagrams.into() }];
        let listeners = Listeners::adopt(&wanted(address), &mut Inheritance::new(parts));
        assert!(takes_connections(listeners.get("http").expect("bound beside it")));
        assert!(listeners.stop_covered().is_empty());
        assert_eq!(listeners.describe().expect("described").len(), 2, "it is kept aside");
    }

    #[test]
    fn a_listener_is_adopted_by_name_and_address_and_kept_aside_otherwise() {
        let mut nothing = Inheritance::default();
        let first = Listeners::adopt(&wanted(any()), &mut nothing);
        let address = first.get("http").expect("http").local_addr().expect("an address");

        let mut inherited = Inheritance::new(first.describe().expect("described"));
        let second = Listeners::adopt(&wanted(address), &mut inherited);
        assert_eq!(fd::inode(second.get("http").expect("http")).ok(), fd::inode(first.get("http").expect("http")).ok());

        let other = bind(any()).and_then(|l| l.local_addr()).expect("a free port");
        let mut inherited = Inheritance::new(second.describe().expect("described"));
        let third = Listeners::adopt(&wanted(other), &mut inherited);
        assert_eq!(third.addresses(), vec![("http".to_owned(), other)]);

        let mut inherited = Inheritance::new(third.describe().expect("described"));
        let back = Listeners::adopt(&wanted(address), &mut inherited);
        assert_eq!(fd::inode(back.get("http").expect("http")).ok(), fd::inode(first.get("http").expect("http")).ok());
    }
}
