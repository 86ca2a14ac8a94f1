//! A virtual GPU for tests: libcuda.so, libcublasLt.so and the project's kernels, compiled for the CPU. After [`install`] the
//! host code runs on it as on a GPU, through cudarc, with two devices, 0 and 1; nothing else needs to be installed.
//! emulator/driver.cpp lists the environment variables that inject faults.

use std::collections::BTreeMap;
use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// The libraries, never closed.
struct Installed {
    cuda: Library,
    blaslt: Library,
    _kernels: Library,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Folder of the libraries, for LD_LIBRARY_PATH of a child process: `VGPU_DIR`, or that of this build.
pub fn directory() -> PathBuf {
    std::env::var_os("VGPU_DIR").map_or_else(|| PathBuf::from(env!("VGPU_BUILT_IN")), PathBuf::from)
}

/// Opens the libraries, once. Later requests to the loader for libcuda.so find this one, by its name.
///
/// # Panics
/// If they cannot be opened.
pub fn install() {
    installed();
}

fn installed() -> &'static Installed {
    INSTALLED.get_or_init(|| {
        let directory = directory();
        let cuda = open(&directory, "libcuda.so");
        Installed { cuda, blaslt: open(&directory, "libcublasLt.so"), _kernels: open(&directory, "libvgpu_kernels.so") }
    })
}

fn open(directory: &Path, name: &str) -> Library {
    let path = directory.join(name);
    // SAFETY: our own libraries; their initialisers register the kernels.
    unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.unwrap_or_else(|e| panic!("the virtual GPU does not open: {e}"))
}

/// A function of the emulator.
///
/// # Safety
/// `F` must be its type.
unsafe fn function<F>(library: &'static Library, name: &str) -> Symbol<F> {
    // SAFETY: by contract.
    unsafe { library.get(name) }.unwrap_or_else(|e| panic!("the virtual GPU is of another build: {e}"))
}

/// Sets the order of CUDA threads, blocks and streams in work that this thread submits and waits for; 0 is the order of the
/// sources, with everything as late as the waits allow. Other threads use VGPU_SEED.
pub fn set_seed(seed: u64) {
    // SAFETY: the signature in driver.cpp.
    unsafe { function::<unsafe extern "C" fn(u64)>(&installed().cuda, "vgpu_set_seed")(seed) }
}

/// Work that this thread submits within `f` is checked as usual and not run, and memory allocated in it has no content: for
/// launches that are too large to run here.
pub fn only_checking<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: the signature in driver.cpp.
    let set = |on: i32| unsafe { function::<unsafe extern "C" fn(i32)>(&installed().cuda, "vgpu_set_only_checks")(on) };
    set(1);
    let result = f();
    set(0);
    result
}

/// Chooses the errors of inexact instructions in the kernels that this thread launches; 0: none. Other threads use VGPU_SEED.
pub fn set_errors(seed: u64) {
    // SAFETY: the signature in driver.cpp.
    unsafe { function::<unsafe extern "C" fn(u64)>(&installed().cuda, "vgpu_set_errors")(seed) }
}

/// The `call`-th call from now on fails, of those of a device that can fail although the program is right: allocations, copies,
/// fills, launches and products; 0: none does. With `late`, work fails when it runs, and the context with it.
pub fn fail(device: i32, call: u64, late: bool) {
    // SAFETY: the signature in driver.cpp.
    unsafe { function::<unsafe extern "C" fn(i32, u64, i32)>(&installed().cuda, "vgpu_fail")(device, call, late.into()) }
}

/// The number of these calls since [`fail`].
pub fn calls(device: i32) -> u64 {
    // SAFETY: the signature in driver.cpp.
    unsafe { function::<unsafe extern "C" fn(i32) -> u64>(&installed().cuda, "vgpu_calls")(device) }
}

/// Details of this thread's last error: kernel, block, thread, allocation, line.
pub fn last_error() -> String {
    text("vgpu_last_error")
}

/// The launches of a kernel.
pub struct Launched {
    pub times: u64,
    /// The most dynamic shared memory, in bytes, of any launch.
    pub dynamic_shared: u32,
}

/// The engine's kernels.
pub fn launches() -> BTreeMap<String, Launched> {
    let parse = |line: &str| {
        let [name, times, bytes] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("a name and two numbers: {line}") };
        let launched = Launched { times: times.parse().expect("a number"), dynamic_shared: bytes.parse().expect("a number") };
        (name.to_string(), launched)
    };
    text("vgpu_launches").lines().map(parse).collect()
}

/// Work for the GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Submitted {
    /// Launches of kernels.
    pub kernels: u64,
    /// Products by cuBLASLt.
    pub products: u64,
    /// Copies to the GPU.
    pub copies: u64,
    pub fills: u64,
}

/// What this thread submits within `f`.
pub fn submitted(f: impl FnOnce()) -> Submitted {
    let before = submitted_so_far();
    f();
    let after = submitted_so_far();
    Submitted {
        kernels: after.kernels - before.kernels,
        products: after.products - before.products,
        copies: after.copies - before.copies,
        fills: after.fills - before.fills,
    }
}

/// What this thread has submitted since it began.
pub fn submitted_so_far() -> Submitted {
    let mut counts = [0; 3];
    // SAFETY: the signatures in driver.cpp and blaslt.cpp.
    let products = unsafe {
        function::<unsafe extern "C" fn(*mut u64)>(&installed().cuda, "vgpu_submitted")(counts.as_mut_ptr());
        function::<unsafe extern "C" fn() -> u64>(&installed().blaslt, "vgpu_products")()
    };
    let [kernels, copies, fills] = counts;
    Submitted { kernels, products, copies, fills }
}

fn text(name: &str) -> String {
    // SAFETY: the signature in driver.cpp: fills a buffer, and returns the number of bytes available.
    let read = unsafe { function::<unsafe extern "C" fn(*mut c_char, usize) -> usize>(&installed().cuda, name) };
    let mut buffer = vec![0u8; 1 << 16];
    // SAFETY: as above.
    let bytes = unsafe { read(buffer.as_mut_ptr().cast(), buffer.len()) };
    assert!(bytes < buffer.len(), "{name}: {bytes} bytes");
    buffer.truncate(bytes);
    String::from_utf8(buffer).expect("plain text")
}
