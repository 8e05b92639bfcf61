//! What one node thinks of another: up, suspect or down.
//!
//! Two kinds of evidence meet here. *Gossip* is what the members tell each other: a member is alive,
//! suspect until it says otherwise, or down. The *link* is what this node sees itself: whether the
//! member answers its calls now. What it sees itself outranks what it is told: a member that answers
//! is up whatever is said of it. One that does not answer becomes a suspect at once, which gives it
//! [`DECLARED_AFTER_MS`] to have the others contradict. So a node that only this one cannot reach
//! stays up, one that nobody can reach goes down, and neither takes a timeout of somebody's turn.

/// A suspect that does not answer and has not contradicted for so long is declared down.
pub const DECLARED_AFTER_MS: u64 = 2_500;

/// A member that has not been linked to since the watch began is a suspect after so long.
pub const FIRST_LINK_WITHIN_MS: u64 = 1_000;

/// With nobody else linked for so long, nobody is left to vouch for a member.
pub const UNWITNESSED_AFTER_MS: u64 = 1_000;

/// A member that was down or unknown, and that only others can reach, is up once they have said so
/// for so long. A node that is back is usually linked to before, and then takes requests as well.
pub const HEARSAY_AFTER_MS: u64 = 500;

/// A member that answers, and that gossip takes for down or does not know, is greeted so often: it
/// learns what is thought of it, and takes a new name.
pub const GREETED_EVERY_MS: u64 = 500;

/// A node that looked away for so long was itself paused or starved. Silence of others in that time
/// is no evidence.
pub const AWAY_AFTER_MS: u64 = 1_000;

/// What gossip says of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gossip {
    /// It contradicted the last suspicion, or there was none.
    Alive,
    /// Somebody cannot reach it, and it has not contradicted yet.
    Suspect,
    /// It did not contradict in time.
    Down,
}

/// What a node thinks of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// Neither it nor anything of it was heard yet.
    #[default]
    Unknown,
    /// It answers this node or another.
    Up,
    /// Up, and it may be down within seconds.
    Suspect,
    /// It answers nobody, as far as this node knows.
    Down,
}

impl State {
    /// Without its doubts: a suspect is not proven down, and counts as up until it is.
    pub fn settled(self) -> Self {
        match self {
            Self::Suspect => Self::Up,
            other => other,
        }
    }
}

/// What is to be done about a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Gossip that it is a suspect.
    Accuse,
    /// Gossip that it is down.
    Declare,
    /// Tell it that this node is there, and hear what it is called.
    Greet,
}

/// What is known of a member at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What gossip says.
    pub gossip: Gossip,
    /// It was heard itself, or of, and not only read from the layout.
    pub met: bool,
    /// It answers this node's calls.
    pub linked: bool,
    /// Another member does, who could say that it reaches this one.
    pub witnessed: bool,
    /// The moment, milliseconds on a clock that never goes back.
    pub now_ms: u64,
}

/// One node watching another.
#[derive(Clone, Debug)]
pub struct Watch {
    state: State,
    linked: bool,
    /// When it was last looked, milliseconds, as all moments here.
    looked_ms: u64,
    /// Not linked to by then, it is accused.
    accused_from_ms: u64,
    accusation: Accusation,
    /// Since when gossip has said that it is alive.
    alive_ms: Option<u64>,
    /// Since when no other member is linked.
    unwitnessed_ms: Option<u64>,
    greeted_ms: Option<u64>,
}

/// What became of this node's own suspicion, since the link broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Accusation {
    None,
    Raised { at_ms: u64 },
    Contradicted,
}

impl Watch {
    /// A watch that begins.
    pub fn new(now_ms: u64) -> Self {
        Self {
            state: State::default(),
            linked: false,
            looked_ms: now_ms,
            accused_from_ms: now_ms + FIRST_LINK_WITHIN_MS,
            accusation: Accusation::None,
            alive_ms: None,
            unwitnessed_ms: None,
            greeted_ms: None,
        }
    }

    /// What this node thinks of the member.
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes in how things are, and returns what is to be done.
    pub fn look(&mut self, look: Look) -> Option<Step> {
        let Look { gossip, linked, now_ms, .. } = look;
        self.forget_absence(now_ms);
        let was_linked = std::mem::replace(&mut self.linked, linked);
        self.alive_ms = match gossip {
            Gossip::Alive => self.alive_ms.or(Some(now_ms)),
            _ => None,
        };
        self.unwitnessed_ms = match look.witnessed {
            true => None,
            false => self.unwitnessed_ms.or(Some(now_ms)),
        };
        let step = match (was_linked, linked) {
            (_, true) => {
                self.accusation = Accusation::None;
                self.greeting(look, was_linked)
            }
            (true, false) => {
                self.accused_from_ms = now_ms;
                self.accuse(look)
            }
            (false, false) => self.pursue(look),
        };
        self.state = self.conclude(look);
        step
    }

