//! Measures a classifier: a model on a labelled file, or existing predictions.

use std::path::{Path, PathBuf};

use crate::console::{leave_on_interrupt, next, note, notice_interrupts, print, tell};
use crate::data::dataset::{self, Classes, ModelClasses, Table};
use crate::data::scored::Scored;
use crate::device::{Device, Precision};
use crate::error::{Error, Result, is_control};
use crate::files::{check_folder, free_folder, keep_inputs, remove_partial_files, same_file};
use crate::flags::{self, InputArgs, LabelNames, RunArgs, SplitArgs, count, given, label_names, shown};
use crate::hub;
use crate::infer::Session;
use crate::metrics::{Metrics, positive_class, softmax};
use crate::report::compare::Comparison;
use crate::report::evaluated::Evaluated;
use crate::report::log::{Progress, counted, fitting};
use crate::report::page::Origin;
use crate::train::data::encode;
use crate::train::evaluate::{check, cross_entropy, fail_under};
use chrono::Utc;
use clap::Parser;
use serde_json::Value;

/// How a model runs and how its labelled file is read, without effect on predictions and on a comparison.
const OF_MODEL: [&str; 14] = [
    "dataset",
    "dataset_config",
    "split",
    "label_column",
    "delimiter",
    "quoting",
    "no_header",
    "encoding",
    "text_column",
    "batch_size",
    "max_batch_tokens",
    "max_length",
    "device",
    "precision",
];

/// Measure a model on a labelled file, or earlier predictions.
///
/// Prints the loss, the metrics of the positive class for two classes (for more classes, weighted precision, recall and F1 and macro
/// areas), and a report by class.
#[derive(Parser)]
#[command(name = "evaluate")]
pub struct Args {
    /// Trained model: a folder, or a Hugging Face hub id: owner/name, or owner/name@revision
    #[arg(long, value_name = "DIR_OR_ID", alias = "model_name_or_path")]
    #[arg(required_unless_present_any = ["predictions", "compare"])]
    model: Option<PathBuf>,
    /// Labelled texts, in any format that train reads
    #[arg(value_name = "FILE", conflicts_with_all = ["file", "dataset", "predictions", "compare"])]
    only_file: Option<PathBuf>,
    /// The same as FILE
    #[arg(long, value_name = "FILE", visible_alias = "input", aliases = ["test-file", "validation-file"])]
    #[arg(required_unless_present_any = ["only_file", "dataset", "dataset_config", "split", "predictions", "compare"], conflicts_with = "dataset")]
    file: Option<PathBuf>,
    #[command(flatten)]
    split: SplitArgs,
    /// Predictions to measure instead of a model: a .jsonl file with "label" (an index or a name) and "scores" (a list of
    /// numbers in the order of the labels, or the objects that predict --top-k 0 writes)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "file"], conflicts_with_all = OF_MODEL)]
    predictions: Option<PathBuf>,
    /// Folders to compare side by side: those that --output-dir wrote, or those of training runs
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with_all = ["model", "file", "predictions", "fail_under"])]
    #[arg(conflicts_with_all = ["label_names", "positive_label"], conflicts_with_all = OF_MODEL)]
    compare: Vec<PathBuf>,
    /// Folder for the report: report.html, plots/, errors.csv (every row, the highest loss first), metrics.json,
    /// classification_report.txt, predictions.jsonl [default: none is written]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Column of the labels [default: found by its name]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Names of the classes whose labels are bare numbers or booleans, separated by commas, in order: from 0, of 1 and 2, or of
    /// false and true [default: the model's]
    #[arg(long, value_name = "NAME,NAME,...", value_parser = label_names, conflicts_with = "predictions")]
    label_names: Option<LabelNames>,
    /// With two classes, the one whose precision, recall, F1 and areas are reported [default: the second]
    #[arg(long, value_name = "NAME")]
    positive_label: Option<String>,
    /// Texts per batch, at most
    #[arg(long, value_name = "N", alias = "eval_batch_size", value_parser = count, default_value_t = 256)]
    batch_size: usize,
    #[command(flatten)]
    reading: InputArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Exit with 1 unless this is reached, such as accuracy=0.9; a loss must be at most that [default: none]
    #[arg(long, value_name = "METRIC=VALUE")]
    fail_under: Option<String>,
}

