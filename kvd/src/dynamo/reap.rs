//! When a tombstone may go.
//!
//! Never by a timer alone. It goes once every home of its key, in every open layout, holds the very
//! same one, and no member keeps a hint for the key: then no copy of what was deleted is left
//! anywhere. And not at once: a read repair, a hint or a transfer under way may carry one still, so
//! all members have to say so twice, longer apart than any of these may take. In between the
//! tombstone stays where it is and covers whatever comes. So time only delays; a member that cannot
//! be asked stops it for as long as it is away.
//!
//! What goes on one home some moments before it goes on another may be brought back by a comparison
//! in between. It is a tombstone that comes back, never what it covers, and it goes the next time.

use crate::dynamo::key::Key;
use crate::dynamo::merkle::Digest;
use crate::dynamo::node::Uid;
use proto::token::Token;
use std::collections::{BTreeMap, BTreeSet};

/// What a member says of a tombstone it is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Say {
    /// It holds that very one, all it should hold, and keeps no hint for the key.
    Holds,
    /// It is no home of the key, and keeps no hint for it.
    Clear,
    /// It is a home and lacks it, has it unlike, cannot prove its copy, or has no vote.
    Lacks,
    /// It keeps a hint for the key.
    KeepsHint,
}

/// Why a tombstone has to stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stays {
    /// This member did not say.
    Unheard(Uid),
    /// This home lacks it.
    Lacks(Uid),
    /// This member keeps a hint for the key.
    KeepsHint(Uid),
}

/// The home that sees to the reaping of a key: one of them, so that not all ask, and by the key's
/// token, so that each sees to its share. Without any one of them nothing can be reaped.
pub fn driver(homes: &BTreeSet<Uid>, token: Token) -> Option<Uid> {
    let turn = token.0 as u64 % (homes.len() as u64).max(1);
    homes.iter().nth(turn as usize).copied()
}

/// Whether all `members` say that nothing but this tombstone is left of a key with these `homes`,
/// those of every open layout.
pub fn judge(
    homes: &BTreeSet<Uid>,
    members: &BTreeSet<Uid>,
    said: &BTreeMap<Uid, Say>,
) -> Result<(), Stays> {
    for uid in homes.union(members) {
        match said.get(uid) {
            None => return Err(Stays::Unheard(*uid)),
            Some(Say::KeepsHint) => return Err(Stays::KeepsHint(*uid)),
            Some(Say::Lacks) => return Err(Stays::Lacks(*uid)),
            Some(Say::Clear) if homes.contains(uid) => return Err(Stays::Lacks(*uid)),
            Some(Say::Holds | Say::Clear) => {}
        }
    }
    Ok(())
}

/// Bytes that what is remembered of one key takes beside the key, about.
const ENTRY_BYTES: usize = 96;

/// Tombstones of which all members have said once that nothing else is left.
#[derive(Debug)]
pub struct Ripening {
    bytes_max: usize,
    bytes: usize,
    walk: u64,
    waiting: BTreeMap<Key, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    digest: Digest,
    since_ms: u64,
    /// The last walk that came by it.
    walk: u64,
}

