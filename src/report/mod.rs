//! The output of a run for people: progress, tables, plots, pages.

pub mod compare;
pub mod curves;
mod density;
pub mod description;
pub mod evaluated;
pub mod evaluation;
pub mod history;
pub mod log;
pub mod page;
pub mod plot;
pub mod tensorboard;
