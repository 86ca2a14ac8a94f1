//! The run: everything from settings to a trained model on disk. One update is `accumulate` for each of its micro-batches,
//! then `update`; around it stand logging, evaluation, checkpoints, the best model, early stopping.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::args::{Cadence, ClassWeights, ReportTo, Settings};
use super::card::model_card;
use super::data::Data;
use super::evaluate::{Evaluation, check, evaluate};
use super::resume::{self, Position};
use super::schedule::{Schedule, total_updates, updates_per_epoch, warmup_updates};
use crate::checkpoint::model_dir::{ModelDir, read_tensors, write_tensors};
use crate::checkpoint::run_dir::RunDir;
use crate::checkpoint::weights;
use crate::console::{check_interrupt, note, notice_interrupts};
use crate::data::loader::{Loader, row_order};
use crate::data::pack::PackedBatch;
use crate::data::tokenize::Encoded;
use crate::device::Opened;
use crate::error::{Error, Kind, Result};
use crate::files::{write_file, write_json};
use crate::hub;
use crate::model::plan::Use;
use crate::model::{Hyper, Model};
use crate::ops::{Rows, Status, Step, Update, View};
use crate::profile::{Ceilings, Profile};
use crate::report::curves;
use crate::report::log::{Count, Progress};
use crate::report::tensorboard::Events;

/// What a finished run leaves to say.
pub struct Outcome {
    /// Mean loss over all updates.
    pub train_loss: f64,
    /// Of the model that was saved, on the validation data.
    pub evaluation: Option<Evaluation>,
    pub test: Option<Evaluation>,
    /// Of the training loop.
    pub seconds: f64,
    pub updates: usize,
}

struct Trainer<'a> {
    settings: &'a Settings,
    source: ModelDir,
    data: Data,
    model: Model,
    class_weights: Vec<f64>,
    schedule: Schedule,
    updates_per_epoch: usize,
    run: RunDir,
    log: Vec<Value>,
    events: Option<Events>,
    /// Updates done.
    step: usize,
    /// Micro-batches done of the next one.
    micro_batch: usize,
    /// The evaluation that follows this step is not done yet.
    evaluation_due: bool,
    /// Summed loss of all updates.
    loss_sum: f64,
    /// The newest evaluation and its step.
    evaluated: Option<(usize, Evaluation)>,
    best: Option<Best>,
    /// Evaluations in a row that were not the best.
    stale: usize,
    /// Under way, with what the hardware does at the most.
    profile: Option<(Profile, Ceilings)>,
}

struct Best {
    step: usize,
    value: f64,
    /// Not there after a resume; made again at the end.
    evaluation: Option<Evaluation>,
    /// The weights, where they are to be loaded at the end.
    weights: Vec<Vec<f32>>,
    saved: bool,
}

