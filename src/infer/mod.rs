//! A trained model opened for inference, for `predict`, `evaluate`, `embed` and `serve`.
//!
//! ```
//! use std::path::Path;
//! use warpfit::data::inputs;
//! use warpfit::device::{Device, Precision};
//! use warpfit::infer::Session;
//!
//! let model = Path::new("tests/golden/text/hf");
//! let mut session = Session::classifier(model, Device::Cpu, Precision::Fp32, 512, 8)?;
//! let texts = ["A fine film.", "Two hours of my life."].map(String::from).to_vec();
//! session.predict_all(inputs::texts(texts), 40, |inputs, predictions| {
//!     for (input, prediction) in inputs.iter().zip(predictions) {
//!         println!("{}: {:?} from {} tokens", input.id, prediction.logits, prediction.tokens);
//!     }
//!     Ok(())
//! })?;
//! # Ok::<(), warpfit::Error>(())
//! ```

pub mod npy;
pub mod pca;
pub mod pooling;
pub mod predictions;
pub mod probe;
pub mod projection;
pub mod tsne;

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
use crate::error::{BROKEN, Error, Kind, Result, no_threads};
use crate::model::config::Config;
use crate::model::infer::{Results, Wanted};
use crate::model::plan::ModelSpec;
use crate::model::{Hyperparameters, Model};
use crate::ops::Rows;
use crate::report::log::counted;
use pooling::Pooling;

/// How a model is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub device: Device,
    pub precision: Precision,
    /// Most tokens per batch, by default those of [`Device::batch_tokens`]; one text always fits.
    pub tokens: Option<usize>,
    /// Most texts per batch.
    pub texts: usize,
    /// The layer whose states become vectors: 0 is the embeddings, 1 the first layer, -1 the last, counting from the end. Later
    /// layers are not run.
    pub layer: i64,
    /// With [`Pooling::Cls`] the last layer runs on the `[CLS]` rows alone.
    pub pooling: Pooling,
}

/// The output computed for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// (classes)
    Logits,
    /// (dim), scaled to length 1 with `normalize`.
    Vector { normalize: bool },
}

/// The classification of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// (classes), finite
    pub logits: Vec<f32>,
    /// Tokens that the model read, including special ones.
    pub tokens: usize,
    /// Whether the text was longer.
    pub truncated: bool,
}

pub struct Session {
    pub source: Arc<ModelDir>,
    /// Parameters of the head that the folder lacks.
    pub missing: Vec<String>,
    /// That of the model, never `Auto`.
    pub precision: Precision,
    /// Most tokens per batch.
    pub tokens: usize,
    pooling: Pooling,
    model: Model,
}

impl Session {
    /// Opens a model folder. A base model has no trained head, only vectors.
    ///
    /// # Errors
    /// A fault of the folder or the device; a layer that the model does not have.
    pub fn open(path: &Path, options: &Options) -> Result<Session> {
        let Options { device, precision, pooling, .. } = *options;
        let source = ModelDir::read(path)?;
        let most = source.config.layers as i64;
        let layer = if options.layer < 0 { options.layer + most + 1 } else { options.layer };
        if !(0..=most).contains(&layer) {
            let fact = format!("{} is not among the model's {}", options.layer, counted(most as usize, "layer"));
            return Err(Error::user("--layer", fact, format!("choose 0 (the embeddings) to {most}, or -1 for the last")));
        }
        let config = Config { layers: layer as usize, ..source.config.clone() };
        // The embeddings are no layer, so that there is none to prune.
        let last_rows = if pooling == Pooling::Cls && layer > 0 { Rows::Cls } else { Rows::Tokens };
        let Opened { backend, device, arithmetic, precision, notes, .. } = device.open(precision)?;
        let batch_tokens = options.tokens.unwrap_or(device.batch_tokens());
        let tokens = batch_tokens.max(config.positions);
        let seqs = options.texts.min(tokens); // a text has at least one token
        let spec = ModelSpec { train: false, last_rows, tokens, seqs, arithmetic };
        let mut model = Model::new(&config, spec, Hyperparameters::default(), backend)?;
        let missing = source.load_weights(&mut model, 0, false)?;
        notes.into_iter().for_each(note);
        Ok(Session { source: Arc::new(source), missing, precision, tokens: batch_tokens, pooling, model })
    }

    /// Opens a model folder for classification.
    ///
    /// # Errors
    /// Those of [`Session::open`]; a folder without a trained head.
    pub fn classifier(path: &Path, device: Device, precision: Precision, tokens: usize, texts: usize) -> Result<Session> {
        let options = Options { device, precision, tokens: Some(tokens), texts, layer: -1, pooling: Pooling::Cls };
        let session = Session::open(path, &options)?;
        if !session.missing.is_empty() {
            let fact = format!("has no {}: it is not a trained classifier", session.missing.join(", "));
            return Err(Error::user(path.display(), fact, "fine-tune it first with train"));
        }
        Ok(session)
    }

    /// Elements of a vector.
    pub fn dim(&self) -> usize {
        self.source.config.dim
    }

