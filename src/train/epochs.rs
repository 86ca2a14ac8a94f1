//! The training loop. One update is `accumulate` for each of its micro-batches, then `update`; after it come logging,
//! evaluation, checkpoints, the best model and early stopping.

use std::sync::Arc;
use std::time::Instant;

use anstyle::Style;
use serde_json::json;

use super::args::{Cadence, ReportTo};
use super::evaluate::{Evaluation, evaluate};
use super::results::Done;
use super::{BestModel, Outcome, Trainer};
use crate::console::{Look, check_interrupt};
use crate::data::loader::{Loader, row_order};
use crate::data::pack::PackedBatch;
use crate::data::tokenize::Encoded;
use crate::error::{Error, Kind, Result};
use crate::files::write_file;
use crate::flags::shown;
use crate::metrics::Metric;
use crate::ops::{Status, Step, Update};
use crate::report::history::Entry;
use crate::report::log::{Count, Progress, counted, four};

pub(super) const DIVERGED: &str = "lower --learning-rate or raise --warmup-steps";

impl Trainer<'_> {
    pub(super) fn run(mut self) -> Result<Outcome> {
        let (begin, first, epoch) = (Instant::now(), self.state.step, self.epoch());
        let progress = Progress::new("training", self.schedule.total as u64, &["updates", "tokens", "texts"]);
        let progress = progress.resumed_at(self.state.step as u64);
        if let Err(error) = self.epochs(&progress).and_then(|()| self.saver.wait()) {
            let error = match error.kind {
                Kind::Interrupted => self.interrupted().unwrap_or_else(|error| error),
                _ => error,
            };
            return Err(self.failed(error));
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.show_profile(&progress)?;
        progress.finish("");
        let done = Done { updates: self.state.step - first, epochs: self.epoch() - epoch, seconds };
        let finished = self.finish(done);
        finished.map_err(|error| {
            if error.kind != Kind::Interrupted {
                return self.failed(error);
            }
            let out = self.run.path.display();
            let model = shown(&self.run.path);
            let remedy = format!("its results are missing: run warpfit evaluate --model {model} FILE");
            Error::interrupted(format!("after the last update; the model is saved in {out}"), remedy)
        })
    }

    /// The error that ends the run: names the last good checkpoint if the device or the disk has failed.
    fn failed(&mut self, error: Error) -> Error {
        // Of two errors the first is reported.
        let _ = self.saver.wait();
        if !matches!(error.kind, Kind::Device | Kind::User) {
            return error;
        }
        let error = error.and(&self.run.kept());
        let resumable = self.run.last_checkpoint().is_some() && !self.settings.save_only_model;
        if resumable { error.remedy_and("--resume-from-checkpoint continues the run") } else { error }
    }

    /// Saves the state of the run, and reports how to resume.
    fn interrupted(&mut self) -> Result<Error> {
        if self.state.micro_batch > 0 && self.model.scales_loss() && self.infinite_gradient()?.is_some() {
            // The update would be skipped. When the run resumes it is computed again from its first micro-batch, to the same bits.
            self.state.micro_batch = 0;
            let status = self.model.status()?;
            self.model.set_status(&Status { loss: 0.0, ..status })?;
        }
        self.save(false)?;
        self.saver.wait()?;
        let (path, updates) = (self.run.checkpoint_path(self.state.step), counted(self.schedule.total, "update"));
        let fact = format!("after {} of {updates}, saved in {}", Count(self.state.step as u64), path.display());
        let remedy = format!("resume with warpfit train --resume-from-checkpoint {}", shown(&self.run.path));
        Ok(Error::interrupted(fact, remedy))
    }

    fn epochs(&mut self, progress: &Progress) -> Result<()> {
        let (settings, accumulation) = (self.settings, self.settings.gradient_accumulation_steps);
        // A resumed run may have nothing left to do.
        if self.state.evaluation_due {
            self.after_update(progress)?;
        } else if self.stopped_early() && self.state.step < self.schedule.total {
            progress.println("note: this run has stopped early; a larger --early-stopping-patience continues it");
        }
        if self.ended() {
            return Ok(());
        }
        for epoch in self.state.step / self.updates_per_epoch.. {
            let first = self.state.step % self.updates_per_epoch * accumulation;
            let order = row_order(self.data.train.rows(), settings.shuffle, settings.seed, epoch as u64);
            let mut loader = Loader::new(self.data.train.clone(), order, settings.batch_size, first)?;
            loop {
                // An update never crosses the end of an epoch.
                let micro_batches: Vec<PackedBatch> = loader.by_ref().take(accumulation).collect();
                if micro_batches.is_empty() {
                    break;
                }
                self.update(&micro_batches)?;
                let count = |f: fn(&PackedBatch) -> usize| micro_batches.iter().map(f).sum::<usize>() as u64;
                progress.add(&[1, count(PackedBatch::tokens), count(PackedBatch::seqs)]);
                if self.profile.as_ref().is_some_and(|(profile, _)| profile.is_done()) {
                    self.show_profile(progress)?;
                }
                self.after_update(progress)?;
                if self.ended() {
                    return Ok(());
                }
            }
        }
        unreachable!("the loop returns at the last update")
    }

    fn stopped_early(&self) -> bool {
        self.settings.early_stopping_patience.is_some_and(|patience| self.state.evals_without_improvement >= patience)
    }

    fn ended(&self) -> bool {
        self.state.step >= self.schedule.total || self.stopped_early()
    }

    /// Logs, evaluates and saves, if due after this update.
    fn after_update(&mut self, progress: &Progress) -> Result<()> {
        self.saver.check()?;
        let settings = self.settings;
        let last = self.state.step == self.schedule.total;
        let epoch_ended = last || self.state.step.is_multiple_of(self.updates_per_epoch);
        let due = |cadence| match cadence {
            Cadence::Never => false,
            Cadence::Steps(n) => last || self.state.step.is_multiple_of(n),
            Cadence::Epoch => epoch_ended,
        };
        let (evaluate, save) = (due(settings.eval), due(settings.save));
        let log = self.state.step.is_multiple_of(settings.logging_steps) || last || evaluate;
        if log || save {
            let status = self.checked_status(progress)?;
            if log {
                self.log_loss(&status, progress)?;
            }
        }
        if evaluate {
            self.state.evaluation_due = true;
            self.evaluate(progress, save)?;
            self.state.evaluation_due = false;
        }
        if save {
            self.save(self.settings.save_only_model)?;
        }
        if self.stopped_early() {
            let evaluations = counted(self.state.evals_without_improvement, "evaluation");
            progress.println(&format!("stopped early: {evaluations} without an improvement"));
        }
        Ok(())
    }

    /// The profile: a table, shown and written to profile.txt, and a trace of every op in profile.json.
    fn show_profile(&mut self, progress: &Progress) -> Result<()> {
        let Some((profile, ceilings)) = self.profile.take() else { return Ok(()) };
        let table = profile.table(&ceilings);
        progress.println(&table);
        write_file(&self.run.path.join("profile.txt"), format!("{table}\n").as_bytes())?;
        profile.write_trace(&self.run.path.join("profile.json"))
    }

    /// Runs the remaining micro-batches of an update, and the update.
    fn update(&mut self, micro_batches: &[PackedBatch]) -> Result<()> {
        let labels = micro_batches.iter().flat_map(|batch| &batch.labels);
        let loss_normalizer = labels.map(|&label| self.class_weights[label as usize]).sum();
        let (seed, update) = (self.settings.seed, self.state.step as u64 + 1);
        let learning_rate = self.schedule.lr(self.state.step + 1);
        for (micro, batch) in (0..).zip(micro_batches).skip(self.state.micro_batch) {
            check_interrupt()?;
            self.model.accumulate(batch, &Step { seed, update, micro, loss_normalizer, train: true })?;
            self.state.micro_batch += 1;
        }
        self.model.update(&Update { number: update, learning_rate })?;
        (self.state.step, self.state.micro_batch) = (self.state.step + 1, 0);
        Ok(())
    }

    /// Completed epochs, as in Trainer: a fraction in micro-batches.
    pub(super) fn epoch(&self) -> f64 {
        let batches = self.data.train.rows().div_ceil(self.settings.batch_size);
        let (epochs, updates) = (self.state.step / self.updates_per_epoch, self.state.step % self.updates_per_epoch);
        epochs as f64 + (updates * self.settings.gradient_accumulation_steps).min(batches) as f64 / batches as f64
    }

    /// The status block. Skipped updates are reported, and end the run if the loss is not scaled, or cannot be scaled further.
    fn checked_status(&mut self, progress: &Progress) -> Result<Status> {
        let status = self.model.status()?;
        let newly = (status.skipped as usize).saturating_sub(self.state.skipped);
        let (first, last) = (self.state.checked + 1, self.state.step);
        if newly > 0 && (!self.model.scales_loss() || status.scale < 0.0) {
            // The first of them: at the latest, they are the last updates.
            return Err(self.not_finite(first, (last + 1).saturating_sub(newly).max(first))?);
        }
        if newly > 0 {
            let updates = if first == last { format!("update {last}") } else { format!("updates {first} to {last}") };
            let were = if newly == 1 { "was" } else { "were" };
            let all = first + newly > last;
            let which = if all { updates } else { format!("{} of {updates}", Count(newly as u64)) };
            let scale = Count(status.loss_scale() as u64);
            progress
                .println(&format!("{which} {were} skipped, as gradients exceeded the range of fp16; the loss scale is {scale}"));
        }
        self.state.skipped += newly;
        self.state.checked = last;
        if last == self.schedule.total && self.state.skipped >= last {
            let fact = format!("skipped {} of {}: numbers exceed the range of fp16", Count(last as u64), counted(last, "update"));
            return Err(Error::new(Kind::Unusable, "train", fact, "pass --precision fp32"));
        }
        Ok(status)
    }

    /// Logs the mean loss of the updates since the last logged one; null if all of them were skipped.
    fn log_loss(&mut self, status: &Status, progress: &Progress) -> Result<()> {
        let last = self.log.entries().rev().find(|entry| entry.contains_key("loss"));
        let logged = |key: &str| last.as_ref().and_then(|entry| entry.get(key)?.as_f64()).unwrap_or(0.0) as usize;
        let updates = self.state.step - logged("step");
        if updates == 0 {
            return Ok(());
        }
        let updates = updates.saturating_sub(self.state.skipped.saturating_sub(logged("skipped_updates")));
        self.model.set_status(&Status { loss_sum: 0.0, ..*status })?;
        self.state.loss_sum += status.loss_sum;
        let (loss, rate) = (status.loss_sum / updates as f64, self.schedule.lr(self.state.step));
        let shown = if updates > 0 { format!("{loss:.4}") } else { "-".to_string() };
        progress.note(format!("epoch {:.2}  loss {shown}  lr {rate:.2e}", self.epoch()));
        let mut entry = Entry::from_iter([
            ("loss".to_string(), json!(loss)),
            ("grad_norm".to_string(), json!(status.grad_norm)),
            ("learning_rate".to_string(), json!(rate)),
        ]);
        if self.model.scales_loss() {
            entry.insert("loss_scale".to_string(), json!(status.loss_scale()));
            entry.insert("skipped_updates".to_string(), json!(status.skipped));
        }
        self.log_entry(entry)
    }

    /// The first parameter whose gradient is not finite.
    fn infinite_gradient(&mut self) -> Result<Option<String>> {
        for slot in self.model.plan.slots.clone() {
            if self.model.read(self.model.plan.grad(slot.view))?.iter().any(|x| !x.is_finite()) {
                return Ok(Some(slot.param.name));
            }
        }
        Ok(None)
    }

    /// The error for updates of which the first that is not finite is between these two; the weights are those before it.
    fn not_finite(&mut self, first: usize, latest: usize) -> Result<Error> {
        self.saver.wait()?;
        let what = self.infinite_gradient()?.map_or("the loss".to_string(), |name| format!("the gradient of {name}"));
        let (scaled, remedy) = match self.model.scales_loss() {
            true => (" at any loss scale", format!("{DIVERGED}, or pass --precision fp32")),
            false => ("", DIVERGED.to_string()),
        };
        let fact = format!("{what} is not finite{scaled}; {}", self.run.kept());
        let place = if first == latest { format!("update {first}") } else { format!("between updates {first} and {latest}") };
        Ok(Error::new(Kind::Unusable, place, fact, remedy))
    }

    pub(super) fn log_entry(&mut self, mut entry: Entry) -> Result<()> {
        entry.insert("epoch".to_string(), json!(self.epoch()));
        entry.insert("step".to_string(), json!(self.state.step));
        if let Some(events) = &mut self.events {
            events.add(self.state.step, &entry)?;
        }
        let line = self.log.push(&entry);
        if self.settings.report_to.contains(&ReportTo::Jsonl) {
            self.run.log(line)?;
        }
        Ok(())
    }

    fn evaluate(&mut self, progress: &Progress, saved: bool) -> Result<()> {
        let data = self.data.validation.clone().expect("settings allow evaluations only with validation data");
        let evaluation = self.run_over(&data, "evaluating")?;
        progress.println(&self.row(&evaluation));
        self.log_entry(evaluation.log_entry("eval"))?;
        let metric = self.settings.metric_for_best_model;
        let value = evaluation.metrics.get(metric).unwrap_or(f64::NAN);
        let improved = self.best_evaluation().is_none_or(|(_, best)| metric.better(value, best));
        let lower_loss = |best| self.logged_loss(self.state.step) < self.logged_loss(best);
        if improved || self.best_evaluation().is_some_and(|(step, best)| value == best && lower_loss(step)) {
            let weights =
                if self.settings.load_best_model_at_end { self.model.read_all(self.model.plan.params)? } else { Vec::new() };
            let weights = Arc::new(weights);
            self.state.best = Some((self.state.step, Some(value).filter(|value| value.is_finite())));
            self.best = Some(BestModel { evaluation: Some(evaluation.clone()), weights, saved });
        }
        // As in Trainer, a lower loss alone does not put off early stopping.
        self.state.evals_without_improvement = if improved { 0 } else { self.state.evals_without_improvement + 1 };
        self.evaluated = Some((self.state.step, evaluation));
        Ok(())
    }

    /// A row of the table of evaluations, below the names of its columns if it is the first one of this process.
    fn row(&self, evaluation: &Evaluation) -> String {
        let training_loss = self.log.entries().rev().find_map(|entry| entry.get("loss")?.as_f64());
        let mut cells = vec![
            ("epoch", format!("{:.2}", self.epoch())),
            ("step", Count(self.state.step as u64).to_string()),
            ("training loss", four(training_loss)),
            ("validation loss", four(evaluation.metrics.loss)),
        ];
        let best = self.settings.metric_for_best_model;
        let mut metrics = vec![Metric::Accuracy, Metric::F1];
        if best != Metric::Loss && !metrics.contains(&best) {
            // A long name takes the room of F1.
            metrics.truncate(if best.name().len() > 11 { 1 } else { 2 });
            metrics.push(best);
        }
        cells.extend(metrics.into_iter().map(|metric| (metric.name(), four(evaluation.metrics.get(metric)))));
        let line = |texts: &mut dyn Iterator<Item = (&str, &str)>| {
            texts.map(|(name, text)| format!("{text:>0$}", name.len().max(7))).collect::<Vec<_>>().join("  ")
        };
        let row = line(&mut cells.iter().map(|(name, text)| (*name, text.as_str())));
        if self.evaluated.is_some() {
            return row;
        }
        let head = line(&mut cells.iter().map(|(name, _)| (*name, *name)));
        format!("{}\n{row}", Look::of_stderr().painted(Style::new().bold(), &head))
    }

    /// The loss of the evaluation at a step, which decides between equal values of the metric.
    fn logged_loss(&self, step: usize) -> Option<f64> {
        let of_step = self.log.entries().rev().filter(|entry| entry["step"] == step);
        of_step.filter_map(|entry| entry.get("eval_loss")?.as_f64()).next()
    }

    /// The step of the best evaluation and its value of the metric; NaN if undefined.
    pub(super) fn best_evaluation(&self) -> Option<(usize, f64)> {
        self.state.best.map(|(step, value)| (step, value.unwrap_or(f64::NAN)))
    }

    pub(super) fn run_over(&mut self, data: &Arc<Encoded>, what: &str) -> Result<Evaluation> {
        evaluate(&mut self.model, data, self.settings.eval_batch_size, &self.class_weights, self.positive, what)
    }
}
