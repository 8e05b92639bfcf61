//! A plan as people and scripts read it, and how two plans differ.

use crate::commands::nodes::percent;
use crate::config::Settings;
use crate::error::Failure;
use crate::output::{self, Envelope, Format, print_json, printable};
use crate::plan_file::{Node, Plan, SCHEMA};
use crate::table::{Cell, Table, Tone};
use crate::time::for_people;
use crate::units::counted;
use crate::value::size;
use proto::v1::ClusterView;
use std::time::Duration;

/// Nodes in the plain table; those that change most come first.
const NODES_SHOWN: usize = 12;

/// A plan in its envelope.
pub(super) fn envelope<'a>(view: &ClusterView, plan: &'a Plan) -> Envelope<&'a Plan> {
    let ring = Some(plan.base.ring.clone());
    Envelope { ring, ..Envelope::of_view(SCHEMA, view, plan) }
}

/// Prints a plan as the answer of the command.
pub(super) fn print(
    settings: &Settings,
    envelope: &Envelope<&Plan>,
    cluster: &str,
) -> Result<(), Failure> {
    let plan = envelope.data;
    match settings.format {
        Format::Json | Format::Jsonl => print_json(settings, envelope),
        Format::Tsv => output::write(table(settings, &plan.nodes).tsv().as_bytes()),
        Format::Name => output::write(format!("{}\n", plan.short_name()).as_bytes()),
        Format::Table | Format::Wide | Format::Raw => {
            output::write(text(settings, plan, cluster, settings.color_stdout).as_bytes())
        }
    }
}

/// A plan for people.
pub(super) fn text(settings: &Settings, plan: &Plan, cluster: &str, color: bool) -> String {
    let (cluster, ring) = (printable(cluster), printable(&plan.base.ring));
    if plan.lines.is_empty() {
        return format!("nothing to change: cluster {cluster} on ring {ring} is so already\n");
    }
    let name = printable(plan.short_name());
    let mut text = format!("plan {name} for {cluster} on ring {ring} (nothing changed yet)\n");
    for line in &plan.lines {
        text += &format!("  {}\n", printable(line));
    }
    for (name, said) in facts(settings, plan) {
        text += &format!("  {name:<7}  {said}\n");
    }
    let marked = |text: &str, tone: Tone| {
        let shown = printable(text);
        if color { format!("{}{shown}\x1b[0m", tone.sequence()) } else { shown }
    };
    let (warning, alarm) = if settings.ascii { ("!", "X") } else { ("▲", "✖") };
    for warned in &plan.warnings {
        text += &format!("  {}\n", marked(&format!("{warning} {warned}"), Tone::Warning));
    }
    for loss in losses(plan) {
        text += &format!("  {}\n", marked(&format!("{alarm} {loss}"), Tone::Alarm));
    }
    text + &nodes(settings, plan, color)
}

/// What applying another plan in place of one would do otherwise.
pub(super) fn differences(was: &Plan, now: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    let mut differ = |what: &str, was: String, now: String| {
        if was != now {
            lines.push(format!("{what}: was {was}; now {now}"));
        }
    };
    differ("ring", was.base.ring.clone(), now.base.ring.clone());
    let partitions = |plan: &Plan| (1_u64 << plan.partition_bits_after.min(63)).to_string();
    differ("partitions", partitions(was), partitions(now));
    differ("moves", moves(was), moves(now));
    let words = |list: &[String]| if list.is_empty() { "none".into() } else { list.join("; ") };
    differ("changes", words(&was.lines), words(&now.lines));
    differ("lost", words(&losses(was)), words(&losses(now)));
    differ(
        "live copies at least",
        was.min_live_copies.to_string(),
        now.min_live_copies.to_string(),
    );
    for node in &was.nodes {
        let same = now.nodes.iter().find(|other| other.name == node.name);
        let after = same.map_or_else(|| "not in the plan".into(), held_after);
        differ(&node.name, held_after(node), after);
    }
    let known = |node: &&Node| was.nodes.iter().any(|other| other.name == node.name);
    for node in now.nodes.iter().filter(|node| !known(node)) {
        differ(&node.name, "not in the plan".into(), held_after(node));
    }
    lines
}

