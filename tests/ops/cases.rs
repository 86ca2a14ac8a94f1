//! Cases: an op with its tensors, a batch and a step. A case places its tensors with guards between them and runs on any
//! backend. The tests of the ops and the benchmarks use them.

use rand_mt::Mt64;
use warpfit::data::pack::PackedBatch;
use warpfit::error::Result;
use warpfit::ops::*;

/// The call of a case: an op of a model, or one of those that follow its backward pass.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Op(Op),
    Cast(Cast),
    GradNorm(GradNorm),
    AdamW(AdamW, Update),
}

impl Call {
    /// Does nothing if there is no such pass.
    pub fn run(&self, backend: &mut dyn Backend, pass: Pass) -> Result<()> {
        match (self, pass) {
            (Call::Op(op), pass) => backend.run(op, pass),
            (Call::Cast(op), Pass::Forward) => backend.cast(op),
            (Call::GradNorm(op), Pass::Forward) => backend.grad_norm(op),
            (Call::AdamW(op, update), Pass::Forward) => backend.adamw(op, update),
            (_, Pass::Backward) => Ok(()),
        }
    }
}

impl From<Op> for Call {
    fn from(op: Op) -> Call {
        Call::Op(op)
    }
}

/// The rows of a tensor: those of the batch, or a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extent {
    Batch(Rows),
    Fixed(usize),
}

impl Extent {
    pub fn rows(self, batch: &PackedBatch) -> usize {
        match self {
            Extent::Batch(Rows::Tokens) => batch.tokens(),
            Extent::Batch(Rows::Cls) => batch.seqs(),
            Extent::Fixed(rows) => rows,
        }
    }
}

impl From<Rows> for Extent {
    fn from(rows: Rows) -> Extent {
        Extent::Batch(rows)
    }
}

impl From<usize> for Extent {
    fn from(rows: usize) -> Extent {
        Extent::Fixed(rows)
    }
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: &'static str,
    pub extent: Extent,
    pub width: usize,
    pub view: View,
    /// Its start value; all NaN if the op overwrites it.
    pub start: Vec<f64>,
    /// For inputs of the forward pass: the tensor that receives the gradient in the backward pass.
    pub grad: Option<&'static str>,
    /// For outputs of the forward pass: the tensor with the incoming gradient.
    pub cotangent: Option<&'static str>,
    /// The backward pass adds to this tensor.
    pub adds: bool,
}

/// Least number of bytes between tensors, and their content: not a float that could be read unnoticed, nor a NaN, which
/// arithmetic would keep.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0x5a;
/// Alignment of every tensor, as in a plan.
const ALIGN: usize = 256;

/// Tensors that a plan of 16 bits keeps in f32: tables, norms, statistics, logits and their bias, losses, everything the optimizer
/// uses, and so the gradient of every parameter.
const EXACT: [&str; 26] = [
    "word",
    "position",
    "types",
    "gamma",
    "beta",
    "stats",
    "lse",
    "logits",
    "logits_bias",
    "dlogits",
    "weights",
    "loss",
    "dloss",
    "dword",
    "dposition",
    "dtypes",
    "dgamma",
    "dbeta",
    "dw",
    "db",
    "dx_sum",
    "grads",
    "params",
    "m",
    "v",
    "status",
];

/// A number rounded to a type.
pub fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        // f64 is rounded through f32 here: half's from_f64 treats numbers just above a tie as ties.
        DType::Bf16 => f64::from(half::bf16::from_f32(x as f32)),
        DType::F16 => f64::from(half::f16::from_f32(x as f32)),
        _ => f64::from(x as f32),
    }
}

/// Places the tensors of a case one after the other.
pub struct Builder<'a> {
    batch: &'a PackedBatch,
    dtype: DType,
    random: Mt64,
    bytes: usize,
    places: Vec<View>,
    tensors: Vec<Tensor>,
    /// Tensors get no values.
    blank: bool,
    words: Option<Words>,
}

