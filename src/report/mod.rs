//! What a run shows: progress, logs, tables.

pub mod log;
