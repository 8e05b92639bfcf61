//! Whatever comes, in whatever room: it draws, and does not panic.

mod fixture;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use fixture::{START, Scene, draw, text};
use kvtop::app::{App, Effect, Screen};
use kvtop::event::{Event, Feed};
use kvtop::keymap;
use kvtop::view::theme::{Palette, Theme};
use proptest::prelude::*;
use unicode_width::UnicodeWidthStr;

#[derive(Clone, Debug)]
enum Step {
    Key(KeyEvent),
    Wait(u64),
    Sample { nodes: usize, down: Vec<usize>, second: u64, opened: bool, garble: u8 },
    Details { nodes: usize, down: Vec<usize>, second: u64, garble: u8 },
    Lost,
    Trying(usize),
    Failed,
}

fn step() -> impl Strategy<Value = Step> {
    let known: Vec<KeyCode> = "jkgG +-=?qx1234477"
        .chars()
        .map(KeyCode::Char)
        .chain([KeyCode::Esc, KeyCode::Up, KeyCode::Down, KeyCode::Enter, KeyCode::Enter])
        .collect();
    let sample = (
        1_usize..15,
        prop::collection::vec(1_usize..15, 0..4),
        0_u64..1_000_000,
        any::<bool>(),
        any::<u8>(),
    );
    let details = (1_usize..15, prop::collection::vec(1_usize..15, 0..4), 0_u64..100, any::<u8>());
    prop_oneof![
        2 => details.prop_map(|(nodes, down, second, garble)| Step::Details { nodes, down, second, garble }),
        4 => prop::sample::select(known).prop_map(|code| Step::Key(KeyEvent::new(code, KeyModifiers::NONE))),
        1 => any::<char>().prop_map(|c| Step::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL))),
        1 => (0_u64..10_000_000).prop_map(Step::Wait),
        4 => sample.prop_map(|(nodes, down, second, opened, garble)| Step::Sample { nodes, down, second, opened, garble }),
        1 => Just(Step::Lost),
        1 => (0_usize..20).prop_map(Step::Trying),
        1 => Just(Step::Failed),
    ]
}

/// A node may say anything: absent parts, odd names, numbers that make no sense.
fn garbled(mut view: proto::v1::ClusterView, how: u8) -> proto::v1::ClusterView {
    let bit = |n: u8| how >> n & 1 == 1;
    if bit(0) {
        view.verdict = None;
        view.layout = None;
    }
    if bit(1) {
        view.live_copies = vec![0, 1, 255, 3, 2].into();
    }
    if bit(2) {
        view.keyspaces.clear();
    }
    for node in view.nodes.iter_mut().filter(|_| bit(3)) {
        node.name = "näme-日本-\u{1b}[31m\n\u{200d}".repeat(3);
        node.share_ratio = f64::NAN;
        node.fair_ratio = f64::INFINITY;
        node.state = 99;
    }
    for node in view.nodes.iter_mut().filter(|_| bit(4)) {
        node.fair_ratio = 1e-300;
        node.since_ms = u64::MAX;
        node.stats_at_ms = u64::MAX;
        node.uid = Vec::new().into();
        node.latency_us = u64::MAX;
    }
    for stats in view.nodes.iter_mut().filter_map(|node| node.stats.as_mut()).filter(|_| bit(5)) {
        stats.gets = u64::MAX;
        stats.keys = u64::MAX;
        stats.disk_total_bytes = 1;
        stats.disk_free_bytes = u64::MAX;
        stats.bad_records = u64::MAX;
    }
    for node in view.nodes.iter_mut().filter(|_| bit(2)) {
        node.seen_by.iter_mut().for_each(|seen| seen.state = 42);
        for lag in node.lag.iter_mut() {
            (lag.since_ms, lag.keys, lag.bytes) = (u64::MAX, u64::MAX, u64::MAX);
            (lag.checked_at_ms, lag.more) = (u64::MAX, bit(4));
        }
        let hints = node.stats.iter_mut().flat_map(|stats| &mut stats.hints);
        hints.for_each(|hints| hints.keys = u64::MAX);
    }
    if bit(6) {
        view.observed_at_ms = u64::MAX - 5;
        view.nodes.truncate(1);
    }
    if bit(7) {
        view.live_copies = Vec::new().into();
        view.nodes.clear();
    }
    view
}

