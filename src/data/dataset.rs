//! Files of texts and labels, read whole: CSV, TSV, JSON lines, Parquet.
//! First a `Table` (the text column and the raw labels), then class names over one or more tables, then a `Dataset`
//! whose labels are indices into those names. An error names the file and the line or row.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use parquet::basic::{ConvertedType, Repetition, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use crate::data::loader::randperm;
use crate::error::{Error, Result};

/// Column names that are recognised, best first, whatever their case.
pub(crate) const TEXT_COLUMNS: [&str; 6] = ["text", "sentence", "content", "review", "comment", "document"];
const LABEL_COLUMNS: [&str; 8] = ["label", "label_name", "labels", "target", "sentiment", "emotion", "class", "category"];

/// How to read a file where its name and header do not say it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Between the fields of CSV and TSV; by default what the ending says.
    pub delimiter: Option<u8>,
    pub text_column: Option<String>,
    pub label_column: Option<String>,
}

/// Texts and raw labels of one file, in file order. Never without rows.
#[derive(Debug)]
pub struct Table {
    pub path: PathBuf,
    /// (rows), as in the file: nothing is cleaned, and a text may be empty.
    pub texts: Vec<String>,
    /// (rows), as in the file, "" where missing; `None` without a label column.
    pub labels: Option<Vec<String>>,
    /// What the column `id` holds, numbers as numbers, (rows); empty without one.
    pub ids: Vec<Value>,
    /// Class names that the file itself gives (Parquet written by the `datasets` library), in order of index.
    pub class_names: Option<Vec<String>>,
    /// Line on which each row starts, from 1; empty for Parquet, which has rows only.
    lines: Vec<usize>,
    column_names: Vec<String>,
    columns: Columns,
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
    /// Reads a file in the format that its ending names.
    pub fn read(path: &Path, options: &Options) -> Result<Table> {
        let file = open(path)?;
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let mut table = match ending.as_str() {
            "csv" => read_delimited(path, file, options.delimiter.unwrap_or(b','), options),
            "tsv" => read_delimited(path, file, options.delimiter.unwrap_or(b'\t'), options),
            "jsonl" => read_json_lines(path, file, options),
            // The crate panics on some damaged pages.
            "parquet" => {
                catch_unwind(|| read_parquet(path, file, options)).unwrap_or_else(|_| Err(broken_parquet(path, "damaged pages")))
            }
            _ => {
                Err(Error::user(path.display(), "cannot tell the format from the ending", "give .csv, .tsv, .jsonl or .parquet"))
            }
        }?;
        if table.texts.is_empty() {
            return Err(Error::user(path.display(), "no rows", "give at least one"));
        }
        // Two columns of unknown names were taken in file order: the text is the longer one.
        if table.columns.guessed {
            let size = |column: &[String]| column.iter().map(String::len).sum::<usize>();
            if let Some(labels) = table.labels.as_mut().filter(|labels| size(labels) > size(&table.texts)) {
                std::mem::swap(labels, &mut table.texts);
            }
        }
        Ok(table)
    }

