//! A trained model opened to classify: what `evaluate` and `predict` run.

use std::path::Path;

use crate::checkpoint::model_dir::ModelDir;
use crate::cli::note;
use crate::data::inputs::{Content, Input, Limits};
use crate::data::pack::PackedBatch;
use crate::data::tokenize::Encoded;
use crate::device::{Device, Opened, Precision};
use crate::error::{Error, Kind, Result};
use crate::model::plan::Use;
use crate::model::{Hyper, Model};
use crate::ops::Rows;

pub struct Classifier {
    pub source: ModelDir,
    pub model: Model,
}

/// What the model says of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// (classes), finite
    pub logits: Vec<f32>,
    /// Read by the model, special ones included.
    pub tokens: usize,
    /// Whether the text was longer.
    pub truncated: bool,
}

impl Classifier {
    /// Opens a model folder on a device, for batches of at most `tokens` tokens and `seqs` rows; one row always fits.
    ///
    /// # Errors
    /// What is wrong with the folder or the device; a folder without a trained head.
    pub fn open(path: &Path, device: Device, precision: Precision, tokens: usize, seqs: usize) -> Result<Classifier> {
        let source = ModelDir::read(path)?;
        let tokens = tokens.max(source.config.positions);
        let seqs = seqs.min(tokens); // a row has at least one
        let Opened { backend, arithmetic, notes } = device.open(precision)?;
        let what_for = Use { train: false, last_rows: Rows::Seqs, tokens, seqs, arithmetic };
        let mut model = Model::new(&source.config, what_for, Hyper::default(), backend)?;
        let drawn = source.load_weights(&mut model, 0)?;
        if !drawn.is_empty() {
            let fact = format!("has no {}: it is not a trained classifier", drawn.join(", "));
            return Err(Error::user(path.display(), fact, "fine-tune it first with train"));
        }
        notes.into_iter().for_each(note);
        Ok(Classifier { source, model })
    }

    /// The logits of every row, (rows, classes), in order. `done` hears how many more rows and tokens are done.
    pub fn logits(&mut self, rows: &Encoded, mut done: impl FnMut(usize, usize)) -> Result<Vec<f32>> {
        let Use { tokens, seqs, .. } = self.model.plan.what_for;
        let mut logits = Vec::new();
        let mut start = 0;
        while start < rows.rows() {
            // As many rows as fit.
            let fits = |end: &usize| *end - start <= seqs && rows.offsets[*end] - rows.offsets[start] <= tokens;
            let end = (start + 1..=rows.rows()).take_while(fits).last().expect("one row fits");
            let batch = PackedBatch::new((start..end).map(|row| rows.row(row)));
            logits.extend(self.model.infer(&batch)?.0.into_iter().map(|x| x as f32));
            done(batch.seqs(), batch.rows());
            start = end;
        }
        Ok(logits)
    }

    /// Which token ids the model takes.
    pub fn limits(&self) -> Limits {
        let config = &self.source.config;
        Limits { vocab: config.vocab, positions: config.positions, types: config.types }
    }

    /// A prediction for every input, in order. Texts are cut to `max_length` tokens; token ids are taken as they are.
    ///
    /// # Errors
    /// A text for a folder without a tokenizer; logits that are not finite.
    pub fn predict(&mut self, inputs: &[Input], max_length: usize) -> Result<Vec<Prediction>> {
        let texts: Vec<&str> = inputs.iter().filter_map(|input| input.text()).collect();
        let mut tokenised = Encoded::default();
        if !texts.is_empty() {
            tokenised = self.source.tokenizer()?.encode(&texts, max_length, &|_| ())?;
        }
        let (mut rows, mut encoded) = (0.., Encoded::default());
        for input in inputs {
            match &input.content {
                Content::Text(_) => encoded.append_row(&tokenised, rows.next().expect("the numbers do not end")),
                Content::Ids { ids, types } => encoded.push(&input.place, ids, types)?,
            }
        }
        let logits = self.logits(&encoded, |_, _| ())?;
        let rows = inputs.iter().zip(logits.chunks_exact(self.source.config.classes())).enumerate();
        rows.map(|(row, (input, logits))| {
            if logits.iter().any(|logit| !logit.is_finite()) {
                let remedy = "the model is broken: go back to an earlier checkpoint";
                return Err(Error::new(Kind::Unusable, &input.place, "the logits are not finite", remedy));
            }
            let tokens = encoded.row(row).0.len();
            Ok(Prediction { logits: logits.to_vec(), tokens, truncated: encoded.cut[row] })
        })
        .collect()
    }
}
