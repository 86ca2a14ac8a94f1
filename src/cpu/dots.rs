//! Products of few rows, in f32: dot products of rows as they are stored. The kernels of the crate `gemm` first repack the
//! weights, which takes longer than such a product. The order of summation of each element depends on the number of terms alone.

use std::array::from_fn;
use std::ops::Range;

use gemm_common::Parallelism;
use pulp::{Simd, WithSimd};

use super::arch;
use super::arena::UnsafeSlice;
use super::matrix::{Mat, for_each};

/// Computes `scale * a b` into, or adds it to, `(m, n)` elements in rows `stride` apart from `at`: (elements, at, stride),
/// (m, n, k), whether to add, (a, b), scale, threads. The rows of `a` and the columns of `b` are contiguous.
///
/// # Safety
/// Nothing else accesses the result.
pub type Dots<T> = unsafe fn((UnsafeSlice<T>, usize, usize), (usize, usize, usize), bool, (Mat<T>, Mat<T>), T, Parallelism);

/// Numbers of rows for which this is the fastest way: one row is a product with a vector, and many rows are worth the repacking.
pub const ROWS: Range<usize> = 2..129;
/// Terms added at a time, so that the rows of a tile stay in the first-level cache.
const TERMS: usize = 1024;
/// Columns of the result per parallel task.
const COLUMNS: usize = 24;
/// Elements of a cache line.
const LINE: usize = 16;

/// # Safety
/// As in [`Dots`].
pub unsafe fn product(
    result: (UnsafeSlice<f32>, usize, usize),
    (m, n, k): (usize, usize, usize),
    add: bool,
    (a, b): (Mat<f32>, Mat<f32>),
    scale: f32,
    parallelism: Parallelism,
) {
    assert!(a.col == 1 && b.row == 1, "rows of the first operand or columns of the second are not contiguous");
    for_each(parallelism, n.div_ceil(COLUMNS), |task| {
        let columns = task * COLUMNS..n.min((task + 1) * COLUMNS);
        // The columns are this task's alone.
        arch().dispatch(Task { result, rows: m, columns, terms: k, add, a, b, scale });
    });
}

/// Some columns of a product.
struct Task<'a> {
    result: (UnsafeSlice<'a, f32>, usize, usize),
    rows: usize,
    columns: Range<usize>,
    terms: usize,
    add: bool,
    a: Mat<'a, f32>,
    b: Mat<'a, f32>,
    scale: f32,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Sums and operands of a tile fill the registers.
        if S::REGISTER_COUNT >= 32 { self.tiles::<S, 4, 6>(simd) } else { self.tiles::<S, 3, 4>(simd) }
    }
}

impl Task<'_> {
    /// Tiles of R rows and C columns.
    #[inline(always)]
    fn tiles<S: Simd, const R: usize, const C: usize>(self, simd: S) {
        let (out, at, stride) = self.result;
        let (m, end) = (self.rows, self.columns.end);
        for term in (0..self.terms).step_by(TERMS) {
            let terms = TERMS.min(self.terms - term);
            let add = self.add || term > 0;
            for j in self.columns.clone().step_by(C) {
                // Beyond the last column or row, the last one again.
                let columns = from_fn(|c| &self.b.data[(j + c).min(end - 1) * self.b.col + term..][..terms]);
                // With each tile, a part of the columns after these arrives from memory.
                let (next, lines) = ((j + C) * self.b.col + term, terms.div_ceil(LINE));
                let part = (C * lines).div_ceil(m.div_ceil(R));
                for (tile, i) in (0..m).step_by(R).enumerate() {
                    for line in tile * part..((tile + 1) * part).min(C * lines) {
                        prefetch(self.b.data.as_ptr().wrapping_add(next + line / lines * self.b.col + line % lines * LINE));
                    }
                    let rows = from_fn(|r| &self.a.data[(i + r).min(m - 1) * self.a.row + term..][..terms]);
                    let sums = sums::<S, R, C>(simd, rows, columns);
                    for (r, sums) in sums.iter().enumerate().take(m - i) {
                        // SAFETY: this task's, by contract.
                        let out = unsafe { out.row(at + (i + r) * stride + j, C.min(end - j)) };
                        for (out, &sum) in out.iter_mut().zip(sums) {
                            let sum = self.scale * sum;
                            *out = if add { *out + sum } else { sum };
                        }
                    }
                }
            }
        }
    }
}

