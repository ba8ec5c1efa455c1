//! Power cuts at any operation, one after the other on the same disk: what was synced is there, and the log is at a
//! state that it had, never at a mixture.

mod support;

use jobs_log::sim::{Fault, Operation, Random, SimDisk};
use jobs_log::{Entry, Log};

use support::{Content, OPTIONS, for_seeds};

/// A log under test beside a plain value of what it should hold.
struct Run {
    log: Log<SimDisk>,
    random: Random,
    /// States since the last sync, the oldest of them durable.
    states: Vec<Content>,
}

impl Run {
    fn now(&self) -> &Content {
        self.states.last().expect("there is a state")
    }

    /// Do one random operation. An error means that the power is off; the operation may then count or not.
    fn step(&mut self) -> jobs_log::Result<()> {
        match self.random.below(20) {
            0..=10 => self.append(),
            11..=15 => {
                self.log.sync()?;
                self.settle();
                Ok(())
            }
            16 => self.truncate_suffix(),
            17 => self.truncate_prefix(),
            _ => self.set_hard_state(),
        }
    }

    fn settle(&mut self) {
        self.states.drain(..self.states.len() - 1);
        assert_eq!(self.log.durable_index(), self.log.last_index());
    }

    /// Expect `content` after an operation that syncs if it changes something.
    fn durably(&mut self, content: Content, result: jobs_log::Result<()>) -> jobs_log::Result<()> {
        if content == *self.now() {
            return result;
        }
        self.states.push(content);
        result?;
        self.settle();
        Ok(())
    }

    fn append(&mut self) -> jobs_log::Result<()> {
        let len = if self.random.one_in(30) { 100_000 } else { 3_000 };
        let len = self.random.size(len);
        let payload = self.random.bytes(len);
        let mut content = self.now().clone();
        if content.entries.is_empty() && self.random.one_in(3) {
            content.first_index = 1 + self.random.below(500);
            self.states.push(content.clone());
        }
        let (index, term) = (content.next_index(), content.hard_state.0);
        content.entries.push(Entry {
            index,
            term,
            payload: payload.clone(),
        });
        self.states.push(content);
        self.log.append(index, term, &payload)
    }

    fn truncate_suffix(&mut self) -> jobs_log::Result<()> {
        let mut content = self.now().clone();
        let keep = self.random.size(content.entries.len() + 1);
        content.entries.truncate(keep);
        let result = self.log.truncate_suffix(content.next_index());
        self.durably(content, result)
    }

    fn truncate_prefix(&mut self) -> jobs_log::Result<()> {
        let mut content = self.now().clone();
        let beyond = if self.random.one_in(5) {
            self.random.below(20)
        } else {
            0
        };
        let drop = self.random.size(content.entries.len() + 1);
        content.first_index += drop as u64;
        content.entries.drain(..drop);
        if content.entries.is_empty() {
            content.first_index += beyond;
        }
        let result = self.log.truncate_prefix(content.first_index);
        self.durably(content, result)
    }

    fn set_hard_state(&mut self) -> jobs_log::Result<()> {
        let mut content = self.now().clone();
        let vote = self.random.one_in(2).then(|| format!("node-{}", self.random.below(5)));
        content.hard_state = (content.hard_state.0 + 1, vote.clone());
        let result = self.log.set_hard_state(content.hard_state.0, vote.as_deref());
        self.durably(content, result)
    }
}

/// Find the log after a crash at one of the states it may be in, with all that was durable.
fn reopen(disk: &SimDisk, states: &[Content]) -> (Log<SimDisk>, Content) {
    let log = Log::open(disk.clone(), OPTIONS).expect("a crash is no corruption");
    let content = Content::of(&log);
    assert!(
        states.contains(&content),
        "found first {} next {} {:?}; possible: {:?}",
        content.first_index,
        content.next_index(),
        content.hard_state,
        states
            .iter()
            .map(|it| (it.first_index, it.next_index(), it.hard_state.clone()))
            .collect::<Vec<_>>()
    );
    (log, content)
}

#[test]
fn what_was_synced_survives_power_cuts_at_any_operation() {
    for_seeds(150, |seed| {
        let mut random = Random::new(seed);
        let mut disk = SimDisk::new(random.number());
        let mut states = vec![Content::empty()];
        for _round in 0..8 {
            let (log, content) = reopen(&disk, &states);
            let mut run = Run {
                log,
                random: random.clone(),
                states: vec![content],
            };
            disk.fail_after(run.random.size(80), Fault::PowerCut);
            while run.step().is_ok() {
                if run.random.one_in(10) {
                    assert_eq!(Content::of(&run.log), *run.now());
                }
            }
            // Now and then only the process dies, and now and then the power fails again while the log is repaired.
            disk = if run.random.one_in(4) {
                disk.after_kill()
            } else {
                disk.after_power_cut()
            };
            while run.random.one_in(2) {
                disk.fail_after(run.random.size(6), Fault::PowerCut);
                let _ = Log::open(disk.clone(), OPTIONS);
                disk = disk.after_power_cut();
            }
            (random, states) = (run.random, run.states);
        }
    });
}

#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_durable_once_it_was_read() {
    for_seeds(100, |seed| {
        // given a log whose sync failed, so that the system calls its pages clean without having written them
        let disk = SimDisk::new(seed);
        let mut log = Log::open(disk.clone(), OPTIONS).unwrap();
        log.append(1, 1, b"acknowledged").unwrap();
        log.sync().unwrap();
        for index in 2..10 {
            log.append(index, 1, &[7; 600]).unwrap();
        }
        disk.fail_next(Operation::Sync, Fault::Eio);
        log.sync().unwrap_err();
        drop(log);

        // when a new process finds the entries and says that they are durable
        let disk = disk.after_kill();
        let log = Log::open(disk.clone(), OPTIONS).unwrap();
        let found = Content::of(&log);
        assert_eq!(log.durable_index(), log.last_index());
        assert_eq!(found.entries.len(), 9);
        drop(log);

        // then a power cut does not take them
        let log = Log::open(disk.after_power_cut(), OPTIONS).unwrap();
        assert_eq!(Content::of(&log), found);
    });
}

#[test]
fn a_truncation_over_several_segments_is_whole_or_not_there() {
    for_seeds(100, |seed| {
        // given entries in many segments
        let disk = SimDisk::new(seed);
        let mut log = Log::open(disk.clone(), OPTIONS).unwrap();
        for index in 1..=100 {
            log.append(index, 1, &[1; 5_000]).unwrap();
        }
        log.sync().unwrap();
        let whole = Content::of(&log);

        // when the power fails somewhere in the truncation of most of them
        let mut random = Random::new(seed);
        let from = 1 + random.below(100);
        let mut cut = whole.clone();
        cut.entries.truncate(usize::try_from(from - 1).unwrap());
        disk.fail_after(random.size(4), Fault::PowerCut);
        let done = log.truncate_suffix(from).is_ok();

        // then the log is as before or as after, and as after if that was said
        let found = Content::of(&Log::open(disk.after_power_cut(), OPTIONS).unwrap());
        assert!(
            found == cut || (found == whole && !done),
            "{} entries",
            found.entries.len()
        );
    });
}
