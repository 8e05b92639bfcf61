//! The layout: the one replicated document of cluster facts. Who is a member, which keyspaces there
//! are, and which node holds which partition.
//!
//! A layout never changes. A change makes a child, one deeper, that names its parents; its id is a
//! hash of its bytes, so equal ids are equal layouts. Nobody leads: two children made on two sides
//! of a split are joined by [`Layout::join`], and every node that knows both makes the same
//! document of them, byte for byte.
//!
//! # Bytes
//! Numbers are big-endian; `text` is a length (u8) and that many bytes.
//! ```text
//! "KVDL"  version u8 = 1 or 2
//! parents     count u8, each id [16]              ascending
//! depth u64   cluster name text   partition bits u8
//! members     count u16, each uid [16], name text, address text, zone text, weight u32
//!                                                 ascending by uid
//! keyspaces   count u16, each name text, n u8, r u8, w u8, mode u8 (0 sloppy, 1 strict),
//!             compression u8 (0 off, 1 lz4, 2 zstd; only in version 2),
//!             value_bytes_max u32, stamp u64      ascending by id
//! tables      count u8, each n u8, then 2^bits rows of n slots u16
//!                                                 ascending by n, one for every N in use
//! ```
//! A layout is of version 2 if a keyspace compresses, and else of version 1. So one layout has one
//! encoding, whichever kvd made it. The id is the first 16 bytes of its SHA-256.

use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use crate::dynamo::plan::{self, EMPTY, PlanError, Share};
use crate::dynamo::value::Codec;
use proto::token::Token;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The ring has 2^this partitions.
pub const PARTITION_BITS: u32 = 8;

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

const MAGIC: &[u8; 4] = b"KVDL";
/// The newest version, the one with compression.
const VERSION: u8 = 2;
/// The version without.
const VERSION_PLAIN: u8 = 1;

/// Why a layout is refused: what was wrong and what is allowed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
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
    #[error("depth {depth} with {parents} parents: 1 with none, 2 to {DEPTH_MAX} with one or two")]
    Depth { depth: u64, parents: usize },
    /// A keyspace created by no ancestor.
    #[error("keyspace {keyspace} has stamp {stamp}, not within 1 and the depth {depth}")]
    Stamp { keyspace: String, stamp: u64, depth: u64 },
    /// A ring cut into another number of partitions.
    #[error("2^{found} partitions: this version knows 2^{PARTITION_BITS}")]
    PartitionBits { found: u32 },
    /// The bytes are not a layout.
    #[error("not a layout: the first bytes are not `KVDL`")]
    Magic,
    /// A layout of a later release.
    #[error("layout version {found}: this version knows {VERSION_PLAIN} to {VERSION}")]
    Version { found: u8 },
    /// A layout has one encoding, and this is not it.
    #[error("layout version {found} for what version {VERSION_PLAIN} can say")]
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
    /// No table can be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Why two layouts cannot be joined.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinError {
    /// They are of two clusters.
    #[error("cluster {ours} and cluster {theirs} cannot be joined")]
    ClusterDiffers { ours: String, theirs: String },
    /// Only keyspaces may differ.
    #[error("the layouts have different members")]
    MembersDiffer,
    /// What they make together is no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
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
            weight: u32::from_be_bytes(bytes.array()?),
        })
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
    /// Depth of the layout that created it; set by that layout, whatever it was before.
    pub stamp: u64,
}

