//! What the dashboard is showing, and how each event changes it.

use crate::event::{Event, Feed};
use crate::keymap::Action;
use crate::state::{Cluster, Millis, Node, Uid, Wanted, by_name};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Interval bounds, as the server has them.
pub const INTERVAL_MIN: Millis = 250;
pub const INTERVAL_MAX: Millis = 60_000;

const INTERVALS: [Millis; 8] =
    [INTERVAL_MIN, 500, 1_000, 2_000, 5_000, 10_000, 30_000, INTERVAL_MAX];

/// The help scrolls no further than this.
const HELP_SCROLL_MAX: u16 = 40;

/// What the caller must do after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Ask for samples at this interval.
    Interval(Millis),
    Quit,
}

/// What fills the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    Overview,
    Ring,
    Lag,
    Nodes,
    Moves,
    /// The selected node.
    Node,
}

impl Screen {
    /// What it shows besides the cluster itself.
    fn wants(self) -> Wanted {
        let none = Wanted::default();
        match self {
            Self::Overview | Self::Nodes => none,
            Self::Ring => Wanted { layout: true, ops: true, ..none },
            Self::Lag => Wanted { partitions: true, repair: true, ..none },
            Self::Moves => Wanted { ops: true, ..none },
            Self::Node => Wanted { partitions: true, ..none },
        }
    }
}

/// The connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// None so far.
    Connecting,
    Live,
    /// Gone: the endpoint, and why.
    Lost {
        endpoint: String,
        why: String,
    },
}

/// An endpoint that is being tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub endpoint: String,
    pub position: usize,
    pub total: usize,
}

/// The dashboard, without a screen.
#[derive(Clone, Debug)]
pub struct App {
    pub now: Millis,
    pub started_at: Millis,
    pub interval: Millis,
    pub link: Link,
    pub attempt: Option<Attempt>,
    /// The last endpoint that did not answer, and why.
    pub failure: Option<(String, String)>,
    pub screen: Screen,
    /// Where Esc leads from a node.
    behind: Screen,
    pub selected: Option<Uid>,
    /// First line of the help, when it is open.
    pub help: Option<u16>,
    /// First line of what moves.
    pub moves_from: usize,
    /// Number of samples taken in.
    pub samples: usize,
    live: Option<Cluster>,
    /// The picture that is held, and since when.
    held: Option<(Cluster, Millis)>,
    /// Order of the nodes on screen.
    order: Vec<Uid>,
}

impl App {
    /// A dashboard that will try `endpoints`, the first of them first.
    pub fn new(endpoints: &[String], interval: Millis, now: Millis) -> Self {
        let attempt = endpoints.first().map(|endpoint| Attempt {
            endpoint: endpoint.clone(),
            position: 1,
            total: endpoints.len(),
        });
        Self {
            now,
            started_at: now,
            interval: interval.clamp(INTERVAL_MIN, INTERVAL_MAX),
            link: Link::Connecting,
            attempt,
            failure: None,
            screen: Screen::Overview,
            behind: Screen::Nodes,
            selected: None,
            help: None,
            moves_from: 0,
            samples: 0,
            live: None,
            held: None,
            order: Vec::new(),
        }
    }

    /// Takes in what happened at `now`.
    pub fn update(&mut self, event: Event, now: Millis) -> Effect {
        self.now = self.now.max(now);
        match event {
            Event::Tick => Effect::None,
            Event::Key(action) => self.act(action),
            Event::Feed(feed) => {
                self.feed(feed);
                Effect::None
            }
        }
    }

