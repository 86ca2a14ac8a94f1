//! Weights and run folders on disk.

pub mod run_dir;
pub mod weights;
