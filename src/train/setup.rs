//! From settings to a trainer that is ready to run: device, model folder, data, memory, weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Trainer;
use super::args::{Cadence, ClassWeights, ReportTo, Settings};
use super::card::license_left_out;
use super::data::Data;
use super::saver::Saver;
use super::schedule::{Schedule, total_updates, updates_per_epoch, warmup_updates};
use super::state::{RunState, views_of_checkpoint};
use super::tune;
use crate::checkpoint::model_dir::ModelDir;
use crate::checkpoint::run_dir::RunDir;
use crate::checkpoint::snapshot::Snapshot;
use crate::console::{note, notice_interrupts};
use crate::data::dataset::list;
use crate::data::tokenize::Encoded;
use crate::data::truncation::TruncationSide;
use crate::device::Opened;
use crate::error::{Error, Result};
use crate::hub;
use crate::metrics::positive_class;
use crate::model::config::Config;
use crate::model::plan::{ModelSpec, Plan};
use crate::model::{Hyperparameters, Model};
use crate::ops::Rows;
use crate::profile::{Ceilings, Profile};
use crate::report::history::History;
use crate::report::log::{Bytes, Count, counted};
use crate::report::tensorboard::Events;

/// A run whose inputs are read and checked, before any device memory is allocated.
pub struct Setup<'a> {
    settings: &'a Settings,
    device: Opened,
    source: ModelDir,
    data: Data,
    config: Config,
    class_weights: Vec<f64>,
    positive: usize,
    spec: ModelSpec,
    schedule: Schedule,
    updates_per_epoch: usize,
    /// The file of recorded algorithms.
    algorithms: Option<PathBuf>,
}

