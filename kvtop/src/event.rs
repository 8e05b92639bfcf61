//! Everything that can happen to the dashboard.

use crate::keymap::Action;
use proto::v1::{ClusterView, LayoutView, OpsReply, PartitionsReply, RepairReply};

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A key was pressed that means something.
    Key(Action),
    /// Time went by, or the terminal changed its size.
    Tick,
    /// From the network.
    Feed(Feed),
}

/// What the network reports.
#[derive(Clone, Debug)]
pub enum Feed {
    /// Tries endpoint number `position` of `total`.
    Trying { endpoint: String, position: usize, total: usize },
    /// That did not work.
    Failed { endpoint: String, why: String },
    /// Nor did any other. It goes on after a pause.
    Exhausted,
    /// The cluster as a node sees it; `opened` with the first of a stream.
    Sample { view: Box<ClusterView>, opened: bool },
    /// Who holds what, asked for by a view.
    Partitions(Box<PartitionsReply>),
    /// How repair goes, likewise.
    Repair(Box<RepairReply>),
    /// The layout, likewise.
    Layout(Box<LayoutView>),
    /// What is under way and what was, likewise.
    Ops(Box<OpsReply>),
    /// The stream that gave samples ended.
    Lost { endpoint: String, why: String },
}
