//! Resuming a run: the checkpoint, chosen and verified once; the flags stored in it; and the state restored from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::args::{GivenFlags, NEWEST, ReportTo, flag_of, shown};
use super::state::{MASKS, RunState, moments};
use super::{BestModel, Trainer, tune};
use crate::checkpoint::run_dir::{Origin, RunDir, checkpoint_step};
use crate::checkpoint::snapshot::read_tensors;
use crate::checkpoint::weights::Weights;
use crate::console::note;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::files::{CHECKSUMS, same_file, verify};
use crate::ops::Status;
use crate::report::history::History;
use crate::report::log::{Count, counted};

/// Why a run cannot be resumed from some checkpoints.
const MODEL_ONLY: &str = "a checkpoint of --save-only-model has no optimizer state";

/// Settings that may change when a run resumes.
const CHANGEABLE: [&str; 10] = [
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
];

/// The checkpoint that is resumed, verified.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub path: PathBuf,
    state: RunState,
    /// The settings that it was written with; null in one of an earlier version.
    settings: Value,
    /// The user has named it; otherwise it is the newest sound one.
    named: bool,
    /// The folder in which the run goes on, locked before the choice.
    pub run: RunDir,
    /// How it was chosen, for the user.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// The checkpoint for `--resume-from-checkpoint`: the one named, or the newest sound one of the run in the folder `run`.
    ///
    /// # Errors
    /// There is none, or the one named is damaged; or another run is writing into the folder.
    pub fn choose(asked: &Path, run: &Path) -> Result<Checkpoint> {
        let named = asked.as_os_str() != NEWEST;
        let (place, missing) = if named { (asked, "no such checkpoint") } else { (run, "no such folder") };
        if !place.exists() {
            return Err(Error::user(place.display(), missing, "check the path"));
        }
        if named && RunDir::containing(asked).is_some_and(|folder| same_file(&folder, asked)) {
            let remedy = "leave out --output-dir to continue it, or name one of its checkpoints";
            return Err(Error::user(asked.display(), "is the folder of another run than --output-dir", remedy));
        }
        let run = RunDir::create(run, true)?;
        let mut chosen = if named { Checkpoint::verified(asked, run)? } else { Checkpoint::newest(run)? };
        if chosen.settings["flags"].is_object() {
            chosen.notes.push(format!("settings: those of {}, but for the flags given here", chosen.path.display()));
        }
        Ok(chosen)
    }

    fn newest(run: RunDir) -> Result<Checkpoint> {
        let mut unusable = Vec::new();
        for step in run.numbered_folders()?.into_iter().rev() {
            let path = run.checkpoint_path(step);
            if run.origin(step) == Origin::Foreign {
                unusable.push(format!("{}: is not a checkpoint of this run", path.display()));
                continue;
            }
            match Checkpoint::verified(&path, run.clone()) {
                // One line for all of them.
                Err(error) if error.fact() == MODEL_ONLY => {
                    unusable.retain(|other| other != MODEL_ONLY);
                    unusable.push(MODEL_ONLY.to_string());
                }
                Err(error) => unusable.push(error.without_remedy()),
                Ok(mut newest) => {
                    if !unusable.is_empty() {
                        let why = unusable.join(", ");
                        newest.notes.push(format!("warning: not resumed from the newest checkpoint: {why}"));
                    }
                    return Ok(Checkpoint { named: false, ..newest });
                }
            }
        }
        let fact = match unusable.is_empty() {
            true => "this folder has no checkpoint".to_string(),
            false => format!("this folder has no sound checkpoint: {}", unusable.join(", ")),
        };
        let remedy = "leave out --resume-from-checkpoint, and pass --overwrite-output-dir to start again";
        Err(Error::user(run.path.display(), fact, remedy))
    }

    /// Reads a checkpoint after verifying all of its files.
    ///
    /// # Errors
    /// A file that is missing, damaged, or of another update.
    fn verified(path: &Path, run: RunDir) -> Result<Checkpoint> {
        let sealed = verify(path)?;
        let state = RunState::read(path)?;
        let step = path.file_name().and_then(|name| checkpoint_step(name.to_str()?));
        if step.is_some_and(|step| step != state.step) {
            let fact = format!("is the checkpoint of update {}", state.step);
            return Err(Error::user(path.display(), fact, "use another checkpoint"));
        }
        if state.model_only {
            let remedy = "use another checkpoint, or start a new run with this one as --model";
            return Err(Error::user(path.display(), MODEL_ONLY, remedy));
        }
        let mut notes = Vec::new();
        if !sealed {
            notes.push(unverified(path, &state.run_id)?);
            // Notices truncated files.
            for file in ["model.safetensors", "optimizer.safetensors"] {
                Weights::open(&path.join(file))?;
            }
        }
        let settings = std::fs::read(path.join("training_args.json")).unwrap_or_default();
        let settings = serde_json::from_slice(&settings).unwrap_or_default();
        Ok(Checkpoint { path: path.into(), state, settings, named: true, run, notes })
    }

    /// The flags of its run; `None` in a checkpoint of an earlier version.
    pub fn flags(&self) -> Option<GivenFlags> {
        let mut flags: GivenFlags = serde_json::from_value(self.settings["flags"].clone()).ok()?;
        // A run that is resumed in another folder finds what its relative paths lead to; a model or data set may be an id of the hub.
        let directory = Path::new(self.settings["working_directory"].as_str().unwrap_or_default());
        let elsewhere = std::env::current_dir().is_ok_and(|here| here != directory);
        for flag in ["train-file", "validation-file", "test-file", "data-dir", "model", "dataset"] {
            let Some(path) = flags.get_mut(flag).filter(|_| elsewhere) else { continue };
            let there = directory.join(&*path);
            let may_be_id = ["model", "dataset"].contains(&flag);
            if there.exists() || !may_be_id && !Path::new(path).exists() {
                *path = there.to_string_lossy().into_owned();
            }
        }
        Some(flags)
    }

    /// The precision of its run, if that is recorded.
    pub fn precision(&self) -> Option<Precision> {
        serde_json::from_value(self.state.fingerprint["precision"].clone()).ok()
    }

    /// `--tune` and `--algorithms` of its run.
    pub fn tuning(&self) -> (Option<bool>, Option<PathBuf>) {
        (self.settings["tune"].as_bool(), self.settings["algorithms"].as_str().map(PathBuf::from))
    }
}

