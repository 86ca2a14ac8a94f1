//! Residual, dropout and layer norm.

use super::arena::SUMS;
use super::kernels::{Kernel, NormBwd, NormFwd, Ptr};
use super::{Cuda, columns};
use crate::error::Result;
use crate::ops::{AddNorm, DropSite};

/// At most this many chunks of rows in the backward pass, and the multiple to which their rows are rounded up.
const CHUNKS: usize = 512;
const CHUNK: usize = 4;

pub fn fwd(cuda: &Cuda, op: &AddNorm) -> Result<()> {
    let rows = cuda.rows(op.rows);
    let arguments = NormFwd {
        x: cuda.at(op.x),
        skip: cuda.at(op.skip),
        gamma: cuda.at(op.gamma),
        beta: cuda.at(op.beta),
        y: cuda.at(op.y),
        stats: cuda.at(op.stats),
        token_rows: cuda.token_rows(op.rows),
        rows: rows as i32,
        dim: op.dim as i32,
        eps: op.eps,
        drop: cuda.drop(op.drop),
    };
    let kernel = cuda.kernels().norm_fwd.of(op.x.dtype);
    cuda.launch(kernel, [rows.div_ceil(kernel.warps()), 1, 1], &arguments)
}

pub fn bwd(cuda: &Cuda, op: &AddNorm) -> Result<()> {
    launch_bwd(cuda, op, op.drop, cuda.kernels().norm_bwd.of(op.dy.dtype))
}

/// The same where dropout follows the norm.
pub fn bwd_after_dropout(cuda: &Cuda, op: &AddNorm, drop: DropSite) -> Result<()> {
    launch_bwd(cuda, op, drop, cuda.kernels().norm_drop_bwd.of(op.dy.dtype))
}

fn launch_bwd(cuda: &Cuda, op: &AddNorm, drop: DropSite, kernel: &Kernel<NormBwd>) -> Result<()> {
    let rows = cuda.rows(op.rows);
    let outs = [op.dgamma, op.dbeta, op.db].into_iter().filter(|out| !out.is_none()).map(|out| cuda.at(out));
    let outs: Vec<Ptr> = outs.collect();
    let bytes = outs.len() * op.dim * size_of::<f32>(); // of one chunk's sums
    let chunk = rows.div_ceil(CHUNKS.min(SUMS / bytes)).next_multiple_of(CHUNK);
    let chunks = rows.div_ceil(chunk);
    let partials = columns::space(cuda, chunks * bytes)?;
    let arguments = NormBwd {
        z: cuda.at(op.x),
        gamma: cuda.at(op.gamma),
        stats: cuda.at(op.stats),
        dy: cuda.at(op.dy),
        dx: if op.dx == op.dy { 0 } else { cuda.at(op.dx) },
        partials,
        token_rows: cuda.token_rows(op.rows),
        rows: rows as i32,
        dim: op.dim as i32,
        chunk: chunk as i32,
        bias: (!op.db.is_none()).into(),
        drop: cuda.drop(drop),
    };
    cuda.launch(kernel, [chunks, 1, 1], &arguments)?;
    columns::add(cuda, partials, chunks, op.dim, &outs, cuda.step.adds())
}
