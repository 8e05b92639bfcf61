//! The grammar: what may be typed, and its help. No behaviour.

mod change;

pub(crate) use change::*;

use crate::output::{Color, Format};
use crate::time::parse_duration;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const AFTER_HELP: &str = "\
Examples:
  kvctl status
  kvctl put user:42 '{\"cart\":[1]}'
  kvctl get user:42
  kvctl get user:42 -o json | jq -r '.siblings[0].value_b64' | base64 -d

Exit codes: kvctl help exit-codes";

/// Operates kvd clusters.
#[derive(Debug, Parser)]
#[command(name = "kvctl", version, disable_help_subcommand = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags every command takes. A flag wins over the environment, that over the profile, that over
/// the file, that over what is built in.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Profile of the config file [env: KVCTL_PROFILE]
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Node to talk to; any node answers for the cluster; may be repeated [env: KVCTL_ENDPOINTS, comma-separated]
    #[arg(long, global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub endpoint: Vec<String>,
    /// Keyspace [env: KVCTL_KEYSPACE]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub keyspace: Option<String>,
    /// How to print the answer [env: KVCTL_OUTPUT]
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,
    /// Longest wait for an answer, such as 500ms, 10s or 2m; typed after a command that waits, for all of it [env: KVCTL_TIMEOUT]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Connect by TLS, to nodes whose certificates this CA signed (PEM) [env: KVCTL_TLS_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The certificate to show, where the cluster wants one (PEM) [env: KVCTL_TLS_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM) [env: KVCTL_TLS_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Longest wait for a connection
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    pub connect_timeout: Option<Duration>,
    /// When to use colour
    #[arg(long, global = true, value_enum, value_name = "WHEN")]
    pub color: Option<Color>,
    /// Only ASCII signs
    #[arg(long, global = true)]
    pub ascii: bool,
    /// No notes, no progress: only errors on stderr
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More about errors
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Answer yes to ordinary questions
    #[arg(long, global = true)]
    pub yes: bool,
    /// Never ask: what needs a confirmation exits 9
    #[arg(long, global = true)]
    pub no_input: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the value of a key
    Get(Get),
    /// Store a value
    Put(Put),
    /// Delete keys; a missing key is success
    Delete(Delete),
    /// Exit 0 if the key has a value, 3 if it has none
    Exists(Exists),
    /// Show where a key lives: token, partition, preference list
    Locate(Locate),
    /// Store many values, from JSONL or from the files below a directory
    Load(Load),
    /// Print every value of a keyspace as JSONL, or write each to a file
    Dump(Dump),
    /// Report how the cluster is
    #[command(after_help = "Examples:\n  kvctl status\n  kvctl status -o json | jq .data.verdict")]
    Status,
    /// Exit 0 if all is as it must be, 11 if not: for scripts
    Check(Check),
    /// Inspect, add, remove and change nodes
    #[command(subcommand)]
    Nodes(Nodes),
    /// Inspect the ring
    #[command(subcommand)]
    Ring(Ring),
    /// Make, inspect and delete keyspaces
    #[command(subcommand)]
    Keyspaces(Keyspaces),
    /// Show and change what N, R and W of a keyspace are
    #[command(subcommand)]
    Quorum(Quorum),
    /// Move copies until every node has its fair share
    Rebalance(Rebalance),
    /// Make, keep, compare and apply plans
    #[command(subcommand)]
    Plan(Plan),
    /// See and steer what is under way in the cluster
    #[command(subcommand)]
    Ops(Ops),
    /// Prove the checksum of every record, and heal what is bad
    #[command(subcommand)]
    Scrub(Scrub),
    /// See and steer what nodes keep for others that were down
    #[command(subcommand)]
    Hints(Hints),
    /// Give back to the disk what is free inside the nodes' files
    #[command(subcommand)]
    Compact(Compact),
    /// Which certificates secure the nodes, and reading them again
    #[command(subcommand)]
    Certs(Certs),
    /// Compare the nodes' copies, and make equal what differs
    #[command(subcommand)]
    Repair(Repair),
    /// See what is left of deleted keys, and why
    #[command(subcommand)]
    Gc(Gc),
    /// Make a cluster
    #[command(subcommand)]
    Cluster(Cluster),
    /// Print a shell's completion script
    #[command(
        after_help = "Examples:\n  kvctl completions bash > /etc/bash_completion.d/kvctl\n  source <(kvctl completions zsh)"
    )]
    Completions {
        #[arg(value_enum, value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the version of kvctl and, if a cluster can be reached, of kvd
    #[command(after_help = "Examples:\n  kvctl version\n  kvctl version -o json")]
    Version,
    /// Help for a command, or `exit-codes`
    #[command(after_help = "Examples:\n  kvctl help put\n  kvctl help exit-codes")]
    Help {
        /// `exit-codes`, or a command such as `nodes list`
        topic: Vec<String>,
    },
}

