//! The names of machines.

use refit_updater::manifest::ARCH_ANY;

/// The machines that Linux runs on, as `std::env::consts::ARCH` names them: an appliance compares a package's with that.
const MACHINES: [&str; 20] = [
    "x86_64",
    "aarch64",
    "arm",
    "x86",
    "riscv64",
    "riscv32",
    "loongarch64",
    "loongarch32",
    "powerpc64",
    "powerpc",
    "s390x",
    "mips64",
    "mips64r6",
    "mips",
    "mips32r6",
    "sparc64",
    "sparc",
    "m68k",
    "csky",
    "hexagon",
];
/// What else they are called.
const OTHER_NAMES: [(&[&str], &str); 5] = [
    (&["amd64", "x64", "x86-64"], "x86_64"),
    (&["arm64"], "aarch64"),
    (&["armhf", "armel", "armv6l", "armv7", "armv7l"], "arm"),
    (&["i386", "i486", "i586", "i686"], "x86"),
    (&["ppc64", "ppc64le", "ppc64el"], "powerpc64"),
];

/// Returns the machine that is called `name`, if it is one that Refit's own name for it may be: see `std::env::consts::ARCH`.
pub(super) fn parse_machine(name: &str) -> Result<String, String> {
    if name == ARCH_ANY || MACHINES.contains(&name) {
        return Ok(name.to_owned());
    }
    let other = OTHER_NAMES.iter().find(|(others, _)| others.contains(&name)).map(|(_, machine)| machine);
    Err(match other {
        Some(machine) => format!("it is called {machine} here"),
        None => format!("use one of {ARCH_ANY}, {}", MACHINES.join(", ")),
    })
}
