//! The virtual GPU itself: correct kernels give correct results in any order, wrong ones are caught, and mistakes of the host
//! are detected. All on device 1, one test at a time, so that a broken context affects no other test. None of it applies to a
//! real GPU: a run on one leaves this module out (`--skip virtual_gpu`).

mod failures;

use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::cublaslt::{result as blas, sys as blas_sys};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
    result,
};
use cudarc::nvrtc::Ptx;
use half::{bf16, f16};
use warpfit::cuda::Cuda;
use warpfit::ops::{Activation, Arithmetic, DropSite, Rows};

use crate::ops::cases::*;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    _turn: MutexGuard<'static, ()>,
}

/// The kernels of tests/vgpu/faults.cu and samples.cu.
const KERNELS: &str = "past_the_end_f32 divergent_barrier_f32 barrier_after_exit_f32 divergent_shuffle_f32 \
                       exit_before_shuffle_f32 deadlock_f32 misaligned_ldmatrix_f32 ldmatrix_of_rows_f32 mma_alone_f32 misaligned_vector_f32 \
                       copy_without_wait_f32 uninitialised_shared_f32 past_dynamic_shared_f32 past_fixed_shared_f32 \
                       race_f32 race_of_blocks_f32 scale_f32 row_sum_f32 product_bf16 product_f16 product_transposed_bf16 \
                       product_transposed_f16 barriers_f32 shuffles_f32 approximate_f32";

