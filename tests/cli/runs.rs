//! The folder of a run: no checkpoint or model is lost, mixed with another run's, or silently wrong.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

/// A short run with a checkpoint after each fifth update, of which two are kept.
const FLAGS: &str = "--max-length 32 --max-steps 40 --save-strategy steps --save-steps 5 --logging-steps 5 --save-total-limit 2";

fn run_with(out: &Path, more: &str) -> Ran {
    train(out, &words(&format!("{FLAGS} {more}")))
}

fn checkpoints(out: &Path) -> BTreeSet<String> {
    names(out).into_iter().filter(|name| name.starts_with("checkpoint")).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(String::from).into()
}

/// A run that does not end, once it has written its first checkpoint.
fn endless(out: &Path) -> Child {
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let mut command = program(TRAIN);
    command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(out), "--overwrite-output-dir"]);
    command.args(words(FLAGS)).args(["--max-steps", "1000000"]).stdout(Stdio::null()).stderr(Stdio::null());
    let (child, begin) = (command.spawn().unwrap(), Instant::now());
    while !out.exists() || checkpoints(out).is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn an_overwritten_run_is_set_aside() {
    let out = TempDir::new().unwrap();
    run_with(out.path(), "").done();
    let weights = fs::read(out.path().join("checkpoint-40/model.safetensors")).unwrap();
    run_with(out.path(), "--seed 7 --max-steps 20 --overwrite-output-dir").done();
    // Those of the new run alone, although those of the old one are later.
    assert_eq!(checkpoints(out.path()), set(["checkpoint-15", "checkpoint-20"]));
    let id = |checkpoint: &Path| read(checkpoint, "state.json")["run_id"].clone();
    let ids = ["checkpoint-15", "checkpoint-20", "earlier-run-1/checkpoint-40"].map(|name| id(&out.path().join(name)));
    assert!(ids[0] == ids[1] && ids[1] != ids[2] && ids[0].is_string(), "{ids:?}");
    assert_eq!(json_lines(&out.path().join("metrics.jsonl")).last().unwrap()["step"], 20);

    let aside = out.path().join("earlier-run-1");
    assert_eq!(checkpoints(&aside), set(["checkpoint-35", "checkpoint-40"]));
    assert_eq!(fs::read(aside.join("checkpoint-40/model.safetensors")).unwrap(), weights);
    assert_eq!(json_lines(&aside.join("metrics.jsonl")).last().unwrap()["step"], 40);

    // A checkpoint that was put there is not taken for one of this run.
    fs::rename(aside.join("checkpoint-40"), out.path().join("checkpoint-40")).unwrap();
    let ran = run_with(out.path(), "--seed 7 --max-steps 30 --resume-from-checkpoint").done();
    assert!(ran.err.contains("resumed: 20 of 30 updates"), "{}", ran.err);
    assert_eq!(checkpoints(out.path()), set(["checkpoint-25", "checkpoint-30"]));
}

/// The checkpoint that the message of a failed run names.
fn last_good(ran: Ran) -> PathBuf {
    let ran = ran.failed_with(1);
    ran.err.split("the last good checkpoint is ").nth(1).and_then(|rest| rest.split(';').next()).expect(&ran.err).into()
}

#[test]
fn the_checkpoint_named_is_of_this_run() {
    let out = TempDir::new().unwrap();
    run_with(out.path(), "--max-steps 4 --save-steps 1 --save-total-limit 9").done();
    let (weights, bad) = (fs::read(out.path().join("model.safetensors")).unwrap(), "--learning-rate 1e30 --save-steps 1");

    // Back to an earlier checkpoint.
    let back = format!("--resume-from-checkpoint {}", path(&out.path().join("checkpoint-1")));
    let good = last_good(run_with(out.path(), &format!("--max-steps 4 {bad} --logging-steps 1 {back}")));
    assert_eq!(good, out.path().join("checkpoint-2"));
    assert!(good.exists());
    assert_eq!(checkpoints(&out.path().join("earlier-run-1")), set(["checkpoint-2", "checkpoint-3", "checkpoint-4"]));
    // The way that was left is still there, and leads to the same weights.
    let left = format!("--resume-from-checkpoint {}", path(&out.path().join("earlier-run-1/checkpoint-3")));
    run_with(out.path(), &format!("--max-steps 4 {left}")).done();
    assert_eq!(fs::read(out.path().join("model.safetensors")).unwrap(), weights);

    // Over a finished run.
    let good = last_good(run_with(out.path(), &format!("{bad} --logging-steps 1 --overwrite-output-dir")));
    assert_eq!(good, out.path().join("checkpoint-1"));
    assert!(good.exists());
}

#[test]
fn one_run_at_a_time_writes_into_a_folder() {
    let out = TempDir::new().unwrap();
    let out = out.path().join("out");
    let mut first = endless(&out);
    for flags in ["--overwrite-output-dir", "--resume-from-checkpoint", "--overwrite-output-dir --dry-run"] {
        run_with(&out, flags).failed(2, "another run is writing into this folder");
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let resumed = run_with(&out, "--max-steps 1000000 --save-steps 100000 --profile 1 --resume-from-checkpoint --dry-run").done();
    assert!(resumed.out.contains("parameters"), "{}", resumed.out);
    run_with(&out, "--overwrite-output-dir").done();
}
