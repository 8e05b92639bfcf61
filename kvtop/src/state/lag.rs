//! How far a node is behind, how that went lately, and whether it gets less.

use super::{Level, Millis, Node};
use std::collections::VecDeque;

/// Known lag from which a node is marked, and is critical.
pub const LAG: (Millis, Millis) = (10_000, 60_000);

/// So long after its last comparison with one of the others a node counts as not proven.
pub const CHECKED: Millis = 20 * 60_000;

/// How far the history of lag reaches back.
pub const LAG_SPAN: Millis = 15 * 60_000;

/// One step of it.
const STEP: Millis = 10_000;

/// Steps kept. The oldest goes when it is full.
const STEPS_MAX: usize = (LAG_SPAN / STEP) as usize + 1;

/// A drain rate is of the samples of so long: when it turns, that must not be hidden for longer.
/// Of two samples if they are further apart.
const DRAIN_SPAN: Millis = 4_000;

/// A shorter time tells too little: nodes tell once a second.
const DRAIN_LEAST: Millis = 2_000;

/// Samples further apart say nothing about now.
const DRAIN_GAP_MAX: Millis = 180_000;

/// Samples kept for it. The oldest goes when it is full.
const SAMPLES_MAX: usize = 64;

/// What a node is known to lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// Nobody can say: one that may keep something for it was not heard, or had no room.
    Unknown,
    /// Nothing, and everybody was heard.
    Nothing,
    /// Writes since this moment, on the viewpoint's clock; `more`: or since earlier.
    Since { at_ms: Millis, more: bool },
}

impl Lag {
    pub(super) fn of(lag: Option<&proto::v1::Lag>) -> Self {
        let Some(lag) = lag else { return Self::Unknown };
        let more = lag.more || !lag.unheard.is_empty();
        match lag.since_ms {
            0 if more => Self::Unknown,
            0 => Self::Nothing,
            at_ms => Self::Since { at_ms, more },
        }
    }

    /// Of one copy of a partition.
    pub fn of_replica(replica: &proto::v1::ReplicaView) -> Self {
        match (replica.since_ms, replica.known) {
            (0, false) => Self::Unknown,
            (0, true) => Self::Nothing,
            (at_ms, known) => Self::Since { at_ms, more: !known },
        }
    }

    /// How long, at `now` on the viewpoint's clock; 0 if nothing is missing.
    pub fn age(self, now: Millis) -> Option<Millis> {
        match self {
            Self::Unknown => None,
            Self::Nothing => Some(0),
            Self::Since { at_ms, .. } => Some(now.saturating_sub(at_ms)),
        }
    }

    pub fn level(self, now: Millis) -> Level {
        match self.age(now) {
            None => Level::Unknown,
            Some(age) if age >= LAG.1 => Level::Critical,
            Some(age) if age >= LAG.0 => Level::Warn,
            Some(_) => Level::Ok,
        }
    }

    /// Order by how bad it is: what is known to be missing, the longest first of all; then what
    /// nobody knows; then nothing.
    pub fn badness(self, now: Millis) -> (u8, Millis) {
        match self {
            Self::Since { .. } => (2, self.age(now).unwrap_or(0)),
            Self::Unknown => (1, 0),
            Self::Nothing => (0, 0),
        }
    }
}

/// One node's lag over time.
#[derive(Clone, Debug, Default)]
pub struct LagTrack {
    /// Beginning of a step and the worst in it; `None`: not known.
    steps: VecDeque<(Millis, Option<Millis>)>,
    /// When and how many keys, while the same nodes were heard.
    samples: VecDeque<(Millis, u64)>,
    unheard: Vec<String>,
}

impl LagTrack {
    /// Takes in what was seen at `now` on the viewpoint's clock.
    pub(super) fn take(&mut self, seen: Option<&proto::v1::Lag>, now: Millis) {
        let age = Lag::of(seen).age(now);
        let step = now / STEP * STEP;
        match self.steps.back_mut() {
            Some((at, worst)) if *at == step => *worst = (*worst).max(age),
            Some((at, _)) if *at > step => self.steps.clear(), // that clock was set back
            _ => self.steps.push_back((step, age)),
        }
        if self.steps.len() > STEPS_MAX {
            self.steps.pop_front();
        }
        let (keys, unheard) = seen.map(|lag| (lag.keys, &lag.unheard)).unzip();
        let same = unheard == Some(&self.unheard);
        let onward = self.samples.back().is_none_or(|(at, _)| *at < now);
        if !same || !onward {
            self.samples.clear();
            self.unheard = unheard.cloned().unwrap_or_default();
        }
        self.samples.extend(keys.map(|keys| (now, keys)));
        while let Some((at, _)) = self.samples.front() {
            let age = now.saturating_sub(*at);
            let spare = self.samples.len() > 2 && age > DRAIN_SPAN;
            if self.samples.len() <= SAMPLES_MAX && age <= DRAIN_GAP_MAX && !spare {
                break;
            }
            self.samples.pop_front();
        }
    }