/// One key: as given, or encoded.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OneKey {
    /// The key, byte for byte
    #[arg(
        value_name = "KEY",
        required_unless_present_any = ["key_b64", "key_hex"],
        conflicts_with_all = ["key_b64", "key_hex"]
    )]
    pub key: Option<OsString>,
    /// The key in base64
    #[arg(long, value_name = "BASE64", conflicts_with = "key_hex")]
    pub key_b64: Option<String>,
    /// The key in hex
    #[arg(long, value_name = "HEX")]
    pub key_hex: Option<String>,
}

/// One or more keys: as given, or encoded.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ManyKeys {
    /// The keys, byte for byte
    #[arg(value_name = "KEY", required_unless_present_any = ["key_b64", "key_hex"])]
    pub keys: Vec<OsString>,
    /// A key in base64; may be repeated
    #[arg(long, value_name = "BASE64")]
    pub key_b64: Vec<String>,
    /// A key in hex; may be repeated
    #[arg(long, value_name = "HEX")]
    pub key_hex: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
One value goes to stdout byte for byte. Two or more concurrent values (siblings) are listed on
stderr and exit 4: choose with --sibling, or take the complete answer with -o json.

Examples:
  kvctl get user:42 > value
  kvctl get user:42 --context-out c > v;  edit v;  kvctl put user:42 --context @c < v
  kvctl get user:42 --sibling all --out-dir siblings
  kvctl get user:42 --explain")]
pub(crate) struct Get {
    #[command(flatten)]
    pub keys: ManyKeys,
    /// Replicas that must answer, instead of the keyspace's R
    #[arg(long, value_name = "N")]
    pub r: Option<u32>,
    /// Which of several concurrent values: its number, `newest` (by writers' clocks) or `all`
    #[arg(long, value_name = "N|newest|all", value_parser = parse_sibling)]
    pub sibling: Option<SiblingChoice>,
    /// Write the value to this file; a failed get leaves the file as it was
    #[arg(long, value_name = "FILE", conflicts_with = "out_dir")]
    pub out: Option<PathBuf>,
    /// Write each key's value to a file of this directory, named by the percent-escaped key; with
    /// `--sibling all` each sibling, with `~0`, `~1`… after the name
    #[arg(long, value_name = "DIR")]
    pub out_dir: Option<PathBuf>,
    /// Write the context of what was read to this file: of all siblings, or of the chosen one
    #[arg(long, value_name = "FILE")]
    pub context_out: Option<PathBuf>,
    /// Show each replica's answer
    #[arg(long)]
    pub explain: bool,
}

/// Which of a key's concurrent values is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SiblingChoice {
    Number(usize),
    Newest,
    All,
}

fn parse_sibling(text: &str) -> Result<SiblingChoice, String> {
    match text {
        "newest" => Ok(SiblingChoice::Newest),
        "all" => Ok(SiblingChoice::All),
        number => number
            .parse()
            .map(SiblingChoice::Number)
            .map_err(|_| "is neither a number nor `newest` nor `all`".to_owned()),
    }
}

