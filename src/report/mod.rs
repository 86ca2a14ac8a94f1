//! What a run shows and leaves to read: progress, tables, plots, pages.

pub mod compare;
pub mod curves;
mod density;
pub mod evaluated;
pub mod evaluation;
pub mod log;
pub mod page;
pub mod plot;
pub mod tensorboard;
