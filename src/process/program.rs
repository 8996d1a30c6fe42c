//! Whether a file is a program that the kernel executes, as far as its head tells: what a copy that was cut short leaves is none, nor is a
//! text without an interpreter. Shells run such a text all the same; the runtime is never given to one.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use refit_updater::mount;

/// So much of a script's first line says what its interpreter is: the kernel reads no more.
const FIRST_LINE_MAX: usize = 256;
/// So many parts a program is described in at most. The kernel takes 64 KiB of descriptions.
const SEGMENTS_MAX: u16 = 1170;
/// What a program that has one begins with is loaded.
const PT_LOAD: u32 = 1;
/// The program that loads the rest.
const PT_INTERP: u32 = 3;

/// Why a file is not a program.
#[derive(Debug)]
pub enum Unfit {
    /// Nobody can tell: it is missing, or cannot be looked at.
    Unknown(io::Error),
    /// It is a directory, a pipe or the like.
    NotAFile,
    /// It is empty.
    Empty,
    /// Nobody may execute it.
    Mode,
    /// Nothing may be executed where it lies.
    NoExec,
    /// It is neither a binary program nor a script that names its interpreter.
    Format,
    /// A part of it is missing.
    Cut,
    /// What is to interpret or load it cannot.
    Interpreter(PathBuf),
}

impl fmt::Display for Unfit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(error) => error.fmt(formatter),
            Self::NotAFile => formatter.write_str("it is not a regular file"),
            Self::Empty => formatter.write_str("it is empty"),
            Self::Mode => formatter.write_str("nobody may execute it"),
            Self::NoExec => formatter.write_str("it lies on a file system that is mounted noexec"),
            Self::Format => formatter.write_str("it is not a program"),
            Self::Cut => formatter.write_str("its end is missing"),
            Self::Interpreter(path) => write!(formatter, "its interpreter {} cannot be executed", path.display()),
        }
    }
}

/// Finds out whether the file at `path` is a program.
///
/// # Errors
/// Why it is not.
pub fn look(path: &Path) -> Result<(), Unfit> {
    let length = look_from_outside(path)?;
    if mount::is_noexec(path) {
        return Err(Unfit::NoExec);
    }
    let file = match File::open(path) {
        Ok(file) => file,
        // A program may be executed by those who may not read it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        Err(error) => return Err(Unfit::Unknown(error)),
    };
    let mut head = [0; FIRST_LINE_MAX];
    let count = read_up_to(&file, &mut head, 0).map_err(Unfit::Unknown)?;
    let head = &head[..count];
    match head {
        [b'#', b'!', line @ ..] => look_at_script(line),
        [0x7f, b'E', b'L', b'F', ..] => look_at_binary(&file, head, length),
        _ => Err(Unfit::Format),
    }
}

/// Returns whether the file at `path` is a program.
#[must_use]
pub fn is_program(path: &Path) -> bool {
    look(path).is_ok()
}

/// Returns the length of a file that may be executed.
fn look_from_outside(path: &Path) -> Result<u64, Unfit> {
    let found = fs::metadata(path).map_err(Unfit::Unknown)?;
    if !found.is_file() {
        Err(Unfit::NotAFile)
    } else if found.len() == 0 {
        Err(Unfit::Empty)
    } else if found.permissions().mode() & 0o111 == 0 {
        Err(Unfit::Mode)
    } else {
        Ok(found.len())
    }
}

/// Looks at the rest of a first line, after `#!`.
fn look_at_script(line: &[u8]) -> Result<(), Unfit> {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_start();
    let name = line.split(|byte| byte.is_ascii_whitespace() || *byte == 0).next().unwrap_or_default();
    if name.is_empty() { Err(Unfit::Format) } else { look_at_interpreter(name) }
}

fn look_at_interpreter(name: &[u8]) -> Result<(), Unfit> {
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    look_from_outside(path).map(drop).map_err(|_| Unfit::Interpreter(path.to_owned()))
}

