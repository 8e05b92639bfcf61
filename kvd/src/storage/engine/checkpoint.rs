//! The thread that brings frozen layers into the database, and then gives up their part of the
//! log. Between them it works at a compaction, if there is one.

use super::compaction::Compacting;
use super::writer::answer_all;
use super::{Inner, Store, lock, read, write};
use crate::clock;
use crate::storage::StoreError;
use crate::storage::recent::Layer;
use crate::storage::reserve;
use crate::storage::wal::Spares;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// At least so often it is looked whether anybody still holds the store.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    let mut compacting = None;
    loop {
        let Some(store) = store.upgrade() else { return };
        let outcome = match wait(&store, &mut last, compacting.as_ref().map(Compacting::due)) {
            Wait::Layer(layer, segments) => {
                last = clock::now();
                let before = compacting.take();
                guarded(&store, || bring_in(&store, spares, &layer, &segments, before))
            }
            Wait::Compact => {
                let before = compacting.take();
                match guarded(&store, || Compacting::go_on(before, &store)) {
                    Ok(after) => {
                        compacting = after;
                        continue;
                    }
                    error => error,
                }
            }
            Wait::Again => continue,
            Wait::Over(why) => {
                compacting.take().into_iter().for_each(|it| it.break_off(&store));
                Err(StoreError::Stopped(why))
            }
        };
        let mut checkpoint = lock(&store.checkpoint);
        checkpoint.segments = None;
        answer_all(
            std::mem::take(&mut checkpoint.waiting),
            &outcome.as_ref().map(|_| ()).map_err(StoreError::clone),
        );
        // Under the lock: nobody can begin to wait after this looks, unseen.
        drop(checkpoint);
        store.checkpoint_changed.notify_all();
        match outcome {
            Ok(after) => compacting = after,
            Err(_) => return,
        }
    }
}

/// What `work` leads to; a panic in it stops the store.
fn guarded<T>(
    store: &Inner,
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let panicked = |_| Err(store.stop(&"a checkpoint panicked"));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

enum Wait {
    Layer(Arc<Layer>, Vec<u64>),
    Compact,
    Again,
    /// The store closes or has stopped.
    Over(String),
}

/// Waits for the next layer to bring in, or the next step of a compaction, if `due` is when one
/// under way goes on.
fn wait(store: &Arc<Inner>, last: &mut Instant, due: Option<Instant>) -> Wait {
    let mut checkpoint = lock(&store.checkpoint);
    let is_due = |compact: bool| compact && due.is_none_or(|due| due <= clock::now());
    let idle = checkpoint.segments.is_none() && !checkpoint.closing;
    if idle && !is_due(checkpoint.compact) && store.stopped.borrow().is_none() {
        let until_due = due.map(|due| due.saturating_duration_since(clock::now()));
        let patience = until_due.map_or(LOOK_EVERY, |until_due| until_due.min(LOOK_EVERY));
        let waited = store.checkpoint_changed.wait_timeout(checkpoint, patience);
        checkpoint = waited.unwrap_or_else(PoisonError::into_inner).0;
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
    let is_due = is_due(checkpoint.compact);
    drop(checkpoint);
    if last.elapsed() > CHECKPOINT_EVERY {
        *last = clock::now();
        drop(Store { inner: Arc::clone(store) }.checkpoint()); // nobody waits for it
    }
    if is_due { Wait::Compact } else { Wait::Again }
}

/// Brings a layer into the database, then gives up its part of the log. A compaction under way
/// takes part.
fn bring_in(
    store: &Inner,
    spares: &Spares,
    layer: &Layer,
    segments: &[u64],
    compacting: Option<Compacting>,
) -> Result<Option<Compacting>, StoreError> {
    let through = segments.iter().copied().max().unwrap_or(0);
    store.make_way(reserve::checkpoint_bytes(layer.bytes()))?;
    store.shards.checkpoint(layer, through).map_err(|error| store.stop(&error))?;
    let compacting = match compacting {
        Some(compacting) => compacting.take_in(store, layer)?,
        None => None,
    };
    write(&store.recent).frozen = None;
    let give_up = || -> io::Result<()> {
        segments.iter().try_for_each(|segment| spares.recycle(*segment))?;
        spares.prepare()
    };
    give_up().map_err(|error| store.stop(&error))?;
    Ok(compacting)
}
