//! Who asks, and what they may: used by the API and by the peers alike, and knowing neither.
//!
//! [`principal`] tells from a connection who is at its other end, [`operators`] which accounts of the machine run the appliance;
//! [`permission`] says what each may.

pub(crate) mod operators;
pub(crate) mod permission;
pub(crate) mod principal;
