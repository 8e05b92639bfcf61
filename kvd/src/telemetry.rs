//! What a node counts, what it remembers happening, and how it logs.

use crate::clock;
use proto::histogram::{self, BUCKETS};
use proto::v1::{Event, Histogram, Level};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Events a node keeps, at most. The oldest goes when one more comes.
const EVENTS_MAX: usize = 1024;

/// Counters since the node started.
#[derive(Debug, Default)]
pub struct Stats {
    /// Client gets coordinated here.
    pub gets: Counted,
    /// Client puts.
    pub puts: Counted,
    /// Client deletes.
    pub deletes: Counted,
    /// Client requests that failed for want of a quorum or a disk.
    pub failures: Counted,
    /// Copies sent to a replica that a get found behind.
    pub read_repairs: Counted,
    /// Gets that returned more than one value.
    pub siblings_seen: Counted,
    /// Of gets.
    pub get_latency: Latencies,
    /// Of puts and deletes.
    pub put_latency: Latencies,
}

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counted(AtomicU64);

impl Counted {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram of latencies; its size is fixed.
#[derive(Debug)]
pub struct Latencies([AtomicU64; BUCKETS]);

impl Default for Latencies {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl Latencies {
    /// Counts one request.
    pub fn add(&self, latency: Duration) {
        self.0[histogram::bucket(latency.as_micros() as u64)].fetch_add(1, Ordering::Relaxed);
    }

    /// All counts so far.
    pub fn counts(&self) -> Histogram {
        histogram::sparse(&std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed)))
    }
}

/// What happened lately, as this node saw it.
#[derive(Debug, Default)]
pub struct Events {
    kept: Mutex<VecDeque<Event>>,
}

impl Events {
    /// Remembers, and logs, one more.
    pub fn add(&self, level: Level, text: String) {
        match level {
            Level::Critical | Level::Degraded => tracing::warn!("{text}"),
            Level::Ok | Level::Unspecified => tracing::info!("{text}"),
        }
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seq = kept.back().map_or(1, |last| last.seq + 1);
        if kept.len() == EVENTS_MAX {
            kept.pop_front();
        }
        kept.push_back(Event { seq, at_ms: clock::now_ms(), level: level.into(), text });
    }

    /// Those after `seq`, oldest first.
    pub fn since(&self, seq: u64) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.iter().filter(|event| event.seq > seq).cloned().collect()
    }
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. `filter` is a tracing filter such as `info` or `kvd=debug`.
pub fn start_logging(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| format!("{filter:?} is not a log filter: {error}"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => logs.with_target(false).with_ansi(false).try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
    started.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_and_bounded() {
        let events = Events::default();
        (0..EVENTS_MAX + 5).for_each(|i| events.add(Level::Ok, i.to_string()));
        let all = events.since(0);
        assert_eq!((all.len(), all[0].seq), (EVENTS_MAX, 6));
        assert_eq!(events.since(all[EVENTS_MAX - 1].seq - 2).len(), 2);
    }
}
