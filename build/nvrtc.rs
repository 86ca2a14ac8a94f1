//! CUDA's compiler as a library (NVRTC), for machines without nvcc, and for drivers older than it: machine code of CUDA 12 runs on
//! the drivers of 12.0 and all newer ones. One file of machine code per source and architecture, and PTX for future GPUs.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::Mutex;
use std::{env, fs, thread};

use libloading::Library;

use super::nvcc::{PTX, archs, run};
use super::source::Source;

/// What NVRTC has no header for.
const CSTDINT: &CStr = c"#pragma once
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using int64_t = long long;
#define INFINITY __int_as_float(0x7f800000)
";

pub struct Nvrtc {
    pub path: PathBuf,
    /// 12.9 is (12, 9).
    pub version: (u32, u32),
    /// "90a".
    pub archs: Vec<String>,
    ptx: bool,
    library: Library,
    /// Folders of cuda_fp16.h and what it includes.
    include: Vec<PathBuf>,
}

impl Nvrtc {
    /// The library that `NVRTC` names.
    pub fn asked(var: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Nvrtc>, String> {
        let Some(path) = var("NVRTC").map(PathBuf::from) else { return Ok(None) };
        if !path.is_file() {
            return Err(format!("NVRTC={}: no such file; name a libnvrtc.so.12, or unset it", path.display()));
        }
        Nvrtc::open(path, var)
    }

    /// The newest that pip installed beside the active Python.
    pub fn find(var: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Nvrtc>, String> {
        let newest = "import glob, nvidia; print(max((n for p in nvidia.__path__ for n in glob.glob(p + '/*/lib/libnvrtc.so.*')), \
                      key=lambda n: int(n.rsplit('.', 1)[1])))";
        let python = var("PATH").and_then(|path| env::split_paths(&path).map(|p| p.join("python3")).find(|p| p.is_file()));
        let found = python.and_then(|python| run(Command::new(python).args(["-c", newest])).ok());
        let path = found.map(|found| PathBuf::from(found.trim_end())).filter(|path| path.is_file());
        path.map_or(Ok(None), |path| Nvrtc::open(path, var))
    }

    fn open(path: PathBuf, var: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Nvrtc>, String> {
        let setting = var("WARPFIT_CUDA_ARCHS").map(|setting| setting.to_string_lossy().into_owned());
        if setting.as_ref().is_some_and(|setting| setting.trim().is_empty()) {
            return Ok(None);
        }
        let at = |message: String| format!("{}: {message}", path.display());
        // Those of a toolkit or of pip's packages for CUDA 13 are beside lib; for CUDA 12 they are packages of their own.
        let folder = path.parent().and_then(Path::parent).ok_or_else(|| at("not in a folder lib".into()))?;
        let folders = ["include", "../cuda_runtime/include"].map(|name| folder.join(name));
        let include: Vec<PathBuf> = folders.into_iter().filter(|folder| folder.is_dir()).collect();
        if !include.iter().any(|folder| folder.join("cuda_fp16.h").is_file()) {
            let remedy = "pip install nvidia-cuda-runtime-cu12";
            return Err(at(format!("the headers of its CUDA are not beside it; {remedy}")));
        }
        // SAFETY: the library of NVIDIA, which runs no code of ours when it is loaded.
        let library = unsafe { Library::new(&path) }.map_err(|e| at(e.to_string()))?;
        let mut nvrtc = Nvrtc { path, version: (0, 0), archs: Vec::new(), ptx: setting.is_none(), library, include };
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the signatures are those of nvrtc.h; the pointers are to variables of these types.
        unsafe {
            nvrtc.call::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>("nvrtcVersion", |f| f(&mut major, &mut minor))?;
            nvrtc.call::<unsafe extern "C" fn(*mut c_int) -> c_int>("nvrtcGetNumSupportedArchs", |f| f(&mut count))?;
        }
        let mut known = vec![0 as c_int; count as usize];
        // SAFETY: there is space for all of them.
        unsafe {
            nvrtc.call::<unsafe extern "C" fn(*mut c_int) -> c_int>("nvrtcGetSupportedArchs", |f| f(known.as_mut_ptr()))?;
        }
        let known: Vec<String> = known.iter().map(c_int::to_string).collect();
        nvrtc.archs = archs(setting.as_deref(), &known.iter().map(String::as_str).collect::<Vec<_>>())?;
        nvrtc.version = (major as u32, minor as u32);
        Ok(Some(nvrtc))
    }

    /// Compiles a source, for each architecture into `<stem>.<arch>`, and returns these names with the report of ptxas, which
    /// is also in `<stem>.ptxas`. Runs at most `jobs` threads. An up-to-date result is reused.
    pub fn compile(&self, source: &Source, headers: &str, out: &Path, jobs: usize) -> Result<(String, Vec<String>), String> {
        let file = |ending: &str| out.join(format!("{}.{ending}", source.stem));
        let targets: Vec<String> = self.archs.iter().cloned().chain(self.ptx.then(|| format!("ptx{PTX}"))).collect();
        let inputs = format!("NVRTC {:?}\n{targets:?}\n{headers}\n{}", self.version, source.text);
        if fs::read_to_string(file("inputs")).is_ok_and(|before| before == inputs) {
            return fs::read_to_string(file("ptxas")).map(|report| (report, targets)).map_err(|e| e.to_string());
        }
        let _ = fs::remove_file(file("inputs"));
        let (next, done) = (Mutex::new(targets.iter()), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..jobs.min(targets.len()) {
                scope.spawn(|| {
                    while let Some(target) = { next.lock().unwrap().next() } {
                        let made = self.compile_for(source, target);
                        done.lock().unwrap().push((target, made));
                    }
                });
            }
        });
        let mut report = String::new();
        for (target, made) in done.into_inner().unwrap() {
            let (log, code) = made?;
            report.push_str(&log);
            fs::write(file(target), code).map_err(|e| e.to_string())?;
        }
        fs::write(file("ptxas"), &report).and_then(|()| fs::write(file("inputs"), inputs)).map_err(|e| e.to_string())?;
        Ok((report, targets))
    }

    /// The log, and the code for a target.
    fn compile_for(&self, source: &Source, target: &str) -> Result<(String, Vec<u8>), String> {
        type Program = *mut c_void;
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        let virtual_arch = target.strip_prefix("ptx");
        let arch = virtual_arch.map_or(format!("sm_{target}"), |arch| format!("compute_{arch}"));
        let mut options =
            vec![format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--device-as-default-execution-space".into()];
        if virtual_arch.is_none() {
            options.push("--ptxas-options=-v".into());
        }
        let folder = source.path.parent().expect("a file is in a folder");
        options
            .extend(self.include.iter().map(PathBuf::as_path).chain([folder]).map(|f| format!("--include-path={}", f.display())));
        let text = |text: &str| CString::new(text).map_err(|e| e.to_string());
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let (code, name) = (text(&source.text)?, text(&source.path.display().to_string())?);
        let (shims, names) = ([CSTDINT.as_ptr()], [c"cstdint".as_ptr()]);

        let mut program = ptr::null_mut();
        // SAFETY: the signatures are those of nvrtc.h, and all pointers are valid for the calls.
        unsafe {
            self.call::<Create>("nvrtcCreateProgram", |f| {
                f(&mut program, code.as_ptr(), name.as_ptr(), 1, shims.as_ptr(), names.as_ptr())
            })?;
            let compiled = self.call::<Compile>("nvrtcCompileProgram", |f| f(program, options.len() as c_int, options.as_ptr()));
            let log = self.bytes(program, "nvrtcGetProgramLog")?;
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_string();
            let code = compiled
                .map_err(|e| format!("{}, {arch}: {e}\n{}", source.path.display(), log.trim_end()))
                .and_then(|()| self.bytes(program, if virtual_arch.is_some() { "nvrtcGetPTX" } else { "nvrtcGetCUBIN" }));
            self.call::<unsafe extern "C" fn(*mut Program) -> c_int>("nvrtcDestroyProgram", |f| f(&mut program))?;
            Ok((log, code?))
        }
    }

    /// What the function `get` returns of a program.
    ///
    /// # Safety
    /// It has the signature of nvrtcGetCUBIN, and there is a function for its size.
    unsafe fn bytes(&self, program: *mut c_void, get: &str) -> Result<Vec<u8>, String> {
        let mut size = 0usize;
        unsafe {
            self.call::<unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int>(&format!("{get}Size"), |f| {
                f(program, &mut size)
            })?;
            let mut bytes = vec![0u8; size];
            self.call::<unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int>(get, |f| f(program, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }

    /// Calls a function, whose result is an error unless it is 0.
    ///
    /// # Safety
    /// It has the type `F`.
    unsafe fn call<F>(&self, name: &str, call: impl FnOnce(&libloading::Symbol<F>) -> c_int) -> Result<(), String> {
        let function = unsafe { self.library.get::<F>(name) }.map_err(|e| format!("{}: {e}", self.path.display()))?;
        match call(&function) {
            0 => Ok(()),
            code => Err(format!("{name} failed with nvrtcResult {code}")),
        }
    }
}
