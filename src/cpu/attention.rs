//! Self-attention within each sequence: one task per (sequence, head), which walks over blocks of queries and keeps their
//! scores in its thread's part of the arena. The backward pass recomputes the probabilities from `lse`.

use rayon::prelude::*;

use super::Cpu;
use super::arena::UnsafeSlice;
use super::matrix::{Accumulate, Mat};
use super::product::{Multiplier, Products};
use super::real::{LANES, Real, simd, sum};
use crate::ops::{Attention, Rows, View};

/// Queries per block.
const BLOCK: usize = 192;

/// Working memory of a thread.
pub struct Scratch<T> {
    /// Two blocks of scores. A row has the scores of one key with all queries, padded to whole vectors.
    scores: View,
    multiplier: Multiplier<T>,
}

impl<T: Products> Scratch<T> {
    /// For sequences of at most `max_seqlen` tokens, with scores in the arena from `offset` on.
    pub fn new(max_seqlen: usize, offset: usize, rounds: bool) -> Scratch<T> {
        let scores = View { offset, len: 2 * BLOCK * max_seqlen, dtype: T::DTYPE };
        Scratch { scores, multiplier: Multiplier::on_one_thread(rounds) }
    }

    /// Bytes of a thread's scores.
    pub fn bytes(max_seqlen: usize) -> usize {
        2 * BLOCK * max_seqlen * size_of::<T>()
    }
}

/// The work of one task: one head of one sequence.
struct Head {
    /// Packed row of the sequence's first token.
    start: usize,
    /// Tokens of the sequence, which are its keys.
    len: usize,
    /// Rows of its queries in q, y and lse.
    queries: std::ops::Range<usize>,
    /// First column of the head.
    column: usize,
    head: usize,
}

impl Head {
    /// For each block of queries: first row, number of queries, and dropout row of the first query.
    fn blocks(&self, heads: usize) -> impl Iterator<Item = (usize, usize, u32)> {
        let (from, to, dropout) = (self.queries.start, self.queries.end, (self.start * heads + self.head) as u32);
        (from..to).step_by(BLOCK).map(move |row| (row, BLOCK.min(to - row), dropout + ((row - from) * heads) as u32))
    }
}

