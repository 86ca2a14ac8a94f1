//! Evaluations, or training runs, compared: their metrics, with the best marked, their curves in one plot, and the settings in
//! which training runs differ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::evaluation::{PRECISION_RECALL_CAPTION, ROC_CAPTION, mean_curve, points, stairs};
use super::log::{WIDTH, counted, table};
use super::page::{self, Figure};
use super::plot::{Axis, Plot, Series, Shape, escape};
use crate::data::dataset::list;
use crate::error::{Error, Result};
use crate::files::write_file;
use crate::flags::shown;
use crate::metrics::Metric;
use crate::model::config::Config;

/// Runs per table: their figures fit a terminal beside the names of the metrics.
const RUNS: usize = 6;

/// Settings of a process, and of where it writes: runs may well differ in them.
const OF_PROCESS: [&str; 8] = [
    "flags",
    "working_directory",
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "dry_run",
    "profile",
    "report_to",
];

/// Settings that choose the validation data.
const OF_VALIDATION: [&str; 4] = ["dataset", "files.validation", "validation_split", "max_eval_samples"];

/// Folders that `evaluate --output-dir` wrote, or folders of training runs.
pub struct Comparison {
    runs: Vec<Run>,
}

struct Run {
    /// The folder as given.
    name: String,
    labels: Vec<String>,
    /// By name: the metrics.json of an evaluation, or the figures of a training run's model on the validation data.
    metrics: Value,
    /// `None` for an evaluation.
    training: Option<Training>,
}

struct Training {
    /// By name; the settings within another one as `files.train`.
    settings: BTreeMap<String, String>,
    /// Update and validation loss of each evaluation.
    losses: Vec<[f64; 2]>,
}

impl Run {
    fn read(folder: &Path) -> Result<Run> {
        let name = folder.display().to_string();
        if let Some(metrics) = json(folder, "metrics.json")?.filter(|metrics| metrics["curves"].is_object())
            && let Ok(labels) = serde_json::from_value(metrics["labels"].clone())
        {
            return Ok(Run { name, labels, metrics, training: None });
        }
        let Some(settings) = json(folder, "training_args.json")?.filter(|_| folder.join("config.json").exists()) else {
            let fact = if folder.is_dir() { "has neither an evaluation nor a finished training run" } else { "no such folder" };
            return Err(Error::user(name, fact, "write one: warpfit evaluate --model MODEL FILE --output-dir REPORT"));
        };
        let Some(Value::Object(results)) = json(folder, "eval_results.json")? else {
            return Err(Error::user(name, "this training run has no validation figures", measure(folder)));
        };
        let metrics = results.into_iter().map(|(key, value)| (key.trim_start_matches("eval_").to_string(), value)).collect();
        let state = json(folder, "trainer_state.json")?.unwrap_or_default();
        let loss = |entry: &Value| Some([entry["step"].as_f64()?, entry["eval_loss"].as_f64()?]);
        let losses = state["log_history"].as_array().into_iter().flatten().filter_map(loss).collect();
        let mut found = BTreeMap::new();
        flatten("", &settings, &mut found);
        found.retain(|key, _| !OF_PROCESS.contains(&key.split('.').next().unwrap_or_default()));
        let labels = Config::read(&folder.join("config.json"))?.labels;
        Ok(Run { name, labels, metrics, training: Some(Training { settings: found, losses }) })
    }
}

/// A file of a folder; `None` if there is none.
fn json(folder: &Path, name: &str) -> Result<Option<Value>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let json = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_slice(&json).map(Some).map_err(|e| Error::user(path.display(), format!("not JSON: {e}"), "write it again"))
}

/// The command that evaluates the model in a folder, as a remedy.
fn measure(folder: &Path) -> String {
    format!("compare reports on one file: warpfit evaluate --model {} FILE --output-dir REPORT", shown(folder))
}

/// Values by key; those within an object as `outer.inner`.
fn flatten(key: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    let Value::Object(object) = value else {
        found.insert(key.to_string(), value.as_str().map_or_else(|| value.to_string(), String::from));
        return;
    };
    for (inner, value) in object {
        flatten(&if key.is_empty() { inner.clone() } else { format!("{key}.{inner}") }, value, found);
    }
}

