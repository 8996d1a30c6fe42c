//! `refit status`: how the appliance is.

use clap::Args;
use refit_base::Exit;

use super::client::{Client, ClientError};
use super::component_table::print_components;
use super::context::Context;
use super::notes;
use super::said::Said;
use super::table::{cell, print_table};
use crate::wire::{BusState, Condition, Fault, Listener, Overall, Reception, Status};

/// What is shown.
#[derive(Debug, Args)]
pub(super) struct StatusOptions {
    /// End with 0 if the appliance is well, 1 if something needs somebody, 2 if it does not serve, and print one line that says why.
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(context: &Context, options: &StatusOptions) -> Result<Exit, ClientError> {
    let check = options.check;
    let status: Said<Status> = Client::new(&context.home)?.get("/api/v1/status").await?;
    let health = status.health.clone().unwrap_or_else(|| of_older(&status));
    let exit = match health.state {
        _ if !check => Exit::Done,
        Condition::Well => Exit::Done,
        Condition::Degraded | Condition::Other(_) => Exit::Degraded,
        Condition::Down => Exit::Down,
    };
    if context.json {
        context.print(&status.to_string());
        return Ok(exit);
    }
    if check {
        let reasons =
            if health.reasons.is_empty() { String::new() } else { format!(": {}", health.reasons.join("; ")) };
        context.print(&format!("{}{reasons}", health.state));
        return Ok(exit);
    }
    print_head(context, &status);
    for reason in health.reasons.iter().take(1).filter(|_| health.state == Condition::Down) {
        context.print(&format!("down: {reason}"));
    }
    print_warnings(context, &status);
    context.print("");
    print_components(context, &status.components);
    context.print("");
    print_listeners(context, &status.listeners);
    for fault in &status.faults {
        print_fault(context, fault);
    }
    Ok(exit)
}

/// Returns how an appliance is whose release does not say it yet.
fn of_older(status: &Status) -> Overall {
    if status.bus.state == BusState::Running {
        Overall { state: Condition::Well, reasons: Vec::new() }
    } else {
        Overall { state: Condition::Down, reasons: vec![format!("the site is {}", status.bus.state)] }
    }
}

/// Prints what runs, and what is under way.
fn print_head(context: &Context, status: &Status) {
    let Status { release, runtime, .. } = status;
    context.print(&format!("{} {} ({}), bus {}", status.appliance, release.version, release.state, status.bus.state));
    context.print(&format!(
        "guard {}, runtime {} (image {} since {}), previous release {}",
        status.guard.pid,
        runtime.pid,
        runtime.generation,
        runtime.started_at,
        cell(status.previous.as_ref()),
    ));
    if let Some(reload) = &status.bus.unconfirmed {
        context.print(&notes::unconfirmed(&reload.until, reload.generation));
    }
    if let Some(update) = &status.update {
        context.print(&format!("{} {} -> {}: {}", update.kind, update.from, update.to, update.step));
    }
    if let Some(reception) = &status.receiving {
        context.print(&reception_line(reception));
    }
    for package in &status.staged {
        context.print(&format!(
            "release {} is staged since {}: refit install {}",
            package.version, package.received_at, package.digest,
        ));
    }
}

/// Prints what somebody should see to.
fn print_warnings(context: &Context, status: &Status) {
    let version = &status.release.version;
    for warning in &status.trust.warnings {
        context.print(&format!("warning: {warning}"));
    }
    for file in &status.config.unmerged {
        let said = notes::unmerged(version, &file.path, &file.new_default, &file.because);
        context.print(&format!("warning: {said}"));
    }
    if status.read_only {
        context.print(
            "warning: the disk of the home is read-only: what runs goes on, and nothing that changes is kept; repair the disk, or mount it \
             so that it can be written to",
        );
    }
    for found in &status.config.unread {
        context.print(&format!("warning: {}", notes::unread(version, &found.path, &found.why)));
    }
}

fn print_listeners(context: &Context, listeners: &[Listener]) {
    let rows: Vec<Vec<String>> =
        listeners.iter().map(|listener| vec![listener.name.clone(), listener.address.clone()]).collect();
    print_table(context, &["LISTENER", "ADDRESS"], &rows);
    for Listener { name, address, failure } in listeners {
        if let Some(failure) = failure {
            context.print(&format!(
                "warning: cannot listen on {address} for the listener {name}: {failure}; it is tried again"
            ));
        }
    }
}

fn print_fault(context: &Context, fault: &Fault) {
    let priority = fault.priority.map_or_else(String::new, |number| format!(" (priority {number})"));
    context.print(&format!("fault: {} {}: {}{priority}", fault.component, fault.phase, fault.cause));
    for line in &fault.output {
        context.print(&format!("    {line}"));
    }
}

/// Returns what arrives and how far it is.
fn reception_line(reception: &Reception) -> String {
    let what = reception.version.as_ref().map_or("a package".to_owned(), |version| format!("release {version}"));
    let received = indicatif::BinaryBytes(reception.received_bytes);
    let progress = match reception.total_bytes.map(indicatif::BinaryBytes) {
        Some(total) => format!(", {received} of {total}"),
        None => format!(", {received}"),
    };
    format!("receiving {what} since {}: {}{progress}", reception.since, reception.step)
}
