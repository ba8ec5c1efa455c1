//! When to dial again after failures.

use std::time::Duration;

/// Exponential growth up to a cap. Half of each delay is chance, so that nodes do not dial in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// No failure so far.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// A dial failed: how long to wait, for a random number.
    pub fn failed(&mut self, random: u64) -> Duration {
        let full = self
            .base
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let full = full.min(self.cap);
        self.failures = (self.failures + 1).min(31);
        let half = u64::try_from((full / 2).as_nanos()).unwrap_or(u64::MAX);
        full / 2 + Duration::from_nanos(random % half.saturating_add(1))
    }

    /// It went well, or there is news of the peer: the next delay is short again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: Duration = Duration::from_millis(50);
    const CAP: Duration = Duration::from_secs(1);

    proptest! {
        #[test]
        fn delays_stay_between_half_of_the_step_and_the_step(randoms in proptest::collection::vec(any::<u64>(), 1..60)) {
            let mut backoff = Backoff::new(BASE, CAP);
            for (failures, random) in randoms.into_iter().enumerate() {
                let step = if failures < 5 { BASE * (1 << failures) } else { CAP };
                let delay = backoff.failed(random);
                prop_assert!(step.min(CAP) / 2 <= delay && delay <= step.min(CAP));
            }
        }
    }

    #[test]
    fn news_of_the_peer_begins_anew() {
        let mut backoff = Backoff::new(BASE, CAP);
        for _ in 0..9 {
            backoff.failed(7);
        }
        backoff.reset();
        assert!(backoff.failed(u64::MAX) <= BASE);
    }
}