impl Comparison {
    /// # Errors
    /// A folder of neither kind; folders of both kinds; runs whose classes differ from those of the first.
    pub fn read(folders: &[PathBuf]) -> Result<Comparison> {
        let mut runs: Vec<Run> = Vec::new();
        for folder in folders {
            let run = Run::read(folder)?;
            if let Some(first) = runs.first() {
                if first.training.is_some() != run.training.is_some() {
                    let training = if run.training.is_some() { &run.name } else { &first.name };
                    let fact = "is a training run, and other folders are evaluations";
                    return Err(Error::user(training, fact, measure(Path::new(training))));
                }
                if first.labels != run.labels {
                    let [own, others] = [&run, first].map(|run| list(&run.labels));
                    let fact = format!("its classes are {own}, but those of {} are {others}", first.name);
                    return Err(Error::user(run.name, fact, "compare runs on the same classes"));
                }
            }
            runs.push(run);
        }
        Ok(Comparison { runs })
    }

    fn is_of_training(&self) -> bool {
        self.runs[0].training.is_some()
    }

    /// The settings in which training runs differ: name, and the value of each run.
    fn differing(&self) -> Vec<Vec<String>> {
        let settings: Vec<_> = self.runs.iter().filter_map(|run| Some(&run.training.as_ref()?.settings)).collect();
        let keys: BTreeSet<&String> = settings.iter().flat_map(|settings| settings.keys()).collect();
        let row = |key: &String| -> Vec<String> {
            settings.iter().map(|settings| settings.get(key).map_or("-".to_string(), String::clone)).collect()
        };
        let rows = keys.into_iter().map(|key| (key, row(key))).filter(|(_, values)| values.iter().any(|v| *v != values[0]));
        rows.map(|(key, values)| [vec![key.clone()], values].concat()).collect()
    }

    /// Why the figures of training runs are not comparable, and the command that helps.
    pub fn doubt(&self) -> Option<String> {
        let differing = self.differing().into_iter().map(|mut row| row.remove(0));
        let splits = |run: &Training| run.settings.get("validation_split").is_some_and(|share| share != "null");
        let held_out = self.runs.iter().flat_map(|run| &run.training).any(splits);
        let decides = |key: &String| OF_VALIDATION.contains(&key.as_str()) || held_out && key == "seed";
        let mut keys: Vec<String> = differing.filter(decides).collect();
        if keys.is_empty() && self.runs.iter().any(|run| run.metrics["samples"] != self.runs[0].metrics["samples"]) {
            keys.push("the number of texts".to_string());
        }
        let help = measure(Path::new(&self.runs[0].name));
        (!keys.is_empty()).then(|| format!("warning: the validation data differ, by {}; {help}", keys.join(", ")))
    }

    /// The value of each run, and whether it is the best.
    fn row(&self, metric: Metric) -> Vec<Option<(f64, bool)>> {
        let values: Vec<Option<f64>> = self.runs.iter().map(|run| run.metrics[metric.name()].as_f64()).collect();
        let best = |value: f64| !values.iter().flatten().any(|&other| metric.better(other, value));
        values.iter().map(|value| value.map(|value| (value, best(value)))).collect()
    }

    /// One line per metric and one column per run, numbered as listed below; `*` marks the best. Then the settings in which
    /// training runs differ.
    pub fn table(&self) -> String {
        let width = Metric::ALL.map(|metric| metric.name().len()).into_iter().max().unwrap_or(0);
        let numbers: Vec<String> = (1..=self.runs.len()).map(|run| format!("[{run}]")).collect();
        let figures = Metric::ALL.map(|metric| (metric.name(), self.row(metric)));
        let figure = |figure: &Option<(f64, bool)>| match figure {
            Some((value, best)) => format!("{value:>8.4}{}", if *best { '*' } else { ' ' }),
            None => format!("  {:>6} ", "-"),
        };
        let mut lines = Vec::new();
        if self.is_of_training() {
            lines.extend(["the kept model of each run on its validation data".to_string(), String::new()]);
        }
        for from in (0..self.runs.len()).step_by(RUNS) {
            let runs = from..self.runs.len().min(from + RUNS);
            let head: String = numbers[runs.clone()].iter().map(|number| format!("  {number:>6} ")).collect();
            lines.push(format!("{:width$}{head}", ""));
            for (name, row) in &figures {
                lines.push(format!("{name:width$}{}", row[runs.clone()].iter().map(figure).collect::<String>()));
            }
            lines.push(String::new());
        }
        let differing = self.differing();
        if !differing.is_empty() {
            lines.push("settings that differ".to_string());
            let head = [vec![String::new()], numbers.clone()].concat();
            let side_by_side = table(&[vec![head], differing.clone()].concat());
            if side_by_side.lines().all(|line| line.chars().count() <= WIDTH) {
                lines.extend(side_by_side.lines().map(String::from));
            } else {
                for row in &differing {
                    lines.push(row[0].clone());
                    lines.extend(numbers.iter().zip(&row[1..]).map(|(number, value)| format!("  {number} {value}")));
                }
            }
            lines.push(String::new());
        }
        lines.extend([format!("classes: {}", list(&self.runs[0].labels)), String::new()]);
        lines.extend(numbers.iter().zip(&self.runs).map(|(number, run)| format!("{number} {}", run.name)));
        lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
    }

