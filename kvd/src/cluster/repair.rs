//! Anti-entropy: this node compares its copies with those of every node it shares partitions with,
//! and makes equal what differs. So a replica that missed writes gets them though nobody reads.
//!
//! A round with one peer costs a call for each keyspace when nothing differs. Rounds come one
//! after the other, by themselves within a goal interval, soon after a peer has come up, and when
//! an operator asks. Both nodes of a pair do rounds of their own; what both repair at the same
//! time is joined twice, which changes nothing.

use super::coordinator::{merge_here, merge_on, read_copy};
use super::errors::Failure;
use super::lane::{CallError, Lane};
use super::peers::Peer;
use super::{Cluster, Node, survey, tree, vote};
use crate::clock;
use crate::dynamo::compare::{Descent, SPANS_MAX, Unlike, differing_keys, shared};
use crate::dynamo::key::Key;
use crate::dynamo::merkle::{Digest, Span};
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use bytes::Bytes;
use futures_util::future::{join, join_all};
use proto::v1::{
    DigestsCall, Level, PairCheck, PairView, RepairCall, RepairReply, RepairRequest, RepairView,
    TreeCall, TreeSpan, answer, call,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// So often it is looked whether a round is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After a round that left a difference or broke off, the next begins so soon.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Leaves whose digests are had of both sides at once, at most.
const LEAVES_MAX: usize = 64;

/// Keys that are read, joined and sent at once, at most. So many objects are in memory.
const KEYS_MAX: usize = 16;

/// Leaves a round looks at again because their sums differ though what is in them does not, at
/// most. The rest have their turn in later rounds.
const SUSPECTS_MAX: usize = 64;

/// A peer may wait for a checkpoint of its own, and that for one before it.
const TREE_TIMEOUT: Duration = Duration::from_secs(30);
const KEY_TIMEOUT: Duration = Duration::from_secs(10);

/// Before each batch of work a busy peer is left alone for so long, at most: repair gets slow, and
/// does not stand still.
const STAND_BACK_MAX: Duration = Duration::from_millis(500);
const STAND_BACK_STEP: Duration = Duration::from_millis(50);

/// A node's comparing with its peers.
#[derive(Debug, Default)]
pub struct Repair {
    pairs: Mutex<BTreeMap<Uid, Pair>>,
    wanted: Notify,
    /// Those it shares copies with, under the layout for which that was last worked out.
    sharing: Mutex<Option<(LayoutId, Vec<Uid>)>>,
}

/// This node and one peer.
#[derive(Clone, Debug, Default)]
struct Pair {
    view: PairView,
    /// An operator asked for a round.
    wanted: bool,
    /// Which coming up of the peer a round has followed.
    followed_up_ms: u64,
    /// When the next is due by itself; `None`: at once.
    due: Option<Instant>,
    /// When the last round began.
    began: Option<Instant>,
    /// When the last began that left all equal, and under which layout.
    matched: Option<(Instant, LayoutId)>,
    /// Keys the last round left unlike.
    left: u64,
    /// When that ended.
    tried: Option<Instant>,
}

impl Pair {
    /// Whether the last match is of a round that began after `at` and knew all keyspaces.
    fn has_matched(&self, at: Instant, layout: LayoutId) -> bool {
        self.matched.is_some_and(|(matched, under)| matched > at && under == layout)
    }

    /// Whether a round should begin with a peer that has been up since `up_since_ms`. A node that
    /// lost its vote compares also where that is off.
    fn is_due(
        &self,
        every: Option<Duration>,
        (withdrawn, layout): (Option<Instant>, LayoutId),
        up_since_ms: u64,
        now: Instant,
    ) -> bool {
        let by_itself = self.followed_up_ms != up_since_ms || self.due.is_none_or(|due| due <= now);
        let for_the_vote = withdrawn.is_some_and(|withdrawn| {
            let untried = self.began.is_none_or(|began| began < withdrawn)
                || self.matched.is_some_and(|(_, under)| under != layout);
            !self.has_matched(withdrawn, layout) && (untried || by_itself)
        });
        self.wanted || (every.is_some() && by_itself) || for_the_vote
    }
}

/// Does rounds as long as the node runs.
pub async fn run(node: Arc<Node>, every: Option<Duration>) {
    loop {
        tokio::select! {
            () = node.repair.wanted.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Ok(cluster) = node.cluster() else { continue };
        let withdrawn = (!node.vote.is_given()).then(|| node.vote.withdrawn());
        if let Some(at) = withdrawn {
            let matched = matched_since(&node, at, cluster.layout.id());
            vote::regain(&node, &cluster, at, &matched).await;
        }
        for peer in cluster.peers.values() {
            // A round takes its time, and the layout may have changed in the one before.
            let Ok(cluster) = node.cluster() else { break };
            let layout = cluster.layout.id();
            let connected_ms = peer.health().connected_ms;
            if !peer.is_usable() || node.draining.load(Ordering::Relaxed) {
                continue;
            }
            let is_due = {
                let mut pairs = lock(&node.repair.pairs);
                let pair = pairs.entry(peer.uid).or_default();
                pair.is_due(every, (withdrawn, layout), connected_ms, clock::now())
            };
            if is_due {
                one_round(&node, &cluster, peer, every, connected_ms).await;
            }
        }
    }
}

/// One round with a peer, and what is remembered of it.
async fn one_round(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    peer: &Arc<Peer>,
    every: Option<Duration>,
    up_since_ms: u64,
) {
    let began = clock::now();
    let began_ms = clock::now_ms();
    with_pair(node, peer.uid, |pair| {
        (pair.wanted, pair.followed_up_ms) = (false, up_since_ms);
        pair.began = Some(began);
        pair.view.running = true;
        (pair.view.started_at_ms, pair.view.repaired_last) = (began_ms, 0);
    });
    let mut round = Round::new(node, cluster, peer);
    let outcome = round.compare().await;
    let error = match outcome {
        Err(why) => why,
        Ok(()) if round.left > 0 => format!("{} keys still differ: {}", round.left, round.why),
        Ok(()) => String::new(),
    };
    let (set_right, left, name) = (round.set_right, round.left, cluster.name_of(peer.uid));
    let again = match every {
        Some(every) if !error.is_empty() => every.min(AGAIN_AFTER),
        // Not all pairs at once, and none older than the goal.
        Some(every) => {
            every * 3 / 4 + every.mul_f64(clock::random_u64() as f64 / u64::MAX as f64 / 5.0)
        }
        None => AGAIN_AFTER,
    };
    let repaired = with_pair(node, peer.uid, |pair| {
        pair.due = Some(began + again);
        pair.view.running = false;
        pair.view.ended_at_ms = clock::now_ms();
        pair.view.rounds += 1;
        pair.view.leaves_set_right += set_right;
        if error.is_empty() {
            // As of its beginning: what came later was not waited for.
            pair.view.matched_at_ms = began_ms;
            pair.matched = Some((began, cluster.layout.id()));
        }
        (pair.left, pair.tried) = (left, Some(clock::now()));
        pair.view.error.clone_from(&error);
        pair.view.repaired_last
    });
    if repaired > 0 {
        node.events.add(Level::Ok, format!("repair with {name}: {repaired} keys brought level"));
    }
    if set_right > 0 {
        tracing::warn!(peer = name, leaves = set_right, "sums of the tree were wrong, set right");
    }
    if !error.is_empty() {
        tracing::warn!(peer = name, why = error, "repair left something undone");
    }
}

/// A round under way.
struct Round<'a> {
    node: &'a Arc<Node>,
    cluster: &'a Arc<Cluster>,
    peer: &'a Arc<Peer>,
    /// Both sides' sums are of this round.
    is_fresh: bool,
    /// Leaves whose sums differ, and what is in them does not.
    suspects: Vec<(KeyspaceId, u32)>,
    set_right: u64,
    /// Keys found unlike and not made equal.
    left: u64,
    /// Why, of one of them.
    why: String,
    /// Where they are.
    unlike: Unlike<WorkId>,
    /// It is for a new set of replicas: the layout that began it, which the peer has to know, and
    /// that under which it is still to be read.
    moves: Option<(LayoutId, LayoutId)>,
    /// Whether what it mends is told as repaired.
    is_told: bool,
}

impl<'a> Round<'a> {
    fn new(node: &'a Arc<Node>, cluster: &'a Arc<Cluster>, peer: &'a Arc<Peer>) -> Self {
        Self {
            node,
            cluster,
            peer,
            is_fresh: false,
            suspects: Vec::new(),
            set_right: 0,
            left: 0,
            why: String::new(),
            unlike: Unlike::default(),
            moves: None,
            is_told: true,
        }
    }
}

/// Spans of a keyspace, as replicas of a layout; and for a new set of replicas, the layout that began
/// that: the peer has to know it, and to be read under the other from the beginning to the end.
pub type Work = BTreeMap<WorkId, Vec<Span>>;
pub type WorkId = (KeyspaceId, LayoutId, Option<LayoutId>);

/// Makes this node's copies and a peer's equal in these spans; says what could not be made so, and
/// why, of one of them.
///
/// # Errors
/// Why nothing can be said.
pub async fn level(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    peer: &Arc<Peer>,
    work: Work,
) -> Result<(Unlike<WorkId>, String), String> {
    let mut round = Round::new(node, cluster, peer);
    round.is_told = false;
    for (id, mut spans) in work {
        let (keyspace, under, origin) = id;
        spans.sort_unstable();
        spans.dedup();
        round.moves = origin.map(|origin| (origin, under));
        let compared = round.compare_unclosed(keyspace, spans).await;
        if let Err(why) = compared {
            if !peer.is_usable() {
                return Err(why);
            }
            round.unlike.add_work(id);
            round.why = why;
        }
    }
    round.look_again().await?;
    let why = match round.left {
        0 => round.why,
        left => format!("{left} keys still differ: {}", round.why),
    };
    Ok((round.unlike, why))
}

/// What became of a key that seemed unlike.
enum Mended {
    /// It was equal by then: a write had just been on its way.
    Equal,
    Repaired,
    Left(String),
}

impl Round<'_> {
    async fn compare(&mut self) -> Result<(), String> {
        let cluster = self.cluster;
        for keyspace in cluster.layout.keyspaces().values() {
            let history = &cluster.history;
            let mut spans = shared(&cluster.layout, keyspace.n, self.node.uid, self.peer.uid);
            if !self.node.vote.is_given() && !history.is_settled() {
                // What it lost it has to have back from everybody, or the moves wait for its vote.
                let both = history.shared(keyspace.id(), self.node.uid, self.peer.uid);
                let span = |partition| Span::of_partition(partition, 1 << history.bits());
                spans = both.into_iter().map(span).collect();
                spans.dedup(); // more partitions than leaves
            } else if !history.is_settled() {
                // Where copies move, that is not for a repair to do: it knows no bound.
                spans.retain(|span| history.configs(keyspace.id(), span.token()).len() == 1);
            }
            self.compare_keyspace(keyspace.id(), spans).await?;
        }
        self.look_again().await
    }

    /// Was something closed meanwhile, writers may have passed it by.
    async fn compare_unclosed(
        &mut self,
        keyspace: KeyspaceId,
        spans: Vec<Span>,
    ) -> Result<(), String> {
        self.compare_keyspace(keyspace, spans.clone()).await?;
        if self.moves.is_some() {
            for spans in spans.chunks(SPANS_MAX) {
                self.their_sums(keyspace, spans, false).await?;
            }
        }
        Ok(())
    }

    async fn compare_keyspace(
        &mut self,
        keyspace: KeyspaceId,
        spans: Vec<Span>,
    ) -> Result<(), String> {
        let mut descent = Descent::new(spans);
        loop {
            let asked = descent.ask();
            if asked.is_empty() {
                return Ok(());
            }
            self.stand_back().await?;
            let fresh = !self.is_fresh;
            let ours = self.our_sums(keyspace, &asked, fresh);
            let theirs = self.their_sums(keyspace, &asked, fresh);
            let (ours, theirs) = join(ours, theirs).await;
            let leaves = descent.tell(&asked, &ours?, &theirs?);
            self.is_fresh = true;
            for leaves in leaves.chunks(LEAVES_MAX) {
                self.exchange(keyspace, leaves).await?;
            }
        }
    }

    async fn our_sums(
        &self,
        keyspace: KeyspaceId,
        spans: &[Span],
        fresh: bool,
    ) -> Result<Vec<u128>, String> {
        if fresh {
            tree::freshen(self.node).await.map_err(in_words)?;
        }
        tree::sums(self.node, keyspace, spans.to_vec()).await.map_err(in_words)
    }

    async fn call(&self, body: call::Body, bytes: usize) -> Result<answer::Body, CallError> {
        self.peer.call_on(Lane::Bulk, body, bytes, clock::now() + TREE_TIMEOUT).await
    }

    async fn their_sums(
        &self,
        keyspace: KeyspaceId,
        spans: &[Span],
        fresh: bool,
    ) -> Result<Vec<u128>, String> {
        let wire = spans.iter().map(|span| TreeSpan { first: span.first, leaves: span.leaves });
        let id = |id: LayoutId| Bytes::from(id.to_bytes().to_vec());
        let (layout_id, under) = match self.moves {
            Some((origin, under)) => (id(origin), id(under)),
            None => Default::default(),
        };
        let spans = wire.collect();
        let ask = TreeCall { keyspace: keyspace.0, spans, fresh, layout_id, under };
        let (bytes, count) = (size_of_val(&ask.spans[..]), ask.spans.len());
        let answer = self.call(call::Body::Tree(ask), bytes);
        let answer::Body::Tree(answer) = answer.await.map_err(|error| error.text())? else {
            return Err("answered something else".into());
        };
        let sums =
            answer.sums.iter().map(|sum| Some(u128::from_be_bytes(sum[..].try_into().ok()?)));
        let sums: Option<Vec<u128>> = sums.collect();
        sums.filter(|sums| sums.len() == count).ok_or_else(|| "sent other sums".into())
    }

    async fn their_digests(
        &self,
        keyspace: KeyspaceId,
        place: u32,
    ) -> Result<Vec<(Bytes, Digest)>, String> {
        let mut all: Vec<(Bytes, Digest)> = Vec::new();
        loop {
            let after_key = all.last().map(|(key, _)| key.clone()).unwrap_or_default();
            let ask = DigestsCall { keyspace: keyspace.0, place, after_key };
            let answer = self.call(call::Body::Digests(ask), 0);
            let answer::Body::Digests(page) = answer.await.map_err(|error| error.text())? else {
                return Err("answered something else".into());
            };
            let more = page.more && !page.records.is_empty();
            for record in page.records {
                let digest = record.digest[..].try_into().map_err(|_| "sent no digest")?;
                all.push((record.key, Digest(u128::from_be_bytes(digest))));
            }
            if !more {
                return Ok(all);
            }
        }
    }

    /// The keys in a leaf that differ now.
    async fn differing_in(&self, keyspace: KeyspaceId, place: u32) -> Result<Vec<Bytes>, String> {
        let ours = tree::digests(self.node, keyspace, place);
        let (ours, theirs) = join(ours, self.their_digests(keyspace, place)).await;
        Ok(differing_keys(&ours.map_err(in_words)?.records, &theirs?))
    }

    /// Makes equal what is in these leaves, at most [`LEAVES_MAX`].
    async fn exchange(&mut self, keyspace: KeyspaceId, leaves: &[u32]) -> Result<(), String> {
        self.stand_back().await?;
        let found = leaves.iter().map(|place| self.differing_in(keyspace, *place));
        let found = join_all(found).await;
        let mut differing = Vec::new();
        for (place, keys) in leaves.iter().zip(found) {
            let keys = keys?;
            if keys.is_empty() && self.suspects.len() < SUSPECTS_MAX {
                self.suspects.push((keyspace, *place));
            }
            differing.extend(keys.into_iter().filter_map(|key| Key::new(keyspace, key).ok()));
        }
        for keys in differing.chunks(KEYS_MAX) {
            self.stand_back().await?;
            let mended = join_all(keys.iter().map(|key| self.mend(key))).await;
            let repaired = mended.iter().filter(|it| matches!(it, Mended::Repaired)).count() as u64;
            with_pair(self.node, self.peer.uid, |pair| {
                if !self.is_told {
                    return;
                }
                pair.view.repaired += repaired;
                pair.view.repaired_last += repaired;
            });
            for (key, it) in keys.iter().zip(mended) {
                if let Mended::Left(why) = it {
                    (self.left, self.why) = (self.left + 1, why);
                    self.unlike.add_key(keyspace, key.token());
                }
            }
        }
        Ok(())
    }

    /// Joins both sides' copies of a key, on each side that lacks something.
    async fn mend(&self, key: &Key) -> Mended {
        let deadline = clock::now() + KEY_TIMEOUT;
        let (node, cluster, peer) = (self.node, self.cluster, self.peer.uid);
        let ours = read_copy(node, cluster, (Lane::Bulk, node.uid), key, None, deadline);
        let theirs = read_copy(node, cluster, (Lane::Bulk, peer), key, None, deadline);
        let (ours, theirs) = match join(ours, theirs).await {
            (Ok(ours), Ok(theirs)) => (ours.object, theirs.object),
            (Err(error), _) => return self.left("this node's copy", &error),
            (_, Err(error)) => return self.left("its copy", &error),
        };
        let mut joined = ours.clone();
        joined.merge(&theirs);
        let (we_lack, they_lack) = (!ours.agrees_with(&joined), !theirs.agrees_with(&joined));
        if they_lack {
            let sent =
                merge_on(cluster, (Lane::Bulk, peer), key, joined.encode().into(), None, deadline)
                    .await;
            if let Err(error) = sent {
                return self.left("sending it ours", &error);
            }
        }
        if we_lack && let Err(failure) = merge_here(node, key, theirs).await {
            return Mended::Left(in_words(failure));
        }
        if we_lack || they_lack { Mended::Repaired } else { Mended::Equal }
    }

    fn left(&self, what: &str, error: &CallError) -> Mended {
        let why = match error.is_damaged_copy() {
            true => "it is damaged, which a scrub or a get heals".into(),
            false => error.text(),
        };
        Mended::Left(format!("{what}: {why}"))
    }

    /// Looks again at leaves whose sums differ though what is in them does not. Mostly a write fell
    /// between two checkpoints, or the peer's sum is wrong, and then ours is right. If ours is
    /// wrong even after a fresh checkpoint, it is reckoned anew.
    async fn look_again(&mut self) -> Result<(), String> {
        let mut suspects = std::mem::take(&mut self.suspects);
        for after_checkpoint in [false, true] {
            if suspects.is_empty() {
                return Ok(());
            }
            if after_checkpoint {
                tree::freshen(self.node).await.map_err(in_words)?;
            }
            let mut wrong = Vec::new();
            for (keyspace, place) in suspects {
                if tree::seems_wrong(self.node, keyspace, place).await.map_err(in_words)? {
                    wrong.push((keyspace, place));
                }
            }
            suspects = wrong;
        }
        // The files change hands in a compaction: the next round will do.
        if self.node.store.compaction().borrow().running {
            return Ok(());
        }
        for (keyspace, place) in suspects {
            let set_right = tree::set_right(self.node, keyspace, vec![place]).await;
            self.set_right += set_right.map_err(in_words)?;
        }
        Ok(())
    }

    /// Lets requests go first. Says why, if the round has to end.
    async fn stand_back(&self) -> Result<(), String> {
        let until = clock::now() + STAND_BACK_MAX;
        loop {
            if self.node.draining.load(Ordering::Relaxed) {
                return Err("this node is stopping".into());
            }
            if !self.peer.is_usable() {
                return Err(self.peer.why_not());
            }
            if !self.peer.is_busy() || clock::now() >= until {
                return Ok(());
            }
            tokio::time::sleep(STAND_BACK_STEP).await;
        }
    }
}

