//! Load on a running cluster, as real clients make it, with all of it recorded.
//!
//! Sessions run beside each other; each does one operation at a time through a node that a seeded
//! source picks, on a key it picks. A node that is gone costs its tries and stops nothing: the next
//! try goes to another node under the same request id.

use crate::history::{Action, Answer, Dot, History, Op, Outcome, Recorder, Run, Version};
use crate::process::Node;
use crate::rng::Rng;
use bytes::Bytes;
use proto::client::Client;
use proto::dial::Dial;
use proto::error::detail;
use proto::v1::{self, DeleteRequest, GetReply, GetRequest, PutRequest, WriteReply};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::Status;

/// Of its time a try leaves one part in so many to the way back: the node gives up first, and says
/// more about why than a client that stopped waiting could.
const WAY_BACK: u32 = 10;

/// After an operation that failed a session waits so long: a cluster that is all down is not asked
/// a hundred thousand times a second.
const REST: Duration = Duration::from_millis(10);

/// A final read is tried for so long, key by key.
const FINAL_PATIENCE: Duration = Duration::from_secs(30);

/// What kind of load.
#[derive(Clone, Debug)]
pub struct Options {
    /// What every choice of every session comes from, but not how they fall between each other.
    pub seed: u64,
    /// The keyspace.
    pub keyspace: String,
    /// Whether that is strict, with R + W > N.
    pub strict: bool,
    /// Sessions beside each other.
    pub sessions: u32,
    /// Keys, `k0` on. Few make siblings and conflicts.
    pub keys: usize,
    /// Operations a second of all sessions together; none: as many as go.
    pub per_second: Option<u32>,
    /// Of a hundred operations, how many are gets.
    pub get_percent: u8,
    /// Of a hundred writes, how many are deletes. One without a context to send becomes a get.
    pub delete_percent: u8,
    /// Of a hundred puts, how many are made without the context the session has.
    pub blind_percent: u8,
    /// Length of a value, at least that of its name.
    pub value_bytes: usize,
    /// How long one operation may take, all tries together.
    pub deadline: Duration,
    /// Tries of one operation, each through another node.
    pub tries: u32,
    /// How clients connect.
    pub dial: Dial,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            keyspace: "default".into(),
            strict: false,
            sessions: 8,
            keys: 20,
            per_second: Some(400),
            get_percent: 50,
            delete_percent: 10,
            blind_percent: 20,
            value_bytes: 100,
            deadline: Duration::from_secs(4),
            tries: 2,
            dial: Dial::default(),
        }
    }
}

/// A load under way. Dropped, it ends.
pub struct Load {
    shared: Arc<Shared>,
    sessions: Vec<JoinHandle<()>>,
    /// Its own, so that it goes on while a test does something to the cluster.
    runtime: Runtime,
}

