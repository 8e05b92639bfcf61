//! The layout: the one replicated document of cluster facts. Who is a member, which keyspaces there
//! are, and which node holds which partition.
//!
//! A layout never changes. A change makes a child, one deeper, that names its parents; its id is a
//! hash of its bytes, so equal ids are equal layouts. Nobody leads: two children made on two sides
//! of a split are merged by [`Layout::merge`], and every node that knows both makes the same
//! document of them, byte for byte. Which layouts count beside the newest, while copies move, is
//! told by [`super::history`].

mod bytes;
mod change;
mod delta;

pub use change::Change;

use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use crate::dynamo::plan::{self, EMPTY, PlanError, Share};
use crate::dynamo::value::Codec;
use proto::token::Token;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// A ring begins with 2^this partitions.
pub const PARTITION_BITS: u32 = 8;

/// At most so many.
pub const PARTITION_BITS_MAX: u32 = 20;

/// Removed nodes that are remembered, so that one which returns is told why it is refused.
pub const REMOVED_MAX: usize = 4096;

/// Longest note of a layout, bytes.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;

/// Most heads that are merged at once.
pub const PARENTS_MAX: usize = 16;

/// What stamps the members of a first layout.
const STAMP_FIRST: u64 = 1;

/// As many zones as there are: what layouts had before they said it.
const SPREAD_OLD: (u8, u64) = (N_MAX, STAMP_FIRST);

/// Most copies of a key a keyspace may ask for.
pub const N_MAX: u8 = 7;

/// Most members; more are refused. Their addresses and names then fit 2 MiB of layout.
pub const MEMBERS_MAX: usize = 4096;

/// Most keyspaces an operator may create; more are refused.
pub const KEYSPACES_MAX: usize = 256;

/// Most keyspaces a layout may hold. Above [`KEYSPACES_MAX`] because sides of a split may each
/// reach that one, and a join must not fail for it: two heads would then never become one. At
/// this bound the join is refused, and an operator has to mend it.
pub const KEYSPACES_JOINED_MAX: usize = 4096;

/// Longest name of a cluster, node, zone or keyspace, bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Longest address, bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;

/// Largest weight of a member.
pub const WEIGHT_MAX: u32 = 1_000_000;

/// Largest value a keyspace may allow, bytes.
pub const VALUE_BYTES_MAX: u32 = proto::VALUE_BYTES_MAX;

/// The keyspace every cluster has, used where a client names none.
pub const DEFAULT_KEYSPACE: &str = "default";

/// Most layouts in a line of descent; no operator gets there, so a deeper one is damage.
const DEPTH_MAX: u64 = 1 << 48;