impl Ripening {
    /// Nothing yet. It remembers about `bytes_max`; what there is no room for has its turn later.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, walk: 0, waiting: BTreeMap::new() }
    }

    /// A walk over all tombstones begins.
    pub fn begin_walk(&mut self) {
        self.walk += 1;
    }

    /// Whether it is any use asking about a key: it is waiting, or there is room for it to wait.
    pub fn wants(&self, key: &Key) -> bool {
        self.waiting.contains_key(key) || self.bytes + Self::bytes_of(key) <= self.bytes_max
    }

    /// All members say at `now_ms`, on a clock that never steps, that nothing but the tombstone of
    /// this digest is left: whether they said the same of it `after_ms` ago, or longer.
    pub fn agreed(&mut self, key: &Key, digest: Digest, now_ms: u64, after_ms: u64) -> bool {
        if let Some(waiting) = self.waiting.get_mut(key) {
            if waiting.digest != digest {
                (waiting.digest, waiting.since_ms) = (digest, now_ms);
            }
            waiting.walk = self.walk;
            return now_ms.saturating_sub(waiting.since_ms) >= after_ms;
        }
        if self.wants(key) {
            self.bytes += Self::bytes_of(key);
            let waiting = Waiting { digest, since_ms: now_ms, walk: self.walk };
            self.waiting.insert(key.clone(), waiting);
        }
        false
    }

    /// It was reaped, or has to stay: its time begins anew.
    pub fn forget(&mut self, key: &Key) {
        if self.waiting.remove(key).is_some() {
            self.bytes -= Self::bytes_of(key);
        }
    }

    /// A walk has come to its end: forgets what it did not come by, which is no tombstone any more.
    pub fn end_walk(&mut self) {
        let missed = self.waiting.iter().filter(|(_, waiting)| waiting.walk < self.walk);
        let missed: Vec<Key> = missed.map(|(key, _)| key.clone()).collect();
        missed.iter().for_each(|key| self.forget(key));
    }

    /// How many are waiting.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn bytes_of(key: &Key) -> usize {
        key.bytes().len() + ENTRY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::node::KeyspaceId;

    fn uids(uids: &[u128]) -> BTreeSet<Uid> {
        uids.iter().map(|uid| Uid(*uid)).collect()
    }

    fn key(name: &str) -> Key {
        Key::new(KeyspaceId(1), name.to_owned().into()).unwrap()
    }

    #[test]
    fn every_home_sees_to_its_share() {
        let homes = uids(&[1, 2, 3]);
        let mut share: BTreeMap<Uid, u32> = BTreeMap::new();
        for i in 0..300 {
            let driver = driver(&homes, key(&format!("k{i}")).token());
            *share.entry(driver.unwrap()).or_default() += 1;
        }
        assert!(share.len() == 3 && share.values().all(|keys| *keys > 60), "{share:?}");
        assert_eq!(driver(&uids(&[]), key("k").token()), None);
    }

    #[test]
    fn a_tombstone_goes_only_when_every_home_holds_it_and_nobody_keeps_a_hint() {
        use Say::{Clear, Holds, KeepsHint, Lacks};
        let (homes, members) = (uids(&[1, 2, 3]), uids(&[1, 2, 3, 4]));
        let judge = |said: [Option<Say>; 4]| {
            let said = (1..).map(Uid).zip(said).filter_map(|(uid, say)| Some((uid, say?)));
            judge(&homes, &members, &said.collect())
        };
        let holds = Some(Holds);
        assert_eq!(judge([holds, holds, holds, Some(Clear)]), Ok(()));
        assert_eq!(judge([holds, holds, holds, None]), Err(Stays::Unheard(Uid(4))));
        assert_eq!(judge([holds, None, holds, Some(Clear)]), Err(Stays::Unheard(Uid(2))));
        assert_eq!(judge([holds, Some(Lacks), holds, Some(Clear)]), Err(Stays::Lacks(Uid(2))));
        assert_eq!(judge([holds, Some(Clear), holds, Some(Clear)]), Err(Stays::Lacks(Uid(2))));
        let hint = [holds, holds, holds, Some(KeepsHint)];
        assert_eq!(judge(hint), Err(Stays::KeepsHint(Uid(4))));
    }

    /// Garage #39: a reap while a partition moves, with the old value still on its way to its new
    /// owner.
    #[test]
    fn a_reap_waits_for_the_homes_of_every_open_layout() {
        let (old, new) = (uids(&[1, 2, 3]), uids(&[2, 3, 4]));
        let homes: BTreeSet<Uid> = old.union(&new).copied().collect();
        let said = |four| {
            BTreeMap::from([1, 2, 3].map(|i| (Uid(i), Say::Holds)))
                .into_iter()
                .chain([(Uid(4), four)])
                .collect()
        };
        assert_eq!(judge(&homes, &homes, &said(Say::Lacks)), Err(Stays::Lacks(Uid(4))));
        assert_eq!(judge(&homes, &homes, &said(Say::Holds)), Ok(()));
    }

    #[test]
    fn all_have_to_say_so_twice_and_of_the_same_tombstone() {
        let mut ripening = Ripening::new(1000);
        let (k, one, other) = (key("k"), Digest(1), Digest(2));
        assert!(!ripening.agreed(&k, one, 1_000, 500), "once");
        assert!(!ripening.agreed(&k, one, 1_499, 500), "too soon");
        assert!(!ripening.agreed(&k, other, 1_600, 500), "another: from now on");
        assert!(!ripening.agreed(&k, other, 2_000, 500) && ripening.agreed(&k, other, 2_100, 500));
        ripening.forget(&k);
        assert!(!ripening.agreed(&k, other, 9_000, 500), "from now on");
        ripening.begin_walk();
        ripening.end_walk();
        assert!(ripening.is_empty() && ripening.bytes == 0);
    }

    #[test]
    fn what_it_remembers_is_bounded_and_the_rest_has_its_turn_later() {
        let mut ripening = Ripening::new(2 * (ENTRY_BYTES + 1));
        for name in ["a", "b", "c"] {
            assert!(!ripening.agreed(&key(name), Digest(7), 0, 10));
        }
        assert_eq!((ripening.len(), ripening.wants(&key("a"))), (2, true));
        assert!(!ripening.wants(&key("c")), "no use asking");
        assert!(ripening.agreed(&key("a"), Digest(7), 10, 10));
        assert!(!ripening.agreed(&key("c"), Digest(7), 10, 10), "there was no room");
        ripening.forget(&key("a"));
        assert!(!ripening.agreed(&key("c"), Digest(7), 20, 10));
        assert!(ripening.agreed(&key("c"), Digest(7), 30, 10));
    }
}
