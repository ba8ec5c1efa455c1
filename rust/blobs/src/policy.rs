//! From which provider next. Each is tried once; one that is merely slow is gone back to when there is no other.

use std::time::Duration;

/// How a provider is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Its place among the providers.
    pub provider: usize,
    /// It is left behind when it is slow: there are others.
    pub in_haste: bool,
}

/// What is known of the providers of one blob.
#[derive(Debug)]
pub(crate) struct Policy {
    untried: Vec<usize>,
    /// Those that were slow, with their bytes a second.
    slow: Vec<(u64, usize)>,
}

impl Policy {
    /// Providers by their places, the best first.
    pub fn new(count: usize) -> Self {
        Self {
            untried: (0..count).rev().collect(),
            slow: Vec::new(),
        }
    }

    /// The next one to try.
    pub fn next(&mut self) -> Option<Turn> {
        if let Some(provider) = self.untried.pop() {
            let in_haste = !self.untried.is_empty() || !self.slow.is_empty();
            return Some(Turn { provider, in_haste });
        }
        // The fastest of the slow ones, at whatever speed it has.
        let best = self
            .slow
            .iter()
            .enumerate()
            .max_by_key(|(_, known)| **known)
            .map(|(place, _)| place)?;
        let (_, provider) = self.slow.swap_remove(best);
        Some(Turn {
            provider,
            in_haste: false,
        })
    }

    /// It was left behind because it is slow.
    pub fn was_slow(&mut self, provider: usize, bytes_per_s: u64) {
        self.slow.push((bytes_per_s, provider));
    }
}

/// Bytes in windows of time: whether they come fast enough.
#[derive(Debug)]
pub(crate) struct Pace {
    window: Duration,
    min_bytes_per_s: u64,
    since: Duration,
    bytes: u64,
}

impl Pace {
    pub const fn new(now: Duration, window: Duration, min_bytes_per_s: u64) -> Self {
        Self {
            window,
            min_bytes_per_s,
            since: now,
            bytes: 0,
        }
    }

    /// Bytes came. The speed of the last window, when it was too little.
    pub fn came(&mut self, now: Duration, bytes: u64) -> Option<u64> {
        self.bytes += bytes;
        let elapsed = now.saturating_sub(self.since);
        if elapsed < self.window {
            return None;
        }
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let speed = self.bytes.saturating_mul(1_000) / elapsed_ms;
        (self.since, self.bytes) = (now, 0);
        (speed < self.min_bytes_per_s).then_some(speed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(provider: usize, in_haste: bool) -> Turn {
        Turn { provider, in_haste }
    }

    #[test]
    fn the_fastest_of_the_slow_ones_is_the_last_resort() {
        let mut policy = Policy::new(3);
        assert_eq!(policy.next(), Some(turn(0, true)));
        policy.was_slow(0, 10);
        assert_eq!(policy.next(), Some(turn(1, true)));
        policy.was_slow(1, 30);
        assert_eq!(policy.next(), Some(turn(2, true)));
        assert_eq!(policy.next(), Some(turn(1, false)));
        assert_eq!(policy.next(), Some(turn(0, false)));
        assert_eq!(policy.next(), None);
    }

    #[test]
    fn the_only_provider_may_be_slow() {
        let mut policy = Policy::new(1);
        assert_eq!(policy.next(), Some(turn(0, false)));
        assert_eq!(policy.next(), None);
    }

    #[test]
    fn the_pace_is_that_of_the_last_window() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(Duration::ZERO, 2 * second, 100);
        assert_eq!(pace.came(second, 50), None);
        assert_eq!(pace.came(2 * second, 150), None);
        assert_eq!(pace.came(3 * second, 10), None);
        assert_eq!(pace.came(4 * second, 10), Some(10));
    }
}
