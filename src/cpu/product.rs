//! Products of matrices: by the `gemm` crate, or with operands rounded to bf16 and sums in f32. For these both operands are
//! packed into panels of bf16 pairs, and a kernel keeps a tile of the result in registers, by AVX512-BF16 where there is
//! such. Each element is summed in one order, whatever the threads.

use gemm::Parallelism;
use rayon::prelude::*;

use super::arena::Scattered;
use super::grain;
use super::real::{Real, simd};

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
    fn from(self, i: usize, j: usize) -> Self {
        Mat { data: &self.data[i * self.row + j * self.col..], ..self }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// What a product comes on top of.
#[derive(Clone, Copy)]
pub enum Onto<'a, T> {
    Nothing,
    /// What stands there.
    Itself,
    /// The same row everywhere.
    Row(&'a [T]),
}

/// Multiplies matrices in the arithmetic of a backend.
pub struct Multiplier {
    parallelism: Parallelism,
    /// Where operands are rounded.
    panels: Option<Panels>,
}

impl Multiplier {
    /// For large matrices, on all threads.
    pub fn on_all_threads(rounds: bool) -> Multiplier {
        Multiplier { parallelism: Parallelism::Rayon(0), panels: rounds.then(|| Panels::new(22 * WIDTH, 64 * WIDTH)) }
    }

    /// For those of one sequence's head, on the thread that calls.
    pub fn on_one_thread(rounds: bool) -> Multiplier {
        Multiplier { parallelism: Parallelism::None, panels: rounds.then(|| Panels::new(6 * WIDTH, 11 * WIDTH)) }
    }

    /// `(m, n)` elements of `out`, rows `stride` apart from `at`, become `onto + scale * a b`. `a` is (m, k), `b` is (k, n).
    ///
    /// # Safety
    /// Nothing else may touch these elements meanwhile.
    pub unsafe fn product<T: Real>(
        &mut self,
        (out, at, stride): (Scattered<T>, usize, usize),
        (m, n, k): (usize, usize, usize),
        (a, b): (Mat<T>, Mat<T>),
        scale: T,
        onto: Onto<T>,
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
        if let Onto::Row(row) = onto {
            let grain = grain(n);
            for_each(parallelism, m.div_ceil(grain), |task| {
                for i in task * grain..m.min((task + 1) * grain) {
                    // SAFETY: this task's, by contract.
                    unsafe { out.row(at + i * stride, n) }.copy_from_slice(&row[..n]);
                }
            });
        }
        let out = out.pointer(at, (m - 1) * stride + n);
        let (stride, add, s) = (stride as isize, !matches!(onto, Onto::Nothing), |x: usize| x as isize);
        // SAFETY: in bounds, as just checked; `out` is ours by contract and disjoint from what is read.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out,
                1,
                stride,
                add,
                a.data.as_ptr(),
                s(a.col),
                s(a.row),
                b.data.as_ptr(),
                s(b.col),
                s(b.row),
                T::one(),
                scale,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// `f` of 0..n, at once or one after the other.
fn for_each(parallelism: Parallelism, n: usize, f: impl Fn(usize) + Sync + Send) {
    match parallelism {
        Parallelism::None => (0..n).for_each(f),
        _ => (0..n).into_par_iter().for_each(f),
    }
}

/// Columns of a panel: three registers of sums. A tile of the result is `ROWS` of them high: 24 of the 32 registers.
const WIDTH: usize = 48;
const ROWS: usize = 8;
/// Terms of the sums that are packed at a time.
const TERMS: usize = 1024;
/// Rows and columns of the result that make one parallel task.
const TASK: (usize, usize) = (3 * WIDTH, 4 * WIDTH);

/// At [p][j] terms 2p and 2p + 1 of row j of `a`, or column j of `b`; the first is the lower half.
type Pairs = [u32; WIDTH];
type Tile = [[f32; WIDTH]; ROWS];
/// The product of `ROWS` of a panel's columns, from the given one, with so many of another panel; others are anything.
type Kernel = fn(&[Pairs], usize, &[Pairs], usize) -> Tile;

/// Operands rounded and packed, of a size that stays in the caches, and what multiplies them.
struct Panels {
    a: Vec<Pairs>,
    b: Vec<Pairs>,
    kernel: Kernel,
}

impl Panels {
    /// For so many rows of `a` and columns of `b` at a time, each a multiple of `WIDTH`.
    fn new(rows: usize, columns: usize) -> Panels {
        let panels = |columns: usize| vec![[0; WIDTH]; columns / WIDTH * TERMS / 2];
        Panels { a: panels(rows), b: panels(columns), kernel: avx512_bf16().unwrap_or(portable) }
    }

    /// As [`Multiplier::product`], with the elements of `a` and `b` rounded to bf16.
    unsafe fn product<T: Real>(
        &mut self,
        (out, at, stride): (Scattered<T>, usize, usize),
        (m, n, k): (usize, usize, usize),
        (a, b): (Mat<T>, Mat<T>),
        scale: T,
        onto: Onto<T>,
        parallelism: Parallelism,
    ) {
        let kernel = self.kernel;
        let [a_rows, b_columns] = [&self.a, &self.b].map(|panels| 2 * panels.len() / TERMS * WIDTH);
        for k0 in (0..k).step_by(TERMS) {
            let terms = TERMS.min(k - k0);
            let onto = if k0 == 0 { onto } else { Onto::Itself };
            for n0 in (0..n).step_by(b_columns) {
                let columns = b_columns.min(n - n0);
                let b = pack(&mut self.b, b.from(k0, n0), terms, columns, parallelism);
                for m0 in (0..m).step_by(a_rows) {
                    let rows = a_rows.min(m - m0);
                    let a = pack(&mut self.a, a.from(m0, k0).t(), terms, rows, parallelism);
                    let down = rows.div_ceil(TASK.0);
                    for_each(parallelism, down * columns.div_ceil(TASK.1), |task| {
                        let (i0, j0) = (task % down * TASK.0, task / down * TASK.1);
                        simd!({
                            for j in (j0..columns.min(j0 + TASK.1)).step_by(WIDTH) {
                                let width = WIDTH.min(columns - j);
                                for i in (i0..rows.min(i0 + TASK.0)).step_by(ROWS) {
                                    let tile = kernel(panel(a, i, terms), i % WIDTH, panel(b, j, terms), width);
                                    for (r, sums) in tile[..ROWS.min(rows - i)].iter().enumerate() {
                                        // SAFETY: this part of the row is this task's, by contract.
                                        let out = unsafe { out.row(at + (m0 + i + r) * stride + n0 + j, width) };
                                        finish(out, &sums[..width], scale, onto, n0 + j);
                                    }
                                }
                            }
                        });
                    });
                }
            }
        }
    }
}

/// The panel with a column.
fn panel(panels: &[Pairs], column: usize, terms: usize) -> &[Pairs] {
    let pairs = terms.div_ceil(2);
    &panels[column / WIDTH * pairs..][..pairs]
}

#[inline(always)]
fn finish<T: Real>(out: &mut [T], sums: &[f32], scale: T, onto: Onto<T>, column: usize) {
    let sums = sums.iter().map(|&sum| scale * T::of(f64::from(sum)));
    match onto {
        Onto::Nothing => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum),
        Onto::Itself => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
        Onto::Row(row) => out.iter_mut().zip(sums).zip(&row[column..]).for_each(|((out, sum), &start)| *out = start + sum),
    }
}

/// The first `terms` rows and `columns` columns of `x`, in panels one after the other; the last is filled up with 0.
fn pack<'a, T: Real>(panels: &'a mut [Pairs], x: Mat<T>, terms: usize, columns: usize, parallelism: Parallelism) -> &'a [Pairs] {
    let pairs = terms.div_ceil(2);
    let panels = &mut panels[..columns.div_ceil(WIDTH) * pairs];
    let all = Scattered::new(panels);
    for_each(parallelism, columns.div_ceil(WIDTH), |p| {
        // SAFETY: this task's alone.
        let panel = unsafe { all.row(p * pairs, pairs) };
        let (x, columns) = (x.from(0, p * WIDTH), WIDTH.min(columns - p * WIDTH));
        simd!(if x.col == 1 { pack_rows(panel, x, terms, columns) } else { pack_columns(panel, x, terms, columns) });
    });
    panels
}

