//! What secures connections: certificates and keys from PEM files, the client's side of TLS, and
//! what went wrong with it in words. The same for clients and for nodes, which are each other's.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage, PeerIncompatible,
    RootCertStore,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Every node's certificate has this name beside those of its hosts: only who shows it is taken for
/// a node, and nodes move between addresses without new certificates.
pub const NODE_NAME: &str = "node.kvd.internal";

/// Protocols that are spoken inside.
pub const ALPN: &[u8] = b"h2";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{0} cannot be read: {1}")]
    Read(PathBuf, io::Error),
    /// A file is not what it should be.
    #[error("{0} {1}")]
    Content(PathBuf, String),
    /// One setting asks for another.
    #[error("{0}")]
    Combination(&'static str),
}

/// The files of a client.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientFiles {
    /// Who signed the nodes' certificates. Turns TLS on.
    pub ca: Option<PathBuf>,
    /// The client's own certificate, and those between it and the CA.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// The client's side of TLS.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files; nothing if none is given.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub fn load(files: &ClientFiles) -> Result<Option<Self>, TlsError> {
        let Some(ca) = &files.ca else {
            return match files.cert.as_ref().or(files.key.as_ref()) {
                None => Ok(None),
                Some(_) => Err(TlsError::Combination(
                    "a client certificate is shown over TLS alone: give the CA that signed the nodes' certificates too",
                )),
            };
        };
        let own = match (&files.cert, &files.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((certificates(cert)?, key_for(key, cert)?)),
            _ => {
                return Err(TlsError::Combination("a certificate and its key go together"));
            }
        };
        let config = client_config(roots(ca)?, own);
        let config = config.map_err(|why| {
            TlsError::Content(files.cert.clone().unwrap_or_else(|| ca.clone()), why)
        })?;
        Ok(Some(Self::new(config, None)))
    }

    /// With this configuration. The server must be `name`; none: the host that is connected to.
    pub fn new(config: ClientConfig, name: Option<ServerName<'static>>) -> Self {
        Self { config: Arc::new(config), name }
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    pub(crate) fn name(&self) -> Option<&ServerName<'static>> {
        self.name.as_ref()
    }
}

/// Trusts `roots`, and shows `own` to who asks.
///
/// # Errors
/// What is wrong with the certificate and key.
pub fn client_config(
    roots: RootCertStore,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match own {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| mismatch(&error))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The one implementation of the algorithms.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What is wrong with a certificate and a key together.
pub fn mismatch(error: &Error) -> String {
    match error {
        Error::InconsistentKeys(_) => "is not the certificate of the key given with it".into(),
        other => format!("cannot be used: {other}"),
    }
}

/// The certificates of a PEM file, the first of them that of its owner.
///
/// # Errors
/// If it cannot be read or has none.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::Content(file.to_owned(), "has no certificate in PEM form".into())),
        Err(error) => Err(TlsError::Content(file.to_owned(), format!("is not PEM: {error}"))),
    }
}

/// The private key of a PEM file. `cert` is for words alone.
///
/// # Errors
/// If it cannot be read or has none.
pub fn key_for(file: &Path, cert: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(file)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let why = match error {
            pem::Error::NoItemsFound => {
                format!("has no private key in PEM form; it should have that of {}", cert.display())
            }
            other => format!("is not PEM: {other}"),
        };
        TlsError::Content(file.to_owned(), why)
    })
}

/// The CAs of a PEM file.
///
/// # Errors
/// If it cannot be read, has none, or one that is no CA.
pub fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| {
            TlsError::Content(file.to_owned(), format!("has what is no CA's certificate: {error}"))
        })?;
    }
    Ok(roots)
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|error| TlsError::Read(file.to_owned(), error))
}

/// What people want to know of a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Who it is for: its common name, or else the first of its other names.
    pub name: String,
    /// All names and addresses it is good for.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// From then on it is good, Unix seconds.
    pub not_before: i64,
    /// Until then, Unix seconds.
    pub not_after: i64,
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn of(certificate: &[u8]) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| format!("is a damaged certificate: {error}"))?;
        let others = parsed.subject_alternative_name().ok().flatten();
        let others = others.iter().flat_map(|others| &others.value.general_names);
        let names: Vec<String> = others.filter_map(name_of).collect();
        let common = |name: &x509_parser::x509::X509Name<'_>| {
            let common = name.iter_common_name().next()?;
            Some(common.as_str().ok()?.to_owned())
        };
        let name = common(parsed.subject()).or_else(|| names.first().cloned()).unwrap_or_default();
        let issuer = common(parsed.issuer()).unwrap_or_else(|| parsed.issuer().to_string());
        let (from, until) = (parsed.validity().not_before, parsed.validity().not_after);
        Ok(Self { name, names, issuer, not_before: from.timestamp(), not_after: until.timestamp() })
    }

    /// Whether it is a node's.
    pub fn is_node(&self) -> bool {
        self.names.iter().any(|name| name == NODE_NAME)
    }
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// What went wrong with a connection, said of the other side: the words can follow its address.
pub fn words(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(error) => of_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "closed the connection before TLS was agreed on".into()
        }
        None => crate::client::root_cause(error),
    }
}

