//! The data of a run: files are read, class names chosen, the validation split taken off and the texts tokenized, unless an
//! earlier run has cached the result.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::args::Settings;
use crate::console::note;
use crate::data::cache;
use crate::data::dataset::{self, Dataset, Labelled, ModelClasses, Split};
use crate::data::tokenize::{Encoded, Tokenizer};
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::report::log::{Count, Progress, counted};

pub struct Data {
    /// Names of the classes, in order of their index.
    pub names: Vec<String>,
    /// How the files were read, one line each.
    notes: Vec<String>,
    pub train: Arc<Encoded>,
    pub validation: Option<Arc<Encoded>>,
    pub test: Option<Arc<Encoded>>,
    /// Validation texts that are in the training data too.
    pub shared: usize,
    /// A few short texts of different classes.
    pub examples: Vec<String>,
}

impl Data {
    /// Reads and tokenizes the files of `settings` for a model with this config and tokenizer, or loads the result of an
    /// earlier run from the folder `cache`; a new result is stored there.
    pub fn read(
        settings: &Settings,
        config: &Config,
        tokenizer: &Tokenizer,
        max_length: usize,
        cache: Option<&Path>,
    ) -> Result<Data> {
        // No key means that a file cannot be read; reading it reports why.
        let entry = || Some((cache?, Data::key(settings, config, tokenizer, max_length).ok()?));
        let place = entry();
        let kept = place.and_then(|(folder, key)| Data::from_cache(cache::load(folder, key)?));
        let data = match kept {
            Some(data) => {
                note("data: tokenized by an earlier run");
                data.notes.iter().for_each(note);
                let cuts = data.parts().into_iter().map(|(what, encoded)| cut(what, encoded, tokenizer, max_length));
                cuts.filter(|line| !line.is_empty()).for_each(note);
                data
            }
            None => {
                let data = Data::tokenize(settings, config, tokenizer, max_length)?;
                // A file that was replaced meanwhile has another key.
                if let Some((folder, key)) = place.filter(|_| entry() == place) {
                    let about =
                        json!({"names": data.names, "notes": data.notes, "shared": data.shared, "examples": data.examples});
                    if let Err(error) = cache::store(folder, key, &data.parts(), &about) {
                        note(format!("note: the tokenized texts were not cached: {error}"));
                    }
                }
                data
            }
        };
        if let Some(validation) = data.validation.as_ref().filter(|_| data.shared > 0) {
            note(format!(
                "warning: {} of the {} are in the training data too",
                Count(data.shared as u64),
                counted(validation.rows(), "validation text")
            ));
        }
        Ok(data)
    }

    /// The hash of everything that determines the rows, their labels and their tokens.
    fn key(settings: &Settings, config: &Config, tokenizer: &Tokenizer, max_length: usize) -> std::io::Result<u128> {
        let files = [&settings.files.train, &settings.files.validation, &settings.files.test];
        let decisive = json!({
            "tokenizer": String::from_utf8_lossy(&tokenizer.json),
            "max_length": max_length,
            "truncation_side": tokenizer.truncation_side,
            "columns": format!("{:?}", settings.reading),
            "names": config.labels_named.then_some(&config.labels),
            "label_names": settings.label_names,
            "test_may_lack_labels": settings.of_dataset.contains(&Split::Test),
            "split": settings.validation_split.map(|share| (share, settings.seed)),
            "samples": (settings.max_train_samples, settings.max_eval_samples),
            // Their names are in what is noted about them.
            "files": files,
        });
        cache::key(&decisive, files.into_iter().flatten().map(PathBuf::as_path))
    }

    fn parts(&self) -> Vec<(&'static str, &Encoded)> {
        let parts = [("training", Some(&self.train)), ("validation", self.validation.as_ref()), ("test", self.test.as_ref())];
        parts.into_iter().filter_map(|(name, encoded)| Some((name, &**encoded?))).collect()
    }

    fn from_cache((mut parts, about): (HashMap<String, Encoded>, Value)) -> Option<Data> {
        let mut part = |name: &str| parts.remove(name).map(Arc::new);
        let (train, validation, test) = (part("training")?, part("validation"), part("test"));
        let texts = |key: &str| serde_json::from_value(about[key].clone()).ok();
        let (names, notes, examples) = (texts("names")?, texts("notes")?, texts("examples")?);
        Some(Data { names, notes, train, validation, test, shared: about["shared"].as_u64()? as usize, examples })
    }

