//! Components: the programs that the appliance is made of, started, watched and stopped by the runtime.
//!
//! [`Process`] is a component on the bus: its actor owns the processes, everybody else sees a [`View`]. A process outlives the
//! runtime that started it: what is needed to find it again (its descriptors and [`CarriedInstance`]s) is in the [registry](crate::carry::Registry),
//! and [`fingerprint`] says whether the next release wants the very same process.
//!
//! [`CarriedInstance`]: crate::carry::CarriedInstance

mod acceptors;
mod actor;
mod aside;
mod command;
mod context;
mod data;
pub mod fingerprint;
mod health;
mod instance;
mod limits;
mod listens;
mod live_config;
mod notify_socket;
mod output;
mod reach;
mod ready;
mod recover;
mod reload;
mod reports;
mod restarts;
mod runs;
mod senders;
mod spawn;
mod supervise;
mod variables;
mod view;

pub use actor::{CarriedParts, Process, end_stray, forget_ended};
pub use context::RunContext;
pub use health::State as Health;
pub use live_config::{open_config, restore_config};
pub use notify_socket::{
    make_place as make_notify_place, remove_of as remove_notify_socket, tidy as tidy_notify_sockets,
};
pub use reach::{Obstacle, Places, find_obstacles, find_obstacles_in_tree};
pub use view::{Announced, State, View};

use refit_bus as bus;

use crate::config;

/// Returns the names of all components in the order in which they start, those that start together beside each other.
pub fn waves(config: &config::Config) -> Vec<Vec<String>> {
    let orders: Vec<bus::Order> = config.components.iter().map(order).collect();
    let components = config.components.iter().zip(&orders);
    let rows: Vec<bus::Row<'_>> =
        components.map(|(component, order)| bus::Row { name: &component.name, group: None, order }).collect();
    // A circle is a mistake, which a configuration does not get through with.
    let waves = bus::waves(&rows).unwrap_or_else(|_| (0..rows.len()).map(|index| vec![index]).collect());
    waves.into_iter().map(|wave| wave.into_iter().map(|index| rows[index].name.to_owned()).collect()).collect()
}

/// Returns how long the bus waits for a component in each transition.
pub fn limits(component: &config::Component) -> bus::Limits {
    actor::limits(component)
}

/// Returns a component's place in the order of the bus.
pub fn order(component: &config::Component) -> bus::Order {
    bus::Order { needs: component.needs.clone(), after: component.after.clone(), priority: component.priority }
}