/// The warning for a checkpoint without checksums, which an earlier version has written: its runs had no ids.
///
/// # Errors
/// It has lost them.
fn unverified(checkpoint: &Path, run_id: &str) -> Result<String> {
    match run_id.is_empty() {
        true => Ok(format!("warning: {} has no checksums: it is used unverified", checkpoint.display())),
        false => Err(Error::user(checkpoint.join(CHECKSUMS).display(), "is missing", "use another checkpoint")),
    }
}

/// Its path.
impl Serialize for Checkpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

impl Trainer<'_> {
    /// Restores the state of the checkpoint.
    pub(super) fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let Checkpoint { path: folder, state, named, .. } = checkpoint;
        state.check(folder, &self.state.fingerprint, &self.model.plan.config)?;
        state.check_numbers(folder, self.schedule.total, self.settings.gradient_accumulation_steps)?;
        let processor = std::mem::take(&mut self.state.processor);
        if state.step < self.schedule.total && !state.processor.is_empty() && state.processor != processor {
            let (was, place) = (&state.processor, folder.display());
            note(format!(
                "warning: {place} was computed by {was}: on {processor} the bits may differ from those of an uninterrupted run"
            ));
        }
        self.state = RunState { masks: MASKS.to_string(), processor, ..state.clone() };
        let id = [&self.state.run_id, &self.run.id].into_iter().find(|id| !id.is_empty()).cloned();
        let later = if *named { "later than the checkpoint that is resumed" } else { "damaged" };
        let best = self.state.best.map(|(step, _)| (step, self.has_checkpoint(step, id.as_deref().unwrap_or_default())));
        // Its weights are needed if the best model is loaded at the end.
        let needed = best.filter(|_| self.settings.load_best_model_at_end);
        let weights_of_best = needed.map(|(step, saved)| self.weights_of_best(step, saved, folder)).transpose()?;
        self.run.go_on(id, self.state.step, later)?;
        self.state.run_id = self.run.id.clone();
        let (params, moments) = ([("", self.model.plan.params)], moments(&self.model));
        let mut weights = Vec::new();
        if let Some(path) = weights_of_best {
            read_tensors(&path, &mut self.model, &params)?;
            weights = self.model.read_all(self.model.plan.params)?;
        }
        self.best = best.map(|(_, saved)| BestModel { evaluation: None, weights: Arc::new(weights), saved });
        read_tensors(&folder.join("model.safetensors"), &mut self.model, &params)?;
        read_tensors(&folder.join("optimizer.safetensors"), &mut self.model, &moments)?;
        if self.state.micro_batch > 0 {
            let grads = [("", self.model.plan.grads)];
            read_tensors(&folder.join("gradients.safetensors"), &mut self.model, &grads)?;
        }
        // A checkpoint of an earlier version has fewer numbers.
        let mut status = Status::default().to_array();
        status.iter_mut().zip(&self.state.status).for_each(|(to, x)| *to = x.unwrap_or(f64::NAN));
        self.model.set_status(&Status::from_slice(&status))?;

        tune::resume(&mut self.model, folder)?;

        let path = folder.join("trainer_state.json");
        let saved = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        self.log = History::read(&saved, self.state.step)
            .map_err(|e| Error::user(path.display(), format!("not the log of a run: {e}"), "use another checkpoint"))?;
        if self.settings.report_to.contains(&ReportTo::Jsonl) {
            self.run.restart_log(self.log.lines())?;
        }
        self.report_changes(&checkpoint.settings);
        note(format!("resumed: {} of {} done", Count(self.state.step as u64), counted(self.schedule.total, "update")));
        Ok(())
    }

    /// Whether the run with this id has a checkpoint of this step.
    fn has_checkpoint(&self, step: usize, id: &str) -> bool {
        let checkpoint = self.run.checkpoint_path(step);
        checkpoint.exists() && Origin::of(&checkpoint, id) != Origin::Foreign
    }

    /// The file with the weights of the best evaluation, which its checkpoint has if they are `saved`.
    fn weights_of_best(&self, step: usize, saved: bool, resumed: &Path) -> Result<PathBuf> {
        let checkpoint = self.run.checkpoint_path(step);
        if saved {
            if checkpoint != resumed {
                let remedy =
                    "its weights are those of the best evaluation: pass --load-best-model-at-end false to go on without them";
                let verified = verify(&checkpoint).map_err(|error| error.and(remedy))?;
                if !verified {
                    note(unverified(&checkpoint, &self.state.run_id).map_err(|error| error.and(remedy))?);
                }
            }
            return Ok(checkpoint.join("model.safetensors"));
        }
        let name = if self.state.step == step { "model.safetensors" } else { "best.safetensors" };
        let path = resumed.join(name);
        if path.exists() {
            return Ok(path);
        }
        let fact = format!("the weights of the best evaluation, at update {step}, are missing");
        Err(Error::user(checkpoint.display(), fact, "pass --load-best-model-at-end false, or start a new run"))
    }

    /// Reports the settings that differ from those of the run so far.
    fn report_changes(&self, was: &Value) {
        let is = json!(self.settings);
        let changed = |key| was.get(key).is_some_and(|was| *was != is[key]);
        for key in CHANGEABLE.into_iter().filter(|&key| changed(key)) {
            let [was, is] = [was, &is].map(|settings| shown(&settings[key]));
            note(format!("warning: {} was {was}, and is {is} from here on", flag_of(key)));
        }
    }
}
