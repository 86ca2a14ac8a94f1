//! Compiles kernels/*.cu with nvcc, one fatbin a file, and writes the host's side of them: the argument structs and the
//! table of kernels, read from the same sources. Without nvcc the build says so once and goes on: the images then hold
//! the kernels' names alone. Nothing here asks the machine about its GPU.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// A `KERNEL(name, body, arguments, threads)` line.
struct Kernel {
    name: String,
    /// Without its template parameter.
    arguments: String,
    threads: u32,
}

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let folder = root.join("kernels");
    println!("cargo::rerun-if-changed={}", folder.display());
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "VIRTUAL_ENV", "WARPFIT_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let mut sources: Vec<PathBuf> = files(&folder).filter(|path| path.extension().is_some_and(|ext| ext == "cu")).collect();
    sources.sort();

    let nvcc = find_nvcc();
    let mut host = String::new();
    let mut kernels = Vec::new();
    let mut images = String::new();
    for source in &sources {
        let text = fs::read_to_string(source).expect("a readable source");
        structs(&text, &mut host);
        let here = parse_kernels(&text, source);
        let stem = source.file_stem().unwrap().to_str().expect("a plain name");
        let names: Vec<&str> = here.iter().map(|kernel| kernel.name.as_str()).collect();
        let _ = writeln!(
            images,
            "    Image {{ file: \"{stem}.cu\", kernels: &{names:?}, bytes: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.image\")) }},"
        );
        kernels.extend(here);
    }
    table(&kernels, &mut host);
    let _ = writeln!(host, "pub const IMAGES: &[Image] = &[\n{images}];");
    fs::write(out.join("kernels.rs"), host).expect("a writable OUT_DIR");
    compile(nvcc.as_deref(), &sources, &out);
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("a readable folder").path())
}

/// The `KERNEL(name, body, arguments, threads)` lines of a source; a body may hold commas in parentheses.
fn parse_kernels(text: &str, source: &Path) -> Vec<Kernel> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("KERNEL("));
    let parse = |line: &str| {
        let (inside, _) = line.rsplit_once(')')?;
        let (name, rest) = inside.split_once(", ")?;
        let (rest, threads) = rest.rsplit_once(", ")?;
        let (_, arguments) = rest.rsplit_once(", ")?;
        let arguments = arguments.split('<').next()?;
        Some(Kernel { name: name.into(), arguments: arguments.into(), threads: threads.parse().ok()? })
    };
    lines.map(|line| parse(line).unwrap_or_else(|| panic!("{}: not understood: KERNEL({line}", source.display()))).collect()
}

/// The argument structs that the kernels of a source name, as Rust has them.
fn structs(text: &str, host: &mut String) {
    let kernels = parse_kernels(text, Path::new("kernels"));
    for part in text.split("\nstruct ").skip(1).chain(text.split("\ntemplate <class T> struct ").skip(1)) {
        let Some((name, body)) = part.split_once(" {\n") else { continue };
        if !kernels.iter().any(|kernel| kernel.arguments == name) {
            continue;
        }
        let (fields, _) = body.split_once("\n};").unwrap_or_else(|| panic!("struct {name} does not end"));
        let _ = writeln!(host, "#[repr(C)]\n#[derive(Clone, Copy, Debug)]\npub struct {name} {{");
        for field in fields.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let (declaration, comment) = field.split_once(';').unwrap_or_else(|| panic!("struct {name}: {field}: no field"));
            let (kind, field) = declaration.trim().rsplit_once(' ').unwrap_or_else(|| panic!("struct {name}: {field}: no field"));
            let kind = match kind {
                pointer if pointer.ends_with('*') => "Ptr",
                "int" => "i32",
                "unsigned" => "u32",
                "float" => "f32",
                "double" => "f64",
                "Drop" => "Drop",
                _ => panic!("struct {name}: {field} is of type {kind}, which the host has no name for"),
            };
            if let Some((_, comment)) = comment.split_once("// ") {
                let _ = writeln!(host, "    /// {comment}");
            }
            let _ = writeln!(host, "    pub {field}: {kind},");
        }
        let _ = writeln!(
            host,
            "}}\n// SAFETY: plain old data, laid out as the kernel's own.\nunsafe impl DeviceRepr for {name} {{}}\n"
        );
    }
}

