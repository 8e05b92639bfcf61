//! The thread that brings frozen layers into the database, and then gives up their part of the
//! log.

use super::writer::answer_all;
use super::{Inner, Store, lock, read, write};
use crate::clock;
use crate::storage::StoreError;
use crate::storage::recent::Layer;
use crate::storage::wal::Spares;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A recent layer is checkpointed when it is so old, however small.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// How far checkpoints stand back behind everything else.
const CHECKPOINT_NICENESS: i32 = 10;

/// The thread that brings frozen layers into the database.
pub(super) fn run(store: &Weak<Inner>, spares: &Spares) {
    // On Linux this is of the calling thread alone: requests go before checkpoints. Where it is
    // refused, checkpoints only take more of the machine.
    let _ = rustix::process::setpriority_process(None, CHECKPOINT_NICENESS);
    let mut last = clock::now();
    loop {
        let Some(store) = store.upgrade() else { return };
        let outcome = match wait_for_layer(&store, &mut last) {
            Wait::Layer(layer, segments) => {
                let work = || bring_in(&store, spares, &layer, &segments);
                last = clock::now();
                match catch_unwind(AssertUnwindSafe(work)) {
                    Ok(outcome) => outcome,
                    Err(_) => Err(store.stop(&"a checkpoint panicked")),
                }
            }
            Wait::Again => continue,
            Wait::Over(why) => Err(StoreError::Stopped(why)),
        };
        let mut checkpoint = lock(&store.checkpoint);
        checkpoint.segments = None;
        answer_all(std::mem::take(&mut checkpoint.waiting), &outcome);
        // Under the lock: nobody can begin to wait after this looks, unseen.
        let over = outcome.is_err();
        drop(checkpoint);
        store.checkpoint_changed.notify_all();
        if over {
            return;
        }
    }
}

enum Wait {
    Layer(Arc<Layer>, Vec<u64>),
    Again,
    /// The store closes or has stopped.
    Over(String),
}

/// Waits for the next layer to bring in.
fn wait_for_layer(store: &Arc<Inner>, last: &mut Instant) -> Wait {
    let mut checkpoint = lock(&store.checkpoint);
    let mut timed_out = false;
    if checkpoint.segments.is_none() && !checkpoint.closing && store.stopped.borrow().is_none() {
        // Short, so that a store nobody holds any more is noticed.
        let waited = store.checkpoint_changed.wait_timeout(checkpoint, Duration::from_secs(1));
        let waited = waited.unwrap_or_else(PoisonError::into_inner);
        (checkpoint, timed_out) = (waited.0, waited.1.timed_out());
    }
    let stopped = store.stopped.borrow().clone();
    if let Some(why) = stopped {
        return Wait::Over(why);
    }
    if let Some(segments) = checkpoint.segments.clone()
        && let Some(layer) = read(&store.recent).frozen.clone()
    {
        return Wait::Layer(layer, segments);
    }
    if checkpoint.closing {
        return Wait::Over("the node is shutting down".into());
    }
    drop(checkpoint);
    if timed_out && last.elapsed() > CHECKPOINT_EVERY {
        *last = clock::now();
        drop(Store { inner: Arc::clone(store) }.checkpoint()); // nobody waits for it
    }
    Wait::Again
}

/// Brings a layer into the database, then gives up its part of the log.
fn bring_in(
    store: &Inner,
    spares: &Spares,
    layer: &Layer,
    segments: &[u64],
) -> Result<(), StoreError> {
    let through = segments.iter().copied().max().unwrap_or(0);
    store.shards.checkpoint(layer, through).map_err(|error| store.stop(&error))?;
    write(&store.recent).frozen = None;
    let give_up = || -> io::Result<()> {
        segments.iter().try_for_each(|segment| spares.recycle(*segment))?;
        spares.prepare()
    };
    give_up().map_err(|error| store.stop(&error))
}
