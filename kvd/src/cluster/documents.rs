//! What a node knows of the layouts, as it is stored and told.

use crate::dynamo::history::{Control, History, HistoryError, Mark, Marks, Parts, Past, Settled};
use crate::dynamo::layout::Layout;
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use prost::Message;
use proto::v1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// As it is told.
pub fn to_wire(history: &History) -> v1::History {
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
        layouts: history.layouts().iter().map(|layout| layout.encode().into()).collect(),
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
///
/// # Errors
/// What is wrong with it, in words.
pub fn from_wire(wire: &v1::History) -> Result<History, String> {
    let layouts = wire.layouts.iter().map(|bytes| Layout::decode(bytes));
    let layouts = layouts.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
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

/// As it is stored, and what tells it apart.
pub fn encode(history: &History) -> (Vec<u8>, u64) {
    let bytes = to_wire(history).encode_to_vec();
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    let digest = digest.first_chunk().expect("32 bytes begin with 8");
    (bytes, u64::from_be_bytes(*digest))
}

/// Of what was stored.
///
/// # Errors
/// What is wrong with it, in words.
pub fn decode(bytes: &[u8]) -> Result<History, String> {
    from_wire(&v1::History::decode(bytes).map_err(|error| error.to_string())?)
}

/// What a layout says of the operation that made it.
pub fn note_of(bytes: &[u8]) -> v1::Note {
    v1::Note::decode(bytes).unwrap_or_default() // a newer kvd's: nothing is said of it
}
