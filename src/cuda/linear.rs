//! Beside the cuBLASLt products: activations, the gradient of the bias, and our own matrix product.

use super::Cuda;
use super::columns::{self, Matrix};
use super::gemm::Product;
use super::kernels::{self, ACT_PACKS, Kernel, Matmul};
use crate::error::Result;
use crate::ops::{Activation, DType, Linear, View};

pub fn act_fwd(cuda: &Cuda, op: &Activation) -> Result<()> {
    act(cuda, op, op.y, cuda.kernels().act_fwd.of(op.y.dtype))
}

pub fn act_bwd(cuda: &Cuda, op: &Activation) -> Result<()> {
    act(cuda, op, op.dy, cuda.kernels().act_bwd.of(op.dy.dtype))
}

fn act(cuda: &Cuda, op: &Activation, y: View, kernel: &Kernel<kernels::Act>) -> Result<()> {
    let rows = cuda.rows(op.rows);
    let arguments =
        kernels::Act { x: cuda.at(op.x), y: cuda.at(y), rows: rows as i32, width: op.width as i32, kind: op.kind as i32 };
    let block = kernel.threads() * ACT_PACKS * 16 / y.dtype.size();
    cuda.launch(kernel, [(rows * op.width).div_ceil(block), 1, 1], &arguments)
}

/// `db += column sums of dy`.
pub fn bias_bwd(cuda: &Cuda, op: &Linear) -> Result<()> {
    let dy = Matrix { x: cuda.at(op.dy), dtype: op.dy.dtype, rows: cuda.rows(op.rows), width: op.n, only: None };
    columns::sum(cuda, &dy, cuda.at(op.db))
}

/// The product by our own kernel: any size, any alignment.
pub fn matmul(cuda: &Cuda, p: &Product) -> Result<()> {
    // Strides between neighbours in a column and in a row of a matrix.
    let steps = |transposed, ld: usize| if transposed { (ld as i32, 1) } else { (1, ld as i32) };
    let ((a_m, a_k), (b_k, b_n)) = (steps(p.transpose_a, p.lda), steps(p.transpose_b, p.ldb));
    let arguments = Matmul {
        a: p.a,
        b: p.b,
        d: p.d,
        bias: p.bias,
        m: p.m as i32,
        n: p.n as i32,
        k: p.k as i32,
        a_m,
        a_k,
        b_k,
        b_n,
        ldd: p.ldd as i32,
        add: p.add.into(),
    };
    let kernels = cuda.kernels();
    let kernel = match (p.input, p.output) {
        (DType::Bf16, DType::F32) => &kernels.matmul_bf16_f32,
        (input, output) => {
            assert_eq!(input, output, "no kernel multiplies {input:?} into {output:?}");
            kernels.matmul.of(input)
        }
    };
    cuda.launch(kernel, [(p.m * p.n).div_ceil(kernel.warps()), 1, 1], &arguments)
}
