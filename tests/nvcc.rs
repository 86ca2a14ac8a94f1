//! The build of the kernels: parsing of their sources, the search for nvcc, and the compiled code. Tests that need nvcc are
//! ignored by default and run by name: `cargo test --release -- --ignored nvcc`. Properties of the kernels that the virtual GPU
//! cannot check are in the modules: alignment of shared memory (`ptx`), arguments (`layout`), instructions (`sass`),
//! `occupancy`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cudarc::driver::CudaContext;
use cudarc::nvrtc::Ptx;
use tempfile::TempDir;

use crate::fixtures::gpu;

mod layout;
mod occupancy;
mod ptx;
mod sass;

#[path = "../build"]
mod build {
    pub mod nvcc;
    pub mod nvrtc;
    pub mod ptxas;
    pub mod source;
}

use build::nvcc::{Nvcc, USUAL, run};
use build::nvrtc::Nvrtc;
use build::ptxas::{self, Usage, usages};
use build::source::{self, Built, Source};

// ---- sources

const SCALE: &str = "
#include \"gpu.cuh\"
template <class T> struct Scale {
    // All of it.
    const T* x;     // (rows, dim)
    T* y;
    Drop drop;
    unsigned rows;  // of x
    float factor;
};
struct Unused { long long n; };
KERNEL(scale_f32, scale<float>, Scale<float>, 128)
KERNEL(scale_bf16, (scale<bf16, 2>), Scale<bf16>, 256)
KERNEL(scale_f16, (scale<f16, 2>), Scale<f16>, 256)
KERNEL(round_bf16, round<bf16>, Scale<bf16>, 64)
KERNEL(round_f16, round<f16>, Scale<f16>, 64)
struct Sum {
    double* x;
};
KERNEL(sum, sum, Sum, 32, 4096)
constexpr int ROWS = 8;  // host
";

const HEADER: &str = "
struct Drop {
    float scale;
};
struct Status {
    double loss;
};
";

fn parse(text: &str) -> Result<Source, String> {
    Source::parse(Path::new("kernels/scale.cu"), text.to_string())
}

#[test]
fn the_host_gets_the_structs_and_kernels_of_a_source() {
    let host = {
        let built = Built { by: "nvcc", version: (13, 0), archs: "80 90a".to_string() };
        source::host(&[parse(SCALE).unwrap()], HEADER, Some(&built), &["80".to_string(), "90a".to_string()]).unwrap()
    };
    for part in [
        "pub const COMPILER: Option<(&str, (u32, u32))> = Some((\"nvcc\", (13, 0)));",
        "pub const ARCHS: &str = \"80 90a\";",
        "#[repr(C)]\n#[derive(Clone, Copy, Debug)]\npub struct Scale {\n    /// (rows, dim)\n    pub x: Ptr,\n    pub y: Ptr,\n    \
         pub drop: Drop,\n    /// of x\n    pub rows: u32,\n    pub factor: f32,\n}\n",
        "pub struct Sum {\n    pub x: Ptr,\n}\n",
        "pub struct Drop {\n    pub scale: f32,\n}\n",
        "pub struct Status {\n    pub loss: f64,\n}\n",
        "pub const ROWS: usize = 8;\n",
        "Arguments { name: \"Scale\", size: size_of::<Scale>(), fields: &[(\"x\", std::mem::offset_of!(Scale, x)), ",
        "(\"drop.scale\", std::mem::offset_of!(Scale, drop.scale)), (\"rows\", std::mem::offset_of!(Scale, rows)), ",
        "pub struct Kernels {\n    pub scale: Typed<Scale>,\n    pub round: Half<Scale>,\n    pub sum: Kernel<Sum>,\n}\n",
        "scale: Typed { f32: loader.kernel(\"scale_f32\", 128, 0)?, bf16: loader.kernel(\"scale_bf16\", 256, 0)?, f16: ",
        "round: Half { bf16: loader.kernel(\"round_bf16\", 64, 0)?, f16: loader.kernel(\"round_f16\", 64, 0)? },",
        "sum: loader.kernel(\"sum\", 32, 4096)?,\n",
        "Image { file: \"scale.cu\", kernels: &[\"scale_f32\", \"scale_bf16\", \"scale_f16\", \"round_bf16\", ",
    ] {
        assert!(host.contains(part), "{part}\nis not in\n{host}");
    }
    assert!(!host.contains("Unused"), "{host}");
    assert_eq!(
        parse(SCALE).unwrap().manifest(),
        b"warpfit kernels\nscale_f32\nscale_bf16\nscale_f16\nround_bf16\nround_f16\nsum\n\0"
    );
}

