//! Whether each component's account reaches what its process needs: found out before anything is started or stopped.
//!
//! Where this process may become the account, a child tries it ([`reach`]); otherwise the modes say it, as far as they can.
//! Components without an account of their own need none of this.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use semver::Version;
use serde::Serialize;

use super::variables::Variables;
use crate::config::{self, Component, Config, Probe};
use crate::home::Home;
use crate::process::launch::Begin;
use crate::process::reach::{self, Question, Stopped, Want};

/// How long the child may take: it looks up an account, which may be a directory on the network.
const TRY_MAX: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The longest first line of a script that names its interpreter (`BINPRM_BUF_SIZE` of Linux).
const SCRIPT_BYTES_MAX: u64 = 256;
/// Interpreters that are scripts themselves, one behind the other: as many as Linux follows.
const INTERPRETERS_MAX: usize = 4;
/// Where programs are looked for when there is no `PATH`: as execvp(3) does.
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// Where the processes of a release find what they need.
#[derive(Debug, Clone)]
pub struct Places {
    /// The home.
    pub home: Home,
    /// The release's directory.
    pub release: PathBuf,
    /// The release.
    pub version: Version,
    /// The `PATH` that components get.
    pub search: Option<OsString>,
}

/// Something that a component's account does not reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// The component.
    pub component: String,
    /// Its account.
    pub account: String,
    /// What it cannot do, and with which path; empty where it is the account that is wrong.
    pub cannot: String,
    /// Why, and what to do.
    pub why: String,
    /// Whether it is the release that was packed so, and not this machine.
    pub is_packed: bool,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { component, account, cannot, why, .. } = self;
        if cannot.is_empty() {
            return write!(f, "component {component}: {why}");
        }
        write!(f, "component {component}: the account {account} cannot {cannot}: {why}")
    }
}

/// What is asked for one component.
struct Asked {
    /// What it is for, as an [`Obstacle`] says it.
    cannot: String,
    /// It is enough to reach one of them.
    any: Vec<Question>,
}

/// Returns what the accounts of `config`'s components do not reach. Blocks.
#[must_use]
pub fn find_obstacles(config: &Config, places: &Places) -> Vec<Obstacle> {
    let theirs = config.components.iter().filter(|component| has_account(component));
    theirs.flat_map(|component| obstacles_of(component, places)).collect()
}

fn has_account(component: &Component) -> bool {
    component.user.is_some() || component.spawn.group.is_some() || component.spawn.supplementary_groups.is_some()
}

fn obstacles_of(component: &Component, places: &Places) -> Vec<Obstacle> {
    let begin = Begin {
        user: component.user.clone(),
        group: component.spawn.group.clone(),
        groups: component.spawn.supplementary_groups.as_ref().map(|groups| groups.join(",")),
        ..Begin::default()
    };
    let account =
        component.user.clone().unwrap_or_else(|| format!("of the group {}", begin.group.as_deref().unwrap_or("-")));
    let obstacle = |cannot: &str, why: String, is_packed: bool| Obstacle {
        component: component.name.clone(),
        account: account.clone(),
        cannot: cannot.to_owned(),
        why,
        is_packed,
    };
    let asked = asked_of(component, places);
    let questions: Vec<Question> = asked.iter().flat_map(|asked| asked.any.iter().cloned()).collect();
    let identity = Identity::of(&begin);
    let found =
        if may_try(&identity, places) { try_in_child(&begin, &questions) } else { Ok(by_modes(&identity, &questions)) };
    let found = match found {
        Ok(found) => found,
        Err(why) => return vec![obstacle("", why, false)],
    };
    let mut found = found.into_iter();
    asked
        .into_iter()
        .filter_map(|asked| {
            let mut stopped: Vec<Option<Stopped>> = found.by_ref().take(asked.any.len()).collect();
            if stopped.is_empty() || stopped.iter().any(Option::is_none) {
                return None;
            }
            let want = asked.any[0].want;
            let is_last = |stopped: &Stopped| asked.any.iter().any(|question| question.path == stopped.at);
            let stopped = stopped.swap_remove(0)?;
            let want = if is_last(&stopped) { want } else { Want::Enter };
            let why = explain(&stopped, want, &identity, places);
            Some(obstacle(&asked.cannot, why, is_packed(&stopped.at, places)))
        })
        .collect()
}

/// Returns everything that a process of `component` needs.
fn asked_of(component: &Component, places: &Places) -> Vec<Asked> {
    let variables = Variables::supposed(component, &places.home, &places.version, &places.release);
    let mut asked = Vec::new();
    programs(&component.command[0], &variables, places, "its program", &mut asked);
    if let Some(Probe::Command(words)) = component.health.as_ref().map(|health| &health.probe)
        && let Some(program) = words.first()
    {
        programs(program, &variables, places, "its health command", &mut asked);
    }
    let mut enter = |what: &str, path: PathBuf| {
        asked.push(Asked {
            cannot: format!("enter {what} {}", path.display()),
            any: vec![Question { want: Want::Enter, path }],
        });
    };
    let directory = component.spawn.working_directory.as_deref().unwrap_or(".");
    let path = places.release.join(variables.value(directory));
    if is_packed_text(directory) || path.exists() {
        enter("its working directory", path);
    }
    enter("its data", places.home.data());
    // The directory itself is opened to the accounts when the release starts.
    let config = places.home.config(&places.version);
    enter("its configuration", config.parent().unwrap_or(&config).to_owned());
    asked
}

