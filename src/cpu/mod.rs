//! The CPU backend: matrix products, and loops under rayon for everything else, vectorised for the machine at hand. Every sum
//! has an order that does not depend on the number of threads, so results are bit-identical for any number.

mod adamw;
#[cfg(target_arch = "x86_64")]
mod amx;
mod arena;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod classifier;
mod copies;
mod dots;
mod dropout;
mod embed;
mod gemm;
mod instructions;
mod linear;
mod matrix;
mod norm;
mod panels;
mod product;
mod real;

use std::sync::Mutex;

use rayon::prelude::*;

use crate::data::pack::PackedBatch;
use crate::error::Result;
use crate::ops::*;
use crate::random;
use crate::report::log::counted;
use arena::{Arena, UnsafeSlice};
use product::Multiplier;

pub use instructions::Instructions;
pub(crate) use instructions::arch;
pub use product::Products;
pub use real::Real;
use real::simd;

/// The backend in f32 or f64; the layout's type must be that of T.
pub struct Cpu<T> {
    arena: Arena,
    /// The region for the arrays of a batch, and where each lies in it.
    batch: View,
    inputs: Option<Inputs>,
    step: Step,
    key: [u32; 2],
    tokens: usize,
    seqs: usize,
    max_seqlen: usize,
    /// Distinct tokens of the batch.
    distinct: usize,
    /// For linear layers.
    multiplier: Mutex<Multiplier<T>>,
    /// Working memory of attention, one per thread.
    scratch: Vec<Mutex<attention::Scratch<T>>>,
    /// Working memory of the gradient norm.
    partials: Vec<f64>,
    /// What was fetched last into each slot.
    fetched: [Vec<u8>; 2],
    poisoned: bool,
    /// Whether products round their operands.
    rounds: bool,
    /// Whether weights are only read.
    infers: bool,
}

impl<T: Products> Cpu<T> {
    pub fn new() -> Cpu<T> {
        let arena = Arena::new(0).expect("an empty arena");
        Cpu {
            arena,
            batch: View::NONE,
            inputs: None,
            step: Step::INFER,
            key: [0; 2],
            tokens: 0,
            seqs: 0,
            max_seqlen: 0,
            distinct: 0,
            multiplier: Mutex::new(Multiplier::on_all_threads(false)),
            scratch: Vec::new(),
            partials: Vec::new(),
            fetched: Default::default(),
            poisoned: false,
            rounds: false,
            infers: false,
        }
    }

    /// For tests: all memory starts as NaN instead of 0, which exposes reads of uninitialized memory.
    pub fn poisoned() -> Cpu<T> {
        Cpu { poisoned: true, ..Cpu::new() }
    }
}

impl<T: Real> Cpu<T> {
    /// Drops what was derived from weights, before they change.
    fn forget_weights(&mut self) {
        self.multiplier.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).forget();
    }

    fn count(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Cls => self.seqs,
        }
    }

    /// Reads the first `len` elements of a view.
    ///
    /// # Safety
    /// As in [`Arena::read`].
    unsafe fn get(&self, view: View, len: usize) -> &[T] {
        assert_eq!(view.dtype, T::DTYPE, "{view:?}");
        // SAFETY: by contract.
        unsafe { self.arena.read(view.slice(0, len)) }
    }

    /// Writes the first `len` elements of a view.
    ///
    /// # Safety
    /// As in [`Arena::slice`].
    #[allow(clippy::mut_from_ref)]
    unsafe fn get_mut(&self, view: View, len: usize) -> &mut [T] {
        assert_eq!(view.dtype, T::DTYPE, "{view:?}");
        // SAFETY: by contract.
        unsafe { self.arena.slice(view.slice(0, len)) }
    }

    /// The gradient of a parameter, ready to be added to: 0 in the first micro-batch of an update.
    ///
    /// # Safety
    /// As in [`Arena::slice`].
    #[allow(clippy::mut_from_ref)]
    unsafe fn gradient(&self, view: View) -> &mut [T] {
        // SAFETY: by contract.
        let gradient = unsafe { self.get_mut(view, view.len) };
        if !self.step.adds() {
            gradient.par_chunks_mut(1 << 18).for_each(|chunk| chunk.fill(T::zero()));
        }
        gradient
    }

    /// `db += column sums of d`, whose rows begin `stride` apart; nothing if `db` is NONE.
    fn add_bias(&self, db: View, d: View, rows: usize, stride: usize) {
        if db.is_none() {
            return;
        }
        // SAFETY: distinct buffers.
        let (d, db) = unsafe { (self.get(d, (rows - 1) * stride + db.len), self.gradient(db)) };
        add_columns([db], rows, |r, c, [sums]| add_to(sums, &d[r * stride + c..]));
    }

    /// One of the batch's arrays, which ops only read.
    fn input(&self, of: impl Fn(&Inputs) -> View, len: usize) -> &[i32] {
        let view = of(self.inputs.as_ref().expect("stage was called")).slice(0, len);
        // SAFETY: inputs are written by `stage` alone, which takes `&mut self`.
        unsafe { self.arena.read(view) }
    }

    fn cu_seqlens(&self) -> &[i32] {
        self.input(|i| i.cu_seqlens, self.seqs + 1)
    }

    /// The status block.
    ///
    /// # Safety
    /// As in [`Arena::slice`].
    #[allow(clippy::mut_from_ref)]
    unsafe fn status(&self, view: View) -> &mut [f64] {
        // SAFETY: by contract.
        unsafe { self.arena.slice(view) }
    }

    /// The packed row whose dropout mask applies to row `r` of an op.
    fn token_row<'a>(&'a self, rows: Rows) -> impl Fn(usize) -> u32 + Sync + 'a {
        let starts = self.cu_seqlens();
        move |r| match rows {
            Rows::Tokens => r as u32,
            Rows::Cls => starts[r] as u32,
        }
    }

    /// The mask of a dropout site in this step.
    fn mask(&self, drop: DropSite) -> dropout::Mask {
        dropout::Mask::new(self.key, drop, self.step.train)
    }
}

