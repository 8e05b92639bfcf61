//! Rates and percentages as people type them, amounts as they read them side by side.

/// Bytes a second: `60MiB/s`, `60MiB`, `500KB/s`; `0` and `none` are no bound, which is 0.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    if matches!(text, "0" | "none") {
        return Ok(0);
    }
    let amount = text.strip_suffix("/s").unwrap_or(text);
    parse_bytes(amount).map_err(|why| format!("{why}, such as 60MiB/s; `none` is no bound"))
}

/// A share: `5%` or `0.05`.
pub(crate) fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    ratio
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| "is not a share such as 5% or 0.05".to_owned())
}

/// `1 partition`, `2 partitions`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Two amounts in the unit of the second: `57.1/91.6 GiB`.
pub(crate) fn of_bytes(done: u64, total: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut unit, mut scale) = (0, 1.0_f64);
    while total.max(done) as f64 / scale >= 1023.95 && unit + 1 < UNITS.len() {
        (unit, scale) = (unit + 1, scale * 1024.0);
    }
    match unit {
        0 => format!("{done}/{total} B"),
        unit => format!("{:.1}/{:.1} {}", done as f64 / scale, total as f64 / scale, UNITS[unit]),
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "B" => 1,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("is not a number of bytes with its unit".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "is not a number of bytes that can be".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_its_unit_and_none_is_no_bound() {
        for (text, bytes) in [
            ("60MiB/s", 60 << 20),
            ("60MiB", 60 << 20),
            ("500KB/s", 500_000),
            ("1GiB/s", 1 << 30),
            ("7B/s", 7),
            ("0", 0),
            ("none", 0),
        ] {
            assert_eq!(parse_rate(text), Ok(bytes), "{text}");
        }
        for bad in ["", "60", "MiB/s", "-1MiB", "1.5MiB", "60mib", "0MiB/s", "99999999999999GiB"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_share_is_a_percentage_or_a_ratio() {
        assert_eq!(parse_ratio("5%"), Ok(0.05));
        assert_eq!(parse_ratio("0.05"), Ok(0.05));
        for bad in ["", "%", "101%", "5", "-1%", "NaN"] {
            assert!(parse_ratio(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_amounts_share_a_unit() {
        assert_eq!(of_bytes(57 << 30, 91 << 30), "57.0/91.0 GiB");
        assert_eq!(of_bytes(1 << 20, 2 << 30), "0.0/2.0 GiB");
        assert_eq!(of_bytes(3, 1000), "3/1000 B");
        assert_eq!(of_bytes(0, 0), "0/0 B");
    }
}
