//! The grammar of what changes the cluster through a plan, and of what waits for it.

use super::{ModeArg, parse_member};
use crate::commands::check::{Rule, parse_rule};
use crate::time::parse_duration;
use crate::units::{parse_rate, parse_ratio};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// What becomes of a plan once it is made.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Plan")]
#[group(id = "apply_flags")]
pub(crate) struct Apply {
    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Apply although this check fails, as the refusal names it: data-loss
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    pub force: Vec<String>,
    /// Your name for the operation. Said again, the command waits for that operation and starts none
    #[arg(long, value_name = "NAME", value_parser = parse_op_id)]
    pub op_id: Option<String>,
    /// Print the operation's id and do not wait for its end
    #[arg(long)]
    pub no_wait: bool,
    /// Stop waiting when nothing has moved for so long; the operation goes on
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub stall_timeout: Duration,
}

/// A change that may join those of an earlier plan.
#[derive(Clone, Debug, Args)]
pub(crate) struct Propose {
    /// Add to the changes of this plan, so that all are made as one
    #[arg(long, value_name = "PLAN", help_heading = "Plan")]
    pub from: Option<PathBuf>,
    #[command(flatten)]
    pub apply: Apply,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Shows the plan, asks, and waits until the nodes have their copies. Every node must be running,
blank and reachable at its address from every other node.

Examples:
  kvctl nodes add n4=10.0.1.4:7400 --zone a
  kvctl nodes add n4=10.0.1.4 n5=10.0.1.5 n6=10.0.1.6 --zone a,b,c --dry-run
  kvctl nodes add n4=10.0.1.4 --yes --op-id deploy-812 -o json | jq -r .data.op")]
pub(crate) struct Add {
    /// The new members
    #[arg(value_name = "NODE=HOST:PORT", required = true, value_parser = parse_member)]
    pub members: Vec<(String, String)>,
    /// Zone of each in order, or one for all
    #[arg(long, value_name = "ZONE,…", value_delimiter = ',')]
    pub zone: Vec<String>,
    /// Weight of each in order, or one for all
    #[arg(long, value_name = "WEIGHT,…", value_delimiter = ',')]
    pub weight: Vec<u32>,
    #[command(flatten)]
    pub propose: Propose,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A node hands on what it holds and then leaves. With --dead it gives nothing: the others rebuild its
copies from theirs, and what only it had is lost, which needs --force=data-loss.

Examples:
  kvctl nodes remove n4
  kvctl nodes remove n4 n5 --dry-run
  kvctl nodes remove n7 --dead --yes --force=data-loss")]
pub(crate) struct Remove {
    /// The nodes
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<String>,
    /// They do not come back
    #[arg(long)]
    pub dead: bool,
    #[command(flatten)]
    pub propose: Propose,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The new node takes the old one's place: only its copies move. Zone and weight are as the old one
has them unless they are given.

Examples:
  kvctl nodes replace n4 --with n16=10.0.1.16:7400
  kvctl nodes replace n7 --with n16=10.0.1.16:7400 --dead --yes")]
pub(crate) struct Replace {
    /// The node that goes
    #[arg(value_name = "NODE")]
    pub node: String,
    /// The node that comes
    #[arg(long, value_name = "NODE=HOST:PORT", value_parser = parse_member)]
    pub with: (String, String),
    /// It does not come back
    #[arg(long)]
    pub dead: bool,
    /// Zone of the new node
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// Weight of the new node
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..))]
    pub weight: Option<u32>,
    #[command(flatten)]
    pub propose: Propose,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kvctl nodes set n4 --weight 2\n  kvctl nodes set n4 --zone b --dry-run\n  kvctl nodes set n4 --address 10.0.2.4:7400"
)]
pub(crate) struct Set {
    #[arg(value_name = "NODE")]
    pub node: String,
    #[command(flatten)]
    pub what: Attributes,
    #[command(flatten)]
    pub propose: Propose,
}

/// What a node may have otherwise.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Attributes {
    /// Share of the data it is to have, against other nodes
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..))]
    pub weight: Option<u32>,
    /// Where it stands: copies of a key are put in different zones
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// Where the other nodes reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The node goes on as a replica; clients are told to take another. Asks before it acts.

Examples:
  kvctl nodes drain n4 --wait && ssh n4 systemctl restart kvd")]
