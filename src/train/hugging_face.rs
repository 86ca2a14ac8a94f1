//! Command lines of Hugging Face's scripts (run_glue.py, run_classification.py): the meaning here of flags that `train` does not
//! have. They are translated word by word, before the command line is parsed.

use std::ffi::OsString;
use std::path::Path;

use super::args::NEVER;
use crate::error::{Error, Result};
use crate::flags::truth;

/// Flags that do not change the result. They are accepted with any value, and reported.
pub const NO_EFFECT: &[&str] = &[
    "attn_implementation",
    "auto_find_batch_size",
    "average_tokens_across_devices",
    "batch_eval_metrics",
    "cache_dir",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "disable_tqdm",
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "fp16_backend",
    "fp16_opt_level",
    "full_determinism",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "group_by_length",
    "half_precision_backend",
    "hub_always_push",
    "include_for_metrics",
    "include_inputs_for_metrics",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "jit_mode_eval",
    "length_column_name",
    "local_rank",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_dir",
    "logging_first_step",
    "logging_nan_inf_filter",
    "logging_strategy",
    "low_cpu_mem_usage",
    "metric_name",
    "overwrite_cache",
    "pad_to_max_length",
    "prediction_loss_only",
    "preprocessing_num_workers",
    "project",
    "ray_scope",
    "remove_columns",
    "remove_splits",
    "remove_unused_columns",
    "restore_callback_states_from_checkpoint",
    "run_name",
    "save_on_each_node",
    "save_safetensors",
    "shuffle_seed",
    "shuffle_train_dataset",
    "skip_memory_metrics",
    "text_column_delimiter",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "torch_empty_cache_steps",
    "trackio_space_id",
    "trust_remote_code",
    "use_auth_token",
    "use_fast_tokenizer",
    "use_ipex",
    "use_legacy_prediction_loop",
    "use_liger_kernel",
    "use_mps_device",
    "with_tracking",
];

const LEAVE_OUT: &str = "leave it out";

/// Flags accepted only with these values, and the remedy for any other, which would change the result.
const FIXED: &[(&str, &[&str], &str)] = &[
    ("optim", &["adamw_torch", "adamw_torch_fused"], "use adamw_torch"),
    ("optim_args", &[], LEAVE_OUT),
    ("optim_target_modules", &[], LEAVE_OUT),
    ("adafactor", &["false"], LEAVE_OUT),
    ("lr_scheduler_kwargs", &["{}"], LEAVE_OUT),
    ("neftune_noise_alpha", &[], LEAVE_OUT),
    ("data_seed", &[], "use --seed"),
    ("dataloader_drop_last", &["false"], LEAVE_OUT),
    ("ignore_data_skip", &["false"], LEAVE_OUT),
    ("do_regression", &["false"], LEAVE_OUT),
    ("do_lower_case", &[], "choose a model with an uncased tokenizer"),
    ("eval_delay", &["0", "0.0"], LEAVE_OUT),
    ("eval_on_start", &["false"], LEAVE_OUT),
    ("early_stopping_threshold", &["0", "0.0"], LEAVE_OUT),
    ("bf16_full_eval", &["false"], "use --precision"),
    ("fp16_full_eval", &["false"], "use --precision"),
    ("dtype", &["auto", "float32"], "use --precision"),
    ("torch_dtype", &["auto", "float32"], "use --precision"),
    ("train_split_name", &["train"], "name the files with --train-file"),
    ("test_split_name", &["test"], "name the file with --test-file"),
    ("max_predict_samples", &[], "shorten the test file"),
    ("model_revision", &["main"], "write the model as ID@REVISION"),
    ("revision", &["main"], "write the model as ID@REVISION"),
    ("hub_revision", &["main"], LEAVE_OUT),
    ("hub_strategy", &["end", "every_save"], LEAVE_OUT),
    ("hub_token", &[], "set HF_TOKEN instead"),
    ("token", &[], "set HF_TOKEN instead"),
    ("language", &[], "choose a data set without pairs of texts"),
    ("train_language", &[], "choose a data set without pairs of texts"),
    ("deepspeed", &[], LEAVE_OUT),
    ("fsdp", &[], LEAVE_OUT),
    ("fsdp_config", &[], LEAVE_OUT),
    ("accelerator_config", &[], LEAVE_OUT),
    ("tpu_num_cores", &[], LEAVE_OUT),
];

