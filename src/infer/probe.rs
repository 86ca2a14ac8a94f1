//! The frozen-features baseline: multinomial logistic regression with the objective of scikit-learn's
//! `LogisticRegression(C=1)`, solved by L-BFGS (Nocedal, 1980).

use std::collections::VecDeque;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Largest element of the gradient of the mean loss at convergence: a tenth of scikit-learn's default.
const TOLERANCE: f64 = 1e-5;
const MAX_ITERATIONS: usize = 10_000;
/// Number of past steps that approximate the curvature.
const HISTORY: usize = 10;
/// Rows per chunk of work. Partial sums are added in order: any number of threads gives the same bits.
const CHUNK: usize = 512;

/// Minimises `mean cross-entropy + |w|^2 / (2 rows)`; biases are not penalised. Two classes have one logit, that of class 1.
pub struct Probe {
    pub classes: usize,
    pub dim: usize,
    /// The classes among the training labels; others are never predicted.
    pub present: Vec<u32>,
    /// (logits, dim + 1), with the bias at the end of each row.
    pub weights: Vec<f64>,
    pub iterations: usize,
    /// Largest element of the gradient, in magnitude.
    pub gradient: f64,
}

impl Probe {
    /// Fits features (rows, dim) with labels (rows). `heard` is called with the largest element of the gradient after each
    /// step.
    ///
    /// # Errors
    /// All labels are the same.
    pub fn fit(features: &[f32], labels: &[u32], classes: usize, heard: impl FnMut(f64)) -> Result<Probe> {
        let mut present = labels.to_vec();
        present.sort_unstable();
        present.dedup();
        if present.len() < 2 {
            return Err(Error::user("--train-file", "all labels are the same", "a probe needs at least two classes"));
        }
        let dim = features.len() / labels.len();
        let targets: Vec<usize> =
            labels.iter().map(|label| present.binary_search(label).expect("present holds every label")).collect();
        let logits = if present.len() == 2 { 1 } else { present.len() };
        let start = vec![0.0; logits * (dim + 1)];
        let (weights, iterations, gradient) = minimise(|weights| objective(features, &targets, dim, weights), start, heard);
        Ok(Probe { classes, dim, present, weights, iterations, gradient })
    }

    pub fn converged(&self) -> bool {
        self.gradient <= TOLERANCE
    }

    /// Probabilities, (rows, classes), of features (rows, dim).
    pub fn scores(&self, features: &[f32]) -> Vec<f64> {
        let row = |x: &[f32]| {
            let mut scores = vec![0.0; self.classes];
            for (&class, p) in self.present.iter().zip(probabilities(x, &self.weights)) {
                scores[class as usize] = p;
            }
            scores
        };
        features.par_chunks(self.dim).flat_map_iter(row).collect()
    }
}

/// The objective and its gradient.
fn objective(features: &[f32], targets: &[usize], dim: usize, weights: &[f64]) -> (f64, Vec<f64>) {
    let rows = targets.len() as f64;
    let part = |(features, targets): (&[f32], &[usize])| {
        let (mut loss, mut gradient) = (0.0, vec![0.0; weights.len()]);
        for (x, &target) in features.chunks_exact(dim).zip(targets) {
            let mut p = probabilities(x, weights);
            loss -= p[target].max(f64::MIN_POSITIVE).ln();
            p[target] -= 1.0;
            let of_logits = if weights.len() == dim + 1 { &p[1..] } else { &p[..] };
            for (gradient, &p) in gradient.chunks_exact_mut(dim + 1).zip(of_logits) {
                gradient.iter_mut().zip(x).for_each(|(gradient, &x)| *gradient += p * f64::from(x));
                gradient[dim] += p;
            }
        }
        (loss, gradient)
    };
    let parts: Vec<_> = features.par_chunks(CHUNK * dim).zip(targets.par_chunks(CHUNK)).map(part).collect();
    let (mut value, mut gradient) = (0.0, vec![0.0; weights.len()]);
    for (part_loss, part_gradient) in parts {
        value += part_loss / rows;
        gradient.iter_mut().zip(part_gradient).for_each(|(sum, part)| *sum += part / rows);
    }
    for (weights, gradient) in weights.chunks_exact(dim + 1).zip(gradient.chunks_exact_mut(dim + 1)) {
        for (gradient, w) in gradient.iter_mut().zip(weights).take(dim) {
            value += w * w / (2.0 * rows);
            *gradient += w / rows;
        }
    }
    (value, gradient)
}

