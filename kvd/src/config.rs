//! From flags, environment and file to one valid configuration.
//!
//! Built-in defaults < file (TOML) < environment (`KVD_…`) < flags.

use crate::cluster::room::Watermarks;
use crate::cluster::scrub::Pace;
use crate::door::Limits;
use crate::telemetry::LogFormat;
use crate::tls::TlsFiles;
use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How often copies are compared, unless configured: so old may the last match of two nodes be.
const REPAIR_EVERY: Option<Duration> = Some(Duration::from_secs(600));

/// How long a connection lasts, unless configured.
const CONNECTION_AGE: Option<Duration> = Some(Duration::from_secs(3600));

/// See `--connects-per-second-max`.
const CONNECTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(256).unwrap();

/// See `--gc-after`.
pub const GC_AFTER: Duration = Duration::from_secs(600);

/// Runs one node of a kvd cluster.
///
/// A new node is blank and waits to be given a cluster: see `kvctl cluster init`.
/// For a whole cluster on this machine: kvd dev --nodes 3
#[derive(Debug, Parser)]
#[command(name = "kvd", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do other than run one node.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run one node.
    #[command(flatten)]
    pub flags: Flags,
}

/// What kvd does other than run one node.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a real local cluster: separate processes, stopped all together by Ctrl-C.
    ///
    /// Started again on the same directory, the data is still there.
    Dev(DevFlags),
    /// Makes certificates.
    Certs {
        /// Which.
        #[command(subcommand)]
        what: CertsCommand,
    },
}

/// Certificates kvd makes.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Makes a CA, and certificates of nodes and clients that it signs, to try TLS with. Run again, it
    /// makes more under the same CA; certificates of the same names are replaced.
    ///
    /// For real use have your own CA sign: a node's certificate needs node.kvd.internal among its names,
    /// and what clients call its host.
    Dev(CertsFlags),
}