fn image(kernels: &str) -> Ptx {
    Ptx::from_binary(format!("warpfit kernels\n{}\n\0", kernels.replace(' ', "\n")).into_bytes())
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Buffer {
    x: u64,
    n: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Scale {
    x: u64,
    factor: f32,
    offset: f32,
    n: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RowSum {
    x: u64,
    y: u64,
    columns: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Product {
    a: u64,
    b: u64,
    d: u64,
    k: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Approximate {
    x: u64,
    y: u64,
    n: i32,
}

// SAFETY: laid out as in faults.cu and samples.cu.
unsafe impl DeviceRepr for Buffer {}
unsafe impl DeviceRepr for Scale {}
unsafe impl DeviceRepr for RowSum {}
unsafe impl DeviceRepr for Product {}
unsafe impl DeviceRepr for Approximate {}

impl Gpu {
    fn new() -> Gpu {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        vgpu::install();
        vgpu::set_seed(0);
        vgpu::set_errors(0);
        let context = CudaContext::new(1).unwrap();
        // SAFETY: before anything is allocated.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let module = context.load_module(image(KERNELS)).unwrap();
        Gpu { context, stream, module, _turn: turn }
    }

    fn try_launch<A: DeviceRepr>(
        &self,
        stream: &CudaStream,
        name: &str,
        shape: (u32, u32, u32),
        arguments: &A,
    ) -> Result<(), DriverError> {
        let (blocks, threads, shared) = shape;
        let function = self.module.load_function(name)?;
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: shared };
        // SAFETY: the virtual GPU detects what the kernels do wrong.
        unsafe { stream.launch_builder(&function).arg(arguments).launch(config) }.map(|_| ())
    }

    /// Blocks, threads and bytes of dynamic shared memory.
    #[track_caller]
    fn launch<A: DeviceRepr>(&self, name: &str, shape: (u32, u32, u32), arguments: &A) {
        self.try_launch(&self.stream, name, shape, arguments).unwrap();
    }

    fn scale(&self, stream: &CudaStream, x: u64, n: usize, factor: f32, offset: f32) {
        let shape = (n.div_ceil(64) as u32, 64, 0);
        self.try_launch(stream, "scale_f32", shape, &Scale { x, factor, offset, n: n as i32 }).unwrap();
    }

    fn floats(&self, x: &[f32]) -> CudaSlice<f32> {
        self.stream.clone_htod(x).unwrap()
    }

    fn read(&self, x: &CudaSlice<f32>) -> Vec<f32> {
        self.stream.clone_dtoh(x).unwrap()
    }

    fn address<T>(&self, x: &CudaSlice<T>) -> u64 {
        x.device_ptr(&self.stream).0
    }

    /// The kernel breaks the context with this error, and its description has all of `parts`.
    #[track_caller]
    fn breaks(&self, name: &str, shape: (u32, u32, u32), n: i32, code: CUresult, parts: &[&str]) {
        let x = self.floats(&[0.0; 64]);
        self.launch(name, shape, &Buffer { x: self.address(&x), n });
        self.broken(code, parts);
    }

    #[track_caller]
    fn broken(&self, code: CUresult, parts: &[&str]) {
        let error = self.stream.synchronize().map_err(|e| e.0);
        let detail = vgpu::last_error();
        assert_eq!(error, Err(code), "{detail}");
        for part in parts {
            assert!(detail.contains(part), "{part:?} is not in {detail:?}");
        }
        // The error persists.
        assert_eq!(self.context.synchronize().map_err(|e| e.0), Err(code));
        assert_eq!(self.stream.alloc_zeros::<f32>(1).map(|_| ()).map_err(|e| e.0), Err(code));
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        vgpu::set_seed(0);
        // SAFETY: the tests hold a lock on the device, and remaining pointers to it are not used.
        unsafe { sys::cuDevicePrimaryCtxReset_v2(1) };
    }
}

/// The line of `text` in a file of tests/vgpu, in the form of the faults.
fn line_of(file: &str, text: &str) -> String {
    let source = std::fs::read_to_string(format!("{}/tests/vgpu/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let line = source.lines().position(|line| line.contains(text)).unwrap();
    format!("{file}:{}", line + 1)
}

use CUresult::*;

/// Wrong kernels. The sanitizers detect most of these too, and leave this module out.
mod faults {
    use super::*;

    #[test]
    fn a_write_past_the_end() {
        let line = line_of("faults.cu", "if (i <= a.n) a.x[i] = 1.0f;");
        let gpu = Gpu::new();
        gpu.breaks(
            "past_the_end_f32",
            (2, 64, 0),
            64,
            CUDA_ERROR_ILLEGAL_ADDRESS,
            &["past_the_end_f32", "block (1, 0, 0), thread 0", "0 bytes past the end of an allocation of 256 bytes", &line],
        );
    }

    /// The allocation ends within 16 bytes, which a guard page cannot detect: the canary does, when it is freed.
    #[test]
    fn a_write_next_to_an_allocation() {
        let gpu = Gpu::new();
        let x = gpu.floats(&[0.0; 63]);
        gpu.launch("past_the_end_f32", (1, 64, 0), &Buffer { x: gpu.address(&x), n: 63 });
        drop(x);
        gpu.broken(CUDA_ERROR_ILLEGAL_ADDRESS, &["around an allocation of 252 bytes"]);
    }

    #[test]
    fn use_after_free() {
        let gpu = Gpu::new();
        let x = gpu.floats(&[0.0; 64]);
        let address = gpu.address(&x);
        // A free in stream order comes after this launch...
        gpu.scale(&gpu.stream, address, 64, 2.0, 0.0);
        drop(x);
        gpu.stream.synchronize().unwrap();
        // ... and before this one.
        gpu.scale(&gpu.stream, address, 64, 2.0, 0.0);
        gpu.broken(CUDA_ERROR_ILLEGAL_ADDRESS, &["scale_f32", "byte 0 of an allocation of 256 bytes that is freed"]);
    }

    #[test]
    fn divergent_barriers() {
        let line = line_of("faults.cu", "        __syncthreads();\n".trim_end());
        Gpu::new().breaks("divergent_barrier_f32", (1, 64, 0), 2, CUDA_ERROR_LAUNCH_FAILED, &["divergent __syncthreads", &line]);
        let ended = ["barrier_after_exit_f32", "ended"];
        Gpu::new().breaks("barrier_after_exit_f32", (1, 64, 0), 64, CUDA_ERROR_LAUNCH_FAILED, &ended);
    }

    #[test]
    fn divergent_shuffles() {
        let line = line_of("faults.cu", "__shfl_xor_sync(ALL_LANES, x, 1)");
        let parts = ["divergent __shfl_xor_sync", "thread 16", &line];
        Gpu::new().breaks("divergent_shuffle_f32", (1, 32, 0), 32, CUDA_ERROR_LAUNCH_FAILED, &parts);
        Gpu::new().breaks("exit_before_shuffle_f32", (1, 32, 0), 32, CUDA_ERROR_LAUNCH_FAILED, &["ended", "__shfl_xor_sync"]);
    }

    #[test]
    fn a_deadlock() {
        let parts = ["deadlock: 63 threads wait at __syncthreads", "1 in __shfl_sync"];
        Gpu::new().breaks("deadlock_f32", (1, 64, 0), 64, CUDA_ERROR_LAUNCH_FAILED, &parts);
    }

    #[test]
    fn misaligned_addresses() {
        let line = line_of("faults.cu", "ldmatrix4(r, tile");
        let parts = ["ldmatrix", "not 16-byte aligned", &line];
        Gpu::new().breaks("misaligned_ldmatrix_f32", (1, 32, 33 * 16), 64, CUDA_ERROR_MISALIGNED_ADDRESS, &parts);
        let line = line_of("faults.cu", "reinterpret_cast<float4*>(a.x + 1)");
        Gpu::new().breaks("misaligned_vector_f32", (1, 32, 0), 64, CUDA_ERROR_MISALIGNED_ADDRESS, &["float4", &line]);
    }

    #[test]
    fn bank_conflicts_of_ldmatrix() {
        let line = line_of("faults.cu", "ldmatrix4(r, tile + threadIdx.x * a.n);");
        let gpu = Gpu::new();
        let x = gpu.floats(&[0.0; 64]);
        for free in [8, 24, 40, 72] {
            gpu.launch("ldmatrix_of_rows_f32", (1, 32, 64 * free as u32), &Buffer { x: gpu.address(&x), n: free });
            gpu.stream.synchronize().unwrap();
        }
        drop((x, gpu));
        for shared in [16, 32, 64, 80] {
            let parts = ["ldmatrix_of_rows_f32", "ldmatrix of rows that share banks", &line];
            Gpu::new().breaks("ldmatrix_of_rows_f32", (1, 32, 64 * shared as u32), shared, CUDA_ERROR_LAUNCH_FAILED, &parts);
        }
    }

    #[test]
    fn a_copy_without_a_wait() {
        let gpu = Gpu::new();
        for waits in [true, false] {
            let x = gpu.floats(&[1.0; 128]);
            gpu.launch("copy_without_wait_f32", (1, 32, 512), &Buffer { x: gpu.address(&x), n: i32::from(waits) });
            let right = |x: &f32| if waits { *x == 101.0 } else { x.is_nan() };
            assert!(gpu.read(&x).iter().all(right), "waits: {waits}");
        }
    }

    #[test]
    fn memory_starts_as_nan() {
        let gpu = Gpu::new();
        // SAFETY: read before it is written, to check the initial content.
        let x = unsafe { gpu.stream.alloc::<f32>(64) }.unwrap();
        assert!(gpu.read(&x).iter().all(|x| x.is_nan()));
        gpu.stream.memcpy_htod(&[0.0; 64], &mut gpu.floats(&[0.0; 64])).unwrap();
        gpu.launch("uninitialised_shared_f32", (1, 32, 128), &Buffer { x: gpu.address(&x), n: 64 });
        assert!(gpu.read(&x).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn reads_past_shared_memory() {
        let gpu = Gpu::new();
        let x = gpu.floats(&[0.0; 64]);
        gpu.launch("past_dynamic_shared_f32", (1, 32, 128), &Buffer { x: gpu.address(&x), n: 32 });
        gpu.stream.synchronize().unwrap();
        drop(x);
        let parts = ["byte 128 of dynamic shared memory, of which 128 were requested"];
        gpu.breaks("past_dynamic_shared_f32", (1, 32, 128), 33, CUDA_ERROR_ILLEGAL_ADDRESS, &parts);
        drop(gpu);
        let line = line_of("faults.cu", "a.x[threadIdx.x] = tile[a.n];");
        Gpu::new().breaks("past_fixed_shared_f32", (1, 32, 0), 32, CUDA_ERROR_ILLEGAL_ADDRESS, &["index 32", &line]);
    }

    /// A kernel that depends on the order of its threads or blocks gives different results with different seeds.
    #[test]
    fn races_are_detected() {
        let gpu = Gpu::new();
        let x = gpu.floats(&[0.0; 64]);
        let mut results = [const { Vec::new() }; 2];
        for seed in 0..20 {
            vgpu::set_seed(seed);
            for (kernel, results) in ["race_f32", "race_of_blocks_f32"].iter().zip(&mut results) {
                let threads = if *kernel == "race_f32" { 64 } else { 32 };
                gpu.launch(kernel, (64, threads, 0), &Buffer { x: gpu.address(&x), n: 64 });
                results.push(gpu.read(&x).into_iter().map(f32::to_bits).collect::<Vec<_>>());
            }
        }
        for mut results in results {
            results.sort();
            results.dedup();
            assert!(results.len() >= 10, "{} different results of 20", results.len());
        }
    }
}

#[test]
fn launches_that_a_gpu_refuses() {
    let gpu = Gpu::new();
    let x = gpu.floats(&[0.0; 64]);
    let arguments = Buffer { x: gpu.address(&x), n: 32 };
    let refused = |name, shape, part: &str| {
        let error = gpu.try_launch(&gpu.stream, name, shape, &arguments).unwrap_err().0;
        assert!(vgpu::last_error().contains(part), "{}", vgpu::last_error());
        error
    };
    assert_eq!(refused("race_f32", (1, 32, 0), "a block of 32 x 1 x 1 threads"), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(refused("race_f32", (0, 64, 0), "a grid of 0 x 1 x 1 blocks"), CUDA_ERROR_INVALID_VALUE);
    let too_much = "49168 bytes of dynamic shared memory, but 49152 are allowed";
    assert_eq!(refused("past_dynamic_shared_f32", (1, 32, 49168), too_much), CUDA_ERROR_INVALID_VALUE);

    let function = gpu.module.load_function("past_dynamic_shared_f32").unwrap();
    let allow = |bytes| function.set_attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
    allow(49168).unwrap();
    gpu.launch("past_dynamic_shared_f32", (1, 32, 49168), &arguments);
    assert_eq!(allow(227 * 1024 + 1).unwrap_err().0, CUDA_ERROR_INVALID_VALUE);
    // None of this has broken the context.
    gpu.stream.synchronize().unwrap();
}

/// In a process of its own, as all devices of a process are alike.
#[test]
fn compute_capability_7_5() {
    if std::env::var_os("VGPU_CAPABILITY").is_none() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["virtual_gpu::compute_capability_7_5", "--exact", "--nocapture"]).env("VGPU_CAPABILITY", "7.5");
        assert!(command.status().unwrap().success());
        return;
    }
    let gpu = Gpu::new();
    assert_eq!(gpu.context.compute_capability().unwrap(), (7, 5));
    let function = gpu.module.load_function("past_dynamic_shared_f32").unwrap();
    let allow = |bytes| function.set_attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
    assert_eq!([64 << 10, (64 << 10) + 1].map(|bytes| allow(bytes).map_err(|e| e.0)), [Ok(()), Err(CUDA_ERROR_INVALID_VALUE)]);
    drop(gpu);
    let parts = ["mma_alone_f32", "mma of bf16", "needs compute capability 8.0"];
    Gpu::new().breaks("mma_alone_f32", (1, 32, 0), 1, CUDA_ERROR_LAUNCH_FAILED, &parts);
    // Copies are plain ones, and products of f16 are two of half the size.
    products_of("f16", |x| x.iter().map(|&x| f16::from_f32(x)).collect());
}

/// Functions of the driver that CUDA 12.0 has: those of its cuda.h that the virtual driver exports.
const FUNCTIONS_OF_CUDA_12_0: &str = "\
    cuCtxGetCurrent cuCtxGetStreamPriorityRange cuCtxSetCurrent cuCtxSynchronize cuDeviceGet cuDeviceGetAttribute \
    cuDeviceGetCount cuDeviceGetName cuDeviceGetUuid cuDeviceGetUuid_v2 cuDevicePrimaryCtxRelease_v2 \
    cuDevicePrimaryCtxReset_v2 cuDevicePrimaryCtxRetain cuDeviceTotalMem_v2 cuDriverGetVersion cuEventCreate \
    cuEventDestroy_v2 cuEventElapsedTime cuEventQuery cuEventRecord cuEventSynchronize cuFuncGetAttribute cuFuncSetAttribute cuGetErrorName \
    cuGetErrorString cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch cuGraphUpload cuInit \
    cuLaunchKernel cuLaunchKernelEx cuMemAllocAsync cuMemAlloc_v2 cuMemFreeAsync cuMemFreeHost cuMemFree_v2 \
    cuMemGetInfo_v2 cuMemHostAlloc cuMemcpyDtoDAsync_v2 cuMemcpyDtoD_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 \
    cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2 cuMemsetD32Async cuMemsetD8Async cuMemsetD8_v2 cuModuleGetFunction \
    cuModuleLoadData cuModuleUnload cuStreamBeginCapture_v2 cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 \
    cuStreamEndCapture cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent";

/// The programs run on this driver, and so on one of CUDA 12.0: a function that only newer ones have must not be needed.
#[test]
fn no_function_is_newer_than_the_driver_of_12_0() {
    let driver = include_str!("vgpu/emulator/driver.cpp");
    let exported =
        driver.lines().filter_map(|line| line.strip_prefix("int cu")?.split_once('(')).map(|(name, _)| format!("cu{name}"));
    let exported: Vec<String> = exported.filter(|name| name.as_bytes()[2].is_ascii_uppercase()).collect();
    assert!(exported.len() > 50, "{exported:?}");
    let known: Vec<&str> = FUNCTIONS_OF_CUDA_12_0.split_whitespace().collect();
    let newer: Vec<&String> = exported.iter().filter(|name| !known.contains(&name.as_str())).collect();
    assert!(newer.is_empty(), "not in the list of functions of CUDA 12.0: {newer:?}; look for them in its cuda.h");
}

#[test]
fn images() {
    let gpu = Gpu::new();
    let find = |module: &Arc<CudaModule>, name: &str| module.load_function(name).map(|_| ()).map_err(|e| e.0);
    let module = gpu.context.load_module(image("scale_f32 no_such_kernel")).unwrap();
    assert_eq!(find(&module, "scale_f32"), Ok(()));
    // Registered, but not in the image; and the reverse.
    assert_eq!(find(&module, "race_f32"), Err(CUDA_ERROR_NOT_FOUND));
    assert_eq!(find(&module, "no_such_kernel"), Err(CUDA_ERROR_NOT_FOUND));

    // A fatbin before the list: magic, version, size of the header, size of the rest.
    let mut fatbin = Vec::new();
    fatbin.extend(0xba55ed50u32.to_le_bytes());
    fatbin.extend([1, 0, 16, 0]);
    fatbin.extend(8u64.to_le_bytes());
    fatbin.extend(*b"machine.warpfit kernels\nrace_f32\n\0");
    let module = gpu.context.load_module(Ptx::from_binary(fatbin)).unwrap();
    assert_eq!(find(&module, "race_f32"), Ok(()));

    // Machine code of one architecture: a header of 64 bytes without tables; and PTX.
    let elf = [&b"\x7fELF"[..], &[0; 36], &64u64.to_le_bytes(), &[0; 16]].concat();
    for code in [&elf[..], b"// PTX\0"] {
        let load = |list: &[u8]| gpu.context.load_module(Ptx::from_binary([code, list].concat()));
        assert_eq!(find(&load(b"warpfit kernels\nrace_f32\n\0").unwrap(), "race_f32"), Ok(()));
        assert_eq!(load(b"no list\0 of kernels").map(|_| ()).map_err(|e| e.0), Err(CUDA_ERROR_INVALID_IMAGE));
    }
}

#[test]
fn device_memory_is_counted() {
    let gpu = Gpu::new();
    let (free, total) = gpu.context.mem_get_info().unwrap();
    assert_eq!(free, total);
    // SAFETY: not read.
    let alloc = |bytes: usize| unsafe { gpu.stream.alloc::<u8>(bytes) }.map_err(|e| e.0);
    let x = alloc(1000).unwrap();
    assert_eq!(gpu.context.mem_get_info().unwrap().0, total - 1000);
    assert_eq!(alloc(total - 999).map(|_| ()), Err(CUDA_ERROR_OUT_OF_MEMORY));
    drop(x);
    gpu.stream.synchronize().unwrap();
    assert_eq!(gpu.context.mem_get_info().unwrap().0, total);
    // The same free twice.
    let x = alloc(1000).unwrap();
    let address = gpu.address(&x);
    std::mem::forget(x);
    // SAFETY: the second one is refused.
    let free = || unsafe { result::free_sync(address) }.map_err(|e| e.0);
    assert_eq!((free(), free()), (Ok(()), Err(CUDA_ERROR_INVALID_VALUE)));
    assert!(vgpu::last_error().contains("already freed"));
}

#[test]
fn a_copy_outside_of_an_allocation() {
    let gpu = Gpu::new();
    let x = gpu.floats(&[0.0; 64]);
    // SAFETY: refused.
    let copied = unsafe { result::memcpy_htod_async(gpu.address(&x) + 4, &[0f32; 64], gpu.stream.cu_stream()) };
    assert_eq!(copied.map_err(|e| e.0), Err(CUDA_ERROR_INVALID_VALUE));
}

/// After an error nothing works until the device is reset, and then everything does; other devices are not affected.
#[test]
fn errors_stay_until_the_reset() {
    let gpu = Gpu::new();
    gpu.breaks("past_the_end_f32", (2, 64, 0), 64, CUDA_ERROR_ILLEGAL_ADDRESS, &[]);
    let other = CudaContext::new(0).unwrap();
    other.new_stream().unwrap().synchronize().unwrap();
    drop(gpu);
    let gpu = Gpu::new();
    let x = gpu.floats(&[1.0; 64]);
    gpu.scale(&gpu.stream, gpu.address(&x), 64, 2.0, 1.0);
    assert_eq!(gpu.read(&x), [3.0; 64]);
    assert_eq!(CudaContext::new(2).map(|_| ()).map_err(|e| e.0), Err(CUDA_ERROR_INVALID_DEVICE));
}

#[test]
fn errors_have_their_real_names() {
    let _gpu = Gpu::new();
    let error = DriverError(CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(error.error_name().unwrap().to_str().unwrap(), "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(error.error_string().unwrap().to_str().unwrap(), "an illegal memory access was encountered");
}

// ---- streams

/// Queued work runs when something waits for it, and no sooner: a pinned buffer that is written before its copy ran gives the
/// new data, and one that is read before its copy ran gives garbage.
#[test]
fn pinned_buffers_are_read_and_written_late() {
    let gpu = Gpu::new();
    // SAFETY: written below.
    let mut pinned = unsafe { gpu.context.alloc_pinned::<f32>(64) }.unwrap();
    let mut x = gpu.floats(&[0.0; 64]);
    pinned.as_mut_slice().unwrap().fill(1.0);
    gpu.stream.memcpy_htod(&pinned, &mut x).unwrap();
    // Without cudarc, which would wait.
    let buffer = pinned.as_mut_ptr().unwrap();
    // SAFETY: inside the buffer.
    unsafe { buffer.write(2.0) };
    let read = gpu.read(&x);
    assert_eq!(read[..2], [2.0, 1.0]);

    gpu.scale(&gpu.stream, gpu.address(&x), 64, 10.0, 0.0);
    gpu.stream.memcpy_dtoh(&x, &mut pinned).unwrap();
    // SAFETY: inside the buffer.
    assert!(unsafe { pinned.as_ptr().unwrap().read() }.is_nan());
    gpu.stream.synchronize().unwrap();
    assert_eq!(pinned.as_slice().unwrap()[..2], [20.0, 10.0]);
}

/// Launches of the engine at sizes that are too large to run here: none exceeds the limits of a GPU, and exceeding the engine's
/// working memory is an error.
#[test]
fn launches_of_large_batches() {
    let (t, s, on) = (Rows::Tokens, Rows::Cls, DropSite { p: 0.1, site: 3 });
    let ops = |lengths: &[usize], heads: usize, dim: usize| {
        let batch = &batch(lengths);
        let norms = [t, s].map(|rows| add_norm(batch, dim, rows, true, on));
        let products = [linear(batch, dim, 3 * dim, t, false)];
        let others = [embed(batch, dim, 2, Some(0), on), gelu(batch, 4 * dim, t)];
        let rest = [first_row(batch, dim, false), classifier(batch, dim, 2, Activation::Relu, on, crate::ops::cases::PLAIN)];
        let attention = [t, s].map(|rows| attn(batch, heads, dim / heads, rows, on));
        norms.into_iter().chain(products).chain(others).chain(rest).chain(attention).collect::<Vec<_>>()
    };
    let run = |case: &Case, arithmetic| vgpu::only_checking(|| case.run_blank(arithmetic, &mut crate::fixtures::gpu()));
    // Many short texts; a million tokens; rows so wide that their sums over chunks need all of the memory for them.
    for (lengths, heads, dim) in [(&[2; 70_000][..], 2, 64), (&[512; 2000], 4, 256), (&[256; 8], 200, 16_400)] {
        for case in ops(lengths, heads, dim) {
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
                run(&case, arithmetic).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            }
        }
    }
    let error = run(&attn(&batch(&[512; 2000]), 12, 64, t, on), Arithmetic::Bf16).unwrap_err();
    assert!(error.fact().contains("49152000 bytes of working memory, but there are 33554432"), "{error}");
}

/// Pageable memory is copied during the call.
#[test]
fn pageable_buffers_are_read_at_once() {
    let gpu = Gpu::new();
    let mut host = vec![1f32; 64];
    let x = gpu.floats(&host);
    host.fill(2.0);
    assert_eq!(gpu.read(&x), [1.0; 64]);
}

/// One stream fills, another multiplies. With a wait between them the result is right in any order; without it, it is wrong
/// under some seed.
#[test]
fn a_missing_wait_between_streams_is_detected() {
    let run = |gpu: &Gpu, waits: bool| {
        let other = gpu.context.new_stream().unwrap();
        let x = gpu.floats(&[1.0; 64]);
        gpu.stream.synchronize().unwrap();
        for _ in 0..3 {
            gpu.scale(&gpu.stream, gpu.address(&x), 64, 1.0, 1.0);
            if waits {
                other.join(&gpu.stream).unwrap();
            }
            gpu.scale(&other, gpu.address(&x), 64, 2.0, 0.0);
            if waits {
                gpu.stream.join(&other).unwrap();
            }
        }
        other.synchronize().unwrap();
        gpu.read(&x) == [22.0; 64]
    };
    let gpu = Gpu::new();
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..20 {
        vgpu::set_seed(seed);
        right += u32::from(run(&gpu, true));
        wrong += u32::from(!run(&gpu, false));
    }
    assert_eq!(right, 20);
    assert!(wrong >= 10, "{wrong} of 20");
}

#[test]
fn events() {
    let gpu = Gpu::new();
    let x = gpu.floats(&[1.0; 64]);
    gpu.scale(&gpu.stream, gpu.address(&x), 64, 2.0, 0.0);
    let end = gpu.stream.record_event(None).unwrap();
    // Querying an event makes progress, but not immediately.
    assert!(!end.is_complete());
    assert!((0..100).any(|_| end.is_complete()));
}

/// Host threads, each with a stream of its own, do not interfere.
#[test]
fn threads_of_the_host_run_at_once() {
    let gpu = Gpu::new();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let gpu = &gpu;
            scope.spawn(move || {
                vgpu::set_seed(seed);
                let stream = gpu.context.new_stream().unwrap();
                for _ in 0..20 {
                    let x = stream.clone_htod(&vec![1f32; 2048]).unwrap();
                    let y = stream.alloc_zeros::<f32>(2).unwrap();
                    let (from, to) = (x.device_ptr(&stream).0, y.device_ptr(&stream).0);
                    gpu.try_launch(&stream, "row_sum_f32", (2, 256, 0), &RowSum { x: from, y: to, columns: 1024 }).unwrap();
                    assert_eq!(stream.clone_dtoh(&y).unwrap(), [1024.0; 2]);
                }
            });
        }
    });
}

// ---- right kernels

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn halves(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

#[track_caller]
fn assert_near(found: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    for (i, (&found, &wanted)) in found.iter().zip(wanted).enumerate() {
        assert!((f64::from(found) - wanted).abs() <= tolerance, "{i}: {found}, not {wanted}");
    }
}

#[test]
fn sums_of_blocks() {
    let gpu = Gpu::new();
    let (rows, columns) = (5, 1000);
    let host = noise(rows * columns, 1);
    let wanted: Vec<f64> = host.chunks(columns).map(|row| row.iter().map(|&x| f64::from(x)).sum()).collect();
    let x = gpu.floats(&host);
    let mut results = Vec::new();
    for seed in 0..10 {
        vgpu::set_seed(seed);
        let y = gpu.stream.alloc_zeros::<f32>(rows).unwrap();
        let arguments = RowSum { x: gpu.address(&x), y: gpu.address(&y), columns: columns as i32 };
        gpu.launch("row_sum_f32", (rows as u32, 256, 0), &arguments);
        results.push(gpu.read(&y));
    }
    assert_near(&results[0], &wanted, 1e-4);
    assert!(results.iter().all(|result| *result == results[0]), "the order of threads changes bits");
}

#[test]
fn products_on_tensor_cores() {
    products_of("bf16", halves);
    products_of("f16", |x| x.iter().map(|&x| f16::from_f32(x)).collect());
}

fn products_of<T: DeviceRepr + Copy + Into<f64>>(name: &str, stored: impl Fn(&[f32]) -> Vec<T>) {
    let gpu = Gpu::new();
    let (m, k) = (48, 80);
    let (a, b) = (stored(&noise(m * k, 2)), stored(&noise(k * 16, 3)));
    let at = |x: &[T], i: usize| -> f64 { x[i].into() };
    for (kernel, transposed) in [("product", false), ("product_transposed", true)] {
        let b_at = |p: usize, j: usize| if transposed { at(&b, j * k + p) } else { at(&b, p * 16 + j) };
        let element = |i: usize, j: usize| (0..k).map(|p| at(&a, i * k + p) * b_at(p, j)).sum();
        let wanted: Vec<f64> = (0..m * 16).map(|i| element(i / 16, i % 16)).collect();
        for seed in 0..4 {
            vgpu::set_seed(seed);
            let (a, b) = (gpu.stream.clone_htod(&a).unwrap(), gpu.stream.clone_htod(&b).unwrap());
            // SAFETY: the kernel writes all of it.
            let d = unsafe { gpu.stream.alloc::<f32>(m * 16) }.unwrap();
            let arguments = Product { a: gpu.address(&a), b: gpu.address(&b), d: gpu.address(&d), k: k as i32 };
            gpu.launch(&format!("{kernel}_{name}"), (m as u32 / 16, 32, 3072), &arguments);
            assert_near(&gpu.read(&d), &wanted, 1e-4);
        }
    }
}

/// The sums of tensor cores are truncated, not rounded: for positive operands each is slightly too small.
#[test]
fn sums_of_tensor_cores_are_truncated() {
    let gpu = Gpu::new();
    let (m, k) = (16, 512);
    let positive = |salt| halves(&noise(m * k, salt).into_iter().map(f32::abs).collect::<Vec<_>>());
    let (a, b) = (positive(2), positive(3));
    let at = |x: &[bf16], i: usize| f64::from(x[i].to_f32());
    let exact: Vec<f64> = (0..m * 16).map(|i| (0..k).map(|p| at(&a, i / 16 * k + p) * at(&b, p * 16 + i % 16)).sum()).collect();
    let (a, b) = (gpu.stream.clone_htod(&a).unwrap(), gpu.stream.clone_htod(&b).unwrap());
    let product = |errors: u64| {
        vgpu::set_errors(errors);
        let d = gpu.floats(&vec![0.0; m * 16]);
        let arguments = Product { a: gpu.address(&a), b: gpu.address(&b), d: gpu.address(&d), k: k as i32 };
        gpu.launch("product_bf16", (1, 32, 3072), &arguments);
        gpu.read(&d)
    };
    let mean = |found: &[f32]| found.iter().zip(&exact).map(|(&f, e)| (f64::from(f) - e) / e).sum::<f64>() / (m * 16) as f64;
    let unit = 2f64.powi(-24);
    assert!(mean(&product(0)).abs() < 2.0 * unit, "{:e}", mean(&product(0)));
    let mut different = (1..9).map(product).collect::<Vec<_>>();
    for found in &different {
        // A truncation loses half a unit in the last place on average; there are 32 or 64 of them, most near the final
        // magnitude.
        assert!((-80.0 * unit..-4.0 * unit).contains(&mean(found)), "{:e}", mean(found));
        assert_near(found, &exact, 1e-3);
    }
    assert_eq!(product(1), different[0]);
    different.sort_by(|x, y| x.partial_cmp(y).unwrap());
    different.dedup();
    assert_eq!(different.len(), 4, "8 or 16 terms at a time, with one or two bits more than f32");
}

// ---- inexact instructions

#[test]
fn errors_of_instructions_stay_within_their_bounds() {
    let gpu = Gpu::new();
    let x: Vec<f32> = (0..4096).map(|i| (i as f32 - 2500.0) * 0.061).collect();
    let n = x.len();
    let on_gpu = gpu.floats(&x);
    let run = |order: u64, errors: u64| {
        vgpu::set_seed(order);
        vgpu::set_errors(errors);
        let y = gpu.floats(&vec![0.0; 3 * n]);
        gpu.launch("approximate_f32", (64, 64, 0), &Approximate { x: gpu.address(&on_gpu), y: gpu.address(&y), n: n as i32 });
        gpu.read(&y)
    };
    // In units in the last place of the exact result, which is a normal number.
    let error = |found: f32, exact: f64| {
        let exponent = i32::try_from((exact.abs().to_bits() >> 52) as i64 - 1023).unwrap();
        (f64::from(found) - exact).abs() / 2f64.powi(exponent - 23)
    };
    let exact = |i: usize| {
        let x = f64::from(x[i % n]);
        [x.exp2(), x.exp(), 1.0 / x][i / n]
    };
    let bound = |i: usize| if i / n == 1 { 2.0 + (1.173 * x[i % n].abs()).floor() as f64 } else { 2.0 };
    let (plain, normal) = (run(0, 0), f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX));
    let mut different = 0;
    for seed in 0..4 {
        let found = run(0, seed);
        assert_eq!(found, run(1, seed), "another order");
        for (i, &y) in found.iter().enumerate() {
            let exact = exact(i);
            if normal.contains(&exact.abs()) {
                let bound = if seed == 0 { 1.0 } else { bound(i) };
                assert!(error(y, exact) <= bound, "{}: {y} for {exact}, {} units, seed {seed}", x[i % n], error(y, exact));
            } else if i < n && exact < 1.0 {
                assert_eq!(y, 0.0, "2^{} is below the normal numbers", x[i]);
            }
        }
        different += found.iter().zip(&plain).filter(|(a, b)| a != b).count();
        // The bound is nearly reached.
        let largest = (0..n).filter(|&i| normal.contains(&exact(i))).map(|i| error(found[i], exact(i))).fold(0.0, f64::max);
        assert!(seed == 0 || largest > 1.9, "{largest}");
    }
    assert!(different > 2 * 3 * n, "{different}");
    vgpu::set_errors(0);
}

// ---- graphs

const MODE: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const FLAGS: sys::CUgraphInstantiate_flags = sys::CUgraphInstantiate_flags(0);

#[test]
fn a_graph_runs_again() {
    let gpu = Gpu::new();
    let mut x = gpu.floats(&[1.0; 64]);
    let address = gpu.address(&x);
    gpu.stream.begin_capture(MODE).unwrap();
    gpu.scale(&gpu.stream, address, 64, 2.0, 0.0);
    gpu.scale(&gpu.stream, address, 64, 1.0, 1.0);
    let graph = gpu.stream.end_capture(FLAGS).unwrap().unwrap();
    assert_eq!(gpu.read(&x), [1.0; 64], "a capture runs nothing");
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    assert_eq!(gpu.read(&x), [15.0; 64]);
    gpu.stream.memset_zeros(&mut x).unwrap();
    graph.launch().unwrap();
    assert_eq!(gpu.read(&x), [1.0; 64]);
}

#[test]
fn captures_that_a_gpu_refuses() {
    let gpu = Gpu::new();
    let null = gpu.context.default_stream();
    assert_eq!(null.begin_capture(MODE).map_err(|e| e.0), Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
    let ended = |stream: &Arc<CudaStream>| stream.end_capture(FLAGS).map(|_| ()).map_err(|e| e.0);

    // A wait, or an allocation, invalidates a capture.
    gpu.stream.begin_capture(MODE).unwrap();
    assert_eq!(gpu.stream.synchronize().map_err(|e| e.0), Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
    assert_eq!(ended(&gpu.stream), Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
    gpu.stream.begin_capture(MODE).unwrap();
    // SAFETY: refused.
    let allocated = unsafe { result::malloc_sync(64) }.map_err(|e| e.0);
    assert_eq!(allocated, Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
    assert_eq!(ended(&gpu.stream), Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
    assert_eq!(ended(&gpu.stream), Err(CUDA_ERROR_ILLEGAL_STATE));

    // cudarc's behaviour with event tracking: a wait for an event recorded before the capture.
    let before = gpu.stream.record_event(None).unwrap();
    gpu.stream.begin_capture(MODE).unwrap();
    assert_eq!(gpu.stream.wait(&before).map_err(|e| e.0), Err(CUDA_ERROR_STREAM_CAPTURE_ISOLATION));
    assert_eq!(ended(&gpu.stream), Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
}

#[test]
fn event_tracking_is_incompatible_with_capture() {
    let gpu = Gpu::new();
    let tracking = CudaContext::new(1).unwrap();
    let stream = tracking.new_stream().unwrap();
    let function = tracking.load_module(image("scale_f32")).unwrap().load_function("scale_f32").unwrap();
    let mut x = stream.clone_htod(&[1f32; 64]).unwrap();
    stream.begin_capture(MODE).unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: refused.
    let launched = unsafe { stream.launch_builder(&function).arg(&mut x).launch(config) }.map(|_| ()).map_err(|e| e.0);
    assert_eq!(launched, Err(CUDA_ERROR_STREAM_CAPTURE_ISOLATION));
    drop(gpu);
}

// ---- cuBLASLt

struct Matmul {
    m: usize,
    n: usize,
    k: usize,
    transposed: (bool, bool),
    half: bool,
    half_result: bool,
    tf32: bool,
    bias: bool,
    beta: f32,
    /// The place of the algorithm among those that are suggested.
    algorithm: usize,
    /// Whether a bit of it has changed since.
    damaged: bool,
}

const PLAIN: Matmul = Matmul {
    m: 32,
    n: 24,
    k: 40,
    transposed: (true, false),
    half: false,
    half_result: false,
    tf32: false,
    bias: false,
    beta: 0.0,
    algorithm: 0,
    damaged: false,
};

const WORKSPACE: usize = 1 << 20;

use blas_sys::cublasLtReductionScheme_t as Reduction;
const NO_REDUCTION: u32 = Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32;

/// D = op(A) op(B) + bias + beta D at these addresses; the algorithm is requested for `k` terms, and may reduce by `schemes`.
fn matmul(
    gpu: &Gpu,
    p: &Matmul,
    [a, b, d, bias, workspace]: [u64; 5],
    k: usize,
    schemes: u32,
) -> Result<(), blas_sys::cublasStatus_t> {
    use blas_sys::cublasLtMatmulDescAttributes_t as Attribute;
    use blas_sys::cublasLtMatmulPreferenceAttributes_t as Preference;
    use blas_sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
    let (input, output) = (if p.half { CUDA_R_16BF } else { CUDA_R_32F }, if p.half_result { CUDA_R_16BF } else { CUDA_R_32F });
    let compute = match p.tf32 {
        true => blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        false => blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let handle = blas::create_handle().unwrap();
    let description = blas::create_matmul_desc(compute, CUDA_R_32F).unwrap();
    let set = |attribute, value: *const std::ffi::c_void, bytes| {
        // SAFETY: the value is copied.
        unsafe { blas::set_matmul_desc_attribute(description, attribute, value, bytes) }.unwrap();
    };
    let (ta, tb) = (i32::from(p.transposed.0), i32::from(p.transposed.1));
    set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, (&raw const ta).cast(), 4);
    set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, (&raw const tb).cast(), 4);
    if p.bias {
        let epilogue = blas_sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
        set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), 4);
        set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, (&raw const bias).cast(), 8);
        set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (&raw const output).cast(), 4);
    }
    let layouts = |k: usize| {
        let layout = |kind, transposed, rows, columns| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            blas::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64).unwrap()
        };
        (layout(input, p.transposed.0, p.m, k), layout(input, p.transposed.1, k, p.n), layout(output, false, p.m, p.n))
    };
    let preference = blas::create_matmul_pref().unwrap();
    // SAFETY: all are alive; the product's accesses are checked.
    unsafe {
        let most = WORKSPACE;
        let attribute = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        blas::set_matmul_pref_attribute(preference, attribute, (&raw const most).cast(), 8).unwrap();
        let attribute = Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        blas::set_matmul_pref_attribute(preference, attribute, (&raw const schemes).cast(), 4).unwrap();
        let alignment = 16u32;
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            blas::set_matmul_pref_attribute(preference, attribute, (&raw const alignment).cast(), 4).unwrap();
        }
        let (la, lb, ld) = layouts(k);
        let mut found = [blas::get_matmul_algo_heuristic(handle, description, la, lb, ld, ld, preference).map_err(|e| e.0)?; 9];
        let mut count = 0;
        let most = found.len() as i32;
        let suggested = found.as_mut_ptr();
        blas_sys::cublasLtMatmulAlgoGetHeuristic(handle, description, la, lb, ld, ld, preference, most, suggested, &mut count)
            .result()
            .map_err(|e| e.0)?;
        assert!(count == 8 && found[0].workspaceSize > 0);
        let mut found = found[p.algorithm];
        found.algo.data[6] ^= u64::from(p.damaged);
        let (la, lb, ld) = layouts(p.k);
        let mut checked = found;
        let checked = blas_sys::cublasLtMatmulAlgoCheck(handle, description, la, lb, ld, ld, &found.algo, &mut checked).result();
        let alpha = 1f32;
        let done = blas::matmul(
            handle,
            description,
            (&raw const alpha).cast(),
            (&raw const p.beta).cast(),
            a as *const _,
            la,
            b as *const _,
            lb,
            d as *const _,
            ld,
            d as *mut _,
            ld,
            &found.algo,
            workspace as *mut _,
            WORKSPACE,
            gpu.stream.cu_stream().cast(),
        );
        blas::destroy_handle(handle).unwrap();
        assert!(checked.is_ok() || done.is_err(), "an algorithm that the check refuses has run");
        done.map_err(|e| e.0)
    }
}

#[test]
fn products_of_cublas() {
    let gpu = Gpu::new();
    let workspace = gpu.stream.alloc_zeros::<u8>(WORKSPACE).unwrap();
    let mut cases = Vec::new();
    for transposed in [(false, false), (true, false), (false, true), (true, true)] {
        cases.push(Matmul { transposed, ..PLAIN });
        cases.push(Matmul { transposed, half: true, ..PLAIN });
    }
    cases.push(Matmul { bias: true, beta: 1.0, ..PLAIN });
    cases.push(Matmul { half: true, half_result: true, bias: true, beta: 1.0, ..PLAIN });
    cases.push(Matmul { tf32: true, ..PLAIN });
    // More than one block of the product, with ragged edges.
    cases.push(Matmul { m: 340, n: 44, k: 600, ..PLAIN });
    for p in cases {
        let (a, b, d, bias) = (noise(p.m * p.k, 4), noise(p.k * p.n, 5), noise(p.m * p.n, 6), noise(p.m, 7));
        let stored = |x: &[f32], half: bool| if half { halves(x).iter().map(|x| x.to_f32()).collect() } else { x.to_vec() };
        let tf32 = |x: f32| if p.tf32 { f32::from_bits((x.to_bits() + 0x1000) & 0xffffe000) } else { x };
        let up = |x: &[f32], half: bool| match half {
            true => gpu.stream.clone_htod(bytemuck::cast_slice::<bf16, u8>(&halves(x))).unwrap(),
            false => gpu.stream.clone_htod(bytemuck::cast_slice::<f32, u8>(x)).unwrap(),
        };
        let on_gpu = [up(&a, p.half), up(&b, p.half), up(&d, p.half_result), up(&bias, p.half_result)];
        let [pa, pb, pd, pbias] = [0, 1, 2, 3].map(|i: usize| gpu.address(&on_gpu[i]));
        let product = || matmul(&gpu, &p, [pa, pb, pd, pbias, gpu.address(&workspace)], p.k, NO_REDUCTION).unwrap();
        assert_eq!(vgpu::submitted(product), vgpu::Submitted { kernels: 0, products: 1, copies: 0, fills: 0 });
        let bytes = gpu.stream.clone_dtoh(&on_gpu[2]).unwrap();
        let found: Vec<f32> = match p.half_result {
            true => bytes.chunks(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f32()).collect(),
            false => bytes.chunks(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect(),
        };
        let (a, b, d, bias) = (stored(&a, p.half), stored(&b, p.half), stored(&d, p.half_result), stored(&bias, p.half_result));
        let a_at = |i: usize, q: usize| f64::from(tf32(if p.transposed.0 { a[i * p.k + q] } else { a[q * p.m + i] }));
        let b_at = |q: usize, j: usize| f64::from(tf32(if p.transposed.1 { b[q * p.n + j] } else { b[j * p.k + q] }));
        let wanted: Vec<f64> = (0..p.m * p.n)
            .map(|at| {
                let (i, j) = (at % p.m, at / p.m);
                let sum: f64 = (0..p.k).map(|q| a_at(i, q) * b_at(q, j)).sum();
                sum + f64::from(p.beta) * f64::from(d[at]) + if p.bias { f64::from(bias[i]) } else { 0.0 }
            })
            .collect();
        assert_near(&found, &wanted, if p.half_result { 0.05 } else { 1e-4 });
    }
    let written = gpu.stream.clone_dtoh(&workspace).unwrap();
    assert_eq!(written[0], 0xff, "the workspace is unchanged");
}

/// The algorithms that are suggested have other bits, and one of them half the time of the others.
#[test]
fn algorithms_of_cublas() {
    let gpu = Gpu::new();
    let p = |algorithm: usize| Matmul { k: 256, algorithm, ..PLAIN };
    let (a, b) = (gpu.floats(&noise(32 * 256, 4)), gpu.floats(&noise(256 * 24, 5)));
    let (d, workspace) = (gpu.floats(&[0.0; 32 * 24]), gpu.stream.alloc_zeros::<u8>(WORKSPACE).unwrap());
    let pointers = [gpu.address(&a), gpu.address(&b), gpu.address(&d), 0, gpu.address(&workspace)];
    let event = || gpu.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    // SAFETY: the signature in cuda.h.
    let elapsed = |begin: &CudaEvent, end: &CudaEvent| unsafe {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> CUresult;
        let mut time = 0.0;
        let function = sys::culib().get::<Elapsed>(b"cuEventElapsedTime").unwrap();
        function(&mut time, begin.cu_event(), end.cu_event()).result().map(|()| time).map_err(|e| e.0)
    };
    let (mut results, mut times): (Vec<Vec<f32>>, Vec<f32>) = Default::default();
    for algorithm in 0..8 {
        let run =
            || matmul(&gpu, &p(algorithm), pointers, 256, Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32).unwrap();
        run();
        let spans: Vec<(CudaEvent, CudaEvent)> = (0..3)
            .map(|_| {
                let begin = event();
                run();
                (begin, event())
            })
            .collect();
        assert_eq!(elapsed(&spans[0].0, &spans[2].1), Err(CUDA_ERROR_NOT_READY));
        results.push(gpu.read(&d));
        let mut of_three: Vec<f32> = spans.iter().map(|(begin, end)| elapsed(begin, end).unwrap()).collect();
        of_three.sort_by(f32::total_cmp);
        times.push(of_three[1]);
    }
    let exact: Vec<f64> = results[0].iter().map(|&x| f64::from(x)).collect();
    for (i, result) in results.iter().enumerate() {
        assert_near(result, &exact, 1e-4);
        assert!(results[..i].iter().all(|other| other != result), "algorithm {i} has the bits of another");
        assert!(i == 0 || times[i] > 2.0 * times[0] * 0.99, "{times:?}");
    }
    let untimed = gpu.stream.record_event(None).unwrap();
    gpu.stream.synchronize().unwrap();
    assert_eq!(elapsed(&untimed, &untimed), Err(CUDA_ERROR_INVALID_HANDLE));
    let damaged = Matmul { damaged: true, ..p(3) };
    assert_eq!(matmul(&gpu, &damaged, pointers, 256, NO_REDUCTION), Err(blas_sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
}

#[test]
fn products_that_cublas_refuses() {
    use blas_sys::cublasStatus_t::*;
    let gpu = Gpu::new();
    let take = || gpu.address(&*Box::leak(Box::new(gpu.stream.alloc_zeros::<f32>(1 << 14).unwrap())));
    let workspace = gpu.stream.alloc_zeros::<u8>(WORKSPACE).unwrap();
    let good = [take(), take(), take(), take(), gpu.address(&workspace)];
    let with_bias = Matmul { bias: true, ..PLAIN };
    let run = |p: &Matmul, pointers| matmul(&gpu, p, pointers, p.k, NO_REDUCTION);
    assert_eq!(run(&with_bias, good), Ok(()));
    for i in 0..5 {
        let mut pointers = good;
        pointers[i] += 8;
        assert_eq!(run(&with_bias, pointers), Err(CUBLAS_STATUS_NOT_SUPPORTED), "pointer {i}");
    }
    // Rows that are not a multiple of 16 bytes, in A and B, and in D.
    assert_eq!(run(&Matmul { k: 42, ..PLAIN }, good), Err(CUBLAS_STATUS_NOT_SUPPORTED));
    assert_eq!(run(&Matmul { m: 30, ..PLAIN }, good), Err(CUBLAS_STATUS_NOT_SUPPORTED));
    // An algorithm fits its class of shapes; a small one fits only the shape it was requested for.
    let tall = Matmul { transposed: (false, true), ..PLAIN };
    assert_eq!(matmul(&gpu, &tall, good, 128, NO_REDUCTION), Err(CUBLAS_STATUS_NOT_SUPPORTED));
    let tall = Matmul { k: 300, ..tall };
    assert_eq!(matmul(&gpu, &tall, good, 384, NO_REDUCTION), Ok(()));
    assert_eq!(matmul(&gpu, &tall, good, 512, NO_REDUCTION), Err(CUBLAS_STATUS_NOT_SUPPORTED));
    // Partial sums are added in f32 and in a fixed order, or refused.
    for (scheme, answer) in [
        (Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, Ok(())),
        (Reduction::CUBLASLT_REDUCTION_SCHEME_INPLACE, Err(CUBLAS_STATUS_NOT_SUPPORTED)),
        (Reduction::CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, Err(CUBLAS_STATUS_NOT_SUPPORTED)),
    ] {
        assert_eq!(matmul(&gpu, &tall, good, tall.k, scheme as u32), answer);
    }
    gpu.stream.synchronize().unwrap();
    // Memory that is too small is detected when the product runs.
    assert_eq!(run(&Matmul { m: 512, ..PLAIN }, good), Ok(()));
    gpu.broken(CUDA_ERROR_ILLEGAL_ADDRESS, &["cublasLt: A, 81920 bytes"]);
}

/// cuBLASLt keeps the kernels that it loaded into a context after that is destroyed, so the engine destroys no context.
#[test]
fn a_gpu_whose_last_backend_was_dropped_opens_again() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    vgpu::install();
    let case = linear(&batch(&[3, 5]), 16, 24, Rows::Tokens, false);
    for _ in 0..2 {
        case.on(Arithmetic::F32, Box::new(Cuda::open(1).unwrap())).forward();
    }
    // SAFETY: the tests hold a lock on the device.
    unsafe { sys::cuDevicePrimaryCtxReset_v2(1) };
}