/// Trains as `settings` say, with tokenised texts kept in the folder `cache`, if any. `None` after a dry run.
pub fn train(settings: &Settings, cache: Option<&Path>) -> Result<Option<Outcome>> {
    let resumes = settings.resume_from_checkpoint.is_some();
    let Opened { backend, arithmetic, notes } = settings.device.open(settings.precision)?;
    let source = ModelDir::read(&hub::model(&settings.model)?)?;
    let max_length = source.max_length(settings.max_length)?;
    let data = Data::read(settings, &source.config, source.tokenizer()?, max_length, cache)?;
    let config = (source.config.clone())
        .with_labels(data.names.clone())?
        .with_dropout(settings.dropout.map(|p| p as f32), settings.classifier_dropout.map(|p| p as f32))?;
    let class_weights = match &settings.class_weights {
        None => vec![1.0; data.names.len()],
        Some(ClassWeights::Balanced) => data.balanced_weights(),
        Some(ClassWeights::Given(weights)) if weights.len() == data.names.len() => weights.clone(),
        Some(ClassWeights::Given(weights)) => {
            let fact = format!("{} weights for the {} classes {}", weights.len(), data.names.len(), data.names.join(", "));
            return Err(Error::user("--class-weights", fact, "give one number a class, in this order"));
        }
    };

    let (mut tokens, mut seqs) = largest_batch(&data.train, settings.batch_size);
    // An evaluation keeps to the tokens of a training batch, which needs far more memory for each.
    for rows in [&data.validation, &data.test].into_iter().flatten() {
        (tokens, seqs) = (tokens.max(largest_batch(rows, 1).0), seqs.max(settings.eval_batch_size.min(rows.rows())));
    }
    let what_for = Use { train: true, last_rows: Rows::Seqs, tokens, seqs, arithmetic };
    let batches = data.train.rows().div_ceil(settings.batch_size);
    let updates_per_epoch = updates_per_epoch(batches, settings.gradient_accumulation_steps);
    let total = settings.max_steps.unwrap_or(total_updates(settings.num_train_epochs, updates_per_epoch));
    let schedule = Schedule {
        kind: settings.lr_scheduler_type,
        base_lr: settings.learning_rate,
        warmup: warmup_updates(settings.warmup_steps, total)?,
        total,
    };
    let hyper = Hyper {
        label_smoothing: settings.label_smoothing_factor as f32,
        weight_decay: settings.weight_decay,
        beta1: settings.adam_beta1,
        beta2: settings.adam_beta2,
        eps: settings.adam_epsilon,
        max_grad_norm: settings.max_grad_norm,
    };
    if settings.dry_run {
        let plan = crate::model::plan::Plan::new(&config, what_for);
        crate::console::print(format!(
            "{} parameters, {} rows to train on, batches of at most {} tokens, {total} updates\n{plan}",
            Count(plan.parameters() as u64),
            Count(data.train.rows() as u64),
            Count(what_for.tokens as u64),
        ))?;
        return Ok(None);
    }
    notes.into_iter().for_each(note);
    let (backend, profile) = match settings.profile {
        None => (backend, None),
        Some(updates) => {
            let mut other = settings.device.open(settings.precision)?.backend;
            let ceilings = Ceilings::measure(other.as_mut(), arithmetic)?;
            let (backend, profile) = Profile::of(backend, updates);
            (backend, Some((profile, ceilings)))
        }
    };
    let mut model = Model::new(&config, what_for, hyper, backend)?;
    model.set_class_weights(&class_weights)?;
    if settings.from_scratch {
        let std = config.initializer_range;
        let values: Vec<_> = model.plan.slots.iter().map(|slot| slot.param.initialise(settings.seed, std)).collect();
        model.write_all(model.plan.params, &values)?;
        note(format!("model: {} parameters, all drawn from seed {}", Count(model.plan.parameters() as u64), settings.seed));
    } else {
        let drawn = source.load_weights(&mut model, settings.seed)?;
        note(format!("model: {} parameters from {}", Count(model.plan.parameters() as u64), source.path.display()));
        if !drawn.is_empty() {
            note(format!("model: the folder has no {}; drawn from seed {}", drawn.join(", "), settings.seed));
        }
    }
    let run = RunDir::create(&settings.output_dir, settings.overwrite_output_dir || resumes)?;
    let mut trainer = Trainer {
        settings,
        source,
        data,
        model,
        class_weights,
        schedule,
        updates_per_epoch,
        run,
        log: Vec::new(),
        events: None,
        step: 0,
        micro_batch: 0,
        evaluation_due: false,
        loss_sum: 0.0,
        evaluated: None,
        best: None,
        stale: 0,
        profile,
    };
    if let Some(asked) = &settings.resume_from_checkpoint {
        trainer.resume(&resume::checkpoint(asked, &trainer.run)?)?;
    }
    if settings.report_to.contains(&ReportTo::Tensorboard) {
        trainer.events = Some(Events::open(&trainer.run.path, resumes.then_some(trainer.step))?);
    }
    trainer.run().map(Some)
}

