//! JSON: one object per line, or an array of objects. The first object names the columns.

use std::fmt::Display;
use std::path::Path;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{LineNumbers, Options, Table, brief};
use crate::error::{Error, Result};

/// An array of objects, or else one object per line.
pub(super) fn read(path: &Path, text: &str, options: &Options) -> Result<Table> {
    if !text.trim_start().starts_with('[') {
        return read_lines(path, text, options);
    }
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| {
        let place = format!("{}:{}", path.display(), e.line());
        Error::user(place, what(&e), "give an array of JSON objects, or one object per line")
    })?;
    let mut lines = LineNumbers::default();
    // An item is a slice of the text: its offset gives its line.
    let start = |item: &str| item.as_ptr() as usize - text.as_ptr() as usize;
    read_objects(path, items.iter().map(|item| (lines.at(text, start(item.get())), item.get())), options)
}

pub(super) fn read_lines(path: &Path, text: &str, options: &Options) -> Result<Table> {
    read_objects(path, (1..).zip(text.lines()).filter(|(_, json)| !json.trim().is_empty()), options)
}

/// Reads each object, with the line that it starts on.
fn read_objects<'a>(path: &Path, objects: impl Iterator<Item = (usize, &'a str)>, options: &Options) -> Result<Table> {
    let mut table: Option<Table> = None;
    for (line, json) in objects {
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
            Some((label, Err(_))) => {
                return Err(wrong(
                    label,
                    "is a list or an object, and several labels per text are not supported",
                    "give a string or a number",
                ));
            }
            Some((_, Ok(label))) => label.unwrap_or_default(),
            None => String::new(),
        };
        let text = match take(table.columns.text) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(wrong(table.columns.text, "is missing or null", "give a string, \"\" for an empty text")),
            Err(_) => return Err(wrong(table.columns.text, "is not a string", "give a string")),
        };
        let id = table.columns.id.map(|id| object.swap_remove(&table.column_names[id]).unwrap_or_default());
        table.push(Some(line), text, label, id);
    }
    table.ok_or_else(|| Error::user(path.display(), "no rows", "give one JSON object per row"))
}

/// Parses a row: one JSON object.
pub(crate) fn json_object(json: &str, place: impl Display) -> Result<Map<String, Value>> {
    serde_json::from_str(json).map_err(|e| Error::user(place, what(&e), "give one JSON object per row"))
}

/// The error and the column of its place.
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    format!("{} (column {})", text.split(" at line ").next().unwrap_or_default(), error.column())
}
