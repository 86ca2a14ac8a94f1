//! Linear layers and GELU.

use rayon::prelude::*;

use super::arena::UnsafeSlice;
use super::matrix::{Accumulate, Mat};
use super::real::{Real, simd};
use super::{Cpu, grain};
use crate::ops::{Gelu, Linear};

/// `out` (m, n) becomes `onto + a b`.
pub fn multiply<T: Real>(
    cpu: &Cpu<T>,
    out: &mut [T],
    size: (usize, usize, usize),
    matrices: (Mat<T>, Mat<T>),
    onto: Accumulate<T>,
) {
    let mut multiplier = cpu.multiplier.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // SAFETY: `out` is borrowed mutably.
    unsafe { multiplier.product((UnsafeSlice::new(out), 0, size.1), size, matrices, T::one(), onto) };
}

pub fn fwd<T: Real>(cpu: &Cpu<T>, op: &Linear) {
    let Linear { k, n, .. } = *op;
    let rows = cpu.count(op.rows);
    // SAFETY: distinct buffers.
    let (x, w, b, y) = unsafe { (cpu.get(op.x, rows * k), cpu.get(op.w, n * k), cpu.get(op.b, n), cpu.get_mut(op.y, rows * n)) };
    let w = Mat::new(w, k).t().constant(cpu.infers);
    multiply(cpu, y, (rows, n, k), (Mat::new(x, k), w), Accumulate::Row(b));
}

pub fn bwd<T: Real>(cpu: &Cpu<T>, op: &Linear) {
    let Linear { k, n, .. } = *op;
    let rows = cpu.count(op.rows);
    // SAFETY: distinct buffers.
    let (x, w, dy) = unsafe { (cpu.get(op.x, rows * k), cpu.get(op.w, n * k), cpu.get(op.dy, rows * n)) };
    let (dx, dw) = unsafe { (cpu.get_mut(op.dx, rows * k), cpu.get_mut(op.dw, n * k)) };
    let onto = |adds: bool| if adds { Accumulate::Itself } else { Accumulate::Nothing };
    let dy_matrix = Mat::new(dy, n);
    multiply(cpu, dx, (rows, k, n), (dy_matrix, Mat::new(w, k)), onto(op.add));
    multiply(cpu, dw, (n, k, rows), (dy_matrix.t(), Mat::new(x, k)), onto(cpu.step.adds()));
}

pub fn gelu_fwd<T: Real>(cpu: &Cpu<T>, op: &Gelu) {
    let len = cpu.count(op.rows) * op.width;
    // SAFETY: distinct buffers; x is taken only where it is not y.
    let x = (op.x != op.y).then(|| unsafe { cpu.get(op.x, len) });
    let y = unsafe { cpu.get_mut(op.y, len) };
    y.par_chunks_mut(grain(1)).enumerate().for_each(|(task, y)| {
        if let Some(x) = x {
            y.copy_from_slice(&x[task * grain(1)..][..y.len()]);
        }
        simd!(y.iter_mut().for_each(|y| *y *= y.normal().0))
    });
}

pub fn gelu_bwd<T: Real>(cpu: &Cpu<T>, op: &Gelu) {
    let len = cpu.count(op.rows) * op.width;
    // SAFETY: distinct buffers.
    let (x, dy) = unsafe { (cpu.get(op.x, len), cpu.get_mut(op.dy, len)) };
    dy.par_chunks_mut(grain(1)).zip(x.par_chunks(grain(1))).for_each(|(dy, x)| {
        simd!(dy.iter_mut().zip(x).for_each(|(dy, &x)| {
            let (cdf, density) = x.normal();
            *dy *= cdf + x * density;
        }))
    });
    cpu.add_bias(op.db, op.dy, cpu.count(op.rows), op.width);
}
