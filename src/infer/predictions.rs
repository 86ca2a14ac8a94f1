//! Predictions as lines: JSON, CSV, or text.

use std::ffi::OsStr;
use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Prediction;
use crate::data::dataset::plain;
use crate::data::inputs::Input;
use crate::error::{Error, Result, is_control};
use crate::metrics::{positive_class, softmax};
use crate::report::log::{beginning, shortened};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One object a line: id, label and score (or scores), tokens, truncated
    Jsonl,
    /// id,label,score,tokens,truncated; one line per requested label, highest first
    Csv,
    /// Label, score and the beginning of the text, for people
    Text,
}

impl Format {
    /// That of a file of this name, or of standard output.
    ///
    /// # Errors
    /// The name is one of a format that predictions do not have.
    pub fn of(output: Option<&Path>) -> Result<Format> {
        match output.and_then(Path::extension).map(OsStr::to_string_lossy).as_deref() {
            None | Some("jsonl" | "json" | "ndjson") => Ok(Format::Jsonl),
            Some("csv") => Ok(Format::Csv),
            Some("txt") => Ok(Format::Text),
            Some(ending) => {
                let fact = format!("predictions have no format for .{ending}");
                Err(Error::user("--output", fact, "name a .jsonl, .csv or .txt file, or pass --format"))
            }
        }
    }
}

/// A class and its probability, or its logit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ranked<'a> {
    pub label: &'a str,
    pub score: f32,
}

/// All classes, highest first; ties in their order.
pub fn ranked<'a>(labels: &'a [String], logits: &[f32], raw: bool) -> Vec<Ranked<'a>> {
    let scores: Vec<f32> = if raw { logits.to_vec() } else { softmax(logits).into_iter().map(|p| p as f32).collect() };
    let mut order: Vec<usize> = (0..labels.len()).collect();
    // By logits: distinct logits may have equal probabilities.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.into_iter().map(|class| Ranked { label: &labels[class], score: scores[class] }).collect()
}

/// Formats predictions.
pub struct Lines {
    pub format: Format,
    pub labels: Vec<String>,
    /// Number of labels per row; 0 means all.
    pub top_k: usize,
    /// Logits instead of probabilities.
    pub raw: bool,
    /// How good each class is, if rows get stars.
    pub stars: Option<Vec<f64>>,
    /// Whether predictions carry the columns of their rows.
    pub keep_columns: bool,
    /// Columns of a line for people, at most.
    pub columns: usize,
}

/// `{"id":7,"label":"POSITIVE","score":0.9987,"tokens":41,"truncated":false}`, or with several labels
/// `{"id":7,"scores":[{"label":"POSITIVE","score":0.9987},...],"tokens":41,"truncated":false}`. Kept columns are an object,
/// `input`.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Map<String, Value>>,
    #[serde(flatten)]
    best: Option<Ranked<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<&'a [Ranked<'a>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stars: Option<u32>,
    tokens: usize,
    truncated: bool,
}

impl Lines {
    /// The header with its line end; empty except for CSV. Kept columns, those of the first row, come before the prediction; one
    /// with a name of the prediction's is called input_NAME, or input_input_NAME if there is an input_NAME already.
    pub fn header(&self, kept: &[String]) -> String {
        if self.format != Format::Csv {
            return String::new();
        }
        let mut own = vec!["id", "label", "score", "tokens", "truncated"];
        own.extend(self.stars.as_ref().map(|_| "stars"));
        let renamed = |name: &String| {
            let mut names = (1..).map(|times| "input_".repeat(times) + name);
            names.find(|name| !own.contains(&name.as_str()) && !kept.contains(name)).expect("names do not end")
        };
        let name = |name: &String| if own.contains(&name.as_str()) { renamed(name) } else { name.clone() };
        let kept: Vec<String> = kept.iter().map(name).collect();
        record(kept.iter().map(String::as_str).chain(own))
    }

