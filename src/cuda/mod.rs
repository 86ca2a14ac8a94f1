//! The backend on NVIDIA GPUs: hand-written kernels (kernels/), products by cuBLASLt, one stream, one arena. A launcher holds
//! geometry only: how many blocks, and which addresses the kernel gets. Nothing here waits for the GPU but `download`.

mod adamw;
mod arena;
mod attention;
mod columns;
mod device;
mod dropout;
mod embed;
mod gemm;
mod kernels;
mod linear;
mod loss;
mod norm;

use std::sync::Arc;

use cudarc::driver::{CudaStream, DeviceRepr};

use crate::data::pack::PackedBatch;
use crate::error::Result;
use crate::ops::*;
use crate::random::{step_key, threshold};
use arena::Arena;
use device::{Gpu, failed};
use gemm::Gemm;
use kernels::{Drop, Kernel, Kernels, Ptr};

/// The backend on one GPU, in f32 or bf16.
pub struct Cuda {
    gpu: Gpu,
    stream: Arc<CudaStream>,
    arena: Arena,
    gemm: Gemm,
    step: Step,
    tokens: usize,
    seqs: usize,
    longest: usize,
    /// Distinct tokens of the batch.
    distinct: usize,
    /// Tiles of attention in the batch.
    tiles: usize,
}