    /// The cluster on screen: the held picture, else the last one.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.held.as_ref().map(|(cluster, _)| cluster).or(self.live.as_ref())
    }

    /// Since when the picture is held.
    pub fn paused_since(&self) -> Option<Millis> {
        self.held.as_ref().map(|(_, since)| *since)
    }

    /// Time on screen: it stands still while the picture is held, and at the last sample when
    /// there are no more.
    pub fn shown_now(&self) -> Millis {
        let last = self.live.as_ref().filter(|_| self.stale()).map(|cluster| cluster.received_at);
        self.paused_since().or(last).unwrap_or(self.now)
    }

    /// True when the last sample no longer tells what is.
    pub fn stale(&self) -> bool {
        matches!(self.link, Link::Lost { .. })
    }

    /// Age of the last sample.
    pub fn age(&self) -> Option<Millis> {
        self.live.as_ref().map(|cluster| self.now.saturating_sub(cluster.received_at))
    }

    /// The selected node.
    pub fn node(&self) -> Option<&Node> {
        let selected = self.selected.as_ref()?;
        self.cluster()?.nodes.iter().find(|node| node.uid == *selected)
    }

    /// Begins with this on screen.
    pub fn show(&mut self, screen: Screen) {
        self.help = None;
        self.screen = screen;
        self.sort_anew();
    }

    /// What the screen shows besides the cluster itself. A layout is large, and asked for only
    /// when the cluster names another.
    pub fn wants(&self) -> Wanted {
        let wanted = self.screen.wants();
        let old = self.live.as_ref().is_none_or(Cluster::ring_is_old);
        Wanted { layout: wanted.layout && old, ..wanted }
    }

    /// Nodes in their order on screen.
    pub fn nodes(&self) -> Vec<&Node> {
        let Some(cluster) = self.cluster() else {
            return Vec::new();
        };
        let by_uid: BTreeMap<&Uid, &Node> =
            cluster.nodes.iter().map(|node| (&node.uid, node)).collect();
        self.order.iter().filter_map(|uid| by_uid.get(uid).copied()).collect()
    }

    /// Place of the selected node in [`Self::nodes`].
    pub fn selected_row(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.nodes().iter().position(|node| node.uid == *selected)
    }

    /// A node's name if its address is known, else the address.
    pub fn name_of<'a>(&'a self, endpoint: &'a str) -> &'a str {
        let nodes = self.live.iter().flat_map(|cluster| &cluster.nodes);
        nodes
            .filter(|node| node.seen.address == endpoint)
            .map(|node| node.seen.name.as_str())
            .next()
            .unwrap_or(endpoint)
    }

    fn act(&mut self, action: Action) -> Effect {
        match action {
            Action::Quit => return Effect::Quit,
            Action::Help => self.help = if self.help.is_some() { None } else { Some(0) },
            Action::Release if self.help.is_some() => self.help = None,
            Action::Release if self.screen == Screen::Node => self.show(self.behind),
            Action::Release => self.select(None),
            Action::Down => self.step(1),
            Action::Up => self.step(-1),
            Action::First => self.step(isize::MIN),
            Action::Last => self.step(isize::MAX),
            Action::Overview => self.show(Screen::Overview),
            Action::Ring => self.show(Screen::Ring),
            Action::Lag => self.show(Screen::Lag),
            Action::Nodes => self.show(Screen::Nodes),
            Action::Moves => self.show(Screen::Moves),
            Action::Enter => self.open(),
            Action::Pause => self.pause(),
            Action::Slower => return self.pace(INTERVALS.into_iter().find(|i| *i > self.interval)),
            Action::Faster => {
                return self.pace(INTERVALS.into_iter().rev().find(|i| *i < self.interval));
            }
        }
        Effect::None
    }

    fn step(&mut self, by: isize) {
        if let Some(line) = &mut self.help {
            let to = (*line as isize).saturating_add(by);
            *line = to.clamp(0, HELP_SCROLL_MAX as isize) as u16;
            return;
        }
        if self.screen == Screen::Moves {
            let last = self.moving_pairs().saturating_sub(1);
            self.moves_from = self.moves_from.min(last).saturating_add_signed(by).min(last);
            return;
        }
        let nodes = self.nodes();
        let Some(last) = nodes.len().checked_sub(1) else {
            return;
        };
        let row = match self.selected_row() {
            Some(row) => (row as isize).saturating_add(by).clamp(0, last as isize) as usize,
            None if by == isize::MAX => last,
            None => 0,
        };
        let uid = nodes[row].uid.clone();
        self.select(Some(uid));
    }

    /// Lines there are to scroll through in the view of moves.
    fn moving_pairs(&self) -> usize {
        let moves = self.cluster().and_then(|cluster| cluster.moves(self.shown_now()));
        moves.and_then(|moves| moves.under_way().next()).map_or(0, |op| op.pairs.len())
    }

    /// One node, and back from there to where it was opened.
    fn open(&mut self) {
        if self.help.is_some() || matches!(self.screen, Screen::Node | Screen::Moves) {
            return;
        }
        if self.selected.is_none() {
            let first = self.nodes().first().map(|node| node.uid.clone());
            self.select(first);
        }
        if self.selected.is_some() {
            self.behind = self.screen;
            self.screen = Screen::Node;
        }
    }

    fn select(&mut self, uid: Option<Uid>) {
        self.selected = uid;
        self.arrange();
    }

    fn pause(&mut self) {
        self.held = match self.held.take() {
            Some(_) => None,
            None => self.live.clone().map(|cluster| (cluster, self.now)),
        };
        self.arrange();
    }

    fn pace(&mut self, interval: Option<Millis>) -> Effect {
        let Some(interval) = interval else {
            return Effect::None;
        };
        self.interval = interval;
        Effect::Interval(interval)
    }

    fn feed(&mut self, feed: Feed) {
        match feed {
            Feed::Trying { endpoint, position, total } => {
                self.attempt = Some(Attempt { endpoint, position, total });
            }
            Feed::Failed { endpoint, why } => self.failure = Some((endpoint, why)),
            Feed::Exhausted => self.attempt = None,
            Feed::Lost { endpoint, why } => self.link = Link::Lost { endpoint, why },
            Feed::Partitions(reply) => {
                if let Some(cluster) = &mut self.live {
                    cluster.take_partitions(*reply, self.now);
                }
            }
            Feed::Repair(reply) => {
                if let Some(cluster) = &mut self.live {
                    cluster.take_repair(*reply, self.now);
                }
            }
            Feed::Layout(view) => {
                if let Some(cluster) = &mut self.live {
                    cluster.take_layout(&view);
                }
            }
            Feed::Ops(reply) => {
                if let Some(cluster) = &mut self.live {
                    cluster.take_ops(*reply, self.now);
                }
            }
            Feed::Sample { view, opened } => {
                self.link = Link::Live;
                self.samples += 1;
                match &mut self.live {
                    Some(cluster) => cluster.sample(*view, self.now, self.interval, opened),
                    None => self.live = Some(Cluster::new(*view, self.now)),
                }
                self.arrange();
            }
        }
    }

    /// Sorts as this screen does, though a node is selected.
    fn sort_anew(&mut self) {
        self.order.clear();
        self.arrange();
    }

    /// Problems, the worst lag or the furthest from fair first, then by name. While a node is selected no row may jump
    /// under the operator's eyes: new nodes are added at the end.
    fn arrange(&mut self) {
        let Some(cluster) = self.held.as_ref().map(|(cluster, _)| cluster).or(self.live.as_ref())
        else {
            return;
        };
        let known: BTreeSet<&Uid> = cluster.nodes.iter().map(|node| &node.uid).collect();
        if self.selected.as_ref().is_some_and(|uid| !known.contains(uid)) {
            self.selected = None;
            if self.screen == Screen::Node {
                self.screen = self.behind;
            }
        }
        let now = cluster.view.observed_at_ms;
        let order_of = if self.screen == Screen::Node { self.behind } else { self.screen };
        let badness = |node: &Node| match order_of {
            Screen::Lag => node.lag().badness(now),
            Screen::Ring => node.unfairness(),
            _ => (node.level() as u8, 0),
        };
        let mut sorted: Vec<&Node> = cluster.nodes.iter().collect();
        sorted.sort_by(|a, b| {
            let worst_first = Reverse(badness(a)).cmp(&Reverse(badness(b)));
            worst_first.then_with(|| by_name(&a.seen.name, &b.seen.name))
        });
        let sorted = sorted.into_iter().map(|node| node.uid.clone());
        if self.selected.is_none() {
            self.order = sorted.collect();
            return;
        }
        self.order.retain(|uid| known.contains(uid));
        let placed: BTreeSet<Uid> = self.order.iter().cloned().collect();
        self.order.extend(sorted.filter(|uid| !placed.contains(uid)));
    }
}