    fn tokenize(settings: &Settings, config: &Config, tokenizer: &Tokenizer, max_length: usize) -> Result<Data> {
        let model = ModelClasses::Replaceable(config.labels_named.then_some(&config.labels));
        let (files, given) = (&settings.files, settings.label_names.as_deref());
        let test_may_lack_labels = settings.of_dataset.contains(&Split::Test);
        let read = Labelled::read(files, &settings.reading, test_may_lack_labels, model, given)?;
        let Labelled { names, guesses, mut notes, mut train, mut validation, test } = read;
        if let Some(share) = settings.validation_split {
            let (kept, split) = dataset::stratified_split(&train.labels, share, settings.seed);
            if kept.is_empty() || split.is_empty() {
                let fact = format!("a fraction of {share} of {} leaves one side empty", counted(train.texts.len(), "row"));
                return Err(Error::user("--validation-split", fact, "use another fraction, or --validation-file"));
            }
            validation = Some(rows(&train, &split));
            train = rows(&train, &kept);
        }
        truncate(&mut train, settings.max_train_samples);
        if train.labels.iter().all(|&label| label == train.labels[0]) {
            let fact = format!(
                "every label of the {} to train on is \"{}\"",
                counted(train.labels.len(), "row"),
                names[train.labels[0] as usize]
            );
            let remedy = match settings.max_train_samples {
                Some(_) => "training needs at least two classes: raise --max-train-samples, or shuffle the file",
                None => "training needs at least two classes",
            };
            return Err(Error::user(files.train[0].display(), fact, remedy));
        }
        let mut shared = 0;
        if let Some(validation) = &mut validation {
            truncate(validation, settings.max_eval_samples);
            shared = dataset::overlap(&train.texts, &validation.texts);
        }
        for (what, data) in [("training", Some(&train)), ("validation", validation.as_ref()), ("test", test.as_ref())] {
            if let Some(data) = data {
                let counts = dataset::counts_in_words(&names, &data.labels);
                notes.push(format!("{what}: {}: {counts}", counted(data.labels.len(), "text")));
            }
        }
        notes.iter().for_each(note);
        let examples = examples(validation.as_ref().unwrap_or(&train), names.len());
        let encode = |what: &str, data: Dataset| encode(what, data, tokenizer, max_length).map(Arc::new);
        Ok(Data {
            train: encode("training", train)?,
            validation: validation.map(|data| encode("validation", data)).transpose()?,
            test: test.map(|data| encode("test", data)).transpose()?,
            names,
            notes: [guesses, notes].concat(),
            shared,
            examples,
        })
    }

    /// One weight per class, with which all classes count the same in the loss: rows / (classes * rows of the class), like
    /// scikit-learn's "balanced"; 1 for a class without rows.
    pub fn balanced_weights(&self) -> Vec<f64> {
        let mut counts = vec![0usize; self.names.len()];
        self.train.labels.iter().for_each(|&label| counts[label as usize] += 1);
        let weight = |&n: &usize| if n == 0 { 1.0 } else { self.train.rows() as f64 / (counts.len() * n) as f64 };
        counts.iter().map(weight).collect()
    }
}

/// Short texts of the classes in turn, the first ones of each: two of each class, but from four to six in all.
fn examples(data: &Dataset, classes: usize) -> Vec<String> {
    let is_short = |row: &usize| (15..=160).contains(&data.texts[*row].trim().chars().count());
    let mut seen = HashSet::new();
    let mut by_class = vec![Vec::new(); classes];
    for row in (0..data.texts.len()).filter(is_short).filter(|&row| seen.insert(&data.texts[row])) {
        by_class[data.labels[row] as usize].push(data.texts[row].trim());
    }
    let nth = |n: usize| by_class.iter().filter_map(move |texts| texts.get(n).map(|text| text.to_string()));
    (0..2).flat_map(nth).take(classes.clamp(4, 6)).collect()
}

fn rows(data: &Dataset, which: &[u32]) -> Dataset {
    let which = || which.iter().map(|&row| row as usize);
    Dataset { texts: which().map(|row| data.texts[row].clone()).collect(), labels: which().map(|row| data.labels[row]).collect() }
}

fn truncate(data: &mut Dataset, most: Option<usize>) {
    let most = most.unwrap_or(usize::MAX);
    data.texts.truncate(most);
    data.labels.truncate(most);
}

/// Tokenizes labelled texts, with progress, and reports the number of truncated texts.
pub fn encode(what: &str, data: Dataset, tokenizer: &Tokenizer, max_length: usize) -> Result<Encoded> {
    let progress = Progress::new(&format!("tokenizing {what}"), data.texts.len() as u64, &["texts"]);
    let mut encoded = tokenizer.encode(&data.texts, max_length, &|done| progress.add(&[done as u64]))?;
    encoded.labels = data.labels;
    let cut = cut(what, &encoded, tokenizer, max_length);
    progress.done(&cut);
    Ok(encoded)
}

/// The number of truncated texts, in words; "" for none.
fn cut(what: &str, encoded: &Encoded, tokenizer: &Tokenizer, max_length: usize) -> String {
    let (cut, rows) = (encoded.truncated(), encoded.rows());
    if cut == 0 {
        return String::new();
    }
    let share = 100.0 * cut as f64 / rows as f64;
    format!(
        "{what}: {} of {} truncated to {max_length} tokens{} ({share:.1} %)",
        Count(cut as u64),
        counted(rows, "text"),
        tokenizer.truncation_side.place()
    )
}
