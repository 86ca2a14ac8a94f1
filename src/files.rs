//! Atomic files and folders: written under another name, synced to disk, then renamed; and the checksums of a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use twox_hash::XxHash3_128;

use crate::error::{Error, Result};

/// Writes a file atomically.
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = PartialFile::create(path)?;
    file.write(content)?;
    file.finish()
}

/// The temporary names of all files being written.
static PARTIAL: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn partial_files() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    PARTIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all files being written, for a process that ends without dropping them. From then on no file is begun or finished:
/// a thread that would do so waits for the end.
pub fn remove_partial_files() {
    let files = partial_files();
    for partial in &*files {
        let _ = fs::remove_file(partial);
    }
    std::mem::forget(files);
}

/// A file being written, which gets its name when it is finished. Dropped before, it is removed.
pub struct PartialFile {
    file: BufWriter<File>,
    path: PathBuf,
    partial: PathBuf,
    finished: bool,
}

impl PartialFile {
    /// Creates a temporary file beside `path`, or beside the target of a link. If that is not a regular file, such as /dev/null
    /// or a pipe, or names an open one, such as /dev/stdout, it is written directly.
    pub fn create(path: &Path) -> Result<PartialFile> {
        let io = |e| Error::io(path, e);
        let path = target(path);
        #[cfg(unix)]
        if let Some(number) = descriptor(&path) {
            // SAFETY: a number that is not open is an error of the call that copies it.
            let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }.try_clone_to_owned().map_err(io)?;
            let file = BufWriter::new(File::from(file));
            return Ok(PartialFile { file, partial: path.clone(), path, finished: true });
        }
        let (replaces, permissions) = match path.metadata() {
            Ok(about) if about.is_dir() => return Err(io(io::ErrorKind::IsADirectory.into())),
            // A file that may not be written is not replaced either, and one that is keeps its permissions.
            Ok(about) if about.is_file() => {
                fs::OpenOptions::new().append(true).open(&path).map_err(io)?;
                (true, Some(about.permissions()))
            }
            Ok(_) => (false, None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (true, None),
            Err(e) => return Err(io(e)),
        };
        let mut partial = path.clone().into_os_string();
        if replaces {
            partial.push(".partial");
        }
        let partial = PathBuf::from(partial);
        let file = match replaces {
            true => {
                let mut files = partial_files();
                let file = File::create(&partial).map_err(io)?;
                files.insert(partial.clone());
                file
            }
            // A pipe waits for its reader, without the lock, so that a signal ends the wait.
            false => File::create(&partial).map_err(io)?,
        };
        let created = PartialFile { file: BufWriter::new(file), path, partial, finished: !replaces };
        permissions.map_or(Ok(()), |permissions| created.file.get_ref().set_permissions(permissions)).map_err(io)?;
        Ok(created)
    }

    /// The file that it becomes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&mut self, content: &[u8]) -> Result<()> {
        self.file.write_all(content).map_err(|e| Error::io(&self.path, e))
    }

    /// Syncs the file to disk and renames it.
    pub fn finish(mut self) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        self.file.flush().map_err(io)?;
        if !self.finished {
            self.file.get_ref().sync_all().map_err(io)?;
            let mut files = partial_files();
            fs::rename(&self.partial, &self.path).map_err(io)?;
            files.remove(&self.partial);
            self.finished = true;
        }
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.finished {
            let mut files = partial_files();
            let _ = fs::remove_file(&self.partial);
            files.remove(&self.partial);
        }
    }
}

/// The end of a chain of symbolic links, which need not exist; a link of the chain if that is a loop.
fn target(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) if descriptor(&path).is_none() => path.set_file_name(target),
            _ => break,
        }
    }
    path
}

/// The open file that a path names.
fn descriptor(path: &Path) -> Option<i32> {
    match path.to_str()? {
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        path => {
            let number = path.strip_prefix("/dev/fd/").or(path.strip_prefix("/proc/self/fd/"))?;
            number.parse().ok().filter(|&number| number >= 0)
        }
    }
}

/// Writes indented JSON with a trailing newline, like Hugging Face's.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut file = PartialFile::create(path)?;
    serde_json::to_writer_pretty(&mut file.file, value).map_err(|e| Error::io(path, e.into()))?;
    file.write(b"\n")?;
    file.finish()
}

/// Creates a folder unless it exists. An unwritable one is found now rather than when the first file is written.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).and_then(|()| tempfile::tempfile_in(path)).map(|_| ()).map_err(|e| Error::io(path, e))
}

