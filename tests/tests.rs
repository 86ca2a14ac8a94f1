//! One integration binary; each module tests one part of the library, or the commands from outside.

mod checkpoint;
mod cli;
mod config;
mod data;
mod device;
mod embed;
mod fixtures;
mod hub;
mod instructions;
mod metrics;
mod model;
mod nvcc;
mod ops;
mod products;
mod report;
mod rounded;
mod rows;
mod serve;
mod tokenize;
mod train;
mod truncation;
mod tune;
mod updates;
#[path = "vgpu.rs"]
mod virtual_gpu;
