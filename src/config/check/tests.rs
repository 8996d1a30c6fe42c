use super::*;

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
    let rows: [(String, &str); 9] = [
        (GOOD.replace("[runtime]", "[runtime"), "a.toml:5:"),
        (GOOD.replace("binary =", "binery ="), "a.toml:6:1: unknown field `binery`"),
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
