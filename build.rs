//! Builds what `refit demo` carries inside the `refit` binary: the programs of the small shop.
//!
//! They are compiled by `rustc` itself and not by cargo: they have no dependencies, the build must not need a second
//! manifest, and the same source becomes two versions. The results lie in `OUT_DIR` under the names of [`PROGRAMS`].

use std::env::{self, VarError};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Where the sources are, below the workspace.
const SOURCES: &str = "fixtures/appliances/shop";

/// One program to compile.
struct Program {
    /// File name of the result in `OUT_DIR`.
    name: &'static str,
    /// File name of its crate root in [`SOURCES`].
    source: &'static str,
    /// The version it says it is.
    version: &'static str,
    /// Whether it knows the page `/offers`.
    offers: bool,
}

const PROGRAMS: [Program; 4] = [
    Program { name: "shop-1.0.0", source: "shop.rs", version: "1.0.0", offers: false },
    Program { name: "shop-1.1.0", source: "shop.rs", version: "1.1.0", offers: true },
    Program { name: "stock", source: "stock.rs", version: "1.0.0", offers: false },
    Program { name: "crash", source: "crash.rs", version: "1.4.0", offers: false },
];

/// Sources that are a module of a program and no program.
const MODULES: [&str; 2] = ["pages.rs", "service.rs"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let sources = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join(SOURCES);
    println!("cargo::rerun-if-changed=build.rs");
    for source in PROGRAMS.iter().map(|program| program.source).chain(MODULES) {
        println!("cargo::rerun-if-changed={SOURCES}/{source}");
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    PROGRAMS.iter().try_for_each(|program| compile(program, &sources, &out))
}

fn compile(program: &Program, sources: &Path, out: &Path) -> Result<(), Error> {
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.env("SHOP_VERSION", program.version);
    rustc.arg("--target").arg(variable("TARGET")?);
    rustc.args(["--edition=2024", "--crate-type=bin", "--check-cfg=cfg(shop_offers)"]);
    // Four programs travel inside `refit`: they are small before they are fast.
    rustc.args(["-Copt-level=s", "-Cstrip=symbols", "-Cpanic=abort", "-Ccodegen-units=1"]);
    // A packed binary must not depend on the directory that it was built in.
    let mut remap = OsString::from("--remap-path-prefix=");
    remap.push(sources);
    remap.push("=shop");
    rustc.arg(remap);
    if program.offers {
        rustc.arg("--cfg=shop_offers");
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = OsString::from("-Clinker=");
        argument.push(linker);
        rustc.arg(argument);
    }
    rustc.arg("-o").arg(out.join(program.name)).arg(sources.join(program.source));
    let status = rustc.status().map_err(|source| Error::Start { program: program.name, source })?;
    if status.success() { Ok(()) } else { Err(Error::Compile { program: program.name, status }) }
}

fn variable(name: &'static str) -> Result<String, Error> {
    env::var(name).map_err(|source| Error::Variable { name, source })
}

/// Why a program of the shop could not be built.
enum Error {
    Variable { name: &'static str, source: VarError },
    Start { program: &'static str, source: io::Error },
    Compile { program: &'static str, status: std::process::ExitStatus },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable { name, source } => {
                write!(f, "cannot read {name}: {source}; build with cargo, which sets it")
            }
            Self::Start { program, source } => {
                write!(f, "cannot start rustc for {program}: {source}; check the installed toolchain")
            }
            Self::Compile { program, status } => write!(
                f,
                "cannot compile {program}: rustc ended with {status}; its messages are above, the sources in {SOURCES}"
            ),
        }
    }
}