/// Two numbers rounded to the nearest, ties to even; NaN stays.
#[inline(always)]
fn pair<T: Real>(even: T, odd: T) -> u32 {
    let round = |x: T| {
        let x = x.f64() as f32;
        let bits = x.to_bits();
        if x.is_nan() { bits | 0x0040_0000 } else { bits + 0x7fff + (bits >> 16 & 1) }
    };
    round(even) >> 16 | round(odd) & 0xffff_0000
}

/// Of a panel whose rows are contiguous.
#[inline(always)]
fn pack_rows<T: Real>(panel: &mut [Pairs], x: Mat<T>, terms: usize, columns: usize) {
    let row = |i: usize| -> [T; WIDTH] {
        let row = &x.data[i * x.row..];
        if columns == WIDTH {
            return row[..WIDTH].try_into().expect("as long");
        }
        let mut copy = [T::zero(); WIDTH];
        copy.iter_mut().zip(&row[..columns]).for_each(|(to, &from)| *to = from);
        copy
    };
    for (p, pairs) in panel.iter_mut().enumerate() {
        let even = row(2 * p);
        let odd = if 2 * p + 1 < terms { row(2 * p + 1) } else { [T::zero(); WIDTH] };
        for j in 0..WIDTH {
            pairs[j] = pair(even[j], odd[j]);
        }
    }
}