/// Probabilities of the classes that are present.
fn probabilities(x: &[f32], weights: &[f64]) -> Vec<f64> {
    let logit = |weights: &[f64]| {
        let (weights, bias) = weights.split_at(x.len());
        // Independent sums, which the processor adds in parallel.
        let mut sums = [0.0; 8];
        for (x, weights) in x.chunks(8).zip(weights.chunks(8)) {
            sums.iter_mut().zip(x).zip(weights).for_each(|((sum, &x), w)| *sum += f64::from(x) * w);
        }
        sums.iter().sum::<f64>() + bias[0]
    };
    let mut logits: Vec<f64> = weights.chunks_exact(x.len() + 1).map(logit).collect();
    if logits.len() == 1 {
        logits.insert(0, 0.0);
    }
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.iter_mut().for_each(|logit| *logit = (*logit - max).exp());
    let sum: f64 = logits.iter().sum();
    logits.into_iter().map(|x| x / sum).collect()
}

/// Minimises a convex function given its value and gradient. Returns the minimum, the steps taken, and the gradient's largest
/// element.
fn minimise(f: impl Fn(&[f64]) -> (f64, Vec<f64>), start: Vec<f64>, mut heard: impl FnMut(f64)) -> (Vec<f64>, usize, f64) {
    let mut x = start;
    let (mut value, mut gradient) = f(&x);
    // The last steps and the changes of the gradient along them, newest last.
    let mut history: VecDeque<(Vec<f64>, Vec<f64>)> = VecDeque::new();
    for iteration in 0..MAX_ITERATIONS {
        let largest = gradient.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
        if largest <= TOLERANCE {
            return (x, iteration, largest);
        }
        let direction = direction(&gradient, &history);
        let slope = dot(&direction, &gradient);
        let mut scale = if history.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt() } else { 1.0 };
        let (to, to_value, to_gradient) = loop {
            let to: Vec<f64> = x.iter().zip(&direction).map(|(x, d)| x + scale * d).collect();
            let (to_value, to_gradient) = f(&to);
            if to_value <= value + 1e-4 * scale * slope {
                break (to, to_value, to_gradient);
            }
            scale /= 2.0;
            if scale < 1e-10 {
                return (x, iteration, largest); // lower than rounding can resolve
            }
        };
        let step: Vec<f64> = to.iter().zip(&x).map(|(to, x)| to - x).collect();
        let change: Vec<f64> = to_gradient.iter().zip(&gradient).map(|(to, from)| to - from).collect();
        if dot(&step, &change) > 0.0 {
            history.push_back((step, change));
        }
        if history.len() > HISTORY {
            history.pop_front();
        }
        (x, value, gradient) = (to, to_value, to_gradient);
        heard(largest);
    }
    let largest = gradient.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
    (x, MAX_ITERATIONS, largest)
}

/// Minus the gradient times the inverse curvature estimated from the history: the two-loop recursion of L-BFGS.
fn direction(gradient: &[f64], history: &VecDeque<(Vec<f64>, Vec<f64>)>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut shares = Vec::new();
    for (step, change) in history.iter().rev() {
        let share = dot(step, &direction) / dot(step, change);
        add(&mut direction, -share, change);
        shares.push(share);
    }
    if let Some((step, change)) = history.back() {
        let scale = dot(step, change) / dot(change, change);
        direction.iter_mut().for_each(|d| *d *= scale);
    }
    for ((step, change), share) in history.iter().zip(shares.into_iter().rev()) {
        let share = share - dot(change, &direction) / dot(step, change);
        add(&mut direction, share, step);
    }
    direction
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `a += scale * b`
fn add(a: &mut [f64], scale: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += scale * b);
}
