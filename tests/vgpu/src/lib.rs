//! A virtual GPU for tests: libcuda.so, libcublasLt.so and the project's kernels, compiled for the CPU. After [`install`] the
//! host code runs on it as on a GPU, through cudarc, with two devices, 0 and 1; nothing else needs to be installed.
//! emulator/driver.cpp lists the environment variables that inject faults.

use std::collections::BTreeMap;
use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// The libraries, open for good.
struct Installed {
    cuda: Library,
    blaslt: Library,
    _kernels: Library,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Where the libraries lie, for LD_LIBRARY_PATH of a child process: those of `VGPU_DIR`, or those built with this crate.
pub fn directory() -> PathBuf {
    std::env::var_os("VGPU_DIR").map_or_else(|| PathBuf::from(env!("VGPU_BUILT_IN")), PathBuf::from)
}

/// Opens the libraries, once. Whoever then asks the loader for libcuda.so gets this one, by its name.
///
/// # Panics
/// They cannot be opened.
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
    // SAFETY: our own libraries; what runs when they are opened registers the kernels.
    unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.unwrap_or_else(|e| panic!("the virtual GPU does not open: {e}"))
}

/// A function of the emulator.
///
/// # Safety
/// `F` is its type.
unsafe fn function<F>(library: &'static Library, name: &str) -> Symbol<F> {
    // SAFETY: by contract.
    unsafe { library.get(name) }.unwrap_or_else(|e| panic!("the virtual GPU is not of this build: {e}"))
}

/// Sets the order of CUDA threads, blocks and streams for what this thread submits and waits for; 0 is the sources' order,
/// with everything as late as the waits allow. VGPU_SEED sets it for threads that do not.
pub fn set_seed(seed: u64) {
    // SAFETY: as driver.cpp has it.
    unsafe { function::<unsafe extern "C" fn(u64)>(&installed().cuda, "vgpu_set_seed")(seed) }
}

/// What this thread submits within `f` is checked as ever and not run, and memory that it takes there has no content: for launches
/// too large to run here.
pub fn only_checking<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: as driver.cpp has it.
    let set = |on: i32| unsafe { function::<unsafe extern "C" fn(i32)>(&installed().cuda, "vgpu_set_only_checks")(on) };
    set(1);
    let result = f();
    set(0);
    result
}

/// Sets which errors inexact instructions make in what this thread waits for; 0: none. VGPU_SEED sets them for threads that do not.
pub fn set_errors(seed: u64) {
    // SAFETY: as driver.cpp has it.
    unsafe { function::<unsafe extern "C" fn(u64)>(&installed().cuda, "vgpu_set_errors")(seed) }
}

/// What was wrong the last time that this thread got an error: kernel, block, thread, allocation, line.
pub fn last_error() -> String {
    text("vgpu_last_error")
}

/// What was launched of a kernel.
pub struct Launched {
    pub times: u64,
    /// The most bytes of dynamic shared memory that a launch asked for.
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

/// How many products cuBLASLt has computed.
pub fn matmuls() -> u64 {
    // SAFETY: as blaslt.cpp has it.
    unsafe { function::<unsafe extern "C" fn() -> u64>(&installed().blaslt, "vgpu_matmuls")() }
}

fn text(name: &str) -> String {
    // SAFETY: as driver.cpp has it: fills a buffer, and returns the bytes there are.
    let read = unsafe { function::<unsafe extern "C" fn(*mut c_char, usize) -> usize>(&installed().cuda, name) };
    let mut buffer = vec![0u8; 1 << 16];
    // SAFETY: as above.
    let bytes = unsafe { read(buffer.as_mut_ptr().cast(), buffer.len()) };
    assert!(bytes < buffer.len(), "{name}: {bytes} bytes");
    buffer.truncate(bytes);
    String::from_utf8(buffer).expect("plain text")
}
