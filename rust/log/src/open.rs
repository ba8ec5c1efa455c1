//! Opening a log: find its segments, replay them, make what they say durable.

use std::collections::VecDeque;

use jobs_failpoint::{Point, pass};

use crate::disk::{Disk, File};
use crate::error::{LogError, Result};
use crate::format::{Header, decode_header};
use crate::log::Options;
use crate::recovery::{State, Tail, corrupt, replay};
use crate::segment::{Segment, segment_name, segment_numbers, write_all, write_zeros};

/// A log as it was found.
pub(crate) struct Found<F> {
    pub salt: u64,
    pub segments: VecDeque<Segment<F>>,
    pub state: State,
    /// What was cut, in words.
    pub recovered: Option<String>,
}

/// Find the log on a disk, or begin one where there is none.
pub(crate) fn find<D: Disk>(disk: &D, options: &Options) -> Result<Found<D::File>> {
    let mut numbers = segment_numbers(disk)?;
    if numbers.is_empty() {
        let header = Header {
            salt: options.salt,
            number: 1,
            first_index: 1,
            next_index: 1,
            ..Header::default()
        };
        Segment::create(disk, &header, options.segment_bytes)?;
        numbers.push(header.number);
    }
    // A process killed between a segment's rename and this sync leaves a name that a power cut would take away.
    disk.sync_directory()
        .map_err(LogError::io("sync the log's directory"))?;
    // A crash while old segments were removed can leave a gap behind those that count.
    let gap = numbers
        .windows(2)
        .rposition(|pair| pair[0] + 1 != pair[1])
        .map_or(0, |at| at + 1);
    let (leftover, run) = numbers.split_at(gap);
    let found = read_run(disk, run, options.segment_bytes)?;
    for number in leftover {
        let name = segment_name(*number);
        disk.remove(&name)
            .map_err(LogError::io(format!("remove {}", disk.path(&name).display())))?;
    }
    Ok(found)
}

/// Replay segments with consecutive numbers and repair the end of the last.
fn read_run<D: Disk>(disk: &D, run: &[u32], segment_bytes: usize) -> Result<Found<D::File>> {
    let mut data = Vec::new();
    let mut segments = VecDeque::new();
    let mut replayed: Option<(u64, State, Tail)> = None;
    for (position, &number) in run.iter().enumerate() {
        let path = disk.path(&segment_name(number));
        let file = disk
            .open(&segment_name(number))
            .map_err(LogError::io(format!("open {}", path.display())))?;
        read_whole(&file, &mut data).map_err(LogError::io(format!("read {}", path.display())))?;
        let header = decode_header(&data).map_err(|problem| corrupt(&path, 0, problem))?;
        let (salt, mut state) =
            replayed.map_or_else(|| (header.salt, State::new(&header)), |(salt, state, _)| (salt, state));
        if (header.salt, header.number) != (salt, number) {
            return Err(corrupt(&path, 0, "the segment is of another log, or has been renamed"));
        }
        let tail = replay(&path, &header, &data, position + 1 == run.len(), &mut state)?;
        segments.push_back(Segment::existing(
            &header,
            file,
            segment_bytes.max(data.len()),
            tail.end,
        ));
        replayed = Some((salt, state, tail));
    }
    let (salt, state, tail) = replayed.expect("a run has segments");
    if state.first_index < state.index.first() {
        let problem = format!(
            "entries {}..{} are missing: they were in a segment before this one",
            state.first_index,
            state.index.first()
        );
        return Err(corrupt(&disk.path(&segment_name(run[0])), 0, problem));
    }
    let newest = segments.back().expect("a run has segments");
    let path = disk.path(&newest.name);
    repair(&*newest.file, &data, &tail).map_err(LogError::io(format!("repair the end of {}", path.display())))?;
    let recovered = (tail.dirty_end > tail.end).then(|| {
        format!(
            "{}: cut a torn tail of {} bytes at byte {}, after entry {}",
            path.display(),
            tail.dirty_end - tail.end,
            tail.end,
            state.next_index().saturating_sub(1),
        )
    });
    Ok(Found {
        salt,
        segments,
        state,
        recovered,
    })
}

fn read_whole(file: &impl File, data: &mut Vec<u8>) -> std::io::Result<()> {
    let size = usize::try_from(file.size()?).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
    data.resize(size, 0);
    file.read_at(data, 0)
}

/// Make the end of the last segment what it was read as.
fn repair(file: &impl File, data: &[u8], tail: &Tail) -> std::io::Result<()> {
    let end = tail.end.min(data.len());
    pass(Point::LogRepairBefore)?;
    // Zeros over the torn tail, so that records to come cannot be followed by pieces of it.
    write_zeros(file, end, tail.dirty_end)?;
    // Records that no sync is known to have covered may have been read from a page cache that a failed sync has
    // marked clean: a sync alone would claim them durable without writing them.
    write_all(file, &data[tail.synced.min(end)..end], tail.synced.min(end))?;
    // Only then may anybody see them: what was read once must be there after the next crash.
    pass(Point::LogRepairSyncBefore)?;
    file.sync()
}
