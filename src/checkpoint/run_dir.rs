//! The folder of a run: one process at a time writes into it, and its checkpoints are those of one run. Checkpoints are atomic,
//! like files: written under another name, synced to disk, then renamed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::model_dir;
use crate::console::note;
use crate::error::{Error, Result};
use crate::files::{CHECKSUMS, PartialFile, check_writable, create_dir, replace_dir, seal, sync_dir};
use crate::report::tensorboard;

/// Locked by the process that writes into the folder, for as long as it lives; holds the id of the run.
const LOCK: &str = "run.lock";

/// The file of a checkpoint that names its run.
pub const STATE: &str = "state.json";

/// What a run writes beside its checkpoints, its model and its card.
const RESULTS: [&str; 12] = [
    model_dir::EXAMPLES,
    "metrics.jsonl",
    tensorboard::FILE,
    "plots",
    "profile.txt",
    "profile.json",
    "train_results.json",
    "eval_results.json",
    "test_results.json",
    "all_results.json",
    "trainer_state.json",
    "training_args.json",
];

/// The folder, locked until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct RunDir {
    pub path: PathBuf,
    /// The run that the folder belongs to; empty if it has none yet.
    pub id: String,
    lock: Arc<Lock>,
}

#[derive(Debug)]
struct Lock {
    file: File,
    /// The folder, if it did not exist before: it is removed if nothing is written into it.
    made: Option<PathBuf>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.made.iter().for_each(RunDir::remove_unused);
        // Closing the file is not enough while a child process, until it runs its own program, has a copy.
        let _ = self.file.unlock();
    }
}

impl RunDir {
    /// The folder of the run that a path belongs to: a checkpoint in it, one that was set aside, or the folder itself.
    pub fn containing(path: &Path) -> Option<PathBuf> {
        let folder = path.ancestors().take(3).find(|folder| folder.join(LOCK).is_file())?;
        Some(if folder.as_os_str().is_empty() { ".".into() } else { folder.into() })
    }

    /// The id of the run that a folder belongs to; empty if there is none.
    pub fn id(path: &Path) -> String {
        fs::read_to_string(path.join(LOCK)).unwrap_or_default().trim().to_string()
    }

    /// The error with which `create` would refuse the folder: checked before anything that takes long.
    pub fn check(path: &Path, overwrite: bool) -> Result<()> {
        if !path.exists() {
            return check_writable(path);
        }
        if !path.is_dir() {
            return Err(Error::user(path.display(), "is a file", "choose another --output-dir"));
        }
        let mut entries = fs::read_dir(path).map_err(|e| Error::io(path, e))?.flatten();
        if entries.any(|entry| entry.file_name() != LOCK) && !overwrite {
            let remedy = "choose another --output-dir, or pass --overwrite-output-dir or --resume-from-checkpoint";
            return Err(Error::user(path.display(), "the folder is not empty", remedy));
        }
        match File::open(path.join(LOCK)).map(|lock| lock.try_lock_shared()) {
            Ok(Err(TryLockError::WouldBlock)) => Err(in_use(path)),
            _ => check_writable(path),
        }
    }

