//! What is installed, and each way of Refit to install it, in a process of its own that is measured from outside.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use refit_updater::Store;
use refit_updater::durable::FileSystem;
use refit_updater::receive::{Policy, Receiver};
use refit_updater::trust::{Expired, Trust};
use semver::Version;
use serde_json::{Value, json};

use crate::{BenchError, REFIT, Sample, failed, floor, payload, refit_failed, run, this_program};

/// The row that the others are compared with.
pub(crate) const FIRST: &str = "refit: package file to release";
/// What cannot be avoided.
const FLOOR: &str = "the floor: decode, hash, write, sync";
/// The whole command, which also makes a home, keys of the page and the live configuration.
const INIT: &str = "refit init, the whole command";
/// Another version of what is installed.
const AGAIN: &str = "refit: a version in which three files differ";
/// The release that is installed first, and the one that differs from it.
const BASE: Version = Version::new(1, 0, 0);
const NEXT: Version = Version::new(1, 1, 0);

/// What there is to install.
pub(crate) struct Work {
    pub(crate) dir: PathBuf,
    /// Where the release of version 1.0.0 lies, unpacked.
    pub(crate) tree: PathBuf,
    files: usize,
    bytes: u64,
    package_bytes: u64,
}

impl Work {
    /// Makes payload, keys and packages in `dir`.
    pub(crate) fn prepare(dir: &Path) -> Result<Self, BenchError> {
        let tree = dir.join("tree");
        fs::create_dir(&tree).map_err(failed("make a directory"))?;
        let (paths, bytes) = payload::copy(&tree)?;
        let keys = dir.join("keys");
        run(Command::new(REFIT).args(["keys", "init"]).arg(&keys))?;
        let pack = |version: &Version| -> Result<u64, BenchError> {
            // `refit pack` takes the version from here.
            let text = format!("[appliance]\nname = \"bench\"\nversion = \"{version}\"\n");
            let description = File::create(tree.join("appliance.toml"));
            description.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed("write a description"))?;
            let package = package(dir, version);
            let command = &mut Command::new(REFIT);
            run(command.arg("pack").arg("--keys").arg(&keys).arg(&tree).arg("-o").arg(&package))?;
            fs::metadata(package).map(|found| found.len()).map_err(failed("look at a package"))
        };
        let package_bytes = pack(&BASE)?;
        // It differs in three files, and in its own number.
        for path in [1, 2, 3].iter().filter_map(|quarter| paths.get(paths.len() * quarter / 4)) {
            let file = File::options().append(true).open(tree.join(path));
            file.and_then(|mut file| file.write_all(b"changed")).map_err(failed("change a file"))?;
        }
        pack(&NEXT)?;
        floor::list(&package(dir, &BASE), &dir.join("list"))?;
        Ok(Self { dir: dir.to_owned(), tree, files: paths.len(), bytes, package_bytes })
    }

    /// Measures each way of Refit once.
    pub(crate) fn refit_round(&self, round: usize) -> Result<Vec<(&'static str, Sample)>, BenchError> {
        let mut samples = Vec::new();
        let (base, next) = (BASE.to_string(), NEXT.to_string());
        let floor = format!("floor-{round}");
        samples.push((FLOOR, self.child(&["floor", &floor])?));
        empty(&self.dir.join(floor))?;
        let home = format!("home-{round}");
        // An appliance has its home before it gets a package.
        self.child(&["home", &home])?;
        samples.push((FIRST, self.child(&["receive", &home, &base])?));
        samples.push((AGAIN, self.child(&["receive", &home, &next])?));
        empty(&self.dir.join(home))?;
        let home = self.dir.join(format!("init-{round}"));
        let mut init = Command::new(REFIT);
        init.arg("--home").arg(&home).arg("init").arg(package(&self.dir, &BASE));
        init.arg("--root").arg(self.dir.join("keys/1.root.json"));
        samples.push((INIT, self.measure(&init)?));
        empty(&home)?;
        Ok(samples)
    }

    fn child(&self, words: &[&str]) -> Result<Sample, BenchError> {
        let mut command = Command::new(this_program()?);
        command.arg(words[0]).arg(&self.dir).args(&words[1..]);
        self.measure(&command)
    }

    /// Measures a command, in a process that has no other children.
    pub(crate) fn measure(&self, command: &Command) -> Result<Sample, BenchError> {
        FileSystem::of(&self.dir).and_then(FileSystem::sync).map_err(failed("sync"))?;
        let mut outer = Command::new(this_program()?);
        outer.arg("measure").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                outer.env(name, value);
            }
        }
        let text = run(&mut outer)?;
        let figures = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        let figure = |name| figures.as_ref().and_then(|figures| figures[name].as_u64());
        let time = |name| figure(name).map(Duration::from_micros);
        match (time("wall_us"), time("cpu_us"), figure("peak_kib")) {
            (Some(wall), Some(cpu), Some(peak_kib)) => Ok(Sample { wall, cpu, peak_kib }),
            _no_figures => Err(BenchError::Figures(text)),
        }
    }

    pub(crate) fn about(&self) -> Value {
        json!({ "files": self.files, "bytes": self.bytes, "package_bytes": self.package_bytes })
    }

    pub(crate) fn in_words(&self) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        format!("{} files, {:.1} MB; the package has {:.1} MB", self.files, mb(self.bytes), mb(self.package_bytes))
    }
}

