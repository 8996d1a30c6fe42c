//! Other ways to bring the same files to the disk: tar, and two updaters where they are installed.
//!
//! A peer that is not there, or cannot be prepared, has no row; what is missing is said on standard error. RAUC mounts what
//! it installs into and needs root and a message bus of its own for that.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use refit_base::Chain;
use refit_updater::durable;
use tempfile::TempDir;

use crate::work::{Work, empty};
use crate::{BenchError, Sample, failed, run};

/// How long a service may take to answer.
const START_MAX: Duration = Duration::from_secs(10);
/// How often it is asked.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// What each slot of RAUC has room for: the payload twice.
const SLOT_BYTES: u64 = 600 << 20;

/// One way to install.
pub(crate) struct Peer {
    name: &'static str,
    command: Command,
    /// The directory that it unpacks into, if it is one of ours: there before each run, with nothing in it.
    out: Option<PathBuf>,
    /// What runs meanwhile, the process that does the work last.
    services: Vec<Child>,
    /// Where they talk to each other.
    _meeting: Option<TempDir>,
}

impl Peer {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Measures one run.
    pub(crate) fn round(&mut self, work: &Work, round: usize) -> Result<Sample, BenchError> {
        if let Some(out) = &self.out {
            fs::create_dir(out).map_err(failed("make a directory"))?;
        }
        let mut sample = work.measure(&self.command)?;
        if let Some(service) = self.services.last() {
            // The command only asks the service, which does the work.
            let status = fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let peak = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
            sample.peak_kib = sample.peak_kib.max(peak.unwrap_or_default());
        }
        if let Some(out) = &self.out {
            empty(out)?;
            durable::rename(out, &out.with_extension(round.to_string())).map_err(failed("move a directory aside"))?;
        }
        Ok(sample)
    }

    /// Ends its services.
    pub(crate) fn end(mut self) -> Result<(), BenchError> {
        for service in self.services.iter_mut().rev() {
            service.kill().map_err(failed("end a service"))?;
            service.wait().map_err(failed("wait for a service"))?;
        }
        self.services.clear();
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for service in &mut self.services {
            drop(service.kill()); // after a failure, which is reported already
            drop(service.wait());
        }
    }
}

/// Prepares every peer that is there.
pub(crate) fn all(work: &Work) -> Result<Vec<Peer>, BenchError> {
    let (gzip, zstd) = (work.dir.join("payload.tar.gz"), work.dir.join("payload.tar.zst"));
    let plain = work.dir.join("payload.tar");
    run(Command::new("tar").args(["--sort=name", "-cf"]).arg(&plain).arg("-C").arg(&work.tree).arg("."))?;
    let mut peers = Vec::new();
    let mut shell = |name, out, text: String| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(text);
        peers.push(Peer { name, command, out, services: Vec::new(), _meeting: None });
    };
    shell("sha256sum of the files, as one tar", None, format!("exec sha256sum {}", plain.display()));
    let unpacked = |name| work.dir.join(name);
    run(Command::new("sh").arg("-c").arg(format!("gzip -c {} > {}", plain.display(), gzip.display())))?;
    let out = unpacked("out-gz");
    let text = format!("tar xzf {} -C {} && sync -f {}", gzip.display(), out.display(), out.display());
    shell("tar xzf + sync", Some(out), text);
    if there("zstd") {
        run(Command::new("zstd").args(["-q", "-3", "-T0"]).arg(&plain).arg("-o").arg(&zstd))?;
        let out = unpacked("out-zst");
        let text = format!("tar --zstd -xf {} -C {} && sync -f {}", zstd.display(), out.display(), out.display());
        shell("tar --zstd -xf + sync", Some(out), text);
    }
    for (program, prepare) in [("swupdate", swupdate as fn(&Work, &Path) -> _), ("rauc", rauc)] {
        let prepared: Result<Peer, BenchError> = if there(program) {
            prepare(work, &gzip)
        } else {
            Err(BenchError::Io { what: "find it", source: io::Error::from(io::ErrorKind::NotFound) })
        };
        match prepared {
            Ok(peer) => peers.push(peer),
            Err(error) => drop(writeln!(io::stderr().lock(), "install: without {program}: {}", Chain(&error))),
        }
    }
    Ok(peers)
}

fn there(program: &str) -> bool {
    Command::new("sh")
        .arg("-c")
        .arg(format!("command -v {program}"))
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed("write a file"))
}

