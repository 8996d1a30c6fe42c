//! `refit component logs`: what a component printed, and what it prints from now on.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use refit_base::{Exit, visible};
use reqwest::{Method, Response, header};

use crate::api::CURSOR;
use crate::cli::client::{Client, ClientError};
use crate::cli::context::{Context, say};
use crate::cli::said::Said;
use crate::wire::{LogLine, Stream};

/// The pause before a stream that ended is asked for again: the image that replaces itself takes less.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// How long the appliance may be reachable without answering: the guard needs that long in the worst case.
const SILENT_MAX: Duration = Duration::from_secs(120);
/// A silence that people are told of: replacing the runtime takes less.
const SILENCE_TOLD: Duration = Duration::from_secs(3);
/// The longest line of an answer; more without its end is no answer of ours.
const ANSWER_LINE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Logs {
    /// Its name.
    name: String,
    /// How many lines.
    #[arg(short, default_value_t = 100, value_name = "LINES")]
    n: usize,
    /// Go on with what it prints, until interrupted or the appliance ends.
    #[arg(short, long)]
    follow: bool,
}

/// Why a stream is read no further.
enum StreamEnd {
    /// It broke, or the image ended.
    Stream,
    /// Nobody reads what is printed here.
    Reader,
}

/// Prints lines as they come.
struct Printer {
    json: bool,
    coloured: bool,
    /// The number of the last line.
    cursor: Option<u64>,
    /// What has come of the next one.
    pending: Vec<u8>,
}

pub(super) async fn run(context: &Context, client: &Client, logs: &Logs) -> Result<Exit, ClientError> {
    let mut printer =
        Printer { json: context.json, coloured: context.has_colours(), cursor: None, pending: Vec::new() };
    let answer = request_logs(client, logs, None).await?;
    if !logs.follow {
        printer.drain(client, answer).await?;
        return Ok(Exit::Done);
    }
    // Cancel-safe: when it is interrupted, nothing more is printed.
    tokio::select! {
        followed = follow(client, logs, &mut printer, answer) => followed,
        interrupted = tokio::signal::ctrl_c() => {
            if let Err(error) = interrupted {
                return Ok(context.print_failure(
                    &format!("cannot wait for Ctrl-C: {error}"), "system_refused", "check the limits of the system", Exit::Failed,
                ));
            }
            Ok(Exit::Done)
        }
    }
}

/// Asks for the lines; from `after` on when some were seen.
async fn request_logs(client: &Client, logs: &Logs, after: Option<u64>) -> Result<Response, ClientError> {
    let from = after.map_or_else(|| format!("n={}", logs.n), |after| format!("after={after}"));
    let path = format!("/api/v1/components/{}/logs?{from}&follow={}", logs.name, logs.follow);
    client.send(client.request(Method::GET, &path).header(header::ACCEPT, "application/x-ndjson")).await
}

/// Prints what comes; asks again each time the stream ends, until there is no appliance any more.
async fn follow(
    client: &Client,
    logs: &Logs,
    printer: &mut Printer,
    mut answer: Response,
) -> Result<Exit, ClientError> {
    loop {
        let cursor = answer.headers().get(CURSOR).and_then(|value| value.to_str().ok()?.parse().ok());
        printer.cursor = printer.cursor.or(cursor);
        // A stream that breaks ends like any other: it is asked for again.
        if matches!(printer.drain(client, answer).await, Ok(StreamEnd::Reader)) {
            return Ok(Exit::Done);
        }
        let (since, mut told) = (Instant::now(), false);
        answer = loop {
            match request_logs(client, logs, printer.cursor).await {
                Ok(answer) => break answer,
                // The guard holds the socket as long as there is an appliance.
                Err(ClientError::Unavailable { .. }) => {
                    say("the appliance has ended");
                    return Ok(Exit::Done);
                }
                Err(ClientError::Broken { .. } | ClientError::Silent { .. }) if since.elapsed() < SILENT_MAX => {
                    if !told && since.elapsed() >= SILENCE_TOLD {
                        told = true;
                        say("the appliance does not answer; trying again");
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        };
    }
}

impl Printer {
    /// Prints the lines of an answer, until it ends.
    async fn drain(&mut self, client: &Client, mut answer: Response) -> Result<StreamEnd, ClientError> {
        self.pending.clear(); // a line that was broken off comes again
        while let Some(chunk) = client.next_chunk(&mut answer).await? {
            self.pending.extend_from_slice(&chunk);
            let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
                if self.pending.len() > ANSWER_LINE_BYTES_MAX {
                    return Ok(StreamEnd::Stream);
                }
                continue;
            };
            let whole: Vec<u8> = self.pending.drain(..=end).collect();
            let mut text = String::new();
            for line in whole.split(|byte| *byte == b'\n') {
                let Ok(line) = serde_json::from_slice::<Said<LogLine>>(line) else { continue };
                self.cursor = Some(line.seq);
                text.push_str(&self.format(&line));
                text.push('\n');
            }
            if io::stdout().lock().write_all(text.as_bytes()).is_err() {
                return Ok(StreamEnd::Reader);
            }
        }
        Ok(StreamEnd::Stream)
    }

    fn format(&self, said: &Said<LogLine>) -> String {
        if self.json {
            return said.to_string();
        }
        let LogLine { at, stream, line, cut, .. } = &**said;
        let goes_on = if *cut { " …" } else { "" };
        let line = format!("{}{goes_on}", visible(line));
        if !self.coloured {
            return format!("{at} {} {line}", stream.name());
        }
        // Dim time; red standard error; what Refit says in yellow.
        let colour = match stream {
            Stream::Stderr => "\x1b[31m",
            Stream::Refit => "\x1b[33m",
            Stream::Stdout | Stream::Other => "",
        };
        format!("\x1b[2m{at}\x1b[0m {colour}{} {line}\x1b[0m", stream.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(coloured: bool, line: &LogLine) -> String {
        Printer { json: false, coloured, cursor: None, pending: Vec::new() }.format(&Said::here(line.clone()))
    }

    #[test]
    fn a_line_shows_time_stream_and_text() {
        let mut line = LogLine {
            seq: 7,
            at: "2026-01-01T00:00:00.000Z".to_owned(),
            stream: Stream::Stderr,
            instance: "web-1".to_owned(),
            line: "no\u{1b}[2J disk".to_owned(),
            priority: None,
            cut: false,
        };
        assert_eq!(printed(false, &line), "2026-01-01T00:00:00.000Z stderr no\\u{1b}[2J disk");
        line.cut = true;
        assert!(printed(false, &line).ends_with("disk …"));
        let coloured = printed(true, &line);
        assert!(coloured.starts_with("\x1b[2m2026") && coloured.ends_with("\x1b[0m"), "{coloured:?}");
        assert!(!coloured.contains("\x1b[2J"), "{coloured:?}");
    }
}
