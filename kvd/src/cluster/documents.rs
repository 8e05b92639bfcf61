//! What a node knows of the layouts, as it is stored and told: a layout only to who has not got it, and
//! then by what it changes of one that it has.

use crate::dynamo::history::{Control, History, HistoryError, Mark, Marks, Parts, Past, Settled};
use crate::dynamo::layout::Layout;
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use prost::Message;
use proto::v1;
use sha2::{Digest, Sha256};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// As it is told to somebody who has the layouts `known`.
pub fn told(history: &History, known: &BTreeSet<LayoutId>) -> v1::History {
    let mut told = named_only(history);
    let mut there: BTreeMap<LayoutId, &Layout> = BTreeMap::new();
    for layout in history.layouts() {
        if !known.contains(&layout.id()) {
            let base = layout.parents().iter().find_map(|id| there.get(id));
            match base {
                Some(base) => told.deltas.push(v1::LayoutDelta {
                    base_id: base.id().to_bytes().to_vec().into(),
                    delta: layout.delta(base).into(),
                }),
                None => told.layouts.push(layout.encode().into()),
            }
        }
        there.insert(layout.id(), layout);
    }
    told
}

/// With its layouts named, none told.
fn named_only(history: &History) -> v1::History {
    let settled = |(id, settled): (&LayoutId, &Settled)| v1::Settled {
        layout_id: id.to_bytes().to_vec().into(),
        at_ms: settled.at_ms,
        past: settled.past.iter().map(past_to_wire).collect(),
    };
    let mark = |((layout, keyspace, uid), mark): (&(LayoutId, KeyspaceId, Uid), &Mark)| v1::Marks {
        uid: uid.to_bytes().to_vec().into(),
        layout_id: layout.to_bytes().to_vec().into(),
        keyspace: keyspace.0,
        bits: mark.synced.bits().max(mark.closed.bits()),
        synced: of_bits(&mark.synced, mark.closed.bits()),
        closed: of_bits(&mark.closed, mark.synced.bits()),
    };
    let left = |(uid, layout): (&Uid, &LayoutId)| v1::Left {
        uid: uid.to_bytes().to_vec().into(),
        layout_id: layout.to_bytes().to_vec().into(),
    };
    let control = history.control();
    v1::History {
        layouts: Vec::new(),
        layout_ids: history.layouts().iter().map(|it| it.id().to_bytes().to_vec().into()).collect(),
        deltas: Vec::new(),
        settled: history.settled().iter().map(settled).collect(),
        marks: history.marks().iter().map(mark).collect(),
        left: history.left().iter().map(left).collect(),
        control: Some(v1::OpControl {
            stamp: control.stamp,
            paused: control.paused,
            bytes_per_second: control.bytes_per_second,
        }),
    }
}

/// A set that is not empty, of a ring cut at least as fine as the other of its mark.
fn of_bits(parts: &Parts, bits: u32) -> bytes::Bytes {
    parts.refined(bits).as_bytes().to_vec().into()
}

fn past_to_wire(past: &Past) -> v1::PastLayout {
    v1::PastLayout {
        id: past.id.to_bytes().to_vec().into(),
        depth: past.depth,
        note: past.note.clone().into(),
        ended_at_ms: past.ended_at_ms,
    }
}

/// Of what was told.
#[derive(Debug)]
pub enum Heard {
    /// All of it.
    All(History),
    /// It names these layouts, and they are not there.
    Missing(Vec<LayoutId>),
}

/// The layouts that a message names.
pub fn names(wire: &v1::History) -> BTreeSet<LayoutId> {
    wire.layout_ids.iter().filter_map(|id| named(id)).collect()
}

/// Of what was told to a node that has the layouts `have` gives.
///
/// # Errors
/// What is wrong with it, in words.
pub fn heard(
    wire: &v1::History,
    have: impl Fn(LayoutId) -> Option<Arc<Layout>>,
) -> Result<Heard, String> {
    let mut told: BTreeMap<LayoutId, Arc<Layout>> = BTreeMap::new();
    let mut missing = BTreeSet::new();
    for bytes in &wire.layouts {
        let layout = Layout::decode(bytes).map_err(|error| error.to_string())?;
        told.insert(layout.id(), Arc::new(layout));
    }
    for it in &wire.deltas {
        let base = layout_id(&it.base_id)?;
        match told.get(&base).cloned().or_else(|| have(base)) {
            Some(base) => {
                let layout = Layout::from_delta(&base, &it.delta).map_err(|e| e.to_string())?;
                told.insert(layout.id(), Arc::new(layout));
            }
            None => _ = missing.insert(base),
        }
    }
    for id in &wire.layout_ids {
        if let Entry::Vacant(place) = told.entry(layout_id(id)?) {
            match have(*place.key()) {
                Some(layout) => _ = place.insert(layout),
                None => _ = missing.insert(place.into_key()),
            }
        }
    }
    if !missing.is_empty() {
        return Ok(Heard::Missing(missing.into_iter().collect()));
    }
    let layouts = told.into_values().collect();
    history_of(layouts, wire).map(Heard::All)
}

