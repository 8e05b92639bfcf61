//! `kvd certs dev`: a CA and what it signs, for trying TLS. The CA's key stays beside its certificate,
//! so that it can sign more; whoever reads that file can make himself a node.

use crate::clock;
use crate::config::CertsFlags;
use anyhow::{Context, bail};
use proto::tls::NODE_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Clocks differ: what is made here is good on a machine that is a little behind.
const BEFORE: Duration = Duration::from_secs(3600);

const DAY: Duration = Duration::from_secs(86_400);
const CA_DAYS: u32 = 3650;

/// The files of one certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Made {
    /// Those of `name` in `dir`, whether they are there or not.
    pub fn of(dir: &Path, name: &str) -> Self {
        Self { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}-key.pem")) }
    }
}

/// Makes what the flags ask for, and says what was made.
pub fn run(flags: &CertsFlags) -> anyhow::Result<()> {
    let or = |given: &[String], usual: &[&str]| match given {
        [] => usual.iter().map(|name| (*name).to_owned()).collect(),
        given => given.to_vec(),
    };
    let nodes: Vec<String> = or(&flags.nodes, &["n1", "n2", "n3"]);
    let clients: Vec<String> = or(&flags.clients, &["admin"]);
    make(&flags.out, &nodes, &flags.hosts, &clients, flags.days)?;
    let dir = flags.out.display();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "CA        {dir}/ca.pem  (its key, {dir}/ca-key.pem, makes nodes: keep it to yourself)"
    )?;
    for name in &nodes {
        writeln!(
            out,
            "node      kvd --tls-ca {dir}/ca.pem --tls-cert {dir}/{name}.pem --tls-key {dir}/{name}-key.pem"
        )?;
    }
    for name in &clients {
        writeln!(
            out,
            "client    kvctl --tls-ca {dir}/ca.pem --tls-cert {dir}/{name}.pem --tls-key {dir}/{name}-key.pem"
        )?;
    }
    Ok(())
}

/// Makes certificates of nodes and clients in `dir`, and the CA that signs them, unless one is there.
pub fn make(
    dir: &Path,
    nodes: &[String],
    hosts: &[String],
    clients: &[String],
    days: u32,
) -> anyhow::Result<()> {
    for name in nodes.iter().chain(clients) {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            bail!("{name:?} cannot be a file's name: take letters, digits, - _ and .");
        }
        if name == "ca" || nodes.iter().chain(clients).filter(|other| *other == name).count() > 1 {
            bail!("{name:?} would be the name of two certificates");
        }
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let issuer = ca(dir)?;
    for name in nodes {
        let usual = [NODE_NAME, name, "localhost", "127.0.0.1", "::1"];
        let mut names: Vec<String> = usual.iter().map(|name| (*name).to_owned()).collect();
        names.extend(hosts.iter().cloned());
        sign(dir, &issuer, name, names, days)?;
    }
    for name in clients {
        sign(dir, &issuer, name, Vec::new(), days)?;
    }
    Ok(())
}

/// The CA in a directory; made if there is none.
fn ca(dir: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let Made { cert, key } = Made::of(dir, "ca");
    if cert.exists() {
        let of = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let pair = KeyPair::from_pem(&of(&key)?)
            .with_context(|| format!("{} is no private key", key.display()))?;
        return Issuer::from_ca_cert_pem(&of(&cert)?, pair)
            .with_context(|| format!("{} is no CA", cert.display()));
    }
    let mut params = params(Vec::new(), CA_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Told apart by people who have made several.
    let name = format!("kvd development CA {:08x}", clock::random_u64() as u32);
    params.distinguished_name.push(DnType::CommonName, name);
    let pair = KeyPair::generate()?;
    let made = params.self_signed(&pair)?;
    write(&key, &pair.serialize_pem(), 0o600)?;
    write(&cert, &made.pem(), 0o644)?;
    Ok(Issuer::new(params, pair))
}

fn sign(
    dir: &Path,
    issuer: &Issuer<'static, KeyPair>,
    name: &str,
    names: Vec<String>,
    days: u32,
) -> anyhow::Result<()> {
    let is_node = !names.is_empty();
    let mut params = params(names, days)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A node is a client of the others.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if is_node {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let pair = KeyPair::generate()?;
    let made = params.signed_by(&pair, issuer)?;
    let files = Made::of(dir, name);
    write(&files.key, &pair.serialize_pem(), 0o600)?;
    write(&files.cert, &made.pem(), 0o644)
}

fn params(names: Vec<String>, days: u32) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(clock::now_ms());
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + DAY * days).into();
    Ok(params)
}

/// Written beside and put in place, so that nobody reads half of it.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let beside = path.with_extension("pem.new");
    let written = || -> std::io::Result<()> {
        let _ = fs::remove_file(&beside); // of a run that was cut off
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}