/// Why a layout is refused: what was wrong and what is allowed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// The bytes say what others would say: they are no layout's.
    #[error("the bytes are not those that this layout is encoded to")]
    Encoding,
    /// Bytes that are to tell a layout by what it changes of another.
    #[error("these bytes do not tell a layout by what it changes of that one")]
    Delta,
    /// A cluster of nobody.
    #[error("a layout needs at least one member")]
    NoMembers,
    /// Above [`MEMBERS_MAX`].
    #[error("{found} members are above the {MEMBERS_MAX} allowed")]
    TooManyMembers { found: usize },
    /// Above [`KEYSPACES_MAX`], or after a join above [`KEYSPACES_JOINED_MAX`].
    #[error("{found} keyspaces are above the {allowed} allowed")]
    TooManyKeyspaces { found: usize, allowed: usize },
    /// Every layout has the keyspace `default`.
    #[error("the keyspace `{DEFAULT_KEYSPACE}` is missing")]
    NoDefaultKeyspace,
    /// `what` says whose name it is.
    #[error(
        "{what} name `{}` is not allowed: 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -",
        name.escape_debug()
    )]
    Name { what: &'static str, name: String },
    /// Not something a node can be reached at.
    #[error(
        "address `{}` is not allowed: HOST:PORT of at most {ADDRESS_BYTES_MAX} bytes, \
         an IPv6 host in brackets",
        address.escape_debug()
    )]
    Address { address: String },
    /// A weight that says nothing or overflows sums.
    #[error("weight {weight} of node {name} is not within 1 and {WEIGHT_MAX}")]
    Weight { name: String, weight: u32 },
    /// Two members share what must tell them apart.
    #[error("two members have the {what} {value}")]
    Duplicate { what: &'static str, value: String },
    /// N of no use.
    #[error("N={n} of keyspace {keyspace} is not within 1 and {N_MAX}")]
    N { keyspace: String, n: u8 },
    /// Distinct nodes are needed for N copies.
    #[error("N={n} of keyspace {keyspace} needs {n} nodes, there are {members}")]
    NAboveMembers { keyspace: String, n: u8, members: usize },
    /// A read quorum of nobody.
    #[error("R=0 of keyspace {keyspace} is not within 1 and N={n}")]
    RZero { keyspace: String, n: u8 },
    /// A write quorum of nobody.
    #[error("W=0 of keyspace {keyspace} is not within 1 and N={n}")]
    WZero { keyspace: String, n: u8 },
    /// More answers than there are replicas.
    #[error("R={r} is above N={n} in keyspace {keyspace}")]
    RAboveN { keyspace: String, r: u8, n: u8 },
    /// More acknowledgements than there are replicas.
    #[error("W={w} is above N={n} in keyspace {keyspace}")]
    WAboveN { keyspace: String, w: u8, n: u8 },
    /// A value limit of no use, or one that would not fit a message.
    #[error(
        "value limit {found} bytes of keyspace {keyspace} is not within 1 and {VALUE_BYTES_MAX}"
    )]
    ValueBytesMax { keyspace: String, found: u32 },
    /// The name is taken.
    #[error("keyspace {name} exists")]
    KeyspaceExists { name: String },
    /// Two names hash to one id.
    #[error("keyspace {name} would share its id with keyspace {other}: choose another name")]
    KeyspaceIdClash { name: String, other: String },
    /// A depth that its parents cannot have led to.
    #[error(
        "depth {depth} with {parents} parents: 1 with none, 2 to {DEPTH_MAX} with 1 to {PARENTS_MAX}"
    )]
    Depth { depth: u64, parents: usize },
    /// A keyspace created by no ancestor.
    #[error("keyspace {keyspace} has stamp {stamp}, not within 1 and the depth {depth}")]
    Stamp { keyspace: String, stamp: u64, depth: u64 },
    /// A ring of too few partitions or too many.
    #[error("2^{found} partitions are not within 2^{PARTITION_BITS} and 2^{PARTITION_BITS_MAX}")]
    PartitionBits { found: u32 },
    /// The bytes are not a layout.
    #[error("not a layout: the first bytes are not `KVDL`")]
    Magic,
    /// A layout of a later release.
    #[error(
        "layout version {found}: this version knows {} to {}",
        bytes::VERSION_PLAIN,
        bytes::VERSION
    )]
    Version { found: u8 },
    /// A layout has one encoding, and this is not it.
    #[error("layout version {found} for what an older one can say")]
    NeedlessVersion { found: u8 },
    /// The bytes end early.
    #[error("layout cut short: {wanted} more bytes wanted, {left} left")]
    Short { wanted: usize, left: usize },
    /// The bytes go on.
    #[error("{bytes} bytes follow the layout")]
    Trailing { bytes: usize },
    /// A layout has one encoding, and this is not it.
    #[error("the {what} of the layout are not in strictly ascending order")]
    Order { what: &'static str },
    /// Neither sloppy nor strict.
    #[error("mode {found} of keyspace {keyspace}: 0 is sloppy, 1 is strict")]
    Mode { keyspace: String, found: u8 },
    /// No codec of this version.
    #[error("compression {found} of keyspace {keyspace}: 0 is off, 1 is lz4, 2 is zstd")]
    Compression { keyspace: String, found: u8 },
    /// One table for every N in use, no other.
    #[error("the tables are for N of {found:?}, the keyspaces use {wanted:?}")]
    Tables { found: Vec<u8>, wanted: Vec<u8> },
    /// A row names a node twice, or one that is no member.
    #[error("row {partition} of the table for N={n} names a node twice or no member: {row:?}")]
    Row { n: u8, partition: u32, row: Vec<u16> },
    /// Heads of two clusters.
    #[error("cluster {ours} and cluster {theirs} cannot be merged")]
    ClusterDiffers { ours: String, theirs: String },
    /// Nothing to change.
    #[error("there is no keyspace `{name}` to change")]
    NoSuchKeyspace { name: String },
    /// One is said to be there and to be gone, or two have one name.
    #[error("the keyspace `{name}` is there twice, or both there and dropped")]
    KeyspaceTwice { name: String },
    /// Nobody to change or remove.
    #[error("there is no member {uid}")]
    NoSuchMember { uid: Uid },
    /// Copies that touch no zone, or more than a key has.
    #[error("a spread over {found} zones is not within 1 and {N_MAX}")]
    Spread { found: u8 },
    /// Above [`NOTE_BYTES_MAX`].
    #[error("a note of {found} bytes is above the {NOTE_BYTES_MAX} allowed")]
    Note { found: usize },
    /// A node is a member and was removed.
    #[error("node {uid} is a member, and removed")]
    BothThereAndRemoved { uid: Uid },
    /// No table can be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Identifies the node, whatever its address.
    pub uid: Uid,
    /// What people call it; unique in the cluster.
    pub name: String,
    /// Where it is reached, HOST:PORT; unique in the cluster.
    pub address: String,
    /// What fails together; copies are kept in different zones as far as there are zones.
    pub zone: String,
    /// How much it should hold relative to the others, 1 to [`WEIGHT_MAX`].
    pub weight: u32,
}