/// Looks at an ELF file: whether everything is there that is loaded, and the program that loads the rest.
fn look_at_binary(file: &File, head: &[u8], length: u64) -> Result<(), Unfit> {
    let head = Fields { bytes: head, is_wide: head.get(4) == Some(&2), is_big: head.get(5) == Some(&2) };
    // Executables are of type 2, those that may lie anywhere of type 3.
    if !matches!(head.short(16).ok_or(Unfit::Cut)?, 2 | 3) {
        return Err(Unfit::Format);
    }
    let begin = head.long(32, 28).ok_or(Unfit::Cut)?;
    let [size, count] = if head.is_wide { [54, 56] } else { [42, 44] };
    let size = head.short(size).ok_or(Unfit::Cut)?;
    let count = head.short(count).ok_or(Unfit::Cut)?;
    if count == 0 || count > SEGMENTS_MAX || usize::from(size) != if head.is_wide { 56 } else { 32 } {
        return Err(Unfit::Format);
    }
    let mut table = vec![0; usize::from(size) * usize::from(count)];
    if read_up_to(file, &mut table, begin).map_err(Unfit::Unknown)? < table.len() {
        return Err(Unfit::Cut);
    }
    for segment in table.chunks_exact(usize::from(size)) {
        let segment = Fields { bytes: segment, ..head };
        let kind = segment.word(0).ok_or(Unfit::Cut)?;
        let offset = segment.long(8, 4).ok_or(Unfit::Cut)?;
        let bytes = segment.long(32, 16).ok_or(Unfit::Cut)?;
        if matches!(kind, PT_LOAD | PT_INTERP) && offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(Unfit::Cut);
        }
        if kind == PT_INTERP {
            let mut name = vec![0; usize::try_from(bytes).unwrap_or(0).min(FIRST_LINE_MAX)];
            let count = read_up_to(file, &mut name, offset).map_err(Unfit::Unknown)?;
            look_at_interpreter(name[..count].split(|byte| *byte == 0).next().unwrap_or_default())?;
        }
    }
    Ok(())
}

/// Numbers in an ELF file, of 4 or 8 bytes where addresses are, in one of two orders.
#[derive(Clone, Copy)]
struct Fields<'a> {
    bytes: &'a [u8],
    is_wide: bool,
    is_big: bool,
}

impl Fields<'_> {
    fn array<const COUNT: usize>(&self, at: usize) -> Option<[u8; COUNT]> {
        let mut bytes: [u8; COUNT] = self.bytes.get(at..at.checked_add(COUNT)?)?.try_into().ok()?;
        if self.is_big {
            bytes.reverse();
        }
        Some(bytes)
    }

    fn short(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// Returns the number at `wide`, or in a program of 32 bits at `narrow`.
    fn long(&self, wide: usize, narrow: usize) -> Option<u64> {
        if self.is_wide { self.array(wide).map(u64::from_le_bytes) } else { self.word(narrow).map(u64::from) }
    }
}

/// Reads until `bytes` is full or the file ends. Returns how many there were.
fn read_up_to(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < bytes.len() {
        let offset = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        match file.read_at(&mut bytes[count..], offset) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test does to the disk what anybody may")]
mod tests {
    use super::*;

    fn put(path: &Path, bytes: &[u8]) {
        drop(fs::remove_file(path));
        fs::write(path, bytes).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }

    #[test]
    fn programs_are_told_from_what_is_left_of_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("refit");
        let whole = fs::read("/bin/sh").expect("read");
        let own = fs::read(std::env::current_exe().expect("this program")).expect("read");
        for (bytes, is_fit) in [
            (&whole[..], true),
            (&own[..], true),
            (b"#!/bin/sh\necho\n", true),
            (b"#! /bin/sh -e", true),
            (b"", false),
            (b"hello\n", false),
            (b"#!", false),
            (b"#!\n/bin/sh\n", false),
            (b"#!/nonexistent\n", false),
            (b"#!/tmp\n", false),
            (&whole[..4], false),
            (&whole[..17], false),
            (&whole[..64], false),
            (&whole[..whole.len() / 2], false),
            (&own[..1 << 20], false),
            (&[0; 1 << 16], false),
        ] {
            put(&file, bytes);
            let found = look(&file);
            let begins = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]);
            assert_eq!(found.is_ok(), is_fit, "{} bytes, {begins:?}: {found:?}", bytes.len());
        }
        assert!(matches!(look(dir.path()), Err(Unfit::NotAFile)));
        assert!(matches!(look(&dir.path().join("none")), Err(Unfit::Unknown(_))));
        put(&file, &whole);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(matches!(look(&file), Err(Unfit::Mode)));
    }

    #[test]
    fn every_shorter_copy_of_a_head_is_read_without_harm() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("refit");
        let whole = fs::read("/bin/sh").expect("read");
        for length in 1..1024 {
            put(&file, &whole[..length]);
            assert!(!is_program(&file), "{length} bytes");
        }
    }
}
