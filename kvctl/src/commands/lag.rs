//! How far behind, in words: what is not known is `?` and never 0.

use crate::table::{Cell, Tone};
use crate::time::for_people;
use proto::v1::Lag;
use std::time::Duration;

/// Lag from which a cell is marked, and is alarming.
const MARKED_MS: u64 = 10_000;
const ALARMING_MS: u64 = 60_000;

/// Whether what is kept for a node is all that it lacks.
pub(crate) fn is_known(lag: &Lag) -> bool {
    lag.unheard.is_empty() && !lag.more
}

/// Lag of a node in a column: `0`, `3m12s`, `3m12s or more`, `?`.
pub(crate) fn node_cell(lag: Option<&Lag>, now_ms: u64) -> Cell {
    lag.map_or_else(|| "?".into(), |lag| cell(lag.since_ms, is_known(lag), now_ms))
}

/// The same of anything that lacks writes since `since_ms`, 0 for none.
pub(crate) fn cell(since_ms: u64, known: bool, now_ms: u64) -> Cell {
    let Some(age_ms) = millis(since_ms, known, now_ms) else { return "?".into() };
    let tone = match age_ms {
        ALARMING_MS.. => Tone::Alarm,
        MARKED_MS.. => Tone::Warning,
        _ => Tone::Plain,
    };
    let more = if known { "" } else { " or more" };
    match since_ms {
        0 => "0".into(),
        _ => Cell::toned(for_people(Duration::from_millis(age_ms)) + more, tone),
    }
}

/// Milliseconds that are known to be missing, 0 if that is known; `None`: it is not known.
pub(crate) fn millis(since_ms: u64, known: bool, now_ms: u64) -> Option<u64> {
    match since_ms {
        0 => known.then_some(0),
        since => Some(now_ms.saturating_sub(since)),
    }
}

/// The age of a moment that may not be known.
pub(crate) fn age_cell(at_ms: u64, now_ms: u64) -> Cell {
    match at_ms {
        0 => "?".into(),
        at => for_people(Duration::from_millis(now_ms.saturating_sub(at))).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_0_only_when_everybody_was_heard() {
        let lag = |since_ms, unheard: &[&str], more| {
            let unheard = unheard.iter().map(|name| (*name).to_owned()).collect();
            node_cell(Some(&Lag { since_ms, unheard, more, ..Default::default() }), 200_000)
        };
        assert_eq!(lag(0, &[], false), "0".into());
        assert_eq!(lag(0, &["n2"], false), "?".into());
        assert_eq!(lag(0, &[], true), "?".into());
        assert_eq!(node_cell(None, 5), "?".into());
        assert_eq!(lag(8_000, &[], false), Cell::toned("3m12s", Tone::Alarm));
        assert_eq!(lag(8_000, &["n2"], false), Cell::toned("3m12s or more", Tone::Alarm));
        assert_eq!(lag(185_000, &[], false), Cell::toned("15s", Tone::Warning));
        assert_eq!(
            (millis(0, true, 9), millis(0, false, 9), millis(4, false, 9)),
            (Some(0), None, Some(5))
        );
    }
}
