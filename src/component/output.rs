//! What a process prints, from its pipes into the [`Logs`].
//!
//! A pipe is read as long as the image lives, however much comes: a component never waits for its log. When the image ends,
//! reading stops between two reads, what has begun of a line is left to the next image, and the rest waits in the pipe.

use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::logs::{Lines, Logs, Piece, Reader, Stream, priority};

/// How much is read at once.
const READ_BYTES: usize = 8192;
/// How much is read of a process that has ended: a pipe holds no more, and somebody else may go on filling it.
const LAST_BYTES_MAX: usize = 1 << 20;
/// So much without the end of a line is no text, and worth saying.
const ENDLESS_BYTES: usize = 1 << 20;
/// The priority of what Refit says of that: a warning.
const PRIORITY_WARNING: u8 = 4;

/// Returns the work of reading one stream of the process `id` of `component` to its end.
pub(super) fn read(
    reader: pipe::Receiver,
    logs: &Arc<Logs>,
    component: &str,
    id: &str,
    stream: Stream,
) -> impl Future<Output = ()> + Send + use<> {
    let log = logs.reader();
    let mut output =
        Output { pipe: reader, log, component: component.to_owned(), id: id.to_owned(), stream, text: Text::default() };
    output.text.lines = Lines::after(output.log.found(&output.place()));
    drain(output)
}

/// What one stream has printed of its present line.
#[derive(Debug, Default)]
struct Text {
    lines: Lines,
    /// The priority of a line that was cut, for its other pieces.
    going_on: Option<Option<u8>>,
    /// How long the present line is already.
    bytes: usize,
    /// Whether it was said that there are no ends of lines.
    said: bool,
}

/// One stream of one process. Dropping it reads what is still in the pipe and writes down the line that has begun; or, when the
/// image ends, leaves both to the next one.
struct Output {
    pipe: pipe::Receiver,
    log: Reader,
    component: String,
    id: String,
    stream: Stream,
    text: Text,
}

impl Output {
    /// Returns the name under which a line that has begun is kept.
    fn place(&self) -> String {
        format!("{}.{}", self.id, if self.stream == Stream::Stdout { "out" } else { "err" })
    }

    fn feed(&mut self, bytes: &[u8]) {
        let Self { pipe: _, log, component, id, stream, text } = self;
        let Text { lines, going_on, bytes: length, said } = text;
        let logs = log.logs();
        lines.feed(bytes, |piece| {
            let (level, text) = match *going_on {
                Some(level) => (level, piece.bytes),
                None => priority(piece.bytes),
            };
            logs.push(component, id, *stream, Piece { bytes: text, cut: piece.cut }, level);
            *going_on = piece.cut.then_some(level);
            *length = if piece.cut { *length + piece.bytes.len() } else { 0 };
            if *length >= ENDLESS_BYTES && !*said {
                *said = true;
                tracing::warn!(
                    component.name = component,
                    instance.id = id,
                    "a component prints without ends of lines"
                );
                let text = format!("{ENDLESS_BYTES} bytes without the end of a line: they are cut into pieces");
                let piece = Piece { bytes: text.as_bytes(), cut: false };
                logs.push(component, id, Stream::Refit, piece, Some(PRIORITY_WARNING));
            }
        });
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let paused = self.log.is_paused();
        let mut bytes = [0; READ_BYTES];
        let mut left = if paused { 0 } else { LAST_BYTES_MAX };
        while left > 0
            && let Ok(count @ 1..) = rustix::io::read(&self.pipe, &mut bytes[..])
        {
            self.feed(&bytes[..count]);
            left = left.saturating_sub(count);
        }
        let Some(rest) = self.text.lines.finish() else { return };
        if paused {
            self.log.leave(self.place(), rest);
        } else {
            let (level, text) = self.text.going_on.map_or_else(|| priority(&rest), |level| (level, &rest[..]));
            self.log.logs().push(&self.component, &self.id, self.stream, Piece { bytes: text, cut: false }, level);
        }
    }
}

async fn drain(mut output: Output) {
    let mut bytes = [0; READ_BYTES];
    let paused = output.log.paused();
    tokio::pin!(paused);
    loop {
        // Cancel-safe: a read that is not finished has taken nothing from the pipe.
        let read = tokio::select! {
            biased;
            () = &mut paused => return,
            read = output.pipe.read(&mut bytes) => read,
        };
        match read {
            Ok(0) => return,
            Ok(count) => output.feed(&bytes[..count]),
            Err(error) => {
                tracing::warn!(component.name = output.component, %error, "cannot read a component's output");
                return;
            }
        }
    }
}
