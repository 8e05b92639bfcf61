//! Who may do what. Clients are known by the common name of their certificate; what each may do in
//! which keyspace is a map in a file. Whether a certificate is anybody's is decided before, by TLS.

use super::session::Session;
use crate::cluster::Node;
use crate::cluster::errors;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::{Request, Status};

/// What may be done. Each includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Get and scan.
    Read,
    /// Put and delete too.
    Write,
    /// Change the cluster.
    Admin,
}

impl Right {
    /// As it stands in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// Stands for every keyspace that is not named.
const EVERY: &str = "*";

/// Certificate name → keyspace → right. Without a map everybody may do everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    map: Option<BTreeMap<String, BTreeMap<String, Right>>>,
}

/// Why a map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It cannot be read.
    #[error("access file {0} cannot be read: {1}")]
    Read(PathBuf, std::io::Error),
    /// A line of it is wrong. The text shows the line.
    #[error("access file {0} is not valid\n{1}")]
    Parse(PathBuf, String),
    /// It would let nobody change it.
    #[error("access file {0} makes nobody an admin: give one certificate \"*\" = \"admin\"")]
    NoAdmin(PathBuf),
    /// Admin of one keyspace.
    #[error("access file {0}: {1} is admin of {2} alone; admin is for all: \"*\" = \"admin\"")]
    PartAdmin(PathBuf, String, String),
}

impl Access {
    /// Reads a map.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn load(file: &Path) -> Result<Self, AccessError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| AccessError::Read(file.to_owned(), error))?;
        Self::parse(file, &text)
    }

    fn parse(file: &Path, text: &str) -> Result<Self, AccessError> {
        let map: BTreeMap<String, BTreeMap<String, Right>> = toml::from_str(text)
            .map_err(|error| AccessError::Parse(file.to_owned(), error.to_string()))?;
        for (name, rights) in &map {
            let part = |(keyspace, right): &(&String, &Right)| {
                **right == Right::Admin && keyspace.as_str() != EVERY
            };
            if let Some((keyspace, _)) = rights.iter().find(part) {
                return Err(AccessError::PartAdmin(
                    file.to_owned(),
                    name.clone(),
                    keyspace.clone(),
                ));
            }
        }
        let access = Self { map: Some(map) };
        let is_admin = |name: &String| access.right(name, EVERY) == Some(Right::Admin);
        match access.map.iter().flatten().any(|(name, _)| is_admin(name)) {
            true => Ok(access),
            false => Err(AccessError::NoAdmin(file.to_owned())),
        }
    }

    /// Whether certificates are wanted at all.
    pub fn is_limited(&self) -> bool {
        self.map.is_some()
    }

    fn right(&self, name: &str, keyspace: &str) -> Option<Right> {
        let rights = self.map.as_ref()?.get(name)?;
        rights.get(keyspace).or_else(|| rights.get(EVERY)).copied()
    }

    /// Whether the bearer of a certificate may do this.
    pub fn allows(&self, name: Option<&str>, right: Right, keyspace: &str) -> bool {
        match (&self.map, name) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(name)) => self.right(name, keyspace).is_some_and(|has| has >= right),
        }
    }

    /// Whether he may see how the cluster is: whoever may do anything.
    pub fn knows(&self, name: Option<&str>) -> bool {
        match (&self.map, name) {
            (None, _) => true,
            (Some(map), Some(name)) => map.get(name).is_some_and(|rights| !rights.is_empty()),
            (Some(_), None) => false,
        }
    }
}

/// The session a request came by.
pub fn session<T>(request: &Request<T>) -> Option<&Arc<Session>> {
    request.extensions().get::<Arc<Session>>()
}

/// Refuses a request in a keyspace that its sender may not make.
pub fn check<T>(
    node: &Node,
    request: &Request<T>,
    right: Right,
    keyspace: &str,
) -> Result<(), Status> {
    let name = session(request).and_then(|session| session.name());
    let keyspace = if keyspace.is_empty() { "default" } else { keyspace };
    match node.access.load().allows(name, right, keyspace) {
        true => Ok(()),
        false => Err(refused(name, right, Some(keyspace))),
    }
}

/// The same of a change of the cluster.
pub fn check_admin<T>(node: &Node, request: &Request<T>) -> Result<(), Status> {
    let name = session(request).and_then(|session| session.name());
    match node.access.load().allows(name, Right::Admin, EVERY) {
        true => Ok(()),
        false => Err(refused(name, Right::Admin, None)),
    }
}

/// The same of a look at the cluster.
pub fn check_known<T>(node: &Node, request: &Request<T>) -> Result<(), Status> {
    check_known_to(node, session(request).map(|session| &**session))
}

/// The same of what goes on for a while, as long as it does.
pub fn check_known_to(node: &Node, session: Option<&Session>) -> Result<(), Status> {
    let name = session.and_then(Session::name);
    match node.access.load().knows(name) {
        true => Ok(()),
        false => Err(refused(name, Right::Read, None)),
    }
}

fn refused(name: Option<&str>, right: Right, keyspace: Option<&str>) -> Status {
    let why = match name {
        None => errors::certificate_wanted(),
        Some(name) => errors::not_permitted(name, right.name(), keyspace),
    };
    proto::error::status(&why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = r#"
        ops = { "*" = "admin" }
        [orders]
        orders = "write"
        "*" = "read"
        [audit]
        billing = "read"
    "#;

    fn parse(text: &str) -> Result<Access, AccessError> {
        Access::parse(Path::new("access.toml"), text)
    }

    #[test]
    fn a_right_includes_the_lesser_ones_and_a_named_keyspace_goes_before_the_rest() {
        let access = parse(MAP).unwrap();
        let may = |name, right, keyspace| access.allows(Some(name), right, keyspace);
        assert!(may("orders", Right::Write, "orders") && may("orders", Right::Read, "orders"));
        assert!(may("orders", Right::Read, "billing") && !may("orders", Right::Write, "billing"));
        assert!(!may("orders", Right::Admin, "*"));
        assert!(may("audit", Right::Read, "billing") && !may("audit", Right::Read, "orders"));
        assert!(may("ops", Right::Write, "orders") && may("ops", Right::Admin, "*"));
        assert!(!may("nobody", Right::Read, "orders") && !access.knows(Some("nobody")));
        assert!(!access.allows(None, Right::Read, "orders") && access.knows(Some("audit")));
        assert!(Access::default().allows(None, Right::Admin, "*"));
    }

    #[test]
    fn a_map_that_cannot_be_meant_is_refused_in_words() {
        let why = |text| parse(text).unwrap_err().to_string();
        assert!(why("a = { default = \"read\" }").contains("nobody an admin"));
        assert!(why("a = { default = \"admin\" }").contains("admin of default alone"));
        let unknown = why("\na = { default = \"rw\" }");
        assert!(unknown.contains("line 2") && unknown.contains("rw"), "{unknown}");
        assert!(why("a = 1").contains("line 1"));
    }
}
