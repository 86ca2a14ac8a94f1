//! Compiles kernels/*.cu with nvcc or NVRTC and writes the host side into OUT_DIR: `kernels.rs` (argument structs and the table
//! of kernels), and for each source its images (machine code, followed by the kernels' names, which are all that the virtual GPU
//! reads) and `.ptxas` (registers, shared memory and spills of each kernel). Without a compiler an image has the names alone.
//! The build does not query the machine's GPU.

#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/nvrtc.rs"]
mod nvrtc;
#[path = "build/ptxas.rs"]
mod ptxas;
#[path = "build/source.rs"]
mod source;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use nvcc::Nvcc;
use nvrtc::Nvrtc;
use source::{Built, Source};

enum Compiler {
    Nvcc(Nvcc),
    Nvrtc(Nvrtc),
}

impl Compiler {
    /// NVRTC if it is asked for, else nvcc, else NVRTC if there is one.
    fn find(var: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Compiler>, String> {
        if let Some(nvrtc) = Nvrtc::asked(var)? {
            return Ok(Some(Compiler::Nvrtc(nvrtc)));
        }
        match Nvcc::find(var)? {
            Some(nvcc) => Ok(Some(Compiler::Nvcc(nvcc))),
            None => match Nvrtc::find(var) {
                // Python's packages may have brought it for something else.
                Err(e) if var("WARPFIT_CUDA_ARCHS").is_none() => {
                    println!("cargo::warning=NVRTC is not used: {e}");
                    Ok(None)
                }
                found => Ok(found?.map(Compiler::Nvrtc)),
            },
        }
    }

    fn path(&self) -> &Path {
        match self {
            Compiler::Nvcc(nvcc) => &nvcc.path,
            Compiler::Nvrtc(nvrtc) => &nvrtc.path,
        }
    }

    /// What it makes, without the images.
    fn built(&self) -> Built {
        match self {
            Compiler::Nvcc(Nvcc { version, archs, .. }) => Built { by: "nvcc", version: *version, archs: archs.join(" ") },
            Compiler::Nvrtc(Nvrtc { version, archs, .. }) => Built { by: "NVRTC", version: *version, archs: archs.join(" ") },
        }
    }

    /// The report of ptxas, and the endings of the files with code.
    fn compile(&self, source: &Source, headers: &str, out: &Path, jobs: usize) -> Result<(String, Vec<String>), String> {
        match self {
            Compiler::Nvcc(nvcc) => Ok((nvcc.compile(source, headers, out, jobs)?, vec!["fatbin".to_string()])),
            Compiler::Nvrtc(nvrtc) => nvrtc.compile(source, headers, out, jobs),
        }
    }
}

fn main() {
    if let Err(message) = build() {
        message.lines().for_each(|line| println!("cargo::error={line}"));
    }
}

fn build() -> Result<(), String> {
    let folder = Path::new("kernels");
    println!("cargo::rerun-if-changed={}", folder.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let sources = read(folder, "cu")?.into_iter().map(|(path, text)| Source::parse(&path, text));
    let sources: Vec<Source> = sources.collect::<Result<_, _>>()?;
    let headers: String = read(folder, "cuh")?.into_iter().map(|(_, text)| text).collect();

    // Cargo reruns this when one of these changes, and for nothing else.
    let compiler = Compiler::find(&|name| {
        println!("cargo::rerun-if-env-changed={name}");
        env::var_os(name)
    })?;
    match &compiler {
        Some(compiler) => println!("cargo::rerun-if-changed={}", compiler.path().display()),
        None => {
            println!("cargo::warning=built without GPU code; docs/gpu.md describes how to install nvcc (then: touch build.rs)")
        }
    }
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let mut targets = vec!["none".to_string()];
    for source in &sources {
        let file = |ending: &str| out.join(format!("{}.{ending}", source.stem));
        if let Some(compiler) = &compiler {
            let (report, made) = compiler.compile(source, &headers, &out, jobs)?;
            report.lines().filter(|line| line.contains("warning")).for_each(|line| println!("cargo::warning={line}"));
            for ((kernel, arch), usage) in ptxas::usages(&report)?.iter().filter(|(_, usage)| usage.local_memory()) {
                println!("cargo::warning={kernel}, {arch}: {usage}");
            }
            targets = made;
        }
        for target in &targets {
            let mut image = if compiler.is_some() { fs::read(file(target)).map_err(|e| e.to_string())? } else { Vec::new() };
            image.extend(source.manifest());
            write(&file(&format!("{target}.image")), &image)?;
        }
    }
    let built = compiler.as_ref().map(Compiler::built);
    write(&out.join("kernels.rs"), source::host(&sources, &headers, built.as_ref(), &targets)?.as_bytes())
}

/// The files of a folder with this extension, sorted by name, with their contents.
fn read(folder: &Path, ending: &str) -> Result<Vec<(PathBuf, String)>, String> {
    let failed = |e: io::Error| format!("{}: {e}", folder.display());
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
    let paths = entries.into_iter().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == ending));
    let mut files =
        paths.map(|path| fs::read_to_string(&path).map(|text| (path, text))).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    files.sort();
    Ok(files)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}
