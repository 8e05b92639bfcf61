//! What is in the log and not yet in the database: the newest state of each key written lately.
//! An empty record says that a key is gone, though the database may still have it.

use super::wal::{Entry, Space};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The newest state of some keys and facts.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Layer {
    /// Stored key → record.
    pub records: BTreeMap<Bytes, Bytes>,
    /// Uid and stored key → record.
    pub hints: BTreeMap<Bytes, Bytes>,
    /// Name → value; an empty value: the fact is gone.
    pub facts: BTreeMap<String, Bytes>,
    bytes: usize,
}

impl Layer {
    /// Takes in one more entry, over an older one of the same key.
    pub fn insert(&mut self, entry: Entry) {
        match entry {
            Entry::Record { space, key, value } => {
                self.bytes += key.len() + value.len();
                let key_len = key.len();
                let records = match space {
                    Space::Records => &mut self.records,
                    Space::Hints => &mut self.hints,
                };
                if let Some(older) = records.insert(key, value) {
                    self.bytes -= key_len + older.len();
                }
            }
            Entry::Fact { name, value } => {
                self.facts.insert(name, value);
            }
        }
    }

    /// The records of one space, by their keys in it.
    pub fn of(&self, space: Space) -> &BTreeMap<Bytes, Bytes> {
        match space {
            Space::Records => &self.records,
            Space::Hints => &self.hints,
        }
    }

    /// Bytes of keys and records.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.hints.is_empty() && self.facts.is_empty()
    }
}

/// The layer that grows, and the one that is being brought into the database.
#[derive(Debug, Default)]
pub struct Recent {
    /// What was written since the last freeze.
    pub active: Layer,
    /// What is being checkpointed.
    pub frozen: Option<Arc<Layer>>,
}

impl Recent {
    /// A key's newest record.
    pub fn record(&self, space: Space, key: &[u8]) -> Option<&Bytes> {
        let frozen = || self.frozen.as_ref()?.of(space).get(key);
        self.active.of(space).get(key).or_else(frozen)
    }

    /// A fact's newest value.
    pub fn fact(&self, name: &str) -> Option<&Bytes> {
        let frozen = || self.frozen.as_ref()?.facts.get(name);
        self.active.facts.get(name).or_else(frozen)
    }

    /// Up to `limit` records of a space in a range, ascending, those that are gone included, and
    /// whether there are more.
    pub fn page(
        &self,
        space: Space,
        (start, end): (&[u8], Bound<&[u8]>),
        limit: usize,
    ) -> (Vec<(Bytes, Bytes)>, bool) {
        let from = (Bound::Included(start), end);
        let mut found: BTreeMap<&Bytes, &Bytes> = BTreeMap::new();
        let frozen = self.frozen.iter().flat_map(|layer| layer.of(space).range::<[u8], _>(from));
        found.extend(frozen.take(limit + 1));
        found.extend(self.active.of(space).range::<[u8], _>(from).take(limit + 1));
        let more = found.len() > limit;
        let page = found.into_iter().take(limit).map(|(key, value)| (key.clone(), value.clone()));
        (page.collect(), more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(layer: &mut Layer, key: &str, value: &str) {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
        layer.insert(Entry::Record { space: Space::Records, key, value });
    }

    #[test]
    fn the_growing_layer_lies_over_the_frozen_one() {
        let (mut active, mut frozen) = (Layer::default(), Layer::default());
        insert(&mut frozen, "a", "old");
        insert(&mut frozen, "c", "3");
        insert(&mut active, "a", "new");
        insert(&mut active, "b", "2");
        let recent = Recent { active, frozen: Some(Arc::new(frozen)) };
        assert_eq!(recent.record(Space::Records, b"a").unwrap(), "new");
        assert_eq!(recent.record(Space::Records, b"c").unwrap(), "3");
        let page = |start: &[u8], limit| {
            let (page, more) = recent.page(Space::Records, (start, Bound::Unbounded), limit);
            let values: Vec<Bytes> = page.into_iter().map(|(_, value)| value).collect();
            (values, more)
        };
        assert_eq!(page(b"", 2), (vec!["new".into(), "2".into()], true));
        assert_eq!(page(b"b", 9), (vec!["2".into(), "3".into()], false));
    }

    #[test]
    fn bytes_count_each_key_once() {
        let mut layer = Layer::default();
        insert(&mut layer, "key", "12345");
        insert(&mut layer, "key", "1");
        assert_eq!(layer.bytes(), 4);
    }
}
