//! Evaluates a model on a labelled data set: loss and metrics.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::console::check_interrupt;
use crate::data::loader::Loader;
use crate::data::tokenize::Encoded;
use crate::error::{Error, Kind, Result};
use crate::metrics::{Metric, Metrics};
use crate::model::Model;
use crate::model::infer::Wanted;
use crate::report::log::Progress;

#[derive(Clone)]
pub struct Evaluation {
    pub metrics: Metrics,
    /// (rows, classes)
    pub logits: Vec<f32>,
    /// Loss of each row, regardless of the weights of other rows, (rows).
    pub losses: Vec<f64>,
    pub batches: usize,
    pub seconds: f64,
}

/// Runs all rows in file order, unless interrupted, in batches of at most `batch_size` rows and no more tokens than the model
/// is planned for. `class_weights` are those of the loss, which is averaged over the sum of the rows' weights. Of two classes the metrics are of `positive`.
pub fn evaluate(
    model: &mut Model,
    data: &Arc<Encoded>,
    batch_size: usize,
    class_weights: &[f64],
    positive: usize,
    what: &str,
) -> Result<Evaluation> {
    let begin = Instant::now();
    let progress = Progress::new(what, data.rows() as u64, &["texts", "tokens"]);
    let (mut logits, mut losses, mut batches) = (Vec::new(), Vec::new(), 0);
    let in_order = Loader::in_order(data.clone(), model.plan.spec.tokens, batch_size)?;
    model.infer_all(in_order.map(|batch| (batch, Wanted::LOSSES)), |batch, results| {
        check_interrupt()?;
        logits.extend(results.logits.into_iter().map(|x| x as f32));
        losses.extend(results.losses);
        batches += 1;
        progress.add(&[batch.seqs() as u64, batch.tokens() as u64]);
        Ok(())
    })?;
    let mut metrics = Metrics::from_logits(&data.labels, &logits, model.plan.config.classes(), positive)?;
    let weight: f64 = data.labels.iter().map(|&label| class_weights[label as usize]).sum();
    metrics.loss = Some(losses.iter().sum::<f64>() / weight);
    Ok(Evaluation { metrics, logits, losses, batches, seconds: begin.elapsed().as_secs_f64() })
}

/// `-log softmax(logits)[label]` of every row, (rows), of logits (rows, classes).
pub fn cross_entropy(labels: &[u32], logits: &[f32], classes: usize) -> Vec<f64> {
    let loss = |(logits, &label): (&[f32], &u32)| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let sum: f64 = logits.iter().map(|&x| (x as f64 - max).exp()).sum();
        max + sum.ln() - logits[label as usize] as f64
    };
    logits.chunks_exact(classes).zip(labels).map(loss).collect()
}

/// Parses METRIC=VALUE of `--fail-under`.
pub fn fail_under(text: &str) -> Result<(Metric, f64)> {
    let bad = |fact: String| Error::user(format!("--fail-under {text}"), fact, "write it as accuracy=0.9");
    let (name, value) = text.split_once('=').ok_or_else(|| bad("has no =".to_string()))?;
    let value = value.parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(|| bad(format!("{value} is not a number")))?;
    let metric = Metric::parse("--fail-under", name)?;
    if metric != Metric::Loss && !(0.0..=1.0).contains(&value) {
        return Err(bad(format!("{} is from 0 to 1", metric.name())));
    }
    Ok((metric, value))
}

/// An error unless the metric reaches the bound: at least, or for the loss at most.
pub fn check(metrics: Option<&Metrics>, metric: Metric, bound: f64) -> Result<()> {
    let found = metrics.and_then(|metrics| metrics.get(metric));
    if found.is_some_and(|value| value == bound || metric.better(value, bound)) {
        return Ok(());
    }
    let found = found.map_or("undefined".to_string(), |value| format!("{value:.4}"));
    let fact = format!("{} is {found}", metric.name());
    let place = format!("--fail-under {}={bound}", metric.name());
    Err(Error::new(Kind::Unusable, place, fact, "improve the model, or lower the bar"))
}

impl Evaluation {
    /// The entries of a log line: `eval_loss`, `eval_accuracy`, ... with another prefix for another data set.
    pub fn log_entry(&self, prefix: &str) -> Map<String, Value> {
        let mut entry: Map<String, Value> =
            Metric::ALL.iter().map(|&metric| (format!("{prefix}_{}", metric.name()), json!(self.metrics.get(metric)))).collect();
        entry.insert(format!("{prefix}_runtime"), json!(self.seconds));
        entry.insert(format!("{prefix}_samples_per_second"), json!(self.losses.len() as f64 / self.seconds));
        entry.insert(format!("{prefix}_steps_per_second"), json!(self.batches as f64 / self.seconds));
        entry
    }
}
