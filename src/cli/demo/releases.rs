//! The releases of the demo's shop: their files, which are embedded in this program.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use refit_updater::durable;
use refit_updater::modes::OPEN_DIR;

/// What a placeholder becomes.
pub(super) type Addresses = Vec<(&'static str, String)>;

/// A file of a demo release.
enum Content {
    Text(&'static str),
    Program(&'static [u8]),
    /// This program; with a label at its end, so that it is another file.
    Refit(Option<&'static str>),
}

type File = (&'static str, Content);

macro_rules! text {
    ($path:literal) => {
        Content::Text(include_str!(concat!("../../../fixtures/appliances/shop/", $path)))
    };
}
macro_rules! program {
    ($name:literal) => {
        Content::Program(include_bytes!(concat!(env!("OUT_DIR"), "/", $name)))
    };
}

/// Returns the files of the release `version`.
fn files(version: &str) -> Vec<File> {
    let first = version == "1.0.0";
    let appliance = match version {
        "1.0.0" => text!("1.0.0/appliance.toml"),
        "1.1.0" => text!("1.1.0/appliance.toml"),
        "1.2.0" => text!("1.2.0/appliance.toml"),
        "1.3.0" => text!("1.3.0/appliance.toml"),
        _ => text!("1.4.0/appliance.toml"),
    };
    vec![
        ("appliance.toml", appliance),
        ("bin/shop", if first { program!("shop-1.0.0") } else { program!("shop-1.1.0") }),
        ("bin/stock", program!("stock")),
        (
            "bin/refit",
            match version {
                "1.0.0" => Content::Refit(None),
                "1.4.0" => program!("crash"),
                _ => Content::Refit(Some("shop 1.1.0")),
            },
        ),
        ("lib/prices.txt", if first { text!("1.0.0/lib/prices.txt") } else { text!("1.1.0/lib/prices.txt") }),
        ("share/style.css", text!("1.0.0/share/style.css")),
        ("config/shop.toml", if first { text!("1.0.0/config/shop.toml") } else { text!("1.1.0/config/shop.toml") }),
    ]
}

/// Writes the files of the release `version`, and those of `extra`, to `dir`. `refit` is this program.
pub(super) fn write_release(
    dir: &Path,
    version: &str,
    extra: &[(&str, &str)],
    addresses: &[(&str, String)],
    refit: &[u8],
) -> io::Result<()> {
    let write = |path: &str, bytes: &[u8], mode: u32| -> io::Result<()> {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            durable::create_dirs(parent, OPEN_DIR)?;
        }
        let mut file = fs::File::create(&path)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))
    };
    // The hostile package is 1.1.0 under another number: nothing but its one byte is to be refused.
    let like = if version == "1.5.0" { "1.1.0" } else { version };
    for (path, content) in files(like) {
        match content {
            Content::Text(text) => {
                let mut text = text.replace(like, version);
                for (placeholder, address) in addresses {
                    text = text.replace(placeholder, address);
                }
                write(path, text.as_bytes(), 0o644)?;
            }
            Content::Program(bytes) => write(path, bytes, 0o755)?,
            Content::Refit(None) => write(path, refit, 0o755)?,
            Content::Refit(Some(label)) => {
                let mut bytes = refit.to_vec();
                // What follows the last section of an ELF file is not loaded.
                bytes.extend_from_slice(format!("\n{label}\n").as_bytes());
                write(path, &bytes, 0o755)?;
            }
        }
    }
    for (path, text) in extra {
        write(path, text.as_bytes(), 0o644)?;
    }
    Ok(())
}
