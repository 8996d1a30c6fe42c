//! Nothing altered is ever unpacked, wherever it was altered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use refit_base::{Exit, Reported};
use refit_fixtures_vendor::{Home, Vendor, chain, noise, options, put};

/// The borders between the parts of a package: of every header, of every content, of every filling.
fn borders(package: &[u8]) -> Vec<usize> {
    let (mut borders, mut at) = (vec![0], 0);
    while package[at] != 0 {
        let size = std::str::from_utf8(&package[at + 124..at + 135]).unwrap();
        let size = usize::from_str_radix(size, 8).unwrap();
        let content = at + 512;
        at = content + size.next_multiple_of(512);
        borders.extend([content, content + size, at]);
    }
    borders.extend([at + 512]);
    borders
}

fn small_package(vendor: &Vendor) -> Vec<u8> {
    let tree = vendor.dir.path().join("small");
    put(&tree, "appliance.toml", b"[appliance]\nname = \"shop\"\nversion = \"1.0.0\"\n", 0o644);
    put(&tree, "bin/shop", b"a shop, a shop, a shop, a shop, a shop, a shop", 0o755);
    put(&tree, "share/noise", &noise(7, 300), 0o644);
    vendor.pack(&tree, &options())
}

#[test]
fn no_byte_of_a_package_can_be_changed() {
    let vendor = Vendor::new();
    let package = small_package(&vendor);
    let home = Home::new(&vendor);
    let before = home.snapshot();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                let mut altered = package.clone();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(byte) = package.get(index) else { break };
                    // The case of a letter is the change that most readers forgive; a bit of a number the smallest lie.
                    altered[index] = byte ^ if byte.is_ascii_alphabetic() { 0x20 } else { 0x01 };
                    match home.receive(&altered) {
                        Ok(_) => panic!("byte {index} of {} was changed, and accepted", package.len()),
                        Err(error) => assert_eq!(error.exit(), Exit::Refused, "byte {index}: {}", chain(&error)),
                    }
                    altered[index] = *byte;
                }
            });
        }
    });
    assert_eq!(home.snapshot(), before);
    home.receive(&package).unwrap();
}

#[test]
fn no_package_can_end_early_or_late() {
    let vendor = Vendor::new();
    let package = small_package(&vendor);
    let home = Home::new(&vendor);
    let before = home.snapshot();
    for border in borders(&package) {
        for end in [border.saturating_sub(1), border, border + 1] {
            let error = home.receive(&package[..end]).unwrap_err();
            let expected = if end < 512 { "not_a_package" } else { "package_truncated" };
            assert_eq!((error.exit(), error.code()), (Exit::Refused, expected), "{end}: {}", chain(&error));
        }
    }
    for more in [&[0][..], b"x", &[0; 512]] {
        let error = home.receive(&[&package, more].concat()).unwrap_err();
        assert_eq!(error.to_string(), "there are bytes behind the end of the package");
    }
    assert_eq!(home.snapshot(), before);
}

#[test]
fn parts_of_two_packages_make_none() {
    let vendor = Vendor::new();
    let home = Home::new(&vendor);
    let (one, two) = (vendor.package("1.0.0"), vendor.package("1.0.1"));
    let (one_borders, two_borders) = (borders(&one), borders(&two));
    assert_eq!(one_borders.len(), two_borders.len());
    for (one_border, two_border) in one_borders.iter().zip(&two_borders).skip(4) {
        let mixed = [&one[..*one_border], &two[*two_border..]].concat();
        if mixed != one && mixed != two {
            let error = home.receive(&mixed).unwrap_err();
            assert_eq!(error.exit(), Exit::Refused, "{one_border}: {}", chain(&error));
        }
    }
}

#[test]
fn another_vendor_is_not_trusted() {
    let (vendor, other) = (Vendor::new(), Vendor::new());
    let home = Home::new(&vendor);
    let before = home.snapshot();
    let error = home.receive(&other.package("1.0.0")).unwrap_err();
    assert_eq!(error.to_string(), "the package's root 1 is not the one this appliance trusts");
    assert_eq!(home.snapshot(), before);
}
