//! JSON: one object per line, or an array of objects, which may lie under a key. The columns are the keys of all objects.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::columns::is_known;
use super::{LineNumbers, Options, Table, brief, list};
use crate::console::note;
use crate::error::{Error, Result};

/// An array of objects, an object that holds one, or else one object per line.
pub(super) fn read(path: &Path, text: &str, options: &Options) -> Result<Table> {
    let items = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(text).map_err(|e| {
            let place = format!("{}:{}", path.display(), e.line());
            Error::user(place, what(&e), "give an array of JSON objects, or one object per line")
        })?,
        false => match arrays(text, "", options).unwrap_or_default() {
            found if found.is_empty() => return read_lines(path, text, options),
            mut found if found.len() == 1 => {
                let (key, items) = found.remove(0);
                note(format!("note: {}: the rows are those in {}", path.display(), brief(&key)));
                items
            }
            found => {
                let keys: Vec<String> = found.into_iter().map(|(key, _)| key).collect();
                let fact = format!("rows lie in several keys: {}", list(&keys));
                return Err(Error::user(path.display(), fact, "save the rows of one of them to a file"));
            }
        },
    };
    let mut lines = LineNumbers::default();
    // An item is a slice of the text: its offset gives its line.
    let start = |item: &str| item.as_ptr() as usize - text.as_ptr() as usize;
    let objects: Vec<(usize, &str)> = items.iter().map(|item| (lines.at(text, start(item.get())), item.get())).collect();
    read_objects(path, &objects, options)
}

/// The arrays of objects in a text that is one JSON object, at any depth of objects, by their keys. `None` for another text, and
/// for an object with a text, which is a row itself.
fn arrays<'a>(text: &'a str, above: &str, options: &Options) -> Option<Vec<(String, Vec<&'a RawValue>)>> {
    let object: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    if object.iter().any(|(key, value)| is_known(key, options) && value.get().starts_with('"')) {
        return None;
    }
    let mut found = Vec::new();
    for (key, value) in object {
        let (key, json) = (if above.is_empty() { key } else { format!("{above}.{key}") }, value.get());
        if json.starts_with('{') {
            found.extend(arrays(json, &key, options)?);
        } else if let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(json)
            && items.first().is_some_and(|item| item.get().starts_with('{'))
        {
            found.push((key, items));
        }
    }
    Some(found)
}

pub(super) fn read_lines(path: &Path, text: &str, options: &Options) -> Result<Table> {
    let objects: Vec<(usize, &str)> = (1..).zip(text.lines()).filter(|(_, json)| !json.trim().is_empty()).collect();
    read_objects(path, &objects, options)
}

/// Reads each object, with the line that it starts on.
fn read_objects(path: &Path, objects: &[(usize, &str)], options: &Options) -> Result<Table> {
    let place = |line: usize| format!("{}:{line}", path.display());
    // Each key, and whether all of its values are strings.
    let mut columns = Map::new();
    for &(line, json) in objects {
        for (key, value) in json_object(json, place(line))? {
            let strings = columns.entry(key).or_insert(Value::Bool(true));
            *strings = Value::Bool(*strings == Value::Bool(true) && (value.is_string() || value.is_null()));
        }
    }
    if objects.is_empty() {
        return Err(Error::user(path.display(), "no rows", "give one JSON object per row"));
    }
    let mut table = Table::new(path, columns.keys().cloned().collect(), options)?;
    let strings: Vec<bool> = columns.values().map(|strings| *strings == true).collect();
    table.settle_by_type(|column| strings[column], options);
    for &(line, json) in objects {
        let mut object = json_object(json, place(line))?;
        let mut take = |column: usize| match object.swap_remove(&table.column_names[column]) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(other),
        };
        let wrong = |column: usize, what: &str, remedy: &str| {
            Error::user(place(line), format!("{} {what}", brief(&table.column_names[column])), remedy)
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
    Ok(table)
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
