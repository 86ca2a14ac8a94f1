//! Every buffer of a run, with its name and shape: one table of sizes, one allocation. Beside the working memory of the backend, this
//! is all the memory that a step uses.
//! Views are disjoint, except where a comment says that they are shared.

use super::config::Config;
use super::names::{self, Block, Module, Param};
use crate::error::{Error, Kind, Result};
use crate::ops::{Arithmetic, DType, Inputs, Layout, Linear, Rows, Status, View, Words};
use crate::report::log::counted;

/// Alignment of every buffer in bytes: the widest transaction of a GPU, and the requirement of GEMM kernels.
const ALIGN: usize = 256;
/// Alignment of parameters in elements of the flat arena, so that vector loads never straddle two.
const PARAM_ALIGN: usize = 16;

/// The use of a model, for which its memory is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// Gradients, optimizer state and all activations are kept; otherwise one layer's buffers serve all layers.
    pub train: bool,
    /// Rows of the last layer after its keys and values: [`Rows::Cls`] if only `[CLS]` is needed (the head), [`Rows::Tokens`]
    /// if the last hidden states are.
    pub last_rows: Rows,
    /// The most tokens and the most sequences per batch.
    pub tokens: usize,
    pub seqs: usize,
    /// With activations of 16 bits, everything else (master weights, statistics, logits, gradients of parameters) is F32.
    pub arithmetic: Arithmetic,
}

/// A weight and its bias, or a norm's gamma and beta.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    pub w: View,
    pub b: View,
}

#[derive(Clone, Debug)]
pub struct Embeddings {
    pub word: View,     // (vocab, dim)
    pub position: View, // (positions, dim)
    pub types: View,    // (types, dim) or NONE
    pub norm: Affine,   // (dim) each
    pub sum: View,      // (tokens, dim)
    pub stats: View,    // (tokens, 2)
    pub out: View,      // (tokens, dim)
}

/// One layer; `rows` = tokens, or sequences in a pruned last layer.
#[derive(Clone, Debug)]
pub struct Layer {
    pub rows: Rows,
    pub qkv: Affine, // (3 * dim, dim), (3 * dim): query, key, value
    pub output: Affine,
    pub attn_norm: Affine,
    pub up: Affine,   // (ffn, dim)
    pub down: Affine, // (dim, ffn)
    pub ffn_norm: Affine,
    pub input: View,      // (tokens, dim): the output of the layer before
    pub first: View,      // (seqs, dim): its [CLS] rows, in a pruned layer
    pub projected: View,  // (tokens, 3 * dim) query, key, value; (tokens, 2 * dim) key, value in a pruned layer
    pub query: View,      // (seqs, dim) in a pruned layer
    pub context: View,    // (rows, dim)
    pub lse: View,        // (rows, heads)
    pub attn_sum: View,   // (rows, dim)
    pub attn_stats: View, // (rows, 2)
    pub attn_out: View,   // (rows, dim)
    pub pre_act: View,    // (rows, ffn)
    pub act: View,        // (rows, ffn); shares pre_act in inference
    pub ffn_sum: View,    // (rows, dim)
    pub ffn_stats: View,  // (rows, 2)
    pub out: View,        // (rows, dim); shares input in inference
}

#[derive(Clone, Debug)]
pub struct Head {
    pub dense: Affine,      // (dim, dim)
    pub classifier: Affine, // (classes, dim)
    pub weights: View,      // (classes): the class weights of the loss
    pub first: View,        // (seqs, dim)
    pub pre_act: View,      // (seqs, dim)
    pub act: View,          // (seqs, dim)
    pub logits: View,       // (seqs, classes)
    pub loss: View,         // (seqs)
}

