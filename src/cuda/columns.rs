//! Sums over rows, column by column, in two stages: within chunks of rows, then over the chunks.

use super::Cuda;
use super::kernels::{ColumnSums, ColumnsAdd, Ptr};
use crate::error::Result;
use crate::ops::DType;

/// Most chunks, and least rows per chunk.
const CHUNKS: usize = 128;
const CHUNK: usize = 32;

/// Rows to sum: all, or those of one token type.
pub struct Matrix {
    pub x: Ptr, // (rows, width)
    pub dtype: DType,
    pub rows: usize,
    pub width: usize,
    pub only: Option<usize>,
}

/// The gradient `out[c]` of a parameter from the `sum over rows of x[r][c]`.
pub fn sum(cuda: &Cuda, matrix: &Matrix, out: Ptr) -> Result<()> {
    let Matrix { x, dtype, rows, width, only } = *matrix;
    let chunk = rows.div_ceil(CHUNKS).max(CHUNK);
    let chunks = rows.div_ceil(chunk);
    let sums = cuda.scratch(chunks * width * size_of::<f32>())?;
    let arguments = ColumnSums {
        x,
        types: if only.is_some() { cuda.at(cuda.inputs().types) } else { 0 },
        sums,
        rows: rows as i32,
        width: width as i32,
        chunk: chunk as i32,
        only: only.unwrap_or(0) as i32,
    };
    cuda.launch(cuda.kernels().column_sums.of(dtype), [tiles(width, dtype), chunks, 1], &arguments)?;
    add(cuda, sums, chunks, width, &[out], cuda.step.adds())
}

/// `outs[i][c] = sum over chunks of partials[i][chunk][c]`, or `+=` with `adds`, for at most three outputs.
pub fn add(cuda: &Cuda, partials: Ptr, chunks: usize, width: usize, outs: &[Ptr], adds: bool) -> Result<()> {
    let [first, second, third] = std::array::from_fn(|i| outs.get(i).copied().unwrap_or(0));
    let arguments = ColumnsAdd { partials, first, second, third, chunks: chunks as i32, width: width as i32, add: adds.into() };
    cuda.launch(&cuda.kernels().columns_add, [width.div_ceil(32), outs.len(), 1], &arguments)
}

/// Number of parts of a row: a warp handles 16 bytes per lane.
pub fn tiles(width: usize, dtype: DType) -> usize {
    width.div_ceil(32 * 16 / dtype.size())
}
