//! Calls to the cluster: connects when first needed, gives every call a deadline, and goes to
//! another node once if the connection is lost.

use crate::config::Settings;
use crate::error::Failure;
use crate::exit::Exit;
use crate::seeds::{self, Seeds};
use crate::time::now_ms;
use crate::value::hex;
use proto::client::{Client, Unreachable};
use proto::dial::Dial;
use proto::v1::{ClusterView, ErrorCode, GetClusterRequest};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

/// Longest wait for the member list that is only fetched to be kept.
const REMEMBER: Duration = Duration::from_millis(500);

/// The way to one cluster.
pub(crate) struct Connection {
    settings: Settings,
    /// The members, as of an earlier command or of what this one has seen.
    kept: std::sync::Mutex<Option<Seeds>>,
    /// Whether this command has already seen the member list.
    seen: AtomicBool,
    current: Mutex<Current>,
}

/// Where the connection stands.
#[derive(Default)]
struct Current {
    link: Option<Link>,
    /// When no node could be reached last, and why.
    failed: Option<(Instant, Unreachable)>,
}

/// A connected client; `number` tells it from those before and after it.
#[derive(Clone)]
struct Link {
    client: Client,
    number: u64,
}

/// What may be done when nobody knows whether a call arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Changes nothing: say it again.
    Read,
    /// Carries a request id, by which the cluster knows it again: say it again.
    Write,
    /// Must not be said twice.
    Once,
}

impl Connection {
    /// A way that is not walked yet.
    pub(crate) fn new(settings: &Settings) -> Self {
        let kept =
            settings.seeds.as_ref().and_then(|folder| Seeds::read(folder, &settings.endpoints));
        Self {
            settings: settings.clone(),
            kept: std::sync::Mutex::new(kept),
            seen: AtomicBool::new(false),
            current: Mutex::default(),
        }
    }

    /// A way to the given endpoints alone: what was kept of another cluster must not lead there.
    pub(crate) fn unacquainted(settings: &Settings) -> Self {
        Self {
            settings: Settings { cluster_id: None, ..settings.clone() },
            kept: std::sync::Mutex::default(),
            seen: AtomicBool::new(false),
            current: Mutex::default(),
        }
    }

    /// Where it is connected, once it is.
    pub(crate) async fn endpoint(&self) -> Option<String> {
        let current = self.current.lock().await;
        let link = current.link.as_ref();
        link.map(|link| link.client.endpoint().to_owned())
    }