impl Builder<'_> {
    fn take(&mut self, len: usize, dtype: DType) -> View {
        let view = View { offset: (self.bytes + GUARD).next_multiple_of(ALIGN), len, dtype };
        self.bytes = view.offset + view.bytes();
        self.places.push(view);
        view
    }

    fn place(&mut self, name: &'static str, extent: impl Into<Extent>, width: usize, filled: bool) -> &mut Tensor {
        let extent = extent.into();
        let len = width * extent.rows(self.batch);
        let dtype = if EXACT.contains(&name) { self.dtype.exact() } else { self.dtype };
        let view = self.take(len, dtype);
        let numbers = if self.blank { 0 } else { len };
        let start = (0..numbers).map(|_| if filled { rounded(uniform(&mut self.random), dtype) } else { f64::NAN }).collect();
        self.tensors.push(Tensor { name, extent, width, view, start, grad: None, cotangent: None, adds: false });
        self.tensors.last_mut().unwrap()
    }

    /// Random numbers, such as an incoming gradient.
    pub fn random(&mut self, name: &'static str, extent: impl Into<Extent>, width: usize) -> View {
        self.place(name, extent, width, true).view
    }

    /// A tensor that is overwritten.
    pub fn empty(&mut self, name: &'static str, extent: impl Into<Extent>, width: usize) -> View {
        self.place(name, extent, width, false).view
    }

    /// A gradient that is added to.
    pub fn sum(&mut self, name: &'static str, extent: impl Into<Extent>, width: usize) -> View {
        let tensor = self.place(name, extent, width, true);
        tensor.adds = true;
        tensor.view
    }

    /// An input of the forward pass; its gradient is the tensor `grad`.
    pub fn input(&mut self, name: &'static str, extent: impl Into<Extent>, width: usize, grad: &'static str) -> View {
        let tensor = self.place(name, extent, width, true);
        tensor.grad = Some(grad);
        tensor.view
    }

    /// An output of the forward pass; its incoming gradient is the tensor `cotangent`.
    pub fn output(&mut self, name: &'static str, extent: impl Into<Extent>, width: usize, cotangent: &'static str) -> View {
        let tensor = self.place(name, extent, width, false);
        tensor.cotangent = Some(cotangent);
        tensor.view
    }

    fn region(&mut self) -> View {
        self.take(Inputs::capacity(self.batch.tokens(), self.batch.seqs()), DType::I32)
    }

    /// The layout of all placed tensors, with a guard at the end.
    fn layout(&self, arithmetic: Arithmetic, batch: View) -> Layout {
        let bytes = (self.bytes + GUARD).next_multiple_of(ALIGN);
        let params = self.tensors.iter().map(|t| t.view.len).max().unwrap();
        Layout { bytes, arithmetic, batch, max_seqlen: self.batch.max_seqlen, params, words: self.words }
    }

    pub fn status(&mut self, status: Status) -> View {
        let view = self.take(Status::LEN, DType::F64);
        let (extent, start) = (Extent::Fixed(1), status.to_array().to_vec());
        let width = Status::LEN;
        self.tensors.push(Tensor { name: "status", extent, width, view, start, grad: None, cotangent: None, adds: false });
        view
    }

    /// Changes the numbers of a tensor.
    pub fn map(&mut self, name: &str, f: impl Fn(f64) -> f64) {
        let tensor = self.tensors.iter_mut().find(|t| t.name == name).unwrap();
        tensor.start.iter_mut().for_each(|x| *x = rounded(f(*x), tensor.view.dtype));
    }
}

