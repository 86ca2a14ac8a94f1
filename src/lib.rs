pub mod checkpoint;
pub mod classifier;
pub mod cli;
pub mod cpu;
pub mod data;
pub mod error;
pub mod model;
pub mod ops;
pub mod random;
pub mod report;
pub mod sample;
pub mod train;

pub use error::{Error, Kind, Result};
