//! The state of a run that a checkpoint holds beside the model, with which resuming is bit-identical to an uninterrupted run.
//! The weights and moments are tensors; row order, dropout and schedule are functions of the step alone.

use std::cmp::Reverse;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use twox_hash::XxHash64;

use super::args::{GivenFlags, NEWEST, ReportTo, Settings};
use super::data::Data;
use super::epochs::DIVERGED;
use super::{BestModel, Trainer, tune};
use crate::checkpoint::run_dir::{Origin, RunDir, STATE, checkpoint_step};
use crate::checkpoint::snapshot::read_tensors;
use crate::checkpoint::weights::{self, Weights};
use crate::console::note;
use crate::data::tokenize::{Encoded, Tokenizer};
use crate::device::Precision;
use crate::error::{Error, Kind, Result};
use crate::files::{CHECKSUMS, read_sealed, verify, write_file, write_json};
use crate::model::Model;
use crate::model::config::Config;
use crate::ops::{Status, View};
use crate::report::history::History;
use crate::report::log::{Count, counted};

/// How dropout draws its masks, in a checkpoint: a later definition has another name.
const MASKS: &str = "Philox4x32-7, 16 bits";

/// Why a run cannot be resumed from some checkpoints.
const MODEL_ONLY: &str = "a checkpoint of --save-only-model has no optimizer state";

/// The state between two micro-batches; state.json of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunState {
    /// The run that this is a state of, at random; empty in a checkpoint of an earlier version.
    #[serde(default)]
    pub run_id: String,
    /// How dropout draws its masks; empty in a checkpoint of a version that drew others.
    #[serde(default)]
    pub masks: String,
    /// The checkpoint has the model alone, without what a run needs to be resumed.
    #[serde(default)]
    pub model_only: bool,
    /// Updates done.
    pub step: usize,
    /// Completed micro-batches of the current update; their gradients are in gradients.safetensors. 0 unless interrupted.
    pub micro_batch: usize,
    /// The status block when this was saved; null for values that are not finite.
    pub status: Vec<Option<f64>>,
    /// Skipped updates that were reported.
    #[serde(default)]
    pub skipped: usize,
    /// Updates up to which skipped ones were reported.
    #[serde(default)]
    pub checked: usize,
    /// The evaluation that follows this step is still due.
    pub evaluation_due: bool,
    /// Summed loss of all updates.
    pub loss_sum: f64,
    /// Consecutive evaluations without an improvement.
    #[serde(rename = "stale")]
    pub evals_without_improvement: usize,
    /// The best evaluation's step, and its value of the metric if defined.
    pub best: Option<(usize, Option<f64>)>,
    /// Settings that must be the same when the run resumes.
    #[serde(rename = "run")]
    pub fingerprint: Value,
}

impl RunState {
    /// The state before the first update.
    pub fn new(settings: &Settings, data: &Data) -> RunState {
        RunState {
            run_id: String::new(),
            masks: MASKS.to_string(),
            model_only: false,
            step: 0,
            micro_batch: 0,
            status: Vec::new(),
            skipped: 0,
            checked: 0,
            evaluation_due: false,
            loss_sum: 0.0,
            evals_without_improvement: 0,
            best: None,
            fingerprint: fingerprint(settings, data),
        }
    }

