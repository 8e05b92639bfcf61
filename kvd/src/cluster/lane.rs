//! The calls to one peer that go the same way. There are two lanes: requests take the first; what
//! is done in the background takes the second, on a connection of its own, so that no request waits
//! behind it. A lane has a queue, which links take from, and room for what is in it.

use crate::clock;
use proto::v1::{Answer, Call, ErrorCode, ErrorDetail, Outcome, answer, call};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout_at;

/// Calls in one message, at most.
pub const BATCH_CALLS_MAX: usize = 64;

/// Which way a call goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// What somebody waits for: requests, beats, gossip, questions of operators. What comes of it
    /// says whether the peer can be sent more, and how quick it is.
    Requests,
    /// Repair, hints, reaping, healing. Says nothing of the peer.
    Bulk,
}

/// How much a lane holds.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Calls waiting to be sent, at most.
    calls: usize,
    /// Kibibytes of objects waiting to be sent or answered, at most.
    kib: usize,
    /// Calls sent and not answered, at most. One more fails.
    pending: usize,
    /// At the first two bounds a call waits, and does not fail at once as if the peer were down.
    waits: bool,
}

impl Lane {
    const fn bounds(self) -> Bounds {
        match self {
            Self::Requests => {
                Bounds { calls: 4096, kib: 128 * 1024, pending: 16 * 1024, waits: false }
            }
            // Nobody is kept waiting by it, and a few large objects fill it: it waits for its turn.
            Self::Bulk => Bounds { calls: 256, kib: 16 * 1024, pending: 1024, waits: true },
        }
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub enum CallError {
    /// It was never sent: nothing happened.
    NotSent(String),
    /// It was sent, and what became of it is unknown.
    Lost(String),
    /// The peer refused it.
    Refused(Box<ErrorDetail>),
}

impl CallError {
    /// Whether the replica's copy is damaged: it has no vote, and needs repair.
    pub fn is_damaged_copy(&self) -> bool {
        matches!(self, Self::Refused(detail) if detail.code() == ErrorCode::RecordBad)
    }

    /// Whether the peer may have done what it was asked.
    pub fn may_have_been_applied(&self) -> bool {
        match self {
            Self::NotSent(_) => false,
            Self::Lost(_) => true,
            Self::Refused(detail) => detail.outcome() == Outcome::Unknown,
        }
    }

    /// In a few words, for the list of what each replica said.
    pub fn text(&self) -> String {
        match self {
            Self::NotSent(why) | Self::Lost(why) => why.clone(),
            Self::Refused(detail) => match detail.why.as_str() {
                "" => detail.what.clone(),
                why => format!("{}: {why}", detail.what),
            },
        }
    }
}

type Reply = oneshot::Sender<Result<answer::Body, CallError>>;

/// A call that waits to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// About how long it is, bytes.
    pub bytes: usize,
    body: call::Body,
    deadline: Instant,
    reply: Reply,
    room: OwnedSemaphorePermit,
}

/// The end of a lane that calls are put in.
#[derive(Debug)]
pub struct Queue {
    bounds: Bounds,
    calls: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
}

/// The other end, which a link takes them from.
#[derive(Debug)]
pub struct Waiting {
    calls: mpsc::Receiver<Outgoing>,
    taken: Vec<Outgoing>,
}

impl Queue {
    /// A lane's two ends.
    pub fn new(lane: Lane) -> (Self, Waiting) {
        let bounds = lane.bounds();
        let (calls, waiting) = mpsc::channel(bounds.calls);
        let room = Arc::new(Semaphore::new(bounds.kib));
        (Self { bounds, calls, room }, Waiting { calls: waiting, taken: Vec::new() })
    }

    /// Has a call of about `bytes` sent, and waits for the answer until `deadline`.
    pub async fn call(
        &self,
        body: call::Body,
        bytes: usize,
        deadline: Instant,
    ) -> Result<answer::Body, CallError> {
        let started = clock::now();
        let (reply, answer) = oneshot::channel();
        let call = |room| Outgoing { bytes, body, deadline, reply, room };
        let kib = (bytes / 1024 + 1).min(self.bounds.kib) as u32;
        let room = Arc::clone(&self.room);
        let taken = match self.bounds.waits {
            false => match room.try_acquire_many_owned(kib) {
                Ok(room) => self.calls.try_send(call(room)).is_ok(),
                Err(_) => false,
            },
            true => {
                let put_in = async {
                    let Ok(room) = room.acquire_many_owned(kib).await else { return false };
                    self.calls.send(call(room)).await.is_ok()
                };
                timeout_at(deadline.into(), put_in).await.unwrap_or(false)
            }
        };
        if !taken {
            return Err(CallError::NotSent("has too much waiting for it".into()));
        }
        match timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(CallError::Lost("connection lost".into())),
            Err(_) => {
                let waited = started.elapsed().as_millis();
                Err(CallError::Lost(format!("gave no answer in {waited} ms")))
            }
        }
    }
}

impl Waiting {
    /// Returns once there is a call to send.
    pub async fn some(&mut self) {
        if self.taken.is_empty() {
            self.calls.recv_many(&mut self.taken, BATCH_CALLS_MAX).await;
        }
    }

    /// Takes those that are ready to be sent together, [`BATCH_CALLS_MAX`] at most.
    pub fn take(&mut self) -> std::vec::Drain<'_, Outgoing> {
        self.taken.drain(..)
    }

    /// Fails all that wait now: none was sent.
    pub fn refuse(&mut self, why: &str) {
        let refuse = |call: Outgoing| {
            let _ = call.reply.send(Err(CallError::NotSent(why.to_owned()))); // the caller may have left
        };
        self.taken.drain(..).for_each(refuse);
        while let Ok(call) = self.calls.try_recv() {
            refuse(call);
        }
    }
}

