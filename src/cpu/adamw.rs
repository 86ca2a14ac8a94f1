//! Gradient norm and AdamW over the flat parameters.

use rayon::prelude::*;

use super::Cpu;
use super::real::{Real, simd, sum};
use crate::ops::{AdamW, GradNorm, Status, Update};

/// Elements per task.
pub const CHUNK: usize = 1 << 16;

pub fn grad_norm<T: Real>(cpu: &mut Cpu<T>, op: &GradNorm) {
    let mut partials = std::mem::take(&mut cpu.partials);
    // SAFETY: distinct buffers.
    let (grads, status) = unsafe { (cpu.get(op.grads, op.grads.len), cpu.status(op.status)) };
    let squares = |g: &[T]| simd!(sum(g.len(), |i| g[i].f64() * g[i].f64()));
    grads.par_chunks(CHUNK).map(squares).collect_into_vec(&mut partials);
    status[2] = partials.iter().sum::<f64>().sqrt() / Status::from_slice(status).loss_scale();
    cpu.partials = partials;
}

pub fn adamw<T: Real>(cpu: &Cpu<T>, op: &AdamW, update: &Update) {
    let len = op.params.len;
    // SAFETY: distinct buffers.
    let status = unsafe { cpu.status(op.status) };
    let mut s = Status::from_slice(status);
    let (loss, loss_scale) = (std::mem::take(&mut s.loss), s.loss_scale());
    let usable = loss.is_finite() && s.grad_norm.is_finite() && s.scale >= 0.0;
    if usable {
        s.loss_sum += loss;
    } else {
        s.skipped += 1.0;
    }
    if op.growth > 0 {
        s.good = if usable { s.good + 1.0 } else { 0.0 };
        if !usable {
            s.scale = (s.scale - 1.0).max(-1.0);
        } else if s.good == f64::from(op.growth) {
            (s.scale, s.good) = (s.scale + 1.0, 0.0);
        }
    }
    status.copy_from_slice(&s.to_array());
    if !usable {
        return;
    }

    let Update { number, learning_rate: lr } = *update;
    let t = number as f64 - s.skipped;
    let (bias1, bias2) = (1.0 - op.beta1.powf(t), 1.0 - op.beta2.powf(t));
    let clip = if op.max_norm > 0.0 { (op.max_norm / (s.grad_norm + 1e-6)).min(1.0) } else { 1.0 };
    let (clip, rate, sqrt_bias_correction2) = (T::of(clip / loss_scale), T::of(lr / bias1), T::of(bias2.sqrt()));
    let (beta1, beta2, eps) = (T::of(op.beta1), T::of(op.beta2), T::of(op.eps));
    let (one_minus_beta1, one_minus_beta2) = (T::of(1.0 - op.beta1), T::of(1.0 - op.beta2));
    // SAFETY: distinct buffers.
    let (params, grads) = unsafe { (cpu.get_mut(op.params, len), cpu.get(op.grads, len)) };
    let (m, v) = unsafe { (cpu.get_mut(op.m, len), cpu.get_mut(op.v, len)) };
    for (range, decay) in [(0..op.decayed, op.weight_decay), (op.decayed..len, 0.0)] {
        let decay_factor = T::of(1.0 - lr * decay);
        let tasks = (params[range.clone()].par_chunks_mut(CHUNK))
            .zip(grads[range.clone()].par_chunks(CHUNK))
            .zip(m[range.clone()].par_chunks_mut(CHUNK))
            .zip(v[range.clone()].par_chunks_mut(CHUNK));
        tasks.for_each(|(((p, g), m), v)| {
            simd!({
                for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
                    let grad = g * clip;
                    *m = beta1 * *m + one_minus_beta1 * grad;
                    *v = beta2 * *v + one_minus_beta2 * grad * grad;
                    *p = *p * decay_factor - rate * *m / (v.sqrt() / sqrt_bias_correction2 + eps);
                }
            })
        });
    }
}
