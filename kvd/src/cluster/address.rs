//! A node that is started somewhere else tells the others where, by itself.
//!
//! It remembers where it has been. If the others look for it at one of those places, it has moved;
//! a host name, or another address that an operator gave it, is left as it is.

use super::{Cluster, Node, errors, membership};
use crate::clock;
use crate::dynamo::layout::{Change, Member};
use prost::Message;
use proto::v1::{Change as WireChange, Level, Note, SetNode, change};
use std::sync::Arc;
use std::time::Duration;

const FACT_PLACES: &str = "places";

/// The last places that are remembered; the oldest go.
const PLACES_MAX: usize = 16;

/// So often it is looked where the others look for it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// After a try to tell them that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Where a node has been, as it is stored.
#[derive(Clone, PartialEq, Message)]
struct Places {
    /// The last one last.
    #[prost(string, repeated, tag = "1")]
    all: Vec<String>,
}

impl Places {
    fn with(mut self, own: &str) -> Self {
        self.all.retain(|place| place != own);
        self.all.push(own.to_owned());
        let over = self.all.len().saturating_sub(PLACES_MAX);
        self.all.drain(..over);
        self
    }

    /// Whether the others look for a node, which is at `own`, where it was.
    fn were(&self, own: &str, listed: &str) -> bool {
        own != listed && self.all.iter().any(|place| place == listed)
    }
}

/// Sees that the others know where this node is, as long as it runs.
pub async fn run(node: Arc<Node>) {
    let Ok(stored) = node.store.fact(FACT_PLACES) else { return };
    let before = stored.and_then(|bytes| Places::decode(&bytes[..]).ok()).unwrap_or_default();
    let places = before.clone().with(&node.address);
    if places != before {
        let stored = node.store.put_fact(FACT_PLACES, places.encode_to_vec()).await;
        if !matches!(stored, Ok(Ok(()))) {
            return; // a store that fails stops the node
        }
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Ok(cluster) = node.cluster() else { continue };
        let Some(member) = cluster.layout.member(node.uid) else { continue };
        if !places.were(&node.address, &member.address) || !knows_what_another_does(&cluster) {
            continue;
        }
        if let Err(why) = tell(&node, member).await {
            tracing::warn!(
                why,
                "this node runs at {}, the others look for it at {}, and that could not be changed",
                node.address,
                member.address,
            );
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}

/// It may be that the others have been told meanwhile.
fn knows_what_another_does(cluster: &Cluster) -> bool {
    let same = |history: u64| history == cluster.digest;
    let mut peers = cluster.peers.values();
    peers.len() == 0 || peers.any(|peer| peer.is_usable() && peer.history().is_some_and(same))
}

async fn tell(node: &Arc<Node>, listed: &Member) -> Result<(), String> {
    let (name, from, to) = (&listed.name, &listed.address, &node.address);
    let set = SetNode { node: name.clone(), address: Some(from.clone()), ..SetNode::default() };
    let note = Note {
        by: name.clone(),
        at_ms: clock::now_ms(),
        lines: vec![format!("{name} address {from} → {to}")],
        undo: vec![WireChange { change: Some(change::Change::Set(set)) }],
        ..Note::default()
    };
    let note = note.encode_to_vec();
    let made = membership::commit(node, |history| {
        let head = history.head();
        let now = head.member(node.uid).filter(|member| member.address == listed.address);
        let member = now.ok_or_else(|| errors::plan_stale("it was given another address"))?.clone();
        let moved = Member { address: to.clone(), ..member };
        let child = head.changed(&[Change::Set(moved)], note, None);
        child.map_err(|error| membership::layout_refused(&error))
    });
    made.await.map_err(|failure| format!("{}: {}", failure.what, failure.why))?;
    node.events.add(Level::Ok, format!("{name} moved from {from} to {to}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_moved_if_the_others_look_for_it_where_it_was() {
        let mut places = Places::default();
        for at in 0..=PLACES_MAX {
            places = places.with(&format!("10.0.0.{at}:7400"));
        }
        assert!(places.were("10.0.0.16:7400", "10.0.0.3:7400"));
        assert!(!places.were("10.0.0.3:7400", "10.0.0.3:7400"), "it came back");
        assert!(!places.were("10.0.0.16:7400", "db1.example:7400"), "an operator's word");
        assert!(!places.were("10.0.0.16:7400", "10.0.0.0:7400"), "forgotten");
    }
}
