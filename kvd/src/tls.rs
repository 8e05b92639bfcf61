//! A node's certificates: read, checked, and read again while it runs. Whoever connects gets what is
//! in force then; what was agreed on before stays, until it is too old or no longer trusted.

use crate::clock;
use arc_swap::ArcSwap;
use proto::tls::{
    ALPN, ClientTls, Facts, NODE_NAME, TlsError, certificates, client_config, key_for, mismatch,
    provider, roots, span,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, Error, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The files of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Its certificate, and those between it and the CA.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signed the certificates of the nodes.
    pub ca: PathBuf,
    /// Who signed those of clients; none: the same.
    pub client_ca: Option<PathBuf>,
}

/// What secures a node's connections.
pub struct Tls {
    files: TlsFiles,
    now: ArcSwap<InForce>,
    /// Counts how often it was read again.
    generation: watch::Sender<u64>,
}

/// What one reading of the files gave.
pub struct InForce {
    /// For who connects to this node.
    pub server: Arc<ServerConfig>,
    /// For connecting to other nodes.
    pub client: ClientTls,
    /// Its certificate.
    pub facts: Facts,
    clients: Arc<dyn ClientCertVerifier>,
    nodes: Arc<dyn ClientCertVerifier>,
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// Which file, what is wrong with it, and what it should be.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let now = ArcSwap::from_pointee(InForce::read(&files)?);
        Ok(Self { files, now, generation: watch::Sender::new(0) })
    }

    /// Reads the files again. If anything is wrong with them, what is in force stays.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub fn reload(&self) -> Result<Facts, TlsError> {
        let read = InForce::read(&self.files)?;
        let facts = read.facts.clone();
        self.now.store(Arc::new(read));
        self.generation.send_modify(|generation| *generation += 1);
        Ok(facts)
    }

    /// What is in force.
    pub fn now(&self) -> Arc<InForce> {
        self.now.load_full()
    }

    /// Tells when the files were read again.
    pub fn reloads(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

impl InForce {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let of_cert = |why: String| TlsError::Content(files.cert.clone(), why);
        let chain = certificates(&files.cert)?;
        let key = key_for(&files.key, &files.cert)?;
        let nodes = roots(&files.ca)?;
        let mut signers = nodes.clone();
        if let Some(client_ca) = &files.client_ca {
            signers.extend(roots(client_ca)?.roots);
        }
        let facts = Facts::of(&chain[0]).map_err(of_cert)?;
        check_own(&chain, &facts, nodes.clone(), &files.ca).map_err(of_cert)?;

        let verifier = |signers: RootCertStore| {
            WebPkiClientVerifier::builder_with_provider(Arc::new(signers), provider())
                // Who shows none is a client without one. What it may do is decided call by call.
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError::Content(files.ca.clone(), error.to_string()))
        };
        let (verifies_nodes, clients) = (verifier(nodes.clone())?, verifier(signers)?);
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| of_cert(error.to_string()))?
            .with_client_cert_verifier(Arc::clone(&clients))
            .with_single_cert(chain.clone(), key.clone_key());
        let mut server = server.map_err(|error| of_cert(mismatch(&error)))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        let client = client_config(nodes, Some((chain, key))).map_err(of_cert)?;
        let client = ClientTls::new(client, Some(node_name()));
        Ok(Self { server: Arc::new(server), client, facts, clients, nodes: verifies_nodes })
    }

    /// Whether a certificate that was shown some time ago would be accepted today.
    pub fn still_trusts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, between)) = chain.split_first() else { return true };
        self.clients.verify_client_cert(own, between, now()).is_ok()
    }

    /// Whether it is a node's: by its names, and signed by who signs for nodes. Who signs for clients
    /// alone makes no nodes.
    pub fn is_node(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, between)) = chain.split_first() else { return false };
        Facts::of(own).is_ok_and(|facts| facts.is_node())
            && self.nodes.verify_client_cert(own, between, now()).is_ok()
    }
}

fn node_name() -> ServerName<'static> {
    ServerName::try_from(NODE_NAME).unwrap_or_else(|_| unreachable!("it is a DNS name"))
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(clock::now_ms()))
}

/// What the other nodes will find wrong with this node's certificate is better found here, before
/// it is in force.
fn check_own(
    chain: &[CertificateDer<'static>],
    facts: &Facts,
    nodes: RootCertStore,
    ca: &Path,
) -> Result<(), String> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(nodes), provider())
        .build()
        .map_err(|error| error.to_string())?;
    let verdict = verifier.verify_server_cert(&chain[0], &chain[1..], &node_name(), &[], now());
    let Err(error) = verdict else { return Ok(()) };
    let since = |at: i64| now().as_secs().abs_diff(at.max(0) as u64);
    Err(match error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => format!("has expired {} ago", span(since(facts.not_after))),
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => format!(
            "is not valid yet: by the clock of this machine it will be in {}",
            span(since(facts.not_before))
        ),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!(
            "is no node's certificate: among its names ({}) there is no {NODE_NAME}, by which nodes know each other",
            facts.names.join(", ")
        ),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => format!(
            "was signed by {:?}, which is not in {}: the other nodes would refuse it",
            facts.issuer,
            ca.display()
        ),
        other => format!("would be refused by the other nodes: {other}"),
    })
}
