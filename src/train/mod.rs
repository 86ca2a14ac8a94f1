//! Fine-tuning: flags (over a file of them, over a recipe) -> setup (device, data, model) -> the loop -> results.

pub mod args;
mod card;
pub mod data;
pub mod evaluate;
pub mod recipe;
pub mod results;
pub mod schedule;
mod setup;
mod state;
pub mod trainer;
