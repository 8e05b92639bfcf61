//! The state of the cluster in words: verdict, impact, next step. The same text in kvctl, kvtop
//! and JSON.

use crate::dynamo::layout::{Keyspace, Mode};

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// All is served, with less margin.
    Degraded,
    /// Some requests fail.
    Critical,
}

/// A member that is not up.
#[derive(Clone, Debug)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// How long for, milliseconds.
    pub for_ms: u64,
    /// Whether it was ever heard of.
    pub known: bool,
}

/// What a keyspace can do right now, in partitions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Margins {
    /// Of the keyspace.
    pub partitions: u32,
    /// With fewer than R replicas up.
    pub gets_fail: u32,
    /// With fewer than W up.
    pub puts_fail: u32,
    /// That one more failure would push below R or W.
    pub no_margin: u32,
}

/// The verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// How bad it is.
    pub level: Level,
    /// What is the matter.
    pub headline: String,
    /// What it means for reads and writes.
    pub impact: String,
    /// What to do; empty when there is nothing.
    pub next: String,
}

/// What `keyspace` can do with so many replicas of each partition that take puts, and that answer
/// gets.
pub fn margins(keyspace: &Keyspace, live: &[u8], readable: &[u8]) -> Margins {
    let count = |copies: &[u8], fail: &dyn Fn(u8) -> bool| {
        copies.iter().filter(|copies| fail(**copies)).count() as u32
    };
    let at_edge = |(live, readable): (&u8, &u8)| {
        let (gets, puts) = (*readable == keyspace.r, *live == keyspace.w);
        let ok = *readable >= keyspace.r && *live >= keyspace.w;
        ok && ((gets && keyspace.r < keyspace.n) || (puts && keyspace.w < keyspace.n))
    };
    Margins {
        partitions: live.len() as u32,
        gets_fail: count(readable, &|copies| copies < keyspace.r),
        puts_fail: count(live, &|copies| copies < keyspace.w),
        no_margin: live.iter().zip(readable).filter(|both| at_edge(*both)).count() as u32,
    }
}

/// Sums up members, those `missing`, those up that `lost_data` and are not level yet, and keyspaces.
pub fn verdict(
    members: usize,
    missing: &[Missing],
    lost_data: &[String],
    keyspaces: &[(&Keyspace, Margins)],
) -> Verdict {
    let failing = keyspaces.iter().any(|(_, m)| m.gets_fail + m.puts_fail > 0);
    let level = match (missing.is_empty() && lost_data.is_empty(), failing) {
        (_, true) => Level::Critical,
        (false, false) => Level::Degraded,
        (true, false) => Level::Ok,
    };
    let losers = match lost_data {
        [] => None,
        names => Some(format!("{} lost data and has no vote until it is level", names.join(", "))),
    };
    let up = Some(up_or_not(members, missing)).filter(|_| losers.is_none() || !missing.is_empty());
    Verdict {
        level,
        headline: up.into_iter().chain(losers).collect::<Vec<_>>().join("; "),
        impact: impact(keyspaces),
        next: next(missing, lost_data),
    }
}

fn up_or_not(members: usize, missing: &[Missing]) -> String {
    let one = |m: &Missing| match m.known {
        true => format!("{} down {}", m.name, duration(m.for_ms)),
        false => format!("{} not heard of for {}", m.name, duration(m.for_ms)),
    };
    match missing {
        [] if members == 1 => "the only node is up".into(),
        [] => format!("all {members} nodes up"),
        [a] => one(a),
        [a, b] => format!("{} and {}", one(a), one(b)),
        [a, b, rest @ ..] => format!("{}, {} and {} more", one(a), one(b), rest.len()),
    }
}

fn impact(keyspaces: &[(&Keyspace, Margins)]) -> String {
    let word = |fail: bool| if fail { "FAIL in part" } else { "ok" };
    let gets_fail = keyspaces.iter().any(|(_, m)| m.gets_fail > 0);
    let puts_fail = keyspaces.iter().any(|(_, m)| m.puts_fail > 0);
    let mut parts = vec![format!("reads {}, writes {}", word(gets_fail), word(puts_fail))];
    for (keyspace, m) in keyspaces {
        let quorum = quorum(keyspace);
        if m.gets_fail > 0 {
            parts.push(format!(
                "{quorum} fails gets in {}/{} partitions",
                m.gets_fail, m.partitions
            ));
        }
        if m.puts_fail > 0 {
            parts.push(format!(
                "{quorum} fails puts in {}/{} partitions",
                m.puts_fail, m.partitions
            ));
        }
        if m.no_margin > 0 {
            let (thin, all) = (m.no_margin, m.partitions);
            parts.push(format!("{quorum} has {thin}/{all} partitions with margin 0"));
        }
    }
    parts.join("; ")
}

