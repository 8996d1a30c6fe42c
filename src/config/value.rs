//! The values that have a form of their own: durations, ranges, rates, names, sizes.

use std::time::Duration;

use jiff::SignedDuration;
use refit_bus as bus;

/// The longest duration that is accepted: a year; anything longer is a slip of the pen.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Returns the duration that `text` says: `"30s"`, `"100ms"`, `"1m 30s"`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write a number and a unit, such as \"30s\" or \"100ms\"");
    let signed: SignedDuration = text.trim().parse().map_err(|_| wrong())?;
    let duration = Duration::try_from(signed).map_err(|_| wrong())?;
    if duration > DURATION_MAX { Err(format!("{text:?} is longer than a year")) } else { Ok(duration) }
}

/// Returns the first and the longest pause that `text` says: `"100ms..30s"`.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn backoff(text: &str) -> Result<(Duration, Duration), String> {
    let Some((first, longest)) = text.split_once("..") else {
        return Err(format!("{text:?} is not a range of durations: write \"100ms..30s\""));
    };
    let (first, longest) = (duration(first)?, duration(longest)?);
    if first > longest { Err(format!("{text:?} begins above its end")) } else { Ok((first, longest)) }
}

/// Returns how many restarts in how long `text` allows: `"5/1m"`.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn limit(text: &str) -> Result<(u32, Duration), String> {
    let wrong = || format!("{text:?} is not a limit: write how many in how long, such as \"5/1m\"");
    let (count, within) = text.split_once('/').ok_or_else(wrong)?;
    Ok((count.trim().parse().map_err(|_| wrong())?, duration(within)?))
}

/// Returns how many bytes `text` says: `"256MiB"`, `"1GiB"`, `"65536"`.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write a whole number and a unit, such as \"256MiB\" or \"1GiB\"");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// Returns how many hundredths of one processor `text` says: `"50%"`, `"200%"`.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn percent(text: &str) -> Result<u64, String> {
    /// More processors than any machine has: a slip of the pen.
    const PERCENT_MAX: u64 = 100_000;
    let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse().ok());
    number.filter(|percent| (1..=PERCENT_MAX).contains(percent)).ok_or_else(|| {
        format!("{text:?} is not a share of a processor: write whole percents, such as \"50%\" or \"200%\"")
    })
}

/// Returns the file mode bits that `text` takes away: `"0027"`.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn umask(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mask| *mask <= 0o777 && !text.starts_with('+'))
        .ok_or_else(|| format!("{text:?} is not a umask: write up to four octal digits, such as \"0027\""))
}

/// Checks the name of an appliance, a component or a listener: it becomes part of file and socket names.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn name(text: &str) -> Result<(), String> {
    /// Long enough for anybody, short enough for the address of a Unix socket.
    const NAME_BYTES_MAX: usize = 32;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.chars().all(good) || text.starts_with('-') {
        return Err(format!(
            "{text:?} is not a name: use 1 to {NAME_BYTES_MAX} of a-z, 0-9, - and _, not beginning with -"
        ));
    }
    Ok(())
}

/// Checks the name of a channel of the appliance's own.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn channel(text: &str) -> Result<(), String> {
    /// As long as a channel's name may be in the protocol of the bus.
    const NAME_BYTES_MAX: usize = 64;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_' || c == '.';
    if text.len() > NAME_BYTES_MAX || !text.starts_with(|c: char| c.is_ascii_lowercase()) || !text.chars().all(good) {
        return Err(format!(
            "{text:?} is not the name of a channel: use 1 to {NAME_BYTES_MAX} of a-z, 0-9, -, _ and ., beginning with a-z"
        ));
    }
    if bus::BUILT_IN.contains(&text) || text.starts_with("component.") || text.starts_with("refit.") {
        return Err(format!("the channel {text:?} is the runtime's own"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_ranges() {
        for (text, expected) in
            [("30s", Some(30_000)), ("100ms", Some(100)), ("1m 30s", Some(90_000)), ("2m", Some(120_000))]
        {
            assert_eq!(duration(text).ok().map(|d| d.as_millis()), expected, "{text}");
        }
        for text in ["", "30", "-1s", "1 fortnight", "9999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(backoff("100ms..30s"), Ok((Duration::from_millis(100), Duration::from_secs(30))));
        assert!(backoff("30s..1s").is_err() && backoff("1s").is_err());
        assert_eq!(limit("5/1m"), Ok((5, Duration::from_secs(60))));
        assert!(limit("5").is_err() && limit("x/1m").is_err());
    }

    #[test]
    fn sizes_shares_and_masks() {
        let rows =
            [("65536", Some(65_536)), ("256MiB", Some(256 << 20)), ("1 GiB", Some(1 << 30)), ("2KiB", Some(2048))];
        for (text, expected) in rows {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
        for text in ["", "0", "MiB", "-1", "1MB", "1.5GiB", "99999999999TiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        for (text, expected) in [("50%", Some(50)), ("200%", Some(200)), ("0%", None), ("50", None), ("-1%", None)] {
            assert_eq!(percent(text).ok(), expected, "{text}");
        }
        for (text, expected) in [("0027", Some(0o27)), ("22", Some(0o22)), ("0o22", None), ("8", None), ("7777", None)]
        {
            assert_eq!(umask(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn names() {
        for (text, good) in [("web", true), ("a-b_9", true), ("", false), ("A", false), ("a.b", false), ("-a", false)] {
            assert_eq!(name(text).is_ok(), good, "{text}");
        }
    }
}
