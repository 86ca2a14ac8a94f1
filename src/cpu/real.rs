//! The element types of the CPU backend, and the arithmetic of its loops: sums in a fixed order that still vectorise, and
//! exponentials without branches. Nothing here fuses or reorders, so every instruction set computes the same bits.

use num_traits::{Float, NumAssign};

use crate::ops::DType;

/// Lanes of a running sum; two AVX-512 registers of f32.
pub const LANES: usize = 32;

pub trait Real: Float + NumAssign + Send + Sync + 'static {
    const DTYPE: DType;

    fn of(x: f64) -> Self;

    fn f64(self) -> f64;

    /// Rounded to bf16, to nearest, ties to even; in a form that vectorises.
    fn to_bf16(self) -> Self;

    /// exp(x), in a form that vectorises.
    fn vexp(self) -> Self;

    /// Cumulative distribution function and density of the normal distribution at x: gelu(x) = x cdf, gelu'(x) = cdf + x
    /// density.
    fn normal(self) -> (Self, Self);
}

impl Real for f64 {
    const DTYPE: DType = DType::F64;

    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }

    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }

    fn to_bf16(self) -> f64 {
        f64::from((self as f32).to_bf16())
    }

    fn vexp(self) -> f64 {
        self.exp()
    }

    fn normal(self) -> (f64, f64) {
        let density = (-0.5 * self * self).exp() * (0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2);
        (0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2), density)
    }
}

impl Real for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn to_bf16(self) -> f32 {
        let bits = self.to_bits();
        let rounded = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
        if self.is_nan() { self } else { rounded }
    }

    /// x = n ln 2 + r with |r| <= ln 2 / 2: 2^n by its bits, exp(r) by its series to r^7 (relative error 2e-7).
    /// 0 below -87.3, infinite above 88.3; NaN stays NaN.
    #[inline(always)]
    fn vexp(self) -> f32 {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
        // ln 2 in two parts, so that n * LN_2_HI is exact.
        const LN_2_HI: f32 = 0.693_359_4;
        const LN_2_LO: f32 = -2.121_944_4e-4;
        let x = if self < -87.3 { -87.3 } else { self };
        let x = if x > 88.8 { 88.8 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * LN_2_HI) - n * LN_2_LO;
        let mut sum = 1.0 / 5040.0;
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            sum = sum * r + c;
        }
        let power = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
        if self < -87.3 { 0.0 } else { sum * power }
    }

    /// The lower tail as exp(-x^2 / 2) times a polynomial in t = 1 / (1 + 0.21 |x|): a least-squares fit, reweighted towards
    /// the minimax fit, to erfcx(|x| / sqrt 2) / 2 on 0..14; relative error of the fit 1.7e-8.
    #[inline(always)]
    fn normal(self) -> (f32, f32) {
        const FIT: [f32; 9] = [
            -0.071_656_9,
            0.283_591_55,
            -0.330_259_77,
            0.349_408_5,
            -0.093_930_5,
            0.124_875_03,
            0.069_191_57,
            0.085_068_94,
            0.083_711_57,
        ];
        let t = 1.0 / (1.0 + 0.21 * self.abs());
        let mut sum = FIT[0];
        for c in &FIT[1..] {
            sum = sum * t + c;
        }
        let e = (-0.5 * self * self).vexp();
        let tail = sum * t * e;
        (if self > 0.0 { 1.0 - tail } else { tail }, e * 0.398_942_3)
    }
}

/// The value of a block, compiled for the instructions in use. The functions it calls must be inlined into it.
macro_rules! simd {
    ($body:expr) => {
        $crate::cpu::arch().dispatch($crate::cpu::real::Block(
            #[inline(always)]
            || $body,
        ))
    };
}
pub(super) use simd;

/// Called by reference: a closure called by value goes through a shim, which is not inlined.
pub struct Block<F>(pub F);

impl<R, F: FnMut() -> R> pulp::WithSimd for Block<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// sum of f(i) for i in 0..n.
#[inline(always)]
pub fn sum<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(start + l);
        }
    }
    for (lane, i) in lanes.iter_mut().zip(whole..n) {
        *lane += f(i);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            let other = lanes[l + width];
            lanes[l] += other;
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_of_f32() {
        for i in -8_600..8_800 {
            let x = i as f32 * 0.01;
            let want = f64::from(x).exp();
            assert!((f64::from(x.vexp()) / want - 1.0).abs() < 3e-7, "exp({x})");
        }
        assert_eq!((f32::NEG_INFINITY.vexp(), (-100f32).vexp(), 0f32.vexp()), (0.0, 0.0, 1.0));
        assert_eq!(f32::INFINITY.vexp(), f32::INFINITY);
        assert!(f32::NAN.vexp().is_nan());
    }

    #[test]
    fn normal_of_f32() {
        for i in -1_200..1_200 {
            let x = i as f32 * 0.01;
            let ((cdf, density), (cdf64, density64)) = (x.normal(), f64::from(x).normal());
            // Rounding x^2 / 2 to f32 alone changes the exponential by a relative x^2 / 2 * 6e-8.
            let bound = 6e-7 + 3e-8 * f64::from(x * x);
            assert!((f64::from(cdf) - cdf64).abs() < bound * cdf64, "cdf({x}): {cdf} against {cdf64}");
            assert!((f64::from(density) - density64).abs() < bound * density64 + 1e-37, "density({x})");
        }
        assert!(f32::NAN.normal().0.is_nan());
    }

    #[test]
    fn sums() {
        for n in [0, 1, 31, 32, 33, 100] {
            assert_eq!(sum(n, |i| i as f64), (n * n.saturating_sub(1) / 2) as f64);
        }
    }
}