impl Member {
    fn check(&self) -> Result<(), LayoutError> {
        check_name("node", &self.name)?;
        check_name("zone", &self.zone)?;
        if !is_address(&self.address) {
            return Err(LayoutError::Address { address: self.address.clone() });
        }
        if !(1..=WEIGHT_MAX).contains(&self.weight) {
            return Err(LayoutError::Weight { name: self.name.clone(), weight: self.weight });
        }
        Ok(())
    }
}

/// Whether fallbacks may stand in for replicas that are down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// They may, keeping hints: available, and R+W>N does not promise the newest value.
    Sloppy,
    /// They may not: R+W>N reads the newest value, or fails.
    Strict,
}

/// A named policy of how keys are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keyspace {
    /// Unique in the cluster.
    pub name: String,
    /// Copies of each key, 1 to [`N_MAX`].
    pub n: u8,
    /// Answers a read waits for, 1 to `n`.
    pub r: u8,
    /// Acknowledgements a write waits for, 1 to `n`.
    pub w: u8,
    /// Whether fallbacks count.
    pub mode: Mode,
    /// What compresses its values; `None`: nothing does.
    pub compression: Option<Codec>,
    /// Largest value, bytes, 1 to [`VALUE_BYTES_MAX`].
    pub value_bytes_max: u32,
    /// Depth of the layout that last changed it; set by that layout, whatever it was before.
    pub stamp: u64,
    /// How many of this name were dropped before; set by the layout that makes it.
    pub generation: u32,
}

impl Keyspace {
    /// The id stored with its keys.
    pub fn id(&self) -> KeyspaceId {
        id_of_keyspace(&self.name, self.generation)
    }

