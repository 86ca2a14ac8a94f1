//! The end of a run: the best model, the last evaluations, and the result files with the names of Hugging Face's Trainer.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Trainer;
use super::args::Cadence;
use super::evaluate::Evaluation;
use super::state::not_saved;
use crate::checkpoint::model_dir::EXAMPLES;
use crate::console::note;
use crate::data::dataset::Split;
use crate::error::Result;
use crate::files::{sync_dir, write_file, write_json};
use crate::report::curves;
use crate::report::history::History;

const TRAIN_RESULTS: &str = "train_results.json";

/// The result of a finished run.
pub struct Outcome {
    /// Mean loss over all updates.
    pub train_loss: f64,
    /// Evaluation of the saved model on the validation data.
    pub evaluation: Option<Evaluation>,
    pub test: Option<Evaluation>,
    pub done: Done,
}

/// The work of this process, without that before the checkpoint from which it has resumed.
pub struct Done {
    pub updates: usize,
    pub epochs: f64,
    /// Time of the training loop.
    pub seconds: f64,
}

/// trainer_state.json, with the keys of Hugging Face's Trainer.
#[derive(Serialize)]
pub(super) struct TrainerState {
    best_global_step: Option<usize>,
    best_metric: Option<f64>,
    best_model_checkpoint: Option<String>,
    epoch: f64,
    eval_steps: usize,
    global_step: usize,
    is_hyper_param_search: bool,
    is_local_process_zero: bool,
    is_world_process_zero: bool,
    log_history: History,
    logging_steps: usize,
    max_steps: usize,
    num_train_epochs: usize,
    save_steps: usize,
    train_batch_size: usize,
}

impl Trainer<'_> {
    /// The content of trainer_state.json.
    pub(super) fn trainer_state(&self) -> TrainerState {
        let best = self.best_evaluation();
        let checkpoint = best.map(|(step, _)| self.run.checkpoint_path(step));
        let checkpoint = checkpoint.filter(|_| self.best.as_ref().is_some_and(|best| best.saved));
        let steps = |cadence| match cadence {
            Cadence::Steps(n) => n,
            _ => 500,
        };
        TrainerState {
            best_global_step: best.map(|(step, _)| step),
            best_metric: best.map(|(_, value)| value),
            best_model_checkpoint: checkpoint.map(|path| path.display().to_string()),
            epoch: self.epoch(),
            eval_steps: steps(self.settings.eval),
            global_step: self.state.step,
            is_hyper_param_search: false,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: self.log.clone(),
            logging_steps: self.settings.logging_steps,
            max_steps: self.schedule.total,
            num_train_epochs: self.schedule.total.div_ceil(self.updates_per_epoch),
            save_steps: steps(self.settings.save),
            train_batch_size: self.settings.batch_size,
        }
    }

    /// Loads the best model, runs the missing evaluations, and writes all results.
    pub(super) fn finish(&mut self, done: Done) -> Result<Outcome> {
        let (rows, updates) = (self.data.train.rows(), self.state.step);
        let train_loss = self.state.loss_sum / (updates - self.state.skipped) as f64;
        let mut train = Map::from_iter([
            ("epoch".to_string(), json!(self.epoch())),
            ("train_loss".to_string(), json!(train_loss)),
            ("train_samples".to_string(), json!(rows)),
        ]);
        if done.updates > 0 {
            train.extend([
                ("train_runtime".to_string(), json!(done.seconds)),
                ("train_samples_per_second".to_string(), json!(done.epochs * rows as f64 / done.seconds)),
                ("train_steps_per_second".to_string(), json!(done.updates as f64 / done.seconds)),
            ]);
        } else if let Some(earlier) = self.earlier_results(&train) {
            train = earlier;
        }
        self.log_entry(train.clone())?;

        let mut evaluation = self.evaluated.take().filter(|(step, _)| *step == updates).map(|(_, evaluation)| evaluation);
        if let Some(best) = self.best.take_if(|best| !best.weights.is_empty()) {
            self.model.write_all(self.model.plan.params, &best.weights)?;
            let (step, value) = self.best_evaluation().expect("there is a best model");
            note(format!("kept: the model of update {step}, {} {value:.4}", self.settings.metric_for_best_model.name()));
            evaluation = best.evaluation.clone();
            self.best = Some(best);
        }
        let card = self.card(&results(&evaluation, &None));
        let (snapshot, params) = (self.saver.snapshot()?, self.model.plan.params);
        snapshot.take(&mut self.model, &[params])?;
        let saved = self.source.replace(&self.run.path, snapshot, &card);
        saved.map_err(|error| not_saved(error, updates, &self.run))?;
        if let (None, Some(data)) = (&evaluation, self.data.validation.clone()) {
            evaluation = Some(self.run_over(&data, "evaluating")?);
        }
        let test = self.data.test.clone().map(|data| self.run_over(&data, "testing")).transpose()?;

        let path = |name: &str| self.run.path.join(name);
        write_json(&path(TRAIN_RESULTS), &train)?;
        for (prefix, found, data) in [("eval", &evaluation, &self.data.validation), ("test", &test, &self.data.test)] {
            if let (Some(found), Some(data)) = (found, data) {
                let mut results = found.log_entry(prefix);
                results.insert(format!("{prefix}_samples"), json!(data.rows()));
                write_json(&path(&format!("{prefix}_results.json")), &results)?;
                train.extend(results);
            }
        }
        write_json(&path("all_results.json"), &train)?;
        write_json(&path("trainer_state.json"), &self.trainer_state())?;
        curves::write(&self.run.path, self.log.entries())?;
        write_json(&path("training_args.json"), self.settings)?;
        write_json(&path(EXAMPLES), &self.data.examples)?;
        write_file(&path("README.md"), self.card(&results(&evaluation, &test)).as_bytes())?;
        sync_dir(&self.run.path)?;

        Ok(Outcome { train_loss, evaluation, test, done })
    }

    /// The results of the process that has done the last updates of this run, if they have these figures.
    fn earlier_results(&self, figures: &Map<String, Value>) -> Option<Map<String, Value>> {
        let json = std::fs::read(self.run.path.join(TRAIN_RESULTS)).ok()?;
        let earlier: Map<String, Value> = serde_json::from_slice(&json).ok()?;
        let differs = |(key, value): (&String, &Value)| {
            let difference = earlier.get(key).and_then(Value::as_f64).zip(value.as_f64()).map(|(a, b)| (a - b).abs());
            difference.is_none_or(|difference| difference > 1e-9)
        };
        (!figures.iter().any(differs)).then_some(earlier)
    }
}

/// The evaluations that there are, with their splits.
fn results<'a>(validation: &'a Option<Evaluation>, test: &'a Option<Evaluation>) -> Vec<(Split, &'a Evaluation)> {
    let both = [(Split::Validation, validation), (Split::Test, test)];
    both.into_iter().filter_map(|(split, evaluation)| Some((split, evaluation.as_ref()?))).collect()
}
