//! Matrix products whose operands are rounded to bf16, with sums in f32. Both operands are packed into panels of bf16 pairs,
//! and a tile of the result stays in registers; AVX512-BF16 is used if available. The order of summation of each element does
//! not depend on the number of threads.

use gemm_common::Parallelism;
use half::bf16;

use super::arena::UnsafeSlice;
use super::matrix::{Accumulate, Mat, for_each};
use super::real::{Real, simd};

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

/// The same in plain f32.
pub mod portable {
    use super::*;

    pub fn kernels<T: Real>() -> Kernels<T> {
        Kernels { pack, multiply }
    }

    pub fn pack<T: Real>(panel: &mut [Pairs], x: Mat<T>, terms: usize, columns: usize) {
        let number = |i: usize, j: usize| match i < terms && j < columns {
            true => u32::from(bf16::from_f32(x.data[i * x.row + j * x.col].f64() as f32).to_bits()),
            false => 0,
        };
        for (p, pairs) in panel.iter_mut().enumerate() {
            for (j, pair) in pairs.iter_mut().enumerate() {
                *pair = number(2 * p, j) | number(2 * p + 1, j) << 16;
            }
        }
    }

    #[inline(always)]
    fn even(pair: u32) -> f32 {
        f32::from_bits(pair << 16)
    }

    #[inline(always)]
    fn odd(pair: u32) -> f32 {
        f32::from_bits(pair & 0xffff_0000)
    }

    pub fn multiply<T: Real>(a: &[Pairs], column: usize, b: &[Pairs], tile: Tile<T>) {
        let mut sums = [[0.0; WIDTH]; ROWS];
        simd!({
            for (a, b) in a.iter().zip(b) {
                for (sums, &a) in sums.iter_mut().zip(&a[column..]) {
                    for (sum, &b) in sums.iter_mut().zip(b) {
                        *sum += even(a) * even(b);
                        *sum += odd(a) * odd(b);
                    }
                }
            }
        });
        for (r, sums) in sums[..tile.rows].iter().enumerate() {
            // SAFETY: the tile is this call's.
            let out = unsafe { tile.out.row(tile.at + r * tile.stride, tile.width) };
            let sums = sums.iter().map(|&sum| tile.scale * T::of(f64::from(sum)));
            match tile.onto {
                Accumulate::Nothing => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum),
                Accumulate::Itself => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                Accumulate::Row(row) => out.iter_mut().zip(sums).zip(row).for_each(|((out, sum), &start)| *out = start + sum),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::instructions::Instructions;
    use crate::cpu::product::Products;

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let word = |i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(seed).wrapping_mul(2_246_822_519) >> 8;
        (0..len as u32).map(|i| word(i) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// The portable kernels, and those that only some machines have.
    fn kernels() -> [(Instructions, Kernels<f32>); 2] {
        let best = *Instructions::available().last().unwrap();
        [Instructions::Plain, best].map(|instructions| (instructions, f32::kernels(instructions)))
    }

    /// To nearest, ties to even; NaN stays NaN. Hardware flushes subnormal numbers to 0.
    #[test]
    fn rounding() {
        let mut bits: Vec<u32> = (0..=u32::MAX).step_by(4_099).collect();
        bits.extend([0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, !0]);
        let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let apart: Vec<f32> = x.iter().flat_map(|&x| [x, 1.0]).collect();
        // One column: contiguous, the first of two in contiguous rows, and neither.
        let stored = [Mat::new(&x, x.len()).t(), Mat::new(&apart, 2), Mat { data: &apart, row: 2, col: apart.len() }];
        for (instructions, Kernels { pack, .. }) in kernels() {
            for (way, matrix) in stored.into_iter().enumerate() {
                let mut panel = vec![[0; WIDTH]; x.len().div_ceil(2)];
                pack(&mut panel, matrix, x.len(), 1);
                assert!(
                    panel.iter().all(|pairs| pairs[1..].iter().all(|&pair| pair == 0)),
                    "beyond the column, by {instructions}, {way}"
                );
                for (i, &x) in x.iter().enumerate() {
                    let got = bf16::from_bits((panel[i / 2][0] >> (16 * (i % 2))) as u16);
                    let want = bf16::from_f32(x);
                    let hardware = instructions == Instructions::Avx512Bf16;
                    let flushed = hardware && x.abs() < f32::MIN_POSITIVE && got.to_f32() == 0.0;
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(same || flushed, "{x:e} becomes {got:e}, not {want:e}, by {instructions}, {way}");
                }
            }
        }
    }

    /// Compared with sums in f64, at sizes that no panel, tile or block divides, with each operand stored either way.
    #[test]
    fn rounded_products() {
        let both = kernels().into_iter().flat_map(|(_, kernels)| {
            let panels = || Panels::new(kernels, 2 * WIDTH, 3 * WIDTH);
            [Parallelism::Rayon(0), Parallelism::None].map(|parallelism| (panels(), parallelism))
        });
        let mut all: Vec<_> = both.collect();
        for (m, n, k) in
            [(1, 1, 1), (9, 49, 2), (50, 97, 33), (3, 2, 2 * TERMS + 31), (2 * WIDTH + 1, 5, 7), (2, 3 * WIDTH + 3, 4)]
        {
            let (stored_a, stored_b, row) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3));
            let start = numbers(m * n, 4);
            for (a, b) in
                [(Mat::new(&stored_a, k), Mat::new(&stored_b, n)), (Mat::new(&stored_a, m).t(), Mat::new(&stored_b, k).t())]
            {
                let at = |x: Mat<f32>, i: usize, j: usize| f64::from(bf16::from_f32(x.data[i * x.row + j * x.col]));
                for onto in [Accumulate::Nothing, Accumulate::Itself, Accumulate::Row(&row)] {
                    for (panels, parallelism) in &mut all {
                        let mut out = start.clone();
                        let elements = (UnsafeSlice::new(&mut out), 0, n);
                        // SAFETY: `out` is this test's.
                        unsafe { panels.product(elements, (m, n, k), (a, b), 0.5, onto, *parallelism) };
                        for (e, &got) in out.iter().enumerate() {
                            let (i, j) = (e / n, e % n);
                            let before = match onto {
                                Accumulate::Nothing => 0.0,
                                Accumulate::Itself => start[e],
                                Accumulate::Row(row) => row[j],
                            };
                            let products = (0..k).map(|p| at(a, i, p) * at(b, p, j));
                            let (sum, size) = products.fold((0.0, 1.0), |(sum, size), x| (sum + x, size + x.abs()));
                            let (want, bound) = (f64::from(before) + 0.5 * sum, 1e-6 * size);
                            assert!((f64::from(got) - want).abs() <= bound, "{m} x {n} x {k}, ({i}, {j}): {got}, not {want}");
                        }
                    }
                }
            }
        }
    }
}
