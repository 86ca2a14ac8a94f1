//! A model run over a labelled data set: its loss and its metrics.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::metrics::{Metric, Metrics};
use crate::data::loader::Loader;
use crate::data::tokenize::Encoded;
use crate::error::Result;
use crate::model::Model;
use crate::report::log::Progress;

#[derive(Clone)]
pub struct Evaluation {
    pub metrics: Metrics,
    /// (rows, classes)
    pub logits: Vec<f32>,
    /// Of each row, unweighted by the others, (rows).
    pub losses: Vec<f64>,
    pub seconds: f64,
}

/// Runs all rows in file order. `class_weights` are those of the loss, whose mean is over the rows' summed weights.
pub fn evaluate(
    model: &mut Model,
    data: &Arc<Encoded>,
    batch_size: usize,
    class_weights: &[f64],
    what: &str,
) -> Result<Evaluation> {
    let begin = Instant::now();
    let progress = Progress::new(what, data.rows() as u64, &["reviews", "tokens"]);
    let (mut logits, mut losses) = (Vec::new(), Vec::new());
    for batch in Loader::new(data.clone(), (0..data.rows() as u32).collect(), batch_size, 0) {
        let (batch_logits, batch_losses) = model.infer(&batch)?;
        logits.extend(batch_logits.into_iter().map(|x| x as f32));
        losses.extend(batch_losses);
        progress.add(&[batch.seqs() as u64, batch.rows() as u64]);
    }
    let mut metrics = Metrics::from_logits(&data.labels, &logits, model.plan.config.classes())?;
    let weight: f64 = data.labels.iter().map(|&label| class_weights[label as usize]).sum();
    metrics.loss = Some(losses.iter().sum::<f64>() / weight);
    Ok(Evaluation { metrics, logits, losses, seconds: begin.elapsed().as_secs_f64() })
}

impl Evaluation {
    /// The figures that a log line holds: `eval_loss`, `eval_accuracy`, ... with another prefix for another data set.
    pub fn log_entry(&self, prefix: &str) -> Map<String, Value> {
        let mut entry: Map<String, Value> =
            Metric::ALL.iter().map(|&metric| (format!("{prefix}_{}", metric.name()), json!(self.metrics.get(metric)))).collect();
        entry.insert(format!("{prefix}_runtime"), json!(self.seconds));
        entry.insert(format!("{prefix}_samples_per_second"), json!(self.losses.len() as f64 / self.seconds));
        entry
    }

    /// "loss 0.3479  accuracy 0.8520 ..." for people.
    pub fn summary(&self) -> String {
        let figure = |&metric: &Metric| match self.metrics.get(metric) {
            Some(value) => format!("{} {value:.4}", metric.name()),
            None => format!("{} -", metric.name()),
        };
        Metric::ALL.iter().map(figure).collect::<Vec<_>>().join("  ")
    }
}
