//! A labelled file with a model's prediction for each row: the data of an evaluation report.

use crate::data::scored::Scored;
use crate::metrics::Metrics;

/// Predictions for every row of a labelled file.
pub struct Evaluated {
    pub scored: Scored,
    /// (rows)
    pub losses: Vec<f64>,
    pub metrics: Metrics,
    /// Texts and their lengths in tokens, (rows); both empty if no model was run.
    pub texts: Vec<String>,
    pub tokens: Vec<usize>,
}

impl Evaluated {
    pub fn rows(&self) -> usize {
        self.losses.len()
    }

    /// The scores of a row, (classes).
    pub fn scores(&self, row: usize) -> &[f64] {
        let classes = self.scored.names.len();
        &self.scored.scores[row * classes..][..classes]
    }

    /// Names of the true and the predicted class of a row.
    pub fn classes(&self, row: usize) -> [&str; 2] {
        [self.scored.labels[row] as usize, self.metrics.pred[row]].map(|class| self.scored.names[class].as_str())
    }

    pub fn is_right(&self, row: usize) -> bool {
        self.metrics.pred[row] == self.scored.labels[row] as usize
    }

    /// Rows by descending loss, ties in the order of the file.
    pub fn by_loss(&self) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.rows()).collect();
        rows.sort_by(|&a, &b| self.losses[b].total_cmp(&self.losses[a]));
        rows
    }
}
