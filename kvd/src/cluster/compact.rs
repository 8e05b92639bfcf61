//! Compaction as operators see it: they start it, and ask how it is going. The work is done by the
//! store.

use super::errors::Failure;
use super::{Node, survey};
use crate::storage::Compaction;
use proto::v1::{CompactCall, CompactReply, CompactRequest, CompactView, Level, answer, call};
use std::sync::Arc;

/// Tells of compactions that end, as long as the node runs.
pub async fn watch(node: Arc<Node>) {
    let mut compaction = node.store.compaction();
    let mut was_running = false;
    while compaction.changed().await.is_ok() {
        let now = compaction.borrow_and_update().clone();
        if was_running && !now.running {
            let (level, what) = told(&now);
            node.events.add(level, what);
        }
        was_running = now.running;
    }
}

fn told(ended: &Compaction) -> (Level, String) {
    const MIB: u64 = 1024 * 1024;
    if !ended.error.is_empty() {
        return (Level::Degraded, format!("compaction broke off: {}", ended.error));
    }
    let (before, after) = (ended.bytes_before / MIB, ended.bytes_after / MIB);
    (Level::Ok, format!("compaction ended: {before} MiB are now {after} MiB"))
}

/// Starts compactions, or says how they are going, on every node or on one.
pub async fn everywhere(
    node: &Arc<Node>,
    request: CompactRequest,
) -> Result<CompactReply, Failure> {
    let ask = CompactCall { start: request.start };
    let understand = |answer| match answer {
        answer::Body::Compact(view) => Some(view),
        _ => None,
    };
    let body = call::Body::Compact(ask);
    let answers = survey::ask(node, &request.node, body, || here(node, ask), understand).await?;
    let view = |(node, outcome): (String, Result<CompactView, String>)| {
        outcome.unwrap_or_else(|error| CompactView { node, error, ..Default::default() })
    };
    Ok(CompactReply { nodes: answers.into_iter().map(view).collect() })
}

/// The same on this node alone.
pub fn here(node: &Node, ask: CompactCall) -> CompactView {
    if ask.start {
        node.store.compact();
    }
    let now = node.store.compaction().borrow().clone();
    CompactView {
        node: node.name(),
        running: now.running,
        started_at_ms: now.started_at_ms,
        ended_at_ms: now.ended_at_ms,
        progress_ratio: now.ratio,
        files_done: now.files_done as u32,
        files: Compaction::FILES as u32,
        bytes_before: now.bytes_before,
        bytes_after: now.bytes_after,
        error: now.error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_compaction_names_what_it_gave_back_or_why_it_broke_off() {
        let ended =
            Compaction { bytes_before: 9 << 20, bytes_after: 2 << 20, ..Default::default() };
        assert_eq!(told(&ended), (Level::Ok, "compaction ended: 9 MiB are now 2 MiB".into()));
        let broken = Compaction { error: "no room".into(), ..ended };
        assert_eq!(told(&broken), (Level::Degraded, "compaction broke off: no room".into()));
    }
}