/// Adds the questions for a program, and for what interprets it if it is a script.
fn programs(program: &str, variables: &Variables<'_>, places: &Places, what: &str, asked: &mut Vec<Asked>) {
    let word = variables.words(&[program.to_owned()]).swap_remove(0);
    let files: Vec<PathBuf> = if word.as_bytes().contains(&b'/') {
        // One that lies elsewhere may be made before it is needed.
        Some(places.release.join(word)).into_iter().filter(|file| is_packed_text(program) || file.exists()).collect()
    } else {
        let own = variables.env("PATH");
        let search = own.or_else(|| places.search.clone()).unwrap_or_else(|| PATH_DEFAULT.into());
        std::env::split_paths(&search).map(|dir| dir.join(&word)).filter(|file| file.is_file()).collect()
    };
    let Some(first) = files.first().cloned() else { return }; // that it is nowhere is another mistake
    let mut interpreter = interpreter_of(&first);
    let want = if interpreter.is_some() { Want::ReadAndExecute } else { Want::Execute };
    asked.push(Asked {
        cannot: format!("execute {what} {}", first.display()),
        any: files.into_iter().map(|path| Question { want, path }).collect(),
    });
    for _ in 0..INTERPRETERS_MAX {
        let Some(path) = interpreter else { return };
        interpreter = interpreter_of(&path);
        let want = if interpreter.is_some() { Want::ReadAndExecute } else { Want::Execute };
        asked.push(Asked {
            cannot: format!("execute {}, which runs {what} {}", path.display(), first.display()),
            any: vec![Question { want, path }],
        });
    }
}

/// Returns whether what `text` means is known before anything runs.
fn is_packed_text(text: &str) -> bool {
    config::expand_release(text, OsStr::new("")).is_some()
}

/// Returns the program that the first line of a script names.
fn interpreter_of(file: &Path) -> Option<PathBuf> {
    let mut line = Vec::new();
    File::open(file).ok()?.take(SCRIPT_BYTES_MAX).read_to_end(&mut line).ok()?;
    let line = line.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let word = line.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

/// Whose rights count.
#[derive(Debug)]
struct Identity {
    uid: u32,
    groups: Vec<u32>,
}

impl Identity {
    /// Returns whom a process becomes that begins so; without rights of its own where the names mean nothing.
    fn of(begin: &Begin) -> Self {
        let user = begin.user.as_deref().and_then(|name| User::from_name(name).ok().flatten());
        let group_id = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid);
        let group = begin.group.as_deref().and_then(group_id).or_else(|| user.as_ref().map(|user| user.gid));
        let mut groups: Vec<Gid> = match (&begin.groups, &user) {
            (Some(names), _) => names.split(',').filter_map(group_id).collect(),
            (None, Some(user)) => {
                let name = CString::new(user.name.as_str()).unwrap_or_default();
                getgrouplist(&name, group.unwrap_or(user.gid)).unwrap_or_default()
            }
            (None, None) => Vec::new(),
        };
        groups.extend(group);
        let uid = user.map_or_else(geteuid, |user| user.uid);
        Self { uid: uid.as_raw(), groups: groups.into_iter().map(Gid::as_raw).collect() }
    }

    /// Returns the letter of those bits of a mode that count, and how far they are shifted.
    fn class(&self, looks: &fs::Metadata) -> (char, u32) {
        if looks.uid() == self.uid {
            ('u', 6)
        } else if self.groups.contains(&looks.gid()) {
            ('g', 3)
        } else {
            ('o', 0)
        }
    }
}

/// Returns whether a child of this process may become the account: root may, and the account that the appliance runs as is to find
/// out that it cannot.
fn may_try(identity: &Identity, places: &Places) -> bool {
    let own = geteuid();
    own.is_root()
        || identity.uid == own.as_raw()
        || fs::metadata(places.home.path()).is_ok_and(|looks| Uid::from_raw(looks.uid()) == own)
}

