//! One put or delete, as a machine: it is fed acknowledgements and says whom to send the object,
//! and when to answer. It knows no clock and sends nothing.
//!
//! Every home replica is sent the object; the client is answered when W of them have it on disk.
//! Sloppy: a fallback stands in for a home that is down, keeps a hint, and counts toward W; with no
//! home up, one of them coordinates. Strict: only homes count, and with fewer than W of them up the
//! write is refused at once. A home that nobody stands in for gets a hint at the coordinator, which
//! counts for nothing: its disk has the write already.
//!
//! While copies move, a key has several sets of replicas, and each has to have its W.

use crate::dynamo::layout::Mode;
use crate::dynamo::node::Uid;
use std::collections::{BTreeMap, BTreeSet};

/// Replicas of which so many have to have a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteSet {
    /// The replicas.
    pub members: Vec<Uid>,
    /// W.
    pub needed: u8,
}

/// What a write sets out with.
#[derive(Clone, Debug)]
pub struct WriteSpec {
    /// Every set of replicas that counts.
    pub sets: Vec<WriteSet>,
    /// Whether fallbacks count.
    pub mode: Mode,
    /// The node that coordinates; its own disk is the first replica.
    pub coordinator: Uid,
    /// All replicas, of whichever set. The coordinator is among them, unless all are down.
    pub homes: Vec<Uid>,
    /// Homes that are believed down: not sent to.
    pub down: BTreeSet<Uid>,
    /// Nodes that are up and may stand in, in order. Unused when strict.
    pub fallbacks: Vec<Uid>,
}

impl WriteSpec {
    /// The home a coordinator that is none itself keeps a hint for: the first.
    pub fn stands_in_for(&self) -> Option<Uid> {
        if self.homes.contains(&self.coordinator) { None } else { self.homes.first().copied() }
    }
}

/// What the caller is to do next. `Answer` or `Fail` comes exactly once, and at most once
/// more after a `Fail` for each home that [`Write::is_back`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteStep {
    /// Send the object to this replica.
    Send(Uid),
    /// Send it to a fallback, with a hint that it is for `home`.
    SendHinted {
        /// The fallback.
        to: Uid,
        /// The replica that is down.
        home: Uid,
    },
    /// Keep a hint for this home, here.
    KeepHint(Uid),
    /// W have it on disk: tell the client.
    Answer,
    /// W cannot be met. Something was sent: the outcome is unknown.
    Fail,
}

/// Refused before anything was stored or sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TooFewUp {
    /// Nodes that are up and would count.
    pub up: usize,
    /// W.
    pub needed: u8,
}

/// One write under way.
#[derive(Debug)]
pub struct Write {
    spec: WriteSpec,
    /// Who has been sent the object, and for which absent home.
    waiting: BTreeMap<Uid, Option<Uid>>,
    acked: BTreeSet<Uid>,
    /// Fallbacks that have it, and for whom.
    hinted: BTreeMap<Uid, Uid>,
    fallbacks_used: usize,
    ended: bool,
}

impl Write {
    /// Begins. The caller stores the object at the coordinator, and sends as the steps say as soon
    /// as it is made: it need not wait for its own disk.
    pub fn start(spec: WriteSpec) -> Result<(Self, Vec<WriteStep>), TooFewUp> {
        assert!(!spec.down.contains(&spec.coordinator), "the coordinator is up");
        let homes_up = spec.homes.iter().filter(|home| !spec.down.contains(home)).count();
        let is_home = spec.homes.contains(&spec.coordinator);
        assert!(is_home || homes_up == 0, "a home that is up coordinates");
        for set in &spec.sets {
            let homes_up = set.members.iter().filter(|home| !spec.down.contains(home)).count();
            let up = match spec.mode {
                Mode::Strict => homes_up,
                Mode::Sloppy => homes_up + spec.fallbacks.len() + usize::from(!is_home),
            };
            if up < usize::from(set.needed) {
                return Err(TooFewUp { up, needed: set.needed });
            }
        }
        let mut write = Self {
            waiting: BTreeMap::from([(spec.coordinator, spec.stands_in_for())]),
            acked: BTreeSet::new(),
            hinted: BTreeMap::new(),
            fallbacks_used: 0,
            ended: false,
            spec,
        };
        let steps = write.first_sends();
        Ok((write, steps))
    }

