//! Labelled scores written by `predict` or another program, to be evaluated without a model: JSON lines `{"label": 1, "scores":
//! [0.1, 0.9]}` or `{"label": "POSITIVE", "scores": [{"label": "POSITIVE", "score": 0.9}, ...]}`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::console::note;
use crate::data::dataset::{self, ModelClasses, Table};
use crate::error::{Error, Result};
use crate::metrics::softmax;
use crate::report::log::counted;

#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Names of the classes, in order of their index: LABEL_0, LABEL_1, ... if labels and scores are bare numbers; else sorted,
    /// numbers by value.
    pub names: Vec<String>,
    /// The row's own id, else its number from 0, (rows)
    pub ids: Vec<Value>,
    /// (rows)
    pub labels: Vec<u32>,
    /// Probabilities, (rows, classes).
    pub scores: Vec<f64>,
}

impl Scored {
    /// Reads a file.
    ///
    /// # Errors
    /// A line that is not an object with `label` and `scores`; rows with different classes; an unknown label.
    pub fn read(path: &Path) -> Result<Scored> {
        let text = dataset::read_text(path, dataset::open(path)?)?;
        let (mut ids, mut labels, mut lines, mut scores) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut classes: Option<Classes> = None;
        for (line, json) in (1..).zip(text.lines()).filter(|(_, json)| !json.trim().is_empty()) {
            let place = format!("{}:{line}", path.display());
            let mut object = dataset::json_object(json, &place)?;
            let label = match object.swap_remove("label") {
                Some(Value::String(label)) => label,
                Some(label @ (Value::Number(_) | Value::Bool(_))) => label.to_string(),
                Some(Value::Null) | None => String::new(),
                Some(_) => return Err(Error::user(place, "the label is a list or an object", "give an index or a name")),
            };
            let Some(Value::Array(row)) = object.swap_remove("scores") else {
                let remedy = "give one score per class, as predict --top-k 0 does";
                return Err(Error::user(place, "there is no list of scores", remedy));
            };
            if classes.is_none() {
                classes = Some(Classes::of(&row).ok_or_else(|| misfit(&place, "the scores are neither numbers nor objects"))?);
            }
            scores.extend(classes.as_ref().expect("set above").order(&row).map_err(|fact| misfit(&place, &fact))?);
            ids.push(object.swap_remove("id").unwrap_or(Value::from(labels.len())));
            labels.push(label);
            lines.push(line);
        }
        let Some(classes) = classes else {
            return Err(Error::user(path.display(), "no rows", "give one JSON object per line"));
        };
        let names = classes.names(path, &labels)?;
        to_probabilities(path, &lines, &mut scores, names.len())?;
        let table = Table::labelled(path, labels, lines);
        let (classes, data) = dataset::classify(vec![table], ModelClasses::Fixed(&names), None)?;
        classes.notes.iter().for_each(|line| note(format!("note: {line}")));
        let labels = data.into_iter().next().expect("one for the table").labels;
        Ok(Scored { names, ids, labels, scores })
    }
}

/// Makes probabilities of the scores of a file, (rows, classes): rows that sum to 1 but for rounding are scaled to 1; scores that
/// cannot be probabilities are taken as logits.
///
/// # Errors
/// Percentages; single rows that do not sum to 1.
fn to_probabilities(path: &Path, lines: &[usize], scores: &mut [f64], classes: usize) -> Result<()> {
    let sum = |row: &[f64]| row.iter().sum::<f64>();
    let sums_to = |row: &[f64], whole: f64| {
        let slack = rounding(row).min(0.5 * whole).max(1e-3 * whole);
        row.iter().all(|&x| (0.0..=1.001 * whole).contains(&x)) && sum(row) > 0.0 && (sum(row) - whole).abs() <= slack
    };
    let rows = || scores.chunks_exact(classes);
    let misfit = rows().position(|row| !sums_to(row, 1.0));
    let Some(misfit) = misfit else {
        for row in scores.chunks_exact_mut(classes) {
            let sum = sum(row);
            if (sum - 1.0).abs() > 1e-6 {
                row.iter_mut().for_each(|x| *x /= sum);
            }
        }
        return Ok(());
    };
    let place = format!("{}:{}", path.display(), lines[misfit]);
    // Whole percentages may sum to 99 or 101. Counts and thousandths have one sum in all rows, too.
    let whole = sum(&scores[..classes]);
    let sums_to_whole = |row: &[f64]| row.iter().all(|&x| x >= 0.0) && (sum(row) - whole).abs() <= 0.5 * classes as f64;
    let is_percent = (whole - 100.0).abs() <= 0.5 * classes as f64;
    if whole > 0.5 * classes as f64 + 1.5 && rows().all(sums_to_whole) && (is_percent || lines.len() > 1) {
        let (what, whole) = if is_percent { ("percentages", 100.0) } else { ("shares of one sum", whole.round()) };
        let fact = format!("the scores are {what}: they sum to about {whole} in every row");
        return Err(Error::user(place, fact, format!("divide them by {whole}")));
    }
    let total = sum(&scores[misfit * classes..][..classes]);
    let fitting = rows().filter(|row| sums_to(row, 1.0)).count();
    if 2 * fitting > lines.len() && scores.iter().all(|x| (0.0..=1.0).contains(x)) {
        let fact = format!("the scores sum to {total:.4}, but those of other rows to 1");
        return Err(Error::user(place, fact, "give probabilities that sum to 1, or logits, in every row"));
    }
    let why = match scores[misfit * classes..][..classes].iter().find(|&&score| score < 0.0) {
        Some(score) => format!("the score {score} is negative"),
        None => format!("the scores sum to {total:.4}"),
    };
    note(format!("note: {place}: {why}, so the scores of all rows are taken as logits; their softmax is used"));
    for row in scores.chunks_exact_mut(classes) {
        let logits: Vec<f32> = row.iter().map(|&x| x as f32).collect();
        row.copy_from_slice(&softmax(&logits));
    }
    Ok(())
}