/// Runs `f(head, scores, multiplier)` for every sequence and head.
fn for_each_head<T: Real>(cpu: &Cpu<T>, op: &Attention, f: impl Fn(Head, &mut [T], &mut Multiplier<T>) + Sync) {
    let starts = cpu.cu_seqlens();
    (0..cpu.seqs * op.heads).into_par_iter().for_each(|task| {
        let (seq, head) = (task / op.heads, task % op.heads);
        let (start, end) = (starts[seq] as usize, starts[seq + 1] as usize);
        let queries = match op.q_rows {
            Rows::Tokens => start..end,
            Rows::Cls => seq..seq + 1,
        };
        let thread = rayon::current_thread_index().unwrap_or(0) % cpu.scratch.len();
        let Scratch { scores, multiplier } = &mut *cpu.scratch[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: beyond the plan's buffers, and this thread's while it holds the lock.
        let scores = unsafe { cpu.get_mut(*scores, scores.len) };
        f(Head { start, len: end - start, queries, column: head * op.head_dim, head }, scores, multiplier);
    });
}

pub fn fwd<T: Real>(cpu: &Cpu<T>, op: &Attention) {
    let Attention { heads, head_dim, q_stride, kv_stride, .. } = *op;
    let dim = heads * head_dim;
    let scale = T::of(1.0 / (head_dim as f64).sqrt());
    // SAFETY: read only. q, k and v may share a buffer.
    let (q, k, v) = unsafe { (cpu.get(op.q, op.q.len), cpu.get(op.k, op.k.len), cpu.get(op.v, op.v.len)) };
    let (y, lse) = (cpu.arena.scattered::<T>(op.y), cpu.arena.scattered::<T>(op.lse));
    let mask = cpu.mask(op.drop);
    for_each_head(cpu, op, |h, scores, multiplier| {
        let kv = h.start * kv_stride + h.column;
        let (k, v) = (Mat::new(&k[kv..], kv_stride), Mat::new(&v[kv..], kv_stride));
        for (row, queries, dropout) in h.blocks(heads) {
            let q = Mat::new(&q[row * q_stride + h.column..], q_stride);
            let width = queries.next_multiple_of(LANES);
            let scores = &mut scores[..h.len * width];
            let out = (UnsafeSlice::new(scores), 0, width);
            // SAFETY: the scores are this thread's.
            unsafe { multiplier.product(out, (h.len, queries, head_dim), (k, q.t()), scale, Accumulate::Nothing) };
            let (mut largest, mut total) = ([T::neg_infinity(); BLOCK], [T::zero(); BLOCK]);
            simd!({
                for scores in scores.chunks(width) {
                    for (largest, &s) in largest.iter_mut().zip(scores) {
                        *largest = if s > *largest { s } else { *largest };
                    }
                }
                for scores in scores.chunks_mut(width) {
                    for ((s, &largest), total) in scores.iter_mut().zip(&largest).zip(&mut total) {
                        *s = (*s - largest).vexp();
                        *total += *s;
                    }
                }
                if !mask.is_off() {
                    for (keys, scores) in scores.chunks_mut(8 * width).enumerate() {
                        let factors = mask.of_eight_columns::<_, BLOCK>(keys, dropout, heads, width);
                        for (scores, factors) in scores.chunks_mut(width).zip(&factors) {
                            scores.iter_mut().zip(factors).for_each(|(s, &factor)| *s *= factor);
                        }
                    }
                }
            });
            let probs = Mat::new(&*scores, width).t();
            let out = (y, row * dim + h.column, dim);
            // SAFETY: these columns of these rows are this task's.
            unsafe { multiplier.product(out, (queries, head_dim, h.len), (probs, v), T::one(), Accumulate::Nothing) };
            for (i, (largest, total)) in largest.into_iter().zip(total).take(queries).enumerate() {
                // SAFETY: these too.
                let (y, lse) = unsafe { (y.row((row + i) * dim + h.column, head_dim), lse.row((row + i) * heads + h.head, 1)) };
                lse[0] = largest + total.ln();
                simd!(y.iter_mut().for_each(|y| *y /= total));
            }
        }
    });
}

pub fn bwd<T: Real>(cpu: &Cpu<T>, op: &Attention) {
    let Attention { heads, head_dim, q_stride, kv_stride, .. } = *op;
    let dim = heads * head_dim;
    let scale = T::of(1.0 / (head_dim as f64).sqrt());
    let rows = cpu.count(op.q_rows);
    // SAFETY: read only. q, k and v may share a buffer.
    let (q, k, v) = unsafe { (cpu.get(op.q, op.q.len), cpu.get(op.k, op.k.len), cpu.get(op.v, op.v.len)) };
    let (y, dy, lse) = unsafe { (cpu.get(op.y, rows * dim), cpu.get(op.dy, rows * dim), cpu.get(op.lse, rows * heads)) };
    let (dq, dk, dv) = (cpu.arena.scattered::<T>(op.dq), cpu.arena.scattered::<T>(op.dk), cpu.arena.scattered::<T>(op.dv));
    let mask = cpu.mask(op.drop);
    for_each_head(cpu, op, |h, scores, multiplier| {
        let kv = h.start * kv_stride + h.column;
        let (k, v) = (Mat::new(&k[kv..], kv_stride), Mat::new(&v[kv..], kv_stride));
        for (row, queries, dropout) in h.blocks(heads) {
            let (q_at, y_at) = (row * q_stride + h.column, row * dim + h.column);
            let (q, dy_block) = (Mat::new(&q[q_at..], q_stride), Mat::new(&dy[y_at..], dim));
            let width = queries.next_multiple_of(LANES);
            let (p, rest) = scores.split_at_mut(h.len * width);
            let ds = &mut rest[..h.len * width];
            let out = |block| (UnsafeSlice::new(block), 0, width);
            let size = (h.len, queries, head_dim);
            // SAFETY: both blocks are this thread's.
            unsafe {
                multiplier.product(out(&mut *p), size, (k, q.t()), scale, Accumulate::Nothing);
                multiplier.product(out(&mut *ds), size, (v, dy_block.t()), T::one(), Accumulate::Nothing);
            }
            let (mut lses, mut deltas) = ([T::zero(); BLOCK], [T::zero(); BLOCK]);
            simd!({
                for i in 0..queries {
                    let at = y_at + i * dim;
                    lses[i] = lse[(row + i) * heads + h.head];
                    deltas[i] = sum(head_dim, |c| dy[at + c] * y[at + c]);
                }
                for (keys, (p, ds)) in p.chunks_mut(8 * width).zip(ds.chunks_mut(8 * width)).enumerate() {
                    let factors = mask.of_eight_columns::<_, BLOCK>(keys, dropout, heads, width);
                    for ((p, ds), factors) in p.chunks_mut(width).zip(ds.chunks_mut(width)).zip(&factors) {
                        for ((((p, ds), &factor), &lse), &delta) in p.iter_mut().zip(ds).zip(factors).zip(&lses).zip(&deltas) {
                            let prob = (*p - lse).vexp();
                            *ds = prob * (*ds * factor - delta);
                            *p = prob * factor;
                        }
                    }
                }
            });
            let (p, ds) = (Mat::new(&*p, width), Mat::new(&*ds, width));
            let (query_size, key_size) = ((queries, head_dim, h.len), (h.len, head_dim, queries));
            let onto = if row > h.queries.start { Accumulate::Itself } else { Accumulate::Nothing };
            // SAFETY: these columns of this sequence's rows are this task's.
            unsafe {
                multiplier.product((dq, q_at, q_stride), query_size, (ds.t(), k), scale, Accumulate::Nothing);
                multiplier.product((dk, kv, kv_stride), key_size, (ds, q), scale, onto);
                multiplier.product((dv, kv, kv_stride), key_size, (p, dy_block), T::one(), onto);
            }
        }
    });
    if !op.db.is_none() {
        let bias = |i: usize| op.db.slice(i * dim, dim);
        cpu.add_bias(bias(0), op.dq, rows, q_stride);
        cpu.add_bias(bias(1), op.dk, cpu.tokens, kv_stride);
        cpu.add_bias(bias(2), op.dv, cpu.tokens, kv_stride);
    }
}
