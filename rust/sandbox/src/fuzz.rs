//! What must hold for whatever bytes come in: from the worker as requests, from a job as output and notes.
//!
//! The bodies of the targets in rust/fuzz; the inputs that are kept there are tried again by this module's tests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::cgroup::Controllers;
use crate::notes::{self, Notes};
use crate::output::{Output, Stream};
use crate::plan::{CgroupLimits, INPUTS_DIRECTORY, Means, Place, Plan, plan};
use crate::protocol::{Decoder, Level, MAX_FRAME_BYTES, NetworkKind, ProtocolError, Request, Spawn};

/// A worker's bytes, of which the first says how large the pieces are that they come in.
pub fn requests(data: &[u8]) {
    let Some((size, stream)) = data.split_first() else {
        return;
    };
    let whole = read_requests([stream]);
    let pieces = read_requests(stream.chunks(usize::from(*size) + 1));
    assert_eq!(
        format!("{whole:?}"),
        format!("{pieces:?}"),
        "the pieces change what is read"
    );
    for request in whole.0 {
        if let Request::Spawn(spawn) = request {
            for means in all_means() {
                if let Ok(planned) = plan(&spawn, &means) {
                    check_plan(&spawn, &means, &planned);
                }
            }
        }
    }
}

fn read_requests<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Request>, Option<String>) {
    let (mut decoder, mut requests) = (Decoder::default(), Vec::new());
    for piece in pieces {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(error) => {
                    assert!(!matches!(error, ProtocolError::TooLong(length) if length <= MAX_FRAME_BYTES));
                    return (requests, Some(error.to_string()));
                }
            }
        }
    }
    (requests, None)
}

fn all_means() -> impl Iterator<Item = Means> {
    [(false, false), (true, false), (false, true), (true, true)]
        .into_iter()
        .flat_map(|(first, second)| {
            [Level::Strict, Level::Standard].map(|level| Means {
                level,
                accepted: if first { Level::Strict } else { Level::Standard },
                allow_host_network: first,
                cgroup: second.then_some(Controllers { cpu: first, io: true }),
                has_inputs: second,
                directories: None,
                roots: BTreeSet::from(["named".into()]),
                has_root_cache: second,
                has_layers: first,
            })
        })
        .chain([Means {
            level: Level::None,
            accepted: Level::None,
            allow_host_network: true,
            cgroup: None,
            has_inputs: true,
            directories: Some("/jobs".into()),
            roots: BTreeSet::new(),
            has_root_cache: false,
            has_layers: false,
        }])
}

fn check_plan(spawn: &Spawn, means: &Means, plan: &Plan) {
    assert!(means.level >= means.accepted, "weaker than what is accepted");
    let is_host = plan.network == NetworkKind::Host;
    assert!(plan.level == means.level || is_host && plan.level <= means.level);
    assert!(!is_host || means.allow_host_network, "the host's network, not allowed");
    assert_eq!(plan.connect.is_empty(), plan.network != NetworkKind::Listed);
    assert!(!plan.argv.is_empty() && !plan.candidates.is_empty());
    assert!(plan.working_directory.to_bytes().starts_with(b"/"));
    for variable in &plan.environment {
        let text = variable.to_bytes();
        assert!(
            text.iter().position(|byte| *byte == b'=').is_some_and(|at| at > 0),
            "{variable:?}"
        );
    }
    assert_eq!(plan.files.len(), spawn.files.len());
    for file in &plan.files {
        check_place(&file.place);
        assert!(spawn.files.contains_key(&file.key));
    }
    assert!(plan.inputs.is_empty() || means.has_inputs);
    for input in &plan.inputs {
        check_place(&input.place);
        let entry = input.source.to_bytes().strip_prefix(INPUTS_DIRECTORY.as_bytes());
        check_name(
            entry
                .and_then(|entry| entry.strip_prefix(b"/"))
                .expect("an entry of the directory"),
        );
    }
    for name in plan.secrets.iter().flat_map(|secrets| &secrets.names) {
        check_name(name.to_bytes());
    }
    if let Some(name) = &plan.directory {
        check_name(name.to_bytes());
    }
    assert!(plan.limits.len() >= 3, "limits that hold for all");
    assert!(means.cgroup.is_some() || plan.cgroup == CgroupLimits::default());
}

fn check_place(place: &Place) {
    place
        .directories
        .iter()
        .chain([&place.name])
        .for_each(|name| check_name(name.to_bytes()));
}

fn check_name(name: &[u8]) {
    assert!(
        !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/'),
        "leads out: {name:?}"
    );
}

