//! config.json of DistilBERT and BERT classifiers: what the engine needs of it, checked; unknown keys kept.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    DistilBert,
    Bert,
}

/// Sizes and rates of a model, under one set of names for both architectures.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub arch: Arch,
    pub vocab: usize,
    /// Rows of the position table: the longest sequence the model can take.
    pub positions: usize,
    /// Rows of the token-type table; 0 for DistilBERT, which has none.
    pub types: usize,
    pub dim: usize,
    pub heads: usize,
    pub layers: usize,
    pub ffn: usize,
    /// `id2label` in order of id; LABEL_0, LABEL_1, ... where the file names none.
    pub labels: Vec<String>,
    /// Whether the file itself named the labels (not the default LABEL_i).
    pub labels_named: bool,
    /// Dropout after the embedding norm and in every layer.
    pub dropout: f32,
    pub attention_dropout: f32,
    /// Dropout before the classifier.
    pub classifier_dropout: f32,
    pub norm_eps: f32,
    pub initializer_range: f32,
    /// The word row that gets no gradient.
    pub pad_token_id: Option<usize>,
    /// The file as read, so that keys the engine does not know survive a save.
    pub json: Map<String, Value>,
}

impl Config {
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    pub fn classes(&self) -> usize {
        self.labels.len()
    }

    /// Reads and checks `config.json`.
    pub fn read(_path: &Path) -> Result<Config> {
        unimplemented!()
    }
}
