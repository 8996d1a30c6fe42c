//! The values that have a form of their own: durations, ranges, rates, names.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::SignedDuration;

/// The longest duration that is accepted: a year; anything longer is a slip of the pen.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Returns the duration that `text` says: `"30s"`, `"100ms"`, `"1m 30s"`.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write a number and a unit, such as \"30s\" or \"100ms\"");
    let signed: SignedDuration = text.trim().parse().map_err(|_| wrong())?;
    let duration = Duration::try_from(signed).map_err(|_| wrong())?;
    if duration > DURATION_MAX { Err(format!("{text:?} is longer than a year")) } else { Ok(duration) }
}

/// Returns how many bytes `text` says: `"64KiB"`, `"1MiB"`, `"4096B"`.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
    let wrong = || format!("{text:?} is not a size: write a number and a unit, such as \"64KiB\" or \"1MiB\"");
    let (number, factor) =
        UNITS.iter().find_map(|(unit, factor)| Some((text.trim().strip_suffix(unit)?, factor))).ok_or_else(wrong)?;
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    number.checked_mul(*factor).ok_or_else(wrong)
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

/// Returns whether two listeners cannot have these addresses side by side: an address of no particular host is all of them,
/// and one of IPv6 is all of IPv4, too.
pub(super) fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    if one.port() != other.port() || one.port() == 0 {
        return false; // any free port is never one that is taken
    }
    let (one, other) = (one.ip(), other.ip());
    let covers = |all: IpAddr, some: IpAddr| all.is_unspecified() && (all.is_ipv6() || some.is_ipv4());
    one.to_canonical() == other.to_canonical() || covers(one, other) || covers(other, one)
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
    fn sizes() {
        for (text, expected) in
            [("1MiB", Some(1 << 20)), ("64 KiB", Some(64 << 10)), ("17B", Some(17)), ("2GiB", Some(2 << 30))]
        {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
        for text in ["", "1", "MiB", "-1KiB", "1.5MiB", "1MB", "99999999999999999999B", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_that_exclude_each_other() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "0.0.0.0:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "[::]:81", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
            ("0.0.0.0:0", "127.0.0.1:0", false),
        ] {
            let [one_is, other_is] = [one, other].map(|text| text.parse().expect("an address"));
            assert_eq!((clash(one_is, other_is), clash(other_is, one_is)), (expected, expected), "{one} {other}");
        }
    }

    #[test]
    fn names() {
        for (text, good) in [("web", true), ("a-b_9", true), ("", false), ("A", false), ("a.b", false), ("-a", false)] {
            assert_eq!(name(text).is_ok(), good, "{text}");
        }
    }
}
