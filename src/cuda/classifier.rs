//! The classification head after its dense layer, and the loss.

use super::Cuda;
use super::columns::tiles;
use super::kernels::{ClassifierBwd, ClassifierFwd};
use crate::error::Result;
use crate::ops::Classifier;

pub fn fwd(cuda: &Cuda, op: &Classifier) -> Result<()> {
    let arguments = ClassifierFwd {
        x: cuda.at(op.x),
        y: cuda.at(op.y),
        w: cuda.at(op.w),
        b: cuda.at(op.b),
        weights: cuda.at(op.weights),
        labels: cuda.at(cuda.inputs().labels),
        cu_seqlens: cuda.at(cuda.inputs().cu_seqlens),
        logits: cuda.at(op.logits),
        loss: cuda.at(op.loss),
        dlogits: cuda.at(op.dlogits),
        dx: cuda.at(op.dx),
        status: cuda.at(op.status),
        loss_normalizer: cuda.step.loss_normalizer,
        smoothing: op.smoothing.into(),
        classes: op.classes as i32,
        dim: op.dim as i32,
        activation: op.activation as i32,
        train: cuda.step.train.into(),
        drop: cuda.drop(op.drop),
    };
    cuda.launch(cuda.kernels().classifier_fwd.of(op.x.dtype), [cuda.seqs, 1, 1], &arguments)
}

/// Sums over few rows, so that no other kernel has to add those of chunks.
pub fn bwd(cuda: &Cuda, op: &Classifier) -> Result<()> {
    let arguments = ClassifierBwd {
        y: cuda.at(op.y),
        dx: cuda.at(op.dx),
        dlogits: cuda.at(op.dlogits),
        loss: cuda.at(op.loss),
        dw: cuda.at(op.dw),
        db: cuda.at(op.db),
        dx_sum: cuda.at(op.dx_sum),
        status: cuda.at(op.status),
        loss_normalizer: cuda.step.loss_normalizer,
        seqs: cuda.seqs as i32,
        classes: op.classes as i32,
        dim: op.dim as i32,
        adds: cuda.step.adds().into(),
    };
    let grid = [op.classes + 1, tiles(op.dim, op.y.dtype), 1];
    cuda.launch(cuda.kernels().classifier_bwd.of(op.y.dtype), grid, &arguments)
}