    /// Creates the folder, or uses an empty one; one that is not empty only with `overwrite`. No other process can do so until
    /// this one ends.
    pub fn create(path: &Path, overwrite: bool) -> Result<RunDir> {
        RunDir::check(path, overwrite)?;
        let made = (!path.exists()).then(|| path.to_path_buf());
        create_dir(path)?;
        let file = path.join(LOCK);
        let io = |e| Error::io(&file, e);
        let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => return Err(in_use(path)),
            Err(TryLockError::Error(e)) => {
                note(format!("warning: {} cannot be locked ({e}): start no other run in this folder", path.display()));
            }
        }
        let mut id = String::new();
        lock.read_to_string(&mut id).map_err(io)?;
        let run = RunDir { path: path.into(), id: id.trim().to_string(), lock: Arc::new(Lock { file: lock, made }) };
        run.clean()?;
        Ok(run)
    }

    /// Removes what killed processes have left half-written, and restores a checkpoint that one was about to replace.
    fn clean(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, e))?.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Some((whole, ending)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
            let is_checkpoint = checkpoint_step(whole).is_some();
            let done = match ending {
                "replaced" if is_checkpoint && !self.path.join(whole).exists() => fs::rename(&path, self.path.join(whole)),
                "replaced" | "partial" if is_checkpoint => fs::remove_dir_all(&path),
                "partial" if name == model_dir::PARTIAL => fs::remove_dir_all(&path),
                "partial" if is_own(whole) => fs::remove_file(&path),
                "writable" if whole.is_empty() => fs::remove_file(&path),
                _ => Ok(()),
            };
            done.map_err(|e| Error::io(&path, e))?;
        }
        model_dir::finish_replacement(&self.path)
    }

    /// The error with which a run in this folder would move, replace or remove what it reads.
    pub fn keep_inputs<'a>(path: &Path, inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
        let folders = [path.canonicalize().ok(), absolute(path).ok()];
        for input in inputs {
            // A link in the folder would be moved as well.
            let places = [input.canonicalize().ok(), absolute(input).ok()];
            let inside = |place| folders.iter().flatten().find_map(|folder| Path::strip_prefix(place, folder).ok());
            let mut names = places.iter().flatten().filter_map(|place| inside(place)?.iter().next()?.to_str());
            if names.any(is_of_run) {
                let fact = format!("is read, and a run in {} would move or replace it", path.display());
                return Err(Error::user(input.display(), fact, "move it, or choose another --output-dir"));
            }
        }
        Ok(())
    }

    /// Begins a new run: what an earlier one has left is set aside, except for its model and the card of that. In the folder of no
    /// run, README.md may be anything.
    pub fn begin(&mut self) -> Result<()> {
        let is_of_run = !self.id.is_empty();
        let readme = Some("README.md".to_string()).filter(|name| !is_of_run && self.path.join(name).exists());
        // The id comes first: after a kill in between, no checkpoint of the earlier run is taken for one of this run.
        self.adopt(None)?;
        let checkpoints = self.numbered_folders()?.into_iter().map(checkpoint_name);
        let what = if is_of_run { "part of an earlier run" } else { "not written by a run of this program" };
        self.set_aside(what, checkpoints.chain(self.results()).chain(readme).collect())
    }

    /// The results that there are.
    fn results(&self) -> impl Iterator<Item = String> {
        RESULTS.map(String::from).into_iter().filter(|name| self.path.join(name).exists())
    }

    /// Continues the run of this id, or a new one, after the update `step`. Its checkpoints of later updates are set aside as `later`,
    /// in words, and so is what is not part of this run.
    pub fn go_on(&mut self, id: Option<String>, step: usize, later: &str) -> Result<()> {
        let is_other_run = !self.id.is_empty() && id.as_ref() != Some(&self.id);
        self.adopt(id)?;
        // The latest first: after a kill in between, the newest one left is still the nearest to `step`.
        let folders = self.numbered_folders()?.into_iter().rev();
        let (foreign, own): (Vec<usize>, Vec<usize>) = folders.partition(|&at| self.origin(at) == Origin::Foreign);
        self.set_aside(later, own.into_iter().filter(|&at| at > step).map(checkpoint_name).collect())?;
        let results = self.results().filter(|_| is_other_run);
        self.set_aside("not part of this run", foreign.into_iter().map(checkpoint_name).chain(results).collect())
    }

    fn adopt(&mut self, id: Option<String>) -> Result<()> {
        self.id = id.unwrap_or_else(|| format!("{:016x}", RandomState::new().hash_one(std::process::id())));
        let (mut lock, line) = (&self.lock.file, format!("{}\n", self.id));
        // Overwritten rather than truncated first: at no moment is there no id, and a full disk has room for it.
        let written = lock.rewind().and_then(|()| lock.write_all(line.as_bytes())).and_then(|()| lock.set_len(line.len() as u64));
        written.and_then(|()| lock.sync_all()).map_err(|e| Error::io(&self.path.join(LOCK), e))
    }

    /// Moves files and folders of this folder to a new folder earlier-run-N in it, and reports what they are, in words.
    fn set_aside(&self, what: &str, names: Vec<String>) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let folder = RunDir::numbered(&self.path, "earlier-run-")?;
        for name in &names {
            let new = folder.join(name);
            let parent = new.parent().expect("it is in the folder");
            fs::create_dir_all(parent)
                .and_then(|()| fs::rename(self.path.join(name), &new))
                .map_err(|e| Error::io(&self.path.join(name), e))?;
        }
        sync_dir(&folder)?;
        sync_dir(&self.path)?;
        let first = names.iter().max_by_key(|name| name.starts_with("checkpoint-")).expect("there is one");
        let rest = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        note(format!("set aside as {what}: {first}{rest}, now in {}", folder.display()));
        Ok(())
    }

    /// A new folder with the next unused number under `parent`: runs/1, runs/2, ...
    pub fn numbered(parent: &Path, prefix: &str) -> Result<PathBuf> {
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        for number in 1.. {
            let path = parent.join(format!("{prefix}{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(&path, e)),
            }
        }
        unreachable!("the numbers do not end")
    }

    /// Removes the folder of a run that has ended, if it has written nothing there.
    pub fn remove_unused(path: &PathBuf) {
        if fs::read_dir(path).is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == LOCK)) {
            // What cannot be removed is left: the error of the run is the one to report.
            let _ = fs::remove_file(path.join(LOCK));
            let _ = fs::remove_dir(path);
        }
    }

    /// Writes checkpoint-`step` atomically, a folder with the files written by `fill`. Replaces that of this run, if there is one, and
    /// sets aside anything else of this name.
    pub fn checkpoint(&self, step: usize, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.checkpoint_path(step);
        let partial = path.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(|e| Error::io(&partial, e))?;
        }
        fs::create_dir(&partial).map_err(|e| Error::io(&partial, e))?;
        if let Err(error) = fill(&partial).and_then(|()| seal(&partial)) {
            // Of two errors the first is reported.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        if path.exists() && self.origin(step) != Origin::Own {
            self.set_aside("not part of this run", vec![checkpoint_name(step)])?;
        }
        replace_dir(&partial, &path)?;
        Ok(path)
    }

    /// Where the folder of a step comes from.
    pub fn origin(&self, step: usize) -> Origin {
        Origin::of(&self.checkpoint_path(step), &self.id)
    }

    /// Steps of this run's checkpoints, in order.
    fn checkpoints(&self) -> Result<Vec<usize>> {
        Ok(self.numbered_folders()?.into_iter().filter(|&step| self.origin(step) == Origin::Own).collect())
    }

    /// Steps of everything that is named like a checkpoint, in order.
    pub fn numbered_folders(&self) -> Result<Vec<usize>> {
        let entries = fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, e))?;
        let mut steps: Vec<usize> = entries.filter_map(|entry| checkpoint_step(entry.ok()?.file_name().to_str()?)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The newest checkpoint.
    pub fn last_checkpoint(&self) -> Option<PathBuf> {
        self.checkpoints().ok()?.last().map(|&step| self.checkpoint_path(step))
    }

    /// The same in words.
    pub fn kept(&self) -> String {
        match self.last_checkpoint() {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "no checkpoint was written yet".to_string(),
        }
    }

    /// Removes the oldest checkpoints until `limit` are left, but never that of step `written` or that of step `best`.
    pub fn rotate(&self, limit: usize, written: usize, best: Option<usize>) -> Result<()> {
        let steps = self.checkpoints()?;
        let mut left = steps.len();
        for step in steps.into_iter().filter(|&step| Some(step) != best && step != written) {
            if left <= limit {
                break;
            }
            let path = self.checkpoint_path(step);
            // Renamed first, so that an interrupted removal leaves nothing that looks like a checkpoint.
            let partial = path.with_extension("partial");
            fs::rename(&path, &partial).and_then(|()| fs::remove_dir_all(&partial)).map_err(|e| Error::io(&path, e))?;
            left -= 1;
        }
        Ok(())
    }

    /// Folder of the checkpoint of a step.
    pub fn checkpoint_path(&self, step: usize) -> PathBuf {
        self.path.join(checkpoint_name(step))
    }

    /// Rewrites metrics.jsonl with these lines: those before the point at which a run resumes.
    pub fn restart_log<'a>(&self, mut lines: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut file = PartialFile::create(&self.path.join("metrics.jsonl"))?;
        lines.try_for_each(|line| file.write(line.as_bytes()).and_then(|()| file.write(b"\n")))?;
        file.finish()
    }

    /// Appends a line to metrics.jsonl.
    pub fn log(&self, line: &str) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).map_err(|e| Error::io(&path, e))
    }
}