/// Gradients of activations, one set for all layers. NONE in inference.
#[derive(Clone, Debug)]
pub struct Backward {
    pub hidden: View,     // (tokens, dim): flows from layer to layer
    pub branch: View,     // (tokens, dim): of a linear's output, dropout undone
    pub context: View,    // (tokens, dim)
    pub projected: View,  // (tokens, 3 * dim)
    pub ffn: View,        // (tokens, ffn)
    pub last_first: View, // (seqs, dim): `hidden` of a pruned last layer
    pub last_query: View, // (seqs, dim)
    pub head: View,       // (seqs, dim)
    pub logits: View,     // (seqs, classes)
}

#[derive(Clone, Debug)]
pub struct Buffer {
    pub name: String,
    pub part: Part,
    pub view: View,
}

/// The kind of a buffer, for the memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Inputs,
    Weights,
    Gradients,
    Optimizer,
    Activations,
    ActivationGradients,
}

/// A parameter and its place.
#[derive(Clone, Debug)]
pub struct Slot {
    pub param: Param,
    pub view: View,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub config: Config,
    pub spec: ModelSpec,
    /// The memory that the backend allocates.
    pub layout: Layout,
    pub status: View, // F64, Status::LEN
    /// All parameters end to end, those with weight decay first, in Hugging Face's order within both groups.
    pub params: View,
    /// The weights that products read: `params`, or a copy of them in the type of activations.
    pub weights: View,
    /// Elements of `params` that have weight decay.
    pub decayed: usize,
    pub grads: View, // as params
    pub m: View,     // as params
    pub v: View,     // as params
    pub slots: Vec<Slot>,
    pub embeddings: Embeddings,
    pub layers: Vec<Layer>,
    pub head: Head,
    pub backward: Backward,
    pub buffers: Vec<Buffer>,
}

/// Assigns the arena from front to back.
struct Arena {
    dtype: DType,
    /// The type of buffers that are never rounded to 16 bits.
    exact: DType,
    train: bool,
    bytes: usize,
    buffers: Vec<Buffer>,
}

impl Arena {
    fn typed(&mut self, part: Part, name: impl Into<String>, len: usize, dtype: DType) -> View {
        let view = View { offset: self.bytes, len, dtype };
        self.bytes += view.bytes().next_multiple_of(ALIGN);
        self.buffers.push(Buffer { name: name.into(), part, view });
        view
    }

    /// A buffer that is not rounded, regardless of the type of activations.
    fn exact(&mut self, part: Part, name: impl Into<String>, len: usize) -> View {
        self.typed(part, name, len, self.exact)
    }

    fn activation(&mut self, name: impl Into<String>, len: usize) -> View {
        self.typed(Part::Activations, name, len, self.dtype)
    }

    /// Means, deviations, log-sums: a few numbers per row.
    fn statistic(&mut self, name: impl Into<String>, len: usize) -> View {
        self.exact(Part::Activations, name, len)
    }

    /// A buffer that only training needs.
    fn for_training(&mut self, part: Part, name: &str, len: usize, dtype: DType) -> View {
        if self.train { self.typed(part, name, len, dtype) } else { View::NONE }
    }
}

/// The parameters by their role.
struct Weights<'a>(&'a [Slot]);

impl Weights<'_> {
    fn view(&self, module: Module, bias: bool) -> View {
        let slot = self.0.iter().find(|slot| (slot.param.module, slot.param.bias) == (module, bias));
        slot.map_or(View::NONE, |slot| slot.view)
    }

    fn affine(&self, module: Module) -> Affine {
        Affine { w: self.view(module, false), b: self.view(module, true) }
    }
}

impl Arena {
    fn embeddings(&mut self, weights: &Weights, config: &Config, spec: ModelSpec) -> Embeddings {
        let (tokens, dim) = (spec.tokens, config.dim);
        Embeddings {
            word: weights.view(Module::Word, false),
            position: weights.view(Module::Position, false),
            types: weights.view(Module::Types, false),
            norm: weights.affine(Module::EmbeddingNorm),
            sum: self.activation("embeddings.sum", tokens * dim),
            stats: self.statistic("embeddings.stats", tokens * 2),
            out: self.activation("embeddings.out", tokens * dim),
        }
    }

