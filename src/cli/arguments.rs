//! Values of arguments that several commands take.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

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
