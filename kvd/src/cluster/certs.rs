//! What secures the nodes, as operators see it: which certificates are in force, and reading them
//! again.

use super::errors::Failure;
use super::{Node, survey};
use crate::clock;
use crate::door::Door;
use crate::door::access::Access;
use crate::tls::Tls;
use proto::tls::span;
use proto::v1::{CertsCall, CertsReply, CertsRequest, CertsView, Level, answer, call};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// So long before a certificate ends its node says so, once a day.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 86_400);
const WARN_EVERY: Duration = Duration::from_secs(86_400);

/// What secures a node; nothing, unless it is configured.
#[derive(Default)]
pub struct Security {
    /// Its certificates.
    pub tls: Option<Arc<Tls>>,
    /// Which client may do what is read from here.
    pub access_file: Option<PathBuf>,
    /// How long a connection to another node lasts before it is made anew.
    pub link_age: Duration,
    /// Where connections come in.
    pub door: OnceLock<Arc<Door>>,
    read_at_ms: AtomicU64,
}

impl Security {
    /// With these, read just now.
    pub fn new(tls: Option<Arc<Tls>>, access_file: Option<PathBuf>, age_max: Duration) -> Self {
        Self {
            tls,
            access_file,
            // Before the other side would end it.
            link_age: age_max / 2,
            door: OnceLock::new(),
            read_at_ms: AtomicU64::new(clock::now_ms()),
        }
    }
}

/// Says which certificates are in force, or has them read again, on every node or on one.
pub async fn everywhere(node: &Arc<Node>, request: CertsRequest) -> Result<CertsReply, Failure> {
    let ask = CertsCall { reload: request.reload };
    let understand = |answer| match answer {
        answer::Body::Certs(view) => Some(view),
        _ => None,
    };
    // A blank node can be asked for its own.
    if node.cluster().is_err() && request.node.is_empty() {
        return Ok(CertsReply { nodes: vec![here(node, ask)] });
    }
    let body = call::Body::Certs(ask);
    let answers = survey::ask(node, &request.node, body, || here(node, ask), understand).await?;
    let view = |(node, outcome): (String, Result<CertsView, String>)| {
        outcome.unwrap_or_else(|error| CertsView { node, error, ..Default::default() })
    };
    Ok(CertsReply { nodes: answers.into_iter().map(view).collect() })
}

/// The same on this node alone.
pub fn here(node: &Node, ask: CertsCall) -> CertsView {
    let error = match ask.reload {
        true => reload(node).err().unwrap_or_default(),
        false => String::new(),
    };
    let mut view = CertsView {
        node: node.name(),
        read_at_ms: node.security.read_at_ms.load(Ordering::Relaxed),
        access: node.access.load().is_limited(),
        error,
        ..Default::default()
    };
    if let Some(tls) = &node.security.tls {
        let facts = tls.now().facts.clone();
        view.tls = true;
        view.subject = facts.name;
        view.names = facts.names;
        view.issuer = facts.issuer;
        (view.not_before, view.not_after) = (facts.not_before, facts.not_after);
    }
    view
}

/// Reads certificates and access file again. What is in force stays if either is not right.
///
/// # Errors
/// Which file, and what is wrong with it.
pub fn reload(node: &Node) -> Result<(), String> {
    let outcome = try_reload(node);
    match &outcome {
        Ok(what) => node.events.add(Level::Ok, format!("read again: {what}")),
        Err(why) => node
            .events
            .add(Level::Degraded, format!("not read again, what is in force stays: {why}")),
    }
    outcome.map(|_| ())
}

fn try_reload(node: &Node) -> Result<String, String> {
    let security = &node.security;
    let access = match &security.access_file {
        Some(file) => Some(Access::load(file).map_err(|error| error.to_string())?),
        None => None,
    };
    let mut what = Vec::new();
    if let Some(tls) = &security.tls {
        let facts = tls.reload().map_err(|error| error.to_string())?;
        let left = facts.not_after.saturating_sub((clock::now_ms() / 1000) as i64).max(0);
        what.push(format!("certificate of {}, good for {}", facts.name, span(left as u64)));
        if let Some(door) = security.door.get() {
            door.certificates_changed();
        }
    }
    if let Some(access) = access {
        node.access.store(Arc::new(access));
        what.push("access file".into());
    }
    if what.is_empty() {
        return Ok("nothing, since neither TLS nor an access file is configured".into());
    }
    security.read_at_ms.store(clock::now_ms(), Ordering::Relaxed);
    Ok(what.join(", "))
}

/// Says in time that the certificate is about to end, as long as the node runs.
pub async fn watch(node: Arc<Node>) {
    let Some(tls) = node.security.tls.clone() else { return };
    let mut reloads = tls.reloads();
    loop {
        let left = tls.now().facts.not_after.saturating_sub((clock::now_ms() / 1000) as i64);
        let left = left.max(0) as u64;
        if left < WARN_BEFORE.as_secs() {
            let name = &tls.now().facts.name;
            let what = format!(
                "the certificate of {name} ends in {}: put a new one in its place, then kvctl certs reload",
                span(left)
            );
            node.events.add(Level::Degraded, what);
        }
        // It may be read again meanwhile.
        let _ = tokio::time::timeout(WARN_EVERY, reloads.changed()).await;
    }
}
