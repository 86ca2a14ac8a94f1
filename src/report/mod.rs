//! What a run shows and leaves to read: progress, tables, the model card.

pub mod log;
pub mod predictions;
