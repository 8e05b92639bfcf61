//! One connection of a client or a node: who is at the other end, what is kept for it in memory, and
//! when it has to end although neither side closed it.

use super::Told;
use super::turn::Turns;
use crate::clock;
use proto::tls::Facts;
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

/// A connection on which the HTTP/2 preface is not complete after so long ends.
const PREFACE_MAX: Duration = Duration::from_secs(5);

/// One on which nothing was asked for so long ends.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// One for which memory is held and that moves less than [`PACE_BYTES`] in so long ends.
const STALL_MAX: Duration = Duration::from_secs(30);
const PACE_BYTES: u64 = 64 * 1024;

/// After its age is over a connection may go on for so long with what is under way, and no longer than
/// it was old.
const GRACE: Duration = Duration::from_secs(30);

/// How often all that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The preface of HTTP/2, bytes.
const PREFACE_BYTES: u64 = 24;

/// One connection, as all that serves it sees it.
pub struct Session {
    /// Where it comes from.
    pub from: SocketAddr,
    /// Its certificate and what that says; none: it showed none.
    identity: Option<Identity>,
    is_node: bool,
    opened: Instant,
    age_max: Duration,
    /// Requests under way, bodies of their answers included.
    open: AtomicU32,
    /// Bytes kept in memory for them.
    held: AtomicUsize,
    /// Milliseconds after `opened` at which a request last began or ended.
    active_ms: AtomicU64,
    /// Bytes read from it and written to it.
    read: AtomicU64,
    written: AtomicU64,
    /// It is to end now, and why.
    ended: Mutex<Option<&'static str>>,
    /// Nodes' links are watched by the nodes, and have bounds of their own.
    is_link: AtomicBool,
    turns: Turns,
}

struct Identity {
    facts: Facts,
    chain: Vec<CertificateDer<'static>>,
}

impl Session {
    /// One that begins. `is_node`: what its certificate says; where nothing is secured everybody may
    /// be one.
    pub fn new(
        from: SocketAddr,
        is_node: bool,
        chain: Option<Vec<CertificateDer<'static>>>,
        age_max: Duration,
        turns: Turns,
    ) -> io::Result<Arc<Self>> {
        let identity = match chain {
            Some(chain) if !chain.is_empty() => {
                let facts = Facts::of(&chain[0]).map_err(io::Error::other)?;
                Some(Identity { facts, chain })
            }
            _ => None,
        };
        Ok(Arc::new(Self {
            from,
            identity,
            is_node,
            opened: clock::now(),
            age_max,
            open: AtomicU32::new(0),
            held: AtomicUsize::new(0),
            active_ms: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            ended: Mutex::new(None),
            is_link: AtomicBool::new(false),
            turns,
        }))
    }

    /// The address it comes from.
    pub fn ip(&self) -> IpAddr {
        self.from.ip()
    }

