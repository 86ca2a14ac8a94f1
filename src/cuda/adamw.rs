//! Gradient norm and AdamW over the flat parameters.

use super::{Cuda, kernels};
use crate::error::Result;
use crate::ops::{AdamW, Cast, DType, GradNorm, Update};

/// Elements that one block of the gradient norm sums.
const CHUNK: usize = 1 << 14;

pub fn grad_norm(cuda: &Cuda, op: &GradNorm) -> Result<()> {
    let count = op.grads.len.div_ceil(CHUNK);
    let parts = cuda.scratch(count * size_of::<f64>())?;
    let squares = kernels::GradNormParts { grads: cuda.at(op.grads), parts, len: len(op.grads.len), chunk: CHUNK as i32 };
    cuda.launch(&cuda.kernels().grad_norm_parts, [count, 1, 1], &squares)?;
    let root = kernels::GradNorm { parts, status: cuda.at(op.status), count: count as i32 };
    cuda.launch(&cuda.kernels().grad_norm, [1, 1, 1], &root)
}

pub fn adamw(cuda: &Cuda, op: &AdamW, update: &Update) -> Result<()> {
    let factors = cuda.scratch(3 * size_of::<f32>())?;
    let Update { number, learning_rate } = *update;
    let decide = kernels::AdamWDecide {
        status: cuda.at(op.status),
        factors,
        max_norm: op.max_norm,
        learning_rate,
        beta1: op.beta1,
        beta2: op.beta2,
        number: number as f64,
        growth: op.growth as i32,
    };
    cuda.launch(&cuda.kernels().adamw_decide, [1, 1, 1], &decide)?;

    let arguments = kernels::AdamW {
        params: cuda.at(op.params),
        copy: cuda.at(op.copy),
        grads: cuda.at(op.grads),
        m: cuda.at(op.m),
        v: cuda.at(op.v),
        factors,
        len: len(op.params.len),
        decayed: len(op.decayed),
        decay: (1.0 - learning_rate * op.weight_decay) as f32,
        beta1: op.beta1 as f32,
        one_minus_beta1: (1.0 - op.beta1) as f32,
        beta2: op.beta2 as f32,
        one_minus_beta2: (1.0 - op.beta2) as f32,
        eps: op.eps as f32,
    };
    // NONE is of type F32.
    let kernel = cuda.kernels().adamw.of(op.copy.dtype);
    cuda.launch(kernel, [op.params.len.div_ceil(4 * kernel.threads()), 1, 1], &arguments)
}

/// `x` must be f32, `y` of 16 bits.
pub fn cast(cuda: &Cuda, op: &Cast) -> Result<()> {
    assert_eq!(op.x.dtype, DType::F32, "no kernel casts from this type");
    let arguments = kernels::Cast { x: cuda.at(op.x), y: cuda.at(op.y), len: len(op.x.len) };
    let kernel = cuda.kernels().cast.of(op.y.dtype);
    cuda.launch(kernel, [op.x.len.div_ceil(8 * kernel.threads()), 1, 1], &arguments)
}

/// The kernels count elements in 32 bits, and round up to whole chunks.
fn len(elements: usize) -> i32 {
    assert!(elements <= (1 << 31) - CHUNK, "{elements} parameters");
    elements as i32
}
