//! Whether this node's copies count in gets: not after it lost data, until it is level again.
//! Drives `dynamo::vote`.

use super::{Cluster, Node};
use crate::clock;
use crate::dynamo::node::Uid;
use crate::dynamo::vote;
use crate::storage::identity::Directory;
use proto::v1::Level;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A node's vote.
#[derive(Debug)]
pub struct Vote {
    given: AtomicBool,
    /// Rounds that began before do not count: what was lost was lost then.
    withdrawn: Mutex<Instant>,
}

impl Vote {
    /// As the last start left it.
    pub fn of(directory: &Directory) -> Self {
        let given = AtomicBool::new(!directory.has_lost_data());
        Self { given, withdrawn: Mutex::new(clock::now()) }
    }

    /// Whether the node's copies count.
    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// The node has lost data, and its directory remembers it.
    pub fn withdraw(&self) {
        *lock(&self.withdrawn) = clock::now();
        self.given.store(false, Ordering::Release);
    }

    /// When the node lost its vote.
    pub fn withdrawn(&self) -> Instant {
        *lock(&self.withdrawn)
    }
}

/// Gives the vote back if the node is level, having compared all it shares with each of `matched`
/// since `withdrawn`, when it lost it.
pub async fn regain(
    node: &Arc<Node>,
    cluster: &Cluster,
    withdrawn: Instant,
    matched: &BTreeSet<Uid>,
) {
    if node.vote.is_given() || !vote::is_level(&cluster.history, node.uid, matched) {
        return;
    }
    let this = Arc::clone(node);
    let remembered = tokio::task::spawn_blocking(move || {
        let mut directory = this.directory();
        // Not if it has lost data again meanwhile.
        if this.vote.withdrawn() != withdrawn {
            return Ok(false);
        }
        directory.is_level()?;
        this.vote.given.store(true, Ordering::Release);
        Ok::<_, crate::storage::identity::DirectoryError>(true)
    });
    match remembered.await {
        Ok(Ok(true)) => {
            let with = cluster.names_of(matched).join(", ");
            let text =
                format!("what was lost here has come back from {with}: gets count this node again");
            node.events.add(Level::Ok, text);
        }
        Ok(Ok(false)) | Err(_) => {} // the next round tells, or the node stops
        Ok(Err(error)) => tracing::error!(%error, "cannot remember that this node is level"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