/// Services of Trainer's `report_to` that are not called here.
const SERVICES: &[&str] = &[
    "all",
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "mlflow",
    "neptune",
    "swanlab",
    "trackio",
    "wandb",
];

/// The end of `train --help`.
pub fn help() -> String {
    format!(
        "Command lines of Hugging Face's run_glue.py and run_classification.py work here. Flags may be written \
         --in-kebab-case or --in_snake_case, and truth values as true or True.\n\
         Translated: --do_train, --do_eval, --do_predict; --bf16, --fp16 and --tf32 are --precision; --no_cuda and --use_cpu are \
         --device cpu; --warmup_ratio and --num_warmup_steps are --warmup-steps; --task_name is a configuration of the data set \
         nyu-mll/glue; -1 for --max_steps, --save_steps or --save_total_limit is none; --optim may be adamw_torch or \
         adamw_torch_fused.\n\
         Without effect, and reported: {}.\n\
         Defaults that differ from TrainingArguments: --eval-strategy epoch (no), --save-strategy epoch (steps), --logging-steps \
         10 (500), --load-best-model-at-end true with evaluations (false), --precision auto (fp32), --report-to \
         jsonl,tensorboard. Those of the scripts: --max-length 512 or the model's limit (128).",
        NO_EFFECT.iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(", ")
    )
}

/// A flag of a command line and the words after it, up to the next flag.
struct Flag {
    /// Without a value: `--do_train`.
    typed: String,
    /// In snake case, without dashes: `do_train`.
    name: String,
    values: Vec<String>,
    words: Vec<OsString>,
}

impl Flag {
    fn new(word: OsString) -> Flag {
        let text = word.to_string_lossy().into_owned();
        let (typed, value) = text.split_once('=').map_or((text.as_str(), None), |(typed, value)| (typed, Some(value)));
        let name = typed.trim_start_matches('-').replace('-', "_");
        Flag { typed: typed.to_string(), name, values: value.into_iter().map(String::from).collect(), words: vec![word] }
    }

    /// All values as one word, as the lists of `train` are written.
    fn value(&self) -> String {
        self.values.join(",")
    }

    /// The value of a switch: true if it has none.
    fn truth(&self) -> Result<bool> {
        match self.values.as_slice() {
            [] => Ok(true),
            [value] => truth(value).map_err(|_| self.refused("", "use true or false")),
            _ => Err(self.refused("", "use true or false")),
        }
    }

    /// The error for a value, or for the flag as a whole if it has none.
    fn refused(&self, why: &str, remedy: &str) -> Error {
        let what = [self.value(), "is not supported".to_string()].join(" ");
        let fact = if why.is_empty() { what.trim_start().to_string() } else { why.to_string() };
        Error::user(&self.typed, fact, remedy)
    }
}

/// Whether a word is a flag: it begins with a dash, and is not a negative number.
fn is_flag(word: &OsString) -> bool {
    word.to_str().is_some_and(|word| word.starts_with('-') && word.parse::<f64>().is_err())
}

