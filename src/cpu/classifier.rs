//! The classification head after its dense layer, and the loss: small products, and cross-entropy in f64 at negligible cost.

use super::linear::multiply;
use super::matrix::{Accumulate, Mat};
use super::real::{Real, simd};
use super::{Cpu, dropout};
use crate::ops::{Activation, Classifier, Rows, Status};

/// The log-softmax of a row with the loss's weights: calls `f(class, probability, share)`, where
/// `share = (1 - e) w[t] [c = t] + e / classes * w[c]`, and returns the loss, the sum of `share * -log p`.
fn row<T: Real>(logits: &[T], weights: &[T], label: usize, smoothing: f64, mut f: impl FnMut(usize, f64, f64)) -> f64 {
    let largest = logits.iter().map(|x| x.f64()).fold(f64::NEG_INFINITY, f64::max);
    let lse = largest + logits.iter().map(|x| (x.f64() - largest).exp()).sum::<f64>().ln();
    let mut loss = 0.0;
    for (c, (x, w)) in logits.iter().zip(weights).enumerate() {
        let target = if c == label { 1.0 - smoothing } else { 0.0 };
        let share = w.f64() * (target + smoothing / logits.len() as f64);
        let log_p = x.f64() - lse;
        if share > 0.0 {
            loss -= share * log_p;
        }
        f(c, log_p.exp(), share);
    }
    loss
}

pub fn fwd<T: Real>(cpu: &Cpu<T>, op: &Classifier) {
    let (dim, classes, seqs) = (op.dim, op.classes, cpu.seqs);
    // SAFETY: distinct buffers.
    let (x, y) = unsafe { (cpu.get(op.x, seqs * dim), cpu.get_mut(op.y, seqs * dim)) };
    simd!({
        let pairs = y.iter_mut().zip(x);
        match op.activation {
            Activation::Relu => pairs.for_each(|(y, &x)| *y = if x < T::zero() { T::zero() } else { x }),
            Activation::Tanh => pairs.for_each(|(y, &x)| *y = x.tanh()),
        }
    });
    dropout::apply(cpu, op.drop, op.y, Rows::Cls, dim);
    // SAFETY: distinct buffers; `y` above is not used again.
    let (y, w, b) = unsafe { (cpu.get(op.y, seqs * dim), cpu.get(op.w, classes * dim), cpu.get(op.b, classes)) };
    let logits = unsafe { cpu.get_mut(op.logits, seqs * classes) };
    let w = Mat::new(w, dim);
    multiply(cpu, logits, (seqs, classes, dim), (Mat::new(y, dim), w.t().constant(cpu.infers)), Accumulate::Row(b));
    losses(cpu, op, logits);
    if !cpu.step.train {
        return;
    }
    // SAFETY: distinct buffers.
    let (dlogits, dx) = unsafe { (cpu.get(op.dlogits, seqs * classes), cpu.get_mut(op.dx, seqs * dim)) };
    multiply(cpu, dx, (seqs, dim, classes), (Mat::new(dlogits, classes), w), Accumulate::Nothing);
    dropout::apply(cpu, op.drop, op.dx, Rows::Cls, dim);
    // SAFETY: distinct buffers; `dx` above is not used again.
    let dx = unsafe { cpu.get_mut(op.dx, seqs * dim) };
    simd!({
        let pairs = dx.iter_mut().zip(x);
        match op.activation {
            Activation::Relu => pairs.for_each(|(dx, &x)| {
                if x <= T::zero() {
                    *dx = T::zero();
                }
            }),
            Activation::Tanh => pairs.for_each(|(dx, &x)| {
                let y = x.tanh();
                *dx *= T::one() - y * y;
            }),
        }
    });
}

/// The losses of `logits`, and in training their gradients.
fn losses<T: Real>(cpu: &Cpu<T>, op: &Classifier, logits: &[T]) {
    let (classes, seqs) = (op.classes, cpu.seqs);
    let labels = cpu.input(|i| i.labels, seqs);
    // SAFETY: distinct buffers.
    let (weights, losses) = unsafe { (cpu.get(op.weights, classes), cpu.get_mut(op.loss, seqs)) };
    for ((logits, loss), &label) in logits.chunks(classes).zip(losses).zip(labels) {
        *loss = T::of(row(logits, weights, label as usize, f64::from(op.smoothing), |_, _, _| ()));
    }
    if !cpu.step.train {
        return;
    }
    // SAFETY: distinct buffers.
    let (status, dlogits) = unsafe { (cpu.status(op.status), cpu.get_mut(op.dlogits, seqs * classes)) };
    let scale = Status::from_slice(status).loss_scale();
    for ((logits, dlogits), &label) in logits.chunks(classes).zip(dlogits.chunks_mut(classes)).zip(labels) {
        // d loss / d logit[c] = p[c] * (sum of all shares) - share[c]
        let mut shares = 0.0;
        row(logits, weights, label as usize, f64::from(op.smoothing), |_, _, share| shares += share);
        row(logits, weights, label as usize, f64::from(op.smoothing), |c, p, share| {
            dlogits[c] = T::of((p * shares - share) / cpu.step.loss_normalizer * scale);
        });
    }
}

pub fn bwd<T: Real>(cpu: &Cpu<T>, op: &Classifier) {
    let (dim, classes, seqs) = (op.dim, op.classes, cpu.seqs);
    // SAFETY: distinct buffers.
    let (y, dlogits) = unsafe { (cpu.get(op.y, seqs * dim), cpu.get(op.dlogits, seqs * classes)) };
    let (losses, dw, status) = unsafe { (cpu.get(op.loss, seqs), cpu.get_mut(op.dw, classes * dim), cpu.status(op.status)) };
    let onto = if cpu.step.adds() { Accumulate::Itself } else { Accumulate::Nothing };
    multiply(cpu, dw, (classes, dim, seqs), (Mat::new(dlogits, classes).t(), Mat::new(y, dim)), onto);
    cpu.add_bias(op.db, op.dlogits, seqs, classes);
    cpu.add_bias(op.dx_sum, op.dx, seqs, dim);
    status[0] += losses.iter().map(|loss| loss.f64()).sum::<f64>() / cpu.step.loss_normalizer;
}
