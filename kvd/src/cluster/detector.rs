//! Who is up, in this node's opinion. Drives `foca`, which is SWIM (DSN'02): members probe each
//! other, directly and through others, tell each other what they find, and contradict what is wrongly
//! said of them. `dynamo::opinion` weighs that against what the link shows.
//!
//! Gossip travels as calls on the links between nodes. What is for a node without a link is dropped:
//! the next packet says it again. Requests never ask here whom to send to; they go by the link alone.

use super::errors::{self, Failure};
use super::peers::Peer;
use super::{Cluster, Node};
use crate::clock;
use crate::dynamo::gossip::{self, Name, PACKET_BYTES_MAX, Packets};
use crate::dynamo::node::Uid;
use crate::dynamo::opinion::{AWAY_AFTER_MS, Gossip, Look, State, Step, Watch};
use foca::{Config, Foca, Member, NoCustomBroadcast, PeriodicParams, Runtime, Timer};
use proto::v1::{self, GossipCall, Level, NodeState, call};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How often the links are looked at, and timers that are due are seen to.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A packet that was not answered after so long is given up.
const PACKET_TIMEOUT: Duration = Duration::from_secs(1);

/// Packets under way to all peers. One more is dropped.
const PACKETS_MAX: usize = 256;

/// How `foca` is to go about it.
fn config() -> Config {
    let some = |n| NonZeroUsize::new(n).expect("it is not 0");
    let every = |ms, members| {
        let frequency = Duration::from_millis(ms);
        Some(PeriodicParams { frequency, num_members: some(members) })
    };
    Config {
        probe_period: Duration::from_secs(1),
        probe_rtt: Duration::from_millis(400),
        num_indirect_probes: some(3),
        // Those dropped for want of a link are counted too: enough to last for a suspicion.
        max_transmissions: NonZeroU8::new(50).expect("it is not 0"),
        // Longer than a node takes by the evidence of its own link, which is the better one.
        suspect_to_down_after: Duration::from_secs(6),
        // A name that was down stays down; there is one for each member.
        remove_down_after: None,
        max_packet_size: some(PACKET_BYTES_MAX),
        notify_down_members: true,
        periodic_announce: every(5_000, 1),
        periodic_announce_to_down_members: None, // who answers is greeted: see `Step::Greet`
        periodic_gossip: every(200, 3),
    }
}

/// What a node thinks of another, for everybody to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Opinion {
    /// Up, down, …
    pub state: State,
    /// Since when, doubts aside, Unix milliseconds.
    pub since_ms: u64,
    /// It can be sent requests.
    pub linked: bool,
}

/// What a node thinks of the others, and what it makes it from.
#[derive(Default)]
pub struct Detector {
    /// None on a blank node.
    swim: Mutex<Option<Swim>>,
    opinions: Mutex<BTreeMap<Uid, Opinion>>,
}

impl Detector {
    /// What this node thinks of a member.
    pub fn opinion(&self, of: Uid) -> Opinion {
        lock(&self.opinions).get(&of).copied().unwrap_or_default()
    }
}

type Protocol = Foca<Name, Packets, SmallRng, NoCustomBroadcast>;

/// The protocol, its timers, and a watch for every other member.
struct Swim {
    foca: Protocol,
    timers: BTreeMap<(Instant, u64), Timer<Name>>,
    timers_set: u64,
    watches: BTreeMap<Uid, Watch>,
    looked: Instant,
    room: Arc<Semaphore>,
}

/// What `foca` wants done.
#[derive(Default)]
struct Wanted {
    packets: Vec<(Uid, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Name>)>,
}

