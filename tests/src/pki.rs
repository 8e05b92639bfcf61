//! Certificate authorities of a test's own, and what they sign: right certificates, and wrong ones of
//! every kind.

use proto::tls::NODE_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What is signed, unless changed: a node's certificate that is good today.
#[derive(Clone)]
pub struct Leaf {
    /// Its common name.
    pub name: String,
    /// Its other names.
    pub names: Vec<String>,
    /// From when it is good.
    pub from: SystemTime,
    /// Until when.
    pub until: SystemTime,
}

impl Leaf {
    /// A node's.
    pub fn node(name: &str) -> Self {
        let names = [NODE_NAME, name, "localhost", "127.0.0.1"];
        Self { names: names.map(str::to_owned).into(), ..Self::client(name) }
    }

    /// A client's.
    pub fn client(name: &str) -> Self {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        Self { name: name.into(), names: Vec::new(), from: now - hour, until: now + hour }
    }
}

impl Ca {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its certificate, in PEM form.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate and puts `FILE.pem` and `FILE-key.pem` into a directory.
    pub fn sign(&self, dir: &Path, file: &str, leaf: &Leaf) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(leaf.names.clone()).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, leaf.name.as_str());
        (params.not_before, params.not_after) = (leaf.from.into(), leaf.until.into());
        let pair = KeyPair::generate().expect("a key");
        let made = params.signed_by(&pair, &self.issuer).expect("a certificate");
        let cert = dir.join(format!("{file}.pem"));
        let key = dir.join(format!("{file}-key.pem"));
        put(&cert, &made.pem());
        put(&key, &pair.serialize_pem());
        (cert, key)
    }
}

/// Puts a file in place in one step: who reads it meanwhile gets the old one or the new one.
pub fn put(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("a file");
    fs::rename(&beside, path).expect("its place");
}
