//! Descriptor number -> [`OwnedFd`]: with [`spawn`](super::spawn) the only `unsafe` code of the crate.
//!
//! Descriptors cross an exec as numbers, by the convention of `LISTEN_FDS`: from 3 on, without gaps. [`take`] makes owned
//! descriptors of them at the start of a process, [`place`] puts owned descriptors there just before an exec. Everything else
//! in the process is close-on-exec at all times. [`receive`] owns what comes with a message. [`default_signals`] is here because it,
//! too, takes what types cannot say.

#![expect(unsafe_code, reason = "that a descriptor number is ours cannot be shown in types")]

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The first descriptor that is handed over; 0 to 2 are the standard streams.
pub const FIRST: RawFd = 3;
/// How many descriptors may be handed over: more than any appliance has listeners, components and parked connections, and below
/// the usual limit of 1,024 open files.
pub const HANDED_OVER_MAX: usize = 700;

/// The most descriptors that the kernel puts into one message: its `SCM_MAX_FD`.
const MESSAGE_FDS_MAX: usize = 253;

/// Returns whether the other end of a Unix stream socket has not read all that was written here.
///
/// # Errors
/// It is not such a socket.
pub fn has_unread(socket: impl AsFd) -> io::Result<bool> {
    use nix::libc;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed, and the kernel writes one number where `bytes` is (unix(7), SIOCOUTQ).
    let code = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes > 0) }
}

/// Whether [`take`] has been called: a number may become an owned descriptor only once.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Returns the `count` descriptors from [`FIRST`] on that the process was started with, close-on-exec from now on, and closes
/// every other one except the standard streams.
///
/// # Errors
/// It was called before, `count` is out of range, or one of them is not open. The first two change nothing.
pub fn take(count: usize) -> io::Result<Vec<OwnedFd>> {
    if count > HANDED_OVER_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{count} descriptors are too many")));
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("the inherited descriptors were taken before"));
    }
    let end = FIRST + RawFd::try_from(count).unwrap_or(0);
    for number in open_numbers()? {
        if number >= end {
            // SAFETY: this runs once, before the process opened anything: no other owner of the number exists.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    let mut taken = Vec::with_capacity(count);
    for number in FIRST..end {
        // SAFETY: only looked at while this function runs; a number that is not open is an error of the call below.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl_getfd(borrowed)?;
        fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
        // SAFETY: the number is open, and `TAKEN` makes this the only place and time that it becomes owned.
        taken.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(taken)
}

/// Puts `descriptors` at the numbers from [`FIRST`] on, in order, without close-on-exec, and makes everything above them
/// close-on-exec. For the moment before an exec: the caller is the only thread, and owns no other descriptor that it will
/// use again.
///
/// # Errors
/// The process has too few descriptors left. Then some may be closed: the caller has lost them.
pub fn place(descriptors: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    if descriptors.len() > HANDED_OVER_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors to hand over"));
    }
    let end = FIRST + RawFd::try_from(descriptors.len()).unwrap_or(0);
    // First out of the way, so that no target is the source of another.
    let mut aside = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        aside.push(fcntl_dupfd_cloexec(&descriptor, end)?);
    }
    let mut placed = Vec::with_capacity(aside.len());
    for (descriptor, number) in aside.into_iter().zip(FIRST..) {
        // SAFETY: whoever owned the target number closed it above or, by this function's contract, never uses it again.
        let target = unsafe { nix::unistd::dup2_raw(&descriptor, number) }?;
        placed.push(target);
    }
    seal_from(end)?;
    Ok(placed)
}

/// Makes descriptors that [`place`] has put in order close-on-exec again, after an exec that did not happen.
///
/// # Errors
/// One of them is not open any more.
pub fn withdraw(placed: &[OwnedFd]) -> io::Result<()> {
    for descriptor in placed {
        fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
    }
    Ok(())
}

/// Lets go of `descriptor` so that it stays open under its number over an exec.
///
/// # Errors
/// It is not open.
pub fn keep_over_exec(descriptor: OwnedFd) -> io::Result<RawFd> {
    fcntl_setfd(descriptor.as_fd(), FdFlags::empty())?;
    Ok(descriptor.into_raw_fd())
}

