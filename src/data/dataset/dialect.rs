//! How a delimited file was written: its delimiter, its quoting, and whether its first line names the columns. What no flag
//! says is guessed from the first records, and reported unless it is what the file's extension means.

use std::borrow::Cow;
use std::path::Path;

use csv::StringRecord;

use super::columns::{is_known, is_number};
use super::{Options, brief, text};
use crate::console::note;

/// Delimiters that are guessed.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// Records that a guess looks at.
const SAMPLE: usize = 500;

pub(super) struct Dialect<'a> {
    pub delimiter: u8,
    /// Quotes enclose fields; otherwise they are literal characters, and every line is a row.
    pub quoting: bool,
    /// The first record names the columns.
    pub header: bool,
    /// The text of the file, without spaces before opening quotes.
    pub text: Cow<'a, str>,
    /// The first byte of the first record.
    pub start: usize,
    /// The first records, the header among them.
    pub sample: Vec<StringRecord>,
}

impl<'a> Dialect<'a> {
    /// The dialect of a file whose extension means fields between `usual`.
    pub fn of(path: &Path, text: &'a str, usual: u8, options: &Options) -> Dialect<'a> {
        let (declared, start) = declared(text).unzip();
        let start = start.unwrap_or(0);
        let given = options.quoting;
        let quoting = |delimiter| {
            given.unwrap_or_else(|| delimiter != b'\t' || text::ending(path) == "csv" || quotes_enclose_fields(&text[start..]))
        };
        let sample = |delimiter| sample(&text[start..], delimiter, quoting(delimiter));
        let guess = || {
            let others = DELIMITERS.into_iter().filter(|&other| other != usual);
            let samples: Vec<_> = std::iter::once(usual).chain(others).map(|delimiter| (delimiter, sample(delimiter))).collect();
            // The first of the best.
            samples.iter().rev().max_by_key(|(delimiter, records)| fit(*delimiter, records, options)).expect("there are four").0
        };
        let delimiter = options.delimiter.or(declared).unwrap_or_else(guess);
        let (sample, quoting) = (sample(delimiter), quoting(delimiter));
        if options.delimiter.or(declared).is_none() && delimiter != usual {
            note(format!(
                "note: {}: read with {} between the fields; --delimiter names another character",
                path.display(),
                plural(delimiter)
            ));
        }
        let mut dialect = Dialect { delimiter, quoting, header: true, text: text.into(), start, sample };
        if quoting && has_spaces_before_quotes(&dialect.sample) {
            note(format!("note: {}: spaces before opening quotes are skipped", path.display()));
            let plain = without_spaces_before_quotes(&text[start..], char::from(delimiter));
            dialect.sample = self::sample(&plain, delimiter, quoting);
            dialect.text = Cow::Owned(text[..start].to_string() + &plain);
        }
        if quoting && let Some(plain) = without_escapes(&dialect.text[start..], char::from(delimiter)) {
            note(format!("note: {}: \\\" within quotes is read as a quote", path.display()));
            dialect.sample = self::sample(&plain, delimiter, quoting);
            dialect.text = Cow::Owned(text[..start].to_string() + &plain);
        }
        dialect.header = options.no_header.map_or_else(|| has_header(path, &dialect.sample, options), |none| !none);
        dialect.report(path, options);
        dialect
    }

    /// The first records that are rows.
    fn rows(&self) -> &[StringRecord] {
        &self.sample[usize::from(self.header).min(self.sample.len())..]
    }

    /// The name, which is empty, of a column that the header lacks: R writes the numbers of rows without one.
    pub fn row_names(&self) -> Option<String> {
        let names = self.sample.first()?.len();
        let is_numbered = |(number, row): (usize, &StringRecord)| row.len() == names + 1 && row[0] == number.to_string();
        (self.rows().len() > 1 && (1..).zip(self.rows()).all(is_numbered)).then(String::new)
    }

    /// Notes on rows that another dialect would read otherwise.
    fn report(&self, path: &Path, options: &Options) {
        let is_csv = text::ending(path) == "csv";
        let path = path.display();
        let rows = self.rows();
        if self.sample.iter().all(|record| record.len() == 1) {
            // A record of another dialect in every line: two of it are no accident.
            let count = |delimiter: u8, record: &StringRecord| record[0].matches(char::from(delimiter)).count();
            let divides = |&&delimiter: &&u8| {
                let first = rows.first().map_or(0, |row| count(delimiter, row));
                delimiter != self.delimiter
                    && first > 0
                    && rows.len() > 1
                    && rows.iter().all(|row| count(delimiter, row) == first)
            };
            if let Some(&delimiter) = DELIMITERS.iter().find(divides) {
                note(format!(
                    "note: {path}: whole lines are read as texts; if {} separate fields, name them with --delimiter",
                    plural(delimiter)
                ));
            }
        }
        if self.quoting && self.delimiter == b'\t' && options.quoting.is_none() && !is_csv {
            note(format!("note: {path}: quotes are taken to enclose fields; --quoting off reads them as literal characters"));
        }
        if !self.quoting {
            let mut fields = rows.iter().flatten().filter(|field| field.contains('"')).peekable();
            if fields.peek().is_some() && fields.all(is_quoted) {
                note(format!(
                    "note: {path}: quotes are read as literal characters, though they enclose fields; --quoting on removes them"
                ));
            }
        }
    }
}

/// Whether quotes enclose fields of TSV, in which they usually are literal characters: they enclose all names, or only with them
/// all records have the same number of fields, or, in one column, they enclose whole texts of several lines.
fn quotes_enclose_fields(text: &str) -> bool {
    if text.lines().next().is_some_and(|line| line.split('\t').all(is_quoted)) {
        return true;
    }
    let [literal, enclosing] = [false, true].map(|quoting| sample(text, b'\t', quoting));
    let width = |records: &[StringRecord]| {
        let first = records.first()?.len();
        records.iter().all(|record| record.len() == first).then_some(first)
    };
    match (width(&literal), width(&enclosing)) {
        (None, Some(width)) => width > 1,
        (Some(1), Some(1)) => {
            let mut several = enclosing.iter().map(|record| &record[0]).filter(|field| field.contains('\n')).peekable();
            let is_whole = |field: &str| {
                let parts = text.split_once(&format!("\"{}\"", field.replace('"', "\"\"")));
                parts.is_some_and(|(before, after)| {
                    (before.is_empty() || before.ends_with('\n')) && (after.is_empty() || after.starts_with(['\r', '\n']))
                })
            };
            several.peek().is_some() && several.all(is_whole)
        }
        _ => false,
    }
}

/// Whether a space is before the opening quotes of fields: of all fields that begin so, and in which the quotes close at the end.
fn has_spaces_before_quotes(records: &[StringRecord]) -> bool {
    let begins = |field: &&str| field.starts_with(' ') && field.trim_start().starts_with('"');
    let mut fields = records.iter().flatten().filter(begins).peekable();
    // A field with a delimiter is cut at it, and has one quote.
    fields.peek().is_some() && fields.all(|field| field.matches('"').count() == 1 || field.trim_end().ends_with('"'))
}

fn without_spaces_before_quotes(text: &str, delimiter: char) -> String {
    let (mut plain, mut spaces) = (String::with_capacity(text.len()), 0);
    let (mut field_starts, mut quoted, mut closed) = (true, false, false);
    for c in text.chars() {
        if field_starts && c == ' ' {
            spaces += 1;
            continue;
        }
        if c != '"' {
            plain.extend(std::iter::repeat_n(' ', spaces));
        }
        spaces = 0;
        // A second quote after one that closes is a doubled one.
        let toggles = c == '"' && (field_starts || quoted || closed);
        closed = toggles && quoted;
        quoted ^= toggles;
        field_starts = !quoted && (c == delimiter || c == '\n');
        plain.push(c);
    }
    plain
}

/// The text with quotes doubled, and backslashes single, that are written with a backslash before them, as databases do; `None`
/// unless a quoted field has such a quote that cannot close it.
fn without_escapes(text: &str, delimiter: char) -> Option<String> {
    if !text.contains("\\\"") {
        return None;
    }
    let (mut plain, mut shown) = (String::with_capacity(text.len()), false);
    let (mut field_starts, mut quoted, mut closed) = (true, false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quoted && c == '\\').then(|| chars.next_if(|next| matches!(next, '"' | '\\'))).flatten() {
            Some('"') => {
                plain.push_str("\"\"");
                shown |= chars.peek().is_some_and(|after| *after != delimiter && !"\r\n\"".contains(*after));
                continue;
            }
            Some(backslash) => {
                plain.push(backslash);
                continue;
            }
            None => {}
        }
        let toggles = c == '"' && (field_starts || quoted || closed);
        closed = toggles && quoted;
        quoted ^= toggles;
        field_starts = !quoted && (c == delimiter || c == '\n');
        plain.push(c);
    }
    shown.then_some(plain)
}

