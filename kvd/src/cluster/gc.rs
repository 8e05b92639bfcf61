//! Takes away tombstones that every home holds and nothing needs any more: drives `dynamo::reap`.
//!
//! One home of each key sees to it. It walks the tombstones it has, asks all members about a batch
//! of them at a time, and those of which all have said twice that nothing else is left it has
//! removed by every home.

use super::errors::{self, Failure};
use super::lane::Lane;
use super::{Cluster, Node, coordinator, survey, tree};
use crate::clock;
use crate::dynamo::key::Key;
use crate::dynamo::merkle::Digest;
use crate::dynamo::node::Uid;
use crate::dynamo::preference;
use crate::dynamo::reap::{self, Ripening, Say, Stays};
use crate::storage::{Store, StoreError, record};
use bytes::Bytes;
use futures_util::future::join_all;
use proto::v1::{
    GcCall, GcReply, GcRequest, GcView, Level, ReapAnswer, ReapCall, ReapSay, Tombstone, answer,
    call,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Tombstones asked about at once, at most: with the longest keys two MiB.
pub const BATCH_MAX: usize = 512;

/// Memory for those that wait, about. More have their turn when these are gone.
const RIPENING_BYTES: usize = 32 * 1024 * 1024;

/// Between two walks, at most, and at least.
const WALK_EVERY_MAX: Duration = Duration::from_secs(300);
const WALK_EVERY_MIN: Duration = Duration::from_secs(1);

/// A member answers from its disk.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two batches: requests go first.
const BATCH_PAUSE: Duration = Duration::from_millis(20);

/// A node's reaping.
#[derive(Debug, Default)]
pub struct Gc {
    view: Mutex<GcView>,
    wanted: Notify,
}

/// Walks as long as the node runs; `after`: how long all must have held a tombstone. `None`: off,
/// unless an operator asks, and then as by default.
pub async fn run(node: Arc<Node>, after: Option<Duration>) {
    let every = after.unwrap_or(WALK_EVERY_MAX) / 4;
    let every = every.clamp(WALK_EVERY_MIN, WALK_EVERY_MAX);
    let mut ripening = Ripening::new(RIPENING_BYTES);
    loop {
        let asked = tokio::select! {
            () = node.gc.wanted.notified() => true,
            () = tokio::time::sleep(every), if after.is_some() => false,
        };
        let Ok(cluster) = node.cluster() else { continue };
        with_view(&node, |view| (view.running, view.started_at_ms) = (true, clock::now_ms()));
        let mut walk = Walk {
            node: &node,
            cluster: &cluster,
            members: cluster.layout.members().iter().map(|member| member.uid).collect(),
            after: after.unwrap_or(crate::config::GC_AFTER),
            ripening: &mut ripening,
            stays: BTreeMap::new(),
            reaped: 0,
        };
        let outcome = walk.run(asked).await;
        let (reaped, waiting) = (walk.reaped, walk.ripening.len());
        let stays = walk.in_words();
        with_view(&node, |view| {
            (view.running, view.ended_at_ms) = (false, clock::now_ms());
            view.reaped += reaped;
            view.waiting = waiting as u64;
            view.stays = stays;
            view.error = outcome.err().unwrap_or_default();
        });
        if reaped > 0 {
            node.events.add(Level::Ok, format!("{reaped} tombstones reaped"));
        }
    }
}

/// One walk over the tombstones of this node.
struct Walk<'a> {
    node: &'a Arc<Node>,
    cluster: &'a Arc<Cluster>,
    members: BTreeSet<Uid>,
    after: Duration,
    ripening: &'a mut Ripening,
    /// How many have to stay, and why.
    stays: BTreeMap<(Uid, &'static str), u64>,
    reaped: u64,
}

/// A tombstone, and who has to hold it.
struct Candidate {
    key: Key,
    digest: Digest,
    homes: BTreeSet<Uid>,
}

impl Walk<'_> {
    async fn run(&mut self, asked: bool) -> Result<(), String> {
        if asked {
            // What was just deleted is not in the list yet.
            tree::freshen(self.node).await.map_err(|failure| failure.what)?;
        }
        self.ripening.begin_walk();
        let mut after: Option<Key> = None;
        loop {
            self.node.yield_to_requests().await;
            self.all_there()?;
            let page = self.page(after.take()).await.map_err(|failure| failure.what)?;
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            let candidates = self.candidates(page).await.map_err(|failure| failure.what)?;
            if candidates.is_empty() {
                continue;
            }
            let ripe = self.ripe(candidates).await;
            self.reap(ripe).await?;
            tokio::time::sleep(BATCH_PAUSE).await;
        }
        self.ripening.end_walk();
        Ok(())
    }

    /// Without all members nothing can be reaped, and nobody need be asked.
    fn all_there(&self) -> Result<(), String> {
        if self.node.draining.load(Ordering::Relaxed) {
            return Err("this node is stopping".into());
        }
        if !self.cluster.history.is_settled() {
            return Err("waits until copies have moved: see kvctl ops list".into());
        }
        match self.cluster.peers.values().find(|peer| !peer.is_usable()) {
            None => Ok(()),
            Some(absent) => {
                let name = self.cluster.name_of(absent.uid);
                Err(format!("waits for {name}: {}", absent.why_not()))
            }
        }
    }

    async fn page(&self, after: Option<Key>) -> Result<Vec<Key>, Failure> {
        tree::read(self.node, move |store| store.tombstones(after.as_ref(), BATCH_MAX)).await
    }

    /// Those of these keys that this node sees to. Others' are not read: two of three are.
    async fn candidates(&self, keys: Vec<Key>) -> Result<Vec<Candidate>, Failure> {
        let layout = &self.cluster.layout;
        let ours = keys.into_iter().filter_map(|key| {
            let keyspace = layout.keyspace_by_id(key.keyspace())?;
            let homes = preference::homes(layout, keyspace.n, key.token());
            let homes: BTreeSet<Uid> = homes.into_iter().collect();
            let ours = reap::driver(&homes, key.token()) == Some(self.node.uid)
                && self.ripening.wants(&key);
            ours.then_some((key, homes))
        });
        let ours: Vec<(Key, BTreeSet<Uid>)> = ours.collect();
        if ours.is_empty() {
            return Ok(Vec::new());
        }
        tree::read(self.node, move |store| {
            let mut candidates = Vec::new();
            for (key, homes) in ours {
                let digest = tombstone(store, &key)?;
                candidates.extend(digest.map(|digest| Candidate { key, digest, homes }));
            }
            Ok(candidates)
        })
        .await
    }

    /// Asks every member about these; returns those of which all have said so for long enough.
    async fn ripe(&mut self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let said = self.ask_all(&candidates, false).await;
        let now_ms = self.node.started.elapsed().as_millis() as u64;
        let after_ms = self.after.as_millis() as u64;
        let mut ripe = Vec::new();
        for (at, it) in candidates.into_iter().enumerate() {
            let said = said.iter().filter_map(|(uid, says)| Some((*uid, *says.get(at)?)));
            match reap::judge(&it.homes, &self.members, &said.collect()) {
                Ok(()) if self.ripening.agreed(&it.key, it.digest, now_ms, after_ms) => {
                    ripe.push(it)
                }
                Ok(()) => {}
                Err(stays) => {
                    self.ripening.forget(&it.key);
                    let why = match stays {
                        Stays::Unheard(uid) => (uid, "did not answer"),
                        Stays::Lacks(uid) => (uid, "does not hold the same"),
                        Stays::KeepsHint(uid) => (uid, "keeps hints for it"),
                    };
                    *self.stays.entry(why).or_default() += 1;
                }
            }
        }
        ripe
    }

    /// Has every home remove these.
    async fn reap(&mut self, ripe: Vec<Candidate>) -> Result<(), String> {
        if ripe.is_empty() {
            return Ok(());
        }
        let gone = self.ask_all(&ripe, true).await;
        for (at, it) in ripe.iter().enumerate() {
            self.ripening.forget(&it.key);
            let is_gone = |home: &Uid| {
                gone.get(home).and_then(|says| says.get(at)).is_some_and(|say| *say == Say::Clear)
            };
            self.reaped += u64::from(it.homes.iter().all(is_gone));
        }
        match self.members.iter().find(|uid| !gone.contains_key(uid)) {
            None => Ok(()),
            // What it still holds comes back to the others by comparing, and goes the next time.
            Some(absent) => Err(format!("{} did not answer", self.cluster.name_of(*absent))),
        }
    }

    /// What each member says of each of these, after removing them if it is to; nothing of one that
    /// does not answer.
    async fn ask_all(&self, about: &[Candidate], remove: bool) -> BTreeMap<Uid, Vec<Say>> {
        let tombstone = |it: &Candidate| Tombstone {
            keyspace: it.key.keyspace().0,
            key: it.key.bytes().clone(),
            digest: Bytes::copy_from_slice(&it.digest.0.to_be_bytes()),
        };
        let ask = ReapCall {
            tombstones: about.iter().map(tombstone).collect(),
            remove,
            layout_id: self.cluster.layout.id().to_bytes().to_vec().into(),
        };
        let bytes = about.iter().map(|it| it.key.bytes().len()).sum();
        let asking = self.members.iter().map(|uid| {
            let ask = ask.clone();
            async move {
                let answer = match self.cluster.peers.get(uid) {
                    None => asked(self.node, ask).await.ok()?,
                    Some(peer) => {
                        let until = clock::now() + ASK_TIMEOUT;
                        let body = call::Body::Reap(ask);
                        match peer.call_on(Lane::Bulk, body, bytes, until).await.ok()? {
                            answer::Body::Reap(answer) => answer,
                            _ => return None,
                        }
                    }
                };
                let says: Vec<Say> = answer.says().map(said).collect();
                (says.len() == about.len()).then_some((*uid, says))
            }
        });
        join_all(asking).await.into_iter().flatten().collect()
    }

    fn in_words(&self) -> Vec<String> {
        let words = |((uid, why), keys): (&(Uid, &str), &u64)| {
            format!("{keys} stay: {} {why}", self.cluster.name_of(*uid))
        };
        self.stays.iter().map(words).collect()
    }
}

