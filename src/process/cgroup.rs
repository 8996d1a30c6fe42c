//! Control groups (version 2): one for each process of a component, where the system lets us have them.
//!
//! With a group, limits hold for all that a component starts together, and nothing that it starts can get away. Groups are
//! used only where they are ours to use: our own group is the root of a namespace, or is marked as delegated (`Delegate=yes`),
//! or belongs to our account. Version 1 alone, a read-only mount, or another manager's group mean that there are none, and
//! [`Cgroups::missing`] says why. Below our own group lies one directory for each home, below it one for each process:
//!
//! ```text
//! our own group/            controllers are given to its children
//! ├─ refit-self/            guard and runtime, where the kernel wants the parent empty for that
//! └─ refit-HOME/            HOME as a digest: two appliances in one group do not meet
//!    └─ web-3/              one process of a component, and all that it starts
//!       └─ health/          its health command
//! ```
//!
//! What an earlier runtime left there is ended and removed when the next one begins, and when the guard ends.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, getppid, getuid, pidfd_open, pidfd_send_signal};
use sha2::{Digest, Sha256};

/// The group that guard and runtime go to when their own has to be empty.
const SELF: &str = "refit-self";
/// The marks by which a manager says that a group is delegated.
const DELEGATED: [&str; 2] = ["user.delegate", "trusted.delegate"];
/// How often to look whether something is left: these processes are not our children, and nothing reports their end.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long the kernel may take to remove what was killed.
const EMPTY_MAX: Duration = Duration::from_secs(5);
/// The period of a processor limit, in microseconds: the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;

/// What a group can limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// The number of processes.
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// Returns the kernel's name.
    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

/// The groups of one home, or why there are none.
#[derive(Debug)]
pub struct Cgroups {
    tree: Result<Tree, String>,
}

#[derive(Debug)]
struct Tree {
    dir: PathBuf,
    controllers: BTreeSet<Controller>,
}

impl Cgroups {
    /// Prepares the groups of `home`, and ends and removes those that are not among `kept`. `limits` says whether any component
    /// needs a controller: without one our own group is left as it is.
    pub fn open(home: &Path, limits: bool, kept: &BTreeSet<String>) -> Self {
        let tree = Self::prepare(home, limits);
        match &tree {
            Ok(tree) => {
                for name in children(&tree.dir) {
                    if !kept.contains(&name)
                        && let Err(error) = destroy(&tree.dir.join(&name))
                    {
                        tracing::warn!(cgroup.name = name, %error, "cannot remove an old control group");
                    }
                }
            }
            Err(reason) => tracing::debug!(reason, "no control groups"),
        }
        Self { tree }
    }

    /// Returns groups that are not there because somebody decided so.
    pub fn none(reason: &str) -> Self {
        Self { tree: Err(reason.to_owned()) }
    }

    fn prepare(home: &Path, limits: bool) -> Result<Tree, String> {
        let base = base()?;
        let dir = base.join(name_of(home));
        make(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        if limits {
            enable(&base, true);
            enable(&dir, false);
        }
        let controllers = words(&dir.join("cgroup.subtree_control"));
        let controllers = Controller::ALL.into_iter().filter(|one| controllers.contains(one.name())).collect();
        Ok(Tree { dir, controllers })
    }

    /// Returns why there are no groups.
    pub fn missing(&self) -> Option<&str> {
        self.tree.as_ref().err().map(String::as_str)
    }

    /// Makes the group of the process `id`; `None` if there are none.
    pub(crate) fn make(&self, id: &str) -> Option<Group> {
        let tree = self.tree.as_ref().ok()?;
        let path = tree.dir.join(id);
        match make(&path) {
            Ok(()) => Some(Group { path }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot make a control group; going on without");
                None
            }
        }
    }

    /// Returns whether groups can limit this.
    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.tree.as_ref().is_ok_and(|tree| tree.controllers.contains(&controller))
    }
}

/// Ends and removes all groups of `home`, once nothing of it is to run any more.
pub fn remove_all(home: &Path) {
    if let Ok(base) = base() {
        // Nothing is left to be done about one that stays: the next start tries again.
        drop(destroy(&base.join(name_of(home))));
    }
}

