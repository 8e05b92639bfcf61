//! Waiting for an operation: a bar on a terminal, dated lines elsewhere. The operation is the
//! cluster's own; whatever ends the wait leaves it going, and how to see it again is said.

use super::progress::Pace;
use super::{op_view, ops};
use crate::commands::op_view::StuckJson;
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{note, printable};
use crate::patience::Patience;
use crate::time::{for_people, now_ms, time_of_day};
use indicatif::{ProgressBar, ProgressStyle};
use proto::v1::Op;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Moves named under the bar at most.
const MOVES_SHOWN: usize = 3;

/// Waits until an operation is over and gives it as it is then.
pub(super) async fn follow(
    settings: &Settings,
    connection: &Connection,
    mut op: Op,
    stall_timeout: Duration,
) -> Result<Op, Failure> {
    if op_view::is_over(&op) {
        return Ok(op);
    }
    let again = format!("kvctl ops wait {}", op.id);
    settings.parting.set(format!("{} goes on; to wait for it again: {again}", op.id));
    let mut shown = Shown::new(settings, &op);
    let mut patience = Patience::new(settings.wait_timeout);
    let mut stall = Stall::new(&op);
    while !op_view::is_over(&op) {
        shown.show(settings, &op);
        if stall.lasts(&op) >= stall_timeout {
            return Err(stalled(settings, &op, stall_timeout));
        }
        if !patience.pause().await {
            return Err(timed_out(settings, &op));
        }
        let answer = ops::one(connection, &op.id).await;
        let answer = patience.bear(connection, answer).await;
        if let Some(now) = answer.map_err(|failure| detached(failure, &op))? {
            op = now;
        }
    }
    shown.end();
    Ok(op)
}

/// Since when nothing has got on.
struct Stall {
    mark: Mark,
    since: Instant,
}

/// What changes whenever an operation gets on, be it by a page of one copy.
#[derive(PartialEq)]
struct Mark {
    state: i32,
    counts: [u64; 5],
    progress: f64,
}

impl Mark {
    fn of(op: &Op) -> Self {
        let moving = || op.pairs.iter().flat_map(|pair| &pair.moving);
        Self {
            state: op.state,
            counts: [
                op.copies_done,
                op.bytes_done,
                op.transitions_flipped,
                op.transitions_closed,
                moving().map(|moving| moving.bytes_done).sum(),
            ],
            progress: moving().map(|moving| moving.progress_ratio).sum(),
        }
    }
}

impl Stall {
    fn new(op: &Op) -> Self {
        Self { mark: Mark::of(op), since: Instant::now() }
    }

    fn lasts(&mut self, op: &Op) -> Duration {
        let mark = Mark::of(op);
        if mark != self.mark {
            *self = Self { mark, since: Instant::now() };
        }
        self.since.elapsed()
    }
}

/// How the wait is shown.
enum Shown {
    Bar(ProgressBar),
    Lines(Pace),
    Nothing,
}

impl Shown {
    fn new(settings: &Settings, op: &Op) -> Self {
        if settings.quiet {
            return Self::Nothing;
        }
        if io::stderr().is_terminal() {
            return Self::Bar(bar(settings, &op.id));
        }
        note(
            settings,
            &format!("{} is under way; to wait for it elsewhere: kvctl ops wait {0}", op.id),
        );
        Self::Lines(Pace::new())
    }

    fn show(&mut self, settings: &Settings, op: &Op) {
        match self {
            Self::Bar(bar) => {
                bar.set_position(op_view::progress_percent(op));
                bar.set_message(printable(&message(settings, op)));
                bar.set_prefix(printable(&below(settings, op)));
                bar.tick();
            }
            Self::Lines(pace) => {
                if pace.due(op_view::progress_percent(op)) {
                    let line = printable(&op_view::line(op));
                    let _ = writeln!(io::stderr(), "{} {line}", time_of_day(now_ms()));
                }
            }
            Self::Nothing => {}
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Shown {
    /// What is said next must not be written into the bar.
    fn drop(&mut self) {
        self.end();
    }
}

fn bar(settings: &Settings, id: &str) -> ProgressBar {
    let bar = ProgressBar::new(100);
    // Braces in an id would be read as a field.
    let id = printable(id).replace(['{', '}'], "");
    let template = format!("{id} {{bar:32}} {{percent:>3}}%  {{msg}}\n        {{prefix}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars(if settings.ascii { "#>-" } else { "█▉░" }));
    }
    bar
}

fn message(settings: &Settings, op: &Op) -> String {
    let sign = if settings.ascii { "!" } else { "▲" };
    let amounts = op_view::amounts(op);
    match op.stuck.first() {
        None => amounts,
        Some(first) => {
            let (count, words) =
                (op_view::stuck_count(op), op_view::stuck_words(settings, first, now_ms()));
            format!("{amounts}  {sign} {count} stuck: {words}")
        }
    }
}

/// The moves under way, and what Ctrl-C does.
fn below(settings: &Settings, op: &Op) -> String {
    let arrow = if settings.ascii { "->" } else { "→" };
    let moves = op.pairs.iter().flat_map(|pair| {
        let words =
            |moving| format!("{}{arrow}{} {}", pair.from, pair.to, op_view::moving_words(moving));
        pair.moving.iter().map(words)
    });
    let mut parts: Vec<String> = moves.take(MOVES_SHOWN).collect();
    parts.push("^C detaches, the operation goes on".to_owned());
    parts.join("   ")
}

fn timed_out(settings: &Settings, op: &Op) -> Failure {
    let limit = settings.wait_timeout.unwrap_or_default();
    let what = format!("{} is not done after {}", op.id, for_people(limit));
    detached(Failure::new(Exit::TimedOut, "WAIT_TIMED_OUT", what).why(op_view::line(op)), op)
}

fn stalled(settings: &Settings, op: &Op, limit: Duration) -> Failure {
    let what = format!("{} has not got on for {}", op.id, for_people(limit));
    let stuck: Vec<StuckJson> = op.stuck.iter().map(StuckJson::of).collect();
    let obstacles = op_view::obstacles(settings, op, now_ms());
    let failure = Failure::new(Exit::TimedOut, "WAIT_STALLED", what)
        .field("stuck", serde_json::to_value(stuck).unwrap_or_default())
        .field("obstacles", obstacles.clone().into())
        .lines(obstacles);
    detached(failure, op)
}

/// A wait that ended before the operation did.
fn detached(failure: Failure, op: &Op) -> Failure {
    failure
        .state("the operation goes on in the cluster")
        .advice(format!("kvctl ops wait {0}, or kvctl ops show {0}", op.id))
        .field("op", op.id.clone().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{MovePair, Moving};

    #[test]
    fn a_page_of_one_copy_is_progress_and_an_estimate_is_not() {
        let moving = |bytes_done| Op {
            pairs: vec![MovePair {
                moving: vec![Moving { bytes_done, ..Default::default() }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut stall = Stall::new(&moving(1));
        std::thread::sleep(Duration::from_millis(20));
        assert!(stall.lasts(&Op { eta_ms: 5, bytes_total: 9, ..moving(1) }).as_millis() >= 20);
        assert!(stall.lasts(&moving(2)).as_millis() < 20);
    }
}
