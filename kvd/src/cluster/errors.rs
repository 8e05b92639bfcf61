//! Every error a client can see: what happened, why, in what state things are, what to try.
//! Made here and nowhere else.

use crate::dynamo::context::ContextError;
use crate::dynamo::key::KeyLengthError;
use crate::dynamo::object::WriteRefused;
use crate::dynamo::quorum::QuorumError;
use crate::storage::StoreError;
use proto::v1::{ErrorCode, ErrorDetail, Outcome, ReplicaAnswer};

/// A failed request. Boxed: an error is rare, and large.
pub type Failure = Box<ErrorDetail>;

fn failure(code: ErrorCode, what: impl Into<String>, why: impl Into<String>) -> Failure {
    let (what, why) = (what.into(), why.into());
    Box::new(ErrorDetail { code: code.into(), what, why, ..Default::default() })
}

fn not_applied(mut failure: Failure) -> Failure {
    failure.outcome = Outcome::NotApplied.into();
    if failure.state.is_empty() {
        failure.state = "nothing was stored".into();
    }
    failure
}

/// The node has no cluster.
pub fn blank() -> Failure {
    let mut blank = failure(
        ErrorCode::Blank,
        "this node has not been given a cluster",
        "a kvd starts blank and waits, so that one which lost its disk never invents a new cluster",
    );
    blank.advice = "kvctl cluster init --name NAME n1=HOST:PORT …".into();
    not_applied(blank)
}

/// The node is on its way out.
pub fn draining() -> Failure {
    let mut draining = failure(ErrorCode::Draining, "this node is shutting down", "");
    draining.advice = "another node".into();
    not_applied(draining)
}

/// The node ended while it was at what an operator asked for.
pub fn stopped_midway() -> Failure {
    let mut stopped = failure(ErrorCode::Draining, "this node shut down", "it was at work on this");
    stopped.outcome = Outcome::Unknown.into();
    stopped.state = "it may be done, and may not (outcome: unknown)".into();
    stopped.advice =
        "kvctl status and kvctl ops list by another node; then again, if it is not done".into();
    stopped
}

/// An operator wants the node to take no client requests.
pub fn drained() -> Failure {
    let mut draining =
        failure(ErrorCode::Draining, "this node is drained", "an operator wants it so");
    draining.advice = "another node; or kvctl nodes undrain".into();
    not_applied(draining)
}

/// Too much at once.
pub fn overloaded(why: &str) -> Failure {
    let mut overloaded = failure(ErrorCode::Overloaded, "this node is overloaded", why);
    overloaded.advice = "again in a moment, or another node".into();
    not_applied(overloaded)
}

/// The coordinator's disk is past its watermark.
pub fn disk_full(name: &str) -> Failure {
    let why = "its disk is full, or all but; gets, deletes and repair go on";
    let mut full = failure(ErrorCode::DiskFull, format!("{name} takes no puts"), why);
    full.advice =
        "another node; and make room on this one's disk, it takes puts again by itself".into();
    not_applied(full)
}

/// Something that should not be possible.
pub fn internal(what: impl Into<String>) -> Failure {
    failure(ErrorCode::Internal, what, "this is a bug in kvd")
}

/// The same failure of a request that writes nothing: it has no outcome.
pub fn of_a_read(mut failure: Failure) -> Failure {
    failure.outcome = Outcome::Unspecified.into();
    failure.state.clear();
    failure
}

/// The same failure of a write that may have been applied elsewhere before this one was refused.
pub fn in_doubt(mut failure: Failure) -> Failure {
    failure.outcome = Outcome::Unknown.into();
    failure.state = "an earlier try was sent, and may surface later (outcome: unknown)".into();
    failure.advice = RETRY.into();
    failure
}

/// Storage ended while a write was in its hands.
pub fn storage_dropped() -> Failure {
    storage(&StoreError::Stopped("it dropped a write".into()))
}

const RETRY: &str = "the same request again, with the same context and request id";