/// The dot products of rows with columns.
#[inline(always)]
fn sums<S: Simd, const R: usize, const C: usize>(simd: S, rows: [&[f32]; R], columns: [&[f32]; C]) -> [[f32; C]; R] {
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    let terms = rows[0].len();
    let whole = terms / S::F32_LANES * S::F32_LANES;
    for p in (0..whole).step_by(S::F32_LANES) {
        // SAFETY: all have as many terms.
        sums = add(simd, sums, unsafe { load(simd, rows, p) }, unsafe { load(simd, columns, p) });
    }
    if whole < terms {
        sums = add(simd, sums, load_rest(simd, rows, whole), load_rest(simd, columns, whole));
    }
    let mut totals = [[0.0; C]; R];
    for r in 0..R {
        for c in 0..C {
            totals[r][c] = simd.reduce_sum_f32s(sums[r][c]);
        }
    }
    totals
}

// Loops by index: not all closures would be inlined, and be compiled for the instructions in use.

#[inline(always)]
fn add<S: Simd, const R: usize, const C: usize>(
    simd: S,
    mut sums: [[S::f32s; C]; R],
    x: [S::f32s; R],
    w: [S::f32s; C],
) -> [[S::f32s; C]; R] {
    for r in 0..R {
        for c in 0..C {
            sums[r][c] = simd.mul_add_e_f32s(x[r], w[c], sums[r][c]);
        }
    }
    sums
}

/// A register of each row, from term `p` on.
///
/// # Safety
/// The rows have these terms.
#[inline(always)]
unsafe fn load<S: Simd, const N: usize>(simd: S, rows: [&[f32]; N], p: usize) -> [S::f32s; N] {
    let mut loaded = [simd.splat_f32s(0.0); N];
    for i in 0..N {
        // SAFETY: by contract.
        loaded[i] = unsafe { rows[i].as_ptr().add(p).cast::<S::f32s>().read_unaligned() };
    }
    loaded
}

/// Less than a register of each row: its terms from `p` on, and 0.
#[inline(always)]
fn load_rest<S: Simd, const N: usize>(simd: S, rows: [&[f32]; N], p: usize) -> [S::f32s; N] {
    let mut loaded = [simd.splat_f32s(0.0); N];
    for i in 0..N {
        loaded[i] = simd.partial_load_f32s(&rows[i][p..]);
    }
    loaded
}

/// Fetches a cache line.
#[inline(always)]
fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no access, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compared with sums in f64, at sizes that no register, tile, task or block of terms divides.
    #[test]
    fn products_of_few_rows() {
        for (m, n, k) in [(2, 1, 1), (5, 31, 7), (3, 26, 1_059), (9, 7, 2_049)] {
            let numbers = |len: usize, seed: u32| -> Vec<f32> {
                (0..len as u32)
                    .map(|i| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
                    .collect()
            };
            let (a, b, start) = (numbers(m * k, 1), numbers(n * k, 2), numbers(m * (n + 1), 3));
            for (add, parallelism) in [(false, Parallelism::None), (true, Parallelism::Rayon(0))] {
                let mut out = start.clone();
                let matrices = (Mat::new(&a, k), Mat::new(&b, k).t());
                // SAFETY: `out` is ours.
                unsafe { product((UnsafeSlice::new(&mut out), 0, n + 1), (m, n, k), add, matrices, 0.5, parallelism) };
                for (i, j) in (0..m).flat_map(|i| (0..=n).map(move |j| (i, j))) {
                    let (got, before) = (f64::from(out[i * (n + 1) + j]), f64::from(start[i * (n + 1) + j]));
                    let terms = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[j.min(n - 1) * k + p]));
                    let sum = if add { before } else { 0.0 } + 0.5 * terms.sum::<f64>();
                    let want = if j < n { sum } else { before };
                    assert!((got - want).abs() < 1e-6 * k as f64 + 1e-7, "{m} x {n} x {k}, ({i}, {j}): {got}, not {want}");
                }
            }
        }
    }
}
