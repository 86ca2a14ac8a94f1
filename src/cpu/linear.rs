//! Linear layers by the `gemm` crate, and the activations that follow them.

use gemm::Parallelism;
use rayon::prelude::*;

use super::arena::Scattered;
use super::real::{Real, simd};
use super::{Cpu, add_columns, grain};
use crate::ops::{Act, Activation, Linear};

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

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// `(m, n)` elements of `out`, rows `stride` apart from `at`, become `scale * a b`, on top of what they are if `add`.
/// `a` is (m, k), `b` is (k, n).
///
/// # Safety
/// Nothing else may touch these elements meanwhile.
pub unsafe fn product<T: Real>(
    (out, at, stride): (Scattered<T>, usize, usize),
    (m, n, k): (usize, usize, usize),
    (a, b): (Mat<T>, Mat<T>),
    scale: T,
    add: bool,
    parallelism: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n), "a product of ({m}, {k}) and ({k}, {n}) reads beyond its matrices");
    let out = out.pointer(at, (m - 1) * stride + n);
    let (stride, s) = (stride as isize, |x: usize| x as isize);
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

const ALL_THREADS: Parallelism = Parallelism::Rayon(0);

pub fn fwd<T: Real>(cpu: &Cpu<T>, op: &Linear) {
    let Linear { k, n, .. } = *op;
    let rows = cpu.count(op.rows);
    // SAFETY: distinct buffers.
    let (x, w, b, y) = unsafe { (cpu.get(op.x, rows * k), cpu.get(op.w, n * k), cpu.get(op.b, n), cpu.get_mut(op.y, rows * n)) };
    y.par_chunks_mut(grain(n) * n).for_each(|y| y.chunks_mut(n).for_each(|y| y.copy_from_slice(b)));
    // SAFETY: y is borrowed mutably.
    unsafe {
        product((Scattered::new(y), 0, n), (rows, n, k), (Mat::new(x, k), Mat::new(w, k).t()), T::one(), true, ALL_THREADS);
    }
}

pub fn bwd<T: Real>(cpu: &Cpu<T>, op: &Linear) {
    let Linear { k, n, .. } = *op;
    let rows = cpu.count(op.rows);
    // SAFETY: distinct buffers.
    let (x, w, dy) = unsafe { (cpu.get(op.x, rows * k), cpu.get(op.w, n * k), cpu.get(op.dy, rows * n)) };
    let (dx, dw, db) = unsafe { (cpu.get_mut(op.dx, rows * k), cpu.get_mut(op.dw, n * k), cpu.get_mut(op.db, n)) };
    let (x, w, dy_matrix) = (Mat::new(x, k), Mat::new(w, k), Mat::new(dy, n));
    // SAFETY: dx and dw are borrowed mutably.
    unsafe {
        product((Scattered::new(dx), 0, k), (rows, k, n), (dy_matrix, w), T::one(), op.add, ALL_THREADS);
        product((Scattered::new(dw), 0, k), (n, k, rows), (dy_matrix.t(), x), T::one(), true, ALL_THREADS);
    }
    add_columns(db, rows, |r, c| dy[r * n + c]);
}

pub fn act_fwd<T: Real>(cpu: &Cpu<T>, op: &Act) {
    let len = cpu.count(op.rows) * op.width;
    if op.y != op.x {
        // SAFETY: distinct buffers.
        let (x, y) = unsafe { (cpu.get(op.x, len), cpu.get_mut(op.y, len)) };
        y.par_chunks_mut(grain(1)).zip(x.par_chunks(grain(1))).for_each(|(y, x)| y.copy_from_slice(x));
    }
    // SAFETY: the only slice alive.
    let y = unsafe { cpu.get_mut(op.y, len) };
    y.par_chunks_mut(grain(1)).for_each(|y| {
        simd!(match op.kind {
            Activation::Gelu => y.iter_mut().for_each(|y| *y *= y.normal().0),
            Activation::Relu => y.iter_mut().for_each(|y| *y = if *y < T::zero() { T::zero() } else { *y }),
            Activation::Tanh => y.iter_mut().for_each(|y| *y = y.tanh()),
        })
    });
}

pub fn act_bwd<T: Real>(cpu: &Cpu<T>, op: &Act) {
    let len = cpu.count(op.rows) * op.width;
    // SAFETY: distinct buffers.
    let (x, dy) = unsafe { (cpu.get(op.x, len), cpu.get_mut(op.dy, len)) };
    dy.par_chunks_mut(grain(1)).zip(x.par_chunks(grain(1))).for_each(|(dy, x)| {
        simd!({
            let pairs = dy.iter_mut().zip(x);
            match op.kind {
                Activation::Gelu => pairs.for_each(|(dy, &x)| {
                    let (cdf, density) = x.normal();
                    *dy *= cdf + x * density;
                }),
                Activation::Relu => pairs.for_each(|(dy, &x)| {
                    if x <= T::zero() {
                        *dy = T::zero();
                    }
                }),
                Activation::Tanh => pairs.for_each(|(dy, &x)| {
                    let y = x.tanh();
                    *dy *= T::one() - y * y;
                }),
            }
        })
    });
}
