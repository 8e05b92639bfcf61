//! Requests of the whole cluster: rates, latencies, and how they went lately.

use super::number::{UNKNOWN, interval, latency, rate_per_s};
use super::theme::{SPARKS, Theme, sign};
use super::{put, width};
use crate::app::App;
use crate::state::{Cluster, Level, Millis, Rates};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Latencies are of the requests of this long.
const LATENCY_SPAN: Millis = 10_000;

/// One of the rates.
type Rate = fn(&Rates) -> f64;

/// Columns of a rate.
const RATE_WIDTH: usize = 7;

/// How far sparklines reach back: a minute or two, longer when samples are further apart.
pub(super) fn span(app: &App, wide: bool) -> Millis {
    let span = if wide { 120_000 } else { 60_000 };
    span.max(app.interval * 30)
}

/// Title of the box; it tells when not every node could be counted.
pub(super) fn title(app: &App, cluster: &Cluster, wide: bool) -> String {
    let (counted, nodes) = (cluster.totals().1, cluster.nodes.len());
    let span = interval(span(app, wide)).replace('s', " s");
    if counted == nodes || counted == 0 {
        return format!("Requests, last {span}");
    }
    format!("Requests, last {span}, of {counted}/{nodes} nodes")
}

/// Draws the box's inside.
pub(super) fn render(
    app: &App,
    cluster: &Cluster,
    theme: &Theme,
    area: Rect,
    wide: bool,
    buf: &mut Buffer,
) {
    let total = cluster.totals().0;
    let lines: [(&str, Rate, String); 3] = [
        ("get", |rates| rates.gets, latencies(app, cluster, false, area)),
        ("put", |rates| rates.puts, latencies(app, cluster, true, area)),
        ("fail", |rates| rates.failures, String::new()),
    ];
    let tail = lines.iter().map(|(_, _, tail)| width(tail)).max().unwrap_or(0);
    for (line, (label, what, text)) in (0..).zip(&lines) {
        let at = Rect { y: area.y + line, height: 1, ..area }.intersection(area);
        let failing = *label == "fail" && total.is_some_and(|rates| rates.failures > 0.0);
        let style = if failing { theme.level(Level::Warn) } else { Style::new() };
        let mark = if failing { sign(Level::Warn) } else { " " };
        let head =
            format!(" {label:<4}{mark}{:>RATE_WIDTH$} ", rate_per_s(total.as_ref().map(what)));
        let columns = usize::from(at.width).saturating_sub(width(&head) + tail + 2);
        let sparks = sparkline(&slices(app, cluster, wide, columns, *what));
        put(buf, at, at.x, at.y, &format!("{head}{sparks} {text}"), style);
    }
    let repairs = rate_per_s(total.map(|rates| rates.read_repairs));
    let siblings = rate_per_s(total.map(|rates| rates.siblings));
    let text = format!(" read repairs {repairs}   siblings {siblings}");
    if width(&text) <= usize::from(area.width) {
        put(buf, area, area.x, area.y + 3, &text, Style::new());
    }
}

/// The rates in one line, as `get 1.52k/s p99 4.1ms`, as far as `room` goes.
pub(super) fn brief(app: &App, cluster: &Cluster, room: usize) -> String {
    let rates = cluster.totals().0;
    let parts = [
        format!("get {}", rate_per_s(rates.map(|r| r.gets))),
        format!("put {}", rate_per_s(rates.map(|r| r.puts))),
        format!("fail {}", rate_per_s(rates.map(|r| r.failures))),
        format!("p99 get {}", quantile(app, cluster, false, 0.99)),
        format!("p99 put {}", quantile(app, cluster, true, 0.99)),
    ];
    let mut line = String::new();
    for part in parts {
        let longer = if line.is_empty() { part } else { format!("{line}  {part}") };
        if width(&longer) > room {
            break;
        }
        line = longer;
    }
    line
}

/// `p50 0.9ms  p99 4.1ms`, or only the latter.
fn latencies(app: &App, cluster: &Cluster, puts: bool, area: Rect) -> String {
    let p99 = format!("p99 {:>6}", quantile(app, cluster, puts, 0.99));
    if area.width < 48 {
        return p99;
    }
    format!("p50 {:>6}  {p99}", quantile(app, cluster, puts, 0.5))
}

fn quantile(app: &App, cluster: &Cluster, puts: bool, q: f64) -> String {
    let since = cluster.received_at.saturating_sub(LATENCY_SPAN.max(2 * app.interval));
    let micros = match puts {
        true => cluster.history.put_latency(since, q),
        false => cluster.history.get_latency(since, q),
    };
    match micros {
        Some(micros) => latency(micros),
        None if cluster.totals().0.is_some() => "-".into(),
        None => UNKNOWN.into(),
    }
}

fn slices(
    app: &App,
    cluster: &Cluster,
    wide: bool,
    columns: usize,
    what: Rate,
) -> Vec<Option<f64>> {
    cluster.history.slices(cluster.received_at, span(app, wide), columns, what)
}

/// Heights relative to the most; a space where nothing is known.
pub(super) fn sparkline(slices: &[Option<f64>]) -> String {
    let most = slices.iter().flatten().copied().fold(0.0, f64::max);
    let top = (SPARKS.len() - 1) as f64;
    let height = |value: f64| {
        if most > 0.0 { (value / most * top).round() as usize } else { 0 }
    };
    slices
        .iter()
        .map(|slice| slice.map_or(" ", |value| SPARKS[height(value).min(SPARKS.len() - 1)]))
        .collect()
}
