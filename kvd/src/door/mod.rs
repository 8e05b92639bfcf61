//! The open port: what the world touches first. Everybody who connects is counted, has to say in time
//! what he wants, and is held to bounds of his own; nodes have places that no client elsewhere takes.
//!
//! | file | what |
//! |---|---|
//! | `mod` | takes connections in, or sends them away in words |
//! | `pace` | how often one address may connect |
//! | `session` | one connection: who it is, and when it has to end |
//! | `turn` | when a request is begun |
//! | `room` | memory for what clients send and are sent |
//! | `access` | who may do what |
//! | `audit` | what operators did |

pub mod access;
pub mod audit;
pub mod pace;
pub mod room;
pub mod session;
pub mod turn;

use crate::clock;
use crate::tls::Tls;
use pace::Pace;
use proto::dial::{PREFACE, sending_away};
use rustls::pki_types::CertificateDer;
use session::{Guarded, Session};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use turn::Company;

/// A TLS handshake has to be over after so long.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Handshakes of clients at once, and of nodes. One more is closed at once: were it to wait, it
/// would wait for those who do not mean to end theirs.
const CLIENT_HANDSHAKES_MAX: usize = 256;
const NODE_HANDSHAKES_MAX: usize = 256;

/// Of those, of one address: who does not mean to end his keeps nobody else out.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 32;

/// Connections that wait because their address connects too often: of one, and all together. One more is
/// closed at once.
const WAITING_PER_ADDRESS_MAX: u32 = 32;
const WAITING_MAX: usize = 256;

/// In the clear a member's address has so many connections more than any other may have: its links.
const LINKS_PER_ADDRESS_MAX: usize = 256;

/// Connections that were taken in and are not served yet.
const ACCEPTED_MAX: usize = 64;

/// After an error of the listener, as of too many open files, it is left alone for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a connection ends that was good when it was made.
const NOT_TRUSTED: &str = "its certificate is not trusted any more";

/// Why connections were refused is told once in so long for each reason.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Reasons that are remembered for that.
const TOLD_MAX: usize = 256;

/// How many may come in, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections of clients.
    pub connections: usize,
    /// The same of one address.
    pub connections_per_address: usize,
    /// Connections that one address may make in a second, once it has made as many as it may have.
    pub connects_per_second: NonZeroU32,
    /// A connection ends after so long, whoever has it.
    pub age: Duration,
}

/// Whom an address belongs to, as far as that can be told.
pub trait Members: Send + Sync + 'static {
    /// Whether a node of the cluster is there.
    fn has(&self, address: IpAddr) -> bool;
}

/// Those taken in.
pub struct Entrants {
    /// By their certificates, or where nothing is secured by their addresses, nodes.
    pub nodes: mpsc::Receiver<io::Result<Incoming>>,
    /// Everybody else.
    pub clients: mpsc::Receiver<io::Result<Incoming>>,
}

/// Where they are sent.
#[derive(Clone)]
struct Rooms {
    nodes: mpsc::Sender<io::Result<Incoming>>,
    clients: mpsc::Sender<io::Result<Incoming>>,
}

/// The door of one node.
pub struct Door {
    tls: Option<Arc<Tls>>,
    limits: Limits,
    members: Arc<dyn Members>,
    company: Arc<Company>,
    client_handshakes: Arc<Semaphore>,
    node_handshakes: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    handshakes_of: Tally,
    pace: Pace,
    waiting: Arc<Semaphore>,
    clients_of: Tally,
    nodes_of: Tally,
    sessions: Mutex<Vec<Weak<Session>>>,
    told: Arc<Told>,
}

/// A connection that was taken in.
pub type Incoming = Guarded<Either<TcpStream, tokio_rustls::server::TlsStream<TcpStream>>>;

impl Door {
    /// A door that is not open yet.
    pub fn new(tls: Option<Arc<Tls>>, limits: Limits, members: Arc<dyn Members>) -> Arc<Self> {
        Arc::new(Self {
            tls,
            limits,
            members,
            company: Company::new(),
            client_handshakes: Arc::new(Semaphore::new(CLIENT_HANDSHAKES_MAX)),
            node_handshakes: Arc::new(Semaphore::new(NODE_HANDSHAKES_MAX)),
            clients: Arc::new(Semaphore::new(limits.connections)),
            handshakes_of: Tally::default(),
            pace: Pace::new(
                limits.connects_per_second,
                limits.connections_per_address as u32,
                WAITING_PER_ADDRESS_MAX,
            ),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            clients_of: Tally::default(),
            nodes_of: Tally::default(),
            sessions: Mutex::default(),
            told: Arc::default(),
        })
    }