    /// The name in its certificate; none: it showed none.
    pub fn name(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| identity.facts.name.as_str())
    }

    /// Whether a node may be at the other end.
    pub fn may_be_node(&self) -> bool {
        self.is_node
    }

    /// Who that is, for people.
    pub fn who(&self) -> String {
        match self.name() {
            Some(name) => format!("{name} ({})", self.from),
            None => self.from.to_string(),
        }
    }

    /// The certificates it showed.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        self.identity.as_ref().map_or(&[], |identity| &identity.chain)
    }

    /// It carries a node's link.
    pub fn carries_link(&self) {
        self.is_link.store(true, Ordering::Relaxed);
    }

    /// The turn of one of its requests, as long as it is held; none: it needs none, or has waited long
    /// enough.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.next().await
    }

    /// It ends, at the latest in a second.
    pub fn end(&self, why: &'static str) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    pub(super) fn begins(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.is_active();
    }

    pub(super) fn ends(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.is_active();
    }

    pub(super) fn holds(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn frees(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_active(&self) {
        let since = self.opened.elapsed().as_millis() as u64;
        self.active_ms.store(since, Ordering::Relaxed);
    }

    fn moved(&self) -> u64 {
        self.read.load(Ordering::Relaxed) + self.written.load(Ordering::Relaxed)
    }

    /// Why it has to end now, if it has to. `pace` is when it last moved enough.
    fn judge(&self, pace: &mut Pace) -> Option<&'static str> {
        if let Some(why) = *self.ended.lock().unwrap_or_else(PoisonError::into_inner) {
            return Some(why);
        }
        let age = self.opened.elapsed();
        if age > PREFACE_MAX && self.read.load(Ordering::Relaxed) < PREFACE_BYTES {
            return Some("it did not say what it wants in time");
        }
        if age > self.age_max + GRACE.min(self.age_max) {
            return Some("it is too old");
        }
        if self.is_link.load(Ordering::Relaxed) {
            return None;
        }
        let active = Duration::from_millis(self.active_ms.load(Ordering::Relaxed));
        if self.open.load(Ordering::Relaxed) == 0 && age.saturating_sub(active) > IDLE_MAX {
            return Some("it was idle for too long");
        }
        let moved = self.moved();
        if self.held.load(Ordering::Relaxed) == 0 || moved >= pace.moved + PACE_BYTES {
            *pace = Pace { moved, at: clock::now() };
        }
        (pace.at.elapsed() > STALL_MAX).then_some("it takes what it asked for too slowly")
    }
}

struct Pace {
    moved: u64,
    at: Instant,
}

/// What the connection's bytes go through. It ends by an error when the session has to.
pub struct Guarded<S> {
    stream: S,
    session: Arc<Session>,
    look: Pin<Box<Sleep>>,
    pace: Pace,
    /// There while nothing was read from a connection in the clear: where to tell of who speaks TLS.
    unread: Option<Arc<Told>>,
    /// Its place among the connections, given back with it.
    _place: Box<dyn Send>,
}

impl<S> Guarded<S> {
    /// Watches over `stream`. `in_the_clear`: nothing secures it, and where to tell of who thinks
    /// otherwise. `place` is dropped with it.
    pub fn new(
        stream: S,
        in_the_clear: Option<Arc<Told>>,
        session: Arc<Session>,
        place: Box<dyn Send>,
    ) -> Self {
        let pace = Pace { moved: 0, at: clock::now() };
        let look = Box::pin(sleep(LOOK_EVERY));
        Self { stream, session, look, pace, unread: in_the_clear, _place: place }
    }

    /// Who speaks TLS where nothing does hears settings, which are no TLS; the log is told here.
    fn check_first(&mut self, bytes: &[u8]) -> io::Result<()> {
        const HANDSHAKE: u8 = 22;
        let Some(first) = bytes.first() else { return Ok(()) };
        match self.unread.take() {
            Some(told) if *first == HANDSHAKE => {
                let from = self.session.ip().to_string();
                told.tell(&from, "is refused: it speaks TLS, and this port does not");
                Err(io::Error::other("TLS is not spoken here"))
            }
            _ => Ok(()),
        }
    }

    /// Called where the connection waits, so that it is woken to be judged.
    fn look(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.look.as_mut().poll(context).is_ready() {
            if let Some(why) = self.session.judge(&mut self.pace) {
                tracing::debug!(from = %self.session.who(), why, "a connection is closed");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            self.look.set(sleep(LOOK_EVERY));
        }
        Ok(())
    }

    fn or_look<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_pending() {
            self.look(context)?;
        }
        outcome
    }
}

impl<S> Connected for Guarded<S> {
    type ConnectInfo = Arc<Session>;

    fn connect_info(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(context, into);
        let read = into.filled().len() - before;
        this.session.read.fetch_add(read as u64, Ordering::Relaxed);
        if this.unread.is_some() {
            this.check_first(&into.filled()[before..])?;
        }
        this.or_look(context, outcome)
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    fn wrote(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &outcome {
            self.session.written.fetch_add(*written as u64, Ordering::Relaxed);
        }
        self.or_look(context, outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.wrote(context, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.wrote(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(context);
        this.or_look(context, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_shutdown(context);
        this.or_look(context, outcome)
    }
}
