//! What a cluster is declared to be, in TOML, and how that differs from what it is.

use crate::cli::{ModeArg, Policy};
use crate::commands::keyspaces::{mode_from_name, mode_name, of_policy};
use crate::error::Failure;
use proto::profile::with_port;
use proto::v1::change::Change as Wanted;
use proto::v1::{
    Change, Keyspace, LayoutView, Member, Mode, NewMember, RemoveNode, SetKeyspace, SetNode,
};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// The keyspace that every cluster has.
const DEFAULT: &str = "default";

/// Copies of a key in a keyspace that does not say.
const N: u32 = 3;

/// A declared topology. What there is no section for is left as it is; what a section does not
/// list goes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Topology {
    spread: Option<u32>,
    nodes: Option<Vec<Node>>,
    keyspaces: Option<Vec<Declared>>,
}

/// A node as it is to be. Zone and weight that are not given stay, and a new node has the usual.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: String,
    address: String,
    zone: Option<String>,
    weight: Option<u32>,
}

/// A keyspace as it is to be. What is not given stays, and a new one has the usual.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    name: String,
    n: Option<u32>,
    r: Option<u32>,
    w: Option<u32>,
    mode: Option<String>,
}

/// A difference: the change that ends it, and its words.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Difference {
    pub change: Change,
    pub words: String,
}

impl Difference {
    fn new(wanted: Wanted, words: String) -> Self {
        Self { change: Change { change: Some(wanted) }, words }
    }
}