fn history_of(layouts: Vec<Arc<Layout>>, wire: &v1::History) -> Result<History, String> {
    let mut settled = BTreeMap::new();
    for it in &wire.settled {
        let past = it.past.iter().map(past_from_wire).collect::<Result<_, _>>()?;
        settled.insert(layout_id(&it.layout_id)?, Settled { at_ms: it.at_ms, past });
    }
    let mut marks = Marks::default();
    for it in &wire.marks {
        let key = (layout_id(&it.layout_id)?, KeyspaceId(it.keyspace), uid(&it.uid)?);
        let parts = |bytes: &[u8]| Parts::from_bytes(it.bits, bytes).ok_or("a set of another ring");
        let mark = Mark { synced: parts(&it.synced)?, closed: parts(&it.closed)? };
        marks.put(key, &mark);
    }
    let left = wire.left.iter().map(|it| Ok((uid(&it.uid)?, layout_id(&it.layout_id)?)));
    let left = left.collect::<Result<_, String>>()?;
    let control = wire.control.unwrap_or_default();
    let control = Control {
        stamp: control.stamp,
        paused: control.paused,
        bytes_per_second: control.bytes_per_second,
    };
    let history = History::from_parts(layouts, settled, marks, left, control);
    history.map_err(|error: HistoryError| error.to_string())
}

fn past_from_wire(past: &v1::PastLayout) -> Result<Past, String> {
    Ok(Past {
        id: layout_id(&past.id)?,
        depth: past.depth,
        note: past.note.to_vec(),
        ended_at_ms: past.ended_at_ms,
    })
}

fn layout_id(bytes: &[u8]) -> Result<LayoutId, String> {
    let id = bytes.try_into().map(LayoutId::from_bytes);
    id.map_err(|_| "a layout id has 16 bytes".into())
}

fn uid(bytes: &[u8]) -> Result<Uid, String> {
    Uid::from_slice(bytes).ok_or_else(|| "a uid has 16 bytes".into())
}

/// The id of a layout that a message names; `None`: it names none.
pub fn named(bytes: &[u8]) -> Option<LayoutId> {
    bytes.try_into().map(LayoutId::from_bytes).ok()
}

/// What is stored of it beside its layouts, and what tells it apart.
pub fn encode(history: &History) -> (Vec<u8>, u64) {
    let bytes = named_only(history).encode_to_vec();
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    let digest = digest.first_chunk().expect("32 bytes begin with 8");
    (bytes, u64::from_be_bytes(*digest))
}

/// Of what was stored. `stored` gives a layout by its id.
///
/// # Errors
/// What is wrong with it, in words.
pub fn decode(
    bytes: &[u8],
    stored: impl Fn(LayoutId) -> Option<Arc<Layout>>,
) -> Result<History, String> {
    let wire = v1::History::decode(bytes).map_err(|error| error.to_string())?;
    match heard(&wire, stored)? {
        Heard::All(history) => Ok(history),
        Heard::Missing(ids) => Err(format!("{} layouts are missing", ids.len())),
    }
}

/// What a layout says of the operation that made it.
pub fn note_of(bytes: &[u8]) -> v1::Note {
    v1::Note::decode(bytes).unwrap_or_default() // a newer kvd's: nothing is said of it
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::layout::{Change, samples};

    fn ids(history: &History) -> BTreeSet<LayoutId> {
        history.layouts().iter().map(|layout| layout.id()).collect()
    }

    fn of(history: &History, id: LayoutId) -> Option<Arc<Layout>> {
        history.layouts().iter().find(|layout| layout.id() == id).cloned()
    }

    /// One layout, and the same with a change that nobody has done anything for.
    fn before_and_after() -> (History, History) {
        let first = samples::layout(&[1; 5], 1);
        let weightier = crate::dynamo::layout::Member { weight: 3, ..first.members()[2].clone() };
        let child = first.changed(&[Change::Set(weightier)], Vec::new(), None).unwrap();
        let before = History::new(first);
        let after = before.with_child(child).unwrap();
        (before, after)
    }

    #[test]
    fn a_layout_is_told_to_who_lacks_it_and_as_a_change_of_what_it_has() {
        let (before, after) = before_and_after();
        let wire = told(&after, &ids(&before));
        assert_eq!((wire.layouts.len(), wire.deltas.len()), (0, 1));
        assert!(wire.deltas[0].delta.len() < after.head().encode().len() / 4);
        let Heard::All(heard_it) = heard(&wire, |id| of(&before, id)).unwrap() else { panic!() };
        assert_eq!(heard_it, after);
        let again = told(&after, &ids(&after));
        assert!(again.layouts.is_empty() && again.deltas.is_empty());
    }

    #[test]
    fn who_has_nothing_is_told_all_and_who_lacks_what_was_named_says_so() {
        let (before, after) = before_and_after();
        let whole = told(&after, &BTreeSet::new());
        assert_eq!((whole.layouts.len(), whole.deltas.len()), (1, 1));
        let Heard::All(heard_it) = heard(&whole, |_| None).unwrap() else { panic!() };
        assert_eq!(heard_it, after);
        let wire = told(&after, &ids(&before));
        let Heard::Missing(missing) = heard(&wire, |_| None).unwrap() else { panic!() };
        assert_eq!(missing, ids(&after).into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_stored_beside_the_layouts_names_them() {
        let (_, after) = before_and_after();
        let (bytes, _) = encode(&after);
        assert!(bytes.len() < 100);
        assert_eq!(decode(&bytes, |id| of(&after, id)).unwrap(), after);
        let damaged = decode(&bytes, |_| None).unwrap_err();
        assert_eq!(damaged, "2 layouts are missing");
    }
}
