//! A trained model opened to classify: what `evaluate` and `predict` run.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use crate::checkpoint::model_dir::ModelDir;
use crate::console::note;
use crate::data::inputs::{Batches, Input, Limits};
use crate::data::tokenize::Encoded;
use crate::device::{Device, Opened, Precision};
use crate::error::{Error, Kind, Result};
use crate::model::plan::Use;
use crate::model::{Hyper, Model};
use crate::ops::Rows;

pub struct Classifier {
    pub source: Arc<ModelDir>,
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
        Ok(Classifier { source: Arc::new(source), model })
    }

    /// The logits of every row, (rows, classes), in order. `done` hears how many more rows and tokens are done.
    pub fn logits(&mut self, rows: &Encoded, mut done: impl FnMut(usize, usize)) -> Result<Vec<f32>> {
        let Use { tokens, seqs, .. } = self.model.plan.what_for;
        let mut logits = Vec::new();
        for batch in rows.batches(tokens, seqs) {
            logits.extend(self.model.infer(&batch)?.into_iter().map(|x| x as f32));
            done(batch.seqs(), batch.rows());
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
        let encoded = self.source.encode(inputs, max_length)?;
        self.classify(inputs, &encoded)
    }

    /// A prediction for every row of `batches`, in order. The next rows are read and tokenised while the model runs; `each`
    /// hears of a batch once it is done. Memory holds a few batches.
    ///
    /// # Errors
    /// As of [`Classifier::predict`], and those of `batches` and `each`, after all that stands before.
    pub fn predict_all(
        &mut self,
        batches: Batches,
        max_length: usize,
        mut each: impl FnMut(&[Input], &[Prediction]) -> Result<()>,
    ) -> Result<()> {
        let (source, (send, receive)) = (self.source.clone(), sync_channel(1));
        // Not a scoped one: after an error nobody waits for the next line of a slow stream.
        let reader = thread::spawn(move || {
            let encode = |inputs: Vec<Input>| source.encode(&inputs, max_length).map(|encoded| (inputs, encoded));
            for batch in batches {
                if send.send(batch.and_then(encode)).is_err() {
                    return; // nobody listens any more
                }
            }
        });
        for batch in receive {
            let (inputs, encoded) = batch?;
            each(&inputs, &self.classify(&inputs, &encoded)?)?;
        }
        reader.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok(())
    }

    fn classify(&mut self, inputs: &[Input], encoded: &Encoded) -> Result<Vec<Prediction>> {
        let logits = self.logits(encoded, |_, _| ())?;
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
