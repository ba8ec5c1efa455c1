//! What a worker asks of the launcher: frames, and the plans that come of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jobs_sandbox::fuzz::requests(data));
