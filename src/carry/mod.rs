//! What outlives a process image: the document that the next image reads, and the registry that the document is made from.
//!
//! Everything that must survive is registered in the [`Registry`] when it comes to be, and removed when it is gone.
//! [`Carry`] is the document; [`CarriedInstance`] is what it says of one process of a component. The document crosses an exec in a
//! sealed file in memory, and a copy of it is always with the guard, so that a crash is an exec that nobody prepared. What changes of one
//! process goes to the guard by itself, and the rest a moment later.

mod document;
mod instance;
mod registry;
mod reporter;
mod single;

pub use document::{CARRY_FORMAT, Carry};
pub use instance::{CarriedEnding, CarriedInstance, CarriedLimit, CarriedRun, LimitBy, Role};
pub(crate) use registry::{Descriptors, FoundDescriptors};
pub use registry::{Guard, Registry, RegistryParts, SiteWish, state_name};
