//! `refit inspect`: what a package holds, or what it changes of another one.

use std::io;
use std::path::PathBuf;

use indicatif::HumanBytes;
use refit_author::inspect::{Change, Comparison, InspectError, Inspection, compare, inspect_open};
use refit_base::{Exit, FileError, Report, Reported, clock, file_error};
use refit_updater::manifest::Body;

use super::context::Context;
use super::input::Input;
use super::said::in_json;
use super::table::print_table;
use super::totals::{kind_name, print_totals};

#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// The package, a file, a pipe, or `-` for standard input; of two, the one that is installed.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The package that comes: what it changes is shown, and what of it must be transferred.
    #[arg(value_name = "NEW")]
    new: Option<PathBuf>,
    /// Verify it against this root of trust.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Decode and check every byte.
    #[arg(long)]
    check: bool,
}

/// Why a package was not shown.
#[derive(Debug, thiserror::Error)]
enum InspectCommandError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl Reported for InspectCommandError {
    fn report(&self) -> Report<'_> {
        const CODE: &str = "package_refused";
        match self {
            Self::Inspect(error @ InspectError::Directory { .. }) => {
                Report { code: CODE, exit: Exit::Usage, ..error.report() }
            }
            Self::Inspect(error) => Report { code: CODE, ..error.report() },
            Self::File(_) => Report::new("file_unreadable", Exit::Usage, "check the name and the permissions"),
        }
    }
}

pub(super) fn run(context: &Context, inspect: &Inspect) -> Exit {
    match try_run(context, inspect) {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

fn try_run(context: &Context, inspect: &Inspect) -> Result<(), InspectCommandError> {
    let root = match &inspect.root {
        Some(path) => {
            let path = context.path(path);
            Some(std::fs::read(&path).map_err(file_error("read", &path))?)
        }
        None => None,
    };
    let inspect_file = |path| {
        let input = Input::new(context, path);
        let opened = input.open().map_err(|source| {
            if source.kind() == io::ErrorKind::IsADirectory {
                return InspectCommandError::from(InspectError::Directory { path: input.path().to_owned() });
            }
            file_error("read", input.path())(source).into()
        })?;
        Ok::<_, InspectCommandError>(inspect_open(opened, input.path(), root.as_deref(), inspect.check, clock::now())?)
    };
    let found = inspect_file(&inspect.file)?;
    if let Some(new) = &inspect.new {
        print_comparison(context, &compare(&found, &inspect_file(new)?));
        return Ok(());
    }
    if context.json {
        context.print(&in_json(&found));
        return Ok(());
    }
    print_package(context, &found);
    Ok(())
}

/// Prints what a package holds, file by file.
fn print_package(context: &Context, found: &Inspection) {
    let manifest = &found.manifest;
    context.print(&format!("{} {} for {}", manifest.appliance(), manifest.version(), manifest.arch()));
    context.print(&format!("digest    {}", found.digest));
    let trusted = if found.trusted { "verified against the given root" } else { "not verified: no --root was given" };
    context.print(&format!("signed    by {}, {trusted}", found.key_ids.join(", ")));
    context.print(&format!("expires   {}{}", found.expires, if found.expired { ", which is past" } else { "" }));
    if let Some(requires) = manifest.requires() {
        context.print(&format!("requires  {requires} or newer"));
    }
    let installed = manifest.installed_bytes();
    context.print(&format!(
        "size      {} packed, {} installed",
        HumanBytes(found.package_bytes),
        HumanBytes(installed)
    ));
    context.print(&format!(
        "content   {}",
        if found.checked { "every byte is as signed" } else { "not checked: no --check" }
    ));
    context.print("");
    print_totals(context, &found.totals);
    context.print("");
    let rows: Vec<Vec<String>> = manifest
        .files()
        .iter()
        .map(|file| {
            let (mode, size, packed) = match &file.body {
                Body::Regular { mode, size, frames, .. } => {
                    let repeated = frames.is_empty() && *size > 0;
                    let packed =
                        if repeated { "as above".to_owned() } else { HumanBytes(file.stored_bytes()).to_string() };
                    (mode.to_string(), HumanBytes(*size).to_string(), packed)
                }
                Body::Link { target } => ("link".to_owned(), format!("-> {target}"), String::new()),
            };
            vec![file.path.clone(), kind_name(file.kind), mode, size, packed]
        })
        .collect();
    print_table(context, &["FILE", "KIND", "MODE", "SIZE", "PACKED"], &rows);
}

/// Prints what an update changes, file by file.
fn print_comparison(context: &Context, found: &Comparison) {
    if context.json {
        context.print(&in_json(&found));
        return;
    }
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| HumanBytes(bytes).to_string());
    let rows: Vec<Vec<String>> = found
        .changes
        .iter()
        .map(|change| {
            let what = match change.change {
                Change::Added => "added",
                Change::Removed => "removed",
                Change::Changed => "changed",
                Change::Mode => "mode",
            };
            let transfer = match (&change.from, change.transfer_bytes) {
                (Some(from), _) => format!("as {from}"),
                (None, 0) => String::new(),
                (None, bytes) => HumanBytes(bytes).to_string(),
            };
            vec![what.to_owned(), change.path.clone(), size(change.old_bytes), size(change.new_bytes), transfer]
        })
        .collect();
    context.print(&format!("{} -> {}", found.old.version, found.new.version));
    context.print(&format!(
        "transfer  {} of {}; {} of {} files unchanged",
        HumanBytes(found.transfer_bytes),
        HumanBytes(found.new.package_bytes),
        found.unchanged,
        found.new.files
    ));
    context.print(&format!(
        "installed {}, before {}",
        HumanBytes(found.new.installed_bytes),
        HumanBytes(found.old.installed_bytes)
    ));
    context.print("");
    print_table(context, &["CHANGE", "FILE", "BEFORE", "AFTER", "TRANSFER"], &rows);
}
