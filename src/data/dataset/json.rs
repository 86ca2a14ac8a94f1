//! JSON: one object per line, an array of objects, which may lie under a key, or a data frame as pandas writes it. The columns are
//! the keys of all objects.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::columns::{is_known, is_text_or_label};
use super::{LineNumbers, Options, Table, brief, list};
use crate::console::note;
use crate::error::{Error, Result};

pub(super) fn read(path: &Path, text: &str, options: &Options) -> Result<Table> {
    if let Some(rows) = data_frame(text, options) {
        return read_objects(path, &rows.iter().map(|row| (None, &**row)).collect::<Vec<_>>(), options);
    }
    let items = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(text).map_err(|e| {
            let place = format!("{}:{}", path.display(), e.line());
            Error::user(place, what(&e), "give an array of JSON objects, or one object per line")
        })?,
        false => match arrays(text, "", options).unwrap_or_default() {
            found if found.is_empty() => return read_lines(path, text, options),
            found => {
                let (key, items) = only(path, found, options)?;
                note(format!("note: {}: the rows are those in {}", path.display(), brief(&key)));
                items
            }
        },
    };
    let mut lines = LineNumbers::default();
    // An item is a slice of the text: its offset gives its line.
    let start = |item: &str| item.as_ptr() as usize - text.as_ptr() as usize;
    let items = items.into_iter().map(RawValue::get);
    let objects: Vec<(Option<usize>, &str)> = items.map(|item| (Some(lines.at(text, start(item))), item)).collect();
    read_objects(path, &objects, options)
}

/// The array of objects under the only key, or the only one whose objects have a known column.
fn only<'a>(path: &Path, mut found: Vec<(String, Vec<&'a RawValue>)>, options: &Options) -> Result<(String, Vec<&'a RawValue>)> {
    let keys: Vec<String> = found.iter().map(|(key, _)| key.clone()).collect();
    let has_columns = |items: &[&RawValue]| {
        let first = row_object(items[0].get(), "", options).unwrap_or_default();
        first.keys().any(|key| is_text_or_label(key, options))
    };
    if found.len() > 1 {
        found.retain(|(_, items)| has_columns(items));
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        _ => {
            let fact = format!("rows lie in several keys: {}", list(&keys));
            Err(Error::user(path.display(), fact, "save the rows of one of them to a file"))
        }
    }
}