    fn new(path: &Path, column_names: Vec<String>, options: &Options) -> Result<Table> {
        let columns = Columns::choose(path, &column_names, options)?;
        let labels = columns.label.map(|_| Vec::new());
        let (texts, ids, lines) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Table { path: path.into(), texts, labels, ids, class_names: None, lines, column_names, columns })
    }

    /// Labels alone, one a line of `lines`.
    pub(crate) fn labelled(path: &Path, labels: Vec<String>, lines: Vec<usize>) -> Table {
        let columns = Columns { text: 0, label: Some(1), id: None, guessed: false };
        let (texts, ids, column_names) = (Vec::new(), Vec::new(), Vec::new());
        Table { path: path.into(), texts, labels: Some(labels), ids, class_names: None, lines, column_names, columns }
    }

    fn push(&mut self, text: String, label: String, id: Option<Value>) {
        self.texts.push(text);
        self.ids.extend(id);
        if let Some(labels) = &mut self.labels {
            labels.push(label);
        }
    }

    /// Where a row (from 0) stands, for messages: `file:line`.
    pub fn place(&self, row: usize) -> String {
        match self.lines.get(row) {
            Some(line) => format!("{}:{line}", self.path.display()),
            None => format!("{}: row {row} (from 0)", self.path.display()),
        }
    }

    /// Turns the raw labels into indices into `names`: all of them are names, or all of them are indices.
    pub fn into_dataset(self, names: &[String]) -> Result<Dataset> {
        let distinct = self.distinct_labels()?;
        let class = classes(distinct.iter().map(|l| l.0), names).map_err(|misfit| {
            let row = distinct.iter().find(|l| l.0 == misfit).expect("a misfit is one of the labels").1;
            let fact = match number(misfit) {
                Some(n) if n.fract() != 0.0 => format!("the label {} is not a whole number", brief(misfit)),
                Some(n) if n < 0.0 => format!("the label {} is negative", brief(misfit)),
                Some(_) => format!("the label {} is out of range: the {} classes count from 0", brief(misfit), names.len()),
                None => format!("the label \"{}\" is none of the classes", brief(misfit)),
            };
            Error::user(self.place(row), fact, format!("the classes are {}", list(names)))
        })?;
        let labels = self.labels.iter().flatten().map(|label| class[label.trim()]).collect();
        Ok(Dataset { texts: self.texts, labels })
    }

    /// Each distinct label, trimmed, with the first row that has it; in order of appearance.
    fn distinct_labels(&self) -> Result<Vec<(&str, usize)>> {
        let Some(labels) = &self.labels else {
            let fact = format!("no column of labels among {}", list(&self.column_names));
            return Err(Error::user(self.path.display(), fact, "name it with --label-column"));
        };
        let mut seen = HashSet::new();
        let distinct: Vec<_> =
            labels.iter().enumerate().map(|(row, label)| (label.trim(), row)).filter(|(label, _)| seen.insert(*label)).collect();
        match distinct.iter().find(|(label, _)| label.is_empty()) {
            Some((_, row)) => Err(Error::user(self.place(*row), "the label is missing", "give it, or remove the row")),
            None => Ok(distinct),
        }
    }
}

/// Chooses the class names for training on the first table, with the others for validation:
/// `model` where every label is one of these names or an index into them; else the names that the files give;
/// else LABEL_0, LABEL_1, ... where the labels are exactly 0, 1, ...; else the labels themselves, sorted (numbers by
/// value). Pass `None` for a model that names no labels itself.
///
/// An error: a missing label or column of labels, a fractional or negative one, one class only in the first table, files
/// that name different classes.
pub fn class_names(tables: &[&Table], model: Option<&[String]>) -> Result<Vec<String>> {
    let mut labels = Vec::new();
    for table in tables {
        let distinct = table.distinct_labels()?;
        if labels.is_empty() && distinct.len() == 1 {
            let fact = format!("every label is \"{}\"", brief(distinct[0].0));
            return Err(Error::user(table.path.display(), fact, "training needs at least two classes"));
        }
        labels.extend(distinct.into_iter().map(|(label, row)| (label, *table, row)));
    }
    if let Some(names) = model.filter(|names| classes(labels.iter().map(|l| l.0), names).is_ok()) {
        return Ok(names.to_vec());
    }
    let mut given = tables.iter().filter_map(|table| Some((table, table.class_names.as_ref()?)));
    if let Some((first, names)) = given.next() {
        return match given.find(|(_, others)| *others != names) {
            None => Ok(names.clone()),
            Some((other, others)) => {
                let fact = format!("its classes are {}, those of {} are {}", list(others), first.path.display(), list(names));
                Err(Error::user(other.path.display(), fact, "give files with the same classes"))
            }
        };
    }
    if labels.iter().any(|l| number(l.0).is_none()) {
        return Ok(BTreeSet::from_iter(labels.iter().map(|l| l.0)).into_iter().map(String::from).collect());
    }
    let mut values = BTreeSet::new();
    for (label, table, row) in labels {
        let remedy = "number the classes from 0, or name them";
        match whole(label) {
            Some(value) if value >= 0 => values.insert(value),
            Some(_) => return Err(Error::user(table.place(row), format!("the label {} is negative", brief(label)), remedy)),
            None => {
                return Err(Error::user(table.place(row), format!("the label {} is not a whole number", brief(label)), remedy));
            }
        };
    }
    let counted = values.iter().copied().eq(0..values.len() as i64);
    Ok(values.iter().map(|value| if counted { format!("LABEL_{value}") } else { value.to_string() }).collect())
}

