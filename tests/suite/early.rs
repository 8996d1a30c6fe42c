//! What is asked for at the very moment in which the appliance says that it runs is taken.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::appliance::Appliance;
use crate::http::Request;
use crate::release::Release;
use crate::wait::{LIMIT, until};

/// So many files take a moment to remove.
const MANY: usize = 5_000;

/// Returns a stopped appliance that has 1.2.0, and 1.0.0 and 1.1.0 to go back to.
fn stopped() -> Appliance {
    let mut appliance = Appliance::new(&Release::bare("1.0.0")).start();
    for version in ["1.1.0", "1.2.0"] {
        appliance.install(&Release::bare(version), &[]).ends_with(0);
    }
    appliance.settled("1.2.0");
    appliance.stop();
    appliance
}

/// Puts something there that takes a moment to remove.
fn fill(dir: &Path) {
    fs::create_dir_all(dir).expect("make a directory");
    for number in 0..MANY {
        fs::write(dir.join(number.to_string()), "").expect("make a file");
    }
}

/// Starts the guard and waits for the first answer that says `Running`. Returns it.
fn first_running(appliance: &mut Appliance) -> Value {
    appliance.run_guard();
    loop {
        let status = until(LIMIT, "the appliance answers", || appliance.try_status());
        if status["bus"]["state"] == "Running" {
            return status;
        }
    }
}

#[test]
fn an_update_is_taken_as_soon_as_the_site_runs() {
    let mut appliance = stopped();
    fill(&appliance.home().join("staging/left"));
    let status = first_running(&mut appliance);
    assert!(status["update"].is_null(), "{status}");
    let answer = Request::new(&appliance.socket(), "POST", "/api/v1/rollback").send();
    assert_eq!(answer.status, 202, "{}", answer.json());
    appliance.settled("1.1.0");
}

#[test]
fn a_release_is_removed_as_soon_as_the_site_runs() {
    let mut appliance = stopped();
    // A release that nothing needs is removed after the start, and the other removal waits for that.
    fill(&appliance.home().join("releases/0.1.0/left"));
    first_running(&mut appliance);
    let answer = Request::new(&appliance.socket(), "DELETE", "/api/v1/releases/1.0.0").send();
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert!(!appliance.home().join("releases/1.0.0").exists());
}
