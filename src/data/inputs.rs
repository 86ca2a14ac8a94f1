//! Rows to classify: texts, or token ids made elsewhere, from arguments, files and streams of lines.

use std::io::{BufRead, BufReader, Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use encoding_rs::UTF_8;
use serde_json::{Map, Value};

use crate::console::note;
use crate::data::dataset::{self, ENDINGS, Options, Table};
use crate::data::tokenize::Encoded;
use crate::error::{Error, Result};

/// One row to classify.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The row's own id, else its number from 0.
    pub id: Value,
    /// All columns of the row; empty unless they are kept and it has columns.
    pub columns: Map<String, Value>,
    pub content: Content,
    /// Its source, for messages.
    pub place: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Text(String),
    /// Token ids including the special ones, and token types; no types mean all 0.
    Ids {
        ids: Vec<i32>,
        types: Vec<i32>,
    },
}

impl Input {
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            Content::Ids { .. } => None,
        }
    }

    /// The row's columns, or its text if it has none.
    pub fn row(&self) -> Map<String, Value> {
        match (self.columns.is_empty(), self.text()) {
            (true, Some(text)) => Map::from_iter([("text".to_string(), Value::from(text))]),
            _ => self.columns.clone(),
        }
    }
}

/// Format of the lines of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LineFormat {
    /// One text per line
    Text,
    /// One JSON object per line, with "text" or "input_ids", and "id"
    Jsonl,
}

/// Limits of a model on token ids.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub vocab: usize,
    pub positions: usize,
    /// Rows of the token-type table; 0 if the model has none and ignores the types.
    pub types: usize,
}

/// Rows in order, in batches that are never empty.
pub type Batches = Box<dyn Iterator<Item = Result<Vec<Input>>> + Send>;

/// A batch of a stream holds at most this many rows.
const BATCH: usize = 4096;

/// Batches of the files of a split, or else of a file, or else of standard input, whose lines are texts unless `format` is
/// another one.
pub fn given(
    split: Option<&[PathBuf]>,
    file: Option<&Path>,
    format: Option<LineFormat>,
    options: &Options,
    limits: Limits,
) -> Result<Batches> {
    match (split, file) {
        (Some(files), _) => tables(files, options),
        (None, Some(file)) => open(file, format, options, limits),
        (None, None) => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                note("type one text per line; Ctrl-D ends");
            }
            let format = format.unwrap_or(LineFormat::Text);
            check_lines(format, options)?;
            Ok(lines(BufReader::new(stdin), "standard input", format, options, limits))
        }
    }
}

/// # Errors
/// A flag about columns, which lines do not have.
fn check_lines(format: LineFormat, options: &Options) -> Result<()> {
    let (what, has_keys) = match format {
        LineFormat::Text => ("lines of text", false),
        LineFormat::Jsonl => ("lines of JSON", true),
    };
    let flags = [
        ("--delimiter", options.delimiter.is_some()),
        ("--quoting", options.quoting.is_some()),
        ("--no-header", options.no_header.is_some()),
        ("--text-column", options.text_column.is_some() && !has_keys),
    ];
    match flags.into_iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => {
            let remedy = "give a .csv or .tsv file with --input, or leave the flag out";
            Err(Error::user(flag, format!("has no effect on {what}"), remedy))
        }
        None => Ok(()),
    }
}

/// Batches of a file in the format of its extension, or of lines in `format`; the labels of a labelled file are left out.
///
/// # Errors
/// The file cannot be read, its format is not known, or a flag has no effect on it.
pub fn open(path: &Path, format: Option<LineFormat>, options: &Options, limits: Limits) -> Result<Batches> {
    let ending = dataset::ending(path);
    let name = path.display().to_string();
    // What is streamed is UTF-8 already.
    let decoded = Options { encoding: None, ..options.clone() };
    let lines = |reader, format| lines(reader, &name, format, &decoded, limits);
    let table = || tables(&[path], options);
    match format {
        Some(format) => {
            check_lines(format, options)?;
            Ok(lines(dataset::stream(path, options.encoding)?, format))
        }
        None if ending == "jsonl" && streams(path, options)? => {
            Ok(lines(dataset::stream(path, options.encoding)?, LineFormat::Jsonl))
        }
        None if ending == "txt" => match dataset::read_lines(path, options)? {
            (_, true) => table(),
            (text, false) => {
                check_lines(LineFormat::Text, options)?;
                Ok(lines(BufReader::new(Box::new(Cursor::new(text))), LineFormat::Text))
            }
        },
        None if path.is_dir() || ENDINGS.contains(&ending.as_str()) => table(),
        None => {
            let remedy = format!("use one of .{}, or pass --input-format", ENDINGS.join(", ."));
            Err(Error::user(path.display(), "cannot tell the format from the file extension", remedy))
        }
    }
}

