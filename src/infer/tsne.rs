//! t-SNE (van der Maaten and Hinton, 2008): points in the plane, near each other where the vectors are. The settings are
//! scikit-learn's. Every repulsion is computed exactly, so that time grows with the square of the rows. Nothing is random and
//! every sum has one order: the same vectors give the same bits on any number of threads.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu;

/// Effective number of neighbours of a vector.
const PERPLEXITY: f64 = 30.0;
pub const STEPS: usize = 1000;
/// In the first EARLY steps attraction is multiplied by EXAGGERATION, so that clusters form.
const EARLY: usize = 250;
const EXAGGERATION: f64 = 12.0;

/// Affinities between neighbours: a symmetric matrix whose sum is 1.
pub struct Neighbours {
    /// Less than 30 if there are few vectors.
    pub perplexity: f64,
    /// (rows) of neighbours with their entries; all others are 0.
    rows: Vec<Vec<(u32, f64)>>,
}

impl Neighbours {
    /// Neighbours of vectors (rows, dim), all finite, at least one. `done` is called for each row.
    pub fn of(vectors: &[f32], dim: usize, done: impl Fn() + Sync) -> Neighbours {
        let count = vectors.len() / dim;
        let perplexity = PERPLEXITY.min((count - 1) as f64 / 3.0).max(1.0);
        // Farther ones have negligible weight.
        let kept = (3.0 * perplexity) as usize;
        let weighed = |row| {
            let mut near = cpu::arch().dispatch(Distances { vectors, dim, row });
            if kept < near.len() {
                near.select_nth_unstable_by(kept, |a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
                near.truncate(kept);
            }
            done();
            weigh(&near, perplexity)
        };
        let weighed: Vec<Vec<(u32, f64)>> = (0..count).into_par_iter().map(weighed).collect();
        let mut rows = weighed.clone();
        for (row, near) in weighed.iter().enumerate() {
            near.iter().for_each(|&(other, weight)| rows[other as usize].push((row as u32, weight)));
        }
        for row in &mut rows {
            row.sort_by_key(|entry| entry.0);
            row.dedup_by(|later, entry| {
                let twice = later.0 == entry.0;
                entry.1 += if twice { later.1 } else { 0.0 };
                twice
            });
            row.iter_mut().for_each(|entry| entry.1 /= 2.0 * count as f64);
        }
        Neighbours { perplexity, rows }
    }
}

/// Squared distances from one vector to each of the others.
struct Distances<'a> {
    vectors: &'a [f32],
    dim: usize,
    row: usize,
}

impl WithSimd for Distances<'_> {
    type Output = Vec<(u32, f32)>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<(u32, f32)> {
        let (from, from_rest) = S::as_simd_f32s(&self.vectors[self.row * self.dim..][..self.dim]);
        let mut distances = Vec::with_capacity(self.vectors.len() / self.dim);
        for (other, to) in self.vectors.chunks_exact(self.dim).enumerate().filter(|(other, _)| *other != self.row) {
            let (to, to_rest) = S::as_simd_f32s(to);
            let mut sums = simd.splat_f32s(0.0);
            for (&a, &b) in from.iter().zip(to) {
                let difference = simd.sub_f32s(a, b);
                sums = simd.mul_add_f32s(difference, difference, sums);
            }
            let rest: f32 = from_rest.iter().zip(to_rest).map(|(a, b)| (a - b) * (a - b)).sum();
            // Overflow becomes the largest finite number.
            distances.push((other as u32, (simd.reduce_sum_f32s(sums) + rest).min(f32::MAX)));
        }
        distances
    }
}

/// Weights of neighbours at these squared distances, with sum 1 and this perplexity: those of a Gaussian whose width is found
/// by bisection.
fn weigh(near: &[(u32, f32)], perplexity: f64) -> Vec<(u32, f64)> {
    let least = near.iter().map(|entry| entry.1).fold(f32::INFINITY, f32::min);
    let beyond: Vec<f64> = near.iter().map(|entry| f64::from(entry.1 - least)).collect();
    let sums = |sharpness: f64| {
        beyond.iter().fold((0.0, 0.0), |(sum, mean), distance| {
            let weight = (-sharpness * distance).exp();
            (sum + weight, mean + weight * distance)
        })
    };
    let (mut low, mut high, mut sharpness) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..200 {
        let (sum, mean) = sums(sharpness);
        let over = sum.ln() + sharpness * mean / sum - perplexity.ln();
        if over.abs() < 1e-10 {
            break;
        }
        *(if over > 0.0 { &mut low } else { &mut high }) = sharpness;
        sharpness = if high == f64::INFINITY { 2.0 * sharpness } else { (low + high) / 2.0 };
    }
    let (sum, _) = sums(sharpness);
    near.iter().zip(beyond).map(|(entry, distance)| (entry.0, (-sharpness * distance).exp() / sum)).collect()
}

