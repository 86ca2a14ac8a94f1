//! Soon.
use super::Cuda;
use crate::error::Result;
use crate::ops::*;

pub fn fwd(_cuda: &Cuda, _op: &Embed) -> Result<()> {
    unimplemented!()
}
pub fn bwd(_cuda: &Cuda, _op: &Embed) -> Result<()> {
    unimplemented!()
}
pub fn first_row_fwd(_cuda: &Cuda, _op: &FirstRow) -> Result<()> {
    unimplemented!()
}
pub fn first_row_bwd(_cuda: &Cuda, _op: &FirstRow) -> Result<()> {
    unimplemented!()
}
