//! The conformance cases of the bus, one test each: its name begins with the number of the case and says the behaviour.
//! `docs/bus-cases.md` lists them.
//!
//! One file per section. What a case says about listeners is shown with probes in this process, through the public interface;
//! what it says about processes, with the real program. Nothing here waits by resting, and every test has a hard limit.

mod host;
mod log;
mod order;
mod probe;
mod publish;
mod reload;
mod restart;
mod start;
mod stop;
mod wait;

pub(crate) use probe::paused;
