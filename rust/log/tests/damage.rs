//! Damaged files: a torn tail is cut and said to be, anything else refuses to open, and no wrong entry is ever read.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use jobs_log::format::{
    HEAD_BYTES, HEADER_BYTES, Header, Kind, Seal, decode_header, decode_record, encode_header, encode_record,
    record_bytes,
};
use jobs_log::sim::Random;
use jobs_log::{Entry, Log, LogError, RealDisk, Result};
use proptest::prelude::*;
use support::{Content, OPTIONS};
use tempfile::TempDir;

fn open(directory: &Path) -> Result<Log<RealDisk>> {
    Log::open(RealDisk::open(directory)?, OPTIONS)
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    found.sort();
    found
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for path in segments(from) {
        fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

/// Every record of a segment file: where it begins and what it says.
fn records(path: &Path) -> Vec<(usize, Kind, Entry)> {
    let data = fs::read(path).unwrap();
    let header = decode_header(&data).unwrap();
    let seal = Seal::new(header.salt, header.number);
    let mut offset = HEADER_BYTES;
    let mut found = Vec::new();
    while let Some((head, payload)) = data.get(offset..).and_then(|rest| decode_record(seal, offset, rest)) {
        let entry = Entry {
            index: head.index,
            term: head.term,
            payload: payload.to_vec(),
        };
        found.push((offset, head.kind, entry));
        offset += head.record_bytes();
    }
    found
}

/// A log of batches of entries, each batch synced.
fn write(directory: &Path, batches: &[Vec<usize>]) -> Content {
    let mut random = Random::new(1);
    let mut log = open(directory).unwrap();
    for batch in batches {
        for len in batch {
            let payload = random.bytes(*len);
            log.append(log.last_index() + 1, 3, &payload).unwrap();
        }
        log.sync().unwrap();
    }
    Content::of(&log)
}

fn assert_names(error: &LogError, file: &Path, expected: usize) {
    let LogError::Corrupt {
        file: named, offset, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (named.file_name(), *offset),
        (file.file_name(), expected as u64),
        "{error}"
    );
    assert!(error.to_string().contains(&format!("byte {expected}")), "{error}");
}

#[test]
fn a_log_cut_at_any_byte_of_its_last_records_keeps_the_whole_ones() {
    // given a log, one sync an entry
    let home = tempfile::tempdir().unwrap();
    let whole = write(home.path(), &(0..9).map(|number| vec![number * 13]).collect::<Vec<_>>());
    let file = segments(home.path()).pop().unwrap();
    let records = records(&file);
    let last = records.last().unwrap();
    let end = last.0 + record_bytes(last.2.payload.len());
    let first_cut = records[records.len() - 5].0;

    for cut in first_cut..=end {
        for shorten in [true, false] {
            // when its file ends there, or is zeros from there on
            let damaged = copy(home.path());
            let path = segments(damaged.path()).pop().unwrap();
            let mut data = fs::read(&path).unwrap();
            if shorten {
                data.truncate(cut);
            } else {
                data[cut..].fill(0);
            }
            fs::write(&path, &data).unwrap();

            // then every entry that is whole is there, and what was cut is said (unless the cut leaves no trace)
            let mut log = open(damaged.path()).unwrap();
            let kept = records
                .iter()
                .filter(|record| record.0 + HEAD_BYTES + record.2.payload.len() <= cut)
                .count();
            // Zeros can stand for the end of a payload that ends in zeros.
            let found = Content::of(&log);
            assert!(found.entries.len() >= kept, "cut at {cut}");
            assert_eq!(found.entries[..], whole.entries[..found.entries.len()], "cut at {cut}");
            assert!(found.entries.len() == kept || !shorten, "cut at {cut}");
            let boundary = found.entries.last().map_or(HEADER_BYTES, |entry| {
                let begin = records.iter().find(|record| record.2 == *entry).unwrap().0;
                begin + record_bytes(entry.payload.len())
            });
            let trace = data.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            assert_eq!(
                log.recovered().is_some(),
                trace > boundary,
                "cut at {cut}: {:?}",
                log.recovered()
            );
            if let Some(recovered) = log.recovered() {
                assert!(recovered.contains(&format!("at byte {boundary}")), "{recovered}");
            }

            // and it goes on from there
            let next = log.last_index() + 1;
            log.append(next, 4, b"after").unwrap();
            log.sync().unwrap();
            drop(log);
            let log = open(damaged.path()).unwrap();
            assert_eq!(log.recovered(), None);
            assert_eq!(log.get(next).unwrap().unwrap().payload, b"after");
            assert_eq!(log.last_index(), next);
        }
    }
}

#[test]
fn damage_before_the_tail_names_file_and_offset() {
    // given batches of several entries, the second damaged at each of its bytes
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &[vec![30, 31], vec![32, 33], vec![34, 35]]);
    let file = segments(home.path()).pop().unwrap();
    let records = records(&file);
    let (begin, third) = (records[2].0, records[3].0);
    for at in begin..begin + HEAD_BYTES + 32 {
        let damaged = copy(home.path());
        let path = segments(damaged.path()).pop().unwrap();
        let mut data = fs::read(&path).unwrap();
        data[at] ^= 0x10;
        fs::write(&path, &data).unwrap();
        assert_names(&open(damaged.path()).err().unwrap(), &path, begin);
    }

    // when all of it is zeros, which a crash cannot do to what was synced, then too
    let path = segments(home.path()).pop().unwrap();
    let mut data = fs::read(&path).unwrap();
    data[begin..third].fill(0);
    fs::write(&path, &data).unwrap();
    assert_names(&open(home.path()).err().unwrap(), &path, begin);
}

#[test]
fn damage_in_an_older_segment_names_file_and_offset() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &(0..8).map(|_| vec![20_000]).collect::<Vec<_>>());
    let files = segments(home.path());
    assert!(files.len() > 2);
    let last = records(&files[0]).pop().unwrap().0;
    let mut data = fs::read(&files[0]).unwrap();
    data[last + HEAD_BYTES] ^= 1;
    fs::write(&files[0], &data).unwrap();
    assert_names(&open(home.path()).err().unwrap(), &files[0], last);
}