impl Keyspace {
    /// The id stored with its keys.
    pub fn id(&self) -> KeyspaceId {
        KeyspaceId::of(&self.name)
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

    /// Which of two policies of one id wins a join: the older, then the smaller in bytes. Any order
    /// would do that all nodes agree on; the older one has been in use for longer.
    fn precedence(&self) -> (u64, Vec<u8>) {
        let mut bytes = Vec::new();
        self.encode(&mut bytes, VERSION);
        (self.stamp, bytes)
    }

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
        let value_bytes_max = u32::from_be_bytes(bytes.array()?);
        let stamp = u64::from_be_bytes(bytes.array()?);
        Ok(Self { name, n, r, w, mode, compression, value_bytes_max, stamp })
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
        let moved: Vec<u16> = from
            .iter()
            .map(|member| to.binary_search_by_key(&member.uid, |other| other.uid))
            .map(|found| found.map_or(EMPTY, |slot| slot as u16))
            .collect();
        let slots = self.slots.iter().map(|&slot| moved[usize::from(slot)]).collect();
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

    fn encode(&self, out: &mut Vec<u8>) {
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

/// One version of the cluster's facts; see the module's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    id: LayoutId,
    parents: Vec<LayoutId>,
    depth: u64,
    cluster_name: String,
    partition_bits: u32,
    members: Vec<Member>,
    keyspaces: BTreeMap<KeyspaceId, Keyspace>,
    tables: BTreeMap<u8, Table>,
}

/// What two layouts make together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Joined {
    /// Ours already says all that theirs says.
    Ours,
    /// Theirs says all that ours says.
    Theirs,
    /// Each says something of its own: a child of both.
    Merged(Layout),
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
        let keyspace = Keyspace { stamp: 1, ..default_keyspace };
        let layout = Self {
            id: LayoutId(0),
            parents: Vec::new(),
            depth: 1,
            cluster_name: cluster_name.to_owned(),
            partition_bits: PARTITION_BITS,
            members,
            keyspaces: BTreeMap::from([(keyspace.id(), keyspace)]),
            tables: BTreeMap::new(),
        };
        layout.seal()
    }

    /// A child with one keyspace more.
    ///
    /// # Errors
    /// The name or its id is taken, [`KEYSPACES_MAX`] is reached, N is above the number of members,
    /// or a field is not allowed.
    pub fn with_keyspace(&self, keyspace: Keyspace) -> Result<Self, LayoutError> {
        if let Some(other) = self.keyspaces.get(&keyspace.id()) {
            let (name, other) = (keyspace.name, other.name.clone());
            return Err(match name == other {
                true => LayoutError::KeyspaceExists { name },
                false => LayoutError::KeyspaceIdClash { name, other },
            });
        }
        let (found, allowed) = (self.keyspaces.len() + 1, KEYSPACES_MAX);
        if found > allowed {
            return Err(LayoutError::TooManyKeyspaces { found, allowed });
        }
        let mut child = self.clone();
        child.parents = vec![self.id];
        child.depth += 1;
        let keyspace = Keyspace { stamp: child.depth, ..keyspace };
        child.keyspaces.insert(keyspace.id(), keyspace);
        child.seal()
    }

    /// What this layout and another head of the cluster make together. Commutative, and the same
    /// document on every node that knows both, so heads that keep being exchanged become one:
    /// the set of keyspaces only grows, nothing new is made once all nodes have all of them, and of
    /// heads that say the same the deeper wins, then the one with the greater id.
    ///
    /// Where both sides created a keyspace of one id with different policies, the one with the
    /// smaller (stamp, bytes) wins; the keys of the other side are then kept by that policy.
    ///
    /// # Errors
    /// Other members or another cluster, or together more keyspaces than a layout may hold.
    pub fn join(&self, other: &Self) -> Result<Joined, JoinError> {
        if self.cluster_name != other.cluster_name {
            let (ours, theirs) = (self.cluster_name.clone(), other.cluster_name.clone());
            return Err(JoinError::ClusterDiffers { ours, theirs });
        }
        if self.members != other.members || self.partition_bits != other.partition_bits {
            return Err(JoinError::MembersDiffer);
        }
        let keyspaces = union(&self.keyspaces, &other.keyspaces);
        let (all_ours, all_theirs) = (keyspaces == self.keyspaces, keyspaces == other.keyspaces);
        Ok(match (all_ours, all_theirs) {
            (true, true) if self.rank() >= other.rank() => Joined::Ours,
            (true, true) => Joined::Theirs,
            // The shallower never wins, or a node would go back behind what it has announced.
            (true, false) if self.depth >= other.depth => Joined::Ours,
            (false, true) if other.depth >= self.depth => Joined::Theirs,
            _ => Joined::Merged(self.merge(other, keyspaces)?),
        })
    }

