//! Copies that move while requests go on, layouts that change on both sides of splits: a simulated
//! cluster around the code that decides. No strict get may miss what was acknowledged before it,
//! nothing may be lost, and once all is healed it has to come to an end.
//!
//! A run is a seed. `KVD_SIM_RUNS=…` has so many made in all, `KVD_SIM_SEED=…` replays one and says
//! what happened in it. Most is gained in a release build: `cargo test --release -p kvd --test
//! transition`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod simcluster;

use kvd::dynamo::history::History;
use simcluster::{Bug, Counts, Setting, first_layout, run};
use std::sync::Arc;
use std::time::Instant;

const SETTINGS: [Setting; 6] = [
    Setting { n: 3, w: 2, r: 2, members: 5 },
    Setting { n: 3, w: 3, r: 1, members: 5 },
    Setting { n: 3, w: 1, r: 3, members: 5 },
    Setting { n: 5, w: 3, r: 3, members: 5 },
    Setting { n: 2, w: 2, r: 1, members: 5 },
    // Of one copy each, a fifth node has the ring cut finer.
    Setting { n: 1, w: 1, r: 1, members: 4 },
];

/// Runs of all settings together: many in a build that is quick.
const RUNS: u64 = if cfg!(debug_assertions) { 1_500 } else { 100_000 };

/// Runs of a setting within which a planted bug has to be caught.
const BUG_RUNS: u64 = 3_000;

const BUGS: [Bug; 6] = [
    Bug::ReadBeforeSync,
    Bug::WriteOnlyNew,
    Bug::NoClose,
    Bug::DropBeforeRefusing,
    Bug::StaleAccepted,
    Bug::SloppyCounted,
];

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// The seeds to run.
fn seeds(runs: u64) -> std::ops::Range<u64> {
    match from_environment("KVD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("KVD_SIM_RUNS").map_or(runs, |all| all / SETTINGS.len() as u64),
    }
}

fn holds_up(setting: Setting) {
    let first = Arc::new(History::new(first_layout(setting)));
    let (begun, mut counts, seeds) =
        (Instant::now(), Counts::default(), seeds(RUNS / SETTINGS.len() as u64));
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        match run(&first, seed, None, false).0 {
            Ok(more) => counts.add(&more),
            Err(failure) => {
                let (_, trace) = run(&first, seed, None, true);
                panic!("{setting:?}: KVD_SIM_SEED={seed}: {failure:?}\n{}", trace.join("\n"));
            }
        }
    }
    println!("{setting:?}: {runs} runs in {:?}: {counts:?}", begun.elapsed());
    assert!(runs < 100 || counts.read_moving > runs && counts.given_up > runs / 10);
}

#[test]
fn n3_w2_r2_holds_up() {
    holds_up(SETTINGS[0]);
}

#[test]
fn n3_w3_r1_holds_up() {
    holds_up(SETTINGS[1]);
}

#[test]
fn n3_w1_r3_holds_up() {
    holds_up(SETTINGS[2]);
}

#[test]
fn n5_w3_r3_holds_up() {
    holds_up(SETTINGS[3]);
}

#[test]
fn n2_w2_r1_holds_up() {
    holds_up(SETTINGS[4]);
}

#[test]
fn n1_w1_r1_holds_up() {
    holds_up(SETTINGS[5]);
}

/// Were it not so, the others would prove nothing. With R=1 a read has nothing to hide behind: these
/// settings come first.
#[test]
fn every_planted_bug_is_caught() {
    let firsts = [4, 1, 0, 2, 3].map(|at| {
        let setting: Setting = SETTINGS[at];
        (setting, Arc::new(History::new(first_layout(setting))))
    });
    for bug in BUGS {
        let caught = firsts.iter().find_map(|(setting, first)| {
            let fails = |seed: &u64| run(first, *seed, Some(bug), false).0.is_err();
            (0..BUG_RUNS).find(fails).map(|seed| (setting, seed + 1))
        });
        println!("{bug:?}: caught by run {caught:?}");
        assert!(caught.is_some(), "{bug:?} is not caught");
    }
}
