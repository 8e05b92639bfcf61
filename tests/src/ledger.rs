//! What clients were told, kept outside of every node: which writes were acknowledged, and which
//! may or may not have been applied. Compared with what a cluster answers after a fault, it shows
//! what was lost and what was made up.

use crate::PATIENCE;
use bytes::Bytes;
use futures_util::future::join_all;
use proto::client::Client;
use proto::v1::{GetRequest, PutRequest};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tonic::Status;

/// Each writer writes so many keys, again and again.
const KEYS_A_WRITER: u64 = 64;

/// Deadline of a request, milliseconds.
const TIMEOUT_MS: u32 = 10_000;

/// Writers, each with keys of its own, and what they know.
pub struct Ledger {
    writers: Vec<Writer>,
    value_bytes: usize,
    acknowledged: Arc<AtomicUsize>,
}

struct Writer {
    name: usize,
    next: u64,
    keys: BTreeMap<String, Known>,
}

/// What is known of one key.
#[derive(Default)]
struct Known {
    /// The newest write that was acknowledged, and the context that came with it.
    sure: Option<(u64, Bytes)>,
    /// A write after it whose outcome is not known. The key is not written again.
    doubtful: Option<u64>,
}

impl Ledger {
    /// Nothing written yet.
    pub fn new(writers: usize, value_bytes: usize) -> Self {
        let writer = |name| Writer { name, next: 0, keys: BTreeMap::new() };
        let writers = (0..writers).map(writer).collect();
        Self { writers, value_bytes, acknowledged: Arc::default() }
    }

    /// Writes acknowledged so far, counted on while others write.
    pub fn acknowledged(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.acknowledged)
    }

    /// Writes through `client` until `enough` writes more are acknowledged, or each writer has
    /// failed once. Returns how they failed.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    pub async fn write(&mut self, client: &Client, w: Option<u32>, enough: usize) -> Vec<Status> {
        let (count, bytes) = (&self.acknowledged, self.value_bytes);
        let deadline = Instant::now() + PATIENCE;
        let until = count.load(Ordering::Relaxed).saturating_add(enough);
        let writers = self.writers.iter_mut().map(|writer| async move {
            while count.load(Ordering::Relaxed) < until {
                assert!(Instant::now() < deadline, "neither enough writes nor a failure in time");
                writer.write_one(client, w, bytes).await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        join_all(writers).await.into_iter().filter_map(Result::err).collect()
    }

    /// Reads every key through `client`, from `r` replicas; returns what is wrong with each that
    /// lacks an acknowledged write. A replica that was just started may not be linked to yet.
    ///
    /// # Panics
    /// If a value is there that nobody wrote, or a key cannot be read within [`PATIENCE`].
    pub async fn lost(&self, client: &Client, r: Option<u32>) -> Vec<String> {
        let mut lost = Vec::new();
        for (key, known) in self.writers.iter().flat_map(|writer| &writer.keys) {
            let get = GetRequest {
                key: key.clone().into(),
                r,
                timeout_ms: TIMEOUT_MS,
                ..Default::default()
            };
            let until = Instant::now() + PATIENCE;
            let siblings = loop {
                match client.kv().get(get.clone()).await {
                    Ok(found) => break found.into_inner().siblings,
                    Err(error) => assert!(Instant::now() < until, "{key}: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            let found: Vec<u64> =
                siblings.iter().map(|sibling| self.number(key, known, &sibling.value)).collect();
            let sure = known.sure.as_ref().map(|(number, _)| *number);
            // The write in doubt is there in place of the one before it, or it is not.
            let is_there =
                found == sure.as_slice() || !found.is_empty() && found == known.doubtful.as_slice();
            if !is_there {
                lost.push(format!("{key} should be at {sure:?}, is at {found:?}"));
            }
        }
        lost
    }

    /// Which write of `key` left `value`.
    fn number(&self, key: &str, known: &Known, value: &[u8]) -> u64 {
        let text = String::from_utf8_lossy(value);
        let number = text.split('#').nth(1).and_then(|number| number.parse::<u64>().ok());
        let last = known.doubtful.max(known.sure.as_ref().map(|(number, _)| *number));
        let written = number.filter(|number| {
            Some(*number) <= last && value == value_of(key, *number, self.value_bytes)
        });
        let start = &value[..value.len().min(40)];
        written.unwrap_or_else(|| panic!("nobody wrote this to {key}: {}", start.escape_ascii()))
    }
}

impl Writer {
    async fn write_one(
        &mut self,
        client: &Client,
        w: Option<u32>,
        bytes: usize,
    ) -> Result<(), Status> {
        let number = self.next;
        self.next += 1;
        let mut keys = (number..).map(|turn| format!("w{}-k{}", self.name, turn % KEYS_A_WRITER));
        let in_doubt = |key: &String| self.keys.get(key).is_some_and(|k| k.doubtful.is_some());
        let key = keys.find(|key| !in_doubt(key)).expect("few keys are in doubt");
        let known = self.keys.entry(key.clone()).or_default();
        let put = PutRequest {
            key: key.clone().into(),
            value: value_of(&key, number, bytes).into(),
            context: known.sure.clone().unwrap_or_default().1,
            w,
            timeout_ms: TIMEOUT_MS,
            ..Default::default()
        };
        match client.kv().put(put).await {
            Ok(reply) => known.sure = Some((number, reply.into_inner().context)),
            Err(error) => {
                known.doubtful = Some(number);
                return Err(error);
            }
        }
        Ok(())
    }
}

fn value_of(key: &str, number: u64, bytes: usize) -> Vec<u8> {
    let start = format!("{key}#{number}#");
    start.bytes().cycle().take(bytes.max(start.len())).collect()
}
