//! Bounds what this node works on by what it answers: drives `dynamo::admission`.

use super::{Node, REQUESTS_MAX};
use crate::clock;
use crate::dynamo::admission::Admission;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks at what was answered, as long as the node runs.
pub async fn watch(node: Arc<Node>) {
    let mut admission = Admission::new(REQUESTS_MAX);
    let (mut before, mut looked) = (0, clock::now());
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let now = node.answered.load(Ordering::Relaxed);
        let ms = looked.elapsed().as_millis() as u64;
        if ms == 0 {
            continue;
        }
        admission.answered(now.saturating_sub(before), ms);
        node.admitted.store(admission.limit(), Ordering::Relaxed);
        (before, looked) = (now, clock::now());
    }
}