/// The error with which a folder of results could not be written, before they are computed.
pub fn check_folder(folder: &Path) -> Result<()> {
    if folder.exists() && !folder.is_dir() {
        return Err(Error::user(folder.display(), "is a file and not a folder", "choose another name"));
    }
    check_writable(folder)
}

/// The error with which a file in this folder, which may not exist yet, could not be created. Creates nothing.
pub fn check_writable(folder: &Path) -> Result<()> {
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(existing).map(|_| ()).map_err(|e| Error::io(folder, e))
}

/// Syncs a folder, which makes renames in it durable; on Windows, which opens no folders, they are left to the file system.
pub fn sync_dir(path: &Path) -> Result<()> {
    match cfg!(windows) {
        true => Ok(()),
        false => File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(path, e)),
    }
}

/// Gives the folder `new` the name `path`. If there is a folder of that name, the two are exchanged in one step, and it is
/// removed; where the file system cannot do that, it is called `path`.replaced for a moment.
pub fn replace_dir(new: &Path, path: &Path) -> Result<()> {
    let io = |e| Error::io(path, e);
    let sync = || path.parent().map_or(Ok(()), sync_dir);
    if !path.exists() {
        fs::rename(new, path).map_err(io)?;
        return sync();
    }
    let old = if exchange(new, path) {
        new.to_path_buf()
    } else {
        let old = path.with_extension("replaced");
        fs::rename(path, &old).and_then(|()| fs::rename(new, path)).map_err(io)?;
        old
    };
    sync()?;
    fs::remove_dir_all(old).map_err(io)
}

#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// The checksums of the files of a sealed folder, by name: XXH3, 128 bits, in hexadecimal.
pub const CHECKSUMS: &str = "checksums.json";

/// Completes a folder: writes the checksums of its files into it, and syncs it.
pub fn seal(folder: &Path) -> Result<()> {
    let mut sums = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        sums.insert(name, format!("{:032x}", checksum(&path).map_err(|e| Error::io(&path, e))?));
    }
    write_json(&folder.join(CHECKSUMS), &sums)?;
    sync_dir(folder)
}

/// The checksums of a sealed folder; `None` if it is not sealed.
pub fn checksums(folder: &Path) -> Result<Option<BTreeMap<String, String>>> {
    let path = folder.join(CHECKSUMS);
    match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|e| Error::user(path.display(), format!("is not a list of checksums ({e})"), "use another checkpoint")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(&path, e)),
    }
}

/// Compares all files of a sealed checkpoint with their checksums. Returns false if it is not sealed.
///
/// # Errors
/// The first file that is missing or has changed, or weights or a state without a checksum.
pub fn verify(folder: &Path) -> Result<bool> {
    let Some(sums) = checksums(folder)? else { return Ok(false) };
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_needed = |name: &String| name.ends_with(".safetensors") || name == "state.json";
    if let Some(name) = names.find(|name| is_needed(name) && !sums.contains_key(name)) {
        return Err(Error::user(
            folder.join(CHECKSUMS).display(),
            format!("has no checksum of {name}"),
            "use another checkpoint",
        ));
    }
    sums.iter().try_for_each(|(name, sum)| compare(&folder.join(name), sum)).map(|()| true)
}

fn compare(path: &Path, sum: &str) -> Result<()> {
    let damaged = |fact| Err(Error::user(path.display(), fact, "use another checkpoint"));
    match checksum(path) {
        Ok(is) if format!("{is:032x}") == sum => Ok(()),
        Ok(_) => damaged("has changed since it was written"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => damaged("is missing"),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// The checksum of a regular file.
pub fn checksum(path: &Path) -> io::Result<u128> {
    // Checked before opening, since opening a FIFO waits for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "is not a regular file"));
    }
    let (mut file, mut block, mut hash) = (File::open(path)?, vec![0; 1 << 18], XxHash3_128::new());
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hash.finish_128()),
            size => hash.write(&block[..size]),
        }
    }
}

/// The error with which an output would replace a file that is read.
pub fn keep_inputs(output: &Path, inputs: &[PathBuf]) -> Result<()> {
    match inputs.iter().any(|input| same_file(output, input)) {
        true => Err(Error::user(output.display(), "is a file that is read", "choose another name for the output")),
        false => Ok(()),
    }
}

/// The first of `name`, `name-2`, `name-3`, ... that is free for a new folder.
pub fn free_folder(name: &str) -> String {
    let is_free = |name: &String| match fs::read_dir(name) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) => e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(name).is_err(),
    };
    let mut names = std::iter::once(name.to_string()).chain((2..).map(|number| format!("{name}-{number}")));
    names.find(is_free).expect("the numbers do not end")
}

/// Whether both paths lead to the same existing file or folder.
pub fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