/// The group of one process and all that it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    /// Returns the group at `path`, if it is there.
    pub(crate) fn found(path: &Path) -> Option<Self> {
        path.join("cgroup.procs").is_file().then(|| Self { path: path.to_owned() })
    }

    /// Returns its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a group below it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn below(&self, name: &str) -> io::Result<Self> {
        let path = self.path.join(name);
        make(&path)?;
        Ok(Self { path })
    }

    /// Limits what all in it may use of `controller`: bytes, percent of one processor, or a number.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn limit(&self, controller: Controller, value: u64) -> io::Result<()> {
        match controller {
            Controller::Memory => {
                write(&self.path.join("memory.max"), &value.to_string())?;
                // Half a component is of no use: the kernel ends it as a whole. Older kernels cannot.
                drop(write(&self.path.join("memory.oom.group"), "1"));
                Ok(())
            }
            Controller::Cpu => {
                let quota = value.saturating_mul(CPU_PERIOD_US / 100);
                write(&self.path.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))
            }
            Controller::Pids => write(&self.path.join("pids.max"), &value.to_string()),
        }
    }

    /// Returns how often the kernel ended something in it for lack of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        fs::read_to_string(self.path.join("memory.events"))
            .is_ok_and(|text| text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0")))
    }

    /// Returns the processes in it and below it.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut found = pids(&self.path);
        for name in children(&self.path) {
            found.extend(Self { path: self.path.join(name) }.processes());
        }
        found
    }

    /// Returns whether nothing is in it or below it, as far as the kernel says.
    pub(crate) fn is_empty(&self) -> bool {
        populated(&self.path) == Some(false)
    }

    /// Ends everything in it and below it; done when nothing is left, or the kernel takes too long.
    ///
    /// # Errors
    /// Something is left.
    pub(crate) fn end(&self) -> io::Result<()> {
        kill(&self.path)
    }

    /// Removes it, with everything in it.
    pub(crate) fn remove(&self) {
        if let Err(error) = destroy(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a control group");
        }
    }
}

/// Puts the calling process into the group at `path`.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn enter(path: &Path) -> io::Result<()> {
    write(&entrance(path), "0")
}

/// Returns the file of the group at `path` to which a process writes `0` to enter it.
pub(crate) fn entrance(path: &Path) -> PathBuf {
    path.join("cgroup.procs")
}

fn name_of(home: &Path) -> String {
    /// Enough that no two homes of one machine meet.
    const DIGITS: usize = 16;
    use std::os::unix::ffi::OsStrExt;
    let digest = hex::encode(Sha256::digest(home.as_os_str().as_bytes()));
    format!("refit-{}", &digest[..DIGITS])
}

/// Returns the group that is ours to divide.
///
/// # Errors
/// There is none: why, for people.
fn base() -> Result<PathBuf, String> {
    let (mount, own) = group_of("self")?;
    let base = if own.ends_with(SELF) { own.parent().unwrap_or(&mount).to_owned() } else { own };
    let ours = base == mount || is_delegated(&base);
    if ours { Ok(base) } else { Err(format!("the control group {} is not delegated to us", base.display())) }
}

/// Returns the directory of the group that the process `pid` is in; `None` if it is gone, or there are no groups here.
pub(crate) fn dir_of(pid: i32) -> Option<PathBuf> {
    group_of(&pid.to_string()).ok().map(|(_, group)| group)
}

/// Returns where the groups are mounted, and the directory of the group that a `process` of `/proc` is in.
///
/// # Errors
/// It is in none that can be seen from here: why, for people.
fn group_of(process: &str) -> Result<(PathBuf, PathBuf), String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
    let (root, mount) =
        mount_of(&read("/proc/self/mountinfo")?).ok_or("control groups of version 2 are not mounted")?;
    let own = own_group(&read(&format!("/proc/{process}/cgroup"))?)
        .ok_or("this process is in no control group of version 2")?;
    let inside = if root == "/" { own.as_str() } else { own.strip_prefix(&root).ok_or("our group is not mounted")? };
    if inside.split('/').any(|part| part == "..") {
        return Err("our own control group is outside of what we see".to_owned());
    }
    let dir = mount.join(inside.trim_start_matches('/'));
    Ok((mount, dir))
}

/// Returns root and place of the first mount of version 2 in the text of `mountinfo`: proc_pid_mountinfo(5).
fn mount_of(text: &str) -> Option<(String, PathBuf)> {
    text.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut words = place.split(' ').skip(3);
        let (root, mount) = (words.next()?, words.next()?);
        kind.starts_with("cgroup2 ").then(|| (root.to_owned(), PathBuf::from(mount)))
    })
}

