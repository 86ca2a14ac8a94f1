//! Fine-tuning: flags (over a file of them, over a recipe) -> data -> the loop -> evaluation.

pub mod args;
mod card;
pub mod data;
pub mod evaluate;
pub mod recipe;
mod resume;
pub mod schedule;
pub mod trainer;
