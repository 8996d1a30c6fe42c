//! Section D: stop, exit, block.

use crate::appliance::Appliance;
use crate::release::Release;
use crate::wait::LIMIT;

#[test]
fn b040_external_the_request_to_exit_ends_everything_with_0() {
    let mut appliance = Appliance::new(&Release::shop("1.0.0")).start();
    appliance.refit(&["bus", "request", "exit"]).ends_with(0);
    assert_eq!(appliance.wait_guard(LIMIT).code(), Some(0));
    assert!(appliance.processes().is_empty());
}
