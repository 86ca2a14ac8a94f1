//! Dropout in place.

use super::Cuda;
use super::kernels;
use crate::error::Result;
use crate::ops::{Dropout, View};

/// `x = dropout(x)`.
pub fn apply(cuda: &Cuda, op: &Dropout, x: View) -> Result<()> {
    let drop = cuda.drop(op.drop);
    if drop.threshold == 0 {
        return Ok(());
    }
    let rows = cuda.rows(op.rows);
    let arguments =
        kernels::Dropout { x: cuda.at(x), token_rows: cuda.token_rows(op.rows), rows: rows as i32, width: op.width as i32, drop };
    let kernel = cuda.kernels().dropout.of(x.dtype);
    cuda.launch(kernel, [rows.div_ceil(kernel.warps()), 1, 1], &arguments)
}
