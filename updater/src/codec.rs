//! Compressing and decompressing one frame; an encoder or a decoder is kept for many frames, so that its tables are.

use std::io::{self, Read, Write};

use crate::manifest::Codec;

/// The zstd level when none is chosen: beyond it packing takes twice as long for a percent. Unpacking takes the same at each.
const ZSTD_LEVEL: i32 = 6;
/// The gzip level when none is chosen, that of the gzip tool.
const GZIP_LEVEL: i32 = 6;

impl Codec {
    /// Returns the level that is used when none is chosen.
    #[must_use]
    pub fn default_level(self) -> i32 {
        match self {
            Self::Zstd => ZSTD_LEVEL,
            Self::Gzip => GZIP_LEVEL,
        }
    }

    /// Returns the levels there are.
    #[must_use]
    pub fn levels(self) -> std::ops::RangeInclusive<i32> {
        match self {
            Self::Zstd => 1..=22,
            Self::Gzip => 1..=9,
        }
    }
}

/// Compresses frames.
pub struct Encoder(Compressor);

enum Compressor {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(flate2::Compression),
}

impl Encoder {
    /// Returns an encoder for `codec` at `level`.
    ///
    /// # Errors
    /// The codec cannot be prepared.
    pub fn new(codec: Codec, level: i32) -> io::Result<Self> {
        Ok(Self(match codec {
            Codec::Zstd => Compressor::Zstd(zstd::bulk::Compressor::new(level)?),
            Codec::Gzip => Compressor::Gzip(flate2::Compression::new(level.unsigned_abs())),
        }))
    }

    /// Returns `content` as one complete frame.
    ///
    /// # Errors
    /// The codec failed.
    pub fn encode(&mut self, content: &[u8]) -> io::Result<Vec<u8>> {
        match &mut self.0 {
            Compressor::Zstd(compressor) => compressor.compress(content),
            Compressor::Gzip(level) => {
                // No name and no time: the same content has the same bytes.
                let mut encoder = flate2::GzBuilder::new().mtime(0).write(Vec::new(), *level);
                encoder.write_all(content)?;
                encoder.finish()
            }
        }
    }
}

/// Decompresses frames.
pub(crate) enum Decoder {
    Zstd(zstd::bulk::Decompressor<'static>),
    Gzip,
}

impl Decoder {
    pub(crate) fn new(codec: Codec) -> io::Result<Self> {
        match codec {
            Codec::Zstd => Ok(Self::Zstd(zstd::bulk::Decompressor::new()?)),
            Codec::Gzip => Ok(Self::Gzip),
        }
    }

    /// Replaces what `content` held with the decoded frame, which has exactly `size` bytes and all of `stored`.
    pub(crate) fn decode(&mut self, stored: &[u8], size: usize, content: &mut Vec<u8>) -> io::Result<()> {
        let wrong = |what: &'static str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        match self {
            Self::Zstd(decompressor) => {
                // The buffer is the limit: longer content is an error, however much it claims to be.
                content.resize(size, 0);
                if decompressor.decompress_to_buffer(stored, content.as_mut_slice())? != size {
                    return wrong("a frame decodes to fewer bytes than it should");
                }
            }
            Self::Gzip => {
                content.clear();
                content.reserve(size);
                let mut decoder = flate2::bufread::GzDecoder::new(stored);
                (&mut decoder).take(size as u64).read_to_end(content)?;
                if content.len() != size {
                    return wrong("a frame decodes to fewer bytes than it should");
                }
                if decoder.read(&mut [0])? != 0 {
                    return wrong("a frame decodes to more bytes than it should");
                }
                if !decoder.into_inner().is_empty() {
                    return wrong("a frame has bytes behind its end");
                }
            }
        }
        Ok(())
    }
}
