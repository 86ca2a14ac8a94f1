//! t-SNE (van der Maaten and Hinton, 2008): points in the plane, near each other where the vectors are. The settings are
//! scikit-learn's. Every repulsion is computed, none approximated, so that time grows with the square of the rows; nothing
//! is drawn at random, and every sum has one order: the same vectors give the same bits on any number of threads.

use rayon::prelude::*;

/// About how many neighbours of a vector count.
const PERPLEXITY: f64 = 30.0;
pub const STEPS: usize = 1000;
/// Of the steps, the first, in which neighbours attract each other this much more: clusters form.
const EARLY: usize = 250;
const EXAGGERATION: f64 = 12.0;
/// Sums side by side, which the processor adds at once.
const LANES: usize = 8;

/// How near each vector is to its neighbours: a symmetric matrix whose sum is 1.
pub struct Neighbours {
    /// Less than 30 where there are few vectors.
    pub perplexity: f64,
    /// (rows) of neighbours with their entries; what is not here is 0.
    rows: Vec<Vec<(u32, f64)>>,
}

impl Neighbours {
    /// Of vectors (rows, dim), all of them finite; at least one. `done` hears of each row.
    pub fn of(vectors: &[f32], dim: usize, done: impl Fn() + Sync) -> Neighbours {
        let count = vectors.len() / dim;
        let perplexity = PERPLEXITY.min((count - 1) as f64 / 3.0).max(1.0);
        // Those beyond have next to no weight.
        let kept = (3.0 * perplexity) as usize;
        let weighed: Vec<Vec<(u32, f64)>> = (0..count)
            .into_par_iter()
            .map(|row| {
                let mut near = pulp::Arch::new().dispatch(
                    #[inline(always)]
                    || distances(vectors, dim, row),
                );
                if kept < near.len() {
                    near.select_nth_unstable_by(kept, |a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
                    near.truncate(kept);
                }
                weigh(&mut near, perplexity);
                done();
                near
            })
            .collect();
        let mut rows = weighed.clone();
        for (row, near) in weighed.iter().enumerate() {
            near.iter().for_each(|&(other, weight)| rows[other as usize].push((row as u32, weight)));
        }
        for row in &mut rows {
            row.sort_by_key(|entry| entry.0);
            row.dedup_by(|later, kept| {
                later.0 == kept.0 && {
                    kept.1 += later.1;
                    true
                }
            });
            row.iter_mut().for_each(|entry| entry.1 /= 2.0 * count as f64);
        }
        Neighbours { perplexity, rows }
    }
}

/// Squared, from one vector to each of the others.
#[inline(always)]
fn distances(vectors: &[f32], dim: usize, row: usize) -> Vec<(u32, f64)> {
    let from = &vectors[row * dim..][..dim];
    let distance = |to: &[f32]| {
        let mut sums = [0.0; LANES];
        for (a, b) in from.chunks(LANES).zip(to.chunks(LANES)) {
            sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (&a, &b))| {
                let difference = f64::from(a) - f64::from(b);
                *sum += difference * difference;
            });
        }
        sums.iter().sum()
    };
    let others = vectors.chunks_exact(dim).enumerate().filter(|(other, _)| *other != row);
    others.map(|(other, to)| (other as u32, distance(to))).collect()
}

/// Turns the squared distances of the neighbours into weights that sum to 1 and have this perplexity: a Gaussian as wide
/// as that takes, found by bisection.
fn weigh(near: &mut [(u32, f64)], perplexity: f64) {
    let least = near.iter().map(|entry| entry.1).fold(f64::INFINITY, f64::min);
    near.iter_mut().for_each(|entry| entry.1 -= least);
    let (mut low, mut high, mut sharpness) = (0.0, f64::INFINITY, 1.0);
    let sums = |sharpness: f64| {
        near.iter().fold((0.0, 0.0), |(sum, mean), &(_, distance)| {
            let weight = (-sharpness * distance).exp();
            (sum + weight, mean + weight * distance)
        })
    };
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
    near.iter_mut().for_each(|entry| entry.1 = (-sharpness * entry.1).exp() / sum);
}

/// Points (rows) for the vectors with these neighbours, and the Kullback-Leibler divergence that is left between the
/// two, in nats: 0 were they the same. They start as `start`, scaled down; `heard` hears of each step.
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
                // Faster while it goes on the same way, slower where it turns.
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
    let divergence = neighbours.rows.iter().enumerate().map(divergence).sum();
    (at[0].iter().zip(&at[1]).map(|(&x, &y)| [x, y]).collect(), divergence)
}

/// What pushes each point away from all others, before it is divided by the sum of all nearnesses 1 / (1 + distance^2),
/// which is the second.
fn repulsions(at: &[Vec<f64>; 2]) -> (Vec<[f64; 2]>, f64) {
    let pushes: Vec<[f64; 3]> = (0..at[0].len())
        .into_par_iter()
        .map(|row| {
            pulp::Arch::new().dispatch(
                #[inline(always)]
                || push(&at[0], &at[1], row),
            )
        })
        .collect();
    // Less what each point was to itself.
    let total = pushes.iter().map(|push| push[2] - 1.0).sum();
    (pushes.into_iter().map(|[x, y, _]| [x, y]).collect(), total)
}

#[inline(always)]
fn push(xs: &[f64], ys: &[f64], row: usize) -> [f64; 3] {
    let (x, y) = (xs[row], ys[row]);
    let mut sums = [[0.0; LANES]; 3];
    for (xs, ys) in xs.chunks(LANES).zip(ys.chunks(LANES)) {
        for (lane, (other_x, other_y)) in xs.iter().zip(ys).enumerate() {
            let (dx, dy) = (x - other_x, y - other_y);
            let nearness = 1.0 / (1.0 + dx * dx + dy * dy);
            sums[0][lane] += nearness * nearness * dx;
            sums[1][lane] += nearness * nearness * dy;
            sums[2][lane] += nearness;
        }
    }
    sums.map(|lanes| lanes.iter().sum())
}
