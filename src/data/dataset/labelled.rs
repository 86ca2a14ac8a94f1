//! The splits of a run, read alike and labelled with the same classes.

use super::{Classes, Dataset, ModelClasses, Options, Splits, Table, classify};
use crate::console::noted;
use crate::error::{Result, is_control};

#[derive(Debug)]
pub struct Labelled {
    /// Names of the classes, in order of their index.
    pub names: Vec<String>,
    /// What was guessed about the files, one line each, already printed.
    pub guesses: Vec<String>,
    /// How the files were read, one line each.
    pub notes: Vec<String>,
    pub train: Dataset,
    pub validation: Option<Dataset>,
    pub test: Option<Dataset>,
}

impl Labelled {
    /// Reads the files of every split; `given` is `--label-names`. With `test_may_lack_labels` a test split without labels is
    /// left out.
    pub fn read(
        files: &Splits,
        options: &Options,
        test_may_lack_labels: bool,
        model: ModelClasses,
        given: Option<&[String]>,
    ) -> Result<Labelled> {
        let read = |paths: &[_]| (!paths.is_empty()).then(|| Table::read_all(paths, options)).transpose();
        let read = || Ok((Table::read_all(&files.train, options)?, read(&files.validation)?, read(&files.test)?));
        let (tables, guesses) = noted(read);
        let (train, validation, mut test) = tables?;
        let mut notes = Vec::new();
        let lacks_labels = |table: &mut Table| test_may_lack_labels && (table.is_unlabelled() || !table.has_labels_like(&train));
        if let Some(table) = test.take_if(lacks_labels) {
            notes.push(format!("note: {}: the test split has no labels, and is left out", table.path().display()));
        }
        let (has_validation, has_test) = (validation.is_some(), test.is_some());
        let tables: Vec<Table> = [Some(train), validation, test].into_iter().flatten().collect();
        notes.extend(tables.iter().map(|table| format!("data: {}", table.columns_in_words().replace(is_control, " "))));
        let (Classes { names, notes: labels }, datasets) = classify(tables, model, given)?;
        notes.extend(labels.into_iter().map(|line| format!("note: {line}")));
        let mut datasets = datasets.into_iter();
        Ok(Labelled {
            names,
            guesses,
            notes,
            train: datasets.next().expect("there is training data"),
            validation: has_validation.then(|| datasets.next()).flatten(),
            test: has_test.then(|| datasets.next()).flatten(),
        })
    }

    /// The splits that exist, by name.
    pub fn splits(&self) -> Vec<(&'static str, &Dataset)> {
        let splits = [("training", Some(&self.train)), ("validation", self.validation.as_ref()), ("test", self.test.as_ref())];
        splits.into_iter().filter_map(|(name, data)| Some((name, data?))).collect()
    }
}
