//! The flags of `train`: raw (everything optional), then validated settings (complete and checked against each other).
//! Names, and the defaults of the optimizer, are those of Hugging Face's TrainingArguments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, Parser, ValueEnum};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::evaluate::fail_under;
use super::hugging_face;
use super::recipe;
use super::resume::Checkpoint;
use super::schedule::ScheduleKind;
use crate::checkpoint::run_dir::RunDir;
use crate::console::note;
use crate::data::dataset::{self, Split, Splits};
use crate::data::truncation::TruncationSide;
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::files::same_file;
use crate::flags::{self, DataArgs, SplitName, count, missing, not_negative, open_unit, positive, seed, truth, unit};
use crate::metrics::Metric;
use crate::sample::RUNS;

/// The value of `--resume-from-checkpoint` that means the newest checkpoint of the output folder.
pub const NEWEST: &str = "newest";

/// The value of `--resume-from-checkpoint` that overrides another one, as `false` does.
pub const NEVER: &str = "never";

/// Flags by name, with their values as on the command line.
pub type GivenFlags = BTreeMap<String, String>;

/// Fine-tune a BERT-family encoder for text classification.
///
/// Without a model and data: a small DistilBERT from scratch on a bundled sample of film reviews.
#[derive(Parser, Clone, Debug, Default)]
#[command(name = "train", after_long_help = hugging_face::help())]
pub struct Args {
    /// Model to start from: a folder with config.json, model.safetensors and tokenizer.json, or a Hugging Face hub id such as
    /// distilbert/distilbert-base-uncased, optionally with @revision [default: none]
    #[arg(long, visible_alias = "model-name-or-path", value_name = "DIR_OR_ID", help_heading = "Model and run")]
    pub model: Option<PathBuf>,
    /// Use the settings of a published run, or of one like it in Portuguese or Russian; --config and other flags override them [default: sample where neither a model nor
    /// data is given, otherwise none]
    #[arg(long, value_parser = recipe::names(), help_heading = "Model and run")]
    pub recipe: Option<String>,
    /// Read flags from a TOML file, such as `batch-size = 16`; they override --recipe, and flags given here override them
    /// [default: none]
    #[arg(long, value_name = "FILE", help_heading = "Model and run")]
    pub config: Option<PathBuf>,
    /// Initialize all weights randomly from --seed instead of reading model.safetensors [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", help_heading = "Model and run")]
    pub from_scratch: Option<bool>,
    /// Draw a new classifier from --seed where the model's is for another number of labels [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", help_heading = "Model and run")]
    pub ignore_mismatched_sizes: Option<bool>,
    /// Folder for the trained model, the checkpoints and the logs [default: the next number in ./runs]
    #[arg(long, help_heading = "Model and run")]
    pub output_dir: Option<PathBuf>,
    /// Write into an output folder that is not empty; an earlier run's files are moved to earlier-run-N [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", help_heading = "Model and run")]
    pub overwrite_output_dir: Option<bool>,
    /// Continue a run: from its newest sound checkpoint if this is its folder, or from the given checkpoint; without a value
    /// from the newest one in --output-dir. Flags that are not given are those of the run [default: start a new run]
    #[arg(long, num_args = 0..=1, default_missing_value = NEWEST, value_name = "DIR", help_heading = "Model and run")]
    pub resume_from_checkpoint: Option<PathBuf>,
    /// Read and check everything, print the plan and its memory, and exit
    #[arg(long, help_heading = "Model and run")]
    pub dry_run: bool,

    /// Publish the trained model on the Hugging Face hub: as owner/name or name, or without a value as --hub-model-id; a missing
    /// repository is created [default: false]
    #[arg(long, value_name = "ID", num_args = 0..=1, default_missing_value = "true", help_heading = "Model and run")]
    pub push_to_hub: Option<String>,
    /// Repository of --push-to-hub: owner/name or name [default: the name of --output-dir]
    #[arg(long, value_name = "ID", requires = "push_to_hub", help_heading = "Model and run")]
    pub hub_model_id: Option<String>,
    /// Create a private repository, and refuse to push to a public one [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", requires = "push_to_hub", help_heading = "Model and run")]
    pub hub_private_repo: Option<bool>,
    /// Print warnings only: no progress and no other notes
    #[arg(long, help_heading = "Model and run")]
    pub quiet: bool,