struct Shared {
    options: Options,
    /// Name and address.
    nodes: Vec<(String, String)>,
    recorder: Recorder,
    writes: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    /// Begins, through these nodes, whether they are up or not.
    ///
    /// # Panics
    /// If the machine has no thread left for it.
    pub fn start(nodes: &[Node], options: Options) -> Self {
        let named = nodes.iter().map(|node| (node.name.clone(), node.address.clone()));
        let Options { seed, keyspace, strict, .. } = options.clone();
        let shared = Arc::new(Shared {
            nodes: named.collect(),
            recorder: Recorder::new(Run { seed, keyspace, strict }),
            writes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            options,
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let sessions = (0..shared.options.sessions)
            .map(|number| runtime.spawn(Session::new(Arc::clone(&shared), number).run()));
        Self { sessions: sessions.collect(), shared, runtime }
    }

    /// The keys it uses.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        (0..self.shared.options.keys).map(|i| format!("k{i}"))
    }

    /// The keyspace it uses.
    pub fn keyspace(&self) -> &str {
        &self.shared.options.keyspace
    }

    /// How many operations have been begun.
    pub fn begun(&self) -> usize {
        self.shared.recorder.len()
    }

    /// Operations a second that it begins, at most; as many as usual where it has no bound.
    pub fn rate(&self) -> usize {
        let usual = Options::default().per_second;
        self.shared.options.per_second.or(usual).unwrap_or(1) as usize
    }

    /// Ends it, and returns what was recorded: every operation under way is seen through.
    ///
    /// # Panics
    /// If a session had panicked.
    pub fn stop(mut self) -> History {
        self.rest();
        self.shared.recorder.history()
    }

    /// Ends it, reads every key at R = `n`, all replicas, and returns all of it. The cluster should
    /// be whole: a key that cannot be read within 30 s is left without a final read, which C1 tells.
    ///
    /// # Panics
    /// If a session had panicked.
    pub fn stop_and_read_all(mut self, n: u32) -> History {
        self.rest();
        let reader = Session::new(Arc::clone(&self.shared), self.shared.options.sessions);
        self.runtime.block_on(reader.read_all(n));
        self.shared.recorder.history()
    }

    /// Begins no more operations, and sees those under way through.
    ///
    /// # Panics
    /// If a session had panicked.
    pub fn rest(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for session in self.sessions.drain(..) {
            self.runtime.block_on(session).expect("a session ends by itself");
        }
    }
}

// === a session ===

/// What a session knows of a key: a context, and what it covers.
#[derive(Clone, Default)]
struct Known {
    context: Bytes,
    covers: Vec<Version>,
}

struct Session {
    shared: Arc<Shared>,
    number: u32,
    rng: Rng,
    clients: BTreeMap<usize, Client>,
    known: BTreeMap<String, Known>,
}

/// A request, ready to be tried.
enum Request {
    Get(GetRequest),
    Put(PutRequest),
    Delete(DeleteRequest),
}

enum Reply {
    Get(GetReply),
    Write(WriteReply),
}

/// A try that failed.
struct Failed {
    why: String,
    /// Whether it may have been stored all the same.
    in_doubt: bool,
}

impl Session {
    fn new(shared: Arc<Shared>, number: u32) -> Self {
        // Far apart, or the second session would go through what the first did, one step behind.
        let rng = Rng::new(Rng::new(shared.options.seed ^ (u64::from(number) << 32)).bits());
        Self { shared, number, rng, clients: BTreeMap::new(), known: BTreeMap::new() }
    }

    async fn run(mut self) {
        let options = self.shared.options.clone();
        let pause =
            options.per_second.map(|rate| Duration::from_secs(1) * options.sessions / rate.max(1));
        while !self.shared.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let (key, action, known) = self.choose();
            let Some(ok) = self.operate(&key, action, known, None).await else {
                return; // the history is full
            };
            let rest = if ok { Duration::ZERO } else { REST };
            let pause = pause.map_or(rest, |pause| pause.saturating_sub(began.elapsed()).max(rest));
            tokio::time::sleep(pause).await;
        }
    }

    async fn read_all(mut self, n: u32) {
        for key in (0..self.shared.options.keys).map(key_name) {
            let until = Instant::now() + FINAL_PATIENCE;
            loop {
                match self.operate(&key, Action::Final, Known::default(), Some(n)).await {
                    Some(false) if Instant::now() < until => tokio::time::sleep(REST).await,
                    _ => break,
                }
            }
        }
    }

    /// The next operation, and the context it is to send.
    fn choose(&mut self) -> (String, Action, Known) {
        let Options { keys, get_percent, delete_percent, blind_percent, seed, .. } =
            self.shared.options;
        let key = key_name(self.rng.below(keys));
        // All chosen every time: what one comes to must not shift the choices after it.
        let [get, delete, blind] =
            [get_percent, delete_percent, blind_percent].map(|percent| self.rng.percent(percent));
        let known = self.known.get(&key).cloned().unwrap_or_default();
        if get || (delete && known.context.is_empty()) {
            return (key, Action::Get, Known::default());
        }
        let known = if blind && !delete { Known::default() } else { known };
        let (covers, context) = (known.covers.clone(), name_of(&known.context));
        let action = match delete {
            true => Action::Delete { covers, context },
            false => {
                let number = self.shared.writes.fetch_add(1, Ordering::Relaxed);
                Action::Put { value: format!("w{seed}-{number}"), covers, context }
            }
        };
        (key, action, known)
    }

