//! Who asks, and what they may: used by the API and by the peers alike, and knowing neither.
//!
//! [`principal`] tells from a connection who is at its other end; [`permission`] what that one may.

pub(crate) mod permission;
pub(crate) mod principal;
