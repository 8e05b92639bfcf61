//! One key's stored object: its siblings, and the clock of every write they sum up.
//!
//! A put removes the siblings its context covers, adds one dot, and joins the clocks. Replicas
//! never append values: they merge whole objects, and a merge keeps a sibling if the other side
//! has it too or has not seen its dot (the causal-context rule of optimised OR-sets; Almeida et
//! al., "Scalable and Accurate Causality Tracking for Eventually Consistent Stores", 2014). So a
//! value is live exactly as long as no put's context covers its dot, on every replica alike.

use crate::dynamo::clock::{Counter, HybridClock};
use crate::dynamo::node::{Incarnation, RequestId};
use crate::dynamo::value::{Codec, Value};
use crate::dynamo::version::{Actor, Clock, Dot};
use bytes::{Buf, BufMut, Bytes};
use std::collections::{BTreeMap, BTreeSet};

/// Live values a client write may leave on one key. A put that would leave more is refused; it
/// can only be a client that never sends contexts. Merges and repair are never refused.
pub const SIBLINGS_MAX: usize = 128;

/// Bytes of one object that a client put may leave, all siblings together, each as long as its
/// client sent it. A put that would leave more is refused; merges and repair never are, and
/// [`proto::MESSAGE_BYTES_MAX`] has room for the join of every replica's full object.
///
/// Compressed values count as what they were: stored they take less, but a get shows all of them
/// restored in one message, and a key whose values did not fit could not be read to be mended.
pub const OBJECT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// One key's siblings and clock, as one replica holds them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Object {
    clock: Clock,
    siblings: BTreeMap<Dot, Record>,
    mine: Option<Mine>,
}

/// The actor under which this replica coordinates writes of this key. Never learned from a peer,
/// and void in another incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mine {
    /// The life of the node it was minted in.
    pub incarnation: Incarnation,
    /// The actor.
    pub actor: Actor,
}

/// What one write left: a value, or the tombstone of a delete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The value; `None` for a tombstone.
    pub value: Option<Value>,
    /// The client's name for the write. Retries share it.
    pub request: RequestId,
    /// CRC-32 of key, then value, taken by the coordinator from what the client sent: before it
    /// was compressed.
    pub checksum: u32,
}

/// A client's put or delete.
#[derive(Clone, Debug)]
pub struct Intent {
    /// What the writer has seen. `None` on a delete: whatever the coordinating replica holds.
    pub context: Option<Clock>,
    /// What it leaves.
    pub record: Record,
}

/// What minting a dot needs from outside.
#[derive(Debug)]
pub struct Minter<'a> {
    /// This life of this node.
    pub incarnation: Incarnation,
    /// The node's counters.
    pub clock: &'a mut HybridClock,
    /// The wall clock, Unix milliseconds.
    pub now_ms: u64,
    /// 64 random bits, used if the key needs a new actor.
    pub fresh_actor: Actor,
}

/// A client write, applied at its coordinator.
#[derive(Debug)]
pub struct Coordinated {
    /// The object to store here and send to the other replicas.
    pub object: Object,
    /// The write's name; of the first try, if this was a retry.
    pub dot: Dot,
    /// To be persisted with the object.
    pub ceiling: Option<Counter>,
}

/// Why a client write was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteRefused {
    /// The key already has as many siblings as a client may leave.
    #[error("the key would have {0} concurrent values, at most {SIBLINGS_MAX} are allowed")]
    TooManySiblings(usize),
    /// All siblings together would be too large.
    #[error(
        "the key's values would take {0} bytes together, at most {OBJECT_BYTES_MAX} are allowed"
    )]
    TooLarge(usize),
}

impl Object {
    /// An object of these siblings, all of which `clock` must cover.
    pub fn from_parts(clock: Clock, siblings: impl IntoIterator<Item = (Dot, Record)>) -> Self {
        let siblings: BTreeMap<Dot, Record> = siblings.into_iter().collect();
        assert!(siblings.keys().all(|dot| clock.covers(*dot)), "an object has seen its siblings");
        Self { clock, siblings, mine: None }
    }

    /// The clock: which writes this object sums up.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Every sibling, tombstones included, in dot order.
    pub fn siblings(&self) -> &BTreeMap<Dot, Record> {
        &self.siblings
    }

    /// The actor this replica last coordinated under.
    pub fn mine(&self) -> Option<Mine> {
        self.mine
    }

    /// The same object as this replica's own: `mine` is local and does not travel.
    pub fn with_mine(mut self, mine: Option<Mine>) -> Self {
        self.mine = mine;
        self
    }