    /// Whether name, N, R, W and limits are allowed, in a cluster of any size.
    ///
    /// # Errors
    /// The first one that is not.
    pub fn check(&self) -> Result<(), LayoutError> {
        check_name("keyspace", &self.name)?;
        let (keyspace, n, r, w) = (self.name.clone(), self.n, self.r, self.w);
        match () {
            () if !(1..=N_MAX).contains(&n) => Err(LayoutError::N { keyspace, n }),
            () if r == 0 => Err(LayoutError::RZero { keyspace, n }),
            () if r > n => Err(LayoutError::RAboveN { keyspace, r, n }),
            () if w == 0 => Err(LayoutError::WZero { keyspace, n }),
            () if w > n => Err(LayoutError::WAboveN { keyspace, w, n }),
            () if !(1..=VALUE_BYTES_MAX).contains(&self.value_bytes_max) => {
                Err(LayoutError::ValueBytesMax { keyspace, found: self.value_bytes_max })
            }
            () => Ok(()),
        }
    }
}

/// A keyspace made anew is another than the one that was dropped: what somebody still holds of that
/// must not be read in it, nor what is put into it be taken away as a rest of that.
fn id_of_keyspace(name: &str, generation: u32) -> KeyspaceId {
    match generation {
        0 => KeyspaceId::of(name),
        generation => KeyspaceId::of(&format!("{name}\0{generation}")), // no name has a zero byte
    }
}

/// A keyspace that is no more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Dropped {
    name: String,
    generation: u32,
    /// At what depth it was dropped.
    stamp: u64,
}

impl Dropped {
    fn id(&self) -> KeyspaceId {
        id_of_keyspace(&self.name, self.generation)
    }

    fn new(keyspace: Keyspace, stamp: u64) -> Self {
        Self { name: keyspace.name, generation: keyspace.generation, stamp }
    }
}

/// Which nodes hold each partition, for one N. Nodes are named by slot: their position among the
/// members in order of uid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    n: u8,
    /// Row by row, `n` to a row.
    slots: Vec<u16>,
}

impl Table {
    pub(crate) fn new(n: u8, slots: Vec<u16>) -> Self {
        assert!(n > 0 && slots.len().is_multiple_of(usize::from(n)), "a table is whole rows");
        Self { n, slots }
    }

    /// Copies of each partition.
    pub fn n(&self) -> u8 {
        self.n
    }

    /// Number of rows.
    pub fn partitions(&self) -> usize {
        self.slots.len() / usize::from(self.n)
    }

    /// The slots that hold `partition`.
    pub fn row(&self, partition: u32) -> &[u16] {
        let n = usize::from(self.n);
        &self.slots[partition as usize * n..][..n]
    }

    /// This table in the slots of `to`, for planning after a change of members; replicas of nodes
    /// that left become [`EMPTY`]. Both slices are in order of uid.
    pub fn relabelled(&self, from: &[Member], to: &[Member]) -> Self {
        self.with_places(from, to, &BTreeMap::new())
    }

    /// The same, where nodes that left have others take their `places`.
    fn with_places(&self, from: &[Member], to: &[Member], places: &BTreeMap<Uid, Uid>) -> Self {
        let moved: Vec<u16> = from
            .iter()
            .map(|member| places.get(&member.uid).unwrap_or(&member.uid))
            .map(|uid| to.binary_search_by_key(uid, |other| other.uid))
            .map(|found| found.map_or(EMPTY, |slot| slot as u16))
            .collect();
        // A place may be empty already: its node was lost.
        let place = |slot: &u16| moved.get(usize::from(*slot)).copied().unwrap_or(EMPTY);
        let slots = self.slots.iter().map(place).collect();
        Self { n: self.n, slots }
    }

    /// The same copies on a ring of 2^`bits` partitions, or more if it has more: a partition is cut
    /// into halves that have its row.
    pub fn doubled_to(&self, bits: u32) -> Self {
        let (n, mut slots) = (usize::from(self.n), self.slots.clone());
        while slots.len() < n << bits {
            slots = slots.chunks_exact(n).flat_map(|row| [row, row].concat()).collect();
        }
        Self { n: self.n, slots }
    }

