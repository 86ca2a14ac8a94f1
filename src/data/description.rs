//! A look at labelled texts before training: classes, lengths, repeated texts, examples.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::data::dataset::{Dataset, Labelled, overlap};
use crate::error::Result;

/// Everything that `describe` reports.
#[derive(Debug, Serialize)]
pub struct Description {
    /// How the files were read, one line each.
    pub notes: Vec<String>,
    /// What lengths count: words or tokens.
    pub unit: Unit,
    /// Longer texts would be truncated to this many tokens; `None` for words.
    pub max_length: Option<usize>,
    /// Names of the classes, in order of their index.
    pub labels: Vec<String>,
    /// Training, then validation and test if they exist.
    pub splits: Vec<SplitSummary>,
    /// Pairs of splits that share texts.
    pub shared: Vec<Shared>,
    pub contradictions: Contradictions,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Separated by white space.
    Words,
    /// Of a model, special tokens included.
    Tokens,
}

#[derive(Debug, Serialize)]
pub struct SplitSummary {
    pub name: &'static str,
    pub texts: usize,
    /// Texts without a word.
    pub empty: usize,
    /// Texts that an earlier row of the split has too.
    pub duplicates: usize,
    /// Texts longer than `max_length`; `None` for words.
    pub truncated: Option<usize>,
    pub lengths: Lengths,
    pub histogram: Histogram,
    /// (classes), in order of index.
    pub classes: Vec<ClassSummary>,
}

#[derive(Debug, Serialize)]
pub struct ClassSummary {
    pub label: String,
    pub texts: usize,
    /// Of the texts of the split.
    pub share: f64,
    /// `None` for a class without texts, which has no examples either.
    pub lengths: Option<Lengths>,
    pub examples: Vec<Example>,
}

/// Quantiles between two lengths are interpolated, as by pandas and NumPy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lengths {
    pub min: usize,
    pub quartile_1: f64,
    pub median: f64,
    pub quartile_3: f64,
    pub percentile_95: f64,
    pub max: usize,
    pub mean: f64,
}

/// The number of texts by length.
#[derive(Debug, Serialize)]
pub struct Histogram {
    /// Lengths per bin, of which the first begins at 0.
    pub width: usize,
    pub counts: Vec<u64>,
    /// Texts longer than the last bin.
    pub longer: usize,
}

#[derive(Debug, Serialize)]
pub struct Example {
    /// What it is an example of: first, shortest or longest.
    pub which: &'static str,
    /// Of the split, from 0.
    pub row: usize,
    pub length: usize,
    pub text: String,
}

#[derive(Debug, Serialize)]
pub struct Shared {
    /// Texts of the split `of` that `with` has too.
    pub texts: usize,
    pub of: &'static str,
    pub with: &'static str,
}

/// Equal texts with different labels, in all splits.
#[derive(Debug, Default, Serialize)]
pub struct Contradictions {
    /// Different texts.
    pub texts: usize,
    /// Rows that have one of them.
    pub rows: usize,
    pub example: Option<Contradiction>,
}

#[derive(Debug, Serialize)]
pub struct Contradiction {
    pub text: String,
    /// The first row of each label.
    pub rows: Vec<LabelledRow>,
}

#[derive(Clone, Debug, Serialize)]
pub struct LabelledRow {
    pub split: &'static str,
    /// Of the split, from 0.
    pub row: usize,
    pub label: String,
}

impl Description {
    /// Describes `data`, whose texts have the lengths that `lengths` returns for each split, by its name.
    pub fn of(
        data: Labelled,
        unit: Unit,
        max_length: Option<usize>,
        lengths: impl Fn(&str, &[String]) -> Result<Vec<usize>>,
    ) -> Result<Description> {
        let splits = data.splits();
        let summary = |&(name, split): &(&'static str, &Dataset)| {
            Ok(SplitSummary::of(name, split, &data.names, &lengths(name, &split.texts)?, max_length))
        };
        let summaries = splits.iter().map(summary).collect::<Result<_>>()?;
        let pairs = splits.iter().enumerate().flat_map(|(i, with)| splits[i + 1..].iter().map(move |of| (with, of)));
        let shared = pairs.map(|((with, a), (of, b))| Shared { texts: overlap(&a.texts, &b.texts), of, with });
        Ok(Description {
            unit,
            max_length,
            splits: summaries,
            shared: shared.filter(|shared| shared.texts > 0).collect(),
            contradictions: Contradictions::among(&splits, &data.names),
            labels: data.names.clone(),
            notes: [data.guesses, data.notes].concat(),
        })
    }
}