    #[command(flatten)]
    pub data: DataArgs,
    /// Fraction of the training data to hold out for validation, stratified by class [default: none]
    #[arg(long, value_parser = open_unit, conflicts_with_all = ["validation_file", "validation_split_name"], help_heading = "Data")]
    pub validation_split: Option<f64>,
    /// With two classes, the one whose precision, recall, F1 and areas are reported [default: the second]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub positive_label: Option<String>,
    /// Truncate texts to this many tokens; the model folder carries it [default: the smallest of the tokenizer's limit, the
    /// model's positions and 512]
    #[arg(long, visible_alias = "max-seq-length", value_parser = count, help_heading = "Data")]
    pub max_length: Option<usize>,
    /// Which part of longer texts is cut: right (the end), left (the start), or middle, which keeps the first quarter and the
    /// last three quarters of --max-length; the model folder carries it [default: the model's, else right]
    #[arg(long, value_name = "SIDE", hide_possible_values = true, help_heading = "Data")]
    pub truncation_side: Option<TruncationSide>,
    /// Use only this many training rows, the first ones [default: all]
    #[arg(long, value_parser = count, help_heading = "Data")]
    pub max_train_samples: Option<usize>,
    /// Use only this many validation rows, the first ones [default: all]
    #[arg(long, value_parser = count, help_heading = "Data")]
    pub max_eval_samples: Option<usize>,
    /// Keep the rows in file order instead of shuffling them every epoch
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,

    /// Number of passes over the training data [default: 3]
    #[arg(long, visible_alias = "num-train-epochs", value_parser = positive, help_heading = "Optimisation")]
    pub epochs: Option<f64>,
    /// Number of updates, overriding --epochs [default: none]
    #[arg(long, value_parser = count, help_heading = "Optimisation")]
    pub max_steps: Option<usize>,
    /// Rows per micro-batch [default: 8]
    #[arg(long, visible_alias = "per-device-train-batch-size", value_parser = count, help_heading = "Optimisation")]
    pub batch_size: Option<usize>,
    /// Rows per evaluation batch, at most; it has no more tokens than a training batch [default: 8]
    #[arg(long, visible_alias = "per-device-eval-batch-size", value_parser = count, help_heading = "Optimisation")]
    pub eval_batch_size: Option<usize>,
    /// Micro-batches per update [default: 1]
    #[arg(long, value_parser = count, help_heading = "Optimisation")]
    pub gradient_accumulation_steps: Option<usize>,
    /// Peak learning rate [default: 5e-5]
    #[arg(long, value_parser = not_negative, help_heading = "Optimisation")]
    pub learning_rate: Option<f64>,
    /// Decoupled weight decay of AdamW [default: 0]
    #[arg(long, value_parser = not_negative, help_heading = "Optimisation")]
    pub weight_decay: Option<f64>,
    /// Decay rate of AdamW's first moment [default: 0.9]
    #[arg(long, value_parser = unit, help_heading = "Optimisation")]
    pub adam_beta1: Option<f64>,
    /// Decay rate of AdamW's second moment [default: 0.999]
    #[arg(long, value_parser = unit, help_heading = "Optimisation")]
    pub adam_beta2: Option<f64>,
    /// Added to the denominator of AdamW's update [default: 1e-8]
    #[arg(long, value_parser = positive, help_heading = "Optimisation")]
    pub adam_epsilon: Option<f64>,
    /// Number of warm-up updates, or below 1 their fraction of all updates [default: 0]
    #[arg(long, value_parser = not_negative, help_heading = "Optimisation")]
    pub warmup_steps: Option<f64>,
    /// Learning rate schedule after the warm-up [default: linear]
    #[arg(long, help_heading = "Optimisation")]
    pub lr_scheduler_type: Option<ScheduleKind>,
    /// Clip gradients to this norm; 0 disables clipping [default: 1]
    #[arg(long, value_parser = not_negative, help_heading = "Optimisation")]
    pub max_grad_norm: Option<f64>,
    /// Label smoothing of the loss [default: 0]
    #[arg(long, value_parser = unit, help_heading = "Optimisation")]
    pub label_smoothing_factor: Option<f64>,
    /// Weights of the classes in the loss: "balanced", or one number per label, separated by commas [default: all 1]
    #[arg(long, value_parser = class_weights, help_heading = "Optimisation")]
    pub class_weights: Option<ClassWeights>,
    /// Embedding, attention and hidden dropout [default: the model's]
    #[arg(long, value_parser = unit, help_heading = "Optimisation")]
    pub dropout: Option<f64>,
    /// Dropout before the classifier [default: the model's]
    #[arg(long, value_parser = unit, help_heading = "Optimisation")]
    pub classifier_dropout: Option<f64>,

