//! Gradient norm and AdamW over the flat parameters.

use super::words::{self, FACTORS};
use super::{Cuda, kernels, overlap};
use crate::error::Result;
use crate::ops::{AdamW, Cast, DType, GradNorm, Update};

/// Elements that one block of the gradient norm sums.
const CHUNK: usize = 1 << 14;

pub fn grad_norm(cuda: &Cuda, op: &GradNorm) -> Result<()> {
    let blocks = op.grads.len.div_ceil(CHUNK);
    let passed = words::passed(cuda, op.grads);
    let arguments = kernels::GradNorm {
        grads: cuda.at(op.grads),
        parts: cuda.scratch(blocks * size_of::<f64>())?,
        arrived: cuda.arena().counter(),
        status: cuda.at(op.status),
        tags: passed.tags,
        tag: passed.tag,
        tiles: passed.tiles,
        dim: passed.dim,
        table: passed.rows * passed.dim,
        len: len(op.grads.len),
        chunk: CHUNK as i32,
    };
    cuda.launch(&cuda.kernels().grad_norm, [blocks, 1, 1], &arguments)
}

pub fn update(cuda: &Cuda, op: &AdamW, update: &Update) -> Result<()> {
    let passed = words::update(cuda, op)?;
    let factors = passed.factors.map_or_else(|| cuda.scratch(FACTORS), Ok)?;
    let Update { number, learning_rate } = *update;
    let decide = kernels::AdamWDecide {
        status: cuda.at(op.status),
        factors,
        max_norm: op.max_norm,
        learning_rate,
        beta1: op.beta1,
        beta2: op.beta2,
        number: number as f64,
        decay: (1.0 - learning_rate * op.weight_decay) as f32,
        growth: op.growth as i32,
    };
    cuda.launch(&cuda.kernels().adamw_decide, [1, 1, 1], &decide)?;

    let (table, beside) = ((passed.rows * passed.dim) as usize, overlap::range(cuda, op, &passed));
    let first = kernels::AdamW {
        params: cuda.at(op.params),
        copy: cuda.at(op.copy),
        grads: cuda.at(op.grads),
        m: cuda.at(op.m),
        v: cuda.at(op.v),
        factors,
        tags: passed.tags,
        seen: passed.seen,
        tag: passed.tag,
        tiles: passed.tiles,
        rows: passed.rows,
        dim: passed.dim,
        number: passed.number,
        begin: table as i32,
        gap: beside.start as i32,
        after_gap: beside.end as i32,
        end: len(op.params.len),
        decayed: len(op.decayed),
        beta1: op.beta1 as f32,
        one_minus_beta1: (1.0 - op.beta1) as f32,
        beta2: op.beta2 as f32,
        one_minus_beta2: (1.0 - op.beta2) as f32,
        eps: op.eps as f32,
    };
    // NONE is of type F32.
    let kernel = cuda.kernels().adamw.of(op.copy.dtype);
    let blocks = |elements: usize| elements.div_ceil(4 * kernel.threads());
    let words = (passed.rows as usize).div_ceil(kernel.warps());
    cuda.launch(kernel, [words + blocks(op.params.len - table - beside.len()), 1, 1], &first)?;
    if beside.is_empty() {
        return Ok(());
    }
    let (begin, end) = (beside.start as i32, beside.end as i32);
    let others = kernels::AdamW { rows: 0, begin, gap: end, after_gap: end, end, ..first };
    let grid = [blocks(beside.len()), 1, 1];
    overlap::update(cuda, op, beside, |stream| cuda.launch_on(stream, kernel, grid, &others))
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
