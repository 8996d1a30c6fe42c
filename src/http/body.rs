//! A request's body is read to its end, by whoever answers or after the answer.
//!
//! A server that answers early and closes while the client still sends takes the answer away from it: the client sees a broken
//! pipe, or its own kernel throws away what it received when a reset arrives (RFC 9112, 9.6). So the rest of a body that nobody
//! wanted is read and dropped for a while, and the connection goes on.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::EXPECT;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::traffic::Traffic;

/// How long the rest of a body is read. nginx reads it as long (`lingering_time`).
const REST_MAX: Duration = Duration::from_secs(30);
/// How long nothing may arrive of it (`lingering_timeout` of nginx).
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long it is read when the server stops.
const LAST_MAX: Duration = Duration::from_secs(1);

/// Returns `request` with a body that reads its own rest. `traffic` hears when it is waited for, and counts it
/// until its end was seen.
pub(super) fn drained(
    request: Request<Incoming>,
    traffic: Arc<Traffic>,
    stopping: CancellationToken,
) -> Request<DrainedBody> {
    let is_awaited = request.headers().contains_key(EXPECT);
    request.map(|body| DrainedBody { body: Some(body), ended: false, is_awaited, traffic, stopping })
}

/// A request's body, whose rest is read although nobody wants it.
pub(super) struct DrainedBody {
    /// There until the rest is read.
    body: Option<Incoming>,
    ended: bool,
    /// The client sends nothing before it was told to continue, and nobody told it.
    is_awaited: bool,
    traffic: Arc<Traffic>,
    stopping: CancellationToken,
}

impl Body for DrainedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.is_awaited = false; // reading tells the client to continue
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(context);
        self.traffic.note_body(frame.is_pending());
        let frame = ready!(frame);
        self.ended |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for DrainedBody {
    fn drop(&mut self) {
        self.traffic.note_body(false);
        let Some(body) = self.body.take().filter(|body| !self.ended && !body.is_end_stream()) else { return };
        self.traffic.unread.fetch_add(1, Ordering::AcqRel);
        if self.is_awaited {
            return; // nothing is on its way
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(read_rest(body, Arc::clone(&self.traffic.unread), self.stopping.clone())));
        }
    }
}

/// Reads and drops the rest of a body.
async fn read_rest(mut body: Incoming, unread: Arc<AtomicUsize>, stopping: CancellationToken) {
    let rest = async {
        while let Ok(frame) = timeout(SILENCE_MAX, poll_fn(|context| Pin::new(&mut body).poll_frame(context))).await {
            match frame {
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
                None => return true,
            }
        }
        false
    };
    let last = async {
        stopping.cancelled().await;
        sleep(LAST_MAX).await;
    };
    let ended = tokio::select! {
        ended = rest => ended,
        () = sleep(REST_MAX) => false,
        () = last => false,
    };
    if ended {
        unread.fetch_sub(1, Ordering::AcqRel);
    }
}