    fn rank(&self) -> (u64, LayoutId) {
        (self.depth, self.id)
    }

    fn merge(
        &self,
        other: &Self,
        keyspaces: BTreeMap<KeyspaceId, Keyspace>,
    ) -> Result<Self, LayoutError> {
        let (greater, lesser) =
            if self.rank() >= other.rank() { (self, other) } else { (other, self) };
        let mut child = greater.clone();
        child.parents = vec![lesser.id.min(greater.id), lesser.id.max(greater.id)];
        child.depth += 1;
        child.keyspaces = keyspaces;
        for (&n, table) in &lesser.tables {
            child.tables.entry(n).or_insert_with(|| table.clone());
        }
        child.seal()
    }

    /// Makes the tables what the keyspaces need, checks everything and names the layout.
    fn seal(mut self) -> Result<Self, LayoutError> {
        self.check_facts()?;
        let wanted = self.wanted_tables();
        self.tables.retain(|n, _| wanted.contains(n));
        for n in wanted {
            if !self.tables.contains_key(&n) {
                let table = plan::plan(None, &self.members, n, self.partition_bits)?;
                self.tables.insert(n, table);
            }
        }
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
        let later = (2..=DEPTH_MAX).contains(&depth) && (1..=2).contains(&parents);
        if !first && !later {
            return Err(LayoutError::Depth { depth, parents });
        }
        if self.partition_bits != PARTITION_BITS {
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
        check_ascending("members", self.members.iter().map(|member| member.uid))
    }

    fn check_keyspaces(&self) -> Result<(), LayoutError> {
        check_keyspace_count(self.keyspaces.len())?;
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

    /// The bytes of this layout; see the module's head. The same layout has the same bytes on every
    /// node.
    pub fn encode(&self) -> Vec<u8> {
        let version = self.version();
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.push(version);
        out.push(self.parents.len() as u8);
        out.extend(self.parents.iter().flat_map(|parent| parent.to_bytes()));
        out.extend(self.depth.to_be_bytes());
        put_text(&mut out, &self.cluster_name);
        out.push(self.partition_bits as u8);
        out.extend((self.members.len() as u16).to_be_bytes());
        self.members.iter().for_each(|member| member.encode(&mut out));
        out.extend((self.keyspaces.len() as u16).to_be_bytes());
        self.keyspaces.values().for_each(|keyspace| keyspace.encode(&mut out, version));
        out.push(self.tables.len() as u8);
        self.tables.values().for_each(|table| table.encode(&mut out));
        out
    }

    /// The oldest version that can say it.
    fn version(&self) -> u8 {
        let compressed = self.keyspaces.values().any(|keyspace| keyspace.compression.is_some());
        if compressed { VERSION } else { VERSION_PLAIN }
    }

    /// The layout of these bytes, all of it checked as when one is made; its id is made from the
    /// bytes. The table is taken as it is, not planned again: a later planner may plan otherwise.
    ///
    /// # Errors
    /// The bytes are not exactly what [`Layout::encode`] gives for an allowed layout.
    pub fn decode(bytes: &[u8]) -> Result<Self, LayoutError> {
        let mut reader = Reader { rest: bytes };
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(LayoutError::Magic);
        }
        let version = match reader.u8()? {
            version @ VERSION_PLAIN..=VERSION => version,
            found => return Err(LayoutError::Version { found }),
        };
        let mut layout = Self::decode_facts(&mut reader, version)?;
        layout.check_facts()?;
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
        debug_assert_eq!(layout.encode(), bytes, "a layout has one encoding");
        layout.id = id_of(bytes);
        Ok(layout)
    }

    /// Everything up to the tables, yet unchecked but for counts and order.
    fn decode_facts(reader: &mut Reader<'_>, version: u8) -> Result<Self, LayoutError> {
        let mut parents = Vec::new();
        for _ in 0..reader.u8()? {
            parents.push(LayoutId::from_bytes(reader.array()?));
        }
        check_ascending("parents", parents.iter())?;
        let depth = u64::from_be_bytes(reader.array()?);
        let cluster_name = reader.text()?;
        let partition_bits = u32::from(reader.u8()?);
        let count = usize::from(u16::from_be_bytes(reader.array()?));
        check_member_count(count)?;
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            members.push(Member::decode(reader)?);
        }
        let count = usize::from(u16::from_be_bytes(reader.array()?));
        check_keyspace_count(count)?;
        let mut keyspaces = BTreeMap::new();
        for _ in 0..count {
            let keyspace = Keyspace::decode(reader, version)?;
            let id = keyspace.id();
            if keyspaces.last_key_value().is_some_and(|(&last, _)| last >= id) {
                return Err(LayoutError::Order { what: "keyspaces" });
            }
            keyspaces.insert(id, keyspace);
        }
        let (id, tables) = (LayoutId(0), BTreeMap::new());
        Ok(Self { id, parents, depth, cluster_name, partition_bits, members, keyspaces, tables })
    }