/// The class of each distinct label, or the first label that is neither a name nor an index.
fn classes<'a>(
    labels: impl Iterator<Item = &'a str> + Clone,
    names: &[String],
) -> std::result::Result<HashMap<&'a str, u32>, &'a str> {
    let by_name: HashMap<&str, u32> = names.iter().zip(0..).map(|(name, class)| (name.as_str(), class)).collect();
    // "1.0" is the class named "1".
    let named = |label: &str| by_name.get(label).or_else(|| by_name.get(whole(label)?.to_string().as_str())).copied();
    let index = |label: &str| whole(label).and_then(|i| u32::try_from(i).ok()).filter(|&i| (i as usize) < names.len());
    let all =
        |class: &dyn Fn(&str) -> Option<u32>| labels.clone().map(|label| Some((label, class(label)?))).collect::<Option<_>>();
    all(&named).or_else(|| all(&index)).ok_or_else(|| {
        let misfit = labels.clone().find(|label| named(label).is_none() && index(label).is_none());
        misfit.or_else(|| labels.clone().find(|label| named(label).is_none())).expect("labels that all fit were mapped")
    })
}

/// A label in digits, with a sign or a decimal point or none; beyond 1e15 it is a name.
fn number(label: &str) -> Option<f64> {
    let digits = label.bytes().all(|b| b.is_ascii_digit() || b"+-.".contains(&b));
    if digits { label.parse().ok().filter(|n: &f64| n.abs() < 1e15) } else { None }
}

fn whole(label: &str) -> Option<i64> {
    number(label).filter(|n| n.fract() == 0.0).map(|n| n as i64)
}

/// Which columns hold the texts and the labels.
#[derive(Clone, Copy, Debug)]
struct Columns {
    text: usize,
    label: Option<usize>,
    id: Option<usize>,
    /// Two columns of unknown names: which is which shows in their contents.
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
        let text = pick(&options.text_column, "--text-column", &TEXT_COLUMNS)?;
        let label = pick(&options.label_column, "--label-column", &LABEL_COLUMNS)?;
        let id = find("id").ok().flatten().filter(|&id| Some(id) != text && Some(id) != label);
        let chosen = |text, label, guessed| Ok(Columns { text, label, id, guessed });
        // Of two columns an id is neither.
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
                let fact = format!("no column of texts among {}", list(columns));
                Err(Error::user(path.display(), fact, "name it with --text-column, and the labels with --label-column"))
            }
        }
    }
}