    /// This node has the object on disk.
    pub fn ack(&mut self, from: Uid) -> Vec<WriteStep> {
        match self.waiting.remove(&from) {
            None => return Vec::new(),
            Some(None) => drop(self.acked.insert(from)),
            Some(Some(home)) => drop(self.hinted.insert(from, home)),
        }
        if self.is_met() { self.end(WriteStep::Answer) } else { Vec::new() }
    }

    /// Whether every set has its W.
    fn is_met(&self) -> bool {
        self.spec.sets.iter().all(|set| self.count(set, false) >= usize::from(set.needed))
    }

    /// How many of a set have it, themselves or by a fallback; with `hoping`, or may yet.
    fn count(&self, set: &WriteSet, hoping: bool) -> usize {
        let has = |home: &&Uid| {
            let waiting =
                || self.waiting.iter().any(|(to, hint)| hint.as_ref().unwrap_or(to) == *home);
            self.acked.contains(home)
                || self.hinted.values().any(|hinted| hinted == *home)
                || (hoping && waiting())
        };
        set.members.iter().filter(has).count()
    }

    /// This node failed, or cannot be reached: a fallback takes its place, if one may.
    pub fn fail(&mut self, from: Uid) -> Vec<WriteStep> {
        let Some(hint) = self.waiting.remove(&from) else {
            return Vec::new();
        };
        let home = hint.unwrap_or(from);
        // What the coordinator's own disk did not take, it cannot keep for anybody.
        let mut steps = if from == self.spec.coordinator && hint.is_none() {
            Vec::new()
        } else {
            self.stand_in(home)
        };
        steps.extend(self.fail_if_hopeless());
        steps
    }

    /// Once some set cannot have its W any more.
    fn fail_if_hopeless(&mut self) -> Vec<WriteStep> {
        let possible = |set: &WriteSet| self.count(set, true) >= usize::from(set.needed);
        if self.spec.sets.iter().all(possible) { Vec::new() } else { self.end(WriteStep::Fail) }
    }

    /// A home that was believed down is up: it is sent the object too. So it may make up for one that
    /// failed since, and a write that failed goes on if its word can help.
    pub fn is_back(&mut self, home: Uid) -> Vec<WriteStep> {
        if !self.spec.down.remove(&home) || self.waiting.contains_key(&home) {
            return Vec::new();
        }
        self.waiting.insert(home, None);
        let mut steps = vec![WriteStep::Send(home)];
        if !self.is_met() {
            self.ended = false;
            steps.extend(self.fail_if_hopeless());
        }
        steps
    }

    /// The deadline passed. Whoever has not answered may not have it.
    pub fn expire(&mut self) -> Vec<WriteStep> {
        let mut steps = self.end(WriteStep::Fail);
        let waiting = std::mem::take(&mut self.waiting);
        let silent = waiting.into_iter().filter(|(node, _)| *node != self.spec.coordinator);
        steps.extend(silent.map(|(node, hint)| WriteStep::KeepHint(hint.unwrap_or(node))));
        steps
    }

    /// Homes that have it on disk.
    pub fn acked(&self) -> &BTreeSet<Uid> {
        &self.acked
    }

    /// Fallbacks that have it on disk, with a hint, and for whom.
    pub fn hinted(&self) -> &BTreeMap<Uid, Uid> {
        &self.hinted
    }

    /// Whether nothing more can come of it: ended, and no acknowledgement outstanding.
    pub fn is_over(&self) -> bool {
        self.ended && self.waiting.is_empty()
    }