/// Whether a file is read as a table, and not as lines of texts.
pub fn is_table(path: &Path, options: &Options) -> Result<bool> {
    Ok(dataset::ending(path) != "txt" || path.is_dir() || dataset::read_lines(path, options)?.1)
}

/// Whether the first line of a file is a row with token ids or with a text of a recognized name. Otherwise all rows are needed to
/// find the texts.
fn streams(path: &Path, options: &Options) -> Result<bool> {
    let mut line = String::new();
    let mut reader = dataset::stream(path, options.encoding)?;
    while line.trim().is_empty() {
        line.clear();
        match reader.read_line(&mut line) {
            // The rows report what is wrong.
            Ok(0) | Err(_) => return Ok(true),
            Ok(_) => {}
        }
    }
    let line = line.trim_start_matches('\u{feff}').trim_start();
    // An array of rows is not in lines. What else is wrong is reported with its row.
    let Ok(object) = dataset::json_object(line, path.display()) else { return Ok(!line.starts_with('[')) };
    let names: Vec<String> = object.keys().cloned().collect();
    Ok(object.contains_key("input_ids") || dataset::text_column(&path.display(), &names, options)?.is_some())
}

/// Batches of the files of one split, without their labels.
pub fn tables(paths: &[impl AsRef<Path>], options: &Options) -> Result<Batches> {
    let mut table = Table::read_all(paths, options)?;
    let (ids, texts) = (std::mem::take(&mut table.ids), std::mem::take(&mut table.texts));
    let row = move |(row, text)| Input {
        id: ids.get(row).cloned().unwrap_or(Value::from(row)),
        columns: table.rows.get_mut(row).map(std::mem::take).unwrap_or_default(),
        content: Content::Text(text),
        place: table.place(row),
    };
    Ok(batches(texts.into_iter().enumerate().map(row)))
}

/// Batches of texts from the command line, numbered from 0.
pub fn texts(texts: Vec<String>) -> Batches {
    let row = |(row, text)| Input {
        id: Value::from(row),
        columns: Map::new(),
        content: Content::Text(text),
        place: format!("text {row}"),
    };
    batches(texts.into_iter().enumerate().map(row))
}

fn batches(mut rows: impl Iterator<Item = Input> + Send + 'static) -> Batches {
    Box::new(std::iter::from_fn(move || {
        let batch: Vec<Input> = rows.by_ref().take(BATCH).collect();
        Some(batch).filter(|batch| !batch.is_empty()).map(Ok)
    }))
}

/// Batches of lines. A batch holds the lines that have already arrived, so that a program that writes a line and waits gets its
/// result. The rows before an invalid line come first, then the error. `name` is the name of the stream in messages.
pub fn lines(
    reader: BufReader<impl Read + Send + 'static>,
    name: &str,
    format: LineFormat,
    options: &Options,
    limits: Limits,
) -> Batches {
    let (name, options) = (name.to_string(), options.clone());
    let mut lines = Lines { reader, name, format, options, limits, column: None, line: 0, rows: 0 };
    let mut fault = None;
    Box::new(std::iter::from_fn(move || {
        if let Some(error) = fault.take() {
            return Some(Err(error));
        }
        let mut batch = Vec::new();
        loop {
            match lines.next() {
                Ok(Some(input)) => batch.push(input),
                Ok(None) => break,
                Err(error) if batch.is_empty() => return Some(Err(error)),
                Err(error) => {
                    fault = Some(error);
                    break;
                }
            }
            if batch.len() == BATCH || !lines.has_line() {
                break;
            }
        }
        Some(batch).filter(|batch| !batch.is_empty()).map(Ok)
    }))
}

struct Lines<R> {
    reader: BufReader<R>,
    name: String,
    format: LineFormat,
    options: Options,
    limits: Limits,
    /// The key of the texts, which the first text decides.
    column: Option<String>,
    /// Lines read so far; empty lines are not rows of JSON.
    line: usize,
    rows: u64,
}

impl<R: Read> Lines<R> {
    /// Whether the next line has already arrived, so that reading it does not block.
    fn has_line(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }

    fn next(&mut self) -> Result<Option<Input>> {
        loop {
            let mut bytes = Vec::new();
            let read = self.reader.read_until(b'\n', &mut bytes).map_err(|e| Error::io(Path::new(&self.name), e))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let place = format!("{}:{}", self.name, self.line);
            let text = self.decode(bytes, &place)?;
            if text.contains('\0') {
                return Err(Error::user(&place, "a NUL byte", "give text without NUL bytes"));
            }
            let text = if self.line == 1 { text.trim_start_matches('\u{feff}') } else { &text };
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if self.line == 1 && self.format == LineFormat::Text && dataset::is_header(text, &self.options) {
                note(format!(
                    "note: {place}: the names of columns are classified as a text; give a file of columns with --input"
                ));
            }
            let number = Value::from(self.rows);
            let input = match self.format {
                LineFormat::Text => Input { id: number, columns: Map::new(), content: Content::Text(text.to_string()), place },
                LineFormat::Jsonl if text.trim().is_empty() => continue,
                LineFormat::Jsonl => self.parse(text, number, place)?,
            };
            self.rows += 1;
            return Ok(Some(input));
        }
    }