    /// Reads the state of a checkpoint.
    fn read(checkpoint: &Path) -> Result<RunState> {
        let path = checkpoint.join(STATE);
        let json = std::fs::read(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound if checkpoint.is_dir() => {
                let fact = format!("is not a checkpoint of this program: it has no {STATE}");
                Error::user(checkpoint.display(), fact, "use another checkpoint, or start a new run with this one as --model")
            }
            _ => Error::io(&path, e),
        })?;
        serde_json::from_slice(&json)
            .map_err(|e| Error::user(path.display(), format!("not the state of a run: {e}"), "use another checkpoint"))
    }

    /// Reads the state of a checkpoint after verifying all of its files.
    ///
    /// # Errors
    /// A file that is missing, damaged, or of another update.
    fn verified(checkpoint: &Path) -> Result<RunState> {
        let (state, sealed) = RunState::sound(checkpoint)?;
        if !sealed {
            note(format!("warning: {} has no checksums: it is used unverified", checkpoint.display()));
        }
        Ok(state)
    }

    /// The same, and whether there were checksums to compare.
    fn sound(checkpoint: &Path) -> Result<(RunState, bool)> {
        let sealed = verify(checkpoint)?;
        let state = RunState::read(checkpoint)?;
        let step = checkpoint.file_name().and_then(|name| checkpoint_step(name.to_str()?));
        if step.is_some_and(|step| step != state.step) {
            let fact = format!("is the checkpoint of update {}", state.step);
            return Err(Error::user(checkpoint.display(), fact, "use another checkpoint"));
        }
        if state.model_only {
            let remedy = "use another checkpoint, or start a new run with this one as --model";
            return Err(Error::user(checkpoint.display(), MODEL_ONLY, remedy));
        }
        if !sealed {
            // Notices truncated files.
            for file in ["model.safetensors", "optimizer.safetensors"] {
                Weights::open(&checkpoint.join(file))?;
            }
        }
        Ok((state, sealed))
    }

    /// Checks that a run of `total` updates, of so many micro-batches each, can be in this state.
    ///
    /// # Errors
    /// The first number out of its range.
    fn check_numbers(&self, checkpoint: &Path, total: usize, micro_batches: usize) -> Result<()> {
        let limits = [
            ("step", self.step, total, format!("but the run has {}", counted(total, "update"))),
            ("micro_batch", self.micro_batch, micro_batches, format!("but an update has {micro_batches}")),
            ("skipped", self.skipped, self.step, format!("but step is {}", self.step)),
            ("checked", self.checked, self.step, format!("but step is {}", self.step)),
            ("stale", self.evals_without_improvement, self.step, format!("but step is {}", self.step)),
            ("best", self.best.map_or(0, |(step, _)| step), self.step, format!("but step is {}", self.step)),
        ];
        let Some((key, value, _, limit)) = limits.into_iter().find(|&(_, value, most, _)| value > most) else { return Ok(()) };
        let remedy = match key {
            "step" => "raise --epochs or --max-steps, or use another checkpoint",
            _ => "use another checkpoint",
        };
        Err(Error::user(checkpoint.join(STATE).display(), format!("{key} is {value}, {limit}"), remedy))
    }

    /// Checks that a run with this fingerprint, of a model with this config, can continue from the checkpoint.
    ///
    /// # Errors
    /// The first difference.
    fn check(&self, checkpoint: &Path, fingerprint: &Value, config: &Config) -> Result<()> {
        let [was, is] = [&Config::read(&checkpoint.join("config.json"))?, config]
            .map(|config| serde_json::from_str(&config.to_json()).expect("JSON of our own"));
        for (was, is) in [(&self.fingerprint, fingerprint), (&was, &is)] {
            // An earlier version has fewer keys; and a run may go on without evaluations.
            let goes_on_without = |key: &str, is: &Value| key == "validation_data" && is.is_null();
            let differs =
                |(key, is): &(&String, &Value)| was.get(*key).is_some_and(|was| was != *is) && !goes_on_without(key, is);
            let Some((key, is)) = is.as_object().into_iter().flatten().find(differs) else { continue };
            let fact = match key.as_str() {
                "validation_data" => "was written with other validation data".to_string(),
                "data" => {
                    "was written with other training data, another tokenizer, another --max-length or another --truncation-side"
                        .to_string()
                }
                _ => format!("was written with {key} {}, but this run has {is}", was[key]),
            };
            return Err(Error::user(checkpoint.display(), fact, "resume with the same settings, or start a new run"));
        }
        let Config { dropout, attention_dropout, classifier_dropout, .. } = *config;
        if self.masks != MASKS && [dropout, attention_dropout, classifier_dropout].iter().any(|&rate| rate > 0.0) {
            let place = checkpoint.display();
            note(format!(
                "warning: {place} is of a version with other dropout masks: this run ends with other weights than that one would have"
            ));
        }
        Ok(())
    }
}

/// Settings that may change when a run resumes.
const CHANGEABLE: [&str; 14] = [
    "device",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "class_weights",
    "positive_label",
];

/// Settings that must be the same when a run resumes.
fn fingerprint(settings: &Settings, data: &Data) -> Value {
    let hash = |bytes: &[u8], seed| XxHash64::oneshot(seed, bytes);
    let hash = |data: &Encoded| {
        let hash = hash(bytemuck::cast_slice(&data.ids), hash(bytemuck::cast_slice(&data.labels), data.rows() as u64));
        format!("{hash:016x}")
    };
    json!({
        "data": hash(&data.train),
        "validation_data": data.validation.as_ref().map(|data| hash(data)),
        "metric_for_best_model": settings.metric_for_best_model,
        "model": settings.model.file_name().unwrap_or_default().to_string_lossy(),
        "from_scratch": settings.from_scratch,
        "batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "precision": settings.precision,
        "seed": settings.seed,
        "shuffle": settings.shuffle,
    })
}