#[derive(Debug, Args)]
#[command(
    override_usage = "kvctl put [OPTIONS] KEY [VALUE]",
    after_help = "\
The value is the argument (literal, may start with -), or --value-file, --value-b64, --value-hex,
or stdin. Without --context the current one is read first, so the put replaces what is there;
it is refused (exit 4) if that is more than one value.

Examples:
  kvctl put user:42 '{\"cart\":[1]}'
  kvctl put photo:7 < photo.jpg
  kvctl put user:42 --context @c --value-file v
  kvctl put user:42 merged --resolve"
)]
pub(crate) struct Put {
    /// The key, byte for byte
    #[arg(value_name = "KEY", required_unless_present_any = ["key_b64", "key_hex"])]
    pub key: Option<OsString>,
    /// The value, literally
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    pub value: Option<OsString>,
    /// The key in base64
    #[arg(long, value_name = "BASE64", conflicts_with = "key_hex")]
    pub key_b64: Option<String>,
    /// The key in hex
    #[arg(long, value_name = "HEX")]
    pub key_hex: Option<String>,
    /// The value is this file's bytes; `-` is stdin
    #[arg(long, value_name = "FILE", group = "value_source")]
    pub value_file: Option<PathBuf>,
    /// The value in base64
    #[arg(long, value_name = "BASE64", group = "value_source")]
    pub value_b64: Option<String>,
    /// The value in hex
    #[arg(long, value_name = "HEX", group = "value_source")]
    pub value_hex: Option<String>,
    #[command(flatten)]
    pub causality: Causality,
    #[command(flatten)]
    pub quorum: WriteQuorum,
    /// Write the new context to this file
    #[arg(long, value_name = "FILE")]
    pub context_out: Option<PathBuf>,
    /// Show what each replica did
    #[arg(long)]
    pub explain: bool,
}

/// What a write is to replace.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Causality {
    /// What the writer has seen, as get or put printed it; @FILE reads it from a file
    #[arg(long, value_name = "CONTEXT|@FILE", conflicts_with_all = ["blind", "resolve"])]
    pub context: Option<String>,
    /// Send no context and read none
    #[arg(long, conflicts_with = "resolve")]
    pub blind: bool,
    /// Replace all siblings
    #[arg(long)]
    pub resolve: bool,
}

/// What a write needs to succeed.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct WriteQuorum {
    /// Replicas that must have it on disk, instead of the keyspace's W
    #[arg(long, value_name = "N")]
    pub w: Option<u32>,
    /// Only the key's own replicas count
    #[arg(long, conflicts_with = "sloppy")]
    pub strict: bool,
    /// Fallbacks count too
    #[arg(long)]
    pub sloppy: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Without --context the current one is read first. More than one value is refused (exit 4) unless
--resolve is given.

Examples:
  kvctl delete user:42
  kvctl delete user:42 user:43 --must-exist
  kvctl delete user:42 --context @c")]
