//! How far a replica is behind, as far as anybody knows.

/// What one node keeps for another, as that one last told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// Keys.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// No hint is older, Unix milliseconds; 0: there is none.
    pub since_ms: u64,
    /// There was no room for another.
    pub overflowed: bool,
}

/// What a node is known to lack.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lag {
    /// Since when, Unix milliseconds, at the earliest; 0: nothing is known to be missing.
    pub since_ms: u64,
    /// Writes kept for it, each key once for every node that keeps it.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// More is missing than is kept: somewhere there was no room.
    pub more: bool,
    /// Nodes that have not told lately what they keep. With any, nothing missing is not known to
    /// be nothing.
    pub unheard: Vec<String>,
}

/// Adds up what every other node tells of what it keeps for one; `None`: it was not heard lately.
pub fn reckon(told: impl IntoIterator<Item = (String, Option<Kept>)>) -> Lag {
    let mut lag = Lag::default();
    for (node, kept) in told {
        let Some(kept) = kept else {
            lag.unheard.push(node);
            continue;
        };
        lag.keys += kept.keys;
        lag.bytes += kept.bytes;
        lag.more |= kept.overflowed;
        if kept.since_ms > 0 && (lag.since_ms == 0 || kept.since_ms < lag.since_ms) {
            lag.since_ms = kept.since_ms;
        }
    }
    lag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(keys: u64, since_ms: u64) -> Option<Kept> {
        Some(Kept { keys, bytes: keys * 10, since_ms, overflowed: false })
    }

    #[test]
    fn lag_is_the_oldest_of_all_and_the_unheard_make_it_unknown() {
        let told = |told: &[(&str, Option<Kept>)]| {
            reckon(told.iter().map(|(node, kept)| ((*node).to_owned(), *kept)))
        };
        let all = told(&[("n1", kept(3, 700)), ("n2", kept(2, 500)), ("n3", kept(0, 0))]);
        assert_eq!((all.since_ms, all.keys, all.bytes, all.unheard.len()), (500, 5, 50, 0));
        assert_eq!(told(&[("n1", kept(0, 0))]), Lag::default(), "level");
        let unknown = told(&[("n1", kept(0, 0)), ("n2", None)]);
        assert_eq!((unknown.since_ms, unknown.unheard), (0, vec!["n2".to_owned()]));
        let overflowed = Some(Kept { overflowed: true, ..Kept::default() });
        assert!(told(&[("n1", overflowed)]).more);
    }
}
