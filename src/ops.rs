//! The operator definitions: one struct per op, with its maths. A model is a list of [`Op`]s, its backward pass the reversed
//! list; a [`Backend`] runs them. Notation: rows = packed tokens (or sequences), dim = hidden size, `d` + name = gradient of
//! name. Gradients are overwritten (`=`), but those of parameters accumulate (`+=`) over the micro-batches of an update: the first
//! overwrites them, the others add ([`Step::adds`]). A field may make an op add to the gradient of an activation.
//!
//! ```
//! use warpfit::cpu::Cpu;
//! use warpfit::data::pack::PackedBatch;
//! use warpfit::ops::*;
//!
//! // One row of two numbers by a layer of three, y = x W^T + b.
//! let mut bytes = 0;
//! let mut place = |len: usize, dtype: DType| {
//!     bytes += 256;
//!     View { offset: bytes - 256, len, dtype }
//! };
//! let batch = place(Inputs::capacity(1, 1), DType::I32);
//! let [x, w, b, y] = [2, 6, 3, 3].map(|len| place(len, DType::F32));
//! let (dy, dx, dw) = (View::NONE, View::NONE, View::NONE);
//! let linear = Op::Linear(Linear { x, w, b, y, dy, dx, dw, add: false, k: 2, n: 3, rows: Rows::Tokens });
//!
//! let backend: &mut dyn Backend = &mut Cpu::<f32>::new();
//! backend.reserve(&Layout { bytes, arithmetic: Arithmetic::F32, batch, max_seqlen: 1, params: 6, words: None })?;
//! backend.write(x, &[1.0, 2.0])?;
//! backend.write(w, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])?;
//! backend.write(b, &[0.5, 0.5, 0.0])?;
//! backend.stage(&PackedBatch::new([(&[7][..], &[][..], 0)]), &Step::INFER)?;
//! backend.forward(&linear)?;
//! assert_eq!(backend.read(y)?, [1.5, 2.5, 3.0]);
//! # Ok::<(), warpfit::Error>(())
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::data::pack::{PackedBatch, TILE};
use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    /// For weights and activations on a GPU; sums and statistics are F32.
    Bf16,
    /// Like Bf16, with more digits and a smaller range: gradients of activations need a loss scale.
    F16,
    /// For gradient checks on the CPU, and for the status block.
    F64,
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 => 8,
        }
    }

    /// The type of values that are never rounded to 16 bits, when activations have this type: sums, statistics, parameters.
    pub fn exact(self) -> DType {
        if self.size() == 2 { DType::F32 } else { self }
    }
}

/// The operands that are rounded, and their type. Sums, statistics and the optimizer's weights never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// On the CPU, for gradient checks.
    F64,
    F32,
    /// Operands of products are rounded to 10 bits of fraction. On a GPU.
    Tf32,
    /// Activations, and the weights in products, are bf16. On a GPU.
    Bf16,
    /// The same in f16, with a loss scale. On a GPU.
    F16,
    /// Operands of products, in linear layers and in attention, are rounded; everything stored is F32. On the CPU.
    Bf16Products,
}

impl Arithmetic {
    /// The type of activations.
    pub fn dtype(self) -> DType {
        match self {
            Arithmetic::F64 => DType::F64,
            Arithmetic::Bf16 => DType::Bf16,
            Arithmetic::F16 => DType::F16,
            Arithmetic::F32 | Arithmetic::Tf32 | Arithmetic::Bf16Products => DType::F32,
        }
    }
}

/// A tensor is a range of the arena: no lifetime, no reference count, no device pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Start, in bytes.
    pub offset: usize,
    /// Elements.
    pub len: usize,
    pub dtype: DType,
}

impl View {
    /// A tensor that a plan does not have: gradients in a plan for inference, the token types of DistilBERT.
    pub const NONE: View = View { offset: 0, len: 0, dtype: DType::F32 };

    /// `len` elements from element `start`.
    pub fn slice(self, start: usize, len: usize) -> View {
        assert!(start + len <= self.len, "slice {start}+{len} of a tensor of {}", self.len);
        View { offset: self.offset + start * self.dtype.size(), len, ..self }
    }