pub(crate) struct Drain {
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Wait until no request is under way there; --timeout bounds it
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
--timeout bounds the wait (exit 7).

Examples:
  kvctl nodes wait n4 --for up --timeout 2m
  kvctl nodes wait n4 --for in-sync
  kvctl nodes wait n4 --for left")]
pub(crate) struct WaitNode {
    #[arg(value_name = "NODE")]
    pub node: String,
    /// What for
    #[arg(long = "for", value_enum, value_name = "WHAT")]
    pub target: WaitFor,
}

/// What `nodes wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitFor {
    /// It is up
    Up,
    /// It is a member with all its copies, is up, and is known to lack nothing
    InSync,
    /// It is no node of the cluster
    Left,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl rebalance --dry-run
  kvctl rebalance --threshold 5% --throttle 60MiB/s --yes")]
pub(crate) struct Rebalance {
    /// Do nothing while every node is at most so far from its fair share, relative to it
    #[arg(long, value_name = "SHARE", value_parser = parse_ratio)]
    pub threshold: Option<f64>,
    /// What each node may receive a second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub throttle: Option<u64>,
    #[command(flatten)]
    pub apply: Apply,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Quorum {
    /// Show what N, R and W of a keyspace mean as nodes are now
    #[command(
        after_help = "Examples:\n  kvctl quorum show\n  kvctl quorum show -k billing -o json"
    )]
    Show,
    /// Change N, R, W or the mode of a keyspace
    #[command(
        after_help = "Examples:\n  kvctl quorum set -k billing --w 2\n  kvctl quorum set -k billing --n 5 --r 3 --w 3 --dry-run"
    )]
    Set {
        #[command(flatten)]
        what: QuorumFlags,
        #[command(flatten)]
        propose: Propose,
    },
    /// Say what other values would mean as nodes are now; nothing is changed
    #[command(
        name = "what-if",
        after_help = "Examples:\n  kvctl quorum what-if -k billing --w 2\n  kvctl quorum what-if --r 1 --w 3 -o json"
    )]
    WhatIf {
        #[command(flatten)]
        what: QuorumFlags,
    },
}

/// Other values of a keyspace; what is not given stays.
#[derive(Clone, Copy, Debug, Default, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct QuorumFlags {
    /// Copies of each key
    #[arg(long, value_name = "N")]
    pub n: Option<u32>,
    /// Replicas that must answer a get
    #[arg(long, value_name = "N")]
    pub r: Option<u32>,
    /// Replicas that must have a put on disk
    #[arg(long, value_name = "N")]
    pub w: Option<u32>,
    /// Whether fallbacks count toward W
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<ModeArg>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Plan {
    /// Make a plan and show it; nothing is changed
    #[command(
        after_help = "Examples:\n  kvctl plan create -f topology.toml --out p.json\n  kvctl plan create --undo op-7f3a1b2c --out p.json\n  kvctl nodes add n4=10.0.1.4 --dry-run -o json > p.json    # any change makes one"
    )]
    Create {
        #[command(flatten)]
        source: PlanSource,
        /// Keep it in this file
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Show a plan that was kept
    #[command(after_help = "Examples:\n  kvctl plan show p.json")]
    Show {
        #[arg(value_name = "PLAN")]
        file: PathBuf,
    },
    /// Say how a declared topology differs from the cluster
    #[command(
        after_help = "Examples:\n  kvctl plan diff -f topology.toml --exit-code    # 0: as declared, 11: not"
    )]
    Diff {
        /// The declared topology
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Exit 11 if it differs
        #[arg(long)]
        exit_code: bool,
    },
    /// Apply a plan that was kept; exit 4 if the cluster has changed since
    #[command(
        after_help = "Examples:\n  kvctl plan apply p.json\n  kvctl plan apply p.json --yes --op-id deploy-812"
    )]
    Apply {
        #[arg(value_name = "PLAN")]
        file: PathBuf,
        #[command(flatten)]
        apply: Apply,
    },
    /// Remove the file of a plan
    #[command(after_help = "Examples:\n  kvctl plan discard p.json")]
    Discard {
        #[arg(value_name = "PLAN")]
        file: PathBuf,
    },
}