/// Makes a key and a certificate with openssl.
fn certificate(dir: &Path) -> Result<(PathBuf, PathBuf), BenchError> {
    let (key, certificate) = (dir.join("key.pem"), dir.join("cert.pem"));
    let words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=bench"];
    let usage = ["-addext", "extendedKeyUsage=emailProtection"];
    run(Command::new("openssl").args(words).args(usage).arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
    Ok((key, certificate))
}

/// An update of swupdate: a signed description with the digest of one archive, which is unpacked while it is read.
fn swupdate(work: &Work, archive: &Path) -> Result<Peer, BenchError> {
    let dir = work.dir.join("swupdate");
    fs::create_dir(&dir).map_err(failed("make a directory"))?;
    fs::hard_link(archive, dir.join("payload.tar.gz")).map_err(failed("link the archive"))?;
    let sum = run(Command::new("sha256sum").arg(archive))?;
    let sum = sum.split(' ').next().unwrap_or_default();
    let out = work.dir.join("out-swupdate");
    write(
        &dir.join("sw-description"),
        &format!(
            "software = {{ version = \"1.0.0\"; hardware-compatibility: [ \"1.0\" ]; images: ( {{ \
             filename = \"payload.tar.gz\"; type = \"archive\"; path = \"{}\"; sha256 = \"{sum}\"; }} ); }}\n",
            out.display()
        ),
    )?;
    let (key, certificate) = certificate(&dir)?;
    let mut sign = Command::new("openssl");
    sign.current_dir(&dir).args(["cms", "-sign", "-in", "sw-description", "-out", "sw-description.sig"]);
    sign.args(["-outform", "DER", "-nosmimecap", "-binary"]).arg("-signer").arg(&certificate).arg("-inkey").arg(&key);
    run(&mut sign)?;
    let text = "printf '%s\\n' sw-description sw-description.sig payload.tar.gz | cpio -o -H crc --quiet > update.swu";
    run(Command::new("sh").current_dir(&dir).arg("-c").arg(text))?;
    let mut command = Command::new("sh");
    let (update, certificate, to) = (dir.join("update.swu"), certificate.display(), out.display());
    // It does not sync what an archive leaves, so that is added, as it is to the tars.
    let update = update.display();
    command.arg("-c").arg(format!("swupdate -i {update} -H board:1.0 -k {certificate} -M -m && sync -f {to}"));
    Ok(Peer { name: "swupdate, an archive + sync", command, out: Some(out), services: Vec::new(), _meeting: None })
}

/// A bundle of RAUC with the archive, installed into a slot that is a file.
fn rauc(work: &Work, archive: &Path) -> Result<Peer, BenchError> {
    let dir = work.dir.join("rauc");
    let content = dir.join("content");
    fs::create_dir_all(&content).map_err(failed("make a directory"))?;
    fs::hard_link(archive, content.join("payload.tar.gz")).map_err(failed("link the archive"))?;
    let manifest = "[update]\ncompatible=bench\nversion=1.0.0\n\n[image.rootfs]\nfilename=payload.tar.gz\n";
    write(&content.join("manifest.raucm"), manifest)?;
    let (key, certificate) = certificate(&dir)?;
    let bundle = dir.join("update.raucb");
    let mut make = Command::new("rauc");
    make.arg("--cert").arg(&certificate).arg("--key").arg(&key).arg("bundle").arg(&content).arg(&bundle);
    run(&mut make)?;
    let mut slots = String::new();
    for (number, name) in ["A", "B"].iter().enumerate() {
        let slot = dir.join(name);
        File::create(&slot).and_then(|file| file.set_len(SLOT_BYTES)).map_err(failed("make a slot"))?;
        let slot = slot.display();
        slots.push_str(&format!("[slot.rootfs.{number}]\ndevice={slot}\ntype=ext4\nbootname={name}\n"));
    }
    let (at, keyring) = (dir.display(), certificate.display());
    let config = format!(
        "[system]\ncompatible=bench\nbootloader=noop\nmountprefix={at}/mnt\nstatusfile={at}/status\n\
         [keyring]\npath={keyring}\n{slots}"
    );
    let config_path = dir.join("system.conf");
    write(&config_path, &config)?;
    let meeting = tempfile::tempdir().map_err(failed("make a directory"))?; // the path of a socket is short
    let bus = meeting.path().join("bus");
    let address = format!("unix:path={}", bus.display());
    let bus_config = format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\"><busconfig><type>custom</type>\
         <listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
         <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>"
    );
    write(&dir.join("bus.conf"), &bus_config)?;
    let quiet = |command: &mut Command| {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        started.map_err(failed("start a service"))
    };
    let mut command = Command::new("rauc");
    command.arg("install").arg(&bundle).env("DBUS_SYSTEM_BUS_ADDRESS", &address);
    let mut peer =
        Peer { name: "rauc install, an archive into ext4", command, out: None, services: Vec::new(), _meeting: None };
    let mut daemon = Command::new("dbus-daemon");
    peer.services.push(quiet(daemon.arg("--nofork").arg("--config-file").arg(dir.join("bus.conf")))?);
    let begun = Instant::now();
    while !bus.exists() && begun.elapsed() < START_MAX {
        thread::sleep(ASK_AGAIN);
    }
    let mut service = Command::new("rauc");
    service.arg("-c").arg(&config_path).args(["service", "--override-boot-slot=A"]);
    peer.services.push(quiet(service.env("DBUS_SYSTEM_BUS_ADDRESS", &address))?);
    // The first installation is the proof that it works here; it is not counted.
    let mut last = peer.round(work, 0);
    while last.is_err() && begun.elapsed() < START_MAX {
        thread::sleep(ASK_AGAIN);
        last = peer.round(work, 0);
    }
    peer._meeting = Some(meeting);
    last.map(|_| peer)
}