    /// Moves what is reckoned from behind a time in which this node did not look.
    fn forget_absence(&mut self, now_ms: u64) {
        let away_ms = now_ms.saturating_sub(self.looked_ms);
        self.looked_ms = now_ms;
        if away_ms < AWAY_AFTER_MS {
            return;
        }
        self.accused_from_ms += away_ms;
        if let Accusation::Raised { at_ms } = &mut self.accusation {
            *at_ms += away_ms;
        }
    }

    fn greeting(&mut self, look: Look, was_linked: bool) -> Option<Step> {
        let unknown = look.gossip == Gossip::Down || !look.met;
        let long_ago = |at: u64| look.now_ms.saturating_sub(at) >= GREETED_EVERY_MS;
        let due = !was_linked || (unknown && self.greeted_ms.is_none_or(long_ago));
        due.then(|| {
            self.greeted_ms = Some(look.now_ms);
            Step::Greet
        })
    }

    fn accuse(&mut self, look: Look) -> Option<Step> {
        self.accusation = Accusation::Raised { at_ms: look.now_ms };
        (look.gossip != Gossip::Down).then_some(Step::Accuse)
    }

    fn pursue(&mut self, look: Look) -> Option<Step> {
        let gone = |since: u64| look.now_ms.saturating_sub(since) >= UNWITNESSED_AFTER_MS;
        match (self.accusation, look.gossip) {
            (Accusation::None, _) if look.now_ms >= self.accused_from_ms => self.accuse(look),
            (Accusation::Raised { at_ms }, Gossip::Suspect) => {
                (look.now_ms.saturating_sub(at_ms) >= DECLARED_AFTER_MS).then_some(Step::Declare)
            }
            // The others reach it. Whether they still do is theirs to say from here on.
            (Accusation::Raised { .. }, Gossip::Alive) => {
                self.accusation = Accusation::Contradicted;
                None
            }
            // Those who said so are gone themselves: what this node sees is all there is.
            (Accusation::Contradicted, _) if self.unwitnessed_ms.is_some_and(gone) => {
                self.accuse(look)
            }
            _ => None,
        }
    }

    fn conclude(&self, look: Look) -> State {
        let absent = matches!(self.state, State::Unknown | State::Down);
        let for_long = |since: u64| look.now_ms.saturating_sub(since) >= HEARSAY_AFTER_MS;
        match look.gossip {
            _ if look.linked => State::Up,
            Gossip::Down => State::Down,
            _ if !look.met => self.state,
            Gossip::Suspect if absent => self.state,
            Gossip::Suspect => State::Suspect,
            Gossip::Alive if absent && !self.alive_ms.is_some_and(for_long) => self.state,
            Gossip::Alive => State::Up,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watch, and the gossip it hears: what it gossips itself is heard as well.
    struct Scene {
        watch: Watch,
        gossip: Gossip,
        met: bool,
        linked: bool,
        witnessed: bool,
        now_ms: u64,
        /// What the times below are reckoned from.
        from_ms: u64,
        steps: Vec<(u64, Step)>,
        changes: Vec<(u64, State)>,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                watch: Watch::new(0),
                gossip: Gossip::Alive,
                met: false,
                linked: false,
                witnessed: true,
                now_ms: 0,
                from_ms: 0,
                steps: Vec::new(),
                changes: Vec::new(),
            }
        }

        /// One that has been linked to for a second.
        fn linked() -> Self {
            let mut scene = Self::new();
            (scene.linked, scene.met) = (true, true);
            scene.pass(1_000);
            scene.from_ms = scene.now_ms;
            scene.steps.clear();
            scene.changes.clear();
            scene
        }

        /// Lets time pass, looking every 50 ms.
        fn pass(&mut self, ms: u64) {
            let until = self.now_ms + ms;
            while self.now_ms < until {
                self.now_ms += 50;
                let before = self.watch.state();
                let Self { gossip, met, linked, witnessed, now_ms, .. } = *self;
                match self.watch.look(Look { gossip, met, linked, witnessed, now_ms }) {
                    None => {}
                    Some(step) => {
                        match step {
                            Step::Accuse => self.gossip = Gossip::Suspect,
                            Step::Declare => self.gossip = Gossip::Down,
                            Step::Greet => {}
                        }
                        self.steps.push((now_ms - self.from_ms, step));
                    }
                }
                if self.watch.state() != before {
                    self.changes.push((now_ms - self.from_ms, self.watch.state()));
                }
            }
        }
    }

