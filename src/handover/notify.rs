//! The service manager's notification protocol, both ends: `KEY=value` lines in one datagram, descriptors beside them.
//!
//! The runtime speaks it to the guard exactly as it would to systemd (`READY`, `STATUS`, `WATCHDOG`, `FDSTORE`,
//! `FDSTOREREMOVE`, `FDNAME`), and components speak it to the runtime (`READY`, `STATUS`, `STOPPING`, ...). Source: sd_notify(3).
//!
//! The kernel says with each datagram who sent it; a receiver asks for that by [`identify`] before anybody can send, and decides
//! whom it believes.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg, sockopt};

use super::fd;
pub use super::fd::Sender;

/// The longest datagram that is read: systemd's own limit is a page.
pub const DATAGRAM_BYTES_MAX: usize = 4096;
/// How many descriptors one datagram may carry here: ours carry one. Those of one that carries more are closed.
pub const DATAGRAM_FDS_MAX: usize = 16;

/// One notification.
#[derive(Debug, Default)]
pub struct Notification {
    /// The lines, in order.
    pub fields: Vec<(String, String)>,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// Who sent it, as the kernel says. `None` if the kernel does not know: nobody can tell then whether to believe it.
    pub sender: Option<Sender>,
    /// It was longer than [`DATAGRAM_BYTES_MAX`]: nothing of it is here, because half a line could say something else.
    pub truncated: bool,
}

impl Notification {
    /// Returns the last value of `key`: a later line wins.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Returns the notification that `bytes` say, without descriptors.
    pub fn of(bytes: &[u8]) -> Self {
        Self { fields: Self::parse(bytes), ..Self::default() }
    }

    fn parse(bytes: &[u8]) -> Vec<(String, String)> {
        String::from_utf8_lossy(bytes)
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}

/// Sends `text` with `descriptors` over `socket`, which is connected.
///
/// # Errors
/// The other end is gone; it has no room, and does not block or has waited long enough.
pub fn send(socket: impl AsFd, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, text, descriptors, SendFlags::empty())
}

/// Sends as [`send`] does, and never waits.
///
/// # Errors
/// `WouldBlock` if there is no room; the other end is gone, or the system refuses it.
pub fn try_send(socket: impl AsFd, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, text, descriptors, SendFlags::DONTWAIT)
}

fn send_with(socket: impl AsFd, text: &str, descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DATAGRAM_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors in one notification"));
    }
    sendmsg(socket.as_fd(), &[IoSlice::new(text.as_bytes())], &mut ancillary, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Has the kernel say of each datagram that is sent to `socket` from now on who sent it. For the moment before the socket has a
/// name: what was sent before comes without a sender.
///
/// # Errors
/// It is not a Unix socket.
pub fn identify(socket: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_passcred(socket, true)?)
}

/// Says of senders that are not believed, a line for each of the first few: what anybody can send must not fill a log.
#[derive(Debug, Default)]
pub struct Refused(BTreeSet<(u32, i32)>);

impl Refused {
    /// Returns whether it is time to say that `sender` is not believed.
    pub fn is_news(&mut self, sender: Option<Sender>) -> bool {
        /// One more line would tell nothing new.
        const TOLD_MAX: usize = 8;
        let sender = sender.map_or((0, 0), |sender| (sender.uid, sender.pid));
        self.0.len() < TOLD_MAX && self.0.insert(sender)
    }
}

