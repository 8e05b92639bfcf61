//! How far copies have come, as it is stored: nothing of it is needed, it only saves work.

use super::{Copy, lock};
use crate::cluster::{Node, documents};
use crate::dynamo::node::KeyspaceId;
use prost::Message;
use proto::token::Token;

const FACT_COPIED: &str = "copied";

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

pub(super) async fn store(node: &Node) {
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

pub(super) fn restore(node: &Node) {
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