/// A bad key.
pub fn key(error: &KeyLengthError) -> Failure {
    not_applied(failure(ErrorCode::KeyInvalid, "the key is not allowed", error.to_string()))
}

/// A value over the keyspace's limit.
pub fn value_too_large(bytes: usize, max: u32, keyspace: &str) -> Failure {
    let why = format!("keyspace {keyspace} allows {max} bytes, this value has {bytes}");
    let mut large = failure(ErrorCode::ValueTooLarge, "the value is too large", why);
    large.advice = "split the value, or keep it elsewhere and store where it is".into();
    not_applied(large)
}

/// R or W that cannot be.
pub fn quorum_invalid(error: &QuorumError) -> Failure {
    not_applied(failure(ErrorCode::QuorumInvalid, "the quorum is not possible", error.to_string()))
}

/// An argument that is wrong in another way.
pub fn argument(what: &str, why: impl Into<String>) -> Failure {
    not_applied(failure(ErrorCode::ArgumentInvalid, what, why))
}

/// No such keyspace.
pub fn keyspace_unknown(name: &str, known: &[&str]) -> Failure {
    let why = format!("the cluster has {}", known.join(", "));
    let mut unknown =
        failure(ErrorCode::KeyspaceUnknown, format!("there is no keyspace {name:?}"), why);
    unknown.advice = format!("kvctl keyspaces create {name}");
    not_applied(unknown)
}

/// The keyspace is there already.
pub fn keyspace_exists(name: &str) -> Failure {
    let mut exists =
        failure(ErrorCode::KeyspaceExists, format!("keyspace {name:?} exists already"), "");
    exists.state = "it was not changed".into();
    exists.advice = format!("kvctl keyspaces show {name}");
    not_applied(exists)
}

/// A context that is refused.
pub fn context(error: &ContextError) -> Failure {
    let code = match error {
        ContextError::Mismatch(_) => ErrorCode::ContextMismatch,
        _ => ErrorCode::ContextInvalid,
    };
    let mut refused = failure(code, "the context is refused", error.to_string());
    refused.advice = "read the key again and use the context that comes with it".into();
    not_applied(refused)
}

/// A put over a limit of the key.
pub fn write_refused(refused: &WriteRefused) -> Failure {
    let (code, advice) = match refused {
        WriteRefused::TooManySiblings(_) => (
            ErrorCode::TooManySiblings,
            "get the key and put the merged value with the context that came with it",
        ),
        WriteRefused::TooLarge(_) => (
            ErrorCode::ObjectTooLarge,
            "get the key and put one value with the context that came with it",
        ),
    };
    let mut detail = failure(code, "the put is refused", refused.to_string());
    detail.advice = advice.into();
    not_applied(detail)
}

/// This node's own storage says no. A write may or may not be on its disk.
pub fn storage(error: &StoreError) -> Failure {
    match error {
        StoreError::Overloaded => overloaded("too many writes wait for the disk"),
        StoreError::HintsFull => overloaded("the hints for that node take all the room they may"),
        StoreError::Refused(refused) => write_refused(refused),
        StoreError::BadRecord => failure(
            ErrorCode::RecordBad,
            "the copy failed its checksum",
            "it counts as absent, has no vote, and is repaired from another replica",
        ),
        StoreError::Stopped(why) => {
            let mut stopped =
                failure(ErrorCode::StorageFailed, "this node's storage has stopped", why);
            stopped.outcome = Outcome::Unknown.into();
            stopped.state = "the node no longer votes, and exits".into();
            stopped.advice = "another node; and look at this one's disk".into();
            stopped
        }
    }
}

/// What a request that misses its quorum was.
pub struct Unmet<'a> {
    /// `get`, `put` or `delete`.
    pub verb: &'a str,
    /// The key, for people.
    pub key: &'a [u8],
    /// R or W.
    pub quorum: (&'a str, u8),
    /// Answers or acknowledgements so far.
    pub acks: Vec<String>,
    /// What each replica said.
    pub replicas: Vec<ReplicaAnswer>,
    /// How long was waited, milliseconds.
    pub waited_ms: u128,
    /// `None` for a get.
    pub outcome: Option<Outcome>,
}

