//! One text with its label per line: `text;label`, split at the last semicolon, or fastText's `__label__name text`.

use std::path::Path;

use super::{LABEL_COLUMNS, Options, TEXT_COLUMNS, Table};
use crate::error::{Error, Result};

/// The prefix of a label in fastText files.
const PREFIX: &str = "__label__";

/// The first line decides between the two. One that names the columns (`text;label`) is a header; fastText has none.
pub(super) fn read(path: &Path, text: &str, options: &Options) -> Result<Table> {
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).peekable();
    let fasttext = lines.peek().is_some_and(|(_, line)| line.starts_with(PREFIX));
    let delimiter = char::from(options.delimiter.unwrap_or(b';'));
    let names = |line: &str| line.rsplit_once(delimiter).map(|(text, label)| [text.trim(), label.trim()].map(String::from));
    let header = lines.next_if(|(_, line)| names(line).is_some_and(|names| is_header(&names, options)));
    let columns = header.and_then(|(_, line)| names(line)).unwrap_or(["text", "label"].map(String::from));

    let mut table = Table::new(path, columns.into(), options)?;
    for (line, row) in lines {
        let wrong = |fact: String, remedy| Err(Error::user(format!("{}:{line}", path.display()), fact, remedy));
        let (text, label) = match row.strip_prefix(PREFIX) {
            Some(row) if fasttext => {
                let (label, text) = row.split_once(char::is_whitespace).unwrap_or((row, ""));
                if text.trim_start().starts_with(PREFIX) {
                    return wrong("there are two labels".to_string(), "give one label per text");
                }
                (text, label)
            }
            None if fasttext => {
                return wrong(format!("the line does not start with {PREFIX}"), "start every line with its label");
            }
            _ => match row.rsplit_once(delimiter) {
                Some(row) => row,
                None => {
                    let remedy = "write lines of text;label or __label__name text, or use another format";
                    return wrong(format!("there is no {delimiter} between a text and a label"), remedy);
                }
            },
        };
        table.push(Some(line), text.to_string(), label.to_string(), None);
    }
    Ok(table)
}

fn is_header([text, label]: &[String; 2], options: &Options) -> bool {
    let is = |name: &str, asked: &Option<String>, known: &[&str]| {
        known.iter().copied().chain(asked.as_deref()).any(|known| known.eq_ignore_ascii_case(name))
    };
    is(text, &options.text_column, &TEXT_COLUMNS) && is(label, &options.label_column, &LABEL_COLUMNS)
}