/// What a plan is made of.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PlanSource {
    /// What the cluster is to be, as TOML: `[[nodes]]` with name, address, zone, weight; `[[keyspaces]]`
    /// with name, n, r, w, mode; spread. What the file has no section for stays as it is
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Change back what this operation changed
    #[arg(long, value_name = "OP")]
    pub undo: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ops {
    /// List what is under way, and what was lately
    #[command(after_help = "Examples:\n  kvctl ops list\n  kvctl ops list -o json")]
    List,
    /// Show one operation: what moves, how fast, what is stuck and why
    #[command(after_help = "Examples:\n  kvctl ops show op-7f3a1b2c\n  kvctl ops show deploy-812")]
    Show {
        #[arg(value_name = "OP")]
        op: String,
    },
    /// Wait until an operation is done; --timeout bounds it (exit 7)
    #[command(
        after_help = "Examples:\n  kvctl ops wait op-7f3a1b2c\n  kvctl ops wait deploy-812 --timeout 30m"
    )]
    Wait {
        #[arg(value_name = "OP")]
        op: String,
        /// Stop waiting when nothing has moved for so long; the operation goes on
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
        stall_timeout: Duration,
    },
    /// Stop moving data; what is written goes on
    #[command(after_help = "Examples:\n  kvctl ops pause op-7f3a1b2c")]
    Pause {
        #[arg(value_name = "OP")]
        op: String,
    },
    /// Move data again
    #[command(after_help = "Examples:\n  kvctl ops resume op-7f3a1b2c")]
    Resume {
        #[arg(value_name = "OP")]
        op: String,
    },
    /// Say what each node may receive a second
    #[command(
        after_help = "Examples:\n  kvctl ops throttle op-7f3a1b2c 30MiB/s\n  kvctl ops throttle op-7f3a1b2c none"
    )]
    Throttle {
        #[arg(value_name = "OP")]
        op: String,
        /// Such as 60MiB/s; `none` is no bound
        #[arg(value_name = "RATE", value_parser = parse_rate)]
        rate: u64,
    },
    /// Change back what an operation under way changes; what has not moved stays
    #[command(after_help = "Examples:\n  kvctl ops cancel op-7f3a1b2c")]
    Cancel {
        #[arg(value_name = "OP")]
        op: String,
        #[command(flatten)]
        apply: Apply,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit 0 if every rule holds, 11 if not. Rules:
  healthy              the cluster's verdict is ok
  ring-agreed          all live nodes name the same ring
  margin>=N            N more replicas of any key may go until some R or W cannot be met
  lag<TIME             no node lacks a write older than this
  checked<TIME         every node was found equal to its peers within this time
  no-ops               nothing is being moved
  safe-to-stop:NODE    no request fails if this node stops

Examples:
  kvctl check
  kvctl check --require 'healthy,no-ops,lag<10s'
  kvctl check --require safe-to-stop:n4 --wait --timeout 10m && ssh n4 systemctl restart kvd")]
pub(crate) struct Check {
    /// What must be so
    #[arg(long, value_name = "RULE,…", value_delimiter = ',', default_value = "healthy", value_parser = parse_rule)]
    pub require: Vec<Rule>,
    /// Wait until it is so, or --timeout has passed
    #[arg(long)]
    pub wait: bool,
}

fn parse_op_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match text {
        text if (1..=64).contains(&text.len()) && text.chars().all(allowed) => Ok(text.to_owned()),
        _ => Err("must be 1 to 64 of A-Z a-z 0-9 . _ -".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, Nodes};
    use clap::Parser;

    #[test]
    fn a_name_for_an_operation_is_short_and_plain() {
        assert_eq!(parse_op_id("deploy-8.12_b"), Ok("deploy-8.12_b".to_owned()));
        for bad in ["", "a b", "ä", &"x".repeat(65)] {
            assert!(parse_op_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wait_ends_when_nothing_has_moved_for_5_minutes() {
        let cli = Cli::try_parse_from(["kvctl", "nodes", "remove", "n1"]).unwrap();
        let Command::Nodes(Nodes::Remove(remove)) = cli.command else { panic!("not a remove") };
        assert_eq!(remove.propose.apply.stall_timeout, Duration::from_secs(300));
    }

    #[test]
    fn a_change_of_nothing_is_no_change() {
        for line in ["kvctl nodes set n1", "kvctl quorum set", "kvctl plan create"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
