//! Numbers as people read them: short, with a unit, and `?` for what is not known.

use crate::state::Millis;

/// What is not known. Never 0.
pub const UNKNOWN: &str = "?";

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Per second: `0`, `3.1`, `124`, `1.52k`. The unit is in the title.
pub fn rate(per_second: f64) -> String {
    match per_second {
        r if r <= 0.0 => "0".into(),
        r if r < 0.05 => "<0.1".into(),
        r if r < 9.95 => format!("{r:.1}"),
        r if r < 999.5 => format!("{r:.0}"),
        r if r < 999_500.0 => scaled(r / 1e3, "k"),
        r if r < 999_500_000.0 => scaled(r / 1e6, "M"),
        r => scaled(r / 1e9, "G"),
    }
}

/// The same with the unit, `?` when unknown.
pub fn rate_per_s(per_second: Option<f64>) -> String {
    per_second.map_or_else(|| UNKNOWN.into(), |r| format!("{}/s", rate(r)))
}

/// Microseconds: `80us`, `0.42ms`, `4.1ms`, `412ms`, `1.2s`.
pub fn latency(micros: u64) -> String {
    match micros {
        0..100 => format!("{micros}us"),
        100..995 => format!("{:.2}ms", micros as f64 / 1e3),
        995..9_950 => format!("{:.1}ms", micros as f64 / 1e3),
        9_950..999_500 => format!("{:.0}ms", micros as f64 / 1e3),
        _ => format!("{:.1}s", micros as f64 / 1e6),
    }
}

/// Bytes: `812B`, `4.1GiB`.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" || value >= 9.95 {
        return format!("{value:.0}{unit}");
    }
    format!("{value:.1}{unit}")
}

/// A part of bytes, in the unit of the whole: `57.1/91.6GiB`; a whole that is not known is `?`.
pub fn bytes_of(part: u64, whole: u64) -> String {
    if whole == 0 {
        return format!("{}/{UNKNOWN}", bytes(part));
    }
    let text = bytes(whole.max(part));
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let scale =
        UNITS.iter().position(|it| *it == unit).map_or(1.0, |at| 1024_f64.powi(at as i32 + 1));
    if unit == "B" {
        return format!("{part}/{whole}B");
    }
    format!("{:.1}/{:.1}{unit}", part as f64 / scale, whole as f64 / scale)
}

/// Counts: `812`, `18.2k`.
pub fn count(count: u64) -> String {
    if count < 10_000 { count.to_string() } else { rate(count as f64) }
}

/// A ratio: `8.3%`, `100%`.
pub fn percent(ratio: f64) -> String {
    let percent = ratio * 100.0;
    if percent.abs() < 99.95 { format!("{percent:.1}%") } else { format!("{percent:.0}%") }
}

/// One of so many shares, with as many decimals as it takes to tell them apart; without its sign.
pub fn share(ratio: f64, of: usize) -> String {
    let decimals = match of {
        ..50 => 1,
        50..500 => 2,
        _ => 3,
    };
    format!("{:.decimals$}", ratio * 100.0)
}

/// A ratio without decimals and with its sign: `+12%`, `0%`.
pub fn deviation(ratio: f64) -> String {
    match (ratio * 100.0).round() as i64 {
        0 => "0%".into(),
        percent if percent > 999 => ">999%".into(),
        percent => format!("{percent:+}%"),
    }
}

/// Two units at most: `12s`, `3m12s`, `2h56m`, `4d03h`.
pub fn duration(millis: Millis) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// One unit: `12s`, `3m`, `2h`, `4d`.
pub fn duration_short(millis: Millis) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// An interval: `0.25s`, `1s`.
pub fn interval(millis: Millis) -> String {
    format!("{}s", millis as f64 / 1000.0)
}

/// Time of day, UTC.
pub fn clock(unix_ms: Millis) -> String {
    let seconds = unix_ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn scaled(value: f64, unit: &str) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}{unit}"),
        v if v < 99.95 => format!("{v:.1}{unit}"),
        v => format!("{v:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short_at_any_size() {
        let cases = [
            (0.0, "0"),
            (0.01, "<0.1"),
            (3.12, "3.1"),
            (9.96, "10"),
            (124.4, "124"),
            (999.6, "1.00k"),
            (1_520.0, "1.52k"),
            (15_230.0, "15.2k"),
            (152_300.0, "152k"),
            (1.5e6, "1.50M"),
        ];
        for (value, text) in cases {
            assert_eq!(rate(value), text);
        }
        assert_eq!(rate_per_s(None), "?");
    }

    #[test]
    fn latencies_bytes_and_shares_carry_their_unit() {
        assert_eq!(
            [80, 420, 4_100, 41_000, 1_200_000].map(latency),
            ["80us", "0.42ms", "4.1ms", "41ms", "1.2s"]
        );
        assert_eq!([0, 812, 4_300_000, 1 << 40].map(bytes), ["0B", "812B", "4.1MiB", "1.0TiB"]);
        assert_eq!(bytes_of(61_310_658_151, 98_354_753_536), "57.1/91.6GiB");
        assert_eq!([bytes_of(3 << 20, 0), bytes_of(12, 800)], ["3.0MiB/?", "12/800B"]);
        assert_eq!([0.0833, 1.0].map(percent), ["8.3%", "100%"]);
        assert_eq!([12, 100, 1_000].map(|of| share(0.00951, of)), ["1.0", "0.95", "0.951"]);
        assert_eq!([-0.121, 0.004, 0.12].map(deviation), ["-12%", "0%", "+12%"]);
    }

    #[test]
    fn durations_have_two_units_at_most() {
        assert_eq!(
            [12_000, 192_000, 10_560_000, 356_400_000].map(duration),
            ["12s", "3m12s", "2h56m", "4d03h"]
        );
        assert_eq!([12_000, 192_000].map(duration_short), ["12s", "3m"]);
        assert_eq!(clock(1_700_000_000_000), "22:13:20");
    }
}
