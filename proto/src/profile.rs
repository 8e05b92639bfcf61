//! The part of the config file that kvctl and kvtop share: how clusters are reached. Each leaves alone
//! what it does not know.

use crate::tls::ClientFiles;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Ways to clusters, by name, and what goes for all of them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Profiles {
    /// The one that is used unless another is asked for.
    pub profile: Option<String>,
    /// What goes for all that do not say otherwise.
    #[serde(flatten)]
    pub defaults: Profile,
    /// By name.
    #[serde(default)]
    pub profiles: BTreeMap<String, Profile>,
}

/// A way to one cluster.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Profile {
    /// Its nodes, `host:port`.
    pub endpoints: Option<Vec<String>>,
    /// Start of the id of the only cluster it is for.
    pub cluster_id: Option<String>,
    /// Keyspace of commands that name none.
    pub keyspace: Option<String>,
    /// What secures it.
    #[serde(default)]
    pub tls: TlsPaths,
}

/// Files as a profile names them; relative to the file it stands in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPaths {
    /// Who signed the nodes' certificates.
    pub ca: Option<PathBuf>,
    /// The client's certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

impl Profiles {
    /// The profile of this name; with none, the usual one, if there is one.
    ///
    /// # Errors
    /// In words, if there is none of that name.
    pub fn get(&self, wanted: Option<&str>) -> Result<Profile, String> {
        let Some(name) = wanted.or(self.profile.as_deref()) else {
            return Ok(Profile::default());
        };
        self.profiles.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.profiles.keys().map(String::as_str).collect();
            format!("there is no profile {name}; the config file has: {}", known.join(", "))
        })
    }
}

/// What secures connections: flags, else environment (`KVCTL_TLS_CA`, …), else profile, else file.
pub fn tls_files(
    flags: ClientFiles,
    env: impl Fn(&str) -> Option<String>,
    folder: Option<&Path>,
    profile: &TlsPaths,
    defaults: &TlsPaths,
) -> ClientFiles {
    let beside = |path: &PathBuf| folder.map_or_else(|| path.clone(), |folder| folder.join(path));
    let first = |flag: Option<PathBuf>, name, own: &Option<PathBuf>, usual: &Option<PathBuf>| {
        let env = || env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        flag.or_else(env).or_else(|| own.as_ref().or(usual.as_ref()).map(beside))
    };
    ClientFiles {
        ca: first(flags.ca, "KVCTL_TLS_CA", &profile.ca, &defaults.ca),
        cert: first(flags.cert, "KVCTL_TLS_CERT", &profile.cert, &defaults.cert),
        key: first(flags.key, "KVCTL_TLS_KEY", &profile.key, &defaults.key),
    }
}

/// Where the config file is, and whether it must be there: `KVCTL_CONFIG`, which must, else
/// `kvctl/config.toml` in the directory for configuration.
pub fn config_path(env: impl Fn(&str) -> Option<String>) -> Option<(PathBuf, bool)> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(named) = env("KVCTL_CONFIG") {
        return Some((named.into(), true));
    }
    let base = env("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(&env("HOME")?).join(".config")))?;
    Some((base.join("kvctl").join("config.toml"), false))
}

/// The text of the config file; empty if there is none and need not be.
///
/// # Errors
/// The system's words, if it cannot be read.
pub fn read_config(path: &Path, must_exist: bool) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(String::new()),
        read => read.map_err(|error| error.to_string()),
    }
}

/// `host:port`, with the port every node has unless it is told otherwise.
pub fn with_port(endpoint: &str) -> String {
    let endpoint = endpoint.trim();
    let bare_v6 = endpoint.starts_with('[') && endpoint.ends_with(']');
    if bare_v6 || !endpoint.contains(':') {
        format!("{endpoint}:{}", crate::DEFAULT_PORT)
    } else {
        endpoint.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_port_gets_the_usual_one() {
        assert_eq!(with_port(" db1.example.net "), "db1.example.net:7400");
        assert_eq!(with_port("10.0.0.1:7500"), "10.0.0.1:7500");
        assert_eq!(with_port("[::1]"), "[::1]:7400");
        assert_eq!(with_port("[::1]:7500"), "[::1]:7500");
    }
}
