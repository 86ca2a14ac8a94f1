//! The curves of a training run, drawn from its log: loss, metrics, learning rate and gradient norm.

use std::path::Path;

use serde_json::Value;

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
pub fn write(run: &Path, log: &[Value]) -> Result<()> {
    let folder = run.join("plots");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    for (name, (title, label, lines)) in NAMES.iter().zip(LINES) {
        let series: Vec<Series> = lines
            .iter()
            .map(|&(name, key, shape)| {
                let point = |entry: &Value| Some([entry["step"].as_f64()?, entry[key].as_f64()?]);
                Series::new(name, shape, log.iter().filter_map(point).collect())
            })
            .filter(|series| !series.points.is_empty())
            .collect();
        if !series.is_empty() {
            let y = if title == "Loss" { Axis::from_zero(label) } else { Axis::new(label) };
            let plot = Plot { title: title.to_string(), x: Axis::from_zero("updates"), y, series };
            write_file(&folder.join(format!("{name}.svg")), plot.svg().as_bytes())?;
        }
    }
    Ok(())
}
