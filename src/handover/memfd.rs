//! Bytes that outlive a process: a sealed file in memory, written once.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// The most that is read: a few hundred components with their last output.
pub const SEALED_BYTES_MAX: u64 = 64 << 20;

/// Returns a file in memory that holds `bytes` and cannot be changed any more.
///
/// # Errors
/// There is no memory or no descriptor left.
pub fn seal(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(descriptor);
    file.write_all(bytes)?;
    let descriptor = OwnedFd::from(file);
    fcntl_add_seals(&descriptor, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(descriptor)
}

/// Returns the bytes of a file that [`seal`] made; the descriptor stays as it is.
///
/// # Errors
/// It is not sealed (somebody could change it under us), or larger than [`SEALED_BYTES_MAX`].
pub fn read(descriptor: &OwnedFd) -> io::Result<Vec<u8>> {
    if !fcntl_get_seals(descriptor)?.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime's state is not sealed"));
    }
    let mut file = File::from(descriptor.try_clone()?);
    io::Seek::rewind(&mut file)?;
    let mut bytes = Vec::new();
    file.take(SEALED_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SEALED_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime's state is too large"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_read_and_cannot_be_changed() {
        let descriptor = seal("test", b"state").expect("sealed");
        assert_eq!(read(&descriptor).expect("read"), b"state");
        assert_eq!(read(&descriptor).expect("read again"), b"state");
        assert!(File::from(descriptor.try_clone().expect("cloned")).write_all(b"x").is_err());
    }
}