    /// From element `start` to the end.
    pub fn from(self, start: usize) -> View {
        self.slice(start, self.len - start)
    }

    pub fn is_none(self) -> bool {
        self.len == 0
    }

    pub fn bytes(self) -> usize {
        self.len * self.dtype.size()
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(self, other: View) -> bool {
        self.offset < other.offset + other.bytes() && other.offset < self.offset + self.bytes()
    }
}

/// Where the arrays of a [`PackedBatch`] lie: one after the other in the region that the plan has for them, so that one copy
/// brings them all. I32.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    pub ids: View,           // (tokens)
    pub positions: View,     // (tokens)
    pub types: View,         // (tokens)
    pub cu_seqlens: View,    // (seqs + 1)
    pub labels: View,        // (seqs)
    pub tiles: View,         // (tiles, 2)
    pub rows_by_token: View, // (tokens)
    pub token_starts: View,  // (distinct tokens + 1)
}

impl Inputs {
    /// Elements of a region that holds any batch of at most `tokens` tokens and `seqs` sequences.
    pub fn capacity(tokens: usize, seqs: usize) -> usize {
        let tiles = tokens / TILE + seqs;
        let arrays = [tokens, tokens, tokens, seqs + 1, seqs, 2 * tiles, tokens, tokens + 1];
        arrays.into_iter().map(|len| len.next_multiple_of(Self::UNIT)).sum()
    }

    /// Every array starts at a multiple of this many elements.
    const UNIT: usize = 4;

    /// The arrays of a batch in `region`.
    ///
    /// # Panics
    /// When the batch is larger than what the region was planned for.
    pub fn of(batch: &PackedBatch, region: View) -> Inputs {
        let mut end = 0;
        let views = batch.arrays().map(|values| {
            let view = region.slice(end, values.len());
            end += values.len().next_multiple_of(Self::UNIT);
            view
        });
        let [ids, positions, types, cu_seqlens, labels, tiles, rows_by_token, token_starts] = views;
        Inputs { ids, positions, types, cu_seqlens, labels, tiles, rows_by_token, token_starts }
    }

    /// Each array with its content.
    pub fn with<'a>(&self, batch: &'a PackedBatch) -> impl Iterator<Item = (View, &'a [i32])> {
        let Inputs { ids, positions, types, cu_seqlens, labels, tiles, rows_by_token, token_starts } = *self;
        let views = [ids, positions, types, cu_seqlens, labels, tiles, rows_by_token, token_starts];
        views.into_iter().zip(batch.arrays())
    }
}

/// The memory that a backend allocates, once.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Size of the arena.
    pub bytes: usize,
    pub arithmetic: Arithmetic,
    /// For the [`Inputs`] of a batch.
    pub batch: View,
    /// Tokens of the longest sequence.
    pub max_seqlen: usize,
    /// Elements of the flat parameters.
    pub params: usize,
    /// In a plan for training.
    pub words: Option<Words>,
}

/// The word table, (rows, dim) each, which begins the flat parameters. Only the rows of a batch's tokens get a gradient, so that a
/// backend may pass over the others in an update and apply it later, if no reader can tell.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    pub rows: usize,
    pub dim: usize,
    pub params: View,
    pub copy: View, // of params in 16 bits, or NONE
    pub grads: View,
    pub m: View,
    pub v: View,
}

impl Words {
    pub fn views(&self) -> [View; 5] {
        [self.params, self.copy, self.grads, self.m, self.v]
    }
}

/// The state of a micro-batch; everything else is fixed when the plan is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub seed: u64,
    /// The optimizer update of this micro-batch, from 1.
    pub update: u64,
    /// The micro-batch within the update, from 0.
    pub micro: u32,
    /// Divisor of the summed loss: the rows of the whole update, or their summed class weights.
    pub loss_normalizer: f64,
    /// Whether dropout is on and the loss is added to the status block.
    pub train: bool,
}

