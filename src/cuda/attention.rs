//! Chooses the attention kernel and the number of blocks. A block is a (head, tile of rows, part of the tile), or a (head,
//! sequence) if each sequence has one query.

use std::ops::Range;

use super::arena::SCRATCH;
use super::kernels::{AttnBwd, AttnFwd, Kernel, Kernels, Ptr};
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

/// Most tiles, or sequences, per launch: the second dimension of a grid.
const MOST: usize = 65_535;

/// The number of tiles, or of sequences with one query each, and the parts of each.
fn queries(cuda: &Cuda, op: &Attention, path: &Path) -> (usize, usize) {
    match op.q_rows {
        Rows::Tokens => (cuda.tiles(), path.parts),
        Rows::Cls => (cuda.seqs, 1),
    }
}

/// Offsets in bytes added to the addresses of a launch, for it to begin with tile or sequence `first`.
struct Shift {
    /// For `tiles` and `cu_seqlens`.
    tiles: u64,
    cu_seqlens: u64,
    /// For rows of q and dq, of y and dy, and of lse and delta.
    q: u64,
    y: u64,
    lse: u64,
}

impl Shift {
    fn to(first: usize, op: &Attention) -> Shift {
        let (tiles, rows) = if op.q_rows == Rows::Tokens { (first, 0) } else { (0, first) };
        let (element, dim) = (op.y.dtype.size(), op.heads * op.head_dim);
        let bytes = |bytes: usize| bytes as u64;
        Shift {
            tiles: bytes(8 * tiles),
            cu_seqlens: bytes(4 * rows),
            q: bytes(rows * op.q_stride * element),
            y: bytes(rows * dim * element),
            lse: bytes(4 * rows * op.heads),
        }
    }
}

fn scale(op: &Attention) -> f32 {
    (1.0 / (op.head_dim as f64).sqrt()) as f32
}

pub fn fwd(cuda: &Cuda, op: &Attention) -> Result<()> {
    let path = Path::of(cuda, op)?;
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
        cls: (op.q_rows == Rows::Cls).into(),
        scale: scale(op),
        drop: cuda.drop(op.drop),
    };
    let (count, parts) = queries(cuda, op, &path);
    (0..count).step_by(MOST).try_for_each(|first| {
        let shift = Shift::to(first, op);
        let shifted = AttnFwd {
            tiles: arguments.tiles + shift.tiles,
            cu_seqlens: arguments.cu_seqlens + shift.cu_seqlens,
            q: arguments.q + shift.q,
            y: arguments.y + shift.y,
            lse: arguments.lse + shift.lse,
            ..arguments
        };
        cuda.launch(path.fwd, [op.heads, MOST.min(count - first), parts], &shifted)
    })
}

pub fn bwd(cuda: &Cuda, op: &Attention) -> Result<()> {
    let path = Path::of(cuda, op)?;
    let dim = op.heads * op.head_dim;
    let delta = (4 * cuda.rows(op.q_rows) * op.heads).next_multiple_of(256);
    // Behind delta: the column sums of each block, of dk and dv at the same time.
    let summed = !op.db.is_none();
    let block = if summed { 2 * dim * size_of::<f32>() * path.parts } else { 0 };
    let most = SCRATCH.saturating_sub(delta).checked_div(block).unwrap_or(MOST).clamp(1, MOST);
    let (count, parts) = queries(cuda, op, &path);
    let scratch = cuda.scratch(delta + most.min(count.max(cuda.tiles())) * block)?;
    let sums = if summed { scratch + delta as u64 } else { 0 };
    let arguments = AttnBwd {
        q: cuda.at(op.q),
        k: cuda.at(op.k),
        v: cuda.at(op.v),
        y: cuda.at(op.y),
        dy: cuda.at(op.dy),
        lse: cuda.at(op.lse),
        delta: scratch,
        dq: cuda.at(op.dq),
        dk: cuda.at(op.dk),
        dv: cuda.at(op.dv),
        sums,
        cu_seqlens: cuda.at(cuda.inputs().cu_seqlens),
        tiles: cuda.at(cuda.inputs().tiles),
        q_stride: op.q_stride as i32,
        kv_stride: op.kv_stride as i32,
        heads: op.heads as i32,
        head_dim: op.head_dim as i32,
        cls: (op.q_rows == Rows::Cls).into(),
        scale: scale(op),
        drop: cuda.drop(op.drop),
    };
    // Only the first launch of several overwrites.
    let add_bias = |first: usize, blocks: usize, of: Range<usize>| {
        if !summed {
            return Ok(());
        }
        let outs: Vec<Ptr> = of.map(|part| cuda.at(op.db.slice(part * dim, dim))).collect();
        columns::add(cuda, sums, blocks, dim, &outs, first > 0 || cuda.step.adds())
    };
    for first in (0..count).step_by(most) {
        let (shift, launched) = (Shift::to(first, op), most.min(count - first));
        let shifted = AttnBwd {
            tiles: arguments.tiles + shift.tiles,
            cu_seqlens: arguments.cu_seqlens + shift.cu_seqlens,
            q: arguments.q + shift.q,
            dq: arguments.dq + shift.q,
            y: arguments.y + shift.y,
            dy: arguments.dy + shift.y,
            lse: arguments.lse + shift.lse,
            delta: arguments.delta + shift.lse,
            ..arguments
        };
        cuda.launch(path.bwd_q, [op.heads, launched, parts], &shifted)?;
        add_bias(first, launched * parts, 0..1)?;
    }
    for first in (0..cuda.tiles()).step_by(most) {
        let launched = most.min(cuda.tiles() - first);
        let shifted = AttnBwd { tiles: arguments.tiles + 8 * first as u64, ..arguments };
        cuda.launch(path.bwd_kv, [op.heads, launched, path.parts], &shifted)?;
        add_bias(first, launched * path.parts, 1..3)?;
    }
    Ok(())
}
