//! What a release brings along from the machine that it was made on: machine code, and paths that no other machine has.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use refit_base::file_error;
use refit_updater::manifest::ARCH_ANY;
use serde::Serialize;

use super::PackError;
use super::tree::{self, SourceFile, Tree};

/// The beginning of a file that tells what it is: the longest first line of a script (`BINPRM_BUF_SIZE` of Linux).
const BEGINNING_BYTES: u64 = 256;
/// Permissions to execute.
const EXECUTE: u32 = 0o111;
/// What others need to read a file.
const READ: u32 = 0o004;
/// What others need to use a directory.
const READ_AND_ENTER: u32 = 0o005;
/// Where every machine has its interpreters.
const SYSTEM_DIRECTORIES: [&str; 5] = ["/bin", "/sbin", "/usr", "/lib", "/opt"];
/// The file that makes a directory a virtual environment of Python.
const VIRTUAL_ENVIRONMENT: &str = "pyvenv.cfg";
/// `EM_BPF` of elf.h: code for the kernel's own machine, which is the same everywhere.
const EM_BPF: u16 = 247;
/// `ELFCLASS64` of elf.h.
const ELFCLASS64: u8 = 2;

/// What was found in the directory of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The machines that it has code for, as `std::env::consts::ARCH` names them.
    pub machines: BTreeSet<String>,
    /// What may not work elsewhere.
    pub warnings: Vec<Warning>,
    /// What an account that does not own it cannot read or enter; of a directory that is closed only the directory.
    pub closed: Vec<Closed>,
}

/// A file or directory that only its owner can read or enter, or its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The path in the release.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
}

/// Something in a release that may not work on another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The path in the release.
    pub path: String,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.problem)
    }
}

impl Examined {
    /// Returns the machine that the release is for: `any` if it has no machine code, `own` if it has code for that.
    ///
    /// # Errors
    /// It has code for several other machines.
    pub fn machine(&self, own: &str) -> Result<String, PackError> {
        if self.machines.contains(own) {
            return Ok(own.to_owned());
        }
        let mut machines = self.machines.iter();
        match (machines.next(), machines.next()) {
            (None, _) => Ok(ARCH_ANY.to_owned()),
            (Some(only), None) => Ok(only.clone()),
            (Some(_), Some(_)) => Err(PackError::Machines { machines: self.machines.iter().cloned().collect() }),
        }
    }

    /// Returns a warning if the release is packed for `machine`, and has code for others only.
    #[must_use]
    pub fn contradiction(&self, machine: &str) -> Option<String> {
        let fits = self.machines.is_empty() || self.machines.contains(machine);
        let found = || self.machines.iter().map(String::as_str).collect::<Vec<_>>().join(" and ");
        (!fits).then(|| format!("it is packed for {machine}, and has machine code for {} only", found()))
    }
}

/// Examines the release in `dir`.
///
/// # Errors
/// It cannot be read, or holds what no release may.
pub fn examine(dir: &Path) -> Result<Examined, PackError> {
    let build_dir = dir.canonicalize().map_err(file_error("find", dir))?;
    let (mut machines, mut warnings) = (BTreeSet::new(), Vec::new());
    let tree = tree::walk(dir)?;
    let closed = closed(&tree);
    for file in tree.files {
        let beginning = beginning(&file.path).map_err(file_error("read", &file.path))?;
        machines.extend(machine_of(&beginning));
        let problem = script_problem(&file, &beginning, &build_dir).or_else(|| environment_problem(&file, &beginning));
        warnings.extend(problem.map(|problem| Warning { path: file.name, problem }));
    }
    Ok(Examined { machines, warnings, closed })
}