impl Runtime<Name> for Wanted {
    /// Nothing waits for it: at every look the members are read as they are.
    fn notify(&mut self, _: foca::Notification<'_, Name>) {}

    fn send_to(&mut self, to: Name, packet: &[u8]) {
        self.packets.push((to.uid, packet.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Name>, after: Duration) {
        self.timers.push((after, event));
    }
}

impl Swim {
    fn new(node: &Node) -> Self {
        let name = own_name(node);
        let rng = SmallRng::seed_from_u64(clock::random_u64());
        Self {
            foca: Foca::new(name, config(), rng, Packets),
            timers: BTreeMap::new(),
            timers_set: 0,
            watches: BTreeMap::new(),
            looked: clock::now(),
            room: Arc::new(Semaphore::new(PACKETS_MAX)),
        }
    }

    /// Lets `foca` do something, and does what it wants done.
    fn drive(
        &mut self,
        node: &Arc<Node>,
        cluster: &Cluster,
        work: impl FnOnce(&mut Protocol, &mut Wanted) -> Result<(), foca::Error>,
    ) {
        let mut wanted = Wanted::default();
        if let Err(error) = work(&mut self.foca, &mut wanted) {
            tracing::debug!(%error, "gossip that cannot be understood, or comes too late");
        }
        for (after, event) in wanted.timers {
            self.timers_set += 1;
            self.timers.insert((clock::now() + after, self.timers_set), event);
        }
        for (to, packet) in wanted.packets {
            let Some(peer) = cluster.peers.get(&to).filter(|peer| peer.is_usable()) else {
                continue;
            };
            let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else { continue };
            let peer = Arc::clone(peer);
            node.spawn(async move {
                let _place = place;
                let bytes = packet.len();
                let body = call::Body::Gossip(GossipCall { packet: packet.into() });
                // Its loss is part of the protocol.
                let _ = peer.call(body, bytes, clock::now() + PACKET_TIMEOUT).await;
            });
        }
    }

    fn drive_timers(&mut self, node: &Arc<Node>, cluster: &Cluster) {
        while let Some(first) = self.timers.first_entry().filter(|e| e.key().0 <= clock::now()) {
            let event = first.remove();
            self.drive(node, cluster, |foca, wanted| foca.handle_timer(event, wanted));
        }
    }

    /// What gossip says of every member, what it calls it, and how often that one contradicted.
    fn members(&self) -> BTreeMap<Uid, Member<Name>> {
        let members = self.foca.iter_membership_state();
        members.map(|member| (member.id().uid, member.clone())).collect()
    }
}

fn own_name(node: &Node) -> Name {
    Name { uid: node.uid, start: node.start().count, returned: 0 }
}

/// Takes over the members of the layout, whole: nobody waits to be discovered, and who is no member
/// is not asked any more.
pub fn take_members(node: &Arc<Node>, cluster: &Cluster) {
    let mut swim = lock(&node.detector.swim);
    let swim = swim.get_or_insert_with(|| Swim::new(node));
    let now_ms = now_ms(node);
    swim.watches.retain(|uid, _| cluster.peers.contains_key(uid));
    for uid in cluster.peers.keys() {
        swim.watches.entry(*uid).or_insert_with(|| Watch::new(now_ms));
    }
    let mut opinions = lock(&node.detector.opinions);
    opinions.retain(|uid, _| cluster.peers.contains_key(uid));
    for uid in cluster.peers.keys() {
        let unknown = Opinion { since_ms: clock::now_ms(), ..Opinion::default() };
        opinions.entry(*uid).or_insert(unknown);
    }
    drop(opinions);
    let known = swim.foca.iter_membership_state().map(|member| *member.id());
    let gone = known.filter(|name| name.uid != node.uid && !cluster.peers.contains_key(&name.uid));
    let gone: Vec<Member<Name>> = gone.map(Member::down).collect();
    let members = cluster.peers.keys().map(|uid| Member::alive(Name::unmet(*uid)));
    let all: Vec<Member<Name>> = gone.into_iter().chain(members).collect();
    // Not told on: everybody has the layout.
    swim.drive(node, cluster, |foca, wanted| foca.apply_many(all.into_iter(), false, wanted));
}

/// A peer sent a packet.
pub fn hear(node: &Arc<Node>, cluster: &Cluster, from: Uid, packet: &[u8]) -> Result<(), Failure> {
    let is_member = |uid| uid == node.uid || cluster.peers.contains_key(&uid);
    let packet = gossip::admit(packet, from, is_member)
        .map_err(|error| errors::argument("the gossip is refused", error.to_string()))?;
    if let Some(swim) = lock(&node.detector.swim).as_mut() {
        swim.drive(node, cluster, |foca, wanted| foca.handle_data(&packet, wanted));
    }
    Ok(())
}

/// Watches the others as long as the node runs.
pub async fn run(node: Arc<Node>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let Ok(cluster) = node.cluster() else { continue };
        if let Some(swim) = lock(&node.detector.swim).as_mut() {
            look_around(&node, &cluster, swim);
        }
    }
}

fn look_around(node: &Arc<Node>, cluster: &Cluster, swim: &mut Swim) {
    let now = clock::now();
    let away = now.duration_since(std::mem::replace(&mut swim.looked, now));
    if away >= Duration::from_millis(AWAY_AFTER_MS) {
        // Who could not listen blames nobody for having said nothing.
        let timers = std::mem::take(&mut swim.timers).into_iter();
        swim.timers = timers.map(|((at, number), event)| ((at + away, number), event)).collect();
    }
    let name = own_name(node);
    if name.start > swim.foca.identity().start {
        // It was told of later starts than it knew.
        swim.drive(node, cluster, |foca, wanted| foca.change_identity(name, wanted));
    }
    swim.drive_timers(node, cluster);
    let members = swim.members();
    let linked = cluster.peers.values().filter(|peer| peer.is_usable()).count();
    for peer in cluster.peers.values() {
        if let Some(member) = members.get(&peer.uid) {
            let witnessed = linked > usize::from(peer.is_usable());
            look_at(node, cluster, swim, (peer, member), witnessed);
        }
    }
}

fn look_at(
    node: &Arc<Node>,
    cluster: &Cluster,
    swim: &mut Swim,
    (peer, member): (&Peer, &Member<Name>),
    witnessed: bool,
) {
    let Some(watch) = swim.watches.get_mut(&peer.uid) else { return };
    let look = Look {
        gossip: match member.state() {
            foca::State::Alive => Gossip::Alive,
            foca::State::Suspect => Gossip::Suspect,
            foca::State::Down => Gossip::Down,
        },
        met: *member.id() != Name::unmet(peer.uid),
        linked: peer.is_usable(),
        witnessed,
        now_ms: now_ms(node),
    };
    let step = watch.look(look);
    conclude(node, cluster, peer, watch.state(), look.linked);
    let say = |state| Member::new(*member.id(), member.incarnation(), state);
    let said = match step {
        None => return,
        Some(Step::Greet) => {
            swim.drive(node, cluster, |foca, wanted| foca.announce(*member.id(), wanted));
            return;
        }
        Some(Step::Accuse) => say(foca::State::Suspect),
        Some(Step::Declare) => say(foca::State::Down),
    };
    swim.drive(node, cluster, |foca, wanted| {
        foca.apply_many([said].into_iter(), true, &mut *wanted)?;
        foca.gossip(wanted)
    });
}

/// Keeps what this node thinks now, and tells what changed.
fn conclude(node: &Node, cluster: &Cluster, peer: &Peer, state: State, linked: bool) {
    let mut opinions = lock(&node.detector.opinions);
    let opinion = opinions.entry(peer.uid).or_default();
    let before = std::mem::replace(&mut opinion.state, state).settled();
    opinion.linked = linked;
    if before == state.settled() {
        return;
    }
    opinion.since_ms = clock::now_ms();
    drop(opinions);
    let name = cluster.name_of(peer.uid);
    match state.settled() {
        State::Down => {
            node.events.add(Level::Degraded, format!("{name} down: {}", peer.why_not()));
        }
        _ => node.events.add(Level::Ok, format!("{name} up")),
    }
}

/// What this node tells the others of what it thinks.
pub fn told(node: &Node) -> Vec<v1::Opinion> {
    let opinions = lock(&node.detector.opinions);
    let told = opinions.iter().map(|(uid, opinion)| v1::Opinion {
        uid: uid.to_bytes().to_vec().into(),
        state: wire(opinion.state).into(),
        since_ms: opinion.since_ms,
        linked: opinion.linked,
    });
    told.collect()
}

/// A state as it travels.
pub fn wire(state: State) -> NodeState {
    match state {
        State::Unknown => NodeState::Unknown,
        State::Up => NodeState::Up,
        State::Suspect => NodeState::Suspect,
        State::Down => NodeState::Down,
    }
}

fn now_ms(node: &Node) -> u64 {
    clock::now().duration_since(node.started).as_millis() as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
