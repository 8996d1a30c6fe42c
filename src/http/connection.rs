//! One HTTP/1.1 connection: served until it ends, or *parked* between two requests when the server stops.
//!
//! A parked connection is its socket and the bytes that were read and belong to no request yet. It travels to the next process
//! image like a listener, and its client never notices. Parked is what stands at a request's boundary: no request is being
//! answered, and everything written is on its way.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::body::drained;
use crate::process::caller::Caller;

/// How a connection ended here.
pub(super) enum End<S> {
    /// It is closed.
    Closed,
    /// It waits between two requests: the socket, and what was read of the next one.
    Parked(S, Bytes),
}

/// What is known of the requests of one connection.
#[derive(Default)]
struct Traffic {
    /// Requests being answered.
    under_way: AtomicUsize,
    /// Requests whose bodies were not read to their ends: what comes next on the connection is no request.
    unread: Arc<AtomicUsize>,
    /// The last write did not get through.
    write_blocked: AtomicBool,
}

impl Traffic {
    fn is_at_boundary(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0 && !self.write_blocked.load(Ordering::Acquire)
    }
}

/// Serves `socket`, of which `read` was read before, until it ends or `stopping` is cancelled.
///
/// With `park`, a stop leaves it at the next boundary; otherwise the connection is told to end there. Each request has the
/// `caller` among its extensions, as an `Arc`, if the socket says who that is.
pub(super) async fn serve<S>(
    socket: S,
    caller: Option<Arc<Caller>>,
    read: Bytes,
    router: Router,
    stopping: CancellationToken,
    park: Arc<AtomicBool>,
) -> End<S>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let traffic = Arc::new(Traffic::default());
    let io = Watched { read, io: TokioIo::new(socket), traffic: Arc::clone(&traffic) };
    let router = TowerToHyperService::new(router);
    let counted = Arc::clone(&traffic);
    let stop = stopping.clone();
    let service =
        service_fn(move |request| answer(router.clone(), request, caller.clone(), Arc::clone(&counted), stop.clone()));
    let mut connection = http1::Builder::new().serve_connection(io, service);
    let mut stop = pin!(stopping.cancelled());
    let mut told = false;
    let closed = poll_fn(|context| {
        loop {
            // A broken connection is the client's affair: it ends like any other.
            if Pin::new(&mut connection).poll(context).is_ready() {
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
    End::Parked(parts.io.io.into_inner(), Bytes::from(read))
}

/// Answers one request, counting it until the last byte of the answer was taken.
async fn answer(
    router: TowerToHyperService<Router>,
    mut request: hyper::Request<Incoming>,
    caller: Option<Arc<Caller>>,
    traffic: Arc<Traffic>,
    stopping: CancellationToken,
) -> Result<Response, std::convert::Infallible> {
    let counted = Counted::new(&traffic);
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    let request: Request = drained(request, Arc::clone(&traffic.unread), stopping).map(Body::new);
    let response = router.call(request).await?;
    Ok(response.map(|body| Body::new(Answer { body, _counted: counted })))
}

/// Counts a request as long as it lives.
struct Counted(Arc<Traffic>);

impl Counted {
    fn new(traffic: &Arc<Traffic>) -> Self {
        traffic.under_way.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(traffic))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
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

/// A socket that gives first what was read before, and remembers whether it could be written to.
struct Watched<S> {
    read: Bytes,
    io: TokioIo<S>,
    traffic: Arc<Traffic>,
}

impl<S: tokio::io::AsyncRead + Unpin> Read for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S> Watched<S> {
    fn note<T>(&self, result: Poll<T>) -> Poll<T> {
        self.traffic.write_blocked.store(result.is_pending(), Ordering::Release);
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
