//! Soon.
use super::Cuda;
use crate::error::Result;
use crate::ops::*;

pub fn act_fwd(_cuda: &Cuda, _op: &Act) -> Result<()> {
    unimplemented!()
}
pub fn act_bwd(_cuda: &Cuda, _op: &Act) -> Result<()> {
    unimplemented!()
}
pub fn bias_bwd(_cuda: &Cuda, _op: &Linear) -> Result<()> {
    unimplemented!()
}
pub fn matmul(_cuda: &Cuda, _p: &super::gemm::Product) -> Result<()> {
    unimplemented!()
}