    /// Keys a second that it lacks more, or with a minus less; `None` while there are too few
    /// samples.
    pub fn drain(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.samples.front()?, self.samples.back()?);
        let passed = to.saturating_sub(*from);
        (passed >= DRAIN_LEAST).then(|| (*after as f64 - *before as f64) / (passed as f64 / 1000.0))
    }

    /// The worst in each of `columns` equal slices of [`LAG_SPAN`] up to `end`, the oldest first;
    /// `None` where nothing is known.
    pub fn slices(&self, end: Millis, columns: usize) -> Vec<Option<f64>> {
        let edge = |column: usize| {
            let back = LAG_SPAN * (columns - column) as u64 / columns.max(1) as u64;
            end.saturating_add(STEP).saturating_sub(back)
        };
        let worst = |column: usize| {
            let (from, to) = (edge(column), edge(column + 1));
            let within = self.steps.iter().filter(|(at, _)| (from..to).contains(at));
            within.filter_map(|(_, age)| *age).max().map(|age| age as f64)
        };
        (0..columns).map(worst).collect()
    }
}

impl Node {
    /// What it is known to lack.
    pub fn lag(&self) -> Lag {
        Lag::of(self.seen.lag.as_ref())
    }

    /// When it last matched with the one it compared with the longest ago; `None`: not known.
    pub fn checked_at(&self) -> Option<Millis> {
        self.seen.lag.as_ref().map(|lag| lag.checked_at_ms).filter(|at| *at > 0)
    }

    /// How its last comparison is to be taken at `now`.
    pub fn checked_level(&self, now: Millis) -> Level {
        match self.checked_at().map(|at| now.saturating_sub(at)) {
            None => Level::Unknown,
            Some(age) if age >= CHECKED => Level::Warn,
            Some(_) => Level::Ok,
        }
    }

    /// It lost data, and has no vote in gets until it is level again.
    pub fn lost_data(&self) -> bool {
        self.seen.stats.as_ref().is_some_and(|stats| stats.lost_data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(keys: u64, since_ms: Millis, unheard: &[&str]) -> proto::v1::Lag {
        let unheard = unheard.iter().map(|name| (*name).to_owned()).collect();
        proto::v1::Lag { since_ms, keys, unheard, ..Default::default() }
    }

    #[test]
    fn nothing_is_nothing_only_when_everybody_was_heard() {
        assert_eq!(Lag::of(None), Lag::Unknown);
        assert_eq!(Lag::of(Some(&seen(0, 0, &["n2"]))), Lag::Unknown);
        assert_eq!(Lag::of(Some(&seen(0, 0, &[]))), Lag::Nothing);
        let since = Lag::of(Some(&seen(4, 1_000, &["n2"])));
        assert_eq!(since, Lag::Since { at_ms: 1_000, more: true });
        assert_eq!((since.age(13_000), since.level(13_000)), (Some(12_000), Level::Warn));
        assert!(since.badness(2_000) > Lag::Unknown.badness(2_000));
        assert!(Lag::Unknown.badness(0) > Lag::Nothing.badness(0));
    }

    #[test]
    fn it_drains_or_grows_between_samples_of_the_same_nodes() {
        let mut track = LagTrack::default();
        track.take(Some(&seen(100, 1, &[])), 10_000);
        assert_eq!(track.drain(), None);
        track.take(Some(&seen(60, 1, &[])), 12_000);
        assert_eq!(track.drain(), Some(-20.0));
        track.take(Some(&seen(10, 1, &["n2"])), 13_000);
        assert_eq!(track.drain(), None, "n2 is not heard: what it keeps is no longer counted");
        track.take(Some(&seen(40, 1, &["n2"])), 16_000);
        assert_eq!(track.drain(), Some(10.0));
        (0..1_000).for_each(|i| track.take(Some(&seen(i, 1, &[])), 20_000 + i));
        assert!(track.samples.len() <= SAMPLES_MAX);
    }

    #[test]
    fn that_it_turned_is_seen_in_seconds_and_samples_may_be_far_apart() {
        let mut track = LagTrack::default();
        (0..20).for_each(|second| track.take(Some(&seen(second * 300, 1, &[])), second * 1_000));
        assert_eq!(track.drain(), Some(300.0));
        for second in 20..24 {
            track.take(Some(&seen(5_700 - (second - 19) * 100, 1, &[])), second * 1_000);
        }
        assert_eq!(track.drain(), Some(-100.0));
        track.take(Some(&seen(2_300, 1, &[])), 83_000);
        assert_eq!(track.drain(), Some(-50.0), "once a minute");
        track.take(Some(&seen(0, 1, &[])), 900_000);
        assert_eq!(track.drain(), None, "nothing was heard for long");
    }

    #[test]
    fn slices_have_the_worst_and_a_gap_where_nothing_is_known() {
        let mut track = LagTrack::default();
        let end = 2_000_000;
        track.take(Some(&seen(1, end - 1_000, &[])), end);
        track.take(Some(&seen(1, end - 1_000, &[])), end + 4_000);
        let slices = track.slices(end + 4_000, 5);
        assert_eq!(slices, [None, None, None, None, Some(5_000.0)]);
        assert_eq!(track.slices(end, 0), []);
        (0..5_000).for_each(|i| track.take(None, end + i * STEP));
        assert_eq!(track.steps.len(), STEPS_MAX);
        track.take(None, 5);
        assert!(track.steps.len() < 2, "a clock that was set back begins anew");
    }
}
