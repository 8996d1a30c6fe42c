//! Whose trouble a failure is.

use std::error::Error;
use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Whose trouble a failure is: what a release did counts against it, what the machine did not allow does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The release's: it would happen again.
    #[default]
    Release,
    /// The machine's, or that of somebody who works on it: a disk, memory, descriptors, processes, an address in use, a power cut, a
    /// kill from outside. The same release may do well the next time.
    Machine,
}

/// What the system says when it has no room, no rights left to give, or fails: whoever asked did nothing wrong.
const OF_THE_MACHINE: [Errno; 23] = [
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::IO,
    Errno::ROFS,
    Errno::XDEV,
    Errno::FBIG,
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOMEM,
    Errno::AGAIN,
    Errno::NOBUFS,
    Errno::BUSY,
    Errno::TXTBSY,
    Errno::STALE,
    Errno::NXIO,
    Errno::NODEV,
    Errno::NOLCK,
    Errno::MLINK,
    Errno::ADDRINUSE,
    Errno::ADDRNOTAVAIL,
    Errno::AFNOSUPPORT,
    Errno::NETDOWN,
    Errno::NETUNREACH,
];

impl Cause {
    /// Returns whose trouble `error` is, by the answers of the system among its causes.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.downcast_ref::<io::Error>().is_some_and(is_of_the_machine) {
                return Self::Machine;
            }
            cause = error.source();
        }
        Self::Release
    }

    /// Returns whose trouble the system's answer `number` is.
    pub fn of_errno(number: i32) -> Self {
        if OF_THE_MACHINE.iter().any(|errno| errno.raw_os_error() == number) { Self::Machine } else { Self::Release }
    }
}

/// Returns whether the system refused for a reason of its own. One that a library wrapped has lost its number, but not its kind.
fn is_of_the_machine(error: &io::Error) -> bool {
    if error.raw_os_error().is_some_and(|number| Cause::of_errno(number) == Cause::Machine) {
        return true;
    }
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
        return is_of_the_machine(inner);
    }
    let kinds = OF_THE_MACHINE.iter().map(|errno| io::Error::from_raw_os_error(errno.raw_os_error()).kind());
    let has_none = io::Error::from_raw_os_error(i32::MAX).kind();
    kinds.filter(|kind| *kind != has_none).any(|kind| kind == error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_error;

    #[test]
    fn what_the_system_refuses_is_the_machines_wherever_it_is_among_the_causes() {
        let no_room = || io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        let no_file = || io::Error::from_raw_os_error(Errno::NOENT.raw_os_error());
        let rows: Vec<(Box<dyn Error>, Cause)> = vec![
            (no_room().into(), Cause::Machine),
            (file_error("write", std::path::Path::new("state.json"))(no_room()).into(), Cause::Machine),
            (io::Error::other(no_room()).into(), Cause::Machine),
            (io::Error::new(no_room().kind(), "wrapped").into(), Cause::Machine),
            (io::Error::other(io::Error::from_raw_os_error(Errno::MFILE.raw_os_error())).into(), Cause::Machine),
            (no_file().into(), Cause::Release),
            (io::Error::other("no number").into(), Cause::Release),
            (file_error("read", std::path::Path::new("appliance.toml"))(no_file()).into(), Cause::Release),
        ];
        for (error, expected) in rows {
            assert_eq!(Cause::of(error.as_ref()), expected, "{error:?}");
        }
        assert_eq!((Cause::of_errno(98), Cause::of_errno(2)), (Cause::Machine, Cause::Release));
    }
}
