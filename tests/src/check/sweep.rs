//! One walk over a key's reads in the order they began, with what each must account for.
//!
//! A write is *settled* from some time on: it was acknowledged, or a read had returned it. A read
//! that begins later must account for it, and must not return what it had covered. Only settled
//! values that no settled write covers need a look, since to account for the covering one is to
//! account for the covered: these are about as many as there are siblings. So a walk takes about
//! n log n, and for each read a look at the puts that are under way or were never answered.

use super::graph::{Graph, versions};
use crate::history::{Op, Version};
use std::collections::{BTreeMap, BTreeSet};

/// A write that later reads must account for.
#[derive(Clone, Copy)]
pub(super) struct Settled<'a> {
    pub(super) write: &'a Op,
    pub(super) since_ns: u64,
    /// What shows it: the write's own answer, or a read that returned it.
    pub(super) by: &'a Op,
}

/// What is wrong with a read.
pub(super) enum Finding<'a> {
    /// It accounts neither for this write nor for one that took its place.
    Missing(&'a Op, Settled<'a>),
    /// It returned what this write had covered.
    Replaced(&'a Op, &'a Version, Settled<'a>),
}

/// Walks over `reads`, which are in the order they were invoked. A value that is missing, or back,
/// is told of at the first read that shows it.
pub(super) fn sweep<'a>(
    graph: &Graph<'a>,
    mut settled: Vec<Settled<'a>>,
    reads: &[&'a Op],
) -> Vec<Finding<'a>> {
    settled.sort_by_key(|settled| settled.since_ns);
    let mut settling = settled.into_iter().peekable();
    let (mut walk, mut found) = (Walk::default(), Vec::new());
    for read in reads {
        while let Some(next) = settling.next_if(|next| next.since_ns < read.invoked_ns) {
            walk.settle(graph, next);
        }
        walk.look(graph, read, &mut found);
    }
    found
}

#[derive(Default)]
struct Walk<'a> {
    /// Settled, and not covered by anything settled.
    open: BTreeMap<&'a str, Settled<'a>>,
    /// Covered by something settled, directly or through what that covered.
    covered: BTreeSet<&'a str>,
    /// Never to be returned again: what something settled had covered directly.
    replaced: BTreeMap<&'a Version, Settled<'a>>,
}

impl<'a> Walk<'a> {
    fn settle(&mut self, graph: &Graph<'a>, settled: Settled<'a>) {
        let Self { open, covered, replaced } = self;
        replaced.extend(settled.write.covers().iter().map(|version| (version, settled)));
        graph.covered_below(settled.write, covered, |value| {
            open.remove(value);
        });
        if let Some(value) = settled.write.value()
            && !covered.contains(value)
        {
            open.insert(value, settled);
        }
    }

    fn look(&mut self, graph: &Graph<'a>, read: &'a Op, found: &mut Vec<Finding<'a>>) {
        self.open.retain(|value, settled| {
            let there = graph.accounts_for(read, value);
            if !there {
                found.push(Finding::Missing(read, *settled));
            }
            there
        });
        for version in versions(read) {
            if let Some(settled) = self.replaced.remove(version) {
                found.push(Finding::Replaced(read, version, settled));
            }
        }
    }
}
