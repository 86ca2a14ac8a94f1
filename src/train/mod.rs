//! Fine-tuning: flags, schedule, metrics, and the loop.

pub mod args;
pub mod metrics;
pub mod schedule;
pub mod trainer;