fn try_in_child(begin: &Begin, questions: &[Question]) -> Result<Vec<Option<Stopped>>, String> {
    let failed = |error: io::Error| format!("whether its account reaches what it needs cannot be tried: {error}");
    let mut child = reach::command(begin, questions).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let begun = Instant::now();
    // What it answers fits into a pipe: it ends without being read.
    while child.try_wait().map_err(failed)?.is_none() {
        if begun.elapsed() >= TRY_MAX {
            drop(child.kill()); // gone already is as good
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let output = child.wait_with_output().map_err(failed)?;
    let found = reach::read(&output.stdout)?;
    if found.len() == questions.len() { Ok(found) } else { Err(failed(io::ErrorKind::InvalidData.into())) }
}

/// Returns for each question where the way ends, as far as modes say it.
fn by_modes(identity: &Identity, questions: &[Question]) -> Vec<Option<Stopped>> {
    let stopped = |at: &Path, errno: i32| Some(Stopped { at: at.to_owned(), errno });
    let step = |at: &Path, want: Want| match fs::metadata(at) {
        // What this account cannot look at says nothing about another one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => stopped(at, nix::libc::ENOENT),
        Ok(looks) if lacking(&looks, want, identity).is_some() => stopped(at, nix::libc::EACCES),
        Err(_) | Ok(_) => None,
    };
    let way = |question: &Question| {
        let mut above: Vec<&Path> =
            question.path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
        above.reverse();
        let above = above.into_iter().find_map(|dir| step(dir, Want::Enter));
        above.or_else(|| step(&question.path, question.want))
    };
    questions.iter().map(way).collect()
}

/// Returns the permission that the mode does not give, as chmod(1) names it.
fn lacking(looks: &fs::Metadata, want: Want, identity: &Identity) -> Option<String> {
    if identity.uid == 0 {
        return None;
    }
    let (class, shift) = identity.class(looks);
    let wanted = match want {
        Want::Enter | Want::Execute => 0o1,
        Want::ReadAndExecute => 0o5,
    };
    let missing = wanted & !(looks.permissions().mode() >> shift);
    let bits = match missing {
        0 => return None,
        0o1 => "x",
        0o4 => "r",
        _both => "rx",
    };
    Some(format!("{class}+{bits}"))
}

/// Returns why the way ends there, and what to do, for people.
fn explain(stopped: &Stopped, want: Want, identity: &Identity, places: &Places) -> String {
    let Stopped { at, errno } = stopped;
    let error = io::Error::from_raw_os_error(*errno);
    let Ok(looks) = fs::metadata(at) else { return format!("{}: {error}", at.display()) };
    let mode = looks.permissions().mode() & 0o7777;
    let at_text = at.display();
    match lacking(&looks, want, identity) {
        Some(bits) if *errno == nix::libc::EACCES => {
            let remedy = if is_packed(at, places) {
                format!("pack the release after `chmod {bits}` on it")
            } else {
                format!("`chmod {bits} {at_text}`")
            };
            format!("{at_text} has the mode {mode:04o} and belongs to {}; {remedy}", owner(&looks))
        }
        Some(_) | None => format!(
            "{at_text}, which has the mode {mode:04o}: {error}; look at its access list, at how its file system is mounted, and at \
             the rules of a security module"
        ),
    }
}

/// Returns whether the mode of `at` is that of a package.
fn is_packed(at: &Path, places: &Places) -> bool {
    at.starts_with(&places.release) && at != places.release
}

/// Returns owner and group as `ls` shows them.
fn owner(looks: &fs::Metadata) -> String {
    let user = User::from_uid(Uid::from_raw(looks.uid())).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(looks.gid())).ok().flatten();
    let user = user.map_or_else(|| looks.uid().to_string(), |user| user.name);
    let group = group.map_or_else(|| looks.gid().to_string(), |group| group.name);
    format!("{user}:{group}")
}

/// Returns what accounts of their own will not reach in the release in `dir`, wherever it is installed: it then belongs to whoever
/// installs it.
#[must_use]
pub fn find_obstacles_in_tree(config: &Config, dir: &Path) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    for component in config.components.iter().filter(|component| component.user.is_some()) {
        let account = component.user.clone().unwrap_or_default();
        let mut programs = vec![component.command[0].clone()];
        if let Some(Probe::Command(words)) = component.health.as_ref().map(|health| &health.probe) {
            programs.extend(words.first().cloned());
        }
        for program in programs.iter().filter(|program| program.contains('/') && is_packed_text(program)) {
            let file = dir.join(&*config::packed_program(program));
            let want = if interpreter_of(&file).is_some() { 0o5 } else { 0o1 };
            let mut way: Vec<&Path> = file.ancestors().skip(1).take_while(|above| *above != dir).collect();
            way.reverse();
            let steps = way.into_iter().map(|above| (above, 0o1)).chain([(file.as_path(), want)]);
            let blocked = steps.into_iter().find_map(|(at, wanted)| {
                let mode = fs::metadata(at).ok()?.permissions().mode() & 0o777;
                (mode & wanted != wanted).then(|| (at.to_owned(), mode, if wanted == 0o5 { "o+rx" } else { "o+x" }))
            });
            if let Some((at, mode, bits)) = blocked {
                let at = at.display();
                obstacles.push(Obstacle {
                    component: component.name.clone(),
                    account: account.clone(),
                    cannot: format!("execute {program}"),
                    why: format!("{at} has the mode {mode:04o}, and will not belong to it; `chmod {bits} {at}`"),
                    is_packed: true,
                });
            }
        }
    }
    obstacles
}
