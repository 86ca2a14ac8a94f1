//! Operands of matrix products, and the loop over their parts.

use gemm_common::Parallelism;
use rayon::prelude::*;

/// A matrix in a slice: element (i, j) is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub struct Mat<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub col: usize,
    /// Weights that stay the same from product to product.
    pub constant: bool,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major, rows `stride` apart.
    pub fn new(data: &'a [T], stride: usize) -> Self {
        Mat { data, row: stride, col: 1, constant: false }
    }

    /// The transpose, as a view.
    pub fn t(self) -> Self {
        Mat { row: self.col, col: self.row, ..self }
    }

    pub fn constant(self, constant: bool) -> Self {
        Mat { constant, ..self }
    }

    /// The submatrix that begins at (i, j).
    pub fn from(self, i: usize, j: usize) -> Self {
        Mat { data: &self.data[i * self.row + j * self.col..], ..self }
    }

    pub fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// The summand to which a product is added.
#[derive(Clone, Copy)]
pub enum Accumulate<'a, T> {
    Nothing,
    /// The previous value of the result.
    Itself,
    /// The same row everywhere.
    Row(&'a [T]),
}

/// `f` of 0..n, in parallel or in sequence.
pub fn for_each(parallelism: Parallelism, n: usize, f: impl Fn(usize) + Sync + Send) {
    match parallelism {
        Parallelism::None => (0..n).for_each(f),
        _ => (0..n).into_par_iter().with_max_len(1).for_each(f),
    }
}
