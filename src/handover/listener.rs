//! [`Listeners`]: name -> socket. The only place that binds an appliance's listener.
//!
//! A listener is bound once in the life of an appliance and then handed from image to image. One whose address a new release
//! changes is kept aside until that release has proved good: going back must find it as it was.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::Named;
use super::inherit::Inheritance;

/// How many connections may wait while nobody accepts: a second of what a small machine can serve.
pub const BACKLOG: i32 = 1024;
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

/// The appliance's listeners.
#[derive(Debug, Default)]
pub struct Listeners {
    bound: BTreeMap<String, TcpListener>,
    aside: Vec<(String, TcpListener)>,
    /// Those among `bound` that were not handed over under their name.
    fresh: Vec<String>,
}

impl Listeners {
    /// Returns the listeners that `wanted` names: handed over where there is one of that name and address, bound otherwise.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn adopt(wanted: &BTreeMap<String, SocketAddr>, inherited: &mut Inheritance) -> Result<Self, BindError> {
        let mut aside: Vec<(String, TcpListener)> =
            inherited.take_all(ASIDE).into_iter().map(|part| (part.name, TcpListener::from(part.descriptor))).collect();
        let mut bound = BTreeMap::new();
        let mut fresh = Vec::new();
        for (name, address) in wanted {
            let fits = |listener: &TcpListener| {
                listener
                    .local_addr()
                    .is_ok_and(|local| local == *address || (address.port() == 0 && local.ip() == address.ip()))
            };
            let handed = inherited.take(name).map(TcpListener::from);
            let listener = match handed {
                Some(listener) if fits(&listener) => Some(listener),
                Some(other) => {
                    aside.push((name.clone(), other));
                    None
                }
                None => None,
            };
            if listener.is_none() {
                fresh.push(name.clone());
            }
            let listener = listener.or_else(|| {
                let position = aside.iter().position(|(other, listener)| other == name && fits(listener))?;
                Some(aside.remove(position).1)
            });
            let listener = match listener {
                Some(listener) => listener,
                None => bind(*address).map_err(|source| BindError { name: name.clone(), address: *address, source })?,
            };
            bound.insert(name.clone(), listener);
        }
        Ok(Self { bound, aside, fresh })
    }

    /// Keeps a listener that no component of this release wants: the previous release may.
    pub fn keep_aside(&mut self, part: Named) {
        self.aside.push((part.name, TcpListener::from(part.descriptor)));
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

/// Returns a listener on `address`, blocking, as a service manager hands them to programs.
///
/// # Errors
/// The address is in use, or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A connection of an earlier life in TIME_WAIT is no reason to refuse; a listener of somebody else still is.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::fd;

    fn wanted(address: SocketAddr) -> BTreeMap<String, SocketAddr> {
        BTreeMap::from([("http".to_owned(), address)])
    }
    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn a_listener_is_adopted_by_name_and_address_and_kept_aside_otherwise() {
        let mut nothing = Inheritance::default();
        let first = Listeners::adopt(&wanted(any()), &mut nothing).expect("bound");
        let address = first.get("http").expect("http").local_addr().expect("an address");

        let mut inherited = Inheritance::new(first.describe().expect("described"));
        let second = Listeners::adopt(&wanted(address), &mut inherited).expect("adopted");
        assert_eq!(fd::inode(second.get("http").expect("http")).ok(), fd::inode(first.get("http").expect("http")).ok());

        let other = bind(any()).and_then(|l| l.local_addr()).expect("a free port");
        let mut inherited = Inheritance::new(second.describe().expect("described"));
        let third = Listeners::adopt(&wanted(other), &mut inherited).expect("bound elsewhere");
        assert_eq!(third.addresses(), vec![("http".to_owned(), other)]);

        let mut inherited = Inheritance::new(third.describe().expect("described"));
        let back = Listeners::adopt(&wanted(address), &mut inherited).expect("found again");
        assert_eq!(fd::inode(back.get("http").expect("http")).ok(), fd::inode(first.get("http").expect("http")).ok());
    }
}
