//! From a change that is wanted to an operation: plan, show, ask, apply, wait.

use super::op_view::MADE_UP;
use super::{ops, plan_view, wait};
use crate::cli::{Apply, Propose};
use crate::config::Settings;
use crate::confirm::{Question, confirm, or_refuse};
use crate::connection::{Connection, Kind, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::output::{note, printable};
use crate::plan_file::{Kept, Plan};
use crate::value::hex;
use proto::v1::change::Change as Wanted;
use proto::v1::{ApplyPlanRequest, Change, ClusterView, MakePlanRequest, Op, OpState, OpsAction};
use std::io::{self, Write};

/// Longest name of who asks that the cluster takes, bytes.
const BY_BYTES_MAX: usize = 64;

/// Makes changes, if that is what is wanted once the plan is seen.
pub(super) async fn propose(
    settings: &Settings,
    connection: &Connection,
    wanted: Vec<Wanted>,
    propose: Propose,
) -> Result<Exit, Failure> {
    let Propose { from, apply } = propose;
    let kept = from.as_deref().map(Kept::read).transpose()?;
    change(settings, connection, wanted, kept, apply, None).await
}

/// The same with all there is to say: changes of an earlier plan that come first, and a bound on
/// what each node receives.
pub(super) async fn change(
    settings: &Settings,
    connection: &Connection,
    wanted: Vec<Wanted>,
    kept: Option<Kept>,
    apply: Apply,
    throttle: Option<u64>,
) -> Result<Exit, Failure> {
    if let Some(done) = attach(settings, connection, &apply).await? {
        return Ok(done);
    }
    let view = connection.view().await?;
    let mut changes = Vec::new();
    if let Some(kept) = &kept {
        kept.check_cluster(&view)?;
        changes = kept.plan.wire_changes()?;
    }
    changes.extend(wanted.into_iter().map(|change| Change { change: Some(change) }));
    let plan = make(connection, changes).await?;
    decide(settings, connection, &view, &plan, &apply, throttle).await
}

/// Waits for the operation of this name, if there is one: a command that is said again, its plan
/// made anew, would find its own change made and refuse it.
pub(super) async fn attach(
    settings: &Settings,
    connection: &Connection,
    apply: &Apply,
) -> Result<Option<Exit>, Failure> {
    let Some(name) = apply.op_id.as_deref().filter(|_| !apply.dry_run) else {
        return Ok(None);
    };
    let Some(op) = ops::find(connection, name).await? else {
        return Ok(None);
    };
    note(settings, &format!("{name} is {} already: nothing was started", op.id));
    let view = connection.view().await?;
    finish(settings, connection, &view, op, apply).await.map(Some)
}

/// Asks the cluster what changes would do.
pub(super) async fn make(connection: &Connection, changes: Vec<Change>) -> Result<Plan, Failure> {
    let request = MakePlanRequest { changes };
    let plan = connection
        .call("making a plan", Kind::Read, |client, budget| {
            let request = timed(request.clone(), budget);
            async move { client.admin().make_plan(request).await }
        })
        .await?;
    Plan::of_wire(&plan)
}

/// Shows a plan, and applies it if that is confirmed.
pub(super) async fn decide(
    settings: &Settings,
    connection: &Connection,
    view: &ClusterView,
    plan: &Plan,
    apply: &Apply,
    throttle: Option<u64>,
) -> Result<Exit, Failure> {
    if apply.dry_run || plan.lines.is_empty() {
        plan_view::print(settings, &plan_view::envelope(view, plan), &view.name)?;
        return Ok(Exit::Ok);
    }
    agree(settings, &view.name, plan, apply).await?;
    let op = send(connection, plan, apply).await?;
    if let Some(rate) = throttle {
        bound(settings, connection, &op, rate).await;
    }
    finish(settings, connection, view, op, apply).await
}

/// Goes on only if somebody who has seen the plan says so, and what it loses is forced by name.
async fn agree(
    settings: &Settings,
    cluster: &str,
    plan: &Plan,
    apply: &Apply,
) -> Result<(), Failure> {
    let will_ask = !settings.yes && !settings.unattended;
    // Scripts find it in the error, whose one line must stay the only one.
    if will_ask || !(settings.quiet || settings.format.is_json()) {
        let text = plan_view::text(settings, plan, cluster, settings.color_stderr);
        let _ = write!(io::stderr(), "{text}");
    }
    let as_json = || serde_json::to_value(plan).unwrap_or_default();
    or_refuse(settings, &format!("changing cluster {cluster}"))
        .and_then(|()| forced(plan, apply))
        .map_err(|failure| failure.field("plan", as_json()))?;
    let question = Question {
        what: format!("changing cluster {cluster}"),
        details: Vec::new(),
        ask: format!("Apply to {cluster}?"),
    };
    confirm(settings, question).await
}

fn forced(plan: &Plan, apply: &Apply) -> Result<(), Failure> {
    let missing: Vec<&str> = plan
        .forces
        .iter()
        .filter(|check| !apply.force.contains(check))
        .map(String::as_str)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(",");
    let what = format!("the plan does not pass: {missing}");
    Err(Failure::new(Exit::Refused, "PLAN_REFUSED", what)
        .state("nothing was changed")
        .advice(format!("if it is meant: the same command with --force={missing}"))
        .field("force", missing.into()))
}

/// Applies a plan. It always has a name, so that it can be said again after a lost connection.
async fn send(connection: &Connection, plan: &Plan, apply: &Apply) -> Result<Op, Failure> {
    let op_id = match &apply.op_id {
        Some(name) => name.clone(),
        None => a_name()?,
    };
    let request = ApplyPlanRequest {
        changes: plan.wire_changes()?,
        digest: plan.digest_bytes()?.into(),
        op_id: op_id.clone(),
        by: who(),
        force: apply.force.clone(),
    };
    let applied = connection
        .call("applying the plan", Kind::Write, |client, budget| {
            let request = timed(request.clone(), budget);
            async move { client.admin().apply_plan(request).await }
        })
        .await;
    match applied {
        Ok(op) => Ok(op),
        // First: a plan that one node took and did not say so is stale on the next.
        Err(failure) if failure.is_outcome_unknown() => Err(failure
            .state("the cluster may have taken the plan, although it did not say so")
            .advice(format!("kvctl ops show {}", printable(&op_id)))),
        Err(failure) if failure.code() == "PLAN_STALE" => {
            Err(stale(connection, plan, failure).await)
        }
        Err(failure) => Err(failure),
    }
}

/// A plan that is no more what would be done: says how what would be done now differs.
async fn stale(connection: &Connection, plan: &Plan, failure: Failure) -> Failure {
    let failure =
        failure.state("nothing was changed").advice("look at what differs, and plan again");
    let anew = match plan.wire_changes() {
        Ok(changes) => make(connection, changes).await,
        Err(unknown) => Err(unknown),
    };
    let lines = match anew {
        Ok(now) if now.digest == plan.digest => {
            vec!["made anew the plan is the same: what was in the way is over".to_owned()]
        }
        Ok(now) => plan_view::differences(plan, &now),
        Err(why) => vec![format!("made anew it fails: {why}")],
    };
    failure.field("differences", lines.clone().into()).lines(lines)
}

/// Bounds what each node receives. The operation goes on if that fails, and so does the command.
async fn bound(settings: &Settings, connection: &Connection, op: &Op, rate: u64) {
    if let Err(failure) = ops::ask(connection, OpsAction::Throttle, &op.id, Some(rate)).await {
        note(settings, &format!("warning: {} runs without the bound: {failure}", op.id));
    }
}

/// Waits for an applied plan, unless that is not wanted, and says what became of it.
async fn finish(
    settings: &Settings,
    connection: &Connection,
    view: &ClusterView,
    op: Op,
    apply: &Apply,
) -> Result<Exit, Failure> {
    if apply.no_wait {
        note(settings, &format!("to wait for it: kvctl ops wait {}", op.id));
        return ops::print_started(settings, view, &op).map(|()| Exit::Ok);
    }
    let ended = wait::follow(settings, connection, op, apply.stall_timeout).await?;
    ops::print_one(settings, view, &ended)?;
    Ok(exit_of(&ended))
}

/// How a command that waited for an operation ends.
pub(super) fn exit_of(ended: &Op) -> Exit {
    if ended.state() == OpState::Cancelled { Exit::No } else { Exit::Ok }
}

fn a_name() -> Result<String, Failure> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(format!("{MADE_UP}{}", hex(&random)))
}