fn garble_change(layout: &mut proto::v1::LayoutView, ops: &mut proto::v1::OpsReply, how: u8) {
    let bit = |n: u8| how >> n & 1 == 1;
    if bit(1) {
        layout.spread = u32::MAX;
        layout.members.truncate(usize::from(how >> 4));
    }
    if bit(2) {
        layout.partition_bits = u32::from(how);
    }
    for member in layout.members.iter_mut().filter(|_| bit(3)) {
        (member.uid, member.name) = (Vec::new().into(), "日本\n".repeat(9));
        member.zone = member.name.clone();
    }
    for op in ops.ops.iter_mut().filter(|_| bit(4)) {
        (op.state, op.at_ms, op.ended_at_ms, op.eta_ms) = (77, u64::MAX, 0, u64::MAX);
        (op.copies_done, op.bytes_done, op.bytes_total) = (u64::MAX, u64::MAX, 1);
        op.lines = vec!["\u{1b}".repeat(300); usize::from(how)];
        op.pairs.iter_mut().for_each(|pair| pair.bytes_done = u64::MAX);
        let moving = op.pairs.iter_mut().flat_map(|pair| &mut pair.moving);
        moving.for_each(|moving| moving.progress_ratio = f64::NAN);
        for node in &mut op.nodes {
            (node.share_before, node.share_after, node.waiting) = (f64::NAN, -1.0, u64::MAX);
        }
        for stuck in &mut op.stuck {
            (stuck.since_ms, stuck.more, stuck.from) = (u64::MAX, u32::MAX, String::new());
        }
    }
}

fn apply(app: &mut App, step: Step) -> Effect {
    let now = app.now;
    match step {
        Step::Key(key) => {
            keymap::action(key).map_or(Effect::None, |action| app.update(Event::Key(action), now))
        }
        Step::Wait(millis) => app.update(Event::Tick, now + millis),
        Step::Sample { nodes, down, second, opened, garble } => {
            let view = Box::new(garbled(Scene::new(nodes, &down).view(second % 100), garble));
            app.update(Event::Feed(Feed::Sample { view, opened }), now + second % 5_000)
        }
        Step::Details { nodes, down, second, garble } => {
            let joining: Vec<usize> = (5..nodes).collect();
            let scene =
                Scene { unheard: vec![2], draining: vec![3], joining, ..Scene::new(nodes, &down) };
            let (mut layout, mut ops) = (scene.layout(), scene.ops(second));
            garble_change(&mut layout, &mut ops, garble);
            app.update(Event::Feed(Feed::Layout(Box::new(layout))), now);
            app.update(Event::Feed(Feed::Ops(Box::new(ops))), now);
            let (mut partitions, mut repair) = (scene.partitions(second), scene.repair(second));
            if garble & 1 == 1 {
                partitions.n = u32::MAX;
                partitions.partitions.truncate(usize::from(garble));
                for replica in partitions.partitions.iter_mut().flat_map(|it| &mut it.replicas) {
                    (replica.since_ms, replica.keys, replica.state) = (u64::MAX, u64::MAX, 77);
                }
                for pair in repair.nodes.iter_mut().flat_map(|it| &mut it.pairs) {
                    (pair.repaired, pair.rounds, pair.peer) = (u64::MAX, u64::MAX, "\n".into());
                }
            }
            app.update(Event::Feed(Feed::Partitions(Box::new(partitions))), now);
            app.update(Event::Feed(Feed::Repair(Box::new(repair))), now)
        }
        Step::Lost => app.update(
            Event::Feed(Feed::Lost { endpoint: "10.0.1.1:7400".into(), why: "it ended".into() }),
            now,
        ),
        Step::Trying(position) => {
            let endpoint = format!("10.0.1.{position}:7400");
            app.update(Event::Feed(Feed::Trying { endpoint, position, total: 12 }), now)
        }
        Step::Failed => app
            .update(Event::Feed(Feed::Failed { endpoint: "x".into(), why: "y".repeat(500) }), now),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_it(steps in prop::collection::vec(step(), 0..25), width in 0_u16..=300, height in 0_u16..=300) {
        let mut app = App::new(&["127.0.0.1:7400".to_owned()], 1_000, START);
        for step in steps {
            apply(&mut app, step);
        }
        for ascii in [false, true] {
            let theme = Theme { palette: Palette::Mono, ascii };
            let frame = text(&draw(&app, &theme, width, height));
            prop_assert!(frame.lines().all(|line| ascii == line.is_ascii() || !ascii));
            prop_assert!(frame.lines().all(|line| line.width() <= usize::from(width) + 60));
        }
        kvtop::once::json(&app);
        kvtop::once::ansi(&app, &Theme::MONO, (width, height));
        for screen in [Screen::Overview, Screen::Ring, Screen::Lag, Screen::Nodes, Screen::Node, Screen::Moves] {
            app.screen = screen;
            for (width, height) in [(width, height), (80, 24), (120, 40), (60, 15), (40, 10)] {
                text(&draw(&app, &Theme::MONO, width, height));
            }
        }
        prop_assert_eq!(app.selected.is_some(), app.selected_row().is_some());
    }
}
