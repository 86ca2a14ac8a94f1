//! Models and runs on disk.

pub mod model_dir;
pub mod run_dir;
pub mod snapshot;
pub mod weights;
