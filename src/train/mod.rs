//! Fine-tuning: flags -> data -> the loop -> evaluation.

pub mod args;
pub mod data;
pub mod evaluate;
pub mod metrics;
pub mod schedule;
pub mod trainer;
