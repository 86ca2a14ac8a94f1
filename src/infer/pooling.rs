//! One vector per text, from the hidden states of its tokens.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pooling {
    /// The state of the CLS token
    Cls,
    /// The mean over all tokens, CLS and SEP included
    Mean,
}

impl Pooling {
    /// Reduces a text's states, (rows, dim), to its vector, (dim), scaled to length 1 if `normalized`.
    pub fn vector(self, states: &[f64], dim: usize, normalized: bool) -> Vec<f32> {
        let mut vector = match self {
            Pooling::Cls => states[..dim].to_vec(),
            Pooling::Mean => mean(states, dim),
        };
        if normalized {
            normalize(&mut vector);
        }
        vector.into_iter().map(|x| x as f32).collect()
    }
}

/// The mean of rows, (dim).
fn mean(rows: &[f64], dim: usize) -> Vec<f64> {
    let count = (rows.len() / dim) as f64;
    (0..dim).map(|column| rows[column..].iter().step_by(dim).sum::<f64>() / count).collect()
}

/// Scales to length 1; zeros are unchanged.
fn normalize(vector: &mut [f64]) {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}
