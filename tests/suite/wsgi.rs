//! Software that is not ours: a Python WSGI application, updated and rolled back under load.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::appliance::{Appliance, component, free_port};
use crate::http::{At, Request};
use crate::load::LoadOptions;
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

#[test]
fn a_python_application_is_updated_and_rolled_back_under_load_unnoticed() {
    let [admin, http] = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    let addresses = [("admin", "127.0.0.1:8443", admin), ("http", "127.0.0.1:8080", http)];
    let v1 = Release::fixture("wsgi/v1", "1.0.0", &addresses);
    let v2 = Release::fixture("wsgi/v2", "2.0.0", &addresses);
    let appliance = Appliance::new(&v1).start();
    let runtime = appliance.runtime_pid();
    let options = LoadOptions {
        new_per_second: 60,
        keepalive_connections: 5,
        keepalive_period: Duration::from_millis(100),
        ..LoadOptions::default()
    };
    let load = appliance.load(options);
    let page = || Request::new(&At::Tcp(http), "GET", "/").send().text();
    load.wait_for_version("1.0.0", LIMIT).expect("version 1 answers");
    assert!(page().contains("version 1."), "{}", page());
    let first = appliance.component_pid("web");

    appliance.install(&v2, &[]).ends_with(0);
    load.wait_for_version("2.0.0", LIMIT).expect("version 2 answers");
    // While both serve, either may answer.
    eventually(LIMIT, "version 1 has ended", || !process::is_alive(first));
    assert!(page().contains("version 2."), "{}", page());
    let second = appliance.component_pid("web");
    assert_ne!(first, second);

    appliance.refit(&["rollback"]).ends_with(0);
    load.wait_for_version("1.0.0", LIMIT).expect("version 1 answers again");
    eventually(LIMIT, "version 2 has ended", || !process::is_alive(second));
    assert!(page().contains("version 1."), "{}", page());
    let report = load.finish();
    report.assert_clean();
    assert_eq!(report.versions_seen, ["1.0.0", "2.0.0"]);
    assert_eq!(appliance.runtime_pid(), runtime);
    assert!(!appliance.log().contains("an old process was killed"), "each ended by itself: {}", appliance.log());
    assert_eq!(component(&appliance.status(), "web")["health"], "healthy");
}