impl Topology {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let unusable = |why: String| {
            Failure::usage(format!("topology {} cannot be used", path.display())).why(why)
        };
        let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        Self::parse(&text).map_err(|why| unusable(why.trim().to_owned()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let topology: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let nodes = topology.nodes.iter().flatten().map(|node| &node.name);
        once("node", nodes)?;
        let keyspaces = topology.keyspaces.iter().flatten();
        once("keyspace", keyspaces.clone().map(|keyspace| &keyspace.name))?;
        for mode in keyspaces.filter_map(|keyspace| keyspace.mode.as_deref()) {
            mode_from_name(mode).map_err(|failure| failure.to_string())?;
        }
        Ok(topology)
    }

    /// What has to change for the cluster to be as declared: who comes, who differs, who goes.
    pub(crate) fn differences(&self, layout: &LayoutView) -> Vec<Difference> {
        let mut found = Vec::new();
        if let Some(nodes) = &self.nodes {
            found.extend(nodes.iter().filter_map(|node| node.difference(&layout.members)));
            let listed = |member: &&Member| nodes.iter().any(|node| node.name == member.name);
            let gone = layout.members.iter().filter(|member| !listed(member));
            found.extend(gone.map(|member| {
                let remove = RemoveNode { node: member.name.clone(), dead: false };
                Difference::new(Wanted::Remove(remove), format!("- node {}", member.name))
            }));
        }
        if let Some(keyspaces) = &self.keyspaces {
            found.extend(keyspaces.iter().filter_map(|one| one.difference(&layout.keyspaces)));
            let listed = |name: &str| keyspaces.iter().any(|keyspace| keyspace.name == name);
            let names = layout.keyspaces.iter().map(|keyspace| &keyspace.name);
            let gone = names.filter(|name| *name != DEFAULT && !listed(name));
            found.extend(gone.map(|name| {
                Difference::new(Wanted::DropKeyspace(name.clone()), format!("- keyspace {name}"))
            }));
        }
        if let Some(spread) = self.spread.filter(|spread| *spread != layout.spread) {
            let words = format!("~ spread {} -> {spread}", layout.spread);
            found.push(Difference::new(Wanted::Spread(spread), words));
        }
        found
    }
}

impl Node {
    fn difference(&self, members: &[Member]) -> Option<Difference> {
        let name = self.name.clone();
        let address = with_port(&self.address);
        let Some(member) = members.iter().find(|member| member.name == name) else {
            let zone = self.zone.clone().unwrap_or_default();
            let weight = self.weight.unwrap_or_default();
            let shown = if zone.is_empty() { DEFAULT } else { &zone };
            let words = format!("+ node {name} {address} zone {shown} weight {}", weight.max(1));
            return Some(Difference::new(
                Wanted::Add(NewMember { name, address, zone, weight }),
                words,
            ));
        };
        let set = SetNode {
            node: name.clone(),
            weight: self.weight.filter(|weight| *weight != member.weight),
            zone: self.zone.clone().filter(|zone| *zone != member.zone),
            address: Some(address).filter(|address| *address != member.address),
        };
        let mut words = format!("~ node {name}");
        words += &changed("address", &member.address, set.address.as_ref());
        words += &changed("zone", &member.zone, set.zone.as_ref());
        words += &changed("weight", &member.weight, set.weight.as_ref());
        let same = set == SetNode { node: name, ..Default::default() };
        (!same).then(|| Difference::new(Wanted::Set(set), words))
    }
}

impl Declared {
    fn difference(&self, keyspaces: &[Keyspace]) -> Option<Difference> {
        let name = self.name.clone();
        let mode = self.mode.as_deref().and_then(|mode| mode_from_name(mode).ok());
        let Some(is) = keyspaces.iter().find(|keyspace| keyspace.name == name) else {
            let mode = mode.map(|mode| match mode {
                Mode::Strict => ModeArg::Strict,
                Mode::Sloppy | Mode::Unspecified => ModeArg::Sloppy,
            });
            let policy = Policy { n: self.n, r: self.r, w: self.w, mode, compression: None };
            let made = of_policy(&name, &policy, N);
            let (n, r, w, mode) = (made.n, made.r, made.w, mode_name(made.mode()));
            let words = format!("+ keyspace {name} N={n} R={r} W={w} {mode}");
            return Some(Difference::new(Wanted::CreateKeyspace(made), words));
        };
        let set = SetKeyspace {
            name: name.clone(),
            n: self.n.filter(|n| *n != is.n),
            r: self.r.filter(|r| *r != is.r),
            w: self.w.filter(|w| *w != is.w),
            mode: mode.filter(|mode| *mode != is.mode()).map(|mode| mode as i32),
        };
        let mut words = format!("~ keyspace {name}");
        words += &changed("N", &is.n, set.n.as_ref());
        words += &changed("R", &is.r, set.r.as_ref());
        words += &changed("W", &is.w, set.w.as_ref());
        let mode = set.mode.map(|_| mode_name(set.mode()));
        words += &changed("mode", &mode_name(is.mode()), mode.as_ref());
        let same = set == SetKeyspace { name, ..Default::default() };
        (!same).then(|| Difference::new(Wanted::SetKeyspace(set), words))
    }
}

fn changed<T: std::fmt::Display>(what: &str, is: &T, wanted: Option<&T>) -> String {
    wanted.map_or_else(String::new, |wanted| format!(" {what} {is} -> {wanted}"))
}

fn once<'a>(noun: &str, mut names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match names.find(|name| !seen.insert(*name)) {
        Some(twice) => Err(format!("{noun} {twice} is listed twice")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> LayoutView {
        let member = |name: &str, zone: &str, weight| Member {
            name: name.into(),
            address: format!("{name}:7400"),
            zone: zone.into(),
            weight,
            ..Default::default()
        };
        let keyspace = |name: &str| Keyspace {
            name: name.into(),
            n: 3,
            r: 2,
            w: 2,
            mode: Mode::Sloppy as i32,
            ..Default::default()
        };
        LayoutView {
            members: vec![member("n1", "a", 1), member("n2", "b", 1)],
            keyspaces: vec![keyspace("default"), keyspace("logs")],
            spread: 2,
            ..Default::default()
        }
    }

    fn words(text: &str) -> Vec<String> {
        let found = Topology::parse(text).unwrap().differences(&layout());
        found.into_iter().map(|difference| difference.words).collect()
    }

    #[test]
    fn what_is_as_declared_differs_in_nothing() {
        assert_eq!(words(""), [""; 0], "no section, no opinion");
        let same = r#"
            spread = 2
            nodes = [{ name = "n1", address = "n1", zone = "a", weight = 1 }, { name = "n2", address = "n2:7400" }]
            [[keyspaces]]
            name = "default"
            w = 2
            mode = "sloppy"
            [[keyspaces]]
            name = "logs"
        "#;
        assert_eq!(words(same), [""; 0]);
    }

    #[test]
    fn who_is_listed_comes_who_is_not_goes_and_what_differs_is_set() {
        let other = r#"
            spread = 3
            nodes = [{ name = "n1", address = "n1", zone = "c", weight = 2 }, { name = "n3", address = "n3" }]
            [[keyspaces]]
            name = "billing"
            w = 3
            mode = "strict"
            [[keyspaces]]
            name = "logs"
            r = 1
        "#;
        let expected = [
            "~ node n1 zone a -> c weight 1 -> 2",
            "+ node n3 n3:7400 zone default weight 1",
            "- node n2",
            "+ keyspace billing N=3 R=2 W=3 strict",
            "~ keyspace logs R 2 -> 1",
            "~ spread 2 -> 3",
        ];
        assert_eq!(words(other), expected);
        let found = Topology::parse(other).unwrap().differences(&layout());
        let set =
            SetNode { node: "n1".into(), weight: Some(2), zone: Some("c".into()), address: None };
        assert_eq!(found[0].change.change, Some(Wanted::Set(set)));
        let none: &[Difference] = &[];
        assert_ne!(found, none);
    }

    #[test]
    fn the_default_keyspace_stays_though_it_is_not_listed() {
        assert_eq!(words("keyspaces = []"), ["- keyspace logs"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            "colour = 1",
            "nodes = [{ name = \"n1\" }]",
            "nodes = [{ name = \"n1\", address = \"a\" }, { name = \"n1\", address = \"b\" }]",
            "keyspaces = [{ name = \"k\", mode = \"loose\" }]",
            "keyspaces = [{ name = \"k\" }, { name = \"k\" }]",
        ] {
            assert!(Topology::parse(bad).is_err(), "{bad}");
        }
    }
}