fn quorum(keyspace: &Keyspace) -> String {
    let strict = if keyspace.mode == Mode::Strict { " strict" } else { "" };
    format!("{} (N{} R{} W{}{strict})", keyspace.name, keyspace.n, keyspace.r, keyspace.w)
}

fn next(missing: &[Missing], lost_data: &[String]) -> String {
    match missing {
        [] if lost_data.is_empty() => String::new(),
        [] => "wait, it fills from the others: kvctl repair status".into(),
        [one] => format!("restart {}, or find out why it is away: kvctl nodes show {0}", one.name),
        many => {
            let names: Vec<&str> = many.iter().map(|m| m.name.as_str()).collect();
            format!("bring back {}, any one first", names.join(", "))
        }
    }
}

/// `850ms`, `12s`, `3m12s`, `2h05m`, `4d03h`.
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyspace(name: &str, r: u8, w: u8) -> Keyspace {
        let mode = Mode::Sloppy;
        Keyspace {
            name: name.into(),
            n: 3,
            r,
            w,
            mode,
            compression: None,
            value_bytes_max: 1024,
            stamp: 1,
            generation: 0,
        }
    }

    fn missing(name: &str, for_ms: u64) -> Missing {
        Missing { name: name.into(), for_ms, known: true }
    }

    #[test]
    fn a_healthy_cluster_has_nothing_to_do() {
        let default = keyspace("default", 2, 2);
        let margins = margins(&default, &[3; 256], &[3; 256]);
        let verdict = verdict(3, &[], &[], &[(&default, margins)]);
        assert_eq!(verdict.level, Level::Ok);
        assert_eq!(verdict.headline, "all 3 nodes up");
        assert_eq!(verdict.impact, "reads ok, writes ok");
        assert_eq!(verdict.next, "");
    }

    #[test]
    fn one_node_down_costs_margin() {
        let default = keyspace("default", 2, 2);
        let margins = margins(&default, &[3, 2, 2, 3], &[3, 2, 2, 3]);
        let verdict = verdict(5, &[missing("n2", 192_000)], &[], &[(&default, margins)]);
        assert_eq!(verdict.level, Level::Degraded);
        assert_eq!(verdict.headline, "n2 down 3m12s");
        let impact = "reads ok, writes ok; default (N3 R2 W2) has 2/4 partitions with margin 0";
        assert_eq!(verdict.impact, impact);
    }

    #[test]
    fn a_keyspace_below_its_quorum_is_critical() {
        let billing = keyspace("billing", 2, 3);
        let margins = margins(&billing, &[3, 2], &[3, 2]);
        let verdict =
            verdict(3, &[missing("n2", 500), missing("n3", 61_000)], &[], &[(&billing, margins)]);
        assert_eq!(verdict.level, Level::Critical);
        assert_eq!(verdict.headline, "n2 down 500ms and n3 down 1m01s");
        assert!(verdict.impact.contains("billing (N3 R2 W3) fails puts in 1/2 partitions"));
        assert!(verdict.next.contains("bring back n2, n3"));
    }

    #[test]
    fn a_node_that_lost_data_counts_in_puts_and_not_in_strict_gets() {
        let sloppy = keyspace("default", 2, 2);
        let strict = Keyspace { mode: Mode::Strict, ..keyspace("billing", 2, 2) };
        // In a sloppy keyspace what it holds counts.
        let sloppy_can = margins(&sloppy, &[3, 2], &[3, 2]);
        let strict_can = margins(&strict, &[3, 2], &[2, 1]);
        assert_eq!((sloppy_can.gets_fail, sloppy_can.puts_fail, sloppy_can.no_margin), (0, 0, 1));
        assert_eq!((strict_can.gets_fail, strict_can.puts_fail, strict_can.no_margin), (1, 0, 1));
        let lost = ["n2".to_owned()];
        let verdict = verdict(3, &[], &lost, &[(&sloppy, sloppy_can)]);
        assert_eq!(verdict.level, Level::Degraded);
        assert_eq!(verdict.headline, "n2 lost data and has no vote until it is level");
    }

    #[test]
    fn durations_are_short() {
        let all = [850, 12_000, 192_000, 7_500_000, 356_400_000].map(duration);
        assert_eq!(all, ["850ms", "12s", "3m12s", "2h05m", "4d03h"]);
    }
}