/// Flags of `kvd certs dev`.
#[derive(Clone, Debug, Args)]
pub struct CertsFlags {
    /// Where they are put: ca.pem, NAME.pem and NAME-key.pem.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// A node. Default: n1, n2, n3.
    #[arg(long = "node", value_name = "NAME")]
    pub nodes: Vec<String>,
    /// A name or address by which clients reach the nodes, beside localhost.
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// A client. Default: admin.
    #[arg(long = "client", value_name = "NAME")]
    pub clients: Vec<String>,
    /// How long they are good for.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

/// Flags of `kvd dev`.
#[derive(Clone, Debug, Args)]
pub struct DevFlags {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// Where their data directories are.
    #[arg(long, default_value = ".kvd-dev")]
    pub dir: PathBuf,
    /// Port of the first; the others follow. Default: 7400, or what the directory was made with.
    #[arg(long)]
    pub base_port: Option<u16>,
    /// Spread the nodes over so many zones.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub zones: u16,
    /// Secure it: certificates are made in DIR/certs.
    #[arg(long)]
    pub tls: bool,
}

/// Flags of a node, each with its environment variable.
#[derive(Clone, Debug, Default, Args)]
pub struct Flags {
    /// Configuration file (TOML); its keys are these flags with underscores.
    #[arg(long, env = "KVD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen. Default: 127.0.0.1:7400.
    #[arg(long, env = "KVD_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<Listen>,
    /// Where the other nodes reach this one, if not at the listen address.
    #[arg(long, env = "KVD_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<Advertise>,
    /// The node's data. Made if it is not there. Default: kvd-data.
    #[arg(long, env = "KVD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Memory for database pages, MiB. Default: 256.
    #[arg(long, env = "KVD_CACHE_MIB", value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub cache_mib: Option<u32>,
    /// Memory for recent writes, MiB: they are brought into the database so many at a time.
    /// Up to four times as much may be in use. Default: 32.
    #[arg(long, env = "KVD_WRITE_BUFFER_MIB", value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub write_buffer_mib: Option<u32>,
    /// Room on the disk for hints, the writes kept for another node while it is away, MiB for each
    /// node. Default: 1024.
    #[arg(long, env = "KVD_HINT_MIB", value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub hint_mib: Option<u32>,
    /// Say that the disk fills up from so many percent on. Default: 85.
    #[arg(long, env = "KVD_DISK_WARN_PERCENT", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub disk_warn_percent: Option<u8>,
    /// Refuse client puts from so many percent on; 101: only when the room kept in reserve had to
    /// be used. Default: 95.
    #[arg(long, env = "KVD_DISK_FULL_PERCENT", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=101))]
    pub disk_full_percent: Option<u8>,
    /// How often every record is proven by itself: 12h, 7d, or off. Default: 7d.
    #[arg(long, env = "KVD_SCRUB_EVERY", value_name = "TIME")]
    pub scrub_every: Option<Cycle>,
    /// Prove so many MiB of records a second, at most. Default: 64.
    #[arg(long, env = "KVD_SCRUB_MIB_PER_SECOND", value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub scrub_mib_per_second: Option<u32>,
    /// Fetch so many MiB a second, at most, of copies that move to this node, and less while requests
    /// are slow. `kvctl ops throttle` overrides it everywhere. Default: 64.
    #[arg(long, env = "KVD_TRANSFER_MIB_PER_SECOND", value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub transfer_mib_per_second: Option<u32>,
    /// How often copies are compared with each other node's and made equal by themselves: 30s, 10m,
    /// or off. Default: 10m.
    #[arg(long, env = "KVD_REPAIR_EVERY", value_name = "TIME")]
    pub repair_every: Option<Cycle>,
    /// How long every home must have held a tombstone, and nobody kept a hint for its key, before it
    /// is taken away: 10m, 1d, or off. Less than 2m is for tests: a request under way could bring
    /// back what was deleted. Default: 10m.
    #[arg(long, env = "KVD_GC_AFTER", value_name = "TIME")]
    pub gc_after: Option<Cycle>,
    /// This node's certificate (PEM), with those between it and the CA. Turns TLS on, for clients and
    /// between nodes; among its names must be node.kvd.internal. `kvd certs dev` makes some to try.
    #[arg(long, env = "KVD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "KVD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Who signed the certificates of the nodes (PEM; several while one replaces another).
    #[arg(long, env = "KVD_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Who signed the certificates of clients, beside those who sign for nodes.
    #[arg(long, env = "KVD_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Which client may do what (TOML: certificate name, keyspace, read, write or admin). Without it
    /// everybody who can connect may do everything.
    #[arg(long, env = "KVD_ACCESS", value_name = "FILE")]
    pub access: Option<PathBuf>,
    /// Listen on an address that others can reach although nothing is secured.
    #[arg(long, env = "KVD_INSECURE", num_args = 0..=1, default_missing_value = "true")]
    pub insecure: Option<bool>,
    /// How long a connection lasts, whoever has it: then another is made, with the certificates of that
    /// day. Default: 1h.
    #[arg(long, env = "KVD_CONNECTION_AGE", value_name = "TIME")]
    pub connection_age: Option<Cycle>,
    /// Connections that clients may have, all together. Default: 4096.
    #[arg(long, env = "KVD_CONNECTIONS_MAX", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections_max: Option<u32>,
    /// The same of one address. Default: 1024.
    #[arg(long, env = "KVD_CONNECTIONS_PER_ADDRESS_MAX", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections_per_address_max: Option<u32>,
    /// Connections that one address may make in a second, once it has made as many as it may have; others
    /// wait. Default: 256.
    #[arg(long, env = "KVD_CONNECTS_PER_SECOND_MAX", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connects_per_second_max: Option<u32>,
    /// Memory for what clients send and are sent, MiB; a request beyond it is refused. Default: 256.
    #[arg(long, env = "KVD_CLIENT_MIB", value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    pub client_mib: Option<u32>,
    /// What to log: error, warn, info, debug, or a filter such as kvd=debug. Default: info.
    #[arg(long, env = "KVD_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How log lines look.
    #[arg(long, env = "KVD_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Stop, as on SIGTERM, when standard input ends: ties the node to the process that holds
    /// the other end.
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,
}

/// The same keys, as a file has them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<Listen>,
    advertise: Option<Advertise>,
    data_dir: Option<PathBuf>,
    #[serde(default, deserialize_with = "cache_mib")]
    cache_mib: Option<u32>,
    #[serde(default, deserialize_with = "write_buffer_mib")]
    write_buffer_mib: Option<u32>,
    #[serde(default, deserialize_with = "hint_mib")]
    hint_mib: Option<u32>,
    #[serde(default, deserialize_with = "disk_warn_percent")]
    disk_warn_percent: Option<u8>,
    #[serde(default, deserialize_with = "disk_full_percent")]
    disk_full_percent: Option<u8>,
    scrub_every: Option<Cycle>,
    #[serde(default, deserialize_with = "scrub_mib_per_second")]
    scrub_mib_per_second: Option<u32>,
    #[serde(default, deserialize_with = "transfer_mib_per_second")]
    transfer_mib_per_second: Option<u32>,
    repair_every: Option<Cycle>,
    gc_after: Option<Cycle>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
    tls_client_ca: Option<PathBuf>,
    access: Option<PathBuf>,
    insecure: Option<bool>,
    connection_age: Option<Cycle>,
    #[serde(default, deserialize_with = "connections_max")]
    connections_max: Option<u32>,
    #[serde(default, deserialize_with = "connections_per_address_max")]
    connections_per_address_max: Option<u32>,
    #[serde(default, deserialize_with = "connects_per_second_max")]
    connects_per_second_max: Option<u32>,
    #[serde(default, deserialize_with = "client_mib")]
    client_mib: Option<u32>,
    log: Option<String>,
    log_format: Option<LogFormat>,
}

