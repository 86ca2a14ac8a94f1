//! Chooses the attention kernels and the number of blocks. A block is a (head, tile of rows, part of the tile), or a (head,
//! sequence) if each sequence has one query.

use std::ops::Range;

use super::arena::SUMS;
use super::kernels::{AttnBwd, AttnClsBwd, AttnClsFwd, AttnFwd, Kernel, Kernels, Ptr};
use super::{Cuda, columns};
use crate::error::{Error, Kind, Result};
use crate::ops::{Attention, DType, Rows};

/// The kernels of one head size.
struct Path<'a> {
    fwd: &'a Kernel<AttnFwd>,
    bwd_q: &'a Kernel<AttnBwd>,
    bwd_kv: &'a Kernel<AttnBwd>,
    /// Blocks per tile.
    parts: usize,
}

impl Path<'_> {
    /// Heads of up to `width` elements, on the CUDA cores.
    fn general(kernels: &Kernels, dtype: DType, width: usize) -> Path<'_> {
        let (fwd, bwd_q, bwd_kv) = match width {
            32 => (&kernels.attn_fwd_d32, &kernels.attn_bwd_q_d32, &kernels.attn_bwd_kv_d32),
            64 => (&kernels.attn_fwd_d64, &kernels.attn_bwd_q_d64, &kernels.attn_bwd_kv_d64),
            _ => (&kernels.attn_fwd_d128, &kernels.attn_bwd_q_d128, &kernels.attn_bwd_kv_d128),
        };
        // A block holds 64 rows, or 32 at the largest width.
        let parts = if width <= 64 { 1 } else { 2 };
        Path { fwd: fwd.of(dtype), bwd_q: bwd_q.of(dtype), bwd_kv: bwd_kv.of(dtype), parts }
    }

    /// Heads of exactly `width` elements of 16 bits, on tensor cores.
    fn tensor_cores(kernels: &Kernels, dtype: DType, width: usize) -> Path<'_> {
        let (fwd, bwd_q, bwd_kv) = match width {
            32 => (&kernels.attn_fwd_mma_d32, &kernels.attn_bwd_q_mma_d32, &kernels.attn_bwd_kv_mma_d32),
            _ => (&kernels.attn_fwd_mma_d64, &kernels.attn_bwd_q_mma_d64, &kernels.attn_bwd_kv_mma_d64),
        };
        Path { fwd: fwd.of(dtype), bwd_q: bwd_q.of(dtype), bwd_kv: bwd_kv.of(dtype), parts: 1 }
    }

    fn of<'a>(cuda: &'a Cuda, op: &Attention) -> Result<Path<'a>> {
        let kernels = cuda.kernels();
        match op.head_dim {
            // Rows and parts of rows begin at multiples of 16 bytes, the unit of copies into shared memory.
            width @ (32 | 64) if op.y.dtype.size() == 2 => Ok(Path::tensor_cores(kernels, op.y.dtype, width)),
            ..=32 => Ok(Path::general(kernels, op.y.dtype, 32)),
            33..=64 => Ok(Path::general(kernels, op.y.dtype, 64)),
            65..=128 => Ok(Path::general(kernels, op.y.dtype, 128)),
            _ => {
                let fact = format!("attention heads have {} elements, and the kernels support at most 128", op.head_dim);
                Err(Error::new(Kind::Device, cuda.gpu.name.clone(), fact, "pass --device cpu"))
            }
        }
    }
}

/// At most this many tiles, or sequences, per launch: the second dimension of a grid.
const MOST: usize = 65_535;

fn scale(op: &Attention) -> f32 {
    (1.0 / (op.head_dim as f64).sqrt()) as f32
}

pub fn fwd(cuda: &Cuda, op: &Attention) -> Result<()> {
    let path = Path::of(cuda, op)?;
    if op.q_rows == Rows::Cls {
        return cls_fwd(cuda, op);
    }
    let arguments = AttnFwd {
        q: cuda.at(op.q),
        k: cuda.at(op.k),
        v: cuda.at(op.v),
        y: cuda.at(op.y),
        lse: cuda.at(op.lse),
        cu_seqlens: cuda.at(cuda.inputs().cu_seqlens),
        tiles: cuda.at(cuda.inputs().tiles),
        q_stride: op.q_stride as i32,
        kv_stride: op.kv_stride as i32,
        heads: op.heads as i32,
        head_dim: op.head_dim as i32,
        scale: scale(op),
        drop: cuda.drop(op.drop),
    };
    let count = cuda.tiles();
    (0..count).step_by(MOST).try_for_each(|first| {
        let shifted = AttnFwd { tiles: arguments.tiles + 8 * first as u64, ..arguments };
        cuda.launch(path.fwd, [op.heads, MOST.min(count - first), path.parts], &shifted)
    })
}

