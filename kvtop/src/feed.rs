//! The network: finds a node that answers, follows its view of the cluster, goes on through
//! another when that one dies. It runs beside the input loop and only ever sends it events.

mod details;

use crate::args::Way;
use crate::event::{Event, Feed};
use crate::state::{Millis, Wanted};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::client::Client;
use proto::dial::Dial;
use proto::tls::{ClientFiles, ClientTls};
use proto::v1::{ClusterView, GetClusterRequest, NodeState, WatchClusterRequest};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Events under way to the input loop. When it is full the network waits.
const EVENTS_MAX: usize = 16;

/// A node has this long to take the connection, and as long again to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Wait this long for one endpoint before the next is tried beside it.
const RACE_STEP: Duration = Duration::from_millis(200);

const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A stream is lost when it is silent this long, or for three intervals.
const SILENCE_MIN: Duration = Duration::from_secs(2);

/// The input loop's end of the feed. The network stops when it is dropped.
#[derive(Debug)]
pub struct Handle {
    pub events: mpsc::Receiver<Event>,
    interval: watch::Sender<Millis>,
    wanted: watch::Sender<Wanted>,
}

impl Handle {
    /// Asks for samples at `interval`.
    pub fn pace(&self, interval: Millis) {
        self.interval.send_replace(interval);
    }

    /// Asks for this besides, from now on.
    pub fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|now| {
            let changes = *now != wanted;
            *now = wanted;
            changes
        });
    }
}

/// Starts the network side, which first tries the endpoints of `way`.
pub fn start(way: Way, interval: Millis) -> Handle {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let (pace, paced) = watch::channel(interval);
    let (want, wanted) = watch::channel(Wanted::default());
    let follower = Follower {
        given: way.endpoints,
        tls: way.tls,
        learned: Vec::new(),
        cluster: None,
        interval: paced,
        wanted,
        events: sender,
    };
    tokio::spawn(follower.run());
    Handle { events, interval: pace, wanted: want }
}

struct Follower {
    given: Vec<String>,
    tls: ClientFiles,
    /// Addresses of all members, those that are up first.
    learned: Vec<String>,
    /// Id of the cluster that is followed.
    cluster: Option<Vec<u8>>,
    interval: watch::Receiver<Millis>,
    wanted: watch::Receiver<Wanted>,
    events: mpsc::Sender<Event>,
}

/// A node that answered, with its answer.
struct Found {
    endpoint: String,
    client: Client,
    view: ClusterView,
}