/// Of any panel, but meant for contiguous columns: blocks of 8 columns and 16 pairs, transposed in registers.
#[inline(always)]
fn pack_columns<T: Real>(panel: &mut [Pairs], x: Mat<T>, terms: usize, columns: usize) {
    for first_column in (0..WIDTH).step_by(8) {
        for (block, panel) in panel.chunks_mut(16).enumerate() {
            let first = 32 * block;
            let mut block = [[0; 16]; 8];
            for (column, j) in block.iter_mut().zip(first_column..columns) {
                let mut copy = [T::zero(); 32];
                let x: &[T; 32] = if x.row == 1 && first + 32 <= terms {
                    x.data[j * x.col + first..][..32].try_into().expect("as long")
                } else if x.row == 1 {
                    copy.iter_mut().zip(&x.data[j * x.col..][first..terms]).for_each(|(to, &from)| *to = from);
                    &copy
                } else {
                    copy.iter_mut().zip(first..terms).for_each(|(to, i)| *to = x.data[i * x.row + j * x.col]);
                    &copy
                };
                for p in 0..16 {
                    column[p] = pair(x[2 * p], x[2 * p + 1]);
                }
            }
            let block = transpose(block);
            for (pairs, block) in panel.iter_mut().zip(block.as_chunks::<8>().0) {
                pairs[first_column..first_column + 8].copy_from_slice(block);
            }
        }
    }
}

/// (8, 16) to (16, 8): each time the first half and the second are interleaved, the highest bit of an index becomes the lowest.
/// What stands here as loops compiles to a few shuffles.
#[inline(always)]
fn transpose(block: [[u32; 16]; 8]) -> [u32; 128] {
    let mut from: [u32; 128] = block.as_flattened().try_into().expect("as long");
    for _ in 0..3 {
        let mut to = [0; 128];
        for i in 0..64 {
            to[2 * i] = from[i];
            to[2 * i + 1] = from[64 + i];
        }
        from = to;
    }
    from
}

/// Whether this machine multiplies bf16 by itself. Elsewhere rounded products are slower than those in f32.
pub fn has_avx512_bf16() -> bool {
    avx512_bf16().is_some()
}

#[cfg(not(target_arch = "x86_64"))]
fn avx512_bf16() -> Option<Kernel> {
    None
}