#[test]
fn missing_renamed_and_foreign_segments_are_refused() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &(0..12).map(|_| vec![20_000]).collect::<Vec<_>>());
    let files = segments(home.path());
    assert!(files.len() > 3);
    let refused = |change: &dyn Fn(&[PathBuf])| {
        let copied = copy(home.path());
        change(&segments(copied.path()));
        let error = open(copied.path()).err().expect("refused");
        assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    };
    refused(&|files| fs::remove_file(&files[0]).unwrap());
    refused(&|files| fs::remove_file(&files[1]).unwrap());
    refused(&|files| {
        for path in &files[..files.len() - 1] {
            fs::remove_file(path).unwrap();
        }
    });
    refused(&|files| fs::rename(&files[1], &files[0]).unwrap());
    refused(&|files| fs::write(&files[1], b"JOBSLOG").unwrap());
    let foreign = Header {
        salt: OPTIONS.salt + 1,
        number: 2,
        first_index: 1,
        next_index: 4,
        ..Header::default()
    };
    refused(&|files| fs::write(&files[1], encode_header(&foreign)).unwrap());
}

#[test]
fn a_log_whose_only_segment_left_has_no_entries_is_refused() {
    // given a log that has begun another segment, whose first entry never reached the disk
    let home = tempfile::tempdir().unwrap();
    let mut log = open(home.path()).unwrap();
    while segments(home.path()).len() < 2 {
        log.append(log.last_index() + 1, 1, &[1; 9_000]).unwrap();
    }
    drop(log);

    // when the segment with all the entries is gone, then that is not an empty log
    let files = segments(home.path());
    fs::remove_file(&files[0]).unwrap();
    assert_names(&open(home.path()).err().unwrap(), &files[1], 0);
}

#[test]
fn a_segment_of_another_version_is_refused() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &[vec![10]]);
    let file = segments(home.path()).pop().unwrap();
    let mut data = fs::read(&file).unwrap();
    data[8] = 2;
    let crc = crc32c::crc32c(&data[..HEADER_BYTES - 4]);
    data[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    fs::write(&file, &data).unwrap();
    assert_names(&open(home.path()).err().unwrap(), &file, 0);
}

