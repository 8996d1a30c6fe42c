//! The conformance cases of the bus that are about processes, one test each, with the real program: its name begins with the
//! number of the case and says the behaviour. `docs/bus-cases.md` lists them; those about listeners are tests of `refit-bus`.

mod host;
mod order;
mod reload;
mod restart;
mod start;
mod stop;
