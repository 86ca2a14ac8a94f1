//! Matrix products: by the kernels of the crate `gemm`, or with operands rounded to bf16: `panels` where the machine multiplies
//! bf16, else `copies`.

use gemm_common::Parallelism;

use super::arena::UnsafeSlice;
use super::copies::Copies;
use super::dots::{self, Dots};
use super::gemm::{self, Gemm};
use super::grain;
use super::instructions::Instructions;
use super::matrix::{Accumulate, Mat, for_each};
use super::panels::{Kernels, Panels};
use super::real::Real;

/// The elements that are multiplied, by the given instructions.
pub trait Products: Real {
    fn gemm(instructions: Instructions) -> Gemm<Self>;

    /// Products of few rows, where these instructions have a faster way.
    fn dots(_: Instructions) -> Option<Dots<Self>> {
        None
    }

    /// Products of bf16, if these instructions have them.
    fn kernels(_: Instructions) -> Option<Kernels<Self>> {
        None
    }
}

impl Products for f64 {
    fn gemm(instructions: Instructions) -> Gemm<f64> {
        gemm::f64(instructions)
    }
}

impl Products for f32 {
    fn gemm(instructions: Instructions) -> Gemm<f32> {
        gemm::f32(instructions)
    }

    fn dots(instructions: Instructions) -> Option<Dots<f32>> {
        (instructions != Instructions::Plain).then_some(dots::product)
    }

    fn kernels(instructions: Instructions) -> Option<Kernels<f32>> {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => Some(super::avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Instructions::Amx => Some(super::amx::KERNELS),
            _ => None,
        }
    }
}

/// Multiplies matrices in the arithmetic of a backend.
pub struct Multiplier<T> {
    parallelism: Parallelism,
    gemm: Gemm<T>,
    /// For few rows and constant weights, with an order of summation of its own.
    dots: Option<Dots<T>>,
    /// Present if operands are rounded.
    rounded: Option<Rounded<T>>,
}

/// Working memory for rounded operands.
enum Rounded<T> {
    Panels(Panels<T>),
    Copies(Copies<T>),
}

impl<T: Products> Multiplier<T> {
    /// For linear layers, on all threads.
    pub fn on_all_threads(rounds: bool) -> Multiplier<T> {
        Multiplier::new(Instructions::in_use(), Parallelism::Rayon(0), rounds.then_some((1056, 3072)))
    }

    /// For the matrices of one head of a sequence, on the calling thread.
    pub fn on_one_thread(rounds: bool) -> Multiplier<T> {
        Multiplier::new(Instructions::in_use(), Parallelism::None, rounds.then_some((288, 528)))
    }

    /// With this many rows of the first operand and columns of the second rounded at a time.
    fn new(instructions: Instructions, parallelism: Parallelism, rounded: Option<(usize, usize)>) -> Multiplier<T> {
        let rounded = rounded.map(|(rows, columns)| match T::kernels(instructions) {
            Some(kernels) => Rounded::Panels(Panels::new(kernels, rows, columns)),
            None => Rounded::Copies(Copies::new(rows, columns)),
        });
        Multiplier { parallelism, gemm: T::gemm(instructions), dots: T::dots(instructions), rounded }
    }
}

impl<T: Real> Multiplier<T> {
    /// To be called before constant weights change.
    pub fn forget(&mut self) {
        if let Some(Rounded::Panels(panels)) = &mut self.rounded {
            panels.forget();
        }
    }