/// Returns what is closed to others.
fn closed(tree: &Tree) -> Vec<Closed> {
    let directories = tree.directories.iter().map(|directory| (&directory.path, directory.mode, READ_AND_ENTER));
    let entries = directories.chain(tree.files.iter().map(|file| (&file.name, file.mode, READ)));
    let is_closed = entries.filter(|(_, mode, wanted)| mode.bits() & wanted != *wanted);
    let mut all: Vec<Closed> =
        is_closed.map(|(path, mode, _)| Closed { path: path.clone(), mode: mode.bits() }).collect();
    all.sort_by(|one, other| one.path.cmp(&other.path));
    let paths: BTreeSet<String> = all.iter().map(|closed| closed.path.clone()).collect();
    all.retain(|closed| !closed.path.match_indices('/').any(|(end, _)| paths.contains(&closed.path[..end])));
    all
}

fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut beginning = Vec::new();
    File::open(path)?.take(BEGINNING_BYTES).read_to_end(&mut beginning)?;
    Ok(beginning)
}

/// Returns the machine that an ELF file is for, by the header of elf(5).
fn machine_of(beginning: &[u8]) -> Option<String> {
    let header = beginning.get(..20)?;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let bytes = [header[18], header[19]];
    let number = if header[5] == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
    let is_64 = header[4] == ELFCLASS64;
    let name = match number {
        EM_BPF => return None,
        2 | 18 => "sparc",
        3 => "x86",
        4 => "m68k",
        8 if is_64 => "mips64",
        8 => "mips",
        20 => "powerpc",
        21 => "powerpc64",
        22 => "s390x",
        40 => "arm",
        43 => "sparc64",
        62 => "x86_64",
        164 => "hexagon",
        183 => "aarch64",
        243 if is_64 => "riscv64",
        243 => "riscv32",
        252 => "csky",
        258 if is_64 => "loongarch64",
        258 => "loongarch32",
        other => return Some(format!("machine {other} of ELF")),
    };
    Some(name.to_owned())
}

/// Returns what is wrong with an interpreter that a script names.
fn script_problem(file: &SourceFile, beginning: &[u8], build_dir: &Path) -> Option<String> {
    let is_executable = file.mode.bits() & EXECUTE != 0;
    let script = beginning.strip_prefix(b"#!").filter(|_| is_executable)?;
    let remedy = "begin it with `#!/usr/bin/env NAME`, or name the interpreter in the component's command";
    interpreters(&String::from_utf8_lossy(script)).into_iter().find_map(|(how, interpreter)| {
        let path = Path::new(&interpreter);
        let is_common = SYSTEM_DIRECTORIES.iter().any(|common| path.starts_with(common));
        let what = if path.starts_with(build_dir) {
            "a path in the directory that is packed"
        } else if !path.is_absolute() {
            "which is found from the working directory only"
        } else if is_common {
            return None;
        } else {
            "a path of this machine"
        };
        Some(format!("begins with {how}{interpreter}, {what}: {remedy}"))
    })
}

/// Returns the interpreters that `script`, without its `#!`, names in its beginning, each with what stands before it: the one that the
/// kernel starts, the one that env(1) starts in its place, and the one that a shell becomes at once, as pip has it do where the
/// first line would be too long for the kernel.
fn interpreters(script: &str) -> Vec<(String, String)> {
    let mut lines = script.lines();
    let first = lines.next().unwrap_or_default();
    let mut words = first.split_whitespace();
    let Some(kernels) = words.next() else { return Vec::new() };
    let mut found = vec![("#!".to_owned(), kernels.to_owned())];
    if Path::new(kernels).file_name().is_some_and(|name| name == "env") {
        let program = words.map(unquoted).find(|word| !word.starts_with('-') && !word.contains('='));
        found.extend(program.filter(|word| word.contains('/')).map(|word| (format!("#!{kernels} "), word)));
    }
    let becomes = lines.map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let mut words = becomes.unwrap_or_default().split_whitespace().map(unquoted);
    if words.next().is_some_and(|word| word == "exec") {
        found.extend(words.next().filter(|word| word.starts_with('/')).map(|word| ("exec ".to_owned(), word)));
    }
    found
}

fn unquoted(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '\'' | '"')).collect()
}

