//! `load`: stores many values, from JSONL or from the files below a directory.

use crate::cli::{Load, OnConflict};
use crate::commands::progress::{Progress, Tally};
use crate::commands::put::{Writing, current, send};
use crate::commands::tree::{self, TreeFile};
use crate::config::Settings;
use crate::connection::Connection;
use crate::error::Failure;
use crate::exit::Exit;
use crate::value::{SENDABLE_BYTES_MAX, check_size, from_base64};
use crate::{context, key, output, value};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::Semaphore;

/// Bytes of values in memory at a time; when they are used up, reading waits.
const BUDGET_KIB: u32 = 256 * 1024;

/// Longest line: the largest value that can be sent, in base64, and its key and context.
const LINE_BYTES_MAX: u64 = (SENDABLE_BYTES_MAX as u64 / 3 + 1) * 4 + 64 * 1024;

/// Siblings taken together. No keyspace allows so many.
const SIBLINGS_MAX: usize = 1024;

/// A line as `dump` prints it, or with plain text.
#[derive(Debug, Default, Deserialize)]
struct Line {
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    value_b64: Option<String>,
    context: Option<String>,
}

/// One key to load.
#[derive(Debug)]
struct Item {
    key: Bytes,
    values: Values,
    context: Option<String>,
    /// Where it stands, for the report of a failure.
    place: Place,
    source_bytes: u64,
}

#[derive(Debug)]
enum Values {
    Here(Vec<Bytes>),
    File(TreeFile),
    Bad(Failure),
}

#[derive(Clone, Debug)]
enum Place {
    Line(u64),
    File(PathBuf),
}

/// What became of one key.
struct Loaded {
    item_key: Bytes,
    place: Place,
    source_bytes: u64,
    outcome: Result<Option<u64>, Failure>,
}

struct Loader<'a> {
    settings: &'a Settings,
    connection: &'a Connection,
    args: &'a Load,
    budget: Semaphore,
}

pub(crate) async fn run(
    settings: &Settings,
    connection: &Connection,
    args: Load,
) -> Result<Exit, Failure> {
    let (items, total) = source(&args).await?;
    let loader =
        Loader { settings, connection, args: &args, budget: Semaphore::new(BUDGET_KIB as usize) };
    let progress = Progress::new(settings, "load", total);
    loader.drain(items, progress).await
}

