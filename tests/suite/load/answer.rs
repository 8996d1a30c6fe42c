//! One HTTP/1 answer: from bytes to "whole and good", or to the kind of failure.

use std::fmt;
use std::io::{self, Read};
use std::net::TcpStream;
use std::time::Instant;

/// Bytes of an answer's head; more is no answer of ours.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Why a request has no whole 2xx answer.
#[derive(Debug)]
pub(super) enum Failure {
    Connect(io::ErrorKind),
    Reset { received: usize },
    EofBeforeResponse,
    EofMidResponse { received: usize },
    BadStatus(u16),
    BadResponse(&'static str),
    Timeout { received: usize },
    Other(io::ErrorKind),
    Generator,
}

impl Failure {
    /// Returns the kind of failure that `error` is, after `received` bytes of the answer.
    pub(super) fn from_io(error: &io::Error, received: usize) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WouldBlock};
        let kind = error.kind();
        if matches!(kind, ConnectionReset | BrokenPipe) {
            Self::Reset { received }
        } else if matches!(kind, WouldBlock | TimedOut) {
            Self::Timeout { received }
        } else {
            Self::Other(kind)
        }
    }

    fn from_eof(received: usize) -> Self {
        if received == 0 { Self::EofBeforeResponse } else { Self::EofMidResponse { received } }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(kind) => write!(f, "cannot connect: {kind}"),
            Self::Reset { received } => write!(f, "reset after {received} bytes"),
            Self::EofBeforeResponse => write!(f, "closed before a byte of the answer"),
            Self::EofMidResponse { received } => {
                write!(f, "closed after {received} bytes of the answer")
            }
            Self::BadStatus(status) => write!(f, "status {status}"),
            Self::BadResponse(why) => write!(f, "not an answer: {why}"),
            Self::Timeout { received } => {
                write!(f, "no whole answer in time, {received} bytes of it")
            }
            Self::Other(kind) => write!(f, "{kind}"),
            Self::Generator => write!(f, "a thread of the load panicked"),
        }
    }
}

/// A whole 2xx answer.
pub(super) struct Answer {
    /// What the version header said.
    pub(super) version: Option<String>,
    /// The server has announced that it closes the connection.
    pub(super) close: bool,
}

/// How an answer's body ends.
enum BodyEnd {
    Length(usize),
    Close,
}

impl Answer {
    /// Reads one answer to its end.
    ///
    /// # Errors
    /// It is not whole, not 2xx, or not there before `deadline`; the connection is of no further use.
    pub(super) fn read(stream: &mut TcpStream, version_header: &str, deadline: Instant) -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        let body_at = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if bytes.len() > HEAD_BYTES_MAX {
                return Err(Failure::BadResponse("its head has no end"));
            }
            if read_more(stream, &mut bytes, deadline)? == 0 {
                return Err(Failure::from_eof(bytes.len()));
            }
        };
        let (status, answer, end) = Self::parse(&bytes[..body_at], version_header)?;
        match end {
            BodyEnd::Length(length) => {
                while bytes.len() < body_at + length {
                    if read_more(stream, &mut bytes, deadline)? == 0 {
                        return Err(Failure::from_eof(bytes.len()));
                    }
                }
                if bytes.len() > body_at + length {
                    return Err(Failure::BadResponse("more bytes than its content-length says"));
                }
            }
            BodyEnd::Close => while read_more(stream, &mut bytes, deadline)? > 0 {},
        }
        if (200..300).contains(&status) { Ok(answer) } else { Err(Failure::BadStatus(status)) }
    }

    fn parse(head: &[u8], version_header: &str) -> Result<(u16, Self, BodyEnd), Failure> {
        let head = str::from_utf8(head).map_err(|_| Failure::BadResponse("its head is not text"))?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let protocol = words.next().unwrap_or_default();
        let status = words.next().and_then(|word| word.parse().ok()).ok_or(Failure::BadResponse("it has no status"))?;
        let (mut length, mut version) = (None, None);
        let mut close = match protocol {
            "HTTP/1.1" => false,
            "HTTP/1.0" => true,
            _ => return Err(Failure::BadResponse("it is not HTTP/1")),
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("connection") {
                close = value.eq_ignore_ascii_case("close") || (close && !value.eq_ignore_ascii_case("keep-alive"));
            } else if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse().map_err(|_| Failure::BadResponse("its content-length is no number"))?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(Failure::BadResponse("its body comes in chunks, which the load does not read"));
            } else if name.eq_ignore_ascii_case(version_header) {
                version = Some(value.to_owned());
            }
        }
        let end = match length {
            Some(length) => BodyEnd::Length(length),
            None if close => BodyEnd::Close,
            None => return Err(Failure::BadResponse("its body has no end")),
        };
        Ok((status, Self { version, close }, end))
    }
}

/// Appends what comes next; returns 0 at the end of the stream.
fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>, deadline: Instant) -> Result<usize, Failure> {
    let received = bytes.len();
    let mut chunk = [0; 4096];
    let count = loop {
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        stream
            .set_read_timeout(Some(left.ok_or(Failure::Timeout { received })?))
            .map_err(|error| Failure::from_io(&error, received))?;
        match stream.read(&mut chunk) {
            Ok(count) => break count,
            // A read with a time limit ends so when the client was stopped and goes on (signal(7)): no doing of the server.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::from_io(&error, received)),
        }
    };
    bytes.extend_from_slice(&chunk[..count]);
    Ok(count)
}
