//! The moment between two process images.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::inherit::VARIABLES;
use super::{Named, fd};

/// The last line of an image that replaces itself begins so, after the program's name. The guard keeps what follows it: the
/// output of the next image.
pub const EXECUTING: &str = "executing ";

/// What is executed, and with what.
#[derive(Debug)]
pub struct Plan {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, the name first.
    pub arguments: Vec<OsString>,
    /// Its environment, without the variables of the handover.
    pub environment: Vec<(OsString, OsString)>,
    /// What it is handed.
    pub descriptors: Vec<Named>,
}

/// Replaces this process image. Returns only if that failed: why, and the descriptors.
///
/// `last` is done when the descriptors are in their places, just before the exec: what it takes away is not needed any more.
///
/// The caller is the only thread of the process. All signals are blocked from here on and stay so in the next image, until it
/// has handlers: one that comes meanwhile waits.
pub fn replace(plan: Plan, last: impl FnOnce()) -> (io::Error, Vec<Named>) {
    let Plan { program, arguments, mut environment, descriptors } = plan;
    let (names, owned): (Vec<String>, Vec<OwnedFd>) =
        descriptors.into_iter().map(|part| (part.name, part.descriptor)).unzip();
    let placed = match block_signals().and_then(|()| fd::place(owned)) {
        Ok(placed) => placed,
        Err(error) => return (error, Vec::new()),
    };
    last();
    environment.retain(|(key, _)| !VARIABLES.iter().any(|variable| key == variable));
    environment.push(("LISTEN_PID".into(), std::process::id().to_string().into()));
    environment.push(("LISTEN_FDS".into(), placed.len().to_string().into()));
    environment.push(("LISTEN_FDNAMES".into(), names.join(":").into()));
    let failed = match execute(&program, &arguments, &environment) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    // No image was replaced: this one goes on with what it had.
    let failed = fd::withdraw(&placed).err().unwrap_or(failed);
    let descriptors = names.into_iter().zip(placed).map(|(name, descriptor)| Named { name, descriptor }).collect();
    (failed, descriptors)
}

/// Blocks every signal of this thread.
///
/// # Errors
/// Never on Linux; the call has a result.
pub fn block_signals() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)
}

/// Lets signals through to this thread again.
///
/// # Errors
/// Never on Linux; the call has a result.
pub fn unblock_signals() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// Executes the file `program` in this process, as execve(2) does: no shell interprets one that the kernel does not take.
///
/// # Errors
/// Why it does not. This process goes on.
pub(crate) fn execute(
    program: &Path,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
) -> io::Result<std::convert::Infallible> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::from);
    let program = text(program.as_os_str().as_bytes().to_vec())?;
    let arguments: Vec<CString> =
        arguments.iter().map(|word| text(word.as_bytes().to_vec())).collect::<io::Result<_>>()?;
    let environment: Vec<CString> = environment
        .iter()
        .map(|(key, value)| {
            let mut pair = key.clone();
            pair.push("=");
            pair.push(value);
            text(pair.into_vec())
        })
        .collect::<io::Result<_>>()?;
    Ok(nix::unistd::execve(&program, &arguments, &environment)?)
}
