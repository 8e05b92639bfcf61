//! Brings copies where the newest layout wants them: drives [`crate::dynamo::history`].
//!
//! Whoever is to hold a partition fetches it: page after page from one who has it, and then a
//! comparison with as many as the history asks for. Whoever holds one no more compares once more,
//! so that nothing it alone knows of is lost, and gives it up. All goes by the second link, as fast
//! as it may and requests leave room for.

use super::coordinator::{merge_here, merge_on};
use super::errors::{self, Failure};
use super::lane::{CallError, Lane};
use super::peers::Peer;
use super::{Cluster, Node, documents, handoff, membership, repair, tree};
use crate::clock;
use crate::dynamo::history::{Coverage, History, SyncTask};
use crate::dynamo::key::Key;
use crate::dynamo::merkle::{Digest, LEAF_BITS, LEAVES, Span};
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use crate::dynamo::object::Object;
use crate::dynamo::preference;
use crate::dynamo::write::WriteSet;
use crate::storage::record;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::StreamExt;
use prost::Message;
use proto::token::Token;
use proto::v1::{Level, Move, NodeMoves, ScanAnswer, ScanCall, Stuck, TreeCall, answer, call};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// So often it is looked what there is to do while copies move, and when they do not.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_SELDOM: Duration = Duration::from_secs(5);

/// So often it is looked, though nothing moves, whether this node holds what it should not.
const SWEEP_EVERY: Duration = Duration::from_secs(300);

/// Between two such looks while copies move.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Partitions fetched at once, and pages given at once.
const IN_MAX: usize = 2;
const OUT_MAX: usize = 2;

/// Records of a page, at most.
const PAGE_RECORDS: u32 = 1024;

/// A source answers from its disk.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// After a page that failed, the next try.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How far a copy has come is stored so often, at most.
const STORE_EVERY: Duration = Duration::from_secs(2);

/// A rate is that of so long.
const RATE_OVER: Duration = Duration::from_secs(5);

/// Without an order, and without `--transfer-mib`: bytes a second that a node fetches.
pub const BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;

const FACT_COPIED: &str = "copied";

/// A copy: of which keyspace and partition (of how many bits), for which layout.
type CopyId = (KeyspaceId, u32, u32, LayoutId);

/// A node's moving of copies.
#[derive(Debug)]
pub struct Moves {
    wanted: Notify,
    to_tell: Notify,
    /// Who says that this node was removed.
    removed: Mutex<BTreeSet<Uid>>,
    /// Partitions are being fetched.
    fetching: AtomicBool,
    /// Ends the process.
    gone: Notify,
    /// Bytes a second without an order.
    pub usual_rate: AtomicU64,
    out: Arc<Semaphore>,
    copies: Mutex<BTreeMap<CopyId, Copy>>,
    stuck: Mutex<Vec<Stuck>>,
    received: Mutex<Vec<(Instant, u64)>>,
    budget: tokio::sync::Mutex<Option<Instant>>,
    moved_at_ms: AtomicU64,
    /// How often copies were compared.
    turns: AtomicUsize,
}

impl Default for Moves {
    fn default() -> Self {
        Self {
            wanted: Notify::new(),
            to_tell: Notify::new(),
            removed: Mutex::default(),
            fetching: AtomicBool::new(false),
            gone: Notify::new(),
            usual_rate: AtomicU64::new(BYTES_PER_SECOND),
            out: Arc::new(Semaphore::new(OUT_MAX)),
            copies: Mutex::default(),
            stuck: Mutex::default(),
            received: Mutex::default(),
            budget: tokio::sync::Mutex::default(),
            moved_at_ms: AtomicU64::new(0),
            turns: AtomicUsize::new(0),
        }
    }
}

/// How far a copy has come.
#[derive(Clone, Debug, Default)]
struct Copy {
    from: Option<Uid>,
    /// Everything through this place is here.
    cursor: Option<(Token, Bytes)>,
    bytes: u64,
    whole: bool,
    synced: bool,
    running: bool,
    /// Why it does not get on, and since when.
    why: String,
    since_ms: u64,
}

impl Moves {
    /// The layouts have changed, or how far somebody has come.
    pub fn look(&self) {
        self.wanted.notify_one();
    }

    /// There is something the others do not know.
    pub fn tell(&self) {
        self.to_tell.notify_one();
    }

    /// Returns once there is.
    pub async fn to_tell(&self) {
        self.to_tell.notified().await;
    }

    /// A peer says that this node was removed.
    pub fn was_removed(&self, peer: Uid) {
        lock(&self.removed).insert(peer);
        self.wanted.notify_one();
    }

    /// A peer takes this node for a member, whatever it said before.
    pub fn is_welcome(&self, peer: Uid) {
        lock(&self.removed).remove(&peer);
    }

    /// Returns once this node has no part in its cluster any more.
    pub async fn gone(&self) {
        self.gone.notified().await;
    }

