//! The help: keys, signs, columns and thresholds.

use super::number::percent;
use super::theme::{Theme, sign};
use super::{frame, put, shorten};
use crate::app::App;
use crate::keymap::BINDINGS;
use crate::state::{CHECKED, DISK, LAG, Level, SHARE, STATS_AGE_MAX};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Draws the help over everything, from line `from` on when it is longer than the screen.
pub(super) fn render(app: &App, from: u16, theme: &Theme, area: Rect, buf: &mut Buffer) {
    let lines = lines(app);
    let framed = area.height >= 10 && area.width >= 30;
    let inside = if framed {
        let band = [frame::Band::one(
            format!("kvtop {} help", env!("CARGO_PKG_VERSION")),
            area.height - 2,
        )];
        frame::draw(area, &band, "j/k scroll  ? or Esc close  q quit", theme, buf)[0]
    } else {
        area
    };
    let overflow = lines.len().saturating_sub(usize::from(inside.height));
    let visible = lines.iter().skip(usize::from(from).min(overflow));
    for (y, line) in (inside.y..inside.bottom()).zip(visible) {
        let style = if line.starts_with(' ') { Style::new() } else { theme.bold() };
        put(buf, inside, inside.x, y, &shorten(line, usize::from(inside.width)), style);
    }
}

fn lines(app: &App) -> Vec<String> {
    let mut lines = vec!["Keys".to_owned()];
    lines.extend(BINDINGS.iter().map(|binding| format!("  {:<10} {}", binding.keys, binding.does)));
    lines.push("Signs".into());
    lines.push(format!(
        "  {} ok   {} warning   {} critical   ? not known, which is never shown as 0",
        sign(Level::Ok),
        sign(Level::Warn),
        sign(Level::Critical)
    ));
    lines.push("  » on its way: a node that comes, goes, gets copies or gives them".into());
    lines.push("  - nothing to measure   52%? as last heard   blank in a graph: no samples".into());
    lines.push("Columns and limits".into());
    lines.push(format!("  dev      distance from the fair share; {}", limits(SHARE)));
    lines.push(format!("  disk     part of the disk in use; {}", limits(DISK)));
    lines.push(format!(
        "  lag      age of the oldest write known to be missing; {} from {} s, {} {} s",
        sign(Level::Warn),
        LAG.0 / 1000,
        sign(Level::Critical),
        LAG.1 / 1000
    ));
    lines.push("           3m12s+ so much or more: a node that may keep more was not heard".into());
    lines.push(format!(
        "  checked  age of its oldest last comparison with another; {} from {} min",
        sign(Level::Warn),
        CHECKED / 60_000
    ));
    lines.push("  drain    keys it lacks more or less each second, of the last 4 s".into());
    lines.push("  keeps    keys it keeps for others that missed them".into());
    lines.push("  no vote  it lost data, and does not count in gets until it is level".into());
    lines.push(
        "  was, now, then   part of all copies in percent: before a change, now, after".into(),
    );
    lines.push(
        "  switched, closed   partitions read from their new homes; with old ones let go".into(),
    );
    lines.push("  rtt      round trip from the node kvtop looks through".into());
    lines
        .push("  put/s    puts and deletes   p50, p99: of 10 s; of one node: of one sample".into());
    lines.push(format!(
        "  rates    unknown when a node's counters are older than {} s or it restarted",
        STATS_AGE_MAX / 1000
    ));
    lines.push(format!(
        "  samples  every {}; all times of day are UTC",
        super::number::interval(app.interval)
    ));
    lines
}

fn limits((warn, critical): (f64, f64)) -> String {
    let whole = |ratio: f64| percent(ratio).replace(".0%", "%");
    format!(
        "{} from {}, {} from {}",
        sign(Level::Warn),
        whole(warn),
        sign(Level::Critical),
        whole(critical)
    )
}
