//! Texts as vectors: the hidden states of a layer, of [CLS] or averaged. The layers behind it are not even laid out, and
//! for [CLS] alone the last one runs on its rows only.

pub mod npy;
pub mod pca;
pub mod probe;
pub mod projection;
pub mod tsne;

use std::path::Path;

use clap::ValueEnum;

use crate::checkpoint::model_dir::ModelDir;
use crate::console::note;
use crate::data::inputs::Limits;
use crate::data::tokenize::Encoded;
use crate::device::{Device, Opened, Precision};
use crate::error::{Error, Kind, Result};
use crate::model::config::Config;
use crate::model::plan::Use;
use crate::model::{Hyper, Model};
use crate::ops::Rows;

/// The most rows of a batch.
const SEQS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pooling {
    /// The state of [CLS]
    Cls,
    /// The mean over all tokens, [CLS] and [SEP] included
    Mean,
}

impl Pooling {
    /// A text's states, (rows, dim), as its vector, (dim); scaled to length 1 where it is to be normalised.
    pub fn vector(self, states: &[f64], dim: usize, normalized: bool) -> Vec<f32> {
        let mut vector = match self {
            Pooling::Cls => states[..dim].to_vec(),
            Pooling::Mean => mean(states, dim),
        };
        if normalized {
            normalize(&mut vector);
        }
        vector.into_iter().map(|x| x as f32).collect()
    }
}

/// Which hidden states.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// 0 are the embeddings, 1 the first layer's output; -1 the last layer's, counted from the end.
    pub layer: i64,
    pub pooling: Pooling,
    /// To length 1.
    pub normalize: bool,
}

pub struct Embedder {
    pub source: ModelDir,
    pub features: Features,
    model: Model,
}

impl Embedder {
    /// Opens a model folder on a device, for batches of at most `tokens` tokens; one row always fits. No head is needed.
    ///
    /// # Errors
    /// What is wrong with the folder or the device; a layer that the model does not have.
    pub fn open(path: &Path, device: Device, precision: Precision, tokens: usize, features: Features) -> Result<Embedder> {
        let source = ModelDir::read(path)?;
        let most = source.config.layers as i64;
        let layer = if features.layer < 0 { features.layer + most + 1 } else { features.layer };
        if !(0..=most).contains(&layer) {
            let fact = format!("{} is not among the model's {most} layers", features.layer);
            return Err(Error::user("--layer", fact, format!("give 0 (the embeddings) to {most}, or -1 for the last")));
        }
        let config = Config { layers: layer as usize, ..source.config.clone() };
        // The embeddings have no layer to prune.
        let last_rows = if features.pooling == Pooling::Cls && layer > 0 { Rows::Seqs } else { Rows::Tokens };
        let tokens = tokens.max(config.positions);
        let Opened { backend, arithmetic, notes } = device.open(precision)?;
        let what_for = Use { train: false, last_rows, tokens, seqs: SEQS.min(tokens), arithmetic };
        let mut model = Model::new(&config, what_for, Hyper::default(), backend)?;
        source.load_weights(&mut model, 0)?;
        notes.into_iter().for_each(note);
        Ok(Embedder { source, features, model })
    }

    /// Numbers of a vector.
    pub fn dim(&self) -> usize {
        self.source.config.dim
    }

    /// Which token ids the model takes.
    pub fn limits(&self) -> Limits {
        let config = &self.source.config;
        Limits { vocab: config.vocab, positions: config.positions, types: config.types }
    }

    /// The vector of every row, (rows, dim), in order. `done` hears how many more rows and tokens are done.
    ///
    /// # Errors
    /// A vector that is not finite.
    pub fn embed(&mut self, rows: &Encoded, mut done: impl FnMut(usize, usize)) -> Result<Vec<f32>> {
        let (dim, Use { tokens, seqs, last_rows, .. }) = (self.dim(), self.model.plan.what_for);
        let mut vectors = Vec::with_capacity(rows.rows() * dim);
        for batch in rows.batches(tokens, seqs) {
            let hidden = self.model.hidden(&batch)?;
            for (row, ends) in batch.cu_seqlens.windows(2).enumerate() {
                let states = match last_rows {
                    Rows::Seqs => row..row + 1,
                    Rows::Tokens => ends[0] as usize..ends[1] as usize,
                };
                let states = &hidden[states.start * dim..states.end * dim];
                vectors.extend(self.features.pooling.vector(states, dim, self.features.normalize));
            }
            done(batch.seqs(), batch.rows());
        }
        match vectors.iter().position(|x| !x.is_finite()) {
            None => Ok(vectors),
            Some(at) => {
                let fact = format!("the vector of row {} of these is not finite", at / dim + 1);
                Err(Error::new(Kind::Unusable, self.source.path.display(), fact, "the model is broken: fetch it again"))
            }
        }
    }
}

/// The mean of rows, (dim).
fn mean(rows: &[f64], dim: usize) -> Vec<f64> {
    let count = (rows.len() / dim) as f64;
    (0..dim).map(|column| rows[column..].iter().step_by(dim).sum::<f64>() / count).collect()
}

/// To length 1; zeros stay.
fn normalize(vector: &mut [f64]) {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}
