//! Labelled texts, read whole, with one file per format. First a `Table` (the texts and raw labels of a split), then the
//! classes of all tables of a run, then a `Dataset` for each, whose labels are their indices. `splits` finds the files of each
//! split of a folder. An error names the file and the line or row.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::console::note;
use crate::data::loader::randperm;
use crate::error::{Error, Result};

mod classes;
mod delimited;
mod json;
mod labelled_lines;
mod parquet;
mod reviews;
mod splits;

pub use classes::{Classes, ModelClasses, classify, counts_in_words, plain};
pub(crate) use json::json_object;
pub use splits::{Splits, splits};

/// File extensions that are read as data.
pub(crate) const ENDINGS: [&str; 8] = ["csv", "tsv", "json", "jsonl", "txt", "ft", "fasttext", "parquet"];

/// Recognised column names, best first; case is ignored.
pub(crate) const TEXT_COLUMNS: [&str; 6] = ["text", "sentence", "content", "review", "comment", "document"];
const LABEL_COLUMNS: [&str; 8] = ["label", "label_name", "labels", "target", "sentiment", "emotion", "class", "category"];

/// How to read a file whose name and header do not tell.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Separates the fields of CSV and TSV, and the label of a line; by default chosen by the extension.
    pub delimiter: Option<u8>,
    pub text_column: Option<String>,
    pub label_column: Option<String>,
}

/// Texts and raw labels of a split, in the order of its files. Never empty.
#[derive(Debug)]
pub struct Table {
    /// (rows), as in the file: nothing is cleaned, and a text may be empty.
    pub texts: Vec<String>,
    /// (rows), as in the file, "" where missing; `None` without a label column.
    pub labels: Option<Vec<String>>,
    /// The column `id`, numbers as numbers, (rows); empty without one.
    pub ids: Vec<Value>,
    /// Class names given by the files themselves, in order of index.
    pub class_names: Option<Vec<String>>,
    /// Never empty.
    sources: Vec<Source>,
    column_names: Vec<String>,
    columns: Columns,
}

/// A file or folder that rows come from.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// The table's first row of this source.
    row: usize,
    /// Line on which each row starts, from 1; empty for Parquet, which has no lines.
    lines: Vec<usize>,
}

/// Texts with the index of their class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// (rows)
    pub texts: Vec<String>,
    /// (rows)
    pub labels: Vec<u32>,
}

impl Table {
    /// Reads a file in the format of its extension, or a folder of reviews.
    pub fn read(path: &Path, options: &Options) -> Result<Table> {
        Table::read_all(&[path], options)
    }

    /// Reads the files of one split in order; at least one. They must have the same columns and classes.
    pub fn read_all(paths: &[impl AsRef<Path>], options: &Options) -> Result<Table> {
        let (first, rest) = paths.split_first().expect("a split has a file");
        let mut table = Table::read_one(first.as_ref(), options)?;
        for path in rest {
            table.append(Table::read_one(path.as_ref(), options)?)?;
        }
        if table.texts.is_empty() {
            return Err(Error::user(table.path().display(), "no rows", "give at least one row"));
        }
        // Two columns of unknown names were assigned in file order: the text is the longer one.
        if table.columns.guessed {
            let size = |column: &[String]| column.iter().map(String::len).sum::<usize>();
            let mut names =
                [table.columns.text, table.columns.label.expect("a guess names both")].map(|i| brief(&table.column_names[i]));
            if let Some(labels) = table.labels.as_mut().filter(|labels| size(labels) > size(&table.texts)) {
                std::mem::swap(labels, &mut table.texts);
                names.reverse();
            }
            let [text, label] = names;
            note(format!(
                "note: {}: no column has a usual name, so {text} is taken for the texts and {label} for the labels; --text-column and \
                 --label-column name others",
                table.path().display()
            ));
        }
        Ok(table)
    }

