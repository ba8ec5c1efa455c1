//! What waits to be sent to a peer: in order, bounded by count and by bytes.

use std::collections::VecDeque;

use bytes::Bytes;

/// Frames that wait.
#[derive(Debug)]
pub struct Outbox {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    max_count: usize,
    max_bytes: usize,
    open: bool,
}

impl Outbox {
    /// An empty one, which takes nothing before it is opened.
    #[must_use]
    pub const fn new(max_count: usize, max_bytes: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            max_count,
            max_bytes,
            open: false,
        }
    }

    /// There is a connection: take frames.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// The connection is gone: forget what waits, so that nothing old follows something newer. Tells how many.
    pub fn close(&mut self) -> usize {
        self.open = false;
        self.bytes = 0;
        std::mem::take(&mut self.waiting).len()
    }

    /// Add a frame; false when there is no connection or no room, and the frame is dropped.
    pub fn push(&mut self, frame: Bytes) -> bool {
        let fits = self.waiting.len() < self.max_count && self.bytes + frame.len() <= self.max_bytes;
        if !self.open || !fits {
            return false;
        }
        self.bytes += frame.len();
        self.waiting.push_back(frame);
        true
    }

    /// Take the oldest, at least one if there is one, up to this many bytes.
    pub fn take(&mut self, max_bytes: usize) -> Vec<Bytes> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(frame) = self.waiting.front() {
            if !taken.is_empty() && bytes + frame.len() > max_bytes {
                break;
            }
            bytes += frame.len();
            taken.extend(self.waiting.pop_front());
        }
        self.bytes -= bytes;
        taken
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes that wait.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Take(usize),
        Close,
        Open,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0usize..300).prop_map(Step::Push),
            2 => (0usize..400).prop_map(Step::Take),
            1 => Just(Step::Close),
            1 => Just(Step::Open),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn order_is_kept_bounds_hold_and_each_frame_is_accounted_for(steps in steps()) {
            let mut outbox = Outbox::new(8, 1_000);
            let (mut number, mut lengths, mut open) = (0u32, VecDeque::new(), false);
            for step in steps {
                match step {
                    Step::Push(length) => {
                        let frame = [&number.to_le_bytes()[..], &vec![0; length]].concat();
                        let total: usize = lengths.iter().map(|(_, length)| length).sum();
                        let fits = open && lengths.len() < 8 && total + frame.len() <= 1_000;
                        prop_assert_eq!(outbox.push(frame.clone().into()), fits);
                        if fits {
                            lengths.push_back((number, frame.len()));
                        }
                        number += 1;
                    }
                    Step::Take(bytes) => {
                        let taken = outbox.take(bytes);
                        prop_assert!(lengths.is_empty() || !taken.is_empty());
                        prop_assert!(taken.len() < 2 || taken.iter().map(Bytes::len).sum::<usize>() <= bytes);
                        for frame in taken {
                            let (expected, _) = lengths.pop_front().unwrap();
                            prop_assert_eq!(&frame[..4], &expected.to_le_bytes());
                        }
                    }
                    Step::Close => {
                        open = false;
                        prop_assert_eq!(outbox.close(), lengths.len());
                        lengths.clear();
                    }
                    Step::Open => {
                        open = true;
                        outbox.open();
                    }
                }
                prop_assert_eq!(outbox.is_empty(), lengths.is_empty());
                prop_assert_eq!(outbox.bytes(), lengths.iter().map(|(_, length)| length).sum::<usize>());
            }
        }
    }
}
