//! Cross-entropy and its gradients.

use super::Cuda;
use super::kernels::Xent;
use crate::error::Result;
use crate::ops::CrossEntropy;

pub fn fwd(cuda: &Cuda, op: &CrossEntropy) -> Result<()> {
    let arguments = Xent {
        logits: cuda.at(op.logits),
        weights: cuda.at(op.weights),
        labels: cuda.at(cuda.inputs().labels),
        loss: cuda.at(op.loss),
        dlogits: cuda.at(op.dlogits),
        db: cuda.at(op.db),
        status: cuda.at(op.status),
        loss_normalizer: cuda.step.loss_normalizer,
        smoothing: op.smoothing.into(),
        seqs: cuda.seqs as i32,
        classes: op.classes as i32,
        train: cuda.step.train.into(),
        adds: cuda.step.adds().into(),
    };
    // NONE is of type F32.
    cuda.launch(cuda.kernels().xent.of(op.dlogits.dtype), [1, 1, 1], &arguments)
}