/// One valid configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the others reach this node; `None`: where it listens.
    pub advertise: Option<String>,
    /// The node's data.
    pub data_dir: PathBuf,
    /// Memory for database pages, bytes.
    pub cache_bytes: usize,
    /// Memory for recent writes, bytes.
    pub write_buffer_bytes: usize,
    /// Room on the disk for hints, bytes for each node.
    pub hint_bytes_max: u64,
    /// When the disk counts as filling up, and as full.
    pub watermarks: Watermarks,
    /// How often every record is proven, and how fast.
    pub scrub: Pace,
    /// What it fetches of copies that move to it, bytes a second at most.
    pub transfer_bytes_per_second: u64,
    /// How often copies are compared with each other node's; `None`: never.
    pub repair_every: Option<Duration>,
    /// How long every home must have held a tombstone before it is taken away; `None`: never.
    pub gc_after: Option<Duration>,
    /// The files that secure it; none: nothing does.
    pub tls: Option<TlsFiles>,
    /// Which client may do what; none: everybody everything.
    pub access: Option<PathBuf>,
    /// Who may come in.
    pub limits: Limits,
    /// Memory for what clients send and are sent, bytes.
    pub client_bytes: usize,
    /// What to log.
    pub log: String,
    /// How.
    pub log_format: LogFormat,
    /// Stop when standard input ends.
    pub stop_with_stdin: bool,
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {0} cannot be read: {1}")]
    Read(PathBuf, std::io::Error),
    /// A line of it is wrong. The text shows the line.
    #[error("configuration file {0} is not valid\n{1}")]
    Parse(PathBuf, String),
    /// Two settings do not go together.
    #[error("{0}")]
    Combination(&'static str),
}

impl Config {
    /// Puts flags (and environment) over the file over the defaults.
    pub fn resolve(flags: Flags) -> Result<Self, ConfigError> {
        let file = flags.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let listen = flags.listen.or(file.listen).map_or(default_listen(), |listen| listen.0);
        let advertise = flags.advertise.or(file.advertise).map(|advertise| advertise.0);
        if advertise.is_none() && listen.ip().is_unspecified() {
            return Err(ConfigError::Combination(
                "a node that listens on every address must be told which one the others reach it at: --advertise HOST:PORT",
            ));
        }
        let tls = tls_files(
            flags.tls_cert.or(file.tls_cert),
            flags.tls_key.or(file.tls_key),
            flags.tls_ca.or(file.tls_ca),
            flags.tls_client_ca.or(file.tls_client_ca),
        )?;
        let access = flags.access.or(file.access);
        if access.is_some() && tls.is_none() {
            return Err(ConfigError::Combination(
                "clients are known by their certificates: --access needs --tls-cert, --tls-key and --tls-ca",
            ));
        }
        let insecure = flags.insecure.or(file.insecure).unwrap_or_default();
        if tls.is_none() && !insecure && !listen.ip().is_loopback() {
            return Err(ConfigError::Combination(
                "others can reach this address, and nothing is secured: give --tls-cert, --tls-key and --tls-ca (kvd certs dev makes some to try), or say --insecure",
            ));
        }
        let age = flags.connection_age.or(file.connection_age).map_or(CONNECTION_AGE, |it| it.0);
        let Some(age) = age else {
            return Err(ConfigError::Combination(
                "connection_age cannot be off: with old connections old certificates would go on",
            ));
        };
        let limits = Limits {
            connections: flags.connections_max.or(file.connections_max).unwrap_or(4096) as usize,
            connections_per_address: flags
                .connections_per_address_max
                .or(file.connections_per_address_max)
                .unwrap_or(1024) as usize,
            connects_per_second: flags
                .connects_per_second_max
                .or(file.connects_per_second_max)
                .and_then(NonZeroU32::new)
                .unwrap_or(CONNECTS_PER_SECOND),
            age,
        };
        Ok(Self {
            listen,
            advertise,
            tls,
            access,
            limits,
            client_bytes: flags.client_mib.or(file.client_mib).unwrap_or(256) as usize
                * 1024
                * 1024,
            data_dir: flags.data_dir.or(file.data_dir).unwrap_or_else(|| "kvd-data".into()),
            cache_bytes: flags.cache_mib.or(file.cache_mib).unwrap_or(256) as usize * 1024 * 1024,
            write_buffer_bytes: flags.write_buffer_mib.or(file.write_buffer_mib).unwrap_or(32)
                as usize
                * 1024
                * 1024,
            hint_bytes_max: u64::from(flags.hint_mib.or(file.hint_mib).unwrap_or(1024))
                * 1024
                * 1024,
            watermarks: Watermarks {
                warn: flags.disk_warn_percent.or(file.disk_warn_percent).unwrap_or(85),
                full: flags.disk_full_percent.or(file.disk_full_percent).unwrap_or(95),
            },
            scrub: Pace {
                every: flags.scrub_every.or(file.scrub_every).unwrap_or_default().0,
                bytes_per_second: u64::from(
                    flags.scrub_mib_per_second.or(file.scrub_mib_per_second).unwrap_or(64),
                ) * 1024
                    * 1024,
            },
            transfer_bytes_per_second: u64::from(
                flags.transfer_mib_per_second.or(file.transfer_mib_per_second).unwrap_or(64),
            ) * 1024
                * 1024,
            repair_every: flags.repair_every.or(file.repair_every).map_or(REPAIR_EVERY, |it| it.0),
            gc_after: flags.gc_after.or(file.gc_after).map_or(Some(GC_AFTER), |it| it.0),
            log: flags.log.or(file.log).unwrap_or_else(|| "info".into()),
            log_format: flags.log_format.or(file.log_format).unwrap_or_default(),
            stop_with_stdin: flags.stop_with_stdin,
        })
    }
}