    /// Layer `l` after the layer `before`, if any, whose output is `input`.
    fn layer(
        &mut self,
        weights: &Weights,
        config: &Config,
        spec: ModelSpec,
        l: usize,
        before: Option<&Layer>,
        input: View,
    ) -> Layer {
        let ModelSpec { train, last_rows, tokens, seqs, .. } = spec;
        let Config { dim, heads, ffn, .. } = *config;
        let pruned = l + 1 == config.layers && last_rows == Rows::Cls;
        let (rows, count) = if pruned { (Rows::Cls, seqs) } else { (Rows::Tokens, tokens) };
        let affine = |block| weights.affine(Module::Layer(l, block));
        // Query, key and value are contiguous (see `place`), so that one product computes all three.
        let query = affine(Block::Query);
        let qkv = Affine { w: View { len: 3 * query.w.len, ..query.w }, b: View { len: 3 * query.b.len, ..query.b } };
        let [output, attn_norm, up, down, ffn_norm] =
            [Block::Output, Block::AttentionNorm, Block::Up, Block::Down, Block::FfnNorm].map(affine);
        // Inference keeps nothing: all layers except a pruned one use the buffers of the first.
        if let Some(before) = before.filter(|_| !train && !pruned) {
            return Layer { qkv, output, attn_norm, up, down, ffn_norm, input, ..before.clone() };
        }
        let mut statistic = |name: &str, len| self.statistic(format!("layer.{l}.{name}"), len);
        let lse = statistic("lse", count * heads);
        let (attn_stats, ffn_stats) = (statistic("attn_stats", count * 2), statistic("ffn_stats", count * 2));
        let mut take = |name: &str, len| self.activation(format!("layer.{l}.{name}"), len);
        let pre_act = take("pre_act", count * ffn);
        Layer {
            rows,
            qkv,
            output,
            attn_norm,
            up,
            down,
            ffn_norm,
            input,
            first: if pruned { take("first", seqs * dim) } else { View::NONE },
            projected: take("projected", tokens * if pruned { 2 * dim } else { 3 * dim }),
            query: if pruned { take("query", seqs * dim) } else { View::NONE },
            context: take("context", count * dim),
            lse,
            attn_sum: take("attn_sum", count * dim),
            attn_stats,
            attn_out: take("attn_out", count * dim),
            pre_act,
            act: if train { take("act", count * ffn) } else { pre_act },
            ffn_sum: take("ffn_sum", count * dim),
            ffn_stats,
            out: if train || pruned { take("out", count * dim) } else { input },
        }
    }

    /// The head after the last hidden states `last`.
    fn head(&mut self, weights: &Weights, config: &Config, spec: ModelSpec, last: View, class_weights: View) -> Head {
        let (seqs, dim, classes) = (spec.seqs, config.dim, config.classes());
        Head {
            dense: weights.affine(Module::HeadDense),
            classifier: weights.affine(Module::Classifier),
            weights: class_weights,
            first: if spec.last_rows == Rows::Cls { last } else { self.activation("head.first", seqs * dim) },
            pre_act: self.activation("head.pre_act", seqs * dim),
            act: self.activation("head.act", seqs * dim),
            logits: self.statistic("head.logits", seqs * classes),
            loss: self.statistic("head.loss", seqs),
        }
    }

    /// The gradients of activations, shared by all layers.
    fn backward(&mut self, config: &Config, spec: ModelSpec) -> Backward {
        let ModelSpec { tokens, seqs, .. } = spec;
        let (Config { dim, ffn, .. }, dtype) = (config, self.dtype);
        let mut grad = |name, len| self.for_training(Part::ActivationGradients, name, len, dtype);
        Backward {
            hidden: grad("d hidden", tokens * dim),
            branch: grad("d branch", tokens * dim),
            context: grad("d context", tokens * dim),
            projected: grad("d projected", tokens * 3 * dim),
            ffn: grad("d ffn", tokens * ffn),
            last_first: grad("d last_first", seqs * dim),
            last_query: grad("d last_query", seqs * dim),
            head: grad("d head", seqs * dim),
            logits: self.for_training(Part::ActivationGradients, "d logits", seqs * config.classes(), self.exact),
        }
    }
}

