//! A plan as a document: what scripts read, what a file keeps, what is shown. Nothing on a server
//! stands for it, so applying it sends its changes and the digest of what they were to do.

use crate::change::Change;
use crate::error::Failure;
use crate::exit::Exit;
use crate::value::{from_hex, hex, write_file};
use proto::v1::{self, ClusterView};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// Schema of the file, and of every plan that is printed.
pub(crate) const SCHEMA: &str = "kvctl.plan/v1";

/// A plan. Its file holds it inside the same envelope that `-o json` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Always null: only an applied plan is an operation.
    pub op: Option<String>,
    pub digest: String,
    pub base: Base,
    pub changes: Vec<Change>,
    /// The changes in words; none: they change nothing.
    pub lines: Vec<String>,
    pub partition_bits_before: u32,
    pub partition_bits_after: u32,
    pub nodes: Vec<Node>,
    #[serde(with = "text")]
    pub copies_moved: u64,
    #[serde(with = "text")]
    pub copies_total: u64,
    #[serde(with = "text")]
    pub bytes_moved: u64,
    pub duration_s: u64,
    #[serde(with = "text")]
    pub bytes_per_second: u64,
    pub min_live_copies: u32,
    pub min_live_copies_now: u32,
    pub disk_peak_ratio: f64,
    pub zones_distinct: bool,
    pub spread: u32,
    pub fullest_ratio: f64,
    pub fullest_ratio_next: f64,
    pub warnings: Vec<String>,
    pub losses: Vec<Loss>,
    /// Checks that --force has to name.
    pub forces: Vec<String>,
    #[serde(with = "text")]
    pub transitions: u64,
}

/// The layout a plan was made on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    pub id: String,
    pub ring: String,
}

/// What becomes of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub name: String,
    pub address: String,
    pub zone: String,
    pub zone_after: String,
    pub weight: u32,
    pub weight_after: u32,
    pub share_ratio: f64,
    pub share_ratio_after: f64,
    pub fair_ratio_after: f64,
    pub copies: u32,
    pub copies_after: u32,
    pub copies_in: u32,
    #[serde(with = "text")]
    pub bytes_after: u64,
    /// Null: not known.
    pub disk_ratio: Option<f64>,
    pub disk_ratio_after: Option<f64>,
}

/// What goes with a dead node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Loss {
    pub node: String,
    pub keyspace: String,
    /// Partitions of which no live copy is left.
    pub partitions: u32,
    /// Partitions of which fewer live copies are left than a write waits for.
    pub thin: u32,
}

/// A plan's file: the envelope, as far as it is needed.
#[derive(Debug, Deserialize)]
struct File {
    schema: String,
    cluster: Option<Cluster>,
    data: Plan,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    name: String,
    id: String,
}

/// A plan from a file, and the cluster it is for.
#[derive(Debug)]
pub(crate) struct Kept {
    pub plan: Plan,
    pub cluster: String,
    pub cluster_id: String,
}

impl Plan {
    /// A plan of the cluster.
    pub(crate) fn of_wire(plan: &v1::Plan) -> Result<Self, Failure> {
        let changes: Option<Vec<Change>> = plan.changes.iter().map(Change::of_wire).collect();
        let Some(changes) = changes else {
            return Err(Failure::internal("the plan has a change this kvctl does not know")
                .advice("a kvctl as new as the cluster; kvctl version"));
        };
        Ok(Self {
            op: None,
            digest: hex(&plan.digest),
            base: plan.base.as_ref().map(Base::of_wire).unwrap_or_default(),
            changes,
            lines: plan.lines.clone(),
            partition_bits_before: plan.partition_bits_before,
            partition_bits_after: plan.partition_bits_after,
            nodes: plan.nodes.iter().map(Node::of_wire).collect(),
            copies_moved: plan.copies_moved,
            copies_total: plan.copies_total,
            bytes_moved: plan.bytes_moved,
            duration_s: plan.seconds,
            bytes_per_second: plan.bytes_per_second,
            min_live_copies: plan.min_live_copies,
            min_live_copies_now: plan.min_live_copies_now,
            disk_peak_ratio: plan.disk_peak_ratio,
            zones_distinct: plan.zones_distinct,
            spread: plan.spread,
            fullest_ratio: plan.fullest_ratio,
            fullest_ratio_next: plan.fullest_ratio_next,
            warnings: plan.warnings.clone(),
            losses: plan.losses.iter().map(Loss::of_wire).collect(),
            forces: plan.forces.clone(),
            transitions: plan.transitions,
        })
    }

