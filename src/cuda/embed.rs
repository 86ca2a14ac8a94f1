//! Embedding tables with their norm, and the `[CLS]` rows.

use super::arena::SUMS;
use super::columns::{self, tiles};
use super::kernels::{self, EmbedBwdPosition, EmbedBwdType, EmbedBwdWord, EmbedFwd, Kernel};
use super::{Cuda, norm, words};
use crate::error::Result;
use crate::ops::{Embed, GatherCls, View};

/// For sums over token types: at most this many chunks of rows, and at least this many rows per chunk.
const CHUNKS: usize = 128;
const CHUNK: usize = 32;

pub fn fwd(cuda: &Cuda, op: &Embed) -> Result<()> {
    words::catch_up(cuda)?;
    let inputs = cuda.inputs();
    let arguments = EmbedFwd {
        ids: cuda.at(inputs.ids),
        positions: cuda.at(inputs.positions),
        types: cuda.at(inputs.types),
        word: cuda.at(op.word),
        position: cuda.at(op.position),
        type_table: cuda.at(op.types),
        gamma: cuda.at(op.gamma),
        beta: cuda.at(op.beta),
        x: cuda.at(op.x),
        y: cuda.at(op.y),
        stats: cuda.at(op.stats),
        rows: cuda.tokens as i32,
        dim: op.dim as i32,
        eps: op.eps,
        drop: cuda.drop(op.drop),
    };
    let kernel = cuda.kernels().embed_fwd.of(op.y.dtype);
    cuda.launch(kernel, [cuda.tokens.div_ceil(kernel.warps()), 1, 1], &arguments)
}

pub fn bwd(cuda: &Cuda, op: &Embed) -> Result<()> {
    norm::bwd_after_dropout(cuda, &op.norm(), op.drop)?;
    let tags = words::begin_gradients(cuda);
    if !cuda.step.adds() {
        // Most rows have no token in the batch.
        if tags.is_none() {
            cuda.fill(op.dword)?;
        }
        cuda.fill(op.dposition)?;
    }
    let (tags, tag) = tags.unwrap_or_default();
    let (inputs, dtype) = (cuda.inputs(), op.dy.dtype);
    let tiles = tiles(op.dim, dtype);
    let of_word = EmbedBwdWord {
        dx: cuda.at(op.dy),
        ids: cuda.at(inputs.ids),
        rows_by_token: cuda.at(inputs.rows_by_token),
        token_starts: cuda.at(inputs.token_starts),
        dword: cuda.at(op.dword),
        tags,
        dim: op.dim as i32,
        tag,
        pad: op.pad.map_or(-1, |pad| pad as i32),
    };
    cuda.launch(cuda.kernels().embed_bwd_word.of(dtype), [cuda.distinct, tiles, 1], &of_word)?;

    let of_position = EmbedBwdPosition {
        dx: cuda.at(op.dy),
        cu_seqlens: cuda.at(inputs.cu_seqlens),
        dposition: cuda.at(op.dposition),
        seqs: cuda.seqs as i32,
        max_seqlen: cuda.max_seqlen as i32,
        dim: op.dim as i32,
    };
    let kernel = cuda.kernels().embed_bwd_position.of(dtype);
    cuda.launch(kernel, [cuda.max_seqlen.div_ceil(kernel.warps()), tiles, 1], &of_position)?;

    if op.dtypes.is_none() {
        return Ok(());
    }
    let types = op.dtypes.len / op.dim;
    let bytes = op.dtypes.len * size_of::<f32>();
    let chunk = cuda.tokens.div_ceil(CHUNKS.min(SUMS / bytes)).max(CHUNK);
    let chunks = cuda.tokens.div_ceil(chunk);
    let sums = columns::space(cuda, chunks * bytes)?;
    let of_type = EmbedBwdType {
        dx: cuda.at(op.dy),
        types: cuda.at(inputs.types),
        sums,
        rows: cuda.tokens as i32,
        dim: op.dim as i32,
        chunk: chunk as i32,
    };
    cuda.launch(cuda.kernels().embed_bwd_type.of(dtype), [tiles, chunks, types], &of_type)?;
    (0..types).try_for_each(|t| {
        let sums = sums + (t * chunks * op.dim * size_of::<f32>()) as u64;
        columns::add(cuda, sums, chunks, op.dim, &[cuda.at(op.dtypes.slice(t * op.dim, op.dim))], cuda.step.adds())
    })
}

pub fn first_row_fwd(cuda: &Cuda, op: &GatherCls) -> Result<()> {
    first_row(cuda, op, [op.x, op.y], cuda.kernels().first_row_fwd.of(op.x.dtype))
}

pub fn first_row_bwd(cuda: &Cuda, op: &GatherCls) -> Result<()> {
    if !op.add {
        cuda.fill(op.dx.slice(0, cuda.tokens * op.dim))?;
    }
    first_row(cuda, op, [op.dx, op.dy], cuda.kernels().first_row_bwd.of(op.dx.dtype))
}

fn first_row(cuda: &Cuda, op: &GatherCls, [tokens, firsts]: [View; 2], kernel: &Kernel<kernels::FirstRow>) -> Result<()> {
    let arguments = kernels::FirstRow {
        tokens: cuda.at(tokens),
        firsts: cuda.at(firsts),
        cu_seqlens: cuda.at(cuda.inputs().cu_seqlens),
        seqs: cuda.seqs as i32,
        dim: op.dim as i32,
    };
    cuda.launch(kernel, [cuda.seqs.div_ceil(kernel.warps()), 1, 1], &arguments)
}