impl Step {
    /// For evaluation and prediction.
    pub const INFER: Step = Step { seed: 0, update: 0, micro: 0, loss_normalizer: 1.0, train: false };

    /// Whether the gradients of parameters are added to those of earlier micro-batches, or else overwritten.
    pub fn adds(&self) -> bool {
        self.micro > 0
    }
}

/// The state of an optimizer update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// From 1.
    pub number: u64,
    pub learning_rate: f64,
}

/// The rows that an op runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every token of the packed batch.
    Tokens,
    /// One row per sequence: its `[CLS]` token.
    Cls,
}

/// The values of a draw of 16 bits.
const DRAWS: f64 = 65_536.0;

/// Dropout: element (row, column) is zeroed if draw `column % 8` of Philox(step key, [column / 8, row, site, 0]) is below
/// [`DropSite::threshold`], else multiplied by [`DropSite::scale`]. Draws 0 and 1 are the low and the high 16 bits of the first of
/// the four words, and so on. `row` is the packed row of the token (of `[CLS]` for [`Rows::Cls`]), so that a plan that prunes the
/// last layer draws the same masks. Off unless `Step::train`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropSite {
    /// Probability in [0, 1).
    pub p: f32,
    /// Identifies the place of dropout in the model.
    pub site: u32,
}

impl DropSite {
    pub const NONE: DropSite = DropSite { p: 0.0, site: 0 };

    /// How many of the 65,536 draws drop an element: p, rounded to a multiple of 2^-16. 0 drops nothing.
    pub fn threshold(self) -> u32 {
        ((f64::from(self.p) * DRAWS).round() as u32).min(DRAWS as u32 - 1)
    }

    /// The factor of the elements that are kept: 1 / (1 - p) with the rounded p, so that expected values are exact.
    pub fn scale(self) -> f64 {
        DRAWS / (DRAWS - f64::from(self.threshold()))
    }
}

/// `x[r] = word[ids[r]] + position[positions[r]] (+ types[type_ids[r]])`, `y = dropout(norm(x))` with the norm of [`AddNorm`].
/// The ids are the plan's inputs. Backward: `dy` becomes the gradient of `x`; each table row sums it over its tokens, in row
/// order; `dword[pad]` gets nothing.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    pub word: View,     // (vocab, dim)
    pub position: View, // (positions, dim)
    pub types: View,    // (types, dim) or NONE
    pub gamma: View,    // (dim)
    pub beta: View,     // (dim)
    pub x: View,        // (tokens, dim)
    pub y: View,        // (tokens, dim)
    pub stats: View,    // (tokens, 2): mean, 1 / standard deviation
    pub dy: View,       // (tokens, dim), becomes dx
    pub dword: View,
    pub dposition: View,
    pub dtypes: View,
    pub dgamma: View,
    pub dbeta: View,
    pub pad: Option<usize>,
    pub drop: DropSite,
    pub eps: f32,
    pub dim: usize,
}

impl Embed {
    /// The norm alone.
    pub fn norm(&self) -> AddNorm {
        let Embed { x, gamma, beta, y, stats, dy, dgamma, dbeta, eps, dim, .. } = *self;
        let (none, drop, rows) = (View::NONE, DropSite::NONE, Rows::Tokens);
        AddNorm { x, skip: none, gamma, beta, y, stats, dy, dx: dy, dgamma, dbeta, db: none, drop, eps, dim, rows }
    }
}

/// `y = x W^T + b`, `b` of the type of `y`.
/// Backward: `dx = dy W` (`dx += dy W` with `add`), `dw += dy^T x`. The gradient of `b`, the column sums of `dy`, is that of the op
/// that gives `dy` and has it at hand.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub x: View, // (rows, k)
    pub w: View, // (n, k)
    pub b: View, // (n)
    pub y: View, // (rows, n)
    pub dy: View,
    pub dx: View,
    pub dw: View,
    pub add: bool,
    pub k: usize,
    pub n: usize,
    pub rows: Rows,
}

