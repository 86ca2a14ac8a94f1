//! The state of a run that a checkpoint holds beside the model, with which resuming is bit-identical to an uninterrupted run.
//! The weights and moments are tensors; row order, dropout and schedule are functions of the step alone.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use twox_hash::XxHash64;

use super::args::{Settings, flag_of, shown};
use super::data::Data;
use super::epochs::DIVERGED;
use super::{Trainer, tune};
use crate::checkpoint::run_dir::{RunDir, STATE};
use crate::checkpoint::weights;
use crate::console::note;
use crate::data::tokenize::{Encoded, Tokenizer};
use crate::error::{Error, Kind, Result};
use crate::files::{write_file, write_json};
use crate::model::Model;
use crate::model::config::Config;
use crate::ops::View;
use crate::report::log::counted;

/// How dropout draws its masks, in a checkpoint: a later definition has another name.
pub(super) const MASKS: &str = "Philox4x32-7, 16 bits";

/// The state between two micro-batches; state.json of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunState {
    /// Random id of the run; empty in a checkpoint of an earlier version.
    #[serde(default)]
    pub run_id: String,
    /// How dropout draws its masks; empty in a checkpoint of a version that drew others.
    #[serde(default)]
    pub masks: String,
    /// What computed it, on which the bits depend; empty in a checkpoint of an earlier version.
    #[serde(default)]
    pub processor: String,
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
    pub fn new(settings: &Settings, data: &Data, tokenizer: &Tokenizer, processor: String) -> RunState {
        RunState {
            run_id: String::new(),
            masks: MASKS.to_string(),
            processor,
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
            fingerprint: fingerprint(settings, data, tokenizer),
        }
    }

    /// Reads the state of a checkpoint.
    pub(super) fn read(checkpoint: &Path) -> Result<RunState> {
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

    /// Checks that a run of `total` updates, of so many micro-batches each, can be in this state.
    ///
    /// # Errors
    /// The first number out of its range.
    pub(super) fn check_numbers(&self, checkpoint: &Path, total: usize, micro_batches: usize) -> Result<()> {
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
    pub(super) fn check(&self, checkpoint: &Path, fingerprint: &Value, config: &Config) -> Result<()> {
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
                "data" => "was written with other training data, or another tokenizer".to_string(),
                _ => format!("was written with {} {}, but this run has {}", flag_of(setting(key)), shown(&was[key]), shown(is)),
            };
            return Err(Error::user(checkpoint.display(), fact, "resume with the same settings, or start a new run"));
        }
        let Config { dropout, attention_dropout, classifier_dropout, .. } = *config;
        if self.masks != MASKS && [dropout, attention_dropout, classifier_dropout].iter().any(|&rate| rate > 0.0) {
            let place = checkpoint.display();
            note(format!(
                "warning: {place} was written by a version with other dropout masks: the final weights will differ from those of an uninterrupted run"
            ));
        }
        Ok(())
    }
}

/// The setting that a key of a model's config comes from.
fn setting(key: &str) -> &str {
    match key {
        "attention_dropout" | "attention_probs_dropout_prob" | "hidden_dropout_prob" => "dropout",
        "seq_classif_dropout" => "classifier_dropout",
        key => key,
    }
}

/// Settings that must be the same when a run resumes.
fn fingerprint(settings: &Settings, data: &Data, tokenizer: &Tokenizer) -> Value {
    let hash = |bytes: &[u8], seed| XxHash64::oneshot(seed, bytes);
    let hash = |data: &Encoded| {
        let hash = hash(bytemuck::cast_slice(&data.ids), hash(bytemuck::cast_slice(&data.labels), data.rows() as u64));
        format!("{hash:016x}")
    };
    json!({
        // First: other settings may come from it.
        "model": settings.model.file_name().unwrap_or_default().to_string_lossy(),
        "from_scratch": settings.from_scratch,
        "max_length": tokenizer.max_length,
        "truncation_side": tokenizer.truncation_side,
        // What evaluations measure: those of a run are compared.
        "metric_for_best_model": settings.metric_for_best_model,
        "positive_label": settings.positive_label,
        "label_smoothing_factor": settings.label_smoothing_factor,
        "class_weights": settings.class_weights,
        "batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "precision": settings.precision,
        "shuffle": settings.shuffle,
        "seed": settings.seed,
        // Last: a flag may be why they differ.
        "data": hash(&data.train),
        "validation_data": data.validation.as_ref().map(|data| hash(data)),
    })
}

/// The optimizer's state, with the prefixes of its tensors in a checkpoint.
pub(super) fn moments(model: &Model) -> [(&'static str, View); 2] {
    [("m.", model.plan.m), ("v.", model.plan.v)]
}

/// The largest number of flat views in a checkpoint: parameters, moments, and, within an update, gradients.
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
}
