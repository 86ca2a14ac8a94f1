//! The parameters of a model: Hugging Face's name of each tensor, its shape, initialisation and training. Both architectures
//! have the same tensors in the same order; only the names differ.

use std::f64::consts::TAU;

use rand_mt::Mt64;
use rayon::prelude::*;

use crate::model::config::{Arch, Config};

/// Initialisation of a parameter that is missing from the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// N(0, initializer_range): the weights of linear layers and tables.
    Normal,
    /// Biases.
    Zeros,
    /// Norm weights.
    Ones,
}

/// The part of a model that a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    Word,
    Position,
    Types,
    EmbeddingNorm,
    /// In a layer, from 0.
    Layer(usize, Block),
    HeadDense,
    Classifier,
}

/// A part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    Query,
    Key,
    Value,
    Output,
    AttentionNorm,
    Up,
    Down,
    FfnNorm,
}

/// One parameter tensor. Linear weights are `[out, in]`, tables `[rows, dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name in model.safetensors.
    pub name: String,
    pub module: Module,
    pub bias: bool,
    pub shape: Vec<usize>,
    /// Whether weight decay applies: to matrices and tables, not to biases and norms.
    pub decay: bool,
    pub init: Init,
    /// Part of the head, which a base checkpoint may lack (BERT's often has its pooler).
    pub head: bool,
}

/// All parameters of a model, in the order of Hugging Face's `named_parameters()`.
pub fn params(config: &Config) -> Vec<Param> {
    use Block::*;
    let (dim, ffn) = (config.dim, config.ffn);
    let root = config.arch.model_type();
    let (layers, names, dense) = match config.arch {
        Arch::DistilBert => (
            "distilbert.transformer.layer",
            [
                "attention.q_lin",
                "attention.k_lin",
                "attention.v_lin",
                "attention.out_lin",
                "sa_layer_norm",
                "ffn.lin1",
                "ffn.lin2",
                "output_layer_norm",
            ],
            "pre_classifier",
        ),
        Arch::Bert => (
            "bert.encoder.layer",
            [
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "attention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
            ],
            "bert.pooler.dense",
        ),
    };
    let blocks = [Query, Key, Value, Output, AttentionNorm, Up, Down, FfnNorm];

    let table = |name: &str, module, rows| weight(format!("{root}.embeddings.{name}"), module, vec![rows, dim]);
    let mut list = vec![
        table("word_embeddings", Module::Word, config.vocab),
        table("position_embeddings", Module::Position, config.positions),
    ];
    if config.types > 0 {
        list.push(table("token_type_embeddings", Module::Types, config.types));
    }
    list.extend(norm(format!("{root}.embeddings.LayerNorm"), Module::EmbeddingNorm, dim));
    for layer in 0..config.layers {
        for (block, name) in blocks.into_iter().zip(names) {
            let (name, module) = (format!("{layers}.{layer}.{name}"), Module::Layer(layer, block));
            list.extend(match block {
                Query | Key | Value | Output => linear(name, module, dim, dim),
                Up => linear(name, module, ffn, dim),
                Down => linear(name, module, dim, ffn),
                AttentionNorm | FfnNorm => norm(name, module, dim),
            });
        }
    }
    let classifier = linear("classifier".into(), Module::Classifier, config.classes(), dim);
    let head = linear(dense.into(), Module::HeadDense, dim, dim).into_iter().chain(classifier);
    list.extend(head.map(|param| Param { head: true, ..param }));
    list
}

fn weight(name: String, module: Module, shape: Vec<usize>) -> Param {
    Param { name: name + ".weight", module, bias: false, shape, decay: true, init: Init::Normal, head: false }
}

fn bias(name: String, module: Module, len: usize) -> Param {
    Param { name: name + ".bias", module, bias: true, shape: vec![len], decay: false, init: Init::Zeros, head: false }
}

fn linear(name: String, module: Module, out: usize, inputs: usize) -> [Param; 2] {
    [weight(name.clone(), module, vec![out, inputs]), bias(name, module, out)]
}

fn norm(name: String, module: Module, dim: usize) -> [Param; 2] {
    let gamma = Param { decay: false, init: Init::Ones, ..weight(name.clone(), module, vec![dim]) };
    [gamma, bias(name, module, dim)]
}

impl Param {
    /// Whether it directly follows the previous parameter in memory: key after query, value after key, so that one product
    /// computes all three.
    pub fn follows_query(&self) -> bool {
        matches!(self.module, Module::Layer(_, Block::Key | Block::Value))
    }

    /// The number of its elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The names it may have in a checkpoint, the usual one first: base models are saved without the prefix of the encoder, and
    /// norms (`LayerNorm`, `sa_layer_norm`) converted from TensorFlow have gamma and beta.
    pub fn spellings(&self) -> impl Iterator<Item = String> {
        let bare =
            [Arch::DistilBert, Arch::Bert].iter().find_map(|arch| self.name.strip_prefix(arch.model_type())?.strip_prefix('.'));
        let old = |name: &str| name.replace("orm.weight", "orm.gamma").replace("orm.bias", "orm.beta");
        [Some(self.name.as_str()), bare].into_iter().flatten().flat_map(move |name| [name.to_string(), old(name)])
    }

    /// Its initial values, `std` being the config's `initializer_range`. They depend on seed and name alone, and neither on the
    /// order of calls nor on the platform: the logarithm and the sine come from the crate libm, not from the system.
    ///
    /// Hugging Face zeroes the PAD row of a new word table; here it is drawn like the others. As a checkpoint without a word
    /// table is refused, this concerns only models built from scratch.
    pub fn initialise(&self, seed: u64, std: f32) -> Vec<f32> {
        let count = self.count();
        match self.init {
            Init::Zeros => vec![0.0; count],
            Init::Ones => vec![1.0; count],
            Init::Normal => {
                let mut random = Mt64::new_with_key([seed].into_iter().chain(self.name.bytes().map(u64::from)));
                // 53 bits, in [0, 1).
                let uniform = |bits: u64| (bits >> 11) as f64 / (1u64 << 53) as f64;
                // Box-Muller transform: two numbers from two.
                let pair = |[a, b]: [u64; 2]| {
                    let radius = f64::from(std) * libm::sqrt(-2.0 * libm::log(1.0 - uniform(a)));
                    let (sin, cos) = libm::sincos(TAU * uniform(b));
                    [(radius * cos) as f32, (radius * sin) as f32]
                };
                let mut pairs = vec![[0.0; 2]; count.div_ceil(2)];
                // The generator runs ahead of the transform, which takes ten times as long and is done by all threads.
                for block in pairs.chunks_mut(1 << 20) {
                    let bits: Vec<_> = block.iter().map(|_| [random.next_u64(), random.next_u64()]).collect();
                    block.par_iter_mut().zip(bits).with_min_len(1 << 10).for_each(|(values, bits)| *values = pair(bits));
                }
                let mut values = pairs.into_flattened();
                values.truncate(count);
                values
            }
        }
    }
}
