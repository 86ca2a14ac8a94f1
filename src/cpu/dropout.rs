//! Dropout: masks from Philox, never stored. One block of four words has the draws of eight neighbouring columns.

use rayon::prelude::*;

use super::real::{Real, simd};
use super::{Cpu, grain};
use crate::ops::{DropSite, Rows, View};
use crate::random::philox;

/// Philox blocks computed in parallel: one AVX-512 register of u32.
const LANES: usize = 16;

/// A dropout site at a step of the run; `None` inside when nothing is dropped.
#[derive(Clone, Copy)]
pub struct Mask(Option<Active>);

#[derive(Clone, Copy)]
struct Active {
    key: [u32; 2],
    site: u32,
    threshold: u32,
    scale: f64,
}

impl Mask {
    pub fn new(key: [u32; 2], drop: DropSite, train: bool) -> Mask {
        let (threshold, scale) = (drop.threshold(), drop.scale());
        Mask((train && threshold > 0).then_some(Active { key, site: drop.site, threshold, scale }))
    }

    pub fn is_off(self) -> bool {
        self.0.is_none()
    }

    /// Calls `f(column, factors)` for the columns of a row in order, a run of columns at a time; a factor is 0 or the scale, and
    /// 1 everywhere when nothing is dropped.
    #[inline(always)]
    pub fn for_each<T: Real>(self, row: u32, width: usize, mut f: impl FnMut(usize, &[T])) {
        const RUN: usize = 8 * LANES;
        let mut factors = [T::one(); RUN];
        for start in (0..width).step_by(RUN) {
            if let Some(Active { key, site, threshold, scale }) = self.0 {
                let (scale, block) = (T::of(scale), std::array::from_fn(|l| (start / 8 + l) as u32));
                let words = philox::<LANES>(key, [block, [row; LANES], [site; LANES], [0; LANES]]);
                for l in 0..LANES {
                    for (w, words) in words.iter().enumerate() {
                        for (half, draw) in draws(words[l]).into_iter().enumerate() {
                            factors[8 * l + 2 * w + half] = if draw < threshold { T::zero() } else { scale };
                        }
                    }
                }
            }
            f(start, &factors[..RUN.min(width - start)]);
        }
    }

    /// The factors of columns `8 * block` to `8 * block + 7`, each for `rows` rows, `step` apart, starting at `row`.
    #[inline(always)]
    pub fn of_eight_columns<T: Real, const ROWS: usize>(
        self,
        block: usize,
        row: u32,
        step: usize,
        rows: usize,
    ) -> [[T; ROWS]; 8] {
        let mut factors = [[T::one(); ROWS]; 8];
        if let Some(Active { key, site, threshold, scale }) = self.0 {
            let (scale, step) = (T::of(scale), step as u32);
            for start in (0..rows).step_by(LANES) {
                let rows = std::array::from_fn(|l| row.wrapping_add((start + l) as u32 * step));
                let words = philox::<LANES>(key, [[block as u32; LANES], rows, [site; LANES], [0; LANES]]);
                for (pair, words) in factors.chunks_mut(2).zip(words) {
                    for (l, word) in words.into_iter().enumerate() {
                        for (factors, draw) in pair.iter_mut().zip(draws(word)) {
                            factors[start + l] = if draw < threshold { T::zero() } else { scale };
                        }
                    }
                }
            }
        }
        factors
    }
}

/// The two draws of a word.
#[inline(always)]
fn draws(word: u32) -> [u32; 2] {
    [word & 0xffff, word >> 16]
}

/// `x` (rows, width) becomes `dropout(x)`.
pub fn apply<T: Real>(cpu: &Cpu<T>, drop: DropSite, x: View, rows: Rows, width: usize) {
    let mask = cpu.mask(drop);
    if mask.is_off() {
        return;
    }
    // SAFETY: the only view.
    let x = unsafe { cpu.get_mut(x, cpu.count(rows) * width) };
    let (token_row, grain) = (cpu.token_row(rows), grain(width));
    x.par_chunks_mut(grain * width).enumerate().for_each(|(task, x)| {
        simd!({
            for (r, x) in x.chunks_mut(width).enumerate() {
                mask.for_each(token_row(task * grain + r), width, |start, factors: &[T]| {
                    for (x, &factor) in x[start..].iter_mut().zip(factors) {
                        *x *= factor;
                    }
                });
            }
        })
    });
}
