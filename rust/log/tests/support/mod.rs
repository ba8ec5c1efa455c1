//! What the log's tests share: seeds, and a log's content as a plain value.
#![allow(dead_code, reason = "each test binary uses its part")]

use jobs_log::{Disk, Entry, Log, Options};

pub const OPTIONS: Options = Options {
    segment_bytes: 64 << 10,
    salt: 0x5eed,
};

/// Everything that a log says it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub first_index: u64,
    pub entries: Vec<Entry>,
    pub hard_state: (u64, Option<String>),
}

impl Content {
    pub fn empty() -> Self {
        Self {
            first_index: 1,
            entries: Vec::new(),
            hard_state: (0, None),
        }
    }

    pub fn of<D: Disk>(log: &Log<D>) -> Self {
        let entries = log
            .entries(log.first_index(), usize::MAX, usize::MAX)
            .expect("a good log can be read");
        assert_eq!(log.first_index() + entries.len() as u64, log.last_index() + 1);
        for entry in &entries {
            assert_eq!(log.term_at(entry.index), Some(entry.term));
        }
        let (term, vote) = log.hard_state();
        Self {
            first_index: log.first_index(),
            entries,
            hard_state: (term, vote.map(str::to_owned)),
        }
    }

    pub fn next_index(&self) -> u64 {
        self.first_index + self.entries.len() as u64
    }
}

/// Run a scenario for many seeds, or for the one in `JOBS_TEST_SEED`; a failure prints its seed.
pub fn for_seeds(count: u64, scenario: impl Fn(u64)) {
    let env = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number"))
    };
    let seeds = match env("JOBS_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..count * env("JOBS_TEST_SCALE").unwrap_or(1),
    };
    for seed in seeds {
        if let Err(failure) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("replay with JOBS_TEST_SEED={seed}");
            std::panic::resume_unwind(failure);
        }
    }
}
