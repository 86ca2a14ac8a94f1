//! Principal components (Pearson, 1901): the plane of largest variance.

use nalgebra::DMatrix;

pub struct Pca {
    /// (rows), relative to the mean: first and second component.
    pub points: Vec<[f64; 2]>,
    /// Share of the variance along each component, in [0, 1]; 0 if all vectors are equal.
    pub shares: [f64; 2],
}

impl Pca {
    /// Projects vectors (rows, dim), all finite, at least one. The largest entry of a component is positive, so that the signs
    /// are determined.
    pub fn of(vectors: &[f32], dim: usize) -> Pca {
        let rows = vectors.len() / dim;
        let mean = |i: usize| vectors[i..].iter().step_by(dim).map(|&x| f64::from(x)).sum::<f64>() / rows as f64;
        let means: Vec<f64> = (0..dim).map(mean).collect();
        let centred = DMatrix::from_fn(dim, rows, |i, row| f64::from(vectors[row * dim + i]) - means[i]);
        let eigen = (&centred * centred.transpose()).symmetric_eigen();
        let mut order: Vec<usize> = (0..dim).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        let total = centred.norm_squared();

        let (mut points, mut shares) = (vec![[0.0; 2]; rows], [0.0; 2]);
        for (axis, &which) in order.iter().take(2).enumerate().filter(|_| total > 0.0) {
            let component = eigen.eigenvectors.column(which);
            let sign = component[component.icamax()].signum();
            for (point, x) in points.iter_mut().zip(centred.column_iter()) {
                point[axis] = sign * component.dot(&x);
            }
            shares[axis] = (eigen.eigenvalues[which] / total).clamp(0.0, 1.0);
        }
        Pca { points, shares }
    }
}
