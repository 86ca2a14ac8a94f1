//! From files of texts and labels to packed batches: dataset -> tokenize -> pack -> loader.

pub mod cache;
pub mod dataset;
pub mod description;
pub mod inputs;
pub mod loader;
pub mod pack;
pub mod pretrained;
pub mod scored;
pub mod tokenize;
pub mod truncation;
pub mod wordpiece;
