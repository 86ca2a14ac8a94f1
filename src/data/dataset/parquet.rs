//! Parquet with a column of strings; class names are read from the metadata that the `datasets` library writes.

use std::fs::File;
use std::path::Path;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::Value;

use super::{Guess, Options, Table, brief, number_or_text};
use crate::error::{Error, Result};

pub(super) fn read(path: &Path, file: File, options: &Options) -> Result<Table> {
    let unread = |e: ParquetError| broken(path, &e.to_string());
    let reader = SerializedFileReader::new(file).map_err(unread)?;
    let mut codecs = reader.metadata().row_groups().iter().flat_map(|group| group.columns()).map(|column| column.compression());
    if codecs.any(|codec| codec == Compression::LZO) {
        return Err(Error::user(path.display(), "is compressed with LZO", "write it with zstd, snappy, gzip, brotli or lz4"));
    }
    let about = reader.metadata().file_metadata();
    let fields = about.schema().get_fields();
    let mut table = Table::new(path, fields.iter().map(|field| field.name().to_string()).collect(), options)?;
    table.settle_by_type(|column| is_string(&fields[column]), options);
    let (text, label) = (&fields[table.columns.text], table.columns.label.map(|label| &fields[label]));
    let id = table.columns.id.map(|id| &fields[id]).filter(|id| is_string(id) || is_number(id));
    let wrong = |field: &Type, what: &str| {
        let fact = format!("the column {} does not hold {what}", brief(field.name()));
        Error::user(path.display(), fact, "name another with --text-column or --label-column")
    };
    if !(is_string(text) || table.columns.guessed == Guess::Both && is_number(text)) {
        return Err(wrong(text, "strings"));
    }
    if let Some(label) = label.filter(|label| !is_string(label) && !is_number(label)) {
        return Err(wrong(
            label,
            if is_scalar(label) { "strings or numbers" } else { "one label per text, and several are not supported" },
        ));
    }
    table.class_names = label.and_then(|label| {
        let json = about.key_value_metadata()?.iter().find(|entry| entry.key == "huggingface")?.value.as_ref()?;
        let json: Value = serde_json::from_str(json).ok()?;
        let names = json["info"]["features"][label.name()]["names"].as_array()?;
        names.iter().map(|name| Some(name.as_str()?.to_string())).collect()
    });
    let used: Vec<&Type> = std::iter::once(&**text).chain(label.map(|label| &**label)).chain(id.map(|id| &**id)).collect();
    let is_other = |field: &Type| options.keep_columns && is_scalar(field) && used.iter().all(|used| used.name() != field.name());
    let others = fields.iter().filter(|field| is_other(field));
    let only = std::iter::once(text).chain(label).chain(id).chain(others).cloned().collect();
    let only = Type::group_type_builder(about.schema().name()).with_fields(only).build().map_err(unread)?;
    for row in reader.get_row_iter(Some(only)).map_err(unread)? {
        let row = row.map_err(unread)?.into_columns();
        if options.keep_columns {
            let value = |field: Field| match field {
                Field::Str(text) => Value::from(text),
                number => cell(number).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or(Value::from(text))),
            };
            table.rows.push(row.iter().cloned().map(|(name, field)| (name, value(field))).collect());
        }
        let mut cells = row.into_iter().map(|(_, field)| cell(field));
        let null = || Error::user(table.place(table.texts.len()), "the text is null or not UTF-8", "give \"\" for an empty text");
        let text = cells.next().flatten().ok_or_else(null)?;
        let label = label.and_then(|_| cells.next().flatten()).unwrap_or_default();
        let id = id.map(|_| cells.next().flatten().map_or(Value::Null, |id| number_or_text(&id)));
        table.push(None, text, label, id);
    }
    Ok(table)
}

pub(super) fn broken(path: &Path, why: &str) -> Error {
    Error::user(path.display(), format!("not a whole Parquet file ({})", brief(why)), "download or write it again")
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
        && match field.get_basic_info().converted_type() {
            DECIMAL => true,
            NONE if field.get_basic_info().logical_type_ref() == Some(&LogicalType::Float16) => true,
            NONE | INT_8 | INT_16 | INT_32 | INT_64 | UINT_8 | UINT_16 | UINT_32 | UINT_64 => matches!(
                field.get_physical_type(),
                Physical::BOOLEAN | Physical::INT32 | Physical::INT64 | Physical::FLOAT | Physical::DOUBLE
            ),
            _ => false,
        }
}

fn is_scalar(field: &Type) -> bool {
    field.is_primitive() && field.get_basic_info().repetition() != Repetition::REPEATED
}

/// A cell as text; `None` for null, NaN and bytes that are not UTF-8.
fn cell(field: Field) -> Option<String> {
    match field {
        Field::Str(text) => Some(text),
        Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec()).ok(),
        Field::Null => None,
        // The crate would write 0.0 as 0E0.
        Field::Float16(n) => Some(n.to_string()).filter(|_| !n.is_nan()),
        Field::Float(n) => Some(n.to_string()).filter(|_| !n.is_nan()),
        Field::Double(n) => Some(n.to_string()).filter(|_| !n.is_nan()),
        number => Some(number.to_string()),
    }
}
