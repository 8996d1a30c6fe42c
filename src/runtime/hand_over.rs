//! What one image hands to the next: its listeners and sockets, the connections that wait, and the document about them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use refit_base::{clock, lock};

use crate::api;
use crate::carry;
use crate::component::RunContext;
use crate::handover::unix::{self, SocketError};
use crate::handover::{Named, names};
use crate::home::Home;
use crate::http::{Parked, Server};
use crate::peers;

/// The runtime's own Unix sockets.
pub(super) struct Sockets {
    pub(super) api: UnixListener,
    pub(super) bus: UnixListener,
    /// Whether the API's is that of the image before: then the guard keeps it already.
    pub(super) api_inherited: bool,
    /// The same of the socket of the bus.
    pub(super) bus_inherited: bool,
}

impl Sockets {
    /// Returns those of the image before, or binds those that it did not have. The group `operators` may use the API's.
    ///
    /// # Errors
    /// One cannot be bound.
    pub(super) fn adopt(
        home: &Home,
        operators: Option<u32>,
        api: Option<UnixListener>,
        bus: Option<UnixListener>,
    ) -> Result<Self, SocketError> {
        let (api, api_inherited) = unix::listener(home.socket(), api::SOCKET_MODE, operators, api)?;
        let (bus, bus_inherited) = unix::listener(home.bus_socket(), peers::SOCKET_MODE, None, bus)?;
        Ok(Self { api, bus, api_inherited, bus_inherited })
    }
}

/// Returns everything that the next image is handed.
pub(super) fn describe(
    context: &RunContext,
    server: &Server,
    trial_ns: Option<u64>,
    sockets: Sockets,
    channel: Option<OwnedFd>,
    home_lock: Option<OwnedFd>,
) -> io::Result<Vec<Named>> {
    let listeners = lock(&context.listeners);
    let mut parts = listeners.describe()?;
    drop(listeners);
    let named = |name: &str, descriptor: OwnedFd| Named { name: name.to_owned(), descriptor };
    parts.push(named(names::API, sockets.api.into()));
    parts.push(named(names::BUS, sockets.bus.into()));
    parts.extend(channel.map(|channel| named(names::GUARD, channel)));
    parts.extend(home_lock.map(|lock| named(names::LOCK, lock)));
    parts.extend(context.registry.describe()?);
    let mut carry = context.registry.save();
    carry.stopped_accepting_ns = server.stopped_accepting_ns();
    carry.logs_complete = true; // nobody reads any more; the guard's copy may be read after lines that it does not have
    carry.exec_ns = Some(clock::monotonic_ns());
    carry.trial_ns = trial_ns;
    carry.guard_lacks = context.registry.end_reports();
    for (number, Parked { listener, socket, read, .. }) in server.take_parked().into_iter().enumerate() {
        let name = format!("{listener}.{number}");
        parts.push(named(&format!("{}{name}", names::PARKED), socket));
        carry.parked.insert(name, BASE64.encode(read));
    }
    parts.push(named(&carry::state_name(carry.sequence), carry.seal()?));
    Ok(parts)
}

/// Returns the connections that the image before left, with what it had read of them.
pub(super) fn unpark(parts: Vec<Named>, read: &BTreeMap<String, String>) -> Vec<Parked> {
    parts
        .into_iter()
        .filter_map(|part| {
            // A connection whose beginning is lost would be answered wrongly: it is closed.
            let read = BASE64.decode(read.get(&part.name)?).ok()?;
            let listener = part.name.split('.').next()?.to_owned();
            Some(Parked { listener, socket: part.descriptor, read: read.into(), is_surplus: false })
        })
        .collect()
}
