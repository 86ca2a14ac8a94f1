//! Embedding tables and their norm: gather forward; backward, a sum over the rows of each token in a fixed order. Also the
//! `[CLS]` rows.

use rayon::prelude::*;

use super::arena::UnsafeSlice;
use super::real::{Real, simd};
use super::{Cpu, add_columns, add_to, dropout, grain, norm};
use crate::ops::{Embed, GatherCls, Rows};

#[inline(always)]
fn row<T>(table: &[T], i: i32, dim: usize) -> &[T] {
    &table[i as usize * dim..][..dim]
}

pub fn fwd<T: Real>(cpu: &Cpu<T>, op: &Embed) {
    let (dim, tokens) = (op.dim, cpu.tokens);
    let (ids, positions, types) =
        (cpu.input(|i| i.ids, tokens), cpu.input(|i| i.positions, tokens), cpu.input(|i| i.types, tokens));
    // SAFETY: tables and output are distinct buffers.
    let (word, position, type_table, x) = unsafe {
        (
            cpu.get(op.word, op.word.len),
            cpu.get(op.position, op.position.len),
            (!op.types.is_none()).then(|| cpu.get(op.types, op.types.len)),
            cpu.get_mut(op.x, tokens * dim),
        )
    };
    let grain = grain(dim);
    x.par_chunks_mut(grain * dim).enumerate().for_each(|(task, x)| {
        for (r, x) in x.chunks_mut(dim).enumerate() {
            let r = task * grain + r;
            x.copy_from_slice(row(word, ids[r], dim));
            add_to(x, row(position, positions[r], dim));
            if let Some(table) = type_table {
                add_to(x, row(table, types[r], dim));
            }
        }
    });
    norm::fwd(cpu, &op.norm());
    dropout::apply(cpu, op.drop, op.y, Rows::Tokens, dim);
}

pub fn bwd<T: Real>(cpu: &Cpu<T>, op: &Embed) {
    let (dim, tokens) = (op.dim, cpu.tokens);
    dropout::apply(cpu, op.drop, op.dy, Rows::Tokens, dim);
    norm::bwd(cpu, &op.norm());
    let ids = cpu.input(|i| i.ids, tokens);
    let types = cpu.input(|i| i.types, tokens);
    let by_token = cpu.input(|i| i.rows_by_token, tokens);
    let starts = cpu.input(|i| i.token_starts, cpu.distinct + 1);
    let cu_seqlens = cpu.cu_seqlens();
    // SAFETY: the incoming gradient and the tables' gradients are distinct buffers.
    let (dy, dword, dposition) = unsafe { (cpu.get(op.dy, tokens * dim), cpu.gradient(op.dword), cpu.gradient(op.dposition)) };

    let dword = UnsafeSlice::new(dword);
    starts.par_windows(2).for_each(|segment| {
        let rows = &by_token[segment[0] as usize..segment[1] as usize];
        let token = ids[rows[0] as usize] as usize;
        if Some(token) != op.pad {
            // SAFETY: every segment has a token of its own.
            let out = unsafe { dword.row(token * dim, dim) };
            simd!(rows.iter().for_each(|&r| add_to(out, row(dy, r, dim))));
        }
    });

    dposition.par_chunks_mut(dim).take(cpu.max_seqlen).enumerate().for_each(|(p, out)| {
        simd!({
            for seq in cu_seqlens.windows(2) {
                let r = seq[0] as usize + p;
                if r < seq[1] as usize {
                    add_to(out, &dy[r * dim..][..dim]);
                }
            }
        })
    });

    if !op.dtypes.is_none() {
        // SAFETY: a buffer of its own.
        let dtypes = unsafe { cpu.gradient(op.dtypes) };
        for (t, out) in dtypes.chunks_mut(dim).enumerate() {
            if types.contains(&(t as i32)) {
                add_columns([out], tokens, |r, c, [sums]| {
                    if types[r] == t as i32 {
                        add_to(sums, &dy[r * dim + c..]);
                    }
                });
            }
        }
    }
}

pub fn first_row_fwd<T: Real>(cpu: &Cpu<T>, op: &GatherCls) {
    let dim = op.dim;
    // SAFETY: distinct buffers.
    let (x, y) = unsafe { (cpu.get(op.x, cpu.tokens * dim), cpu.get_mut(op.y, cpu.seqs * dim)) };
    for (y, &start) in y.chunks_mut(dim).zip(cpu.cu_seqlens()) {
        y.copy_from_slice(&x[start as usize * dim..][..dim]);
    }
}

pub fn first_row_bwd<T: Real>(cpu: &Cpu<T>, op: &GatherCls) {
    let dim = op.dim;
    // SAFETY: distinct buffers.
    let (dy, dx) = unsafe { (cpu.get(op.dy, cpu.seqs * dim), cpu.get_mut(op.dx, cpu.tokens * dim)) };
    if !op.add {
        dx.fill(T::zero());
    }
    for (dy, &start) in dy.chunks(dim).zip(cpu.cu_seqlens()) {
        add_to(&mut dx[start as usize * dim..][..dim], dy);
    }
}