/// With mean 0 and variance 1.
fn uniform(random: &mut Mt64) -> f64 {
    let x = (random.next_u64() >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
    x * 3f64.sqrt()
}

/// An op without memory.
pub struct Case {
    pub name: String,
    pub batch: PackedBatch,
    pub step: Step,
    build: Box<dyn Fn(&mut Builder) -> Call + Send + Sync>,
}

/// An op on a backend.
pub struct Run {
    pub call: Call,
    pub tensors: Vec<Tensor>,
    pub layout: Layout,
    pub backend: Box<dyn Backend>,
    places: Vec<View>,
}

impl Case {
    /// `name` is also the seed of the numbers.
    pub fn new<C: Into<Call>>(
        name: String,
        batch: &PackedBatch,
        build: impl Fn(&mut Builder) -> C + Send + Sync + 'static,
    ) -> Case {
        let step = Step { seed: 7, update: 3, micro: 1, loss_normalizer: 2.0, train: true };
        let name = format!("{name}, {} tokens", batch.tokens());
        Case { name, batch: batch.clone(), step, build: Box::new(move |b| build(b).into()) }
    }

    /// Its call, without a backend.
    pub fn call(&self) -> Call {
        (self.build)(&mut self.builder(DType::F32))
    }

    fn builder(&self, dtype: DType) -> Builder<'_> {
        let random = Mt64::new_with_key(self.name.bytes().map(u64::from));
        Builder {
            batch: &self.batch,
            dtype,
            random,
            bytes: 0,
            places: Vec::new(),
            tensors: Vec::new(),
            blank: false,
            words: None,
        }
    }

    /// Runs both passes on tensors of any content.
    pub fn run_blank(&self, arithmetic: Arithmetic, backend: &mut dyn Backend) -> Result<()> {
        let mut builder = Builder { blank: true, ..self.builder(arithmetic.dtype()) };
        let region = builder.region();
        let call = (self.build)(&mut builder);
        backend.reserve(&builder.layout(arithmetic, region))?;
        backend.stage(&self.batch, &self.step)?;
        Pass::BOTH.into_iter().try_for_each(|pass| call.run(backend, pass))
    }

    /// Places the case on `backend`, ready for the forward pass.
    pub fn on(&self, arithmetic: Arithmetic, backend: Box<dyn Backend>) -> Run {
        self.copies(1, arithmetic, backend).0
    }

    /// The same `count` times, for callers that need memory outside the caches. The run is the first; the calls are all of
    /// them, each on its own tensors with the same values.
    pub fn copies(&self, count: usize, arithmetic: Arithmetic, mut backend: Box<dyn Backend>) -> (Run, Vec<Call>) {
        let mut builder = self.builder(arithmetic.dtype());
        let region = builder.region();
        let first = builder.places.len();
        let mut calls = vec![(self.build)(&mut builder)];
        let tensors = builder.tensors.clone();
        let (start, end) = (builder.places[first].offset, builder.bytes);
        builder.blank = true;
        calls.extend((1..count).map(|_| (self.build)(&mut builder)));
        let layout = builder.layout(arithmetic, region);
        let (bytes, places) = (layout.bytes, builder.places);
        backend.reserve(&layout).unwrap();
        let arena = View { offset: 0, len: bytes / 4, dtype: DType::I32 };
        backend.upload(arena, &vec![GUARD_BYTE; bytes]).unwrap();
        let mut run = Run { call: calls[0], tensors, layout, backend, places };
        run.reset();
        let mut content = vec![0; (end - start).next_multiple_of(4)];
        let at = |offset: usize| View { offset, len: content.len() / 4, dtype: DType::I32 };
        let copies: Vec<View> = run.places[first..].iter().step_by(run.tensors.len()).map(|place| at(place.offset)).collect();
        run.backend.download(copies[0], &mut content).unwrap();
        copies[1..].iter().for_each(|&copy| run.backend.upload(copy, &content).unwrap());
        run.backend.stage(&self.batch, &self.step).unwrap();
        (run, calls)
    }
}

impl Run {
    /// Resets every tensor to its start value.
    pub fn reset(&mut self) {
        for tensor in &self.tensors {
            self.backend.write(tensor.view, &tensor.start).unwrap();
        }
    }

    pub fn forward(&mut self) {
        self.call.run(self.backend.as_mut(), Pass::Forward).unwrap();
    }

    pub fn backward(&mut self) {
        self.call.run(self.backend.as_mut(), Pass::Backward).unwrap();
    }

    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub fn read(&mut self, name: &str) -> Vec<f64> {
        let view = self.tensor(name).view;
        self.backend.read(view).unwrap()
    }

    pub fn write(&mut self, name: &str, values: &[f64]) {
        let view = self.tensor(name).view;
        self.backend.write(view, values).unwrap();
    }

    /// The whole arena.
    pub fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.layout.bytes];
        let arena = View { offset: 0, len: bytes.len() / 4, dtype: DType::I32 };
        self.backend.download(arena, &mut bytes).unwrap();
        bytes
    }

    /// Whether nothing was written outside a tensor.
    pub fn guards_hold(&mut self) -> bool {
        let bytes = self.bytes();
        let ends = self.places.iter().map(|view| view.offset + view.bytes());
        let starts = self.places.iter().skip(1).map(|view| view.offset).chain([bytes.len()]);
        let gaps = ends.zip(starts).chain([(0, self.places[0].offset)]);
        gaps.into_iter().all(|(from, to)| bytes[from..to].iter().all(|&b| b == GUARD_BYTE))
    }
}

pub const VOCAB: usize = 40;

