//! Dotted version vectors (Preguiça et al., "Dotted Version Vectors", 2010): which writes a copy,
//! or a client, has seen.

use crate::dynamo::clock::Counter;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// 64 random bits, minted by one incarnation of one node for one key, and used only while that
/// node's own copy of the key has been continuously present.
///
/// Why so narrow: a coordinator may claim to have seen all of an actor's earlier writes only while
/// it still holds them. An actor that outlives its copy would cover writes that others still hold
/// and destroy them (basho/riak_kv#679).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor(pub u64);

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Names one write. Minted once, ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// Who minted it.
    pub actor: Actor,
    /// Above every counter that actor minted before.
    pub counter: Counter,
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{:?}", self.actor, self.counter)
    }
}

/// The writes someone has seen: all of an actor's up to a counter, and single dots beyond.
///
/// The single dots are what a writer saw of a write of its own: the write itself, but not what
/// others had the same coordinator store just before. Without them, putting twice in a row would
/// silently supersede a stranger's value.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Clock {
    upto: BTreeMap<Actor, Counter>,
    dots: BTreeSet<Dot>,
}

impl Clock {
    /// Nothing seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Exactly these writes seen.
    pub fn of_dots(dots: impl IntoIterator<Item = Dot>) -> Self {
        Self { upto: BTreeMap::new(), dots: dots.into_iter().collect() }
    }

    /// From parts, as decoded. Dots that `upto` covers are dropped.
    pub fn from_parts(upto: BTreeMap<Actor, Counter>, dots: BTreeSet<Dot>) -> Self {
        let mut clock = Self { upto, dots };
        clock.drop_covered_dots();
        clock
    }

    /// Every actor's counter up to which all is seen.
    pub fn upto(&self) -> &BTreeMap<Actor, Counter> {
        &self.upto
    }

    /// The single dots seen beyond.
    pub fn dots(&self) -> &BTreeSet<Dot> {
        &self.dots
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.upto.is_empty() && self.dots.is_empty()
    }

    /// Whether the write named by `dot` was seen.
    pub fn covers(&self, dot: Dot) -> bool {
        self.upto.get(&dot.actor).is_some_and(|upto| dot.counter <= *upto)
            || self.dots.contains(&dot)
    }

    /// The greatest counter in it; zero when empty.
    pub fn newest(&self) -> Counter {
        let upto = self.upto.values().copied();
        upto.chain(self.dots.iter().map(|dot| dot.counter)).max().unwrap_or_default()
    }

    /// Marks all of `dot.actor`'s writes up to `dot` as seen. Only the actor's own node may: it
    /// alone knows that it holds, or saw superseded, every earlier one.
    pub fn advance(&mut self, dot: Dot) {
        let upto = self.upto.entry(dot.actor).or_default();
        *upto = dot.counter.max(*upto);
        self.drop_covered_dots();
    }

    /// Marks one write as seen.
    pub fn add_dot(&mut self, dot: Dot) {
        if !self.covers(dot) {
            self.dots.insert(dot);
        }
    }

    /// All that either has seen.
    pub fn join(&mut self, other: &Self) {
        for (&actor, &counter) in &other.upto {
            let upto = self.upto.entry(actor).or_default();
            *upto = counter.max(*upto);
        }
        self.dots.extend(&other.dots);
        self.drop_covered_dots();
    }

    fn drop_covered_dots(&mut self) {
        let upto = &self.upto;
        self.dots.retain(|dot| upto.get(&dot.actor).is_none_or(|upto| dot.counter > *upto));
    }
}

/// `a1b2…:1700000000000.3` for each actor, `+` before single dots.
impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sep = "";
        for (actor, counter) in &self.upto {
            write!(f, "{sep}{actor:?}:{counter:?}")?;
            sep = " ";
        }
        for dot in &self.dots {
            write!(f, "{sep}+{dot:?}")?;
            sep = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clock() -> impl Strategy<Value = Clock> {
        let pair = || (0u64..4, 1u64..8);
        (prop::collection::vec(pair(), 0..4), prop::collection::vec(pair(), 0..4)).prop_map(
            |(upto, dots)| {
                let upto = upto.into_iter().map(|(a, c)| (Actor(a), Counter(c))).collect();
                let dots = dots.into_iter().map(|(a, c)| dot(a, c)).collect();
                Clock::from_parts(upto, dots)
            },
        )
    }

    fn dot(actor: u64, counter: u64) -> Dot {
        Dot { actor: Actor(actor), counter: Counter(counter) }
    }

    fn joined(a: &Clock, b: &Clock) -> Clock {
        let mut a = a.clone();
        a.join(b);
        a
    }

    proptest! {
        #[test]
        fn a_join_covers_what_either_covers_and_no_more(a in clock(), b in clock()) {
            let both = joined(&a, &b);
            for dot in (0..4).flat_map(|actor| (1..9).map(move |counter| dot(actor, counter))) {
                prop_assert_eq!(both.covers(dot), a.covers(dot) || b.covers(dot), "{:?}", dot);
            }
        }

        #[test]
        fn join_is_commutative_associative_idempotent(a in clock(), b in clock(), c in clock()) {
            prop_assert_eq!(joined(&a, &b), joined(&b, &a));
            prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
            prop_assert_eq!(joined(&a, &a), a);
        }
    }

    #[test]
    fn a_single_dot_does_not_cover_what_came_before_it() {
        let clock = Clock::of_dots([dot(1, 5)]);
        assert!(clock.covers(dot(1, 5)) && !clock.covers(dot(1, 4)));
        assert_eq!(clock.newest(), Counter(5));
    }
}