pub(crate) struct Delete {
    #[command(flatten)]
    pub keys: ManyKeys,
    #[command(flatten)]
    pub causality: Causality,
    #[command(flatten)]
    pub quorum: WriteQuorum,
    /// A missing key is an error (exit 3)
    #[arg(long, conflicts_with = "blind")]
    pub must_exist: bool,
    /// Show what each replica did
    #[arg(long)]
    pub explain: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kvctl exists user:42 && echo there\n  kvctl exists user:42 -o json"
)]
pub(crate) struct Exists {
    #[command(flatten)]
    pub key: OneKey,
    /// Replicas that must answer, instead of the keyspace's R
    #[arg(long, value_name = "N")]
    pub r: Option<u32>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kvctl locate user:42\n  kvctl locate user:42 -o json | jq -r .data.token"
)]
pub(crate) struct Locate {
    #[command(flatten)]
    pub key: OneKey,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line is {\"key_b64\":…,\"value_b64\":…,\"context\":…}, as dump prints it; \"key\" and \"value\" may
stand for plain text, and \"context\" may be left out. Lines of one key that follow each other are
its siblings. A line's context is honoured if it is of this key, keyspace and cluster; otherwise,
and without one, --on-conflict says what becomes of values that are there already.
What fails is printed as JSONL on stdout, and the exit code is 12 if only some failed.

Examples:
  kvctl load backup.jsonl
  kvctl dump | kvctl --endpoint other:7400 load -
  kvctl load --tree /srv/www --prefix www/")]
pub(crate) struct Load {
    /// JSONL file; `-` is stdin
    #[arg(value_name = "FILE", required_unless_present = "tree", conflicts_with = "tree")]
    pub file: Option<PathBuf>,
    /// Load every regular file below DIR: its key is the path relative to DIR. Symbolic links are not followed
    #[arg(long, value_name = "DIR")]
    pub tree: Option<PathBuf>,
    /// With --tree: put this before each key
    #[arg(long, value_name = "TEXT", requires = "tree")]
    pub prefix: Option<OsString>,
    /// Keys under way at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub parallel: u16,
    /// What to do where the key has values already
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnConflict::Replace)]
    pub on_conflict: OnConflict,
    #[command(flatten)]
    pub quorum: WriteQuorum,
}

/// What `load` does with a key that has values already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnConflict {
    /// Read the current context first and replace them all
    Replace,
    /// Send no context: the loaded value becomes a sibling. Loading twice makes two
    Sibling,
    /// Leave them
    Skip,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Prints one line for each value: {\"key_b64\":…,\"value_b64\":…,\"context\":…}. Siblings are lines of the
same key and context, one after the other. If a part of the keyspace could not be read from
enough replicas the exit code is 12.

Examples:
  kvctl dump > backup.jsonl
  kvctl dump --prefix www/ --tree /srv/copy      # the reverse of load --tree --prefix
  diff <(kvctl dump --hash) <(kvctl --endpoint other:7400 dump --hash)")]
pub(crate) struct Dump {
    /// Only keys that start so
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<OsString>,
    /// Only this partition
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// Write each value to the file below DIR that its key names, with --prefix taken off
    #[arg(long, value_name = "DIR", conflicts_with = "hash")]
    pub tree: Option<PathBuf>,
    /// Print the SHA-256 of each value and its key instead, in ring order
    #[arg(long)]
    pub hash: bool,
    /// Keys a page
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub page: u16,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Nodes {
    /// List the nodes
    #[command(
        after_help = "Examples:\n  kvctl nodes list\n  kvctl nodes list --state down -o name\n  kvctl nodes list --sort dev"
    )]
    List {
        /// Only nodes in this state
        #[arg(long, value_enum, value_name = "STATE")]
        state: Option<NodeStateFilter>,
        /// Only nodes of this zone
        #[arg(long, value_name = "ZONE")]
        zone: Option<String>,
        /// Order: by a column
        #[arg(long, value_enum, value_name = "COLUMN", default_value_t = NodeOrder::Name)]
        sort: NodeOrder,
    },
    /// Show all that is known of one node
    #[command(
        after_help = "Examples:\n  kvctl nodes show n2\n  kvctl nodes show n2 -o json | jq .data.latency"
    )]
    Show {
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Add nodes to the cluster
    Add(Add),
    /// Take nodes out of the cluster
    Remove(Remove),
    /// Put a new node in the place of another
    Replace(Replace),
    /// Change a node's weight, zone or address
    Set(Set),
    /// Have a node take no more client requests, before it is restarted
    Drain(Drain),
    /// Have a node take client requests again
    #[command(after_help = "Examples:\n  kvctl nodes undrain n4")]
    Undrain {
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Wait until a node is up, in sync, or gone
    Wait(WaitNode),
}

/// A state as `nodes list --state` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeStateFilter {
    Up,
    Down,
    Unknown,
}

