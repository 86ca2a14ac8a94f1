//! The model as the server runs it: one batch, one pass of the encoder, and of each row what its request asks for.

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::model_dir::ModelDir;
use crate::console::note;
use crate::data::tokenize::Encoded;
use crate::device::{Device, Opened, Precision};
use crate::embed::Pooling;
use crate::error::Result;
use crate::model::plan::Use;
use crate::model::{Hyper, Model};
use crate::ops::Rows;

/// The most rows of a batch.
const SEQS: usize = 1024;

/// What a request asks of each of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// (classes)
    Logits,
    /// (dim), to length 1 where it is to be normalised.
    Vector { normalize: bool },
}

pub struct Engine {
    pub source: Arc<ModelDir>,
    /// Whether the folder has a trained head; without, there are vectors alone.
    pub classifies: bool,
    pooling: Pooling,
    model: Model,
}

impl Engine {
    /// Opens a model folder on a device, for batches of at most `tokens` tokens; one row always fits.
    ///
    /// # Errors
    /// What is wrong with the folder or the device.
    pub fn open(path: &Path, device: Device, precision: Precision, tokens: usize, pooling: Pooling) -> Result<Engine> {
        let source = ModelDir::read(path)?;
        let tokens = tokens.max(source.config.positions);
        let last_rows = match pooling {
            Pooling::Cls => Rows::Seqs,
            Pooling::Mean => Rows::Tokens,
        };
        let Opened { backend, arithmetic, notes } = device.open(precision)?;
        let what_for = Use { train: false, last_rows, tokens, seqs: SEQS.min(tokens), arithmetic };
        let mut model = Model::new(&source.config, what_for, Hyper::default(), backend)?;
        let drawn = source.load_weights(&mut model, 0)?;
        notes.into_iter().for_each(note);
        if !drawn.is_empty() {
            note(format!("{}: has no {}: it serves /embed, not /predict", path.display(), drawn.join(", ")));
        }
        Ok(Engine { source: Arc::new(source), classifies: drawn.is_empty(), pooling, model })
    }

    /// What is wanted of each row, in order.
    pub fn compute(&mut self, rows: &Encoded, wanted: &[Wanted]) -> Result<Vec<Vec<f32>>> {
        let Use { tokens, seqs, last_rows, .. } = self.model.plan.what_for;
        let (dim, classes) = (self.source.config.dim, self.source.config.classes());
        let (mut answers, mut wanted) = (Vec::with_capacity(rows.rows()), wanted);
        for batch in rows.batches(tokens, seqs) {
            let logits = self.model.infer(&batch)?;
            let of_batch = wanted.split_off(..batch.seqs()).expect("one for each row");
            let vectors = of_batch.iter().any(|wanted| *wanted != Wanted::Logits);
            let hidden = if vectors { self.model.last(&batch)? } else { Vec::new() };
            for (row, (ends, wanted)) in batch.cu_seqlens.windows(2).zip(of_batch).enumerate() {
                let states = match last_rows {
                    Rows::Seqs => row..row + 1,
                    Rows::Tokens => ends[0] as usize..ends[1] as usize,
                };
                answers.push(match *wanted {
                    Wanted::Logits => logits[row * classes..][..classes].iter().map(|&x| x as f32).collect(),
                    Wanted::Vector { normalize } => {
                        self.pooling.vector(&hidden[states.start * dim..states.end * dim], dim, normalize)
                    }
                });
            }
        }
        Ok(answers)
    }
}
