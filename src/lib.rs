pub mod checkpoint;
pub mod cpu;
pub mod data;
pub mod error;
pub mod model;
pub mod ops;
pub mod random;
pub mod report;
pub mod train;

pub use error::{Error, Kind, Result};
