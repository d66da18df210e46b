//! Durations and sizes as they are written.

use std::time::Duration;

pub use crate::selection::when::span as duration;

/// The shortest spelling that [`duration`] reads back.
pub fn spell_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut out = String::new();
    for (unit, unit_ms) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ] {
        if rest >= unit_ms {
            out.push_str(&format!("{}{unit}", rest / unit_ms));
            rest %= unit_ms;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

/// `1024`, `16MiB`, `1GB`, `512 KiB`.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        let ms = |text| duration(text).map(|duration| duration.as_millis());
        assert_eq!(ms("250ms"), Some(250));
        assert_eq!(ms("1m30s"), Some(90_000));
        assert_eq!(ms("4d"), Some(345_600_000));
        for wrong in [
            "",
            "5",
            "5 s",
            "-5s",
            "1.5s",
            "5sec",
            "s",
            "99999999999999999d",
        ] {
            assert_eq!(ms(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!(bytes("16MiB"), Some(16 << 20));
        assert_eq!(bytes("1 GB"), Some(1_000_000_000));
        assert_eq!(bytes("1024"), Some(1024));
        for wrong in ["", "MiB", "-1", "1.5MiB", "1mib", "99999999999TB"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_is_read_back_as_it_is_spelt(ms in 0u64..=10_000_000_000) {
            let written = Duration::from_millis(ms);
            prop_assert_eq!(duration(&spell_duration(written)), Some(written));
        }

        #[test]
        fn nothing_makes_it_panic(text in ".*") {
            let _ = (duration(&text), bytes(&text));
        }
    }
}
