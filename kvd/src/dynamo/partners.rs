//! Who is compared with whom.

use crate::dynamo::node::Uid;
use std::collections::BTreeMap;

/// For each of `wanted`, as many of its candidates as it needs; the positions by candidate. `turn`
/// differs from one try to the next: then a candidate that fails is got round, as far as there are
/// others, and not all partitions ask the same one.
pub fn partners<'a>(
    wanted: impl IntoIterator<Item = (&'a [Uid], usize)>,
    turn: usize,
) -> BTreeMap<Uid, Vec<usize>> {
    let mut chosen: BTreeMap<Uid, Vec<usize>> = BTreeMap::new();
    for (at, (candidates, needed)) in wanted.into_iter().enumerate() {
        let first = at.wrapping_add(turn);
        for step in 0..needed.min(candidates.len()) {
            let uid = candidates[first.wrapping_add(step) % candidates.len()];
            chosen.entry(uid).or_default().push(at);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_compared_with_as_many_as_it_needs_and_with_others_the_next_time() {
        let (a, b, c) = (Uid(1), Uid(2), Uid(3));
        let all = [a, b, c];
        let wanted = [(&all[..], 2), (&all[..], 1), (&all[..1], 2), (&[][..], 1)];
        let first = partners(wanted, 0);
        assert_eq!(first, [(a, vec![0, 2]), (b, vec![0, 1])].into());
        assert_eq!(partners(wanted, 1), [(a, vec![2]), (b, vec![0]), (c, vec![0, 1])].into());
    }
}
