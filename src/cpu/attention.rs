//! Attention of each sequence on itself: one task a (sequence, head), which walks blocks of queries and keeps their scores
//! in working memory of its thread; the backward pass computes the probabilities again from `lse`.

use gemm::Parallelism;
use rayon::prelude::*;

use super::Cpu;
use super::product::{Mat, product};
use super::real::{Real, max, simd, sum};
use crate::ops::{Attn, Rows};

/// Queries of a block.
pub const BLOCK: usize = 128;

/// What one task works on: a head of a sequence.
struct Head {
    /// Packed row of the sequence's first token.
    start: usize,
    /// Tokens, and so keys, of the sequence.
    len: usize,
    /// Rows of its queries in q, y and lse.
    queries: std::ops::Range<usize>,
    /// First column of the head.
    column: usize,
    head: usize,
}

impl Head {
    /// First row of a block, its number of queries, and the dropout row of its first query.
    fn blocks(&self, heads: usize) -> impl Iterator<Item = (usize, usize, u32)> {
        let (from, to, dropout) = (self.queries.start, self.queries.end, (self.start * heads + self.head) as u32);
        (from..to).step_by(BLOCK).map(move |row| (row, BLOCK.min(to - row), dropout + ((row - from) * heads) as u32))
    }
}

/// Runs `f(head, working memory)` for every sequence and head.
fn for_each_head<T: Real>(cpu: &Cpu<T>, op: &Attn, f: impl Fn(Head, &mut [T]) + Sync) {
    let starts = cpu.cu_seqlens();
    (0..cpu.seqs * op.heads).into_par_iter().for_each(|task| {
        let (seq, head) = (task / op.heads, task % op.heads);
        let (start, end) = (starts[seq] as usize, starts[seq + 1] as usize);
        let queries = match op.q_rows {
            Rows::Tokens => start..end,
            Rows::Seqs => seq..seq + 1,
        };
        let thread = rayon::current_thread_index().unwrap_or(0) % cpu.scratch.len();
        let mut scratch = cpu.scratch[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        f(Head { start, len: end - start, queries, column: head * op.head_dim, head }, &mut scratch);
    });
}

pub fn fwd<T: Real>(cpu: &Cpu<T>, op: &Attn) {
    let Attn { heads, head_dim, q_stride, kv_stride, .. } = *op;
    let dim = heads * head_dim;
    let scale = T::of(1.0 / (head_dim as f64).sqrt());
    // SAFETY: read only. q, k and v may share a buffer.
    let (q, k, v) = unsafe { (cpu.get(op.q, op.q.len), cpu.get(op.k, op.k.len), cpu.get(op.v, op.v.len)) };
    let (y, lse) = (cpu.arena.scattered::<T>(op.y), cpu.arena.scattered::<T>(op.lse));
    let mask = cpu.mask(op.drop);
    for_each_head(cpu, op, |h, scratch| {
        let (k, v) = (&k[h.start * kv_stride + h.column..], &v[h.start * kv_stride + h.column..]);
        for (row, queries, dropout) in h.blocks(heads) {
            let q = Mat::new(&q[row * q_stride + h.column..], q_stride);
            let scores = &mut scratch[..queries * h.len];
            let matrices = (q, Mat::new(k, kv_stride).t());
            let out = super::arena::Scattered::new(scores);
            // SAFETY: the scores are this thread's.
            unsafe { product((out, 0, h.len), (queries, h.len, head_dim), matrices, scale, false, Parallelism::None) };
            simd!({
                for (i, scores) in scores.chunks_mut(h.len).enumerate() {
                    let scores = &mut scores[..h.len]; // a length that the compiler sees
                    let largest = max(h.len, |j| scores[j]);
                    scores.iter_mut().for_each(|s| *s = (*s - largest).vexp());
                    let total = sum(h.len, |j| scores[j]);
                    // SAFETY: this head of this row is this task's.
                    unsafe { lse.row((row + i) * heads + h.head, 1)[0] = largest + total.ln() };
                    let norm = T::one() / total;
                    mask.for_each(dropout + (i * heads) as u32, h.len, |start, factors| {
                        for (s, &factor) in scores[start..].iter_mut().zip(factors) {
                            *s *= norm * factor;
                        }
                    });
                }
            });
            let matrices = (Mat::new(&*scores, h.len), Mat::new(v, kv_stride));
            let out = (y, row * dim + h.column, dim);
            // SAFETY: these columns of these rows are this task's.
            unsafe { product(out, (queries, head_dim, h.len), matrices, T::one(), false, Parallelism::None) };
        }
    });
}

pub fn bwd<T: Real>(cpu: &Cpu<T>, op: &Attn) {
    let Attn { heads, head_dim, q_stride, kv_stride, .. } = *op;
    let dim = heads * head_dim;
    let scale = T::of(1.0 / (head_dim as f64).sqrt());
    let rows = cpu.count(op.q_rows);
    // SAFETY: read only. q, k and v may share a buffer.
    let (q, k, v) = unsafe { (cpu.get(op.q, op.q.len), cpu.get(op.k, op.k.len), cpu.get(op.v, op.v.len)) };
    let (y, dy, lse) = unsafe { (cpu.get(op.y, rows * dim), cpu.get(op.dy, rows * dim), cpu.get(op.lse, rows * heads)) };
    let (dq, dk, dv) = (cpu.arena.scattered::<T>(op.dq), cpu.arena.scattered::<T>(op.dk), cpu.arena.scattered::<T>(op.dv));
    let mask = cpu.mask(op.drop);
    for_each_head(cpu, op, |h, scratch| {
        let kv = h.start * kv_stride + h.column;
        let (k, v) = (Mat::new(&k[kv..], kv_stride), Mat::new(&v[kv..], kv_stride));
        for (row, queries, dropout) in h.blocks(heads) {
            let (q_at, y_at) = (row * q_stride + h.column, row * dim + h.column);
            let (q, dy_block) = (Mat::new(&q[q_at..], q_stride), Mat::new(&dy[y_at..], dim));
            let (p, rest) = scratch.split_at_mut(queries * h.len);
            let ds = &mut rest[..queries * h.len];
            let out = |block| (super::arena::Scattered::new(block), 0, h.len);
            let size = (queries, h.len, head_dim);
            // SAFETY: both blocks are this thread's.
            unsafe {
                product(out(&mut *p), size, (q, k.t()), scale, false, Parallelism::None);
                product(out(&mut *ds), size, (dy_block, v.t()), T::one(), false, Parallelism::None);
            }
            simd!({
                for (i, (p, ds)) in p.chunks_mut(h.len).zip(ds.chunks_mut(h.len)).enumerate() {
                    let at = y_at + i * dim;
                    let delta = sum(head_dim, |c| dy[at + c] * y[at + c]);
                    let lse = lse[(row + i) * heads + h.head];
                    mask.for_each(dropout + (i * heads) as u32, h.len, |start, factors| {
                        for ((p, ds), &factor) in p[start..].iter_mut().zip(&mut ds[start..]).zip(factors) {
                            let prob = (*p - lse).vexp();
                            *ds = prob * (*ds * factor - delta);
                            *p = prob * factor;
                        }
                    });
                }
            });
            let (p, ds) = (Mat::new(&*p, h.len), Mat::new(&*ds, h.len));
            let (key_size, later) = ((h.len, head_dim, queries), row > h.queries.start);
            // SAFETY: these columns of this sequence's rows are this task's.
            unsafe {
                product((dq, q_at, q_stride), (queries, head_dim, h.len), (ds, k), scale, false, Parallelism::None);
                product((dk, kv, kv_stride), key_size, (ds.t(), q), scale, later, Parallelism::None);
                product((dv, kv, kv_stride), key_size, (p.t(), dy_block), T::one(), later, Parallelism::None);
            }
        }
    });
}
