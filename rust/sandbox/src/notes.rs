//! What one job says of itself through its own descriptor: lines, of which only the newest count; pure.
//!
//! Nothing of it is stored, so a flood costs no more than a trickle: little is kept, and no more than `PERIOD_BYTES` are
//! read in the time between two flushes. What is kept is whole lines.

use std::time::Instant;

use crate::output::FLUSH_AFTER;

/// Most that is read between two flushes; then the job waits in its write. It is what a pipe holds.
const PERIOD_BYTES: usize = 64 << 10;
/// Most of the newest lines that are kept for a flush.
pub(crate) const KEPT_BYTES: usize = 4 << 10;
/// A line that is longer means nothing and is dropped, but for being a sign of life.
pub(crate) const LINE_BYTES: usize = 2 << 10;

/// Lines that wait to be sent on.
#[derive(Debug, Default)]
pub struct Notes {
    lines: Vec<u8>,
    begun: Vec<u8>,
    is_too_long: bool,
    read_bytes: usize,
    since: Option<Instant>,
}

impl Notes {
    /// How many bytes may be read now.
    #[must_use]
    pub fn room(&self) -> usize {
        PERIOD_BYTES.saturating_sub(self.read_bytes)
    }

    /// Takes what was read, and returns whether a line ended in it.
    pub fn push(&mut self, bytes: &[u8], now: Instant) -> bool {
        self.since.get_or_insert(now);
        self.read_bytes += bytes.len();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.is_too_long |= self.begun.len() + piece.len() > LINE_BYTES;
            if !self.is_too_long {
                self.begun.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
        bytes.contains(&b'\n')
    }

    fn end_line(&mut self) {
        if !std::mem::take(&mut self.is_too_long) {
            self.lines.append(&mut self.begun);
        }
        self.begun.clear();
    }

    /// When what there is has to be sent on, and more may be read.
    #[must_use]
    pub fn flush_at(&self) -> Option<Instant> {
        self.since.map(|since| since + FLUSH_AFTER)
    }

    /// The newest lines since the last call, whole and in order; none if there are none.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        self.forget_old();
        self.since = None;
        let lines = std::mem::take(&mut self.lines);
        (!lines.is_empty()).then_some(lines)
    }

    /// Puts off the flush: whoever is to be told does not listen now.
    pub fn put_off(&mut self, now: Instant) {
        self.forget_old();
        self.since = Some(now);
    }

    fn forget_old(&mut self) {
        self.read_bytes = 0;
        let Some(surplus) = self.lines.len().checked_sub(KEPT_BYTES + 1) else {
            return;
        };
        // The byte before the newest ones: a line that ends there is the last to go, one that goes on beyond goes too.
        let end = self.lines[surplus..].iter().position(|byte| *byte == b'\n');
        self.lines
            .drain(..end.map_or(self.lines.len(), |end| surplus + end + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(notes: &mut Notes) -> Option<String> {
        notes.take().map(|lines| String::from_utf8(lines).unwrap())
    }

    #[test]
    fn only_whole_lines_are_passed_on_whatever_the_pieces() {
        let now = Instant::now();
        let mut notes = Notes::default();
        assert!(!notes.push(b"heart", now));
        assert_eq!(text(&mut notes), None);
        assert!(notes.push(b"beat\nprogress 1", now));
        assert_eq!(text(&mut notes).as_deref(), Some("heartbeat\n"));
        assert!(notes.push(b"0\n\n", now));
        assert_eq!(text(&mut notes).as_deref(), Some("progress 10\n\n"));
        assert_eq!(text(&mut notes), None);
    }

    #[test]
    fn a_line_that_never_ends_is_dropped_and_the_next_is_not() {
        let now = Instant::now();
        let mut notes = Notes::default();
        for _ in 0..100 {
            assert!(!notes.push(&[b'x'; 1000], now));
            assert!(notes.begun.len() <= LINE_BYTES);
            assert_eq!(text(&mut notes), None);
        }
        assert!(notes.push(b"x\nheartbeat\n", now), "its end is a sign of life");
        assert_eq!(text(&mut notes).as_deref(), Some("heartbeat\n"));
    }

    #[test]
    fn of_a_flood_the_newest_lines_are_kept_and_reading_pauses() {
        let now = Instant::now();
        let mut notes = Notes::default();
        let mut number = 0;
        while notes.room() > 0 {
            let line = format!("progress {number}\n");
            let taken = line.len().min(notes.room());
            notes.push(&line.as_bytes()[..taken], now);
            number += 1;
        }
        assert_eq!(notes.flush_at(), Some(now + FLUSH_AFTER));
        let kept = text(&mut notes).unwrap();
        assert!(kept.len() <= KEPT_BYTES, "{} bytes", kept.len());
        assert!(kept.starts_with("progress ") && kept.ends_with('\n'));
        let newest = kept.lines().last().and_then(|line| line[9..].parse().ok());
        assert!(newest == Some(number - 1) || newest == Some(number - 2));
        assert_eq!((notes.room(), notes.flush_at()), (PERIOD_BYTES, None));
    }

    #[test]
    fn a_flush_that_is_put_off_keeps_what_there_is() {
        let now = Instant::now();
        let mut notes = Notes::default();
        notes.push(b"a\n", now);
        notes.put_off(now + FLUSH_AFTER);
        assert_eq!(notes.flush_at(), Some(now + 2 * FLUSH_AFTER));
        notes.push(b"b\n", now + FLUSH_AFTER);
        assert_eq!(text(&mut notes).as_deref(), Some("a\nb\n"));
    }
}