    /// `(m, n)` elements of `out`, rows `stride` apart from `at`, become `onto + scale * a b`. `a` is (m, k), `b` is (k, n); if it is
    /// constant, `a` has contiguous rows and `b` contiguous columns.
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
        if let Some(Rounded::Panels(panels)) = &mut self.rounded {
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
        let add = !matches!(onto, Accumulate::Nothing);
        if let (Some(dots), None) = (self.dots, &self.rounded)
            && b.constant
            && dots::ROWS.contains(&m)
        {
            // SAFETY: by contract.
            return unsafe { dots((out, at, stride), (m, n, k), add, (a, b), scale, parallelism) };
        }
        let out = out.pointer(at, (m - 1) * stride + n);
        // SAFETY: in bounds, as just checked; `out` is ours by contract and disjoint from the operands.
        unsafe {
            match &mut self.rounded {
                Some(Rounded::Copies(copies)) => {
                    copies.product(self.gemm, (m, n, k), (out, stride), add, (a, b), scale, parallelism)
                }
                _ => (self.gemm)((m, n, k), (out, stride), add, (a, b), scale, parallelism),
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let word = |i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(seed).wrapping_mul(2_246_822_519) >> 8;
        (0..len as u32).map(|i| word(i) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// Every way to round that the machine has, with small blocks; they are larger than the parts of a task.
    fn multipliers(parallelism: Parallelism) -> impl Iterator<Item = (Instructions, Multiplier<f32>)> {
        let rounding = move |instructions| (instructions, Multiplier::new(instructions, parallelism, Some((288, 400))));
        Instructions::available().into_iter().map(rounding)
    }

    /// `onto + scale * a b` over `start`.
    fn product(
        multiplier: &mut Multiplier<f32>,
        (m, n, k): (usize, usize, usize),
        matrices: (Mat<f32>, Mat<f32>),
        scale: f32,
        onto: Accumulate<f32>,
        start: &[f32],
    ) -> Vec<f32> {
        let mut out = start.to_vec();
        // SAFETY: `out` is this call's.
        unsafe { multiplier.product((UnsafeSlice::new(&mut out), 0, n), (m, n, k), matrices, scale, onto) };
        out
    }

    /// To nearest, ties to even; NaN stays NaN. Products of bf16 flush subnormal numbers to 0.
    #[test]
    fn rounding() {
        let mut bits: Vec<u32> = (0..=u32::MAX).step_by(4_099).collect();
        bits.extend([0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, !0]);
        let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let apart: Vec<f32> = x.iter().flat_map(|&x| [x, 1.0]).collect();
        let start = vec![0.0; x.len()];
        for (instructions, mut multiplier) in multipliers(Parallelism::None) {
            // One column: contiguous, and the first of two in contiguous rows.
            for a in [Mat::new(&x, x.len()).t(), Mat::new(&apart, 2)] {
                let size = (x.len(), 1, 1);
                let rounded = product(&mut multiplier, size, (a, Mat::new(&[1.0], 1)), 1.0, Accumulate::Nothing, &start);
                for (&x, got) in x.iter().zip(rounded) {
                    let want = bf16::from_f32(x).to_f32();
                    let flushed = f32::kernels(instructions).is_some() && x.abs() < f32::MIN_POSITIVE && got == 0.0;
                    assert!(got == want || flushed || got.is_nan() && want.is_nan(), "{x:e}: {got:e} by {instructions}");
                }
            }
        }
    }

    /// Compared with sums in f64, at sizes that no panel, tile, task or block divides, with each operand stored either way.
    #[test]
    fn rounded_products() {
        let all = [Parallelism::Rayon(0), Parallelism::None].map(multipliers);
        for (instructions, mut multiplier) in all.into_iter().flatten() {
            for (m, n, k) in [(1, 1, 1), (9, 49, 2), (50, 97, 33), (3, 2, 2079), (97, 5, 7), (2, 147, 4), (291, 401, 3)] {
                let (stored_a, stored_b, row) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3));
                let start = numbers(m * n, 4);
                for (a, b) in
                    [(Mat::new(&stored_a, k), Mat::new(&stored_b, n)), (Mat::new(&stored_a, m).t(), Mat::new(&stored_b, k).t())]
                {
                    multiplier.forget();
                    let at = |x: Mat<f32>, i: usize, j: usize| f64::from(bf16::from_f32(x.data[i * x.row + j * x.col]));
                    for onto in [Accumulate::Nothing, Accumulate::Itself, Accumulate::Row(&row)] {
                        let got = product(&mut multiplier, (m, n, k), (a, b), 0.5, onto, &start);
                        let constant = product(&mut multiplier, (m, n, k), (a, b.constant(true)), 0.5, onto, &start);
                        assert_eq!(constant, got, "{m} x {n} x {k} by {instructions}");
                        for (e, got) in got.into_iter().enumerate() {
                            let (i, j) = (e / n, e % n);
                            let before = match onto {
                                Accumulate::Nothing => 0.0,
                                Accumulate::Itself => start[e],
                                Accumulate::Row(row) => row[j],
                            };
                            let products = (0..k).map(|p| at(a, i, p) * at(b, p, j));
                            let (sum, size) = products.fold((0.0, 1.0), |(sum, size), x| (sum + x, size + x.abs()));
                            let (want, bound) = (f64::from(before) + 0.5 * sum, 1e-6 * size);
                            let place = format!("{m} x {n} x {k}, ({i}, {j}), by {instructions}");
                            assert!((f64::from(got) - want).abs() <= bound, "{place}: {got}, not {want}");
                        }
                    }
                }
            }
        }
    }
}