    /// A hash of [`Layout::encode`].
    pub fn id(&self) -> LayoutId {
        self.id
    }

    /// None at the first layout, two at a merge; ascending.
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
        self.keyspace_by_id(KeyspaceId::of(name)).filter(|keyspace| keyspace.name == name)
    }

    /// The keyspace of `id`.
    pub fn keyspace_by_id(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.keyspaces.get(&id)
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
        let shares = plan::fair_shares(&self.members, self.table(n).n, self.partition_bits);
        shares.expect("there are members for every table")
    }

    fn table(&self, n: u8) -> &Table {
        self.tables.get(&n).expect("a layout has a table for the N of each of its keyspaces")
    }
}

/// The keyspaces of both, one of each id.
fn union(
    ours: &BTreeMap<KeyspaceId, Keyspace>,
    theirs: &BTreeMap<KeyspaceId, Keyspace>,
) -> BTreeMap<KeyspaceId, Keyspace> {
    let mut all = ours.clone();
    for (&id, keyspace) in theirs {
        let kept = all.entry(id).or_insert_with(|| keyspace.clone());
        if keyspace.precedence() < kept.precedence() {
            *kept = keyspace.clone();
        }
    }
    all
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

/// Names and addresses are checked to be at most 255 bytes before they are written.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("no checked text is longer than 255 bytes"));
    out.extend(text.as_bytes());
}

