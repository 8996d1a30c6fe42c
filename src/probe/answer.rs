//! Whether any process accepts from a listener.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_type;
use rustix::net::{Shutdown, SocketType};
use tokio::net::TcpStream;

use super::kernel::{self, End, Queue};
use super::{connect, is_accepting_kind, reachable};
use crate::awake;
use crate::handover::fd;

/// How often the queue and the connection are looked at: the kernel tells nobody when a connection is accepted.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What came of trying a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A process accepts from it.
    Accepts,
    /// A connection waited all the time, and no process accepted it or any before it.
    Silent,
    /// Its queue was so full all the time that a connection more could have kept out a client's. That proves nothing: the
    /// server may be dead, or as busy as it can be.
    Full,
    /// It cannot be tried: it is no TCP socket, or gives its server only connections that bring data.
    Untried,
}

/// Makes a real connection to `listener` and returns whether a process accepts it, or one of those before it, within `limit`.
///
/// The connection is closed for writing at once, so that the server that accepts it reads its end and goes on: one that serves
/// one connection after the other would otherwise wait for a request that never comes. While the queue is crowded no connection
/// is made; then a shorter queue, or a connection in it that a process has taken, is proof enough.
///
/// # Errors
/// The connection is refused, or the kernel cannot be asked.
pub async fn answers(listener: &TcpListener, limit: Duration) -> io::Result<Answer> {
    if !can_be_tried(listener)? {
        return Ok(Answer::Untried);
    }
    if !is_accepting_kind(listener)? {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "it does not listen any more"));
    }
    Trial::new(listener)?.run(limit).await
}

/// Returns whether a connection to `listener` that brings nothing reaches the queue of an accepting process.
fn can_be_tried(listener: &TcpListener) -> io::Result<bool> {
    Ok(socket_type(listener)? == SocketType::STREAM && !fd::defers_accept(listener))
}

/// One try.
struct Trial<'a> {
    listener: &'a TcpListener,
    server: SocketAddr,
    /// The queue as it was at the look before.
    before: Option<Queue>,
    /// Those that waited at the look before, as far as they were counted.
    waited: BTreeSet<SocketAddr>,
}

impl<'a> Trial<'a> {
    fn new(listener: &'a TcpListener) -> io::Result<Self> {
        let server = reachable(listener)?;
        Ok(Self { listener, server, before: None, waited: BTreeSet::new() })
    }

    async fn run(mut self, limit: Duration) -> io::Result<Answer> {
        let mut until = Instant::now() + limit;
        let mut connection: Option<(TcpStream, SocketAddr)> = None;
        loop {
            let queue = kernel::queue(self.listener)?;
            let shorter = self.before.is_some_and(|before| queue.waiting < before.waiting);
            self.before = Some(queue);
            if shorter {
                return Ok(Answer::Accepts);
            }
            match &connection {
                Some((_, client)) => {
                    if queue.waiting == 0 || kernel::end(self.server, *client)? != End::Waiting {
                        return Ok(Answer::Accepts);
                    }
                }
                None if queue.is_crowded() => {
                    if self.one_was_taken().await? {
                        return Ok(Answer::Accepts);
                    }
                }
                None => {
                    connection = self.connect(until.saturating_duration_since(Instant::now())).await?;
                    self.before = None; // the connection itself made it longer
                    continue;
                }
            }
            if Instant::now() >= until {
                return Ok(if connection.is_some() { Answer::Silent } else { Answer::Full });
            }
            // While the machine was paused, no process could accept.
            until += awake::sleep_until(Instant::now() + LOOK_AGAIN, limit).await;
        }
    }