/// Returns what is wrong with a virtual environment of Python, if this file makes its directory one.
fn environment_problem(file: &SourceFile, beginning: &[u8]) -> Option<String> {
    let is_one = file.path.file_name().is_some_and(|name| name == VIRTUAL_ENVIRONMENT);
    let text = String::from_utf8_lossy(beginning);
    let home = text.lines().find_map(|line| line.strip_prefix("home")?.trim_start().strip_prefix('='))?.trim();
    is_one.then(|| {
        format!("makes its directory a virtual environment of the Python in {home}, a path of this machine: install with `pip install --target`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(class: u8, order: u8, machine: u16) -> Vec<u8> {
        let mut header = vec![0x7f, b'E', b'L', b'F', class, order];
        header.resize(18, 0);
        header.extend(if order == 2 { machine.to_be_bytes() } else { machine.to_le_bytes() });
        header
    }

    #[test]
    fn machine_code_is_known_by_its_header() {
        for (header, machine) in [
            (elf(2, 1, 62), Some("x86_64")),
            (elf(2, 1, 183), Some("aarch64")),
            (elf(1, 1, 40), Some("arm")),
            (elf(2, 2, 22), Some("s390x")),
            (elf(1, 1, 243), Some("riscv32")),
            (elf(2, 1, 243), Some("riscv64")),
            (elf(2, 1, EM_BPF), None),
            (elf(2, 1, 9999), Some("machine 9999 of ELF")),
            (elf(2, 1, 62)[..19].to_vec(), None),
            (b"#!/bin/sh\nexit 0; more than twenty bytes\n".to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(machine_of(&header).as_deref(), machine, "{header:?}");
        }
    }

    #[test]
    fn every_interpreter_that_a_script_begins_with_is_known() {
        for (script, expected) in [
            ("/bin/sh\necho exec /build/python", "#!/bin/sh"),
            (" /build/bin/python -I\n", "#!/build/bin/python"),
            ("/usr/bin/env python3\n", "#!/usr/bin/env"),
            ("/usr/bin/env -S A=b /build/python -I\n", "#!/usr/bin/env|#!/usr/bin/env /build/python"),
            ("/usr/bin/env -S \"/build/python\" -I\n", "#!/usr/bin/env|#!/usr/bin/env /build/python"),
            ("/bin/sh\n\'\'\'exec\' \"/build/python\" \"$0\" \"$@\"\n\' \'\'\'\n", "#!/bin/sh|exec /build/python"),
            ("/bin/bash\n# a word\n\n  exec /build/python \"$0\"\n", "#!/bin/bash|exec /build/python"),
            ("/bin/sh\nexec \"$HERE/python\"\n", "#!/bin/sh"),
            ("", ""),
        ] {
            let found: Vec<String> = interpreters(script).into_iter().map(|(how, path)| how + &path).collect();
            assert_eq!(found.join("|"), expected, "{script:?}");
        }
    }

    #[test]
    fn a_release_is_for_the_machine_that_it_has_code_for() {
        let with = |machines: &[&str]| Examined {
            machines: machines.iter().map(|machine| (*machine).to_owned()).collect(),
            warnings: Vec::new(),
            closed: Vec::new(),
        };
        for (machines, machine) in
            [(&[][..], "any"), (&["x86_64"], "x86_64"), (&["aarch64"], "aarch64"), (&["aarch64", "x86_64"], "x86_64")]
        {
            assert_eq!(with(machines).machine("x86_64").unwrap(), machine, "{machines:?}");
        }
        let error = with(&["aarch64", "riscv64"]).machine("x86_64").unwrap_err();
        assert!(error.to_string().contains("aarch64, riscv64"), "{error}");
        assert_eq!(with(&["aarch64", "x86_64"]).contradiction("x86_64"), None);
        assert_eq!(with(&[]).contradiction("riscv64"), None);
        assert!(with(&["aarch64"]).contradiction("any").is_some());
    }
}
