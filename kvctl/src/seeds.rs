//! Member addresses of clusters reached before, so that a dead seed does not matter next time.

use crate::time::now_ms;
use crate::value::{hex, sha256};
use proto::v1::ClusterView;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Members change seldom; a command that finds them younger than this asks for nothing.
const FRESH_MS: u64 = 60_000;

/// What is kept for one set of endpoints. The id says which cluster the addresses are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seeds {
    pub cluster_id: String,
    pub addresses: Vec<String>,
    pub at_ms: u64,
}

impl Seeds {
    /// The members of a cluster as it was just seen; none of a blank node.
    pub(crate) fn of_view(view: &ClusterView) -> Option<Self> {
        let addresses: Vec<String> = view.nodes.iter().map(|node| node.address.clone()).collect();
        (!view.id.is_empty() && !addresses.is_empty()).then(|| Self {
            cluster_id: hex(&view.id),
            addresses,
            at_ms: now_ms(),
        })
    }

    /// What is kept for these endpoints. Nothing, if it cannot be read: it is only a cache.
    pub(crate) fn read(folder: &Path, endpoints: &[String]) -> Option<Self> {
        let text = std::fs::read(path(folder, endpoints)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Keeps it. Not being able to is no failure of the command.
    pub(crate) fn write(&self, folder: &Path, endpoints: &[String]) {
        let Ok(text) = serde_json::to_vec(self) else {
            return;
        };
        if std::fs::create_dir_all(folder).is_ok() {
            let _ = crate::value::write_file(&path(folder, endpoints), &text);
        }
    }

    /// Whether it is young enough to be left as it is.
    pub(crate) fn fresh(&self, now_ms: u64) -> bool {
        now_ms.abs_diff(self.at_ms) < FRESH_MS
    }
}

/// The file for a set of endpoints, in whatever order they are given.
pub(crate) fn path(folder: &Path, endpoints: &[String]) -> PathBuf {
    let mut sorted = endpoints.to_vec();
    sorted.sort_unstable();
    let name = &sha256(sorted.join(",").as_bytes())[..16];
    folder.join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_found_again_under_the_same_endpoints() {
        let folder = tempfile::tempdir().unwrap();
        let seeds = Seeds { cluster_id: "5d".into(), addresses: vec!["a:1".into()], at_ms: 1_000 };
        let endpoints = ["x:1".to_owned(), "y:1".to_owned()];
        seeds.write(folder.path(), &endpoints);
        let swapped = [endpoints[1].clone(), endpoints[0].clone()];
        assert_eq!(Seeds::read(folder.path(), &swapped), Some(seeds.clone()));
        assert_eq!(Seeds::read(folder.path(), &endpoints[..1]), None);
        assert!(seeds.fresh(60_999) && !seeds.fresh(61_000));
    }
}