/// Sequences of these lengths: random ids with a [CLS] of 1 and the odd PAD, token types 0 and then 1.
pub fn batch(lengths: &[usize]) -> PackedBatch {
    let mut random = Mt64::new(lengths.iter().sum::<usize>() as u64);
    let sequences: Vec<_> = lengths
        .iter()
        .map(|&len| {
            let ids: Vec<i32> = (0..len).map(|i| if i == 0 { 1 } else { (random.next_u64() % VOCAB as u64) as i32 }).collect();
            (ids, (0..len).map(|i| i32::from(2 * i > len)).collect::<Vec<i32>>())
        })
        .collect();
    PackedBatch::new(sequences.iter().map(|(ids, types)| (&ids[..], &types[..], 0)))
}

fn p(drop: DropSite) -> String {
    if drop.p > 0.0 { format!(", dropout {}", drop.p) } else { String::new() }
}

pub fn embed(batch: &PackedBatch, dim: usize, types: usize, pad: Option<usize>, drop: DropSite) -> Case {
    let positions = batch.max_seqlen + 3;
    let vocab = VOCAB.max(1 + *batch.ids.iter().max().unwrap() as usize);
    Case::new(format!("embed {dim}, {types} types, pad {pad:?}{}", p(drop)), batch, move |b| {
        Op::Embed(Embed {
            word: b.input("word", vocab, dim, "dword"),
            position: b.input("position", positions, dim, "dposition"),
            types: if types > 0 { b.input("types", types, dim, "dtypes") } else { View::NONE },
            gamma: b.input("gamma", 1, dim, "dgamma"),
            beta: b.input("beta", 1, dim, "dbeta"),
            x: b.empty("x", Rows::Tokens, dim),
            y: b.output("y", Rows::Tokens, dim, "dy"),
            stats: b.empty("stats", Rows::Tokens, 2),
            dy: b.random("dy", Rows::Tokens, dim),
            dword: b.sum("dword", vocab, dim),
            dposition: b.sum("dposition", positions, dim),
            dtypes: if types > 0 { b.sum("dtypes", types, dim) } else { View::NONE },
            dgamma: b.sum("dgamma", 1, dim),
            dbeta: b.sum("dbeta", 1, dim),
            pad,
            drop,
            eps: 1e-5,
            dim,
        })
    })
}

pub fn linear(batch: &PackedBatch, k: usize, n: usize, rows: Rows, add: bool) -> Case {
    Case::new(format!("linear {k} to {n}, {rows:?}, add {add}"), batch, move |b| {
        Op::Linear(Linear {
            x: b.input("x", rows, k, "dx"),
            w: b.input("w", n, k, "dw"),
            b: b.random("b", 1, n),
            y: b.output("y", rows, n, "dy"),
            dy: b.random("dy", rows, n),
            dx: if add { b.sum("dx", rows, k) } else { b.empty("dx", rows, k) },
            dw: b.sum("dw", n, k),
            add,
            k,
            n,
            rows,
        })
    })
}

/// With `q_rows` Tokens q, k, v are the columns of one tensor; with Cls q is separate.
pub fn attn(batch: &PackedBatch, heads: usize, head_dim: usize, q_rows: Rows, drop: DropSite) -> Case {
    let dim = heads * head_dim;
    Case::new(format!("attn {heads} x {head_dim}, {q_rows:?}{}", p(drop)), batch, move |b| {
        let (q, k, v, dq, dk, dv, q_stride, kv_stride);
        match q_rows {
            Rows::Tokens => {
                let qkv = b.input("qkv", Rows::Tokens, 3 * dim, "dqkv");
                let dqkv = b.empty("dqkv", Rows::Tokens, 3 * dim);
                (q, k, v) = (qkv, qkv.from(dim), qkv.from(2 * dim));
                (dq, dk, dv) = (dqkv, dqkv.from(dim), dqkv.from(2 * dim));
                (q_stride, kv_stride) = (3 * dim, 3 * dim);
            }
            Rows::Cls => {
                let kv = b.input("kv", Rows::Tokens, 2 * dim, "dkv");
                let dkv = b.empty("dkv", Rows::Tokens, 2 * dim);
                (q, k, v) = (b.input("q", Rows::Cls, dim, "dq"), kv, kv.from(dim));
                (dq, dk, dv) = (b.empty("dq", Rows::Cls, dim), dkv, dkv.from(dim));
                (q_stride, kv_stride) = (dim, 2 * dim);
            }
        }
        Op::Attention(Attention {
            q,
            k,
            v,
            y: b.output("y", q_rows, dim, "dy"),
            lse: b.empty("lse", q_rows, heads),
            dy: b.random("dy", q_rows, dim),
            dq,
            dk,
            dv,
            db: b.sum("db", 3, dim),
            q_stride,
            kv_stride,
            heads,
            head_dim,
            drop,
            q_rows,
        })
    })
}