    fn read_one(path: &Path, options: &Options) -> Result<Table> {
        if path.is_dir() {
            return reviews::read(path, options);
        }
        let file = open(path)?;
        match ending(path).as_str() {
            "csv" => delimited::read(path, &read_text(path, file)?, options.delimiter.unwrap_or(b','), options),
            "tsv" => delimited::read(path, &read_text(path, file)?, options.delimiter.unwrap_or(b'\t'), options),
            "jsonl" => json::read_lines(path, &read_text(path, file)?, options),
            "json" => json::read(path, &read_text(path, file)?, options),
            "txt" | "ft" | "fasttext" => labelled_lines::read(path, &read_text(path, file)?, options),
            // The crate panics on some damaged pages.
            "parquet" => catch_unwind(|| parquet::read(path, file, options))
                .unwrap_or_else(|_| Err(parquet::broken(path, "damaged pages"))),
            _ => {
                let remedy = format!("use one of .{}", ENDINGS.join(", ."));
                Err(Error::user(path.display(), "cannot tell the format from the file extension", remedy))
            }
        }
    }

    /// A table without rows.
    fn new(path: &Path, column_names: Vec<String>, options: &Options) -> Result<Table> {
        let columns = Columns::choose(path, &column_names, options)?;
        let labels = columns.label.map(|_| Vec::new());
        let sources = vec![Source { path: path.into(), row: 0, lines: Vec::new() }];
        Ok(Table { texts: Vec::new(), labels, ids: Vec::new(), class_names: None, sources, column_names, columns })
    }

    /// Labels alone, from these lines of a file.
    pub(crate) fn labelled(path: &Path, labels: Vec<String>, lines: Vec<usize>) -> Table {
        let columns = Columns { text: 0, label: Some(1), id: None, guessed: false };
        let sources = vec![Source { path: path.into(), row: 0, lines }];
        let (texts, ids, column_names) = (Vec::new(), Vec::new(), Vec::new());
        Table { texts, labels: Some(labels), ids, class_names: None, sources, column_names, columns }
    }

    /// Adds a row to the last source, with its line if the format has lines.
    fn push(&mut self, line: Option<usize>, text: String, label: String, id: Option<Value>) {
        self.sources.last_mut().expect("there is always one").lines.extend(line);
        self.texts.push(text);
        self.ids.extend(id);
        if let Some(labels) = &mut self.labels {
            labels.push(label);
        }
    }

    fn append(&mut self, other: Table) -> Result<()> {
        let chosen = |table: &Table| {
            let Columns { text, label, id, .. } = table.columns;
            [Some(text), label, id].map(|column| Some(table.column_names[column?].clone()))
        };
        if chosen(self) != chosen(&other) || self.class_names != other.class_names {
            let fact = format!("its columns or classes differ from those of {}", self.path().display());
            return Err(Error::user(other.path().display(), fact, "give files of one data set"));
        }
        let rows = self.texts.len();
        self.sources.extend(other.sources.into_iter().map(|source| Source { row: rows + source.row, ..source }));
        self.texts.extend(other.texts);
        self.ids.extend(other.ids);
        if let (Some(labels), Some(others)) = (&mut self.labels, other.labels) {
            labels.extend(others);
        }
        Ok(())
    }

    /// The first file or folder of the table.
    pub fn path(&self) -> &Path {
        &self.sources[0].path
    }

    /// The place of a row (from 0), for messages: `file:line`.
    pub fn place(&self, row: usize) -> String {
        let source = &self.sources[self.sources.partition_point(|source| source.row <= row) - 1];
        match (source.path.display(), row - source.row) {
            (path, row) if row < source.lines.len() => format!("{path}:{}", source.lines[row]),
            (path, row) => format!("{path}: row {row} (from 0)"),
        }
    }
}

/// The columns of the texts and of the labels.
#[derive(Clone, Copy, Debug)]
struct Columns {
    text: usize,
    label: Option<usize>,
    id: Option<usize>,
    /// Two columns of unknown names, told apart by their contents.
    guessed: bool,
}