impl Plan {
    pub fn new(config: &Config, spec: ModelSpec) -> Plan {
        let ModelSpec { train, tokens, seqs, arithmetic, .. } = spec;
        let dtype = arithmetic.dtype();
        let exact = dtype.exact();
        let mut arena = Arena { dtype, exact, train, bytes: 0, buffers: Vec::new() };

        let batch = arena.typed(Part::Inputs, "batch", Inputs::capacity(tokens, seqs), DType::I32);
        let status = arena.typed(Part::Inputs, "status", Status::LEN, DType::F64);
        let class_weights = arena.exact(Part::Inputs, "class weights", config.classes());

        let (places, decayed, len) = place(names::params(config));
        let params = arena.exact(Part::Weights, "parameters", len);
        let weights = if dtype == exact { params } else { arena.typed(Part::Weights, "parameters in 16 bits", len, dtype) };
        let grads = arena.for_training(Part::Gradients, "gradients", len, exact);
        let m = arena.for_training(Part::Optimizer, "first moments", len, exact);
        let v = arena.for_training(Part::Optimizer, "second moments", len, exact);
        let slots: Vec<Slot> =
            places.into_iter().map(|(start, param)| Slot { view: params.slice(start, param.count()), param }).collect();

        let word = Weights(&slots).view(Module::Word, false);
        let in_flat = |flat: View| if flat.is_none() { flat } else { flat.slice(0, word.len) };
        let words = Words {
            rows: config.vocab,
            dim: config.dim,
            params: word,
            copy: if weights == params { View::NONE } else { in_flat(weights) },
            grads: in_flat(grads),
            m: in_flat(m),
            v: in_flat(v),
        };
        assert_eq!(word.offset, params.offset, "the word table begins the parameters");

        let weights_of = Weights(&slots);
        let embeddings = arena.embeddings(&weights_of, config, spec);
        let mut layers: Vec<Layer> = Vec::with_capacity(config.layers);
        for l in 0..config.layers {
            let input = layers.last().map_or(embeddings.out, |before| before.out);
            let layer = arena.layer(&weights_of, config, spec, l, layers.last(), input);
            layers.push(layer);
        }
        let last = layers.last().map_or(embeddings.out, |layer| layer.out);
        let head = arena.head(&weights_of, config, spec, last, class_weights);
        let backward = arena.backward(config, spec);
        Plan {
            config: config.clone(),
            spec,
            layout: Layout {
                bytes: arena.bytes,
                arithmetic,
                batch,
                max_seqlen: config.positions.min(tokens),
                params: params.len,
                words: train.then_some(words),
            },
            status,
            params,
            weights,
            decayed,
            grads,
            m,
            v,
            slots,
            embeddings,
            layers,
            head,
            backward,
            buffers: arena.buffers,
        }
    }

    /// The last hidden states, (tokens, dim), or (seqs, dim) if only those of `[CLS]` are kept.
    pub fn last_hidden(&self) -> View {
        self.layers.last().map_or(self.embeddings.out, |layer| layer.out)
    }

    /// The elements of `param` in another flat view of the same layout (gradients, moments).
    pub fn view_in(&self, param: View, flat: View) -> View {
        if flat.is_none() || param.is_none() {
            return View::NONE;
        }
        flat.slice((param.offset - self.params.offset) / param.dtype.size(), param.len)
    }

    /// The gradient of a parameter; NONE in inference.
    pub fn grad(&self, param: View) -> View {
        self.view_in(param, self.grads)
    }