impl Loader<'_> {
    async fn drain(
        &self,
        items: BoxStream<'_, Result<Item, Failure>>,
        mut progress: Progress,
    ) -> Result<Exit, Failure> {
        let parallel = usize::from(self.args.parallel);
        let mut loading =
            items.map_ok(|item| async { Ok(self.load(item).await) }).try_buffer_unordered(parallel);
        let (mut tally, mut exits) = (Tally::default(), Vec::new());
        let mut unreachable = 0;
        let stopped = loop {
            let loaded = match loading.next().await {
                None => break None,
                Some(Err(failure)) => break Some(failure),
                Some(Ok(loaded)) => loaded,
            };
            tally.source_bytes += loaded.source_bytes;
            match &loaded.outcome {
                Ok(Some(bytes)) => {
                    tally.keys += 1;
                    tally.bytes += bytes;
                    unreachable = 0;
                }
                Ok(None) => tally.skipped += 1,
                Err(failure) => {
                    tally.failed += 1;
                    exits.push(failure.exit);
                    unreachable += usize::from(failure.exit == Exit::Unreachable);
                    progress.aside(|| output::write(report(&loaded, failure).as_bytes()))?;
                }
            }
            progress.show(&tally);
            // With no node left the rest would only fail slowly, one after the other.
            if unreachable > 2 * parallel {
                break Some(
                    Failure::new(
                        Exit::Unreachable,
                        "UNREACHABLE",
                        "load stopped: no node reachable",
                    )
                    .state("the rest of the source was not tried"),
                );
            }
        };
        drop(loading);
        self.conclude(&tally, &exits, stopped, &progress)
    }

    fn conclude(
        &self,
        tally: &Tally,
        exits: &[Exit],
        stopped: Option<Failure>,
        progress: &Progress,
    ) -> Result<Exit, Failure> {
        let seconds = progress.finish().as_secs_f64();
        let mut text = format!(
            "loaded {} keys, {} in {seconds:.1} s, {} failed",
            tally.keys,
            value::size(tally.bytes),
            tally.failed
        );
        if tally.skipped > 0 {
            text += &format!(", {} skipped", tally.skipped);
        }
        output::note(self.settings, &text);
        let done = tally.keys + tally.skipped;
        match stopped {
            Some(failure) if done == 0 => Err(failure),
            Some(failure) => {
                failure.report(self.settings.shape());
                Ok(Exit::Partial)
            }
            None => Ok(Exit::of_many(done, exits)),
        }
    }

    async fn load(&self, item: Item) -> Loaded {
        Loaded {
            item_key: item.key.clone(),
            place: item.place.clone(),
            source_bytes: item.source_bytes,
            outcome: self.store(item).await,
        }
    }

    /// Stores a key's values; gives their bytes, or nothing if the key is left as it is.
    async fn store(&self, item: Item) -> Result<Option<u64>, Failure> {
        let kib = u32::try_from(item.source_bytes / 1024 + 1).unwrap_or(BUDGET_KIB);
        let _in_memory = self.budget.acquire_many(kib.min(BUDGET_KIB)).await;
        let values = match item.values {
            Values::Here(values) => values,
            Values::File(file) => vec![read_file(&file).await?],
            Values::Bad(failure) => return Err(failure),
        };
        let given = item.context.as_deref().map(context::from_text).transpose()?;
        let line_context = given.filter(|_| self.args.on_conflict != OnConflict::Skip);
        let from_line = line_context.is_some();
        let mut seen = match line_context {
            Some(context) => context,
            None => match self.seen(&item.key).await? {
                Some(context) => context,
                None => return Ok(None),
            },
        };
        let mut bytes = 0;
        for (number, value) in values.into_iter().enumerate() {
            bytes += value.len() as u64;
            match self.put(&item.key, value.clone(), seen.clone()).await {
                Ok(()) => {}
                // A context of another key, keyspace or cluster says nothing about this one.
                Err(failure) if foreign(&failure) && from_line && number == 0 => {
                    seen = self.seen(&item.key).await?.unwrap_or_default();
                    self.put(&item.key, value, seen.clone()).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(Some(bytes))
    }

    async fn put(&self, key: &Bytes, value: Bytes, context: Bytes) -> Result<(), Failure> {
        let write = Writing { key, value, context, explain: false };
        send(self.settings, self.connection, write, &self.args.quorum).await?;
        Ok(())
    }

    /// The context to replace, by `--on-conflict`; nothing if the key is to be left.
    async fn seen(&self, key: &Bytes) -> Result<Option<Bytes>, Failure> {
        if self.args.on_conflict == OnConflict::Sibling {
            return Ok(Some(Bytes::new()));
        }
        let found = current(self.settings, self.connection, key).await?.reply;
        let skip = self.args.on_conflict == OnConflict::Skip && !found.siblings.is_empty();
        Ok((!skip).then_some(found.context))
    }
}

fn foreign(failure: &Failure) -> bool {
    failure.code() == "CONTEXT_MISMATCH"
}

async fn read_file(file: &TreeFile) -> Result<Bytes, Failure> {
    check_size(usize::try_from(file.length).unwrap_or(usize::MAX))?;
    let read = tokio::fs::read(&file.path).await;
    read.map(Bytes::from).map_err(|error| Failure::file(&file.path, &error))
}

/// A failed key as a line of JSON.
fn report(loaded: &Loaded, failure: &Failure) -> String {
    let mut line = failure.to_json();
    if let Value::Object(fields) = &mut line {
        let code = fields.remove("code").unwrap_or_default();
        fields.insert("error".into(), code);
        fields.insert("key".into(), json!(key::show(&loaded.item_key)));
        fields.insert("key_b64".into(), json!(value::base64(&loaded.item_key)));
        match &loaded.place {
            Place::Line(number) => fields.insert("line".into(), json!(number)),
            Place::File(path) => fields.insert("file".into(), json!(path.display().to_string())),
        };
    }
    format!("{line}\n")
}

type Source<'a> = (BoxStream<'a, Result<Item, Failure>>, Option<u64>);

async fn source(args: &Load) -> Result<Source<'static>, Failure> {
    if let Some(folder) = &args.tree {
        let prefix = key::prefix(args.prefix.clone());
        let files = tree::walk(folder)?;
        let total = files.iter().map(|file| file.length).sum();
        let items = files.into_iter().map(move |file| Ok(tree_item(&prefix, file)));
        return Ok((stream::iter(items).boxed(), Some(total)));
    }
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from("-"));
    if path.as_os_str() == "-" {
        let reader = BufReader::with_capacity(1 << 20, tokio::io::stdin());
        return Ok((items(reader).boxed(), None));
    }
    let unusable = |error| Failure::usage(format!("{}: {error}", path.display()));
    let file = tokio::fs::File::open(&path).await.map_err(unusable)?;
    let metadata = file.metadata().await.map_err(unusable)?;
    // The size of a pipe says nothing.
    let total = metadata.is_file().then_some(metadata.len());
    let reader = BufReader::with_capacity(1 << 20, file);
    Ok((items(reader).boxed(), total))
}

