//! Releases as a vendor writes them, and their packages, each made once in the life of the test process.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

/// The program under test.
pub(crate) const REFIT: &str = env!("CARGO_BIN_EXE_refit");

const SHOP_OLD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shop-1.0.0"));
const SHOP_NEW: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shop-1.1.0"));
const STOCK: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stock"));
const CRASH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/crash"));

/// A component of which a test decides everything: see its own text.
const PART: &str = include_str!("release/part.py");

/// A component on the bus of which a test decides everything: see its own text.
const MEMBER: &str = include_str!("peers/member.py");
/// The client that comes with the documentation of the protocol.
const REFIT_BUS: &str = include_str!("../../fixtures/peers/refit_bus.py");

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Content {
    Bytes(Vec<u8>),
    /// A file of the fixtures that can be executed.
    Script(Vec<u8>),
    Program(&'static [u8]),
    /// The program under test, with a label at its end: another file that does the same.
    Refit(String),
}

/// A release, before it is packed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Release {
    appliance: String,
    version: String,
    runtime: bool,
    listeners: Vec<(String, SocketAddr)>,
    channels: Vec<String>,
    components: Vec<(String, String)>,
    files: BTreeMap<String, Content>,
    stranger: bool,
    /// Its `appliance.toml`, where a test does not have it written.
    toml: Option<String>,
}

