//! A layout told by what it changes of another that the listener has.
//!
//! Both parts are compressed with what the other layout says as their dictionary: first the facts,
//! then the tables. The dictionary of those is the other's tables in the slots of the new members,
//! since a member more moves most slots by one though hardly a copy has moved.
//! ```text
//! length of the facts u32, facts (Zstandard), tables (Zstandard)
//! ```

use super::bytes::Reader;
use super::{Layout, LayoutError};
use std::io::{self, Read, Write};

/// As quick as it gets: a dictionary that fits leaves little to compress.
const LEVEL: i32 = 3;

/// Most bytes that a part of a layout may have.
const PART_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Zstandard looks back 2^this bytes at most: a dictionary and what it is for.
const WINDOW_LOG_MAX: u32 = 27;

impl Layout {
    /// What tells this layout to somebody who has `base`.
    pub fn delta(&self, base: &Self) -> Vec<u8> {
        let facts = compressed(&self.encode_facts(), &base.encode_facts());
        let tables = compressed(&self.encode_tables(), &base.tables_for(self));
        let mut out = (facts.len() as u32).to_be_bytes().to_vec();
        out.extend(facts);
        out.extend(tables);
        out
    }

    /// The layout that such bytes tell.
    ///
    /// # Errors
    /// They are no delta from `base`, or not of an allowed layout.
    pub fn from_delta(base: &Self, delta: &[u8]) -> Result<Self, LayoutError> {
        let (length, rest) = delta.split_first_chunk().ok_or(LayoutError::Delta)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (facts, tables) = rest.split_at_checked(length).ok_or(LayoutError::Delta)?;
        let mut bytes = restored(facts, &base.encode_facts())?;
        let (bare, _) = Self::read_facts(&mut Reader::new(&bytes))?;
        bytes.extend(restored(tables, &base.tables_for(&bare))?);
        Self::decode(&bytes)
    }

    /// The tables as they would be if `next` had moved nothing.
    fn tables_for(&self, next: &Self) -> Vec<u8> {
        let mut out = vec![self.tables.len() as u8];
        for table in self.tables.values() {
            let moved = table.relabelled(&self.members, &next.members);
            moved.doubled_to(next.partition_bits).encode(&mut out);
        }
        out
    }
}

fn compressed(bytes: &[u8], dictionary: &[u8]) -> Vec<u8> {
    let work = || -> io::Result<Vec<u8>> {
        let mut encoder =
            zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), LEVEL, dictionary)?;
        let all = (bytes.len() + dictionary.len()).next_power_of_two().ilog2();
        encoder.window_log(all.clamp(10, WINDOW_LOG_MAX))?;
        encoder.write_all(bytes)?;
        encoder.finish()
    };
    work().expect("compressing in memory fails for want of memory alone")
}

fn restored(bytes: &[u8], dictionary: &[u8]) -> Result<Vec<u8>, LayoutError> {
    let work = || -> io::Result<Vec<u8>> {
        let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(bytes, dictionary)?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        let mut out = Vec::new();
        decoder.take(PART_BYTES_MAX as u64 + 1).read_to_end(&mut out)?;
        Ok(out)
    };
    let out = work().map_err(|_| LayoutError::Delta)?;
    if out.len() > PART_BYTES_MAX { Err(LayoutError::Delta) } else { Ok(out) }
}