/// Translates the words of a command line, the first of which is the program's name. Also returns the flags without effect, as
/// typed.
///
/// # Errors
/// A flag or value that would change the result and is not supported.
pub fn translate(words: impl IntoIterator<Item = OsString>) -> Result<(Vec<OsString>, Vec<String>)> {
    let (mut translated, mut flags) = (Vec::new(), Vec::<Flag>::new());
    for word in words {
        match flags.last_mut() {
            _ if is_flag(&word) => flags.push(Flag::new(word)),
            None => translated.push(word),
            Some(flag) => {
                flag.values.push(word.to_string_lossy().into_owned());
                flag.words.push(word);
            }
        }
    }
    let given = |names: &[&str]| flags.iter().find(|flag| names.contains(&flag.name.as_str()));
    let is_on = |name: &str| given(&[name]).map_or(Ok(false), Flag::truth);
    let mut no_effect = Vec::new();
    for flag in &flags {
        let value = flag.value();
        let rest: Option<String> = match flag.name.as_str() {
            // Decided together, below.
            "do_train" | "do_eval" | "do_predict" | "bf16" | "fp16" | "tf32" => None,
            "no_cuda" | "use_cpu" => flag.truth()?.then(|| "--device=cpu".to_string()),
            "max_steps" | "save_total_limit" if value == "-1" => None,
            "save_steps" if value == "-1" && given(&["save_strategy"]).is_none() => Some("--save-strategy=no".to_string()),
            "num_warmup_steps" => Some(format!("--warmup-steps={value}")),
            // As in Trainer, a number of updates overrides the fraction.
            "warmup_ratio" if given(&["warmup_steps"]).is_some_and(|steps| steps.value().parse() != Ok(0.0)) => None,
            "warmup_ratio" if value.parse().is_ok_and(|ratio: f64| ratio >= 1.0) => {
                return Err(flag.refused("", "use a fraction below 1, or --warmup-steps"));
            }
            "warmup_ratio" => Some(format!("--warmup-steps={value}")),
            "warmup_steps" if value.parse() == Ok(0.0) && given(&["warmup_ratio"]).is_some() => None,
            // A folder may be called "1".
            "resume_from_checkpoint" if Path::new(&value).is_dir() => Some(format!("--resume-from-checkpoint={value}")),
            "resume_from_checkpoint" if truth(&value) == Ok(true) => Some("--resume-from-checkpoint".to_string()),
            "resume_from_checkpoint" if truth(&value) == Ok(false) => Some(format!("--resume-from-checkpoint={NEVER}")),
            "report_to" => {
                let logs: Vec<&str> = value.split(',').filter(|log| !SERVICES.contains(log)).collect();
                let services: Vec<&str> = value.split(',').filter(|log| SERVICES.contains(log)).collect();
                no_effect.extend(services.iter().map(|service| format!("{} {service}", flag.typed)));
                (!logs.is_empty()).then(|| format!("--report-to={}", logs.join(",")))
            }
            "task_name" => {
                translated.push("--dataset=nyu-mll/glue".into());
                Some(format!("--dataset-config={value}"))
            }
            "text_column_name" | "text_column_names" if value.contains(',') => {
                let why = format!("{value} are several columns, which are not joined");
                return Err(flag.refused(&why, "name one of them, or join them in the file"));
            }
            "text_column_names" => Some(format!("--text-column={value}")),
            "config_name" | "tokenizer_name" => match given(&["model", "model_name_or_path"]) {
                Some(model) if model.value() == value => None,
                _ => return Err(flag.refused("another than the model's is not supported", LEAVE_OUT)),
            },
            "greater_is_better" => {
                let metric = given(&["metric_for_best_model"]).map_or("loss".to_string(), Flag::value);
                if flag.truth()? == metric.ends_with("loss") {
                    return Err(flag.refused(&format!("{value} is the wrong direction for {metric}"), LEAVE_OUT));
                }
                None
            }
            name if NO_EFFECT.contains(&name) => {
                no_effect.push(flag.typed.clone());
                None
            }
            name => match FIXED.iter().find(|(fixed, ..)| *fixed == name) {
                Some((_, accepted, _)) if accepted.contains(&value.to_lowercase().as_str()) => None,
                Some((_, accepted, _)) if accepted == &["false"] && truth(&value) == Ok(false) => None,
                // The value may be a secret.
                Some((_, [], remedy)) => return Err(flag.refused("is not supported", remedy)),
                Some((.., remedy)) => return Err(flag.refused("", remedy)),
                None => {
                    translated.extend(flag.words.iter().cloned());
                    None
                }
            },
        };
        translated.extend(rest.map(OsString::from));
    }

    if given(&["shuffle_train_dataset"]).is_some_and(|flag| flag.truth().unwrap_or(true))
        && let Some(flag) = given(&["max_train_samples"])
    {
        return Err(flag.refused("takes the first rows here, and rows at random in Hugging Face's script", "shuffle the file"));
    }
    if let Some(flag) = given(&["do_train", "do_eval", "do_predict"]) {
        if !is_on("do_train")? {
            let remedy = "pass --do_train, or use warpfit evaluate or warpfit predict";
            return Err(flag.refused("nothing is to be trained", remedy));
        }
        if is_on("do_eval")? && given(&["eval_strategy", "evaluation_strategy", "eval_steps"]).is_none() {
            translated.push("--eval-strategy=epoch".into());
        }
    }
    if let Some(flag) = given(&["bf16", "fp16", "tf32"]) {
        let precision = match (is_on("fp16")?, is_on("bf16")?, is_on("tf32")?) {
            (true, true, _) => return Err(flag.refused("fp16 and bf16 exclude each other", "choose one of them")),
            (true, ..) => "fp16",
            (_, true, _) => "bf16",
            (.., true) => "tf32",
            _ => "fp32",
        };
        translated.push(format!("--precision={precision}").into());
    }
    Ok((translated, no_effect))
}