    /// The plan of no changes.
    pub(crate) fn of_nothing(view: &ClusterView) -> Self {
        Self {
            base: view.layout.as_ref().map(Base::of_wire).unwrap_or_default(),
            partition_bits_before: view.partition_bits,
            partition_bits_after: view.partition_bits,
            zones_distinct: true,
            ..Self::default()
        }
    }

    /// Its changes as the contract has them.
    pub(crate) fn wire_changes(&self) -> Result<Vec<v1::Change>, Failure> {
        self.changes.iter().map(Change::to_wire).collect()
    }

    /// Its digest as bytes.
    pub(crate) fn digest_bytes(&self) -> Result<Vec<u8>, Failure> {
        from_hex(&self.digest)
    }

    /// What people call it: the start of its digest.
    pub(crate) fn short_name(&self) -> &str {
        self.digest.get(..8).unwrap_or(&self.digest)
    }
}

impl Kept {
    /// Reads a plan's file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = std::fs::read(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let what = format!("there is no plan {shown}");
                Failure::new(Exit::NotFound, "PLAN_UNKNOWN", what)
            }
            _ => Failure::usage(format!("plan {shown}: {error}")),
        })?;
        let no_plan = |why: String| Failure::usage(format!("{shown} is not a plan")).why(why);
        let file: File =
            serde_json::from_slice(&text).map_err(|error| no_plan(error.to_string()))?;
        if file.schema != SCHEMA {
            return Err(no_plan(format!("its schema is {}, not {SCHEMA}", file.schema)));
        }
        let (cluster, cluster_id) =
            file.cluster.map(|cluster| (cluster.name, cluster.id)).unwrap_or_default();
        Ok(Self { plan: file.data, cluster, cluster_id })
    }

    /// Refuses a cluster that the plan is not for.
    pub(crate) fn check_cluster(&self, view: &ClusterView) -> Result<(), Failure> {
        let id = hex(&view.id);
        if id == self.cluster_id {
            return Ok(());
        }
        let what = format!("the plan is for cluster {}, and this is {}", self.cluster, view.name);
        Err(Failure::new(Exit::Refused, "CLUSTER_MISMATCH", what)
            .why(format!("its cluster has the id {}, this one {id}", self.cluster_id))
            .state("nothing was changed")
            .advice("another --endpoint or --profile"))
    }
}

/// Writes the document, so that the file is there whole or not at all.
pub(crate) fn write(path: &Path, document: &impl Serialize) -> Result<(), Failure> {
    write_file(path, crate::output::pretty(document)?.as_bytes())
}

impl Base {
    fn of_wire(layout: &v1::LayoutRef) -> Self {
        Self { id: hex(&layout.id), ring: layout.depth.to_string() }
    }
}

impl Node {
    fn of_wire(node: &v1::PlanNode) -> Self {
        let known = |ratio: f64| (ratio > 0.0).then_some(ratio);
        Self {
            name: node.node.clone(),
            address: node.address.clone(),
            zone: node.zone.clone(),
            zone_after: node.zone_after.clone(),
            weight: node.weight,
            weight_after: node.weight_after,
            share_ratio: node.share_ratio,
            share_ratio_after: node.share_ratio_after,
            fair_ratio_after: node.fair_ratio_after,
            copies: node.copies,
            copies_after: node.copies_after,
            copies_in: node.copies_in,
            bytes_after: node.bytes_after,
            disk_ratio: known(node.disk_ratio),
            disk_ratio_after: known(node.disk_ratio_after),
        }
    }
}