/// The rows of a data frame as JSON objects, in the layouts that pandas calls columns (with lists also those of a dictionary of
/// columns), index and split. `None` for other texts.
fn data_frame(text: &str, options: &Options) -> Option<Vec<String>> {
    let parts: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    let all = |start: char| !parts.is_empty() && parts.values().all(|part| part.get().starts_with(start));
    let is_split = parts.contains_key("columns") && parts.contains_key("data");
    let is_columns = parts.keys().any(|name| is_known(name, options)) && (all('{') || all('['));
    if !(is_split || is_columns || all('{')) {
        return None;
    }
    let frame: Map<String, Value> = serde_json::from_str(text).ok()?;
    let object = |row: Map<String, Value>| Value::Object(row).to_string();
    if is_split {
        let names: Vec<&str> = frame["columns"].as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
        let row = |values: &Value| {
            let values = values.as_array().filter(|values| values.len() == names.len())?;
            Some(object(names.iter().map(|name| name.to_string()).zip(values.iter().cloned()).collect()))
        };
        return frame["data"].as_array()?.iter().map(row).collect();
    }
    let first = frame.values().next()?;
    if first.as_object().is_some_and(|first| first.keys().any(|name| is_known(name, options))) {
        return Some(frame.into_iter().map(|(_, row)| row.to_string()).collect());
    }
    let rows: Vec<&String> = first.as_object().map(|first| first.keys().collect()).unwrap_or_default();
    let count = first.as_array().map_or(rows.len(), Vec::len);
    let is_scalar = |value: &Value| !value.is_object() && !value.is_array();
    let cell = |column: &Value, row: usize| match column {
        Value::Array(values) => values.get(row).cloned(),
        column => column.get(rows.get(row)?.as_str()).cloned(),
    };
    let is_column = |column: &Value| match column {
        Value::Array(values) => values.len() == count,
        column => column.as_object().is_some_and(|values| values.len() == count && values.values().all(is_scalar)),
    };
    let row = |row: usize| {
        let cells = frame.iter().map(|(name, column)| Some((name.clone(), cell(column, row)?)));
        Some(object(cells.collect::<Option<_>>()?))
    };
    frame.values().all(is_column).then(|| (0..count).map(row).collect())?
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

fn read_lines(path: &Path, text: &str, options: &Options) -> Result<Table> {
    let lines = (1..).map(Some).zip(text.lines()).filter(|(_, json)| !json.trim().is_empty());
    read_objects(path, &lines.collect::<Vec<_>>(), options)
}

/// Reads each object, with the line that it starts on if it is written in one.
fn read_objects(path: &Path, objects: &[(Option<usize>, &str)], options: &Options) -> Result<Table> {
    let place = |row: usize| match objects[row].0 {
        Some(line) => format!("{}:{line}", path.display()),
        None => format!("{}: row {row} (from 0)", path.display()),
    };
    // Each key, and whether all of its values are strings.
    let mut columns = Map::new();
    for (row, (_, json)) in objects.iter().enumerate() {
        for (key, value) in row_object(json, place(row), options)? {
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
    let (mut lists, mut rejected) = (0, 0);
    for (row, &(line, json)) in objects.iter().enumerate() {
        let mut object = row_object(json, place(row), options)?;
        // Prodigy asks whether a label is right.
        if table.columns.label.is_some() && matches!(object.get("answer").and_then(Value::as_str), Some("reject" | "ignore")) {
            rejected += 1;
            continue;
        }
        if options.keep_columns {
            table.rows.push(object.clone());
        }
        let mut take = |column: usize| match object.swap_remove(&table.column_names[column]) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(other),
        };
        let wrong = |column: usize, what: &str, remedy: &str| {
            Error::user(place(row), format!("{} {what}", brief(&table.column_names[column])), remedy)
        };
        let label = match table.columns.label.map(|label| (label, take(label))) {
            Some((_, Err(value @ (Value::Bool(_) | Value::Number(_))))) => value.to_string(),
            Some((_, Err(Value::Array(labels)))) if labels.is_empty() => String::new(),
            Some((_, Err(Value::Array(labels)))) if matches!(labels[..], [Value::String(_) | Value::Number(_)]) => {
                lists += 1;
                labels[0].as_str().map_or_else(|| labels[0].to_string(), String::from)
            }
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
        table.push(line, text, label, id);
    }
    for (count, what) in [
        (lists, "labels that are lists of one, and read as this one"),
        (rejected, "rows with the answer reject or ignore, which are left out"),
    ] {
        if count > 0 {
            note(format!("note: {}: {what}: {count}", path.display()));
        }
    }
    Ok(table)
}

/// A row, with the columns of an object in it if it has none of its own: `{"row": {"text": ...}}`.
fn row_object(json: &str, place: impl Display, options: &Options) -> Result<Map<String, Value>> {
    let mut row = json_object(json, place)?;
    let has_columns = |row: &Map<String, Value>| row.keys().any(|key| is_text_or_label(key, options));
    if !has_columns(&row)
        && let Some(key) = row.iter().find(|(_, value)| value.as_object().is_some_and(has_columns)).map(|(key, _)| key.clone())
        && let Some(Value::Object(inner)) = row.swap_remove(&key)
    {
        row.extend(inner);
    }
    Ok(row)
}

/// Parses a row: one JSON object.
pub(crate) fn json_object(json: &str, place: impl Display) -> Result<Map<String, Value>> {
    let Row(row) = serde_json::from_str(json).map_err(|e| {
        let remedy = match () {
            () if e.to_string().contains(TWICE) => "keep one of them",
            () if json.contains("NaN") => "write null for NaN, which JSON does not have",
            () => "give one JSON object per row",
        };
        Error::user(place, what(&e), remedy)
    })?;
    Ok(row)
}

const TWICE: &str = "is given twice";

/// An object, each of whose keys is there once.
struct Row(Map<String, Value>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Row, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Row;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<Row, A::Error> {
                let mut row = Map::new();
                while let Some((key, value)) = object.next_entry::<String, Value>()? {
                    if row.contains_key(&key) {
                        return Err(A::Error::custom(format!("the key {} {TWICE}", brief(&key))));
                    }
                    row.insert(key, value);
                }
                Ok(Row(row))
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// The error and the column of its place.
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    format!("{} (column {})", text.split(" at line ").next().unwrap_or_default(), error.column())
}
