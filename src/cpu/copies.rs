//! Matrix products whose operands are rounded to bf16, by the kernels of f32: blocks of both operands are copied, each number
//! rounded. For machines that multiply bf16 no faster. As fast as f32, for a copy is small beside a product.

use gemm_common::Parallelism;

use super::arena::UnsafeSlice;
use super::gemm::Gemm;
use super::matrix::{Mat, for_each};
use super::real::{Real, simd};

/// Terms multiplied at a time.
const TERMS: usize = 1024;

/// Rounded copies of a block of each operand.
pub struct Copies<T> {
    a: Vec<T>,
    b: Vec<T>,
    /// Rows of a block of `a`, and columns of a block of `b`.
    size: (usize, usize),
}

impl<T: Real> Copies<T> {
    /// For this many rows of `a` and columns of `b` at a time.
    pub fn new(rows: usize, columns: usize) -> Copies<T> {
        Copies { a: vec![T::zero(); rows * TERMS], b: vec![T::zero(); columns * TERMS], size: (rows, columns) }
    }

    /// Like a [`Gemm`], with the elements of `a` and `b` rounded to bf16, to nearest, ties to even.
    ///
    /// # Safety
    /// The same.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn product(
        &mut self,
        gemm: Gemm<T>,
        (m, n, k): (usize, usize, usize),
        (out, stride): (*mut T, usize),
        add: bool,
        (a, b): (Mat<T>, Mat<T>),
        scale: T,
        parallelism: Parallelism,
    ) {
        for k0 in (0..k).step_by(TERMS) {
            let terms = TERMS.min(k - k0);
            for n0 in (0..n).step_by(self.size.1) {
                let columns = self.size.1.min(n - n0);
                let b = copy(&mut self.b, b.from(k0, n0), (terms, columns), parallelism);
                for m0 in (0..m).step_by(self.size.0) {
                    let rows = self.size.0.min(m - m0);
                    let a = copy(&mut self.a, a.from(m0, k0), (rows, terms), parallelism);
                    // SAFETY: a block of the result.
                    unsafe {
                        let out = out.add(m0 * stride + n0);
                        gemm((rows, columns, terms), (out, stride), add || k0 > 0, (a, b), scale, parallelism);
                    }
                }
            }
        }
    }
}

/// The first `rows` and `columns` of `x`, rounded, in the order in which they lie there.
fn copy<'a, T: Real>(to: &'a mut [T], x: Mat<T>, (rows, columns): (usize, usize), parallelism: Parallelism) -> Mat<'a, T> {
    if x.row == 1 && x.col != 1 {
        return copy(to, x.t(), (columns, rows), parallelism).t();
    }
    assert_eq!(x.col, 1, "neither rows nor columns are contiguous");
    let to = &mut to[..rows * columns];
    let all = UnsafeSlice::new(to);
    const GRAIN: usize = 16;
    for_each(parallelism, rows.div_ceil(GRAIN), |task| {
        simd!({
            for i in task * GRAIN..rows.min((task + 1) * GRAIN) {
                // SAFETY: this task's alone.
                let to = unsafe { all.row(i * columns, columns) };
                to.iter_mut().zip(&x.data[i * x.row..]).for_each(|(to, &x)| *to = x.to_bf16());
            }
        })
    });
    Mat::new(to, columns)
}
