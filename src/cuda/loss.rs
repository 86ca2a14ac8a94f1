//! Cross-entropy.

use super::Cuda;
use super::kernels::{XentBwd, XentFwd};
use crate::error::Result;
use crate::ops::CrossEntropy;

pub fn fwd(cuda: &Cuda, op: &CrossEntropy) -> Result<()> {
    let arguments = XentFwd {
        logits: cuda.at(op.logits),
        weights: cuda.at(op.weights),
        labels: cuda.at(cuda.inputs().labels),
        loss: cuda.at(op.loss),
        status: cuda.at(op.status),
        loss_normalizer: cuda.step.loss_normalizer,
        smoothing: op.smoothing.into(),
        seqs: cuda.seqs as i32,
        classes: op.classes as i32,
        train: cuda.step.train.into(),
    };
    cuda.launch(&cuda.kernels().xent_fwd, [1, 1, 1], &arguments)
}

pub fn bwd(cuda: &Cuda, op: &CrossEntropy) -> Result<()> {
    let arguments = XentBwd {
        logits: cuda.at(op.logits),
        weights: cuda.at(op.weights),
        labels: cuda.at(cuda.inputs().labels),
        dlogits: cuda.at(op.dlogits),
        status: cuda.at(op.status),
        loss_normalizer: cuda.step.loss_normalizer,
        smoothing: op.smoothing.into(),
        seqs: cuda.seqs as i32,
        classes: op.classes as i32,
    };
    let kernel = cuda.kernels().xent_bwd.of(op.dlogits.dtype);
    cuda.launch(kernel, [cuda.seqs.div_ceil(kernel.warps()), 1, 1], &arguments)
}