/// Binds the socket at `path` for this account alone, whatever the umask, so that it knows each sender.
///
/// # Errors
/// It cannot be bound.
pub fn bind(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    identify(&socket)?;
    super::unix::with_short_path(path, |path| Ok(rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Receives one notification; the descriptors are close-on-exec.
///
/// # Errors
/// `WouldBlock` if there is none and the socket does not block.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Notification> {
    let mut bytes = [0; DATAGRAM_BYTES_MAX];
    let fd::Message { length, truncated, mut descriptors, sender } = fd::receive(socket, &mut bytes)?;
    if truncated {
        return Ok(Notification { truncated, sender, ..Notification::default() });
    }
    if descriptors.len() > DATAGRAM_FDS_MAX {
        descriptors.clear();
    }
    Ok(Notification { descriptors, sender, ..Notification::of(&bytes[..length]) })
}

/// Returns a socket connected to the address in `NOTIFY_SOCKET`: a path, or `@` and an abstract name. Sending waits at most
/// `write_limit` for a place in the other end's queue: one that hangs must not hang its clients.
///
/// # Errors
/// The address is of another kind, or nobody is there.
pub fn connect(address: &Path, write_limit: Duration) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_os_str().as_bytes().split_first() {
        Some((b'@', name)) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        Some((b'/', _)) => super::unix::with_short_path(address, |path| socket.connect(path))?,
        Some(_) | None => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path and not an abstract name"));
        }
    }
    socket.set_write_timeout(Some(write_limit))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_descriptors_arrive_together() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let file = tempfile::tempfile().expect("a file");
        send(&ours, "FDSTORE=1\nFDNAME=http", &[file.as_fd()]).expect("sent");
        let received = receive(theirs.as_fd()).expect("received");
        assert_eq!(received.get("FDNAME"), Some("http"));
        assert_eq!(received.descriptors.len(), 1);
        assert_eq!(received.sender, None, "nobody asked the kernel who sends");
    }

    #[test]
    fn the_kernel_says_who_sends() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        send(&ours, "READY=1", &[]).expect("sent");
        identify(&theirs).expect("a Unix socket");
        assert_eq!(receive(theirs.as_fd()).expect("received").sender, None, "sent before");
        let file = tempfile::tempfile().expect("a file");
        send(&ours, "READY=1", &[file.as_fd()]).expect("sent");
        let received = receive(theirs.as_fd()).expect("received");
        assert_eq!((received.get("READY"), received.descriptors.len()), (Some("1"), 1));
        let (pid, uid) = (rustix::process::getpid().as_raw_pid(), rustix::process::getuid().as_raw());
        assert_eq!(received.sender, Some(Sender { pid, uid, gid: rustix::process::getgid().as_raw() }));
    }

    #[test]
    fn a_flood_of_senders_is_a_few_lines() {
        let mut refused = Refused::default();
        let sender = |pid| Some(Sender { pid, uid: 1, gid: 1 });
        assert!(refused.is_news(sender(1)) && !refused.is_news(sender(1)) && refused.is_news(None));
        assert_eq!((2..10_000).filter(|pid| refused.is_news(sender(*pid))).count(), 6);
    }

    #[test]
    fn too_many_descriptors_are_closed() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        for count in [DATAGRAM_FDS_MAX + 1, 253] {
            let many = vec![writer.as_fd(); count];
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(count))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
            sendmsg(&ours, &[IoSlice::new(b"FDSTORE=1")], &mut ancillary, SendFlags::empty()).expect("sent");
            let received = receive(theirs.as_fd()).expect("received");
            assert_eq!((received.get("FDSTORE"), received.descriptors.len()), (Some("1"), 0));
        }
        drop(writer);
        assert_eq!(rustix::io::read(&reader, &mut [0]).expect("read"), 0, "nobody holds the other end any more");
    }

    #[test]
    fn one_that_is_too_long_says_nothing() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let text = format!("READY=1\nSTATUS={}", "x".repeat(DATAGRAM_BYTES_MAX));
        send(&ours, &text, &[]).expect("sent");
        send(&ours, "READY=1", &[]).expect("sent");
        let received = receive(theirs.as_fd()).expect("received");
        assert!(received.truncated && received.get("READY").is_none());
        assert_eq!(receive(theirs.as_fd()).expect("received").get("READY"), Some("1"));
    }

    #[test]
    fn a_later_line_wins_and_noise_is_passed_over() {
        let notification = Notification::of(b"STATUS=a\nnoise\nSTATUS=b=c\n");
        assert_eq!(notification.get("STATUS"), Some("b=c"));
        assert_eq!(notification.get("READY"), None);
    }
}