    /// Takes in who comes to `listener`; with who is no node it deals on the threads of clients. Ends
    /// when both receivers are dropped.
    pub fn open(self: &Arc<Self>, listener: TcpListener, client_threads: Handle) -> Entrants {
        let (nodes, nodes_in) = mpsc::channel(ACCEPTED_MAX);
        let (clients, clients_in) = mpsc::channel(ACCEPTED_MAX);
        let (door, rooms) = (Arc::clone(self), Rooms { nodes, clients });
        tokio::spawn(async move {
            let all_gone = async {
                rooms.nodes.closed().await;
                rooms.clients.closed().await;
            };
            tokio::select! {
                () = door.accept(listener, &rooms, &client_threads) => {}
                () = all_gone => {}
            }
        });
        Entrants { nodes: nodes_in, clients: clients_in }
    }

    /// The certificates were read again: ends connections of those that are not trusted any more.
    pub fn certificates_changed(&self) {
        let Some(tls) = &self.tls else { return };
        let now = tls.now();
        // Nobody who comes in meanwhile waits for all that.
        let sessions: Vec<_> = lock(&self.sessions).iter().filter_map(Weak::upgrade).collect();
        for session in sessions.iter().filter(|session| !now.still_trusts(session.chain())) {
            session.end(NOT_TRUSTED);
        }
    }

    async fn accept(
        self: &Arc<Self>,
        listener: TcpListener,
        rooms: &Rooms,
        client_threads: &Handle,
    ) {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(it) => it,
                Err(error) => {
                    self.told.tell("nobody", &format!("cannot be taken in: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let address = from.ip().to_canonical();
            let is_member = self.members.has(address);
            // Links of nodes are not held up, whoever else is at their addresses.
            let wait = match is_member {
                true => Some(Duration::ZERO),
                false => self.pace.book(address, clock::now()),
            };
            let Some(wait) = wait else {
                let often = self.limits.connects_per_second;
                let why = format!("is refused: it connects more than {often} times a second");
                self.told.tell(&address.to_string(), &why);
                continue;
            };
            let entered = match wait.is_zero() {
                true => self.handshake(address, is_member).map(Entered::Handshake),
                false => self.may_wait().map(Entered::Waiting),
            };
            let entered = match entered {
                Ok(entered) => entered,
                Err(why) => {
                    self.told.tell(&address.to_string(), why);
                    continue;
                }
            };
            let (door, rooms) = (Arc::clone(self), rooms.clone());
            let [of_nodes, of_clients] = [Handle::current(), client_threads.clone()];
            let threads = if is_member { of_nodes.clone() } else { of_clients.clone() };
            let Ok(stream) = stream.into_std() else { continue };
            threads.spawn(async move {
                let handshake = match entered {
                    Entered::Handshake(handshake) => Ok(handshake),
                    Entered::Waiting(place) => {
                        let often = door.limits.connects_per_second;
                        let why = format!("waits: it connects more than {often} times a second");
                        door.told.tell(&address.to_string(), &why);
                        tokio::time::sleep(wait).await;
                        drop(place);
                        door.handshake(address, is_member)
                    }
                };
                let handshake = match handshake {
                    Ok(handshake) => handshake,
                    Err(why) => return door.told.tell(&address.to_string(), why),
                };
                let taken = tokio::time::timeout(HANDSHAKE_MAX, door.take(stream, from, is_member));
                let taken = taken.await.unwrap_or_else(|_| {
                    Err(format!("is refused: no handshake within {} s", HANDSHAKE_MAX.as_secs()))
                });
                drop(handshake);
                let taken = match taken {
                    Ok(taken) => taken,
                    Err(why) => return door.told.tell(&address.to_string(), &why),
                };
                let (room, threads) = match taken.is_node {
                    true => (rooms.nodes, of_nodes),
                    false => (rooms.clients, of_clients),
                };
                let moves = taken.is_node != is_member;
                // Where it is served, its timers are too.
                let goes_in = async move {
                    match door.guarded(taken, moves) {
                        Ok(incoming) => drop(room.send(Ok(incoming)).await), // or the node stops
                        Err(error) => {
                            door.told.tell(&address.to_string(), &format!("is lost: {error}"));
                        }
                    }
                };
                match moves {
                    true => drop(threads.spawn(goes_in)),
                    false => goes_in.await,
                }
            });
        }
    }

    /// A place for one more handshake; or why there is none.
    fn handshake(&self, address: IpAddr, is_member: bool) -> Result<Handshake, &'static str> {
        let (places, most) = match is_member {
            true => (&self.node_handshakes, NODE_HANDSHAKES_MAX),
            false => (&self.client_handshakes, HANDSHAKES_PER_ADDRESS_MAX),
        };
        let permit = Arc::clone(places).try_acquire_owned();
        let permit = permit.map_err(|_| "is refused: too many connect at once")?;
        let counted = self.handshakes_of.one_more(address, most);
        let counted = counted.ok_or("is refused: it connects too often at once")?;
        Ok(Handshake { _permit: permit, _counted: counted })
    }

    /// A place to wait at; or why there is none.
    fn may_wait(&self) -> Result<OwnedSemaphorePermit, &'static str> {
        let place = Arc::clone(&self.waiting).try_acquire_owned();
        place.map_err(|_| "is refused: too many wait that connect too often")
    }