pub fn run(args: Args) -> Result<()> {
    let device = args.run.device()?;
    let bound = args.fail_under.as_deref().map(fail_under).transpose()?;
    if let Some(folder) = &args.output_dir {
        check_folder(folder)?;
        if args.model.as_deref().is_some_and(|model| same_file(folder, model)) {
            return Err(Error::user("--output-dir", "is the folder of --model", "choose another one"));
        }
        let inputs: Vec<PathBuf> = [&args.file, &args.only_file, &args.predictions].into_iter().flatten().cloned().collect();
        ROWS.iter().try_for_each(|name| keep_inputs(&folder.join(name), &inputs))?;
        leave_on_interrupt(format!("{} is not complete", folder.display()), remove_partial_files)?;
    }
    if !args.compare.is_empty() {
        let comparison = Comparison::read(&args.compare)?;
        if let Some(folder) = &args.output_dir {
            comparison.write(folder)?;
            notice_interrupts()?;
            note(format!("saved       {}", folder.join("report.html").display()));
        }
        print(comparison.table())?;
        comparison.doubt().into_iter().for_each(note);
        if args.output_dir.is_none() {
            let folders: Vec<String> = args.compare.iter().map(|folder| shown(folder)).collect();
            next(&[format!("warpfit evaluate --compare {} --output-dir compared", folders.join(" "))]);
        }
        return Ok(());
    }
    let (mut found, title, origin) = match &args.predictions {
        Some(path) => {
            let found = read_predictions(Scored::read(path)?, args.positive_label.as_deref())?;
            (found, path.display().to_string(), vec![("predictions", path.display().to_string())])
        }
        None => run_model(&args, device)?,
    };
    // 0, and not -0, if every loss is.
    let loss = found.losses.iter().sum::<f64>() / found.losses.len() as f64 + 0.0;
    found.metrics.loss = Some(loss).filter(|loss| loss.is_finite());
    // Checked before anything is printed.
    if let Some(folder) = &args.output_dir {
        let when = Utc::now().format("%Y-%m-%d %H:%M UTC").to_string();
        let made = [("date", when), ("warpfit", flags::version())].into_iter().chain(origin).collect();
        found.write(folder, &title, &made)?;
        notice_interrupts()?;
        note(format!("saved       {}", folder.join("report.html").display()));
    }
    tell(found.metrics.summary())?;
    print("")?;
    print(found.metrics.classification_report(&fitting(&found.scored.names), 4).trim_end())?;
    next(&args.next());
    match bound {
        Some((metric, value)) => check(Some(&found.metrics), metric, value),
        None => Ok(()),
    }
}

/// The files of a report that may be evaluated themselves.
const ROWS: [&str; 2] = ["errors.csv", "predictions.jsonl"];

impl Args {
    /// The commands that make use of what this one has written, or write it.
    fn next(&self) -> Vec<String> {
        let compare = |folder: &PathBuf| format!("warpfit evaluate --compare {} OTHER_REPORT", shown(folder));
        let serve = self.model.as_deref().map(|model| format!("warpfit serve --model {}", shown(model)));
        let source = match (&self.model, &self.predictions, &self.split.dataset, self.file.as_ref().or(self.only_file.as_ref())) {
            (_, Some(file), ..) => format!("--predictions {}", shown(file)),
            (Some(model), _, Some(_), _) => format!("--model {}{}", shown(model), self.split.flags()),
            (Some(model), _, _, Some(file)) => format!("--model {} {}", shown(model), shown(file)),
            _ => return Vec::new(),
        };
        let columns = self.reading.file.flags(self.label_column.as_deref());
        let values = [
            ("label-names", self.label_names.as_ref().map(|names| names.0.join(","))),
            ("positive-label", self.positive_label.clone()),
            ("max-length", self.run.max_length.map(|length| length.to_string())),
            ("precision", Some(self.run.precision).filter(|&p| p != Precision::Auto).map(|p| p.to_string())),
        ];
        let report = format!("warpfit evaluate {source}{columns}{} --output-dir {}", given(values), free_folder("report"));
        [self.output_dir.as_ref().map_or(report, compare)].into_iter().chain(serve).collect()
    }
}