    fn decode(&self, bytes: Vec<u8>, place: &str) -> Result<String> {
        let wrong = |fact: &str, remedy: &str| Error::user(place, fact, remedy);
        match self.options.encoding.filter(|encoding| *encoding != UTF_8) {
            Some(encoding) if !encoding.is_ascii_compatible() => {
                Err(wrong(&format!("lines cannot be read in {}", encoding.name()), "give a file, or UTF-8 text"))
            }
            Some(encoding) => match encoding.decode_without_bom_handling_and_without_replacement(&bytes) {
                Some(text) => Ok(text.into_owned()),
                None => Err(wrong(&format!("not {}", encoding.name()), "name another --encoding")),
            },
            None => String::from_utf8(bytes).map_err(|e| {
                let cut = e.utf8_error().error_len().is_none();
                let fact = if cut { "ends in the middle of a UTF-8 character" } else { "not UTF-8" };
                wrong(fact, "give UTF-8 text, or name its encoding: --encoding cp1252, cp1251, gbk, shift-jis, ...")
            }),
        }
    }

    fn parse(&mut self, json: &str, number: Value, place: String) -> Result<Input> {
        let mut object = dataset::json_object(json, &place)?;
        let columns = if self.options.keep_columns { object.clone() } else { Map::new() };
        let content = match object.get("input_ids").filter(|ids| !ids.is_null()) {
            Some(ids) => {
                if object.get("attention_mask").and_then(Value::as_array).is_some_and(|mask| mask.contains(&Value::from(0))) {
                    return Err(Error::user(place, "attention_mask hides tokens", "give input_ids without padding"));
                }
                let ids = whole_numbers(ids, "input_ids", &place)?;
                let types = object.get("token_type_ids").filter(|types| !types.is_null());
                let types = types.map_or(Ok(Vec::new()), |types| whole_numbers(types, "token_type_ids", &place))?;
                self.limits.check(&ids, &types, &place)?;
                Content::Ids { ids, types }
            }
            None => {
                if self.column.is_none() {
                    let names: Vec<String> = object.keys().cloned().collect();
                    let column = dataset::text_column(&place, &names, &self.options)?;
                    self.column = column.map(|column| names[column].clone());
                }
                match self.column.as_ref().and_then(|column| object.swap_remove(column)) {
                    Some(Value::String(text)) => Content::Text(text),
                    Some(_) => {
                        return Err(Error::user(place, "the text is not a string", "give a string, \"\" for an empty text"));
                    }
                    None => {
                        let fact = match &self.column {
                            Some(column) => format!("no \"{column}\", which holds the text of the rows before"),
                            None => "no text".to_string(),
                        };
                        let remedy = "give \"text\" or \"input_ids\", or name the text with --text-column";
                        return Err(Error::user(place, fact, remedy));
                    }
                }
            }
        };
        Ok(Input { id: object.swap_remove("id").unwrap_or(number), columns, content, place })
    }
}

fn whole_numbers(list: &Value, key: &str, place: &str) -> Result<Vec<i32>> {
    let numbers = list.as_array().map(|list| list.iter().map(|n| n.as_i64().and_then(|n| i32::try_from(n).ok())));
    numbers
        .and_then(|numbers| numbers.collect())
        .ok_or_else(|| Error::user(place, format!("{key} is not a list of token ids"), "give a flat list of whole numbers"))
}

impl Limits {
    /// An error if the model has no embedding for a row of token ids.
    fn check(&self, ids: &[i32], types: &[i32], place: &str) -> Result<()> {
        Encoded::default().push(place, ids, types)?;
        let beyond = |ids: &[i32], rows: usize| ids.iter().copied().find(|&id| id as usize >= rows);
        if let Some(id) = beyond(ids, self.vocab) {
            let fact = format!("the id {id} is beyond the model's vocabulary of {}", self.vocab);
            return Err(Error::user(place, fact, "give the ids of the model's tokenizer"));
        }
        if ids.len() > self.positions {
            let fact = format!("{} input_ids for the model's {} positions", ids.len(), self.positions);
            return Err(Error::user(place, fact, "truncate them, with [SEP] last"));
        }
        if let Some(kind) = beyond(types, self.types).filter(|_| self.types > 0) {
            let fact = format!("the token type {kind} is beyond the model's {}", self.types);
            return Err(Error::user(place, fact, "number the segments from 0"));
        }
        Ok(())
    }
}
