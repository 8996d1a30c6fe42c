//! The pages about servers, held against what they speak of: every command is run, and every piece of a file is one of the
//! release in the fixtures.
//!
//! A page is run as it stands, after the preparations of the first one, in a directory that looks like the checkout; only ports are
//! others. Where text follows commands, what they print ends with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use refit_updater::durable::make_dirs_writable;

use super::{TARGET, lacks};
use crate::appliance::{end_all, free_port};
use crate::release::REFIT;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// What the pages and the releases have for ports.
const PORTS: [&str; 6] = ["8443", "8444", "8080", "6379", "5432", "8081"];
/// Printed before the output of each block of commands.
const MARK: &str = "--- block ";

/// A fenced block of a page.
struct Block {
    language: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/servers").join(format!("{page}.md"))).expect("the page");
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(language) => {
                inside = true;
                blocks.push(Block { language: language.to_owned(), text: String::new() });
            }
            None if inside => {
                let block = blocks.last_mut().expect("a block has begun");
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!inside, "{page}: the last block has an end");
    blocks
}

/// Asserts that what a page shows of files is in the files.
fn shows_the_fixture(page: &str) {
    let mut files = Vec::new();
    let mut dirs = vec![Path::new(ROOT).join("fixtures/appliances").join(page)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a fixture of the page's name").flatten() {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                files.push(fs::read_to_string(entry.path()).expect("a file of text"));
            }
        }
    }
    let mut shown = 0;
    // Where a piece begins in its line is of no account.
    let lines = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    for block in blocks(page).iter().filter(|block| !["sh", "text"].contains(&block.language.as_str())) {
        let piece = lines(&block.text);
        assert!(files.iter().any(|file| lines(file).contains(&piece)), "{page}: no file of the fixture has:\n{piece}");
        shown += 1;
    }
    assert!(shown > 0, "{page} shows its component");
}

/// Returns `text` with another word for a word: not for a part of a longer one, as digits in a digest are.
fn exchanged(text: &str, from: &str, to: &str) -> String {
    let mut rest = text;
    let mut exchanged = String::new();
    while let Some(at) = rest.find(from) {
        let (before, after) = (&rest[..at], &rest[at + from.len()..]);
        let is_part = before.ends_with(char::is_alphanumeric) || after.starts_with(char::is_alphanumeric);
        exchanged.push_str(before);
        exchanged.push_str(if is_part { from } else { to });
        rest = after;
    }
    exchanged + rest
}

/// Copies a directory of text files, each as `change` has it.
fn copy_tree(from: &Path, to: &Path, change: &impl Fn(&str) -> String) {
    fs::create_dir_all(to).expect("make a directory");
    for entry in fs::read_dir(from).expect("list a fixture").flatten() {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &copy, change);
            continue;
        }
        let text = fs::read_to_string(&path).expect("a file of text");
        fs::write(&copy, change(&text)).expect("write the copy");
        fs::set_permissions(&copy, entry.metadata().expect("it is there").permissions()).expect("set its mode");
    }
}

/// Runs the commands of a page.
fn runs(page: &str) {
    shows_the_fixture(page);
    let dir = tempfile::Builder::new().prefix("refit-page-").tempdir().expect("a temporary directory");
    let root = dir.path();
    // Accounts of components reach the home.
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("set its mode");
    let ports: Vec<String> = PORTS.iter().map(|_| free_port().to_string()).collect();
    let with_ports =
        |text: &str| PORTS.iter().zip(&ports).fold(text.to_owned(), |text, (from, to)| exchanged(&text, from, to));
    for below in [format!("fixtures/appliances/{page}"), "fixtures/peers".to_owned()] {
        copy_tree(&Path::new(ROOT).join(&below), &root.join(&below), &with_ports);
    }
    fs::create_dir_all(root.join("bin")).expect("make a directory");
    fs::create_dir_all(root.join("target")).expect("make a directory");
    symlink(REFIT, root.join("bin/refit")).expect("link refit");

    let (mut script, mut expected) = (String::new(), Vec::new());
    for block in blocks("index").into_iter().chain(blocks(page)) {
        match block.language.as_str() {
            "sh" => {
                script.push_str(&format!("echo; echo '{MARK}{}'\n{}", expected.len(), with_ports(&block.text)));
                expected.push(String::new());
            }
            "text" => *expected.last_mut().expect("text follows commands") = with_ports(&block.text),
            _ => {}
        }
    }
    let path = format!("{}:{}", root.join("bin").display(), std::env::var("PATH").expect("there are programs"));
    let mut bash = Command::new("timeout");
    // Nobody answers for longer than this on a busy machine.
    bash.args(["240", "bash", "-euo", "pipefail", "-c", &script]).current_dir(root).env("PATH", path);
    bash.env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", Path::new(TARGET).join("wheels"))
        .env("PIP_ROOT_USER_ACTION", "ignore");
    bash.env_remove("REFIT_HOME").stdin(Stdio::null());
    let output = bash.output().expect("bash runs");
    let home = root.join(format!("target/{page}-home"));
    end_all(&home);
    make_dirs_writable(&home).ok(); // one that was never made needs nothing
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(root.join(format!("target/{page}.log"))).unwrap_or_default();
    assert!(output.status.success(), "{page} ended with {}:\n{stdout}\n{stderr}\n{log}", output.status);
    let printed: Vec<&str> = stdout.split(MARK).skip(1).collect();
    assert_eq!(printed.len(), expected.len(), "{stdout}");
    for (printed, expected) in printed.iter().zip(&expected) {
        assert!(
            printed.trim_end().ends_with(expected.trim_end()),
            "{page}: {printed:?} does not end with {expected:?}\n{stderr}"
        );
    }
    assert!(expected.iter().filter(|text| !text.is_empty()).count() >= 2, "{page} says what is seen");
}

macro_rules! pages {
    ($($name:ident: $page:literal needs $programs:expr;)*) => {
        $(
            #[test]
            fn $name() {
                if !lacks(&$programs, &[]) {
                    runs($page);
                }
            }
        )*

        #[test]
        fn every_page_is_run() {
            let mut pages: Vec<String> = fs::read_dir(Path::new(ROOT).join("docs/servers"))
                .expect("the pages")
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().trim_end_matches(".md").to_owned())
                .filter(|name| name != "index")
                .collect();
            pages.sort();
            let mut run = [$($page.to_owned()),*];
            run.sort();
            assert_eq!(pages, run);
        }
    };
}

pages! {
    the_page_about_gunicorn: "gunicorn" needs ["bash", "curl", "python3"];
    the_page_about_uvicorn: "uvicorn" needs ["bash", "curl", "python3"];
    the_page_about_cherrypy: "cherrypy" needs ["bash", "curl", "python3", "openssl"];
    the_page_about_node: "node" needs ["bash", "curl", "node"];
    the_page_about_go: "go" needs ["bash", "curl", "go"];
    the_page_about_nginx: "nginx" needs ["bash", "curl", "/usr/sbin/nginx"];
    the_page_about_haproxy: "haproxy" needs ["bash", "curl", "/usr/sbin/haproxy"];
    the_page_about_redis: "redis" needs ["bash", "redis-cli", "/usr/bin/redis-server"];
    the_page_about_postgresql: "postgresql" needs ["bash", "psql", "/usr/lib/postgresql/15/bin/postgres"];
}
