//! What a job writes to its own descriptor.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jobs_sandbox::fuzz::notes(data));
