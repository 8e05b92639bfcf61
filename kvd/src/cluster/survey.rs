//! Asking the same of every member, or of one: what operators start, and how it is going.

use super::errors::{self, Failure};
use super::{Cluster, Node, deadline};
use crate::clock;
use crate::dynamo::layout::Member;
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
    Ok(ask_each(&cluster, members, body, here, understand).await)
}

/// Asks everybody who has a part, who joins and who leaves too.
pub async fn ask_parties<T>(
    node: &Arc<Node>,
    cluster: &Cluster,
    body: call::Body,
    here: impl Fn() -> T,
    understand: impl Fn(answer::Body) -> Option<T>,
) -> Vec<(String, Result<T, String>)> {
    let parties = cluster.history.members();
    // One that others left out is asked by nobody; it still knows itself.
    let known =
        |member: &&Member| cluster.peers.contains_key(&member.uid) || member.uid == node.uid;
    ask_each(cluster, parties.iter().filter(known), body, here, understand).await
}

async fn ask_each<'a, T>(
    cluster: &Cluster,
    members: impl Iterator<Item = &'a Member>,
    body: call::Body,
    here: impl Fn() -> T,
    understand: impl Fn(answer::Body) -> Option<T>,
) -> Vec<(String, Result<T, String>)> {
    let asking = members.map(|member| {
        let (peer, body) = (cluster.peers.get(&member.uid), body.clone());
        let (here, understand) = (&here, &understand);
        async move {
            let Some(peer) = peer else { return (member.name.clone(), Ok(here())) };
            let outcome = match peer.call(body, 0, deadline(clock::now(), 0)).await {
                Ok(answer) => understand(answer).ok_or_else(|| "answered something else".into()),
                Err(error) => Err(error.text()),
            };
            (member.name.clone(), outcome)
        }
    });
    let mut answers = futures_util::future::join_all(asking).await;
    answers.sort_by(|(a, _), (b, _)| a.cmp(b));
    answers
}