/// Multi-head self-attention (Vaswani et al., arXiv 1706.03762) within each sequence, no padding, no mask:
/// `s = q k^T / sqrt(head_dim)`, `p = exp(s - lse)`, `lse = log sum exp s` over the keys, `y = dropout(p) v`.
/// Backward: `dv = dropout(p)^T dy`, `ds = p * (dropout(dy v^T) - rowsum(dy * y))`, `dq = ds k / sqrt(head_dim)`,
/// `dk = ds^T q / sqrt(head_dim)`. Row r of q, k, v starts at `r * q_stride`, `r * kv_stride`; head h at `h * head_dim`.
/// `db += column sums of dq, dk and dv`. Dropout's row is `token row * heads + head`, its column the key's position in the sequence.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub q: View,   // (q_rows, dim) with q_stride
    pub k: View,   // (tokens, dim) with kv_stride
    pub v: View,   // (tokens, dim) with kv_stride
    pub y: View,   // (q_rows, dim)
    pub lse: View, // (q_rows, heads)
    pub dy: View,
    pub dq: View,
    pub dk: View,
    pub dv: View,
    pub db: View, // (3, dim) or NONE: of the biases that q, k and v end with
    pub q_stride: usize,
    pub kv_stride: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub drop: DropSite,
    pub q_rows: Rows,
}

/// Residual, dropout and layer norm (Ba et al., arXiv 1607.06450): `z = dropout(x) + skip`,
/// `y = (z - mean(z)) / sqrt(var(z) + eps) * gamma + beta`, the variance biased. `x` holds z afterwards.
/// Backward, with `n = (z - mean) * rstd` and `g = dy * gamma`: `dz = rstd * (g - mean(g) - n * mean(g * n))`,
/// `dx = dropout(dz)`, `dgamma += sum dy * n`, `dbeta += sum dy`, `db += column sums of dx`. `dy` becomes dz, the gradient of
/// `skip`; `dx` is `dy` if p is 0.
#[derive(Clone, Copy, Debug)]
pub struct AddNorm {
    pub x: View,     // (rows, dim), becomes z
    pub skip: View,  // (rows, dim) or NONE
    pub gamma: View, // (dim)
    pub beta: View,  // (dim)
    pub y: View,     // (rows, dim)
    pub stats: View, // (rows, 2): mean, 1 / standard deviation
    pub dy: View,    // (rows, dim), becomes dz
    pub dx: View,    // (rows, dim)
    pub dgamma: View,
    pub dbeta: View,
    pub db: View, // (dim) or NONE: of the bias that x ends with
    pub drop: DropSite,
    pub eps: f32,
    pub dim: usize,
    pub rows: Rows,
}

/// `y = x * (1 + erf(x / sqrt 2)) / 2` (Hendrycks & Gimpel, arXiv 1606.08415, the exact form); backward, `dy` becomes
/// `dx = dy * gelu'(x)`, and `db += column sums of dx`. `y` may be `x` if there is no backward.
#[derive(Clone, Copy, Debug)]
pub struct Gelu {
    pub x: View, // (rows, width)
    pub y: View,
    pub dy: View, // (rows, width), becomes dx
    pub db: View, // (width) or NONE: of the bias that x ends with
    pub width: usize,
    pub rows: Rows,
}

/// The `[CLS]` row of each sequence: `y[b] = x[cu_seqlens[b]]`.
/// Backward: `dx[cu_seqlens[b]] += dy[b]`; the other rows of `dx` keep their value with `add`, else become 0.
#[derive(Clone, Copy, Debug)]
pub struct GatherCls {
    pub x: View, // (tokens, dim)
    pub y: View, // (seqs, dim)
    pub dy: View,
    pub dx: View,
    pub add: bool,
    pub dim: usize,
}

/// Between the dense layer of the classification head and its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Relu,
    Tanh,
}

