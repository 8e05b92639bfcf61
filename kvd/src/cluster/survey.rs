//! Asking the same of every member, or of one: what operators start, and how it is going.

use super::errors::{self, Failure};
use super::{Node, deadline};
use proto::v1::{answer, call};
use std::sync::Arc;

/// Asks the member of this name, or with an empty name every member; this node answers with
/// `here`. An answer or, in words, why there is none, for each, by name.
pub async fn ask<T>(
    node: &Arc<Node>,
    named: &str,
    body: call::Body,
    here: impl Fn() -> T,
    understand: impl Fn(answer::Body) -> Option<T>,
) -> Result<Vec<(String, Result<T, String>)>, Failure> {
    let cluster = node.cluster()?;
    if !named.is_empty() && cluster.layout.member_named(named).is_none() {
        return Err(errors::node_unknown(named));
    }
    let members = cluster.layout.members().iter();
    let members = members.filter(|member| named.is_empty() || member.name == named);
    let asking = members.map(|member| {
        let (peer, body) = (cluster.peers.get(&member.uid), body.clone());
        let (here, understand) = (&here, &understand);
        async move {
            let Some(peer) = peer else { return (member.name.clone(), Ok(here())) };
            let outcome = match peer.call(body, 0, deadline(0)).await {
                Ok(answer) => understand(answer).ok_or_else(|| "answered something else".into()),
                Err(error) => Err(error.text()),
            };
            (member.name.clone(), outcome)
        }
    });
    let mut answers = futures_util::future::join_all(asking).await;
    answers.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(answers)
}
