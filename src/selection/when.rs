//! Times as operators give them: a moment with its zone, or how long ago; and spans of time.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// RFC 3339 (`2026-01-31T12:00:00Z`), a date (its midnight in UTC), or a duration back from `now`
/// (`2h`, `1d12h`, `30m`). A time without a zone is refused: it would mean another moment on every
/// machine.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Some(back) = span(text) {
        let at = now.checked_sub(back).ok();
        return at.ok_or_else(|| format!("`{text}` goes back further than there is time"));
    }
    // A date with a time but without a zone would be read as that date's midnight.
    if text.len() == "2026-01-31".len()
        && let Ok(date) = text.parse::<jiff::civil::Date>()
        && let Ok(midnight) = date.to_zoned(TimeZone::UTC)
    {
        return Ok(midnight.timestamp());
    }
    if let Ok(local) = text.parse::<jiff::civil::DateTime>() {
        let seconds = local.strftime("%Y-%m-%dT%H:%M:%S");
        return Err(format!(
            "`{text}` does not say in which zone: write `{seconds}Z` for UTC, or an offset such as `{seconds}+02:00`"
        ));
    }
    Err(format!(
        "`{text}` is no time: write one such as `2026-01-31T12:00:00Z`, or how long ago, such as `2h` or `30m`"
    ))
}

/// `250ms`, `5s`, `1m30s`, `2h`, `4d`. Units may be combined, each with a whole number.
pub fn span(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total_ms = total_ms.checked_add(number.checked_mul(unit_ms)?)?;
        rest = &rest[unit..];
    }
    Some(Duration::from_millis(total_ms))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: &str = "2026-03-01T12:00:00Z";

    fn parsed(text: &str) -> Result<String, String> {
        parse(text, NOW.parse().unwrap()).map(|at| at.to_string())
    }

    #[test]
    fn a_moment_or_how_long_ago() {
        for (text, at) in [
            ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
            ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00Z"),
            ("2h", "2026-03-01T10:00:00Z"),
            ("1d30m", "2026-02-28T11:30:00Z"),
            ("0s", NOW),
            ("2026-01-31", "2026-01-31T00:00:00Z"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(at), "{text}");
        }
    }

    #[test]
    fn what_is_neither_says_what_to_write() {
        insta::assert_snapshot!(parsed("2026-01-31T12:00").unwrap_err(), @"`2026-01-31T12:00` does not say in which zone: write `2026-01-31T12:00:00Z` for UTC, or an offset such as `2026-01-31T12:00:00+02:00`");
        insta::assert_snapshot!(parsed("yesterday").unwrap_err(), @"`yesterday` is no time: write one such as `2026-01-31T12:00:00Z`, or how long ago, such as `2h` or `30m`");
        for wrong in ["", "2", "-2h", "2 h", "9999999999999999d", "99999999999d"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in ".*") {
            let _ = parsed(&text);
        }
    }
}
