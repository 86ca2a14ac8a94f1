//! The number of updates of a run, and their learning rates: the schedules of the Hugging Face `Trainer`.

use std::f64::consts::PI;

use clap::ValueEnum;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::report::log::counted;

/// Schedule of the learning rate, after the warm-up if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Linear decay to 0.
    Linear,
    /// Decay to 0 along half a cosine.
    Cosine,
    /// Without a warm-up, as in Trainer.
    Constant,
    /// Constant after the warm-up.
    #[value(name = "constant_with_warmup", alias = "constant-with-warmup")]
    ConstantWithWarmup,
}

/// `warmup` updates rise from 0 to `base_lr`, followed by `kind` until `total`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub base_lr: f64,
    /// Updates, at most `total`.
    pub warmup: usize,
    /// Updates of the whole run.
    pub total: usize,
}

impl Schedule {
    /// The learning rate of `update` = 1 ..= total. With s = update - 1 updates done, W warm-up updates and T in all,
    /// it is `base_lr` times
    ///
    /// ```text
    /// s / W                                  while s < W, then
    /// (T - s) / (T - W)                      linear
    /// (1 + cos(pi (s - W) / (T - W))) / 2    cosine
    /// 1                                      constant_with_warmup
    /// ```
    ///
    /// and 1 throughout if it is constant, so that the first warm-up update has learning rate 0, and the rate reaches 0 only after the last update.
    pub fn lr(&self, update: usize) -> f64 {
        assert!(update >= 1, "updates are numbered from 1");
        let done = update - 1;
        if done < self.warmup && self.kind != ScheduleKind::Constant {
            return self.base_lr * (done as f64 / self.warmup as f64);
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        let factor = match self.kind {
            ScheduleKind::Linear => self.total.saturating_sub(done) as f64 / span,
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * ((done - self.warmup) as f64 / span).min(1.0)).cos()),
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup => 1.0,
        };
        self.base_lr * factor
    }
}

/// Updates of one epoch: the last may have fewer than `accumulation` micro-batches, and none crosses the end of the epoch.
pub fn updates_per_epoch(batches: usize, accumulation: usize) -> usize {
    batches.div_ceil(accumulation)
}

/// Updates of a run of `epochs`, which may end within an epoch.
pub fn total_updates(epochs: f64, updates_per_epoch: usize) -> usize {
    (epochs * updates_per_epoch as f64).ceil() as usize
}

/// Warm-up updates of a run of `total`: `warmup` below 1 is a fraction of the run, rounded up; from 1 on it is a number of
/// updates.
///
/// An error if it is negative or NaN, or longer than the run, which would then never reach its learning rate.
pub fn warmup_updates(warmup: f64, total: usize) -> Result<usize> {
    let wrong =
        |fact: String| Err(Error::user("--warmup-steps", fact, "use a number of updates, or a fraction of the run below 1"));
    if warmup.is_nan() || warmup < 0.0 {
        return wrong(format!("{warmup} is not a length"));
    }
    let updates = if warmup < 1.0 { (warmup * total as f64).ceil() as usize } else { warmup as usize };
    if updates > total {
        return wrong(format!("{warmup}, but the whole run has {}", counted(total, "update")));
    }
    Ok(updates)
}
