//! How often something is told: a few at once, then at a rate, with the number that was left out.

use std::time::Duration;

/// A bucket of tokens for one kind of news.
#[derive(Clone, Copy, Debug)]
pub struct Limiter {
    burst: u32,
    period: Duration,
    tokens: u32,
    filled_at: Duration,
    left_out: u64,
}

impl Limiter {
    /// `burst` at once, then one each `period`.
    #[must_use]
    pub const fn new(burst: u32, period: Duration) -> Self {
        Self {
            burst,
            period,
            tokens: burst,
            filled_at: Duration::ZERO,
            left_out: 0,
        }
    }

    /// Whether to tell it now: how many were left out since the last one that was told. None: leave it out.
    pub fn admit(&mut self, now: Duration) -> Option<u64> {
        let periods = now.saturating_sub(self.filled_at).as_nanos() / self.period.as_nanos().max(1);
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if self.tokens.saturating_add(periods) >= self.burst {
            (self.tokens, self.filled_at) = (self.burst, now);
        } else {
            self.tokens += periods;
            self.filled_at += self.period * periods;
        }
        if self.tokens == 0 {
            self.left_out += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_the_rest_is_counted() {
        let mut limiter = Limiter::new(3, Duration::from_secs(1));
        let at = Duration::from_millis;
        assert_eq!([0, 0, 1].map(|ms| limiter.admit(at(ms))), [Some(0); 3]);
        assert_eq!([2, 500, 999].map(|ms| limiter.admit(at(ms))), [None; 3]);
        assert_eq!(limiter.admit(at(1_001)), Some(3));
        assert_eq!(limiter.admit(at(1_002)), None);
        assert_eq!([60_000; 3].map(|ms| limiter.admit(at(ms))), [Some(1), Some(0), Some(0)]);
        assert_eq!(limiter.admit(at(60_000)), None);
    }
}
