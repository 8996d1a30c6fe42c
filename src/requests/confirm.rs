//! A reload that has to be confirmed: its terms as they are written.

use std::time::Duration;

use refit_bus::ConfirmTerms;

use super::RequestError;
use crate::config;

/// The longest wait: whoever has not come back for a day will not.
const CONFIRM_WITHIN_MAX: Duration = Duration::from_secs(24 * 3600);
/// The shortest: in less nobody can have looked.
const CONFIRM_WITHIN_MIN: Duration = Duration::from_millis(100);

/// Returns the terms of `request` that `within` and `restores` are; `None` if it need not be confirmed.
pub(super) fn terms(request: &str, within: Option<&str>, restores: bool) -> Result<Option<ConfirmTerms>, RequestError> {
    if request != "reload" && (restores || within.is_some()) {
        return Err(RequestError::NotAReload { request: request.to_owned() });
    }
    let Some(text) = within else {
        return if restores { Err(RequestError::RestoresAlone) } else { Ok(None) };
    };
    let within = config::duration(text).map_err(|why| RequestError::Within { why })?;
    if !(CONFIRM_WITHIN_MIN..=CONFIRM_WITHIN_MAX).contains(&within) {
        return Err(RequestError::Within { why: format!("{text:?} is not between 100 ms and 24 h") });
    }
    Ok(Some(ConfirmTerms { within, restores }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_understood_or_refused_with_a_reason() {
        let of = |request, within, restores| terms(request, within, restores).map_err(|error| error.to_string());
        assert_eq!(of("reload", None, false), Ok(None));
        let two_minutes = |restores| Ok(Some(ConfirmTerms { within: Duration::from_secs(120), restores }));
        assert_eq!(of("reload", Some("2m"), false), two_minutes(false));
        assert_eq!(of("reload", Some("120s"), true), two_minutes(true));
        let refused = [
            (of("reload", Some("two"), false), "is not a duration"),
            (of("reload", Some(""), false), "is not a duration"),
            (of("reload", Some("-2m"), false), "is not a duration"),
            (of("reload", Some("0s"), false), "is not between 100 ms and 24 h"),
            (of("reload", Some("25h"), false), "is not between 100 ms and 24 h"),
            (of("reload", None, true), "restores"),
            (of("stop", Some("2m"), false), "stop"),
            (of("confirm", None, true), "confirm"),
        ];
        for (result, words) in refused {
            assert!(result.as_ref().is_err_and(|text| text.contains(words)), "{words}: {result:?}");
        }
    }
}