/// What a plan does, a name and words for each line.
fn facts(settings: &Settings, plan: &Plan) -> Vec<(&'static str, String)> {
    let mut facts = vec![("moves", moves(plan)), ("safety", safety(plan))];
    if plan.partition_bits_before != plan.partition_bits_after {
        let bits = [plan.partition_bits_before, plan.partition_bits_after];
        let [before, after] = bits.map(|bits| (1_u64 << bits.min(63)).to_string());
        facts.push((
            "ring",
            format!("{} partitions; no data moves for it", becomes(settings, &before, &after)),
        ));
    }
    if plan.transitions > 0 {
        let count = counted(plan.transitions, "partition");
        facts.push((
            "quorum",
            format!("{count} to go to other replicas or another quorum, one by one"),
        ));
    }
    if plan.duration_s > 0 {
        let time = for_people(Duration::from_secs(plan.duration_s));
        let rate = size(plan.bytes_per_second);
        facts.push(("time", format!("about {time} at {rate}/s")));
    }
    if plan.fullest_ratio_next > 0.0 {
        let (spread, next) = (plan.spread, plan.spread + 1);
        let (now, then) = (plan.fullest_ratio, plan.fullest_ratio_next);
        let words = format!(
            "{spread} zones, the fullest node at {now:.2} of its weight; {next} zones: {then:.2}"
        );
        facts.push(("spread", words));
    }
    facts.push(("undo", "kvctl plan create --undo OP".to_owned()));
    facts
}

fn moves(plan: &Plan) -> String {
    match plan.copies_moved {
        0 => "nothing".to_owned(),
        moved => format!("{moved} of {} copies, {}", plan.copies_total, size(plan.bytes_moved)),
    }
}

fn safety(plan: &Plan) -> String {
    let (least, now) = (plan.min_live_copies, plan.min_live_copies_now);
    let live = match least < now {
        true => format!("live copies drop from {now} to {least} somewhere"),
        false => "live copies never drop".to_owned(),
    };
    let zones = match (plan.zones_distinct, plan.spread) {
        (false, _) => "; copies touch FEWER ZONES than they must",
        (true, 0 | 1) => "",
        (true, _) => "; zones stay distinct",
    };
    let disk = match plan.disk_peak_ratio {
        peak if peak > 0.0 => format!("; peak disk {:.0}%", peak * 100.0),
        _ => String::new(),
    };
    live + zones + &disk
}

fn losses(plan: &Plan) -> Vec<String> {
    let line = |loss: &crate::plan_file::Loss| {
        let (node, keyspace) = (&loss.node, &loss.keyspace);
        let mut parts = Vec::new();
        if loss.partitions > 0 {
            let count = counted(u64::from(loss.partitions), "partition");
            parts.push(format!("{count} of which no live copy is left"));
        }
        if loss.thin > 0 {
            let count = counted(u64::from(loss.thin), "partition");
            parts.push(format!("{count} of which it alone may have the latest writes"));
        }
        format!("lost with {node} in {keyspace}: {}", parts.join(", "))
    };
    plan.losses.iter().map(line).collect()
}

fn nodes(settings: &Settings, plan: &Plan, color: bool) -> String {
    let wide = settings.format == Format::Wide;
    let mut nodes = plan.nodes.clone();
    if !wide {
        nodes.sort_by_key(|node| std::cmp::Reverse(node.copies.abs_diff(node.copies_after)));
        nodes.truncate(NODES_SHOWN);
    }
    let more = match plan.nodes.len() - nodes.len() {
        0 => String::new(),
        more => format!("({more} more with -o wide)\n"),
    };
    if nodes.is_empty() {
        return String::new();
    }
    table(settings, &nodes).aligned(wide, color) + &more
}

