//! Matrix products whose operands are rounded to bf16, with sums in f32, by instructions that multiply pairs of bf16 (`avx512`).
//! Both operands are packed into panels of such pairs, and a tile of the result stays in registers. The order of summation of
//! each element does not depend on the number of threads.

use gemm_common::Parallelism;

use super::arena::UnsafeSlice;
use super::matrix::{Accumulate, Mat, for_each};
use super::real::Real;

/// Columns of a panel: three registers of sums. A tile of the result has `ROWS` rows: 24 of the 32 registers.
pub const WIDTH: usize = 48;
pub const ROWS: usize = 8;
/// Terms packed at a time.
const TERMS: usize = 1024;
/// Rows and columns of the result per parallel task.
const TASK: (usize, usize) = (3 * WIDTH, 4 * WIDTH);

/// Element [p][j] holds terms 2p and 2p + 1 of row j of `a`, or column j of `b`; the first is in the lower half.
pub type Pairs = [u32; WIDTH];

/// Rounded and packed operands, small enough for the caches, and the kernels that pack and multiply them.
pub struct Panels<T> {
    a: Vec<Pairs>,
    b: Vec<Pairs>,
    kernels: Kernels<T>,
}

/// Functions that pack and multiply panels.
#[derive(Clone, Copy)]
pub struct Kernels<T> {
    /// Fills a panel with the given numbers of rows and columns of a matrix; the rest becomes 0.
    pub pack: fn(&mut [Pairs], Mat<T>, usize, usize),
    /// Multiplies columns of one panel, starting at the given one, with those of another, and stores the tile.
    pub multiply: fn(&[Pairs], usize, &[Pairs], Tile<T>),
}

/// A part of the result: at most `ROWS` rows, `stride` apart from `at`, of at most `WIDTH` columns. Nothing else accesses its
/// elements while it lives.
pub struct Tile<'a, T> {
    pub out: UnsafeSlice<'a, T>,
    pub at: usize,
    pub stride: usize,
    pub rows: usize,
    pub width: usize,
    pub scale: T,
    /// A `Row` starts at the tile's first column.
    pub onto: Accumulate<'a, T>,
}

impl<T: Real> Panels<T> {
    /// For this many rows of `a` and columns of `b` at a time, each a multiple of `WIDTH`.
    pub fn new(kernels: Kernels<T>, rows: usize, columns: usize) -> Panels<T> {
        let panels = |columns: usize| vec![[0; WIDTH]; columns / WIDTH * TERMS / 2];
        Panels { a: panels(rows), b: panels(columns), kernels }
    }

    /// Like [`Multiplier::product`](super::product::Multiplier::product), with the elements of `a` and `b` rounded to bf16, to
    /// nearest, ties to even.
    ///
    /// # Safety
    /// The same.
    pub unsafe fn product(
        &mut self,
        (out, at, stride): (UnsafeSlice<T>, usize, usize),
        (m, n, k): (usize, usize, usize),
        (a, b): (Mat<T>, Mat<T>),
        scale: T,
        onto: Accumulate<T>,
        parallelism: Parallelism,
    ) {
        let Kernels { pack, multiply } = self.kernels;
        let [a_rows, b_columns] = [&self.a, &self.b].map(|panels| 2 * panels.len() / TERMS * WIDTH);
        for k0 in (0..k).step_by(TERMS) {
            let terms = TERMS.min(k - k0);
            let onto = if k0 == 0 { onto } else { Accumulate::Itself };
            for n0 in (0..n).step_by(b_columns) {
                let columns = b_columns.min(n - n0);
                let b = fill(&mut self.b, pack, b.from(k0, n0), (terms, columns), parallelism);
                for m0 in (0..m).step_by(a_rows) {
                    let rows = a_rows.min(m - m0);
                    let a = fill(&mut self.a, pack, a.from(m0, k0).t(), (terms, rows), parallelism);
                    let down = rows.div_ceil(TASK.0);
                    for_each(parallelism, down * columns.div_ceil(TASK.1), |task| {
                        let (i0, j0) = (task % down * TASK.0, task / down * TASK.1);
                        for j in (j0..columns.min(j0 + TASK.1)).step_by(WIDTH) {
                            let onto = match onto {
                                Accumulate::Row(row) => Accumulate::Row(&row[n0 + j..]),
                                other => other,
                            };
                            for i in (i0..rows.min(i0 + TASK.0)).step_by(ROWS) {
                                let at = at + (m0 + i) * stride + n0 + j;
                                let (rows, width) = (ROWS.min(rows - i), WIDTH.min(columns - j));
                                let tile = Tile { out, at, stride, rows, width, scale, onto };
                                multiply(panel(a, i, terms), i % WIDTH, panel(b, j, terms), tile);
                            }
                        }
                    });
                }
            }
        }
    }
}

/// The panel that contains a column.
fn panel(panels: &[Pairs], column: usize, terms: usize) -> &[Pairs] {
    let pairs = terms.div_ceil(2);
    &panels[column / WIDTH * pairs..][..pairs]
}

/// Packs the first `terms` rows and `columns` columns of `x` into consecutive panels.
fn fill<'a, T: Real>(
    panels: &'a mut [Pairs],
    pack: fn(&mut [Pairs], Mat<T>, usize, usize),
    x: Mat<T>,
    (terms, columns): (usize, usize),
    parallelism: Parallelism,
) -> &'a [Pairs] {
    let pairs = terms.div_ceil(2);
    let panels = &mut panels[..columns.div_ceil(WIDTH) * pairs];
    let all = UnsafeSlice::new(panels);
    for_each(parallelism, columns.div_ceil(WIDTH), |p| {
        // SAFETY: this task's alone.
        let panel = unsafe { all.row(p * pairs, pairs) };
        pack(panel, x.from(0, p * WIDTH), terms, WIDTH.min(columns - p * WIDTH));
    });
    panels
}
