//! How far a bulk command is: a bar on a terminal, dated lines elsewhere.

use crate::config::Settings;
use crate::time::{for_people, now_ms, time_of_day};
use crate::value::size;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// A line at the latest after this long…
const LINE_EVERY: Duration = Duration::from_secs(10);
/// …and sooner after this much more of the whole, but never more often than every second.
const LINE_EVERY_PERCENT: u64 = 5;
const LINE_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub keys: u64,
    pub skipped: u64,
    pub failed: u64,
    /// Of values.
    pub bytes: u64,
    /// Of the source; what the total counts.
    pub source_bytes: u64,
}

/// Shows a tally as it grows.
pub(crate) struct Progress {
    verb: &'static str,
    shown: Shown,
    total: Option<u64>,
    started: Instant,
    pace: Pace,
}

/// When the next line is due: soon enough to see that it gets on, never so often that it floods.
pub(super) struct Pace {
    last_line: Instant,
    last_percent: u64,
}

impl Pace {
    /// Starts now, from nothing.
    pub(super) fn new() -> Self {
        Self { last_line: Instant::now(), last_percent: 0 }
    }

    /// Whether a line is due; one that is counts as printed.
    pub(super) fn due(&mut self, percent: u64) -> bool {
        let waited = self.last_line.elapsed();
        let further = percent >= self.last_percent + LINE_EVERY_PERCENT;
        if waited < LINE_AT_MOST_EVERY || (waited < LINE_EVERY && !further) {
            return false;
        }
        *self = Self { last_line: Instant::now(), last_percent: percent };
        true
    }
}

enum Shown {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

impl Progress {
    /// `total` is the size of the source, if that is known.
    pub(crate) fn new(settings: &Settings, verb: &'static str, total: Option<u64>) -> Self {
        let shown = if settings.quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            Shown::Bar(bar(settings, total))
        } else {
            Shown::Lines
        };
        Self {
            verb,
            shown,
            total: total.filter(|total| *total > 0),
            started: Instant::now(),
            pace: Pace::new(),
        }
    }

    /// Shows where things stand.
    pub(crate) fn show(&mut self, tally: &Tally) {
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_position(tally.source_bytes);
                bar.set_message(format!("{} keys, {} failed", tally.keys, tally.failed));
            }
            Shown::Lines => self.line(tally),
            Shown::Nothing => {}
        }
    }

    /// Does something that prints, out of the bar's way.
    pub(crate) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(print),
            _ => print(),
        }
    }

    /// Takes the bar away and says how long it took.
    pub(crate) fn finish(&self) -> Duration {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
        self.started.elapsed()
    }

    fn line(&mut self, tally: &Tally) {
        let percent = self.total.map_or(0, |total| tally.source_bytes * 100 / total);
        if !self.pace.due(percent) {
            return;
        }
        let elapsed = self.started.elapsed();
        let text = line(self.verb, tally, self.total, elapsed);
        let _ = writeln!(io::stderr(), "{} {text}", time_of_day(now_ms()));
    }
}

fn line(verb: &str, tally: &Tally, total: Option<u64>, elapsed: Duration) -> String {
    let rate = tally.source_bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let mut text = format!("{verb} {} keys {}", tally.keys, size(tally.bytes));
    text += &format!(" {}/s", size(rate as u64));
    if let Some(total) = total {
        let left = total.saturating_sub(tally.source_bytes) as f64 / rate.max(1.0);
        text += &format!(
            " {}% eta={}",
            tally.source_bytes * 100 / total,
            for_people(Duration::from_secs_f64(left))
        );
    }
    text + &format!(" failed={}", tally.failed)
}

fn bar(settings: &Settings, total: Option<u64>) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    let template = match total {
        Some(_) => {
            "{bar:32} {percent:>3}%  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}  {msg}"
        }
        None => "{binary_bytes}  {binary_bytes_per_sec}  {elapsed}  {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars(if settings.ascii { "#>-" } else { "█▉░" }));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_how_fast_and_how_long_yet() {
        let tally = Tally { keys: 512, bytes: 1 << 20, source_bytes: 1 << 20, ..Tally::default() };
        let text = line("load", &tally, Some(4 << 20), Duration::from_secs(1));
        assert_eq!(text, "load 512 keys 1.0 MiB 1.0 MiB/s 25% eta=3s failed=0");
        let text = line("dump", &tally, None, Duration::from_secs(2));
        assert_eq!(text, "dump 512 keys 1.0 MiB 512.0 KiB/s failed=0");
    }
}