    /// The values a client is shown. Two that one request left (it was retried through another
    /// coordinator: same request id, same checksum) are one value; the context covers both. They are told apart in storage, where
    /// dropping one would break the merge laws: a replica that had seen only the other would
    /// bring it back.
    pub fn live(&self) -> Vec<(Dot, &Record)> {
        let mut requests = BTreeSet::new();
        let values = self.siblings.iter().filter(|(_, record)| record.value.is_some());
        values
            .filter(|(_, record)| requests.insert((record.request, record.checksum)))
            .map(|(dot, record)| (*dot, record))
            .collect()
    }

    /// What covers the value shown under `dot` and nothing else.
    pub fn context_of(&self, dot: Dot) -> Clock {
        let Some(shown) = self.siblings.get(&dot) else {
            return Clock::new();
        };
        let twins = self.siblings.iter().filter(|(_, record)| record.request == shown.request);
        Clock::of_dots(twins.map(|(dot, _)| *dot))
    }

    /// Whether both hold the same siblings and have seen the same writes.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.clock == other.clock && self.siblings.keys().eq(other.siblings.keys())
    }

    /// Takes in what another replica holds. Commutative, associative, idempotent. `mine` stays.
    /// Returns whether anything was new.
    pub fn merge(&mut self, other: &Self) -> bool {
        if self.agrees_with(other) {
            return false;
        }
        let before = (self.clock.clone(), self.siblings.len());
        self.siblings
            .retain(|dot, _| other.siblings.contains_key(dot) || !other.clock.covers(*dot));
        for (dot, record) in &other.siblings {
            if !self.clock.covers(*dot) {
                self.siblings.insert(*dot, record.clone());
            }
        }
        self.clock.join(&other.clock);
        // With an equal clock no sibling can have come, only gone.
        before != (self.clock.clone(), self.siblings.len())
    }

    /// Applies a client's write at its coordinator, whose own copy is `local`.
    pub fn coordinate(
        local: Option<Self>,
        intent: &Intent,
        minter: Minter<'_>,
    ) -> Result<Coordinated, WriteRefused> {
        let mut object = local.unwrap_or_default();
        if let Some(dot) = object.already_holds(intent) {
            return Ok(Coordinated { object, dot, ceiling: None });
        }
        let mut context = intent.context.clone().unwrap_or_else(|| object.clock.clone());
        // Whatever is written now, the clock remembers what the tombstones here deleted; kept, they
        // would pile up under a client that deletes without looking.
        object.tombstones().for_each(|dot| context.add_dot(dot));
        let before = object.live().len();
        object.siblings.retain(|dot, _| !context.covers(*dot));
        object.check_limits(&intent.record, before)?;

        // Only what is stored mints: a ceiling that went with a refusal would be lost.
        let mine = object.mine.filter(|mine| mine.incarnation == minter.incarnation);
        let mine =
            mine.unwrap_or(Mine { incarnation: minter.incarnation, actor: minter.fresh_actor });
        let (counter, ceiling) = minter.clock.mint(minter.now_ms, context.newest());
        let dot = Dot { actor: mine.actor, counter };
        object.siblings.insert(dot, intent.record.clone());
        object.clock.join(&context);
        object.clock.advance(dot);
        object.mine = Some(mine);
        Ok(Coordinated { object, dot, ceiling })
    }

    /// The dot of an earlier try of the same put that is still live here.
    fn already_holds(&self, intent: &Intent) -> Option<Dot> {
        let request = intent.record.request;
        self.siblings
            .iter()
            .find(|(_, record)| {
                record.request == request && record.checksum == intent.record.checksum
            })
            .map(|(dot, _)| *dot)
    }

    fn tombstones(&self) -> impl Iterator<Item = Dot> {
        self.siblings.iter().filter(|(_, record)| record.value.is_none()).map(|(dot, _)| *dot)
    }

    /// Whether `new` may join these siblings. A tombstone always may.
    fn check_limits(&self, new: &Record, siblings_before: usize) -> Result<(), WriteRefused> {
        let Some(value) = &new.value else { return Ok(()) };
        let siblings = self.live().len() + 1;
        if siblings > SIBLINGS_MAX && siblings > siblings_before {
            return Err(WriteRefused::TooManySiblings(siblings));
        }
        match self.shown_len() + SIBLING_BYTES + value.length() {
            bytes if bytes > OBJECT_BYTES_MAX => Err(WriteRefused::TooLarge(bytes)),
            _ => Ok(()),
        }
    }
}

