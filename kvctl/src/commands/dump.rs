//! `dump`: every value of a keyspace, as JSONL, as files, or as hashes.

use crate::cli::Dump;
use crate::commands::progress::{Progress, Tally};
use crate::commands::tree;
use crate::config::Settings;
use crate::connection::{Connection, Kind, server_ms, timed};
use crate::error::Failure;
use crate::exit::Exit;
use crate::{context, key, output, value};
use bytes::Bytes;
use proto::v1::{ScanItem, ScanReply, ScanRequest};
use serde_json::json;
use std::collections::BTreeSet;

struct Dumper<'a> {
    settings: &'a Settings,
    args: &'a Dump,
    prefix: Bytes,
    tally: Tally,
    /// Replicas that some page had to do without.
    missing: BTreeSet<String>,
    incomplete: bool,
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    args: Dump,
) -> Result<Exit, Failure> {
    let mut progress = Progress::new(settings, "dump", None);
    let mut dumper = Dumper {
        settings,
        args: &args,
        prefix: key::prefix(args.prefix.clone()),
        tally: Tally::default(),
        missing: BTreeSet::new(),
        incomplete: false,
    };
    let mut cursor = Bytes::new();
    loop {
        let page = dumper.page(connection, &cursor).await.map_err(|failure| {
            let keys = dumper.tally.keys;
            failure.state(format!("{keys} keys were dumped before; the dump is not complete"))
        });
        let page = match page {
            Ok(page) => page,
            Err(failure) => {
                progress.finish();
                return Err(failure);
            }
        };
        dumper.incomplete |= !page.complete;
        dumper.missing.extend(page.missing);
        progress.aside(|| dumper.emit(&page.items))?;
        progress.show(&dumper.tally);
        if page.next.is_empty() {
            break;
        }
        if page.next == cursor {
            return Err(Failure::internal("the scan does not move on"));
        }
        cursor = page.next;
    }
    Ok(dumper.conclude(&progress))
}

impl Dumper<'_> {
    async fn page(&self, connection: &Connection, cursor: &Bytes) -> Result<ScanReply, Failure> {
        connection
            .call("scan", Kind::Read, |client, budget| {
                let request = ScanRequest {
                    keyspace: self.settings.keyspace.clone(),
                    cursor: cursor.clone(),
                    limit: u32::from(self.args.page),
                    prefix: self.prefix.clone(),
                    partition: self.args.partition,
                    timeout_ms: server_ms(budget),
                };
                async move { client.kv().scan(timed(request, budget)).await }
            })
            .await
    }

    /// Writes a page. What fails is reported, and the rest goes on: half a backup beats none.
    fn emit(&mut self, items: &[ScanItem]) -> Result<(), Failure> {
        let mut text = String::new();
        for item in items.iter().filter(|item| !item.siblings.is_empty()) {
            match self.one(item, &mut text) {
                Ok(()) => self.tally.keys += 1,
                Err(failure) => {
                    self.tally.failed += 1;
                    failure.report(self.settings.shape());
                }
            }
        }
        output::write(text.as_bytes())
    }

    fn one(&mut self, item: &ScanItem, text: &mut String) -> Result<(), Failure> {
        for sibling in &item.siblings {
            value::verify(&item.key, sibling)?;
        }
        if let Some(folder) = &self.args.tree {
            let [only] = item.siblings.as_slice() else {
                return Err(crate::commands::get::several(
                    &item.key,
                    &item.siblings,
                    "kvctl get KEY --sibling all --out-dir DIR",
                )
                .state("no file was written for it"));
            };
            let below = item.key.strip_prefix(self.prefix.as_ref()).unwrap_or(&item.key);
            tree::write(folder, below, &only.value)?;
        }
        for sibling in &item.siblings {
            let bytes = sibling.value.len() as u64;
            self.tally.bytes += bytes;
            self.tally.source_bytes += bytes;
            if self.args.hash {
                *text += &hash_line(&item.key, &sibling.value);
            } else if self.args.tree.is_none() {
                *text += &output::one_line(&json!({
                    "key_b64": value::base64(&item.key),
                    "value_b64": value::base64(&sibling.value),
                    "context": context::to_text(&item.context),
                }))?;
            }
        }
        Ok(())
    }

    fn conclude(&self, progress: &Progress) -> Exit {
        let seconds = progress.finish().as_secs_f64();
        let Tally { keys, bytes, failed, .. } = self.tally;
        let text = format!(
            "dumped {keys} keys, {} in {seconds:.1} s, {failed} failed",
            value::size(bytes)
        );
        output::note(self.settings, &text);
        if self.incomplete {
            let missing: Vec<&str> = self.missing.iter().map(String::as_str).collect();
            Failure::new(Exit::Partial, "INCOMPLETE", "the dump may lack keys or values")
                .why(format!(
                    "fewer than R replicas answered for a part of it; missing: {}",
                    missing.join(", ")
                ))
                .state("what was dumped is sound")
                .advice("kvctl status, and the same command when those nodes are back")
                .field("missing", missing.into())
                .report(self.settings.shape());
        }
        if self.incomplete || failed > 0 {
            return Exit::Partial;
        }
        Exit::Ok
    }
}

/// As sha256sum prints it, so that two dumps can be compared with diff.
fn hash_line(key: &[u8], bytes: &[u8]) -> String {
    format!("{}  {}\n", value::sha256(bytes), key::show(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_line_is_as_sha256sum_prints_it() {
        assert_eq!(
            hash_line(b"a\n", b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a\\x0a\n"
        );
    }
}