/// Makes every file of a tree empty: its space is free again, and nothing is removed.
pub(crate) fn empty(dir: &Path) -> Result<(), BenchError> {
    for entry in fs::read_dir(dir).map_err(failed("read a directory"))? {
        let path = entry.map_err(failed("read a directory"))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(failed("look at a file"))?;
        if metadata.is_dir() {
            empty(&path)?;
        } else if metadata.is_file() && metadata.len() > 0 {
            fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed("set permissions"))?;
            drop(File::create(&path).map_err(failed("empty a file"))?);
        }
    }
    Ok(())
}

fn package(dir: &Path, version: &Version) -> PathBuf {
    dir.join(format!("bench-{version}.refit"))
}

/// Does what this program does as a child of itself.
pub(crate) fn child(mode: &str, words: &[String]) -> Result<(), BenchError> {
    match (mode, words) {
        ("measure", [program, words @ ..]) => measure_child(program, words),
        ("floor", [dir, to]) => {
            let dir = Path::new(dir);
            floor::unpack(&package(dir, &BASE), &dir.join("list"), &dir.join(to))
        }
        ("home", [dir, home]) => {
            let (dir, home) = (Path::new(dir), Path::new(dir).join(home));
            Store::init(&home).map_err(refit_failed("make a home"))?;
            let root = fs::read(dir.join("keys/1.root.json")).map_err(failed("read the root"))?;
            Trust::install_root(&home, &root).map(drop).map_err(refit_failed("trust the root"))
        }
        ("receive", [dir, home, version]) => {
            let version = Version::parse(version).map_err(refit_failed("read a version"))?;
            install(Path::new(dir), home, &version)
        }
        _other => Err(BenchError::Figures(mode.to_owned())),
    }
}

fn measure_child(program: &str, words: &[String]) -> Result<(), BenchError> {
    let begun = Instant::now();
    let status = Command::new(program).args(words).stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.map_err(failed("start a program"))?;
    let wall = begun.elapsed();
    if !status.success() {
        return Err(BenchError::Command { program: program.to_owned(), status, output: "see above".to_owned() });
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(io::Error::from).map_err(failed("ask for the memory"))?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    let cpu = micros(usage.user_time()) + micros(usage.system_time());
    let figures = json!({ "wall_us": wall.as_micros(), "cpu_us": cpu, "peak_kib": usage.max_rss() });
    writeln!(io::stdout().lock(), "{figures}").map_err(failed("print"))
}

/// Receives a package and gives the release its name, as the runtime does.
fn install(dir: &Path, home: &str, version: &Version) -> Result<(), BenchError> {
    let home = dir.join(home);
    let store = Store::open(&home).map_err(refit_failed("open the home"))?;
    let trust = Trust::open(&home).map_err(refit_failed("open the trust"))?;
    let policy = Policy {
        appliance: Some("bench".to_owned()),
        arch: std::env::consts::ARCH.to_owned(),
        current: None,
        allow_downgrade: false,
        expired: Expired::Warn,
        now: refit_base::clock::now(),
    };
    let file = File::open(package(dir, version)).map_err(failed("open the package"))?;
    let receiver =
        Receiver { store: &store, trust: &trust, policy: &policy, cancel: &AtomicBool::new(false), room: None };
    let received = receiver.receive_file(file, &mut |_| {}).map_err(refit_failed("receive the package"))?;
    store.admit(received, &[]).map_err(refit_failed("admit the release"))?;
    Ok(())
}
