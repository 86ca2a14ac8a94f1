//! The kernels as seen by the host: argument structs and the table of kernels, written by build.rs from kernels/*.cu.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DeviceRepr, DriverError};
use cudarc::nvrtc::Ptx;

use super::error::{describe, error, failed};
use crate::error::{Error, Kind, Result};
use crate::ops::DType;

/// An address in device memory; 0 is null.
pub type Ptr = u64;

/// The largest number of blocks in each dimension of a grid, on every GPU.
const LARGEST_GRID: [usize; 3] = [(1 << 31) - 1, 65_535, 65_535];

/// A kernel with arguments `A`.
pub struct Kernel<A> {
    name: &'static str,
    function: CudaFunction,
    threads: u32,
    /// Bytes of dynamic shared memory per block.
    shared: u32,
    /// It waits for the kernel before it, so it may be launched early.
    waits: bool,
    arguments: PhantomData<fn(A)>,
}

impl<A: DeviceRepr> Kernel<A> {
    /// Queues the kernel on `stream`, with this many blocks.
    ///
    /// # Safety
    /// The addresses in `arguments` are valid for the kernel's reads and writes.
    pub unsafe fn launch(&self, stream: &CudaStream, grid: [usize; 3], arguments: &A) -> Result<()> {
        if grid.iter().zip(LARGEST_GRID).any(|(&blocks, largest)| blocks > largest) {
            let fact = format!("a grid of {grid:?} blocks exceeds the limit {LARGEST_GRID:?}");
            return Err(Error::new(Kind::Device, self.name, fact, "lower --batch-size"));
        }
        let [x, y, z] = grid.map(|blocks| blocks as u32);
        // Launched while the kernel before it runs, whose end it waits for: see KERNEL in kernels/gpu.cuh.
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: stream.cu_stream(),
            attrs: &mut early,
            numAttrs: self.waits.into(),
        };
        let mut arguments = [std::ptr::from_ref(arguments).cast_mut().cast()];
        stream.context().bind_to_thread().map_err(failed(self.name))?;
        // SAFETY: by contract; the struct is the kernel's own, generated from its source.
        unsafe { sys::cuLaunchKernelEx(&config, self.function.cu_function(), arguments.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(failed(self.name))
    }

    /// Threads per block.
    pub fn threads(&self) -> usize {
        self.threads as usize
    }

    /// Warps per block.
    pub fn warps(&self) -> usize {
        self.threads() / 32
    }
}

/// One kernel per type of activations.
pub struct Typed<A> {
    pub f32: Kernel<A>,
    pub bf16: Kernel<A>,
    pub f16: Kernel<A>,
}

impl<A> Typed<A> {
    pub fn of(&self, dtype: DType) -> &Kernel<A> {
        match dtype {
            DType::F32 => &self.f32,
            DType::Bf16 => &self.bf16,
            DType::F16 => &self.f16,
            DType::F64 | DType::I32 => panic!("no kernel computes in {dtype:?}"),
        }
    }
}

/// One kernel per type of 16 bits.
pub struct Half<A> {
    pub bf16: Kernel<A>,
    pub f16: Kernel<A>,
}

impl<A> Half<A> {
    pub fn of(&self, dtype: DType) -> &Kernel<A> {
        match dtype {
            DType::Bf16 => &self.bf16,
            DType::F16 => &self.f16,
            DType::F32 | DType::F64 | DType::I32 => panic!("no such kernel for {dtype:?}"),
        }
    }
}

/// The layout of an argument struct on the host.
pub struct Arguments {
    pub name: &'static str,
    pub size: usize,
    /// Offsets by name.
    pub fields: &'static [(&'static str, usize)],
}

/// The compiled code of one source, and the names of its kernels.
pub struct Image {
    pub file: &'static str,
    pub kernels: &'static [&'static str],
    /// By target: "fatbin" (all architectures in one), "90a" (machine code for one), "ptx80", or "none" (no code).
    pub codes: &'static [(&'static str, &'static [u8])],
}

/// The code for a GPU of this compute capability, (9, 0) for 9.0, among these targets: machine code of its major version, the
/// newest that it runs, else PTX.
fn code<'a>(codes: &[(&str, &'a [u8])], (major, minor): (i32, i32)) -> Option<&'a [u8]> {
    let suits = |&(target, code): &(&str, &'a [u8])| {
        let ptx = target.strip_prefix("ptx");
        let number: i32 = ptx.unwrap_or(target).trim_end_matches(['a', 'f']).parse().ok()?;
        let fits = match ptx {
            Some(_) => number <= 10 * major + minor,
            None if target.ends_with('a') => number == 10 * major + minor,
            None => number / 10 == major && number % 10 <= minor,
        };
        fits.then_some((ptx.is_none(), number, code))
    };
    match codes {
        &[("fatbin" | "none", code)] => Some(code),
        _ => codes.iter().filter_map(suits).max_by_key(|&(machine, number, _)| (machine, number)).map(|(.., code)| code),
    }
}

