//! Matrix products: by the kernels of the crate `gemm`, or with operands rounded to bf16.

use gemm_common::Parallelism;
use rayon::prelude::*;

use super::arena::UnsafeSlice;
use super::gemm::Gemm;
use super::grain;
use super::instructions::Instructions;
use super::real::Real;
use super::rounded::Panels;

/// A matrix in a slice: element (i, j) is `data[i * row + j * col]`.
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

    /// The transpose, as a view.
    pub fn t(self) -> Self {
        Mat { row: self.col, col: self.row, ..self }
    }

    /// The submatrix that begins at (i, j).
    pub fn from(self, i: usize, j: usize) -> Self {
        Mat { data: &self.data[i * self.row + j * self.col..], ..self }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
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

/// Multiplies matrices in the arithmetic of a backend.
pub struct Multiplier<T> {
    parallelism: Parallelism,
    gemm: Gemm<T>,
    /// Present if operands are rounded.
    panels: Option<Panels<T>>,
}

impl<T: Real> Multiplier<T> {
    /// For large matrices, on all threads.
    pub fn on_all_threads(rounds: bool) -> Multiplier<T> {
        Multiplier::new(Parallelism::Rayon(0), rounds.then_some((1056, 3072)))
    }

    /// For the matrices of one head of a sequence, on the calling thread.
    pub fn on_one_thread(rounds: bool) -> Multiplier<T> {
        Multiplier::new(Parallelism::None, rounds.then_some((288, 528)))
    }

    fn new(parallelism: Parallelism, panels: Option<(usize, usize)>) -> Multiplier<T> {
        let instructions = Instructions::in_use();
        let panels = panels.map(|(rows, columns)| Panels::new(instructions, rows, columns));
        Multiplier { parallelism, gemm: T::gemm(instructions), panels }
    }

    /// `(m, n)` elements of `out`, rows `stride` apart from `at`, become `onto + scale * a b`. `a` is (m, k), `b` is (k, n).
    ///
    /// # Safety
    /// Nothing else may access these elements meanwhile.
    pub unsafe fn product(
        &mut self,
        (out, at, stride): (UnsafeSlice<T>, usize, usize),
        (m, n, k): (usize, usize, usize),
        (a, b): (Mat<T>, Mat<T>),
        scale: T,
        onto: Accumulate<T>,
    ) {
        if m == 0 || n == 0 {
            return;
        }
        assert!(a.holds(m, k) && b.holds(k, n), "a product of ({m}, {k}) and ({k}, {n}) reads beyond its matrices");
        let parallelism = self.parallelism;
        if let Some(panels) = &mut self.panels {
            // SAFETY: by contract.
            return unsafe { panels.product((out, at, stride), (m, n, k), (a, b), scale, onto, parallelism) };
        }
        if let Accumulate::Row(row) = onto {
            let grain = grain(n);
            for_each(parallelism, m.div_ceil(grain), |task| {
                for i in task * grain..m.min((task + 1) * grain) {
                    // SAFETY: this task's, by contract.
                    unsafe { out.row(at + i * stride, n) }.copy_from_slice(&row[..n]);
                }
            });
        }
        let out = out.pointer(at, (m - 1) * stride + n);
        let add = !matches!(onto, Accumulate::Nothing);
        // SAFETY: in bounds, as just checked; `out` is ours by contract and disjoint from the operands.
        unsafe { (self.gemm)((m, n, k), (out, stride), add, (a, b), scale, parallelism) };
    }
}

/// `f` of 0..n, in parallel or in sequence.
pub fn for_each(parallelism: Parallelism, n: usize, f: impl Fn(usize) + Sync + Send) {
    match parallelism {
        Parallelism::None => (0..n).for_each(f),
        _ => (0..n).into_par_iter().with_max_len(1).for_each(f),
    }
}