pub fn bwd(cuda: &Cuda, op: &Attention) -> Result<()> {
    let path = Path::of(cuda, op)?;
    if op.q_rows == Rows::Cls {
        return cls_bwd(cuda, op);
    }
    let dim = op.heads * op.head_dim;
    // Of a tile: the column sums of one of dq, dk and dv.
    let tile = if op.db.is_none() { 0 } else { dim * size_of::<f32>() * path.parts };
    let most = SUMS.checked_div(2 * tile).unwrap_or(MOST).clamp(1, MOST).min(cuda.tiles());
    let arguments = AttnBwd {
        q: cuda.at(op.q),
        k: cuda.at(op.k),
        v: cuda.at(op.v),
        y: cuda.at(op.y),
        dy: cuda.at(op.dy),
        lse: cuda.at(op.lse),
        delta: cuda.scratch(cuda.tokens * op.heads * size_of::<f32>())?,
        dq: cuda.at(op.dq),
        dk: cuda.at(op.dk),
        dv: cuda.at(op.dv),
        sums: 0,
        cu_seqlens: cuda.at(cuda.inputs().cu_seqlens),
        tiles: cuda.at(cuda.inputs().tiles),
        q_stride: op.q_stride as i32,
        kv_stride: op.kv_stride as i32,
        heads: op.heads as i32,
        head_dim: op.head_dim as i32,
        scale: scale(op),
        drop: cuda.drop(op.drop),
    };
    for (kernel, of) in [(path.bwd_q, 0..1), (path.bwd_kv, 1..3)] {
        for first in (0..cuda.tiles()).step_by(most) {
            let launched = most.min(cuda.tiles() - first);
            let sums = sums(cuda, of.len() * launched * tile)?;
            let shifted = AttnBwd { sums, tiles: arguments.tiles + 8 * first as u64, ..arguments };
            cuda.launch(kernel, [op.heads, launched, path.parts], &shifted)?;
            add_bias(cuda, op, sums, launched * path.parts, of.clone(), first)?;
        }
    }
    Ok(())
}

/// Memory for the column sums of a launch; null without any.
fn sums(cuda: &Cuda, bytes: usize) -> Result<Ptr> {
    if bytes == 0 { Ok(0) } else { columns::space(cuda, bytes) }
}

/// Adds the column sums of `blocks` blocks, the first of which is block `first` of the op, to some of dq's, dk's and dv's parts of
/// `db`, if there is one. Only the first launch of several overwrites.
fn add_bias(cuda: &Cuda, op: &Attention, sums: Ptr, blocks: usize, of: Range<usize>, first: usize) -> Result<()> {
    if op.db.is_none() {
        return Ok(());
    }
    let dim = op.heads * op.head_dim;
    let outs: Vec<Ptr> = of.map(|part| cuda.at(op.db.slice(part * dim, dim))).collect();
    columns::add(cuda, sums, blocks, dim, &outs, first > 0 || cuda.step.adds())
}

/// The addresses of [`Rows::Cls`], from sequence `first` on: the tensors with one row per sequence.
struct FromSequence {
    cu_seqlens: Ptr,
    q: u64,
    y: u64,
    lse: u64,
}

impl FromSequence {
    fn new(cuda: &Cuda, op: &Attention, first: usize) -> FromSequence {
        let (element, dim) = (op.y.dtype.size(), op.heads * op.head_dim);
        FromSequence {
            cu_seqlens: cuda.at(cuda.inputs().cu_seqlens) + (4 * first) as u64,
            q: (first * op.q_stride * element) as u64,
            y: (first * dim * element) as u64,
            lse: (4 * first * op.heads) as u64,
        }
    }
}

fn cls_fwd(cuda: &Cuda, op: &Attention) -> Result<()> {
    (0..cuda.seqs).step_by(MOST).try_for_each(|first| {
        let from = FromSequence::new(cuda, op, first);
        let arguments = AttnClsFwd {
            q: cuda.at(op.q) + from.q,
            k: cuda.at(op.k),
            v: cuda.at(op.v),
            y: cuda.at(op.y) + from.y,
            lse: cuda.at(op.lse) + from.lse,
            cu_seqlens: from.cu_seqlens,
            q_stride: op.q_stride as i32,
            kv_stride: op.kv_stride as i32,
            heads: op.heads as i32,
            head_dim: op.head_dim as i32,
            scale: scale(op),
            drop: cuda.drop(op.drop),
        };
        cuda.launch(cuda.kernels().attn_cls_fwd.of(op.y.dtype), [op.heads, MOST.min(cuda.seqs - first), 1], &arguments)
    })
}

fn cls_bwd(cuda: &Cuda, op: &Attention) -> Result<()> {
    let row = if op.db.is_none() { 0 } else { 3 * op.heads * op.head_dim * size_of::<f32>() };
    let most = SUMS.checked_div(row).unwrap_or(MOST).clamp(1, MOST).min(cuda.seqs);
    for first in (0..cuda.seqs).step_by(most) {
        let (from, launched) = (FromSequence::new(cuda, op, first), most.min(cuda.seqs - first));
        let sums = sums(cuda, launched * row)?;
        let arguments = AttnClsBwd {
            q: cuda.at(op.q) + from.q,
            k: cuda.at(op.k),
            v: cuda.at(op.v),
            y: cuda.at(op.y) + from.y,
            dy: cuda.at(op.dy) + from.y,
            lse: cuda.at(op.lse) + from.lse,
            dq: cuda.at(op.dq) + from.q,
            dk: cuda.at(op.dk),
            dv: cuda.at(op.dv),
            sums,
            cu_seqlens: from.cu_seqlens,
            q_stride: op.q_stride as i32,
            kv_stride: op.kv_stride as i32,
            heads: op.heads as i32,
            head_dim: op.head_dim as i32,
            scale: scale(op),
            drop: cuda.drop(op.drop),
        };
        cuda.launch(cuda.kernels().attn_cls_bwd.of(op.y.dtype), [op.heads, launched, 1], &arguments)?;
        add_bias(cuda, op, sums, launched, 0..3, first)?;
    }
    Ok(())
}