impl Columns {
    fn choose(path: &Path, columns: &[String], options: &Options) -> Result<Columns> {
        let find = |name: &str| {
            let mut found = (0..columns.len()).filter(|&i| columns[i].eq_ignore_ascii_case(name));
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => {
                    Err(Error::user(path.display(), format!("two columns are named {}", brief(name)), "rename one of them"))
                }
                (column, _) => Ok(column),
            }
        };
        let pick = |asked: &Option<String>, flag: &str, known: &[&str]| match asked {
            None => known.iter().find_map(|name| find(name).transpose()).transpose(),
            Some(name) => find(name)?.map(Some).ok_or_else(|| {
                let remedy = format!("the columns are {}; correct {flag}", list(columns));
                Error::user(path.display(), format!("no column is named {}", brief(name)), remedy)
            }),
        };
        if let (None, Some([a, b])) = (&options.text_column, text_pair(columns)) {
            let fact = format!("{} and {} are two texts per row, and pairs of texts are not supported", brief(a), brief(b));
            return Err(Error::user(path.display(), fact, "name one of them with --text-column, or join them in one column"));
        }
        let text = pick(&options.text_column, "--text-column", &TEXT_COLUMNS)?;
        let label = pick(&options.label_column, "--label-column", &LABEL_COLUMNS)?;
        let id = find("id").ok().flatten().filter(|&id| Some(id) != text && Some(id) != label);
        let chosen = |text, label, guessed| Ok(Columns { text, label, id, guessed });
        // Of two columns an `id` is neither text nor label.
        let others: Vec<usize> = (0..columns.len()).filter(|&column| columns.len() > 2 || Some(column) != id).collect();
        match (text, label, &others[..]) {
            (Some(text), Some(label), _) if text == label => Err(Error::user(
                path.display(),
                format!("the column {} cannot be both text and label", brief(&columns[text])),
                "correct --text-column or --label-column",
            )),
            (Some(text), Some(label), _) => chosen(text, Some(label), false),
            (Some(text), None, &[a, b]) => chosen(text, Some(if a == text { b } else { a }), false),
            (Some(text), None, _) => chosen(text, None, false),
            (None, Some(label), &[a, b]) => chosen(if a == label { b } else { a }, Some(label), false),
            (None, None, &[a, b]) => chosen(a, Some(b), true),
            (None, None, &[a]) => chosen(a, None, false),
            _ => {
                let fact = format!("no text column among {}", list(columns));
                let remedy = "name it with --text-column, and the label column with --label-column; several label columns \
                              (multi-label classification) are not supported";
                Err(Error::user(path.display(), fact, remedy))
            }
        }
    }
}

/// The two columns of a task on pairs of texts, beside others; `None` if a third column has the usual name of a text.
fn text_pair(columns: &[String]) -> Option<[&String; 2]> {
    const PAIRS: [[&str; 2]; 11] = [
        ["premise", "hypothesis"],
        ["question", "sentence"],
        ["question", "passage"],
        ["question", "context"],
        ["question", "answer"],
        ["query", "document"],
        ["query", "passage"],
        ["query", "text"],
        ["text", "text_pair"],
        ["sentence", "sentence_pair"],
        ["claim", "evidence"],
    ];
    const NUMBERED: [&str; 6] = ["sentence", "text", "question", "premise", "seq", "document"];
    let find = |name: &str| columns.iter().find(|column| column.eq_ignore_ascii_case(name));
    let endings = [["1", "2"], ["_1", "_2"], ["a", "b"], ["_a", "_b"], ["0", "1"]];
    let numbered = NUMBERED.iter().flat_map(|word| endings.map(|ends| ends.map(|end| format!("{word}{end}"))));
    let pairs = PAIRS.iter().map(|pair| pair.map(String::from)).chain(numbered);
    let pair = pairs.into_iter().find_map(|[a, b]| Some([find(&a)?, find(&b)?]))?;
    let is_third = |name: &&str| find(name).is_some_and(|column| !pair.contains(&column));
    (columns.len() > 2 && !TEXT_COLUMNS.iter().any(is_third)).then_some(pair)
}