/// Without dropout the gradient of `x` is that of `skip`, as in a plan.
pub fn add_norm(batch: &PackedBatch, dim: usize, rows: Rows, skip: bool, drop: DropSite) -> Case {
    Case::new(format!("add_norm {dim}, {rows:?}, skip {skip}{}", p(drop)), batch, move |b| {
        let d = if drop.p > 0.0 { "dx" } else { "dy" };
        let (x, y) = (b.input("x", rows, dim, d), b.output("y", rows, dim, "dy"));
        let dy = b.random("dy", rows, dim);
        Op::AddNorm(AddNorm {
            x,
            skip: if skip { b.input("skip", rows, dim, "dy") } else { View::NONE },
            gamma: b.input("gamma", 1, dim, "dgamma"),
            beta: b.input("beta", 1, dim, "dbeta"),
            y,
            stats: b.empty("stats", rows, 2),
            dy,
            dx: if drop.p > 0.0 { b.empty("dx", rows, dim) } else { dy },
            dgamma: b.sum("dgamma", 1, dim),
            dbeta: b.sum("dbeta", 1, dim),
            db: if skip { b.sum("db", 1, dim) } else { View::NONE },
            drop,
            eps: 1e-5,
            dim,
            rows,
        })
    })
}

/// Covers the tails of activations, and avoids the kink of ReLU.
fn wide(x: f64) -> f64 {
    2.5 * x + 0.01 * x.signum()
}

pub fn gelu(batch: &PackedBatch, width: usize, rows: Rows) -> Case {
    Case::new(format!("gelu {width}, {rows:?}"), batch, move |b| {
        let x = b.input("x", rows, width, "dy");
        b.map("x", wide);
        let (y, dy) = (b.output("y", rows, width, "dy"), b.random("dy", rows, width));
        Op::Gelu(Gelu { x, y, dy, db: b.sum("db", 1, width), width, rows })
    })
}

pub fn first_row(batch: &PackedBatch, dim: usize, add: bool) -> Case {
    Case::new(format!("first_row {dim}, add {add}"), batch, move |b| {
        let (t, s) = (Rows::Tokens, Rows::Cls);
        let (x, y, dy) = (b.input("x", t, dim, "dx"), b.output("y", s, dim, "dy"), b.random("dy", s, dim));
        let dx = if add { b.sum("dx", t, dim) } else { b.empty("dx", t, dim) };
        Op::GatherCls(GatherCls { x, y, dy, dx, add, dim })
    })
}

/// The loss of a classifier's case.
#[derive(Clone, Copy)]
pub struct Loss {
    pub smoothing: f32,
    pub weighted: bool,
}

pub const PLAIN: Loss = Loss { smoothing: 0.0, weighted: false };

/// The labels become random classes. The incoming gradient is 1 / loss_normalizer for every row.
pub fn classifier(batch: &PackedBatch, dim: usize, classes: usize, activation: Activation, drop: DropSite, loss: Loss) -> Case {
    let mut batch = batch.clone();
    let mut random = Mt64::new(classes as u64);
    batch.labels.iter_mut().for_each(|label| *label = (random.next_u64() % classes as u64) as i32);
    let Loss { smoothing, weighted } = loss;
    let name = format!("classifier {dim} to {classes}, {activation:?}, smoothing {smoothing}, weighted {weighted}{}", p(drop));
    Case::new(name, &batch, move |b| {
        let s = Rows::Cls;
        let x = b.input("x", s, dim, "dx");
        b.map("x", wide);
        let w = b.input("w", classes, dim, "dw");
        b.map("w", |w| w / (dim as f64).sqrt());
        let weights = b.random("weights", 1, classes);
        b.map("weights", |w| if weighted { 1.0 + 0.5 * w } else { 1.0 });
        b.random("dloss", s, 1);
        b.map("dloss", |_| 1.0 / 2.0);
        Op::Classifier(Classifier {
            activation,
            x,
            y: b.empty("y", s, dim),
            w,
            b: b.input("logits_bias", 1, classes, "db"),
            logits: b.empty("logits", s, classes),
            weights,
            loss: b.output("loss", s, 1, "dloss"),
            dlogits: b.empty("dlogits", s, classes),
            dx: b.empty("dx", s, dim),
            dw: b.sum("dw", classes, dim),
            db: b.sum("db", 1, classes),
            dx_sum: b.sum("dx_sum", 1, dim),
            status: b.status(Status { loss: 0.25, ..Status::default() }),
            drop,
            smoothing,
            dim,
            classes,
        })
    })
}