/// R or W was not met.
pub fn quorum_unmet(unmet: Unmet<'_>) -> Failure {
    let Unmet { verb, key, quorum: (name, needed), acks, replicas, waited_ms, outcome } = unmet;
    let key = key.escape_ascii();
    let got = acks.len();
    let noun = if outcome.is_some() { "ack" } else { "answer" };
    let plural = if got == 1 { "" } else { "s" };
    // Fallbacks that keep nothing of the key make up the number, and are no proof that it is absent.
    let proves_nothing = outcome.is_none() && got >= usize::from(needed);
    let mut what =
        format!("{verb} {key} needed {name}={needed}, got {got} {noun}{plural} in {waited_ms} ms");
    if proves_nothing {
        what += " and none from a replica that knows whether there is anything";
    }
    let silent: Vec<String> = replicas
        .iter()
        .filter(|r| !r.error.is_empty())
        .map(|r| format!("{} {}", r.node, r.error))
        .collect();
    let why = match silent.len() {
        0 => "no replica failed, but the deadline passed".to_owned(),
        failed => {
            format!("{failed} of {} replicas did not answer: {}", replicas.len(), silent.join(", "))
        }
    };
    let mut detail = failure(ErrorCode::QuorumUnmet, what, why);
    detail.state = match outcome {
        Some(Outcome::NotApplied) => "nothing was stored and nothing was sent".into(),
        Some(_) if acks.is_empty() => "it may surface later (outcome: unknown)".into(),
        Some(_) => format!(
            "{} kept it and it may surface later (outcome: unknown); not rolled back",
            acks.join(", ")
        ),
        None => String::new(),
    };
    detail.advice = match outcome {
        Some(Outcome::Unknown) => RETRY.into(),
        _ if proves_nothing => "again when the replicas are back (kvctl nodes list)".into(),
        _ => format!("again when the replicas are back (kvctl nodes list), or with a lower {name}"),
    };
    detail.outcome = outcome.unwrap_or_default().into();
    detail.acks = got as u32;
    detail.needed = needed.into();
    detail.replicas = replicas;
    detail
}

/// A strict get found its replicas apart and could not bring the join to a write quorum.
pub fn repair_unmet(key: &[u8], held: Vec<String>, w: u8, replicas: Vec<ReplicaAnswer>) -> Failure {
    let (key, got) = (key.escape_ascii(), held.len());
    let what =
        format!("get {key} read replicas that differ, and brought them level on {got} of W={w}");
    let why = "a strict get answers only what a write quorum holds, so that no later one misses it";
    let mut detail = failure(ErrorCode::QuorumUnmet, what, why);
    detail.advice = "again when the replicas are back (kvctl nodes list)".into();
    (detail.acks, detail.needed, detail.replicas) = (got as u32, w.into(), replicas);
    detail
}

/// A put that had to be forwarded, and no replica took it.
pub fn forward_failed(verb: &str, key: &[u8], why: &[String], sent: bool) -> Failure {
    let what = format!("{verb} {} reached no replica of the key", key.escape_ascii());
    let detail = failure(ErrorCode::QuorumUnmet, what, why.join(", "));
    if sent { in_doubt(detail) } else { not_applied(detail) }
}

/// A forwarded write arrived at a node that is no replica of its key: the layouts differ.
pub fn layout_stale() -> Failure {
    not_applied(failure(
        ErrorCode::LayoutStale,
        "this node is not a replica of the key",
        "the sender's layout is not this node's",
    ))
}

/// A replica knows replicas of the key that the coordinator does not: what it stored does not count.
pub fn write_stale() -> Failure {
    failure(
        ErrorCode::LayoutStale,
        "the write does not know all replicas of the key",
        "the layout has changed",
    )
}

/// A replica is not read under that layout any more.
pub fn replica_closed() -> Failure {
    failure(
        ErrorCode::ReplicaClosed,
        "the key is read from other replicas now",
        "the layout has changed",
    )
}

