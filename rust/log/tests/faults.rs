//! A disk that fails: every operation of a script, with every kind of fault.

mod support;

use jobs_log::sim::{Fault, Operation, SimDisk};
use jobs_log::{Log, LogError, Result};

use support::{Content, OPTIONS};

/// Acknowledged steps that use everything: segments that roll, both truncations, votes, many writes before a sync.
/// Calls `acknowledged` after each.
fn script(log: &mut Log<SimDisk>, mut acknowledged: impl FnMut(&Log<SimDisk>)) -> Result<()> {
    for index in 1..=12 {
        log.append(index, 1, &[1; 9_000])?;
        if index % 3 == 0 {
            log.sync()?;
            acknowledged(log);
        }
    }
    log.set_hard_state(2, Some("node-b"))?;
    acknowledged(log);
    log.truncate_suffix(9)?;
    acknowledged(log);
    for index in 9..=20 {
        log.append(index, 2, &[2; 9_000])?;
    }
    log.sync()?;
    acknowledged(log);
    log.truncate_prefix(15)?;
    acknowledged(log);
    Ok(())
}

fn operations_of_script() -> Vec<Operation> {
    let disk = SimDisk::new(0);
    let mut log = Log::open(disk.clone(), OPTIONS).unwrap();
    let opening = disk.operations().len();
    script(&mut log, |_| ()).unwrap();
    disk.operations().split_off(opening)
}

/// Run the script with one fault; return the disk, the log, what was acknowledged last, and how it ended.
fn run(number: usize, fault: Fault) -> (SimDisk, Log<SimDisk>, Content, Result<()>) {
    let disk = SimDisk::new(number as u64);
    let mut log = Log::open(disk.clone(), OPTIONS).unwrap();
    disk.fail_after(number, fault);
    let mut last = Content::of(&log);
    let result = script(&mut log, |log| last = Content::of(log));
    (disk, log, last, result)
}

/// Whether every acknowledged entry that no later step of the script drops is found, with the vote.
fn assert_keeps(found: &Content, acknowledged: &Content, context: &str) {
    assert!(
        found.hard_state.0 >= acknowledged.hard_state.0,
        "{context}: the vote is lost"
    );
    let dropped_later = 9..=12;
    for entry in &acknowledged.entries {
        let there = found.entries.contains(entry);
        let droppable = entry.term == 1 && dropped_later.contains(&entry.index) || entry.index < found.first_index;
        assert!(
            there || droppable,
            "{context}: entry {} of term {} is lost",
            entry.index,
            entry.term
        );
    }
    assert!(
        found.first_index == 1 || found.first_index == 15,
        "{context}: begins at {}",
        found.first_index
    );
}

fn assert_refuses_everything(log: &mut Log<SimDisk>, context: &str) {
    let next = log.last_index() + 1;
    let answers = [
        log.append(next, 9, b"late").err(),
        log.sync().err(),
        log.get(1).err(),
        log.entries(1, 10, 10).err(),
        log.truncate_suffix(1).err(),
        log.truncate_prefix(next).err(),
        log.set_hard_state(9, None).err(),
    ];
    for answer in answers {
        assert!(matches!(answer, Some(LogError::Poisoned(_))), "{context}: {answer:?}");
    }
}

#[test]
fn the_script_meets_every_kind_of_operation() {
    let seen = operations_of_script();
    for kind in [
        Operation::Create,
        Operation::Allocate,
        Operation::Write,
        Operation::Sync,
        Operation::Rename,
        Operation::Remove,
        Operation::SyncDirectory,
    ] {
        assert!(seen.contains(&kind), "{kind:?}");
    }
}

#[test]
fn short_and_interrupted_writes_change_nothing() {
    for (number, kind) in operations_of_script().into_iter().enumerate() {
        for fault in [Fault::Short, Fault::Interrupted] {
            if kind == Operation::Write {
                let (disk, log, _, result) = run(number, fault);
                result.unwrap();
                let expected = Content::of(&log);
                let found = Content::of(&Log::open(disk.after_power_cut(), OPTIONS).unwrap());
                assert_eq!(found, expected, "{fault:?} at operation {number}");
            }
        }
    }
}