    fn check(&self, members: usize) -> Result<(), LayoutError> {
        for (partition, row) in self.slots.chunks_exact(usize::from(self.n)).enumerate() {
            let distinct = (1..row.len()).all(|place| !row[..place].contains(&row[place]));
            if !distinct || row.iter().any(|&slot| usize::from(slot) >= members) {
                let (partition, row) = (partition as u32, row.to_vec());
                return Err(LayoutError::Row { n: self.n, partition, row });
            }
        }
        Ok(())
    }
}

/// A node that is no member any more. It never comes back: whoever returns is another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    /// What people called it.
    pub name: String,
    /// Depth of the layout that removed it.
    pub stamp: u64,
    /// It was dead, and gave nothing away: nobody waits for it.
    pub lost: bool,
}

/// One version of the cluster's facts; see the module's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    id: LayoutId,
    parents: Vec<LayoutId>,
    depth: u64,
    cluster_name: String,
    partition_bits: u32,
    /// Zones that a row must touch where there are as many, and the depth at which that was said.
    spread: (u8, u64),
    /// What its maker says of it; nothing here reads it.
    note: Vec<u8>,
    members: Vec<Member>,
    /// Depth of the layout that last changed a member, where it is not 1.
    stamps: BTreeMap<Uid, u64>,
    removed: BTreeMap<Uid, Removed>,
    keyspaces: BTreeMap<KeyspaceId, Keyspace>,
    /// Keyspaces that were dropped.
    dropped: BTreeMap<KeyspaceId, Dropped>,
    tables: BTreeMap<u8, Table>,
}

impl Layout {
    /// The first layout of a cluster, depth 1, its table planned. `default_keyspace` has to be
    /// named [`DEFAULT_KEYSPACE`].
    ///
    /// # Errors
    /// No members, two of one uid, name or address, an N above their number, or a field that is not
    /// allowed.
    pub fn genesis(
        cluster_name: &str,
        mut members: Vec<Member>,
        default_keyspace: Keyspace,
    ) -> Result<Self, LayoutError> {
        members.sort_by_key(|member| member.uid);
        let keyspace = Keyspace { stamp: STAMP_FIRST, ..default_keyspace };
        let zones: BTreeSet<&String> = members.iter().map(|member| &member.zone).collect();
        let spread = zones.len().clamp(1, N_MAX.into()) as u8;
        let mut layout = Self {
            id: LayoutId(0),
            parents: Vec::new(),
            depth: 1,
            cluster_name: cluster_name.to_owned(),
            partition_bits: PARTITION_BITS,
            spread: (spread, STAMP_FIRST),
            note: Vec::new(),
            members,
            stamps: BTreeMap::new(),
            removed: BTreeMap::new(),
            keyspaces: BTreeMap::from([(keyspace.id(), keyspace)]),
            dropped: BTreeMap::new(),
            tables: BTreeMap::new(),
        };
        layout.plan_from(&[], &BTreeMap::new(), &BTreeMap::new(), true)?;
        layout.seal()
    }

    /// A child with one keyspace more.
    ///
    /// # Errors
    /// As [`Layout::changed`].
    pub fn with_keyspace(&self, keyspace: Keyspace) -> Result<Self, LayoutError> {
        self.changed(&[Change::CreateKeyspace(keyspace)], Vec::new(), None)
    }

    /// Checks everything and names the layout.
    fn seal(mut self) -> Result<Self, LayoutError> {
        self.check_facts()?;
        self.check_tables()?;
        self.id = id_of(&self.encode());
        Ok(self)
    }

    fn wanted_tables(&self) -> BTreeSet<u8> {
        self.keyspaces.values().map(|keyspace| keyspace.n).collect()
    }

