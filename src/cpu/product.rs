//! Matrix products: by the kernels of the crate `gemm`, or with operands rounded to bf16.

use gemm_common::Parallelism;

use super::arena::UnsafeSlice;
use super::gemm::{self, Gemm};
use super::grain;
use super::instructions::Instructions;
use super::matrix::{Accumulate, Mat, for_each};
use super::real::Real;
use super::rounded::{Kernels, Panels, portable};

/// The elements that are multiplied, by the given instructions.
pub trait Products: Real {
    fn gemm(instructions: Instructions) -> Gemm<Self>;

    /// Products of rounded numbers.
    fn kernels(_: Instructions) -> Kernels<Self> {
        portable::kernels()
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

    fn kernels(instructions: Instructions) -> Kernels<f32> {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => super::avx512::KERNELS,
            _ => portable::kernels(),
        }
    }
}

/// Multiplies matrices in the arithmetic of a backend.
pub struct Multiplier<T> {
    parallelism: Parallelism,
    gemm: Gemm<T>,
    /// Present if operands are rounded.
    panels: Option<Panels<T>>,
}

impl<T: Products> Multiplier<T> {
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
        let panels = panels.map(|(rows, columns)| Panels::new(T::kernels(instructions), rows, columns));
        Multiplier { parallelism, gemm: T::gemm(instructions), panels }
    }
}

impl<T: Real> Multiplier<T> {
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