/// The classification head after its dense layer, and the loss: `y = dropout(f(x))`, `logits = y W^T + b`, and the cross-entropy
/// with label smoothing e (Szegedy et al., arXiv 1512.00567) and class weights w of
/// `torch.nn.CrossEntropyLoss(weight, label_smoothing)`: with `lp = log softmax(logits)` and label t,
/// `loss = -(1 - e) w[t] lp[t] - e / classes * sum_c w[c] lp[c]`; the update's loss is their sum over rows divided by
/// `Step::loss_normalizer`. In training the forward pass, which has all that a row needs at hand, also writes the gradients
/// `dlogits = d(update's loss) / d(logits)`, times the loss scale in the status block, and `dx = dropout(dlogits W) * f'(x)`.
/// Backward sums over rows: `dw += dlogits^T y`, `db += column sums of dlogits`, `dx_sum += column sums of dx`, and the update's
/// loss is added to the status block.
#[derive(Clone, Copy, Debug)]
pub struct Classifier {
    pub activation: Activation,
    pub x: View,       // (seqs, dim)
    pub y: View,       // (seqs, dim)
    pub w: View,       // (classes, dim)
    pub b: View,       // (classes)
    pub logits: View,  // (seqs, classes)
    pub weights: View, // (classes)
    pub loss: View,    // (seqs)
    pub dlogits: View, // (seqs, classes)
    pub dx: View,      // (seqs, dim)
    pub dw: View,
    pub db: View,
    pub dx_sum: View, // (dim): the gradient of the bias that x ends with
    pub status: View, // F64, see Status
    pub drop: DropSite,
    pub smoothing: f32,
    pub dim: usize,
    pub classes: usize,
}

/// A differentiable step of a model.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Embed(Embed),
    Linear(Linear),
    Attention(Attention),
    AddNorm(AddNorm),
    Gelu(Gelu),
    GatherCls(GatherCls),
    Classifier(Classifier),
}

/// The direction in which an op runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    Backward,
}

impl Pass {
    pub const BOTH: [Pass; 2] = [Pass::Forward, Pass::Backward];
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Pass::Forward => "fwd",
            Pass::Backward => "bwd",
        })
    }
}

impl Op {
    /// Its kind and the properties that distinguish it: `linear fwd 768 -> 3072 [CLS]`.
    pub fn label(&self, pass: Pass) -> String {
        let (kind, detail, rows) = match self {
            Op::Embed(_) => ("embed", String::new(), Rows::Tokens),
            Op::Linear(op) => ("linear", format!("{} -> {}", op.k, op.n), op.rows),
            Op::Attention(op) => ("attn", String::new(), op.q_rows),
            Op::AddNorm(op) => ("add norm", String::new(), op.rows),
            Op::Gelu(op) => ("gelu", op.width.to_string(), op.rows),
            Op::GatherCls(_) => ("first row", String::new(), Rows::Tokens),
            Op::Classifier(op) => ("classifier", format!("{} -> {}", op.dim, op.classes), Rows::Cls),
        };
        let rows = if rows == Rows::Cls { "[CLS]" } else { "" };
        let words = [kind, &pass.to_string(), &detail, rows];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// `grad_norm = sqrt(sum of squares of grads) / loss scale`, into the status block.
#[derive(Clone, Copy, Debug)]
pub struct GradNorm {
    pub grads: View,  // flat
    pub status: View, // F64, see Status
}

/// `y = x`, rounded to the type of `y`.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    pub x: View, // (len)
    pub y: View, // (len)
}

/// AdamW (Loshchilov & Hutter, arXiv 1711.05101; `torch.optim.AdamW`) over all parameters at once, t = `Update::number` less the
/// skipped updates: n the gradient norm and s the loss scale in the status block, `g = grads / s * min(1, max_norm / (n + 1e-6))`,
/// `p *= 1 - lr * decay`, `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `p -= lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)`.
/// The first `decayed` elements have weight decay. If the loss or n is not finite, the update is skipped: nothing changes, and
/// the status block counts it. `copy` becomes `params`, rounded.
///
/// With `growth`, the loss scale is dynamic (Micikevicius et al., arXiv 1710.03740; `torch.amp.GradScaler`): a skipped update
/// halves it, `growth` updates without one double it. Once it is below 1, all updates are skipped.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub params: View, // flat
    pub copy: View,   // the weights that products read, or NONE if they read params
    pub grads: View,
    pub m: View,
    pub v: View,
    pub status: View, // F64, see Status
    pub decayed: usize,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// 0 disables clipping.
    pub max_norm: f64,
    /// Updates in a row, none of them skipped, after which the loss scale doubles; 0: it is constant.
    pub growth: u32,
}

