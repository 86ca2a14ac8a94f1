//! Fine-tuning: flags -> data -> the loop -> evaluation.

pub mod args;
mod card;
pub mod data;
pub mod evaluate;
mod resume;
pub mod schedule;
pub mod trainer;
