//! The log: events as the viewpoint tells them.

use super::{Level, Millis};
use proto::v1::{ClusterView, Event};
use std::collections::VecDeque;

/// Entries kept. The oldest goes when it is full; a node keeps as many.
const ENTRIES_MAX: usize = 1024;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at_ms: Millis,
    pub level: Level,
    pub text: String,
}

/// Events in order, of one node at a time.
#[derive(Clone, Debug, Default)]
pub struct Log {
    entries: VecDeque<Entry>,
    last: u64,
}

impl Log {
    /// Takes in a sample's events. When its stream was just `opened` they replace what another
    /// node told; `before` was the viewpoint then.
    pub(super) fn take(&mut self, view: &ClusterView, opened: bool, before: &str) {
        if opened {
            *self = Self::default();
        }
        for event in &view.events {
            if event.seq > self.last {
                self.last = event.seq;
                self.push(entry(event));
            }
        }
        if opened && !before.is_empty() && before != view.viewpoint {
            self.push(Entry {
                at_ms: view.observed_at_ms,
                level: Level::Ok,
                text: format!(
                    "kvtop: seen via {} from here on, before via {before}",
                    view.viewpoint
                ),
            });
        }
    }

    /// The newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev()
    }

    fn push(&mut self, entry: Entry) {
        if self.entries.len() == ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }
}

fn entry(event: &Event) -> Entry {
    Entry { at_ms: event.at_ms, level: Level::of(event.level()), text: event.text.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(viewpoint: &str, seqs: &[u64]) -> ClusterView {
        ClusterView {
            viewpoint: viewpoint.into(),
            events: seqs
                .iter()
                .map(|seq| Event { seq: *seq, text: format!("e{seq}"), ..Default::default() })
                .collect(),
            ..Default::default()
        }
    }

    fn texts(log: &Log) -> Vec<&str> {
        log.newest().map(|entry| entry.text.as_str()).collect()
    }

    #[test]
    fn an_event_told_twice_is_shown_once() {
        let mut log = Log::default();
        log.take(&view("n1", &[1, 2]), true, "");
        log.take(&view("n1", &[1, 2, 3]), false, "n1");
        log.take(&view("n1", &[]), false, "n1");
        assert_eq!(texts(&log), ["e3", "e2", "e1"]);
    }

    #[test]
    fn another_node_tells_its_own_events_from_its_own_numbers() {
        let mut log = Log::default();
        log.take(&view("n1", &[7, 8]), true, "");
        log.take(&view("n2", &[1]), true, "n1");
        assert_eq!(texts(&log), ["kvtop: seen via n2 from here on, before via n1", "e1"]);
    }
}
