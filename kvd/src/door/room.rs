//! Memory for what clients send and are sent. What a request brings is counted as it arrives, until
//! the request is answered; what its answer carries until that is taken. There is so much for all,
//! and no address has more than half of it: beyond, a request is refused at once, and those under
//! way go on. What nodes say to each other is bounded where it is said.

use super::session::Session;
use crate::cluster::errors::{self, Failure};
use crate::cluster::{Node, coordinator};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tonic::body::Body;
use tower::{Layer, Service};

/// How much memory the answer to a request takes until it is sent, put into its extensions by who
/// makes it. Only where nothing was changed: it is refused if there is no room.
#[derive(Clone, Copy, Debug)]
pub struct AnswerBytes(pub usize);

/// The memory there is.
pub struct Room {
    bytes_max: usize,
    held: AtomicUsize,
    of_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Room {
    /// So many bytes.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, held: AtomicUsize::new(0), of_address: Mutex::default() })
    }

    fn take(&self, address: IpAddr, bytes: usize) -> bool {
        let mut of_address = self.of_address.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.held.load(Ordering::Relaxed);
        let its = of_address.entry(address).or_default();
        // One request always fits, however large: it is bounded by itself.
        let fits = *its == 0 || *its + bytes <= self.bytes_max / 2;
        if held + bytes > self.bytes_max || !fits {
            if *its == 0 {
                of_address.remove(&address);
            }
            return false;
        }
        *its += bytes;
        self.held.store(held + bytes, Ordering::Relaxed);
        true
    }

    fn give_back(&self, address: IpAddr, bytes: usize) {
        let mut of_address = self.of_address.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.held.load(Ordering::Relaxed);
        self.held.store(held.saturating_sub(bytes), Ordering::Relaxed);
        if let Some(its) = of_address.get_mut(&address) {
            *its = its.saturating_sub(bytes);
            if *its == 0 {
                of_address.remove(&address);
            }
        }
    }
}

/// What one request holds; given back when it is dropped.
struct Held {
    room: Arc<Room>,
    /// Where it is a failure of a client's request if there is no room; none: it is no such request.
    counts_at: Option<Arc<Node>>,
    session: Arc<Session>,
    bytes: AtomicUsize,
    /// Of them, those on their way in or out.
    in_transit: AtomicUsize,
}

impl Held {
    fn new(room: &Arc<Room>, session: &Arc<Session>, counts_at: Option<&Arc<Node>>) -> Arc<Self> {
        session.begins();
        Arc::new(Self {
            room: Arc::clone(room),
            counts_at: counts_at.cloned(),
            session: Arc::clone(session),
            bytes: AtomicUsize::new(0),
            in_transit: AtomicUsize::new(0),
        })
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = bytes == 0 || self.room.take(self.session.ip(), bytes);
        if taken {
            self.session.holds(bytes);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.in_transit.fetch_add(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// There is no room for it, and why.
    fn refuse(&self, why: &str) -> Failure {
        let refused = errors::overloaded(why);
        if let Some(node) = &self.counts_at {
            coordinator::count_failure(node, &refused);
        }
        refused
    }

    /// All of it has arrived: how long the work on it takes is not the client's fault.
    fn has_arrived(&self) {
        self.session.frees(self.in_transit.swap(0, Ordering::Relaxed));
    }
}

impl Held {
    /// What it has taken so far.
    fn give_back(&self) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        self.has_arrived();
        if bytes > 0 {
            self.room.give_back(self.session.ip(), bytes);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back();
        self.session.ends();
    }
}

/// Counts what goes through the services it is put before.
#[derive(Clone)]
pub struct RoomLayer {
    /// What there is.
    pub room: Arc<Room>,
    /// Whose it is.
    pub node: Arc<Node>,
}

impl<S> Layer<S> for RoomLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, room: Arc::clone(&self.room), node: Arc::clone(&self.node) }
    }
}