    fn check_facts(&self) -> Result<(), LayoutError> {
        check_name("cluster", &self.cluster_name)?;
        let (depth, parents) = (self.depth, self.parents.len());
        let first = depth == 1 && parents == 0;
        let later = (2..=DEPTH_MAX).contains(&depth) && (1..=PARENTS_MAX).contains(&parents);
        if !first && !later {
            return Err(LayoutError::Depth { depth, parents });
        }
        let (found, stamp) = self.spread;
        if !(1..=N_MAX).contains(&found) || !(1..=depth).contains(&stamp) {
            return Err(LayoutError::Spread { found });
        }
        if self.note.len() > NOTE_BYTES_MAX {
            return Err(LayoutError::Note { found: self.note.len() });
        }
        if !(PARTITION_BITS..=PARTITION_BITS_MAX).contains(&self.partition_bits) {
            return Err(LayoutError::PartitionBits { found: self.partition_bits });
        }
        self.check_members()?;
        self.check_keyspaces()
    }

    fn check_members(&self) -> Result<(), LayoutError> {
        check_member_count(self.members.len())?;
        self.members.iter().try_for_each(Member::check)?;
        // First, so that two members of one uid are said to be that, not out of order.
        check_distinct("uid", self.members.iter().map(|member| member.uid))?;
        check_distinct("name", self.members.iter().map(|member| &member.name))?;
        check_distinct("address", self.members.iter().map(|member| &member.address))?;
        self.removed.values().try_for_each(|removed| check_name("node", &removed.name))?;
        if let Some(both) = self.members.iter().find(|it| self.removed.contains_key(&it.uid)) {
            return Err(LayoutError::BothThereAndRemoved { uid: both.uid });
        }
        check_ascending("members", self.members.iter().map(|member| member.uid))
    }

    fn check_keyspaces(&self) -> Result<(), LayoutError> {
        check_keyspace_count(self.keyspaces.len())?;
        let mut names = BTreeSet::new();
        for keyspace in self.keyspaces.values() {
            keyspace.check()?;
            let (name, n) = (keyspace.name.clone(), keyspace.n);
            let (members, depth, stamp) = (self.members.len(), self.depth, keyspace.stamp);
            if usize::from(n) > members {
                return Err(LayoutError::NAboveMembers { keyspace: name, n, members });
            }
            if !(1..=depth).contains(&stamp) {
                return Err(LayoutError::Stamp { keyspace: name, stamp, depth });
            }
            if self.dropped.contains_key(&keyspace.id()) || !names.insert(&keyspace.name) {
                return Err(LayoutError::KeyspaceTwice { name });
            }
        }
        match self.keyspace(DEFAULT_KEYSPACE) {
            Some(_) => Ok(()),
            None => Err(LayoutError::NoDefaultKeyspace),
        }
    }

    fn check_tables(&self) -> Result<(), LayoutError> {
        let wanted = self.wanted_tables();
        if !self.tables.keys().eq(&wanted) {
            let found = self.tables.keys().copied().collect();
            return Err(LayoutError::Tables { found, wanted: wanted.into_iter().collect() });
        }
        self.tables.values().try_for_each(|table| table.check(self.members.len()))
    }

    fn stamp_of(&self, uid: Uid) -> u64 {
        self.stamps.get(&uid).copied().unwrap_or(STAMP_FIRST)
    }

    /// A hash of [`Layout::encode`].
    pub fn id(&self) -> LayoutId {
        self.id
    }

    /// None at the first layout, two or more at a merge; ascending.
    pub fn parents(&self) -> &[LayoutId] {
        &self.parents
    }

    /// 1 at the first layout, one more than the deepest parent elsewhere.
    pub fn depth(&self) -> u64 {
        self.depth
    }

    /// What people call the cluster.
    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// The ring has 2^this partitions.
    pub fn partition_bits(&self) -> u32 {
        self.partition_bits
    }

    /// Number of partitions, Q.
    pub fn partitions(&self) -> u32 {
        1 << self.partition_bits
    }

