//! The files of each split of a data set in a folder: `train.csv`, `val.csv` and so on in any format; the shards of the Hugging
//! Face hub, `train-00000-of-00002.parquet`, or in its conversions `train/0000.parquet`; or folders of reviews, `train/` and
//! `test/`. They are in the folder itself or in one folder below it (`data/`, `plain_text/`, `default/`, `aclImdb/`).

use std::path::{Path, PathBuf};

use clap::ValueEnum;
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

/// A split by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Split {
    Train,
    Validation,
    Test,
}

impl Splits {
    pub fn files(self, split: Split) -> Vec<PathBuf> {
        match split {
            Split::Train => self.train,
            Split::Validation => self.validation,
            Split::Test => self.test,
        }
    }
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
        match path.is_dir() {
            true if reviews::is_split(&path) => split.push(path),
            true => split.extend(numbered(&path)?),
            false if is_data(&path) => split.push(path),
            false => {}
        }
    }
    for (split, paths) in [("train", &found.train), ("validation", &found.validation), ("test", &found.test)] {
        check(dir, split, paths)?;
    }
    Ok(found)
}

fn is_data(path: &Path) -> bool {
    ENDINGS.contains(&ending(path).as_str())
}

/// The files of a folder that are numbered from 0: `0000.parquet`, `0001.parquet`.
fn numbered(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = entries(dir)?;
    files.retain(|path| path.is_file() && is_data(path) && number(path).is_some());
    Ok(files)
}

/// The number that is the whole name of a file.
fn number(path: &Path) -> Option<usize> {
    name(path).split('.').next()?.parse().ok()
}

/// Checks that several files of a split are all of its shards.
fn check(dir: &Path, split: &str, paths: &[PathBuf]) -> Result<()> {
    // The files of a folder tell how many there are at least.
    let of = paths.iter().filter_map(|path| number(path)).max().map_or(0, |last| last + 1);
    let numbered = |path: &Path| number(path).map(|number| (number, of));
    let mut shards: Vec<Option<(usize, usize)>> = paths.iter().map(|path| shard(path).or_else(|| numbered(path))).collect();
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
