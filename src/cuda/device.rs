//! Finds a GPU, or reports in one line why none can be used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, DriverError};
use libloading::Library;

use super::error::{describe, error, failed};
use super::gemm::Gemm;
use super::kernels::{COMPILER, Kernels, Loader};
use crate::error::{Error, Result};

/// The GPUs opened so far. They stay open for the life of the process: cuBLASLt keeps state about a context that it would
/// mistake for its successor's, and loading the kernels takes a while.
static OPEN: Mutex<BTreeMap<usize, Arc<Gpu>>> = Mutex::new(BTreeMap::new());

/// With the value `serial`, to find the cause of a fault: every kernel begins when the one before it has ended.
const VARIABLE: &str = "WARPFIT_CUDA";

/// Whether all work is done in turn.
///
/// # Errors
/// `WARPFIT_CUDA` has another value.
pub fn serial() -> Result<bool> {
    match std::env::var_os(VARIABLE) {
        None => Ok(false),
        Some(value) if value == "serial" => Ok(true),
        Some(value) => {
            let place = format!("{VARIABLE}={}", value.to_string_lossy());
            Err(Error::user(place, "no such value", format!("{VARIABLE}=serial is the only one; or unset it")))
        }
    }
}

/// A GPU, ready to run the kernels.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub kernels: Kernels,
    gemm: Mutex<Gemm>,
    /// Such as "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Compute capability: 9.0 is (9, 0).
    pub capability: (i32, i32),
}

impl Gpu {
    /// # Errors
    /// One line that names the missing requirement and its remedy.
    pub fn open(index: usize) -> Result<Arc<Gpu>> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.get(&index) {
            gpu.context.bind_to_thread().map_err(failed("device"))?;
            return Ok(gpu.clone());
        }
        let gpu = Arc::new(Gpu::find(index)?);
        open.insert(index, gpu.clone());
        Ok(gpu)
    }

    /// cuBLASLt, locked for one thread at a time.
    pub fn gemm(&self) -> MutexGuard<'_, Gemm> {
        self.gemm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(index: usize) -> Result<Gpu> {
        let missing = |fact: &str, remedy: &str| error(index, fact, format!("{remedy}, or pass --device cpu"));
        // cudarc panics if a library is missing.
        // SAFETY: only asks the loader.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("no NVIDIA driver (libcuda) found", "install one"));
        }
        let count = match CudaContext::device_count() {
            Ok(count) => count as usize,
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            Err(DriverError(CUresult::CUDA_ERROR_STUB_LIBRARY)) => {
                return Err(missing(
                    "the libcuda found is the stub of a toolkit, not a driver",
                    "remove its folder from LD_LIBRARY_PATH",
                ));
            }
            Err(e) => return Err(missing(&describe(e), "check the output of nvidia-smi")),
        };
        if index >= count {
            let fact = match count {
                0 => "no NVIDIA GPU found".to_string(),
                1 => "there is one GPU, cuda:0".to_string(),
                _ => format!("there are {count} GPUs, cuda:0 to cuda:{}", count - 1),
            };
            return Err(missing(&fact, "check CUDA_VISIBLE_DEVICES"));
        }
        // Within a major version machine code runs on older drivers too.
        let driver = driver_version().map_err(failed("version of the driver"))?;
        if let Some((by, (major, minor))) = COMPILER.filter(|&(_, (major, _))| driver.0 < major) {
            let fact =
                format!("the driver is for CUDA {}.{}, the kernels are compiled by {by} {major}.{minor}", driver.0, driver.1);
            return Err(missing(&fact, "update the driver, or build for it (docs/gpu.md lists the versions)"));
        }
        if !load_cublaslt() {
            let remedy = "install it (docs/gpu.md) and add its folder to LD_LIBRARY_PATH";
            return Err(missing("no cuBLASLt library (libcublasLt) found", remedy));
        }
        let context = CudaContext::new(index).map_err(|e| missing(&describe(e), "check the output of nvidia-smi"))?;
        // The engine orders its own work; event tracking could not be used in a captured graph.
        // SAFETY: nothing is allocated yet, and where the engine uses a second stream, it orders the two by events of its own.
        unsafe { context.disable_event_tracking() };
        let capability = context.compute_capability().map_err(failed("compute capability"))?;
        let name = context.name().map_err(failed("name of the device"))?;
        let kernels = Kernels::load(&Loader::new(&context, serial()?)?)?;
        Ok(Gpu { context, kernels, gemm: Mutex::new(Gemm::new()?), name, capability })
    }
}

/// Loads cuBLASLt, for good: cudarc's own check would unload its hundreds of megabytes again. False if there is none.
fn load_cublaslt() -> bool {
    let load = |name: String| {
        // SAFETY: NVIDIA's library may be loaded at any time.
        unsafe { Library::new(name) }.map(std::mem::forget).is_ok()
    };
    cudarc::get_lib_name_candidates("cublasLt").into_iter().any(load)
}

/// The newest CUDA version that the driver supports: 13.0 is (13, 0).
fn driver_version() -> std::result::Result<(u32, u32), DriverError> {
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    let version = version as u32;
    Ok((version / 1000, version % 1000 / 10))
}
