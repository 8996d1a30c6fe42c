//! What a release holds, as `refit pack` and `refit inspect` print it.

use indicatif::HumanBytes;
use refit_updater::manifest::{Kind, Totals};

use super::context::Context;
use super::table::print_table;

/// Prints what a release holds: a line for each kind, and what the lines do not say.
pub(super) fn print_totals(context: &Context, totals: &Totals) {
    let row = |what: String, files: u64, links: u64, installed: u64, stored: u64| {
        let share = (100 * stored).checked_div(installed).map_or_else(String::new, |share| format!("{share} %"));
        let (installed, stored) = (HumanBytes(installed).to_string(), HumanBytes(stored).to_string());
        vec![what, files.to_string(), links.to_string(), installed, stored, share]
    };
    let mut rows = Vec::new();
    let (mut files, mut links, mut installed, mut stored) = (0, 0, 0, 0);
    for sums in &totals.kinds {
        files += sums.files;
        links += sums.links;
        installed += sums.installed_bytes;
        stored += sums.stored_bytes;
        rows.push(row(kind_name(sums.kind), sums.files, sums.links, sums.installed_bytes, sums.stored_bytes));
    }
    rows.push(row("all".to_owned(), files, links, installed, stored));
    print_table(context, &["KIND", "FILES", "LINKS", "INSTALLED", "PACKED", "OF IT"], &rows);
    let mut notes = vec![format!("{} directories", totals.directories)];
    if totals.repeated_bytes > 0 {
        notes.push(format!("{} are there more than once and packed once", HumanBytes(totals.repeated_bytes)));
    }
    if totals.hole_bytes > 0 {
        notes.push(format!("{} are zeros and take no space", HumanBytes(totals.hole_bytes)));
    }
    context.print(&notes.join("; "));
}

/// Returns the name of a kind of file.
pub(super) fn kind_name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}
