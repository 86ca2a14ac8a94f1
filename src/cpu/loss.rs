//! Cross-entropy on the few logits of a batch, in f64, at negligible cost.

use super::Cpu;
use super::real::Real;
use crate::ops::{CrossEntropy, Status};

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

pub fn fwd<T: Real>(cpu: &Cpu<T>, op: &CrossEntropy) {
    let (classes, seqs) = (op.classes, cpu.seqs);
    let labels = cpu.input(|i| i.labels, seqs);
    // SAFETY: distinct buffers.
    let (logits, weights) = unsafe { (cpu.get(op.logits, seqs * classes), cpu.get(op.weights, classes)) };
    let (losses, status) = unsafe { (cpu.get_mut(op.loss, seqs), cpu.status(op.status)) };
    let mut total = 0.0;
    for ((logits, loss), &label) in logits.chunks(classes).zip(losses).zip(labels) {
        let sum = row(logits, weights, label as usize, f64::from(op.smoothing), |_, _, _| ());
        *loss = T::of(sum);
        total += sum;
    }
    if !cpu.step.train {
        return;
    }
    status[0] += total / cpu.step.loss_normalizer;
    let scale = Status::from_slice(status).loss_scale();
    // SAFETY: distinct buffers.
    let dlogits = unsafe { cpu.get_mut(op.dlogits, seqs * classes) };
    for ((logits, dlogits), &label) in logits.chunks(classes).zip(dlogits.chunks_mut(classes)).zip(labels) {
        // d loss / d logit[c] = p[c] * (sum of all shares) - share[c]
        let mut shares = 0.0;
        row(logits, weights, label as usize, f64::from(op.smoothing), |_, _, share| shares += share);
        row(logits, weights, label as usize, f64::from(op.smoothing), |c, p, share| {
            dlogits[c] = T::of((p * shares - share) / cpu.step.loss_normalizer * scale);
        });
    }
    cpu.add_bias(op.db, op.dlogits, seqs, classes);
}
