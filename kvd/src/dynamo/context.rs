//! The token a client carries from a get to its next put: what it has seen, and proof that we
//! said so. A forged context erases data (it claims that values were seen and superseded), so it
//! is sealed with a key the cluster is born with and never serves.
//!
//! version u8 = 1 · cluster id u128 · key hash u128 · clock · seal u128, big-endian.
//! The seal is SipHash-2-4-128 of all before it (Aumasson and Bernstein, 2012).

use crate::dynamo::key::Key;
use crate::dynamo::node::ClusterId;
use crate::dynamo::object::{get_clock, put_clock};
use crate::dynamo::version::Clock;
use bytes::{Buf, BufMut, Bytes};
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 16 + 16;
const SEAL_BYTES: usize = 16;

/// Longest context that is read, bytes: some four thousand actors. No honest one comes near.
pub const CONTEXT_BYTES_MAX: usize = 64 * 1024;

/// Makes and checks contexts of one cluster.
#[derive(Clone)]
pub struct Sealer {
    cluster: ClusterId,
    secret: [u8; 16],
}

/// A context that is refused. The text says what to do about it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// Cut short, too long, or changed.
    #[error("the context is damaged or was not made by this cluster")]
    Invalid,
    /// Whole, but it belongs elsewhere.
    #[error("the context belongs to another {0}")]
    Mismatch(&'static str),
    /// A newer kvd made it.
    #[error("the context has version {0}, this kvd reads version {VERSION}")]
    UnknownVersion(u8),
}

impl Sealer {
    /// A sealer for `cluster`, under its secret.
    pub fn new(cluster: ClusterId, secret: [u8; 16]) -> Self {
        Self { cluster, secret }
    }

    /// The context that says `clock` was seen of `key`.
    pub fn seal(&self, key: &Key, clock: &Clock) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + 8 + 16 * clock.upto().len() + SEAL_BYTES);
        out.put_u8(VERSION);
        out.put_u128(self.cluster.0);
        out.put_u128(key_hash(key));
        put_clock(&mut out, clock);
        let seal = self.hash(&out);
        out.put_u128(seal);
        out
    }

    /// What was seen of `key`, according to `context`; empty bytes mean nothing was.
    ///
    /// Whatever time its counters tell: only this cluster could seal it, so they were minted, and
    /// a node whose clock is behind must not refuse what the others wrote.
    pub fn open(&self, key: &Key, context: &Bytes) -> Result<Clock, ContextError> {
        if context.is_empty() {
            return Ok(Clock::new());
        }
        if context.len() < HEAD_BYTES + SEAL_BYTES || context.len() > CONTEXT_BYTES_MAX {
            return Err(ContextError::Invalid);
        }
        if context[0] != VERSION {
            return Err(ContextError::UnknownVersion(context[0]));
        }
        let mut body = context.slice(1..context.len() - SEAL_BYTES);
        let mut seal = context.slice(context.len() - SEAL_BYTES..);
        // Another cluster's seal cannot be checked here; say so rather than "damaged".
        if body.get_u128() != self.cluster.0 {
            return Err(ContextError::Mismatch("cluster"));
        }
        if self.hash(&context[..context.len() - SEAL_BYTES]) != seal.get_u128() {
            return Err(ContextError::Invalid);
        }
        if body.get_u128() != key_hash(key) {
            return Err(ContextError::Mismatch("key or keyspace"));
        }
        let clock = get_clock(&mut body).map_err(|_| ContextError::Invalid)?;
        if !body.is_empty() {
            return Err(ContextError::Invalid);
        }
        Ok(clock)
    }

    fn hash(&self, bytes: &[u8]) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(bytes);
        hasher.finish128().as_u128()
    }
}

/// Not a secret: only tells keys apart, so an unkeyed hash will do.
fn key_hash(key: &Key) -> u128 {
    let mut hasher = SipHasher24::new();
    hasher.write(&key.keyspace().0.to_be_bytes());
    hasher.write(key.bytes());
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::clock::Counter;
    use crate::dynamo::node::KeyspaceId;
    use crate::dynamo::version::{Actor, Dot};
    use proptest::prelude::*;

    fn key(name: &str) -> Key {
        Key::new(KeyspaceId::of("default"), Bytes::copy_from_slice(name.as_bytes())).unwrap()
    }

    fn sealer() -> Sealer {
        Sealer::new(ClusterId(1), [7; 16])
    }

    fn clock() -> Clock {
        let mut clock = Clock::of_dots([Dot { actor: Actor(3), counter: Counter::at_ms(50) }]);
        clock.advance(Dot { actor: Actor(4), counter: Counter::at_ms(60) });
        clock
    }

    #[test]
    fn a_context_opens_to_the_clock_it_was_made_from() {
        let context = sealer().seal(&key("k"), &clock()).into();
        assert_eq!(sealer().open(&key("k"), &context), Ok(clock()));
        assert_eq!(sealer().open(&key("k"), &Bytes::new()), Ok(Clock::new()));
    }

    #[test]
    fn a_context_is_bound_to_key_keyspace_cluster_and_secret() {
        let context: Bytes = sealer().seal(&key("k"), &clock()).into();
        let open = |sealer: &Sealer, key: &Key| sealer.open(key, &context).unwrap_err();
        let elsewhere = Key::new(KeyspaceId::of("other"), Bytes::from_static(b"k")).unwrap();
        let wrong_key = ContextError::Mismatch("key or keyspace");
        assert_eq!(open(&sealer(), &key("other")), wrong_key);
        assert_eq!(open(&sealer(), &elsewhere), wrong_key);
        let other = Sealer::new(ClusterId(2), [7; 16]);
        assert_eq!(open(&other, &key("k")), ContextError::Mismatch("cluster"));
        let forger = Sealer::new(ClusterId(1), [8; 16]);
        assert_eq!(open(&forger, &key("k")), ContextError::Invalid);
    }

    #[test]
    fn a_context_made_by_a_node_whose_clock_is_years_ahead_opens() {
        let ahead = Clock::of_dots([Dot { actor: Actor(1), counter: Counter::at_ms(1 << 45) }]);
        let context = sealer().seal(&key("k"), &ahead).into();
        assert_eq!(sealer().open(&key("k"), &context), Ok(ahead));
    }

    proptest! {
        #[test]
        fn any_change_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut context = sealer().seal(&key("k"), &clock());
            let at = at.index(context.len());
            context[at] ^= 1 << bit;
            prop_assert!(sealer().open(&key("k"), &context.into()).is_err());
        }

        #[test]
        fn random_bytes_are_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
            prop_assert!(sealer().open(&key("k"), &bytes.into()).is_err());
        }
    }
}
