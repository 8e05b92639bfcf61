//! One page of a keyspace: partition by partition, each asked of R of its replicas and joined.

use super::coordinator::{count_failure, keyspace, sibling};
use super::errors::{self, Failure};
use super::lane::CallError;
use super::{Cluster, Node, deadline, documents, moves, value};
use crate::clock;
use crate::dynamo::history::Coverage;
use crate::dynamo::key::Key;
use crate::dynamo::layout::Keyspace;
use crate::dynamo::node::{KeyspaceId, LayoutId, Uid};
use crate::dynamo::object::Object;
use crate::dynamo::preference;
use crate::dynamo::scan::{Page, Place, join};
use crate::dynamo::version::Clock;
use crate::storage::StoreError;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::token::Token;
use proto::v1::{ScanAnswer, ScanCall, ScanEntry, ScanItem, ScanReply, ScanRequest, answer, call};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

const LIMIT_DEFAULT: u32 = 256;
const LIMIT_MAX: u32 = 1024;

/// A page ends once it holds so many bytes, its values as long as they were sent.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// One page, from the request's cursor on, asked for at `started`.
pub async fn scan(
    node: &Arc<Node>,
    request: ScanRequest,
    started: Instant,
) -> Result<ScanReply, Failure> {
    let outcome = page(node, request, started).await.map_err(errors::of_a_read);
    if let Err(failure) = &outcome {
        count_failure(node, failure);
    }
    outcome
}

async fn page(
    node: &Arc<Node>,
    request: ScanRequest,
    started: Instant,
) -> Result<ScanReply, Failure> {
    let cluster = node.cluster()?;
    let keyspace = keyspace(&cluster, &request.keyspace)?.clone();
    let bits = cluster.layout.partition_bits();
    let last = match request.partition {
        Some(partition) if partition >= 1 << bits => {
            let why = format!("partitions are 0 to {}, not {partition}", (1u32 << bits) - 1);
            return Err(errors::argument("there is no such partition", why));
        }
        Some(partition) => partition,
        None => (1 << bits) - 1,
    };
    let first = Token::range(request.partition.unwrap_or(0), bits).0;
    let mut walk = Walk {
        from: parse_cursor(&request.cursor)?.unwrap_or((first, Bytes::new())),
        node: Arc::clone(node),
        limit: match request.limit {
            0 => LIMIT_DEFAULT,
            limit => limit.min(LIMIT_MAX),
        } as usize,
        prefix: request.prefix,
        deadline: deadline(started, request.timeout_ms),
        found: Vec::new(),
        bytes: 0,
        missing: BTreeSet::new(),
        complete: true,
        keyspace,
        cluster,
    };
    let next = walk.run(last).await;
    let (deadline, bytes) = (walk.deadline, walk.bytes);
    value::within(deadline, bytes, move || walk.reply(next)).await?
}

/// The page a peer asks of this node's own copies.
pub async fn scan_here(node: &Arc<Node>, from: Uid, ask: ScanCall) -> Result<ScanAnswer, Failure> {
    let _place = match ask.transfer {
        true => Some(moves::place_out(node)?),
        false => None,
    };
    let (under, sender) = (documents::named(&ask.layout_id), from);
    let token = |bytes: &[u8]| bytes.try_into().map(|b| Token(u128::from_be_bytes(b)));
    let (Ok(from), Ok(to)) = (token(&ask.from_token), token(&ask.to_token)) else {
        return Err(errors::argument("the scan is not allowed", "a token has 16 bytes"));
    };
    let had_vote = node.vote.is_given(); // before it is read
    let page = local_page(
        node,
        KeyspaceId(ask.keyspace),
        (from, ask.after_key),
        to,
        ask.prefix,
        ask.limit,
    )
    .await;
    let page = page.map_err(|error| errors::storage(&error))?;
    // After it is read: what was closed meanwhile may have been written to elsewhere.
    if let Some(under) = under {
        let cluster = node.cluster()?;
        let keyspace = KeyspaceId(ask.keyspace);
        if cluster.history.may_read(node.uid, under, keyspace, from) != Coverage::Known {
            tracing::debug!(%sender, "a scan under a layout that is closed here");
            return Err(errors::replica_closed());
        }
    }
    let entry = |(key, object): (Bytes, Object)| ScanEntry { key, object: object.encode().into() };
    let (through_token, through_key) = match page.through {
        Some((token, key)) => (token.to_bytes().to_vec().into(), key),
        None => Default::default(),
    };
    Ok(ScanAnswer {
        entries: page.entries.into_iter().map(entry).collect(),
        through_token,
        through_key,
        no_vote: !(had_vote && node.vote.is_given()),
    })
}