/// Makes every open descriptor from `end` on close-on-exec.
///
/// # Errors
/// The list of open descriptors cannot be read.
pub fn seal_from(end: RawFd) -> io::Result<()> {
    for number in open_numbers()? {
        if number >= end {
            // SAFETY: only its flag is changed; a number that was closed meanwhile is an error we pass over.
            let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
            if let Err(error) = fcntl_setfd(borrowed, FdFlags::CLOEXEC)
                && error != Errno::BADF
            {
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// Returns `descriptor` so that a task can wait until it is readable.
///
/// # Errors
/// It is of a kind that cannot be waited for.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor as long as it lives, and the `AsyncFd` owns it from here on.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Who sent a message, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// The process, as it was numbered when it sent.
    pub pid: i32,
    /// Its account.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// One message of a Unix socket.
#[derive(Debug)]
pub struct Message {
    /// How many bytes of it were received.
    pub length: usize,
    /// Whether it had more bytes.
    pub truncated: bool,
    /// The descriptors that came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Who sent it. `None` if the socket did not ask for that when it was sent, or the process is outside of what this one sees.
    pub sender: Option<Sender>,
}

/// Receives one message of `socket` into `bytes`. Every descriptor that came with it is owned by what is returned.
///
/// # Errors
/// Those of `recvmsg(2)`: `WouldBlock` if there is none and the socket does not block.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Message> {
    use nix::libc;
    /// Room for all that can come: the sender's credentials and the most descriptors, each with its header.
    const CONTROL_WORDS: usize = (64 + MESSAGE_FDS_MAX * size_of::<RawFd>()).div_ceil(size_of::<u64>());
    let mut control = [0_u64; CONTROL_WORDS]; // aligned as the headers have to be
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is an empty header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: the header names two buffers with their lengths, which live and are borrowed until after the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    let truncated = header.msg_flags & libc::MSG_TRUNC != 0;
    let mut message = Message { length: length.min(bytes.len()), truncated, descriptors: Vec::new(), sender: None };
    // SAFETY: the kernel has filled in `header`, and `control` still lives.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: not null, so it is a whole header within `control`, which is aligned for it.
        let (kind, begin, size) = unsafe { (*next, libc::CMSG_DATA(next), libc::CMSG_LEN(0) as usize) };
        let size = kind.cmsg_len.saturating_sub(size);
        match (kind.cmsg_level, kind.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for index in 0..size / size_of::<RawFd>() {
                    // SAFETY: within the data of this header. The kernel has just opened the number for this message, so that it
                    // has no other owner; each is read once.
                    let descriptor = unsafe { OwnedFd::from_raw_fd(begin.cast::<RawFd>().add(index).read_unaligned()) };
                    message.descriptors.push(descriptor);
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if size >= size_of::<libc::ucred>() => {
                // SAFETY: within the data of this header, and every bit pattern is a `ucred`.
                let from = unsafe { begin.cast::<libc::ucred>().read_unaligned() };
                message.sender = (from.pid > 0).then_some(Sender { pid: from.pid, uid: from.uid, gid: from.gid });
            }
            (_, _) => {}
        }
        // SAFETY: as for the first one.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok(message)
}

/// Returns the numbers of all open descriptors from [`FIRST`] on, without the one that this look needed.
fn open_numbers() -> io::Result<Vec<RawFd>> {
    let mut numbers: Vec<RawFd> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    // The directory's own descriptor was in the list and is closed by now.
    numbers.retain(|number| *number >= FIRST && fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok());
    Ok(numbers)
}

/// Which signals are given back their default action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signals {
    /// All: for a program that is executed next.
    All,
    /// All but `SIGPIPE`, which a Rust program ignores: a write to a closed pipe is an error there.
    AllButPipe,
    /// The one that says that a child has ended: who ignores it never learns how.
    Child,
}

/// The highest signal of Linux.
const SIGNALS_MAX: i32 = 64;

/// What the kernel keeps of a signal: handler, flags, restorer and mask. All zero is the default action.
type Action = [u64; 4];

/// Sets the action of the signal `number` if there is a `new` one. Returns the one before.
fn action(number: i32, new: Option<&Action>) -> Result<Action, Errno> {
    use nix::libc;
    /// The kernel's set of signals, in bytes.
    const SET_BYTES: usize = 8;
    let mut found: Action = [0; 4];
    let new = new.map_or(std::ptr::null(), |new| new.as_ptr());
    // SAFETY: the kernel reads and writes no more than the four words of its structure, which both have or which are null; only the default
    // action is ever set, which runs no code. The C library's own call would refuse the two signals that it keeps for itself.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, number, new, found.as_mut_ptr(), SET_BYTES) };
    if result == 0 { Ok(found) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
}

/// Gives signals that are ignored their default action again: what this process's parent ignored, this one and all that it
/// executes would ignore, too. Handlers stay.
///
/// # Errors
/// The system refuses it for a signal that it has.
pub fn default_signals(which: Signals) -> io::Result<()> {
    use nix::libc;
    // The kernel tells of all at once, where there is `/proc`.
    let ignored = ignored_signals().unwrap_or(u64::MAX);
    for number in (1..=SIGNALS_MAX).filter(|number| is_in(ignored, *number)) {
        let wanted = match which {
            Signals::All => true,
            Signals::AllButPipe => number != libc::SIGPIPE,
            Signals::Child => number == libc::SIGCHLD,
        };
        if !wanted || number == libc::SIGKILL || number == libc::SIGSTOP {
            continue; // the last two nobody can change
        }
        if action(number, None)?[0] == libc::SIG_IGN as u64 {
            default_signal(number)?;
        }
    }
    Ok(())
}

/// Returns whether the signal `number` is in `set`.
const fn is_in(set: u64, number: i32) -> bool {
    set & (1 << (number - 1)) != 0
}

/// Returns the signals that this process ignores, a bit each; `None` if the kernel does not say.
fn ignored_signals() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

/// Gives the signal `number` its default action. Takes no memory and no lock.
pub(super) fn default_signal(number: i32) -> Result<(), Errno> {
    action(number, Some(&[0; 4])).map(drop)
}

/// Returns the signals that this process ignores or has a handler for, a bit each, that of signal 1 the lowest: what a child that shares
/// its memory must not begin with. They are looked at once, and those that handlers come for later are always among them.
///
/// # Errors
/// The system does not say.
pub(super) fn handled_signals() -> io::Result<u64> {
    use nix::libc;
    /// The async runtime and this program have handlers for these, at some time or other.
    const OURS: [i32; 8] = [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGCHLD,
        libc::SIGXFSZ,
        libc::SIGPIPE,
    ];
    static FOUND: OnceLock<u64> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let mut found = 0;
    for number in (1..=SIGNALS_MAX).filter(|number| *number != libc::SIGKILL && *number != libc::SIGSTOP) {
        if OURS.contains(&number) || action(number, None)?[0] != libc::SIG_DFL as u64 {
            found |= 1 << (number - 1);
        }
    }
    Ok(*FOUND.get_or_init(|| found))
}

/// Returns whether `listener` gives its server only connections that bring data: `TCP_DEFER_ACCEPT` of tcp(7).
pub fn defers_accept(listener: &TcpListener) -> bool {
    use nix::libc;
    let (mut seconds, mut length): (libc::c_int, libc::socklen_t) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes to `seconds`, which is so long.
    let result = unsafe {
        let to = std::ptr::from_mut(&mut seconds).cast();
        libc::getsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, to, &raw mut length)
    };
    result == 0 && seconds > 0
}

/// Has `listener` keep connections to itself that bring no data.
#[cfg(test)]
pub(crate) fn defer_accept(listener: &TcpListener) {
    use nix::libc;
    let seconds: libc::c_int = 5;
    // SAFETY: the kernel reads as many bytes of `seconds` as it has.
    let result = unsafe {
        let from = std::ptr::from_ref(&seconds).cast();
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, from, length)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Has the kernel drop what comes to `socket` from the network from now on, as if it were lost on the way.
///
/// # Errors
/// The kernel refuses.
pub fn keep_out(socket: &TcpListener) -> io::Result<()> {
    use nix::libc;
    // "Return nothing of the packet": the shortest program of a filter (socket(7), `SO_ATTACH_FILTER`).
    let mut nothing = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    // SAFETY: the kernel reads `program` and the one instruction that it points to, and both outlive the call.
    let result = unsafe {
        let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
        let from = std::ptr::from_ref(&program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, from, length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Undoes [`keep_out`].
///
/// # Errors
/// The kernel refuses.
pub fn let_in(socket: &TcpListener) -> io::Result<()> {
    use nix::libc;
    let nothing: libc::c_int = 0;
    // SAFETY: the kernel reads as many bytes of `nothing` as it has.
    let result = unsafe {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        let from = std::ptr::from_ref(&nothing).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, from, length)
    };
    let error = io::Error::last_os_error();
    let was_none = error.raw_os_error() == Some(libc::ENOENT);
    if result == 0 || was_none { Ok(()) } else { Err(error) }
}

/// Returns the number of the file behind `descriptor`: for a socket the number that `ss` and `/proc/net/tcp` show.
///
/// # Errors
/// It is not open.
pub fn inode(descriptor: &impl AsRawFd) -> io::Result<u64> {
    // SAFETY: borrowed for this call from a value that owns it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor.as_raw_fd()) };
    Ok(rustix::fs::fstat(borrowed)?.st_ino)
}