/// All three, or none.
fn tls_files(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    client_ca: Option<PathBuf>,
) -> Result<Option<TlsFiles>, ConfigError> {
    match (cert, key, ca) {
        (Some(cert), Some(key), Some(ca)) => Ok(Some(TlsFiles { cert, key, ca, client_ca })),
        (None, None, None) if client_ca.is_none() => Ok(None),
        _ => Err(ConfigError::Combination(
            "TLS needs all of --tls-cert, --tls-key and --tls-ca: a node shows its certificate, and asks for those of the others",
        )),
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], proto::DEFAULT_PORT))
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Read(path.to_owned(), error))?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse(path.to_owned(), error.to_string()))
}

fn cache_mib<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    whole(from, "cache_mib", 1_048_576)
}

fn disk_warn_percent<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u8>, D::Error> {
    Ok(whole(from, "disk_warn_percent", 100)?.map(|percent| percent as u8))
}

fn disk_full_percent<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u8>, D::Error> {
    Ok(whole(from, "disk_full_percent", 101)?.map(|percent| percent as u8))
}

fn write_buffer_mib<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    whole(from, "write_buffer_mib", 65_536)
}

fn hint_mib<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    whole(from, "hint_mib", 16_777_216)
}

fn transfer_mib_per_second<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    whole(from, "transfer_mib_per_second", 65_536)
}

fn connections_max<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    whole(from, "connections_max", 1_000_000)
}

fn connections_per_address_max<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<u32>, D::Error> {
    whole(from, "connections_per_address_max", 1_000_000)
}

fn connects_per_second_max<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    whole(from, "connects_per_second_max", 1_000_000)
}

fn client_mib<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match whole(from, "client_mib", 1_048_576)? {
        Some(mib @ ..64) => {
            Err(de::Error::custom(format!("client_mib is 64 to 1048576, not {mib}")))
        }
        mib => Ok(mib),
    }
}

fn scrub_mib_per_second<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    whole(from, "scrub_mib_per_second", 65_536)
}

/// A whole number from 1 to `max`.
fn whole<'de, D: Deserializer<'de>>(
    from: D,
    name: &str,
    max: u32,
) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(from)? {
        number if (1..=max).contains(&number) => Ok(Some(number)),
        other => Err(de::Error::custom(format!("{name} is 1 to {max}, not {other}"))),
    }
}

/// An address to listen on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listen(SocketAddr);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| format!("{text:?} is not IP:PORT, such as 127.0.0.1:7400"))
    }
}

/// An address others can reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advertise(String);

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let port = port.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port > 0);
        match port {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(format!("{text:?} is not HOST:PORT, such as db1.example.net:7400")),
        }
    }
}

