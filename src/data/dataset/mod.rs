//! Labelled texts, read whole, with one file per format: `text` (bytes to text), `dialect` (of delimited files), `columns`, rows.
//! First a `Table` (the texts and raw labels of a split), then the classes of all tables of a run, then a `Dataset` for each,
//! whose labels are their indices: `labelled` does this for the splits of a run, and `splits` finds their files in a folder. An error names the file and the line or
//! row; what is guessed is reported.

use std::collections::HashSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use encoding_rs::Encoding;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::console::note;
use crate::data::loader::randperm;
use crate::error::{Error, Result};
use crate::report::log::shortened;

mod classes;
mod columns;
mod delimited;
mod dialect;
mod json;
mod labelled;
mod labelled_lines;
mod parquet;
mod reviews;
mod splits;
mod text;

pub use classes::{Classes, ModelClasses, classify, counts_in_words, plain};
pub(crate) use columns::text_column;
use columns::{Columns, Guess, is_delimited, likeness_to_text};
pub(crate) use json::json_object;
pub use labelled::Labelled;
pub(crate) use labelled_lines::is_header;
pub use reviews::is_split as is_reviews;
pub use splits::{Split, Splits, splits};
pub use text::encoding;
pub(crate) use text::{ending, open, read_text, stream};

/// File extensions that are read as data.
pub(crate) const ENDINGS: [&str; 8] = ["csv", "tsv", "json", "jsonl", "txt", "ft", "fasttext", "parquet"];

/// How to read a file whose name and content do not tell.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Options {
    /// Separates the fields of CSV and TSV, and the label of a line; by default found in the file.
    #[serde(serialize_with = "as_character")]
    pub delimiter: Option<u8>,
    /// Whether quotes enclose fields of CSV and TSV; by default in all but TSV.
    pub quoting: Option<bool>,
    /// Whether the first line of CSV and TSV is a row; by default found in the file.
    pub no_header: Option<bool>,
    /// Of files without a byte order mark; by default UTF-8.
    pub encoding: Option<&'static Encoding>,
    pub text_column: Option<String>,
    pub label_column: Option<String>,
    /// Labels are not read: their column may be missing, or of any type.
    #[serde(skip)]
    pub texts_only: bool,
    /// Rows are kept with all their columns.
    #[serde(skip)]
    pub keep_columns: bool,
}

fn as_character<S: Serializer>(byte: &Option<u8>, to: S) -> std::result::Result<S::Ok, S::Error> {
    byte.map(char::from).serialize(to)
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
    /// All columns of each row, (rows); empty unless they are kept and the format has columns.
    pub rows: Vec<Map<String, Value>>,
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
        table.settle(options)?;
        Ok(table)
    }

    /// Of two columns without a recognized name, takes the only one of strings for the texts; then forgets labels that are not needed.
    fn settle_by_type(&mut self, is_text: impl Fn(usize) -> bool, options: &Options) {
        let columns = &mut self.columns;
        if let (Guess::Both, text, Some(label)) = (columns.guessed, columns.text, columns.label) {
            match [is_text(text), is_text(label)] {
                [true, false] => columns.guessed = Guess::Type,
                [false, true] => *columns = Columns { text: label, label: Some(text), guessed: Guess::Type, ..*columns },
                _ => return,
            }
        }
        if options.texts_only {
            (columns.label, self.labels) = (None, None);
        }
    }

    /// Decides which of two columns without a recognized name holds the texts, and reports columns that were not found by name.
    ///
    /// # Errors
    /// Labels that no name tells, and that differ in every row: an id, a date, a title.
    fn settle(&mut self, options: &Options) -> Result<()> {
        let Columns { text, label, guessed, .. } = &mut self.columns;
        if let (Guess::Both, Some(label), Some(labels)) = (*guessed, label, &mut self.labels) {
            let [a, b] = [&self.texts, &*labels].map(|column| likeness_to_text(column.iter().map(String::as_str)));
            if b > a {
                std::mem::swap(labels, &mut self.texts);
                std::mem::swap(text, label);
            }
        }
        let [text, label] = [Some(self.columns.text), self.columns.label]
            .map(|column| column.map(|column| brief(&self.column_names[column])).unwrap_or_default());
        let path = self.path().display();
        match (self.columns.guessed, options.texts_only) {
            (Guess::Text, _) | (Guess::Type, true) => {
                note(format!("note: {path}: the texts are taken from {text}; --text-column names another"));
            }
            (Guess::Label, false) => {
                note(format!("note: {path}: the labels are taken from {label}; --label-column names another"));
            }
            (Guess::Both | Guess::Type, _) => note(format!(
                "note: {path}: no recognized column names, so {text} is taken for the texts and {label} for the labels; \
                 --text-column and --label-column name others{}",
                // Columns without names are numbered.
                if !is_delimited(self.path()) || self.column_names[0] == "1" {
                    ""
                } else {
                    ", --no-header makes the names a row"
                }
            )),
            (Guess::Label, true) | (Guess::Nothing, _) => {}
        }
        if options.texts_only {
            self.labels = None;
        }
        const FEW: usize = 5;
        if let (Guess::Label | Guess::Both | Guess::Type, Some(labels)) = (self.columns.guessed, &self.labels)
            && labels.len() > FEW
            && labels.iter().collect::<HashSet<_>>().len() == labels.len()
        {
            let fact = format!("the column {label} differs in every row, so it does not hold labels");
            return Err(Error::user(self.path().display(), fact, "name the label column with --label-column"));
        }
        Ok(())
    }

    fn read_one(path: &Path, options: &Options) -> Result<Table> {
        if path.is_dir() {
            return reviews::read(path, options);
        }
        let file = open(path)?;
        let text = |file| text::read_encoded(path, file, options.encoding);
        match ending(path).as_str() {
            "csv" => delimited::read(path, &text(file)?, b',', options),
            "tsv" => delimited::read(path, &text(file)?, b'\t', options),
            "json" | "jsonl" => json::read(path, &text(file)?, options),
            "txt" | "ft" | "fasttext" => labelled_lines::read(path, &text(file)?, options),
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
        let (texts, ids, rows) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Table { texts, labels, ids, rows, class_names: None, sources, column_names, columns })
    }

    /// Labels alone, from these lines of a file.
    pub(crate) fn labelled(path: &Path, labels: Vec<String>, lines: Vec<usize>) -> Table {
        let columns = Columns { text: 0, label: Some(1), id: None, guessed: Guess::Nothing };
        let sources = vec![Source { path: path.into(), row: 0, lines }];
        let (texts, ids, rows, column_names) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Table { texts, labels: Some(labels), ids, rows, class_names: None, sources, column_names, columns }
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
        self.rows.extend(other.rows);
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

/// The text of a file of lines, and whether these are labelled, which `Table::read` reads, rather than texts alone.
pub(crate) fn read_lines(path: &Path, options: &Options) -> Result<(String, bool)> {
    let text = text::read_encoded(path, open(path)?, options.encoding)?;
    let labelled = labelled_lines::is_labelled(path, &text, options);
    Ok((text, labelled))
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
    shortened(text, 60)
}

/// Names for a message: the first of many, each short enough.
pub(crate) fn list(names: &[String]) -> String {
    let show = |name: &String| if name.is_empty() { "(unnamed)".to_string() } else { brief(name) };
    let shown: Vec<String> = names.iter().take(20).map(show).collect();
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