// === as operators see it ===

/// Has nodes compare, or says how that is going, on every node or on one.
pub async fn everywhere(node: &Arc<Node>, request: RepairRequest) -> Result<RepairReply, Failure> {
    let ask = RepairCall { start: request.start };
    let understand = |answer| match answer {
        answer::Body::Repair(view) => Some(view),
        _ => None,
    };
    let body = call::Body::Repair(ask);
    let answers = survey::ask(node, &request.node, body, || here(node, ask), understand).await?;
    let view = |(node, outcome): (String, Result<RepairView, String>)| {
        outcome.unwrap_or_else(|error| RepairView { node, error, ..Default::default() })
    };
    Ok(RepairReply { nodes: answers.into_iter().map(view).collect() })
}

/// The same on this node alone.
pub fn here(node: &Node, ask: RepairCall) -> RepairView {
    let Ok(cluster) = node.cluster() else { return RepairView::default() };
    let sharing = sharing(node, &cluster);
    let peers = sharing.iter().filter_map(|uid| cluster.peers.get(uid));
    let pair = |peer: &Arc<Peer>| {
        let mut view = with_pair(node, peer.uid, |pair| {
            pair.wanted |= ask.start;
            pair.view.clone()
        });
        view.peer = cluster.name_of(peer.uid);
        if !peer.is_usable() {
            view.error = format!("not up: {}", peer.why_not());
        }
        view
    };
    let mut pairs: Vec<PairView> = peers.map(pair).collect();
    pairs.sort_by(|a, b| a.peer.cmp(&b.peer));
    if ask.start {
        node.repair.wanted.notify_one();
    }
    RepairView { node: node.name(), pairs, error: String::new() }
}

