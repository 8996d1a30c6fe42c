//! A peer without manners: a line is sent as it is, and what comes back is read line by line.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::wait::LIMIT;

/// A connection to the bus.
pub(crate) struct Raw {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    number: u64,
    /// What came before the answer that was waited for.
    pub(crate) aside: Vec<Value>,
}

impl Raw {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the bus listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let lines = BufReader::new(stream.try_clone().expect("a descriptor"));
        Self { stream, lines, number: 0, aside: Vec::new() }
    }

    /// Connects and says hello.
    pub(crate) fn hello(socket: &Path, params: Value) -> Self {
        let mut raw = Self::connect(socket);
        let mut said = json!({ "version": 1 });
        said.as_object_mut().expect("an object").extend(params.as_object().expect("an object").clone());
        raw.ask("hello", said).expect("welcome");
        raw
    }

    /// Sends bytes. That the other end is gone is its answer.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn say(&mut self, message: &Value) {
        self.send(format!("{message}\n").as_bytes()).ok(); // what follows is read from the answer
    }

    /// Returns the next message; nothing when the connection has ended.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the runtime is silent: {error}"),
        }
    }

    /// Returns the next message of this method.
    pub(crate) fn next_of(&mut self, method: &str) -> Value {
        if let Some(place) = self.aside.iter().position(|message| message["method"] == method) {
            return self.aside.remove(place);
        }
        loop {
            let message = self.next().unwrap_or_else(|| panic!("the connection ended before {method}"));
            if message["method"] == method {
                return message;
            }
        }
    }

    /// Asks. Returns the result, or the error.
    pub(crate) fn ask(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.number += 1;
        let id = json!(format!("ask-{}", self.number));
        self.say(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        loop {
            let mut message =
                self.next().unwrap_or_else(|| panic!("the connection ended before the answer to {method}"));
            if message["id"] == id {
                return if message["error"].is_null() {
                    Ok(message["result"].take())
                } else {
                    Err(message["error"].take())
                };
            }
            self.aside.push(message);
        }
    }

    /// Answers a call.
    pub(crate) fn answer(&mut self, call: &Value, value: Value) {
        self.say(&json!({ "jsonrpc": "2.0", "id": call["id"], "result": value }));
    }

    /// Reads until the connection ends. Returns what came.
    pub(crate) fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.next()).collect()
    }
}
