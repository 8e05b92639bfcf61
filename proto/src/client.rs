//! Connects to any node of a cluster.

use crate::MESSAGE_BYTES_MAX;
use crate::dial::Dial;
use crate::v1::{admin_client::AdminClient, kv_client::KvClient};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Wait this long for one endpoint before the next is tried beside it.
const RACE_STEP: Duration = Duration::from_millis(200);

/// A connection to one node.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    endpoint: String,
}

/// No endpoint could be reached: each with its reason, in the order given.
#[derive(Debug, thiserror::Error)]
#[error("no node reachable: {}", .tried.iter().map(|(at, why)| format!("{at} {why}")).collect::<Vec<_>>().join(", "))]
pub struct Unreachable {
    /// Endpoint and what went wrong there.
    pub tried: Vec<(String, String)>,
    /// What secures the connections is at fault at each of them.
    pub is_tls: bool,
}

impl Client {
    /// Connects to the first of `endpoints` (`host:port`) that answers. They are started 200 ms
    /// apart, so a dead one costs no more than that; each is given `timeout` to connect.
    pub async fn connect(endpoints: &[String], timeout: Duration) -> Result<Self, Unreachable> {
        Self::connect_by(&Dial::default(), endpoints, timeout).await
    }

    /// The same by `dial`, which may secure it.
    pub async fn connect_by(
        dial: &Dial,
        endpoints: &[String],
        timeout: Duration,
    ) -> Result<Self, Unreachable> {
        let mut racing = FuturesUnordered::new();
        for (position, endpoint) in endpoints.iter().enumerate() {
            racing.push(async move {
                tokio::time::sleep(RACE_STEP * position as u32).await;
                (position, dial.channel(endpoint, timeout, tuned).await)
            });
        }
        let mut failed = Vec::new();
        while let Some((position, outcome)) = racing.next().await {
            match outcome {
                Ok(channel) => {
                    return Ok(Self { channel, endpoint: endpoints[position].clone() });
                }
                Err(why) => failed.push((position, why)),
            }
        }
        failed.sort_unstable_by_key(|(position, _)| *position);
        let is_tls = !failed.is_empty() && failed.iter().all(|(_, refused)| refused.is_tls);
        let tried = failed.into_iter().map(|(at, refused)| (endpoints[at].clone(), refused.why));
        Err(Unreachable { tried: tried.collect(), is_tls })
    }

    /// Where this client is connected.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Calls of applications.
    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Calls of operators.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    // Without a keepalive a half-open connection would hang until the request's deadline.
    endpoint
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
}

/// The innermost error's text, without the system's number for it: "Connection refused" rather
/// than "transport error" or "Connection refused (os error 111)".
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