/// The numbers that a training loop reads back, in the layout of the status view.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Status {
    /// Loss of the current update; [`AdamW`] moves it to `loss_sum`.
    pub loss: f64,
    /// Summed loss of the updates since the host last zeroed the block.
    pub loss_sum: f64,
    /// Gradient norm of the last update, before clipping.
    pub grad_norm: f64,
    /// Updates skipped, in the whole run, because the loss or the gradient norm was not finite.
    pub skipped: f64,
    /// Exponent of the loss scale, an integer: stored gradients of activations and parameters are 2 to this power times their value.
    pub scale: f64,
    /// Updates since the scale last changed, if it is dynamic.
    pub good: f64,
}

impl Status {
    pub const LEN: usize = 6;

    pub fn from_slice(s: &[f64]) -> Status {
        Status { loss: s[0], loss_sum: s[1], grad_norm: s[2], skipped: s[3], scale: s[4], good: s[5] }
    }

    pub fn to_array(self) -> [f64; Status::LEN] {
        [self.loss, self.loss_sum, self.grad_norm, self.skipped, self.scale, self.good]
    }

    /// The factor of the gradients.
    pub fn loss_scale(&self) -> f64 {
        self.scale.exp2()
    }
}

/// A device that runs the ops, held as `Box<dyn Backend>`: the cost of a virtual call is negligible. Errors come from the
/// device alone; a view outside the arena or of the wrong type is a broken invariant and panics.
pub trait Backend: Send {
    /// Name for people: "CPU, 2 threads".
    fn name(&self) -> String;

    /// What the bits of its results depend on: "NVIDIA H100 80GB HBM3", or a CPU and its instructions.
    fn processor(&self) -> String {
        self.name()
    }

    /// Bytes that the views of this layout may have at most, beside its workspace and the libraries; `None` if unknown.
    fn available(&self, layout: &Layout) -> Result<Option<usize>>;

    /// Bytes that [`Backend::reserve`] takes beyond those of the layout: the working memory of ops.
    fn workspace(&self, layout: &Layout) -> usize;

    /// Bytes that the device's driver and libraries take beside those, on first use.
    fn libraries(&self) -> usize {
        0
    }

    /// Whether updates pass over the rows of [`Layout::words`] that have no gradient.
    fn passes_over_rows(&self) -> bool {
        false
    }

    /// Allocates all memory, zeroed. The only allocation.
    fn reserve(&mut self, layout: &Layout) -> Result<()>;

    /// Copies `src` (the bytes of elements of `dst`'s type) to the start of `dst`.
    fn upload(&mut self, dst: View, src: &[u8]) -> Result<()>;

    /// Copies the start of `src` into `dst`, after all earlier work is done.
    fn download(&mut self, src: View, dst: &mut [u8]) -> Result<()>;

    /// Begins to copy `views`, one after the other, to the host, once all earlier work is done; does not wait for it. `slot` is
    /// 0 or 1, so that two copies can be under way.
    fn fetch(&mut self, slot: usize, views: &[View]) -> Result<()>;

    /// The bytes of the last copy into `slot`, when they have arrived.
    fn collect(&mut self, slot: usize) -> Result<Vec<u8>>;

    fn zero(&mut self, dst: View) -> Result<()>;

    /// Sets the `batch` and `step` of the following ops.
    fn stage(&mut self, batch: &PackedBatch, step: &Step) -> Result<()>;

    fn forward(&mut self, op: &Op) -> Result<()>;

    /// Runs a forward pass: of one batch shape always the same ops, on the same views.
    fn forward_all(&mut self, ops: &[Op]) -> Result<()> {
        ops.iter().try_for_each(|op| self.forward(op))
    }

