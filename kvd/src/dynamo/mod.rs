//! Decisions, and nothing else: which node holds what, which version supersedes which, when a
//! quorum is met, what to repair.
//!
//! **Invariant: nothing here reads a clock or chance, does I/O, waits, or depends on the order of
//! a hash map.** Time, randomness and replies are arguments; what to do next is a return value.
//! The shell in `cluster/`, `storage/` and `api/` does the doing. The lints below and
//! `tests/tests/tidy.rs` keep it so.
//!
//! | file | noun |
//! |---|---|
//! | `node` | who a node is: uid, incarnation |
//! | `start` | what members remember of each other's starts |
//! | `key` | key, value and their limits |
//! | `layout` | members, keyspaces and the table partition → replicas |
//! | `plan` | who should hold what |
//! | `preference` | the replicas of one key in order, then the fallbacks |
//! | `clock` | hybrid logical clock: counters that never repeat |
//! | `version` | dots and version vectors |
//! | `value` | a value as it is kept: as it was sent, or compressed |
//! | `object` | one key's siblings: put, delete, merge |
//! | `context` | the opaque token a client carries from a get to a put |
//! | `quorum` | N, R and W of one request |
//! | `read`, `write` | one get, one put, as machines that are fed replies |
//! | `vote` | when a node that lost data may vote again |
//! | `merkle` | what two replicas compare to find where they differ |
//! | `reap` | when a tombstone may go |
//! | `gossip` | the bytes by which nodes find out who is up |
//! | `opinion` | what one node thinks of another: up, suspect, down |
//! | `lag` | how far a replica is behind, as far as anybody knows |
//! | `arc` | how far each replica of a partition is behind |
//! | `compare` | one comparison of two replicas, step by step |
//! | `scan` | one page of a keyspace, joined from several replicas |
//! | `verdict` | the state of the cluster, in words |
//! | `admission` | how many requests a node works on at once |
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod admission;
pub mod arc;
pub mod clock;
pub mod compare;
pub mod context;
pub mod gossip;
pub mod history;
pub mod key;
pub mod lag;
pub mod layout;
pub mod merkle;
pub mod node;
pub mod object;
pub mod opinion;
pub mod partners;
pub mod plan;
pub mod preference;
pub mod quorum;
pub mod read;
pub mod reap;
pub mod safety;
pub mod scan;
pub mod start;
pub mod value;
pub mod verdict;
pub mod version;
pub mod vote;
pub mod write;
