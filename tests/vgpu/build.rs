//! Compiles the emulator and the kernels with the host's C++ compiler into libcuda.so, libcublasLt.so and
//! libvgpu_kernels.so. VGPU_SANITIZE=address or thread compiles the kernels for that sanitizer (sanitize.sh); VGPU_FMA=1 lets the
//! compiler contract products and sums into fused multiply-adds, as nvcc does (tests/full).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("the virtual GPU is written for Linux on x86-64");

/// Flags of the kernels. Failures of the compiler's checks are handled in scheduler.cpp.
const KERNELS: &str = "-x c++ -std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -fno-strict-aliasing -fno-gnu-unique -ftls-model=local-dynamic \
                       -Wall -Wno-unknown-pragmas -Wno-sign-compare -fsanitize=alignment,bounds -fno-sanitize-recover=all";
const EMULATOR: &str = "-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -ftls-model=initial-exec -Wall -Wextra \
                        -Wno-missing-field-initializers";

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let emulator = here.join("emulator");
    let kernels = here.ancestors().nth(2).expect("this crate lies in tests/vgpu").join("kernels");
    let own_kernels = [here.join("faults.cu"), here.join("samples.cu")];
    for path in [&emulator, &kernels].into_iter().chain(&own_kernels) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-env-changed=VGPU_SANITIZE");
    println!("cargo::rerun-if-env-changed=VGPU_FMA");
    let sanitizer = match env::var("VGPU_SANITIZE").as_deref() {
        Ok(name @ ("address" | "thread")) => format!("-fsanitize={name} -DVGPU_STATIC_SHARED"),
        Ok(other) => panic!("VGPU_SANITIZE={other}: address or thread"),
        Err(_) => String::new(),
    };
    let contraction = if env::var_os("VGPU_FMA").is_some() { "-mfma -ffp-contract=fast" } else { "-ffp-contract=off" };
    let compiler = cc::Build::new().cpp(true).cargo_warnings(false).try_get_compiler();
    let compiler = Compiler { path: compiler.expect("a C++ compiler").path().into(), out };

    let include = format!("-I{} -I{}", emulator.display(), kernels.display());
    let emulator_sources =
        ["scheduler.cpp", "memory.cpp", "streams.cpp", "driver.cpp", "blaslt.cpp"].map(|name| emulator.join(name));
    let mut kernel_sources: Vec<PathBuf> =
        fs::read_dir(&kernels).expect("kernels/").map(|entry| entry.expect("a readable folder").path()).collect();
    kernel_sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    kernel_sources.extend(own_kernels);
    kernel_sources.sort();
    let (emulator_objects, kernel_objects) = thread::scope(|scope| {
        let kernel_flags = format!("{KERNELS} {contraction} {sanitizer} {include}");
        let compile = |source: &Path, flags: String| {
            let (compiler, source) = (&compiler, source.to_owned());
            scope.spawn(move || compiler.compile(&source, &flags))
        };
        let emulator: Vec<_> = emulator_sources.iter().map(|source| compile(source, EMULATOR.into())).collect();
        let kernels: Vec<_> = kernel_sources.iter().map(|source| compile(source, kernel_flags.clone())).collect();
        let join = |jobs: Vec<thread::ScopedJoinHandle<PathBuf>>| -> Vec<PathBuf> {
            jobs.into_iter().map(|job| job.join().unwrap_or_else(|_| std::process::exit(1))).collect()
        };
        (join(emulator), join(kernels))
    });
    let (driver, blaslt) = emulator_objects.split_at(4);
    let cuda = compiler.link("libcuda.so", driver, "");
    compiler.link("libcublasLt.so", blaslt, cuda.to_str().expect("a path in UTF-8"));
    // The sanitizer's runtime is preloaded.
    compiler.link("libvgpu_kernels.so", &kernel_objects, cuda.to_str().expect("a path in UTF-8"));
    println!("cargo::rustc-env=VGPU_BUILT_IN={}", compiler.out.display());
}

struct Compiler {
    path: PathBuf,
    out: PathBuf,
}

impl Compiler {
    fn compile(&self, source: &Path, flags: &str) -> PathBuf {
        let object = self.out.join(source.with_extension("o").file_name().expect("a file"));
        self.run(Command::new(&self.path).args(flags.split_whitespace()).arg("-c").arg(source).arg("-o").arg(&object));
        object
    }

    fn link(&self, name: &str, objects: &[PathBuf], library: &str) -> PathBuf {
        let path = self.out.join(name);
        let soname = format!("-Wl,-soname,{name}");
        let libraries = library.split_whitespace();
        self.run(Command::new(&self.path).args(["-shared", &soname, "-o"]).arg(&path).args(objects).args(libraries));
        path
    }

    fn run(&self, command: &mut Command) {
        let output = command.output();
        let output = output.unwrap_or_else(|error| {
            panic!("the virtual GPU needs a C++ compiler (apt-get install g++, or set CXX); {}: {error}", self.path.display())
        });
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command:?}: {}", output.status);
    }
}
