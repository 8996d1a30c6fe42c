//! The life of one connection: its hello, its messages, its end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use refit_base::{Bucket, Chain};
use refit_bus::Level;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::CancellationToken;

use super::limits::{END_KNOWN_MAX, FLUSH_MAX, HELLO_MAX, LINE_BYTES_MAX, MESSAGES, NAME_WAIT_MAX};
use super::line::{Line, Lines, Outgoing};
use super::messages::{Notice, Said, Welcome, answer, notification};
use super::peer::Peer;
use super::protocol::{Hello, Message, PROTOCOL, PeerError, Verb, shortened};
use super::roster::Peers;
use super::verbs::{self, Listening};
use crate::access::principal::Principal;
use crate::process::caller::Caller;
use crate::process::stat::is_ending;

/// What a connection said that is no hello.
enum NotMet {
    /// What it asks is refused; the identifier of the request, if it was one.
    Refused(Value, Box<PeerError>),
    /// It ended, broke, or said what cannot be answered.
    Ended(String),
}

/// Serves one connection to its end.
pub(super) async fn serve(peers: Arc<Peers>, stream: UnixStream) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let caller = Caller::new(credentials.uid(), credentials.pid());
    // Where it is looked whether it reads; without one it is not.
    let socket = stream.as_fd().try_clone_to_owned().ok();
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(reader);
    let crowded = CancellationToken::new();
    let number = peers.admit(&crowded);
    let (stopping, _) = peers.ending();
    // Cancel-safe: whichever ends first, the connection ends with it.
    let met = tokio::select! {
        met = tokio::time::timeout(HELLO_MAX, meet(&peers, &mut lines, &caller, socket)) => met.unwrap_or_else(|_| {
            Err(NotMet::Ended(format!("no hello within {} s", HELLO_MAX.as_secs())))
        }),
        () = crowded.cancelled() => Err(NotMet::Ended("too many connections without a hello".to_owned())),
        () = stopping.cancelled() => Err(NotMet::Ended(String::new())),
    };
    peers.unadmit(number);
    let why = match met {
        Ok((peer, listening)) => return live(&peers, &peer, listening, lines, writer).await,
        Err(NotMet::Refused(id, error)) => {
            let line = serde_json::to_string(&answer(&id, Err(&error))).unwrap_or_default() + "\n";
            drop(tokio::time::timeout(FLUSH_MAX, writer.write_all(line.as_bytes())).await);
            Chain(&*error).to_string()
        }
        Err(NotMet::Ended(why)) => why,
    };
    if !why.is_empty() {
        let pid = caller.pid.unwrap_or(0);
        peers.warn(&format!("a connection of process {pid}, uid {}, to the bus was refused: {why}", caller.uid));
    }
}

/// Waits for the hello and does what it asks.
async fn meet(
    peers: &Arc<Peers>,
    lines: &mut Lines<OwnedReadHalf>,
    caller: &Caller,
    socket: Option<OwnedFd>,
) -> Result<(Arc<Peer>, Vec<Listening>), NotMet> {
    let line = match lines.next().await {
        Ok(Line::Whole(line)) => line,
        Ok(Line::Oversized) => return Err(NotMet::Ended(oversized())),
        // Somebody who only looked whether anybody is there.
        Ok(Line::End) => return Err(NotMet::Ended(String::new())),
        Err(error) => return Err(NotMet::Ended(error.to_string())),
    };
    let message = parse(&line).map_err(|error| NotMet::Refused(Value::Null, Box::new(error)))?;
    let (Some(id), Some(method)) = (message.id, message.method) else {
        return Err(NotMet::Refused(Value::Null, Box::new(PeerError::NotAMessage)));
    };
    if method != "hello" {
        return Err(NotMet::Refused(id, Box::new(PeerError::HelloFirst { method: shortened(&method) })));
    }
    match greet(peers, (caller, socket), &id, message.params).await {
        Ok(met) => Ok(met),
        Err(error) => Err(NotMet::Refused(id, Box::new(error))),
    }
}

