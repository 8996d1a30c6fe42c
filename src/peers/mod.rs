//! Other processes on the bus: JSON-RPC 2.0, one message a line, on the Unix socket `run/bus.sock`.
//!
//! There is one authority and there are many replicas. A peer says who it is (the kernel and its launch token confirm it), and
//! from then on listens, publishes and asks like anybody in this process: to the bus it is a listener among the others, whose
//! calls are messages. A connection that ends fails all its open calls at once. Everything that a peer can do is bounded
//! ([`limits`]); who goes beyond is cut off with a reason, and nobody else notices.
//!
//! Deliberately absent: a state machine in the peer (it has a replica), messages that outlive a connection (it connects again
//! and is told where the site stands), and channels that a peer makes up (they are declared in `appliance.toml`).
//!
//! The subjects: `line` bytes and queues, `protocol` messages, `peer` one of them, `external` as the bus calls it, `roster` all of them, `generations`
//! which of them are called while an update overlaps, `shares` what those of one component share, `hang` which do not even read, `verbs` what one asks, `connection` its life, `accept` the socket that they come from.

mod accept;
mod connection;
mod external;
mod generations;
mod hang;
pub mod limits;
mod line;
mod messages;
mod peer;
mod protocol;
mod roster;
mod shares;
mod verbs;

pub use accept::attach;
pub use protocol::PROTOCOL;
pub use roster::{Parts, Peers};

/// Who may open the socket: anybody, because components have accounts of their own. The hello says who may stay.
pub const SOCKET_MODE: u32 = 0o666;

/// The channel on which a peer that has come is told: `{component, generation, peer}`.
pub const UP: &str = "component.up";
/// The channel on which a peer that is gone is told: `{component, generation, peer, reason}`.
pub const DOWN: &str = "component.down";
