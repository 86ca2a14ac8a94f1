//! What a run trains and is evaluated on: files read, class names chosen, validation split off, texts tokenised.

use std::sync::Arc;

use super::args::Settings;
use crate::cli::note;
use crate::data::dataset::{self, Dataset, Table};
use crate::data::tokenize::{Encoded, Tokenizer};
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::report::log::{Count, Progress};

pub struct Data {
    /// Names of the classes, in order of their index.
    pub names: Vec<String>,
    pub train: Arc<Encoded>,
    pub validation: Option<Arc<Encoded>>,
    pub test: Option<Arc<Encoded>>,
}

impl Data {
    /// Reads and tokenises the files of `settings` for a model with this config and tokenizer.
    pub fn read(settings: &Settings, config: &Config, tokenizer: &Tokenizer, max_length: usize) -> Result<Data> {
        let columns = settings.columns();
        let files = &settings.files;
        let train = Table::read_all(&files.train, &columns)?;
        let read = |paths: &[_]| (!paths.is_empty()).then(|| Table::read_all(paths, &columns)).transpose();
        let (validation, test) = (read(&files.validation)?, read(&files.test)?);
        let tables: Vec<&Table> = [Some(&train), validation.as_ref(), test.as_ref()].into_iter().flatten().collect();
        let names = dataset::class_names(&tables, config.labels_named.then_some(&config.labels))?;

        let mut train = train.into_dataset(&names)?;
        let mut validation = validation.map(|table| table.into_dataset(&names)).transpose()?;
        let test = test.map(|table| table.into_dataset(&names)).transpose()?;
        if let Some(share) = settings.validation_split {
            let (kept, split) = dataset::stratified_split(&train.labels, share, settings.seed);
            if kept.is_empty() || split.is_empty() {
                let fact = format!("{share} of {} rows leaves one side empty", train.texts.len());
                return Err(Error::user("--validation-split", fact, "give another share, or a --validation-file"));
            }
            validation = Some(rows(&train, &split));
            train = rows(&train, &kept);
        }
        truncate(&mut train, settings.max_train_samples);
        if let Some(validation) = &mut validation {
            truncate(validation, settings.max_eval_samples);
            let shared = dataset::overlap(&train.texts, &validation.texts);
            if shared > 0 {
                note(format!(
                    "warning: {} of the {} validation texts stand in the training data too",
                    Count(shared as u64),
                    Count(validation.texts.len() as u64)
                ));
            }
        }
        let encode = |what: &str, data: Dataset| encode(what, data, tokenizer, max_length).map(Arc::new);
        Ok(Data {
            train: encode("training", train)?,
            validation: validation.map(|data| encode("validation", data)).transpose()?,
            test: test.map(|data| encode("test", data)).transpose()?,
            names,
        })
    }

    /// One weight a class that makes every class count the same in the loss: rows / (classes * rows of the class), as
    /// scikit-learn's "balanced"; 1 for a class without rows.
    pub fn balanced_weights(&self) -> Vec<f64> {
        let mut counts = vec![0usize; self.names.len()];
        self.train.labels.iter().for_each(|&label| counts[label as usize] += 1);
        let weight = |&n: &usize| if n == 0 { 1.0 } else { self.train.rows() as f64 / (counts.len() * n) as f64 };
        counts.iter().map(weight).collect()
    }
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

/// Tokenises labelled texts, with progress; says how many were cut.
pub fn encode(what: &str, data: Dataset, tokenizer: &Tokenizer, max_length: usize) -> Result<Encoded> {
    let progress = Progress::new(&format!("tokenising {what}"), data.texts.len() as u64, &["texts"]);
    let mut encoded = tokenizer.encode(&data.texts, max_length, &|done| progress.add(&[done as u64]))?;
    encoded.labels = data.labels;
    let cut = encoded.truncated();
    let share = 100.0 * cut as f64 / encoded.rows() as f64;
    progress.finish(&match cut {
        0 => String::new(),
        _ => format!(
            "{what}: {} of {} texts cut to {max_length} tokens ({share:.1} %)",
            Count(cut as u64),
            Count(encoded.rows() as u64)
        ),
    });
    Ok(encoded)
}