#[test]
fn a_payload_cannot_pass_for_the_witness_of_a_corruption() {
    // given a payload full of records that only lack the log's salt, each saying that all before it was durable
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &[vec![10]]);
    let begin = HEADER_BYTES + record_bytes(10);
    let mut payload = Vec::new();
    for position in 0..50 {
        let offset = u32::try_from(begin + HEAD_BYTES + position * HEAD_BYTES).unwrap();
        encode_record(
            &mut payload,
            Seal::new(1, 1),
            Kind::Entry,
            (offset, offset),
            (2, 3),
            b"",
        );
    }
    let mut log = open(home.path()).unwrap();
    log.append(2, 3, &payload).unwrap();
    log.sync().unwrap();
    drop(log);

    // when the entry with it is torn at its head
    let file = segments(home.path()).pop().unwrap();
    let mut data = fs::read(&file).unwrap();
    data[begin] ^= 1;
    fs::write(&file, &data).unwrap();

    // then that is a torn tail
    let log = open(home.path()).unwrap();
    assert_eq!(log.last_index(), 1);
    assert!(log.recovered().unwrap().contains(&format!("at byte {begin}")));
}

#[test]
fn damage_under_an_open_log_is_an_error_and_not_a_wrong_entry() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &[vec![100, 100]]);
    let log = open(home.path()).unwrap();
    let file = segments(home.path()).pop().unwrap();
    let mut data = fs::read(&file).unwrap();
    data[HEADER_BYTES + HEAD_BYTES + 5] ^= 1;
    fs::write(&file, &data).unwrap();
    assert_names(&log.get(1).unwrap_err(), &file, HEADER_BYTES);
    assert_names(&log.entries(1, 10, 1000).unwrap_err(), &file, HEADER_BYTES);
    assert_eq!(log.get(2).unwrap().unwrap().index, 2);
}

#[test]
fn a_second_opener_is_refused_until_the_first_is_gone() {
    let home = tempfile::tempdir().unwrap();
    let log = open(home.path()).unwrap();
    assert!(matches!(open(home.path()), Err(LogError::Locked(_))));
    drop(log);
    open(home.path()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_make_a_wrong_entry(
        batches in proptest::collection::vec(proptest::collection::vec(0_usize..9_000, 1..6), 1..12),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let home = tempfile::tempdir().unwrap();
        let whole = write(home.path(), &batches);
        let files = segments(home.path());
        let records: Vec<_> = files.iter().map(|path| records(path)).collect();
        let (last_batch, last_file) = (batches.last().unwrap().len(), files.len() - 1);
        // Where the last batch begins in the last file: from there on it may be cut.
        let tail = &records[last_file];
        let cuttable = tail[tail.len().saturating_sub(last_batch)..].first().map_or(HEADER_BYTES, |record| record.0);
        let mut must_refuse = false;
        let mut before_damage = whole.entries.len();
        for (file, offset, bits) in &flips {
            let file = file.index(files.len());
            let mut data = fs::read(&files[file]).unwrap();
            // Aim at what is used, and now and then a little beyond.
            let end = records[file].last().map_or(HEADER_BYTES, |it| it.0 + record_bytes(it.2.payload.len()));
            let at = offset.index((end + 64).min(data.len()));
            data[at] ^= bits;
            fs::write(&files[file], &data).unwrap();
            must_refuse |= flips.len() == 1 && at < HEADER_BYTES;
            let covered = |it: &&(usize, Kind, Entry)| (it.0..it.0 + HEAD_BYTES + it.2.payload.len()).contains(&at);
            if let Some((begin, _, entry)) = records[file].iter().find(covered) {
                must_refuse |= flips.len() == 1 && (file < last_file || *begin < cuttable);
                before_damage = before_damage.min(usize::try_from(entry.index - 1).unwrap());
            }
        }
        match open(home.path()) {
            Ok(log) => {
                let found = Content::of(&log);
                prop_assert!(!must_refuse, "durable entries were cut: {:?}", log.recovered());
                prop_assert_eq!(&found.entries[..], &whole.entries[..found.entries.len()]);
                prop_assert!(found.entries.len() >= before_damage || flips.len() > 1);
                prop_assert_eq!(found.entries.len() < whole.entries.len(), log.recovered().is_some_and(
                    |cut| !cut.contains(&format!("after entry {}", whole.entries.len()))));
            }
            Err(LogError::Corrupt { file, .. }) => prop_assert!(files.contains(&file)),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