    /// Device: auto (the first GPU that opens, else the CPU), cpu, cuda or cuda:N [default: auto]
    #[arg(long, help_heading = "Precision and device")]
    pub device: Option<String>,
    /// Precision of activations and matrix products: auto (on a GPU bf16, or fp16 before Ampere; on the CPU fp32; on resume
    /// that of the checkpoint), fp32, tf32, bf16 or fp16; the CPU has fp32 and bf16 [default: auto]
    #[arg(long, hide_possible_values = true, help_heading = "Precision and device")]
    pub precision: Option<Precision>,
    /// Before the first update, time several algorithms for each product of the run, use the fastest, and record them for later
    /// runs on this GPU; false uses none that were recorded; no effect on resume [default: use those that were recorded, time
    /// none]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", help_heading = "Precision and device")]
    pub tune: Option<bool>,
    /// File of recorded algorithms, which --tune writes or extends [default: that of this GPU and version of cuBLASLt in the cache
    /// folder]
    #[arg(long, value_name = "FILE", help_heading = "Precision and device")]
    pub algorithms: Option<PathBuf>,
    /// Random seed for shuffling, dropout and new weights [default: 42]
    #[arg(long, value_parser = seed, help_heading = "Precision and device")]
    pub seed: Option<u64>,

    /// Log the loss every this many updates [default: 10]
    #[arg(long, value_parser = count, help_heading = "Cadence")]
    pub logging_steps: Option<usize>,
    /// When to evaluate [default: epoch with validation data, otherwise no]
    #[arg(long, visible_alias = "evaluation-strategy", help_heading = "Cadence")]
    pub eval_strategy: Option<Strategy>,
    /// Evaluate every this many updates; implies --eval-strategy steps [default: --logging-steps]
    #[arg(long, value_parser = count, help_heading = "Cadence")]
    pub eval_steps: Option<usize>,
    /// When to write a checkpoint [default: epoch]
    #[arg(long, help_heading = "Cadence")]
    pub save_strategy: Option<Strategy>,
    /// Write a checkpoint every this many updates; implies --save-strategy steps [default: 500]
    #[arg(long, value_parser = count, help_heading = "Cadence")]
    pub save_steps: Option<usize>,
    /// Keep at most this many checkpoints, the newest and the best among them, so that 1 may keep two [default: all]
    #[arg(long, value_parser = count, help_heading = "Cadence")]
    pub save_total_limit: Option<usize>,
    /// Write checkpoints without the optimizer's state: a third of the size, but a run cannot be resumed from them; an
    /// interrupted run's checkpoint still has it [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", help_heading = "Cadence")]
    pub save_only_model: Option<bool>,
    /// Load the weights of the best evaluation at the end [default: true with evaluations]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", help_heading = "Cadence")]
    pub load_best_model_at_end: Option<bool>,
    /// Metric of the best evaluation: loss, accuracy, f1, precision, recall, roc_auc, average_precision, macro_f1,
    /// balanced_accuracy or matthews_correlation; the loss decides between equal values [default: loss]
    #[arg(long, help_heading = "Cadence")]
    pub metric_for_best_model: Option<String>,
    /// Stop after this many evaluations in a row without an improvement of that metric, for which a lower loss alone does not count
    /// [default: never]
    #[arg(long, value_parser = count, help_heading = "Cadence")]
    pub early_stopping_patience: Option<usize>,
    /// Logs to write, separated by commas: jsonl (metrics.jsonl), tensorboard (runs/), or none [default: jsonl,tensorboard]
    #[arg(long, value_delimiter = ',', help_heading = "Cadence")]
    pub report_to: Option<Vec<ReportTo>>,
    /// Time every op of this many updates; writes a table and profile.json, for chrome://tracing, to --output-dir
    /// [default: none]
    #[arg(long, value_name = "UPDATES", value_parser = count, help_heading = "Cadence")]
    pub profile: Option<usize>,
    /// Exit with 1 unless the final evaluation reaches this, such as accuracy=0.9; a loss must be at most that [default: none]
    #[arg(long, value_name = "METRIC=VALUE", help_heading = "Cadence")]
    pub fail_under: Option<String>,