    /// Does one operation and records it. Whether it succeeded; none: the history is full.
    async fn operate(
        &mut self,
        key: &str,
        action: Action,
        known: Known,
        r: Option<u32>,
    ) -> Option<bool> {
        let shared = Arc::clone(&self.shared);
        let mut request = self.request(key, &action, known.context.clone(), r);
        let id = shared.recorder.invoke(self.number, key, action.clone())?;
        let (nodes, outcome) = self.try_in_turn(&mut request).await;
        let outcome = match outcome {
            Ok(reply) => {
                let (answer, now_known) = learn(&shared.options, &action, known, reply);
                self.known.insert(key.to_owned(), now_known);
                Outcome::Ok(answer)
            }
            Err(Failed { why, in_doubt: true }) => Outcome::Indeterminate(why),
            Err(Failed { why, in_doubt: false }) => Outcome::DefiniteFail(why),
        };
        let ok = matches!(outcome, Outcome::Ok(_));
        shared.recorder.end(id, nodes, outcome);
        Some(ok)
    }

    fn request(&mut self, key: &str, action: &Action, context: Bytes, r: Option<u32>) -> Request {
        let options = &self.shared.options;
        let (keyspace, key) = (options.keyspace.clone(), key.to_owned().into());
        let request_id = [self.rng.bits().to_be_bytes(), self.rng.bits().to_be_bytes()].concat();
        let request_id = request_id.into();
        match action {
            Action::Get | Action::Final => {
                Request::Get(GetRequest { keyspace, key, r, ..Default::default() })
            }
            Action::Put { value, .. } => {
                let value = value_of(value, options.value_bytes).into();
                let rest = PutRequest::default();
                Request::Put(PutRequest { keyspace, key, value, context, request_id, ..rest })
            }
            Action::Delete { .. } => {
                let rest = DeleteRequest::default();
                Request::Delete(DeleteRequest { keyspace, key, context, request_id, ..rest })
            }
        }
    }

    /// One node after the other, until one answers. In doubt if any try was. Who cannot be connected
    /// to was not asked: that is no try, of a client that knows several.
    async fn try_in_turn(&mut self, request: &mut Request) -> (Vec<String>, Result<Reply, Failed>) {
        let Options { tries, deadline, .. } = self.shared.options;
        let (count, until) = (self.shared.nodes.len(), Instant::now() + deadline);
        let first = self.rng.below(count);
        let (mut asked, mut failed) = (Vec::new(), Failed { why: String::new(), in_doubt: false });
        let mut left = tries;
        for turn in 0..count.max(tries as usize) {
            let node = (first + turn) % count;
            let patience = until.saturating_duration_since(Instant::now()) / left;
            let tried = match self.connected(node, patience).await {
                Ok(client) => {
                    let tried = self.try_on(node, &client, request, patience).await;
                    if !tried.as_ref().is_err_and(Failed::is_refused_by_the_system) {
                        asked.push(self.shared.nodes[node].0.clone());
                        left -= 1;
                    }
                    tried
                }
                Err(why) => Err(Failed { why, in_doubt: false }),
            };
            match tried {
                Ok(reply) => return (asked, Ok(reply)),
                Err(Failed { why, in_doubt }) => {
                    failed.in_doubt |= in_doubt;
                    failed.why += &format!("{}: {why}; ", self.shared.nodes[node].0);
                }
            }
            if left == 0 {
                break;
            }
        }
        (asked, Err(failed))
    }

    async fn connected(&mut self, node: usize, patience: Duration) -> Result<Client, String> {
        if let Some(client) = self.clients.get(&node) {
            return Ok(client.clone());
        }
        let address = [self.shared.nodes[node].1.clone()];
        let client = Client::connect_by(&self.shared.options.dial, &address, patience).await;
        let client = client.map_err(|error| error.to_string())?;
        self.clients.insert(node, client.clone());
        Ok(client)
    }

    async fn try_on(
        &mut self,
        node: usize,
        client: &Client,
        request: &mut Request,
        patience: Duration,
    ) -> Result<Reply, Failed> {
        let until = tokio::time::Instant::now() + patience;
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        request.give(left - left / WAY_BACK);
        match tokio::time::timeout_at(until, request.send(client)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) => {
                let told = detail(&status);
                if told.is_none() {
                    self.clients.remove(&node); // the transport failed: connect anew
                }
                Err(Failed {
                    why: status.message().to_owned(),
                    in_doubt: request.is_write() && !is_not_applied(told.as_ref()),
                })
            }
            Err(_) => {
                self.clients.remove(&node);
                let why = format!("no answer within {} ms", patience.as_millis());
                Err(Failed { why, in_doubt: request.is_write() })
            }
        }
    }
}