fn said(say: ReapSay) -> Say {
    match say {
        ReapSay::Holds => Say::Holds,
        ReapSay::Clear => Say::Clear,
        ReapSay::KeepsHint => Say::KeepsHint,
        ReapSay::Lacks | ReapSay::Unspecified => Say::Lacks,
    }
}

/// The digest of this node's copy of a key, if it is a tombstone and whole.
fn tombstone(store: &Store, key: &Key) -> Result<Option<Digest>, StoreError> {
    let copy = match store.read(key) {
        Ok(copy) => copy,
        Err(StoreError::BadRecord) => None,
        Err(error) => return Err(error),
    };
    let copy = copy.filter(|copy| copy.live().is_empty());
    Ok(copy.map(|copy| Digest::of(&record::stored_key(key), &copy)))
}

// === asked by the home that sees to it ===

/// Says what this node has of each of these, after removing those it is to.
pub async fn asked(node: &Arc<Node>, ask: ReapCall) -> Result<ReapAnswer, Failure> {
    let cluster = node.cluster()?;
    // While copies move there are more that may hold what was deleted.
    let is_settled = cluster.history.is_settled();
    if ask.layout_id[..] != cluster.layout.id().to_bytes() || !is_settled {
        return Err(errors::layout_stale());
    }
    if ask.tombstones.len() > BATCH_MAX {
        return Err(errors::argument("too many tombstones", format!("at most {BATCH_MAX}")));
    }
    let parse = |it: Tombstone| {
        let digest = it.digest[..].try_into().map(u128::from_be_bytes);
        let digest = digest.map_err(|_| errors::argument("no digest", "it has 16 bytes"))?;
        Ok((coordinator::key_from_peer(it.keyspace, it.key)?, Digest(digest)))
    };
    let tombstones: Vec<(Key, Digest)> =
        ask.tombstones.into_iter().map(parse).collect::<Result<_, Failure>>()?;
    if ask.remove {
        let removing = tombstones.iter().map(|(key, digest)| node.store.reap(key.clone(), *digest));
        for removed in removing.collect::<Vec<_>>() {
            let removed = removed.await.map_err(|_| errors::storage_dropped())?;
            removed.map_err(|error| errors::storage(&error))?;
        }
    }
    let votes = node.vote.is_given();
    let members = cluster.layout.members().iter();
    let mut targets: BTreeSet<Uid> = members.map(|member| member.uid).collect();
    let says = tree::read(node, move |store| {
        // Also those of whom nothing is counted: damage to the log may have lost the count.
        targets.extend(store.hint_totals().into_keys());
        let say = |(key, digest): &(Key, Digest)| {
            for target in &targets {
                if store.hint(*target, key)?.is_some() {
                    return Ok(ReapSay::KeepsHint);
                }
            }
            Ok(match store.read(key) {
                Ok(None) if votes => ReapSay::Clear,
                Ok(Some(copy)) if votes && copy.live().is_empty() => {
                    match Digest::of(&record::stored_key(key), &copy) == *digest {
                        true => ReapSay::Holds,
                        false => ReapSay::Lacks,
                    }
                }
                Ok(_) | Err(StoreError::BadRecord) => ReapSay::Lacks,
                Err(error) => return Err(error),
            })
        };
        tombstones.iter().map(say).collect::<Result<Vec<_>, _>>()
    });
    let says = says.await?.into_iter().map(i32::from).collect();
    Ok(ReapAnswer { says })
}

// === as operators see it ===

/// Has nodes walk now, or says how that is going, on every node or on one.
pub async fn everywhere(node: &Arc<Node>, request: GcRequest) -> Result<GcReply, Failure> {
    let ask = GcCall { run: request.run };
    let understand = |answer| match answer {
        answer::Body::Gc(view) => Some(view),
        _ => None,
    };
    let body = call::Body::Gc(ask);
    let answers = survey::ask(node, &request.node, body, || here(node, ask), understand).await?;
    let view = |(node, outcome): (String, Result<GcView, String>)| {
        outcome.unwrap_or_else(|error| GcView { node, error, ..Default::default() })
    };
    Ok(GcReply { nodes: answers.into_iter().map(view).collect() })
}

/// The same on this node alone.
pub fn here(node: &Node, ask: GcCall) -> GcView {
    if ask.run {
        node.gc.wanted.notify_one();
    }
    let mut view = lock(&node.gc.view).clone();
    view.node = node.name();
    view.tombstones = node.store.tombstone_count().unwrap_or_default(); // a store that fails stops the node
    view
}

fn with_view(node: &Node, change: impl FnOnce(&mut GcView)) {
    change(&mut lock(&node.gc.view));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