/// The node was removed from its cluster.
pub fn removed(name: &str) -> Failure {
    let mut removed = failure(
        ErrorCode::Removed,
        format!("{name} was removed from this cluster"),
        "a node that was removed never comes back as what it was",
    );
    removed.advice = "start it with a new, empty data directory, and add it".into();
    not_applied(removed)
}

/// What a plan asks for cannot be.
pub fn plan_refused(why: impl Into<String>, advice: &str) -> Failure {
    let mut refused = failure(ErrorCode::PlanRefused, "the plan is refused", why);
    refused.state = "nothing was changed".into();
    refused.advice = advice.into();
    refused
}

/// What a plan would do now is not what it says.
pub fn plan_stale(why: impl Into<String>) -> Failure {
    let what = "the cluster has changed since the plan was made";
    let mut stale = failure(ErrorCode::PlanStale, what, why);
    stale.state = "nothing was changed".into();
    stale.advice = "make the plan anew and look at it".into();
    stale
}

/// No such operation.
pub fn op_unknown(name: &str) -> Failure {
    let why = "it never was, or it ended so long ago that it is forgotten";
    failure(ErrorCode::OpUnknown, format!("there is no operation {name:?}"), why)
}

/// While the replicas of a key change hands, too few are left that may be read: for a moment.
pub fn too_few_readable(key: &[u8], there: u8, needed: u8) -> Failure {
    let what = format!("get {} needed R={needed}, and {there} may be read now", key.escape_ascii());
    let mut few = failure(ErrorCode::QuorumUnmet, what, "its replicas are just changing");
    few.advice = "the same again in a moment".into();
    few
}

/// A message that does not belong here.
pub fn stranger(why: impl Into<String>) -> Failure {
    not_applied(failure(ErrorCode::Stranger, "refused as a stranger", why))
}

/// Who speaks as a node shows no node's certificate.
pub fn no_node(who: &str) -> Failure {
    stranger(format!("{who} shows no node's certificate: it has no name {}", proto::tls::NODE_NAME))
}

/// Nobody is known without a certificate.
pub fn certificate_wanted() -> Failure {
    let why = "this cluster knows its clients by their certificates, and none was shown";
    let mut wanted = failure(ErrorCode::CertificateWanted, "not permitted", why);
    wanted.advice = "a client certificate: --tls-cert FILE --tls-key FILE".into();
    not_applied(wanted)
}

/// What the bearer of a certificate may not do.
pub fn not_permitted(name: &str, right: &str, keyspace: Option<&str>) -> Failure {
    let why = match keyspace {
        Some(keyspace) => format!("{name} has no right to {right} in keyspace {keyspace}"),
        None if right == "admin" => format!("{name} is no admin"),
        None => format!("{name} is not in the access file of this node"),
    };
    let mut refused = failure(ErrorCode::NotPermitted, "not permitted", why);
    refused.advice = "the certificate of somebody who may; or the right in the nodes' access file, then kvctl certs reload".into();
    not_applied(refused)
}

/// No such node.
pub fn node_unknown(name: &str) -> Failure {
    failure(ErrorCode::NodeUnknown, format!("there is no node {name:?}"), "it is not in the layout")
}

/// A node that would have to answer does not.
pub fn node_unreachable(node: &str, why: &str) -> Failure {
    let what = format!("{node} cannot be reached");
    let mut unreachable = failure(ErrorCode::NodeUnreachable, what, why);
    unreachable.advice =
        "see that a kvd runs there and what its log says, then the same again".into();
    not_applied(unreachable)
}

/// A cluster is there already.
pub fn cluster_exists(what: impl Into<String>) -> Failure {
    let mut exists =
        failure(ErrorCode::ClusterExists, what, "a node belongs to one cluster, for good");
    exists.state = "nothing was changed".into();
    exists.advice = "use blank nodes: new, empty data directories".into();
    not_applied(exists)
}