async fn greet(
    peers: &Arc<Peers>,
    (caller, socket): (&Caller, Option<OwnedFd>),
    id: &Value,
    params: Value,
) -> Result<(Arc<Peer>, Vec<Listening>), PeerError> {
    let hello = match Verb::parse("hello", params)? {
        Verb::Hello(hello) => hello,
        Verb::Subscribe(_)
        | Verb::Unsubscribe(_)
        | Verb::Request(_)
        | Verb::Publish(_)
        | Verb::Wait(_)
        | Verb::Ticket(_)
        | Verb::State
        | Verb::Log(_)
        | Verb::Bye => return Err(PeerError::NotAMessage),
    };
    if hello.version != PROTOCOL {
        return Err(PeerError::Version { version: hello.version });
    }
    let principal = principal(peers, caller, &hello)?;
    peers.may_come(&principal)?;
    let listening = verbs::check_all(peers, &principal, &hello.channels)?;
    if let Some(name) = &hello.name {
        let whole =
            principal.component_name().map_or_else(|| format!("@{name}"), |component| format!("{component}/{name}"));
        peers.name_free(&(whole, principal.generation()), caller.pid, NAME_WAIT_MAX).await;
    }
    let who = (caller.pid, caller.uid);
    let peer = peers.enlist(hello.name.as_deref(), &principal, who, socket, |peer| {
        let welcome = Said::Welcome(Welcome {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION"),
            name: peer.name.clone(),
            component: principal.component_name().map(str::to_owned),
            state: peers.parts.bus.state().into(),
            generation: peers.parts.registry.generation(),
            channels: listening.iter().map(|listening| listening.channel.clone()).collect(),
        });
        verbs::reply(peer, Some(id), Ok(&welcome))
    })?;
    Ok((peer, listening))
}

fn principal(peers: &Peers, caller: &Caller, hello: &Hello) -> Result<Principal, PeerError> {
    let (config, registry) = (&peers.parts.config, &peers.parts.registry);
    if let Some(token) = &hello.token {
        return Ok(Principal::by_token(token, caller, config, registry)?);
    }
    let principal = Principal::without_token(caller, config, registry, &peers.operators)?;
    match principal.component_name() {
        Some(name) => Err(PeerError::TokenMissing { component: name.to_owned(), pid: caller.pid.unwrap_or(0) }),
        None => Ok(principal),
    }
}

fn parse(line: &[u8]) -> Result<Message, PeerError> {
    serde_json::from_slice(line)
        .map_err(|source| if source.is_data() { PeerError::NotAMessage } else { PeerError::NotJson { source } })
}

fn oversized() -> String {
    format!("a line of more than {LINE_BYTES_MAX} bytes")
}

/// How a connection with a name ended.
enum End {
    /// The peer closed it, or its process ended.
    Closed,
    /// The peer said so.
    Bye,
    /// It was cut off from here, or all are.
    Here,
}

async fn live(
    peers: &Arc<Peers>,
    peer: &Arc<Peer>,
    listening: Vec<Listening>,
    lines: Lines<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) {
    // Nothing is written before all are there: whoever reads the answer misses no publication from then on.
    for subscription in listening {
        peers.listen(peer, subscription);
    }
    peers.publish_up(peer);
    let (stopping, _) = peers.ending();
    let end = {
        let reading = read(peers, peer, lines);
        let writing = write(&peer.out, &mut writer);
        // Cancel-safe: whichever ends first, the connection ends with it; what was not written is written below.
        tokio::select! {
            end = reading => end,
            () = writing => End::Closed,
            () = peer.ending.cancelled() => End::Here,
            () = stopping.cancelled() => End::Here,
        }
    };
    peers.silence(peer);
    let (why, level) = match (end, peer.why()) {
        (End::Here, Some(why)) => (format!("cut off: {why}"), Level::Warning),
        (End::Here, None) => {
            let (_, why) = peers.ending();
            drop(peer.out.push(&notification(Notice::Bye { reason: why })));
            (format!("the runtime ends: {why}"), Level::Debug)
        }
        (End::Bye, _) => ("it said bye".to_owned(), Level::Debug),
        (End::Closed, _) => match how_it_ended(peers, peer).await {
            Some(how) => (format!("its process {how}"), Level::Warning),
            None => ("its connection was closed".to_owned(), Level::Info),
        },
    };
    // Before the calls fail: whoever hears that one was lost finds the reason among the events.
    peers.remove(peer, &why, level);
    peer.lose(&format!("lost: {why}"));
    peer.ending.cancel();
    peer.out.close();
    drop(tokio::time::timeout(FLUSH_MAX, write(&peer.out, &mut writer)).await);
}

