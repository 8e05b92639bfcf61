//! Aligned columns.

use std::borrow::Cow;
use unicode_width::UnicodeWidthStr;

/// Rows under titles. Columns marked wide are left out of the plain table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Clone, Debug)]
struct Column {
    title: Cow<'static, str>,
    wide: bool,
}

/// One field of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

/// Colour of a cell. Its words say the same without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Warning,
    Alarm,
}

impl Tone {
    /// The escape sequence that switches it on.
    pub(crate) fn sequence(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Warning => "\x1b[33m",
            Self::Alarm => "\x1b[1;31m",
        }
    }
}

impl Cell {
    /// A coloured cell.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: crate::output::printable(&text.into()), tone }
    }

    /// The same, and something more.
    pub(crate) fn and(self, more: &str) -> Self {
        Self::toned(format!("{}, {more}", self.text), self.tone)
    }

    /// The same, behind the name of what it is said of.
    pub(crate) fn after(self, name: &str) -> Self {
        Self::toned(format!("{name} {}", self.text), self.tone)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

impl Table {
    /// An empty table; a title that starts with `+` is of a wide column.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let columns = titles.iter().map(|title| match title.strip_prefix('+') {
            Some(title) => Column { title: title.into(), wide: true },
            None => Column { title: (*title).into(), wide: false },
        });
        Self { columns: columns.collect(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are columns.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for every column");
        self.rows.push(cells);
    }

    /// Puts a column of as many cells as there are rows in front of the one with this title.
    pub(crate) fn insert(&mut self, before: &str, title: String, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.rows.len(), "a cell for every row");
        let found = self.columns.iter().position(|column| column.title == before);
        let at = found.unwrap_or(self.columns.len());
        self.columns.insert(at, Column { title: title.into(), wide: false });
        for (row, cell) in self.rows.iter_mut().zip(cells) {
            row.insert(at, cell);
        }
    }

    /// The table for people.
    pub(crate) fn aligned(&self, wide: bool, color: bool) -> String {
        let shown: Vec<usize> =
            (0..self.columns.len()).filter(|at| wide || !self.columns[*at].wide).collect();
        let width = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].text.width());
            cells.chain([self.columns[at].title.width()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = shown.iter().map(|at| width(*at)).collect();
        let titles = shown.iter().map(|at| (self.columns[*at].title.as_ref(), "\x1b[2m"));
        let mut text = line(titles, &widths, color);
        for row in &self.rows {
            let cells = shown.iter().map(|at| (row[*at].text.as_str(), row[*at].tone.sequence()));
            text += &line(cells, &widths, color);
        }
        text
    }

    /// The table as tab-separated values: every column, titles in lower case and without what
    /// is in brackets, which may be otherwise tomorrow.
    pub(crate) fn tsv(&self) -> String {
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let title = column.title.split(" (").next().unwrap_or_default();
                title.to_lowercase().replace(' ', "_")
            })
            .collect();
        let mut text = titles.join("\t") + "\n";
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(|cell| cell.text.as_str()).collect();
            text += &(cells.join("\t") + "\n");
        }
        text
    }
}

fn line<'a>(
    cells: impl Iterator<Item = (&'a str, &'a str)>,
    widths: &[usize],
    color: bool,
) -> String {
    let mut line = String::new();
    let last = widths.len().saturating_sub(1);
    for (position, ((text, sequence), width)) in cells.zip(widths).enumerate() {
        if color && !sequence.is_empty() {
            line += &format!("{sequence}{text}\x1b[0m");
        } else {
            line += text;
        }
        if position < last {
            line += &" ".repeat(width - text.width() + 2);
        }
    }
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NODE", "+UID", "STATE"]);
        table.row(vec!["n1".into(), "ab".into(), "up".into()]);
        table.row(vec!["节点2".into(), "cd".into(), Cell::toned("down", Tone::Alarm)]);
        table
    }

    #[test]
    fn columns_line_up_whatever_the_width_of_the_letters() {
        assert_eq!(table().aligned(false, false), "NODE   STATE\nn1     up\n节点2  down\n");
        assert_eq!(
            table().aligned(true, false),
            "NODE   UID  STATE\nn1     ab   up\n节点2  cd   down\n"
        );
    }

    #[test]
    fn colour_changes_no_column() {
        let coloured = table().aligned(false, true);
        assert!(coloured.contains("\x1b[1;31mdown\x1b[0m"));
        let plain =
            coloured.replace("\x1b[1;31m", "").replace("\x1b[2m", "").replace("\x1b[0m", "");
        assert_eq!(plain, table().aligned(false, false));
    }

    #[test]
    fn a_column_is_put_in_front_of_another() {
        let mut table = table();
        table.insert("STATE", "SAFE (R2)".to_owned(), vec!["yes".into(), "no".into()]);
        assert_eq!(
            table.aligned(false, false),
            "NODE   SAFE (R2)  STATE\nn1     yes        up\n节点2  no         down\n"
        );
        assert_eq!(table.tsv(), "node\tuid\tsafe\tstate\nn1\tab\tyes\tup\n节点2\tcd\tno\tdown\n");
    }

    #[test]
    fn tsv_has_every_column() {
        assert_eq!(table().tsv(), "node\tuid\tstate\nn1\tab\tup\n节点2\tcd\tdown\n");
    }
}
