//! Evaluations compared: their metrics, with the best marked, and their curves in one plot.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::evaluation::{mean_curve, points, stairs};
use super::log::counted;
use super::page;
use super::plot::{Axis, Plot, Series, Shape, escape};
use crate::error::{Error, Result};
use crate::files::write_file;
use crate::metrics::Metric;

/// Evaluations in folders that `evaluate --output-dir` wrote.
pub struct Comparison {
    /// The folders as given, each with its metrics.json.
    runs: Vec<(String, Value)>,
}

impl Comparison {
    /// # Errors
    /// A folder without a metrics.json of an evaluation; runs whose classes differ from those of the first.
    pub fn read(folders: &[PathBuf]) -> Result<Comparison> {
        let remedy = "name folders written by evaluate --output-dir";
        let mut runs: Vec<(String, Value)> = Vec::new();
        for folder in folders {
            let path = folder.join("metrics.json");
            let json = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
            let metrics: Value =
                serde_json::from_slice(&json).map_err(|e| Error::user(path.display(), format!("not JSON: {e}"), remedy))?;
            if !metrics["labels"].is_array() || !metrics["curves"].is_object() {
                return Err(Error::user(path.display(), "not the metrics of an evaluation", remedy));
            }
            if let Some((first, of_first)) = runs.first().filter(|(_, first)| first["labels"] != metrics["labels"]) {
                let fact = format!("its classes are {}, but those of {first} are {}", metrics["labels"], of_first["labels"]);
                return Err(Error::user(path.display(), fact, "compare runs on the same classes"));
            }
            runs.push((folder.display().to_string(), metrics));
        }
        Ok(Comparison { runs })
    }

    /// The value of each run, and whether it is the best.
    fn row(&self, metric: Metric) -> Vec<Option<(f64, bool)>> {
        let values: Vec<Option<f64>> = self.runs.iter().map(|(_, metrics)| metrics[metric.name()].as_f64()).collect();
        let best = |value: f64| !values.iter().flatten().any(|&other| metric.better(other, value));
        values.iter().map(|value| value.map(|value| (value, best(value)))).collect()
    }

    /// One line per metric and one column per run, numbered as listed below; `*` marks the best.
    pub fn table(&self) -> String {
        let width = Metric::ALL.map(|metric| metric.name().len()).into_iter().max().unwrap_or(0);
        let mut text = format!("{:width$}", "");
        text += &(1..=self.runs.len()).map(|run| format!("  {:>6} ", format!("[{run}]"))).collect::<String>();
        for metric in Metric::ALL {
            text += &format!("\n{:width$}", metric.name());
            for cell in self.row(metric) {
                text += &cell
                    .map_or(format!("  {:>6} ", "-"), |(value, best)| format!("  {value:.4}{}", if best { '*' } else { ' ' }));
            }
        }
        let text: String = text.lines().map(|line| line.trim_end().to_string() + "\n").collect();
        let names: String = self.runs.iter().zip(1..).map(|((name, _), run)| format!("\n[{run}] {name}")).collect();
        text + &names
    }

    /// Writes report.html and plots/ into `folder`, which is created if missing.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let folder_of_plots = folder.join("plots");
        std::fs::create_dir_all(&folder_of_plots).map_err(|e| Error::io(&folder_of_plots, e))?;
        let plots = self.plots();
        for (name, svg) in &plots {
            write_file(&folder_of_plots.join(format!("{name}.svg")), svg.as_bytes())?;
        }
        let mut rows = String::new();
        let metrics: Vec<_> = Metric::ALL.iter().map(|&metric| self.row(metric)).collect();
        for (run, (name, _)) in self.runs.iter().enumerate() {
            rows += &format!("<tr><th>{}</th>", escape(name));
            for row in &metrics {
                rows += &match row[run] {
                    Some((value, true)) => format!("<td class=\"best\">{value:.4} ★</td>"),
                    Some((value, false)) => format!("<td>{value:.4}</td>"),
                    None => "<td>-</td>".to_string(),
                };
            }
            rows += "</tr>\n";
        }
        let head = Metric::ALL.map(|metric| format!("<th>{}</th>", metric.name().replace('_', " "))).concat();
        let body = format!(
            "<div class=\"wide\"><table class=\"figures\"><thead><tr><th></th>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n{}",
            page::plots_section(&plots)
        );
        let about = format!("{}; ★ marks the best", counted(self.runs.len(), "run"));
        write_file(&folder.join("report.html"), page::page("Runs compared", &about, &body).as_bytes())
    }

    fn plots(&self) -> Vec<(&'static str, String)> {
        let list = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect::<Vec<f64>>();
        let defined = |metrics: &Value| -> Vec<Value> {
            let curves = metrics["curves"].as_object().into_iter().flatten();
            curves.map(|(_, curve)| curve.clone()).filter(|curve| curve["roc"].is_object()).collect()
        };
        let (mut roc, mut pr) = (Vec::new(), Vec::new());
        for (name, metrics) in &self.runs {
            let area = |metric: Metric| metrics[metric.name()].as_f64().map_or("-".to_string(), |area| format!("{area:.4}"));
            let curves = defined(metrics);
            let rates = |curve: &Value| points(&list(&curve["roc"]["fpr"]), &list(&curve["roc"]["tpr"]));
            let drawn = match &curves[..] {
                [] => Vec::new(),
                [curve] => rates(curve),
                all => mean_curve(&all.iter().map(rates).collect::<Vec<_>>()),
            };
            roc.push(Series::new(format!("{name} {}", area(Metric::RocAuc)), Shape::Line, drawn));
            if let [curve] = &curves[..] {
                let drawn = stairs(&list(&curve["pr"]["recall"]), &list(&curve["pr"]["precision"]));
                pr.push(Series::new(format!("{name} {}", area(Metric::AveragePrecision)), Shape::Line, drawn));
            }
        }
        roc.push(Series::new("chance 0.5", Shape::Guide, vec![[0.0, 0.0], [1.0, 1.0]]));
        let two = self.runs.iter().all(|(_, metrics)| metrics["labels"].as_array().is_some_and(|labels| labels.len() == 2));
        let title = if two { "ROC curve, area" } else { "ROC curve, mean of the classes" };
        let (x, y) = (Axis::unit("false positive rate"), Axis::unit("true positive rate"));
        let mut plots = vec![("roc", Plot { title: title.to_string(), x, y, series: roc }.svg())];
        if two {
            let title = "Precision and recall, average precision".to_string();
            let (x, y) = (Axis::unit("recall"), Axis::unit("precision"));
            plots.push(("precision_recall", Plot { title, x, y, series: pr }.svg()));
        }
        plots
    }
}