/// Opens a regular file that is not empty.
pub(crate) fn open(path: &Path) -> Result<File> {
    let file = open_regular(path)?;
    if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
        return Err(Error::user(path.display(), "the file is empty", "check how it was written"));
    }
    Ok(file)
}

/// Refuses a folder, and a pipe, which would block.
fn open_regular(path: &Path) -> Result<File> {
    let about = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if about.is_dir() {
        return Err(Error::io(path, std::io::ErrorKind::IsADirectory.into()));
    }
    if !about.is_file() {
        return Err(Error::user(path.display(), "not a regular file", "save the data to a file first"));
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// The entries of a folder, sorted by name, without hidden ones.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| Error::io(dir, e);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if !name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The extension of a file's name, in lower case.
pub(crate) fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// The whole file as UTF-8, without its byte order mark.
pub(crate) fn read_text(path: &Path, mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    let line = |bytes: &[u8]| format!("{}:{}", path.display(), 1 + newlines(bytes));
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let (at, cut) = (e.utf8_error().valid_up_to(), e.utf8_error().error_len().is_none());
        let fact = if cut { "ends in the middle of a UTF-8 character" } else { "not UTF-8" };
        Error::user(line(&e.as_bytes()[..at]), fact, "save the file as UTF-8")
    })?;
    if let Some(at) = text.find('\0') {
        return Err(Error::user(line(&text.as_bytes()[..at]), "a NUL byte", "save the file as UTF-8 text"));
    }
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&b| b == b'\n').count()
}

/// Line numbers of ascending positions in a text.
#[derive(Default)]
struct LineNumbers {
    byte: usize,
    newlines: usize,
}

impl LineNumbers {
    /// The line, from 1, of this byte.
    fn at(&mut self, text: &str, byte: usize) -> usize {
        self.newlines += newlines(&text.as_bytes()[self.byte..byte]);
        self.byte = byte;
        1 + self.newlines
    }
}

/// An id: a number if it is written as JSON would write it.
fn number_or_text(id: &str) -> Value {
    id.parse::<i64>().ok().filter(|n| n.to_string() == id).map_or_else(|| Value::from(id), Value::from)
}

/// An excerpt of a file, short enough for a message.
fn brief(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(20).map(|name| brief(name)).collect();
    shown.join(", ") + if names.len() > 20 { ", ..." } else { "" }
}

/// Splits rows into (train, validation), both in file order. Of n rows round(n * fraction) are for validation, shared among the
/// classes in proportion, by largest remainder; every class keeps a row for training. The seed chooses the rows of each class.
pub fn stratified_split(labels: &[u32], fraction: f64, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let rows = labels.len();
    let wanted = (rows as f64 * fraction.clamp(0.0, 1.0)).round() as usize;
    let mut counts = vec![0; labels.iter().max().map_or(0, |&most| most as usize + 1)];
    labels.iter().for_each(|&label| counts[label as usize] += 1);
    let mut quota: Vec<usize> = counts.iter().map(|count| count * wanted / rows).collect();
    let mut by_remainder: Vec<usize> = (0..counts.len()).collect();
    by_remainder.sort_by_key(|&class| std::cmp::Reverse(counts[class] * wanted % rows));
    let short = wanted - quota.iter().sum::<usize>();
    by_remainder[..short].iter().for_each(|&class| quota[class] += 1);
    quota
        .iter_mut()
        .zip(&counts)
        .for_each(|(quota, &count): (&mut usize, &usize)| *quota = (*quota).min(count.saturating_sub(1)));

    let mut in_validation = vec![false; rows];
    for row in randperm(rows, seed) {
        let left = &mut quota[labels[row as usize] as usize];
        in_validation[row as usize] = *left > 0;
        *left = left.saturating_sub(1);
    }
    (0..rows as u32).partition(|&row| !in_validation[row as usize])
}

/// The number of validation rows whose text is in the training data too.
pub fn overlap(train: &[String], validation: &[String]) -> usize {
    let train: HashSet<&String> = train.iter().collect();
    validation.iter().filter(|text| train.contains(text)).count()
}