    /// The op `y = x W^T + b` with its gradients but that of the bias, which the op that gives `dy` has; `dx` is overwritten.
    pub fn linear(&self, weights: Affine, [x, y]: [View; 2], [dy, dx]: [View; 2], rows: Rows) -> Linear {
        let dw = self.grad(weights.w);
        let (k, n) = (weights.w.len / weights.b.len, weights.b.len);
        let w = self.view_in(weights.w, self.weights);
        let b = self.view_in(weights.b, self.weights);
        Linear { x, w, b, y, dy, dx, dw, add: false, k, n, rows }
    }

    /// Bytes by purpose.
    fn parts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        use Part::*;
        let names = [
            (Weights, "weights"),
            (Gradients, "gradients"),
            (Optimizer, "optimizer state"),
            (Activations, "activations"),
            (ActivationGradients, "activation gradients"),
            (Inputs, "inputs"),
        ];
        let of = |part| self.buffers.iter().filter(move |b: &&Buffer| b.part == part).map(|b| b.view.bytes()).sum();
        names.map(|(part, name)| (name, of(part))).into_iter().filter(|&(_, bytes)| bytes > 0)
    }

    /// The memory table, with the working memory of a backend and the memory of its libraries, if there are any, and with the host's
    /// memory from which checkpoints are written.
    pub fn table(&self, workspace: usize, libraries: usize, snapshot: usize) -> String {
        let total = ("total", self.layout.bytes + workspace + libraries);
        let libraries = (libraries > 0).then_some(("driver and libraries", libraries));
        let rows = self.parts().chain([("working memory", workspace)]).chain(libraries);
        let rows = rows.chain([total, ("host copy for saving", snapshot)]);
        let rows: Vec<String> = rows.map(|(name, bytes)| format!("{name:<22}{:>12.1} MiB", mib(bytes))).collect();
        rows.join("\n")
    }

    /// # Errors
    /// The plan is larger than the memory `available`, in bytes: lists its parts, and the largest batch that fits.
    pub fn check_fits(&self, available: usize) -> Result<()> {
        if self.layout.bytes <= available {
            return Ok(());
        }
        let ModelSpec { tokens, seqs, .. } = self.spec;
        // Any of its rows may have full length.
        let smaller = |rows: usize| ModelSpec { tokens: tokens.min(rows * self.config.positions), seqs: rows, ..self.spec };
        let fits = |rows: &usize| Plan::new(&self.config, smaller(*rows)).layout.bytes <= available;
        let remedy = match (1..seqs).rev().find(fits) {
            Some(rows) => {
                format!("the largest batch that fits has {}: lower --batch-size and --eval-batch-size", counted(rows, "row"))
            }
            None => "not even a batch of one row fits: lower --max-length, or pass --device cpu".to_string(),
        };
        let parts: Vec<String> = self.parts().map(|(name, bytes)| format!("{name} {:.1}", mib(bytes))).collect();
        let (needed, free) = (mib(self.layout.bytes), mib(available));
        let fact = format!("{needed:.1} MiB are needed ({}), {free:.1} MiB are free", parts.join(", "));
        Err(Error::new(Kind::Device, "memory", fact, remedy))
    }

    /// Number of parameters of the model, without padding.
    pub fn parameters(&self) -> usize {
        self.slots.iter().map(|slot| slot.view.len).sum()
    }
}

/// Start of each parameter in the flat view, in elements; how many elements decay; how many there are, with padding.
fn place(params: Vec<Param>) -> (Vec<(usize, Param)>, usize, usize) {
    let mut starts = vec![0; params.len()];
    let (mut at, mut decayed) = (0usize, 0);
    for decay in [true, false] {
        for (start, param) in starts.iter_mut().zip(&params).filter(|(_, param)| param.decay == decay) {
            if !param.follows_query() {
                at = at.next_multiple_of(PARAM_ALIGN);
            }
            *start = at;
            at += param.count();
        }
        at = at.next_multiple_of(PARAM_ALIGN);
        if decay {
            decayed = at;
        }
    }
    (starts.into_iter().zip(params).collect(), decayed, at)
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / (1 << 20) as f64
}
