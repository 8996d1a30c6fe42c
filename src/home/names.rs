//! Second names of sockets: a name that is gone cannot be found out from the socket, but be made again from another one.
//!
//! They are hard links in `run/.sockets/`, or beside the first name where that is another file system.

use std::io;
use std::path::{Path, PathBuf};

use refit_updater::{durable, modes};

use super::Home;

/// Returns where the second name of the socket at `path` may be, which is `key` below `all`, the directory `.sockets/`.
pub fn second_names(all: &Path, path: &Path, key: &str) -> [PathBuf; 2] {
    let beside = format!(".{}", path.file_name().unwrap_or_default().to_string_lossy());
    [all.join(key), path.with_file_name(beside)]
}

/// Returns what the second name of the notification socket of the process `id` is called.
pub fn key_of_process(id: &str) -> String {
    format!("notify/{id}")
}

/// Gives the socket at `path` a second name, `key`. One that can have none is not kept, and works as well.
pub fn give_second_name(home: &Home, path: &Path, key: &str) {
    let all = home.socket_names();
    for name in second_names(&all, path, key) {
        let made = make_directories(&all, &name)
            .and_then(|()| durable::remove_tree(&name))
            .and_then(|()| durable::hard_link(path, &name));
        match made {
            Ok(()) => return,
            Err(error) => tracing::debug!(name = %name.display(), %error, "cannot give a socket a second name"),
        }
    }
}

/// Makes the directories of the second name `name`, which are nobody else's business.
fn make_directories(all: &Path, name: &Path) -> io::Result<()> {
    match name.parent() {
        Some(dir) if dir.starts_with(all) => {
            durable::create_dirs(all, modes::of("run/.sockets"))?;
            durable::create_dirs(dir, modes::of("run/.sockets/notify"))
        }
        Some(_) | None => Ok(()),
    }
}
