//! What a process prints, from its pipes into the [`Logs`].

use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::Logs;
use super::logs::{Lines, Stream};

/// Returns the work of reading one stream of the process `id` of `component` to its end.
pub(super) fn read(
    reader: pipe::Receiver,
    logs: &Arc<Logs>,
    component: &str,
    id: &str,
    stream: Stream,
) -> impl Future<Output = ()> + Send + use<> {
    let partial = Partial {
        logs: Arc::clone(logs),
        component: component.to_owned(),
        id: id.to_owned(),
        stream,
        lines: Lines::default(),
    };
    drain(reader, partial)
}

/// The line that a stream has begun: written down when the reading ends, whyever it does.
struct Partial {
    logs: Arc<Logs>,
    component: String,
    id: String,
    stream: Stream,
    lines: Lines,
}

impl Partial {
    fn feed(&mut self, bytes: &[u8]) {
        let Self { logs, component, id, stream, lines } = self;
        lines.feed(bytes, |line| logs.push(component, id, *stream, line));
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(rest) = self.lines.finish() {
            self.logs.push(&self.component, &self.id, self.stream, &rest);
        }
    }
}

async fn drain(mut reader: pipe::Receiver, mut partial: Partial) {
    let mut bytes = [0; 8192];
    loop {
        match reader.read(&mut bytes).await {
            Ok(0) => return,
            Ok(count) => partial.feed(&bytes[..count]),
            Err(error) => {
                tracing::warn!(component.name = partial.component, %error, "cannot read a component's output");
                return;
            }
        }
    }
}
