//! Bytes as a package, read to its end: entries, metadata, manifest, payload.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| refit_updater::fuzzing::package(bytes));
