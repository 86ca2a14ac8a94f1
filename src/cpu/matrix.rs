//! Matrices as products see them, and parallel loops over their parts.

use gemm_common::Parallelism;
use rayon::prelude::*;

/// Elements to read as a matrix: (i, j) is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub struct Mat<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub col: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major, rows `stride` apart.
    pub fn new(data: &'a [T], stride: usize) -> Self {
        Mat { data, row: stride, col: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Mat { row: self.col, col: self.row, ..self }
    }

    /// What begins at (i, j).
    pub fn from(self, i: usize, j: usize) -> Self {
        Mat { data: &self.data[i * self.row + j * self.col..], ..self }
    }

    pub fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Accumulate<'a, T> {
    Nothing,
    /// The elements that are there.
    Itself,
    /// The same row everywhere.
    Row(&'a [T]),
}

/// `f` of 0..n, in parallel or one after the other.
pub fn for_each(parallelism: Parallelism, n: usize, f: impl Fn(usize) + Sync + Send) {
    match parallelism {
        Parallelism::None => (0..n).for_each(f),
        _ => (0..n).into_par_iter().with_max_len(1).for_each(f),
    }
}
