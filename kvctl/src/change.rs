//! A change as plan files and scripts have it, and as the contract has it.

use crate::commands::keyspaces::{mode_from_name, mode_name};
use crate::error::Failure;
use proto::v1::change::Change as Wanted;
use proto::v1::{self, Keyspace, NewMember, Rebalance, RemoveNode, SetKeyspace, SetNode};
use serde::{Deserialize, Serialize};

/// One thing that is wanted otherwise: `{"add":{"name":"n4",…}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Change {
    Add(Member),
    Remove {
        node: String,
        dead: bool,
    },
    Replace {
        node: String,
        with: Member,
        dead: bool,
    },
    Set {
        node: String,
        weight: Option<u32>,
        zone: Option<String>,
        address: Option<String>,
    },
    CreateKeyspace {
        name: String,
        n: u32,
        r: u32,
        w: u32,
        mode: String,
        value_bytes_max: u32,
        compression: i32,
    },
    SetKeyspace {
        name: String,
        n: Option<u32>,
        r: Option<u32>,
        w: Option<u32>,
        mode: Option<String>,
    },
    DropKeyspace {
        name: String,
    },
    Rebalance {},
    Spread {
        zones: u32,
    },
    Undo {
        op: String,
    },
    Cancel {
        op: String,
    },
}

/// A node to be. An empty zone and a weight of 0 are for the cluster to fill in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    name: String,
    address: String,
    zone: String,
    weight: u32,
}

impl Change {
    /// As the contract has it. Fails only for what somebody wrote into a plan's file.
    pub(crate) fn to_wire(&self) -> Result<v1::Change, Failure> {
        let wanted = match self.clone() {
            Self::Add(member) => Wanted::Add(member.into()),
            Self::Remove { node, dead } => Wanted::Remove(RemoveNode { node, dead }),
            Self::Replace { node, with, dead } => {
                Wanted::Replace(v1::ReplaceNode { node, with: Some(with.into()), dead })
            }
            Self::Set { node, weight, zone, address } => {
                Wanted::Set(SetNode { node, weight, zone, address })
            }
            Self::CreateKeyspace { name, n, r, w, mode, value_bytes_max, compression } => {
                let mode = mode_from_name(&mode)? as i32;
                Wanted::CreateKeyspace(Keyspace {
                    name,
                    n,
                    r,
                    w,
                    mode,
                    value_bytes_max,
                    compression,
                })
            }
            Self::SetKeyspace { name, n, r, w, mode } => {
                let mode = mode.map(|mode| mode_from_name(&mode)).transpose()?;
                let mode = mode.map(|mode| mode as i32);
                Wanted::SetKeyspace(SetKeyspace { name, n, r, w, mode })
            }
            Self::DropKeyspace { name } => Wanted::DropKeyspace(name),
            Self::Rebalance {} => Wanted::Rebalance(Rebalance {}),
            Self::Spread { zones } => Wanted::Spread(zones),
            Self::Undo { op } => Wanted::Undo(op),
            Self::Cancel { op } => Wanted::Cancel(op),
        };
        Ok(v1::Change { change: Some(wanted) })
    }

    /// From the contract; none for a change this kvctl has no name for.
    pub(crate) fn of_wire(change: &v1::Change) -> Option<Self> {
        Some(match change.change.clone()? {
            Wanted::Add(member) => Self::Add(member.into()),
            Wanted::Remove(RemoveNode { node, dead }) => Self::Remove { node, dead },
            Wanted::Replace(replace) => Self::Replace {
                node: replace.node,
                with: replace.with.unwrap_or_default().into(),
                dead: replace.dead,
            },
            Wanted::Set(SetNode { node, weight, zone, address }) => {
                Self::Set { node, weight, zone, address }
            }
            Wanted::CreateKeyspace(keyspace) => Self::CreateKeyspace {
                mode: mode_name(keyspace.mode()).to_owned(),
                name: keyspace.name,
                n: keyspace.n,
                r: keyspace.r,
                w: keyspace.w,
                value_bytes_max: keyspace.value_bytes_max,
                compression: keyspace.compression,
            },
            Wanted::SetKeyspace(set) => Self::SetKeyspace {
                mode: set.mode.map(|_| mode_name(set.mode()).to_owned()),
                name: set.name,
                n: set.n,
                r: set.r,
                w: set.w,
            },
            Wanted::DropKeyspace(name) => Self::DropKeyspace { name },
            Wanted::Rebalance(Rebalance {}) => Self::Rebalance {},
            Wanted::Spread(zones) => Self::Spread { zones },
            Wanted::Undo(op) => Self::Undo { op },
            Wanted::Cancel(op) => Self::Cancel { op },
        })
    }
}

impl From<Member> for NewMember {
    fn from(member: Member) -> Self {
        let Member { name, address, zone, weight } = member;
        Self { name, address, zone, weight }
    }
}

impl From<NewMember> for Member {
    fn from(member: NewMember) -> Self {
        let NewMember { name, address, zone, weight } = member;
        Self { name, address, zone, weight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::Mode;

    fn every_change() -> Vec<Wanted> {
        let name = || "x".to_owned();
        let member = || NewMember { name: name(), address: "h:1".into(), ..Default::default() };
        let strict = Mode::Strict as i32;
        let with = Some(member());
        let keyspace = Keyspace {
            name: name(),
            n: 3,
            w: 2,
            mode: strict,
            compression: 2,
            ..Default::default()
        };
        vec![
            Wanted::Add(member()),
            Wanted::Remove(RemoveNode { node: name(), dead: true }),
            Wanted::Replace(v1::ReplaceNode { node: name(), with, dead: false }),
            Wanted::Set(SetNode { node: name(), weight: Some(2), ..Default::default() }),
            Wanted::CreateKeyspace(keyspace),
            Wanted::SetKeyspace(SetKeyspace {
                name: name(),
                mode: Some(strict),
                ..Default::default()
            }),
            Wanted::SetKeyspace(SetKeyspace { name: name(), w: Some(1), ..Default::default() }),
            Wanted::DropKeyspace(name()),
            Wanted::Rebalance(Rebalance {}),
            Wanted::Spread(3),
            Wanted::Undo(name()),
            Wanted::Cancel(name()),
        ]
    }

    /// What a plan says must not change on its way through a file: the digest covers it.
    #[test]
    fn every_change_survives_its_json() {
        for wanted in every_change() {
            let wire = v1::Change { change: Some(wanted) };
            let json = serde_json::to_string(&Change::of_wire(&wire).unwrap()).unwrap();
            let back: Change = serde_json::from_str(&json).unwrap();
            assert_eq!(back.to_wire().unwrap(), wire, "{json}");
        }
    }

    #[test]
    fn a_change_is_named_in_json() {
        let json = |change: Wanted| {
            let wire = v1::Change { change: Some(change) };
            serde_json::to_string(&Change::of_wire(&wire).unwrap()).unwrap()
        };
        assert_eq!(json(Wanted::Rebalance(Rebalance {})), r#"{"rebalance":{}}"#);
        assert_eq!(json(Wanted::DropKeyspace("x".into())), r#"{"drop_keyspace":{"name":"x"}}"#);
        assert!(serde_json::from_str::<Change>(r#"{"explode":{}}"#).is_err());
    }
}