    /// Zones that the copies of a partition must touch, where there are as many.
    pub fn spread(&self) -> u8 {
        self.spread.0
    }

    /// What its maker said of it.
    pub fn note(&self) -> &[u8] {
        &self.note
    }

    /// Nodes that are no members any more.
    pub fn removed(&self) -> &BTreeMap<Uid, Removed> {
        &self.removed
    }

    /// Keyspaces that were dropped.
    pub fn dropped(&self) -> impl Iterator<Item = KeyspaceId> {
        self.dropped.keys().copied()
    }

    /// Whether this node is dead and removed: nobody waits for it.
    pub fn is_lost(&self, uid: Uid) -> bool {
        self.removed.get(&uid).is_some_and(|removed| removed.lost)
    }

    /// All members in order of uid: the position is the slot.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// All keyspaces.
    pub fn keyspaces(&self) -> &BTreeMap<KeyspaceId, Keyspace> {
        &self.keyspaces
    }

    /// The tables by N: one for every N that a keyspace has.
    pub fn tables(&self) -> &BTreeMap<u8, Table> {
        &self.tables
    }

    /// The keyspace called `name`.
    pub fn keyspace(&self, name: &str) -> Option<&Keyspace> {
        // Another name may hash to the same id.
        let first = self.keyspace_by_id(KeyspaceId::of(name)).filter(|it| it.name == name);
        first.or_else(|| self.keyspaces.values().find(|it| it.generation > 0 && it.name == name))
    }

    /// The keyspace of `id`.
    pub fn keyspace_by_id(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.keyspaces.get(&id)
    }

    /// Whether it says the same as its parent `before`, but for where nodes are.
    pub fn differs_by_addresses(&self, before: &Self) -> bool {
        let elsewhere = |(now, was): (&Member, &Member)| {
            *now == Member { address: now.address.clone(), ..was.clone() }
        };
        self.members.len() == before.members.len()
            && self.members.iter().zip(&before.members).all(elsewhere)
            && (&self.tables, &self.keyspaces) == (&before.tables, &before.keyspaces)
            && (&self.dropped, self.spread) == (&before.dropped, before.spread)
    }

    /// The member of `uid`.
    pub fn member(&self, uid: Uid) -> Option<&Member> {
        self.slot(uid).map(|slot| &self.members[usize::from(slot)])
    }

    /// The member called `name`.
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// The slot of `uid` in the tables.
    pub fn slot(&self, uid: Uid) -> Option<u16> {
        let found = self.members.binary_search_by_key(&uid, |member| member.uid);
        found.ok().map(|slot| slot as u16)
    }

    /// The partition `token` lies in.
    pub fn partition_of(&self, token: Token) -> u32 {
        token.partition(self.partition_bits)
    }

    /// The slots that hold `partition` in keyspaces of `n` copies. A table exists for the N of
    /// every keyspace of this layout; to ask for another is a bug, and panics.
    pub fn row(&self, n: u8, partition: u32) -> &[u16] {
        self.table(n).row(partition)
    }

    /// The members that hold `partition` in keyspaces of `n` copies; `n` as in [`Layout::row`].
    pub fn replicas(&self, n: u8, partition: u32) -> impl Iterator<Item = &Member> {
        self.row(n, partition).iter().map(|&slot| &self.members[usize::from(slot)])
    }

    /// How many partitions each slot holds in keyspaces of `n` copies; `n` as in [`Layout::row`].
    pub fn copies(&self, n: u8) -> Vec<u32> {
        let mut copies = vec![0; self.members.len()];
        for &slot in &self.table(n).slots {
            copies[usize::from(slot)] += 1;
        }
        copies
    }

