//! A split in the layout of the Large Movie Review Dataset: `neg/*.txt` and `pos/*.txt`, one review per file. `unsup`, which
//! has no labels, is ignored.

use std::path::Path;

use super::text::{open_regular, read_encoded};
use super::{Options, Source, Table, ending, entries};
use crate::console::note;
use crate::error::{Error, Result};

const CLASSES: [&str; 2] = ["neg", "pos"];

/// Folders of a split.
const KNOWN: [&str; 3] = ["neg", "pos", "unsup"];

/// Whether a folder contains a folder of reviews.
pub fn is_split(folder: &Path) -> bool {
    CLASSES.iter().any(|class| folder.join(class).is_dir())
}

/// The reviews of each class in the order of their numbers: `2_7.txt` before `10_1.txt`.
pub(super) fn read(folder: &Path, options: &Options) -> Result<Table> {
    if !is_split(folder) {
        return Err(Error::user(folder.display(), "is a folder", "name a file, or a folder with the folders neg and pos"));
    }
    let others = entries(folder)?.into_iter().filter(|path| path.is_dir() && !KNOWN.contains(&&*super::name(path)));
    if let Some(other) = others.into_iter().next() {
        let fact = "is beside the folders neg and pos, which are the only classes that are read from folders";
        return Err(Error::user(other.display(), fact, "move it away, or write all classes to one CSV file"));
    }
    let mut table = Table::new(folder, ["text", "label"].map(String::from).into(), options)?;
    table.class_names = Some(CLASSES.map(String::from).into());
    for (class, name) in CLASSES.iter().enumerate() {
        let mut reviews = entries(&folder.join(name))?;
        let all = reviews.len();
        reviews.retain(|path| ending(path) == "txt");
        if all > reviews.len() {
            note(format!(
                "note: {}: entries that are not .txt files are left out: {} of {all}",
                folder.join(name).display(),
                all - reviews.len()
            ));
        }
        reviews.sort_by_cached_key(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let number: Option<u64> = name.split('_').next().and_then(|number| number.parse().ok());
            (number.is_none(), number, name)
        });
        for path in reviews {
            let text = read_encoded(&path, open_regular(&path)?, options.encoding)?;
            table.sources.push(Source { path, row: table.texts.len(), lines: Vec::new() });
            table.push(Some(1), text, class.to_string(), None);
        }
    }
    Ok(table)
}