#[test]
fn source_lines_that_cannot_be_parsed_are_reported() {
    for (from, to, message) in [
        (
            "Scale<float>, 128)",
            "Scale<float>, THREADS)",
            "not understood: KERNEL(scale_f32, scale<float>, Scale<float>, THREADS)",
        ),
        ("Scale<float>, 128)", "Scale<float>)", "not understood: KERNEL(scale_f32"),
        ("unsigned rows;", "size_t rows;", "struct Scale: not a field that the host has a type for: size_t rows;"),
        ("    T* y;\n", "    T* y, z;\n", "struct Scale: not a field that the host has a type for: T* y, z;"),
        ("struct Sum {", "struct Total {", "struct Sum: a kernel needs it, but it is not in this file"),
        ("constexpr int ROWS = 8;", "constexpr int ROWS = 2 * 4;", "not understood: constexpr int ROWS = 2 * 4;  // host"),
        ("KERNEL(sum,", "KERNEL(scale_f32,", "scale_f32 is defined twice in kernels/*.cu"),
        (
            "KERNEL(sum, sum, Sum, 32, 4096)",
            "KERNEL(sum_bf16, s, Sum, 32)\nKERNEL(sum_f16, s, Scale<f16>, 32)",
            "sum_bf16: its argument is Sum, but Scale in f16; one struct for all",
        ),
    ] {
        assert!(SCALE.contains(from), "{from}");
        let host = parse(&SCALE.replacen(from, to, 1)).and_then(|source| source::host(&[source], HEADER, None, &[]));
        assert!(host.as_ref().is_err_and(|e| e.contains(message)), "{to}: wanted {message}, got {host:?}");
    }
}

// ---- finding nvcc