/// The peers with which a round that began after `at` left all equal, under this layout.
fn matched_since(node: &Node, at: Instant, layout: LayoutId) -> BTreeSet<Uid> {
    let pairs = lock(&node.repair.pairs);
    let matched = pairs.iter().filter(|(_, pair)| pair.has_matched(at, layout));
    matched.map(|(uid, _)| *uid).collect()
}

/// How this node last compared with each that it shares copies with.
pub fn checks(node: &Node) -> Vec<PairCheck> {
    let Ok(cluster) = node.cluster() else { return Vec::new() };
    let check = |uid: Uid| {
        let pair = with_pair(node, uid, |pair| pair.clone());
        let ago_ms = |at: Instant| at.elapsed().as_millis() as u64;
        PairCheck {
            peer_uid: uid.to_bytes().to_vec().into(),
            ever: pair.matched.is_some(),
            ago_ms: pair.matched.map_or(0, |(at, _)| ago_ms(at)),
            differing: pair.left,
            tried_ago_ms: pair.tried.map_or(0, |at| ago_ms(at).max(1)),
        }
    };
    sharing(node, &cluster).into_iter().map(check).collect()
}

/// Those this node shares copies with. Worked out once for a layout: every beat tells of them.
fn sharing(node: &Node, cluster: &Cluster) -> Vec<Uid> {
    let mut known = lock(&node.repair.sharing);
    let layout = &cluster.layout;
    if let Some((id, sharing)) = &*known
        && *id == layout.id()
    {
        return sharing.clone();
    }
    let shares = |peer: &Uid| {
        layout.tables().keys().any(|n| !shared(layout, *n, node.uid, *peer).is_empty())
    };
    let sharing: Vec<Uid> = cluster.peers.keys().copied().filter(shares).collect();
    *known = Some((layout.id(), sharing.clone()));
    sharing
}