/// The table of all kernels. A pair `x_f32`, `x_bf16` is one field `x`.
fn table(kernels: &[Kernel], host: &mut String) {
    let (mut fields, mut values) = (String::new(), String::new());
    let find = |name: &str| kernels.iter().find(|kernel| kernel.name == name);
    let load = |Kernel { name, threads, .. }: &Kernel| format!("loader.kernel(\"{name}\", {threads})?");
    for kernel in kernels {
        let Kernel { name, arguments, .. } = kernel;
        let stem = name.strip_suffix("_f32").or(name.strip_suffix("_bf16")).unwrap_or(name);
        match (find(&format!("{stem}_f32")), find(&format!("{stem}_bf16"))) {
            (Some(single), Some(half)) => {
                assert_eq!(single.arguments, half.arguments, "{stem}: two types, two kinds of arguments");
                if single.name == *name {
                    let _ = writeln!(fields, "    pub {stem}: Typed<{arguments}>,");
                    let _ = writeln!(values, "            {stem}: Typed {{ f32: {}, bf16: {} }},", load(single), load(half));
                }
            }
            _ => {
                let _ = writeln!(fields, "    pub {name}: Kernel<{arguments}>,");
                let _ = writeln!(values, "            {name}: {},", load(kernel));
            }
        }
    }
    let _ = writeln!(host, "/// Every kernel, found once.\npub struct Kernels {{\n{fields}}}\n");
    let _ = writeln!(host, "impl Kernels {{\n    pub fn load(loader: &Loader) -> Result<Kernels> {{");
    let _ = writeln!(host, "        Ok(Kernels {{\n{values}        }})\n    }}\n}}\n");
}

/// Where nvcc is: `NVCC`, the toolkit of `CUDA_HOME` or `CUDA_PATH`, PATH, the usual place, the active Python's packages.
fn find_nvcc() -> Option<PathBuf> {
    let toolkit = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let candidates = env::var_os("NVCC").map(PathBuf::from).into_iter().chain(toolkit).chain(on_path);
    let candidates = candidates.chain([PathBuf::from("/usr/local/cuda/bin/nvcc")]);
    candidates.into_iter().find(|path| path.is_file()).or_else(python_nvcc)
}

/// In `nvidia/cu*/bin` of the active Python's site-packages, where pip puts it.
fn python_nvcc() -> Option<PathBuf> {
    let script = "import glob, site, sys; print(*(p for s in site.getsitepackages() + [site.getusersitepackages()] \
                  for p in sorted(glob.glob(s + '/nvidia/cu*/bin/nvcc'))), sep='\\n')";
    let output = Command::new("python3").args(["-c", script]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().map(PathBuf::from).find(|path| path.is_file())
}

/// Writes `<stem>.image` for each source: a fatbin where there is an nvcc, and behind it the names of its kernels, which is
/// all that the virtual GPU reads.
fn compile(nvcc: Option<&Path>, sources: &[PathBuf], out: &Path) {
    let archs = env::var("WARPFIT_CUDA_ARCHS").unwrap_or("75 80 86 89 90a".into());
    println!("cargo::rustc-env=WARPFIT_ARCHS={archs}");
    match nvcc {
        Some(nvcc) => println!("cargo::rustc-env=WARPFIT_NVCC={}", version(nvcc)),
        None => println!("cargo::warning=no nvcc found: built without GPU code; see \"nvcc\" in README.md"),
    }
    let archs = &archs;
    std::thread::scope(|scope| {
        for source in sources {
            scope.spawn(move || {
                let stem = source.file_stem().unwrap().to_str().unwrap();
                let fatbin = out.join(format!("{stem}.fatbin"));
                let mut image = Vec::new();
                if let Some(nvcc) = nvcc {
                    let mut command = Command::new(nvcc);
                    command.args(["-fatbin", "-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-warn-spills"]);
                    for arch in archs.split_whitespace() {
                        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
                    }
                    for arch in ["75", "80"] {
                        command.arg(format!("-gencode=arch=compute_{arch},code=compute_{arch}"));
                    }
                    let output = command.arg("-o").arg(&fatbin).arg(source).output().expect("nvcc starts");
                    assert!(output.status.success(), "nvcc: {}", String::from_utf8_lossy(&output.stderr));
                    image = fs::read(&fatbin).expect("nvcc wrote it");
                }
                let text = fs::read_to_string(source).expect("a readable source");
                image.extend(b"warpfit kernels\n");
                parse_kernels(&text, source).iter().for_each(|kernel| image.extend(format!("{}\n", kernel.name).bytes()));
                image.push(0);
                fs::write(out.join(format!("{stem}.image")), image).expect("a writable OUT_DIR");
            });
        }
    });
}

/// "13.0".
fn version(nvcc: &Path) -> String {
    let output = Command::new(nvcc).arg("--version").output().expect("nvcc starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, rest) = text.split_once("release ").expect("nvcc says its release");
    rest.split(',').next().unwrap().into()
}
