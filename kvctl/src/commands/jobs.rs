//! What scrub, compaction, repair and gc have in common: nodes do it in the background, a command
//! starts it on every node or on one, and another says how it is going.

use crate::config::Settings;
use crate::error::Failure;
use crate::output::{Answer, Envelope};
use crate::table::Table;
use crate::time::{for_people, rfc3339};
use serde::Serialize;
use std::time::Duration;

/// Prints what each node says of it.
pub(super) fn print<V, J: Serialize>(
    settings: &Settings,
    schema: &'static str,
    nodes: &[V],
    name: impl Fn(&V) -> &str,
    json: impl Fn(&V) -> J,
    table: Table,
) -> Result<(), Failure> {
    let data: Vec<J> = nodes.iter().map(json).collect();
    let answer = Answer {
        names: nodes.iter().map(|node| name(node).to_owned()).collect(),
        envelope: &Envelope::bare(schema, data),
        heading: String::new(),
        table,
    };
    answer.print(settings)
}

/// A moment; none for 0.
pub(super) fn at(unix_ms: u64) -> Option<String> {
    (unix_ms > 0).then(|| rfc3339(unix_ms))
}

/// How long ago; `?` if that is not known.
pub(super) fn age(unix_ms: u64, now_ms: u64) -> String {
    match unix_ms {
        0 => "?".into(),
        at => format!("{} ago", for_people(Duration::from_millis(now_ms.saturating_sub(at)))),
    }
}

/// An error in words; none if there are none.
pub(super) fn error(words: &str) -> Option<String> {
    Some(words.to_owned()).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_was_has_no_age() {
        assert_eq!(age(0, 90_000), "?");
        assert_eq!(age(30_000, 90_000), "1m00s ago");
        assert_eq!(age(95_000, 90_000), "0ms ago", "the node's clock is ahead");
        assert_eq!((at(0), error("")), (None, None));
    }
}