/// The address of a listener that every appliance gives its own.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Release {
    /// Returns a release without components and with no runtime of its own.
    pub(crate) fn bare(version: &str) -> Self {
        Self {
            appliance: "shop".to_owned(),
            version: version.to_owned(),
            runtime: false,
            listeners: vec![("admin".to_owned(), ANY)],
            channels: Vec::new(),
            components: Vec::new(),
            files: BTreeMap::new(),
            stranger: false,
            toml: None,
        }
    }

    /// Returns the small shop. Releases with an even minor number have the older program and price list.
    pub(crate) fn shop(version: &str) -> Self {
        Self::shop_with(version, "")
    }

    /// Returns the small shop with arguments for its program.
    pub(crate) fn shop_with(version: &str, arguments: &str) -> Self {
        let minor: u32 = version.split('.').nth(1).and_then(|text| text.parse().ok()).expect("a version");
        let command = format!(
            "command = [\"bin/shop\"{arguments}]\nlisteners = [\"http\"]\nafter = [\"stock\"]\nready = \"notify\"\n\
             handover = \"overlap\"\nstop_timeout = \"10s\""
        );
        let program = if minor.is_multiple_of(2) { SHOP_OLD } else { SHOP_NEW };
        Self::bare(version)
            .listener("http")
            .component("stock", "command = [\"bin/stock\"]\nready = \"notify\"")
            .component("shop", &command)
            .program("bin/shop", program)
            .program("bin/stock", STOCK)
            .file("lib/prices.txt", &format!("# prices of {version}\ncompass | {minor}.00\nrope | 8.50\n"))
            .file("share/style.css", "body { font-family: sans-serif }\n")
            .file(
                "config/shop.toml",
                &format!(
                    "# What the shop says first.\ngreeting = \"Welcome to {version}.\"\n\n# Untouched.\nunit = \"m\"\n"
                ),
            )
    }

    /// Returns the small shop with a `refit` of its own, which differs from every other version's.
    pub(crate) fn voyage(version: &str) -> Self {
        Self::shop(version).with_a_runtime()
    }

    /// Gives it a `refit` of its own, which differs from every other version's.
    pub(crate) fn with_a_runtime(mut self) -> Self {
        self.runtime = true;
        let label = format!("refit of {}", self.version);
        self.with("bin/refit", Content::Refit(label))
    }

    /// Returns the small shop with a `refit` that crashes as soon as it runs for real.
    pub(crate) fn crashing(version: &str) -> Self {
        let mut release = Self::shop(version);
        release.runtime = true;
        release.with("bin/refit", Content::Program(CRASH))
    }

    /// Returns the release in `dir` of the fixtures, with its addresses replaced by these: name, text, address.
    pub(crate) fn fixture(dir: &str, version: &str, addresses: &[(&str, &str, SocketAddr)]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/appliances").join(dir);
        let mut release = Self::bare(version);
        release.listeners = addresses.iter().map(|(name, _, address)| ((*name).to_owned(), *address)).collect();
        release = release.dir("", &root);
        let Some(Content::Bytes(bytes)) = release.files.remove("appliance.toml") else { panic!("no appliance.toml") };
        let mut text = String::from_utf8(bytes).expect("text");
        for (_, placeholder, address) in addresses {
            assert!(text.contains(placeholder), "{placeholder} is not in {dir}/appliance.toml");
            text = text.replace(placeholder, &address.to_string());
        }
        let lines = text.lines().map(|line| match line.strip_prefix("version = ") {
            Some(_) => format!("version = \"{version}\"\n"),
            None => format!("{line}\n"),
        });
        release.toml = Some(lines.collect());
        release
    }

    /// Has its `appliance.toml` be this.
    pub(crate) fn written_as(mut self, toml: &str) -> Self {
        self.toml = Some(toml.to_owned());
        self
    }

    /// Has `change` change its `appliance.toml`, which was written, or came from a fixture.
    ///
    /// Panics if that changes nothing.
    pub(crate) fn rewritten(mut self, change: impl FnOnce(&str) -> String) -> Self {
        let was = self.toml.take().expect("an appliance.toml of its own");
        let now = change(&was);
        assert_ne!(was, now, "appliance.toml was changed");
        self.toml = Some(now);
        self
    }

    /// Has `change` change a file of text.
    ///
    /// Panics if that changes nothing.
    pub(crate) fn changed(self, path: &str, change: impl FnOnce(&str) -> String) -> Self {
        let Some(Content::Bytes(bytes)) = self.files.get(path) else { panic!("no file of text {path}") };
        let was = String::from_utf8(bytes.clone()).expect("text");
        let now = change(&was);
        assert_ne!(was, now, "{path} was changed");
        self.file(path, &now)
    }

    /// Adds every file below `root`, as `below/` and its path there.
    pub(crate) fn dir(mut self, below: &str, root: &Path) -> Self {
        let mut dirs = vec![root.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())).flatten() {
                if entry.path().is_dir() {
                    dirs.push(entry.path());
                    continue;
                }
                let path = Path::new(below).join(entry.path().strip_prefix(root).expect("below the root"));
                let bytes = fs::read(entry.path()).expect("read a fixture");
                let mode = entry.metadata().expect("it is there").permissions().mode();
                let content = if mode & 0o111 == 0 { Content::Bytes(bytes) } else { Content::Script(bytes) };
                self = self.with(path.to_str().expect("text"), content);
            }
        }
        self
    }

    /// Gives it another appliance's name.
    pub(crate) fn of_appliance(mut self, name: &str) -> Self {
        self.appliance = name.to_owned();
        self
    }

    /// Has somebody sign it whom no appliance knows.
    pub(crate) fn by_a_stranger(mut self) -> Self {
        self.stranger = true;
        self
    }

    /// Adds a listener; its address is the appliance's own.
    pub(crate) fn listener(mut self, name: &str) -> Self {
        self.listeners.push((name.to_owned(), ANY));
        self
    }

    /// Adds a listener at this address.
    pub(crate) fn listener_at(mut self, name: &str, address: SocketAddr) -> Self {
        self.listeners.push((name.to_owned(), address));
        self
    }

    /// Declares channels of its own.
    pub(crate) fn channels(mut self, names: &[&str]) -> Self {
        self.channels.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Adds a component that runs `peers/member.py` with these arguments, and with these further keys. It may listen where the arguments say
    /// that it does, unless a key says where.
    pub(crate) fn member(self, name: &str, arguments: &[&str], keys: &str) -> Self {
        let words: String = arguments.iter().map(|word| format!(", \"{word}\"")).collect();
        let listens = |channel: &&&str| arguments.iter().any(|word| word.starts_with(&format!("{channel}=")));
        let channels: Vec<&&str> = ["start", "stop", "exit", "reload"].iter().filter(listens).collect();
        let listen = if keys.contains("listen = ") { String::new() } else { format!("listen = {channels:?}\n") };
        let command = format!("command = [\"python3\", \"lib/member.py\"{words}]\nready = \"notify\"\n{listen}{keys}");
        self.component(name, &command).file("lib/member.py", MEMBER).file("lib/refit_bus.py", REFIT_BUS)
    }

    /// Adds a component with these keys.
    pub(crate) fn component(mut self, name: &str, keys: &str) -> Self {
        self.components.push((name.to_owned(), keys.to_owned()));
        self
    }

    /// Adds a component that runs `release/part.py` with these arguments, and with these further keys.
    pub(crate) fn part(self, name: &str, arguments: &[&str], keys: &str) -> Self {
        let words: String = arguments.iter().map(|word| format!(", \"{word}\"")).collect();
        let command =
            format!("command = [\"python3\", \"lib/part.py\", \"{name}\"{words}]\nready = \"notify\"\n{keys}");
        self.component(name, &command).file("lib/part.py", PART)
    }

    /// Adds a file of text, or replaces it.
    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        self.with(path, Content::Bytes(text.as_bytes().to_vec()))
    }

    /// Adds a script that can be executed.
    pub(crate) fn program_text(self, path: &str, text: &'static str) -> Self {
        self.program(path, text.as_bytes())
    }

    fn program(self, path: &str, bytes: &'static [u8]) -> Self {
        self.with(path, Content::Program(bytes))
    }

    fn with(mut self, path: &str, content: Content) -> Self {
        self.files.insert(path.to_owned(), content);
        self
    }

    /// Returns its listeners; one with port 0 is given a port by each appliance.
    pub(crate) fn listeners(&self) -> &[(String, SocketAddr)] {
        &self.listeners
    }

    /// Returns its version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Returns whether it has the component `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.components.iter().any(|(other, _)| other == name)
    }

    /// Returns its package, made at the first call.
    pub(crate) fn package(&self) -> PathBuf {
        /// Each with a number of its own, given when it is first asked for.
        type Made = Mutex<HashMap<Release, Arc<(usize, OnceLock<PathBuf>)>>>;
        static MADE: LazyLock<Made> = LazyLock::new(Mutex::default);
        let slot = {
            let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
            let number = made.len();
            Arc::clone(made.entry(self.clone()).or_insert_with(|| Arc::new((number, OnceLock::new()))))
        };
        let (number, slot) = &*slot;
        slot.get_or_init(|| {
            let vendor = Vendor::get();
            let dir = vendor.dir.join(format!("release-{number}"));
            self.write(&dir);
            let package = vendor.dir.join(format!("{}-{}-{number}.refit", self.appliance, self.version));
            let keys = if self.stranger { "stranger" } else { "keys" };
            let keys = vendor.dir.join(keys);
            let (tree, out) = (dir.as_os_str(), package.as_os_str());
            let words = ["pack".as_ref(), tree, "-o".as_ref(), out, "--keys".as_ref(), keys.as_os_str()];
            run(Command::new(REFIT).args(words).args(["--level", "1"]));
            fs::remove_dir_all(dir).expect("remove the tree");
            package
        })
        .clone()
    }

    /// Writes it as a vendor has it before it is packed.
    pub(crate) fn write(&self, dir: &Path) {
        for (path, content) in &self.files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("below the release")).expect("make a directory");
            let (bytes, mode) = match content {
                Content::Bytes(bytes) => (bytes.clone(), 0o644),
                Content::Script(bytes) => (bytes.clone(), 0o755),
                Content::Program(bytes) => (bytes.to_vec(), 0o755),
                Content::Refit(label) => {
                    let mut bytes = fs::read(REFIT).expect("read the program under test");
                    // What follows the last section of an ELF file is not loaded.
                    bytes.extend_from_slice(label.as_bytes());
                    (bytes, 0o755)
                }
            };
            fs::write(&path, bytes).expect("write a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set its mode");
        }
        fs::create_dir_all(dir).expect("make the directory");
        fs::write(dir.join("appliance.toml"), self.toml()).expect("write appliance.toml");
    }

    fn toml(&self) -> String {
        if let Some(text) = &self.toml {
            return text.clone();
        }
        let mut text = format!("[appliance]\nname = \"{}\"\nversion = \"{}\"\n", self.appliance, self.version);
        if self.runtime {
            text.push_str("\n[runtime]\nbinary = \"bin/refit\"\n");
        }
        text.push_str("\n[listeners]\n");
        for (name, address) in &self.listeners {
            text.push_str(&format!("{name} = \"{address}\"\n"));
        }
        if !self.channels.is_empty() {
            text.push_str(&format!("\n[bus]\nchannels = {:?}\n", self.channels));
        }
        for (name, keys) in &self.components {
            text.push_str(&format!("\n[[component]]\nname = \"{name}\"\n{keys}\n"));
        }
        text
    }
}

