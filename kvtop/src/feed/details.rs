//! What a view shows besides the cluster itself, asked for again and again while it is open.

use crate::event::{Event, Feed};
use crate::state::Wanted;
use proto::client::Client;
use proto::v1::{GetPartitionsRequest, RepairRequest};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// Time between an answer and the next question.
const EVERY: Duration = Duration::from_secs(2);

/// The node asks every other, and waits for one that is frozen.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Asks one node as long as anybody listens. What it does not answer gets old on screen.
pub(super) async fn run(
    client: Client,
    mut wanted: watch::Receiver<Wanted>,
    events: mpsc::Sender<Event>,
) {
    let mut admin = client.admin();
    loop {
        let now = *wanted.borrow_and_update();
        if now.partitions {
            let asked = admin.get_partitions(GetPartitionsRequest::default());
            if let Ok(Ok(reply)) = timeout(ANSWER_MAX, asked).await {
                let told = Feed::Partitions(Box::new(reply.into_inner()));
                if events.send(Event::Feed(told)).await.is_err() {
                    return;
                }
            }
        }
        if now.repair {
            let asked = admin.repair(RepairRequest { start: false, node: String::new() });
            if let Ok(Ok(reply)) = timeout(ANSWER_MAX, asked).await {
                let told = Feed::Repair(Box::new(reply.into_inner()));
                if events.send(Event::Feed(told)).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep(EVERY), if now.some() => {}
        }
    }
}
