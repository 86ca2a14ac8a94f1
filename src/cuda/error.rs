//! Failures of the driver and of cuBLASLt as one-line errors.

use std::ffi::CStr;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::error::{Error, Kind};

/// An error of the GPU with this index.
pub fn error(index: usize, fact: impl Into<String>, remedy: impl Into<String>) -> Error {
    let place = if index == 0 { "--device cuda".into() } else { format!("--device cuda:{index}") };
    Error::new(Kind::Device, place, fact, remedy)
}

/// "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered".
pub fn describe(e: DriverError) -> String {
    let text = |s: std::result::Result<&CStr, DriverError>| s.map_or("?".into(), |s| s.to_string_lossy().into_owned());
    format!("{}: {}", text(e.error_name()), text(e.error_string()))
}

/// Remedy for exhausted GPU memory.
pub const OUT_OF_MEMORY: &str = "stop other programs on the GPU, or lower --batch-size";

/// A failed call of the driver: `place` names the kernel or the request. Earlier work may be the cause: errors surface late,
/// and after one the context is dead.
pub fn failed(place: &str) -> impl Fn(DriverError) -> Error {
    move |e| {
        let remedy = match e.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => OUT_OF_MEMORY,
            _ => "all GPU memory is lost: start again",
        };
        Error::new(Kind::Device, place, describe(e), remedy)
    }
}