/// Calls sent on one connection and not answered.
#[derive(Debug)]
pub struct Sent {
    max: usize,
    next_id: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
}

#[derive(Debug)]
struct Pending {
    since: Instant,
    deadline: Instant,
    reply: Reply,
    _room: OwnedSemaphorePermit,
}

/// What a look at the calls without an answer showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unanswered {
    /// Since when the oldest is, of those somebody still waits for.
    pub oldest: Option<Instant>,
    /// When the newest was sent of those that got none by their deadline.
    pub expired: Option<Instant>,
}

impl Sent {
    /// None yet. The ids of calls begin with `first_id`.
    pub fn new(lane: Lane, first_id: u64) -> Self {
        let next_id = AtomicU64::new(first_id);
        Self { max: lane.bounds().pending, next_id, pending: Mutex::default() }
    }

    /// Notes a call as sent and puts it in its envelope; nothing if nobody waits for it any more.
    pub fn register(&self, outgoing: Outgoing) -> Option<Call> {
        let Outgoing { body, deadline, reply, room, .. } = outgoing;
        let left = deadline.saturating_duration_since(clock::now());
        if reply.is_closed() || left.is_zero() {
            return None;
        }
        let mut pending = lock(&self.pending);
        if pending.len() >= self.max {
            let _ = reply.send(Err(CallError::NotSent("leaves too much unanswered".into())));
            return None;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        pending.insert(id, Pending { since: clock::now(), deadline, reply, _room: room });
        let deadline_ms = left.as_millis().clamp(1, u32::MAX.into()) as u32;
        Some(Call { id, deadline_ms, body: Some(body) })
    }

    /// Gives an answer to whoever waits for it.
    pub fn settle(&self, answer: Answer) {
        let Some(call) = lock(&self.pending).remove(&answer.id) else { return };
        let outcome = match answer.body {
            Some(answer::Body::Refused(detail)) => Err(CallError::Refused(Box::new(detail))),
            Some(body) => Ok(body),
            None => Err(CallError::Lost("answered in a way this node does not know".into())),
        };
        let _ = call.reply.send(outcome); // the caller may have left
    }

    /// Forgets calls nobody waits for any more, and tells of the rest.
    pub fn look(&self) -> Unanswered {
        let (now, mut expired) = (clock::now(), None);
        let mut pending = lock(&self.pending);
        pending.retain(|_, call| {
            if call.reply.is_closed() && call.deadline <= now {
                expired = expired.max(Some(call.since));
            }
            !call.reply.is_closed()
        });
        Unanswered { oldest: pending.values().map(|call| call.since).min(), expired }
    }

    /// The connection broke: what becomes of them is unknown.
    pub fn lose(&self, why: &str) {
        for (_, call) in lock(&self.pending).drain() {
            let _ = call.reply.send(Err(CallError::Lost(why.to_owned()))); // the caller may have left
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{BeatAnswer, LayoutCall};
    use std::time::Duration;

    fn body() -> call::Body {
        call::Body::Layout(LayoutCall::default())
    }

    fn in_ms(ms: u64) -> Instant {
        clock::now() + Duration::from_millis(ms)
    }

    #[tokio::test]
    async fn at_its_bound_one_lane_fails_at_once_and_the_other_waits_its_turn() {
        let too_much = 200 << 20;
        let (requests, _waiting) = Queue::new(Lane::Requests);
        let first = requests.call(body(), too_much, in_ms(60_000));
        tokio::pin!(first);
        assert!(timeout_at(in_ms(50).into(), &mut first).await.is_err(), "it is on its way");
        let second = requests.call(body(), 0, in_ms(60_000));
        let second = timeout_at(in_ms(10_000).into(), second).await.unwrap();
        assert!(matches!(second, Err(CallError::NotSent(_))));

        let (bulk, mut waiting) = Queue::new(Lane::Bulk);
        let first = bulk.call(body(), too_much, in_ms(60_000));
        tokio::pin!(first);
        assert!(timeout_at(in_ms(50).into(), &mut first).await.is_err());
        let late = bulk.call(body(), 0, in_ms(50)).await;
        assert!(matches!(late, Err(CallError::NotSent(_))), "not before its deadline was over");
        let second = bulk.call(body(), 0, in_ms(60_000));
        let carry = async {
            let sent = Sent::new(Lane::Bulk, 1);
            for _ in 0..2 {
                waiting.some().await;
                for call in waiting.take() {
                    let Call { id, .. } = sent.register(call).unwrap();
                    sent.settle(Answer { id, body: Some(answer::Body::Beat(BeatAnswer {})) });
                }
            }
        };
        let (first, second, ()) = tokio::join!(first, second, carry);
        assert!(first.is_ok() && second.is_ok());
    }

    #[tokio::test]
    async fn a_call_without_an_answer_by_its_deadline_is_told_of_once() {
        let (queue, mut waiting) = Queue::new(Lane::Bulk);
        let sent = Sent::new(Lane::Bulk, 1);
        let before = clock::now();
        let carry = async {
            waiting.some().await;
            waiting.take().for_each(|call| drop(sent.register(call)));
            assert!(sent.look().oldest.is_some());
            std::future::pending::<()>().await
        };
        tokio::select! {
            lost = queue.call(body(), 0, in_ms(50)) => {
                assert!(matches!(lost, Err(CallError::Lost(_))));
            }
            () = carry => {}
        }
        let looked = sent.look();
        assert!(looked.oldest.is_none() && looked.expired.is_some_and(|since| since >= before));
        assert_eq!(sent.look(), Unanswered::default());
    }
}
