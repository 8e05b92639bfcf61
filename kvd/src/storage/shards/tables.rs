//! What a file of the database holds, and how one transaction changes it: records, and what is
//! reckoned from them, the leaves of the Merkle tree and the list of tombstones. Both change with
//! the records they are reckoned from, in the same transaction, by what the record was and what it
//! is now: so replaying a log that was applied already changes nothing.

use super::DatabaseError;
use crate::dynamo::merkle::{Digest, LEAF_BITS, Leaf, Span};
use crate::storage::record;
use crate::storage::wal::Space;
use bytes::{Buf, Bytes};
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, TableHandle, WriteTransaction};
use std::collections::{BTreeMap, BTreeSet};

type Bytewise = TableDefinition<'static, &'static [u8], &'static [u8]>;

pub(super) const RECORDS: Bytewise = TableDefinition::new("records");
pub(super) const HINTS: Bytewise = TableDefinition::new("hints");
/// Place and keyspace → leaf.
pub(super) const TREE: Bytewise = TableDefinition::new("tree");
/// Stored keys of records that are tombstones and nothing else.
pub(super) const TOMBSTONES: TableDefinition<'static, &[u8], ()> =
    TableDefinition::new("tombstones");

/// The table of a space.
pub(super) fn table(space: Space) -> Bytewise {
    match space {
        Space::Records => RECORDS,
        Space::Hints => HINTS,
    }
}

/// Bytes of a leaf's key before the keyspace id: its place, as the top bits of a token, so that a
/// leaf is in the same file as its records.
const PLACE_BYTES: usize = 4;
const TREE_KEY_BYTES: usize = PLACE_BYTES + 8;
const PLACE_SHIFT: u32 = 32 - LEAF_BITS;

/// The key of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct TreeKey(pub(super) [u8; TREE_KEY_BYTES]);

impl TreeKey {
    /// Of leaf `place` of a keyspace.
    pub(super) fn new(place: u32, keyspace: u64) -> Self {
        let mut key = [0; TREE_KEY_BYTES];
        key[..PLACE_BYTES].copy_from_slice(&(place << PLACE_SHIFT).to_be_bytes());
        key[PLACE_BYTES..].copy_from_slice(&keyspace.to_be_bytes());
        Self(key)
    }

    /// Of the leaf a record belongs to.
    fn of(stored_key: &[u8]) -> Option<Self> {
        let (token, keyspace, _) = record::parse_key(stored_key)?;
        Some(Self::new(Span::leaf_of(token).first, keyspace.0))
    }

    /// Place and keyspace of a stored leaf's key.
    pub(super) fn parse(mut key: &[u8]) -> Option<(u32, u64)> {
        let place = key.try_get_u32().ok()? >> PLACE_SHIFT;
        Some((place, key.try_get_u64().ok()?))
    }
}

/// A stored leaf.
pub(super) fn parse_leaf(mut value: &[u8]) -> Option<Leaf> {
    Some(Leaf { sum: value.try_get_u128().ok()?, records: value.try_get_u64().ok()? })
}

fn leaf_bytes(leaf: Leaf) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&leaf.sum.to_be_bytes());
    bytes[16..].copy_from_slice(&leaf.records.to_be_bytes());
    bytes
}

/// Makes every table, so that a reader finds it.
pub(super) fn create(transaction: &WriteTransaction) -> Result<(), DatabaseError> {
    transaction.open_table(RECORDS)?;
    transaction.open_table(HINTS)?;
    transaction.open_table(TREE)?;
    transaction.open_table(TOMBSTONES)?;
    Ok(())
}

/// Whether an older kvd made the file: it lacks what is reckoned from records.
pub(super) fn is_old(transaction: &ReadTransaction) -> Result<bool, DatabaseError> {
    Ok(!transaction.list_tables()?.any(|table| table.name() == TREE.name()))
}

/// Makes the tables that such a file lacks, and reckons them from its records.
pub(super) fn upgrade(transaction: &WriteTransaction) -> Result<(), DatabaseError> {
    create(transaction)?;
    let records = transaction.open_table(RECORDS)?;
    let mut tombstones = transaction.open_table(TOMBSTONES)?;
    let mut leaves: BTreeMap<TreeKey, Leaf> = BTreeMap::new();
    for entry in records.iter()? {
        let (key, value) = entry?;
        let Some(leaf) = TreeKey::of(key.value()) else { continue };
        let Some(reckoned) = reckon(key.value(), value.value()) else { continue };
        leaves.entry(leaf).or_default().add(reckoned.digest);
        if reckoned.is_tombstone {
            tombstones.insert(key.value(), ())?;
        }
    }
    let mut tree = transaction.open_table(TREE)?;
    leaves.into_iter().try_for_each(|(key, leaf)| put_leaf(&mut tree, key, leaf))
}

/// What a record counts for.
struct Reckoned {
    digest: Digest,
    is_tombstone: bool,
}