// === encoding ===
//
// version u8 = 1 or 2
// n u32, then n × (actor u64, counter u64)     clock: seen up to, actors ascending
// n u32, then n × (actor u64, counter u64)     clock: single dots, ascending
// n u32, then n × sibling, dots ascending:
//   actor u64, counter u64, request u128, checksum u32,
//   codec u8 (0 none, 1 lz4, 2 zstd)           only in version 2
//   length u32 (u32::MAX: tombstone),
//   length of what the client sent u32         only with a codec
//   value
//
// An object is of version 2 if it holds a compressed value, and else of version 1: what both can
// say has one encoding, and nodes that read version 1 alone read it.
//
// All integers big-endian. Drawn again in docs/storage-format.md.

/// The newest version, the one with compressed values.
const VERSION: u8 = 2;
/// The version without.
const VERSION_PLAIN: u8 = 1;
const DOT_BYTES: usize = 16;
const SIBLING_BYTES: usize = DOT_BYTES + 16 + 4 + 4;
const TOMBSTONE: u32 = u32::MAX;

/// Bytes that are not an object.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end too early.
    #[error("cut short")]
    Short,
    /// A newer kvd wrote them, or nobody did.
    #[error("version {0} is unknown, this kvd reads versions {VERSION_PLAIN} to {VERSION}")]
    UnknownVersion(u8),
    /// They go on after the end.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// They break a rule every object keeps.
    #[error("{0}")]
    Malformed(&'static str),
}

impl Object {
    /// Length of [`Object::encode`], bytes.
    pub fn encoded_len(&self) -> usize {
        let value = |value: &Value| match value {
            Value::Plain(bytes) => bytes.len(),
            Value::Compressed { bytes, .. } => 4 + bytes.len(),
        };
        let codecs = if self.version() == VERSION_PLAIN { 0 } else { self.siblings.len() };
        self.bare_len() + codecs + self.values().map(value).sum::<usize>()
    }

    /// The same had no value been compressed: what it takes to show them, bytes.
    pub fn shown_len(&self) -> usize {
        self.bare_len() + self.values().map(Value::length).sum::<usize>()
    }

    /// The same without its values.
    fn bare_len(&self) -> usize {
        let dots = self.clock.upto().len() + self.clock.dots().len();
        1 + 3 * 4 + dots * DOT_BYTES + self.siblings.len() * SIBLING_BYTES
    }

    fn values(&self) -> impl Iterator<Item = &Value> {
        self.siblings.values().filter_map(|record| record.value.as_ref())
    }

    /// The oldest version that can say it.
    fn version(&self) -> u8 {
        let compressed = self.values().any(|value| value.codec().is_some());
        if compressed { VERSION } else { VERSION_PLAIN }
    }

    /// The bytes that are stored and sent. Canonical: equal objects, equal bytes. Without `mine`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.encode_into(&mut out);
        out
    }

    /// Appends [`Object::encode`] to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let version = self.version();
        out.put_u8(version);
        put_clock(out, &self.clock);
        out.put_u32(self.siblings.len() as u32);
        for (dot, record) in &self.siblings {
            put_dot(out, *dot);
            out.put_u128(record.request.0);
            out.put_u32(record.checksum);
            put_value(out, record.value.as_ref(), version);
        }
    }

    /// Reads what [`Object::encode`] wrote. Values share the memory of `bytes`.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let version = match bytes.try_get_u8().map_err(|_| DecodeError::Short)? {
            version @ VERSION_PLAIN..=VERSION => version,
            other => return Err(DecodeError::UnknownVersion(other)),
        };
        let clock = get_clock(&mut bytes)?;
        let count = get_count(&mut bytes, SIBLING_BYTES)?;
        let mut siblings = BTreeMap::new();
        for _ in 0..count {
            let (dot, record) = get_sibling(&mut bytes, version)?;
            if siblings.last_key_value().is_some_and(|(last, _)| dot <= *last) {
                return Err(DecodeError::Malformed("siblings out of order"));
            }
            if !clock.covers(dot) {
                return Err(DecodeError::Malformed("a sibling its own clock has not seen"));
            }
            siblings.insert(dot, record);
        }
        let object = Self { clock, siblings, mine: None };
        match bytes.len() {
            0 if object.version() != version => {
                Err(DecodeError::Malformed("version 2 without a compressed value"))
            }
            0 => Ok(object),
            more => Err(DecodeError::Trailing(more)),
        }
    }
}

fn put_dot(out: &mut Vec<u8>, dot: Dot) {
    out.put_u64(dot.actor.0);
    out.put_u64(dot.counter.0);
}

/// Appends a clock: also the body of a client's context.
pub(super) fn put_clock(out: &mut Vec<u8>, clock: &Clock) {
    out.put_u32(clock.upto().len() as u32);
    for (&actor, &counter) in clock.upto() {
        put_dot(out, Dot { actor, counter });
    }
    out.put_u32(clock.dots().len() as u32);
    clock.dots().iter().for_each(|dot| put_dot(out, *dot));
}

