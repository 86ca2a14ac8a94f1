//! The folder of a run. Checkpoints are atomic, like files: written under another name, synced to disk, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::{sync_dir, write_file};

pub struct RunDir {
    pub path: PathBuf,
}

impl RunDir {
    /// The error with which `create` would refuse the folder: checked before anything that takes long.
    pub fn check(path: &Path, overwrite: bool) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        if !path.is_dir() {
            return Err(Error::user(path.display(), "is a file", "choose another --output-dir"));
        }
        let mut entries = fs::read_dir(path).map_err(|e| Error::io(path, e))?;
        if entries.next().is_some() && !overwrite {
            let remedy = "choose another --output-dir, or pass --overwrite-output-dir or --resume-from-checkpoint";
            return Err(Error::user(path.display(), "the folder is not empty", remedy));
        }
        Ok(())
    }

    /// Creates the folder, or uses an empty one; one that is not empty only with `overwrite`.
    pub fn create(path: &Path, overwrite: bool) -> Result<RunDir> {
        RunDir::check(path, overwrite)?;
        fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        // An unwritable folder is found now rather than after the first epoch.
        let probe = path.join(".writable");
        File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(|e| Error::io(path, e))?;
        Ok(RunDir { path: path.into() })
    }

    /// The next unused number under `parent`: runs/1, runs/2, ...
    pub fn numbered(parent: &Path) -> Result<PathBuf> {
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        for number in 1.. {
            let path = parent.join(number.to_string());
            match fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(&path, e)),
            }
        }
        unreachable!("the numbers do not end")
    }

    /// Writes checkpoint-`step` atomically, a folder with the files written by `fill`. Replaces one of the same name.
    pub fn checkpoint(&self, step: usize, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.checkpoint_path(step);
        let (partial, old) = (path.with_extension("partial"), path.with_extension("old"));
        let io = |e| Error::io(&path, e);
        for left in [&partial, &old] {
            if left.exists() {
                fs::remove_dir_all(left).map_err(io)?;
            }
        }
        fs::create_dir(&partial).map_err(io)?;
        let filled = fill(&partial).and_then(|()| sync_dir(&partial));
        if let Err(error) = filled {
            // Of two errors the first is reported.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        if path.exists() {
            fs::rename(&path, &old).map_err(io)?;
        }
        fs::rename(&partial, &path).map_err(io)?;
        sync_dir(&self.path)?;
        if old.exists() {
            fs::remove_dir_all(&old).map_err(io)?;
        }
        Ok(path)
    }

    /// Steps of the complete checkpoints, in order.
    pub fn checkpoints(&self) -> Result<Vec<usize>> {
        let entries = fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, e))?;
        let mut steps: Vec<usize> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes the oldest checkpoints until `limit` are left, but never the newest or that of step `best`.
    pub fn rotate(&self, limit: usize, best: Option<usize>) -> Result<()> {
        let steps = self.checkpoints()?;
        let newest = steps.last().copied();
        let mut left = steps.len();
        for step in steps.into_iter().filter(|&step| Some(step) != best && Some(step) != newest) {
            if left <= limit {
                break;
            }
            let path = self.checkpoint_path(step);
            // Renamed first, so that an interrupted removal leaves nothing that looks like a checkpoint.
            let old = path.with_extension("old");
            fs::rename(&path, &old).and_then(|()| fs::remove_dir_all(&old)).map_err(|e| Error::io(&path, e))?;
            left -= 1;
        }
        Ok(())
    }

    /// Folder of the checkpoint of a step.
    pub fn checkpoint_path(&self, step: usize) -> PathBuf {
        self.path.join(format!("checkpoint-{step}"))
    }

    /// Rewrites metrics.jsonl with these entries: those before the point at which a run resumes.
    pub fn restart_log(&self, entries: &[Value]) -> Result<()> {
        let lines: String = entries.iter().map(|entry| format!("{entry}\n")).collect();
        write_file(&self.path.join("metrics.jsonl"), lines.as_bytes())
    }

    /// Appends a line to metrics.jsonl.
    pub fn log(&self, entry: &Value) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(format!("{entry}\n").as_bytes())).map_err(|e| Error::io(&path, e))
    }
}