fn read_predictions(scored: Scored, positive: Option<&str>) -> Result<Evaluated> {
    let classes = scored.names.len();
    note(format!("predictions: {}: {}", scored.labels.len(), dataset::counts_in_words(&scored.names, &scored.labels)));
    let positive = positive_class(positive, &scored.names)?;
    let metrics = Metrics::from_scores(&scored.labels, &scored.scores, classes, positive)?;
    let rows = scored.scores.chunks_exact(classes).zip(&scored.labels);
    // Not the negative, which is -0 for a probability of 1.
    let losses: Vec<f64> = rows.map(|(scores, &label)| 0.0 - scores[label as usize].ln()).collect();
    let infinite = losses.iter().filter(|loss| loss.is_infinite()).count();
    if infinite > 0 {
        note(format!("note: the loss is infinite, since labels have a probability of 0: {infinite}"));
    }
    Ok(Evaluated { scored, losses, metrics, texts: Vec::new(), tokens: Vec::new() })
}

/// Runs the model of `args` on their file; also returns a title with the names of both.
fn run_model(args: &Args, device: Device) -> Result<(Evaluated, String, Origin)> {
    let model = args.model.as_deref().expect("clap requires it");
    let files = args.split.files()?;
    let source = args.file.as_ref().or(args.only_file.as_ref()).or(args.split.dataset.as_ref()).expect("clap requires one");
    let files = files.unwrap_or_else(|| vec![source.clone()]);
    let reading = &args.reading;
    let mut table = Table::read_all(&files, &reading.columns(args.label_column.as_deref()))?;
    let (precision, tokens) = (args.run.precision, reading.max_batch_tokens);
    let mut classifier = Session::classifier(&hub::model(model)?, device, precision, tokens, args.batch_size)?;
    let max_length = classifier.source.max_length(args.run.max_length)?;
    let mut ids = std::mem::take(&mut table.ids);
    let columns = table.columns_in_words();
    note(format!("data: {}", columns.replace(is_control, " ")));
    let model_classes = ModelClasses::Fixed(&classifier.source.config.labels);
    let given = args.label_names.as_ref().map(|names| &names.0[..]);
    let (Classes { names, notes }, data) = dataset::classify(vec![table], model_classes, given)?;
    notes.iter().for_each(|line| note(format!("note: {line}")));
    let positive = positive_class(args.positive_label.as_deref(), &names)?;
    let data = data.into_iter().next().expect("one for the table");
    note(format!("texts: {}: {}", data.labels.len(), dataset::counts_in_words(&names, &data.labels)));
    if ids.is_empty() {
        ids = (0..data.labels.len()).map(Value::from).collect();
    }
    let texts = data.texts.clone();
    let encoded = encode("texts", data, classifier.source.tokenizer()?, max_length)?;
    let progress = Progress::new("evaluating", encoded.rows() as u64, &["texts", "tokens"]);
    let logits = classifier.logits(&encoded, |texts, tokens| progress.add(&[texts as u64, tokens as u64]))?;
    progress.finish("");
    let metrics = Metrics::from_logits(&encoded.labels, &logits, names.len(), positive)?;
    let losses = cross_entropy(&encoded.labels, &logits, names.len());
    let scores = logits.chunks_exact(names.len()).flat_map(softmax).collect();
    let tokens = encoded.offsets.windows(2).map(|row| row[1] - row[0]).collect();
    let scored = Scored { names, ids, labels: encoded.labels, scores };
    let title = format!("{} on {}", model.display(), source.display());
    let mut origin = vec![
        ("model", model.display().to_string()),
        ("data", columns),
        ("maximum length", counted(max_length, "token")),
        ("precision", classifier.precision.to_string()),
        ("positive class", scored.names[metrics.positive].clone()),
    ];
    origin.retain(|(name, _)| *name != "positive class" || scored.names.len() == 2);
    origin.extend(training(&classifier.source.path).map(|settings| ("training", settings)));
    Ok((Evaluated { scored, losses, metrics, texts, tokens }, title, origin))
}

/// The main settings with which the model in a folder was trained, if the folder is that of a run.
fn training(model: &Path) -> Option<String> {
    let settings: Value = serde_json::from_slice(&std::fs::read(model.join("training_args.json")).ok()?).ok()?;
    let of = |key: &str| settings[key].as_str().map_or_else(|| settings[key].to_string(), String::from);
    let length = if settings["max_steps"].is_null() { ("num_train_epochs", "epochs") } else { ("max_steps", "updates") };
    let settings =
        [("model", "from"), length, ("batch_size", "batch size"), ("learning_rate", "learning rate"), ("seed", "seed")];
    Some(settings.map(|(key, name)| format!("{name} {}", of(key))).join(", "))
}
