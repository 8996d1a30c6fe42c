//! Values of arguments that several commands take.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use refit_base::clock;

/// Days that anything may be good: a century, which is longer than any algorithm lasts.
pub(super) const DAYS_MAX: i64 = 36_500;

/// Returns what reads a whole number within these limits, and names them when it is given anything else.
pub(super) fn number_in<N>(limits: RangeInclusive<N>) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let number = text.parse().ok().filter(|number| limits.contains(number));
        number.ok_or_else(|| format!("a whole number from {} to {} is wanted", limits.start(), limits.end()))
    }
}

/// Returns the time in so many days.
pub(super) fn in_days(days: i64) -> Timestamp {
    clock::now().checked_add(SignedDuration::from_hours(24 * days)).unwrap_or(Timestamp::MAX)
}