    /// The flags above that have a value from the command line, a file, a recipe or the run that is resumed.
    #[arg(skip)]
    pub given: GivenFlags,
    /// The checkpoint of `resume_from_checkpoint`, which [`recipe::parse`] chooses: some of the flags are of it.
    #[arg(skip)]
    pub checkpoint: Option<Checkpoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    No,
    Steps,
    Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    Jsonl,
    Tensorboard,
    None,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ClassWeights {
    Balanced,
    Given(Vec<f64>),
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            ClassWeights::Balanced => "balanced".serialize(serializer),
            ClassWeights::Given(weights) => weights.serialize(serializer),
        }
    }
}

/// When an action is due during training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cadence {
    Never,
    /// After each multiple of this many updates.
    Steps(usize),
    /// After the last update of each epoch.
    Epoch,
}

/// The validated settings.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// A folder, or a hub id.
    pub model: PathBuf,
    pub from_scratch: bool,
    pub ignore_mismatched_sizes: bool,
    pub output_dir: PathBuf,
    pub overwrite_output_dir: bool,
    pub resume_from_checkpoint: Option<Checkpoint>,
    pub dry_run: bool,
    /// The hub id, or the folder, that the files of the splits `of_dataset` come from.
    pub dataset: Option<PathBuf>,
    pub dataset_config: Option<String>,
    #[serde(skip)]
    pub of_dataset: Vec<Split>,
    pub validation_split_name: Option<SplitName>,
    pub files: Splits,
    pub validation_split: Option<f64>,
    #[serde(flatten)]
    pub reading: dataset::Options,
    pub label_names: Option<Vec<String>>,
    pub positive_label: Option<String>,
    pub max_length: Option<usize>,
    /// The model's, if none.
    pub truncation_side: Option<TruncationSide>,
    pub max_train_samples: Option<usize>,
    pub max_eval_samples: Option<usize>,
    pub shuffle: bool,
    pub num_train_epochs: f64,
    pub max_steps: Option<usize>,
    pub batch_size: usize,
    pub eval_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    /// Below 1, a fraction of all updates.
    pub warmup_steps: f64,
    pub lr_scheduler_type: ScheduleKind,
    pub max_grad_norm: f64,
    pub label_smoothing_factor: f64,
    pub class_weights: Option<ClassWeights>,
    pub dropout: Option<f64>,
    pub classifier_dropout: Option<f64>,
    pub device: Device,
    pub precision: Precision,
    /// Whether to time algorithms, or if not to use recorded ones.
    pub tune: Option<bool>,
    pub algorithms: Option<PathBuf>,
    pub seed: u64,
    pub logging_steps: usize,
    pub eval: Cadence,
    pub save: Cadence,
    pub save_total_limit: Option<usize>,
    pub save_only_model: bool,
    pub load_best_model_at_end: bool,
    pub metric_for_best_model: Metric,
    pub early_stopping_patience: Option<usize>,
    /// Does not contain `None`.
    pub report_to: Vec<ReportTo>,
    /// Updates to time.
    pub profile: Option<usize>,
    pub fail_under: Option<(Metric, f64)>,
    /// The flags of the run, with which it can be resumed.
    pub flags: GivenFlags,
    /// The folder that its relative paths begin in.
    pub working_directory: String,
}

/// The flag of a setting of training_args.json, or its name there if it has none.
pub fn flag_of(setting: &str) -> String {
    let command = flags::command::<Args>();
    flags::named(&command, setting).and_then(Arg::get_long).map_or(setting.to_string(), |long| format!("--{long}"))
}

/// The value of a setting, for people.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_string(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

impl Args {
    /// The id under which the trained model is to be published, if it is.
    pub fn hub_id(&self) -> Result<Option<String>> {
        let Some(asked) = &self.push_to_hub else { return Ok(None) };
        match (truth(asked), &self.hub_model_id, &self.output_dir) {
            (Ok(false), ..) => Ok(None),
            (Err(_), None, _) => Ok(Some(asked.clone())),
            (Err(_), Some(_), _) => Err(Error::user("--hub-model-id", "--push-to-hub has an id too", "leave out one of them")),
            (Ok(true), Some(id), _) => Ok(Some(id.clone())),
            (Ok(true), None, folder) => {
                let name = folder.as_deref().and_then(Path::file_name).map(|name| name.display().to_string());
                let missing = || Error::user("--push-to-hub", "has no id", "pass --hub-model-id owner/name");
                name.map(Some).ok_or_else(missing)
            }
        }
    }

