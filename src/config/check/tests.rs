use super::*;
use crate::config::Handover;

const GOOD: &str = r#"
[appliance]
name = "acme"
version = "1.4.0"
[runtime]
binary = "bin/refit"
[listeners]
admin = "127.0.0.1:8443"
http = "127.0.0.1:8080"
[update]
probation = "5s"
[[component]]
name = "db"
command = ["bin/db"]
[[component]]
name = "web"
command = ["bin/web", "--workers", "4"]
listeners = ["http"]
after = ["db"]
handover = "overlap"
ready = "notify"
health = { http = "http://127.0.0.1:8080/healthz", interval = "5s" }
restart = { policy = "on-failure", backoff = "100ms..30s", limit = "5/1m" }
"#;

fn mistakes(text: &str, local: Option<&str>) -> Vec<String> {
    match parse(Path::new("a.toml"), text, local.map(|text| (Path::new("l.toml"), text)), None) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_good_file_is_understood_and_overridden() {
    let local = "[listeners]\nhttp = \"127.0.0.1:0\"\n[[component]]\nname = \"web\"\nstop_timeout = \"1s\"\n";
    let config = parse(Path::new("a.toml"), GOOD, Some((Path::new("l.toml"), local)), None).expect("good");
    assert_eq!(config.listeners["http"].port(), 0);
    assert_eq!(config.listeners["admin"].port(), 8443);
    let web = config.component("web").expect("web");
    assert_eq!((web.stop_timeout, web.handover), (Duration::from_secs(1), Handover::Overlap));
    assert_eq!(config.update.probation, Duration::from_secs(5));
}

#[test]
fn every_mistake_has_its_line_and_column() {
    let rows: [(String, &str); 11] = [
        (GOOD.replace("[runtime]", "[runtime"), "a.toml:5:"),
        (GOOD.replace("binary =", "binery ="), "a.toml:6:1: unknown field `binery`"),
        (
            GOOD.replace("[update]", "[update]\nexpired_offline = \"never\""),
            "a.toml:11:19: \"never\" is no policy: use one of warn, refuse",
        ),
        (GOOD.replace("[update]", "[update]\nrepository = \"ftp://x\""), "a.toml:11:14: \"ftp://x\" is no repository"),
        (GOOD.replace("\"5s\"", "\"5 parsecs\""), "a.toml:11:13: \"5 parsecs\" is not a duration"),
        (GOOD.replace("[\"http\"]", "[\"htp\"]"), "a.toml:18:14: there is no listener \"htp\""),
        (GOOD.replace("[\"db\"]", "[\"dc\"]"), "a.toml:19:10: there is no component \"dc\""),
        (GOOD.replace(":8443", ":8080"), "the listeners admin and http have one address"),
        (GOOD.replace("\"1.4.0\"", "\"1.4\""), "a.toml:4:11: \"1.4\" is not a version"),
        (GOOD.replace("\"overlap\"", "\"swap\""), "\"swap\" is no handover: use one of overlap, restart, keep"),
        (GOOD.replace("command = [\"bin/db\"]", "command = [\"bin/db\"]\nneeds = [\"web\"]"), "wait for each other"),
    ];
    for (text, expected) in rows {
        let found = mistakes(&text, None);
        assert!(found.iter().any(|line| line.contains(expected)), "{expected}: {found:?}");
        assert!(found.iter().all(|line| !line.contains('\n')), "{found:?}");
    }
}

#[test]
fn all_mistakes_come_at_once_and_name_their_file() {
    let text = GOOD.replace("\"5s\"\n[[", "\"x\"\n[[").replace("[\"http\"]", "[\"htp\"]");
    let found = mistakes(&text, Some("[[component]]\nname = \"nobody\"\n"));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("l.toml:2:8: the release has no component")), "{found:?}");
}