    fn got_on(&self) {
        self.moved_at_ms.store(clock::now_ms(), Ordering::Relaxed);
    }

    fn with<T>(&self, id: CopyId, work: impl FnOnce(&mut Copy) -> T) -> T {
        work(lock(&self.copies).entry(id).or_default())
    }

    fn note_received(&self, bytes: u64) {
        let mut received = lock(&self.received);
        let now = clock::now();
        received.retain(|(at, _)| now.duration_since(*at) < RATE_OVER);
        received.push((now, bytes));
    }

    fn rate(&self) -> u64 {
        let now = clock::now();
        let received = lock(&self.received);
        let lately = received.iter().filter(|(at, _)| now.duration_since(*at) < RATE_OVER);
        lately.map(|(_, bytes)| bytes).sum::<u64>() / RATE_OVER.as_secs()
    }
}

/// Moves copies as long as the node runs.
pub async fn run(node: Arc<Node>) {
    restore(&node);
    let mut stored = clock::now();
    loop {
        let settled = node.cluster().is_ok_and(|cluster| cluster.history.is_settled());
        let pause = if settled { LOOK_SELDOM } else { LOOK_EVERY };
        tokio::select! {
            () = node.moves.wanted.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let Ok(cluster) = node.cluster() else { continue };
        if leaves_for_good(&node, &cluster) {
            return;
        }
        if let Err(failure) = step(&node).await {
            tracing::warn!(why = failure.why, "{}", failure.what);
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        if !cluster.history.is_settled() && stored.elapsed() > STORE_EVERY {
            stored = clock::now();
            store_cursors(&node).await;
        }
    }
}

/// Gives up copies that this node is to hold no more, as long as it runs.
pub async fn sweep(node: Arc<Node>) {
    let mut swept: Option<Instant> = None;
    loop {
        tokio::time::sleep(SWEEP_PAUSE).await;
        let is_open = node.cluster().is_ok_and(|cluster| !cluster.history.is_settled());
        // Once more after all is settled.
        let due = swept.is_none_or(|at| at.elapsed() > SWEEP_EVERY);
        if !is_open && !due {
            continue;
        }
        match give_up_what_is_not_ours(&node).await {
            Ok(()) if !is_open => swept = Some(clock::now()),
            Ok(()) => swept = None,
            Err(why) => tracing::debug!(why, "what is held no more is not given up yet"),
        }
        node.moves.look();
    }
}

/// Whether this node is a member no more, and nobody waits for it.
fn leaves_for_good(node: &Node, cluster: &Cluster) -> bool {
    let is_member = cluster.layout.member(node.uid).is_some();
    let settled = cluster.history.is_settled() && !is_member;
    // One alone may not know yet that it is to stay after all.
    let told = lock(&node.moves.removed).len() * 2 > cluster.peers.len();
    let gone = settled || told;
    if gone {
        let text = format!("{} was removed from the cluster, and stops", node.name());
        node.events.add(Level::Degraded, text);
        tracing::warn!(
            "this node was removed from cluster {}: it stops. To come back it needs a new, empty \
             data directory",
            cluster.layout.cluster_name()
        );
        node.moves.gone.notify_one();
    }
    gone
}

/// Does what can be done now.
async fn step(node: &Arc<Node>) -> Result<(), Failure> {
    let me = node.uid;
    // Closing first: it is what writers wait for.
    membership::grow(node, |history| Ok(history.with_closed(me))).await?;
    let cluster = node.cluster()?;
    if cluster.history.is_settled() {
        lock(&node.moves.copies).clear();
        lock(&node.moves.stuck).clear();
        return Ok(());
    }
    let history = Arc::clone(&cluster.history);
    let tasks = tokio::task::spawn_blocking(move || history.to_sync(me));
    let tasks = tasks.await.map_err(|_| errors::internal("looking for copies failed"))?;
    sync(node, &cluster, tasks).await?;
    let leaves = cluster.layout.member(me).is_none() && !cluster.history.has_left(me);
    if leaves && holds_nothing(node).await? {
        membership::grow(node, |history| Ok(Some(history.with_left(me)))).await?;
    }
    let now_ms = clock::now_ms();
    let settles = move |history: &History| {
        let mut next = history.clone();
        next.settle(now_ms).then_some(next)
    };
    let history = Arc::clone(&node.cluster()?.history);
    let next = tokio::task::spawn_blocking(move || settles(&history).is_some());
    if next.await.unwrap_or(false) {
        membership::grow(node, |history| Ok(settles(history))).await?;
    }
    Ok(())
}

// === getting copies ===

/// Has copies fetched that are, and compares those that are here.
async fn sync(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    tasks: Vec<SyncTask>,
) -> Result<(), Failure> {
    let me = node.uid;
    let control = cluster.history.control();
    let bits = cluster.history.bits();
    lock(&node.moves.stuck).clear();
    stuck_by_others(node, cluster);
    let (mut ready, mut to_fetch) = (Vec::new(), Vec::new());
    for task in tasks {
        let id = (task.keyspace, bits, task.partition, task.origin);
        if !task.is_new {
            // Who is to get a copy gets it first, if it is there: see `History::newcomers`.
            let comes = |peer: &Arc<Peer>| peer.is_usable() || peer.is_new();
            let is_up = |uid: &Uid| cluster.peers.get(uid).is_some_and(comes);
            if !cluster.history.newcomers(&task).iter().any(is_up) {
                ready.push(task);
            }
            continue;
        }
        match node.moves.with(id, |copy| copy.whole) {
            true => ready.push(task),
            false => to_fetch.push((id, task)),
        }
    }
    if !control.paused && !to_fetch.is_empty() {
        fetch_all(node, to_fetch);
    }
    let done = compare(node, cluster, &ready).await;
    if done.is_empty() {
        return Ok(());
    }
    for task in done.iter().filter(|task| task.is_new) {
        let id = (task.keyspace, bits, task.partition, task.origin);
        node.moves.with(id, |copy| (copy.synced, copy.whole) = (true, true));
    }
    node.moves.got_on();
    membership::grow(node, |history| Ok(Some(history.with_synced(me, &done)))).await?;
    node.moves.look();
    Ok(())
}

/// Compares these copies with as many others as each needs; returns those that are level.
async fn compare(node: &Arc<Node>, cluster: &Arc<Cluster>, ready: &[SyncTask]) -> Vec<SyncTask> {
    let me = node.uid;
    let partitions = 1 << cluster.history.bits();
    let mut level: Vec<BTreeSet<Uid>> = vec![BTreeSet::new(); ready.len()];
    let mut why: BTreeMap<Uid, String> = BTreeMap::new();
    for (task, level) in ready.iter().zip(&mut level) {
        // What it holds itself it need not ask for, if that is all it should. Of its own config it
        // is one too: W others are level there, and it asks N-W of them.
        if task.candidates.contains(&me) && node.vote.is_given() {
            level.insert(me);
        }
    }
    let all: BTreeSet<Uid> = ready.iter().flat_map(|task| task.candidates.clone()).collect();
    // Who answers comes first.
    let (up, down): (Vec<Uid>, Vec<Uid>) = all
        .into_iter()
        .filter(|uid| *uid != me)
        .partition(|uid| cluster.peers.get(uid).is_some_and(|peer| peer.is_usable()));
    for uid in down {
        if cluster.peers.get(&uid).is_some_and(|peer| peer.is_new()) {
            continue;
        }
        let text = cluster.peers.get(&uid).map_or("is no member".into(), |peer| peer.why_not());
        why.insert(uid, text);
    }
    // Each task chooses as many as it needs, others the next time: one that fails is got round.
    let turn = node.moves.turns.fetch_add(1, Ordering::Relaxed);
    let mut chosen: BTreeMap<Uid, Vec<usize>> = BTreeMap::new();
    for (at, task) in ready.iter().enumerate() {
        let there =
            task.candidates.iter().filter(|uid| up.contains(uid) && !level[at].contains(uid));
        let there: Vec<Uid> = there.copied().collect();
        let missing = task.needed.saturating_sub(level[at].len());
        let from = (task.partition as usize).wrapping_add(turn);
        for step in 0..missing.min(there.len()) {
            chosen.entry(there[(from + step) % there.len()]).or_default().push(at);
        }
    }
    let comparing = chosen.into_iter().filter_map(|(uid, wanted)| {
        let peer = cluster.peers.get(&uid)?;
        let mut work: BTreeMap<(KeyspaceId, LayoutId), Vec<Span>> = BTreeMap::new();
        for at in &wanted {
            let task = &ready[*at];
            let spans = work.entry((task.keyspace, task.under)).or_default();
            spans.push(Span::of_partition(task.partition, partitions));
        }
        let newest = Some(cluster.layout.id());
        Some(async move { (uid, wanted, repair::level(node, cluster, peer, newest, work).await) })
    });
    // Beside each other: they wait for the same checkpoints.
    for (uid, wanted, outcome) in join_all(comparing).await {
        match outcome {
            Ok(()) => {
                for at in wanted {
                    level[at].insert(uid);
                }
            }
            Err(text) => {
                why.insert(uid, text);
            }
        }
    }
    let mut done = Vec::new();
    for (task, level) in ready.iter().zip(level) {
        if level.len() >= task.needed {
            done.push(task.clone());
            continue;
        }
        let waits_for = task.candidates.iter().find(|uid| why.contains_key(uid));
        if let Some(uid) = waits_for {
            note_stuck(node, cluster, task, (*uid, "sync"), &why[uid]);
        }
    }
    done
}

/// Fetches these, a few at a time, beside everything else; unless some are being fetched: then these
/// have their turn after them.
fn fetch_all(node: &Arc<Node>, tasks: Vec<(CopyId, SyncTask)>) {
    if node.moves.fetching.swap(true, Ordering::AcqRel) {
        return;
    }
    let this = Arc::clone(node);
    node.spawn(async move {
        let fetches = futures_util::stream::iter(tasks).map(|(id, task)| {
            let node = Arc::clone(&this);
            async move {
                let Ok(cluster) = node.cluster() else { return };
                // As it is now: what was readable when the list was made may be closed by now, and
                // a long list of refusals would keep what can be fetched waiting.
                let part = [(task.keyspace, task.partition)];
                let tasks = cluster.history.to_sync_of(node.uid, part);
                let Some(task) = tasks.into_iter().find(|now| now.origin == task.origin) else {
                    return;
                };
                node.moves.with(id, |copy| copy.running = true);
                fetch(&node, &cluster, id, &task).await;
                node.moves.with(id, |copy| copy.running = false);
            }
        });
        fetches.buffer_unordered(IN_MAX).for_each(|()| std::future::ready(())).await;
        this.moves.fetching.store(false, Ordering::Release);
        this.moves.look();
    });
}

/// Fetches a partition, page after page, from who has it.
async fn fetch(node: &Arc<Node>, cluster: &Arc<Cluster>, id: CopyId, task: &SyncTask) {
    let (first, last) = Token::range(task.partition, cluster.history.bits());
    let mut sources = task.candidates.iter().filter(|uid| **uid != node.uid);
    let count = sources.clone().count().max(1);
    // Not all partitions from the same one.
    let turn = (task.partition as usize) % count;
    let usable = |uid: &&Uid| cluster.peers.get(uid).is_some_and(|peer| peer.is_usable());
    let in_turn = sources.clone().cycle().skip(turn).take(count).find(usable);
    let Some(from) = in_turn.or_else(|| sources.next()).copied() else {
        // Nobody else is left to be read: what it has is all there is.
        node.moves.with(id, |copy| copy.whole = true);
        return;
    };
    node.moves.with(id, |copy| copy.from = Some(from));
    loop {
        if node.draining.load(Ordering::Relaxed) || is_paused(node) {
            return;
        }
        let Ok(now) = node.cluster() else { return };
        if now.history.layouts().iter().all(|layout| layout.id() != task.origin) {
            return; // it is wanted no more
        }
        let Some(peer) = now.peers.get(&from) else { return };
        stand_back(node, &now, from).await;
        let cursor = node.moves.with(id, |copy| copy.cursor.clone());
        let (from_token, after_key) = cursor.unwrap_or((first, Bytes::new()));
        let ask = ScanCall {
            keyspace: task.keyspace.0,
            from_token: from_token.to_bytes().to_vec().into(),
            after_key,
            to_token: last.to_bytes().to_vec().into(),
            limit: PAGE_RECORDS,
            prefix: Bytes::new(),
            layout_id: task.under.to_bytes().to_vec().into(),
            transfer: true,
        };
        let until = clock::now() + PAGE_TIMEOUT;
        let page = match peer.call_on(Lane::Bulk, call::Body::Scan(ask), 0, until).await {
            Ok(answer::Body::Scan(page)) => keep_page(node, task.keyspace, page).await,
            Ok(_) => Err("answered something else".into()),
            Err(error) if is_busy(&error) => {
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
            Err(error) => Err(error.text()),
        };
        match page {
            Ok((bytes, through)) => {
                node.moves.note_received(bytes);
                node.moves.got_on();
                node.moves.with(id, |copy| {
                    copy.bytes += bytes;
                    copy.whole = through.is_none();
                    copy.cursor = through.clone();
                    copy.why.clear();
                });
                pay(node, bytes).await;
                if through.is_none() {
                    return;
                }
            }
            Err(why) => {
                let now_ms = clock::now_ms();
                let why = if peer.is_new() { String::new() } else { why };
                node.moves.with(id, |copy| {
                    if copy.why.is_empty() {
                        copy.since_ms = now_ms;
                    }
                    copy.why = why;
                });
                tokio::time::sleep(AGAIN_AFTER).await;
                return; // another may be asked
            }
        }
    }
}

/// How many bytes came, and through which place; `None`: to the end.
type PageKept = (u64, Option<(Token, Bytes)>);

async fn keep_page(
    node: &Arc<Node>,
    keyspace: KeyspaceId,
    page: ScanAnswer,
) -> Result<PageKept, String> {
    if page.no_vote {
        return Err("lost data, and is not level yet".into());
    }
    let (mut bytes, mut merging) = (0, Vec::with_capacity(page.entries.len()));
    for entry in page.entries {
        bytes += (entry.key.len() + entry.object.len()) as u64;
        let key = Key::new(keyspace, entry.key).map_err(|error| error.to_string())?;
        let object = Object::decode(entry.object);
        let object = object.map_err(|error| format!("sent a copy that is {error}"))?;
        merging.push(node.store.merge(key, object));
    }
    for merged in join_all(merging).await {
        merged.map_err(|_| "storage stopped")?.map_err(|error| error.to_string())?;
    }
    let through = page.through_token.first_chunk::<16>();
    let through = through.map(|token| Token(u128::from_be_bytes(*token)));
    Ok((bytes, through.map(|token| (token, page.through_key))))
}

fn is_busy(error: &CallError) -> bool {
    use proto::v1::ErrorCode::Overloaded;
    matches!(error, CallError::Refused(detail) if detail.code() == Overloaded)
}

fn is_paused(node: &Node) -> bool {
    node.cluster().is_ok_and(|cluster| cluster.history.control().paused)
}

/// Lets requests go first: here, and at whom it fetches from.
async fn stand_back(node: &Arc<Node>, cluster: &Cluster, from: Uid) {
    node.yield_to_requests().await;
    if cluster.peers.get(&from).is_some_and(|peer| peer.is_busy()) {
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Waits as long as these bytes take at the rate in force. All that a node fetches shares it.
async fn pay(node: &Node, bytes: u64) {
    let rate = rate_in_force(node);
    if rate == 0 {
        return;
    }
    let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
    let until = {
        let mut paid = node.moves.budget.lock().await;
        let from = paid.unwrap_or_else(clock::now).max(clock::now());
        *paid = Some(from + cost);
        from + cost
    };
    tokio::time::sleep_until(until.into()).await;
}

/// Bytes a second that this node may fetch; 0: no bound.
pub fn rate_in_force(node: &Node) -> u64 {
    let ordered = node.cluster().ok().and_then(|it| it.history.control().bytes_per_second);
    ordered.unwrap_or_else(|| node.moves.usual_rate.load(Ordering::Relaxed))
}

// === giving ===

/// A place among the pages that are given at once.
///
/// # Errors
/// There is none: the asker comes back.
pub fn place_out(node: &Node) -> Result<OwnedSemaphorePermit, Failure> {
    let place = Arc::clone(&node.moves.out).try_acquire_owned();
    place.map_err(|_| errors::overloaded("it gives as many pages as it may"))
}

/// Whether this node may be compared with for a new set of replicas: it knows of them, has lost
/// nothing, and is still read under the layout that they come from.
pub async fn may_compare(node: &Arc<Node>, from: Uid, ask: &TreeCall) -> Result<(), Failure> {
    let (Some(newest), Some(under)) =
        (documents::named(&ask.layout_id), documents::named(&ask.under))
    else {
        return Ok(()); // no more than a repair
    };
    if !membership::learn_of(node, from, newest).await {
        return Err(errors::layout_stale());
    }
    if !node.vote.is_given() {
        return Err(errors::argument("it lost data", "it is not level yet"));
    }
    let cluster = node.cluster()?;
    let history = &cluster.history;
    let keyspace = KeyspaceId(ask.keyspace);
    let bits = history.bits();
    for span in ask.spans.iter().filter_map(|span| Span::checked(span.first, span.leaves)) {
        let place = |leaf: u32| (u64::from(leaf) << bits) / u64::from(LEAVES);
        let (first, end) = (place(span.first), place(span.end() - 1) + 1);
        for partition in first..end {
            let token = Token::range(partition as u32, bits).0;
            if history.may_read(node.uid, under, keyspace, token) != Coverage::Known {
                return Err(errors::replica_closed());
            }
        }
    }
    Ok(())
}

/// A partition that this node is to give up, and those that have to be level with it first.
struct Owed {
    keyspace: KeyspaceId,
    partition: u32,
    origin: LayoutId,
    heirs: Vec<Uid>,
    needed: usize,
    level: usize,
}

/// Gives up the copies that no layout has this node hold, once those who hold them are level with
/// it.
async fn give_up_what_is_not_ours(node: &Arc<Node>) -> Result<(), String> {
    let cluster = node.cluster().map_err(|failure| failure.what)?;
    let bits = cluster.history.bits();
    tree::freshen(node).await.map_err(|failure| failure.what)?;
    let mut owed = Vec::new();
    for keyspace in cluster.history.keyspaces() {
        for partition in foreign(node, &cluster, keyspace).await? {
            let configs = cluster.history.configs_of(keyspace, partition);
            let Some(newest) = configs.last() else { continue };
            owed.push(Owed {
                keyspace,
                partition,
                origin: newest.origin,
                heirs: newest.members.clone(),
                needed: newest.write_quorum(newest.w).into(),
                level: 0,
            });
        }
    }
    let mut why = String::new();
    let mut chosen: BTreeMap<Uid, Vec<usize>> = BTreeMap::new();
    for (at, it) in owed.iter().enumerate() {
        let up = |uid: &&Uid| cluster.peers.get(uid).is_some_and(|peer| peer.is_usable());
        let there: Vec<&Uid> = it.heirs.iter().filter(up).collect();
        for step in 0..it.needed.min(there.len()) {
            let heir = there[(it.partition as usize + step) % there.len()];
            chosen.entry(*heir).or_default().push(at);
        }
    }
    let comparing = chosen.into_iter().filter_map(|(uid, inherits)| {
        let peer = cluster.peers.get(&uid)?;
        let mut work: BTreeMap<(KeyspaceId, LayoutId), Vec<Span>> = BTreeMap::new();
        for it in inherits.iter().map(|at| &owed[*at]) {
            let span = Span::of_partition(it.partition, 1 << bits);
            work.entry((it.keyspace, it.origin)).or_default().push(span);
        }
        let cluster = &cluster;
        Some(async move { (inherits, repair::level(node, cluster, peer, None, work).await) })
    });
    for (inherits, outcome) in join_all(comparing.collect::<Vec<_>>()).await {
        match outcome {
            Ok(()) => inherits.into_iter().for_each(|at| owed[at].level += 1),
            Err(text) => why = text,
        }
    }
    for it in owed.iter().filter(|it| it.level >= it.needed) {
        // Not while the layouts change: it may have become a replica again meanwhile, and what it
        // has acknowledged since as one must stay.
        let _unchanging = node.changing.lock().await;
        let now = node.cluster().map_err(|failure| failure.what)?;
        if now.history.bits() == bits && !now.history.holds(node.uid, it.keyspace, it.partition) {
            give_up(node, it.keyspace, it.partition, bits).await?;
            node.moves.got_on();
        }
    }
    for keyspace in cluster.layout.dropped() {
        for partition in 0..1 << bits {
            give_up(node, keyspace, partition, bits).await?;
        }
    }
    match owed.iter().filter(|it| it.level < it.needed).count() {
        0 => Ok(()),
        left => Err(format!("{left} partitions have too few level replicas: {why}")),
    }
}

/// Partitions of which this node has copies that it should not.
async fn foreign(
    node: &Arc<Node>,
    cluster: &Arc<Cluster>,
    keyspace: KeyspaceId,
) -> Result<Vec<u32>, String> {
    let (history, me) = (Arc::clone(&cluster.history), node.uid);
    let bits = history.bits();
    let not_held = tokio::task::spawn_blocking(move || {
        (0..1_u32 << bits).filter(|p| !history.holds(me, keyspace, *p)).collect::<Vec<u32>>()
    });
    let not_held = not_held.await.map_err(|_| "looking for copies failed")?;
    let spans: Vec<Span> =
        not_held.iter().map(|partition| Span::of_partition(*partition, 1 << bits)).collect();
    if bits > LEAF_BITS {
        return Ok(Vec::new()); // a leaf would tell of several partitions
    }
    let mut found = Vec::new();
    for (partitions, spans) in not_held.chunks(1024).zip(spans.chunks(1024)) {
        let sums = tree::sums(node, keyspace, spans.to_vec()).await;
        let sums = sums.map_err(|failure| failure.what)?;
        let there = partitions.iter().zip(sums).filter(|(_, sum)| *sum != 0);
        found.extend(there.map(|(partition, _)| *partition));
    }
    Ok(found)
}

/// Removes this node's copies in a partition, each as it was seen.
async fn give_up(
    node: &Arc<Node>,
    keyspace: KeyspaceId,
    partition: u32,
    bits: u32,
) -> Result<(), String> {
    let (first, last) = Token::range(partition, bits);
    let mut from = (first, Bytes::new());
    loop {
        let (store, place) = (node.store.clone(), from.clone());
        let page = tokio::task::spawn_blocking(move || {
            store.scan(keyspace, &place, last, &[], PAGE_RECORDS as usize)
        });
        let page = page.await.map_err(|_| "looking for copies failed")?;
        let page = page.map_err(|error| error.to_string())?;
        let gone = page.entries.iter().filter_map(|(key, object)| {
            let key = Key::new(keyspace, key.clone()).ok()?;
            let digest = Digest::of(&record::stored_key(&key), object);
            Some(node.store.give_up(key, digest))
        });
        for gone in join_all(gone.collect::<Vec<_>>()).await {
            gone.map_err(|_| "storage stopped")?.map_err(|error| error.to_string())?;
        }
        match page.through {
            Some(through) => from = through,
            None => return Ok(()),
        }
    }
}

/// Whether this node, which leaves, has given all away: copies, and what it keeps for others.
async fn holds_nothing(node: &Arc<Node>) -> Result<bool, Failure> {
    let cluster = node.cluster()?;
    let (history, me) = (Arc::clone(&cluster.history), node.uid);
    let part = tokio::task::spawn_blocking(move || {
        let keyspaces = history.keyspaces();
        let mut all = keyspaces.iter().flat_map(|k| (0..1 << history.bits()).map(move |p| (k, p)));
        all.any(|(keyspace, partition)| history.holds(me, *keyspace, partition))
    });
    if part.await.unwrap_or(true) {
        return Ok(false);
    }
    handoff::pass_on(node, &cluster).await;
    if !node.store.hint_totals().values().all(|totals| totals.keys == 0) {
        return Ok(false);
    }
    tree::freshen(node).await?;
    for keyspace in cluster.history.keyspaces() {
        let sums = tree::sums(node, keyspace, vec![Span { first: 0, leaves: LEAVES }]).await?;
        if sums != [0] {
            return Ok(false);
        }
    }
    Ok(true)
}

// === what it waits for ===

fn note_stuck(
    node: &Node,
    cluster: &Cluster,
    task: &SyncTask,
    (from, step): (Uid, &str),
    why: &str,
) {
    let (from, me) = (cluster.name_of(from), node.name());
    let keyspace = cluster.layout.keyspace_by_id(task.keyspace);
    let keyspace = keyspace.map(|keyspace| keyspace.name.clone()).unwrap_or_default();
    let mut stuck = lock(&node.moves.stuck);
    let same = stuck.iter_mut().find(|it| it.from == from && it.step == step && it.why == why);
    match same {
        Some(same) => same.more += 1,
        None => stuck.push(Stuck {
            keyspace,
            partition: task.partition,
            node: me,
            from,
            step: step.into(),
            why: why.into(),
            since_ms: clock::now_ms(),
            more: 0,
        }),
    }
}

/// Others, down, that have a step to do for which everybody waits.
fn stuck_by_others(node: &Node, cluster: &Cluster) {
    // One that has just been made a member is linked to in a moment.
    let is_down = |peer: &&Arc<Peer>| !peer.is_usable() && !peer.is_new();
    let down = cluster.peers.values().filter(is_down);
    let down: BTreeMap<Uid, String> = down.map(|peer| (peer.uid, peer.why_not())).collect();
    if down.is_empty() {
        return;
    }
    let mut waits: BTreeMap<(Uid, &'static str), (KeyspaceId, u32, u32)> = BTreeMap::new();
    cluster.history.each_open(|keyspace, partition, configs| {
        let Some((newest, before)) = configs.split_last() else { return };
        let mut note = |uid: &Uid, step| {
            if down.contains_key(uid) {
                let first = waits.entry((*uid, step)).or_insert((keyspace, partition, 0));
                first.2 += 1;
            }
        };
        let unsynced = newest.members.iter().filter(|uid| !newest.synced.contains(uid));
        unsynced.for_each(|uid| note(uid, "sync"));
        for config in before.iter().filter(|config| !config.certified && newest.flipped) {
            config.readable().for_each(|uid| note(&uid, "close"));
        }
    });
    let leaving = cluster.history.members().into_iter().filter(|member| {
        cluster.layout.member(member.uid).is_none() && !cluster.history.has_left(member.uid)
    });
    for member in leaving.filter(|member| down.contains_key(&member.uid)) {
        waits.entry((member.uid, "hand over")).or_insert((KeyspaceId(0), 0, 1));
    }
    let mut stuck = lock(&node.moves.stuck);
    for ((uid, step), (keyspace, partition, count)) in waits {
        let keyspace = cluster.layout.keyspace_by_id(keyspace);
        let name = cluster.name_of(uid);
        stuck.push(Stuck {
            keyspace: keyspace.map(|keyspace| keyspace.name.clone()).unwrap_or_default(),
            partition,
            node: name.clone(),
            from: String::new(),
            step: step.into(),
            why: format!("{name} is down: {}", down[&uid]),
            since_ms: 0,
            more: count - 1,
        });
    }
}

/// How far this node is with its moves.
pub fn here(node: &Node) -> NodeMoves {
    let Ok(cluster) = node.cluster() else { return NodeMoves::default() };
    let name = |id: KeyspaceId| {
        let keyspace = cluster.layout.keyspace_by_id(id);
        keyspace.map(|keyspace| keyspace.name.clone()).unwrap_or_default()
    };
    let one = |((keyspace, bits, partition, _), copy): (&CopyId, &Copy)| {
        let (first, last) = Token::range(*partition, *bits);
        let walked = copy.cursor.as_ref().map_or(0, |(token, _)| token.0 - first.0);
        let ratio = if copy.whole { 1.0 } else { walked as f64 / (last.0 - first.0) as f64 };
        Move {
            keyspace: name(*keyspace),
            partition: *partition,
            from_uid: copy.from.map(|uid| uid.to_bytes().to_vec().into()).unwrap_or_default(),
            done: copy.synced,
            begun: copy.running || copy.cursor.is_some() || copy.whole,
            bytes_done: copy.bytes,
            progress_ratio: ratio,
            state: if copy.whole { "comparing" } else { "copying" }.into(),
            why: copy.why.clone(),
        }
    };
    let moves = lock(&node.moves.copies).iter().map(one).collect();
    let mut stuck = lock(&node.moves.stuck).clone();
    for it in lock(&node.moves.copies).iter().filter(|(_, copy)| !copy.why.is_empty()) {
        let ((keyspace, _, partition, _), copy) = it;
        stuck.push(Stuck {
            keyspace: name(*keyspace),
            partition: *partition,
            node: node.name(),
            from: copy.from.map(|uid| cluster.name_of(uid)).unwrap_or_default(),
            step: "sync".into(),
            why: copy.why.clone(),
            since_ms: copy.since_ms,
            more: 0,
        });
    }
    NodeMoves {
        node: node.name(),
        moves,
        bytes_per_second: node.moves.rate(),
        stuck,
        moved_at_ms: node.moves.moved_at_ms.load(Ordering::Relaxed),
    }
}

// === what is remembered of it ===

/// How far copies have come, as it is stored: nothing of it is needed, it only saves work.
#[derive(Clone, PartialEq, Message)]
struct Cursors {
    #[prost(message, repeated, tag = "1")]
    all: Vec<Cursor>,
}

#[derive(Clone, PartialEq, Message)]
struct Cursor {
    #[prost(fixed64, tag = "1")]
    keyspace: u64,
    #[prost(uint32, tag = "2")]
    bits: u32,
    #[prost(uint32, tag = "3")]
    partition: u32,
    #[prost(bytes = "vec", tag = "4")]
    origin: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    token: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    key: Vec<u8>,
    #[prost(uint64, tag = "7")]
    bytes: u64,
    #[prost(bool, tag = "8")]
    whole: bool,
}

async fn store_cursors(node: &Node) {
    let copies = lock(&node.moves.copies).clone();
    let all = copies.iter().map(|((keyspace, bits, partition, origin), copy)| {
        let (token, key) = match &copy.cursor {
            Some((token, key)) => (token.to_bytes().to_vec(), key.to_vec()),
            None => Default::default(),
        };
        Cursor {
            keyspace: keyspace.0,
            bits: *bits,
            partition: *partition,
            origin: origin.to_bytes().to_vec(),
            token,
            key,
            bytes: copy.bytes,
            whole: copy.whole,
        }
    });
    let all = Cursors { all: all.collect() }.encode_to_vec();
    let _ = node.store.put_fact(FACT_COPIED, all).await; // a store that fails stops the node
}

fn restore(node: &Node) {
    // What the store lost it fetches anew, though its cursors may say otherwise.
    if !node.vote.is_given() {
        return;
    }
    let Ok(Some(bytes)) = node.store.fact(FACT_COPIED) else { return };
    let mut copies = lock(&node.moves.copies);
    for it in Cursors::decode(&bytes[..]).unwrap_or_default().all {
        let Some(origin) = documents::named(&it.origin) else { continue };
        let token = it.token.first_chunk::<16>().map(|token| Token(u128::from_be_bytes(*token)));
        let id = (KeyspaceId(it.keyspace), it.bits, it.partition, origin);
        let cursor = token.map(|token| (token, it.key.into()));
        copies.insert(id, Copy { cursor, bytes: it.bytes, whole: it.whole, ..Copy::default() });
    }
}

/// Has the replicas of a key hold this, a write quorum of each set at least.
pub async fn hand_over(
    node: &Arc<Node>,
    cluster: &Cluster,
    key: &Key,
    object: &Object,
    until: Instant,
) -> Result<(), String> {
    let parties = preference::parties(&cluster.history, key.keyspace(), key.token(), None);
    let Some(parties) = parties else { return Ok(()) }; // its keyspace was dropped
    let encoded: Bytes = object.encode().into();
    let sent = parties.homes.iter().map(|home| {
        let (key, encoded) = (key.clone(), encoded.clone());
        async move {
            let merged = match *home == node.uid {
                true => merge_here(node, &key, object.clone()).await.map_err(CallError::Refused),
                false => {
                    let lane = (Lane::Bulk, *home);
                    merge_on(cluster, lane, &key, encoded, None, until).await
                }
            };
            (*home, merged)
        }
    });
    let stored: BTreeSet<Uid> = join_all(sent)
        .await
        .into_iter()
        .filter_map(|(home, merged)| merged.is_ok().then_some(home))
        .collect();
    let met = |set: &WriteSet| {
        set.members.iter().filter(|uid| stored.contains(uid)).count() >= set.needed.into()
    };
    match parties.write.iter().all(met) {
        true => Ok(()),
        false => Err("too few of its replicas took it".into()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
