//! Residual + dropout + layer norm. Forward leaves the sum in x for the backward pass.

use rayon::prelude::*;

use super::real::{Real, simd, sum};
use super::{Cpu, add_columns, grain};
use crate::ops::AddNorm;

pub fn fwd<T: Real>(cpu: &Cpu<T>, op: &AddNorm) {
    let (dim, rows) = (op.dim, cpu.count(op.rows));
    let (eps, over_dim) = (T::of(f64::from(op.eps)), T::of(1.0 / dim as f64));
    // SAFETY: distinct buffers.
    let (gamma, beta) = unsafe { (cpu.get(op.gamma, dim), cpu.get(op.beta, dim)) };
    let skip = (!op.skip.is_none()).then(|| unsafe { cpu.get(op.skip, rows * dim) });
    let (x, y, stats) =
        unsafe { (cpu.get_mut(op.x, rows * dim), cpu.get_mut(op.y, rows * dim), cpu.get_mut(op.stats, rows * 2)) };
    let (mask, token_row, grain) = (cpu.mask(op.drop), cpu.token_row(op.rows), grain(dim));
    let tasks = x.par_chunks_mut(grain * dim).zip(y.par_chunks_mut(grain * dim)).zip(stats.par_chunks_mut(grain * 2));
    tasks.enumerate().for_each(|(task, ((x, y), stats))| {
        simd!({
            let each = x.chunks_mut(dim).zip(y.chunks_mut(dim)).zip(stats.chunks_mut(2)).enumerate();
            for (r, ((z, y), stats)) in each {
                let r = task * grain + r;
                if !mask.is_off() {
                    mask.for_each(token_row(r), dim, |start, factors| {
                        for (z, &factor) in z[start..].iter_mut().zip(factors) {
                            *z *= factor;
                        }
                    });
                }
                if let Some(skip) = skip {
                    for (z, &skip) in z.iter_mut().zip(&skip[r * dim..]) {
                        *z += skip;
                    }
                }
                let z = &mut z[..dim]; // a length known to the compiler
                let mean = sum(dim, |c| z[c]) * over_dim;
                let variance = sum(dim, |c| (z[c] - mean) * (z[c] - mean)) * over_dim;
                let rstd = T::one() / (variance + eps).sqrt();
                stats.copy_from_slice(&[mean, rstd]);
                for (((y, &z), &gamma), &beta) in y.iter_mut().zip(&*z).zip(gamma).zip(beta) {
                    *y = (z - mean) * rstd * gamma + beta;
                }
            }
        })
    });
}

pub fn bwd<T: Real>(cpu: &Cpu<T>, op: &AddNorm) {
    let (dim, rows) = (op.dim, cpu.count(op.rows));
    let over_dim = T::of(1.0 / dim as f64);
    // SAFETY: distinct buffers; dx is accessed only where it is not dy.
    let (z, gamma, stats) = unsafe { (cpu.get(op.x, rows * dim), cpu.get(op.gamma, dim), cpu.get(op.stats, rows * 2)) };
    let (dy, dgamma, dbeta) = unsafe { (cpu.get_mut(op.dy, rows * dim), cpu.gradient(op.dgamma), cpu.gradient(op.dbeta)) };
    add_columns([dgamma, dbeta], rows, |r, c, [dgamma, dbeta]| {
        let (at, mean, rstd) = (r * dim + c, stats[2 * r], stats[2 * r + 1]);
        for (((dgamma, dbeta), &dy), &z) in dgamma.iter_mut().zip(dbeta).zip(&dy[at..]).zip(&z[at..]) {
            *dgamma += dy * ((z - mean) * rstd);
            *dbeta += dy;
        }
    });

    let grain = grain(dim);
    dy.par_chunks_mut(grain * dim).enumerate().for_each(|(task, dy)| {
        simd!({
            for (r, dy) in dy.chunks_mut(dim).enumerate() {
                let r = task * grain + r;
                // Lengths known to the compiler.
                let (dy, z, gamma) = (&mut dy[..dim], &z[r * dim..][..dim], &gamma[..dim]);
                let (mean, rstd) = (stats[2 * r], stats[2 * r + 1]);
                let g_mean = sum(dim, |c| dy[c] * gamma[c]) * over_dim;
                let gn_mean = sum(dim, |c| dy[c] * gamma[c] * ((z[c] - mean) * rstd)) * over_dim;
                for ((dy, &z), &gamma) in dy.iter_mut().zip(z).zip(gamma) {
                    *dy = rstd * (*dy * gamma - g_mean - (z - mean) * rstd * gn_mean);
                }
            }
        })
    });
    if op.dx != op.dy {
        // SAFETY: a buffer of its own.
        let dx = unsafe { cpu.get_mut(op.dx, rows * dim) };
        let (mask, token_row) = (cpu.mask(op.drop), cpu.token_row(op.rows));
        dx.par_chunks_mut(grain * dim).zip(dy.par_chunks(grain * dim)).enumerate().for_each(|(task, (dx, dz))| {
            simd!({
                for (r, (dx, dz)) in dx.chunks_mut(dim).zip(dz.chunks(dim)).enumerate() {
                    mask.for_each(token_row(task * grain + r), dim, |start, factors| {
                        for ((dx, &dz), &factor) in dx[start..].iter_mut().zip(&dz[start..]).zip(factors) {
                            *dx = dz * factor;
                        }
                    });
                }
            })
        });
    }
    cpu.add_bias(op.db, op.dx, rows, dim);
}