/// Returns how the process of a peer ended, if it has.
async fn how_it_ended(peers: &Peers, peer: &Peer) -> Option<String> {
    let pid = peer.pid.filter(|pid| *pid > 0)?;
    if !is_ending(pid) {
        return None;
    }
    let mut ends = peers.parts.registry.ends();
    let is_known = |ends: &std::collections::VecDeque<(i32, String)>| {
        ends.iter().rev().find(|(other, _)| *other == pid).map(|(_, how)| how.clone())
    };
    let is_components = peers.parts.registry.instances().iter().any(|instance| instance.pid == pid);
    let limit = if is_components { END_KNOWN_MAX } else { Duration::ZERO };
    let known = tokio::time::timeout(limit, ends.wait_for(|ends| is_known(ends).is_some())).await;
    match known {
        Ok(Ok(ends)) => is_known(&ends),
        Ok(Err(_)) | Err(_) => Some("ended".to_owned()),
    }
}

/// Writes what waits until nothing more will come, or the other end is gone.
async fn write(out: &Outgoing, writer: &mut OwnedWriteHalf) {
    while let Some(bytes) = out.next().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Reads and does what a peer says, until it ends.
async fn read(peers: &Arc<Peers>, peer: &Arc<Peer>, mut lines: Lines<OwnedReadHalf>) -> End {
    let mut bucket = Bucket::new(MESSAGES);
    loop {
        let line = match lines.next().await {
            Ok(Line::Whole(line)) => line,
            Ok(Line::Oversized) => {
                peer.cut(oversized());
                return End::Here;
            }
            Ok(Line::End) | Err(_) => return End::Closed,
        };
        if let Err(wait) = bucket.take() {
            tokio::time::sleep(wait).await; // its own buffers fill, nobody else's
        }
        peer.hear();
        let message = match parse(&line) {
            Ok(message) => message,
            Err(error) => {
                drop(peer.send(&answer(&Value::Null, Err(&error))));
                if matches!(error, PeerError::NotJson { .. }) {
                    peer.cut(Chain(&error).to_string());
                    return End::Here;
                }
                peer.mistake();
                continue;
            }
        };
        if let Some(end) = take(peers, peer, message) {
            return end;
        }
    }
}

/// Takes one message. Returns how the connection ends if it does.
fn take(peers: &Arc<Peers>, peer: &Arc<Peer>, message: Message) -> Option<End> {
    let Message { id, method, params, result, error } = message;
    let Some(method) = method else {
        let answered = match (id, result, error) {
            (Some(id), _, Some(error)) => peer.answered(&id, Err(error)) || peer.was_called(&id),
            (Some(id), Some(result), None) => peer.answered(&id, Ok(result)) || peer.was_called(&id),
            (Some(_), None, None) | (None, _, _) => false,
        };
        if !answered {
            drop(peer.send(&answer(&Value::Null, Err(&PeerError::NotAMessage))));
            peer.mistake();
        }
        return None;
    };
    let done = Verb::parse(&method, params).and_then(|verb| verbs::act(peers, peer, id.as_ref(), verb));
    match done {
        Ok(verbs::Done::Now(result)) => {
            verbs::reply(peer, id.as_ref(), Ok(&result));
            None
        }
        Ok(verbs::Done::Later) => None,
        Ok(verbs::Done::Bye) => {
            verbs::reply(peer, id.as_ref(), Ok(&Said::Done));
            Some(End::Bye)
        }
        Err(error) => {
            verbs::reply(peer, id.as_ref(), Err(&error));
            peer.mistake();
            None
        }
    }
}