fn with_pair<T>(node: &Node, peer: Uid, work: impl FnOnce(&mut Pair) -> T) -> T {
    work(lock(&node.repair.pairs).entry(peer).or_default())
}

fn in_words(failure: Failure) -> String {
    CallError::Refused(failure).text()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_due_in_time_when_the_peer_came_up_and_when_it_is_asked_for() {
        let now = clock::now();
        let (every, layout) = (Some(Duration::from_secs(600)), LayoutId(1));
        let never = Pair::default();
        assert!(never.is_due(every, (None, layout), 7, now), "never compared");
        assert!(!never.is_due(None, (None, layout), 7, now), "off");
        let later = now + Duration::from_secs(60);
        let done = Pair { followed_up_ms: 7, due: Some(later), ..Pair::default() };
        assert!(!done.is_due(every, (None, layout), 7, now));
        assert!(done.is_due(every, (None, layout), 7, later));
        assert!(done.is_due(every, (None, layout), 8, now), "it was down in between");
        let off = |pair: &Pair, withdrawn| pair.is_due(None, (Some(withdrawn), layout), 7, now);
        assert!(off(&done, now), "it lost its vote");
        let tried =
            Pair { began: Some(now), due: Some(later + Duration::from_secs(1)), ..done.clone() };
        assert!(!off(&tried, now), "and a round has just been tried");
        let matched = Pair { began: Some(now), matched: Some((later, layout)), ..done.clone() };
        assert!(!off(&matched, now) && off(&matched, later), "matched before that");
        let other = Pair { matched: Some((later, LayoutId(2))), ..matched.clone() };
        assert!(off(&other, now), "without a keyspace that has come since");
        let wanted = Pair { wanted: true, ..done };
        assert!(
            wanted.is_due(every, (None, layout), 7, now)
                && wanted.is_due(None, (None, layout), 7, now)
        );
    }
}