pub fn grad_norm(len: usize) -> Case {
    Case::new(format!("grad_norm {len}"), &batch(&[1]), move |b| {
        let (grads, status) = (b.random("grads", 1, len), b.status(Status { scale: 3.0, ..Status::default() }));
        Call::GradNorm(GradNorm { grads, status })
    })
}

/// In a plan of 16 bits, the weights that products read.
pub fn cast(len: usize) -> Case {
    Case::new(format!("cast {len}"), &batch(&[1]), move |b| {
        let (x, y) = (b.random("params", 1, len), b.empty("copy", 1, len));
        Call::Cast(Cast { x, y })
    })
}

/// The gradient norm is set to `norm` in the status block, and the loss scale to 8, which this update doubles.
pub fn adamw(len: usize, decayed: usize, max_norm: f64, norm: f64) -> Case {
    adamw_of(0, len, decayed, max_norm, norm)
}

/// The first elements are a word table of so many rows of 8.
fn adamw_of(rows: usize, len: usize, decayed: usize, max_norm: f64, norm: f64) -> Case {
    let name = format!("adamw {len}, {rows} words, {decayed} decayed, norm {norm} of {max_norm}");
    Case::new(name, &batch(&[1]), move |b| {
        let (params, grads) = (b.random("params", 1, len), b.random("grads", 1, len));
        let (m, v) = (b.random("m", 1, len), b.random("v", 1, len));
        b.map("v", |v| v * v);
        let status = b.status(Status { loss: 0.5, loss_sum: 0.25, grad_norm: norm, skipped: 1.0, scale: 3.0, good: 1.0 });
        let copy = if b.dtype.size() == 2 { b.empty("copy", 1, len) } else { View::NONE };
        let (beta1, beta2, eps, weight_decay, growth) = (0.9, 0.999, 1e-8, 0.1, 2);
        if rows > 0 {
            let dim = 8;
            let [params, copy, grads, m, v] =
                [params, copy, grads, m, v].map(|flat| if flat.is_none() { flat } else { flat.slice(0, rows * dim) });
            b.words = Some(Words { rows, dim, params, copy, grads, m, v });
        }
        let op = AdamW { params, copy, grads, m, v, status, decayed, beta1, beta2, eps, weight_decay, max_norm, growth };
        Call::AdamW(op, Update { number: 3, learning_rate: 1e-2 })
    })
}

pub const SHORT: [usize; 4] = [33, 1, 31, 2];
pub const LONG: [usize; 5] = [1, 2, 31, 33, 512];