/// A line `sep=;`, which Excel reads: its delimiter, and the byte after it.
fn declared(text: &str) -> Option<(u8, usize)> {
    let line = text.split_inclusive('\n').next()?;
    let plain = line.trim_end_matches(['\r', '\n']).trim_matches('"');
    let delimiter = match plain.get(..4)?.eq_ignore_ascii_case("sep=").then_some(&plain.as_bytes()[4..])? {
        b"\\t" | b"tab" => b'\t',
        &[byte] if byte.is_ascii() => byte,
        _ => return None,
    };
    Some((delimiter, line.len()))
}

/// The first records of a text; empty lines are none.
fn sample(text: &str, delimiter: u8, quoting: bool) -> Vec<StringRecord> {
    reader(delimiter, quoting).from_reader(text.as_bytes()).into_records().map_while(Result::ok).take(SAMPLE).collect()
}

pub(super) fn reader(delimiter: u8, quoting: bool) -> csv::ReaderBuilder {
    let mut builder = csv::ReaderBuilder::new();
    builder.delimiter(delimiter).quoting(quoting).has_headers(false).flexible(true);
    builder
}

/// How well a delimiter fits, compared in this order: the first record is divided and names a known column; nearly all records
/// are divided into as many fields; all are; it is not the punctuation of sentences.
fn fit(delimiter: u8, records: &[StringRecord], options: &Options) -> [bool; 4] {
    let Some(first) = records.first().filter(|first| first.len() > 1) else { return [false; 4] };
    let same = records.iter().filter(|record| record.len() == first.len()).count();
    let is_prose = |record: &StringRecord| record.iter().skip(1).any(|field| field.starts_with(' '));
    let prose = records.iter().filter(|record| is_prose(record)).count();
    let named = first.iter().any(|name| is_known(name, options));
    [named, same * 10 >= records.len() * 9, same == records.len(), delimiter == b'\t' || prose * 2 <= records.len()]
}

