//! From the labels in files to class names, and to indices into these names.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Dataset, Table, brief, list};
use crate::error::{Error, Result};

impl Table {
    /// Converts the raw labels to indices into `names`. Either all labels are names, or all are indices.
    pub fn into_dataset(self, names: &[String]) -> Result<Dataset> {
        let distinct = self.distinct_labels()?;
        let class = classes(distinct.iter().map(|l| l.0), names).map_err(|misfit| {
            let row = distinct.iter().find(|l| l.0 == misfit).expect("a misfit is one of the labels").1;
            let fact = match number(misfit) {
                Some(n) if n.fract() != 0.0 => format!("the label {} is not a whole number", brief(misfit)),
                Some(n) if n < 0.0 => format!("the label {} is negative", brief(misfit)),
                Some(_) => {
                    format!("the label {} is out of range: the {} classes are numbered from 0", brief(misfit), names.len())
                }
                None => format!("the label \"{}\" is not one of the classes", brief(misfit)),
            };
            Error::user(self.place(row), fact, format!("the classes are {}", list(names)))
        })?;
        let labels = self.labels.iter().flatten().map(|label| class[label.trim()]).collect();
        Ok(Dataset { texts: self.texts, labels })
    }

    /// An error if there is one class alone, from which nothing can be learnt.
    pub fn check_classes(&self) -> Result<()> {
        match self.distinct_labels()?[..] {
            [(label, _)] => {
                let fact = format!("every label is \"{}\"", brief(label));
                Err(Error::user(self.path().display(), fact, "training needs at least two classes"))
            }
            _ => Ok(()),
        }
    }

    /// Each distinct label, trimmed, with the first row that has it, in order of appearance.
    fn distinct_labels(&self) -> Result<Vec<(&str, usize)>> {
        let Some(labels) = &self.labels else {
            let fact = format!("no label column among {}", list(&self.column_names));
            return Err(Error::user(self.path().display(), fact, "name it with --label-column"));
        };
        let mut seen = HashSet::new();
        let distinct: Vec<_> =
            labels.iter().enumerate().map(|(row, label)| (label.trim(), row)).filter(|(label, _)| seen.insert(*label)).collect();
        match distinct.iter().find(|(label, _)| label.is_empty()) {
            Some((_, row)) => Err(Error::user(self.place(*row), "the label is missing", "give it, or remove the row")),
            None => Ok(distinct),
        }
    }
}

/// Chooses the class names of these tables:
/// `model` if every label is one of these names or an index into them; else the names given by the files;
/// else LABEL_0, LABEL_1, ... if the labels are exactly 0, 1, ...; else the labels themselves, sorted (numbers by value). Pass
/// `None` for a model without label names.
///
/// Errors: a missing label or label column, a fractional or negative label, files that name different classes.
pub fn class_names(tables: &[&Table], model: Option<&[String]>) -> Result<Vec<String>> {
    let mut labels = Vec::new();
    for table in tables {
        labels.extend(table.distinct_labels()?.into_iter().map(|(label, row)| (label, *table, row)));
    }
    if let Some(names) = model.filter(|names| classes(labels.iter().map(|l| l.0), names).is_ok()) {
        return Ok(names.to_vec());
    }
    let mut given = tables.iter().filter_map(|table| Some((table, table.class_names.as_ref()?)));
    if let Some((first, names)) = given.next() {
        return match given.find(|(_, others)| *others != names) {
            None => Ok(names.clone()),
            Some((other, others)) => {
                let fact =
                    format!("its classes are {}, but those of {} are {}", list(others), first.path().display(), list(names));
                Err(Error::user(other.path().display(), fact, "give files with the same classes"))
            }
        };
    }
    if labels.iter().any(|l| number(l.0).is_none()) {
        return Ok(BTreeSet::from_iter(labels.iter().map(|l| l.0)).into_iter().map(String::from).collect());
    }
    let mut values = BTreeSet::new();
    for (label, table, row) in labels {
        let remedy = "number the classes from 0, or name them";
        match whole(label) {
            Some(value) if value >= 0 => values.insert(value),
            Some(_) => return Err(Error::user(table.place(row), format!("the label {} is negative", brief(label)), remedy)),
            None => {
                return Err(Error::user(table.place(row), format!("the label {} is not a whole number", brief(label)), remedy));
            }
        };
    }
    let counted = values.iter().copied().eq(0..values.len() as i64);
    Ok(values.iter().map(|value| if counted { format!("LABEL_{value}") } else { value.to_string() }).collect())
}

/// The class of each distinct label, or the first label that is neither a name nor an index.
fn classes<'a>(
    labels: impl Iterator<Item = &'a str> + Clone,
    names: &[String],
) -> std::result::Result<HashMap<&'a str, u32>, &'a str> {
    let by_name: HashMap<&str, u32> = names.iter().zip(0..).map(|(name, class)| (name.as_str(), class)).collect();
    // "1.0" is the class named "1".
    let named = |label: &str| by_name.get(label).or_else(|| by_name.get(whole(label)?.to_string().as_str())).copied();
    let index = |label: &str| whole(label).and_then(|i| u32::try_from(i).ok()).filter(|&i| (i as usize) < names.len());
    let all =
        |class: &dyn Fn(&str) -> Option<u32>| labels.clone().map(|label| Some((label, class(label)?))).collect::<Option<_>>();
    all(&named).or_else(|| all(&index)).ok_or_else(|| {
        let misfit = labels.clone().find(|label| named(label).is_none() && index(label).is_none());
        misfit.or_else(|| labels.clone().find(|label| named(label).is_none())).expect("labels that all fit were mapped")
    })
}

/// A label written in digits, with an optional sign and decimal point; beyond 1e15 it is a name.
fn number(label: &str) -> Option<f64> {
    let digits = label.bytes().all(|b| b.is_ascii_digit() || b"+-.".contains(&b));
    if digits { label.parse().ok().filter(|n: &f64| n.abs() < 1e15) } else { None }
}

fn whole(label: &str) -> Option<i64> {
    number(label).filter(|n| n.fract() == 0.0).map(|n| n as i64)
}