impl<'a> Setup<'a> {
    /// Caches tokenized texts in a folder of `cache`, if any.
    pub fn read(settings: &'a Settings, mut device: Opened, cache: Option<&Path>) -> Result<Setup<'a>> {
        device.notes.iter().for_each(note);
        let asked = [(settings.tune == Some(true), "--tune"), (settings.algorithms.is_some(), "--algorithms")];
        // A resumed run has those of its checkpoint.
        let resumes = settings.resume_from_checkpoint.is_some();
        if let Some((_, flag)) = asked.into_iter().find(|&(asked, _)| asked && !resumes && device.backend.tuner().is_none()) {
            let fact = format!("there is nothing to choose on {}: it has one algorithm per product", device.backend.name());
            return Err(Error::user(flag, fact, "leave it out, or pass --device cuda on a machine with a GPU"));
        }
        let mut source = ModelDir::read(&hub::model(&settings.model)?)?;
        if !settings.from_scratch {
            license_left_out(&source.path).into_iter().for_each(note);
        }
        let algorithms = if resumes { None } else { tune::restore(device.backend.tuner(), settings, cache)? };
        if let Some(side) = settings.truncation_side {
            source.set_truncation_side(side)?;
        }
        if source.tokenizer()?.truncation_side == TruncationSide::Middle {
            note("note: long texts are cut in the middle, which transformers does not know: with this model it cuts the end");
        }
        if let Some(length) = settings.max_length {
            source.set_max_length(length)?;
        }
        let max_length = source.max_length(settings.max_length)?;
        let tokens = cache.map(|cache| cache.join("tokens"));
        let data = Data::read(settings, &source.config, source.tokenizer()?, max_length, tokens.as_deref())?;
        if settings.fail_under.is_some() && data.validation.is_none() && data.test.is_none() {
            let remedy = "pass --validation-file, or a --test-file with labels";
            return Err(Error::user("--fail-under", "there is nothing to evaluate on", remedy));
        }
        let config = (source.config.clone())
            .with_labels(data.names.clone())?
            .with_dropout(settings.dropout.map(|p| p as f32), settings.classifier_dropout.map(|p| p as f32))?;
        let class_weights = class_weights(settings, &data)?;
        for (is_set, what) in [
            (settings.class_weights.is_some(), "--class-weights"),
            (settings.label_smoothing_factor > 0.0, "--label-smoothing-factor"),
        ] {
            if is_set && (data.validation.is_some() || data.test.is_some()) {
                note(format!("note: {what} counts in the losses of evaluations too; `evaluate` computes them without it"));
            }
        }
        let positive = positive_class(settings.positive_label.as_deref(), &data.names)?;

        let (tokens, seqs) = largest_batch(settings, &data);
        let spec = ModelSpec { train: true, last_rows: Rows::Cls, tokens, seqs, arithmetic: device.arithmetic };
        let batches = data.train.rows().div_ceil(settings.batch_size);
        let updates_per_epoch = updates_per_epoch(batches, settings.gradient_accumulation_steps);
        let total = settings.max_steps.unwrap_or(total_updates(settings.num_train_epochs, updates_per_epoch));
        let warmup = warmup_updates(settings.warmup_steps, total)?;
        let schedule = Schedule { kind: settings.lr_scheduler_type, base_lr: settings.learning_rate, warmup, total };
        Ok(Setup {
            settings,
            device,
            source,
            data,
            config,
            class_weights,
            positive,
            spec,
            schedule,
            updates_per_epoch,
            algorithms,
        })
    }

    /// The run and its memory, for a dry run, which ends as the run would: the weights are read and checked.
    pub fn summary(&self) -> Result<String> {
        let plan = Plan::new(&self.config, self.spec);
        if let Some(available) = self.device.backend.available(&plan.layout)? {
            plan.check_fits(available)?;
        }
        if !self.settings.from_scratch {
            self.source.check_weights(&plan, self.settings.ignore_mismatched_sizes)?;
        }
        let parameters = counted(plan.parameters(), "parameter");
        let (rows, tokens) = (counted(self.data.train.rows(), "row"), counted(self.spec.tokens, "token"));
        let run = format!("{rows} to train on, batches of at most {tokens}, {}", counted(self.schedule.total, "update"));
        let snapshot = Snapshot::bytes(&plan, views_of_checkpoint(self.settings));
        let backend = &self.device.backend;
        let memory = plan.table(backend.workspace(&plan.layout), backend.libraries(), snapshot);
        Ok(format!("{parameters}, {run}\n{memory}"))
    }

    /// Allocates the memory, sets the weights, chooses algorithms, creates the output folder, and resumes from a checkpoint if
    /// requested.
    pub fn trainer(self) -> Result<Trainer<'a>> {
        let Setup {
            settings,
            device,
            source,
            data,
            config,
            class_weights,
            positive,
            spec,
            schedule,
            updates_per_epoch,
            algorithms,
        } = self;
        let Opened { backend, arithmetic, .. } = device;
        let (backend, profile) = match settings.profile {
            None => (backend, None),
            Some(updates) => {
                let mut other = settings.device.open(settings.precision)?.backend;
                let ceilings = Ceilings::measure(other.as_mut(), arithmetic)?;
                let (backend, profile) = Profile::of(backend, updates);
                (backend, Some((profile, ceilings)))
            }
        };
        let mut model = Model::new(&config, spec, hyperparameters(settings), backend)?;
        model.set_class_weights(&class_weights)?;
        set_weights(&mut model, settings, &source, &config)?;
        let resumes = settings.resume_from_checkpoint.is_some();
        if let Some(path) = algorithms {
            tune::tune(&mut model, settings, &data, schedule.total, &path)?;
        }
        notice_interrupts()?;
        let run = match &settings.resume_from_checkpoint {
            Some(checkpoint) => checkpoint.run.clone(),
            None => RunDir::create(&settings.output_dir, settings.overwrite_output_dir)?,
        };
        let mut trainer = Trainer {
            state: RunState::new(settings, &data, source.tokenizer()?, model.backend().processor()),
            saver: Saver::new(Snapshot::new(&model.plan, views_of_checkpoint(settings))),
            settings,
            source: Arc::new(source),
            data,
            model,
            class_weights,
            positive,
            schedule,
            updates_per_epoch,
            run,
            log: History::default(),
            events: None,
            evaluated: None,
            best: None,
            profile,
        };
        if let Some(disk) = trainer.disk_of_checkpoints() {
            note(disk);
        }
        if let Some(checkpoint) = &settings.resume_from_checkpoint {
            trainer.resume(checkpoint)?;
        } else {
            trainer.run.begin()?;
            trainer.state.run_id = trainer.run.id.clone();
        }
        if settings.report_to.contains(&ReportTo::Tensorboard) {
            let (path, step) = (&trainer.run.path, trainer.state.step);
            trainer.events = Some(if resumes { Events::resume(path, step, &trainer.log)? } else { Events::new(path) });
        }
        Ok(trainer)
    }
}

