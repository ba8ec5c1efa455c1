//! What one job has written and not yet been told of: order, limit, window and when to flush; pure.

use std::time::{Duration, Instant};

use serde_bytes::Bytes;

use crate::protocol::{Segment, StreamInfo};

/// Output is sent on at this size…
pub const FLUSH_BYTES: usize = 64 << 10;
/// …or this long after its first byte, whichever comes first.
pub const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// The two streams of a job, by the number they have in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// Collected output of one job.
#[derive(Debug)]
pub struct Output {
    limit_bytes: u64,
    window_bytes: usize,
    data: Vec<u8>,
    runs: Vec<(Stream, usize)>,
    since: Option<Instant>,
    unacknowledged: usize,
    streams: [StreamInfo; 2],
}

impl Output {
    /// Starts empty. `limit_bytes` of both streams together are kept; `window_bytes` may be unacknowledged.
    #[must_use]
    pub fn new(limit_bytes: u64, window_bytes: usize) -> Self {
        Self {
            limit_bytes,
            window_bytes,
            data: Vec::new(),
            runs: Vec::new(),
            since: None,
            unacknowledged: 0,
            streams: [StreamInfo::default(); 2],
        }
    }

    fn kept_bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.stored_bytes).sum()
    }

    /// How many bytes may be read from the job's pipes now: what the window has room for; as many as one likes once
    /// they are dropped anyway.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.kept_bytes() >= self.limit_bytes {
            return usize::MAX;
        }
        self.window_bytes.saturating_sub(self.unacknowledged + self.data.len())
    }

    /// Takes what was read from a stream, and counts what is beyond the limit.
    pub fn push(&mut self, stream: Stream, bytes: &[u8], now: Instant) {
        let room = usize::try_from(self.limit_bytes - self.kept_bytes()).unwrap_or(usize::MAX);
        let kept = &bytes[..bytes.len().min(room)];
        let info = &mut self.streams[stream as usize - 1];
        info.bytes += bytes.len() as u64;
        info.stored_bytes += kept.len() as u64;
        info.truncated |= kept.len() < bytes.len();
        if kept.is_empty() {
            return;
        }
        self.since.get_or_insert(now);
        self.data.extend_from_slice(kept);
        match self.runs.last_mut() {
            Some((last, length)) if *last == stream => *length += kept.len(),
            _ => self.runs.push((stream, kept.len())),
        }
    }

    /// Whether there was more than is kept.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.streams.iter().any(|stream| stream.truncated)
    }

    /// When what there is has to be sent on, if there is anything.
    #[must_use]
    pub fn flush_at(&self) -> Option<Instant> {
        self.since.map(|since| {
            if self.data.len() >= FLUSH_BYTES {
                since
            } else {
                since + FLUSH_AFTER
            }
        })
    }

    /// What waits to be sent, in arrival order.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment<'_>> {
        let mut rest = self.data.as_slice();
        let mut cut = |length: usize| {
            let (head, tail) = rest.split_at(length);
            rest = tail;
            Bytes::new(head)
        };
        self.runs
            .iter()
            .map(|(stream, length)| (*stream as u8, cut(*length)))
            .collect()
    }

    /// Notes that [`Self::segments`] were sent.
    pub fn sent(&mut self) {
        self.unacknowledged += self.data.len();
        self.data.clear();
        self.runs.clear();
        self.since = None;
    }

    /// Notes that `count` sent bytes are safe.
    pub fn acknowledge(&mut self, count: usize) {
        self.unacknowledged = self.unacknowledged.saturating_sub(count);
    }

    /// Totals of stdout and stderr.
    #[must_use]
    pub fn totals(&self) -> [StreamInfo; 2] {
        self.streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(output: &Output) -> Vec<(u8, Vec<u8>)> {
        output
            .segments()
            .into_iter()
            .map(|(stream, data)| (stream, data.to_vec()))
            .collect()
    }

    #[test]
    fn neighbours_of_one_stream_are_joined_and_order_is_kept() {
        let now = Instant::now();
        let mut output = Output::new(100, 100);
        output.push(Stream::Stdout, b"a", now);
        output.push(Stream::Stdout, b"b", now);
        output.push(Stream::Stderr, b"c", now);
        output.push(Stream::Stdout, b"d", now);
        assert_eq!(
            pieces(&output),
            [(1, b"ab".to_vec()), (2, b"c".to_vec()), (1, b"d".to_vec())]
        );
    }

    #[test]
    fn beyond_the_limit_bytes_are_counted_and_not_kept() {
        let now = Instant::now();
        let mut output = Output::new(5, 100);
        output.push(Stream::Stdout, b"abc", now);
        output.push(Stream::Stderr, b"defg", now);
        output.push(Stream::Stdout, b"h", now);
        assert_eq!(pieces(&output), [(1, b"abc".to_vec()), (2, b"de".to_vec())]);
        assert!(output.is_over());
        let [stdout, stderr] = output.totals();
        assert_eq!(
            stdout,
            StreamInfo {
                bytes: 4,
                stored_bytes: 3,
                truncated: true
            }
        );
        assert_eq!(
            stderr,
            StreamInfo {
                bytes: 4,
                stored_bytes: 2,
                truncated: true
            }
        );
    }

    #[test]
    fn a_full_window_stops_reading_until_it_is_acknowledged() {
        let now = Instant::now();
        let mut output = Output::new(1000, 10);
        output.push(Stream::Stdout, &[0; 10], now);
        assert_eq!(output.room(), 0);
        output.sent();
        assert_eq!(output.room(), 0);
        output.acknowledge(1);
        assert_eq!(output.room(), 1);
    }

    #[test]
    fn what_is_dropped_needs_no_window() {
        let mut output = Output::new(10, 5);
        output.push(Stream::Stdout, &[0; 20], Instant::now());
        assert_eq!(output.room(), usize::MAX);
    }

    #[test]
    fn output_is_due_when_large_or_old() {
        let now = Instant::now();
        let mut output = Output::new(1 << 20, 1 << 20);
        assert_eq!(output.flush_at(), None);
        output.push(Stream::Stdout, b"x", now);
        output.push(Stream::Stdout, b"y", now + FLUSH_AFTER / 2);
        assert_eq!(output.flush_at(), Some(now + FLUSH_AFTER));
        output.push(Stream::Stdout, &vec![0; FLUSH_BYTES], now);
        assert_eq!(output.flush_at(), Some(now));
        output.sent();
        assert_eq!(output.flush_at(), None);
    }
}
