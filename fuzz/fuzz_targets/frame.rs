//! Bytes as a frame: the first two say how it is coded and what size it claims, the rest is stored.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| refit_updater::fuzzing::frame(bytes));