#[cfg(target_arch = "x86_64")]
fn avx512_bf16() -> Option<Kernel> {
    use std::arch::is_x86_feature_detected as detected;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    const REGISTERS: usize = WIDTH / 16;

    /// With so many registers of `b`'s columns.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn multiply<const N: usize>(a: &[Pairs], column: usize, b: &[Pairs]) -> Tile {
        let mut sums = [[_mm512_setzero_ps(); REGISTERS]; ROWS];
        for (a, b) in a.iter().zip(b) {
            // SAFETY: the types are of one size, and any bits are pairs of bf16.
            let b: [__m512bh; REGISTERS] = unsafe { transmute(*b) };
            for (sums, &a) in sums.iter_mut().zip(&a[column..][..ROWS]) {
                // SAFETY: the same.
                let a: __m512bh = unsafe { transmute(_mm512_set1_epi32(a as i32)) };
                for (sum, &b) in sums[..N].iter_mut().zip(&b) {
                    *sum = _mm512_dpbf16_ps(*sum, a, b);
                }
            }
        }
        // SAFETY: the types are of one size, and any bits are floats.
        unsafe { transmute(sums) }
    }

    // SAFETY: it is called only where the machine has what it is compiled for.
    let kernel: Kernel = |a, column, b, width| unsafe {
        match width.div_ceil(16) {
            1 => multiply::<1>(a, column, b),
            2 => multiply::<2>(a, column, b),
            _ => multiply::<REGISTERS>(a, column, b),
        }
    };
    (detected!("avx512f") && detected!("avx512bf16")).then_some(kernel)
}

fn portable(a: &[Pairs], column: usize, b: &[Pairs], _width: usize) -> Tile {
    let [even, odd]: [fn(u32) -> f32; 2] = [|pair| f32::from_bits(pair << 16), |pair| f32::from_bits(pair & 0xffff_0000)];
    let mut tile = [[0.0; WIDTH]; ROWS];
    simd!({
        for (a, b) in a.iter().zip(b) {
            for (sums, &a) in tile.iter_mut().zip(&a[column..]) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum += even(a) * even(b);
                    *sum += odd(a) * odd(b);
                }
            }
        }
    });
    tile
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn pairs() {
        for bits in (0..=u32::MAX).step_by(4_099).chain([0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, !0]) {
            let x = f32::from_bits(bits);
            let want = u32::from(bf16::from_f32(x).to_bits());
            assert_eq!(pair(x, 1.0), want | 0x3f80_0000, "{x}");
            assert_eq!(pair(1.0, x), want << 16 | 0x3f80, "{x}");
        }
    }

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let word = |i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(seed).wrapping_mul(2_246_822_519) >> 8;
        (0..len as u32).map(|i| word(i) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// Against sums in f64, at sizes that no panel, tile or block divides, each operand stored either way.
    #[test]
    fn rounded_products() {
        let [mut ours, mut plain, mut alone] = [true, true, false].map(|all_threads| match all_threads {
            true => Multiplier::on_all_threads(true),
            false => Multiplier::on_one_thread(true),
        });
        plain.panels.as_mut().unwrap().kernel = portable;
        for (m, n, k) in
            [(1, 1, 1), (9, 49, 2), (50, 97, 33), (3, 2, 2 * TERMS + 31), (22 * WIDTH + 1, 5, 7), (2, 64 * WIDTH + 3, 4)]
        {
            let (stored_a, stored_b, row) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3));
            let start = numbers(m * n, 4);
            for (a, b) in
                [(Mat::new(&stored_a, k), Mat::new(&stored_b, n)), (Mat::new(&stored_a, m).t(), Mat::new(&stored_b, k).t())]
            {
                let at = |x: Mat<f32>, i: usize, j: usize| f64::from(bf16::from_f32(x.data[i * x.row + j * x.col]));
                for onto in [Onto::Nothing, Onto::Itself, Onto::Row(&row)] {
                    for multiplier in [&mut ours, &mut plain, &mut alone] {
                        let mut out = start.clone();
                        let elements = (Scattered::new(&mut out), 0, n);
                        // SAFETY: `out` is this test's.
                        unsafe { multiplier.product(elements, (m, n, k), (a, b), 0.5, onto) };
                        for (e, &got) in out.iter().enumerate() {
                            let (i, j) = (e / n, e % n);
                            let before = match onto {
                                Onto::Nothing => 0.0,
                                Onto::Itself => start[e],
                                Onto::Row(row) => row[j],
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