/// Opens a regular file that holds something; a pipe is refused before it could block.
pub(crate) fn open(path: &Path) -> Result<File> {
    let about = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if about.is_dir() {
        return Err(Error::io(path, std::io::ErrorKind::IsADirectory.into()));
    }
    if !about.is_file() {
        return Err(Error::user(path.display(), "not a regular file", "save the data to a file first"));
    }
    if about.len() == 0 {
        return Err(Error::user(path.display(), "the file is empty", "check how it was written"));
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// The whole file as UTF-8 without byte order mark.
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

/// CSV and TSV (RFC 4180) with a header.
fn read_delimited(path: &Path, file: File, delimiter: u8, options: &Options) -> Result<Table> {
    let text = read_text(path, file)?;
    // The crate takes an unclosed quote for closed at the end. A last record of one NUL, which no file holds, tells:
    // behind an unclosed quote it becomes part of a field.
    let end = "\0";
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes().chain(b"\n".as_slice()).chain(end.as_bytes()));
    let mut record = csv::StringRecord::new();
    let (mut line, mut counted) = (1, 0);
    let mut table: Option<Table> = None;
    loop {
        let more =
            reader.read_record(&mut record).map_err(|e| Error::user(path.display(), e.to_string(), "save it as UTF-8 CSV"))?;
        if !more || &record == [end].as_slice() {
            break;
        }
        // A record's position may stand on the line ends before it.
        let mut start = (record.position().expect("a record that was read has a position").byte() as usize).min(text.len());
        start += text[start..].bytes().take_while(|b| b"\r\n".contains(b)).count();
        line += newlines(&text.as_bytes()[counted..start]);
        counted = start;
        let place = || format!("{}:{line}", path.display());
        if record.iter().any(|field| field.ends_with(end)) {
            return Err(Error::user(
                place(),
                "a quote opens here or below and never closes",
                "close it, or double it inside the text",
            ));
        }
        let Some(table) = &mut table else {
            table = Some(Table::new(path, record.iter().map(|name| name.trim().to_string()).collect(), options)?);
            continue;
        };
        if record.len() != table.column_names.len() {
            let fact = format!("{} fields where the header has {}", record.len(), table.column_names.len());
            return Err(Error::user(place(), fact, "quote the text, or pass --delimiter"));
        }
        table.lines.push(line);
        let label = table.columns.label.map_or("", |label| &record[label]);
        let id = table.columns.id.map(|id| number_or_text(&record[id]));
        table.push(record[table.columns.text].to_string(), label.to_string(), id);
    }
    table.ok_or_else(|| Error::user(path.display(), "no header and no rows", "check how it was written"))
}

/// One JSON object a line; the first one names the columns.
fn read_json_lines(path: &Path, file: File, options: &Options) -> Result<Table> {
    let text = read_text(path, file)?;
    let mut table: Option<Table> = None;
    for (line, json) in (1..).zip(text.lines()).filter(|(_, json)| !json.trim().is_empty()) {
        let place = || format!("{}:{line}", path.display());
        let mut object = json_object(json, place())?;
        if table.is_none() {
            table = Some(Table::new(path, object.keys().cloned().collect(), options)?);
        }
        let table = table.as_mut().expect("set above");
        let mut take = |column: usize| match object.swap_remove(&table.column_names[column]) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(other),
        };
        let wrong = |column: usize, what: &str, remedy: &str| {
            Error::user(place(), format!("{} {what}", brief(&table.column_names[column])), remedy)
        };
        let label = match table.columns.label.map(|label| (label, take(label))) {
            Some((_, Err(value @ (Value::Bool(_) | Value::Number(_))))) => value.to_string(),
            Some((label, Err(_))) => return Err(wrong(label, "is a list or an object", "give a string or a number")),
            Some((_, Ok(label))) => label.unwrap_or_default(),
            None => String::new(),
        };
        let text = match take(table.columns.text) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(wrong(table.columns.text, "is missing or null", "give a string, \"\" for an empty text")),
            Err(_) => return Err(wrong(table.columns.text, "is not a string", "give a string")),
        };
        let id = table.columns.id.map(|id| object.swap_remove(&table.column_names[id]).unwrap_or_default());
        table.lines.push(line);
        table.push(text, label, id);
    }
    table.ok_or_else(|| Error::user(path.display(), "no rows", "give one JSON object a line"))
}

/// A line of a JSON lines file.
pub(crate) fn json_object(line: &str, place: impl Display) -> Result<Map<String, Value>> {
    serde_json::from_str(line).map_err(|e| {
        let what = e.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        Error::user(place, format!("{what} (column {})", e.column()), "give one JSON object a line")
    })
}

