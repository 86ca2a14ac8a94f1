//! One text with its label per line: `text;label`, divided at the last semicolon or another delimiter that the lines show, or
//! fastText's `__label__name text`.

use std::collections::HashSet;
use std::path::Path;

use super::columns::{are_few, are_text_and_label};
use super::dialect::plural;
use super::{Options, Table, delimited};
use crate::console::note;
use crate::error::{Error, Result};

/// The prefix of a label in fastText files.
const PREFIX: &str = "__label__";

/// The start of a line that tells Excel the delimiter of the others.
const EXCEL: &str = "sep=";

/// Delimiters of a text and a label, the usual one first.
const DELIMITERS: [char; 4] = [';', '\t', '|', ','];

/// The first line decides. One that names the columns (`text;label`) is a header; fastText has none.
pub(super) fn read(path: &Path, text: &str, options: &Options) -> Result<Table> {
    if let Some(delimiter) = columns(text, options) {
        return delimited::read(path, text, delimiter, options);
    }
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).peekable();
    let fasttext = lines.peek().is_some_and(|(_, line)| line.starts_with(PREFIX));
    if !fasttext && options.quoting == Some(true) {
        return delimited::read(path, text, DELIMITERS[0] as u8, options);
    }
    let division = if fasttext { Division::LAST } else { Division::of(path, text, options) };
    let is_header = |line: &str| options.no_header.map_or_else(|| division.is_header(line, options), |none| !none);
    let header = lines.next_if(|(_, line)| !fasttext && is_header(line));
    let names = header.and_then(|(_, line)| division.divide(line)).unwrap_or(["text", "label"]);

    let mut table = Table::new(path, names.map(|name| name.trim().to_string()).into(), options)?;
    for (line, row) in lines {
        let wrong = |fact: String, remedy| Err(Error::user(format!("{}:{line}", path.display()), fact, remedy));
        let [text, label] = match row.strip_prefix(PREFIX) {
            Some(row) if fasttext => {
                let (label, text) = row.split_once(char::is_whitespace).unwrap_or((row, ""));
                if text.trim_start().starts_with(PREFIX) {
                    return wrong("there are two labels".to_string(), "give one label per text");
                }
                [text, label]
            }
            None if fasttext => {
                return wrong(format!("the line does not start with {PREFIX}"), "start every line with its label");
            }
            _ => match division.divide(row) {
                Some(row) => row,
                None => {
                    let remedy = "write lines of text;label or __label__name text, pass --delimiter, or use another format";
                    return wrong(format!("there is no {} between a text and a label", division.delimiter), remedy);
                }
            },
        };
        table.push(Some(line), text.to_string(), label.to_string(), None);
    }
    Ok(table)
}

/// Whether the lines of a file are labelled, rather than texts alone: by their first line, or because all of them end in one of
/// a few labels. What is not certain is reported.
pub(super) fn is_labelled(path: &Path, text: &str, options: &Options) -> bool {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if first.starts_with(EXCEL) || first.starts_with(PREFIX) || is_header(first, options) {
        return true;
    }
    let Some(division) = Division::best(text, options) else { return false };
    let (path, between) = (path.display(), plural(division.delimiter as u8));
    if options.delimiter.is_some() || division.has_few_labels(text) {
        note(format!("note: {path}: read as texts with labels, with {between} between; --input-format text takes whole lines"));
        return true;
    }
    if division.delimiter != ',' {
        note(format!("note: {path}: whole lines are read as texts; if {between} separate a label, name them with --delimiter"));
    }
    false
}

/// The delimiter of a file in columns: its first line names a text and a label among others, or in the other order, or is
/// Excel's `sep=;`.
fn columns(text: &str, options: &Options) -> Option<u8> {
    let first = text.lines().find(|line| !line.trim().is_empty())?;
    if first.starts_with(EXCEL) {
        return Some(b',');
    }
    let names_columns = |&delimiter: &char| {
        let names: Vec<&str> = first.split(delimiter).collect();
        name_text_and_label(&names, options) && !(names.len() == 2 && are_text_and_label([names[0], names[1]], options))
    };
    Division::delimiters(options).find(names_columns).map(|delimiter| delimiter as u8)
}

