//! Where a run stands: what a checkpoint holds beside the model, so that going on from it gives the bits of a run that
//! was never stopped. The weights and moments are tensors; row order, dropout and schedule follow from the step alone.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use twox_hash::XxHash64;

use super::args::Settings;
use crate::checkpoint::run_dir::RunDir;
use crate::data::tokenize::Encoded;
use crate::error::{Error, Result};
use crate::files::write_json;
use crate::model::config::Config;
use crate::ops::Status;

/// state.json of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Updates done.
    pub step: usize,
    /// Micro-batches done of the update under way; their gradients are in gradients.safetensors. 0 unless interrupted.
    pub micro_batch: usize,
    /// The status block; null for what is not finite.
    pub status: [Option<f64>; Status::LEN],
    /// Interrupted before the evaluation that follows this step was done.
    pub evaluation_due: bool,
    /// Summed loss of all updates.
    pub loss_sum: f64,
    /// Evaluations in a row that were not the best.
    pub stale: usize,
    /// The best evaluation's step, and its value of the metric where that is defined.
    pub best: Option<(usize, Option<f64>)>,
    /// What must be the same when the run goes on.
    pub run: Value,
}

/// What must be the same when a run goes on.
pub fn identity(settings: &Settings, train: &Encoded) -> Value {
    let hash = |bytes: &[u8], seed| XxHash64::oneshot(seed, bytes);
    let data = hash(bytemuck::cast_slice(&train.ids), hash(bytemuck::cast_slice(&train.labels), train.rows() as u64));
    json!({
        "data": format!("{data:016x}"),
        "batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "precision": settings.precision,
        "seed": settings.seed,
        "shuffle": settings.shuffle,
    })
}

impl Position {
    pub fn write(&self, checkpoint: &Path) -> Result<()> {
        write_json(&checkpoint.join("state.json"), &json!(self))
    }

    /// Reads the position of a checkpoint that belongs to `run`, of a model with this config.
    ///
    /// # Errors
    /// No such checkpoint, or one of a run or a model that differs, with the first difference named.
    pub fn read(checkpoint: &Path, run: &Value, config: &Config) -> Result<Position> {
        let path = checkpoint.join("state.json");
        let json = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let position: Position = serde_json::from_slice(&json)
            .map_err(|e| Error::user(path.display(), format!("not the state of a run: {e}"), "give another checkpoint"))?;
        let [was, is] = [&Config::read(&checkpoint.join("config.json"))?, config]
            .map(|config| serde_json::from_str(&config.to_json()).expect("JSON of our own"));
        for (was, is) in [(&position.run, run), (&was, &is)] {
            let Some((key, is)) = is.as_object().into_iter().flatten().find(|(key, is)| was[*key] != **is) else { continue };
            let fact = match key.as_str() {
                "data" => "was made with other training data, another tokenizer or another --max-length".to_string(),
                _ => format!("was made with {key} {}, this run has {is}", was[key]),
            };
            return Err(Error::user(checkpoint.display(), fact, "go on with the same, or start anew"));
        }
        Ok(position)
    }
}

/// The checkpoint that `--resume-from-checkpoint` means.
pub fn checkpoint(asked: &Path, run: &RunDir) -> Result<PathBuf> {
    if asked.as_os_str() != "newest" {
        return Ok(asked.into());
    }
    match run.checkpoints()?.last() {
        Some(&step) => Ok(run.checkpoint_path(step)),
        None => {
            Err(Error::user(run.path.display(), "there is no checkpoint in this folder", "leave out --resume-from-checkpoint"))
        }
    }
}