    /// Writes report.html and plots/ into `folder`, which is created if missing.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let plots = if self.is_of_training() { vec![self.losses()] } else { self.plots() };
        page::write_plots(folder, &plots)?;
        let mut rows = String::new();
        let metrics: Vec<_> = Metric::ALL.iter().map(|&metric| self.row(metric)).collect();
        for (run, Run { name, .. }) in self.runs.iter().enumerate() {
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
        let mut body = format!(
            "<div class=\"wide\"><table class=\"figures\"><thead><tr><th></th>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n{}",
            page::plots_section(&plots)
        );
        if self.is_of_training() {
            let cells = |row: &Vec<String>| row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect::<String>();
            let rows: String = self.differing().iter().map(|row| format!("<tr>{}</tr>\n", cells(row))).collect();
            let head: String = self.runs.iter().map(|run| format!("<th>{}</th>", escape(&run.name))).collect();
            body += &format!(
                "<section><h2>Settings that differ</h2>\n<div class=\"wide\"><table><thead><tr><th></th>{head}</tr></thead>\n\
                 <tbody>{rows}</tbody></table></div></section>\n"
            );
        }
        let labels = self.runs[0].labels.join(", ");
        let about = format!("{} on the classes {labels}; ★ marks the best", counted(self.runs.len(), "run"));
        write_file(&folder.join("report.html"), page::page("Runs compared", &about, &body).as_bytes())
    }

    /// The validation loss of training runs.
    fn losses(&self) -> Figure {
        let series = |run: &Run| Some(Series::new(&run.name, Shape::Dots, run.training.as_ref()?.losses.clone()));
        let series = self.runs.iter().filter_map(series).collect();
        let (x, y) = (Axis::from_zero("updates"), Axis::from_zero("cross-entropy"));
        let plot = Plot { title: "Validation loss".to_string(), x, y, series };
        Figure::new("loss", plot.svg(), "The lower, the better; a curve that rises again is a run that has begun to overfit.")
    }

    fn plots(&self) -> Vec<Figure> {
        let list = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect::<Vec<f64>>();
        let defined = |metrics: &Value| -> Vec<Value> {
            let curves = metrics["curves"].as_object().into_iter().flatten();
            curves.map(|(_, curve)| curve.clone()).filter(|curve| curve["roc"].is_object()).collect()
        };
        let (mut roc, mut pr) = (Vec::new(), Vec::new());
        for Run { name, metrics, .. } in &self.runs {
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
        let two = self.runs[0].labels.len() == 2;
        let title = if two { "ROC curve, area" } else { "ROC curve, mean of the classes" };
        let (x, y) = (Axis::unit("false positive rate"), Axis::unit("true positive rate"));
        let plot = Plot { title: title.to_string(), x, y, series: roc };
        let mut plots = vec![Figure::new("roc", plot.svg(), ROC_CAPTION)];
        if two {
            let title = "Precision and recall, average precision".to_string();
            let (x, y) = (Axis::unit("recall"), Axis::unit("precision"));
            let plot = Plot { title, x, y, series: pr };
            plots.push(Figure::new("precision_recall", plot.svg(), PRECISION_RECALL_CAPTION));
        }
        plots
    }
}