    /// Makes a call within the timeout. `request` is given the time that is left.
    pub(crate) async fn call<T, F, R>(
        &self,
        doing: &str,
        kind: Kind,
        request: F,
    ) -> Result<T, Failure>
    where
        F: Fn(Client, Duration) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.settings.timeout;
        let link = self.connected(None).await?;
        let first = match attempt(&link, deadline, &request).await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        let in_doubt = kind != Kind::Read && in_doubt(&first);
        let again = worth_another_node(&first) && kind != Kind::Once;
        let failure = if again && Instant::now() < deadline {
            match self.elsewhere(&link, deadline, &request).await {
                Ok(answer) => return Ok(answer),
                Err(Elsewhere::Failed(status)) => {
                    let failure = Failure::of_status(&status, doing);
                    if kind != Kind::Read && self::in_doubt(&status) {
                        failure.outcome_unknown()
                    } else {
                        failure
                    }
                }
                Err(Elsewhere::Unconnected(failure)) => failure,
            }
        } else {
            Failure::of_status(&first, doing)
        };
        Err(if in_doubt { failure.outcome_unknown() } else { failure })
    }

    /// The cluster as the node at the other end sees it, without its events.
    pub(crate) async fn view(&self) -> Result<ClusterView, Failure> {
        let view = self.call("reading the cluster", Kind::Read, fetch_view).await?;
        if view.id.is_empty() {
            return Err(blank(self.endpoint().await));
        }
        self.keep(&view);
        Ok(view)
    }

    /// Keeps the member list for next time, fetching it if what is kept is old.
    pub(crate) async fn remember(&self) {
        let fresh = |kept: &Seeds| kept.fresh(now_ms());
        let seen = self.seen.load(Ordering::Relaxed);
        if seen || self.settings.seeds.is_none() || self.kept().as_ref().is_some_and(fresh) {
            return;
        }
        let link = self.current.lock().await.link.clone();
        if let Some(link) = link
            && let Ok(Ok(view)) =
                tokio::time::timeout(REMEMBER, fetch_view(link.client, REMEMBER)).await
        {
            self.keep(view.get_ref());
        }
    }

    fn keep(&self, view: &ClusterView) {
        self.seen.store(true, Ordering::Relaxed);
        let Some(seeds) = Seeds::of_view(view) else {
            return;
        };
        let same = |kept: &Seeds| {
            kept.cluster_id == seeds.cluster_id
                && kept.addresses == seeds.addresses
                && kept.fresh(seeds.at_ms)
        };
        if self.kept().as_ref().is_some_and(same) {
            return;
        }
        if let Some(folder) = &self.settings.seeds {
            seeds.write(folder, &self.settings.endpoints);
        }
        // A command that goes on for long needs them itself, should its node be lost.
        if let Ok(mut kept) = self.kept.lock() {
            *kept = Some(seeds);
        }
    }

    fn kept(&self) -> Option<Seeds> {
        self.kept.lock().map_or(None, |kept| kept.clone())
    }

    /// Goes to another node for what comes next, if one can be reached.
    pub(crate) async fn leave_node(&self) {
        let link = self.current.lock().await.link.clone();
        if let Some(link) = link {
            let _ = self.connected(Some(&link)).await;
        }
    }

    async fn elsewhere<T, F, R>(
        &self,
        lost: &Link,
        deadline: Instant,
        request: &F,
    ) -> Result<T, Elsewhere>
    where
        F: Fn(Client, Duration) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let link = self.connected(Some(lost)).await.map_err(Elsewhere::Unconnected)?;
        attempt(&link, deadline, request).await.map_err(Elsewhere::Failed)
    }

    /// A connected client other than `lost`. Calls that lose one together wait for one successor,
    /// or hear together that there is none.
    async fn connected(&self, lost: Option<&Link>) -> Result<Link, Failure> {
        let asked = Instant::now();
        let mut current = self.current.lock().await;
        if let Some(link) = &current.link
            && lost.is_none_or(|lost| lost.number < link.number)
        {
            return Ok(link.clone());
        }
        if let Some((when, why)) = &current.failed
            && *when >= asked
        {
            return Err(unreachable(why));
        }
        let last = lost.map(|link| link.client.endpoint().to_owned());
        let candidates = self.candidates(last);
        let dial = Dial { tls: self.settings.tls.clone(), from: None };
        let client = match Client::connect_by(&dial, &candidates, self.connect_timeout()).await {
            Ok(client) => client,
            Err(error) => {
                let failure = unreachable(&error);
                current.failed = Some((Instant::now(), error));
                return Err(failure);
            }
        };
        self.check_cluster(&client).await?;
        let link = Link { client, number: lost.map_or(0, |lost| lost.number + 1) };
        current.link = Some(link.clone());
        Ok(link)
    }

    fn connect_timeout(&self) -> Duration {
        self.settings.connect_timeout.min(self.settings.timeout)
    }

    /// The given endpoints, then those kept; one that was just lost comes last.
    fn candidates(&self, last: Option<String>) -> Vec<String> {
        let kept = self.kept().map(|kept| kept.addresses).unwrap_or_default();
        let mut candidates: Vec<String> = Vec::new();
        for endpoint in self.settings.endpoints.iter().chain(&kept) {
            if !candidates.contains(endpoint) && last.as_ref() != Some(endpoint) {
                candidates.push(endpoint.clone());
            }
        }
        candidates.extend(last);
        candidates
    }

    /// A kept address may have passed to another cluster since, and a profile may name the only
    /// cluster it is for: either way, ask before anything is read or written.
    async fn check_cluster(&self, client: &Client) -> Result<(), Failure> {
        let given = self.settings.endpoints.iter().any(|e| e == client.endpoint());
        let kept = self.kept().filter(|_| !given);
        let wanted = match (&self.settings.cluster_id, &kept) {
            (Some(id), _) => id,
            (None, Some(kept)) => &kept.cluster_id,
            (None, None) => return Ok(()),
        };
        let asked = fetch_view(client.clone(), self.connect_timeout());
        let view = tokio::time::timeout(self.connect_timeout(), asked)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
            .map_err(|status| Failure::of_status(&status, "asking for the cluster's id"))?;
        let found = hex(&view.get_ref().id);
        if !wanted.is_empty() && found.starts_with(wanted.as_str()) {
            return Ok(());
        }
        let advice = match (&self.settings.seeds, &kept) {
            (Some(folder), Some(_)) => format!(
                "another --endpoint; if the cluster was made anew, remove {}",
                seeds::path(folder, &self.settings.endpoints).display()
            ),
            _ => "another --endpoint or --profile, or correct cluster_id in the config".to_owned(),
        };
        let found = if found.is_empty() { "none" } else { &found };
        let what = format!("{} is not of cluster {wanted}", client.endpoint());
        Err(Failure::new(Exit::Refused, "CLUSTER_MISMATCH", what)
            .why(format!("its cluster is {found}"))
            .state("nothing was read or written")
            .advice(advice))
    }
}

/// A message with its deadline.
pub(crate) fn timed<T>(message: T, budget: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(budget);
    request
}