/// Whether the first record names the columns. A guess is reported.
fn has_header(path: &Path, records: &[StringRecord], options: &Options) -> bool {
    let Some((first, rows)) = records.split_first() else { return true };
    if first.iter().any(|name| is_known(name, options)) {
        return true;
    }
    // A data frame without names numbers its columns.
    let numbers = first.iter().skip_while(|name| name.is_empty());
    if first.len() > 1 && rows.len() > 1 && numbers.enumerate().all(|(i, name)| name == i.to_string()) {
        return true;
    }
    let recurs = |(column, value): (usize, &str)| {
        let mut values = rows.iter().filter_map(|row| row.get(column));
        !value.trim().is_empty() && values.any(|other| other == value)
    };
    let most_words = if first.len() == 1 { 2 } else { 5 };
    let is_row =
        first.iter().any(|value| is_number(value) || is_sentence(value, most_words)) || first.iter().enumerate().any(recurs);
    let (path, shown) = (path.display(), brief(&first.iter().collect::<Vec<_>>().join(", ")));
    if is_row {
        note(format!(
            "note: {path}: the first line ({shown}) is read as a row, not as names; --no-header false reads it as names"
        ));
    } else if first.len() == 1 {
        note(format!("note: {path}: the first line ({shown}) is read as the column's name; --no-header reads it as a text"));
    }
    !is_row
}

/// Whether a value is too long, or too much of a sentence, for the name of a column.
fn is_sentence(value: &str, most_words: usize) -> bool {
    let (words, end) = (value.split_whitespace().count(), value.trim_end().chars().last());
    // Surveys name columns by questions.
    words > most_words && end != Some('?') || words > 2 && matches!(end, Some('.' | '!'))
}

/// Whether quotes enclose a field: inner ones are doubled.
fn is_quoted(field: &str) -> bool {
    let inner = field.strip_prefix('"').and_then(|field| field.strip_suffix('"'));
    inner.is_some_and(|inner| !inner.replace("\"\"", "").contains('"'))
}

pub(super) fn plural(delimiter: u8) -> String {
    match delimiter {
        b',' => "commas".to_string(),
        b';' => "semicolons".to_string(),
        b'\t' => "tabs".to_string(),
        b'|' => "pipes".to_string(),
        other => format!("characters {}", char::from(other)),
    }
}