fn tree_item(prefix: &Bytes, file: TreeFile) -> Item {
    let name = [prefix.as_ref(), &file.below].concat();
    let place = Place::File(file.path.clone());
    let source_bytes = file.length;
    let (key, values) = match key::check(name.clone()) {
        Ok(key) => (key, Values::File(file)),
        Err(failure) => (name.into(), Values::Bad(failure)),
    };
    Item { key, values, context: None, place, source_bytes }
}

/// The keys of a JSONL source: lines of the same key and context that follow each other are one.
fn items(
    reader: impl AsyncBufRead + Unpin + Send + 'static,
) -> impl futures_util::Stream<Item = Result<Item, Failure>> + Send {
    let state = Lines { reader, number: 0, ahead: None };
    stream::try_unfold(state, |mut lines| async move {
        let Some(mut item) = lines.next().await? else {
            return Ok(None);
        };
        while let Some(next) = lines.next().await? {
            lines.ahead = join(&mut item, next);
            if lines.ahead.is_some() {
                break;
            }
        }
        Ok(Some((item, lines)))
    })
}

struct Lines<R> {
    reader: R,
    number: u64,
    ahead: Option<Item>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    async fn next(&mut self) -> Result<Option<Item>, Failure> {
        if let Some(item) = self.ahead.take() {
            return Ok(Some(item));
        }
        loop {
            let mut line = Vec::new();
            let mut bounded = (&mut self.reader).take(LINE_BYTES_MAX);
            let read = bounded.read_until(b'\n', &mut line).await;
            let length = read.map_err(|error| Failure::usage(format!("reading: {error}")))? as u64;
            self.number += 1;
            if length == 0 {
                return Ok(None);
            }
            if length == LINE_BYTES_MAX && !line.ends_with(b"\n") {
                return Err(Failure::usage(format!("line {} is too long", self.number)));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(parse(&line, self.number)));
            }
        }
    }
}

/// Takes another value of the same key and context into the item, or gives it back.
fn join(item: &mut Item, next: Item) -> Option<Item> {
    let same = item.key == next.key && item.context == next.context;
    match (&mut item.values, next.values) {
        (Values::Here(values), Values::Here(more)) if same && values.len() < SIBLINGS_MAX => {
            values.extend(more);
            item.source_bytes += next.source_bytes;
            None
        }
        (_, values) => Some(Item { values, ..next }),
    }
}

fn parse(text: &[u8], number: u64) -> Item {
    let mut item = Item {
        key: Bytes::new(),
        values: Values::Here(Vec::new()),
        context: None,
        place: Place::Line(number),
        source_bytes: text.len() as u64,
    };
    let bad = |failure| Values::Bad(failure);
    let line: Line = match serde_json::from_slice(text) {
        Ok(line) => line,
        Err(error) => {
            item.values = bad(Failure::usage(format!("line {number}: {error}")));
            return item;
        }
    };
    item.context = line.context.filter(|text| !text.is_empty());
    let of = |plain: Option<String>, b64: Option<String>, name: &str| match (plain, b64) {
        (Some(plain), None) => Ok(plain.into_bytes()),
        (None, Some(b64)) => from_base64(&b64),
        _ => Err(Failure::usage(format!("line {number}: one of {name} and {name}_b64 is needed"))),
    };
    match of(line.key, line.key_b64, "key").and_then(key::check) {
        Ok(key) => item.key = key,
        Err(failure) => {
            item.values = bad(failure);
            return item;
        }
    }
    item.values = match of(line.value, line.value_b64, "value") {
        Ok(value) => Values::Here(vec![value.into()]),
        Err(failure) => bad(failure),
    };
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &'static str) -> Vec<Item> {
        items(text.as_bytes()).map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn lines_of_one_key_and_context_are_its_siblings() {
        let read = read(concat!(
            "{\"key\":\"a\",\"value\":\"1\",\"context\":\"kvc1.AA\"}\n",
            "{\"key_b64\":\"YQ==\",\"value_b64\":\"Mg==\",\"context\":\"kvc1.AA\"}\n",
            "\n",
            "{\"key\":\"a\",\"value\":\"3\"}\n",
            "{\"key\":\"b\",\"value\":\"\"}",
        ))
        .await;
        let values: Vec<_> = read
            .iter()
            .map(|item| match &item.values {
                Values::Here(values) => values.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(values, [vec!["1", "2"], vec!["3"], vec![""]]);
    }

    #[tokio::test]
    async fn a_bad_line_spoils_only_itself() {
        let read = read("nonsense\n{\"key\":\"\",\"value\":\"x\"}\n{\"key\":\"a\"}\n{\"key\":\"a\",\"value\":\"1\"}\n").await;
        let bad = |item: &Item| matches!(item.values, Values::Bad(_));
        assert_eq!(read.iter().map(bad).collect::<Vec<_>>(), [true, true, true, false]);
        assert!(matches!(read[3].place, Place::Line(4)));
    }
}