/// What a job writes of itself: turns of one byte that says what is done, and the bytes that it is done with.
pub fn notes(data: &[u8]) {
    let (mut notes, start) = (Notes::default(), Instant::now());
    // What was written since lines were taken, for those that come out of it.
    let mut written = Vec::new();
    for (number, turn) in (0..).zip(turns(data)) {
        let now = start + Duration::from_millis(number);
        match turn {
            (0, _) => {
                check_lines(notes.take(), &written);
                let begun = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                written.drain(..begun);
            }
            (1, _) => notes.put_off(now),
            (_, bytes) => {
                let bytes = &bytes[..bytes.len().min(notes.room())];
                written.extend_from_slice(bytes);
                assert_eq!(notes.push(bytes, now), bytes.contains(&b'\n'));
                assert!(notes.flush_at().is_some(), "what was read is never looked at again");
            }
        }
    }
    check_lines(notes.take(), &written);
}

fn check_lines(lines: Option<Vec<u8>>, written: &[u8]) {
    let Some(lines) = lines else { return };
    assert!(lines.ends_with(b"\n") && lines.len() <= notes::KEPT_BYTES);
    let known: BTreeSet<_> = written.split_inclusive(|byte| *byte == b'\n').collect();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        assert!(line.len() <= notes::LINE_BYTES);
        assert!(known.contains(line), "no line of the job's");
    }
}

/// What a job writes to its streams, and how the worker keeps up.
pub fn output(data: &[u8]) {
    let Some((sizes, data)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (limit, window) = (u64::from(sizes[0]) * 8, usize::from(sizes[1]));
    let (mut output, now) = (Output::new(limit, window), Instant::now());
    let (mut kept, mut written, mut sent, mut acknowledged) = ([0u64; 2], [0u64; 2], 0, 0);
    for turn in turns(data) {
        match turn {
            (0, _) => {
                let segments = output.segments();
                assert!(
                    segments.windows(2).all(|pair| pair[0].0 != pair[1].0),
                    "neighbours of one stream"
                );
                for (stream, bytes) in segments {
                    assert!(!bytes.is_empty());
                    kept[usize::from(stream) - 1] += bytes.len() as u64;
                    sent += bytes.len();
                }
                output.sent();
                assert!(output.flush_at().is_none());
            }
            (1, bytes) => {
                let count = bytes.len().min(sent - acknowledged);
                acknowledged += count;
                output.acknowledge(count);
            }
            (code, bytes) => {
                let stream = if code % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
                let bytes = &bytes[..bytes.len().min(output.room())];
                written[stream as usize - 1] += bytes.len() as u64;
                output.push(stream, bytes, now);
            }
        }
        assert!(sent - acknowledged <= window, "more on its way than the window holds");
        let totals = output.totals();
        for (index, total) in totals.iter().enumerate() {
            assert_eq!(total.bytes, written[index]);
            assert_eq!(total.truncated, total.stored_bytes < total.bytes);
        }
        assert!(totals.iter().map(|total| total.stored_bytes).sum::<u64>() <= limit);
    }
    for (stream, bytes) in output.segments() {
        kept[usize::from(stream) - 1] += bytes.len() as u64;
    }
    assert_eq!(output.totals().map(|total| total.stored_bytes), kept);
}

/// Cuts data into turns: what is done (0 to 3), and with how many of the bytes that follow (times a power of four).
fn turns(mut data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = data.split_first_chunk::<2>()?;
        let length = usize::from(head[1]) << (2 * (head[0] >> 2 & 3));
        let (bytes, rest) = rest.split_at(length.min(rest.len()));
        data = rest;
        Some((head[0] & 3, bytes))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Tries each input of the target's that is kept.
    fn replay(target: &str, run: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/corpus")
            .join(target);
        let kept = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let inputs: Vec<_> = kept.map(|entry| entry.unwrap().path()).collect();
        assert!(inputs.len() >= 10, "{} inputs in {}", inputs.len(), directory.display());
        for input in inputs {
            run(&fs::read(input).unwrap());
        }
    }

    #[test]
    fn requests_that_are_kept_are_taken_or_refused() {
        replay("requests", requests);
    }

    #[test]
    fn notes_that_are_kept_are_cut_into_lines() {
        replay("notes", notes);
    }

    #[test]
    fn output_that_is_kept_is_counted_and_cut() {
        replay("output", output);
    }

    #[test]
    fn what_is_checked_can_fail() {
        for name in [&b".."[..], b"", b"a/b"] {
            assert!(std::panic::catch_unwind(|| check_name(name)).is_err());
        }
        assert!(std::panic::catch_unwind(|| check_lines(Some(b"b\n".to_vec()), b"a\n")).is_err());
    }
}