    #[test]
    fn a_node_that_nobody_reaches_is_suspect_at_once_and_down_in_time() {
        let mut scene = Scene::linked();
        scene.linked = false;
        scene.pass(5_000);
        assert_eq!(scene.steps, [(50, Step::Accuse), (2_550, Step::Declare)]);
        assert_eq!(scene.changes, [(100, State::Suspect), (2_600, State::Down)]);
    }

    #[test]
    fn a_node_that_others_reach_stays_up_however_long_this_one_cannot() {
        let mut scene = Scene::linked();
        scene.linked = false;
        scene.pass(400);
        scene.gossip = Gossip::Alive; // it heard, and contradicted
        scene.pass(30_000);
        assert_eq!(scene.steps, [(50, Step::Accuse)]);
        let settled: Vec<State> = scene.changes.iter().map(|(_, s)| s.settled()).collect();
        assert!(settled.iter().all(|state| *state == State::Up), "{settled:?}");
        // Whether it goes down later is said by those who had a link.
        scene.gossip = Gossip::Suspect;
        scene.pass(10_000);
        assert_eq!(scene.steps.len(), 1);
        assert_eq!(scene.watch.state(), State::Suspect);
        scene.gossip = Gossip::Down;
        scene.pass(50);
        assert_eq!(scene.watch.state(), State::Down);
    }

    #[test]
    fn with_nobody_left_to_vouch_for_it_a_nodes_own_eyes_decide() {
        let mut scene = Scene::linked();
        scene.linked = false;
        scene.pass(400);
        scene.gossip = Gossip::Alive;
        scene.pass(10_000);
        assert_eq!(scene.watch.state(), State::Up);
        scene.witnessed = false;
        scene.pass(UNWITNESSED_AFTER_MS - 100);
        scene.witnessed = true; // not for long enough
        scene.pass(100);
        scene.witnessed = false;
        scene.pass(UNWITNESSED_AFTER_MS + DECLARED_AFTER_MS);
        assert_eq!(scene.watch.state(), State::Suspect);
        scene.pass(150);
        assert_eq!(scene.watch.state(), State::Down);
    }

    #[test]
    fn a_node_that_answers_is_up_whatever_is_said_and_is_told_so() {
        let mut scene = Scene::linked();
        scene.gossip = Gossip::Down;
        scene.pass(2_000);
        assert_eq!(scene.watch.state(), State::Up);
        assert_eq!(scene.steps.len(), 4, "{:?}", scene.steps);
        assert!(scene.steps.iter().all(|(_, step)| *step == Step::Greet));
        assert!(scene.changes.is_empty());
    }

    #[test]
    fn a_short_silence_is_no_death() {
        let mut scene = Scene::linked();
        for _ in 0..10 {
            scene.linked = false;
            scene.pass(2_000);
            scene.linked = true;
            scene.pass(100);
            scene.gossip = Gossip::Alive;
        }
        assert!(scene.changes.iter().all(|(_, state)| state.settled() == State::Up));
        assert!(scene.steps.iter().all(|(_, step)| *step != Step::Declare));
    }

    #[test]
    fn a_node_that_comes_back_is_up_at_once_when_linked_and_soon_by_hearsay() {
        for (linked, within_ms) in [(true, 50), (false, HEARSAY_AFTER_MS + 50)] {
            let mut scene = Scene::linked();
            scene.linked = false;
            scene.pass(5_000);
            assert_eq!(scene.watch.state(), State::Down);
            (scene.linked, scene.gossip) = (linked, Gossip::Alive);
            scene.pass(within_ms - 50);
            assert_eq!(scene.watch.state(), State::Down, "not before");
            scene.pass(50);
            assert_eq!(scene.watch.state(), State::Up);
        }
    }

    #[test]
    fn a_node_never_met_is_unknown_then_down() {
        let mut scene = Scene::new();
        scene.pass(FIRST_LINK_WITHIN_MS + DECLARED_AFTER_MS);
        assert_eq!(scene.watch.state(), State::Unknown);
        scene.pass(200);
        assert_eq!(scene.changes.last().map(|(_, state)| *state), Some(State::Down));
    }

    #[test]
    fn a_node_that_was_itself_away_blames_nobody_for_that_time() {
        let mut scene = Scene::linked();
        scene.linked = false;
        scene.pass(500);
        scene.now_ms += 60_000; // it was paused
        scene.pass(1_000);
        assert_eq!(scene.watch.state().settled(), State::Up);
        scene.pass(2_000);
        assert_eq!(scene.watch.state(), State::Down);
    }
}
