//! The files of each split of a data set in a folder: `train.csv`, `val.csv` and so on in any format; the shards of the Hugging
//! Face hub, `train-00000-of-00002.parquet`; or folders of reviews, `train/` and `test/`. They are in the folder itself or in
//! one folder below it (`data/`, `plain_text/`, `aclImdb/`).

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ENDINGS, ending, entries, list, name, reviews};
use crate::error::{Error, Result};

/// The files of each split in order; empty for a missing split. Each split is read with `Table::read_all`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Splits {
    pub train: Vec<PathBuf>,
    pub validation: Vec<PathBuf>,
    pub test: Vec<PathBuf>,
}

/// Finds the splits of the data set in a folder.
///
/// # Errors
/// A folder that cannot be read or has no split; several files for a split that are not its shards; a missing shard; splits in
/// several folders below it.
pub fn splits(dir: &Path) -> Result<Splits> {
    let found = directly_in(dir)?;
    if found != Splits::default() {
        return Ok(found);
    }
    let mut below = Vec::new();
    for folder in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        let found = directly_in(&folder)?;
        if found != Splits::default() {
            below.push((name(&folder), found));
        }
    }
    match below.len() {
        1 => Ok(below.remove(0).1),
        0 => {
            let remedy = "name the files like train.csv, validation.csv and test.csv, or give each with its own flag";
            Err(Error::user(dir.display(), "there is no training, validation or test data in this folder", remedy))
        }
        _ => {
            let names: Vec<String> = below.into_iter().map(|(name, _)| name).collect();
            let fact = format!("several folders hold data sets: {}", list(&names));
            Err(Error::user(dir.display(), fact, "name one of these folders"))
        }
    }
}

fn directly_in(dir: &Path) -> Result<Splits> {
    let mut found = Splits::default();
    for path in entries(dir)? {
        let name = name(&path).to_lowercase();
        let split = match name.split(['-', '.']).next() {
            Some("train") => &mut found.train,
            Some("validation" | "valid" | "dev" | "val") => &mut found.validation,
            Some("test") => &mut found.test,
            _ => continue,
        };
        let is_data = if path.is_dir() { reviews::is_split(&path) } else { ENDINGS.contains(&ending(&path).as_str()) };
        if is_data {
            split.push(path);
        }
    }
    for (split, paths) in [("train", &found.train), ("validation", &found.validation), ("test", &found.test)] {
        check(dir, split, paths)?;
    }
    Ok(found)
}

/// Checks that several files of a split are all of its shards.
fn check(dir: &Path, split: &str, paths: &[PathBuf]) -> Result<()> {
    let mut shards: Vec<Option<(usize, usize)>> = paths.iter().map(|path| shard(path)).collect();
    shards.sort();
    shards.dedup();
    match shards[..] {
        [] => Ok(()),
        [None] if paths.len() == 1 => Ok(()),
        [Some((_, of)), ..] if shards.len() == paths.len() && shards.iter().all(|shard| shard.is_some_and(|s| s.1 == of)) => {
            match (0..of).find(|&number| !shards.contains(&Some((number, of)))) {
                None => Ok(()),
                Some(number) => {
                    let fact = format!("shard {number:05} of {of} of its {split} data is missing");
                    Err(Error::user(dir.display(), fact, "download it too"))
                }
            }
        }
        _ => {
            let names: Vec<String> = paths.iter().map(|path| name(path)).collect();
            let fact = format!("several files may be its {split} data: {}", list(&names));
            Err(Error::user(dir.display(), fact, "keep one of them, or give each file with its own flag"))
        }
    }
}

/// Index of a shard, from 0, and their number: (1, 2) of `train-00001-of-00002.parquet`, also with `-` and a hash after it.
fn shard(path: &Path) -> Option<(usize, usize)> {
    let name = name(path);
    let mut parts = name.split(['-', '.']).skip(1);
    let number = parts.next()?.parse().ok()?;
    let of = parts.next().filter(|&word| word == "of").and(parts.next())?;
    Some((number, of.parse().ok().filter(|&of| number < of)?))
}
