//! The bytes of a layout.
//!
//! Numbers are big-endian; `text` is a length (u8) and that many bytes.
//! ```text
//! "KVDL"  version u8 = 1 to 4
//! parents     count u8, each id [16]              ascending
//! depth u64   cluster name text   partition bits u8
//! spread u8, stamp u64                            from version 3 on
//! note        length u32, bytes                   from version 3 on
//! members     count u16, each uid [16], name text, address text, zone text, weight u32,
//!             stamp u64 (from version 3 on)       ascending by uid
//! removed     count u16, each uid [16], name text, stamp u64, lost u8
//!                                                 from version 3 on; ascending by uid
//! keyspaces   count u16, each name text, n u8, r u8, w u8, mode u8 (0 sloppy, 1 strict),
//!             compression u8 (0 off, 1 lz4, 2 zstd; not in version 1),
//!             value_bytes_max u32, stamp u64, generation u32 (from version 4 on)
//!                                                 ascending by id
//! dropped     count u16, each name text, stamp u64, generation u32 (from version 4 on)
//!                                                 from version 3 on; ascending by id
//! tables      count u8, each n u8, then 2^bits rows of n slots u16
//!                                                 ascending by n, one for every N in use
//! ```
//! A layout is of the oldest version that can say it. So one layout has one encoding, whichever kvd
//! made it. The id is the first 16 bytes of its SHA-256.

use super::*;

pub(super) const MAGIC: &[u8; 4] = b"KVDL";
/// The newest version, the one with keyspaces made anew.
pub(super) const VERSION: u8 = 4;
/// The version with removed nodes, stamps, spread and a note.
pub(super) const VERSION_STAMPED: u8 = 3;
/// The version with compression, and nothing else that version 1 has not.
pub(super) const VERSION_COMPRESSED: u8 = 2;
/// The first version.
pub(super) const VERSION_PLAIN: u8 = 1;

impl Member {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.uid.to_bytes());
        put_text(out, &self.name);
        put_text(out, &self.address);
        put_text(out, &self.zone);
        out.extend(self.weight.to_be_bytes());
    }

    fn decode(bytes: &mut Reader<'_>) -> Result<Self, LayoutError> {
        Ok(Self {
            uid: Uid::from_bytes(bytes.array()?),
            name: bytes.text()?,
            address: bytes.text()?,
            zone: bytes.text()?,
            weight: bytes.u32()?,
        })
    }

    /// An order of entries that all nodes agree on.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }
}

impl Removed {
    fn encode(&self, uid: Uid, out: &mut Vec<u8>) {
        out.extend(uid.to_bytes());
        put_text(out, &self.name);
        out.extend(self.stamp.to_be_bytes());
        out.push(self.lost.into());
    }

    fn decode(bytes: &mut Reader<'_>) -> Result<(Uid, Self), LayoutError> {
        let uid = Uid::from_bytes(bytes.array()?);
        let (name, stamp) = (bytes.text()?, bytes.u64()?);
        match bytes.u8()? {
            lost @ 0..=1 => Ok((uid, Self { name, stamp, lost: lost == 1 })),
            _ => Err(LayoutError::Order { what: "removed nodes" }),
        }
    }
}

impl Keyspace {
    fn encode(&self, out: &mut Vec<u8>, version: u8) {
        put_text(out, &self.name);
        let mode = match self.mode {
            Mode::Sloppy => 0,
            Mode::Strict => 1,
        };
        out.extend([self.n, self.r, self.w, mode]);
        if version > VERSION_PLAIN {
            out.push(Codec::to_byte(self.compression));
        }
        out.extend(self.value_bytes_max.to_be_bytes());
        out.extend(self.stamp.to_be_bytes());
        if version >= VERSION {
            out.extend(self.generation.to_be_bytes());
        }
    }

    fn decode(bytes: &mut Reader<'_>, version: u8) -> Result<Self, LayoutError> {
        let name = bytes.text()?;
        let [n, r, w, mode] = bytes.array()?;
        let mode = match mode {
            0 => Mode::Sloppy,
            1 => Mode::Strict,
            found => {
                return Err(LayoutError::Mode { keyspace: name, found });
            }
        };
        let compression = match version {
            VERSION_PLAIN => Ok(None),
            _ => Codec::from_byte(bytes.u8()?),
        };
        let unknown = |found| LayoutError::Compression { keyspace: name.clone(), found };
        let compression = compression.map_err(unknown)?;
        let (value_bytes_max, stamp) = (bytes.u32()?, bytes.u64()?);
        let generation = if version >= VERSION { bytes.u32()? } else { 0 };
        Ok(Self { name, n, r, w, mode, compression, value_bytes_max, stamp, generation })
    }

    /// An order of policies that all nodes agree on.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes, VERSION);
        bytes
    }
}