/// The optimizer's state, as a checkpoint names it.
fn moments(model: &Model) -> [(&'static str, View); 2] {
    [("m.", model.plan.m), ("v.", model.plan.v)]
}

/// Tokens and sequences of the `batch` longest rows: no batch has more.
fn largest_batch(rows: &Encoded, batch: usize) -> (usize, usize) {
    let mut lengths: Vec<usize> = rows.offsets.windows(2).map(|row| row[1] - row[0]).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.truncate(batch);
    (lengths.iter().sum(), lengths.len())
}

impl Trainer<'_> {
    fn run(mut self) -> Result<Outcome> {
        let begin = Instant::now();
        let progress = Progress::new("training", self.schedule.total as u64, &["updates", "tokens", "reviews"]);
        let progress = progress.resumed_at(self.step as u64);
        notice_interrupts()?;
        if let Err(error) = self.epochs(&progress) {
            return Err(match error.kind {
                Kind::Device => error.and(&self.kept()?),
                Kind::Interrupted => self.interrupted()?,
                _ => error,
            });
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.show_profile(&progress)?;
        progress.finish("");
        let saved = format!("interrupted after the last update; the model is saved in {}", self.run.path.display());
        self.finish(seconds).map_err(|error| match error.kind {
            Kind::Interrupted => Error::new(Kind::Interrupted, "train", saved, "its figures are missing: run evaluate on it"),
            _ => error,
        })
    }

    /// Saves where the run stands, and says how to go on.
    fn interrupted(&mut self) -> Result<Error> {
        let path = self.save()?;
        let fact = format!("interrupted after {} of {} updates, saved in {}", self.step, self.schedule.total, path.display());
        Ok(Error::new(Kind::Interrupted, "train", fact, "go on with the same command and --resume-from-checkpoint"))
    }

    fn epochs(&mut self, progress: &Progress) -> Result<()> {
        let (settings, accumulation) = (self.settings, self.settings.gradient_accumulation_steps);
        if self.evaluation_due {
            self.after_update(progress)?;
        }
        // A resumed run may have nothing left to do.
        if self.ended() {
            return Ok(());
        }
        for epoch in self.step / self.updates_per_epoch.. {
            let first = self.step % self.updates_per_epoch * accumulation;
            let order = row_order(self.data.train.rows(), settings.shuffle, settings.seed, epoch as u64);
            let mut loader = Loader::new(self.data.train.clone(), order, settings.batch_size, first);
            loop {
                // An update never crosses the end of an epoch.
                let micro_batches: Vec<PackedBatch> = loader.by_ref().take(accumulation).collect();
                if micro_batches.is_empty() {
                    break;
                }
                self.update(&micro_batches)?;
                let count = |f: fn(&PackedBatch) -> usize| micro_batches.iter().map(f).sum::<usize>() as u64;
                progress.add(&[1, count(PackedBatch::rows), count(PackedBatch::seqs)]);
                if self.profile.as_ref().is_some_and(|(profile, _)| profile.is_done()) {
                    self.show_profile(progress)?;
                }
                self.after_update(progress)?;
                if self.ended() {
                    return Ok(());
                }
            }
        }
        unreachable!("the epochs do not end")
    }

    fn stopped_early(&self) -> bool {
        self.settings.early_stopping_patience.is_some_and(|patience| self.stale >= patience)
    }

    fn ended(&self) -> bool {
        self.step >= self.schedule.total || self.stopped_early()
    }

    /// Logs, evaluates and saves, where that is due after this step.
    fn after_update(&mut self, progress: &Progress) -> Result<()> {
        let settings = self.settings;
        let last = self.step == self.schedule.total;
        let epoch_ended = last || self.step.is_multiple_of(self.updates_per_epoch);
        let due = |cadence| match cadence {
            Cadence::Never => false,
            Cadence::Steps(n) => last || self.step.is_multiple_of(n),
            Cadence::Epoch => epoch_ended,
        };
        let (evaluate, save) = (due(settings.eval), due(settings.save));
        if self.step.is_multiple_of(settings.logging_steps) || last || evaluate || save {
            self.log_loss(progress)?;
        }
        if evaluate {
            self.evaluation_due = true;
            self.evaluate(progress, save)?;
            self.evaluation_due = false;
        }
        if save {
            self.save()?;
        }
        if self.stopped_early() {
            progress.println(&format!("stopped early: {} evaluations without a better one", self.stale));
        }
        Ok(())
    }

    /// The table of where the time went, shown and in profile.txt, and a trace of every op in profile.json.
    fn show_profile(&mut self, progress: &Progress) -> Result<()> {
        let Some((profile, ceilings)) = self.profile.take() else { return Ok(()) };
        let table = profile.table(&ceilings);
        progress.println(&table);
        write_file(&self.run.path.join("profile.txt"), format!("{table}\n").as_bytes())?;
        profile.write_trace(&self.run.path.join("profile.json"))
    }

    /// The micro-batches of an update that are not done yet, and the update.
    fn update(&mut self, micro_batches: &[PackedBatch]) -> Result<()> {
        let labels = micro_batches.iter().flat_map(|batch| &batch.labels);
        let loss_normalizer = labels.map(|&label| self.class_weights[label as usize]).sum();
        let (seed, update) = (self.settings.seed, self.step as u64 + 1);
        let learning_rate = self.schedule.lr(self.step + 1);
        for (micro, batch) in (0..).zip(micro_batches).skip(self.micro_batch) {
            check_interrupt()?;
            self.model.accumulate(batch, &Step { seed, update, micro, loss_normalizer, train: true })?;
            self.micro_batch += 1;
        }
        self.model.update(&Update { number: update, learning_rate })?;
        (self.step, self.micro_batch) = (self.step + 1, 0);
        Ok(())
    }

    /// Epochs done, as Trainer counts them: by the micro-batches of the one under way.
    fn epoch(&self) -> f64 {
        let batches = self.data.train.rows().div_ceil(self.settings.batch_size);
        let (epochs, updates) = (self.step / self.updates_per_epoch, self.step % self.updates_per_epoch);
        epochs as f64 + (updates * self.settings.gradient_accumulation_steps).min(batches) as f64 / batches as f64
    }

    /// Logs the mean loss since the last logged line, and stops the run where it is not finite.
    fn log_loss(&mut self, progress: &Progress) -> Result<()> {
        let status = self.model.take_status()?;
        if status.skipped > 0.0 {
            return Err(self.not_finite(status.skipped as usize)?);
        }
        let since =
            self.log.iter().rev().find(|entry| entry["loss"].is_number()).map_or(0, |entry| entry["step"].as_u64().unwrap_or(0));
        let updates = self.step - since as usize;
        if updates == 0 {
            return Ok(());
        }
        self.loss_sum += status.loss_sum;
        let (loss, rate) = (status.loss_sum / updates as f64, self.schedule.lr(self.step));
        progress.note(format!("epoch {:.2}  loss {loss:.4}  lr {rate:.2e}", self.epoch()));
        self.log_entry(Map::from_iter([
            ("loss".to_string(), json!(loss)),
            ("grad_norm".to_string(), json!(status.grad_norm)),
            ("learning_rate".to_string(), json!(rate)),
        ]))
    }

    /// What went wrong when updates were left out; the weights are still those before.
    fn not_finite(&mut self, updates: usize) -> Result<Error> {
        let mut what = "the loss".to_string();
        for slot in self.model.plan.slots.clone() {
            if self.model.read(self.model.plan.grad(slot.view))?.iter().any(|x| !x.is_finite()) {
                what = format!("the gradient of {}", slot.param.name);
                break;
            }
        }
        let kept = self.kept()?;
        let place = format!("update {}", self.step + 1 - updates);
        Ok(Error::new(
            Kind::Unusable,
            place,
            format!("{what} is not finite; {kept}"),
            "lower --learning-rate or raise --warmup-steps",
        ))
    }

    /// From where a run that failed may go on.
    fn kept(&self) -> Result<String> {
        Ok(match self.run.checkpoints()?.last() {
            Some(step) => format!("the last good checkpoint is {}", self.run.path.join(format!("checkpoint-{step}")).display()),
            None => "no checkpoint was written yet".to_string(),
        })
    }

    fn log_entry(&mut self, mut entry: Map<String, Value>) -> Result<()> {
        entry.insert("epoch".to_string(), json!(self.epoch()));
        entry.insert("step".to_string(), json!(self.step));
        if let Some(events) = &mut self.events {
            events.add(self.step, &entry)?;
        }
        let entry = Value::Object(entry);
        if self.settings.report_to.contains(&ReportTo::Jsonl) {
            self.run.log(&entry)?;
        }
        self.log.push(entry);
        Ok(())
    }

    fn evaluate(&mut self, progress: &Progress, saved: bool) -> Result<()> {
        let data = self.data.validation.clone().expect("settings ask for evaluations only where there is data");
        let evaluation = self.run_over(&data, "evaluating")?;
        progress.println(&format!("epoch {:.2}  evaluation: {}", self.epoch(), evaluation.metrics.summary()));
        self.log_entry(evaluation.log_entry("eval"))?;
        let metric = self.settings.metric_for_best_model;
        let value = evaluation.metrics.get(metric).unwrap_or(f64::NAN);
        if self.best.as_ref().is_none_or(|best| metric.better(value, best.value)) {
            let weights =
                if self.settings.load_best_model_at_end { self.model.read_all(self.model.plan.params)? } else { Vec::new() };
            self.best = Some(Best { step: self.step, value, evaluation: Some(evaluation.clone()), weights, saved });
            self.stale = 0;
        } else {
            self.stale += 1;
        }
        self.evaluated = Some((self.step, evaluation));
        Ok(())
    }

    fn run_over(&mut self, data: &Arc<Encoded>, what: &str) -> Result<Evaluation> {
        evaluate(&mut self.model, data, self.settings.eval_batch_size, &self.class_weights, what)
    }

    fn save(&mut self) -> Result<PathBuf> {
        let (state, settings) = (self.state(), json!(self.settings));
        let position = Position {
            step: self.step,
            micro_batch: self.micro_batch,
            status: self.model.status()?.to_array().map(|x| Some(x).filter(|x| x.is_finite())),
            evaluation_due: self.evaluation_due,
            loss_sum: self.loss_sum,
            stale: self.stale,
            best: self.best.as_ref().map(|best| (best.step, Some(best.value).filter(|value| value.is_finite()))),
            run: resume::identity(self.settings, &self.data.train),
        };
        let (run, source, model) = (&self.run, &self.source, &mut self.model);
        // Best weights that no checkpoint holds travel with this one.
        let homeless = self.best.as_ref().filter(|best| !best.saved && !best.weights.is_empty());
        let path = run.checkpoint(self.step, |folder| {
            source.write(folder, model)?;
            write_tensors(&folder.join("optimizer.safetensors"), model, &moments(model))?;
            if position.micro_batch > 0 {
                write_tensors(&folder.join("gradients.safetensors"), model, &[("", model.plan.grads)])?;
            }
            if let Some(best) = homeless {
                let slots = &model.plan.slots;
                let tensors: Vec<_> = slots.iter().map(|slot| (&slot.param.name, &slot.param.shape)).collect();
                let copy = |i: usize, out: &mut [f32]| {
                    out.copy_from_slice(&best.weights[i]);
                    Ok(())
                };
                weights::write(&folder.join("best.safetensors"), &tensors, copy)?;
            }
            position.write(folder)?;
            write_json(&folder.join("trainer_state.json"), &state)?;
            write_json(&folder.join("training_args.json"), &settings)
        })?;
        if let Some(limit) = self.settings.save_total_limit {
            self.run.rotate(limit, self.best.as_ref().map(|best| best.step))?;
        }
        Ok(path)
    }

    /// Goes back to where a checkpoint stands.
    fn resume(&mut self, checkpoint: &Path) -> Result<()> {
        let run = resume::identity(self.settings, &self.data.train);
        let position = Position::read(checkpoint, &run, &self.model.plan.config)?;
        let (params, moments) = ([("", self.model.plan.params)], moments(&self.model));
        if let Some((step, value)) = position.best.filter(|_| self.settings.load_best_model_at_end) {
            let homes = [self.run.checkpoint_path(step).join("model.safetensors"), checkpoint.join("best.safetensors")];
            let Some((home, path)) = homes.iter().enumerate().find(|(_, path)| path.exists()) else {
                let fact = format!("the weights of the best evaluation, of update {step}, are gone");
                return Err(Error::user(homes[0].display(), fact, "pass --load-best-model-at-end false, or start anew"));
            };
            read_tensors(path, &mut self.model, &params)?;
            let weights = self.model.read_all(self.model.plan.params)?;
            let value = value.unwrap_or(f64::NAN);
            self.best = Some(Best { step, value, evaluation: None, weights, saved: home == 0 });
        }
        read_tensors(&checkpoint.join("model.safetensors"), &mut self.model, &params)?;
        read_tensors(&checkpoint.join("optimizer.safetensors"), &mut self.model, &moments)?;
        if position.micro_batch > 0 {
            let grads = [("", self.model.plan.grads)];
            read_tensors(&checkpoint.join("gradients.safetensors"), &mut self.model, &grads)?;
        }
        self.model.set_status(&Status::from_slice(&position.status.map(|x| x.unwrap_or(f64::NAN))))?;
        (self.step, self.micro_batch) = (position.step, position.micro_batch);
        (self.loss_sum, self.stale, self.evaluation_due) = (position.loss_sum, position.stale, position.evaluation_due);

        let path = checkpoint.join("trainer_state.json");
        let state = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let state: Value = serde_json::from_slice(&state)
            .map_err(|e| Error::user(path.display(), format!("not JSON: {e}"), "give another checkpoint"))?;
        self.log = state["log_history"].as_array().cloned().unwrap_or_default();
        if self.settings.report_to.contains(&ReportTo::Jsonl) {
            self.run.restart_log(&self.log)?;
        }
        note(format!("resumed: {} of {} updates are done", Count(self.step as u64), Count(self.schedule.total as u64)));
        Ok(())
    }

    /// trainer_state.json under the names that Hugging Face's Trainer has.
    fn state(&self) -> Value {
        let best = self.best.as_ref();
        let checkpoint = best.filter(|best| best.saved).map(|best| self.run.path.join(format!("checkpoint-{}", best.step)));
        let steps = |cadence| match cadence {
            Cadence::Steps(n) => n,
            _ => 500,
        };
        json!({
            "best_global_step": best.map(|best| best.step),
            "best_metric": best.map(|best| best.value),
            "best_model_checkpoint": checkpoint.map(|path| path.display().to_string()),
            "epoch": self.epoch(),
            "eval_steps": steps(self.settings.eval),
            "global_step": self.step,
            "is_hyper_param_search": false,
            "is_local_process_zero": true,
            "is_world_process_zero": true,
            "log_history": self.log,
            "logging_steps": self.settings.logging_steps,
            "max_steps": self.schedule.total,
            "num_train_epochs": self.schedule.total.div_ceil(self.updates_per_epoch),
            "save_steps": steps(self.settings.save),
            "train_batch_size": self.settings.batch_size,
        })
    }

    /// The best model back, the last figures, and everything written.
    fn finish(mut self, seconds: f64) -> Result<Outcome> {
        let (rows, updates) = (self.data.train.rows(), self.step);
        let train_loss = self.loss_sum / updates as f64;
        let mut train = Map::from_iter([
            ("epoch".to_string(), json!(self.epoch())),
            ("train_loss".to_string(), json!(train_loss)),
            ("train_runtime".to_string(), json!(seconds)),
            ("train_samples".to_string(), json!(rows)),
            ("train_samples_per_second".to_string(), json!(self.epoch() * rows as f64 / seconds)),
            ("train_steps_per_second".to_string(), json!(updates as f64 / seconds)),
        ]);
        self.log_entry(train.clone())?;

        let mut evaluation = self.evaluated.take().filter(|(step, _)| *step == updates).map(|(_, evaluation)| evaluation);
        if let Some(best) = self.best.take_if(|best| !best.weights.is_empty()) {
            self.model.write_all(self.model.plan.params, &best.weights)?;
            note(format!(
                "kept: the model of update {}, {} {:.4}",
                best.step,
                self.settings.metric_for_best_model.name(),
                best.value
            ));
            evaluation = best.evaluation.clone();
            self.best = Some(best);
        }
        self.source.write(&self.run.path, &mut self.model)?;
        if let (None, Some(data)) = (&evaluation, self.data.validation.clone()) {
            evaluation = Some(self.run_over(&data, "evaluating")?);
        }
        let test = self.data.test.clone().map(|data| self.run_over(&data, "testing")).transpose()?;

        let path = |name: &str| self.run.path.join(name);
        write_json(&path("train_results.json"), &json!(train))?;
        for (prefix, found, data) in [("eval", &evaluation, &self.data.validation), ("test", &test, &self.data.test)] {
            if let (Some(found), Some(data)) = (found, data) {
                let mut results = found.log_entry(prefix);
                results.insert(format!("{prefix}_samples"), json!(data.rows()));
                write_json(&path(&format!("{prefix}_results.json")), &json!(results))?;
                train.extend(results);
            }
        }
        write_json(&path("all_results.json"), &json!(train))?;
        write_json(&path("trainer_state.json"), &self.state())?;
        curves::write(&self.run.path, &self.log)?;
        write_json(&path("training_args.json"), &json!(self.settings))?;
        let shown = test.as_ref().or(evaluation.as_ref());
        write_file(
            &path("README.md"),
            model_card(self.settings, &self.source, &self.model.plan.config, &self.log, shown).as_bytes(),
        )?;

        let outcome = Outcome { train_loss, evaluation, test, seconds, updates };
        match self.settings.fail_under {
            Some((metric, bound)) => {
                let shown = outcome.test.as_ref().or(outcome.evaluation.as_ref());
                check(shown.map(|evaluation| &evaluation.metrics), metric, bound).map(|()| outcome)
            }
            None => Ok(outcome),
        }
    }
}