/// The precision of the run that is resumed, if that is asked for and a checkpoint tells.
pub fn precision_of_checkpoint(settings: &Settings) -> Option<Precision> {
    let asked = settings.resume_from_checkpoint.as_ref()?;
    let of = |checkpoint: &Path| serde_json::from_value(RunState::read(checkpoint).ok()?.fingerprint["precision"].clone()).ok();
    first(asked, &settings.output_dir, of).map(|(_, precision)| precision)
}

/// The flags of the run that is resumed, and the checkpoint that has them.
pub fn flags_of_checkpoint(asked: &Path, run: &Path) -> Option<(PathBuf, GivenFlags)> {
    let of = |checkpoint: &Path| {
        let settings = settings_of(checkpoint)?;
        let mut flags: GivenFlags = serde_json::from_value(settings["flags"].clone()).ok()?;
        // A run that is resumed in another folder finds what its relative paths lead to; a model or data set may be an id of the hub.
        let directory = Path::new(settings["working_directory"].as_str().unwrap_or_default());
        for flag in ["train-file", "validation-file", "test-file", "data-dir", "model", "dataset"] {
            let Some(path) = flags.get_mut(flag) else { continue };
            let there = directory.join(&*path);
            let may_be_id = ["model", "dataset"].contains(&flag);
            if !Path::new(path).exists() && (there.exists() || !may_be_id) {
                *path = there.to_string_lossy().into_owned();
            }
        }
        Some(flags)
    };
    first(asked, run, of)
}

/// `--tune` and `--algorithms` of the run that is resumed, which cannot be given again.
pub fn tuning_of_checkpoint(settings: &Settings) -> Option<(Option<bool>, Option<PathBuf>)> {
    let asked = settings.resume_from_checkpoint.as_ref()?;
    let (_, saved) = first(asked, &settings.output_dir, settings_of)?;
    let tune = serde_json::from_value(saved["tune"].clone()).ok()?;
    Some((tune, serde_json::from_value(saved["algorithms"].clone()).ok()?))
}

/// The settings that a checkpoint was written with.
fn settings_of(checkpoint: &Path) -> Option<Value> {
    const NAME: &str = "training_args.json";
    let is_sealed = checkpoint.join(CHECKSUMS).exists();
    let json = if is_sealed { read_sealed(checkpoint, NAME)? } else { std::fs::read(checkpoint.join(NAME)).ok()? };
    serde_json::from_slice(&json).ok()
}

/// What `of` finds in a checkpoint from which a run may resume: the one that will be, if it has that, or another one.
fn first<T>(asked: &Path, run: &Path, of: impl Fn(&Path) -> Option<T>) -> Option<(PathBuf, T)> {
    let all = candidates(asked, run);
    let newest = all.iter().find(|path| RunState::sound(path).is_ok());
    newest.into_iter().chain(&all).find_map(|path| Some((path.clone(), of(path)?)))
}

/// The checkpoints from which a run may resume, in order of preference: the one that is named, or all of the run
/// in that folder.
fn candidates(asked: &Path, run: &Path) -> Vec<PathBuf> {
    if asked.as_os_str() != NEWEST {
        return vec![asked.into()];
    }
    let id = RunDir::id(run);
    let step = |path: &PathBuf| checkpoint_step(path.file_name()?.to_str()?).filter(|_| Origin::of(path, &id) == Origin::Own);
    let entries = std::fs::read_dir(run).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut checkpoints: Vec<PathBuf> = entries.filter(|path| step(path).is_some()).collect();
    checkpoints.sort_by_key(|path| Reverse(step(path)));
    checkpoints
}