/// Takes what [`put_clock`] wrote.
pub(super) fn get_clock(bytes: &mut Bytes) -> Result<Clock, DecodeError> {
    let mut upto = BTreeMap::new();
    for _ in 0..get_count(bytes, DOT_BYTES)? {
        let Dot { actor, counter } = get_dot(bytes)?;
        if upto.last_key_value().is_some_and(|(last, _)| actor <= *last) {
            return Err(DecodeError::Malformed("actors out of order"));
        }
        upto.insert(actor, counter);
    }
    let mut dots = BTreeSet::new();
    for _ in 0..get_count(bytes, DOT_BYTES)? {
        let dot = get_dot(bytes)?;
        if dots.last().is_some_and(|last| dot <= *last) {
            return Err(DecodeError::Malformed("dots out of order"));
        }
        dots.insert(dot);
    }
    let known = dots.len();
    let clock = Clock::from_parts(upto, dots);
    if clock.dots().len() != known {
        return Err(DecodeError::Malformed("a dot that is covered already"));
    }
    Ok(clock)
}

fn get_dot(bytes: &mut Bytes) -> Result<Dot, DecodeError> {
    let actor = Actor(bytes.try_get_u64().map_err(|_| DecodeError::Short)?);
    let counter = Counter(bytes.try_get_u64().map_err(|_| DecodeError::Short)?);
    Ok(Dot { actor, counter })
}

fn get_sibling(bytes: &mut Bytes, version: u8) -> Result<(Dot, Record), DecodeError> {
    let dot = get_dot(bytes)?;
    let request = RequestId(bytes.try_get_u128().map_err(|_| DecodeError::Short)?);
    let checksum = bytes.try_get_u32().map_err(|_| DecodeError::Short)?;
    let value = get_value(bytes, version)?;
    Ok((dot, Record { value, request, checksum }))
}

fn put_value(out: &mut Vec<u8>, value: Option<&Value>, version: u8) {
    if version > VERSION_PLAIN {
        out.put_u8(Codec::to_byte(value.and_then(Value::codec)));
    }
    let Some(value) = value else { return out.put_u32(TOMBSTONE) };
    out.put_u32(value.stored().len() as u32);
    if let Value::Compressed { length, .. } = value {
        out.put_u32(*length);
    }
    out.put_slice(value.stored());
}

fn get_value(bytes: &mut Bytes, version: u8) -> Result<Option<Value>, DecodeError> {
    let codec = match version {
        VERSION_PLAIN => None,
        _ => {
            let byte = bytes.try_get_u8().map_err(|_| DecodeError::Short)?;
            Codec::from_byte(byte).map_err(|_| DecodeError::Malformed("an unknown codec"))?
        }
    };
    let stored = bytes.try_get_u32().map_err(|_| DecodeError::Short)?;
    if stored == TOMBSTONE {
        let rule = DecodeError::Malformed("a compressed tombstone");
        return if codec.is_none() { Ok(None) } else { Err(rule) };
    }
    let length = match codec {
        None => stored,
        Some(_) => bytes.try_get_u32().map_err(|_| DecodeError::Short)?,
    };
    // As much memory is reserved when the value is restored.
    if codec.is_some() && length > proto::VALUE_BYTES_MAX {
        return Err(DecodeError::Malformed("a compressed value longer than any may be"));
    }
    if codec.is_some() && stored >= length {
        return Err(DecodeError::Malformed("a compressed value that is no shorter"));
    }
    if bytes.len() < stored as usize {
        return Err(DecodeError::Short);
    }
    let bytes = bytes.split_to(stored as usize);
    Ok(Some(match codec {
        None => Value::Plain(bytes),
        Some(codec) => Value::Compressed { codec, bytes, length },
    }))
}