/// `user@host`, for the cluster's log.
fn who() -> String {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = env("USER").or_else(|| env("LOGNAME")).unwrap_or_else(|| "unknown".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.map(|host| host.trim().to_owned()).or_else(|| env("HOSTNAME"));
    let mut who = format!("{user}@{}", host.unwrap_or_else(|| "unknown".to_owned()));
    while who.len() > BY_BYTES_MAX {
        who.pop();
    }
    who
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan_file::tests::sample;

    #[test]
    fn a_check_is_lifted_only_by_its_name() {
        let apply = |force: &[&str]| Apply {
            dry_run: false,
            force: force.iter().map(|check| (*check).to_owned()).collect(),
            op_id: None,
            no_wait: false,
            stall_timeout: std::time::Duration::ZERO,
        };
        assert_eq!(forced(&sample(), &apply(&[])).unwrap_err().exit, Exit::Refused);
        assert!(forced(&sample(), &apply(&["disk"])).is_err());
        assert!(forced(&sample(), &apply(&["disk", "data-loss"])).is_ok());
    }

    #[test]
    fn who_asks_has_a_name_that_the_cluster_takes() {
        let by = who();
        assert!(by.contains('@') && by.len() <= BY_BYTES_MAX, "{by}");
        assert_ne!(a_name().unwrap(), a_name().unwrap());
    }
}