/// The vendor who makes the packages: keys, and a directory for what is made.
pub(crate) struct Vendor {
    dir: PathBuf,
    /// Its directory, locked for as long as this process lives: a process ID is given to another one later.
    _lock: File,
}

impl Vendor {
    /// Returns the one vendor of this test process.
    pub(crate) fn get() -> &'static Self {
        static VENDOR: OnceLock<Vendor> = OnceLock::new();
        VENDOR.get_or_init(|| {
            let dirs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vendors");
            fs::create_dir_all(&dirs).expect("make the directory of vendors");
            let alone = File::open(&dirs).expect("open the directory of vendors");
            alone.lock().expect("wait for the other test processes");
            // Nothing is dropped at the end of a test process, so the next one cleans up after it.
            for entry in fs::read_dir(&dirs).expect("list the vendors").flatten() {
                if File::open(entry.path()).is_ok_and(|left| left.try_lock().is_ok()) {
                    fs::remove_dir_all(entry.path()).ok(); // it may be another account's
                }
            }
            let readable = fs::Permissions::from_mode(0o755);
            let dir = tempfile::Builder::new().permissions(readable).tempdir_in(&dirs);
            let dir = dir.expect("make the vendor's directory").keep();
            let lock = File::open(&dir).expect("open the vendor's directory");
            lock.lock().expect("lock the vendor's directory");
            drop(alone);
            for keys in ["keys", "stranger"] {
                run(Command::new(REFIT).args(["keys", "init"]).arg(dir.join(keys)));
            }
            Self { dir, _lock: lock }
        })
    }

    /// Returns the directory of its keys.
    pub(crate) fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    /// Returns the root of trust that appliances are given.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("keys/1.root.json")
    }
}