/// The deadline a message carries for the server: a little earlier than the caller's own, so that
/// the server's words arrive before the caller gives up.
pub(crate) fn server_ms(budget: Duration) -> u32 {
    let ms = u32::try_from(budget.as_millis()).unwrap_or(u32::MAX);
    (ms - (ms / 20).clamp(1.min(ms), 250)).max(1)
}

/// A node that has no cluster.
fn blank(endpoint: Option<String>) -> Failure {
    let at = endpoint.unwrap_or_default();
    Failure::new(
        Exit::of_code(ErrorCode::Blank),
        "BLANK",
        format!("the node at {at} has no cluster yet"),
    )
    .advice("kvctl cluster init --name NAME NODE=HOST:PORT…")
}

enum Elsewhere {
    Failed(Status),
    Unconnected(Failure),
}

async fn attempt<T, F, R>(link: &Link, deadline: Instant, request: &F) -> Result<T, Status>
where
    F: Fn(Client, Duration) -> R,
    R: Future<Output = Result<Response<T>, Status>>,
{
    let budget = deadline.saturating_duration_since(Instant::now());
    match tokio::time::timeout(budget, request(link.client.clone(), budget)).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

async fn fetch_view(client: Client, budget: Duration) -> Result<Response<ClusterView>, Status> {
    let events_since = u64::MAX;
    let request = timed(GetClusterRequest { events_since }, budget);
    client.admin().get_cluster(request).await
}

/// Whether another node may well do what this one did not.
fn worth_another_node(status: &Status) -> bool {
    match proto::error::detail(status) {
        // A node that was just removed knows no more of the cluster it was asked about.
        Some(detail) => matches!(detail.code(), ErrorCode::Draining | ErrorCode::Removed),
        None => Exit::of_status(status) == Exit::Unreachable,
    }
}

/// Whether the call may have been carried out although nobody said so.
fn in_doubt(status: &Status) -> bool {
    proto::error::detail(status).is_none()
        && matches!(Exit::of_status(status), Exit::Unreachable | Exit::TimedOut)
}

fn unreachable(error: &Unreachable) -> Failure {
    let tried = error.tried.iter();
    let tried: Vec<String> = tried.map(|(endpoint, why)| format!("{endpoint} {why}")).collect();
    let why = tried.join("; ");
    if error.is_tls {
        return Failure::new(Exit::NotPermitted, "TLS", "no secured connection to any node")
            .advice(advice_for_tls(&why))
            .why(why);
    }
    Failure::new(Exit::Unreachable, "UNREACHABLE", "no node reachable")
        .why(why)
        .advice("another node: --endpoint HOST:PORT or KVCTL_ENDPOINTS")
}

/// What to do about it, by which side does not trust which.
fn advice_for_tls(why: &str) -> &'static str {
    if why.contains("speaks no TLS") {
        "without --tls-ca (KVCTL_TLS_CA, tls.ca of the profile); or start the nodes with --tls-cert"
    } else if why.contains("speaks TLS") {
        "--tls-ca FILE, the CA that signed the nodes' certificates"
    } else if why.contains("this side's certificate") || why.contains("client certificate") {
        "another --tls-cert and --tls-key: signed by a CA the nodes trust, and good today"
    } else if why.contains("no CA trusted here") {
        "another --tls-ca FILE: the CA that signed the nodes' certificates"
    } else if why.contains("expired") || why.contains("not valid yet") {
        "new certificates on the nodes, then kvctl certs reload; or set this machine's clock"
    } else if why.contains("shows a certificate for") {
        "--endpoint with a name the certificate is for; or new certificates with this name on the nodes"
    } else {
        "other --tls-ca, --tls-cert and --tls-key"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_gives_up_before_the_caller_does() {
        for (ms, expected) in [(10_000, 9_750), (1_000, 950), (10, 9), (1, 1)] {
            assert_eq!(server_ms(Duration::from_millis(ms)), expected);
        }
    }

    #[test]
    fn only_a_lost_connection_or_a_node_that_is_going_is_left_for_another() {
        let detail = |code: ErrorCode| {
            proto::error::status(&proto::v1::ErrorDetail {
                code: code as i32,
                ..Default::default()
            })
        };
        assert!(worth_another_node(&Status::unavailable("x")));
        assert!(worth_another_node(&detail(ErrorCode::Draining)));
        assert!(worth_another_node(&detail(ErrorCode::Removed)));
        assert!(!worth_another_node(&detail(ErrorCode::QuorumUnmet)));
        assert!(!worth_another_node(&Status::deadline_exceeded("x")));
        assert!(in_doubt(&Status::deadline_exceeded("x")));
        assert!(!in_doubt(&detail(ErrorCode::QuorumUnmet)));
    }
}
