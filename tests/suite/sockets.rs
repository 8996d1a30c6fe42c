//! Names of sockets that are removed while the appliance runs come back, and lead to the same sockets, or, where nothing is left of them,
//! to new ones.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::appliance::{Appliance, component, text};
use crate::release::{REFIT, Release};
use crate::wait::{LIMIT, eventually, until};

/// Returns a release with a component that counts in its status, again and again.
fn counting(version: &str) -> Release {
    let script = format!(
        ": {version}; n=0; while :; do n=$((n+1)); {REFIT} notify --timeout 1s READY=1 STATUS=n$n; sleep 0.1; done"
    );
    Release::bare(version)
        .component("counter", &format!("command = [\"sh\", \"-c\", \"{script}\"]\nready = \"notify\""))
}

/// Waits until the component has been heard twice more.
fn wait_heard(appliance: &Appliance) {
    let heard = || component(&appliance.status(), "counter")["status"].clone();
    for _ in 0..2 {
        let before = heard();
        eventually(LIMIT, "the component is heard", || heard() != before);
    }
}

fn remove(path: &Path) {
    let found = fs::symlink_metadata(path).expect("it is there");
    if found.is_dir() { fs::remove_dir_all(path).expect("removed") } else { fs::remove_file(path).expect("removed") }
}

/// Returns the paths of the three kinds of sockets, and what each is.
fn sockets(appliance: &Appliance, id: &str) -> Vec<(PathBuf, u64)> {
    let notify = format!("notify/{id}/socket");
    let paths = ["refit.sock", "bus.sock", &notify].map(|name| appliance.home().join("run").join(name));
    paths.into_iter().map(|path| (path.clone(), fs::symlink_metadata(path).map_or(0, |found| found.ino()))).collect()
}

#[test]
fn names_of_sockets_that_are_removed_come_back() {
    let mut appliance = Appliance::new(&counting("1.0.0")).start();
    let id = "counter-1";
    let (runtime, counter, mut before) =
        (appliance.runtime_pid(), appliance.component_pid("counter"), sockets(&appliance, id));
    let run = appliance.home().join("run");
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 8] = [
        ("the API's", |run| remove(&run.join("refit.sock"))),
        ("the bus's", |run| remove(&run.join("bus.sock"))),
        ("a component's", |run| remove(&run.join("notify/counter-1/socket"))),
        ("a component's directory", |run| remove(&run.join("notify/counter-1"))),
        ("all of the components", |run| remove(&run.join("notify"))),
        ("everything", remove),
        ("moved away", |run| fs::rename(run, run.with_extension("away")).expect("moved")),
        ("in another's place", |run| {
            remove(&run.join("refit.sock"));
            fs::write(run.join("refit.sock"), "x").expect("written");
        }),
    ];
    for (what, damage) in damages {
        damage(&run);
        let is_all_gone = ["everything", "moved away"].contains(&what);
        eventually(LIMIT, &format!("{what}: the names are back"), || {
            let now = sockets(&appliance, id);
            if is_all_gone { now.iter().all(|(_, found)| *found != 0) && now != before } else { now == before }
        });
        if is_all_gone {
            appliance.settled("1.0.0");
            before = sockets(&appliance, id);
        }
        UnixStream::connect(run.join("bus.sock")).expect("somebody accepts");
        appliance.refit(&["status"]).ends_with(0);
        wait_heard(&appliance);
        assert_eq!((appliance.runtime_pid(), appliance.component_pid("counter")), (runtime, counter), "{what}");
    }
    assert!(appliance.log().contains("the name of a socket was gone; it was made again"));
    // What follows finds them: a crash, an update, and an end.
    remove(&run);
    appliance.kill_runtime();
    wait_heard(&appliance);
    appliance.install(&counting("1.1.0"), &[]).ends_with(0);
    appliance.settled("1.1.0");
    let id = until(LIMIT, "the new process is there", || {
        let names = fs::read_dir(run.join("notify")).ok()?.flatten().map(|entry| entry.file_name().into_string().ok());
        names.flatten().find(|name| name != "counter-1")
    });
    remove(&run.join("notify").join(&id));
    remove(&run.join("refit.sock"));
    wait_heard(&appliance);
    assert_eq!(text(&component(&appliance.status(), "counter")["state"]), "running");
    let seconds = run.join(".sockets");
    eventually(LIMIT, "only the sockets that are there have second names", || {
        let names = fs::read_dir(seconds.join("notify")).expect("list").flatten();
        names.map(|entry| entry.file_name().into_string().expect("text")).collect::<Vec<_>>() == [id.clone()]
    });
    appliance.stop();
    assert!(!seconds.exists() && !run.join("refit.sock").exists());
}