/// Returns a copy of `package` in `dir` in which one byte of the contents is another.
pub(crate) fn with_one_byte_changed(package: &Path, dir: &Path) -> PathBuf {
    let copy = dir.join("hostile.refit");
    fs::copy(package, &copy).expect("copy the package");
    let mut file = fs::OpenOptions::new().read(true).write(true).open(&copy).expect("open the copy");
    // The contents are the last and the longest entry.
    let at = SeekFrom::End(-i64::try_from(file.metadata().expect("its size").len() / 4).expect("no giant"));
    let mut byte = [0];
    file.seek(at).expect("seek");
    file.read_exact(&mut byte).expect("read a byte");
    file.seek(at).expect("seek");
    file.write_all(&[byte[0] ^ 1]).expect("write a byte");
    copy
}

/// Returns a copy of `package` in `dir` in which every signature's first digit is another.
pub(crate) fn with_a_signature_changed(package: &Path, dir: &Path) -> PathBuf {
    const BEGIN: &[u8] = b"\"sig\":";
    let mut bytes = fs::read(package).expect("read the package");
    let places: Vec<usize> =
        bytes.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the package has signatures");
    for at in places {
        let quote = at + BEGIN.len() + bytes[at + BEGIN.len()..].iter().position(|byte| *byte == b'"').expect("a text");
        bytes[quote + 1] = if bytes[quote + 1] == b'0' { b'1' } else { b'0' };
    }
    let copy = dir.join("forged.refit");
    fs::write(&copy, bytes).expect("write the copy");
    copy
}

/// Returns the first half of `package`, in `dir`.
pub(crate) fn truncated(package: &Path, dir: &Path) -> PathBuf {
    let copy = dir.join("truncated.refit");
    let bytes = fs::read(package).expect("read the package");
    fs::write(&copy, &bytes[..bytes.len() / 2]).expect("write half of it");
    copy
}

fn run(command: &mut Command) {
    let output = command.env_clear().output().expect("start refit");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