/// An order of `nodes list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeOrder {
    Name,
    Zone,
    State,
    /// Largest first
    Share,
    /// Furthest from its fair share first
    Dev,
    /// Furthest behind first
    Lag,
    /// Most first
    Keys,
    /// Fullest first
    Disk,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ring {
    /// Show every partition: who holds it, how much of it is live, and how far behind
    #[command(
        after_help = "Examples:\n  kvctl ring show --lagging         # only where something is missing, or may be\n  kvctl ring show --node n2\n  kvctl ring show --by node         # who owns how much\n  kvctl ring show -o json | jq '.data.partitions[65]'"
    )]
    Show {
        /// Only the partitions this node holds a copy of
        #[arg(long)]
        node: Option<String>,
        /// Only those with a copy that lacks something, or may
        #[arg(long)]
        lagging: bool,
        /// A row for each
        #[arg(long, value_name = "WHAT", default_value = "partition")]
        by: RingRows,
    },
}

/// What `ring show` has a row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RingRows {
    Partition,
    Node,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Scrub {
    /// Start a scrub on every node, or on one; it goes on without kvctl
    #[command(after_help = "Examples:\n  kvctl scrub start\n  kvctl scrub start --node n2")]
    Start {
        /// Only on this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Say how scrubs are going; exit 11 if a record is bad and could not be healed
    #[command(after_help = "Examples:\n  kvctl scrub status\n  kvctl scrub status -o json")]
    Status {
        /// Only on this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
}

/// Which hints.
#[derive(Debug, clap::Args)]
pub(crate) struct HintsOf {
    /// Only what this node keeps
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Only what is for this node
    #[arg(long = "for", value_name = "NODE")]
    pub target: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Hints {
    /// Say what each node keeps, and for whom
    #[command(after_help = "Examples:\n  kvctl hints list\n  kvctl hints list --for n2 -o json")]
    List(HintsOf),
    /// Hand nothing over until `resume`, or until the node restarts
    Pause {
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Hand over again
    Resume {
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Hand over now, without waiting for the next look
    Replay {
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Lose what is kept for a node; needs --yes
    #[command(after_help = "Examples:\n  kvctl hints drop --for n2 --yes")]
    Drop {
        /// Only what this node keeps
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// Whom it is for
        #[arg(long = "for", value_name = "NODE")]
        target: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// List each node's certificate and when it ends
    #[command(
        after_help = "Examples:\n  kvctl certs list\n  kvctl certs list -o json | jq -r '.data[].not_after'"
    )]
    List {
        /// This node alone
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Have every node, or one, read its certificates and access file again; exit 12 if some could not
    #[command(after_help = "Examples:\n  kvctl certs reload\n  kvctl certs reload --node n2")]
    Reload {
        /// This node alone
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Compact {
    /// Start a compaction on every node, or on one; it goes on without kvctl
    #[command(after_help = "Examples:\n  kvctl compact start\n  kvctl compact start --node n2")]
    Start {
        /// Only on this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Say how compactions are going; exit 11 if one broke off
    #[command(after_help = "Examples:\n  kvctl compact status\n  kvctl compact status -o json")]
    Status {
        /// Only on this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Gc {
    /// Have every node, or one, look now for tombstones that may go
    #[command(after_help = "Examples:\n  kvctl gc run\n  kvctl gc run --node n2")]
    Run {
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Say how many tombstones there are, and why; exit 11 if nothing can go now
    #[command(after_help = "Examples:\n  kvctl gc status\n  kvctl gc status -o json")]
    Status {
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Repair {
    /// Have every node, or one, compare with its peers now; it goes on without kvctl
    #[command(after_help = "Examples:\n  kvctl repair start\n  kvctl repair start --node n2")]
    Start {
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Say when nodes last had all the same; exit 11 if two could not be brought level
    #[command(after_help = "Examples:\n  kvctl repair status\n  kvctl repair status -o json")]
    Status {
        /// Only of this node
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keyspaces {
    /// List the keyspaces
    #[command(after_help = "Examples:\n  kvctl keyspaces list\n  kvctl keyspaces list -o name")]
    List,
    /// Show one keyspace
    #[command(after_help = "Examples:\n  kvctl keyspaces show default")]
    Show {
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Make a keyspace
    #[command(
        after_help = "Examples:\n  kvctl keyspaces create billing --n 3 --r 2 --w 3 --mode strict\n  kvctl keyspaces create logs --compression zstd"
    )]
    Create {
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        policy: Policy,
        /// Longest value, bytes [default: 8 MiB]
        #[arg(long, value_name = "BYTES")]
        value_bytes_max: Option<u32>,
    },
    /// Delete a keyspace with all that is in it
    #[command(
        after_help = "Examples:\n  kvctl keyspaces delete logs --dry-run\n  kvctl keyspaces delete logs --yes --force=data-loss"
    )]
    Delete {
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        propose: Propose,
    },
}

/// N, R, W, mode and compression of a keyspace.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Policy {
    /// Copies of each key
    #[arg(long, value_name = "N")]
    pub n: Option<u32>,
    /// Replicas that must answer a get [default: a majority of N]
    #[arg(long, value_name = "N")]
    pub r: Option<u32>,
    /// Replicas that must have a put on disk [default: a majority of N]
    #[arg(long, value_name = "N")]
    pub w: Option<u32>,
    /// Whether fallbacks count toward W [default: sloppy]
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<ModeArg>,
    /// How values are stored and sent between nodes [default: off]
    #[arg(long, value_enum, value_name = "CODEC")]
    pub compression: Option<CompressionArg>,
}

/// A keyspace's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    Sloppy,
    Strict,
}

/// What compresses a keyspace's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionArg {
    /// As they are
    Off,
    /// Quick
    Lz4,
    /// Smaller
    Zstd,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Make a cluster of blank nodes
    Init(Init),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Every node must be running, blank and reachable at its address from every other node. Asks before
it acts; --yes answers.

Examples:
  kvctl cluster init --name prod n1=10.0.1.1:7400 n2=10.0.1.2:7400 n3=10.0.1.3:7400 --zone a,b,c
  kvctl cluster init --name try n1=127.0.0.1:7400 --yes")]
pub(crate) struct Init {
    /// Name of the cluster
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// The members
    #[arg(value_name = "NODE=HOST:PORT", required = true, value_parser = parse_member)]
    pub members: Vec<(String, String)>,
    /// Zone of each member in order, or one for all
    #[arg(long, value_name = "ZONE,…", value_delimiter = ',')]
    pub zone: Vec<String>,
    /// Weight of each member in order, or one for all
    #[arg(long, value_name = "WEIGHT,…", value_delimiter = ',')]
    pub weight: Vec<u32>,
    #[command(flatten)]
    pub policy: Policy,
}

/// A node to be and where it listens.
fn parse_member(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, address)) if !name.is_empty() && !address.is_empty() => {
            Ok((name.to_owned(), address.to_owned()))
        }
        _ => Err("is not NODE=HOST:PORT".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_value_may_start_with_a_hyphen() {
        let cli = Cli::try_parse_from(["kvctl", "put", "k", "-5", "--w", "2"]).unwrap();
        let Command::Put(put) = cli.command else { panic!("not a put") };
        assert_eq!(put.value.unwrap(), "-5");
        assert_eq!(put.quorum.w, Some(2));
    }

    #[test]
    fn a_member_is_a_name_and_an_address() {
        let member = parse_member("n1=127.0.0.1:7400").unwrap();
        assert_eq!(member, ("n1".to_owned(), "127.0.0.1:7400".to_owned()));
        assert!(parse_member("n1").is_err() && parse_member("=x").is_err());
    }
}