async fn local_page(
    node: &Arc<Node>,
    keyspace: KeyspaceId,
    from: Place,
    to: Token,
    prefix: Bytes,
    limit: u32,
) -> Result<Page, StoreError> {
    let store = node.store.clone();
    // Off the threads that serve requests: a page may touch thousands of cold records.
    let walk = tokio::task::spawn_blocking(move || {
        store.scan(keyspace, &from, to, &prefix, limit.min(LIMIT_MAX) as usize)
    });
    match walk.await {
        Ok(page) => page,
        Err(_) => Err(StoreError::Stopped("the scan was broken off".into())),
    }
}

struct Walk {
    node: Arc<Node>,
    cluster: Arc<Cluster>,
    keyspace: Keyspace,
    prefix: Bytes,
    limit: usize,
    deadline: Instant,
    from: Place,
    found: Vec<(Bytes, Object)>,
    bytes: usize,
    missing: BTreeSet<Uid>,
    complete: bool,
}

impl Walk {
    /// Walks until the page is full or the time is half gone; returns where to go on.
    async fn run(&mut self, last: u32) -> Option<Place> {
        let bits = self.cluster.layout.partition_bits();
        let half = clock::now() + self.deadline.saturating_duration_since(clock::now()) / 2;
        loop {
            let partition = self.from.0.partition(bits);
            let page = self.partition_page(partition, Token::range(partition, bits).1).await;
            let through = self.keep(page.entries).or(page.through);
            self.from = match through {
                Some(place) => place,
                None if partition >= last => return None,
                None => (Token::range(partition + 1, bits).0, Bytes::new()),
            };
            if self.is_full() || clock::now() >= half {
                return Some(self.from.clone());
            }
        }
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.limit || self.bytes >= PAGE_BYTES
    }

    /// Keeps what is not deleted. If the replicas' pages together hold more than there is room for
    /// (compressed values may be far longer than what is stored of them), the page ends within
    /// them: returns where.
    fn keep(&mut self, entries: Vec<(Bytes, Object)>) -> Option<Place> {
        let mut live = entries.into_iter().filter(|(_, object)| !object.live().is_empty());
        while !self.is_full()
            && let Some((key, object)) = live.next()
        {
            self.bytes += object.shown_len();
            self.found.push((key, object));
        }
        live.next()?;
        self.found.last().map(|(key, _)| (Token::of(key), key.clone()))
    }

    /// Asks R replicas of the partition, others in place of those that fail.
    async fn partition_page(&mut self, partition: u32, to: Token) -> Page {
        let bits = self.cluster.layout.partition_bits();
        let (keyspace, token) = (self.keyspace.id(), Token::range(partition, bits).0);
        let parties = preference::parties(&self.cluster.history, keyspace, token, None);
        let Some(parties) = parties else { return Page::default() };
        let under = parties.under;
        let mut order = parties.read;
        order.sort_by_key(|uid| match self.cluster.peers.get(uid) {
            None => 0, // this node
            Some(peer) if peer.is_usable() => 1,
            Some(_) => 2,
        });
        let needed = usize::from(parties.r);
        let mut rest = order.into_iter();
        let mut asked: FuturesUnordered<_> =
            rest.by_ref().take(needed).map(|uid| self.ask(uid, to, under)).collect();
        let mut pages = Vec::new();
        while let Some((uid, page)) = asked.next().await {
            match page {
                Ok(page) => pages.push(page),
                Err(_) => {
                    self.missing.insert(uid);
                    asked.extend(rest.next().map(|uid| self.ask(uid, to, under)));
                }
            }
        }
        self.complete &= pages.len() >= needed;
        join(pages)
    }