/// Whether a run writes a file or folder of this name, beside its checkpoints.
fn is_own(name: &str) -> bool {
    name == "README.md" || RESULTS.contains(&name) || model_dir::FILES.contains(&name)
}

/// Whether a run writes, moves or removes a file or folder of this name.
fn is_of_run(name: &str) -> bool {
    let whole = [".partial", ".replaced"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    is_own(whole) || checkpoint_step(whole).is_some() || [model_dir::PARTIAL, model_dir::READY].contains(&name)
}

/// Where a folder comes from that is named like a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Own,
    /// Written by this program, but its state cannot be read.
    Damaged,
    /// Of another run or another program, or made by hand.
    Foreign,
}

impl Origin {
    /// For the run with this id. An empty id, which a folder or a checkpoint of an earlier version has, fits every other one.
    pub fn of(folder: &Path, id: &str) -> Origin {
        #[derive(Deserialize)]
        struct State {
            #[serde(default)]
            run_id: String,
            #[serde(rename = "run")]
            _fingerprint: IgnoredAny,
        }
        let state = fs::read(folder.join(STATE)).ok().and_then(|json| serde_json::from_slice::<State>(&json).ok());
        match state {
            Some(State { run_id, .. }) if run_id.is_empty() || id.is_empty() || run_id == id => Origin::Own,
            None if folder.join(CHECKSUMS).exists() => Origin::Damaged,
            _ => Origin::Foreign,
        }
    }
}

/// The step of the checkpoint with this name.
pub fn checkpoint_step(name: &str) -> Option<usize> {
    let step = name.strip_prefix("checkpoint-")?.parse().ok()?;
    (checkpoint_name(step) == name).then_some(step)
}

fn checkpoint_name(step: usize) -> String {
    format!("checkpoint-{step}")
}

fn in_use(path: &Path) -> Error {
    Error::user(path.display(), "another run is writing into this folder", "wait until it ends, or choose another --output-dir")
}

#[cfg(test)]
mod tests {
    use super::RunDir;

    /// As a child process has one before it runs its own program.
    #[test]
    fn a_copy_of_the_file_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path(), true).unwrap();
        let _copy = run.lock.file.try_clone().unwrap();
        RunDir::create(dir.path(), true).unwrap_err();
        drop(run);
        RunDir::create(dir.path(), true).unwrap();
    }
}
