//! The curves of a training run, drawn from its log: loss, metrics, learning rate and gradient norm.

use std::path::Path;

use serde_json::Value;

use super::history::Entry;
use super::plot::{Axis, Plot, Series, Shape};
use crate::error::{Error, Result};
use crate::files::write_file;

/// Names of the plots in plots/, without .svg.
pub const NAMES: [&str; 4] = ["loss", "metrics", "learning_rate", "grad_norm"];

/// Name of a series, its key in the log, and its shape.
type Line = (&'static str, &'static str, Shape);

const LINES: [(&str, &str, &[Line]); NAMES.len()] = [
    ("Loss", "cross-entropy", &[("training", "loss", Shape::Line), ("validation", "eval_loss", Shape::Dots)]),
    (
        "Metrics on the validation data",
        "",
        &[
            ("accuracy", "eval_accuracy", Shape::Dots),
            ("precision", "eval_precision", Shape::Dots),
            ("recall", "eval_recall", Shape::Dots),
            ("F1", "eval_f1", Shape::Dots),
            ("ROC AUC", "eval_roc_auc", Shape::Dots),
            ("average precision", "eval_average_precision", Shape::Dots),
        ],
    ),
    ("Learning rate", "learning rate", &[("", "learning_rate", Shape::Line)]),
    ("Gradient norm before clipping", "norm", &[("", "grad_norm", Shape::Line)]),
];

/// Draws the entries of a log into the folder `plots` of a run; plots without data are left out.
pub fn write(run: &Path, log: impl Iterator<Item = Entry>) -> Result<()> {
    let folder = run.join("plots");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let mut points = LINES.map(|(_, _, lines)| vec![Vec::new(); lines.len()]);
    for entry in log {
        let value = |key: &str| entry.get(key).and_then(Value::as_f64);
        let Some(step) = value("step") else { continue };
        for (points, (_, _, lines)) in points.iter_mut().zip(LINES) {
            for (points, (_, key, _)) in points.iter_mut().zip(lines) {
                points.extend(value(key).map(|value| [step, value]));
            }
        }
    }
    for ((name, (title, label, lines)), points) in NAMES.iter().zip(LINES).zip(points) {
        let series = lines.iter().zip(points).map(|(&(name, _, shape), points)| Series::new(name, shape, points));
        let series: Vec<Series> = series.filter(|series| !series.points.is_empty()).collect();
        if !series.is_empty() {
            let y = if title == "Loss" { Axis::from_zero(label) } else { Axis::new(label) };
            let plot = Plot { title: title.to_string(), x: Axis::from_zero("updates"), y, series };
            write_file(&folder.join(format!("{name}.svg")), plot.svg().as_bytes())?;
        }
    }
    Ok(())
}