/// A service whose requests and answers are counted.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    room: Arc<Room>,
    node: Arc<Node>,
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(session) = request.extensions().get::<Arc<Session>>().cloned() else {
            return Box::pin(self.inner.call(request));
        };
        if request.uri().path().starts_with("/kvd.v1.Replica/") {
            if !session.may_be_node() {
                let refused = proto::error::status(&errors::no_node(&session.who()));
                return Box::pin(async move { Ok(refused.into_http()) });
            }
            return Box::pin(self.inner.call(request));
        }
        let method = request.uri().path().strip_prefix("/kvd.v1.Kv/");
        // A node that has too much to do spends as little as it can on saying so: nothing of what is
        // asked is kept or understood.
        if let Some(method) = method
            && let Err(refused) = coordinator::has_place(&self.node)
        {
            coordinator::count_failure(&self.node, &refused);
            let is_read = method == "Get" || method == "Scan";
            let refused = if is_read { errors::of_a_read(refused) } else { refused };
            let held = Held::new(&self.room, &session, None);
            return Box::pin(async move {
                // What is still on its way would be an error of the whole connection's.
                let mut body = request.into_body();
                while let Some(Ok(_)) = next_frame(&mut body).await {}
                drop(held);
                Ok(proto::error::status(&refused).into_http())
            });
        }
        let held = Held::new(&self.room, &session, method.map(|_| &self.node));
        let counted = {
            let held = Arc::clone(&held);
            request.map(|body| Body::new(HeldBody { body, held, counts: true }))
        };
        let answered = self.inner.call(counted);
        Box::pin(async move {
            let answer = answered.await?;
            held.give_back();
            let bytes = answer.extensions().get::<AnswerBytes>().map_or(0, |bytes| bytes.0);
            if !held.take(bytes) {
                let refused = held.refuse("clients take their answers too slowly");
                return Ok(proto::error::status(&errors::of_a_read(refused)).into_http());
            }
            Ok(answer.map(|body| Body::new(HeldBody { body, held, counts: false })))
        })
    }
}

async fn next_frame(body: &mut Body) -> Option<Result<Frame<Bytes>, tonic::Status>> {
    std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

/// Bytes on their way out, and what they hold.
struct KeptBytes {
    bytes: Bytes,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for KeptBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What is smaller is not worth an owner.
const SMALL_BYTES: usize = 4096;

/// The body of a request, of which what comes takes room, or of an answer, which has its room. That is
/// given back when it was taken, or will not be.
struct HeldBody {
    body: Body,
    held: Arc<Held>,
    counts: bool,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(context));
        let bytes = match &frame {
            Some(Ok(frame)) if this.counts => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if !this.held.take(bytes) {
            let why = "what clients have sent takes all the memory there is for it";
            return Poll::Ready(Some(Err(proto::error::status(&this.held.refuse(why)))));
        }
        if this.counts {
            if frame.is_none() || this.body.is_end_stream() {
                this.held.has_arrived();
            }
            return Poll::Ready(frame);
        }
        // What the transport is given it may keep for long: so long it has its room.
        let held = &this.held;
        Poll::Ready(frame.map(|frame| {
            let kept = |bytes| match bytes {
                small if Bytes::len(&small) < SMALL_BYTES => small,
                bytes => Bytes::from_owner(KeptBytes { bytes, _held: Arc::clone(held) }),
            };
            frame.map(|frame| frame.map_data(kept))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        if self.counts {
            self.held.has_arrived();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_has_more_than_half_and_all_have_no_more_than_there_is() {
        let room = Room::new(100);
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        assert!(room.take(a, 30) && room.take(a, 20));
        assert!(!room.take(a, 1), "half is its");
        assert!(room.take(b, 50));
        assert!(!room.take(c, 1), "all is taken");
        room.give_back(a, 50);
        assert!(room.take(c, 50));
        room.give_back(c, 50);
        assert!(room.take(a, 50), "what was given back is there again");
        room.give_back(a, 50);
        room.give_back(b, 50);
        assert!(room.take(a, 80), "one request fits, however large");
        assert_eq!(room.of_address.lock().unwrap().len(), 1);
    }
}