    /// The lines of one row, each with its line end.
    pub fn lines(&self, input: &Input, kept: &[String], prediction: &Prediction) -> String {
        let Prediction { logits, tokens, truncated } = prediction;
        let mut scores = ranked(&self.labels, logits, self.raw);
        scores.truncate(if self.top_k == 0 { usize::MAX } else { self.top_k });
        let stars = self.stars.as_ref().map(|weights| stars(&softmax(logits), weights));
        match self.format {
            Format::Jsonl => {
                let single = self.top_k == 1;
                let (best, scores) = (single.then_some(scores[0]), (!single).then_some(&scores[..]));
                let input_columns = self.keep_columns.then(|| input.row());
                let line =
                    Line { id: &input.id, input: input_columns, best, scores, stars, tokens: *tokens, truncated: *truncated };
                serde_json::to_string(&line).expect("every part is JSON") + "\n"
            }
            Format::Csv => {
                let (id, stars) = (cell(&input.id), stars.map(|stars| stars.to_string()));
                let row = if kept.is_empty() { Map::new() } else { input.row() };
                let before: Vec<String> = kept.iter().map(|name| row.get(name).map_or(String::new(), cell)).collect();
                let line = |scored: &Ranked| {
                    let fields = [&id, scored.label, &scored.score.to_string(), &tokens.to_string(), &truncated.to_string()];
                    record(before.iter().map(String::as_str).chain(fields).chain(stars.as_deref()))
                };
                scores.iter().map(line).collect()
            }
            Format::Text => {
                let most = (self.columns / 3).max(12);
                let width = self.labels.iter().map(|label| label.chars().count().min(most)).max().unwrap_or(0);
                let mut line = String::new();
                for scored in &scores {
                    line += &format!("{:<width$} {:.4}  ", shortened(scored.label, most), scored.score);
                }
                if let Some(stars) = stars {
                    line += &format!("{stars:>2}/10  ");
                }
                let room = self.columns.saturating_sub(line.chars().count()).max(20);
                line += &input.text().map_or_else(|| format!("id {}", input.id), |text| beginning(text, room));
                // A text may contain line ends and control sequences of terminals.
                line.trim_end().replace(is_control, " ") + "\n"
            }
        }
    }
}

/// A value as a field of CSV.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A record of CSV with its line end.
fn record<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(fields).expect("writing to memory succeeds");
    String::from_utf8(csv.into_inner().expect("writing to memory succeeds")).expect("all fields are UTF-8")
}

/// 1 to 10 stars for the probabilities of the classes.
pub fn stars(probabilities: &[f64], weights: &[f64]) -> u32 {
    let good: f64 = probabilities.iter().zip(weights).map(|(p, weight)| p * weight).sum();
    (10.0 * good).round().max(1.0) as u32
}

/// How good each class is, from 0 to 1. `None` unless its names say so in English (negative and positive, perhaps with neutral;
/// 1 star to 5 stars, or 1 to 5 or 10) or `positive` is the good one of two.
///
/// # Errors
/// A positive class that is none of two.
pub fn star_weights(labels: &[String], positive: Option<&str>) -> Result<Option<Vec<f64>>> {
    if positive.is_some() {
        let good = positive_class(positive, labels)?;
        return Ok(Some((0..labels.len()).map(|class| f64::from(class == good)).collect()));
    }
    let plain: Vec<String> = labels.iter().map(|label| plain(label)).collect();
    let has = |name: &str| plain.iter().any(|label| label == name);
    let sentiment = |label: &String| match label.as_str() {
        "negative" => Some(0.0),
        "neutral" => Some(0.5),
        "positive" => Some(1.0),
        _ => None,
    };
    let opposites = has("positive") && has("negative");
    if let Some(weights) = plain.iter().map(sentiment).collect::<Option<Vec<_>>>().filter(|_| opposites) {
        return Ok(Some(weights));
    }
    let count = |label: &String| {
        let digits = label.strip_suffix("stars").or_else(|| label.strip_suffix("star"));
        Some((digits.unwrap_or(label).trim().parse::<u32>().ok()?, digits.is_some()))
    };
    let lower: Vec<String> = labels.iter().map(|label| label.to_lowercase()).collect();
    let Some(counts) = lower.iter().map(count).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let mut sorted: Vec<u32> = counts.iter().map(|(stars, _)| *stars).collect();
    sorted.sort_unstable();
    let most = sorted.len() as u32;
    let are_stars = counts.iter().all(|(_, named)| *named) || [5, 10].contains(&most);
    let is_scale = are_stars && sorted.into_iter().eq(1..=most);
    Ok(is_scale.then(|| counts.iter().map(|(stars, _)| f64::from(*stars) / f64::from(most)).collect()))
}
