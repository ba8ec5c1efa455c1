//! What former builds wrote is read, and what later ones write is refused by its version.

use jobs_kv::{Backend, GENERATION_REQUESTS, KvError, Memory, Meta, Read, machine};

const STATE: &[u8] = b"m";
/// A batch of one transaction that puts `v` under `k`, as version 1 had it: without a request id.
const FORMER_COMMAND: &[u8] = b"\x01\x91\x93\x90\x91\x94\x00\xc4\x01k\xc4\x01v\x00\x90";
/// The machine's state as version 2 had it: without request ids.
const FORMER_STATE: &[u8] = &[2, 7, 3, 5, 4, 1, 100];

fn apply(backend: &mut Memory, meta: &mut Meta, command: &[u8]) -> Result<Vec<u8>, String> {
    let entry = (meta.index + 1, 1, command);
    machine::apply(backend, meta, entry, GENERATION_REQUESTS).map_err(|error| error.to_string())
}

#[test]
fn state_of_the_former_version_is_read_and_written_as_the_present_one() {
    let mut backend = Memory::default();
    backend.put(STATE, FORMER_STATE).unwrap();
    let mut meta = machine::load(&backend).unwrap();
    let former = Meta {
        index: 7,
        term: 3,
        revision: 5,
        compact_revision: 4,
        events: 1,
        max_events: 100,
        ..Meta::default()
    };
    assert_eq!(meta, former);
    apply(&mut backend, &mut meta, b"").unwrap();
    assert_eq!(backend.get(STATE).unwrap().unwrap()[0], 3);
    assert_eq!(machine::load(&backend).unwrap(), meta);
}

#[test]
fn a_command_of_the_former_version_is_applied() {
    let (mut backend, mut meta) = (Memory::default(), Meta::default());
    let results = apply(&mut backend, &mut meta, FORMER_COMMAND).unwrap();
    assert_eq!(results, b"\x91\x94\xa0\xc3\x01\x91\xc0");
    assert_eq!((meta.revision, meta.requests), (1, 0));
}

#[test]
fn versions_that_are_not_known_are_refused_by_their_numbers() {
    let (mut backend, mut meta) = (Memory::default(), Meta::default());
    for version in [0, 3, 200] {
        let error = apply(&mut backend, &mut meta, &[version, 0x90]).unwrap_err();
        assert!(
            error.contains(&format!("version {version}; this build knows 1 to 2")),
            "{error}"
        );
    }
    for version in [0, 1, 4, 200] {
        let mut data = FORMER_STATE.to_vec();
        data[0] = version;
        backend.put(STATE, &data).unwrap();
        let Err(KvError::Damaged(problem)) = machine::load(&backend) else {
            panic!("version {version} was read");
        };
        assert_eq!(problem, format!("format version {version}; this build knows 2 to 3"));
    }
}
