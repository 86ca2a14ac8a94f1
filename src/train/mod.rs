//! Fine-tuning: flags (those of Hugging Face translated, overriding a file of flags, overriding a recipe) -> setup (device, data, model) -> the loop -> results.

pub mod args;
mod card;
pub mod data;
mod epochs;
pub mod evaluate;
pub mod hugging_face;
pub mod recipe;
mod results;
pub mod resume;
mod saver;
pub mod schedule;
mod setup;
mod state;
mod tune;

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::model_dir::ModelDir;
use crate::checkpoint::run_dir::RunDir;
use crate::console::tell;
use crate::device::Precision;
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::profile::{Ceilings, Profile};
use crate::report::history::History;
use crate::report::tensorboard::Events;
use args::Settings;
use data::Data;
use evaluate::Evaluation;
use saver::Saver;
use schedule::Schedule;
use setup::Setup;
use state::RunState;

pub use results::Outcome;

/// A run in progress.
pub struct Trainer<'a> {
    settings: &'a Settings,
    source: Arc<ModelDir>,
    data: Data,
    model: Model,
    class_weights: Vec<f64>,
    /// Of two classes, the one that the metrics are of.
    positive: usize,
    schedule: Schedule,
    updates_per_epoch: usize,
    run: RunDir,
    state: RunState,
    saver: Saver,
    log: History,
    events: Option<Events>,
    /// The newest evaluation and its step.
    evaluated: Option<(usize, Evaluation)>,
    best: Option<BestModel>,
    /// The profile in progress, with the ceilings of the hardware.
    profile: Option<(Profile, Ceilings)>,
}

/// The model of the best evaluation; its step and value are in the state.
pub struct BestModel {
    /// `None` after a resume; the evaluation is repeated at the end.
    pub evaluation: Option<Evaluation>,
    /// The weights, if they are to be loaded at the end.
    pub weights: Arc<Vec<Vec<f32>>>,
    /// Whether a checkpoint has these weights.
    pub saved: bool,
}

/// Trains with `settings`; `cache` is the folder for tokenized texts and timed algorithms, if any. `None` after a dry run.
pub fn train(settings: &Settings, cache: Option<&Path>) -> Result<Option<Outcome>> {
    let resumed = settings.resume_from_checkpoint.as_ref().filter(|_| settings.precision == Precision::Auto);
    let saved = resumed.and_then(|checkpoint| checkpoint.precision());
    let opened = settings.device.open(saved.unwrap_or(settings.precision));
    let mut device = opened.map_err(|error| match saved {
        Some(saved) if error.kind == Kind::User => {
            let fact = format!("the run was trained in {saved}, which this device lacks: {}", error.fact());
            Error::new(error.kind, "--resume-from-checkpoint", fact, "resume on a GPU that has it, or start a new run")
        }
        _ => error,
    })?;
    device.notes.extend(saved.map(|saved| format!("precision: {saved}, that of the checkpoint")));
    device.notes.extend(device.faster.map(|faster| format!("note: --precision {faster} is faster on this CPU")));
    let settings = &Settings { device: device.device, precision: device.precision, ..settings.clone() };
    let setup = Setup::read(settings, device, cache)?;
    if settings.dry_run {
        tell(setup.summary()?)?;
        return Ok(None);
    }
    setup.trainer()?.run().map(Some)
}