impl<T: Products> Default for Cpu<T> {
    fn default() -> Self {
        Cpu::new()
    }
}

/// Rows per parallel task: about 64 KiB of f32.
fn grain(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// Adds sums over rows to vectors: `f(r, c, sums)` adds the columns of row r, from c on, to `sums`. Rows are added in order;
/// tasks split the columns.
fn add_columns<T: Real, const N: usize>(outs: [&mut [T]; N], rows: usize, f: impl Fn(usize, usize, [&mut [T]; N]) + Sync) {
    const BLOCK: usize = 128;
    let columns = outs[0].len();
    let outs = outs.map(UnsafeSlice::new);
    (0..columns.div_ceil(BLOCK)).into_par_iter().for_each(|block| {
        let column = block * BLOCK;
        let width = BLOCK.min(columns - column);
        simd!({
            let mut sums = [[T::zero(); BLOCK]; N];
            for r in 0..rows {
                f(r, column, sums.each_mut().map(|sums| &mut sums[..width]));
            }
            for (out, sums) in outs.iter().zip(&sums) {
                // SAFETY: these columns are this task's.
                add_to(unsafe { out.row(column, width) }, sums);
            }
        });
    });
}

/// `out += x`, up to the shorter length.
#[inline(always)]
fn add_to<T: Real>(out: &mut [T], x: &[T]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

impl<T: Products> Backend for Cpu<T> {
    fn name(&self) -> String {
        format!("CPU, {}, {}", counted(rayon::current_num_threads(), "thread"), Instructions::in_use())
    }

    fn processor(&self) -> String {
        let instructions = if self.rounds { Instructions::in_use() } else { Instructions::in_use().for_f32() };
        format!("{}, {instructions}", instructions::cpu())
    }

    fn available(&self, _layout: &Layout) -> Result<Option<usize>> {
        Ok(None)
    }

    /// The scores of attention, for each thread. Copies of operands that products round, at most 17 MiB and 4 MiB per thread, are not
    /// counted.
    fn workspace(&self, layout: &Layout) -> usize {
        rayon::current_num_threads() * attention::Scratch::<T>::bytes(layout.max_seqlen)
    }

    fn reserve(&mut self, layout: &Layout) -> Result<()> {
        assert_eq!(layout.arithmetic.dtype(), T::DTYPE, "the layout has another type than this backend");
        let scores = layout.bytes.next_multiple_of(align_of::<T>());
        self.arena = Arena::new(scores + self.workspace(layout))?;
        if self.poisoned {
            self.arena.poison();
        }
        self.batch = layout.batch;
        let rounds = layout.arithmetic == Arithmetic::Bf16Products;
        (self.rounds, self.infers) = (rounds, layout.words.is_none());
        self.multiplier = Mutex::new(Multiplier::on_all_threads(rounds));
        let scratch = |thread| {
            let offset = scores + thread * attention::Scratch::<T>::bytes(layout.max_seqlen);
            Mutex::new(attention::Scratch::new(layout.max_seqlen, offset, rounds))
        };
        self.scratch = (0..rayon::current_num_threads()).map(scratch).collect();
        self.partials = Vec::with_capacity(layout.params.div_ceil(adamw::CHUNK));
        Ok(())
    }

    fn upload(&mut self, dst: View, src: &[u8]) -> Result<()> {
        self.forget_weights();
        let dst = View { len: dst.bytes(), ..dst };
        // SAFETY: `&mut self`: no other slice lives.
        let dst = unsafe { self.arena.slice::<u8>(dst) };
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download(&mut self, src: View, dst: &mut [u8]) -> Result<()> {
        let src = View { len: src.bytes(), ..src };
        // SAFETY: `&mut self`: no other slice lives.
        let src = unsafe { self.arena.slice::<u8>(src) };
        dst.copy_from_slice(&src[..dst.len()]);
        Ok(())
    }

    fn fetch(&mut self, slot: usize, views: &[View]) -> Result<()> {
        let mut bytes = vec![0; views.iter().map(|view| view.bytes()).sum()];
        let mut rest = &mut bytes[..];
        for &view in views {
            let (dst, after) = rest.split_at_mut(view.bytes());
            self.download(view, dst)?;
            rest = after;
        }
        self.fetched[slot] = bytes;
        Ok(())
    }

    fn collect(&mut self, slot: usize) -> Result<Vec<u8>> {
        Ok(std::mem::take(&mut self.fetched[slot]))
    }

    fn zero(&mut self, dst: View) -> Result<()> {
        self.forget_weights();
        let dst = View { len: dst.bytes(), ..dst };
        // SAFETY: `&mut self`: no other slice lives.
        unsafe { self.arena.slice::<u8>(dst) }.par_chunks_mut(1 << 20).for_each(|chunk| chunk.fill(0));
        Ok(())
    }

    fn stage(&mut self, batch: &PackedBatch, step: &Step) -> Result<()> {
        let inputs = Inputs::of(batch, self.batch);
        for (view, values) in inputs.with(batch) {
            // SAFETY: `&mut self`: no other slice lives.
            unsafe { self.arena.slice::<i32>(view) }.copy_from_slice(values);
        }
        self.inputs = Some(inputs);
        self.step = *step;
        self.key = random::step_key(step.seed, step.update, step.micro);
        (self.tokens, self.seqs, self.max_seqlen) = (batch.tokens(), batch.seqs(), batch.max_seqlen);
        self.distinct = batch.token_starts.len() - 1;
        Ok(())
    }

    fn forward(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Embed(op) => embed::fwd(self, op),
            Op::Linear(op) => linear::fwd(self, op),
            Op::Attention(op) => attention::fwd(self, op),
            Op::AddNorm(op) => norm::fwd(self, op),
            Op::Gelu(op) => linear::gelu_fwd(self, op),
            Op::GatherCls(op) => embed::first_row_fwd(self, op),
            Op::Classifier(op) => classifier::fwd(self, op),
        }
        Ok(())
    }

    fn backward(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Embed(op) => embed::bwd(self, op),
            Op::Linear(op) => linear::bwd(self, op),
            Op::Attention(op) => attention::bwd(self, op),
            Op::AddNorm(op) => norm::bwd(self, op),
            Op::Gelu(op) => linear::gelu_bwd(self, op),
            Op::GatherCls(op) => embed::first_row_bwd(self, op),
            Op::Classifier(op) => classifier::bwd(self, op),
        }
        Ok(())
    }

    fn cast(&mut self, op: &Cast) -> Result<()> {
        // SAFETY: distinct buffers.
        let (x, y) = unsafe { (self.get(op.x, op.x.len), self.get_mut(op.y, op.x.len)) };
        y.par_chunks_mut(1 << 18).zip(x.par_chunks(1 << 18)).for_each(|(y, x)| y.copy_from_slice(x));
        Ok(())
    }

    fn grad_norm(&mut self, op: &GradNorm) -> Result<()> {
        adamw::grad_norm(self, op);
        Ok(())
    }

    fn adamw(&mut self, op: &AdamW, update: &Update) -> Result<()> {
        self.forget_weights();
        adamw::adamw(self, op, update);
        Ok(())
    }
}
