//! Watches the room on the disk. Past the first watermark the node warns; past the second, or when
//! its reserve had to go, it takes no client puts, while gets, deletes and repair go on. It comes
//! back by itself.

use super::Node;
use crate::storage::disk::Room;
use proto::v1::Level;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How full a disk may be, percent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    /// From here on it is said.
    pub warn: u8,
    /// From here on puts are refused.
    pub full: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum State {
    Roomy,
    Filling,
    Full,
}

/// Looks once a second, as long as the node runs.
pub async fn watch(node: Arc<Node>, watermarks: Watermarks) {
    let mut before = State::Roomy;
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let store = node.store.clone();
        // Making the reserve again may take a moment.
        let looked = tokio::task::spawn_blocking(move || (store.tend_reserve(), store.room()));
        let Ok((Ok(reserve), room)) = looked.await else { return }; // the store has stopped
        let now = judge(room, watermarks, reserve);
        node.disk_full.store(now == State::Full, Ordering::Relaxed);
        if now != before {
            let (level, what) = match now {
                State::Roomy => (Level::Ok, "has room again"),
                State::Filling if before == State::Full => (Level::Ok, "has room for puts again"),
                State::Filling => (Level::Degraded, "is filling up"),
                State::Full => (Level::Critical, "is full: this node takes no puts"),
            };
            let reserve = if reserve { "" } else { ", the reserve is in use" };
            let used = used_percent(room);
            node.events.add(level, format!("disk {what} ({used}% used{reserve})"));
        }
        before = now;
    }
}

fn judge(room: Room, watermarks: Watermarks, reserve: bool) -> State {
    match used_percent(room) {
        _ if !reserve => State::Full,
        used if used >= u64::from(watermarks.full) => State::Full,
        used if used >= u64::from(watermarks.warn) => State::Filling,
        _ => State::Roomy,
    }
}

/// Whole percent, rounded down; 0 when unknown.
fn used_percent(room: Room) -> u64 {
    let used = room.total_bytes.saturating_sub(room.free_bytes);
    (used * 100).checked_div(room.total_bytes).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_judged_by_its_watermarks_and_the_unknown_is_not_full() {
        let watermarks = Watermarks { warn: 85, full: 95 };
        let judged =
            |total_bytes, free_bytes| judge(Room { total_bytes, free_bytes }, watermarks, true);
        assert_eq!(judged(1000, 151), State::Roomy);
        assert_eq!(judged(1000, 150), State::Filling);
        assert_eq!(judged(1000, 50), State::Full);
        assert_eq!(judged(0, 0), State::Roomy);
        let roomy = Room { total_bytes: 1000, free_bytes: 900 };
        assert_eq!(judge(roomy, watermarks, false), State::Full, "its reserve had to go");
    }
}
