//! Durations as people type them, instants as scripts read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `500ms`, `10s`, `2m`, `1h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("is not a time such as 500ms, 10s or 2m".to_owned()),
    };
    let ms = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor_ms))
        .filter(|ms| (1..=u64::from(u32::MAX)).contains(ms))
        .ok_or("must be between 1ms and 49 days")?;
    Ok(Duration::from_millis(ms))
}

/// Milliseconds since 1970, of this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// RFC 3339 in UTC with milliseconds: `2026-11-23T14:02:07.250Z`.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let (days, ms_of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{}Z", clock(ms_of_day, true))
}

/// Time of day in UTC: `14:02:07Z`.
pub(crate) fn time_of_day(unix_ms: u64) -> String {
    format!("{}Z", clock(unix_ms % 86_400_000, false))
}

/// How long, in the two largest units: `350ms`, `12s`, `3m12s`, `2h05m`, `4d03h`.
pub(crate) fn for_people(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

fn clock(ms_of_day: u64, with_ms: bool) -> String {
    let seconds = ms_of_day / 1_000;
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if with_ms {
        format!("{h:02}:{m:02}:{s:02}.{:03}", ms_of_day % 1_000)
    } else {
        format!("{h:02}:{m:02}:{s:02}")
    }
}

/// Year, month and day of a day counted from 1970-01-01. Counts in 400-year eras that start on
/// 1 March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_as_date_prints_them() {
        // date -u -d @SECONDS +%FT%TZ
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_868_799_000, "2000-02-29T23:59:59.000Z"),
            (1_709_251_200_001, "2024-03-01T00:00:00.001Z"),
            (1_795_442_527_250, "2026-11-23T14:02:07.250Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
        assert_eq!(time_of_day(1_795_442_527_250), "14:02:07Z");
    }

    #[test]
    fn durations_are_read_and_shown() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "s", "0s", "-1s", "1.5s", "99999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for (seconds, text) in [(12, "12s"), (192, "3m12s"), (7_500, "2h05m"), (356_400, "4d03h")] {
            assert_eq!(for_people(Duration::from_secs(seconds)), text);
        }
    }
}