/// A file full of mistakes; each line says in its comment at which columns, and what.
const BAD: &str = r#"
[appliance]
name = "Acme"                        #! 8: is not a name
version = "1"                        #! 11: is not a version
colour = "red"                       #! 1: unknown field `colour`
[runtime]
binary = "/bin/refit"                #! 10: is not a path below the release
[listeners]
a = "0.0.0.0:80"
b = "127.0.0.1:80"                   #! 5: cannot have 127.0.0.1:80 beside a
c = "0.0.0.0:80"                     #! 5: a and c have one address
d = "nowhere"                        #! 5: is not an address
e = 80                               #! 5: invalid type: integer
[update]
keep = 0                             #! 8: keep at least 1
probation = "5 parsecs"              #! 13: is not a duration
watchdog = "1ms"                     #! 12: too short
drain_grace = true                   #! 15: invalid type: boolean
[log]
files = 1                            #! 9: not between 2 and 1000
file_bytes = "1MB"                   #! 14: is not a size
total_bytes = "1KiB"                 #! 15: too little
[[component]]
name = "one"
command = ["bin/one"]
needs = ["two", "nobody"]            #! 10: one -> two -> three -> one #! 17: there is no component "nobody"
listeners = ["d", "e", "f"]          #! 24: there is no listener "f"
handover = "swap"                    #! 12: is no handover
ready = 1                            #! 9: invalid type: integer
[[component]]
name = "two"
command = []                         #! 11: the command is empty
after = ["three", 3]                 #! 19: invalid type: integer
health = { http = "ftp://x", tcp = 1, threshold = 0 }   #! 36: invalid type #! 19: begins with http #! 51: at least 1
[[component]]
name = "three"
after = ["one", "three"]             #! 17: three waits for itself
command = "bin/three"                #! 11: invalid type: string
restart = { policy = "maybe", limit = "5" }             #! 22: is no policy #! 39: is not a limit
[[component]]                        #! 1: has no name
command = ["bin/x"]
[[component]]
name = "one"                         #! 8: there are two components
comand = ["bin/x"]                   #! 1: unknown field `comand`
[[component]]
name = "four"                        #! 8: the component "four" has no command
[components]                         #! 2: unknown field `components`
[listner]                            #! 2: unknown field `listner`
"#;

/// Returns the places and texts that the comments of `text` ask for.
fn asked(file: &str, text: &str) -> Vec<(String, String)> {
    let mut asked = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for comment in line.split("#!").skip(1) {
            let (column, what) = comment.trim().split_once(": ").expect("a column and a text");
            asked.push((format!("{file}:{}:{column}: ", number + 1), what.to_owned()));
        }
    }
    asked
}

#[test]
fn no_mistake_hides_another() {
    let local = "[update]\nkeep = \"many\"  #! 8: invalid type\n[[component]]\nname = \"one\"\n\
                 after = [\"nemo\"]  #! 10: there is no component \"nemo\"\nspeed = 1  #! 1: unknown field\n\
                 [[component]]\nname = \"nobody\"  #! 8: the release has no component\n";
    let found = mistakes(BAD, Some(local));
    let mut left = found.clone();
    for (place, what) in asked("a.toml", BAD).into_iter().chain(asked("l.toml", local)) {
        let position = left.iter().position(|line| line.starts_with(&place) && line.contains(&what));
        left.remove(position.unwrap_or_else(|| panic!("{place}{what} is not in\n{}", found.join("\n"))));
    }
    assert!(left.is_empty(), "not asked for:\n{}", left.join("\n"));
    let mut sorted = found.clone();
    sorted.sort_by_key(|line| {
        let mut parts = line.split(':');
        let file = parts.next().map(str::to_owned);
        let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok());
        (file, number(), number())
    });
    assert_eq!(found, sorted, "in the order of the lines");
}

#[test]
fn what_is_no_toml_says_where_once_for_each_line() {
    let found = mistakes("[appliance\nversion = \"1.0.0\"\nnot toml at all\nx = = 1\n", None);
    let lines: Vec<&str> = found.iter().filter_map(|line| line.split(':').nth(1)).collect();
    assert_eq!(lines, ["1", "3", "4"], "{found:?}");
}