/// Whether a line is the header of labelled texts.
pub(crate) fn is_header(line: &str, options: &Options) -> bool {
    Division::delimiters(options).any(|delimiter| name_text_and_label(&line.split(delimiter).collect::<Vec<_>>(), options))
}

fn name_text_and_label(names: &[&str], options: &Options) -> bool {
    let others = |i: usize| (0..names.len()).filter(move |&j| j != i);
    (0..names.len()).any(|i| others(i).any(|j| are_text_and_label([names[i], names[j]], options)))
}

/// Where a line is divided: at its last delimiter, or with the label first at its first.
#[derive(Clone, Copy, PartialEq)]
struct Division {
    delimiter: char,
    label_first: bool,
}

impl Division {
    const LAST: Division = Division { delimiter: DELIMITERS[0], label_first: false };

    fn delimiters(options: &Options) -> impl Iterator<Item = char> {
        let given = options.delimiter.map(char::from);
        given.into_iter().chain(DELIMITERS.into_iter().filter(move |_| given.is_none()))
    }

    /// The division of these lines; one that is not usual is reported.
    fn of(path: &Path, text: &str, options: &Options) -> Division {
        let usual = Division { delimiter: options.delimiter.map_or(DELIMITERS[0], char::from), label_first: false };
        let division = Division::best(text, options).unwrap_or(usual);
        if division != usual {
            let order = if division.label_first { "a label and a text" } else { "a text and a label" };
            let between = plural(division.delimiter as u8);
            note(format!("note: {}: read as lines of {order} with {between} between; --delimiter names another", path.display()));
        }
        division
    }

    /// Of the divisions that all lines have, that with the fewest labels, if they are labels; else the first. A header decides
    /// alone.
    fn best(text: &str, options: &Options) -> Option<Division> {
        let lines = || text.lines().filter(|line| !line.trim().is_empty());
        let delimiters = || Division::delimiters(options);
        let headed = |&delimiter: &char| {
            let division = Division { delimiter, label_first: false };
            lines().next().is_some_and(|line| division.is_header(line, options))
        };
        if let Some(delimiter) = delimiters().find(headed) {
            return Some(Division { delimiter, label_first: false });
        }
        let divisions =
            [false, true].into_iter().flat_map(|label_first| delimiters().map(move |d| Division { delimiter: d, label_first }));
        let divisions: Vec<Division> =
            divisions.filter(|division| lines().all(|line| line.contains(division.delimiter))).collect();
        let few = divisions.iter().filter(|division| division.has_few_labels(text));
        few.min_by_key(|division| division.labels(text).len()).or(divisions.first()).copied()
    }

    fn divide<'a>(&self, line: &'a str) -> Option<[&'a str; 2]> {
        match self.label_first {
            true => line.split_once(self.delimiter).map(|(label, text)| [text, label]),
            false => line.rsplit_once(self.delimiter).map(|(text, label)| [text, label]),
        }
    }

    fn is_header(&self, line: &str, options: &Options) -> bool {
        self.divide(line).is_some_and(|names| are_text_and_label(names, options))
    }

    fn labels<'a>(&self, text: &'a str) -> HashSet<&'a str> {
        text.lines().filter_map(|line| self.divide(line)).map(|[_, label]| label.trim()).collect()
    }

    /// Two labels or more, each short, and few.
    fn has_few_labels(&self, text: &str) -> bool {
        let rows = text.lines().filter(|line| !line.trim().is_empty());
        let mut count = 0;
        let divided = rows.inspect(|_| count += 1).all(|line| line.contains(self.delimiter));
        let labels = self.labels(text);
        let short = |label: &&str| !label.is_empty() && label.split_whitespace().count() <= 3;
        divided && labels.len() > 1 && are_few(labels.len(), count) && labels.iter().all(short)
    }
}
