//! What the leader sends to be applied: the command of a Raft entry.
#![no_main]

use jobs_kv::{Memory, Meta, apply};
use libfuzzer_sys::fuzz_target;

const GENERATION_REQUESTS: u64 = 4;

fuzz_target!(|data: &[u8]| {
    // Twice on two replicas: they may refuse it, and must do the same.
    let [first, second] = [replica(data), replica(data)];
    assert_eq!(first, second, "replicas differ");
});

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn replica(command: &[u8]) -> (Vec<Result<Vec<u8>, String>>, Rows) {
    let (mut memory, mut meta) = (Memory::default(), Meta::default());
    let mut results = Vec::new();
    for index in 1..=2 {
        let result = apply(&mut memory, &mut meta, (index, 1, command), GENERATION_REQUESTS);
        let is_refused = result.is_err();
        results.push(result.map_err(|error| error.to_string()));
        if is_refused {
            // What it wrote before is given up by whoever calls.
            return (results, Vec::new());
        }
    }
    let rows = memory.rows().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
    (results, rows)
}
