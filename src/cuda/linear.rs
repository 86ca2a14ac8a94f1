//! Linear layers and GELU.

use super::Cuda;
use super::arena::SUMS;
use super::columns;
use super::gemm::{self, Product};
use super::kernels::{GELU_PACKS, GELU_ROWS, GeluBwd, GeluFwd};
use crate::error::Result;
use crate::ops::{Gelu, Linear};

/// At most this many chunks of rows in the backward pass of GELU.
const CHUNKS: usize = 256;

/// `y = x W^T + b`; in column-major order `y = W^T x`.
pub fn fwd(cuda: &Cuda, op: &Linear) -> Result<()> {
    let Linear { k, n, .. } = *op;
    let product = Product {
        a: cuda.at(op.w),
        b: cuda.at(op.x),
        d: cuda.at(op.y),
        bias: cuda.at(op.b),
        input: op.x.dtype,
        output: op.y.dtype,
        transpose_a: true,
        transpose_b: false,
        m: n,
        n: cuda.rows(op.rows),
        k,
        lda: k,
        ldb: k,
        ldd: n,
        add: false,
    };
    gemm::product(cuda, &product)
}

/// `dx = dy W`, `dw += dy^T x`.
pub fn bwd(cuda: &Cuda, op: &Linear) -> Result<()> {
    let Linear { k, n, .. } = *op;
    let rows = cuda.rows(op.rows);
    let input = Product {
        a: cuda.at(op.w),
        b: cuda.at(op.dy),
        d: cuda.at(op.dx),
        bias: 0,
        input: op.dy.dtype,
        output: op.dx.dtype,
        transpose_a: false,
        transpose_b: false,
        m: k,
        n: rows,
        k: n,
        lda: k,
        ldb: n,
        ldd: k,
        add: op.add,
    };
    gemm::product(cuda, &input)?;
    let weight = Product {
        a: cuda.at(op.x),
        b: cuda.at(op.dy),
        d: cuda.at(op.dw),
        output: op.dw.dtype,
        transpose_b: true,
        n,
        k: rows,
        add: cuda.step.adds(),
        ..input
    };
    gemm::product(cuda, &weight)
}

pub fn gelu_fwd(cuda: &Cuda, op: &Gelu) -> Result<()> {
    let rows = cuda.rows(op.rows);
    let arguments = GeluFwd { x: cuda.at(op.x), y: cuda.at(op.y), rows: rows as i32, width: op.width as i32 };
    let kernel = cuda.kernels().gelu_fwd.of(op.y.dtype);
    let block = kernel.threads() * GELU_PACKS * 16 / op.y.dtype.size();
    cuda.launch(kernel, [(rows * op.width).div_ceil(block), 1, 1], &arguments)
}

pub fn gelu_bwd(cuda: &Cuda, op: &Gelu) -> Result<()> {
    let rows = cuda.rows(op.rows);
    let bytes = op.width * size_of::<f32>(); // of one chunk's sums
    let chunk = rows.div_ceil(CHUNKS.min(SUMS / bytes)).next_multiple_of(GELU_ROWS);
    let chunks = rows.div_ceil(chunk);
    let sums = if op.db.is_none() { 0 } else { columns::space(cuda, chunks * bytes)? };
    let arguments =
        GeluBwd { x: cuda.at(op.x), dy: cuda.at(op.dy), sums, rows: rows as i32, width: op.width as i32, chunk: chunk as i32 };
    let kernel = cuda.kernels().gelu_bwd.of(op.dy.dtype);
    let block = kernel.threads() * 16 / op.dy.dtype.size();
    cuda.launch(kernel, [op.width.div_ceil(block), chunks, 1], &arguments)?;
    if op.db.is_none() { Ok(()) } else { columns::add(cuda, sums, chunks, op.width, &[cuda.at(op.db)], cuda.step.adds()) }
}