/// All images, loaded into a context.
pub struct Loader {
    functions: HashMap<&'static str, CudaFunction>,
    /// The GPU may launch kernels early, for all of them wait.
    waits: bool,
}

impl Loader {
    /// Unless it is `serial`, kernels start early where they can.
    pub fn new(context: &Arc<CudaContext>, serial: bool) -> Result<Loader> {
        let mut functions = HashMap::new();
        let capability = context.compute_capability().map_err(failed("device"))?;
        let mut waits = capability >= (9, 0) && !serial;
        for image in IMAGES {
            let failure = |e| image_error(context, image, e);
            let code = code(image.codes, capability).ok_or(DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
            let module = code.and_then(|code| context.load_module(Ptx::from_binary(code.to_vec()))).map_err(failure)?;
            for &name in image.kernels {
                functions.insert(name, module.load_function(name).map_err(failed(name))?);
            }
            // Code from PTX of an earlier architecture does not wait, on whatever GPU.
            if let Some(&name) = image.kernels.first().filter(|_| waits) {
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
                waits = functions[name].get_attribute(attribute).map_err(failed(name))? >= 90;
            }
        }
        Ok(Loader { functions, waits })
    }

    fn kernel<A>(&self, name: &'static str, threads: u32, shared: u32) -> Result<Kernel<A>> {
        let function = self.functions[name].clone();
        // More than 48 KiB must be requested.
        if shared > 48 << 10 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared as i32).map_err(failed(name))?;
        }
        Ok(Kernel { name, function, threads, shared, waits: self.waits, arguments: PhantomData })
    }
}

/// The architectures with machine code in this build: "sm_80, sm_90a".
pub fn architectures() -> String {
    ARCHS.split_whitespace().map(|arch| format!("sm_{arch}")).collect::<Vec<_>>().join(", ")
}

/// The error for an image that does not load.
fn image_error(context: &CudaContext, image: &Image, e: DriverError) -> Error {
    let index = context.ordinal();
    if COMPILER.is_none() {
        let remedy = "install nvcc (docs/gpu.md) and build again, or pass --device cpu";
        return error(index, "this binary has no GPU code: it was built without nvcc", remedy);
    }
    match (e.0, context.compute_capability()) {
        // Machine code has no other requirement.
        (CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION, Ok((major, minor))) => {
            let fact = format!("this binary has no GPU code for sm_{major}{minor}, only for {}", architectures());
            let remedy = match (major, minor) {
                (..=6, _) | (7, ..=4) => {
                    "the kernels need a GPU of compute capability 7.5 or more; pass --device cpu".to_string()
                }
                _ => format!("build with WARPFIT_CUDA_ARCHS={major}{minor}, or pass --device cpu"),
            };
            error(index, fact, remedy)
        }
        _ => error(index, format!("{}: {}", image.file, describe(e)), "check the output of nvidia-smi, or pass --device cpu"),
    }
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The CPU and the kernels share the layout of the status block and the size of attention's tiles.
const _: () = {
    use std::mem::offset_of;

    use crate::{data, ops};
    assert!(TILE == data::pack::TILE);
    assert!(size_of::<Status>() == size_of::<ops::Status>() && size_of::<Status>() == 8 * ops::Status::LEN);
    assert!(offset_of!(Status, loss) == offset_of!(ops::Status, loss));
    assert!(offset_of!(Status, loss_sum) == offset_of!(ops::Status, loss_sum));
    assert!(offset_of!(Status, grad_norm) == offset_of!(ops::Status, grad_norm));
    assert!(offset_of!(Status, skipped) == offset_of!(ops::Status, skipped));
    assert!(offset_of!(Status, scale) == offset_of!(ops::Status, scale));
    assert!(offset_of!(Status, good) == offset_of!(ops::Status, good));
};

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn a_gpu_gets_the_newest_machine_code_that_it_runs() {
        let names = ["75", "80", "86", "90a", "120", "ptx80"];
        let codes = names.map(|name| (name, name.as_bytes()));
        let chosen = |capability| code(&codes, capability).map(|code| std::str::from_utf8(code).unwrap());
        for (capability, target) in [
            ((7, 5), "75"),
            ((8, 0), "80"),
            ((8, 6), "86"),
            ((8, 9), "86"),
            ((9, 0), "90a"),
            ((10, 0), "ptx80"),
            ((12, 1), "120"),
        ] {
            assert_eq!(chosen(capability), Some(target), "{capability:?}");
        }
        assert_eq!(
            (chosen((7, 0)), code(&codes[3..4], (9, 1)), code(&[("fatbin", b"x")], (5, 0))),
            (None, None, Some(&b"x"[..]))
        );
    }
}