impl Failed {
    /// A connection of before was lost, and there is nobody to connect to anew.
    fn is_refused_by_the_system(&self) -> bool {
        self.why == "Connection refused"
    }
}

impl Request {
    fn is_write(&self) -> bool {
        !matches!(self, Self::Get(_))
    }

    /// How long the node may take.
    fn give(&mut self, time: Duration) {
        let timeout_ms = match self {
            Self::Get(get) => &mut get.timeout_ms,
            Self::Put(put) => &mut put.timeout_ms,
            Self::Delete(delete) => &mut delete.timeout_ms,
        };
        *timeout_ms = time.as_millis().max(1) as u32;
    }

    async fn send(&self, client: &Client) -> Result<Reply, Status> {
        let mut kv = client.kv();
        match self {
            Self::Get(get) => Ok(Reply::Get(kv.get(get.clone()).await?.into_inner())),
            Self::Put(put) => Ok(Reply::Write(kv.put(put.clone()).await?.into_inner())),
            Self::Delete(delete) => Ok(Reply::Write(kv.delete(delete.clone()).await?.into_inner())),
        }
    }
}

/// Whether the node says that nothing was stored and nothing sent. Everything else may have been.
fn is_not_applied(told: Option<&v1::ErrorDetail>) -> bool {
    told.is_some_and(|detail| detail.outcome() == v1::Outcome::NotApplied)
}

/// What is recorded of a reply, and what the session knows by it.
fn learn(options: &Options, action: &Action, sent: Known, reply: Reply) -> (Answer, Known) {
    match reply {
        Reply::Get(reply) => {
            let versions = reply.siblings.iter().map(|sibling| {
                let value = name_in(&sibling.value, options.value_bytes);
                Version { value, dot: dot(sibling.dot) }
            });
            let versions: Vec<Version> = versions.collect();
            let context = name_of(&reply.context);
            let known = Known { context: reply.context, covers: versions.clone() };
            (Answer { versions, dot: None, context }, known)
        }
        Reply::Write(reply) => {
            let dot = dot(reply.dot);
            let covers = match action {
                // The put itself; what it had covered is covered through it.
                Action::Put { value, .. } => vec![Version { value: value.clone(), dot }],
                _ => sent.covers,
            };
            let context = name_of(&reply.context);
            let answer = Answer { versions: Vec::new(), dot: Some(dot), context };
            (answer, Known { context: reply.context, covers })
        }
    }
}

fn dot(dot: Option<v1::Dot>) -> Dot {
    let dot = dot.unwrap_or_default();
    Dot { actor: dot.actor, counter: dot.counter }
}

fn key_name(key: usize) -> String {
    format!("k{key}")
}

/// Names a context: the end of its seal.
fn name_of(context: &Bytes) -> String {
    let seal = &context[context.len().saturating_sub(8)..];
    seal.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that are put for the value of this name.
fn value_of(name: &str, bytes: usize) -> Vec<u8> {
    let mut value = name.as_bytes().to_vec();
    value.resize(bytes.max(name.len()), b'.');
    value
}

/// The name of the value these bytes are, or what shows that they are none.
fn name_in(value: &[u8], bytes: usize) -> String {
    let name = value.split(|byte| *byte == b'.').next().unwrap_or_default();
    match std::str::from_utf8(name) {
        Ok(name) if value_of(name, bytes) == value => name.to_owned(),
        _ => format!("damaged {}", value.escape_ascii()),
    }
}

// === what came of it ===

/// A history in figures.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Summary {
    /// Of gets, puts, deletes and final reads.
    pub kinds: BTreeMap<&'static str, Counts>,
}

/// The operations of one kind.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Counts {
    /// Answered.
    pub ok: usize,
    /// Failed, with nothing stored.
    pub failed: usize,
    /// Nobody knows.
    pub indeterminate: usize,
    /// Why, of the first few that were not answered.
    why: Vec<String>,
    /// Time to the answer, or until the client gave up: all, sorted.
    latencies_us: Vec<u64>,
}

/// So many reasons are told.
const WHY_MAX: usize = 3;

impl Summary {
    /// Counts them.
    pub fn of(history: &History) -> Self {
        let mut summary = Self::default();
        for op in &history.ops {
            summary.kinds.entry(kind(op)).or_default().add(op);
        }
        for counts in summary.kinds.values_mut() {
            counts.latencies_us.sort_unstable();
        }
        summary
    }

