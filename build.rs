//! Compiles kernels/*.cu with nvcc and writes the host side into OUT_DIR: `kernels.rs` (argument structs and the table of
//! kernels), and for each source its `.image` (machine code, followed by the kernels' names, which are all that the virtual GPU
//! reads) and `.ptxas` (registers, shared memory and spills of each kernel). Without nvcc an image has the names alone. The
//! build does not query the machine's GPU.

#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/ptxas.rs"]
mod ptxas;
#[path = "build/source.rs"]
mod source;

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use nvcc::Nvcc;
use source::Source;

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
    let nvcc = Nvcc::find(&|name| {
        println!("cargo::rerun-if-env-changed={name}");
        env::var_os(name)
    })?;
    match &nvcc {
        Some(nvcc) => println!("cargo::rerun-if-changed={}", nvcc.path.display()),
        None => {
            println!("cargo::warning=built without GPU code; docs/gpu.md describes how to install nvcc (then: touch build.rs)")
        }
    }
    let archs = nvcc.as_ref().map(|nvcc| (nvcc.version, nvcc.archs.join(" ")));
    write(&out.join("kernels.rs"), source::host(&sources, &headers, archs)?.as_bytes())?;
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    for source in &sources {
        let mut image = Vec::new();
        if let Some(nvcc) = &nvcc {
            let report = nvcc.compile(source, &headers, &out, jobs)?;
            report.lines().filter(|line| line.contains("warning")).for_each(|line| println!("cargo::warning={line}"));
            for ((kernel, arch), usage) in ptxas::usages(&report)?.iter().filter(|(_, usage)| usage.local_memory()) {
                println!("cargo::warning={kernel}, {arch}: {usage}");
            }
            image = fs::read(out.join(&source.stem).with_extension("fatbin")).map_err(|e| e.to_string())?;
        }
        image.extend(source.manifest());
        write(&out.join(&source.stem).with_extension("image"), &image)?;
    }
    Ok(())
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
