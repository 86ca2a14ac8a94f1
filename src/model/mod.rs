//! The transformer encoder: its configuration, its parameters, its memory plan, and the list of ops it runs.

pub mod config;
pub mod encoder;
pub mod head;
pub mod names;
pub mod plan;