/// With these environment variables and no others.
fn find(vars: &[(&str, &Path)]) -> Result<Option<Nvcc>, String> {
    Nvcc::find(&|name| vars.iter().find(|var| var.0 == name).map(|var| OsString::from(var.1)))
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A fake nvcc: prints a version and these architectures, and runs `compile` to compile.
fn fake(path: &Path, version: &str, compile: &str) {
    let text = format!(
        "case $1 in --version) echo 'Cuda compilation tools, release {version}, V{version}.88';; \
         --list-gpu-code) printf 'sm_70\\nsm_75\\nsm_80\\nsm_90\\n';; *) {compile};; esac"
    );
    script(path, &text);
}

#[test]
fn nvcc_is_searched_in_a_fixed_order() {
    let folder = TempDir::new().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (named, home, cuda_path, on_path, python) =
        (place("my-nvcc"), place("home"), place("cuda"), place("bin"), place("site/nvidia/cu13/bin/nvcc"));
    for nvcc in [&named, &home.join("bin/nvcc"), &cuda_path.join("bin/nvcc"), &on_path.join("nvcc"), &python] {
        fake(nvcc, "13.0", "exit 1");
    }
    // A Python whose packages are in site.
    let real =
        std::env::split_paths(&std::env::var_os("PATH").unwrap()).map(|folder| folder.join("python3")).find(|p| p.is_file());
    let real = real.expect("python3 is on PATH");
    let with_python = place("python");
    let site = place("site");
    script(&with_python.join("python3"), &format!("PYTHONPATH={} exec {} -S \"$@\"", site.display(), real.display()));

    let found = |vars: &[(&str, &Path)]| find(vars).unwrap().map(|nvcc| nvcc.path);
    let all: [(&str, &Path); 4] = [("NVCC", &named), ("CUDA_HOME", &home), ("CUDA_PATH", &cuda_path), ("PATH", &on_path)];
    assert_eq!(found(&all), Some(named.clone()));
    assert_eq!(found(&all[1..]), Some(home.join("bin/nvcc")));
    assert_eq!(found(&all[2..]), Some(cuda_path.join("bin/nvcc")));
    assert_eq!(found(&all[3..]), Some(on_path.join("nvcc")));
    // Machines with a toolkit in the default folder have no later one.
    let usual = Some(PathBuf::from(USUAL)).filter(|nvcc| nvcc.is_file());
    assert_eq!(found(&[("PATH", &with_python)]), usual.clone().or(Some(python)));
    fs::remove_dir_all(&site).unwrap();
    assert_eq!(found(&[("PATH", &with_python)]), usual);
    assert_eq!(found(&[("CUDA_HOME", &site), ("CUDA_PATH", &cuda_path)]), Some(cuda_path.join("bin/nvcc")));

    let error = find(&[("NVCC", &site), ("PATH", &on_path)]).err().unwrap();
    assert!(error.contains("no such file; name an nvcc"), "{error}");
    // NVRTC is taken before nvcc if it is asked for.
    let asked = |path: Option<&Path>| Nvrtc::asked(&|name| path.filter(|_| name == "NVRTC").map(OsString::from));
    assert!(asked(None).is_ok_and(|nvrtc| nvrtc.is_none()));
    let [missing, text] = [asked(Some(&site)), asked(Some(&named))].map(|asked| asked.err().unwrap());
    assert!(missing.contains("no such file; name a libnvrtc.so.12"), "{missing}");
    assert!(text.contains("the headers of its CUDA are not beside it"), "{text}");
}

#[test]
fn an_old_nvcc_and_unknown_architectures_are_reported() {
    let folder = TempDir::new().unwrap();
    let nvcc = folder.path().join("nvcc");
    let find = |archs: &str| find(&[("NVCC", &nvcc), ("WARPFIT_CUDA_ARCHS", Path::new(archs))]);
    fake(&nvcc, "12.2", "exit 1");
    assert_eq!(find("80").unwrap().unwrap().version, (12, 2));
    let archs = |setting| find(setting).unwrap().unwrap().archs;
    assert_eq!(archs("80"), ["80"]);
    assert_eq!(archs(" 80  90a"), ["80", "90a"]);
    assert_eq!(find("").unwrap().map(|nvcc| nvcc.path), None);
    // By default all of ours that this nvcc supports.
    assert_eq!(self::find(&[("NVCC", &nvcc)]).unwrap().unwrap().archs, ["75", "80", "90a"]);
    for (setting, wrong) in [
        ("8.0", "8.0"),
        ("sm_80", "sm_80"),
        ("80,90a", "80,90a"),
        ("80 70", "70"),
        ("75 89", "89"),
        ("90b", "90b"),
        ("80aa", "80aa"),
    ] {
        let error = find(setting).err().unwrap();
        assert!(
            error.contains(&format!("{wrong:?} is not one of this compiler's architectures from 75 on (70 75 80 90)")),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    fake(&nvcc, "12.1", "exit 1");
    let error = find("80").err().unwrap();
    assert!(error.contains("this is nvcc 12.1, but the kernels need 12.2"), "{error}");
}

#[test]
fn compiled_kernels_are_reused_until_an_input_changes() {
    let folder = TempDir::new().unwrap();
    let (nvcc, out) = (folder.path().join("nvcc"), folder.path());
    // Writes a fatbin, and one line per call.
    let compile =
        format!("while [ $1 != -o ]; do shift; done; echo made > $2; echo once >> {}/times; echo no warning >&2", out.display());
    fake(&nvcc, "13.0", &compile);
    let times = || fs::read_to_string(out.join("times")).unwrap().lines().count();
    let make = |archs: &str, text: &str, headers: &str| {
        let nvcc = find(&[("NVCC", &nvcc), ("WARPFIT_CUDA_ARCHS", Path::new(archs))]).unwrap().unwrap();
        nvcc.compile(&parse(text).unwrap(), headers, out, 2)
    };
    for (archs, text, headers, expected) in [
        ("80", "a", "h", 1),
        ("80", "a", "h", 1),
        ("80", "b", "h", 2),
        ("80", "b", "i", 3),
        ("75", "b", "i", 4),
        ("75", "b", "i", 4),
    ] {
        assert_eq!(make(archs, text, headers).unwrap(), "no warning\n");
        assert_eq!((times(), fs::read_to_string(out.join("scale.fatbin")).unwrap().as_str()), (expected, "made\n"));
    }

    // A failure is reported with nvcc's message, and earlier output does not replace the failed one.
    fake(&nvcc, "13.0", "echo 'scale.cu(3): error: no such thing' >&2; exit 2");
    for text in ["c", "c", "b"] {
        let error = make("75", text, "i").unwrap_err();
        assert!(error.contains("scale.cu(3): error: no such thing") && error.contains("exit status: 2"), "{error}");
    }
}

// ---- what nvcc made

/// Kernels that may use local memory: (kernel, architecture, reason).
const ALLOWED: [(&str, &str, &str); 0] = [];

/// Faults of these kernels: missing for some architecture, or with local memory.
fn faults(kernels: &[String], archs: &[String], usages: &BTreeMap<(String, String), Usage>) -> Vec<String> {
    let pairs = kernels.iter().flat_map(|kernel| archs.iter().map(move |arch| (kernel.clone(), format!("sm_{arch}"))));
    let fault = |pair: (String, String)| match usages.get(&pair) {
        None => Some(format!("{} is missing for {}", pair.0, pair.1)),
        Some(usage) if !usage.local_memory() => None,
        Some(_) if ALLOWED.iter().any(|allowed| (allowed.0, allowed.1) == (pair.0.as_str(), pair.1.as_str())) => None,
        Some(usage) => Some(format!("{}, {}: {usage}", pair.0, pair.1)),
    };
    pairs.filter_map(fault).collect()
}

#[test]
fn spills_and_missing_kernels_are_detected_in_a_report() {
    let report = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4128 bytes smem, 416 bytes cmem[0]
ptxas info    : Compile time = 5.269 ms
ptxas info    : Compiling entry function 'b' for 'sm_90a'
ptxas info    : Function properties for b
    32 bytes stack frame, 24 bytes spill stores, 48 bytes spill loads
ptxas info    : Used 128 registers, used 0 barriers, 32 bytes cumulative stack size
";
    let usages = usages(report).unwrap();
    let usage = |kernel: &str, arch: &str| &usages[&(kernel.to_string(), arch.to_string())];
    assert_eq!(*usage("a", "sm_80"), Usage { registers: 40, shared: 4128, stack: 0, stores: 0, loads: 0 });
    assert_eq!(*usage("b", "sm_90a"), Usage { registers: 128, shared: 0, stack: 32, stores: 24, loads: 48 });
    let faults = faults(&["a".to_string(), "b".to_string()], &["80".to_string(), "90a".to_string()], &usages);
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(ptxas::usages(report.split("ptxas info    : Used 128").next().unwrap()).is_err());
    for (fault, part) in faults.iter().zip([
        "a is missing for sm_90a",
        "b is missing for sm_80",
        "b, sm_90a: 128 registers, 32 bytes of local memory, 24 of spill stores, 48 of spill loads",
    ]) {
        assert!(fault.contains(part), "{fault}");
    }
}

/// The architectures with machine code in this build; none without nvcc.
pub fn archs() -> Vec<String> {
    let kernels = include_str!(concat!(env!("OUT_DIR"), "/kernels.rs"));
    let (_, rest) = kernels.split_once("pub const ARCHS: &str = \"").unwrap();
    rest.split('"').next().unwrap().split_whitespace().map(str::to_string).collect()
}

/// The nvcc found on this machine.
fn nvcc() -> Nvcc {
    let nvcc = Nvcc::find(&|name| std::env::var_os(name)).unwrap();
    nvcc.expect("this test needs nvcc; docs/gpu.md describes how to install it")
}

/// The folder of the kernels.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// All sources, by name.
fn sources() -> Vec<Source> {
    let paths = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|ending| ending == "cu")).collect();
    paths.sort();
    paths.iter().map(|path| Source::parse(path, fs::read_to_string(path).unwrap()).unwrap()).collect()
}

/// The sources, each with the report of ptxas from the build.
fn built() -> Vec<(Source, String)> {
    assert!(!archs().is_empty(), "built without nvcc; docs/gpu.md describes how to install it");
    let with_report = |source: Source| {
        let report = fs::read_to_string(out(&source, "ptxas")).unwrap();
        (source, report)
    };
    sources().into_iter().map(with_report).collect()
}

/// The output of cuobjdump for a source's machine code on an architecture. It needs nvdisasm.
fn cuobjdump(source: &Source, what: &str, arch: &str) -> String {
    let nvcc = nvcc();
    let tools = nvcc.path.parent().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths([tools.to_path_buf()].into_iter().chain(std::env::split_paths(&path))).unwrap();
    let mut command = Command::new(tools.join("cuobjdump"));
    command.args([what, "-arch", arch]).arg(out(source, "fatbin")).env("PATH", &path);
    run(&mut command).expect("cuobjdump beside nvcc (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
}

/// A file of the build's output for a source.
fn out(source: &Source, ending: &str) -> PathBuf {
    Path::new(env!("OUT_DIR")).join(&source.stem).with_extension(ending)
}

#[test]
#[ignore = "needs a build with nvcc"]
fn every_kernel_compiles_for_every_architecture_without_local_memory() {
    let archs = archs();
    println!(
        "registers (and bytes of static shared memory)\n{:<28}{:>7}",
        "",
        archs.iter().map(|a| format!("{a:>13}")).collect::<String>()
    );
    let mut wrong = Vec::new();
    for (source, report) in built() {
        let usages = usages(&report).unwrap();
        let kernels: Vec<String> = source.kernels.iter().map(|kernel| kernel.name.clone()).collect();
        for kernel in &kernels {
            let cell = |arch| match usages.get(&(kernel.clone(), format!("sm_{arch}"))) {
                Some(Usage { registers, shared: 0, .. }) => registers.to_string(),
                Some(Usage { registers, shared, .. }) => format!("{registers} ({shared})"),
                None => "-".to_string(),
            };
            println!("{kernel:<28}{}", archs.iter().map(|arch| format!("{:>13}", cell(arch))).collect::<String>());
        }
        let others = usages.keys().filter(|(kernel, _)| !kernels.contains(kernel));
        wrong.extend(others.map(|(kernel, _)| format!("{kernel} has no KERNEL line")));
        wrong.extend(faults(&kernels, &archs, &usages));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Machine code of CUDA 12, which drivers from 12.0 on run, with every kernel and no local memory.
#[test]
#[ignore = "needs NVRTC 12: nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12"]
fn nvrtc_12_compiles_every_kernel_for_sm_75() {
    let nvrtc = Nvrtc::find(&|name| if name == "WARPFIT_CUDA_ARCHS" { Some("75".into()) } else { std::env::var_os(name) });
    let nvrtc = nvrtc.unwrap().expect("this test needs NVRTC; docs/gpu.md describes how to install it");
    assert_eq!((nvrtc.version.0, nvrtc.archs.as_slice()), (12, &["75".to_string()][..]));
    drop(gpu());
    let context = CudaContext::new(0).unwrap();
    let folder = TempDir::new().unwrap();
    let headers = "";
    for source in sources() {
        let (report, targets) = nvrtc.compile(&source, headers, folder.path(), 1).unwrap();
        assert_eq!(targets, ["75"]);
        let kernels: Vec<String> = source.kernels.iter().map(|kernel| kernel.name.clone()).collect();
        assert_eq!(faults(&kernels, &targets, &usages(&report).unwrap()), [""; 0]);
        let mut image = fs::read(folder.path().join(format!("{}.75", source.stem))).unwrap();
        // That of CUDA 13 is version 8.
        assert_eq!((&image[..4], image[8]), (&b"\x7fELF"[..], 7), "the version of the binary interface");
        // As the virtual GPU finds them: behind the code.
        image.extend(source.manifest());
        let module = context.load_module(Ptx::from_binary(image)).unwrap();
        kernels.iter().for_each(|kernel| drop(module.load_function(kernel).unwrap()));
    }
}

#[test]
#[ignore = "needs nvcc"]
fn nvcc_reports_a_kernel_that_spills() {
    // 128 live values, where a block of 1024 threads leaves 64 registers to each thread.
    let text = "
struct Spill {
    float* x;
};
#define KERNEL(name, body, Args, threads) extern \"C\" __global__ void __launch_bounds__(threads) name(Args a) { body(a); }
__device__ void body(Spill a) {
    float x[128];
#pragma unroll
    for (int i = 0; i < 128; i++) x[i] = a.x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 128; i++) a.x[i] = x[127 - i] * x[(i + 64) % 128];
}
KERNEL(spills, body, Spill, 1024)
";
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spill.cu");
    fs::write(&path, text).unwrap();
    let source = Source::parse(&path, text.to_string()).unwrap();
    let nvcc = nvcc();
    let report = nvcc.compile(&source, "", folder.path(), 1).unwrap();
    let faults = faults(&["spills".to_string()], &nvcc.archs, &usages(&report).unwrap());
    assert_eq!(faults.len(), nvcc.archs.len(), "{faults:?}");
    assert!(faults.iter().all(|fault| !fault.contains(" 0 of spill stores")), "{faults:?}");
}