impl Dropped {
    fn encode(&self, out: &mut Vec<u8>, version: u8) {
        put_text(out, &self.name);
        out.extend(self.stamp.to_be_bytes());
        if version >= VERSION {
            out.extend(self.generation.to_be_bytes());
        }
    }

    fn decode(bytes: &mut Reader<'_>, version: u8) -> Result<Self, LayoutError> {
        let (name, stamp) = (bytes.text()?, bytes.u64()?);
        let generation = if version >= VERSION { bytes.u32()? } else { 0 };
        Ok(Self { name, generation, stamp })
    }
}

impl Table {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.n);
        out.extend(self.slots.iter().flat_map(|slot| slot.to_be_bytes()));
    }

    fn decode(bytes: &mut Reader<'_>, bits: u32) -> Result<Self, LayoutError> {
        let n = bytes.u8()?;
        if !(1..=N_MAX).contains(&n) {
            return Err(LayoutError::N { keyspace: "(table)".into(), n });
        }
        let slots = bytes.take((usize::from(n) << bits) * 2)?.chunks_exact(2);
        Ok(Self::new(n, slots.map(|slot| u16::from_be_bytes([slot[0], slot[1]])).collect()))
    }
}

impl Layout {
    /// The bytes of this layout; see the module's head. The same layout has the same bytes on every
    /// node.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.encode_facts();
        out.extend(self.encode_tables());
        out
    }

    /// Those of its tables.
    pub(super) fn encode_tables(&self) -> Vec<u8> {
        let mut out = vec![self.tables.len() as u8];
        self.tables.values().for_each(|table| table.encode(&mut out));
        out
    }

    /// Those of all before its tables.
    pub(super) fn encode_facts(&self) -> Vec<u8> {
        let version = self.version();
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.push(version);
        out.push(self.parents.len() as u8);
        out.extend(self.parents.iter().flat_map(|parent| parent.to_bytes()));
        out.extend(self.depth.to_be_bytes());
        put_text(&mut out, &self.cluster_name);
        out.push(self.partition_bits as u8);
        let is_new = version >= VERSION_STAMPED;
        if is_new {
            out.push(self.spread.0);
            out.extend(self.spread.1.to_be_bytes());
            out.extend((self.note.len() as u32).to_be_bytes());
            out.extend(&self.note);
        }
        out.extend((self.members.len() as u16).to_be_bytes());
        for member in &self.members {
            member.encode(&mut out);
            if is_new {
                out.extend(self.stamp_of(member.uid).to_be_bytes());
            }
        }
        if is_new {
            out.extend((self.removed.len() as u16).to_be_bytes());
            self.removed.iter().for_each(|(uid, removed)| removed.encode(*uid, &mut out));
        }
        out.extend((self.keyspaces.len() as u16).to_be_bytes());
        self.keyspaces.values().for_each(|keyspace| keyspace.encode(&mut out, version));
        if is_new {
            out.extend((self.dropped.len() as u16).to_be_bytes());
            for dropped in self.dropped.values() {
                dropped.encode(&mut out, version);
            }
        }
        out
    }

    /// The oldest version that can say it.
    fn version(&self) -> u8 {
        let made_anew = self.keyspaces.values().any(|keyspace| keyspace.generation > 0)
            || self.dropped.values().any(|dropped| dropped.generation > 0);
        let is_new = self.spread != SPREAD_OLD
            || self.partition_bits != PARTITION_BITS
            || !self.note.is_empty()
            || !self.stamps.is_empty()
            || !self.removed.is_empty()
            || !self.dropped.is_empty()
            || self.parents.len() > 2;
        let compressed = self.keyspaces.values().any(|keyspace| keyspace.compression.is_some());
        match () {
            () if made_anew => VERSION,
            () if is_new => VERSION_STAMPED,
            () if compressed => VERSION_COMPRESSED,
            () => VERSION_PLAIN,
        }
    }

    /// The layout of these bytes, all of it checked as when one is made; its id is made from the
    /// bytes. The table is taken as it is, not planned again: a later planner may plan otherwise.
    ///
    /// # Errors
    /// The bytes are not exactly what [`Layout::encode`] gives for an allowed layout.
    pub fn decode(bytes: &[u8]) -> Result<Self, LayoutError> {
        let mut reader = Reader::new(bytes);
        let (mut layout, version) = Self::read_facts(&mut reader)?;
        if layout.version() != version {
            return Err(LayoutError::NeedlessVersion { found: version });
        }
        for _ in 0..reader.u8()? {
            let table = Table::decode(&mut reader, layout.partition_bits)?;
            if layout.tables.last_key_value().is_some_and(|(&last, _)| last >= table.n) {
                return Err(LayoutError::Order { what: "tables" });
            }
            layout.tables.insert(table.n, table);
        }
        layout.check_tables()?;
        if !reader.rest.is_empty() {
            return Err(LayoutError::Trailing { bytes: reader.rest.len() });
        }
        // A layout is named by its bytes: with two encodings it would have two names.
        if layout.encode() != bytes {
            return Err(LayoutError::Encoding);
        }
        layout.id = id_of(bytes);
        Ok(layout)
    }

    /// Everything up to the tables, checked, and the version of the bytes.
    pub(super) fn read_facts(reader: &mut Reader<'_>) -> Result<(Self, u8), LayoutError> {
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(LayoutError::Magic);
        }
        let version = match reader.u8()? {
            version @ VERSION_PLAIN..=VERSION => version,
            found => return Err(LayoutError::Version { found }),
        };
        let layout = Self::decode_facts(reader, version)?;
        layout.check_facts()?;
        Ok((layout, version))
    }

    /// The same, yet unchecked but for counts and order.
    fn decode_facts(reader: &mut Reader<'_>, version: u8) -> Result<Self, LayoutError> {
        let is_new = version >= VERSION_STAMPED;
        let mut parents = Vec::new();
        for _ in 0..reader.u8()? {
            parents.push(LayoutId::from_bytes(reader.array()?));
        }
        check_ascending("parents", parents.iter())?;
        let depth = reader.u64()?;
        let cluster_name = reader.text()?;
        let partition_bits = u32::from(reader.u8()?);
        let (mut spread, mut note) = (SPREAD_OLD, Vec::new());
        if is_new {
            spread = (reader.u8()?, reader.u64()?);
            let length = reader.u32()? as usize;
            note = reader.take(length)?.to_vec();
        }
        let (members, stamps) = Self::decode_members(reader, is_new)?;
        let mut removed = BTreeMap::new();
        for _ in 0..if is_new { reader.u16()? } else { 0 } {
            let (uid, it) = Removed::decode(reader)?;
            insert_ascending(&mut removed, uid, it, "removed nodes")?;
        }
        let count = usize::from(reader.u16()?);
        check_keyspace_count(count)?;
        let mut keyspaces = BTreeMap::new();
        for _ in 0..count {
            let keyspace = Keyspace::decode(reader, version)?;
            insert_ascending(&mut keyspaces, keyspace.id(), keyspace, "keyspaces")?;
        }
        let mut dropped = BTreeMap::new();
        for _ in 0..if is_new { reader.u16()? } else { 0 } {
            let it = Dropped::decode(reader, version)?;
            insert_ascending(&mut dropped, it.id(), it, "dropped keyspaces")?;
        }
        let (id, tables) = (LayoutId(0), BTreeMap::new());
        Ok(Self {
            id,
            parents,
            depth,
            cluster_name,
            partition_bits,
            spread,
            note,
            members,
            stamps,
            removed,
            keyspaces,
            dropped,
            tables,
        })
    }

    fn decode_members(
        reader: &mut Reader<'_>,
        is_new: bool,
    ) -> Result<(Vec<Member>, BTreeMap<Uid, u64>), LayoutError> {
        let count = usize::from(reader.u16()?);
        check_member_count(count)?;
        let (mut members, mut stamps) = (Vec::with_capacity(count), BTreeMap::new());
        for _ in 0..count {
            let member = Member::decode(reader)?;
            let stamp = if is_new { reader.u64()? } else { STAMP_FIRST };
            if stamp != STAMP_FIRST {
                stamps.insert(member.uid, stamp);
            }
            members.push(member);
        }
        Ok((members, stamps))
    }
}

fn insert_ascending<K: Ord, V>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
    what: &'static str,
) -> Result<(), LayoutError> {
    if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
        return Err(LayoutError::Order { what });
    }
    map.insert(key, value);
    Ok(())
}

/// Names and addresses are checked to be at most 255 bytes before they are written.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("no checked text is longer than 255 bytes"));
    out.extend(text.as_bytes());
}

/// Bytes yet to be read.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn take(&mut self, wanted: usize) -> Result<&'a [u8], LayoutError> {
        let short = LayoutError::Short { wanted, left: self.rest.len() };
        let (taken, rest) = self.rest.split_at_checked(wanted).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], LayoutError> {
        let taken = self.take(LEN)?;
        Ok(*taken.first_chunk().expect("as many were taken"))
    }

    fn u8(&mut self) -> Result<u8, LayoutError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, LayoutError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, LayoutError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, LayoutError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Bytes that are no UTF-8 become U+FFFD, which no check lets pass.
    fn text(&mut self) -> Result<String, LayoutError> {
        let len = self.u8()?;
        Ok(String::from_utf8_lossy(self.take(usize::from(len))?).into_owned())
    }
}