impl Trainer<'_> {
    /// The disk space that the checkpoints will take, in words: in each the weights and, except with --save-only-model, AdamW's two
    /// moments, in f32.
    fn disk_of_checkpoints(&self) -> Option<String> {
        let every = match self.settings.save {
            Cadence::Never => return None,
            Cadence::Steps(updates) => updates,
            Cadence::Epoch => self.updates_per_epoch,
        };
        let written = self.schedule.total.div_ceil(every);
        // The newest and the best are always kept, and a new one is complete before an old one is removed.
        let kept = self.settings.save_total_limit.map_or(written, |limit| written.min(limit.max(2) + 1)) as u64;
        let numbers = if self.settings.save_only_model { 1 } else { 3 };
        let each = numbers * 4 * self.model.plan.parameters() as u64;
        let limit = if self.settings.save_total_limit.is_none() { "; --save-total-limit N keeps fewer" } else { "" };
        Some(format!("checkpoints: {} of {}, {} in all{limit}", Count(kept), Bytes(each), Bytes(kept * each)))
    }
}

fn class_weights(settings: &Settings, data: &Data) -> Result<Vec<f64>> {
    match &settings.class_weights {
        None => Ok(vec![1.0; data.names.len()]),
        Some(ClassWeights::Balanced) => Ok(data.balanced_weights()),
        Some(ClassWeights::Given(weights)) if weights.len() == data.names.len() => Ok(weights.clone()),
        Some(ClassWeights::Given(weights)) => {
            let fact = format!("{} for the {} classes {}", counted(weights.len(), "weight"), data.names.len(), list(&data.names));
            Err(Error::user("--class-weights", fact, "use one number per class, in this order"))
        }
    }
}

/// Tokens and rows per batch, at most. An evaluation batch is limited to the tokens of a training batch, which needs far more
/// memory per token.
fn largest_batch(settings: &Settings, data: &Data) -> (usize, usize) {
    let longest = |rows: &Encoded, batch: usize| {
        let mut lengths: Vec<usize> = rows.offsets.windows(2).map(|row| row[1] - row[0]).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.truncate(batch);
        (lengths.iter().sum::<usize>(), lengths.len())
    };
    let (mut tokens, mut seqs) = longest(&data.train, settings.batch_size);
    for rows in [&data.validation, &data.test].into_iter().flatten() {
        (tokens, seqs) = (tokens.max(longest(rows, 1).0), seqs.max(settings.eval_batch_size.min(rows.rows())));
    }
    (tokens, seqs)
}

fn hyperparameters(settings: &Settings) -> Hyperparameters {
    Hyperparameters {
        label_smoothing: settings.label_smoothing_factor as f32,
        weight_decay: settings.weight_decay,
        beta1: settings.adam_beta1,
        beta2: settings.adam_beta2,
        eps: settings.adam_epsilon,
        max_grad_norm: settings.max_grad_norm,
    }
}

/// Loads the weights of the model folder; missing ones are drawn from the seed.
fn set_weights(model: &mut Model, settings: &Settings, source: &ModelDir, config: &Config) -> Result<()> {
    let parameters = Count(model.plan.parameters() as u64);
    if settings.from_scratch {
        let std = config.initializer_range;
        let values: Vec<_> = model.plan.slots.iter().map(|slot| slot.param.initialise(settings.seed, std)).collect();
        model.write_all(model.plan.params, &values)?;
        note(format!("model: {parameters} parameters, all drawn from seed {}", settings.seed));
        return Ok(());
    }
    let drawn = source.load_weights(model, settings.seed, settings.ignore_mismatched_sizes)?;
    note(format!("model: {parameters} parameters from {}", source.path.display()));
    if !drawn.iter().any(|name| name.contains("classifier")) {
        note(format!("model: training continues with the folder's own classifier, of {}", source.config.labels.join(", ")));
    }
    if !drawn.is_empty() {
        let (classes, names, seed) = (config.classes(), drawn.join(", "), settings.seed);
        note(format!(
            "model: the folder has no classification head for {classes} classes; new, and drawn from seed {seed}: {names}"
        ));
    }
    Ok(())
}