/// The optimizer's state, with the prefixes of its tensors in a checkpoint.
fn moments(model: &Model) -> [(&'static str, View); 2] {
    [("m.", model.plan.m), ("v.", model.plan.v)]
}

/// Flat views that a checkpoint of a run has at most: parameters, moments, and, within an update, gradients.
pub fn views_of_checkpoint(settings: &Settings) -> usize {
    if settings.gradient_accumulation_steps > 1 { 4 } else { 3 }
}

/// The error for a model that could not be saved: names the last good checkpoint if its numbers are not finite.
pub fn not_saved(error: Error, step: usize, run: &RunDir) -> Error {
    if error.kind != Kind::Unusable {
        return error;
    }
    let fact = format!("{}, so that nothing was saved; {}", error.fact(), run.kept());
    Error::new(Kind::Unusable, format!("after update {step}"), fact, DIVERGED)
}

impl Trainer<'_> {
    /// Copies the state of the run, and begins to write it as a checkpoint: the model alone, or all that a run needs to be resumed.
    ///
    /// # Errors
    /// The last checkpoint could not be written, or the device has failed.
    pub(super) fn save(&mut self, model_only: bool) -> Result<()> {
        let (snapshot, params, grads) = (self.saver.snapshot()?, self.model.plan.params, self.model.plan.grads);
        let moments = if model_only { Vec::new() } else { moments(&self.model).to_vec() };
        let gradients = (self.state.micro_batch > 0).then_some(("", grads));
        let views = [("", params)].into_iter().chain(moments.iter().copied()).chain(gradients);
        snapshot.take(&mut self.model, &views.map(|(_, view)| view).collect::<Vec<_>>())?;
        self.state.model_only = model_only;
        self.state.status = self.model.status()?.to_array().map(|x| Some(x).filter(|x| x.is_finite())).to_vec();
        // If no checkpoint has the best weights, one to resume from includes them.
        let unsaved = self.best.as_ref().filter(|best| !model_only && !best.saved && !best.weights.is_empty());
        let best = unsaved.map(|best| best.weights.clone());
        let (run, source, settings) = (self.run.clone(), self.source.clone(), self.settings.clone());
        let (state, trainer_state) = (self.state.clone(), self.trainer_state());
        let algorithms = if model_only { None } else { tune::recorded(&mut self.model) };
        self.saver.start(move |snapshot| {
            let written = run.checkpoint(state.step, |folder| {
                source.write(folder, snapshot)?;
                if !moments.is_empty() {
                    snapshot.write(&folder.join("optimizer.safetensors"), &moments)?;
                }
                if let Some(algorithms) = &algorithms {
                    write_file(&folder.join(tune::FILE), algorithms.as_bytes())?;
                }
                if let Some(gradients) = gradients {
                    snapshot.write(&folder.join("gradients.safetensors"), &[gradients])?;
                }
                if let Some(best) = best {
                    let tensors = snapshot.plan.slots.iter().zip(&*best);
                    let tensors = tensors.map(|(slot, values)| (&slot.param.name, &slot.param.shape, values));
                    weights::write(&folder.join("best.safetensors"), &tensors.collect::<Vec<_>>())?;
                }
                write_json(&folder.join(STATE), &state)?;
                write_json(&folder.join("trainer_state.json"), &trainer_state)?;
                write_json(&folder.join("training_args.json"), &settings)
            });
            written.map_err(|error| not_saved(error, state.step, &run))?;
            match settings.save_total_limit {
                Some(limit) => run.rotate(limit, state.step, state.best.map(|(step, _)| step)),
                None => Ok(()),
            }
        })
    }

    /// The checkpoint for `--resume-from-checkpoint`, and its state: the one named, or the newest of this run that is sound.
    fn sound_checkpoint(&self, asked: &Path) -> Result<(PathBuf, RunState)> {
        if asked.as_os_str() != NEWEST {
            return Ok((asked.into(), RunState::verified(asked)?));
        }
        let mut unusable = Vec::new();
        for step in self.run.numbered_folders()?.into_iter().rev() {
            let path = self.run.checkpoint_path(step);
            if self.run.origin(step) == Origin::Foreign {
                unusable.push(format!("{}: is not a checkpoint of this run", path.display()));
                continue;
            }
            match RunState::verified(&path) {
                // One line for all of them.
                Err(error) if error.fact() == MODEL_ONLY => {
                    unusable.retain(|other| other != MODEL_ONLY);
                    unusable.push(MODEL_ONLY.to_string());
                }
                Err(error) => unusable.push(error.without_remedy()),
                Ok(state) => {
                    if !unusable.is_empty() {
                        note(format!("warning: not resumed from the newest checkpoint: {}", unusable.join(", ")));
                    }
                    return Ok((path, state));
                }
            }
        }
        let fact = match unusable.is_empty() {
            true => "this folder has no checkpoint".to_string(),
            false => format!("this folder has no sound checkpoint: {}", unusable.join(", ")),
        };
        Err(Error::user(self.run.path.display(), fact, "leave out --resume-from-checkpoint"))
    }

    /// Restores the state of a checkpoint: the one named, or the newest.
    pub(super) fn resume(&mut self, asked: &Path) -> Result<()> {
        let (checkpoint, state) = self.sound_checkpoint(asked)?;
        let checkpoint = checkpoint.as_path();
        state.check(checkpoint, &self.state.fingerprint, &self.model.plan.config)?;
        state.check_numbers(checkpoint, self.schedule.total, self.settings.gradient_accumulation_steps)?;
        let sides = [&Tokenizer::read(checkpoint)?, self.source.tokenizer()?].map(|tokenizer| tokenizer.truncation_side.name());
        if sides[0] != sides[1] {
            let fact = format!("was written with --truncation-side {}, but this run has {}", sides[0], sides[1]);
            return Err(Error::user(checkpoint.display(), fact, "resume with the same settings, or start a new run"));
        }
        self.state = RunState { masks: MASKS.to_string(), ..state };
        let id = [&self.state.run_id, &self.run.id].into_iter().find(|id| !id.is_empty()).cloned();
        let later = if asked.as_os_str() == NEWEST { "damaged" } else { "later than the checkpoint that is resumed" };
        // Its weights are needed if the best model is loaded at the end.
        let best = self.state.best.filter(|_| self.settings.load_best_model_at_end);
        let best = best.map(|(step, _)| self.weights_of_best(step, checkpoint, id.as_deref().unwrap_or_default())).transpose()?;
        self.run.go_on(id, self.state.step, later)?;
        self.state.run_id = self.run.id.clone();
        let (params, moments) = ([("", self.model.plan.params)], moments(&self.model));
        if let Some((path, saved)) = best {
            read_tensors(&path, &mut self.model, &params)?;
            let weights = Arc::new(self.model.read_all(self.model.plan.params)?);
            self.best = Some(BestModel { evaluation: None, weights, saved });
        }
        read_tensors(&checkpoint.join("model.safetensors"), &mut self.model, &params)?;
        read_tensors(&checkpoint.join("optimizer.safetensors"), &mut self.model, &moments)?;
        if self.state.micro_batch > 0 {
            let grads = [("", self.model.plan.grads)];
            read_tensors(&checkpoint.join("gradients.safetensors"), &mut self.model, &grads)?;
        }
        // A checkpoint of an earlier version has fewer numbers.
        let mut status = Status::default().to_array();
        status.iter_mut().zip(&self.state.status).for_each(|(to, x)| *to = x.unwrap_or(f64::NAN));
        self.model.set_status(&Status::from_slice(&status))?;

        tune::resume(&mut self.model, checkpoint)?;

        let path = checkpoint.join("trainer_state.json");
        let saved = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        self.log = History::read(&saved, self.state.step)
            .map_err(|e| Error::user(path.display(), format!("not the log of a run: {e}"), "use another checkpoint"))?;
        if self.settings.report_to.contains(&ReportTo::Jsonl) {
            self.run.restart_log(self.log.lines())?;
        }
        self.report_changes(checkpoint);
        note(format!("resumed: {} of {} done", Count(self.state.step as u64), counted(self.schedule.total, "update")));
        Ok(())
    }

    /// The file with the weights of the best evaluation of the run with this id, and whether it is that of its checkpoint.
    fn weights_of_best(&self, step: usize, resumed: &Path, id: &str) -> Result<(PathBuf, bool)> {
        let checkpoint = self.run.checkpoint_path(step);
        if checkpoint.exists() && Origin::of(&checkpoint, id) != Origin::Foreign {
            let remedy =
                "its weights are those of the best evaluation: pass --load-best-model-at-end false to go on without them";
            verify(&checkpoint).map_err(|error| error.and(remedy))?;
            return Ok((checkpoint.join("model.safetensors"), true));
        }
        let name = if self.state.step == step { "model.safetensors" } else { "best.safetensors" };
        let path = resumed.join(name);
        if path.exists() {
            return Ok((path, false));
        }
        let fact = format!("the weights of the best evaluation, at update {step}, are missing");
        Err(Error::user(checkpoint.display(), fact, "pass --load-best-model-at-end false, or start a new run"))
    }

    /// Reports the settings that differ from those of the run so far.
    fn report_changes(&self, checkpoint: &Path) {
        let saved = std::fs::read(checkpoint.join("training_args.json")).unwrap_or_default();
        let was: Value = serde_json::from_slice(&saved).unwrap_or_default();
        let is = json!(self.settings);
        // An earlier version saved which device was asked for.
        let changed = |key| was.get(key).is_some_and(|was| *was != is[key] && *was != "auto");
        for key in CHANGEABLE.into_iter().filter(|&key| changed(key)) {
            note(format!("warning: {key} was {}, and is {} from here on", was[key], is[key]));
        }
    }
}