    fn first_sends(&mut self) -> Vec<WriteStep> {
        let mut steps = Vec::new();
        let stands_in_for = self.spec.stands_in_for();
        for home in self.spec.homes.clone() {
            if Some(home) == stands_in_for {
                // the coordinator keeps it
            } else if self.spec.down.contains(&home) {
                steps.extend(self.stand_in(home));
            } else if home != self.spec.coordinator {
                self.waiting.insert(home, None);
                steps.push(WriteStep::Send(home));
            }
        }
        steps
    }

    fn stand_in(&mut self, home: Uid) -> Vec<WriteStep> {
        let next = self.spec.fallbacks.get(self.fallbacks_used);
        let next = next.filter(|_| self.spec.mode == Mode::Sloppy);
        let Some(&to) = next else {
            return vec![WriteStep::KeepHint(home)];
        };
        self.fallbacks_used += 1;
        self.waiting.insert(to, Some(home));
        vec![WriteStep::SendHinted { to, home }]
    }

    fn end(&mut self, step: WriteStep) -> Vec<WriteStep> {
        if std::mem::replace(&mut self.ended, true) { Vec::new() } else { vec![step] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Uid = Uid(1);
    const B: Uid = Uid(2);
    const C: Uid = Uid(3);
    const F: Uid = Uid(9);

    fn spec(w: u8, mode: Mode, down: &[Uid], fallbacks: &[Uid]) -> WriteSpec {
        WriteSpec {
            sets: vec![WriteSet { members: vec![A, B, C], needed: w }],
            mode,
            coordinator: A,
            homes: vec![A, B, C],
            down: down.iter().copied().collect(),
            fallbacks: fallbacks.to_vec(),
        }
    }

    #[test]
    fn every_replica_is_sent_the_object_and_w_acks_answer() {
        let (mut write, steps) = Write::start(spec(2, Mode::Sloppy, &[], &[])).unwrap();
        assert_eq!(steps, [WriteStep::Send(B), WriteStep::Send(C)]);
        assert_eq!(write.ack(C), []);
        assert_eq!(write.ack(C), [], "one node counts once");
        assert_eq!(write.ack(A), [WriteStep::Answer]);
        assert!(!write.is_over(), "the third replica is still waited for");
        assert_eq!(write.ack(B), []);
        assert!(write.is_over());
    }

    #[test]
    fn strict_with_too_few_up_is_refused_before_anything_is_sent() {
        let refused = Write::start(spec(2, Mode::Strict, &[B, C], &[F])).unwrap_err();
        assert_eq!(refused, TooFewUp { up: 1, needed: 2 });
    }

    #[test]
    fn sloppy_sends_to_a_fallback_in_place_of_a_home_that_is_down() {
        let (mut write, steps) = Write::start(spec(2, Mode::Sloppy, &[B, C], &[F])).unwrap();
        // There is one fallback: the other home's hint is kept here.
        assert_eq!(steps, [WriteStep::SendHinted { to: F, home: B }, WriteStep::KeepHint(C)]);
        write.ack(A);
        assert_eq!(write.ack(F), [WriteStep::Answer]);
        assert!(write.hinted().contains_key(&F));
    }

    #[test]
    fn sloppy_turns_to_a_fallback_when_a_home_fails() {
        let (mut write, _) = Write::start(spec(3, Mode::Sloppy, &[], &[F])).unwrap();
        assert_eq!(write.fail(B), [WriteStep::SendHinted { to: F, home: B }]);
        assert_eq!(write.fail(F), [WriteStep::KeepHint(B), WriteStep::Fail]);
    }

    #[test]
    fn strict_never_turns_to_a_fallback() {
        let (mut write, _) = Write::start(spec(3, Mode::Strict, &[], &[F])).unwrap();
        assert_eq!(write.fail(B), [WriteStep::KeepHint(B), WriteStep::Fail]);
    }

    #[test]
    fn a_home_that_nobody_stands_in_for_gets_a_hint_here_that_counts_for_nothing() {
        let (mut write, steps) = Write::start(spec(2, Mode::Strict, &[C], &[F])).unwrap();
        assert_eq!(steps, [WriteStep::Send(B), WriteStep::KeepHint(C)]);
        assert_eq!(write.ack(A), []);
        assert_eq!(write.ack(B), [WriteStep::Answer]);
        assert!(write.hinted().is_empty());
        // And one that says nothing until the deadline.
        let (mut write, _) = Write::start(spec(2, Mode::Sloppy, &[], &[])).unwrap();
        write.ack(A);
        assert_eq!(write.ack(B), [WriteStep::Answer]);
        assert_eq!(write.expire(), [WriteStep::KeepHint(C)]);
        assert!(write.is_over());
    }

    #[test]
    fn a_home_that_is_back_makes_up_for_one_that_failed_since() {
        let (mut write, steps) = Write::start(spec(2, Mode::Strict, &[C], &[])).unwrap();
        assert_eq!(steps, [WriteStep::Send(B), WriteStep::KeepHint(C)]);
        write.ack(A);
        assert_eq!(write.fail(B), [WriteStep::KeepHint(B), WriteStep::Fail]);
        assert_eq!(write.is_back(B), [], "it was asked, and failed");
        assert_eq!(write.is_back(C), [WriteStep::Send(C)]);
        assert_eq!(write.is_back(C), [], "it is sent the object once");
        assert_eq!(write.ack(C), [WriteStep::Answer]);
        // One that cannot help enough leaves it failed; one after the answer changes nothing.
        let (mut write, _) = Write::start(spec(3, Mode::Sloppy, &[C], &[F])).unwrap();
        assert_eq!(write.fail(B), [WriteStep::KeepHint(B), WriteStep::Fail]);
        assert_eq!(write.is_back(C), [WriteStep::Send(C), WriteStep::Fail]);
        let (mut write, _) = Write::start(spec(1, Mode::Strict, &[C], &[])).unwrap();
        assert_eq!(write.ack(A), [WriteStep::Answer]);
        assert_eq!(write.is_back(C), [WriteStep::Send(C)]);
        assert_eq!(write.ack(C), []);
    }

    #[test]
    fn with_no_home_up_a_fallback_coordinates_and_keeps_the_hints() {
        let mut spec = spec(1, Mode::Sloppy, &[A, B, C], &[F]);
        spec.coordinator = Uid(99);
        let (mut write, steps) = Write::start(spec.clone()).unwrap();
        // For the first home itself; for the second the other fallback, and for the third itself.
        assert_eq!(steps, [WriteStep::SendHinted { to: F, home: B }, WriteStep::KeepHint(C)]);
        assert_eq!(write.ack(Uid(99)), [WriteStep::Answer]);
        assert!(write.acked().is_empty() && write.hinted().contains_key(&Uid(99)));
        spec.mode = Mode::Strict;
        assert_eq!(Write::start(spec).unwrap_err(), TooFewUp { up: 0, needed: 1 });
    }

    #[test]
    fn the_coordinators_own_disk_may_fail_and_the_others_still_make_w() {
        let (mut write, _) = Write::start(spec(2, Mode::Strict, &[], &[])).unwrap();
        assert_eq!(write.fail(A), []);
        write.ack(B);
        assert_eq!(write.ack(C), [WriteStep::Answer]);
    }

    #[test]
    fn every_set_has_to_have_its_w() {
        let mut spec = spec(2, Mode::Strict, &[], &[]);
        spec.sets.push(WriteSet { members: vec![B, C, F], needed: 2 });
        spec.homes.push(F);
        let (mut write, steps) = Write::start(spec.clone()).unwrap();
        assert_eq!(steps, [WriteStep::Send(B), WriteStep::Send(C), WriteStep::Send(F)]);
        assert_eq!(write.ack(A), []);
        assert_eq!(write.ack(B), [], "two of the first, one of the second");
        assert_eq!(write.ack(F), [WriteStep::Answer]);

        let (mut write, _) = Write::start(spec.clone()).unwrap();
        write.ack(A);
        write.fail(B);
        assert_eq!(
            write.fail(F),
            [WriteStep::KeepHint(F), WriteStep::Fail],
            "one of the second is left"
        );

        spec.down = [C, F].into();
        assert_eq!(Write::start(spec.clone()).unwrap_err(), TooFewUp { up: 1, needed: 2 });
        // A fallback counts in the sets of whom it stands in for.
        (spec.mode, spec.down, spec.fallbacks) = (Mode::Sloppy, [F].into(), vec![Uid(10)]);
        let (mut write, _) = Write::start(spec).unwrap();
        write.ack(Uid(10));
        assert_eq!(write.ack(A), [], "not in the first set");
        assert_eq!(write.ack(C), [WriteStep::Answer]);
    }

    #[test]
    fn the_deadline_ends_a_write_once() {
        let (mut write, _) = Write::start(spec(3, Mode::Sloppy, &[], &[])).unwrap();
        assert_eq!(
            write.expire(),
            [WriteStep::Fail, WriteStep::KeepHint(B), WriteStep::KeepHint(C)]
        );
        assert_eq!(write.expire(), []);
        assert_eq!(write.ack(B), [], "an ack after the end changes nothing");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn whatever_comes_in_whatever_order(
            n in 1u8..=5, w in 1u8..=5, strict in any::<bool>(),
            down in any::<u8>(), fallbacks in 0u128..4,
            moves in prop::collection::vec((0u128..14, 0u8..3), 0..40)
        ) {
            let w = w.min(n);
            let homes: Vec<Uid> = (0..u128::from(n)).map(Uid).collect();
            let down = homes.iter().skip(1).filter(|uid| down >> uid.0 & 1 == 1).copied().collect();
            let mode = if strict { Mode::Strict } else { Mode::Sloppy };
            let spec = WriteSpec {
                sets: vec![WriteSet { members: homes.clone(), needed: w }],
                mode, coordinator: homes[0], homes: homes.clone(),
                down, fallbacks: (10..10 + fallbacks).map(Uid).collect(),
            };
            let Ok((mut write, mut steps)) = Write::start(spec.clone()) else {
                let up = homes.len() - spec.down.len() + if strict { 0 } else { fallbacks as usize };
                prop_assert!(up < usize::from(w));
                return Ok(());
            };
            let mut sent = BTreeSet::from([homes[0]]);
            let mut acked = BTreeSet::new();
            let (mut ends, mut answers, mut returned) = (0, 0, 0);
            for (node, what) in moves.into_iter().map(Some).chain([None]).map(|m| m.unwrap_or((99, 0))) {
                for step in std::mem::take(&mut steps) {
                    match step {
                        WriteStep::Send(to) => prop_assert!(sent.insert(to) && homes.contains(&to)),
                        WriteStep::SendHinted { to, .. } => {
                            prop_assert!(!strict && to.0 >= 10 && sent.insert(to));
                        }
                        WriteStep::KeepHint(home) => {
                            prop_assert!(homes.contains(&home) && home != homes[0]);
                        }
                        WriteStep::Answer => {
                            (ends, answers) = (ends + 1, answers + 1);
                            prop_assert!(acked.len() >= usize::from(w));
                        }
                        WriteStep::Fail => ends += 1,
                    }
                }
                if node == 99 {
                    break;
                }
                let node = Uid(node);
                steps = match what {
                    0 => write.fail(node),
                    1 => {
                        if write.waiting.contains_key(&node) {
                            acked.insert(node);
                        }
                        write.ack(node)
                    }
                    _ => write.is_back(node),
                };
                returned += usize::from(what == 2 && !steps.is_empty());
            }
            steps.extend(write.expire());
            let of = |end| steps.iter().filter(|step| **step == end).count();
            (ends, answers) = (ends + of(WriteStep::Answer) + of(WriteStep::Fail), answers + of(WriteStep::Answer));
            prop_assert!((1..=1 + returned).contains(&ends), "{} ends, {} came back", ends, returned);
            prop_assert!(answers <= 1, "a client is answered once");
        }
    }
}