/// A count of items of at least `item` bytes each; refused early if they cannot all be there, so
/// that a damaged count reserves nothing.
fn get_count(bytes: &mut Bytes, item: usize) -> Result<usize, DecodeError> {
    let count = bytes.try_get_u32().map_err(|_| DecodeError::Short)? as usize;
    match count.checked_mul(item) {
        Some(least) if least <= bytes.len() => Ok(count),
        _ => Err(DecodeError::Short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of every three values one is as it was sent, one by each codec.
    fn intent(context: Option<Clock>, value: Option<&str>, request: u128) -> Intent {
        let value = value.map(|v| {
            let bytes = Bytes::copy_from_slice(v.as_bytes());
            match request % 3 {
                0 => Value::Plain(bytes),
                1 => Value::Compressed { codec: Codec::Lz4, bytes, length: 100 },
                _ => Value::Compressed { codec: Codec::Zstd, bytes, length: 200 },
            }
        });
        Intent { context, record: Record { value, request: RequestId(request), checksum: 7 } }
    }

    /// A replica on its own: copy, incarnation and counters.
    #[derive(Default)]
    struct Replica {
        copy: Option<Object>,
        incarnation: u128,
        clock: Option<HybridClock>,
        minted: u64,
        name: u64,
    }

    impl Replica {
        fn write(&mut self, intent: &Intent) -> Coordinated {
            self.minted += 1;
            let clock = self.clock.get_or_insert(HybridClock::resume(Counter::default()));
            let minter = Minter {
                incarnation: Incarnation(self.incarnation),
                clock,
                now_ms: 0,
                fresh_actor: Actor(self.name << 32 | self.minted),
            };
            Object::coordinate(self.copy.clone(), intent, minter).unwrap()
        }

        fn put(&mut self, context: Option<Clock>, value: &str, request: u128) -> Dot {
            let context = Some(context.unwrap_or_default());
            let done = self.write(&intent(context, Some(value), request));
            self.copy = Some(done.object);
            done.dot
        }

        fn merge(&mut self, from: &Object) {
            let mut copy = self.copy.take().unwrap_or_default();
            copy.merge(from);
            self.copy = Some(copy);
        }

        fn copy(&self) -> &Object {
            self.copy.as_ref().unwrap()
        }
    }

    fn values(object: &Object) -> Vec<&[u8]> {
        object.live().iter().map(|(_, r)| &r.value.as_ref().unwrap().stored()[..]).collect()
    }

    #[test]
    fn two_puts_with_one_context_are_siblings_and_the_join_supersedes_both() {
        let mut n1 = Replica::default();
        n1.put(None, "a", 1);
        let context = n1.copy().clock().clone();
        n1.put(Some(context.clone()), "b", 2);
        n1.put(Some(context), "c", 3);
        assert_eq!(values(n1.copy()), [b"b", b"c"]);
        let joined = n1.copy().clock().clone();
        n1.put(Some(joined), "d", 4);
        assert_eq!(values(n1.copy()), [b"d"]);
    }

    #[test]
    fn a_delete_with_the_context_of_one_sibling_leaves_the_other() {
        let mut n1 = Replica::default();
        let a = n1.put(None, "a", 1);
        n1.put(None, "b", 2);
        let only_a = n1.copy().context_of(a);
        n1.copy = Some(n1.write(&intent(Some(only_a), None, 3)).object);
        assert_eq!(values(n1.copy()), [b"b"]);
        assert_eq!(n1.copy().siblings().len(), 2, "the tombstone stays");
    }

    #[test]
    fn a_writer_that_saw_only_its_own_put_does_not_cover_the_one_before_it() {
        let mut n1 = Replica::default();
        n1.put(None, "strangers", 1);
        let own = n1.put(None, "mine", 2);
        let mut n2 = Replica { name: 2, ..Default::default() };
        n2.put(Some(Clock::of_dots([own])), "mine, again", 3);
        n2.merge(&n1.copy().clone());
        assert_eq!(values(n2.copy()), [b"strangers".as_slice(), b"mine, again"]);
    }

    #[test]
    fn a_retry_through_another_coordinator_shows_one_value() {
        let (mut n1, mut n2) = (Replica::default(), Replica { name: 2, ..Default::default() });
        n1.put(None, "v", 9);
        n2.put(None, "v", 9);
        n1.merge(&n2.copy().clone());
        assert_eq!(values(n1.copy()), [b"v"]);
        let shown = n1.copy().live()[0].0;
        n1.put(Some(n1.copy().context_of(shown)), "w", 10);
        assert_eq!(values(n1.copy()), [b"w"], "the context of the one shown covers its twin");
    }

    #[test]
    fn a_retry_through_the_same_coordinator_mints_nothing() {
        let mut n1 = Replica::default();
        let first = n1.put(None, "v", 9);
        assert_eq!(n1.put(None, "v", 9), first);
        assert_eq!(n1.copy().siblings().len(), 1);
    }

    #[test]
    fn one_request_id_for_two_values_hides_neither() {
        let mut n1 = Replica::default();
        n1.put(None, "a", 9);
        let mut other = intent(Some(Clock::new()), Some("b"), 9);
        other.record.checksum = 8;
        n1.copy = Some(n1.write(&other).object);
        assert_eq!(values(n1.copy()), [b"a", b"b"]);
    }

    #[test]
    fn deletes_without_looking_leave_one_tombstone() {
        let mut n1 = Replica::default();
        n1.put(None, "a", 1);
        for request in 2..9 {
            n1.copy = Some(n1.write(&intent(Some(Clock::new()), None, request)).object);
        }
        assert_eq!((values(n1.copy()).len(), n1.copy().siblings().len()), (1, 2));
    }

    #[test]
    fn a_lost_copy_gets_a_new_actor_so_a_blind_put_destroys_nothing() {
        // basho/riak_kv#679: the coordinator loses its copy, and its next put must not claim to
        // have seen what its lost copy held.
        let mut n1 = Replica::default();
        n1.put(None, "first", 1);
        let kept_elsewhere = n1.copy().clone();
        n1.copy = None;
        n1.put(None, "second", 2);
        n1.merge(&kept_elsewhere);
        assert_eq!(values(n1.copy()), [b"first".as_slice(), b"second"]);
    }

    #[test]
    fn another_incarnation_never_reuses_an_actor() {
        let mut n1 = Replica::default();
        let before = n1.put(None, "a", 1).actor;
        n1.incarnation = 1;
        assert_ne!(n1.put(None, "b", 2).actor, before);
    }

    #[test]
    fn an_actor_is_never_learned_from_a_peer() {
        let mut n1 = Replica::default();
        n1.put(None, "a", 1);
        let mut n2 = Replica { name: 2, ..Default::default() };
        n2.merge(&Object::decode(n1.copy().encode().into()).unwrap());
        assert_eq!(n2.copy().mine(), None);
    }

    /// One compressed sibling, and where its codec, stored length and length are in its encoding.
    fn compressed() -> (Vec<u8>, usize) {
        let mut n1 = Replica::default();
        n1.put(None, "value", 1);
        let bytes = n1.copy().encode();
        let codec = bytes.len() - "value".len() - 4 - 4 - 1;
        assert_eq!(bytes[codec..], *b"\x01\x00\x00\x00\x05\x00\x00\x00\x64value");
        (bytes, codec)
    }

    #[test]
    fn a_compressed_value_that_no_coordinator_made_is_refused() {
        let refused = |change: &dyn Fn(&mut [u8])| {
            let (mut bytes, codec) = compressed();
            change(&mut bytes[codec..]);
            match Object::decode(bytes.into()) {
                Err(DecodeError::Malformed(why)) => why,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(&|value| value[0] = 3), "an unknown codec");
        assert_eq!(refused(&|value| value[1..5].fill(0xff)), "a compressed tombstone");
        assert_eq!(refused(&|value| value[8] = 5), "a compressed value that is no shorter");
        let bomb = refused(&|value| value[5..9].fill(0xff));
        assert_eq!(bomb, "a compressed value longer than any may be");
        let (mut bytes, codec) = compressed();
        bytes[codec] = 0;
        bytes.drain(codec + 5..codec + 9);
        let needless = DecodeError::Malformed("version 2 without a compressed value");
        assert_eq!(Object::decode(bytes.into()), Err(needless));
    }

    #[test]
    fn an_object_is_held_to_what_showing_it_takes() {
        let mut clock = HybridClock::resume(Counter::default());
        let mut copy = None;
        let mut put = |request| {
            let mut intent = intent(Some(Clock::new()), Some("small"), request);
            let (codec, bytes) = (Codec::Zstd, "small".into());
            let length = proto::VALUE_BYTES_MAX;
            intent.record.value = Some(Value::Compressed { codec, bytes, length });
            let minter = Minter {
                incarnation: Incarnation(0),
                clock: &mut clock,
                now_ms: 0,
                fresh_actor: Actor(1),
            };
            copy = Some(Object::coordinate(copy.clone(), &intent, minter)?.object);
            Ok(copy.as_ref().map(Object::encoded_len))
        };
        for request in 0..3 {
            assert!(put(request).unwrap() < Some(1000), "stored it is small");
        }
        let refused = put(3).unwrap_err();
        assert!(matches!(refused, WriteRefused::TooLarge(bytes) if bytes > OBJECT_BYTES_MAX));
    }

    #[test]
    fn a_client_may_not_pile_up_siblings_but_may_still_resolve_and_delete() {
        let mut n1 = Replica::default();
        for request in 0..SIBLINGS_MAX as u128 {
            n1.put(None, "v", request);
        }
        let mut clock = HybridClock::resume(Counter(1 << 40));
        let mut minter = |copy: Option<Object>, intent: &Intent| {
            let minter = Minter {
                incarnation: Incarnation(0),
                clock: &mut clock,
                now_ms: 0,
                fresh_actor: Actor(99),
            };
            Object::coordinate(copy, intent, minter)
        };
        let blind = intent(Some(Clock::new()), Some("v"), 9999);
        let refused = minter(n1.copy.clone(), &blind).unwrap_err();
        assert_eq!(refused, WriteRefused::TooManySiblings(SIBLINGS_MAX + 1));
        let all = n1.copy().clock().clone();
        let resolved = minter(n1.copy.clone(), &intent(Some(all), Some("v"), 10_000)).unwrap();
        assert_eq!(resolved.object.live().len(), 1);
        let deleted = minter(n1.copy.clone(), &intent(None, None, 10_001)).unwrap();
        assert_eq!(deleted.object.live().len(), 0);
    }

    // === random histories against the oracle ===

    /// What the compact clock stands for, written out: a replica as explicit sets of dots.
    #[derive(Clone, Default, Debug)]
    struct Model {
        present: BTreeSet<Dot>,
        known: BTreeSet<Dot>,
    }

    impl Model {
        fn merge(&mut self, other: &Self) {
            let here = self.present.iter();
            let keep = here.filter(|d| other.present.contains(d) || !other.known.contains(d));
            let mut present: BTreeSet<Dot> = keep.copied().collect();
            present.extend(other.present.iter().filter(|d| !self.known.contains(d)));
            self.present = present;
            self.known.extend(&other.known);
        }

        fn write(&mut self, context: &BTreeSet<Dot>, dot: Dot) {
            self.present.retain(|d| !context.contains(d));
            self.present.insert(dot);
            self.known.extend(context);
            self.known.insert(dot);
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        /// A get from the replicas in the mask; its context goes into a client's hand.
        Get { client: usize, mask: u8 },
        /// A put (or delete) through a replica, with the client's context or without.
        Put { client: usize, at: usize, blind: bool, delete: bool },
        /// As Put, but the coordinator is killed after it sent and before it synced.
        TornPut { client: usize, at: usize, to: usize },
        /// One replica's object reaches another.
        Send { from: usize, to: usize },
        /// The node stops uncleanly, keeping its disk.
        Crash { at: usize },
        /// The node's copy is lost: bit rot, a wiped disk.
        Lose { at: usize },
    }

    fn op() -> impl Strategy<Value = Op> {
        let (client, node) = (0..3usize, 0..5usize);
        prop_oneof![
            3 => (client.clone(), any::<u8>()).prop_map(|(client, mask)| Op::Get { client, mask }),
            5 => (client.clone(), node.clone(), prop::bool::weighted(0.2), prop::bool::weighted(0.2))
                .prop_map(|(client, at, blind, delete)| Op::Put { client, at, blind, delete }),
            1 => (client, node.clone(), node.clone())
                .prop_map(|(client, at, to)| Op::TornPut { client, at, to }),
            5 => (node.clone(), node.clone()).prop_map(|(from, to)| Op::Send { from, to }),
            1 => node.clone().prop_map(|at| Op::Crash { at }),
            1 => node.prop_map(|at| Op::Lose { at }),
        ]
    }

    struct History {
        replicas: Vec<Replica>,
        models: Vec<Model>,
        clients: Vec<(Clock, BTreeSet<Dot>)>,
        /// Every write's dot, with the dots its context covered.
        writes: BTreeMap<Dot, BTreeSet<Dot>>,
        lost_a_copy: bool,
    }

    impl History {
        fn new(nodes: usize) -> Self {
            let replica = |name| Replica { name: name as u64 + 1, ..Default::default() };
            Self {
                replicas: (0..nodes).map(replica).collect(),
                models: vec![Model::default(); nodes],
                clients: vec![Default::default(); 3],
                writes: BTreeMap::new(),
                lost_a_copy: false,
            }
        }

        fn coordinate(
            &mut self,
            client: usize,
            at: usize,
            blind: bool,
            delete: bool,
        ) -> Coordinated {
            let (clock, dots) = self.clients[client].clone();
            let (clock, dots) = if blind { Default::default() } else { (clock, dots) };
            let value = (!delete).then_some("v");
            let request = self.writes.len() as u128;
            let tombstones: Vec<Dot> =
                self.replicas[at].copy.iter().flat_map(Object::tombstones).collect();
            let done = self.replicas[at].write(&intent(Some(clock), value, request));
            assert!(!self.writes.contains_key(&done.dot), "a dot was minted twice");
            // A write also covers the tombstones its coordinator holds.
            let dots = dots.into_iter().chain(tombstones).collect();
            self.writes.insert(done.dot, dots);
            done
        }

        /// After a put the writer has seen its own write, and nothing else that is new.
        fn acknowledge(&mut self, client: usize, dot: Dot) {
            self.clients[client].0.add_dot(dot);
            self.clients[client].1.insert(dot);
        }

        fn apply(&mut self, op: &Op) {
            let n = self.replicas.len();
            match *op {
                Op::Get { client, mask } => {
                    let (mut object, mut model) = (Object::default(), Model::default());
                    for at in (0..n).filter(|at| mask >> at & 1 == 1) {
                        object.merge(self.replicas[at].copy.as_ref().unwrap_or(&Object::default()));
                        model.merge(&self.models[at]);
                    }
                    self.clients[client] = (object.clock, model.known);
                }
                Op::Put { client, at, blind, delete } => {
                    let at = at % n;
                    let done = self.coordinate(client, at, blind, delete);
                    self.models[at].write(&self.writes[&done.dot], done.dot);
                    self.replicas[at].copy = Some(done.object);
                    self.acknowledge(client, done.dot);
                }
                Op::TornPut { client, at, to } if at % n != to % n => {
                    let (at, to) = (at % n, to % n);
                    let done = self.coordinate(client, at, false, false);
                    let mut sent = self.models[at].clone();
                    sent.write(&self.writes[&done.dot], done.dot);
                    self.replicas[to].merge(&done.object);
                    self.models[to].merge(&sent);
                    self.replicas[at].incarnation += 1;
                }
                Op::TornPut { .. } => {}
                Op::Send { from, to } => {
                    let Some(object) = self.replicas[from % n].copy.clone() else {
                        return;
                    };
                    let object = Object::decode(object.encode().into()).unwrap();
                    self.replicas[to % n].merge(&object);
                    let model = self.models[from % n].clone();
                    self.models[to % n].merge(&model);
                }
                Op::Crash { at } => self.replicas[at % n].incarnation += 1,
                Op::Lose { at } => {
                    self.replicas[at % n].copy = None;
                    self.models[at % n] = Model::default();
                    self.lost_a_copy = true;
                }
            }
        }

        fn check(&self) {
            for (replica, model) in self.replicas.iter().zip(&self.models) {
                let empty = Object::default();
                let copy = replica.copy.as_ref().unwrap_or(&empty);
                assert!(copy.siblings.keys().eq(&model.present), "{copy:?} against {model:?}");
                for dot in self.writes.keys() {
                    assert_eq!(copy.clock.covers(*dot), model.known.contains(dot), "{dot:?}");
                }
            }
        }

        /// All replicas meet: they agree, on exactly the writes that no put's context covers.
        fn converge_and_check(&mut self) {
            let (mut all, mut model) = (Object::default(), Model::default());
            for at in 0..self.replicas.len() {
                all.merge(self.replicas[at].copy.as_ref().unwrap_or(&Object::default()));
                model.merge(&self.models[at]);
            }
            assert!(all.siblings.keys().eq(&model.present));
            if !self.lost_a_copy {
                let covered: BTreeSet<Dot> = self.writes.values().flatten().copied().collect();
                let live = self.writes.keys().filter(|dot| !covered.contains(dot));
                assert!(all.siblings.keys().eq(live), "{all:?}, covered {covered:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12_000))]

        #[test]
        fn random_histories_keep_exactly_what_no_context_covers(
            nodes in 3usize..=5, ops in prop::collection::vec(op(), 1..40)
        ) {
            let mut history = History::new(nodes);
            for op in &ops {
                history.apply(op);
                history.check();
            }
            history.converge_and_check();
        }
    }

    /// Objects of one key as replicas of one history come to hold them.
    fn related_objects() -> impl Strategy<Value = (Object, Object, Object)> {
        prop::collection::vec(op(), 1..30).prop_map(|ops| {
            let mut history = History::new(3);
            ops.iter().for_each(|op| history.apply(op));
            let mut copies =
                history.replicas.into_iter().map(|r| r.copy.unwrap_or_default().with_mine(None));
            (copies.next().unwrap(), copies.next().unwrap(), copies.next().unwrap())
        })
    }

    fn merged(a: &Object, b: &Object) -> Object {
        let mut a = a.clone();
        a.merge(b);
        a
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_idempotent((a, b, c) in related_objects()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a);
        }

        #[test]
        fn what_is_encoded_decodes_to_the_same((a, _, _) in related_objects()) {
            let bytes = a.encode();
            prop_assert_eq!(bytes.len(), a.encoded_len());
            prop_assert_eq!(Object::decode(bytes.into()), Ok(a));
        }

        #[test]
        fn random_bytes_are_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(object) = Object::decode(bytes.clone().into()) {
                prop_assert_eq!(object.encode(), bytes);
            }
        }

        #[test]
        fn damaged_bytes_never_panic((a, _, _) in related_objects(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = a.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(object) = Object::decode(bytes.clone().into()) {
                prop_assert_eq!(object.encode(), bytes, "a second form of one object");
            }
        }
    }
}
