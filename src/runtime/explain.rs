//! What is said when the appliance cannot start: which component failed and why, the last lines that it printed, and what to do.

use refit_base::visible;
use refit_bus::Fault;
use semver::Version;

use crate::home::Home;

/// So many of the last lines are shown; all of them are in the log.
const LINES_MAX: usize = 20;

/// What a program prints or what the system says of it, and what to do then.
const REMEDIES: &[(&str, &str)] = &[
    (
        "error while loading shared libraries",
        "a library is missing: install it, or pack it and set env = { LD_LIBRARY_PATH = \"${REFIT_RELEASE}/lib\" }",
    ),
    (
        "ModuleNotFoundError",
        "a Python module is missing: pack it (`pip install --target`) and set env = { PYTHONPATH = \"${REFIT_RELEASE}/...\" }",
    ),
    ("Cannot find module", "a module of Node.js is missing: pack node_modules"),
    (
        "ddress already in use",
        "the program binds an address that is taken: have it take its `listeners` from Refit, or stop the program that has the address",
    ),
    (
        "EADDRINUSE",
        "the program binds an address that is taken: have it take its `listeners` from Refit, or stop the program that has the address",
    ),
    (
        "cannot execute",
        "pack the program with the mode 0755, with an interpreter in its first line that is there, and for this machine (`refit pack --arch`)",
    ),
    ("there is no account", "make the account, or name another `user` in local.toml"),
    ("cannot become the account", "run Refit as root, or leave `user` out"),
    (
        "READY=1",
        "have the program say READY=1, or say how it is known to be ready: `ready` is one of notify, listen, health, exec, started",
    ),
    (
        "it never said anything on NOTIFY_SOCKET",
        "have the program say READY=1, or choose another `ready`: listen, health, exec, started",
    ),
    ("was not ready within", "give it a longer `start_timeout`, or choose another `ready`"),
    ("did not end within", "give it a longer `start_timeout`"),
    ("ermission denied", "`refit config check` names what its account does not reach"),
    ("memory than its limit", "give it a higher limit of `memory`"),
];

/// Returns what is said of `fault`, because of which the appliance in `home` does not start; `previous` is what a
/// rollback goes back to.
pub(super) fn explain(fault: &Fault, home: &Home, previous: Option<&Version>) -> String {
    let Fault { component, phase, cause, output, .. } = fault;
    let mut text = format!("component {component} failed to {phase}: {}", visible(cause));
    let last = &output[output.len().saturating_sub(LINES_MAX)..];
    if !last.is_empty() {
        text.push_str("; it printed last:");
        for line in last {
            text.push_str(&format!("\n    {}", visible(line)));
        }
        text.push_str("\nrefit: what to do");
    }
    let says = |what: &&(&str, &str)| cause.contains(what.0) || last.iter().rev().any(|line| line.contains(what.0));
    let remedy = REMEDIES.iter().find(says).map_or("correct the program or its settings", |(_, remedy)| remedy);
    let path = home.path().display();
    text.push_str(&format!(
        ": {remedy}; `refit run --home {path}` in a terminal shows all that it prints, and {path}/log/{component}/ keeps it"
    ));
    if let Some(previous) = previous {
        text.push_str(&format!("; `refit rollback --home {path}` has release {previous} run instead"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use refit_base::Cause;

    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_lines_and_its_remedy() {
        let home = Home::new(Path::new("/"), Path::new("h"));
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        for (cause, output, remedy) in [
            (
                "ended with status 1",
                "Traceback\nModuleNotFoundError: No module named 'flask'",
                "a Python module is missing",
            ),
            ("ended with status 1", "OSError: [Errno 98] Address already in use", "binds an address that is taken"),
            (
                "ended with status 1",
                "Error: listen EADDRINUSE: address already in use",
                "binds an address that is taken",
            ),
            (
                "ended with status 127",
                "x: error while loading shared libraries: liby.so.1: cannot",
                "a library is missing",
            ),
            ("cannot execute /h/bin/x: No such file or directory", "", "with an interpreter in its first line"),
            ("was not ready within 5 s; it never said READY=1 on NOTIFY_SOCKET", "", "have the program say READY=1"),
            ("was not ready within 5 s", "", "a longer `start_timeout`"),
            ("ended with status 3", "", "correct the program or its settings"),
        ] {
            let fault = Fault {
                component: "web".to_owned(),
                priority: None,
                phase: "start".to_owned(),
                cause: cause.to_owned(),
                at: String::new(),
                output: lines(output),
                trouble: Cause::Release,
            };
            let text = explain(&fault, &home, None);
            assert!(text.starts_with(&format!("component web failed to start: {cause}")), "{text}");
            assert!(text.contains(remedy), "{text}");
            assert!(fault.output.iter().all(|line| text.contains(&format!("\n    {line}\n"))), "{text}");
            let other = Version::new(1, 0, 0);
            assert!(
                explain(&fault, &home, Some(&other))
                    .ends_with("`refit rollback --home /h` has release 1.0.0 run instead")
            );
            assert!(
                text.ends_with(
                    "`refit run --home /h` in a terminal shows all that it prints, and /h/log/web/ keeps it"
                ),
                "{text}"
            );
        }
    }
}