#[test]
fn a_failed_operation_is_told_poisons_the_log_and_loses_nothing_acknowledged() {
    for (number, kind) in operations_of_script().into_iter().enumerate() {
        // given a disk that fails once, at this operation
        let (disk, mut log, acknowledged, result) = run(number, Fault::Eio);
        let context = format!("EIO at operation {number}, {kind:?}");

        // then the error is told, and nothing is tried again on what may be lost
        assert!(matches!(result, Err(LogError::Io { .. })), "{context}: {result:?}");
        if kind == Operation::Remove {
            // Nothing is unknown then: the old segment is merely still there.
            log.truncate_prefix(15).unwrap();
            assert_eq!(Content::of(&log).first_index, 15, "{context}");
        } else {
            let before = disk.operations().len();
            assert_refuses_everything(&mut log, &context);
            assert_eq!(disk.operations().len(), before, "{context}: the disk was touched again");
        }

        // and whoever opens the log again finds all that was acknowledged
        for disk in [disk.after_kill(), disk.after_power_cut()] {
            let log = Log::open(disk, OPTIONS).expect(&context);
            assert_keeps(&Content::of(&log), &acknowledged, &context);
        }
    }
}

#[test]
fn a_full_disk_is_told_before_anything_changed_and_the_log_goes_on_when_there_is_room() {
    let mut met = 0;
    for (number, kind) in operations_of_script().into_iter().enumerate() {
        if !matches!(kind, Operation::Create | Operation::Allocate) {
            continue;
        }
        met += 1;
        // given a log that gets no further segment
        let disk = SimDisk::new(7);
        let mut log = Log::open(disk.clone(), OPTIONS).unwrap();
        disk.fail_after(number, Fault::Enospc);
        let mut index = 0;
        let error = loop {
            index += 1;
            if let Err(error) = log.append(index, 1, &[1; 9_000]) {
                break error;
            }
            if index % 3 == 0 {
                log.sync().unwrap();
            }
        };
        assert!(matches!(error, LogError::DiskFull { .. }), "{error}");
        assert_eq!(log.last_index(), index - 1);

        // when there is room again, then the same entry is taken and survives
        log.append(index, 1, &[1; 9_000]).unwrap();
        log.sync().unwrap();
        let expected = Content::of(&log);
        drop(log);
        assert_eq!(
            Content::of(&Log::open(disk.after_power_cut(), OPTIONS).unwrap()),
            expected
        );
        if met == 2 {
            break;
        }
    }
    assert_eq!(met, 2, "the script makes segments");
}

#[test]
fn on_a_full_disk_the_log_can_still_be_cut_and_a_vote_persisted() {
    // given a log whose last segment takes no further entry, however small, on a disk without room for another
    let disk = SimDisk::new(3);
    let mut log = Log::open(disk.clone(), OPTIONS).unwrap();
    let mut index = 1;
    while disk.list_segments() < 3 {
        log.append(index, 1, &[1; 1_000]).unwrap();
        index += 1;
    }
    loop {
        disk.fail_next(Operation::Allocate, Fault::Enospc);
        match log.append(index, 1, b"") {
            Ok(()) => index += 1,
            Err(error) => break assert!(matches!(error, LogError::DiskFull { .. }), "{error}"),
        }
    }

    // when a snapshot lets old entries go, then it makes room
    log.set_hard_state(4, Some("node-c")).unwrap();
    disk.fail_next(Operation::Allocate, Fault::Enospc);
    log.truncate_prefix(index - 2).unwrap();
    assert_eq!(disk.list_segments(), 1);
    assert_eq!(log.first_index(), index - 2);
}

#[test]
fn a_sync_that_failed_in_opening_is_told() {
    let disk = SimDisk::new(1);
    drop(Log::open(disk.clone(), OPTIONS).unwrap());
    for operation in [Operation::SyncDirectory, Operation::Sync] {
        let disk = disk.after_kill();
        disk.fail_next(operation, Fault::Eio);
        let error = Log::open(disk.clone(), OPTIONS).err().expect("it failed");
        assert!(matches!(error, LogError::Io { .. }), "{error}");
        Log::open(disk.after_kill(), OPTIONS).unwrap();
    }
}
