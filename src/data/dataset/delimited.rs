//! CSV and TSV (RFC 4180) with a header.

use std::io::Read;
use std::path::Path;

use super::{LineNumbers, Options, Table, number_or_text};
use crate::error::{Error, Result};

pub(super) fn read(path: &Path, text: &str, delimiter: u8, options: &Options) -> Result<Table> {
    // The crate closes an unclosed quote at the end of the file. To detect it, a last record of one NUL is appended, which no
    // file contains: after an unclosed quote it becomes part of a field.
    let end = "\0";
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes().chain(b"\n".as_slice()).chain(end.as_bytes()));
    let mut record = csv::StringRecord::new();
    let mut lines = LineNumbers::default();
    let mut table: Option<Table> = None;
    loop {
        let more =
            reader.read_record(&mut record).map_err(|e| Error::user(path.display(), e.to_string(), "save it as UTF-8 CSV"))?;
        if !more || &record == [end].as_slice() {
            break;
        }
        // A record's position may be that of the line ends before it.
        let mut start = (record.position().expect("a record that was read has a position").byte() as usize).min(text.len());
        start += text[start..].bytes().take_while(|b| b"\r\n".contains(b)).count();
        let line = lines.at(text, start);
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
            let fact = format!("{} fields, but the header has {}", record.len(), table.column_names.len());
            return Err(Error::user(place(), fact, "quote the text, or pass --delimiter"));
        }
        let label = table.columns.label.map_or("", |label| &record[label]);
        let id = table.columns.id.map(|id| number_or_text(&record[id]));
        table.push(Some(line), record[table.columns.text].to_string(), label.to_string(), id);
    }
    table.ok_or_else(|| Error::user(path.display(), "no header and no rows", "check how it was written"))
}
