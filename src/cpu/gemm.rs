//! Products in f32 and f64, by the kernels of the crate `gemm`. The crate would choose the best kernels for the machine; here
//! they are those of the [`Instructions`] in use.

use gemm_common::Parallelism;
use gemm_common::gemm::gemm_basic_generic;
use gemm_common::simd::{MixedSimd, Scalar};
#[cfg(target_arch = "x86_64")]
use gemm_common::simd::{V3, V4};

use super::instructions::Instructions;
use super::matrix::Mat;

/// Computes `scale * a b` into, or adds it to, `(m, n)` elements in rows `stride` apart: (m, n, k), (elements, stride), whether
/// to add, (a, b), scale, threads.
///
/// # Safety
/// All elements are in bounds, and nothing else accesses the result.
pub type Gemm<T> = unsafe fn((usize, usize, usize), (*mut T, usize), bool, (Mat<T>, Mat<T>), T, Parallelism);

/// Kernels of one instruction set, and the numbers in one of its registers.
macro_rules! gemm {
    ($kernels:ident::$kind:ident::$t:ident, $simd:ident, $lanes:literal) => {
        |(m, n, k), (out, stride), add, (a, b), scale, parallelism| {
            use $kernels::microkernel::$kind::$t::{H_M, H_N, H_UKR, MR_DIV_N, NR, UKR};
            let simd = <$simd as MixedSimd<$t, $t, $t, $t>>::try_new().expect("the machine has them");
            let s = |stride: usize| stride as isize;
            // The kernels prefer contiguous columns: they compute the transpose.
            // SAFETY: by contract.
            unsafe {
                gemm_basic_generic::<_, $t, $lanes, { MR_DIV_N * $lanes }, NR, MR_DIV_N, H_M, H_N>(
                    simd,
                    n,
                    m,
                    k,
                    out,
                    s(stride),
                    1,
                    add,
                    b.data.as_ptr(),
                    s(b.row),
                    s(b.col),
                    a.data.as_ptr(),
                    s(a.row),
                    s(a.col),
                    1.0,
                    scale,
                    false,
                    false,
                    false,
                    |a, b, c| a * b + c,
                    &UKR,
                    &H_UKR,
                    false,
                    parallelism,
                );
            }
        }
    };
}

pub fn f32(instructions: Instructions) -> Gemm<f32> {
    match instructions {
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 | Instructions::Avx512Bf16 | Instructions::Amx => gemm!(gemm_f32::avx512f::f32, V4, 16),
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => gemm!(gemm_f32::fma::f32, V3, 8),
        #[cfg(target_arch = "aarch64")]
        Instructions::Neon => gemm!(gemm_f32::neon::f32, Scalar, 4),
        _ => gemm!(gemm_f32::scalar::f32, Scalar, 1),
    }
}

pub fn f64(instructions: Instructions) -> Gemm<f64> {
    match instructions {
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 | Instructions::Avx512Bf16 | Instructions::Amx => gemm!(gemm_f64::avx512f::f64, V4, 8),
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => gemm!(gemm_f64::fma::f64, V3, 4),
        #[cfg(target_arch = "aarch64")]
        Instructions::Neon => gemm!(gemm_f64::neon::f64, Scalar, 2),
        _ => gemm!(gemm_f64::scalar::f64, Scalar, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x * x - round(x * x): a fused product keeps the bits that rounding drops.
    #[test]
    fn each_has_its_own_kernels() {
        const SIZE: usize = 8;
        let x = 1.0 + f32::powi(2.0, -12);
        let a = [[-x * x, x, 0.0, 0.0]; SIZE].concat();
        let b = [[1.0; SIZE], [x; SIZE], [0.0; SIZE], [0.0; SIZE]].concat();
        for instructions in Instructions::available() {
            let mut out = [f32::NAN; SIZE * SIZE];
            let matrices = (Mat::new(&a, 4), Mat::new(&b, SIZE));
            let size = (SIZE, SIZE, 4);
            // SAFETY: the buffers have these sizes.
            unsafe { f32(instructions)(size, (out.as_mut_ptr(), SIZE), false, matrices, 1.0, Parallelism::None) };
            let want = if instructions == Instructions::Plain { 0.0 } else { f32::powi(2.0, -24) };
            assert_eq!(out, [want; SIZE * SIZE], "{instructions}");
        }
    }
}