    /// Makes the connection, and closes it for writing. `None` if the queue became full meanwhile.
    async fn connect(&self, limit: Duration) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        let Some(stream) = connect(self.server, limit).await? else { return Ok(None) };
        let client = stream.local_addr()?;
        // One that was accepted and closed already is as good.
        let _ = rustix::net::shutdown(&stream, Shutdown::Write);
        Ok(Some((stream, client)))
    }

    /// Returns whether a process has one of the connections that waited at the look before, and notes those that wait now.
    async fn one_was_taken(&mut self) -> io::Result<bool> {
        let server = self.server;
        // There may be tens of thousands.
        let all =
            tokio::task::spawn_blocking(move || kernel::connections(server)).await.map_err(io::Error::other)??;
        let (waiting, held): (Vec<_>, Vec<_>) = all.into_iter().partition(|socket| socket.inode == 0);
        let taken = held.iter().any(|socket| self.waited.contains(&socket.remote));
        self.waited = waiting.into_iter().map(|socket| socket.remote).collect();
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

    use super::*;
    use crate::handover::bind::bind;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(10);

    fn listening() -> TcpListener {
        bind("127.0.0.1:0".parse().expect("an address")).expect("bound")
    }

    async fn tried(listener: &TcpListener, limit: Duration) -> Answer {
        answers(listener, limit).await.expect("tried")
    }

    #[tokio::test]
    async fn a_listener_that_no_process_accepts_from_is_silent() {
        let listener = listening();
        assert_eq!(tried(&listener, SHORT).await, Answer::Silent);
        let accepting = listener.try_clone().expect("cloned");
        let thread = std::thread::spawn(move || (0..2).all(|_| accepting.accept().is_ok()));
        assert_eq!(tried(&listener, LONG).await, Answer::Accepts);
        assert!(thread.join().expect("joined"));
    }

    #[tokio::test]
    async fn a_server_that_serves_one_after_the_other_reads_the_end_at_once() {
        let listener = listening();
        let accepting = listener.try_clone().expect("cloned");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = accepting.accept().expect("accepted");
            let begun = Instant::now();
            assert_eq!(stream.read(&mut [0; 16]).expect("read"), 0);
            begun.elapsed()
        });
        assert_eq!(tried(&listener, LONG).await, Answer::Accepts);
        assert!(server.join().expect("joined") < Duration::from_secs(1), "the probe held the server");
    }

    /// Fills the queue of `listener`, which has `places`.
    fn fill(listener: &TcpListener, places: i32) -> Vec<TcpStream> {
        rustix::net::listen(listener, places).expect("a shorter queue");
        let address = listener.local_addr().expect("an address");
        (0..=places).map(|_| TcpStream::connect(address).expect("connected")).collect()
    }

    #[tokio::test]
    async fn a_full_queue_proves_nothing_and_gets_no_connection_more() {
        let listener = listening();
        let clients = fill(&listener, 4);
        assert_eq!(tried(&listener, SHORT).await, Answer::Full);
        assert_eq!(kernel::queue(&listener).expect("asked").waiting, 5, "the probe took a place");
        drop(clients);
    }

    #[tokio::test]
    async fn one_that_takes_from_a_full_queue_accepts() {
        let listener = listening();
        let clients = fill(&listener, 4);
        let accepting = listener.try_clone().expect("cloned");
        let taking = tokio::task::spawn_blocking(move || {
            // Only once the probe has seen the queue full.
            std::thread::sleep(SHORT);
            accepting.accept().expect("accepted")
        });
        assert_eq!(tried(&listener, LONG).await, Answer::Accepts);
        drop((taking.await.expect("joined"), clients));
    }

    #[tokio::test]
    async fn one_that_was_shut_down_refuses() {
        let listener = listening();
        rustix::net::shutdown(&listener, Shutdown::Both).expect("shut down");
        let error = answers(&listener, SHORT).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn what_waits_for_data_or_takes_datagrams_is_not_tried() {
        let listener = listening();
        fd::defer_accept(&listener);
        assert_eq!(tried(&listener, SHORT).await, Answer::Untried);
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let listener = TcpListener::from(std::os::fd::OwnedFd::from(datagrams));
        assert_eq!(tried(&listener, SHORT).await, Answer::Untried);
    }
}