/// Parquet with a column of strings; class names from the metadata that the `datasets` library writes.
fn read_parquet(path: &Path, file: File, options: &Options) -> Result<Table> {
    let broken = |e: ParquetError| broken_parquet(path, &e.to_string());
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let about = reader.metadata().file_metadata();
    let fields = about.schema().get_fields();
    let mut table = Table::new(path, fields.iter().map(|field| field.name().to_string()).collect(), options)?;
    let (text, label) = (&fields[table.columns.text], table.columns.label.map(|label| &fields[label]));
    let id = table.columns.id.map(|id| &fields[id]).filter(|id| is_string(id) || is_number(id));
    let wrong = |field: &Type, what: &str| {
        let fact = format!("the column {} does not hold {what}", brief(field.name()));
        Error::user(path.display(), fact, "name another with --text-column or --label-column")
    };
    if !(is_string(text) || table.columns.guessed && is_number(text)) {
        return Err(wrong(text, "strings"));
    }
    if let Some(label) = label.filter(|label| !is_string(label) && !is_number(label)) {
        return Err(wrong(label, "strings or numbers"));
    }
    table.class_names = label.and_then(|label| {
        let json = about.key_value_metadata()?.iter().find(|entry| entry.key == "huggingface")?.value.as_ref()?;
        let json: Value = serde_json::from_str(json).ok()?;
        let names = json["info"]["features"][label.name()]["names"].as_array()?;
        names.iter().map(|name| Some(name.as_str()?.to_string())).collect()
    });
    let only = std::iter::once(text).chain(label).chain(id).cloned().collect();
    let only = Type::group_type_builder(about.schema().name()).with_fields(only).build().map_err(broken)?;
    for row in reader.get_row_iter(Some(only)).map_err(broken)? {
        let mut cells = row.map_err(broken)?.into_columns().into_iter().map(|(_, field)| cell(field));
        let null = || Error::user(table.place(table.texts.len()), "the text is null or not UTF-8", "give \"\" for an empty text");
        let text = cells.next().flatten().ok_or_else(null)?;
        let label = label.and_then(|_| cells.next().flatten()).unwrap_or_default();
        let id = id.map(|_| cells.next().flatten().map_or(Value::Null, |id| number_or_text(&id)));
        table.push(text, label, id);
    }
    Ok(table)
}

fn broken_parquet(path: &Path, why: &str) -> Error {
    Error::user(path.display(), format!("not a whole Parquet file ({})", brief(why)), "fetch or write it again")
}

fn is_string(field: &Type) -> bool {
    use ConvertedType::*;
    is_scalar(field)
        && field.get_physical_type() == Physical::BYTE_ARRAY
        && matches!(field.get_basic_info().converted_type(), UTF8 | ENUM | JSON | NONE)
}

fn is_number(field: &Type) -> bool {
    use ConvertedType::*;
    is_scalar(field)
        && matches!(
            field.get_physical_type(),
            Physical::BOOLEAN | Physical::INT32 | Physical::INT64 | Physical::FLOAT | Physical::DOUBLE
        )
        && matches!(
            field.get_basic_info().converted_type(),
            NONE | INT_8 | INT_16 | INT_32 | INT_64 | UINT_8 | UINT_16 | UINT_32 | UINT_64
        )
}

fn is_scalar(field: &Type) -> bool {
    field.is_primitive() && field.get_basic_info().repetition() != Repetition::REPEATED
}

/// An id: a number where it is written as JSON would write it.
fn number_or_text(id: &str) -> Value {
    id.parse::<i64>().ok().filter(|n| n.to_string() == id).map_or_else(|| Value::from(id), Value::from)
}

/// A cell as text; `None` for null, NaN and bytes that are not UTF-8.
fn cell(field: Field) -> Option<String> {
    match field {
        Field::Str(text) => Some(text),
        Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec()).ok(),
        Field::Null => None,
        Field::Float(n) if n.is_nan() => None,
        Field::Double(n) if n.is_nan() => None,
        number => Some(number.to_string()),
    }
}

/// A piece of a file short enough for a message.
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

/// Splits rows into (train, validation), both in file order. Of n rows round(n * fraction) are for validation, shared among
/// the classes in proportion, by largest remainder; which rows of a class, the seed decides.
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

    let mut in_validation = vec![false; rows];
    for row in randperm(rows, seed) {
        let left = &mut quota[labels[row as usize] as usize];
        in_validation[row as usize] = *left > 0;
        *left = left.saturating_sub(1);
    }
    (0..rows as u32).partition(|&row| !in_validation[row as usize])
}

/// How many validation rows have a text that also stands in the training data.
pub fn overlap(train: &[String], validation: &[String]) -> usize {
    let train: HashSet<&String> = train.iter().collect();
    validation.iter().filter(|text| train.contains(text)).count()
}
