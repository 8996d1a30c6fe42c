//! The release that runs is damaged, and put right by installing it again.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use refit_updater::durable::{remove_tree, set_owner_write};

use crate::appliance::Appliance;
use crate::load::LoadOptions;
use crate::release::Release;
use crate::wait::LIMIT;

/// The configuration as the admin has it.
const EDITED: &str = "greeting = \"Mine.\"\n";

#[test]
fn the_release_that_runs_is_repaired_by_installing_it_again() {
    let shop = Release::shop("1.0.0");
    let appliance = Appliance::new(&shop);
    let (release, config) = (appliance.home().join("releases/1.0.0"), appliance.home().join("config/1.0.0/shop.toml"));
    fs::write(&config, EDITED).expect("edit the configuration");
    let appliance = appliance.start();
    let load = appliance.load(LoadOptions::default());
    let pids = [appliance.component_pid("shop"), appliance.component_pid("stock")];

    for dir in ["lib", "share", ".refit"] {
        set_owner_write(&release.join(dir)).expect("make it writable");
    }
    remove_tree(&release.join("lib/prices.txt")).expect("remove a file");
    let style = release.join("share/style.css");
    fs::set_permissions(&style, Permissions::from_mode(0o644)).expect("chmod");
    fs::write(&style, "body { display: none }\n").expect("change a file");
    appliance.refit(&["verify"]).ends_with(70);
    let line = appliance.install(&shop, &[]).complains_with(65);
    assert!(line.contains("1.0.0, the current release"), "{line}");

    let ran = appliance.install(&shop, &["--allow-downgrade"]).ends_with(0);
    assert!(ran.stdout.contains("release 1.0.0 was repaired: "), "{}", ran.stdout);
    appliance.settled("1.0.0");
    appliance.refit(&["verify"]).ends_with(0);

    // Its manifest, too: which release it is the runtime knows.
    remove_tree(&release.join(".refit/manifest.json")).expect("remove the manifest");
    appliance.refit(&["verify"]).ends_with(70);
    let ran = appliance.install(&shop, &["--allow-downgrade"]).ends_with(0);
    assert!(ran.stdout.contains("release 1.0.0 was repaired: "), "{}", ran.stdout);
    appliance.settled("1.0.0");
    appliance.refit(&["verify"]).ends_with(0);

    // Nothing is damaged any more: it is installed as any release is.
    let ran = appliance.install(&shop, &["--allow-downgrade"]).ends_with(0);
    assert!(ran.stdout.contains("release 1.0.0 is complete on disk"), "{}", ran.stdout);
    appliance.settled("1.0.0");
    assert_eq!(fs::read_to_string(&config).expect("read"), EDITED);
    assert_eq!([appliance.component_pid("shop"), appliance.component_pid("stock")], pids, "both went on");
    load.wait_for_ok(50, LIMIT).expect("the shop answers");
    load.finish().assert_clean();
}

#[test]
fn another_release_of_the_version_that_runs_repairs_nothing() {
    let appliance = Appliance::new(&Release::bare("1.0.0")).start();
    let dir = appliance.home().join("releases/1.0.0");
    set_owner_write(&dir).expect("make it writable");
    fs::write(dir.join("added"), "").expect("add a file");
    let other = Release::bare("1.0.0").file("share/other", "another release of the same version\n");
    let line = appliance.install(&other, &["--allow-downgrade"]).complains_with(70);
    assert!(line.contains("is installed with other content"), "{line}");
    assert!(dir.join("added").exists() && !dir.join("share").exists());
}
