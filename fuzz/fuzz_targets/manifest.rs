//! Bytes as a manifest: what is accepted is the same after it was written and read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| refit_updater::fuzzing::manifest(bytes));