/// Bytes yet to be read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
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

    /// Bytes that are no UTF-8 become U+FFFD, which no check lets pass.
    fn text(&mut self) -> Result<String, LayoutError> {
        let len = self.u8()?;
        Ok(String::from_utf8_lossy(self.take(usize::from(len))?).into_owned())
    }
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
        Keyspace { name, n, r, w, mode, compression: None, value_bytes_max, stamp: 0 }
    }

    /// A first layout whose default keyspace has N=3.
    pub(crate) fn layout(weights: &[u32], zones: usize) -> Layout {
        let default = keyspace(DEFAULT_KEYSPACE, 3);
        Layout::genesis("test", members(weights, zones, 0), default).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{keyspace, layout, members};
    use super::*;
    use proptest::prelude::*;

    fn three() -> Layout {
        layout(&[1, 2, 3], 3)
    }

    fn genesis(members: Vec<Member>) -> Result<Layout, LayoutError> {
        Layout::genesis("test", members, keyspace(DEFAULT_KEYSPACE, 3))
    }

    fn with_default(change: impl FnOnce(&mut Keyspace)) -> String {
        let mut default = keyspace(DEFAULT_KEYSPACE, 3);
        change(&mut default);
        let refused = Layout::genesis("test", members(&[1; 3], 1, 0), default);
        refused.unwrap_err().to_string()
    }

    fn with_first(change: impl FnOnce(&mut Member)) -> String {
        let mut members = members(&[1; 3], 1, 0);
        change(&mut members[0]);
        genesis(members).unwrap_err().to_string()
    }

    fn merged(a: &Layout, b: &Layout) -> Layout {
        match a.join(b).unwrap() {
            Joined::Ours => a.clone(),
            Joined::Theirs => b.clone(),
            Joined::Merged(layout) => layout,
        }
    }

    #[test]
    fn the_first_layout_is_whole() {
        let layout = three();
        assert_eq!((layout.depth(), layout.parents()), (1, &[][..]));
        assert_eq!(layout.keyspace("default").unwrap().stamp, 1);
        assert_eq!(layout.copies(3), [256; 3]);
        assert!(layout.fair_ratio(3).iter().all(|fair| fair.load_ppm(256) == 1_000_000));
        for (slot, member) in layout.members().iter().enumerate() {
            assert_eq!(layout.member(member.uid), Some(member));
            assert_eq!(layout.member_named(&member.name), Some(member));
            assert_eq!(layout.slot(member.uid), Some(slot as u16));
        }
        let partition = layout.partition_of(Token(u128::MAX));
        assert_eq!((partition, layout.replicas(3, partition).count()), (255, 3));
    }

    #[test]
    fn the_order_in_which_members_are_given_does_not_matter() {
        let mut members = members(&[1, 2, 3, 4], 2, 0);
        let layout = genesis(members.clone()).unwrap();
        members.reverse();
        assert_eq!(genesis(members).unwrap().id(), layout.id());
    }

    #[test]
    fn a_refusal_says_what_is_allowed() {
        assert_eq!(with_default(|k| k.w = 4), "W=4 is above N=3 in keyspace default");
        assert_eq!(with_default(|k| k.r = 4), "R=4 is above N=3 in keyspace default");
        assert_eq!(with_default(|k| k.r = 0), "R=0 of keyspace default is not within 1 and N=3");
        assert_eq!(with_default(|k| k.w = 0), "W=0 of keyspace default is not within 1 and N=3");
        assert_eq!(with_default(|k| k.n = 8), "N=8 of keyspace default is not within 1 and 7");
        let needs = "N=4 of keyspace default needs 4 nodes, there are 3";
        assert_eq!(with_default(|k| k.n = 4), needs);
        let limit = "value limit 0 bytes of keyspace default is not within 1 and 8388608";
        assert_eq!(with_default(|k| k.value_bytes_max = 0), limit);
        assert_eq!(with_default(|k| k.name = "x".into()), "the keyspace `default` is missing");
        let name = "keyspace name `a b` is not allowed: 1 to 64 of A-Z a-z 0-9 . _ -";
        assert_eq!(with_default(|k| k.name = "a b".into()), name);
        assert_eq!(with_first(|m| m.weight = 0), {
            let name = &members(&[1; 3], 1, 0)[0].name;
            format!("weight 0 of node {name} is not within 1 and 1000000")
        });
        assert_eq!(genesis(Vec::new()).unwrap_err(), LayoutError::NoMembers);
        let many = genesis(members(&vec![1; MEMBERS_MAX + 1], 1, 0)).unwrap_err();
        assert_eq!(many.to_string(), "4097 members are above the 4096 allowed");
    }

    #[test]
    fn members_are_told_apart_by_uid_name_and_address() {
        let all = members(&[1; 3], 1, 0);
        let last = all[2].clone();
        let same_uid = with_first(|member| member.uid = last.uid);
        assert_eq!(same_uid, format!("two members have the uid {}", last.uid));
        let same_name = with_first(|member| member.name = last.name.clone());
        assert_eq!(same_name, format!("two members have the name {}", last.name));
        let same_address = with_first(|member| member.address = last.address.clone());
        assert_eq!(same_address, format!("two members have the address {}", last.address));
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for address in ["a:1", "node-1.example:7400", "10.0.0.1:65535", "[::1]:7400"] {
            assert!(is_address(address), "{address}");
        }
        let long = format!("{}:7400", "a".repeat(251));
        let bad =
            ["", "a", ":1", "a:", "a:0", "a:+1", "a:65536", "a b:1", "::1:7400", "[]:1", "é:1"];
        for address in bad.into_iter().chain([long.as_str()]) {
            assert!(!is_address(address), "{address}");
        }
    }

    #[test]
    fn a_keyspace_more_is_a_child() {
        let first = three();
        let child = first.with_keyspace(keyspace("logs", 2)).unwrap();
        assert_eq!((child.depth(), child.parents()), (2, &[first.id()][..]));
        assert_eq!(child.keyspace("logs").unwrap().stamp, 2);
        assert_eq!(child.tables().keys().collect::<Vec<_>>(), [&2, &3]);
        assert_eq!(child.row(3, 7), first.row(3, 7));
        assert_ne!(child.id(), first.id());
        let again = child.with_keyspace(keyspace("logs", 1)).unwrap_err();
        assert_eq!(again, LayoutError::KeyspaceExists { name: "logs".into() });
    }

    #[test]
    fn an_operator_stops_at_the_bound_of_keyspaces_but_a_join_does_not() {
        let fill = |side: &str| {
            let mut layout = three();
            for i in 1..KEYSPACES_MAX {
                layout = layout.with_keyspace(keyspace(&format!("{side}{i}"), 3)).unwrap();
            }
            layout
        };
        let (left, right) = (fill("left"), fill("right"));
        let full = left.with_keyspace(keyspace("more", 3)).unwrap_err();
        assert_eq!(full.to_string(), "257 keyspaces are above the 256 allowed");
        let both = merged(&left, &right);
        assert_eq!(both.keyspaces().len(), 2 * KEYSPACES_MAX - 1);
        assert_eq!(Layout::decode(&both.encode()).unwrap(), both);
    }

    #[test]
    fn two_sides_of_a_split_make_one_child() {
        let first = three();
        let left = first.with_keyspace(keyspace("left", 2)).unwrap();
        let right = first.with_keyspace(keyspace("right", 1)).unwrap();
        let both = merged(&left, &right);
        assert_eq!(both, merged(&right, &left));
        assert_eq!(both.depth(), 3);
        assert_eq!(both.parents(), [left.id().min(right.id()), left.id().max(right.id())]);
        assert_eq!(both.tables().len(), 3);
        assert_eq!(both.join(&left).unwrap(), Joined::Ours);
        assert_eq!(right.join(&both).unwrap(), Joined::Theirs);
        assert_eq!(both.join(&both).unwrap(), Joined::Ours);
    }

    #[test]
    fn of_two_policies_of_one_name_the_older_wins_on_both_sides() {
        let first = three();
        let older = first.with_keyspace(keyspace("k", 2)).unwrap();
        let later = first.with_keyspace(keyspace("other", 3)).unwrap();
        let later = later.with_keyspace(keyspace("k", 1)).unwrap();
        let both = merged(&older, &later);
        assert_eq!(both, merged(&later, &older));
        assert_eq!(both.keyspace("k").unwrap().n, 2);
        // The table of the policy that lost is of no use.
        assert_eq!(both.tables().keys().collect::<Vec<_>>(), [&2, &3]);
    }

    #[test]
    fn a_deeper_head_that_says_less_is_gone_beyond() {
        let first = three();
        let wide = first.with_keyspace(keyspace("a", 1)).unwrap();
        let wide = wide.with_keyspace(keyspace("b", 1)).unwrap();
        let mut deep = wide.clone();
        (deep.depth, deep.parents) = (9, vec![wide.id()]);
        deep.keyspaces.remove(&KeyspaceId::of("b"));
        let deep = deep.seal().unwrap();
        let both = merged(&wide, &deep);
        assert_eq!((both.depth(), &both.keyspaces), (10, &wide.keyspaces));
        assert_eq!(both, merged(&deep, &wide));
    }

    #[test]
    fn strangers_do_not_join() {
        let ours = three();
        let other = Layout::genesis("other", ours.members().to_vec(), keyspace("default", 3));
        let differs = ours.join(&other.unwrap()).unwrap_err();
        assert_eq!(differs.to_string(), "cluster test and cluster other cannot be joined");
        let more = layout(&[1, 2, 3, 4], 3);
        assert_eq!(ours.join(&more), Err(JoinError::MembersDiffer));
    }

    #[test]
    fn damage_is_refused_with_its_reason() {
        let bytes = three().encode();
        let error = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            Layout::decode(&bytes).unwrap_err()
        };
        assert_eq!(error(&|b| b[0] = b'X'), LayoutError::Magic);
        assert_eq!(error(&|b| b[4] = 3), LayoutError::Version { found: 3 });
        assert_eq!(error(&|b| b[4] = 0), LayoutError::Version { found: 0 });
        assert_eq!(error(&|b| b.push(0)), LayoutError::Trailing { bytes: 1 });
        assert!(matches!(error(&|b| b.truncate(b.len() - 1)), LayoutError::Short { .. }));
        let depth_zero = LayoutError::Depth { depth: 0, parents: 0 };
        assert_eq!(error(&|b| b[13] = 0), depth_zero);
        let bits = 4 + 1 + 1 + 8 + 1 + "test".len();
        assert_eq!(error(&|b| b[bits] = 9), LayoutError::PartitionBits { found: 9 });
        assert_eq!(error(&|b| b[bits + 1..][..2].fill(0)), LayoutError::NoMembers);
        let crowd = error(&|b| b[bits + 1..][..2].fill(0xff));
        assert_eq!(crowd, LayoutError::TooManyMembers { found: 65535 });
        let twice = error(&|b| {
            let end = b.len();
            b.copy_within(end - 2..end, end - 4);
        });
        assert!(matches!(twice, LayoutError::Row { n: 3, partition: 255, .. }), "{twice}");
        let nobody = error(&|b| *b.last_mut().unwrap() = 3);
        assert!(matches!(nobody, LayoutError::Row { .. }), "{nobody}");
    }

    fn compressing(keyspace: Keyspace, number: usize) -> Keyspace {
        let compression = [None, Some(Codec::Lz4), Some(Codec::Zstd)][number % 3];
        Keyspace { compression, ..keyspace }
    }

    #[test]
    fn only_what_needs_it_is_version_2() {
        let plain = three().with_keyspace(keyspace("k", 1)).unwrap();
        assert_eq!(plain.encode()[4], 1);
        let lz4 = three().with_keyspace(compressing(keyspace("k", 1), 1)).unwrap();
        let mut bytes = lz4.encode();
        assert_eq!(bytes[4], 2);
        // The bytes of `k` in the list: name, N, R, W, mode, compression.
        let k = bytes.windows(6).position(|bytes| bytes == b"\x01k\x01\x01\x01\x00").unwrap();
        bytes[k + 6] = 3;
        let unknown = LayoutError::Compression { keyspace: "k".into(), found: 3 };
        assert_eq!(Layout::decode(&bytes), Err(unknown));
        bytes[k + 6] = 0;
        assert_eq!(Layout::decode(&bytes), Err(LayoutError::NeedlessVersion { found: 2 }));
    }

    #[test]
    fn every_flipped_bit_is_refused_or_makes_another_id() {
        let layout = three().with_keyspace(keyspace("k", 1)).unwrap();
        let layout = layout.with_keyspace(compressing(keyspace("z", 1), 2)).unwrap();
        let mut bytes = layout.encode();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = Layout::decode(&bytes) {
                assert_ne!(other.id(), layout.id(), "bit {bit}");
                assert_eq!(other.encode(), bytes, "bit {bit}");
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// A change somewhere in the cluster.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A node creates a keyspace of this number and N.
        Create { node: usize, number: u8, n: u8 },
        /// A node learns another's head.
        Tell { from: usize, to: usize },
        /// A node learns a head that another had before: messages are late and out of order.
        TellLate { from: usize, to: usize, back: usize },
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let create = (0usize..5, 0u8..12, 1u8..=5);
        let event = prop_oneof![
            create.prop_map(|(node, number, n)| Event::Create { node, number, n }),
            (0usize..5, 0usize..5).prop_map(|(from, to)| Event::Tell { from, to }),
            (0usize..5, 0usize..5, 0usize..4).prop_map(|(from, to, back)| Event::TellLate {
                from,
                to,
                back
            }),
        ];
        prop::collection::vec(event, 0..40)
    }

    /// Five nodes, each with all the heads it had.
    struct Gossip(Vec<Vec<Layout>>);

    impl Gossip {
        fn new() -> Self {
            Self(vec![vec![layout(&[1, 2, 3, 4, 5], 2)]; 5])
        }

        fn head(&self, node: usize) -> &Layout {
            self.0[node].last().unwrap()
        }

        fn tell(&mut self, head: &Layout, to: usize) {
            let joined = merged(self.head(to), head);
            assert_eq!(joined, merged(head, self.head(to)), "a join is commutative");
            assert!(joined.depth >= self.head(to).depth, "a head never goes back");
            self.0[to].push(joined);
        }

        fn happen(&mut self, event: Event) {
            match event {
                Event::Create { node, number, n } => {
                    let keyspace = keyspace(&format!("k{number}"), n);
                    let keyspace = compressing(keyspace, node);
                    if let Ok(head) = self.head(node).with_keyspace(keyspace) {
                        self.0[node].push(head);
                    }
                }
                Event::Tell { from, to } => self.tell(&self.head(from).clone(), to),
                Event::TellLate { from, to, back } => {
                    let had = &self.0[from];
                    self.tell(&had[had.len().saturating_sub(1 + back)].clone(), to);
                }
            }
        }

        fn agree(&self) -> bool {
            (1..5).all(|node| self.head(node) == self.head(0))
        }
    }

    proptest! {
        #[test]
        fn gossip_ends_with_one_layout(events in events(), order in Just(pairs()).prop_shuffle()) {
            let mut gossip = Gossip::new();
            events.into_iter().for_each(|event| gossip.happen(event));
            let heads: Vec<Layout> = (0..5).map(|node| gossip.head(node).clone()).collect();
            let all = heads.iter().fold(BTreeMap::new(), |all, head| union(&all, &head.keyspaces));
            // A round tells everyone every head. One ends with all keyspaces known somewhere, the
            // next make one head of the heads.
            let mut rounds = 0;
            while !gossip.agree() {
                for &(from, to) in &order {
                    gossip.happen(Event::Tell { from, to });
                }
                rounds += 1;
                prop_assert!(rounds <= 4, "no agreement in {} rounds", rounds);
            }
            prop_assert_eq!(&gossip.head(0).keyspaces, &all);
            let end = gossip.head(0).clone();
            prop_assert_eq!(&Layout::decode(&end.encode()).unwrap(), &end);
            // What is still under way changes nothing once it says nothing new and is no deeper.
            for head in heads {
                prop_assert_eq!(end.join(&head).unwrap(), Joined::Ours);
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(
            weights in prop::collection::vec(1u32..=WEIGHT_MAX, 5..20),
            zones in 1usize..6,
            copies in prop::collection::vec(1u8..=5, 0..4),
        ) {
            let mut layout = layout(&weights, zones);
            for (i, &n) in copies.iter().enumerate() {
                let mut keyspace = compressing(keyspace(&format!("k{i}"), n), i + usize::from(n));
                if i % 2 == 0 {
                    keyspace.mode = Mode::Strict;
                }
                layout = layout.with_keyspace(keyspace).unwrap();
            }
            let decoded = Layout::decode(&layout.encode()).unwrap();
            prop_assert_eq!(decoded.id(), layout.id());
            prop_assert_eq!(decoded, layout);
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Layout::decode(&bytes).is_err());
            for version in [VERSION_PLAIN, VERSION] {
                let headed = [&MAGIC[..], &[version, 0], &1u64.to_be_bytes(), &bytes].concat();
                prop_assert!(Layout::decode(&headed).is_err());
            }
        }

        #[test]
        fn damage_never_panics(
            spots in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let whole = three().with_keyspace(compressing(keyspace("k", 1), 1)).unwrap().encode();
            let mut bytes = whole.clone();
            for (spot, byte) in spots {
                *spot.get_mut(&mut bytes) = byte;
            }
            if let Ok(layout) = Layout::decode(&bytes) {
                prop_assert_eq!(layout.encode(), bytes.clone());
            }
            prop_assert!(Layout::decode(&whole[..cut.index(whole.len())]).is_err());
        }
    }

    fn pairs() -> Vec<(usize, usize)> {
        (0..5).flat_map(|from| (0..5).map(move |to| (from, to))).collect()
    }
}
