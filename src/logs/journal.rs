//! The system's journal: a line as one datagram of its native protocol, with the component's name.
//!
//! The guard finds out whether its standard error is the journal's, and tells the runtime the socket by [`VARIABLE`]: only
//! then lines go there, and no more to standard error, where the journal would get them a second time.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LogLine;

/// Where the journal receives datagrams.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// The variable that tells the runtime of the socket.
pub const VARIABLE: &str = "REFIT_JOURNAL";
/// The variable by which the service manager tells the device and inode of the journal's stream.
pub const STREAM_VARIABLE: &str = "JOURNAL_STREAM";
/// The priority of a line that says none: informational, as the journal has it for both streams.
const PRIORITY_DEFAULT: u8 = 6;
/// How long the journal may leave a line waiting: it is the writer of all components that waits.
const SEND_MAX: Duration = Duration::from_millis(100);

/// Returns whether `output` is the journal's stream that `announced` ([`STREAM_VARIABLE`]) names: somebody may have redirected
/// it since.
pub fn is_journal(announced: &str, output: impl AsFd) -> bool {
    let Some((device, inode)) = announced.split_once(':') else { return false };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else { return false };
    rustix::fs::fstat(output).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

/// The way to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    address: PathBuf,
}

impl Journal {
    /// Returns a way to the journal at `address`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new(address: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        Ok(Self { socket, address: address.to_owned() })
    }

    /// Sends a line of `component`.
    ///
    /// # Errors
    /// The journal is gone, or does not take it in time.
    pub(super) fn send(&self, component: &str, line: &LogLine) -> io::Result<()> {
        self.socket.send_to(&datagram(component, line), &self.address).map(drop)
    }
}

/// Returns a line as the journal's native protocol has it: `NAME=value`, or for a value with a line break the name, its length
/// and its bytes.
fn datagram(component: &str, line: &LogLine) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(line.line.len() + 256);
    let mut field = |name: &str, value: &str| {
        bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            bytes.push(b'\n');
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            bytes.push(b'=');
        }
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(b'\n');
    };
    field("MESSAGE", &line.line);
    field("PRIORITY", &line.priority.unwrap_or(PRIORITY_DEFAULT).to_string());
    field("SYSLOG_IDENTIFIER", component);
    field("REFIT_COMPONENT", component);
    field("REFIT_INSTANCE", &line.instance);
    field("REFIT_STREAM", line.stream.name());
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::Stream;
    use super::*;

    fn line(text: &str, priority: Option<u8>) -> LogLine {
        LogLine {
            seq: 1,
            at: "2026-01-01T00:00:00.000Z".to_owned(),
            stream: Stream::Stderr,
            instance: "web-2".to_owned(),
            line: text.to_owned(),
            priority,
            cut: false,
        }
    }

    #[test]
    fn a_line_is_a_datagram_of_fields() {
        assert_eq!(
            String::from_utf8(datagram("web", &line("no disk = bad", Some(3)))).expect("text"),
            "MESSAGE=no disk = bad\nPRIORITY=3\nSYSLOG_IDENTIFIER=web\nREFIT_COMPONENT=web\nREFIT_INSTANCE=web-2\n\
             REFIT_STREAM=stderr\n"
        );
        let bytes = datagram("web", &line("a\nPRIORITY=0", None));
        assert!(bytes.starts_with(b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\nPRIORITY=6\n"), "{bytes:?}");
    }

    #[test]
    fn a_line_arrives_and_a_journal_that_is_gone_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let address = dir.path().join("socket");
        let receiver = UnixDatagram::bind(&address).expect("bound");
        let journal = Journal::new(&address).expect("a way");
        journal.send("web", &line("hello", None)).expect("sent");
        let mut bytes = [0; 1024];
        let count = receiver.recv(&mut bytes).expect("received");
        assert!(bytes[..count].starts_with(b"MESSAGE=hello\n"));
        drop(receiver);
        assert!(journal.send("web", &line("hello", None)).is_err());
    }

    #[test]
    fn only_the_very_stream_is_the_journal() {
        let file = tempfile::tempfile().expect("a file");
        let stat = file.metadata().expect("its inode");
        for (announced, expected) in [
            (format!("{}:{}", stat.dev(), stat.ino()), true),
            (format!("{}:{}", stat.dev(), stat.ino() + 1), false),
            (format!("{}", stat.dev()), false),
            (String::new(), false),
            ("a:b".to_owned(), false),
        ] {
            assert_eq!(is_journal(&announced, &file), expected, "{announced:?}");
        }
    }
}