    /// Fills in defaults and checks the flags against each other. Fetches a data set of the hub.
    pub fn settings(self) -> Result<Settings> {
        // Checks that need no reading and no network come first.
        let (tune, algorithms) = match &self.checkpoint {
            Some(checkpoint) => {
                for (flag, given) in [("--tune", self.tune.is_some()), ("--algorithms", self.algorithms.is_some())] {
                    if given {
                        note(format!("note: {flag} has no effect: a resumed run keeps the algorithms of its checkpoint"));
                    }
                }
                checkpoint.tuning()
            }
            None if self.tune == Some(false) && self.algorithms.is_some() => {
                return Err(Error::user("--algorithms", "--tune false uses no recorded algorithms", "leave out one of them"));
            }
            None => (self.tune, self.algorithms.clone()),
        };
        let model = self.model.clone().ok_or_else(|| missing("--model", "the folder of a model, or its id on the hub"))?;
        let device = self.device.as_deref().unwrap_or("auto").parse()?;
        let fail_under = self.fail_under.as_deref().map(fail_under).transpose()?;
        let metric = Metric::parse("--metric-for-best-model", self.metric_for_best_model.as_deref().unwrap_or("loss"))?;
        let overwrites = self.overwrite_output_dir.unwrap_or(false);
        if let Some(folder) = &self.output_dir {
            if same_file(folder, &model) {
                return Err(Error::user("--output-dir", "is the folder of --model", "choose another one"));
            }
            if self.checkpoint.is_none() {
                RunDir::check(folder, overwrites || self.dry_run)?;
            }
        }
        let mut files = self.data.files()?;
        if let Some(file) = files.train.iter().chain(&files.validation).chain(&files.test).find(|file| file.to_str().is_none()) {
            return Err(Error::user(file.display(), "its name is not UTF-8, as the files of a run must be", "rename it"));
        }
        if self.validation_split.is_some() {
            files.validation.clear();
        }
        let of_dataset = self.data.of_dataset();

        let validates = !files.validation.is_empty() || self.validation_split.is_some();
        let logging_steps = self.logging_steps.unwrap_or(10);
        let cadence = |strategy, steps| match strategy {
            Strategy::No => Cadence::Never,
            Strategy::Steps => Cadence::Steps(steps),
            Strategy::Epoch => Cadence::Epoch,
        };
        let strategy = |steps: Option<usize>| if steps.is_some() { Strategy::Steps } else { Strategy::Epoch };
        let default = if validates { strategy(self.eval_steps) } else { Strategy::No };
        let eval_strategy = self.eval_strategy.unwrap_or(default);
        let save_strategy = self.save_strategy.unwrap_or(strategy(self.save_steps));
        let schedule = self.lr_scheduler_type.unwrap_or(ScheduleKind::Linear);
        if eval_strategy != Strategy::No && !validates {
            let remedy = "pass --validation-file or --validation-split";
            return Err(Error::user("--eval-strategy", "there is nothing to evaluate on", remedy));
        }
        let eval_needs = if validates { "--eval-strategy steps" } else { "validation data" };
        let never_evaluates = !validates && files.test.is_empty();
        for (unused, flag, needs) in [
            (self.max_eval_samples.is_some() && !validates, "--max-eval-samples", "validation data"),
            (self.eval_batch_size.is_some() && never_evaluates, "--eval-batch-size", "validation or test data"),
            (self.eval_steps.is_some() && eval_strategy != Strategy::Steps, "--eval-steps", eval_needs),
            (self.save_steps.is_some() && save_strategy != Strategy::Steps, "--save-steps", "--save-strategy steps"),
            (
                self.warmup_steps.is_some_and(|steps| steps > 0.0) && schedule == ScheduleKind::Constant,
                "--warmup-steps",
                "--lr-scheduler-type constant_with_warmup",
            ),
        ] {
            if unused {
                note(format!("note: {flag} has no effect without {needs}"));
            }
        }
        let evaluates = eval_strategy != Strategy::No;
        for (given, flag) in [
            (self.load_best_model_at_end == Some(true), "--load-best-model-at-end"),
            (self.metric_for_best_model.is_some(), "--metric-for-best-model"),
            (self.early_stopping_patience.is_some(), "--early-stopping-patience"),
        ] {
            if given && !evaluates {
                let remedy =
                    if validates { "pass --eval-strategy epoch" } else { "pass --validation-file or --validation-split" };
                return Err(Error::user(flag, "needs evaluations", remedy));
            }
        }
        if fail_under.is_some() && never_evaluates {
            return Err(Error::user("--fail-under", "there is nothing to evaluate on", "pass --validation-file or --test-file"));
        }
        let mut report_to = self.report_to.unwrap_or(vec![ReportTo::Jsonl, ReportTo::Tensorboard]);
        if report_to.contains(&ReportTo::None) && report_to.len() > 1 {
            return Err(Error::user("--report-to", "none cannot be combined with a log", "leave out one of them"));
        }
        report_to.retain(|&log| log != ReportTo::None);
        let output_dir = match self.output_dir {
            Some(folder) => folder,
            None if self.dry_run => RUNS.into(),
            None => RunDir::numbered(RUNS.as_ref(), "")?,
        };
        let inputs = files.train.iter().chain(&files.validation).chain(&files.test).chain([&model]);
        RunDir::keep_inputs(&output_dir, inputs)?;
        Ok(Settings {
            model,
            from_scratch: self.from_scratch.unwrap_or(false),
            ignore_mismatched_sizes: self.ignore_mismatched_sizes.unwrap_or(false),
            output_dir,
            overwrite_output_dir: overwrites,
            resume_from_checkpoint: self.checkpoint,
            dry_run: self.dry_run,
            dataset: self.data.dataset.or(self.data.data_dir),
            dataset_config: self.data.dataset_config,
            of_dataset,
            validation_split_name: self.data.validation_split_name,
            files,
            validation_split: self.validation_split,
            reading: self.data.reading.labelled(self.data.label_column.as_deref()),
            label_names: self.data.label_names.map(|names| names.0),
            positive_label: self.positive_label,
            max_length: self.max_length,
            truncation_side: self.truncation_side,
            max_train_samples: self.max_train_samples,
            max_eval_samples: self.max_eval_samples,
            shuffle: !self.no_shuffle,
            num_train_epochs: self.epochs.unwrap_or(3.0),
            max_steps: self.max_steps,
            batch_size: self.batch_size.unwrap_or(8),
            eval_batch_size: self.eval_batch_size.unwrap_or(8),
            gradient_accumulation_steps: self.gradient_accumulation_steps.unwrap_or(1),
            learning_rate: self.learning_rate.unwrap_or(5e-5),
            weight_decay: self.weight_decay.unwrap_or(0.0),
            adam_beta1: self.adam_beta1.unwrap_or(0.9),
            adam_beta2: self.adam_beta2.unwrap_or(0.999),
            adam_epsilon: self.adam_epsilon.unwrap_or(1e-8),
            warmup_steps: self.warmup_steps.unwrap_or(0.0),
            lr_scheduler_type: schedule,
            max_grad_norm: self.max_grad_norm.unwrap_or(1.0),
            label_smoothing_factor: self.label_smoothing_factor.unwrap_or(0.0),
            class_weights: self.class_weights,
            dropout: self.dropout,
            classifier_dropout: self.classifier_dropout,
            device,
            precision: self.precision.unwrap_or(Precision::Auto),
            tune,
            algorithms,
            seed: self.seed.unwrap_or(42),
            logging_steps,
            eval: cadence(eval_strategy, self.eval_steps.unwrap_or(logging_steps)),
            save: cadence(save_strategy, self.save_steps.unwrap_or(500)),
            save_total_limit: self.save_total_limit,
            save_only_model: self.save_only_model.unwrap_or(false),
            load_best_model_at_end: self.load_best_model_at_end.unwrap_or(evaluates),
            metric_for_best_model: metric,
            early_stopping_patience: self.early_stopping_patience,
            report_to,
            profile: self.profile,
            fail_under,
            flags: self.given,
            working_directory: std::env::current_dir().unwrap_or_default().to_string_lossy().into_owned(),
        })
    }
}

fn class_weights(text: &str) -> std::result::Result<ClassWeights, String> {
    if text == "balanced" {
        return Ok(ClassWeights::Balanced);
    }
    // Losses are computed with them in f32.
    let weight = |n: &str| positive(n.trim()).ok().filter(|&weight| (weight as f32).is_normal());
    let numbers: Option<Vec<f64>> = text.split(',').map(weight).collect();
    let remedy = "use balanced, or one number per label, from 1e-37 to 1e38, separated by commas";
    numbers.map(ClassWeights::Given).ok_or_else(|| remedy.to_string())
}
