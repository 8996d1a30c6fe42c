//! Listeners and publishers outside the runtime: clients of `run/bus.sock`, as `docs/formats/bus-protocol.md` says.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::site::STEP_MAX;
use super::{BenchError, failed};

/// The channels on which is published, and how many listen there. The appliance declares them.
pub(crate) const CHANNELS: [(&str, usize); 3] = [("bench-1", 1), ("bench-10", 10), ("bench-100", 100)];
/// The version of the protocol that is spoken.
const PROTOCOL: u32 = 1;
/// How many publish at once where throughput is measured.
const PUBLISHERS: usize = 4;

/// One connection.
struct Peer {
    stream: BufReader<UnixStream>,
    asked: u64,
}

impl Peer {
    /// Connects, and listens to `channels`.
    fn connect(socket: &Path, name: &str, channels: &[&str]) -> Result<Self, BenchError> {
        let stream = UnixStream::connect(socket).map_err(failed("connect to the bus"))?;
        stream.set_read_timeout(Some(STEP_MAX)).map_err(failed("limit a read"))?;
        let mut peer = Self { stream: BufReader::new(stream), asked: 0 };
        let channels: Vec<Value> = channels.iter().map(|channel| json!({ "channel": channel })).collect();
        peer.ask("hello", &json!({ "version": PROTOCOL, "name": name, "channels": channels }))?;
        Ok(peer)
    }

    fn send(&mut self, message: &Value) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{message}\n").as_bytes())
    }

    /// Returns the next message; `None` at the end of the connection.
    fn read(&mut self) -> io::Result<Option<Value>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }

    /// Asks, and waits for the answer. Nobody calls who only asks.
    fn ask(&mut self, method: &str, params: &Value) -> Result<Value, BenchError> {
        self.asked += 1;
        let message = json!({ "jsonrpc": "2.0", "id": self.asked, "method": method, "params": params });
        self.send(&message).map_err(failed("ask the bus"))?;
        while let Some(mut message) = self.read().map_err(failed("read an answer of the bus"))? {
            if message["id"] == self.asked && message["method"].is_null() {
                let result = message.get_mut("result").map(Value::take);
                return result.ok_or(BenchError::Answer { what: "the bus", answer: message.to_string() });
            }
        }
        Err(BenchError::Answer { what: "the bus", answer: "by closing the connection".to_owned() })
    }

    /// Answers every call at once, until the connection ends.
    fn serve(mut self) {
        while let Ok(Some(message)) = self.read() {
            if message["method"] == "call" {
                let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": null });
                if self.send(&answer).is_err() {
                    return;
                }
            }
        }
    }

    /// Publishes `count` times, one after the other, on a channel with so many `listeners`. Returns what each took.
    fn publish(&mut self, channel: &str, listeners: usize, count: usize) -> Result<Vec<Duration>, BenchError> {
        let argument = json!({ "channel": channel, "argument": null });
        let mut durations = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            let report = self.ask("publish", &argument)?;
            durations.push(begun.elapsed());
            let answered = report["answers"].as_array().into_iter().flatten();
            if answered.filter(|answer| answer["outcome"] == "ok").count() != listeners {
                return Err(BenchError::Answer { what: "a publication", answer: report.to_string() });
            }
        }
        Ok(durations)
    }
}

/// Clients of one appliance. Dropping them ends their connections.
pub(crate) struct External {
    publishers: Vec<Peer>,
    sockets: Vec<UnixStream>,
    listeners: Vec<JoinHandle<()>>,
}

impl External {
    /// Connects to the appliance in `home` as many listeners as the largest of [`CHANNELS`] has, and some who publish.
    ///
    /// # Errors
    /// The bus refuses them.
    pub(crate) fn connect(home: &Path) -> Result<Self, BenchError> {
        let socket = home.join("run/bus.sock");
        let mut clients = Self { publishers: Vec::new(), sockets: Vec::new(), listeners: Vec::new() };
        let most = CHANNELS.iter().map(|(_, listeners)| *listeners).max().unwrap_or_default();
        for index in 0..most {
            let channels: Vec<&str> =
                CHANNELS.iter().filter(|(_, listeners)| index < *listeners).map(|(channel, _)| *channel).collect();
            let peer = Peer::connect(&socket, &format!("listener-{index}"), &channels)?;
            // It waits for calls as long as the bench likes to make none.
            peer.stream.get_ref().set_read_timeout(None).map_err(failed("wait without a limit"))?;
            clients.sockets.push(peer.stream.get_ref().try_clone().map_err(failed("keep a connection"))?);
            clients.listeners.push(thread::spawn(move || peer.serve()));
        }
        for index in 0..PUBLISHERS {
            clients.publishers.push(Peer::connect(&socket, &format!("publisher-{index}"), &[])?);
        }
        Ok(clients)
    }

    /// Publishes `count` times one after the other. Returns what each took.
    ///
    /// # Errors
    /// A listener did not answer.
    pub(crate) fn one_by_one(
        &mut self,
        channel: &str,
        listeners: usize,
        count: usize,
    ) -> Result<Vec<Duration>, BenchError> {
        match self.publishers.first_mut() {
            Some(publisher) => publisher.publish(channel, listeners, count),
            None => Ok(Vec::new()),
        }
    }

    /// Publishes `count` times by several at once. Returns how many listeners were called in a second.
    ///
    /// # Errors
    /// A listener did not answer.
    pub(crate) fn at_once(&mut self, channel: &str, listeners: usize, count: usize) -> Result<f64, BenchError> {
        let share = count.div_ceil(PUBLISHERS);
        let begun = Instant::now();
        thread::scope(|scope| {
            let publishing: Vec<_> = self
                .publishers
                .iter_mut()
                .map(|publisher| scope.spawn(move || publisher.publish(channel, listeners, share)))
                .collect();
            publishing.into_iter().try_for_each(|publisher| match publisher.join() {
                Ok(published) => published.map(drop),
                Err(_) => Err(BenchError::Answer { what: "a publisher", answer: "with a panic".to_owned() }),
            })
        })?;
        Ok((share * PUBLISHERS * listeners) as f64 / begun.elapsed().as_secs_f64())
    }
}

impl Drop for External {
    fn drop(&mut self) {
        for socket in &self.sockets {
            socket.shutdown(Shutdown::Both).ok(); // the other end may have been quicker
        }
        for listener in self.listeners.drain(..) {
            drop(listener.join());
        }
    }
}