impl Loss {
    fn of_wire(loss: &v1::PlanLoss) -> Self {
        Self {
            node: loss.node.clone(),
            keyspace: loss.keyspace.clone(),
            partitions: loss.partitions,
            thin: loss.thin,
        }
    }
}

/// Totals are text in JSON: a reader may have no integers above 2^53.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
    pub(super) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::output::Envelope;
    use proto::v1::change::Change as Wanted;
    use proto::v1::{LayoutRef, PlanLoss, PlanNode};

    /// One node more, and one that is dead.
    pub(crate) fn sample() -> Plan {
        let node = |name: &str, copies: (u32, u32), shares: (f64, f64)| PlanNode {
            node: name.into(),
            zone: "a".into(),
            zone_after: "a".into(),
            weight: u32::from(copies.0 > 0),
            weight_after: u32::from(copies.1 > 0),
            share_ratio: shares.0,
            share_ratio_after: shares.1,
            copies: copies.0,
            copies_after: copies.1,
            bytes_after: u64::from(copies.1) << 30,
            disk_ratio_after: f64::from(copies.1) / 100.0,
            ..Default::default()
        };
        let plan = v1::Plan {
            digest: vec![0x9f; 16].into(),
            base: Some(LayoutRef { depth: 118, id: vec![1; 16].into() }),
            changes: vec![v1::Change { change: Some(Wanted::DropKeyspace("logs".into())) }],
            lines: vec!["+ n13 zone a".into(), "- n7 (dead)".into()],
            partition_bits_before: 7,
            partition_bits_after: 7,
            nodes: vec![
                node("n1", (32, 32), (0.0833, 0.0833)),
                node("n10", (36, 26), (0.094, 0.068)),
                node("n13", (0, 25), (0.0, 0.065)),
                node("n7", (32, 0), (0.0833, 0.0)),
            ],
            copies_moved: 77,
            copies_total: 384,
            bytes_moved: 98_354_753_536,
            seconds: 1563,
            bytes_per_second: 60 << 20,
            min_live_copies: 2,
            min_live_copies_now: 2,
            disk_peak_ratio: 0.63,
            zones_distinct: true,
            spread: 3,
            warnings: vec!["n10 stays 12% above its share".into()],
            losses: vec![PlanLoss {
                keyspace: "logs".into(),
                partitions: 2,
                thin: 5,
                node: "n7".into(),
            }],
            forces: vec!["data-loss".into()],
            ..Default::default()
        };
        Plan::of_wire(&plan).unwrap()
    }

    #[test]
    fn a_plan_comes_back_from_its_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        let view =
            ClusterView { name: "prod".into(), id: vec![7; 16].into(), ..Default::default() };
        write(&path, &Envelope::of_view(SCHEMA, &view, sample())).unwrap();
        let kept = Kept::read(&path).unwrap();
        assert_eq!(kept.plan, sample());
        assert_eq!(kept.plan.digest_bytes().unwrap(), [0x9f; 16]);
        assert_eq!(kept.plan.short_name(), "9f9f9f9f");
        kept.check_cluster(&view).unwrap();
        let other = ClusterView { id: vec![8; 16].into(), ..view };
        assert_eq!(kept.check_cluster(&other).unwrap_err().exit, Exit::Refused);
    }

    #[test]
    fn what_is_no_plan_is_told_from_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        assert_eq!(Kept::read(&path).unwrap_err().exit, Exit::NotFound);
        for text in ["", "{}", r#"{"schema":"kvctl.get/v1","data":{}}"#] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Kept::read(&path).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }
}