/// Whether it is what secures the connection that went wrong, and not the connection.
pub fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Error>())
}

fn of_tls(error: &Error) -> String {
    use CertificateError as Bad;
    match error {
        Error::InvalidCertificate(bad) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => {
                format!("shows a certificate that has expired{}", when(bad))
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                format!("shows a certificate that is not valid yet{}", when(bad))
            }
            Bad::UnknownIssuer => "shows a certificate that no CA trusted here has signed".into(),
            Bad::BadSignature => "shows a certificate whose signature is wrong".into(),
            Bad::NotValidForName => "shows a certificate for another name".into(),
            Bad::NotValidForNameContext { expected, presented } => {
                // rustls writes `DnsName("x")`.
                let names: Vec<&str> = presented
                    .iter()
                    .map(|name| name.split('"').nth(1).unwrap_or(name.as_str()))
                    .filter(|name| *name != NODE_NAME)
                    .collect();
                let names = if names.is_empty() { "nothing".into() } else { names.join(", ") };
                match expected.to_str() {
                    expected if expected == NODE_NAME => {
                        format!("shows a certificate for {names}, which is no node's")
                    }
                    expected => format!("shows a certificate for {names}, not for {expected}"),
                }
            }
            other => format!("shows a certificate that cannot be accepted: {other}"),
        },
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => "wants a client certificate".into(),
            AlertDescription::UnknownCA => {
                "refuses this side's certificate: signed by no CA it trusts".into()
            }
            AlertDescription::CertificateExpired => {
                "refuses this side's certificate: it has expired, or is not valid yet".into()
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => "refuses this side's certificate".into(),
            AlertDescription::ProtocolVersion => "speaks no version of TLS known here".into(),
            other => format!("refused the connection: {other:?}"),
        },
        // What is spoken is no TLS.
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => "speaks no TLS".into(),
        Error::NoCertificatesPresented => "shows no certificate".into(),
        Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
            "wants a certificate of another kind".into()
        }
        other => format!("cannot agree on TLS: {other}"),
    }
}

fn when(bad: &CertificateError) -> String {
    match bad {
        CertificateError::ExpiredContext { time, not_after } => {
            let ago = time.as_secs().saturating_sub(not_after.as_secs());
            format!(" {} ago", span(ago))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            let ahead = not_before.as_secs().saturating_sub(time.as_secs());
            format!(": by the clock here it will be in {}", span(ahead))
        }
        _ => String::new(),
    }
}

/// Seconds as people say them.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: Error) -> String {
        words(&io::Error::other(error))
    }

    #[test]
    fn what_is_wrong_is_said_of_the_other_side() {
        let name = ServerName::try_from("db1.example.net").unwrap();
        let presented =
            vec!["DnsName(\"db2.example.net\")".to_owned(), format!("DnsName(\"{NODE_NAME}\")")];
        let expected = name.clone();
        let wrong = CertificateError::NotValidForNameContext { expected, presented };
        assert_eq!(
            of(Error::InvalidCertificate(wrong)),
            "shows a certificate for db2.example.net, not for db1.example.net"
        );
        let node = ServerName::try_from(NODE_NAME).unwrap();
        let presented = vec!["DnsName(\"app\")".to_owned()];
        let wrong = CertificateError::NotValidForNameContext { expected: node, presented };
        assert!(of(Error::InvalidCertificate(wrong)).ends_with("for app, which is no node's"));
        let alert = Error::AlertReceived(AlertDescription::CertificateRequired);
        assert_eq!(of(alert), "wants a client certificate");
        assert_eq!(of(Error::InvalidMessage(InvalidMessage::InvalidContentType)), "speaks no TLS");
        assert_eq!(
            [span(5), span(600), span(86_400), span(864_000)],
            ["5 s", "10 min", "24 h", "10 days"]
        );
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        assert!(ClientTls::load(&ClientFiles::default()).unwrap().is_none());
        let only = |ca: Option<&str>, cert: Option<&str>| ClientFiles {
            ca: ca.map(Into::into),
            cert: cert.map(Into::into),
            key: None,
        };
        let refused = |files| ClientTls::load(&files).unwrap_err().to_string();
        assert!(refused(only(None, Some("c.pem"))).contains("give the CA"));
        assert!(refused(only(Some("ca.pem"), Some("c.pem"))).contains("go together"));
        assert!(refused(only(Some("/nonexistent"), None)).contains("cannot be read"));
        assert!(refused(only(Some("Cargo.toml"), None)).contains("no certificate in PEM form"));
    }
}
