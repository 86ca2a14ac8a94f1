//! Atomic files: written under another name, synced to disk, then renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// Writes a file atomically.
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = PartialFile::create(path)?;
    file.write(content)?;
    file.finish()
}

/// A file being written, which gets its name when it is finished. Dropped before, it is removed.
pub struct PartialFile {
    file: BufWriter<File>,
    path: PathBuf,
    partial: PathBuf,
    finished: bool,
}

impl PartialFile {
    /// Creates a temporary file beside `path`. If `path` is not a regular file, such as /dev/null or a pipe, it is written
    /// directly.
    pub fn create(path: &Path) -> Result<PartialFile> {
        let io = |e| Error::io(path, e);
        // Follows a link to its target.
        let path = path.canonicalize().unwrap_or(path.to_path_buf());
        let replaces = path.metadata().map_or(true, |about| about.is_file());
        if path.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        let mut partial = path.clone().into_os_string();
        if replaces {
            partial.push(".partial");
        }
        let partial = PathBuf::from(partial);
        let file = BufWriter::new(File::create(&partial).map_err(io)?);
        Ok(PartialFile { file, path, partial, finished: !replaces })
    }

    pub fn write(&mut self, content: &[u8]) -> Result<()> {
        self.file.write_all(content).map_err(|e| Error::io(&self.path, e))
    }

    /// Syncs the file to disk and renames it.
    pub fn finish(mut self) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        self.file.flush().map_err(io)?;
        if !self.finished {
            self.file.get_ref().sync_all().and_then(|()| fs::rename(&self.partial, &self.path)).map_err(io)?;
            self.finished = true;
        }
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Writes indented JSON with a trailing newline, like Hugging Face's.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

/// Creates a folder unless it exists. An unwritable one is found now rather than when the first file is written.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).and_then(|()| tempfile::tempfile_in(path)).map(|_| ()).map_err(|e| Error::io(path, e))
}

/// Syncs a folder, which makes renames in it durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(path, e))
}

/// Whether both paths lead to the same existing file or folder.
pub fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
