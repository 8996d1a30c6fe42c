//! What every command has in common that publishes releases in a repository: `refit repo` and `refit pack --repo`.

use indicatif::HumanBytes;
use refit_author::publish::{Contents, LIST_BYTES_MAX, Repository};
use refit_base::Chain;

use super::context::say;

/// How long a timestamp is good when nobody says: so long can somebody between hide a newer release. It must be signed
/// anew before, by `refit repo refresh` and a clock; a month forgives one that stood still for a while.
pub(super) const TIMESTAMP_DAYS_DEFAULT: i64 = 30;
/// A list of releases that is as full as this is said to be: there is room for a release that names another repository.
const LIST_FULL_PERCENT: u64 = 90;

/// Says on standard error what is no failure now and will be one.
pub(super) fn warn(repository: &Repository, contents: &Contents) {
    if let Some(error) = repository.not_remembered() {
        let why = Chain(error);
        say(&format!(
            "published, but not remembered beside the keys: {why}; after their next rotation say --accept-retired"
        ));
    }
    if contents.list_bytes > LIST_BYTES_MAX / 100 * LIST_FULL_PERCENT {
        let (found, max) = (HumanBytes(contents.list_bytes), HumanBytes(LIST_BYTES_MAX));
        say(&format!(
            "the list of releases has {found} of {max}; make a new repository, and name it in a release while this one \
             takes one"
        ));
    }
}
