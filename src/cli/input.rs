//! A package that a command is given: a file, a pipe, or standard input.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::context::Context;

/// What stands for standard input on a command line; a file of that name is `./-`.
const STDIN: &str = "-";

/// A package that was named on the command line.
pub(super) struct Input {
    /// Where it is, as messages say it.
    path: PathBuf,
    is_stdin: bool,
}

impl Input {
    /// Returns what `named` means on the command line of `context`. Nothing is opened yet.
    pub(super) fn new(context: &Context, named: &Path) -> Self {
        if named == Path::new(STDIN) {
            return Self { path: PathBuf::from("standard input"), is_stdin: true };
        }
        Self::file(context.path(named))
    }

    /// Returns the file or pipe at `path`.
    pub(super) fn file(path: PathBuf) -> Self {
        Self { path, is_stdin: false }
    }

    /// Returns where it is, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it. Blocks: a named pipe has a writer then.
    ///
    /// # Errors
    /// It is not there, is a directory, or may not be read.
    pub(super) fn open(&self) -> io::Result<File> {
        // Duplicated, not opened by its name: that fails for a socket, and for another account's pipe.
        let file =
            if self.is_stdin { io::stdin().as_fd().try_clone_to_owned()?.into() } else { File::open(&self.path)? };
        if file.metadata()?.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(file) }
    }
}