    /// Operations of this kind: `get`, `put`, `delete` or `final`.
    pub fn of_kind(&self, kind: &str) -> Counts {
        self.kinds.get(kind).cloned().unwrap_or_default()
    }
}

impl Counts {
    fn add(&mut self, op: &Op) {
        let count = match op.outcome {
            Outcome::Ok(_) => &mut self.ok,
            Outcome::DefiniteFail(_) => &mut self.failed,
            Outcome::Indeterminate(_) => &mut self.indeterminate,
        };
        *count += 1;
        if let Outcome::DefiniteFail(why) | Outcome::Indeterminate(why) = &op.outcome
            && self.why.len() < WHY_MAX
        {
            self.why.push(why.clone());
        }
        let took_ns = op.ended_ns.map(|ended_ns| ended_ns - op.invoked_ns);
        self.latencies_us.extend(took_ns.map(|ns| ns / 1000));
    }

    /// Of all, how many were answered: 0 to 1; 1 of none.
    pub fn availability(&self) -> f64 {
        let all = self.ok + self.failed + self.indeterminate;
        if all == 0 { 1.0 } else { self.ok as f64 / all as f64 }
    }

    /// So long took this part of them at most: 0.5, 0.99, 1.0 for the longest.
    pub fn quantile_us(&self, part: f64) -> u64 {
        let last = self.latencies_us.len().saturating_sub(1);
        self.latencies_us.get((last as f64 * part) as usize).copied().unwrap_or(0)
    }
}

fn kind(op: &Op) -> &'static str {
    match op.action {
        Action::Get => "get",
        Action::Final => "final",
        Action::Put { .. } => "put",
        Action::Delete { .. } => "delete",
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kind        ok  failed  unknown  answered   p50 ms   p99 ms   max ms")?;
        for (kind, counts) in &self.kinds {
            let Counts { ok, failed, indeterminate, .. } = counts;
            let answered = counts.availability() * 100.0;
            write!(f, "{kind:<6} {ok:>7} {failed:>7} {indeterminate:>8} {answered:>8.2}%")?;
            for part in [0.5, 0.99, 1.0] {
                write!(f, " {:>8.1}", counts.quantile_us(part) as f64 / 1e3)?;
            }
            writeln!(f)?;
            for why in &counts.why {
                writeln!(f, "       {why}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_by_its_name_and_a_damaged_one_is_not_taken_for_it() {
        for bytes in [0, 4, 100] {
            assert_eq!(name_in(&value_of("w7-1", bytes), bytes), "w7-1");
        }
        assert_eq!(name_in(b"w7-1..", 7), "damaged w7-1..");
        assert_eq!(name_in(b"w7-1.x.", 7), "damaged w7-1.x.");
        assert_eq!(name_in(b"", 7), "damaged ");
    }

    #[test]
    fn only_not_applied_is_a_definite_fail() {
        let told = |outcome: v1::Outcome| {
            is_not_applied(Some(&v1::ErrorDetail { outcome: outcome.into(), ..Default::default() }))
        };
        assert!(told(v1::Outcome::NotApplied));
        assert!(!told(v1::Outcome::Unknown) && !told(v1::Outcome::Unspecified));
        assert!(!is_not_applied(None), "the transport failed: it may have arrived");
    }

    #[test]
    fn a_puts_context_covers_the_put_and_through_it_what_that_had_covered() {
        let version =
            |value: &str| Version { value: value.into(), dot: Dot { actor: 1, counter: 2 } };
        let sent = Known { context: "c0".into(), covers: vec![version("w7-0")] };
        let put = Action::Put {
            value: "w7-1".into(),
            covers: sent.covers.clone(),
            context: String::new(),
        };
        let reply = || {
            let dot = Some(v1::Dot { actor: 1, counter: 2 });
            Reply::Write(WriteReply { context: "c1".into(), dot, ..Default::default() })
        };
        let (answer, known) = learn(&Options::default(), &put, sent.clone(), reply());
        assert_eq!(
            (answer.dot, &known.context[..]),
            (Some(Dot { actor: 1, counter: 2 }), &b"c1"[..])
        );
        assert_eq!(known.covers, [version("w7-1")]);
        let delete = Action::Delete { covers: sent.covers.clone(), context: String::new() };
        let (_, known) = learn(&Options::default(), &delete, sent, reply());
        assert_eq!(known.covers, [version("w7-0")]);
    }
}
