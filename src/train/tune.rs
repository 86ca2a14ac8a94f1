//! The timed algorithms of a run's products. They are chosen before its first update: those that an earlier run recorded, and with
//! `--tune` those that are timed now. Checkpoints hold them, and a resumed run takes those of its checkpoint alone, so that its bits
//! are those of an uninterrupted run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::Settings;
use super::data::Data;
use super::schedule::updates_per_epoch;
use crate::console::note;
use crate::data::loader::row_order;
use crate::data::pack::PackedBatch;
use crate::error::{Error, Result};
use crate::files::{check_writable, write_file};
use crate::model::Model;
use crate::ops::{Timed, Tuner};
use crate::report::log::{Count, Progress, counted, duration};

/// The file of a checkpoint.
pub const FILE: &str = "algorithms.json";

/// The consequence of a file that is damaged or of another device.
const NOT_USED: &str = "its algorithms are not used";

/// The remedy for such a file.
const REMEDY: &str = "name another file, or a new one with --tune";

/// Once this much time has passed, no further batches are timed.
const LIMIT: Duration = Duration::from_secs(60);

/// The file of recorded algorithms of a new run, which are restored, if the run uses any; `cache` is the user's cache folder.
///
/// # Errors
/// The file that the user has named cannot be used.
pub fn restore(tuner: Option<&mut dyn Tuner>, settings: &Settings, cache: Option<&Path>) -> Result<Option<PathBuf>> {
    let (tunes, named) = (settings.tune == Some(true), settings.algorithms.as_ref());
    let Some(tuner) = tuner.filter(|_| settings.tune != Some(false)) else { return Ok(None) };
    let kept = cache.map(|cache| cache.join("algorithms").join(file_name(&tuner.device())));
    let Some(path) = named.cloned().or(kept) else {
        let missing = || Error::user("--tune", "there is no cache folder for its file", "name a file: --algorithms FILE");
        return if tunes { Err(missing()) } else { Ok(None) };
    };
    if tunes && let Some(folder) = named.and_then(|path| path.parent()) {
        let fact = match folder.join("state.json").exists() {
            true => "is part of a checkpoint, which would be damaged".to_string(),
            false if folder.starts_with(&settings.output_dir) => "is in the folder of the run, which must be empty".to_string(),
            false => String::new(),
        };
        if !fact.is_empty() {
            return Err(Error::user(path.display(), fact, "name a file elsewhere"));
        }
        let elsewhere = |error: Error| Error::user(path.display(), error.fact(), "name a file elsewhere");
        check_writable(folder).map_err(elsewhere)?;
    }
    read(tuner, &path, named.is_some(), tunes)?;
    let shapes = tuner.timed().shapes;
    if shapes > 0 {
        let shapes = counted(shapes, "shape");
        note(format!("algorithms: timed on this GPU for {shapes} of products, from {}", path.display()));
    }
    Ok(Some(path))
}

/// With `--tune`, times what a new run of so many updates lacks, and records it in the file.
pub fn tune(model: &mut Model, settings: &Settings, data: &Data, updates: usize, path: &Path) -> Result<()> {
    if settings.tune != Some(true) {
        return Ok(());
    }
    let before = tuner(model).timed();
    let took = time(model, settings, data, updates)?;
    let timed = tuner(model).timed();
    let written = write(tuner(model), path, &timed);
    report(&before, &timed, took, written.is_ok().then_some(path));
    written.or_else(|error| unless_named(settings.algorithms.is_some(), error, "the algorithms are not recorded"))
}

fn tuner(model: &mut Model) -> &mut dyn Tuner {
    model.tuner().expect("the device has algorithms")
}

/// Restores the algorithms of a file, if there are any. What is wrong with it is an error if the user has named it, or else a note.
fn read(tuner: &mut dyn Tuner, path: &Path, named: bool, tunes: bool) -> Result<()> {
    if matches!(path.try_exists(), Ok(false)) && (tunes || !named) {
        return Ok(());
    }
    let restored = text(path).and_then(|text| tuner.restore(&text).map_err(|fact| Error::user(path.display(), fact, REMEDY)));
    restored.or_else(|error| unless_named(named, error, NOT_USED))
}

/// The text of a regular file: a pipe or a device might never end.
fn text(path: &Path) -> Result<String> {
    let bytes = match fs::metadata(path) {
        Ok(about) if !about.is_file() => return Err(Error::user(path.display(), "is not a regular file", REMEDY)),
        found => found.and_then(|_| fs::read(path)),
    };
    bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(|error| Error::io(path, error))
}

/// The error about a file if the user has named it, or else a note of it and its consequence.
fn unless_named(named: bool, error: Error, consequence: &str) -> Result<()> {
    if named {
        return Err(error);
    }
    note(format!("warning: {}; {consequence}", error.without_remedy()));
    Ok(())
}

/// Records the algorithms of a run. Another run may have recorded others meanwhile, which are kept; for the shapes of both, those
/// that this run uses are.
fn write(tuner: &mut dyn Tuner, path: &Path, timed: &Timed) -> Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let io = |e| Error::io(folder, e);
    fs::create_dir_all(folder).map_err(io)?;
    let lock = File::open(folder).map_err(io)?;
    // Some file systems have no locks.
    let _ = lock.lock();
    if let Ok(text) = text(path) {
        let _ = tuner.restore(&text);
        tuner.restore(&timed.text).expect("it is of this device");
    }
    write_file(path, tuner.timed().text.as_bytes())
}