    /// The limits of the model on token ids.
    pub fn limits(&self) -> Limits {
        let config = &self.source.config;
        Limits { vocab: config.vocab, positions: config.positions, types: config.types }
    }

    /// The requested output of each row, in order. `done` is called with the texts and tokens of each batch.
    pub fn run(&mut self, rows: &Encoded, outputs: &[Output], mut done: impl FnMut(usize, usize)) -> Result<Vec<Vec<f32>>> {
        let ModelSpec { tokens, seqs, last_rows, .. } = self.model.plan.spec;
        let (dim, classes) = (self.source.config.dim, self.source.config.classes());
        let mut results = Vec::with_capacity(rows.rows());
        let mut submitted = 0;
        let batches = rows.batches(tokens, seqs).map(|batch| {
            let of_batch = &outputs[submitted..][..batch.seqs()];
            submitted += batch.seqs();
            let (logits, hidden) = (of_batch.contains(&Output::Logits), of_batch.iter().any(|&output| output != Output::Logits));
            (batch, Wanted { logits, losses: false, hidden })
        });
        self.model.infer_all(batches, |batch, Results { logits, hidden, .. }| {
            let of_batch = &outputs[results.len()..];
            for (row, (ends, output)) in batch.cu_seqlens.windows(2).zip(of_batch).enumerate() {
                let states = match last_rows {
                    Rows::Cls => row..row + 1,
                    Rows::Tokens => ends[0] as usize..ends[1] as usize,
                };
                results.push(match *output {
                    Output::Logits => logits[row * classes..][..classes].iter().map(|&x| x as f32).collect(),
                    Output::Vector { normalize } => {
                        self.pooling.vector(&hidden[states.start * dim..states.end * dim], dim, normalize)
                    }
                });
            }
            done(batch.seqs(), batch.tokens());
            Ok(())
        })?;
        Ok(results)
    }

    /// The logits of every row, (rows, classes), in order.
    pub fn logits(&mut self, rows: &Encoded, done: impl FnMut(usize, usize)) -> Result<Vec<f32>> {
        Ok(self.run(rows, &vec![Output::Logits; rows.rows()], done)?.concat())
    }

    /// The vector of every row, (rows, dim), in order.
    ///
    /// # Errors
    /// A vector that is not finite.
    pub fn vectors(&mut self, rows: &Encoded, normalize: bool, done: impl FnMut(usize, usize)) -> Result<Vec<f32>> {
        let vectors = self.run(rows, &vec![Output::Vector { normalize }; rows.rows()], done)?;
        match vectors.iter().position(|vector| vector.iter().any(|x| !x.is_finite())) {
            None => Ok(vectors.concat()),
            Some(row) => {
                let fact = format!("the vector of row {} is not finite", row + 1);
                Err(Error::new(Kind::Unusable, self.source.path.display(), fact, BROKEN))
            }
        }
    }

    /// A prediction for every input, in order. Texts are truncated to `max_length` tokens; token ids are not.
    ///
    /// # Errors
    /// A text for a folder without a tokenizer; logits that are not finite.
    pub fn predict(&mut self, inputs: &[Input], max_length: usize) -> Result<Vec<Prediction>> {
        let encoded = self.source.encode(inputs, max_length)?;
        self.classify(inputs, &encoded)
    }

    /// A prediction for every row of `batches`, in order. The next rows are read and tokenized while the model runs; `each` is
    /// called with every batch once it is done. Only a few batches are in memory at a time.
    ///
    /// # Errors
    /// Those of [`Session::predict`], of `batches` and of `each`, after the predictions of all earlier rows.
    pub fn predict_all(
        &mut self,
        batches: Batches,
        max_length: usize,
        mut each: impl FnMut(&[Input], &[Prediction]) -> Result<()>,
    ) -> Result<()> {
        let (source, (send, receive)) = (self.source.clone(), sync_channel(1));
        // Not a scoped thread: after an error, the next line of a slow stream must not be waited for.
        let read = move || {
            let encode = |inputs: Vec<Input>| source.encode(&inputs, max_length).map(|encoded| (inputs, encoded));
            for batch in batches {
                if send.send(batch.and_then(encode)).is_err() {
                    return; // the receiver is gone
                }
            }
        };
        let reader = thread::Builder::new().spawn(read).map_err(no_threads)?;
        for batch in receive {
            let (inputs, encoded) = batch?;
            each(&inputs, &self.classify(&inputs, &encoded)?)?;
        }
        reader.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok(())
    }

    fn classify(&mut self, inputs: &[Input], encoded: &Encoded) -> Result<Vec<Prediction>> {
        let logits = self.run(encoded, &vec![Output::Logits; inputs.len()], |_, _| ())?;
        let rows = inputs.iter().zip(logits).enumerate();
        rows.map(|(row, (input, logits))| {
            if logits.iter().any(|logit| !logit.is_finite()) {
                return Err(Error::new(Kind::Unusable, &input.place, "the logits are not finite", BROKEN));
            }
            Ok(Prediction { logits, tokens: encoded.row(row).0.len(), truncated: encoded.cut[row] })
        })
        .collect()
    }
}
