//! One HTTP/1.1 connection: served until it ends, or *parked* between two requests when the server stops.
//!
//! A parked connection is its socket and the bytes that were read and belong to no request yet. It travels to the next process
//! image like a listener, and its client never notices. Parked is what stands at a request's boundary: no request is being
//! answered, and everything written is on its way.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use refit_base::clock::monotonic_ns;
use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::RemoteAddress;
use super::body::drained;
use super::limit::{Promise, Seat};
use super::traffic::{Counted, HEAD_MAX, Traffic};
use crate::process::caller::Caller;

/// How a connection ended here.
pub(super) enum End<S> {
    /// It is closed.
    Closed,
    /// It waits between two requests.
    Parked {
        /// The socket.
        socket: S,
        /// What was read of the next one.
        read: Bytes,
        /// Whether it was said to end after each answer.
        is_surplus: bool,
    },
}

/// Serves `socket`, of which `read` was read before, until it ends or `stopping` is cancelled.
///
/// With `park`, a stop leaves it at the next boundary; otherwise the connection is told to end there. Each request has what is known of its
/// `origin` among its extensions. One that takes too long over a head, or waits too long between two requests, is closed.
pub(super) async fn serve<S>(
    socket: S,
    origin: Origin,
    read: Bytes,
    router: Router,
    stopping: CancellationToken,
    park: Arc<AtomicBool>,
) -> End<S>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (traffic, is_surplus) = (Arc::clone(&origin.traffic), origin.promise.is_none());
    let io = Watched { read, io: TokioIo::new(socket), traffic: Arc::clone(&traffic) };
    let router = TowerToHyperService::new(router);
    let (stop, about) = (stopping.clone(), Arc::new(origin));
    let give_way = about.seat.give_way.clone();
    let service = service_fn(move |request| answer(router.clone(), request, Arc::clone(&about), stop.clone()));
    let mut connection = http1::Builder::new().serve_connection(io, service);
    let mut stop = pin!(stopping.cancelled());
    let mut give_way = pin!(give_way.cancelled());
    let mut patience = pin!(tokio::time::sleep(HEAD_MAX));
    let mut told = false;
    let closed = poll_fn(|context| {
        loop {
            // A broken connection is the client's affair: it ends like any other.
            if Pin::new(&mut connection).poll(context).is_ready() {
                return Poll::Ready(true);
            }
            if give_way.as_mut().poll(context).is_ready() && traffic.idle_since().is_some() {
                return Poll::Ready(true);
            }
            if is_over(&traffic, patience.as_mut(), context) {
                return Poll::Ready(true);
            }
            if told || stop.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if park.load(Ordering::Acquire) && traffic.unread.load(Ordering::Acquire) == 0 {
                return if traffic.is_at_boundary() { Poll::Ready(false) } else { Poll::Pending };
            }
            told = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
    })
    .await;
    if closed {
        return End::Closed;
    }
    let parts = connection.into_parts();
    // What was handed over and not asked for yet comes after what was read since.
    let mut read = parts.read_buf.to_vec();
    read.extend_from_slice(&parts.io.read);
    End::Parked { socket: parts.io.io.into_inner(), read: Bytes::from(read), is_surplus }
}

/// Returns whether what a connection waits for has had its time, and has `patience` wake it when it would have.
fn is_over(traffic: &Traffic, mut patience: Pin<&mut Sleep>, context: &mut Context<'_>) -> bool {
    loop {
        let Some(gives_up_ns) = traffic.gives_up_ns() else { return false };
        let left = Duration::from_nanos(gives_up_ns.saturating_sub(monotonic_ns()));
        if left.is_zero() {
            return true;
        }
        let wakes_in = patience.deadline().saturating_duration_since(Instant::now());
        if wakes_in > left || patience.as_mut().poll(context).is_ready() {
            patience.as_mut().reset(Instant::now() + left);
        } else {
            return false;
        }
    }
}

/// What the requests of one connection have in common.
pub(super) struct Origin {
    /// Who is at the other end of a Unix socket.
    pub(super) caller: Option<Arc<Caller>>,
    /// Where the other end of a TCP connection is.
    pub(super) address: Option<RemoteAddress>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) seat: Seat,
    /// That an exec carries it over; without, it is said to end after each answer.
    pub(super) promise: Option<Promise>,
}

/// Answers one request, counting it until the last byte of the answer was taken.
async fn answer(
    router: TowerToHyperService<Router>,
    mut request: hyper::Request<Incoming>,
    about: Arc<Origin>,
    stopping: CancellationToken,
) -> Result<Response, std::convert::Infallible> {
    let counted = Counted::new(&about.traffic);
    if let Some(caller) = &about.caller {
        request.extensions_mut().insert(Arc::clone(caller));
    }
    if let Some(address) = about.address {
        request.extensions_mut().insert(address);
    }
    let has_bare_feed = about.traffic.end_head(!request.body().is_end_stream());
    let mut response = if has_bare_feed {
        let said = "a line of the request's head ends without a carriage return\n";
        (StatusCode::BAD_REQUEST, said).into_response()
    } else {
        let request: Request = drained(request, Arc::clone(&about.traffic), stopping).map(Body::new);
        router.call(request).await?
    };
    if has_bare_feed || about.promise.is_none() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Body::new(Answer { body, _counted: counted })))
}

/// An answer's body that keeps its request counted.
struct Answer {
    body: Body,
    _counted: Counted,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that gives first what was read before, looks at heads, and remembers whether it could be written to.
struct Watched<S> {
    read: Bytes,
    io: TokioIo<S>,
    traffic: Arc<Traffic>,
}

/// How much of a head is read at once: one fits.
const HEAD_BYTES: usize = 4096;

impl<S: tokio::io::AsyncRead + Unpin> Read for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { read, io, traffic } = self.get_mut();
        let is_head = traffic.under_way.load(Ordering::Acquire) == 0 && traffic.unread.load(Ordering::Acquire) == 0;
        if !read.is_empty() {
            let count = read.len().min(buffer.remaining());
            if is_head {
                traffic.note_head(&read[..count]);
            }
            buffer.put_slice(&read[..count]);
            read.advance(count);
            return Poll::Ready(Ok(()));
        }
        if !is_head {
            return Pin::new(io).poll_read(context, buffer);
        }
        let mut head = [0; HEAD_BYTES];
        let room = buffer.remaining().min(HEAD_BYTES);
        let mut head = ReadBuf::new(&mut head[..room]);
        ready!(Pin::new(io.inner_mut()).poll_read(context, &mut head))?;
        if !head.filled().is_empty() {
            traffic.note_head(head.filled());
            buffer.put_slice(head.filled());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Watched<S> {
    fn note<T>(&self, result: Poll<T>) -> Poll<T> {
        let blocked = &self.traffic.blocked_ns;
        if result.is_ready() {
            blocked.store(0, Ordering::Release);
        } else if blocked.load(Ordering::Acquire) == 0 {
            blocked.store(monotonic_ns(), Ordering::Release);
        }
        result
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> Write for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(context, bytes);
        self.note(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(context);
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.note(result)
    }
}