    fn ask(
        &self,
        on: Uid,
        to: Token,
        under: LayoutId,
    ) -> impl Future<Output = (Uid, Result<Page, CallError>)> + use<> {
        let (node, cluster) = (Arc::clone(&self.node), Arc::clone(&self.cluster));
        let (keyspace, from, prefix) = (self.keyspace.id(), self.from.clone(), self.prefix.clone());
        let limit = (self.limit - self.found.len()) as u32;
        // Half of what is left, so that one which hangs leaves time for another.
        let left = self.deadline.saturating_duration_since(clock::now());
        let until = clock::now() + left / 2;
        async move {
            if on == node.uid && !node.vote.is_given() {
                return (on, Err(CallError::NotSent("has no vote".into())));
            }
            if on == node.uid {
                let token = from.0;
                let page = local_page(&node, keyspace, from, to, prefix, limit).await;
                let now = node.cluster().map(|it| it.history.may_read(on, under, keyspace, token));
                if now.is_ok_and(|coverage| coverage != Coverage::Known) {
                    return (on, Err(CallError::Refused(errors::replica_closed())));
                }
                return (on, page.map_err(|error| CallError::Refused(errors::storage(&error))));
            }
            let Some(peer) = cluster.peers.get(&on) else {
                return (on, Err(CallError::NotSent("is no member".into())));
            };
            let body = call::Body::Scan(ScanCall {
                keyspace: keyspace.0,
                from_token: from.0.to_bytes().to_vec().into(),
                after_key: from.1,
                to_token: to.to_bytes().to_vec().into(),
                limit,
                prefix,
                layout_id: under.to_bytes().to_vec().into(),
                transfer: false,
            });
            let page = match peer.call(body, 0, until).await {
                Ok(answer::Body::Scan(ScanAnswer { no_vote: true, .. })) => {
                    Err(CallError::Lost("has no vote".into()))
                }
                Ok(answer::Body::Scan(answer)) => parse_page(answer),
                Ok(_) => Err(CallError::Lost("answered something else".into())),
                Err(error) => Err(error),
            };
            (on, page)
        }
    }

    fn reply(self, next: Option<Place>) -> Result<ScanReply, Failure> {
        let item = |(bytes, object): (Bytes, Object)| {
            let key = Key::new(self.keyspace.id(), bytes.clone()).ok()?; // a peer's nonsense: left out
            let seal = |clock: &Clock| Bytes::from(self.cluster.sealer.seal(&key, clock));
            let live = object.live().into_iter().map(|(dot, record)| {
                let value = value::prove(&key, record)?;
                Ok(sibling(dot, record, value, seal(&object.context_of(dot))))
            });
            let siblings = live.collect::<Result<_, Failure>>();
            let context = seal(object.clock());
            Some(siblings.map(|siblings| ScanItem { key: bytes, siblings, context }))
        };
        let cursor = |(token, key): Place| [&token.to_bytes()[..], &key[..]].concat().into();
        Ok(ScanReply {
            items: self.found.into_iter().filter_map(item).collect::<Result<_, _>>()?,
            next: next.map(cursor).unwrap_or_default(),
            complete: self.complete,
            missing: self.cluster.names_of(&self.missing),
        })
    }
}

fn parse_cursor(cursor: &Bytes) -> Result<Option<Place>, Failure> {
    if cursor.is_empty() {
        return Ok(None);
    }
    match cursor.first_chunk::<16>() {
        Some(token) => Ok(Some((Token(u128::from_be_bytes(*token)), cursor.slice(16..)))),
        None => {
            Err(errors::argument("the cursor is not allowed", "it is not one that a scan returned"))
        }
    }
}

fn parse_page(answer: ScanAnswer) -> Result<Page, CallError> {
    let bad = |error| CallError::Lost(format!("sent a copy that is {error}"));
    let entries = answer
        .entries
        .into_iter()
        .map(|entry| Ok((entry.key, Object::decode(entry.object).map_err(bad)?)))
        .collect::<Result<_, _>>()?;
    let through = answer.through_token.first_chunk::<16>();
    let through = through.map(|token| (Token(u128::from_be_bytes(*token)), answer.through_key));
    Ok(Page { entries, through })
}