impl SplitSummary {
    fn of(name: &'static str, data: &Dataset, names: &[String], lengths: &[usize], max_length: Option<usize>) -> SplitSummary {
        let rows = data.texts.len();
        let mut by_class = vec![Vec::new(); names.len()];
        data.labels.iter().enumerate().for_each(|(row, &label)| by_class[label as usize].push(row));
        let class = |(label, mine): (&String, &Vec<usize>)| {
            let example = |which, row: usize| Example { which, row, length: lengths[row], text: data.texts[row].clone() };
            let [first, shortest, longest] = [
                mine.first(),
                mine.iter().min_by_key(|&&row| lengths[row]),
                // The first one of several.
                mine.iter().rev().max_by_key(|&&row| lengths[row]),
            ];
            let examples = [("first", first), ("shortest", shortest), ("longest", longest)];
            ClassSummary {
                label: label.clone(),
                texts: mine.len(),
                share: mine.len() as f64 / rows as f64,
                lengths: Lengths::of(mine.iter().map(|&row| lengths[row])),
                examples: examples.into_iter().filter_map(|(which, row)| Some(example(which, *row?))).collect(),
            }
        };
        let all = Lengths::of(lengths.iter().copied()).expect("a table has a row");
        SplitSummary {
            name,
            texts: rows,
            empty: data.texts.iter().filter(|text| text.trim().is_empty()).count(),
            duplicates: rows - data.texts.iter().collect::<HashSet<_>>().len(),
            truncated: max_length.map(|most| lengths.iter().filter(|&&length| length > most).count()),
            lengths: all,
            histogram: Histogram::of(lengths),
            classes: names.iter().zip(&by_class).map(class).collect(),
        }
    }
}

impl Lengths {
    /// `None` without texts.
    fn of(lengths: impl Iterator<Item = usize>) -> Option<Lengths> {
        let mut sorted: Vec<usize> = lengths.collect();
        sorted.sort_unstable();
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let quantile = |share: f64| quantile(&sorted, share);
        Some(Lengths {
            min,
            quartile_1: quantile(0.25),
            median: quantile(0.5),
            quartile_3: quantile(0.75),
            percentile_95: quantile(0.95),
            max,
            mean: sorted.iter().sum::<usize>() as f64 / sorted.len() as f64,
        })
    }
}

/// Interpolated linearly between the two nearest values of a sorted list that is not empty.
fn quantile(sorted: &[usize], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let [low, high] = [at.floor(), at.ceil()].map(|at| sorted[at as usize] as f64);
    low + (high - low) * at.fract()
}

impl Histogram {
    /// In about 40 bins. A few texts that are much longer than the others are counted apart.
    fn of(lengths: &[usize]) -> Histogram {
        const BINS: usize = 40;
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        let (max, nearly_all) = (sorted[sorted.len() - 1], quantile(&sorted, 0.99).ceil() as usize);
        let shown = if max > nearly_all + nearly_all / 4 { nearly_all } else { max };
        let width = shown / BINS + 1;
        let mut counts = vec![0; shown / width + 1];
        let mut longer = 0;
        for length in sorted {
            match counts.get_mut(length / width) {
                Some(count) => *count += 1,
                None => longer += 1,
            }
        }
        Histogram { width, counts, longer }
    }
}

impl Contradictions {
    fn among(splits: &[(&'static str, &Dataset)], names: &[String]) -> Contradictions {
        let rows = || {
            splits.iter().flat_map(|&(split, data)| {
                let rows = data.texts.iter().zip(&data.labels).enumerate();
                rows.map(move |(row, (text, &label))| (split, row, text.as_str(), &names[label as usize]))
            })
        };
        // Of each text, the first row of each label, and the number of rows.
        let mut seen: HashMap<&str, (Vec<LabelledRow>, usize)> = HashMap::new();
        for (split, row, text, label) in rows() {
            let (firsts, count) = seen.entry(text).or_default();
            *count += 1;
            if firsts.iter().all(|other| other.label != *label) {
                firsts.push(LabelledRow { split, row, label: label.clone() });
            }
        }
        let example = rows().find_map(|(_, _, text, _)| {
            let (firsts, _) = &seen[text];
            (firsts.len() > 1).then(|| Contradiction { text: text.to_string(), rows: firsts.clone() })
        });
        let counts: Vec<usize> = seen.values().filter(|(firsts, _)| firsts.len() > 1).map(|&(_, rows)| rows).collect();
        Contradictions { texts: counts.len(), rows: counts.iter().sum(), example }
    }
}