/// Returns the group of version 2 in the text of `/proc/self/cgroup`.
fn own_group(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn is_delegated(group: &Path) -> bool {
    let marked = DELEGATED.iter().any(|mark| {
        let mut value = [0; 8];
        rustix::fs::getxattr(group, *mark, &mut value).is_ok_and(|length| value.get(..length) == Some(b"1"))
    });
    let user = getuid();
    let owner = || fs::metadata(group).is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == user.as_raw());
    marked || (!user.is_root() && owner())
}

/// Gives the children of `group` what controllers there are. `vacate`: if the kernel wants the group empty, and only guard and
/// runtime are in it, they go to a group of their own. What cannot be had is missing afterwards, which is looked at then.
fn enable(group: &Path, vacate: bool) {
    let (there, given) = (words(&group.join("cgroup.controllers")), words(&group.join("cgroup.subtree_control")));
    for controller in Controller::ALL {
        let name = controller.name();
        if !there.contains(name) || given.contains(name) {
            continue;
        }
        let give = || write(&group.join("cgroup.subtree_control"), &format!("+{name}"));
        let given = match give() {
            Err(_) if vacate && leave(group) => give(),
            other => other,
        };
        if let Err(error) = given {
            tracing::debug!(controller = name, group = %group.display(), %error, "a controller cannot be had");
        }
    }
}

/// Moves guard and runtime out of `group`. Returns whether it did.
fn leave(group: &Path) -> bool {
    let own = rustix::process::getpid().as_raw_pid();
    let ours = [Some(own), getppid().map(Pid::as_raw_pid)];
    let inside = pids(group);
    if inside.is_empty() || !inside.iter().all(|pid| ours.contains(&Some(*pid))) {
        return false; // others are there, who are not ours to move
    }
    let aside = group.join(SELF);
    let moved = make(&aside)
        .and_then(|()| inside.iter().try_for_each(|pid| write(&aside.join("cgroup.procs"), &pid.to_string())));
    moved.is_ok()
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes to a file of the kernel's, which takes a value with one call.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

fn words(path: &Path) -> BTreeSet<String> {
    fs::read_to_string(path)
        .map_or_else(|_| BTreeSet::new(), |text| text.split_whitespace().map(str::to_owned).collect())
}

fn pids(group: &Path) -> Vec<i32> {
    fs::read_to_string(group.join("cgroup.procs"))
        .map_or_else(|_| Vec::new(), |text| text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn children(group: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Returns whether anything is in the group at `path` or below it; `None` if the kernel does not say.
fn populated(path: &Path) -> Option<bool> {
    let text = fs::read_to_string(path.join("cgroup.events")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("populated ")).map(|value| value == "1")
}

/// Ends everything in the group at `path` and waits until it is empty.
fn kill(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_MAX;
    while populated(path) == Some(true) {
        if Instant::now() >= deadline {
            let text = format!("{} is not empty {} s after its end", path.display(), EMPTY_MAX.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        if write(&path.join("cgroup.kill"), "1").is_err() {
            kill_one_by_one(path); // a kernel before 5.14
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

fn kill_one_by_one(path: &Path) {
    for pid in pids(path) {
        let Some(found) = Pid::from_raw(pid) else { continue };
        let Ok(descriptor) = pidfd_open(found, PidfdFlags::empty()) else { continue };
        // Looked at again after the descriptor was opened: from then on the number cannot change its meaning.
        if pids(path).contains(&pid)
            && let Err(error) = pidfd_send_signal(&descriptor, Signal::KILL)
        {
            tracing::debug!(process.pid = pid, %error, "cannot end a process of a control group");
        }
    }
    for name in children(path) {
        kill_one_by_one(&path.join(name));
    }
}

/// Ends everything in the group at `path` and removes it with all below it. One that is not there is no error.
fn destroy(path: &Path) -> io::Result<()> {
    // The kernel removes one that is empty and has nothing below it, and no other.
    if fs::remove_dir(path).is_ok() {
        return Ok(());
    }
    if !path.is_dir() {
        return Ok(());
    }
    kill(path)?;
    for name in children(path) {
        destroy(&path.join(name))?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_version_2_is_found_among_others() {
        let text = "25 1 0:23 / /sys rw - sysfs sysfs rw\n\
                    30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                    31 25 0:27 /a /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_of(text), Some(("/a".to_owned(), PathBuf::from("/sys/fs/cgroup/unified"))));
        assert_eq!(mount_of("25 1 0:23 / /sys rw - sysfs sysfs rw\n"), None);
        assert_eq!(own_group("9:memory:/m\n0::/system.slice/a.service\n").as_deref(), Some("/system.slice/a.service"));
        assert_eq!(own_group("9:memory:/m\n"), None);
    }
}