/// Every op at odd sizes, with every flag.
pub fn odd() -> Vec<Case> {
    let (short, long) = (batch(&SHORT), batch(&LONG));
    let (t, s) = (Rows::Tokens, Rows::Cls);
    let off = DropSite::NONE;
    let on = DropSite { p: 0.3, site: 5 };
    let mut cases = vec![
        embed(&short, 24, 0, None, on),
        embed(&short, 30, 3, Some(0), off),
        embed(&long, 33, 2, Some(0), on),
        linear(&short, 24, 33, t, false),
        linear(&short, 33, 30, s, true),
        linear(&long, 30, 24, t, true),
        linear(&long, 7, 1, s, false),
        attn(&short, 5, 6, t, off),
        attn(&short, 4, 8, t, on),
        attn(&short, 3, 8, s, off),
        attn(&short, 2, 16, s, on),
        attn(&short, 1, 32, t, on),
        attn(&short, 2, 48, t, off),
        attn(&short, 1, 50, s, on),
        attn(&short, 2, 100, t, on),
        attn(&short, 1, 128, s, off),
        attn(&long, 3, 8, t, on),
        attn(&long, 2, 16, s, on),
        first_row(&short, 30, true),
        first_row(&long, 33, false),
        cast(1),
        cast(1003),
        grad_norm(1),
        grad_norm(1000),
        grad_norm(2 * 65536 + 17),
        adamw(1, 0, 0.0, 3.0),
        adamw(48, 16, 1.0, 0.5),
        adamw(48, 48, 1.0, 4.0),
        adamw(70_001, 66_002, 1.0, 400.0),
        adamw_of(5, 51, 44, 1.0, 4.0),
    ];
    for (dim, skip, drop) in [(24, false, off), (30, true, off), (33, false, on), (33, true, on)] {
        cases.push(add_norm(&short, dim, t, skip, drop));
        cases.push(add_norm(&long, dim, t, skip, drop));
        cases.push(add_norm(&short, dim, s, skip, drop));
    }
    cases.extend([gelu(&short, 33, s), gelu(&long, 30, t)]);
    let losses = [(2, 0.0, false), (3, 0.1, false), (7, 0.0, true), (2, 0.1, true)];
    for (i, (classes, smoothing, weighted)) in losses.into_iter().enumerate() {
        let (activation, drop) = if i % 2 == 0 { (Activation::Relu, on) } else { (Activation::Tanh, off) };
        cases.push(classifier(&long, 33, classes, activation, drop, Loss { smoothing, weighted }));
    }
    cases.extend([
        classifier(&short, 30, 1, Activation::Tanh, on, PLAIN),
        classifier(&long, 7, 300, Activation::Relu, off, PLAIN),
    ]);
    cases
}

/// Sizes for which a GPU has fast paths: rows of whole 16-byte packs, heads of 32 and 64, tiles of 64 that are full, nearly
/// full and barely begun.
pub fn even() -> Vec<Case> {
    let (few, short) = (batch(&[3, 1, 2]), batch(&SHORT));
    let (tiles, long) = (batch(&[65, 1, 64, 2, 63, 31]), batch(&[128, 512, 1, 200]));
    // More rows than the smallest chunks of a sum over rows hold.
    let many = batch(&[700; 6]);
    let (t, s) = (Rows::Tokens, Rows::Cls);
    let off = DropSite::NONE;
    let on = DropSite { p: 0.1, site: 0xffff_ffff };
    let mut cases = vec![
        embed(&few, 768, 2, Some(0), on),
        embed(&short, 64, 0, Some(0), off),
        embed(&long, 32, 2, None, on),
        embed(&few, 1032, 0, None, on),
        linear(&short, 64, 32, t, false),
        linear(&short, 32, 64, s, true),
        linear(&few, 1032, 104, t, true),
        linear(&tiles, 40, 192, t, false),
        linear(&many, 16, 8, t, true),
        first_row(&short, 64, true),
        first_row(&few, 768, false),
        cast(4096),
        grad_norm(4096),
        adamw(4096, 2048, 1.0, 2.0),
    ];
    for (heads, head_dim) in [(1, 32), (3, 32), (1, 64), (2, 64)] {
        let [first, second] = if heads == 1 { [off, on] } else { [on, off] };
        cases.extend([attn(&tiles, heads, head_dim, t, first), attn(&tiles, heads, head_dim, s, second)]);
    }
    cases.extend([attn(&long, 1, 32, s, on), attn(&long, 1, 64, t, on), attn(&long, 2, 32, t, off), attn(&long, 3, 64, s, off)]);
    cases.extend([add_norm(&many, 264, t, true, on), add_norm(&many, 20, t, true, on), add_norm(&few, 1032, t, true, on)]);
    for (batch, dim) in [(&few, 768), (&short, 64), (&short, 32)] {
        for (rows, skip, drop) in [(t, false, off), (t, true, off), (t, true, on), (s, true, on)] {
            cases.push(add_norm(batch, dim, rows, skip, drop));
        }
    }
    cases.extend([gelu(&few, 768, t), gelu(&short, 64, s)]);
    for (batch, dim, classes) in [(&few, 768, 2), (&tiles, 64, 6), (&short, 1032, 8), (&batch(&[2; 40]), 264, 3)] {
        let (activation, drop) = if classes % 4 == 2 { (Activation::Relu, on) } else { (Activation::Tanh, off) };
        cases.push(classifier(batch, dim, classes, activation, drop, Loss { smoothing: 0.1, weighted: dim != 64 }));
    }
    cases
}

pub fn cases() -> Vec<Case> {
    odd().into_iter().chain(even()).collect()
}