/// The most that rounding each score to its number of decimals can change their sum; 0 for whole numbers.
fn rounding(row: &[f64]) -> f64 {
    let decimals = |x: &f64| x.to_string().split_once('.').map_or(0, |(_, decimals)| decimals.len());
    match row.iter().map(decimals).max() {
        None | Some(0) => 0.0,
        Some(decimals) => row.len() as f64 * 0.5 * 0.1f64.powi(decimals as i32) + 1e-9,
    }
}

fn misfit(place: &str, fact: &str) -> Error {
    Error::user(place, fact, "give every row the same classes, as numbers or as objects with label and score")
}

/// The classes as the first row gives them.
enum Classes {
    Counted(usize),
    /// Sorted.
    Named(Vec<String>),
}

impl Classes {
    fn of(row: &[Value]) -> Option<Classes> {
        if row.iter().all(Value::is_number) && !row.is_empty() {
            return Some(Classes::Counted(row.len()));
        }
        let mut names = row.iter().map(|scored| Some(scored["label"].as_str()?.to_string())).collect::<Option<Vec<_>>>()?;
        names.sort_by_key(|name| (name.trim_start_matches("LABEL_").parse::<u64>().ok(), name.clone()));
        Some(Classes::Named(names)).filter(|_| !row.is_empty())
    }

    /// The scores of a row, in the order of the classes.
    fn order(&self, row: &[Value]) -> std::result::Result<Vec<f64>, String> {
        let scores = match self {
            Classes::Counted(classes) if *classes == row.len() => row.iter().map(Value::as_f64).collect(),
            Classes::Named(names) if names.len() == row.len() => {
                if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                    return Err(format!("the class \"{}\" has two scores", twice[0]));
                }
                let of = |name: &String| row.iter().find(|scored| scored["label"] == **name)?["score"].as_f64();
                names.iter().map(of).collect()
            }
            Classes::Counted(classes) => return Err(format!("{}, but the first row has {classes}", counted(row.len(), "score"))),
            Classes::Named(names) => {
                return Err(format!("{}, but the first row has {}", counted(row.len(), "score"), names.len()));
            }
        };
        let scores: Option<Vec<f64>> = scores;
        scores.ok_or_else(|| "the classes of the scores differ from those of the first row".to_string())
    }

    fn names(self, path: &Path, labels: &[String]) -> Result<Vec<String>> {
        let classes = match self {
            Classes::Named(names) => return Ok(names),
            Classes::Counted(classes) => classes,
        };
        let numbered: Vec<String> = (0..classes).map(|class| format!("LABEL_{class}")).collect();
        if labels.iter().all(|label| label.is_empty() || label.parse::<f64>().is_ok() || numbered.contains(label)) {
            return Ok(numbered);
        }
        let distinct = BTreeSet::from_iter(labels.iter().filter(|label| !label.is_empty()).cloned());
        if distinct.len() != classes {
            let fact = format!("{} among the labels, but {} per row", counted(distinct.len(), "name"), counted(classes, "score"));
            return Err(Error::user(path.display(), fact, "give labels as indices, or scores as objects with label and score"));
        }
        Ok(distinct.into_iter().collect())
    }
}
