//! What a job writes to its streams.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jobs_sandbox::fuzz::output(data));