/// Times the products of the run's batches, one batch of each size. Returns the time it took.
fn time(model: &mut Model, settings: &Settings, data: &Data, updates: usize) -> Result<Duration> {
    let tokens = model.plan.spec.tokens;
    let tuner = tuner(model);
    let batches = batches(settings, data, updates, tokens, &|batch: (usize, usize)| (tuner.class(batch.0), tuner.class(batch.1)));
    let progress = Progress::new("timing algorithms", batches.len() as u64, &["sizes"]);
    for (done, (batch, micro_batches)) in batches.iter().enumerate() {
        if progress.elapsed() > LIMIT {
            let left = counted(batches.len() - done, "rare size");
            progress.println(&format!("{left} of batches left out after {}", duration(LIMIT)));
            break;
        }
        model.time_algorithms(batch, *micro_batches)?;
        progress.add(&[1]);
    }
    let took = progress.elapsed();
    progress.done("");
    Ok(took)
}

/// A batch of each size that the run has, and the micro-batches of an update in which the products of its size differ: none in
/// evaluations. The most frequent sizes come first.
fn batches<Class: Ord>(
    settings: &Settings,
    data: &Data,
    updates: usize,
    tokens: usize,
    class: &dyn Fn((usize, usize)) -> Class,
) -> Vec<(PackedBatch, u32)> {
    let train = &data.train;
    let (size, accumulation) = (settings.batch_size, settings.gradient_accumulation_steps);
    let per_epoch = updates_per_epoch(train.rows().div_ceil(size), accumulation);
    let mut sizes: BTreeMap<Class, (usize, Vec<u32>)> = BTreeMap::new();
    for epoch in 0..updates.div_ceil(per_epoch) {
        let order = row_order(train.rows(), settings.shuffle, settings.seed, epoch as u64);
        for rows in order.chunks(size).take((updates - epoch * per_epoch) * accumulation) {
            let tokens = rows.iter().map(|&row| train.row(row as usize).0.len()).sum();
            sizes.entry(class((tokens, rows.len()))).or_insert_with(|| (0, rows.to_vec())).0 += 1;
        }
    }
    let mut others: BTreeMap<Class, (usize, PackedBatch)> = BTreeMap::new();
    for batch in
        [&data.validation, &data.test].into_iter().flatten().flat_map(|rows| rows.batches(tokens, settings.eval_batch_size))
    {
        let class = class((batch.tokens(), batch.seqs()));
        if !sizes.contains_key(&class) {
            others.entry(class).or_insert((0, batch)).0 += 1;
        }
    }
    // The second micro-batch of an update adds to the gradients of the first.
    let micro_batches = accumulation.min(2) as u32;
    let pack = |rows: Vec<u32>| PackedBatch::new(rows.iter().map(|&row| train.row(row as usize)));
    let training = sizes.into_values().map(|(count, rows)| (count, (pack(rows), micro_batches)));
    let mut all: Vec<_> = training.chain(others.into_values().map(|(count, batch)| (count, (batch, 0)))).collect();
    all.sort_by_key(|&(count, _)| std::cmp::Reverse(count));
    all.into_iter().map(|(_, batch)| batch).collect()
}

/// Reports what timing has gained.
fn report(before: &Timed, timed: &Timed, took: Duration, file: Option<&Path>) {
    let (new, seconds) = (timed.shapes - before.shapes, timed.seconds - before.seconds);
    if new == 0 {
        return note("algorithms: no product of this run was left to time");
    }
    let first = timed.first_seconds - before.first_seconds;
    let (shapes, less) = (counted(new, "shape"), 100.0 * (1.0 - seconds / first).max(0.0));
    let [us, first_us] = [seconds, first].map(|seconds| Count((seconds * 1e6).round() as u64));
    let gain = format!("{us} us for one of each, {less:.1} % less than the {first_us} us of those suggested first");
    let recorded = file.map_or(String::new(), |file| format!("; recorded in {}", file.display()));
    note(format!("algorithms: timed for {shapes} of products in {}: {gain}{recorded}", duration(took)));
}

/// "NVIDIA-H100-80GB-HBM3-compute-capability-9.0-cuBLASLt-13.0.2.json"
fn file_name(device: &str) -> String {
    let words = device.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-") + ".json"
}

/// The algorithms of a run, for its checkpoint; `None` if it has none.
pub fn recorded(model: &mut Model) -> Option<String> {
    model.tuner().map(|tuner| tuner.timed()).filter(|timed| timed.shapes > 0).map(|timed| timed.text)
}

/// Restores the algorithms of a run from its checkpoint. On another device they do not apply, which a note reports.
pub fn resume(model: &mut Model, checkpoint: &Path) -> Result<()> {
    let path = checkpoint.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(&path, error)),
    };
    let restored = match model.tuner() {
        Some(tuner) => tuner.restore(&text).map(|()| tuner.timed().shapes),
        None => Err("was timed on a GPU".to_string()),
    };
    match restored {
        Ok(shapes) => note(format!("algorithms: timed for {} of products, those of the checkpoint", counted(shapes, "shape"))),
        Err(fact) => {
            note(format!(
                "warning: {}: {fact}; the run continues without it, so its bits may differ from those on that device",
                path.display()
            ));
        }
    }
    Ok(())
}