    /// Sees a handshake through, and finds a place for the connection; or says why not.
    async fn take(
        self: &Arc<Self>,
        stream: std::net::TcpStream,
        from: SocketAddr,
        is_member: bool,
    ) -> Result<Taken, String> {
        let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
        // A small request would wait for the acknowledgement of the one before: 40 ms.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (stream, chain) = match &self.tls {
            None => (Either::Left(stream), None),
            Some(tls) => {
                let secured = secure(stream, tls).await?;
                let chain = secured.get_ref().1.peer_certificates();
                let chain =
                    chain.map(|chain| chain.iter().map(|it| it.clone().into_owned()).collect());
                (Either::Right(secured), chain)
            }
        };
        let chain: Option<Vec<CertificateDer<'static>>> = chain;
        let shows_node = match &self.tls {
            Some(tls) => tls.now().is_node(chain.as_deref().unwrap_or_default()),
            None => true,
        };
        let session = Session::new(from, shows_node, chain, self.limits.age, self.company.join());
        let session = session.map_err(|error| error.to_string())?;
        let is_node = if self.tls.is_some() { shows_node } else { is_member };
        let place = self.place(from.ip().to_canonical(), is_node)?;
        self.remember(&session);
        // The certificates may have been read again since this handshake began; and one that goes on
        // from an earlier session shows nothing anew.
        if self.tls.as_ref().is_some_and(|tls| !tls.now().still_trusts(session.chain())) {
            return Err(format!("is refused: {NOT_TRUSTED}"));
        }
        Ok(Taken { stream, session, place, is_node })
    }

    /// What is served of it, on the threads this runs on; `moves`: its handshake was on others.
    fn guarded(&self, taken: Taken, moves: bool) -> io::Result<Incoming> {
        let Taken { mut stream, session, place, .. } = taken;
        if moves {
            let tcp = match &mut stream {
                Either::Left(tcp) => tcp,
                Either::Right(secured) => secured.get_mut().0,
            };
            // Else the other threads would have to wake these for all it sends.
            let same = std::net::TcpStream::from(tcp.as_fd().try_clone_to_owned()?);
            *tcp = TcpStream::from_std(same)?;
        }
        let in_the_clear = self.tls.is_none().then(|| Arc::clone(&self.told));
        Ok(Guarded::new(stream, in_the_clear, session, Box::new(place)))
    }

    fn remember(&self, session: &Arc<Session>) {
        let mut sessions = lock(&self.sessions);
        // Those that have ended go when there are as many again.
        if sessions.len() == sessions.capacity() {
            sessions.retain(|session| session.strong_count() > 0);
        }
        sessions.push(Arc::downgrade(session));
    }

    /// A place for one more connection. A node that its certificate tells always has one: there are
    /// as many as members. In the clear those of a member's address are counted beside those of clients.
    fn place(self: &Arc<Self>, address: IpAddr, is_node: bool) -> Result<Option<Place>, String> {
        if is_node && self.tls.is_some() {
            return Ok(None);
        }
        let permit = match is_node {
            true => None,
            false => Some(Arc::clone(&self.clients).try_acquire_owned().map_err(|_| {
                let most = self.limits.connections;
                format!("is refused: {most} clients are connected, as many as may be")
            })?),
        };
        let (tally, most) = match (is_node, self.limits.connections_per_address) {
            (true, most) => (&self.nodes_of, most + LINKS_PER_ADDRESS_MAX),
            (false, most) => (&self.clients_of, most),
        };
        match tally.one_more(address, most) {
            Some(counted) => Ok(Some(Place { _permit: permit, _counted: counted })),
            None => Err(format!(
                "is refused: it has {most} connections, as many as one address may have"
            )),
        }
    }
}