    /// How many partitions each slot should hold: its share by weight, as far as zones are kept
    /// apart; `n` as in [`Layout::row`].
    pub fn fair_ratio(&self, n: u8) -> Vec<Share> {
        let (n, bits) = (self.table(n).n, self.partition_bits);
        let shares = plan::fair_shares(&self.members, n, bits, self.spread.0);
        shares.expect("there are members for every table")
    }

    fn table(&self, n: u8) -> &Table {
        self.tables.get(&n).expect("a layout has a table for the N of each of its keyspaces")
    }
}

fn id_of(bytes: &[u8]) -> LayoutId {
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    LayoutId::from_bytes(*hash.first_chunk().expect("32 bytes begin with 16"))
}

fn check_name(what: &'static str, name: &str) -> Result<(), LayoutError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(LayoutError::Name { what, name: name.to_owned() })
}

/// Whether this is HOST:PORT. Whether the host exists is the network's to say.
fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().is_ok_and(|port| digits && port != 0);
    // Unbracketed, the last group of an IPv6 host would be taken for the port.
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = !host.contains([':', '[', ']']);
    let host = bracketed.or(plain.then_some(host)).unwrap_or("");
    let graphic = host.bytes().all(|byte| byte.is_ascii_graphic());
    address.len() <= ADDRESS_BYTES_MAX && port && graphic && !host.is_empty()
}

fn check_member_count(found: usize) -> Result<(), LayoutError> {
    match found {
        0 => Err(LayoutError::NoMembers),
        1..=MEMBERS_MAX => Ok(()),
        _ => Err(LayoutError::TooManyMembers { found }),
    }
}

fn check_keyspace_count(found: usize) -> Result<(), LayoutError> {
    let allowed = KEYSPACES_JOINED_MAX;
    if found <= allowed { Ok(()) } else { Err(LayoutError::TooManyKeyspaces { found, allowed }) }
}

fn check_distinct<T: Ord + ToString>(
    what: &'static str,
    values: impl Iterator<Item = T>,
) -> Result<(), LayoutError> {
    let mut seen = BTreeSet::new();
    for value in values {
        if seen.contains(&value) {
            return Err(LayoutError::Duplicate { what, value: value.to_string() });
        }
        seen.insert(value);
    }
    Ok(())
}

fn check_ascending<T: Ord>(
    what: &'static str,
    values: impl Iterator<Item = T>,
) -> Result<(), LayoutError> {
    let ascending = values.is_sorted_by(|a, b| a < b);
    if ascending { Ok(()) } else { Err(LayoutError::Order { what }) }
}

/// Clusters for tests.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// One member for each weight, dealt over `zones` zones; `seed` makes other uids.
    pub(crate) fn members(weights: &[u32], zones: usize, seed: u64) -> Vec<Member> {
        let member = |(i, &weight): (usize, &u32)| Member {
            // Fibonacci hashing: any scatter does, so that order of uids is not order of weights.
            uid: Uid((u128::from(seed) + i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c)),
            name: format!("n{i}"),
            address: format!("10.0.0.{i}:7400"),
            zone: format!("z{}", i % zones),
            weight,
        };
        let mut members: Vec<Member> = weights.iter().enumerate().map(member).collect();
        members.sort_by_key(|member| member.uid);
        members
    }

    pub(crate) fn keyspace(name: &str, n: u8) -> Keyspace {
        let (r, w) = (n / 2 + 1, n / 2 + 1);
        let (name, mode) = (name.to_owned(), Mode::Sloppy);
        let value_bytes_max = VALUE_BYTES_MAX;
        Keyspace {
            name,
            n,
            r,
            w,
            mode,
            compression: None,
            value_bytes_max,
            stamp: 0,
            generation: 0,
        }
    }

    /// A first layout whose default keyspace has N=3.
    pub(crate) fn layout(weights: &[u32], zones: usize) -> Layout {
        let default = keyspace(DEFAULT_KEYSPACE, 3);
        Layout::genesis("test", members(weights, zones, 0), default).unwrap()
    }
}

#[cfg(test)]
mod tests;
