//! CSV (RFC 4180), TSV and the like, in the dialect that the flags give or the file shows.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use csv::StringRecord;
use serde_json::Value;

use super::columns::{by_content, is_number};
use super::dialect::{Dialect, reader};
use super::{LineNumbers, Options, Table, list, number_or_text};
use crate::console::note;
use crate::error::{Error, Result};
use crate::report::log::counted;

/// Reads a file whose extension means fields between `usual`.
pub(super) fn read(path: &Path, text: &str, usual: u8, options: &Options) -> Result<Table> {
    let dialect = Dialect::of(path, text, usual, options);
    let Some(first) = dialect.sample.first() else {
        return Err(Error::user(path.display(), "no header and no rows", "check how it was written"));
    };
    let text = &*dialect.text;
    let rows = &text[dialect.start..];
    let mut table = if dialect.header {
        let names = first.iter().map(|name| name.trim().to_string());
        Table::new(path, dialect.row_names().into_iter().chain(names).collect(), options)?
    } else {
        numbered(path, rows, &dialect, options)?
    };
    let width = table.column_names.len();

    // The crate closes an unclosed quote at the end of the file. To detect it, a last record of one NUL is appended, which no
    // file contains: after an unclosed quote it becomes part of a field.
    let end = "\0";
    let input = rows.as_bytes().chain(b"\n".as_slice()).chain(end.as_bytes());
    let mut reader = reader(dialect.delimiter, dialect.quoting).from_reader(input);
    let mut record = StringRecord::new();
    let mut lines = LineNumbers::default();
    let mut joined = Vec::new();
    let mut names = dialect.header;
    let mut blank = 0;
    loop {
        let more =
            reader.read_record(&mut record).map_err(|e| Error::user(path.display(), e.to_string(), "save it as UTF-8 CSV"))?;
        if !more || &record == [end].as_slice() {
            break;
        }
        // A record's position may be that of the line ends before it.
        let at = |position: u64| (dialect.start + position as usize).min(text.len());
        let mut start = at(record.position().expect("a record that was read has a position").byte());
        start += text[start..].bytes().take_while(|b| b"\r\n".contains(b)).count();
        let line = lines.at(text, start);
        let place = || format!("{}:{line}", path.display());
        if record.iter().any(|field| field.ends_with(end)) {
            let remedy = "close it, or double it inside the text; --quoting off reads quotes as literal characters";
            return Err(Error::user(place(), "a quote opens here or below and never closes", remedy));
        }
        if std::mem::take(&mut names) {
            continue;
        }
        if record.len() != width {
            let first = if dialect.header { "header" } else { "first row" };
            let fact = format!("{}, but the {first} has {width}", counted(record.len(), "field"));
            let remedy = match dialect.quoting {
                true => "quote the text, or pass --delimiter",
                false => "pass --quoting on if quotes enclose fields, or --delimiter",
            };
            return Err(Error::user(place(), fact, remedy));
        }
        if table.columns.label.is_some() && !options.texts_only && record.iter().all(|field| field.trim().is_empty()) {
            blank += 1;
            continue;
        }
        joined.extend(within_quotes(&record, line, dialect.delimiter, table.columns.label.or(table.columns.id)));
        if options.keep_columns {
            let cells = table.column_names.iter().cloned().zip(record.iter().map(Value::from));
            table.rows.push(cells.collect());
        }
        let label = table.columns.label.map_or("", |label| &record[label]);
        let id = table.columns.id.map(|id| number_or_text(&record[id]));
        table.push(Some(line), record[table.columns.text].to_string(), label.to_string(), id);
    }
    if blank > 0 {
        note(format!("note: {}: rows without any value, which are left out: {blank}", path.display()));
    }
    // Only a line with a label of another row, or without labels with an id, is taken for a record: texts have commas too.
    let labels: HashSet<&str> = table.labels.iter().flatten().map(|label| label.trim()).collect();
    let is_record = |value: &str| if labels.is_empty() { is_number(value) } else { labels.contains(value) };
    if let Some((line, _)) = joined.iter().find(|(_, value)| is_record(value)) {
        note(format!(
            "note: {}:{line}: inside a quoted text is a line that looks like a row of its own; if it is one, pass --quoting off",
            path.display()
        ));
    }
    Ok(table)
}

/// A table without rows for a file without a header: its columns are numbered from 1.
fn numbered(path: &Path, rows: &str, dialect: &Dialect, options: &Options) -> Result<Table> {
    let width = dialect.sample[0].len();
    let names: Vec<String> = (1..=width).map(|number| number.to_string()).collect();
    let mut options = options.clone();
    if width > 2 && options.text_column.is_none() {
        // All of them: files may be sorted by label.
        let reader = reader(dialect.delimiter, dialect.quoting).from_reader(rows.as_bytes());
        let records: Vec<StringRecord> = reader.into_records().map_while(|record| record.ok()).collect();
        if let Some((text, labels)) = by_content(&records, width) {
            let number = |&column: &usize| names[column].clone();
            let mut taken = format!("of {width} columns without names, {} is taken for the texts", names[text]);
            options.text_column = Some(number(&text));
            match &labels[..] {
                _ if options.label_column.is_some() => {}
                [label] => {
                    taken += &format!(" and {} for the labels", names[*label]);
                    options.label_column = Some(number(label));
                }
                several if several.is_empty() || options.texts_only => {}
                _ => {
                    let numbers: Vec<String> = labels.iter().map(number).collect();
                    let fact = format!("several of its {width} columns without names may be labels: {}", list(&numbers));
                    return Err(Error::user(path.display(), fact, "name one with --label-column"));
                }
            }
            note(format!("note: {}: {taken}; --text-column and --label-column name others by number", path.display()));
        }
    }
    Table::new(path, names, &options)
}

/// The values of a column in lines inside quotes, with the numbers of these lines: of those that are divided into as many fields
/// as a record.
fn within_quotes(record: &StringRecord, line: usize, delimiter: u8, wanted: Option<usize>) -> Vec<(usize, String)> {
    let Some(wanted) = wanted else { return Vec::new() };
    let (mut line, mut found) = (line, Vec::new());
    for (column, field) in record.iter().enumerate().filter(|(_, field)| field.contains('\n')) {
        let last = field.matches('\n').count();
        for (i, text) in field.split('\n').enumerate() {
            // The first and the last line of the text share theirs with other fields.
            let before = if i == 0 { column } else { 0 };
            let after = if i == last { record.len() - 1 - column } else { 0 };
            let fields: Vec<&str> = text.split(char::from(delimiter)).collect();
            let value = wanted.checked_sub(before).and_then(|wanted| fields.get(wanted));
            if let (true, Some(value)) = (before + fields.len() + after == record.len(), value) {
                found.push((line + i, value.trim().trim_matches('"').to_string()));
            }
        }
        line += last;
    }
    found
}
