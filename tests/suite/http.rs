//! A small HTTP/1.1 client over TCP and Unix sockets: one request, one connection, and streams of lines.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// How long a server may be silent within one answer.
const SILENCE_MAX: Duration = Duration::from_secs(40);

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) enum At {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

trait Stream: Read + Write {}
impl Stream for UnixStream {}
impl Stream for TcpStream {}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    at: At,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// The head of an answer.
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Returns the first header of that name, or an empty text.
    pub(crate) fn header(&self, name: &str) -> &str {
        header(&self.headers, name).unwrap_or_default()
    }

    /// Returns the body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }

    /// Returns the body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

impl Request {
    /// Returns a request without headers or body.
    pub(crate) fn new(at: &At, method: &str, path: &str) -> Self {
        Self { at: at.clone(), method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds the body.
    pub(crate) fn body(mut self, bytes: Vec<u8>) -> Self {
        self.body = bytes;
        self
    }

    /// Adds JSON as the body.
    pub(crate) fn json(self, value: &Value) -> Self {
        self.header("Content-Type", "application/json").body(value.to_string().into_bytes())
    }

    /// Sends it, and returns the head of the answer and what follows it.
    fn begin(&self) -> io::Result<(Head, BufReader<Box<dyn Stream>>)> {
        let mut stream: Box<dyn Stream> = match &self.at {
            At::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                Box::new(stream)
            }
            At::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, SILENCE_MAX)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                Box::new(stream)
            }
        };
        let mut head = format!("{} {} HTTP/1.1\r\nHost: appliance\r\nConnection: close\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", self.body.len()));
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.body)?;
        let mut reader = BufReader::new(stream);
        let status = read_line(&mut reader)?;
        let status = status.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(&mut reader)?;
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None => return Ok((Head { status, headers }, reader)),
            }
        }
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Errors
    /// Nobody listens, or the connection broke.
    pub(crate) fn try_send(&self) -> io::Result<Answer> {
        let (Head { status, headers }, mut reader) = self.begin()?;
        let mut body = Vec::new();
        if header(&headers, "transfer-encoding") == Some("chunked") {
            while let Some(chunk) = read_chunk(&mut reader)? {
                body.extend_from_slice(&chunk);
            }
        } else {
            reader.read_to_end(&mut body)?;
        }
        Ok(Answer { status, headers, body })
    }

    /// Sends it and reads the whole answer; panics if there is none.
    pub(crate) fn send(&self) -> Answer {
        self.try_send().unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.path))
    }

    /// Sends it; the answer is a stream of lines.
    ///
    /// # Errors
    /// Nobody listens, or the connection broke.
    pub(crate) fn stream(&self) -> io::Result<Lines> {
        let (Head { status, headers }, reader) = self.begin()?;
        assert_eq!(header(&headers, "transfer-encoding"), Some("chunked"), "an endless answer has no length");
        Ok(Lines { status, headers, reader, pending: Vec::new() })
    }
}

/// An answer that goes on, line by line.
pub(crate) struct Lines {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    reader: BufReader<Box<dyn Stream>>,
    pending: Vec<u8>,
}

impl Lines {
    /// Returns the first header of that name, or an empty text.
    pub(crate) fn header(&self, name: &str) -> &str {
        header(&self.headers, name).unwrap_or_default()
    }
}

impl Iterator for Lines {
    type Item = String;

    /// Returns the next line; nothing when the stream ended, or broke.
    fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let chunk = read_chunk(&mut self.reader).ok().flatten()?;
            self.pending.extend_from_slice(&chunk);
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// Reads one chunk; nothing after the last.
fn read_chunk(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let size = read_line(reader)?;
    let size = usize::from_str_radix(&size, 16).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let mut bytes = vec![0; size];
    reader.read_exact(&mut bytes)?;
    read_line(reader)?;
    Ok((size > 0).then_some(bytes))
}
