//! The payload of a release as a stream of those of its bytes that are wanted.
//!
//! A server that knows no ranges gives the whole file: it is read once, and what is not wanted is dropped.

use std::io::{self, Read};
use std::ops::Range;

use super::{Answer, Server};
use crate::package::Ranged;

/// A gap this small is read and dropped: asking anew costs a round trip, which brings more than that on most lines.
const GAP_BYTES_MAX: u64 = 32 << 10;

/// How often a part is asked for before the line is taken for dead: each time at the byte where it broke.
const TRIES_MAX: u32 = 4;

/// Reads a file in the ranges that were announced, with one request for each.
pub(super) struct RangeReader<'a, S> {
    server: &'a mut S,
    path: String,
    /// Ranges still to be asked for, the next one last.
    ranges: Vec<Range<u64>>,
    /// What is being read, and where it ends.
    open: Option<(Box<dyn Read + Send>, u64)>,
    at: u64,
}

impl<'a, S: Server> RangeReader<'a, S> {
    pub(super) fn new(server: &'a mut S, path: String) -> Self {
        Self { server, path, ranges: Vec::new(), open: None, at: 0 }
    }
}

impl<S: Server> Ranged for RangeReader<'_, S> {
    fn announce(&mut self, wanted: Vec<Range<u64>>) {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in wanted {
            match ranges.last_mut() {
                Some(last) if range.start.saturating_sub(last.end) <= GAP_BYTES_MAX => last.end = range.end,
                Some(_) | None => ranges.push(range),
            }
        }
        ranges.reverse();
        self.ranges = ranges;
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let to = self.at + bytes;
        self.open = self.open.take().filter(|(_, end)| to < *end).and_then(|(mut input, end)| {
            let skipped = io::copy(&mut (&mut input).take(bytes), &mut io::sink());
            // Where the line breaks, what is wanted behind this is asked for anew.
            skipped.is_ok_and(|skipped| skipped == bytes).then_some((input, end))
        });
        self.at = to;
        Ok(())
    }
}

impl<S: Server> RangeReader<'_, S> {
    /// Asks for the range that comes next. Returns whether there is one.
    fn ask(&mut self) -> io::Result<bool> {
        while self.ranges.last().is_some_and(|range| range.end <= self.at) {
            self.ranges.pop();
        }
        let Some(range) = self.ranges.last() else { return Ok(false) };
        if range.start > self.at {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a range is read that was not announced"));
        }
        let range = self.at..range.end;
        let answer = self.server.open(&self.path, Some(range.clone()))?;
        let Answer { mut input, whole } =
            answer.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the payload is missing"))?;
        if !whole {
            self.open = Some((input, range.end));
            return Ok(true);
        }
        if io::copy(&mut (&mut input).take(self.at), &mut io::sink())? != self.at {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // What else is wanted comes in the same answer.
        let end = self.ranges.drain(..).next().map_or(range.end, |last| last.end);
        self.ranges.push(self.at..end);
        self.open = Some((input, end));
        Ok(true)
    }

    fn read_open(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.open.as_ref().is_none_or(|(_, end)| *end <= self.at) && !self.ask()? {
            return Ok(0);
        }
        let Some((input, end)) = &mut self.open else { return Ok(0) };
        match input.take(*end - self.at).read(buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }
}

impl<S: Server> Read for RangeReader<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut tries = TRIES_MAX;
        loop {
            match self.read_open(buffer) {
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) => {
                    tries -= 1;
                    let is_final = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput);
                    if tries == 0 || is_final {
                        return Err(error);
                    }
                    // What was read is kept: the next request begins where this one broke.
                    self.open = None;
                }
            }
        }
    }
}