fn table(settings: &Settings, nodes: &[Node]) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "SHARE",
        "COPIES",
        "DATA AFTER",
        "DISK AFTER",
        "+ZONE",
        "+WEIGHT",
        "+FAIR AFTER",
        "+COPIES IN",
        "+ADDRESS",
    ]);
    let share = |ratio: f64| if ratio == 0.0 { "0".to_owned() } else { percent(ratio) };
    for node in nodes {
        let disk = node.disk_ratio_after.map(|ratio| format!("{:.0}%", ratio * 100.0));
        let two = |before: String, after: String| Cell::from(becomes(settings, &before, &after));
        table.row(vec![
            node.name.as_str().into(),
            two(share(node.share_ratio), share(node.share_ratio_after)),
            two(node.copies.to_string(), node.copies_after.to_string()),
            size(node.bytes_after).into(),
            disk.unwrap_or_else(|| "?".to_owned()).into(),
            two(node.zone.clone(), node.zone_after.clone()),
            two(node.weight.to_string(), node.weight_after.to_string()),
            percent(node.fair_ratio_after).into(),
            node.copies_in.to_string().into(),
            node.address.as_str().into(),
        ]);
    }
    table
}

fn held_after(node: &Node) -> String {
    format!("{} of all, {} copies", percent(node.share_ratio_after), node.copies_after)
}

/// `36 → 26`; only one of them if they are the same, or the first is nothing.
fn becomes(settings: &Settings, before: &str, after: &str) -> String {
    let arrow = if settings.ascii { "->" } else { "→" };
    match (before, after) {
        (before, after) if before == after || before.is_empty() => after.to_owned(),
        (before, after) => format!("{before} {arrow} {after}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Global;
    use crate::plan_file::tests::sample;

    fn settings(ascii: bool) -> Settings {
        let flags = Global { ascii, ..Global::default() };
        Settings::resolve(&flags, &|_| None).unwrap()
    }

    #[test]
    fn a_plan_says_what_moves_how_safe_it_is_and_who_has_what_afterwards() {
        let expected = "\
plan 9f9f9f9f for prod on ring 118 (nothing changed yet)
  + n13 zone a
  - n7 (dead)
  moves    77 of 384 copies, 91.6 GiB
  safety   live copies never drop; zones stay distinct; peak disk 63%
  time     about 26m03s at 60.0 MiB/s
  undo     kvctl plan create --undo OP
  ▲ n10 stays 12% above its share
  ✖ lost with n7 in logs: 2 partitions of which no live copy is left, 5 partitions of which it alone may have the latest writes
NODE  SHARE        COPIES   DATA AFTER  DISK AFTER
n7    8.3% → 0     32 → 0   0 B         ?
n13   0 → 6.5%     0 → 25   25.0 GiB    25%
n10   9.4% → 6.8%  36 → 26  26.0 GiB    26%
n1    8.3%         32       32.0 GiB    32%
";
        assert_eq!(text(&settings(false), &sample(), "prod", false), expected);
        let plain = text(&settings(true), &sample(), "prod", false);
        assert!(plain.is_ascii(), "{plain}");
    }

    #[test]
    fn a_plan_of_nothing_says_so() {
        let plan = Plan { lines: Vec::new(), ..sample() };
        let said = text(&settings(false), &plan, "prod", false);
        assert_eq!(said, "nothing to change: cluster prod on ring 118 is so already\n");
    }

    #[test]
    fn only_what_differs_is_said_of_two_plans() {
        assert_eq!(differences(&sample(), &sample()), [""; 0]);
        let mut now = sample();
        now.base.ring = "119".into();
        now.copies_moved = 70;
        now.nodes[1].copies_after = 27;
        now.nodes.pop();
        assert_eq!(
            differences(&sample(), &now),
            [
                "ring: was 118; now 119",
                "moves: was 77 of 384 copies, 91.6 GiB; now 70 of 384 copies, 91.6 GiB",
                "n10: was 6.8% of all, 26 copies; now 6.8% of all, 27 copies",
                "n7: was 0.0% of all, 0 copies; now not in the plan",
            ]
        );
    }
}
