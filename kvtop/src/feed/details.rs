//! What a view shows besides the cluster itself, asked for again and again while it is open.

use crate::event::{Event, Feed};
use crate::state::Wanted;
use proto::client::Client;
use proto::v1::{GetLayoutRequest, GetPartitionsRequest, OpsAction, OpsRequest, RepairRequest};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status};

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
        let mut told = Vec::new();
        if now.layout {
            let asked = answered(admin.get_layout(GetLayoutRequest {})).await;
            told.extend(asked.map(|view| Feed::Layout(Box::new(view))));
        }
        if now.ops {
            let request = OpsRequest { action: OpsAction::List.into(), ..Default::default() };
            let asked = answered(admin.ops(request)).await;
            told.extend(asked.map(|reply| Feed::Ops(Box::new(reply))));
        }
        if now.partitions {
            let asked = answered(admin.get_partitions(GetPartitionsRequest::default())).await;
            told.extend(asked.map(|reply| Feed::Partitions(Box::new(reply))));
        }
        if now.repair {
            let request = RepairRequest { start: false, node: String::new() };
            let asked = answered(admin.repair(request)).await;
            told.extend(asked.map(|reply| Feed::Repair(Box::new(reply))));
        }
        for feed in told {
            if events.send(Event::Feed(feed)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep(EVERY), if now.some() => {}
        }
    }
}

async fn answered<T>(asked: impl Future<Output = Result<Response<T>, Status>>) -> Option<T> {
    Some(timeout(ANSWER_MAX, asked).await.ok()?.ok()?.into_inner())
}
