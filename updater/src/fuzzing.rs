//! What the fuzz targets drive: each function takes any bytes, and either refuses them or finds nothing wrong with what
//! it read.
//!
//! Compiled in only with the feature `fuzzing`. Signatures are left out on purpose: no fuzzer can make one, and what
//! lies behind them must be as hard as what lies before. A broken promise is a panic, as a fuzzer wants it.

use crate::codec::{Decoder, Encoder};
use crate::manifest::{Codec, FRAME_BYTES_MAX, Manifest};
use crate::package::Package;
use crate::receive::{PayloadError, check_payload};

/// Reads `bytes` as a manifest. One that is accepted must say the same after it was written and read again.
///
/// # Panics
/// It does not: something is wrong with the reader.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    let Ok(written) = manifest.to_bytes() else { return }; // indented, it may be longer than a manifest may be
    let again = Manifest::parse(&written).ok();
    assert_eq!(again.as_ref(), Some(&manifest), "another manifest after it was written");
    for file in manifest.files() {
        assert_eq!(manifest.file(&file.path), Some(file), "not found by its path");
        assert!(
            !file.path.split('/').any(|name| matches!(name, "" | "." | "..")),
            "{:?} leaves the release",
            file.path
        );
    }
}

/// Reads `bytes` as a package, to its end: entries, manifest, and every frame of the payload.
pub fn package(bytes: &[u8]) {
    let Ok(package) = Package::open(bytes) else { return };
    let Ok(manifest) = Manifest::parse(package.manifest()) else { return };
    let Ok(payload) = package.into_payload(manifest.payload_bytes()) else { return };
    drop(check_payload(payload, &manifest, |_stored| Ok::<_, PayloadError>(())));
}

/// Decodes `bytes` as a frame: the first byte is the codec, the next three the size that it is said to have.
///
/// # Panics
/// It has another size, or what it decodes to cannot be coded again: something is wrong with the decoder.
pub fn frame(bytes: &[u8]) {
    let Some(([codec, high, middle, low], stored)) = bytes.split_first_chunk() else { return };
    let codec = if codec % 2 == 0 { Codec::Zstd } else { Codec::Gzip };
    let size = (usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low)) % FRAME_BYTES_MAX as usize;
    let Ok(mut decoder) = Decoder::new(codec) else { return };
    let mut content = Vec::new();
    if decoder.decode(stored, size, &mut content).is_err() {
        return;
    }
    assert_eq!(content.len(), size, "another size than was asked for");
    // What was decoded can be coded, and the same decoder, used again, finds it.
    let encoded = Encoder::new(codec, codec.default_level()).and_then(|mut encoder| encoder.encode(&content));
    let mut again = Vec::new();
    let found = encoded.and_then(|encoded| decoder.decode(&encoded, size, &mut again));
    assert!(found.is_ok() && again == content, "another content after it was coded again");
}