/// How often something is done; `None`: never.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cycle(Option<Duration>);

impl Default for Cycle {
    fn default() -> Self {
        Self(Some(Duration::from_secs(7 * 24 * 3600)))
    }
}

impl FromStr for Cycle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text, "off" | "0") {
            return Ok(Self(None));
        }
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(24 * 3600),
            _ => None,
        };
        let number = number.parse::<u32>().ok().filter(|number| (1..=36_500).contains(number));
        match number.zip(factor) {
            Some((number, factor)) => {
                Ok(Self(Some(Duration::from_secs(u64::from(number) * factor))))
            }
            None => {
                Err(format!("{text:?} is not a time of up to 36500d, such as 12h or 7d, or off"))
            }
        }
    }
}

/// Lets a type that parses from text be read from a file, with the same error.
macro_rules! deserialize_from_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                from.deserialize_str(Text)
            }
        }
    )*};
}

deserialize_from_text!(Listen, Advertise, Cycle);

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, Flags) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvd.toml");
        std::fs::write(&path, text).unwrap();
        (dir, Flags { config: Some(path), ..Default::default() })
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let (_dir, flags) = file("listen = \"127.0.0.1:9000\"\ncache_mib = 7\n");
        let flags = Flags { listen: Some("127.0.0.1:9001".parse().unwrap()), ..flags };
        let config = Config::resolve(flags).unwrap();
        assert_eq!(config.listen.port(), 9001);
        assert_eq!(config.cache_bytes, 7 << 20);
        assert_eq!(config.data_dir, Path::new("kvd-data"));
    }

    #[test]
    fn a_bad_value_names_file_line_key_and_what_is_allowed() {
        for (text, expected) in [
            ("\nlisten = \"here\"\n", &["kvd.toml", "line 2", "listen", "is not IP:PORT"][..]),
            ("listne = 1\n", &["line 1", "listne", "listen"]),
            ("cache_mib = 0\n", &["line 1", "cache_mib is 1 to 1048576"]),
            ("scrub_every = \"soon\"\n", &["line 1", "\"soon\" is not a time"]),
            ("scrub_mib_per_second = 0\n", &["line 1", "scrub_mib_per_second is 1 to 65536"]),
        ] {
            let (_dir, flags) = file(text);
            let error = Config::resolve(flags).unwrap_err().to_string();
            assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn a_cycle_is_read_as_people_write_it() {
        let seconds = |text: &str| {
            let cycle = text.parse::<Cycle>().ok()?;
            Some(cycle.0.map(|every| every.as_secs()))
        };
        for (text, expected) in
            [("2s", 2), ("5m", 300), ("12h", 43_200), ("7d", 604_800), ("36500d", 3_153_600_000)]
        {
            assert_eq!(seconds(text), Some(Some(expected)), "{text}");
        }
        assert_eq!([seconds("off"), seconds("0")], [Some(None), Some(None)]);
        for bad in ["", "7", "d", "0d", "-1d", "1.5h", "36501d", "1w", "99999999999d"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        assert_eq!(Cycle::default(), "7d".parse().unwrap());
    }

    #[test]
    fn what_others_can_reach_is_secured_or_said_to_be_insecure() {
        let why = |flags: Flags| Config::resolve(flags).unwrap_err().to_string();
        let open = Flags { listen: Some("10.0.0.1:7400".parse().unwrap()), ..Default::default() };
        assert!(why(open.clone()).contains("--insecure"));
        assert!(Config::resolve(Flags { insecure: Some(true), ..open.clone() }).is_ok());
        let tls = Flags {
            tls_cert: Some("c".into()),
            tls_key: Some("k".into()),
            tls_ca: Some("ca".into()),
            ..open
        };
        assert!(Config::resolve(tls.clone()).unwrap().tls.is_some());
        assert!(why(Flags { tls_ca: None, ..tls }).contains("all of"));
        let access = Some("a.toml".into());
        assert!(why(Flags { access, ..Default::default() }).contains("--access needs"));
        let age = Some("off".parse().unwrap());
        assert!(why(Flags { connection_age: age, ..Default::default() }).contains("cannot be off"));
    }

    #[test]
    fn listening_everywhere_needs_an_address_to_tell_the_others() {
        let listen = Some("0.0.0.0:7400".parse().unwrap());
        let flags = Flags { listen, insecure: Some(true), ..Default::default() };
        assert!(Config::resolve(flags.clone()).unwrap_err().to_string().contains("--advertise"));
        let advertise = Some("db1:7400".parse().unwrap());
        assert!(Config::resolve(Flags { advertise, ..flags }).is_ok());
    }
}