/// Points (rows) for the vectors with these neighbours, and the remaining Kullback-Leibler divergence between the two, in nats;
/// 0 is a perfect fit. The points start as `start`, scaled down; `heard` is called for each step.
pub fn tsne(neighbours: &Neighbours, start: &[[f64; 2]], mut heard: impl FnMut()) -> (Vec<[f64; 2]>, f64) {
    let count = start.len();
    let spread = (start.iter().map(|point| point[0] * point[0]).sum::<f64>() / count as f64).sqrt();
    let scale = if spread > 0.0 { 1e-4 / spread } else { 0.0 };
    let mut at = [0, 1].map(|axis| start.iter().map(|point| point[axis] * scale).collect::<Vec<f64>>());
    let (mut speeds, mut gains) = ([vec![0.0; count], vec![0.0; count]], [vec![1.0; count], vec![1.0; count]]);
    let rate = (count as f64 / EXAGGERATION / 4.0).max(50.0);
    for step in 0..STEPS {
        let (exaggeration, momentum) = if step < EARLY { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let (repulsions, total) = repulsions(&at);
        let gradients: Vec<[f64; 2]> = (0..count)
            .into_par_iter()
            .map(|row| {
                let mut pull = [0.0; 2];
                for &(other, weight) in &neighbours.rows[row] {
                    let [x, y] = [0, 1].map(|axis| at[axis][row] - at[axis][other as usize]);
                    let pulled = weight / (1.0 + x * x + y * y);
                    pull = [pull[0] + pulled * x, pull[1] + pulled * y];
                }
                [0, 1].map(|axis| 4.0 * (exaggeration * pull[axis] - repulsions[row][axis] / total))
            })
            .collect();
        for axis in 0..2 {
            for (row, gradient) in gradients.iter().enumerate() {
                let (speed, gain) = (&mut speeds[axis][row], &mut gains[axis][row]);
                // The step grows while the direction stays, and shrinks where it turns.
                *gain = if *speed * gradient[axis] < 0.0 { *gain + 0.2 } else { (*gain * 0.8f64).max(0.01) };
                *speed = momentum * *speed - rate * *gain * gradient[axis];
                at[axis][row] += *speed;
            }
        }
        heard();
    }
    let (_, total) = repulsions(&at);
    let divergence = |(row, near): (usize, &Vec<(u32, f64)>)| {
        let entry = |&(other, weight): &(u32, f64)| {
            let [x, y] = [0, 1].map(|axis| at[axis][row] - at[axis][other as usize]);
            if weight > 0.0 { weight * (weight * total * (1.0 + x * x + y * y)).ln() } else { 0.0 }
        };
        near.iter().map(entry).sum::<f64>()
    };
    let divergence = neighbours.rows.iter().enumerate().map(divergence).fold(0.0, |sum, of_row| sum + of_row);
    (at[0].iter().zip(&at[1]).map(|(&x, &y)| [x, y]).collect(), divergence)
}

/// The repulsion on each point by all others, before division by the normalizer, which is the second result: the sum of all
/// affinities 1 / (1 + distance^2).
fn repulsions(at: &[Vec<f64>; 2]) -> (Vec<[f64; 2]>, f64) {
    let push = |row| cpu::arch().dispatch(Push { xs: &at[0], ys: &at[1], row });
    let pushes: Vec<[f64; 3]> = (0..at[0].len()).into_par_iter().map(push).collect();
    // Without each point's affinity to itself; above 0 also for a single point.
    let total = pushes.iter().map(|push| push[2] - 1.0).sum::<f64>().max(f64::MIN_POSITIVE);
    (pushes.into_iter().map(|[x, y, _]| [x, y]).collect(), total)
}

/// The repulsion on one point along x and y, and the sum of its affinities.
struct Push<'a> {
    xs: &'a [f64],
    ys: &'a [f64],
    row: usize,
}

impl WithSimd for Push<'_> {
    type Output = [f64; 3];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f64; 3] {
        let (x, y) = (self.xs[self.row], self.ys[self.row]);
        let ((xs, xs_rest), (ys, ys_rest)) = (S::as_simd_f64s(self.xs), S::as_simd_f64s(self.ys));
        let [all_x, all_y, ones, zeros] = [x, y, 1.0, 0.0].map(|value| simd.splat_f64s(value));
        let mut sums = [zeros; 3];
        for (&other_x, &other_y) in xs.iter().zip(ys) {
            let (dx, dy) = (simd.sub_f64s(all_x, other_x), simd.sub_f64s(all_y, other_y));
            let nearness = simd.div_f64s(ones, simd.mul_add_f64s(dx, dx, simd.mul_add_f64s(dy, dy, ones)));
            let squared = simd.mul_f64s(nearness, nearness);
            sums[0] = simd.mul_add_f64s(squared, dx, sums[0]);
            sums[1] = simd.mul_add_f64s(squared, dy, sums[1]);
            sums[2] = simd.add_f64s(sums[2], nearness);
        }
        let mut sums = sums.map(|lanes| simd.reduce_sum_f64s(lanes));
        for (other_x, other_y) in xs_rest.iter().zip(ys_rest) {
            let (dx, dy) = (x - other_x, y - other_y);
            let nearness = 1.0 / (1.0 + dx * dx + dy * dy);
            sums = [sums[0] + nearness * nearness * dx, sums[1] + nearness * nearness * dy, sums[2] + nearness];
        }
        sums
    }
}