#[test]
fn what_is_missing_is_said_where_it_belongs() {
    for (text, expected) in [
        ("", &["a.toml:1:1: [appliance] needs a name", "a.toml:1:1: [appliance] needs a version"][..]),
        ("\n[appliance]\nname = \"a\"\n", &["a.toml:2:2: [appliance] needs a version"]),
        ("\n[appliance]\nname = \"a\"\nversion = 1\n", &["a.toml:4:11: invalid type: integer `1`, expected a string"]),
        ("appliance = 1\n", &["a.toml:1:13: invalid type: integer `1`, expected struct RawAppliance"]),
    ] {
        assert_eq!(mistakes(text, None), expected, "{text:?}");
    }
}

#[test]
fn programs_are_looked_for_where_they_will_be_executed() {
    use std::os::unix::fs::PermissionsExt;
    let release = tempfile::tempdir().expect("a directory");
    let search = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(release.path().join("bin")).expect("a directory");
    for (path, mode) in [
        (release.path().join("bin/web"), 0o755),
        (release.path().join("bin/data"), 0o644),
        (search.path().join("tool"), 0o755),
        (search.path().join("notes"), 0o644),
    ] {
        std::fs::write(&path, "").expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode");
    }
    let here = Programs::here(release.path(), Some(search.path().as_os_str()));
    let anywhere = Programs::anywhere(release.path());
    for (command, on_machine, packed) in [
        ("bin/web", None, None),
        ("bin/none", Some("there is no program \"bin/none\" in the release"), Some("there is no program")),
        ("bin/data", Some("the file \"bin/data\" is not executable"), Some("not executable")),
        ("bin", Some("there is no program \"bin\" on PATH"), None),
        ("./bin", Some("there is no program \"./bin\" in the release"), Some("there is no program")),
        ("tool", None, None),
        ("notes", Some("there is no program \"notes\" on PATH"), None),
    ] {
        let text = GOOD
            .replace("\"bin/db\"", &format!("\"{command}\""))
            .replace("binary = \"bin/refit\"", "binary = \"bin/web\"");
        for (programs, expected) in [(&here, on_machine), (&anywhere, packed)] {
            let found = match parse(Path::new("a.toml"), &text, None, Some(programs)) {
                Ok(_) => None,
                Err(mistakes) => Some(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
            };
            match (expected, &found) {
                (None, None) => {}
                (Some(expected), Some(found)) => {
                    assert!(found.starts_with("a.toml:14:11: ") && found.contains(expected), "{command}: {found}");
                    assert_eq!(found.lines().count(), 1, "{found}");
                }
                (Some(_), None) | (None, Some(_)) => panic!("{command}: {expected:?}, but {found:?}"),
            }
        }
    }
    let text = GOOD.replace("command = [\"bin/db\"]", "command = [\"tool\"]\nenv = { PATH = \"/nowhere\" }");
    let found = parse(Path::new("a.toml"), &text, None, Some(&here)).expect_err("its own PATH counts");
    assert!(found.iter().any(|mistake| mistake.what.contains("\"tool\" on PATH")), "{found:?}");
}

#[test]
fn a_component_has_what_its_way_of_being_ready_needs() {
    let without = |line: &str| GOOD.replace(&format!("{line}\n"), "");
    let health = "health = { http = \"http://127.0.0.1:8080/healthz\", interval = \"5s\" }";
    for (text, what) in [
        (without("listeners = [\"http\"]").replace("\"notify\"", "\"listen\""), "is for a component with listeners"),
        (without(health).replace("\"notify\"", "\"health\""), "is for a component with a health check"),
        (GOOD.replace("\"notify\"", "\"health\""), "cannot tell the new process from the old one"),
    ] {
        let found = mistakes(&text, None);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(what), "{found:?}");
        assert!(found[0].starts_with("a.toml:"), "{found:?}");
    }
    let own_port = without("listeners = [\"http\"]").replace("\"notify\"", "\"health\"");
    assert_eq!(mistakes(&own_port, None), Vec::<String>::new());
    assert_eq!(mistakes(&GOOD.replace("\"notify\"", "\"listen\""), None), Vec::<String>::new());
}
