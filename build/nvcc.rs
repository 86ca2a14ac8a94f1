//! Finds nvcc, and compiles kernels with it: one fatbin per source, with machine code for each architecture and PTX for future
//! GPUs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::source::Source;

pub const USUAL: &str = "/usr/local/cuda/bin/nvcc";
/// The first version whose cuda_bf16.h converts pairs of bf16 below sm_80 too.
const LEAST: (u32, u32) = (12, 2);
/// Machine code runs on GPUs of its own major version, from its minor version on; that for 90a on 9.0 alone.
const ARCHS: [&str; 7] = ["75", "80", "86", "89", "90a", "100", "120"];
/// The driver compiles PTX of this version for a GPU without machine code here.
pub const PTX: &str = "80";

pub struct Nvcc {
    pub path: PathBuf,
    /// 13.0 is (13, 0).
    pub version: (u32, u32),
    /// "90a".
    pub archs: Vec<String>,
    ptx: bool,
    /// Complete output of `nvcc --version`.
    said: String,
}

impl Nvcc {
    /// The nvcc of this machine, if there is one, and the architectures to compile for; `None` also if `WARPFIT_CUDA_ARCHS` is
    /// empty. `var` reads the environment.
    pub fn find(var: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Nvcc>, String> {
        let setting = var("WARPFIT_CUDA_ARCHS").map(|setting| setting.to_string_lossy().into_owned());
        if setting.as_ref().is_some_and(|setting| setting.trim().is_empty()) {
            return Ok(None);
        }
        let Some(path) = path(var)? else { return Ok(None) };
        let said = run(Command::new(&path).arg("--version"))?;
        let version = version(&said).ok_or_else(|| format!("{}: it does not report its version", path.display()))?;
        if version < LEAST {
            let ((major, minor), (least, after)) = (version, LEAST);
            return Err(format!("{}: this is nvcc {major}.{minor}, but the kernels need {least}.{after}", path.display()));
        }
        let known = run(Command::new(&path).arg("--list-gpu-code"))?;
        let known: Vec<&str> = known.lines().filter_map(|line| line.trim().strip_prefix("sm_")).collect();
        let archs = archs(setting.as_deref(), &known)?;
        Ok(Some(Nvcc { path, version, archs, ptx: setting.is_none(), said }))
    }

    /// Compiles a source into `<stem>.fatbin`, with the report of ptxas in `<stem>.ptxas`, which is also returned. Runs at most
    /// `jobs` processes. An up-to-date result is reused.
    pub fn compile(&self, source: &Source, headers: &str, out: &Path, jobs: usize) -> Result<String, String> {
        let file = |ending| out.join(&source.stem).with_extension(ending);
        let mut command = Command::new(&self.path);
        command.args(["-fatbin", "-std=c++17", "-lineinfo", "-Xptxas=-v"]);
        // Reduces the size to a quarter: it is mostly line numbers.
        command.arg("-Xfatbin=-compress-all");
        for arch in &self.archs {
            command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
        }
        if self.ptx {
            command.arg(format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
        }
        command.arg("-o").arg(file("fatbin")).arg(&source.path);

        // Everything that determines the result, at the time of the result.
        let inputs = format!("{}\n{command:?}\n{headers}\n{}", self.said, source.text);
        if fs::read_to_string(file("inputs")).is_ok_and(|before| before == inputs) {
            return fs::read_to_string(file("ptxas")).map_err(|e| e.to_string());
        }
        let _ = fs::remove_file(file("inputs"));
        // This many architectures in parallel; the reports are not interleaved.
        let report = run(command.arg(format!("--threads={jobs}")));
        let report = report.map_err(|e| format!("{e}\nto build without GPU code, set WARPFIT_CUDA_ARCHS to the empty string"))?;
        fs::write(file("ptxas"), &report).and_then(|()| fs::write(file("inputs"), inputs)).map_err(|e| e.to_string())?;
        Ok(report)
    }
}

/// `NVCC`; the toolkit in `CUDA_HOME` or `CUDA_PATH`; PATH; the default folder; the one that pip installed beside the active
/// Python.
fn path(var: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<PathBuf>, String> {
    let there = |path: PathBuf| path.is_file().then_some(path);
    if let Some(nvcc) = var("NVCC") {
        let message = format!("NVCC={}: no such file; name an nvcc, or unset it to search for one", nvcc.display());
        return there(nvcc.into()).map(Some).ok_or(message);
    }
    let toolkit = |name| there(PathBuf::from(var(name)?).join("bin/nvcc"));
    let on_path = |name| env::split_paths(&var("PATH")?).find_map(|folder| there(folder.join(name)));
    let python = || {
        let newest = "import glob, nvidia; print(next(max(n) for p in nvidia.__path__ if (n := glob.glob(p + '/cu*/bin/nvcc'))))";
        let said = run(Command::new(on_path("python3")?).args(["-c", newest])).ok()?;
        there(said.trim_end().into())
    };
    let usual = || there(USUAL.into());
    Ok(toolkit("CUDA_HOME").or_else(|| toolkit("CUDA_PATH")).or_else(|| on_path("nvcc")).or_else(usual).or_else(python))
}

/// "release 13.0, V13.0.88"
fn version(said: &str) -> Option<(u32, u32)> {
    let (release, _) = said.split_once("release ")?.1.split_once(',')?;
    let (major, minor) = release.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `WARPFIT_CUDA_ARCHS`, checked, or those of `ARCHS` that this compiler supports.
pub fn archs(setting: Option<&str>, known: &[&str]) -> Result<Vec<String>, String> {
    // "90a" is sm_90 with architecture-specific features. nvcc lists the numbers alone.
    let knows = |arch: &str| known.contains(&arch.strip_suffix(['a', 'f']).unwrap_or(arch));
    let Some(setting) = setting else {
        return Ok(ARCHS.into_iter().filter(|arch| knows(arch)).map(str::to_string).collect());
    };
    let fits = |arch: &str| knows(arch) && arch.trim_end_matches(['a', 'f']).parse().is_ok_and(|number: u32| number >= 75);
    let one = |arch: &str| match fits(arch) {
        true => Ok(arch.to_string()),
        false => Err(format!(
            "WARPFIT_CUDA_ARCHS={setting:?}: {arch:?} is not one of this compiler's architectures from 75 on ({}); list their numbers, \
             separated by spaces, like \"80 90a\", or the empty string to build without GPU code",
            known.join(" ")
        )),
    };
    setting.split_whitespace().map(one).collect()
}

/// The output of a command; or, if it failed, the command and its output.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { Ok(text) } else { Err(format!("{command:?}: {}\n{}", output.status, text.trim_end())) }
}
