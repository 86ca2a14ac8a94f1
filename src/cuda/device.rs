//! Finding a GPU, and saying in one line why there is none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::cublaslt;
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::kernels::{Image, Kernels, Loader};
use crate::error::{Error, Kind, Result};

/// The version of the nvcc that compiled the kernels, as (major, minor); None where there was none.
const NVCC: Option<&str> = option_env!("WARPFIT_NVCC");
/// The architectures that there is machine code or PTX for.
const ARCHS: &str = env!("WARPFIT_ARCHS");

/// A GPU, ready to run the kernels.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub kernels: Kernels,
    /// "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Compute capability: 9.0 is (9, 0).
    pub capability: (i32, i32),
}

impl Gpu {
    /// # Errors
    /// One line that says which of the many things needed is missing, and what to do.
    pub fn open(index: usize) -> Result<Gpu> {
        // cudarc panics where a library or a symbol is missing; the first is asked for, the second caught.
        // SAFETY: asks the loader alone.
        if !unsafe { sys::is_culib_present() } {
            return Err(error(index, "no NVIDIA driver (libcuda) found", "install one, or pass --device cpu"));
        }
        let count = catch_unwind(AssertUnwindSafe(CudaContext::device_count));
        let count = match count {
            Err(_) => return Err(error(index, "the NVIDIA driver is too old", "install a newer one, or pass --device cpu")),
            Ok(Err(DriverError(CUresult::CUDA_ERROR_STUB_LIBRARY))) => {
                let remedy = "take it out of LD_LIBRARY_PATH, or pass --device cpu";
                return Err(error(index, "the libcuda found is the toolkit's stub, not a driver", remedy));
            }
            Ok(Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE))) => 0,
            Ok(Err(e)) => return Err(error(index, describe(e), "check nvidia-smi, or pass --device cpu")),
            Ok(Ok(count)) => count as usize,
        };
        if index >= count {
            let fact = match count {
                0 => "no NVIDIA GPU found".to_string(),
                1 => "there is one GPU, cuda:0".to_string(),
                _ => format!("there are {count} GPUs, cuda:0 to cuda:{}", count - 1),
            };
            return Err(error(index, fact, "check CUDA_VISIBLE_DEVICES, or pass --device cpu"));
        }
        // SAFETY: asks the loader alone.
        if !unsafe { cublaslt::sys::is_culib_present() } {
            let remedy = "install CUDA's libcublasLt (pip install nvidia-cublas) and name its folder in LD_LIBRARY_PATH";
            return Err(error(index, "no cuBLASLt library found", remedy));
        }
        let context = CudaContext::new(index).map_err(|e| error(index, describe(e), "check nvidia-smi"))?;
        // The engine orders its own work; a slice with events could not be used in a captured graph.
        // SAFETY: nothing is allocated yet, and all work of the engine goes through one stream.
        unsafe { context.disable_event_tracking() };
        let capability = context.compute_capability().map_err(failed("compute capability"))?;
        let name = context.name().map_err(failed("name of the device"))?;
        let kernels = Kernels::load(&Loader::new(&context)?)?;
        Ok(Gpu { context, kernels, name, capability })
    }
}

fn error(index: usize, fact: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Kind::Device, format!("--device {}", crate::device::Device::Cuda(index)), fact, remedy)
}

/// "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered".
pub fn describe(e: DriverError) -> String {
    let text = |s: std::result::Result<&std::ffi::CStr, DriverError>| s.map_or("?".into(), |s| s.to_string_lossy().into_owned());
    format!("{}: {}", text(e.error_name()), text(e.error_string()))
}

/// A call of the driver that failed: `place` is the kernel or what was asked for. What ran before may be at fault: errors
/// surface late, and after one the context is dead.
pub fn failed(place: &str) -> impl Fn(DriverError) -> Error {
    move |e| {
        let remedy = "the GPU's work is lost; go on from the last checkpoint with --resume-from-checkpoint";
        Error::new(Kind::Device, place, describe(e), remedy)
    }
}

/// Why an image does not load.
pub fn image_error(context: &CudaContext, image: &Image, e: DriverError) -> Error {
    let index = context.ordinal();
    let driver = result::init().ok().and_then(|()| driver_version());
    let driver = driver.map_or("of unknown version".into(), |(major, minor)| format!("for CUDA {major}.{minor}"));
    let Some(nvcc) = NVCC else {
        let remedy = "install nvcc (README.md, \"nvcc\") and build again, or pass --device cpu";
        return error(index, "built without nvcc: this binary holds no GPU code", remedy);
    };
    match e.0 {
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            let capability = context.compute_capability().map_or("?".into(), |(major, minor)| format!("{major}{minor}"));
            let fact = format!("no GPU code for sm_{capability}: this binary was built for {ARCHS}");
            error(index, fact, format!("build with WARPFIT_CUDA_ARCHS={capability}, or pass --device cpu"))
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_INVALID_IMAGE => {
            let fact = format!("the driver is {driver}, the kernels were built with nvcc {nvcc}");
            error(index, fact, "update the driver, or build with an older nvcc")
        }
        _ => error(index, format!("{}: {}", image.file, describe(e)), "check nvidia-smi"),
    }
}

/// The newest CUDA that the driver knows.
fn driver_version() -> Option<(i32, i32)> {
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    Some((version / 1000, version % 1000 / 10))
}