/// What was logged of who was refused.
#[derive(Default)]
pub struct Told(Mutex<HashMap<String, Instant>>);

impl Told {
    /// Logs it, unless the same was logged a moment ago.
    fn tell(&self, who: &str, what: &str) {
        let mut told = lock(&self.0);
        let line = format!("{who} {what}");
        let now = clock::now();
        told.retain(|_, at| at.elapsed() < TELL_EVERY);
        if told.len() < TOLD_MAX && told.insert(line, now).is_none() {
            tracing::warn!("a connection from {who} {what}");
        }
    }
}

/// A connection whose handshake is over.
struct Taken {
    stream: Either<TcpStream, tokio_rustls::server::TlsStream<TcpStream>>,
    session: Arc<Session>,
    place: Option<Place>,
    is_node: bool,
}

/// What a connection that has just come was given.
enum Entered {
    Handshake(Handshake),
    Waiting(OwnedSemaphorePermit),
}

/// The place of one handshake.
struct Handshake {
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

/// The place of one connection.
struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    _counted: Counted,
}

/// How many there are of each address.
#[derive(Clone, Default)]
struct Tally(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them, as long as it lives.
struct Counted {
    tally: Tally,
    address: IpAddr,
}

impl Tally {
    /// Counts one more, unless there are `most`.
    fn one_more(&self, address: IpAddr, most: usize) -> Option<Counted> {
        let mut counts = lock(&self.0);
        let count = counts.entry(address).or_default();
        // Not 0 before: what is 0 is not kept.
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted { tally: self.clone(), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = lock(&self.tally.0);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Agrees on TLS, with the certificates in force now.
async fn secure(
    mut stream: TcpStream,
    tls: &Tls,
) -> Result<tokio_rustls::server::TlsStream<TcpStream>, String> {
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => return Err("said nothing and closed".into()),
        Ok(_) if first[0] != HANDSHAKE => {
            send_away(&mut stream).await;
            return Err("is refused: it speaks no TLS, and this port nothing else".into());
        }
        Ok(_) => {}
        Err(error) => return Err(format!("is lost: {error}")),
    }
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.now().server));
    acceptor
        .accept(stream)
        .await
        .map_err(|error| format!("is refused: it {}", proto::tls::words(&error)))
}

/// Tells who speaks no TLS to do so, in what he speaks.
async fn send_away(stream: &mut TcpStream) {
    const WORDS: &str = "speaks TLS: connect over https, with the CA that signed its certificate";
    let mut said = [0; PREFACE.len()];
    let read = stream.read(&mut said).await.unwrap_or(0);
    let answer = match PREFACE.starts_with(&said[..read]) {
        true => sending_away(WORDS),
        false => format!(
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: {}\r\n\r\nthis port {WORDS}\n",
            WORDS.len() + 11
        )
        .into_bytes(),
    };
    let _ = stream.write_all(&answer).await; // it may be gone
    let _ = stream.shutdown().await;
    // What it sent beside is read, at most so much: closed over it, the answer would be lost.
    let mut rest = [0; 4096];
    for _ in 0..16 {
        match tokio::time::timeout(Duration::from_millis(200), stream.read(&mut rest)).await {
            Ok(Ok(1..)) => {}
            _ => break,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