    fn backward(&mut self, op: &Op) -> Result<()>;

    fn cast(&mut self, op: &Cast) -> Result<()>;
    fn grad_norm(&mut self, op: &GradNorm) -> Result<()>;
    fn adamw(&mut self, op: &AdamW, update: &Update) -> Result<()>;

    /// `None` where there is nothing to choose.
    fn tuner(&mut self) -> Option<&mut dyn Tuner> {
        None
    }
}

/// The choice between several algorithms for the products of ops, on a device that has them. Timed algorithms take the place of
/// those that the device suggests first; as they add in other orders, they are part of the state of a run.
pub trait Tuner {
    /// What algorithms are timed on: "NVIDIA H100 80GB HBM3, compute capability 9.0, cuBLASLt 13.0.2".
    fn device(&self) -> String;

    /// Numbers of rows of the same class have the same algorithms.
    fn class(&self, rows: usize) -> (usize, bool);

    /// While on, ops whose products have no timed algorithm yet time all of them, and use the fastest from then on.
    fn set_timing(&mut self, on: bool);

    fn timed(&self) -> Timed;

    /// Adds the timed algorithms of the text of a [`Timed`], in place of others for the same shapes.
    ///
    /// # Errors
    /// What is wrong with the text: it is damaged, or of another device.
    fn restore(&mut self, text: &str) -> std::result::Result<(), String>;
}

/// The algorithms that were timed on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// All about them, for [`Tuner::restore`]: JSON with a checksum.
    pub text: String,
    /// Shapes of products.
    pub shapes: usize,
    /// Seconds that one product of each shape takes with these algorithms, and with those that the device suggests first.
    pub seconds: f64,
    pub first_seconds: f64,
}

/// The elements of a tensor in memory.
pub fn decoded(bytes: &[u8], dtype: DType) -> Vec<f64> {
    fn each<T: bytemuck::Pod + Into<f64>>(bytes: &[u8]) -> Vec<f64> {
        bytes.chunks_exact(size_of::<T>()).map(|bytes| bytemuck::pod_read_unaligned::<T>(bytes).into()).collect()
    }
    match dtype {
        DType::F32 => each::<f32>(bytes),
        DType::Bf16 => each::<half::bf16>(bytes),
        DType::F16 => each::<half::f16>(bytes),
        DType::F64 => each::<f64>(bytes),
        DType::I32 => each::<i32>(bytes),
    }
}

impl dyn Backend + '_ {
    pub fn run(&mut self, op: &Op, pass: Pass) -> Result<()> {
        match pass {
            Pass::Forward => self.forward(op),
            Pass::Backward => self.backward(op),
        }
    }

    /// Returns when all earlier work is done.
    pub fn wait(&mut self) -> Result<()> {
        self.download(View { offset: 0, len: 1, dtype: DType::I32 }, &mut [0; 4])
    }

    /// The elements of a view, of any type.
    pub fn read(&mut self, view: View) -> Result<Vec<f64>> {
        let mut bytes = vec![0; view.bytes()];
        self.download(view, &mut bytes)?;
        Ok(decoded(&bytes, view.dtype))
    }

    /// Sets the first elements of a view of floats.
    pub fn write(&mut self, view: View, values: &[f64]) -> Result<()> {
        match view.dtype {
            DType::F32 => {
                let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                self.upload(view, bytemuck::cast_slice(&values))
            }
            DType::Bf16 => {
                let values: Vec<half::bf16> = values.iter().map(|&x| half::bf16::from_f32(x as f32)).collect();
                self.upload(view, bytemuck::cast_slice(&values))
            }
            DType::F16 => {
                let values: Vec<half::f16> = values.iter().map(|&x| half::f16::from_f32(x as f32)).collect();
                self.upload(view, bytemuck::cast_slice(&values))
            }
            DType::F64 => self.upload(view, bytemuck::cast_slice(values)),
            DType::I32 => panic!("{view:?} holds integers"),
        }
    }
}