fn reckon(stored_key: &[u8], value: &[u8]) -> Option<Reckoned> {
    let object = record::decode(stored_key, Bytes::copy_from_slice(value)).ok()?;
    let is_tombstone = !object.siblings().values().any(|sibling| sibling.value.is_some());
    Some(Reckoned { digest: Digest::of(stored_key, &object), is_tombstone })
}

/// How the leaves of one file change.
#[derive(Default)]
struct Changes {
    /// By how much each grows; the sums wrap.
    grown: BTreeMap<TreeKey, Leaf>,
    /// Those a damaged record was in: what it counted for is not known.
    unknown: BTreeSet<TreeKey>,
}

/// Writes records of one file; an empty one is taken away.
pub(super) fn write_records<'a>(
    transaction: &WriteTransaction,
    records: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), DatabaseError> {
    let mut changes = Changes::default();
    let mut table = transaction.open_table(RECORDS)?;
    let mut tombstones = transaction.open_table(TOMBSTONES)?;
    for (key, value) in records {
        let old = match value.is_empty() {
            true => table.remove(key)?,
            false => table.insert(key, value)?,
        };
        let Some(leaf) = TreeKey::of(key) else { continue };
        let was = old.map(|old| reckon(key, old.value()));
        let is = if value.is_empty() { None } else { reckon(key, value) };
        let grown = changes.grown.entry(leaf).or_default();
        is.iter().for_each(|is| grown.add(is.digest));
        match &was {
            Some(Some(was)) => grown.remove(was.digest),
            Some(None) => drop(changes.unknown.insert(leaf)),
            None => {}
        }
        let was_tombstone = was.flatten().is_none_or(|was| was.is_tombstone);
        match is.is_some_and(|is| is.is_tombstone) {
            true => drop(tombstones.insert(key, ())?),
            // Most records never were one: not looked for.
            false if was_tombstone => drop(tombstones.remove(key)?),
            false => {}
        }
    }
    let mut tree = transaction.open_table(TREE)?;
    for (key, grown) in &changes.grown {
        let leaf = match changes.unknown.contains(key) {
            true => reckon_leaf(&table, *key)?,
            false => {
                let before = tree.get(&key.0[..])?.and_then(|leaf| parse_leaf(leaf.value()));
                let before = before.unwrap_or_default();
                Leaf {
                    sum: before.sum.wrapping_add(grown.sum),
                    records: before.records.wrapping_add(grown.records),
                }
            }
        };
        put_leaf(&mut tree, *key, leaf)?;
    }
    Ok(())
}

/// A leaf reckoned from its records.
fn reckon_leaf(
    records: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: TreeKey,
) -> Result<Leaf, DatabaseError> {
    let mut leaf = Leaf::default();
    let Some((place, _)) = TreeKey::parse(&key.0) else { return Ok(leaf) };
    let (first, last) = Span { first: place, leaves: 1 }.tokens();
    for entry in records.range(&first.to_bytes()[..]..)? {
        let (stored_key, value) = entry?;
        match record::parse_key(stored_key.value()) {
            Some((token, ..)) if token > last => break,
            _ if TreeKey::of(stored_key.value()) != Some(key) => {}
            _ => {
                let reckoned = reckon(stored_key.value(), value.value());
                reckoned.into_iter().for_each(|it| leaf.add(it.digest));
            }
        }
    }
    Ok(leaf)
}

fn put_leaf(
    tree: &mut Table<'_, &'static [u8], &'static [u8]>,
    key: TreeKey,
    leaf: Leaf,
) -> Result<(), DatabaseError> {
    match leaf.is_empty() {
        true => drop(tree.remove(&key.0[..])?),
        false => drop(tree.insert(&key.0[..], &leaf_bytes(leaf)[..])?),
    }
    Ok(())
}

/// Writes hints of one file; an empty one is taken away.
pub(super) fn write_hints<'a>(
    transaction: &WriteTransaction,
    hints: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), DatabaseError> {
    let mut table = transaction.open_table(HINTS)?;
    for (key, value) in hints {
        match value.is_empty() {
            true => drop(table.remove(key)?),
            false => drop(table.insert(key, value)?),
        }
    }
    Ok(())
}

/// Sets right the leaves of some places, all keyspaces, from the records; returns how many were
/// wrong.
pub(super) fn set_right(
    transaction: &WriteTransaction,
    places: &BTreeSet<TreeKey>,
) -> Result<u64, DatabaseError> {
    let records = transaction.open_table(RECORDS)?;
    let mut tree = transaction.open_table(TREE)?;
    let mut wrong = 0;
    for key in places {
        let right = reckon_leaf(&records, *key)?;
        let stored = tree.get(&key.0[..])?.and_then(|leaf| parse_leaf(leaf.value()));
        if stored.unwrap_or_default() != right {
            wrong += 1;
            put_leaf(&mut tree, *key, right)?;
        }
    }
    Ok(wrong)
}
