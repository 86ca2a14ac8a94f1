//! Checkpoints are written while training goes on. `torture/faultfs.c`, preloaded, holds or fails the calls that write them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use warpfit::files::verify;

use super::*;

/// Four checkpoints, one after `every` updates, each of which is logged.
fn flags(every: usize) -> String {
    let steps = 4 * every;
    format!("--max-length 32 --max-steps {steps} --dropout 0.1 --save-strategy steps --save-steps {every} --logging-steps 1")
}

struct Run {
    out: PathBuf,
    /// The held call waits for this file.
    gate: PathBuf,
    child: Child,
    errors: Receiver<String>,
}

impl Run {
    /// A run in `dir` of which the `k`-th call of a kind on files of `checkpoint` is struck.
    fn start(dir: &TempDir, every: usize, checkpoint: &str, (kind, k, mode): (&str, usize, &str)) -> Run {
        let [out, gate, shim] = ["out", "gate", "faultfs.so"].map(|name| dir.path().join(name));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture/faultfs.c");
        let compiled = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o", path(&shim), path(&source), "-ldl"]).status();
        assert!(compiled.expect("a C compiler").success());
        let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
        let mut command = program(TRAIN);
        command
            .args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out)])
            .args(words(&flags(every)));
        command.env("LD_PRELOAD", shim).env("FAULT_PATH", out.join(checkpoint)).env("FAULT_GATE", &gate).env("FAULT_ERRNO", "28");
        command.env("FAULT_ONLY", kind).env("FAULT_K", k.to_string()).env("FAULT_MODE", mode).env("WARPFIT_CACHE", "");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, (sender, errors)) = (BufReader::new(child.stderr.take().unwrap()).lines(), channel());
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Run { out, gate, child, errors }
    }

    /// The last update that is logged.
    fn logged(&self) -> u64 {
        let log = fs::read_to_string(self.out.join("metrics.jsonl")).unwrap_or_default();
        log.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64()).unwrap_or(0)
    }

    fn wait_for_update(&mut self, step: u64) {
        let begin = Instant::now();
        while self.logged() < step {
            assert!(begin.elapsed() < Duration::from_secs(60), "update {} of {step}: training waits", self.logged());
            assert_eq!(self.child.try_wait().unwrap(), None);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn open_gate(&self) {
        fs::write(&self.gate, "").unwrap();
    }

    /// The exit code, and the lines on standard error since the last call.
    fn ended(&mut self) -> (Option<i32>, Vec<String>) {
        (self.child.wait().unwrap().code(), self.errors.iter().collect())
    }
}

/// A call that is still held does not outlive a test that has failed.
impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn checkpoints(out: &Path) -> BTreeSet<String> {
    names(out).into_iter().filter(|name| name.starts_with("checkpoint")).collect()
}

/// A run that nothing disturbs.
fn undisturbed(dir: &TempDir, every: usize) -> PathBuf {
    let out = dir.path().join("undisturbed");
    train(&out, &words(&flags(every))).done();
    out
}

/// The files of a checkpoint without the id of its run and its folder; they match their checksums.
fn files(run: &Path, checkpoint: &str) -> Vec<(String, Vec<u8>)> {
    let (folder, id) = (run.join(checkpoint), fs::read_to_string(run.join("run.lock")).unwrap());
    assert!(verify(&folder).unwrap());
    let content = |name: &String| match name.ends_with(".json") {
        true => fs::read_to_string(folder.join(name)).unwrap().replace(id.trim(), "").replace(path(run), "").into_bytes(),
        false => fs::read(folder.join(name)).unwrap(),
    };
    names(&folder).into_iter().filter(|name| name != "checksums.json").map(|name| (name.clone(), content(&name))).collect()
}

/// Resumes a run from its first checkpoint; it then ends like one that nothing has disturbed.
fn resumes(out: &Path, every: usize, whole: &Path) {
    let ran = train(out, &words(&format!("{} --resume-from-checkpoint", flags(every)))).done();
    assert!(ran.err.contains(&format!("resumed: {every} of {} updates", 4 * every)), "{}", ran.err);
    assert_eq!(checkpoints(out), checkpoints(whole));
    for checkpoint in checkpoints(whole) {
        for name in ["model.safetensors", "optimizer.safetensors", "trainer_state.json"] {
            let [got, want] = [out, whole].map(|run| fs::read(run.join(&checkpoint).join(name)).unwrap());
            assert!(got == want, "{checkpoint}/{name}");
        }
    }
}

#[test]
fn training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits() {
    let dir = TempDir::new().unwrap();
    let whole = undisturbed(&dir, 5);
    let mut run = Run::start(&dir, 5, "checkpoint-5", ("fsync", 1, "hold"));
    run.wait_for_update(10);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(run.logged(), 10, "two checkpoints are written at once");
    assert_eq!(checkpoints(&run.out), BTreeSet::from(["checkpoint-5.partial".to_string()]));
    run.open_gate();
    assert_eq!(run.ended().0, Some(0));
    // Of the update at which it was saved, not of a later one.
    for checkpoint in checkpoints(&whole) {
        for (got, want) in files(&run.out, &checkpoint).into_iter().zip(files(&whole, &checkpoint)) {
            assert!(got == want, "{checkpoint}/{}", want.0);
        }
    }
    assert_eq!(checkpoints(&run.out), checkpoints(&whole));
}

#[test]
fn a_kill_while_a_checkpoint_is_written_leaves_the_one_before_it() {
    let dir = TempDir::new().unwrap();
    let whole = undisturbed(&dir, 5);
    let mut run = Run::start(&dir, 5, "checkpoint-10", ("fsync", 6, "hold"));
    run.wait_for_update(12);
    run.signal("-KILL");
    assert_eq!(run.ended().0, None);
    assert_eq!(checkpoints(&run.out), ["checkpoint-10.partial", "checkpoint-5"].map(String::from).into());
    resumes(&run.out, 5, &whole);
}

#[test]
fn an_interrupted_run_is_saved_when_its_checkpoints_have_their_names() {
    let dir = TempDir::new().unwrap();
    let mut run = Run::start(&dir, 5, "checkpoint-10", ("rename", 1, "hold"));
    run.wait_for_update(12);
    run.signal("-INT");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(run.child.try_wait().unwrap(), None);
    assert!(run.errors.try_iter().all(|line| !line.contains("saved")));
    assert_eq!(checkpoints(&run.out), ["checkpoint-10.partial", "checkpoint-5"].map(String::from).into());
    run.open_gate();
    let (code, errors) = run.ended();
    let error = errors.last().unwrap();
    let saved = error.split("saved in ").nth(1).and_then(|rest| rest.split(';').next()).expect(error);
    assert!(code == Some(130) && verify(Path::new(saved)).unwrap(), "{error}");
    assert!(verify(&run.out.join("checkpoint-10")).unwrap());
    assert!(checkpoints(&run.out).iter().all(|name| !name.contains("partial")));
}

#[test]
fn an_interrupted_run_that_cannot_be_saved_is_not_reported_as_saved() {
    let dir = TempDir::new().unwrap();
    let mut run = Run::start(&dir, 1000, "checkpoint", ("write", 3, "from_then_on"));
    run.wait_for_update(5);
    run.signal("-INT");
    let (code, errors) = run.ended();
    let error = errors.last().unwrap();
    assert!(code == Some(2) && error.ends_with("no checkpoint was written yet; free some space"), "{errors:?}");
    assert_eq!(checkpoints(&run.out), BTreeSet::new());
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before_it() {
    let dir = TempDir::new().unwrap();
    let whole = undisturbed(&dir, 100);
    let mut run = Run::start(&dir, 100, "checkpoint-200", ("write", 3, "from_then_on"));
    let (code, errors) = run.ended();
    let good = run.out.join("checkpoint-100");
    let end = format!("the last good checkpoint is {}; free some space; --resume-from-checkpoint continues the run", path(&good));
    let error = errors.last().unwrap();
    assert!(code == Some(2) && error.starts_with("error: `") && error.ends_with(&end), "{errors:?}");
    assert_eq!(errors.iter().filter(|line| line.contains("No space left on device")).count(), 1, "{errors:?}");
    assert!(run.logged() < 300, "not noticed before the next save");
    assert_eq!(checkpoints(&run.out), BTreeSet::from(["checkpoint-100".to_string()]));
    resumes(&run.out, 100, &whole);
}