impl Follower {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut lost = None;
        while !self.events.is_closed() {
            let found = tokio::select! {
                found = self.find(lost.as_deref()) => found,
                () = self.events.closed() => return,
            };
            let lasted = match found {
                Some(found) => {
                    let endpoint = found.endpoint.clone();
                    let (samples, why) = self.follow(found).await;
                    self.tell(Feed::Lost { endpoint: endpoint.clone(), why }).await;
                    lost = Some(endpoint);
                    samples > 1
                }
                None => {
                    self.tell(Feed::Exhausted).await;
                    false
                }
            };
            if lasted {
                pause = PAUSE_MIN;
                continue;
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The first node to answer. One of another cluster will do only if no other answers.
    async fn find(&self, lost: Option<&str>) -> Option<Found> {
        let endpoints = self.endpoints(lost);
        let total = endpoints.len();
        let mut waiting = (1..).zip(endpoints).peekable();
        let mut racing = FuturesUnordered::new();
        let mut stranger = None;
        loop {
            match waiting.next() {
                Some((position, endpoint)) => {
                    self.tell(Feed::Trying { endpoint: endpoint.clone(), position, total }).await;
                    racing.push(ask(endpoint, &self.tls));
                }
                None if racing.is_empty() => return stranger,
                None => {}
            }
            let outcome = tokio::select! {
                outcome = racing.next() => outcome,
                () = sleep(RACE_STEP), if waiting.peek().is_some() => None,
            };
            match outcome {
                Some(Ok(found)) if self.is_ours(&found.view) => return Some(found),
                Some(Ok(found)) => stranger = stranger.or(Some(found)),
                Some(Err((endpoint, why))) => self.tell(Feed::Failed { endpoint, why }).await,
                None => {}
            }
        }
    }

    /// Passes on what the node says until it stops; the number of samples, and why it stopped.
    async fn follow(&mut self, found: Found) -> (usize, String) {
        let mut admin = found.client.admin();
        // Ends with this node: when the set is dropped.
        let mut asking = JoinSet::new();
        asking.spawn(details::run(found.client.clone(), self.wanted.clone(), self.events.clone()));
        let mut last_event = self.take(found.view, true).await;
        let mut samples = 1;
        loop {
            let interval = *self.interval.borrow_and_update();
            let request =
                WatchClusterRequest { interval_ms: interval as u32, events_since: last_event };
            let mut stream = match timeout(ANSWER_MAX, admin.watch_cluster(request)).await {
                Ok(Ok(reply)) => reply.into_inner(),
                Ok(Err(status)) => return (samples, status.message().to_owned()),
                Err(_) => return (samples, "did not answer".into()),
            };
            let silence = SILENCE_MIN.max(Duration::from_millis(3 * interval));
            loop {
                let message = tokio::select! {
                    message = timeout(silence, stream.message()) => message,
                    Ok(()) = self.interval.changed() => break,
                    () = self.events.closed() => return (samples, String::new()),
                };
                match message {
                    Ok(Ok(Some(view))) => {
                        last_event = last_event.max(self.take(view, false).await);
                        samples += 1;
                    }
                    Ok(Ok(None)) => return (samples, "it ended the stream".into()),
                    Ok(Err(status)) => return (samples, proto::client::root_cause(&status)),
                    Err(_) => return (samples, format!("silent for {} s", silence.as_secs())),
                }
            }
        }
    }

    /// Passes a sample on; the number of its last event.
    async fn take(&mut self, view: ClusterView, opened: bool) -> u64 {
        self.learn(&view);
        let last_event = view.events.iter().map(|event| event.seq).max().unwrap_or(0);
        self.tell(Feed::Sample { view: Box::new(view), opened }).await;
        last_event
    }

    fn learn(&mut self, view: &ClusterView) {
        if !view.id.is_empty() {
            self.cluster = Some(view.id.to_vec());
        }
        let up = |wanted: bool| {
            let nodes = view.nodes.iter();
            nodes
                .filter(move |node| (node.state() == NodeState::Up) == wanted)
                .map(|node| node.address.clone())
        };
        self.learned = up(true).chain(up(false)).filter(|address| !address.is_empty()).collect();
    }

    fn is_ours(&self, view: &ClusterView) -> bool {
        self.cluster.as_ref().is_none_or(|id| *id == view.id)
    }

    /// Every endpoint once: members that are up, members that are not, those given at the start;
    /// the one that was just lost comes last.
    fn endpoints(&self, lost: Option<&str>) -> Vec<String> {
        let mut endpoints: Vec<String> = Vec::new();
        for endpoint in self.learned.iter().chain(&self.given) {
            if !endpoints.contains(endpoint) {
                endpoints.push(endpoint.clone());
            }
        }
        endpoints.sort_by_key(|endpoint| lost == Some(endpoint.as_str()));
        endpoints
    }

    async fn tell(&self, feed: Feed) {
        // An error means that the input loop is gone; `run` notices.
        let _ = self.events.send(Event::Feed(feed)).await;
    }
}

/// Connects and asks for the cluster. A frozen process still takes connections, so only an answer
/// counts.
async fn ask(endpoint: String, tls: &ClientFiles) -> Result<Found, (String, String)> {
    let dial = match ClientTls::load(tls) {
        Ok(tls) => Dial { tls, from: None },
        Err(error) => return Err((endpoint, format!("is not connected to: {error}"))),
    };
    let at = std::slice::from_ref(&endpoint);
    let client = match Client::connect_by(&dial, at, ANSWER_MAX).await {
        Ok(client) => client,
        Err(unreachable) => {
            let why = unreachable.tried.into_iter().map(|(_, why)| why).next().unwrap_or_default();
            return Err((endpoint, why));
        }
    };
    let mut admin = client.admin();
    let asked = timeout(ANSWER_MAX, admin.get_cluster(GetClusterRequest { events_since: 0 })).await;
    match asked {
        Ok(Ok(reply)) => Ok(Found { endpoint, client, view: reply.into_inner() }),
        Ok(Err(status)) => Err((endpoint, status.message().to_owned())),
        Err(_) => Err((endpoint, format!("did not answer within {} s", ANSWER_MAX.as_secs()))),
    }
}

/// Between half of `pause` and all of it: many dashboards must not knock in step.
fn jittered(pause: Duration) -> Duration {
    let chance = getrandom::u64().unwrap_or(0) as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::NodeView;

    #[test]
    fn members_that_are_up_are_tried_first_and_the_lost_one_last() {
        let node = |address: &str, state: NodeState| NodeView {
            address: address.into(),
            state: state as i32,
            ..Default::default()
        };
        let mut follower = Follower {
            given: vec!["a:1".into(), "seed:9".into()],
            tls: ClientFiles::default(),
            learned: Vec::new(),
            cluster: None,
            interval: watch::channel(1_000).1,
            wanted: watch::channel(Wanted::default()).1,
            events: mpsc::channel(1).0,
        };
        assert_eq!(follower.endpoints(None), ["a:1", "seed:9"]);
        follower.learn(&ClusterView {
            nodes: vec![
                node("a:1", NodeState::Up),
                node("b:1", NodeState::Down),
                node("c:1", NodeState::Up),
            ],
            ..Default::default()
        });
        assert_eq!(follower.endpoints(Some("a:1")), ["c:1", "b:1", "seed:9", "a:1"]);
    }
}
