//! The folder of a run: no checkpoint or model is lost, mixed with another run's, or silently wrong.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::data::put;

/// A short run with a checkpoint after each fifth update, of which two are kept.
const FLAGS: &str = "--max-length 32 --max-steps 40 --save-strategy steps --save-steps 5 --logging-steps 5 --save-total-limit 2";

/// `FLAGS` with others in addition or instead.
fn flags(more: &str) -> Vec<&str> {
    let flags = words(FLAGS);
    let kept = flags.chunks(2).filter(|flag| !words(more).contains(&flag[0]));
    [kept.collect::<Vec<_>>().concat(), words(more)].concat()
}

fn run_with(out: &Path, more: &str) -> Ran {
    train(out, &flags(more))
}

fn checkpoints(out: &Path) -> BTreeSet<String> {
    names(out).into_iter().filter(|name| name.starts_with("checkpoint")).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(String::from).into()
}

/// A run that does not end, once it has written its first checkpoint.
fn endless(out: &Path, more: &str) -> Child {
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let mut command = program(TRAIN);
    command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(out), "--overwrite-output-dir"]);
    command.args(flags(&format!("--max-steps 1000000 {more}"))).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    wait_for_checkpoint(out);
    child
}

fn wait_for_checkpoint(out: &Path) {
    let begin = Instant::now();
    while !out.exists() || checkpoints(out).iter().all(|name| name.ends_with(".partial")) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
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
    assert!(ran.err.contains("set aside as not part of this run: checkpoint-40, now in "), "{}", ran.err);
    assert_eq!(checkpoints(out.path()), set(["checkpoint-25", "checkpoint-30"]));

    // Back to the earlier run: everything of the later one is set aside, its results too.
    let earlier = out.path().join("earlier-run-2/checkpoint-40");
    run_with(out.path(), &format!("--max-steps 45 --resume-from-checkpoint {}", path(&earlier))).done();
    assert_eq!(checkpoints(out.path()), set(["checkpoint-45"]));
    let aside = out.path().join("earlier-run-3");
    assert_eq!(checkpoints(&aside), set(["checkpoint-25", "checkpoint-30"]));
    assert_eq!(json_lines(&aside.join("metrics.jsonl")).last().unwrap()["step"], 30);
    assert!(aside.join("train_results.json").exists());
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
    let mut first = endless(&out, "");
    for flags in ["--overwrite-output-dir", "--resume-from-checkpoint", "--overwrite-output-dir --dry-run"] {
        run_with(&out, flags).failed(2, "another run is writing into this folder");
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let resumed = run_with(&out, "--resume-from-checkpoint --dry-run").done();
    assert!(resumed.out.contains("parameters"), "{}", resumed.out);
    run_with(&out, "--overwrite-output-dir").done();
}

#[test]
fn checkpoints_of_the_model_alone_are_small_and_refused_on_resume() {
    let dir = TempDir::new().unwrap();
    let run = |name: &str, more: &str| {
        let out = dir.path().join(name);
        let ran = run_with(&out, &format!("--save-total-limit 3 {more}")).done();
        let disk = ran.err.lines().find(|line| line.starts_with("checkpoints: ")).unwrap().to_string();
        let checkpoint = out.join("checkpoint-40");
        let size: u64 = names(&checkpoint).iter().map(|name| fs::metadata(checkpoint.join(name)).unwrap().len()).sum();
        (out, disk, size)
    };
    let (whole, whole_disk, whole_size) = run("whole", "--save_only_model False");
    let (small, small_disk, small_size) = run("small", "--save_only_model True");
    let missing = &names(&whole.join("checkpoint-40")) - &names(&small.join("checkpoint-40"));
    assert_eq!(missing, set(["optimizer.safetensors"]));
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&small) && weights(&whole.join("checkpoint-40")) == weights(&small.join("checkpoint-40")));
    let moments = fs::metadata(whole.join("checkpoint-40/optimizer.safetensors")).unwrap().len();
    assert!(small_size.abs_diff(whole_size - moments) < 100, "{small_size} of {whole_size}");
    // Three numbers per parameter, and one.
    let found = [&whole_disk, &small_disk].map(|disk| disk.split(',').next().unwrap());
    assert_eq!(found, ["checkpoints: 4 of 1.08 MiB", "checkpoints: 4 of 369.51 KiB"]);
    let test = golden("train/test.csv");
    ran(PREDICT, &["--model", path(&small.join("checkpoint-40")), "--input", path(&test)]).done();

    let why = "a checkpoint of --save-only-model has no optimizer state";
    let newest = run_with(&small, "--max-steps 50 --resume-from-checkpoint");
    newest.failed(2, &format!("this folder has no sound checkpoint: {why}; leave out --resume-from-checkpoint, and pass"));
    let named = path(&small.join("checkpoint-35")).to_string();
    let named = run_with(&small, &format!("--max-steps 50 --resume-from-checkpoint {named}"));
    named.failed(2, &format!("checkpoint-35`: {why}; use another checkpoint, or start a new run with this one as --model"));
    // A run that fails does not advise what cannot be done.
    let ran = run_with(&dir.path().join("diverges"), "--learning-rate 1e30 --save-steps 1 --logging-steps 1 --save-only-model");
    let ran = ran.failed_with(1);
    assert!(ran.err.contains("the last good checkpoint is ") && !ran.err.contains("resume"), "{}", ran.err);

    // An interrupted run can be resumed all the same.
    let out = dir.path().join("interrupted");
    let mut child = endless(&out, "--save-only-model");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let step = |name: &String| name["checkpoint-".len()..].parse::<usize>().unwrap();
    let last = checkpoints(&out).iter().map(step).max().unwrap();
    assert!(out.join(format!("checkpoint-{last}/optimizer.safetensors")).exists());
    let ran = run_with(&out, &format!("--max-steps {} --save-only-model --resume-from-checkpoint", last + 5)).done();
    assert!(ran.err.contains(&format!("resumed: {} of", warpfit::report::log::Count(last as u64))), "{}", ran.err);
}

/// Copies a folder with all that is in it.
fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy_all(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// Every file of the newest checkpoint, damaged in every way: the one before it is taken, and leads to the same weights.
#[test]
fn a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken() {
    let dir = TempDir::new().unwrap();
    let whole = dir.path().join("whole");
    run_with(&whole, "").done();
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    let mut cases = 0;
    let mut damaged = |what: &str, file: &str, damage: &dyn Fn(&Path)| {
        cases += 1;
        let out = dir.path().join(cases.to_string());
        copy_all(&whole, &out);
        fs::remove_file(out.join("model.safetensors")).unwrap();
        damage(&out);
        let ran = run_with(&out, "--resume-from-checkpoint").done();
        assert!(ran.err.contains("warning: not resumed from the newest checkpoint: "), "{what} {file}: {}", ran.err);
        assert!(ran.err.contains(&format!("{file}: ")) && ran.err.contains("resumed: 35 of 40"), "{what} {file}: {}", ran.err);
        assert!(weights(&out) == weights(&whole), "{what} {file}");
        assert!(ran.err.contains("set aside as damaged: checkpoint-"), "{what} {file}: {}", ran.err);
        assert!(out.join("earlier-run-1").exists());
        fs::remove_dir_all(&out).unwrap();
    };
    let files = names(&whole.join("checkpoint-40"));
    assert_eq!(files.len(), 11);
    for file in &files {
        let change = |to: &dyn Fn(Vec<u8>) -> Vec<u8>, out: &Path| {
            let path = out.join("checkpoint-40").join(file);
            fs::write(&path, to(fs::read(&path).unwrap())).unwrap();
        };
        damaged("a flipped bit in", file, &|out| {
            change(
                &|mut bytes| {
                    let at = bytes.len() / 2;
                    bytes[at] ^= 1;
                    bytes
                },
                out,
            )
        });
        damaged("truncated", file, &|out| change(&|bytes| bytes[..bytes.len() / 2].to_vec(), out));
        damaged("without", file, &|out| fs::remove_file(out.join("checkpoint-40").join(file)).unwrap());
    }
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let other = |out: &Path| {
            fs::copy(out.join("checkpoint-35").join(file), out.join("checkpoint-40").join(file)).unwrap();
        };
        damaged("of another update", file, &other);
    }
    damaged("another update under the name of", "checkpoint-40", &|out| {
        fs::remove_dir_all(out.join("checkpoint-40")).unwrap();
        copy_all(&out.join("checkpoint-35"), &out.join("checkpoint-40"));
    });
}

/// A folder as another program leaves it.
fn foreign(folder: &Path) {
    put(folder, &[("config.json", "{}"), ("trainer_state.json", "{}"), ("optimizer.pt", "moments")]);
}

#[test]
fn what_another_program_or_run_has_written_is_neither_removed_nor_resumed() {
    let dir = TempDir::new().unwrap();
    let [out, other] = ["out", "other"].map(|name| dir.path().join(name));
    run_with(&out, "--max-steps 20").done();
    run_with(&other, "--learning-rate 1e-2").done();
    let names = ["checkpoint-5", "checkpoint-40", "checkpoint-99"];
    [names[0], names[2]].into_iter().for_each(|name| foreign(&out.join(name)));
    copy_all(&other.join(names[1]), &out.join(names[1]));
    // A copy that the user has made.
    copy_all(&out.join("checkpoint-15"), &out.join("checkpoint-15.old"));

    let named = run_with(&out, &format!("--resume-from-checkpoint {}", path(&out.join(names[2]))));
    named.failed(2, "checkpoint-99`: is not a checkpoint of this program: it has no state.json; use another checkpoint");
    let ran = ran(TRAIN, &["--resume-from-checkpoint", path(&out), "--max-steps", "40"]).done();
    assert!(ran.err.contains("resumed: 20 of 40 updates") && !ran.err.contains("--learning-rate was"), "{}", ran.err);
    for name in &names[1..] {
        assert!(ran.err.contains(&format!("{name}: is not a checkpoint of this run")), "{}", ran.err);
    }
    assert!(ran.err.contains("set aside as not part of this run: checkpoint-5 and 2 more, now in "), "{}", ran.err);
    assert_eq!(checkpoints(&out), set(["checkpoint-35", "checkpoint-40", "checkpoint-15.old"]));
    assert_eq!(checkpoints(&out.join("earlier-run-1")), set(names));
    assert_eq!(fs::read(out.join("earlier-run-1/checkpoint-5/optimizer.pt")).unwrap(), b"moments");
}

#[test]
fn the_weights_of_another_program_are_not_taken_for_the_best() {
    let out = TempDir::new().unwrap();
    let flags = "--batch-size 2 --seed 1 --learning-rate 5e-3 --validation-split 0.2 --eval-strategy steps --eval-steps 2";
    run_with(out.path(), &format!("{flags} --save-steps 2 --save-total-limit 9 --early-stopping-patience 3")).done();
    let state = read(out.path(), "trainer_state.json");
    assert!(state["best_global_step"].as_u64() < state["global_step"].as_u64(), "{state}");
    let best = out.path().join(format!("checkpoint-{}", state["best_global_step"]));
    let weights = fs::read(best.join("model.safetensors")).unwrap();
    fs::remove_dir_all(&best).unwrap();
    foreign(&best);
    fs::write(best.join("model.safetensors"), weights).unwrap();
    let before = checkpoints(out.path());
    let resume = ["--resume-from-checkpoint", path(out.path()), "--early-stopping-patience", "9"];
    ran(TRAIN, &resume).failed(2, "the weights of the best evaluation, at update ");
    assert_eq!(checkpoints(out.path()), before);
}

/// Turns a checkpoint into one of an earlier version, without checksums and without an id of its run; its state.
fn of_an_earlier_version(checkpoint: &Path) -> Value {
    fs::remove_file(checkpoint.join("checksums.json")).unwrap();
    let mut state = read(checkpoint, "state.json");
    state.as_object_mut().unwrap().remove("run_id").unwrap();
    fs::write(checkpoint.join("state.json"), state.to_string()).unwrap();
    state
}

#[test]
fn a_checkpoint_named_must_be_sound_and_one_without_checksums_is_reported() {
    let out = TempDir::new().unwrap();
    run_with(out.path(), "").done();
    let before = fs::read(out.path().join("model.safetensors")).unwrap();
    let newest = out.path().join("checkpoint-40");
    let named = format!("--resume-from-checkpoint {}", path(&newest));

    of_an_earlier_version(&newest);
    for flags in [&named, "--resume-from-checkpoint"] {
        let ran = run_with(out.path(), flags).done();
        assert!(ran.err.contains("checkpoint-40 has no checksums: it is used unverified"), "{}", ran.err);
    }
    assert!(fs::read(out.path().join("model.safetensors")).unwrap() == before);
    let weights = fs::read(newest.join("model.safetensors")).unwrap();
    fs::write(newest.join("model.safetensors"), &weights[..weights.len() - 4]).unwrap();
    run_with(out.path(), &named).failed(2, "the file is truncated");
    assert!(run_with(out.path(), "--resume-from-checkpoint").done().err.contains("resumed: 35 of 40"));

    let older = out.path().join("checkpoint-35");
    fs::write(older.join("optimizer.safetensors"), &weights).unwrap();
    run_with(out.path(), &format!("--resume-from-checkpoint {}", path(&older))).failed(2, "has changed since it was written");
}

#[test]
fn a_checkpoint_with_other_dropout_masks_is_reported() {
    for (rate, matters) in [("0.1", true), ("0", false)] {
        let (out, flags) = (TempDir::new().unwrap(), format!("--dropout {rate}"));
        run_with(out.path(), &flags).done();
        let newest = out.path().join("checkpoint-40");
        let mut state = of_an_earlier_version(&newest);
        state.as_object_mut().unwrap().remove("masks").unwrap();
        fs::write(newest.join("state.json"), state.to_string()).unwrap();
        let ran = run_with(out.path(), &format!("{flags} --resume-from-checkpoint")).done();
        assert_eq!(ran.err.contains("checkpoint-40 was written by a version with other dropout masks"), matters, "{}", ran.err);
    }
}

#[test]
fn numbers_that_are_not_finite_are_not_saved() {
    let dir = TempDir::new().unwrap();
    // Infinite in f32, while loss and gradient of the update are finite.
    for (save, begun) in [("epoch", false), ("no", false), ("epoch", true)] {
        let out = dir.path().join(format!("{save} {begun}"));
        let mut flags = format!("--learning-rate 1e39 --max-steps 1 --save-strategy {save}");
        let mut good = "no checkpoint was written yet".to_string();
        if begun {
            train(&out, &["--max-steps", "1"]).done();
            flags = flags.replace("--max-steps 1", "--max-steps 2 --resume-from-checkpoint --save-total-limit 1");
            good = format!("the last good checkpoint is {}", path(&out.join("checkpoint-1")));
            fs::remove_file(out.join("model.safetensors")).unwrap();
        }
        let ran = train(&out, &words(&flags));
        let update = format!("`after update {}`: classifier.bias is not finite (", 1 + usize::from(begun));
        assert!(ran.err.contains(&update), "{flags}: {}", ran.err);
        ran.failed(1, &good);
        assert_eq!(checkpoints(&out).len(), usize::from(begun), "{flags}");
        assert!(!out.join("model.safetensors").exists(), "{flags}");
    }
}

/// A log that is written to a full disk from the first checkpoint on.
#[test]
fn a_disk_that_is_full_in_the_middle_of_a_run_names_the_last_checkpoint() {
    let dir = TempDir::new().unwrap();
    let (out, full) = (dir.path().join("out"), dir.path().join("full"));
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let mut command = program(TRAIN);
    command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out), "--device", "cpu"]);
    let child = command.args(flags("--max-steps 1000000")).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_checkpoint(&out);
    fs::rename(&full, out.join("metrics.jsonl")).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let error = err.lines().last().unwrap();
    assert!(output.status.code() == Some(2) && error.contains("No space left on device"), "{err}");
    let steps = checkpoints(&out).into_iter().map(|name| name["checkpoint-".len()..].parse::<usize>().unwrap());
    let last = out.join(format!("checkpoint-{}", steps.max().unwrap()));
    let end =
        format!("; the last good checkpoint is {}; free some space; --resume-from-checkpoint continues the run", path(&last));
    assert!(error.ends_with(&end), "{error}");
}

#[test]
fn numbers_of_a_checkpoint_that_cannot_be_are_refused() {
    let out = TempDir::new().unwrap();
    run_with(out.path(), "--max-steps 10").done();
    let checkpoint = out.path().join("checkpoint-10");
    let sound = of_an_earlier_version(&checkpoint);
    let resume = format!("--max-steps 10 --resume-from-checkpoint {}", path(&checkpoint));
    for (key, value, fact) in [
        ("step", json!(-1), "invalid value: integer `-1`"),
        ("step", json!(1e30), "not the state of a run"),
        ("step", json!(1_000_000_000_000_000_000u64), "is the checkpoint of update 1000000000000000000"),
        ("micro_batch", json!(2), "micro_batch is 2, but an update has 1"),
        ("skipped", json!(11), "skipped is 11, but step is 10"),
        ("checked", json!(11), "checked is 11, but step is 10"),
        ("stale", json!(11), "stale is 11, but step is 10"),
        ("best", json!([11, 0.5]), "best is 11, but step is 10"),
    ] {
        let mut state = sound.clone();
        state[key] = value;
        fs::write(checkpoint.join("state.json"), state.to_string()).unwrap();
        run_with(out.path(), &resume).failed(2, fact);
    }
    fs::write(checkpoint.join("state.json"), sound.to_string()).unwrap();
    let fact = "step is 10, but the run has 8 updates; raise --epochs or --max-steps";
    run_with(out.path(), &resume.replace("--max-steps 10", "--max-steps 8")).failed(2, fact);
    // A log that goes on after the checkpoint.
    let mut log = read(&checkpoint, "trainer_state.json");
    log["log_history"].as_array_mut().unwrap().push(json!({"loss": 0.5, "step": 12}));
    fs::write(checkpoint.join("trainer_state.json"), log.to_string()).unwrap();
    run_with(out.path(), &resume.replace("--max-steps 10", "--max-steps 15")).done();
    assert!(json_lines(&out.path().join("metrics.jsonl")).iter().all(|entry| entry["step"] != 12));
}

#[test]
fn what_killed_runs_left_is_removed_or_restored() {
    let out = TempDir::new().unwrap();
    run_with(out.path(), "").done();
    let at = |name: &str| out.path().join(name);
    let before = names(out.path());
    // Between the two renames of a checkpoint that is replaced, and while others were written or removed.
    fs::rename(at("checkpoint-40"), at("checkpoint-40.replaced")).unwrap();
    for name in ["checkpoint-35.replaced", "checkpoint-35.partial", "checkpoint-30.partial"] {
        copy_all(&at("checkpoint-35"), &at(name));
    }
    for name in ["model.safetensors.partial", "trainer_state.json.partial", ".writable", "thesis.txt.partial"] {
        fs::write(at(name), "half").unwrap();
    }
    let ran = run_with(out.path(), "--resume-from-checkpoint").done();
    assert!(ran.err.contains("resumed: 40 of 40"), "{}", ran.err);
    let mut after = names(out.path());
    assert!(after.remove("thesis.txt.partial"), "a file that is not of the run");
    assert_eq!(after, before);
}

/// The model that a folder predicts with: its configuration, its weights and its tokenizer, as read.
fn model(out: &Path) -> Vec<Vec<u8>> {
    ["config.json", "model.safetensors", "tokenizer.json", "README.md"].map(|name| fs::read(out.join(name)).unwrap()).into()
}

#[test]
fn a_full_disk_leaves_the_model_that_was_there() {
    let out = TempDir::new().unwrap();
    train(out.path(), &words("--max-steps 2 --save-strategy no")).done();
    let before = model(out.path());
    let size = fs::metadata(out.path().join("model.safetensors")).unwrap().len();
    let (base, file) = (golden("train/hf_init"), golden("train/train.csv"));
    // Files end there, as on a full disk: sh counts in blocks of 512 bytes.
    let limited = format!("ulimit -f {}; exec \"$@\"", size / 512 - 8);
    let mut command = without_colour_settings(Command::new("sh"));
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_train"), "--model", path(&base), "--train-file", path(&file)]);
    command.args(["--output-dir", path(out.path()), "--overwrite-output-dir"]);
    command.args(words("--max-steps 2 --save-strategy no --dropout 0.3 --label-names no,yes"));
    run(&mut command, b"").failed(2, "model.safetensors");
    assert!(model(out.path()) == before);
    assert!(names(out.path()).iter().all(|name| !name.contains("partial")), "{:?}", names(out.path()));
}

/// Early stopping and the best evaluation are those of the whole run, whether the best model is loaded or not.
#[test]
fn a_resumed_run_stops_as_early() {
    let dir = TempDir::new().unwrap();
    let (whole, part) = (dir.path().join("whole"), dir.path().join("part"));
    let flags = words(
        "--max-steps 40 --batch-size 2 --seed 1 --learning-rate 5e-3 --validation-split 0.2 --eval-strategy steps --eval-steps 2 \
         --save-strategy steps --save-steps 2 --early-stopping-patience 3 --load-best-model-at-end false",
    );
    let ended = train(&whole, &flags).done();
    assert!(ended.err.contains("stopped early"), "{}", ended.err);
    let result = |run: &Path| {
        let state: Value = serde_json::from_slice(&fs::read(run.join("trainer_state.json")).unwrap()).unwrap();
        let best = ["global_step", "best_global_step", "best_metric"].map(|key| state[key].clone());
        (fs::read(run.join("model.safetensors")).unwrap(), best)
    };
    let want = result(&whole);
    assert!(want.1[1].as_u64() < want.1[0].as_u64(), "{:?}", want.1);
    for step in [2, 6, want.1[0].as_u64().unwrap()] {
        copy_all(&whole, &part);
        let resumed = ran(TRAIN, &["--resume-from-checkpoint", path(&part.join(format!("checkpoint-{step}")))]).done();
        assert!(result(&part) == want, "resumed at {step}: {:?}", result(&part).1);
        assert_eq!(resumed.err.contains("this run has stopped early"), Some(step) == want.1[0].as_u64(), "{}", resumed.err);
        fs::remove_dir_all(&part).unwrap();
    }
}

/// A run that is killed between the renames at its end: the next reader or writer of the folder finishes them.
#[test]
fn a_model_that_was_being_replaced_is_whole() {
    let dir = TempDir::new().unwrap();
    let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
    train(&old, &words("--max-steps 2 --save-strategy no")).done();
    train(&new, &words("--max-steps 4 --save-strategy no --dropout 0.3 --label-names no,yes")).done();
    let files =
        ["README.md", "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"];
    let test = golden("train/test.csv");
    let predicted = |model: &Path| ran(PREDICT, &["--model", path(model), "--input", path(&test)]).done().out;
    let (wanted, state) = (predicted(&new), model(&new));
    assert_ne!(wanted, predicted(&old));
    for renamed in 0..=files.len() {
        let out = dir.path().join(renamed.to_string());
        copy_all(&old, &out);
        let ready = out.join("model.ready");
        fs::create_dir(&ready).unwrap();
        for file in files {
            fs::copy(new.join(file), ready.join(file)).unwrap();
        }
        warpfit::files::seal(&ready).unwrap();
        files[..renamed].iter().for_each(|file| fs::rename(ready.join(file), out.join(file)).unwrap());
        if renamed % 2 == 0 {
            assert_eq!(predicted(&out), wanted, "{renamed} files were renamed");
        } else {
            train(&out, &words("--max-steps 1 --overwrite-output-dir --learning-rate 1e39")).failed_with(1);
        }
        assert!(model(&out) == state && !ready.exists(), "{renamed} files were renamed");
        assert!(!out.join("vocab.txt").exists(), "it belongs to the old model");
    }
}

#[cfg(unix)]
#[test]
fn a_fifo_or_a_link_in_a_model_folder_is_refused() {
    let out = TempDir::new().unwrap();
    let secret = out.path().join("secret");
    fs::write(&secret, "{}").unwrap();
    for (name, part) in [("README.md", "is not a regular file"), ("special_tokens_map.json", "is a link out of this folder")] {
        let model = copy("train/hf_init");
        let (file, out) = (model.path().join(name), out.path().join(name));
        let _ = fs::remove_file(&file);
        if name == "README.md" {
            assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        } else {
            std::os::unix::fs::symlink(&secret, &file).unwrap();
        }
        let rows = golden("train/train.csv");
        let args = ["--model", path(model.path()), "--train-file", path(&rows), "--output-dir", path(&out), "--max-steps", "1"];
        ran(TRAIN, &args).failed(2, part);
        assert!(!out.exists());
    }
    // The files of a hub cache are links to its blobs.
    let model = copy("train/hf_init");
    let (snapshot, blob) = (model.path().join("snapshots/0"), model.path().join("blobs/0"));
    copy_all(&golden("train/hf_init"), &snapshot);
    fs::create_dir(model.path().join("blobs")).unwrap();
    fs::rename(snapshot.join("tokenizer.json"), &blob).unwrap();
    std::os::unix::fs::symlink("../../blobs/0", snapshot.join("tokenizer.json")).unwrap();
    let rows = golden("train/train.csv");
    let out = out.path().join("cached");
    ran(TRAIN, &["--model", path(&snapshot), "--train-file", path(&rows), "--output-dir", path(&out), "--max-steps", "1"]).done();
    assert!(!out.join("tokenizer.json").is_symlink());
}

#[cfg(target_os = "linux")]
#[test]
fn hangups_and_the_warning_of_a_scheduler_save_the_run() {
    let dir = TempDir::new().unwrap();
    // Two signals in a row are one: so `timeout` stops a program.
    for (ignored, signals) in [(false, &["HUP"][..]), (false, &["USR1"]), (false, &["TERM", "TERM"]), (true, &["HUP"])] {
        let out = dir.path().join(format!("{ignored} {signals:?}"));
        let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
        // The tests themselves may run under nohup.
        let mut command = Command::new("env");
        command.arg(if ignored { "--ignore-signal=HUP" } else { "--default-signal=HUP" });
        command.args([env!("CARGO_BIN_EXE_train"), "--model", path(&model), "--train-file", path(&file)]);
        command.args(["--output-dir", path(&out)]).args(flags("--max-steps 1000000")).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        wait_for_checkpoint(&out);
        let send = |signal: &str| Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(signals.iter().all(|signal| send(signal).success()));
        if ignored {
            // As under nohup.
            std::thread::sleep(Duration::from_millis(300));
            assert!(child.try_wait().unwrap().is_none(), "an ignored hangup ended the run");
            child.kill().unwrap();
            child.wait().unwrap();
            continue;
        }
        let ended = child.wait_with_output().unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(130) && error.contains("saved in "), "{signals:?}: {:?} {error}", ended.status);
    }
}

#[test]
fn changed_settings_are_reported() {
    let out = TempDir::new().unwrap();
    run_with(out.path(), "").done();
    let changed = "--learning-rate 1e-4 --weight-decay 0.5 --epochs 4 --resume-from-checkpoint";
    let ran = run_with(out.path(), changed).done();
    for line in [
        "warning: --learning-rate was 0.00005, and is 0.0001 from here on",
        "warning: --epochs was 3.0, and is 4.0 from here on",
        "warning: --weight-decay was 0.0, and is 0.5 from here on",
    ] {
        assert!(ran.err.contains(line), "{}", ran.err);
    }
    assert_eq!(ran.err.matches(" from here on").count(), 3, "{}", ran.err);
    // Evaluations before and after would not be comparable.
    for (flag, value, was) in [
        ("--positive-label", "NEGATIVE", "not set"),
        ("--label-smoothing-factor", "0.5", "0.0"),
        ("--class-weights", "balanced", "not set"),
        ("--dropout", "0.25", "0.0"),
    ] {
        let refused = run_with(out.path(), &format!("{flag} {value} --epochs 5 --resume-from-checkpoint")).failed(2, "");
        let fact = format!("was written with {flag} {was}, but this run has {value}; resume with the same settings");
        assert!(refused.err.contains(&fact), "{}", refused.err);
    }
}

#[test]
fn a_finished_run_that_is_resumed_keeps_its_results() {
    let out = TempDir::new().unwrap();
    run_with(out.path(), "--validation-split 0.2").done();
    let results = || ["train_results.json", "all_results.json"].map(|name| read(out.path(), name));
    let figure = |results: &[Value; 2], key: &str| results.each_ref().map(|results| results[key].clone());
    let (before, log) = (results(), json_lines(&out.path().join("metrics.jsonl")));
    assert!(before[0]["train_steps_per_second"].as_f64() > Some(0.0));
    let resumed = run_with(out.path(), "--validation-split 0.2 --resume-from-checkpoint").done();
    assert!(resumed.out.contains("trained     no update was left, mean loss 0."), "{}", resumed.out);
    assert!(!resumed.err.contains("tokens/s"), "{}", resumed.err);
    let after = results();
    assert_eq!(after[0], before[0]);
    for key in keys(&before[0]) {
        assert_eq!(figure(&after, key), figure(&before, key), "{key}");
    }
    assert_eq!(json_lines(&out.path().join("metrics.jsonl")), log);

    // A run that was killed before it wrote them has no figures of its speed.
    fs::remove_file(out.path().join("train_results.json")).unwrap();
    run_with(out.path(), "--validation-split 0.2 --resume-from-checkpoint").done();
    assert_eq!(keys(&results()[0]), BTreeSet::from(["epoch", "train_loss", "train_samples"]));
}

#[test]
fn the_readme_of_a_folder_that_no_run_has_written_is_kept() {
    let out = TempDir::new().unwrap();
    fs::write(out.path().join("README.md"), "my notes").unwrap();
    let ran = run_with(out.path(), "--overwrite-output-dir").done();
    assert!(ran.err.contains("set aside as not written by a run of this program: README.md, now in "), "{}", ran.err);
    assert_eq!(fs::read_to_string(out.path().join("earlier-run-1/README.md")).unwrap(), "my notes");
    // The card of a run is replaced with its model.
    run_with(out.path(), "--overwrite-output-dir").done();
    assert!(!out.path().join("earlier-run-2/README.md").exists() && out.path().join("README.md").exists());
}

#[test]
fn a_run_moves_and_replaces_nothing_that_it_reads() {
    let out = TempDir::new().unwrap();
    run_with(out.path(), "--max-steps 2 --save-steps 2").done();
    let rows = fs::read(golden("train/train.csv")).unwrap();
    fs::create_dir(out.path().join("data")).unwrap();
    let (model, own) = (golden("train/hf_init"), out.path().join("checkpoint-2"));
    let again = |model: &Path, file: &str| {
        let file = out.path().join(file);
        fs::write(&file, &rows).unwrap();
        let args = ["--model", path(model), "--train-file", path(&file), "--output-dir", path(out.path())];
        let ran = ran(TRAIN, &[&args[..], &words("--max-steps 1 --overwrite-output-dir")].concat());
        assert_eq!(fs::read(&file).unwrap(), rows);
        ran
    };
    for file in ["examples.json", "checkpoint-2/train.csv", "plots/train.csv"] {
        again(&model, file).failed(2, &format!("{file}`: is read, and a run in "));
    }
    again(&own, "train.csv").failed(2, "checkpoint-2`: is read, and a run in ");
    // What would be taken for the rest of a killed run.
    for folder in ["model.partial", "model.ready", "checkpoint-9.partial", "checkpoint-9.replaced"] {
        fs::create_dir(out.path().join(folder)).unwrap();
        again(&model, &format!("{folder}/train.csv")).failed(2, &format!("{folder}/train.csv`: is read, and a run in "));
        fs::remove_dir_all(out.path().join(folder)).unwrap();
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&model, out.path().join("checkpoint-7")).unwrap();
        again(&out.path().join("checkpoint-7"), "train.csv").failed(2, "checkpoint-7`: is read, and a run in ");
        fs::remove_file(out.path().join("checkpoint-7")).unwrap();
    }
    for file in ["train.csv", "data/train.csv"] {
        again(&model, file).done();
    }
}

#[test]
fn the_best_checkpoint_stays_known() {
    let out = TempDir::new().unwrap();
    // Nothing is learnt, so that no evaluation is better than the first.
    let with = "--validation-split 0.2 --load-best-model-at-end false --metric-for-best-model f1 --learning-rate 1e-30 --eval-steps 5 \
                --save-total-limit 3 --no-shuffle";
    run_with(out.path(), with).done();
    let best = || super::read(out.path(), "trainer_state.json")["best_model_checkpoint"].clone();
    let (before, last) = (best(), out.path().join("checkpoint-40"));
    assert!(before.is_string() && before != path(&last), "{before}");
    fs::remove_dir_all(&last).unwrap();
    run_with(out.path(), &format!("{with} --resume-from-checkpoint")).done();
    assert_eq!(best(), before);

    // Another program has written into its place.
    fs::remove_dir_all(before.as_str().unwrap()).unwrap();
    foreign(Path::new(before.as_str().unwrap()));
    run_with(out.path(), &format!("{with} --resume-from-checkpoint")).done();
    assert_eq!(best(), json!(null));
}

/// Nothing can be created in /proc, not even by root.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_refused_before_anything_is_read() {
    for more in [&["--dry-run"][..], &[]] {
        let refused = train(Path::new("/proc/new/out"), more);
        assert!(!refused.err.contains("data: "), "{}", refused.err);
        refused.failed(2, "`/proc/new/out`: ");
    }
}

#[test]
fn a_numbered_folder_that_holds_nothing_is_removed() {
    let dir = TempDir::new().unwrap();
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let mut command = program(TRAIN);
    command.current_dir(&dir).args(["--model", path(&model), "--train-file", path(&file), "--report-to", "none"]);
    command.args(words("--learning-rate 1e39 --max-steps 1 --save-strategy no"));
    run(&mut command, b"").failed(1, "is not finite");
    assert_eq!(names(&dir.path().join("runs")), BTreeSet::new());
}

#[test]
fn a_stop_while_data_is_read_begins_nothing() {
    let dir = TempDir::new().unwrap();
    let (model, file, runs) = (golden("train/hf_init"), dir.path().join("train.csv"), dir.path().join("runs"));
    let rows: String = (0..300_000).map(|row| format!("a film that is number {row} of many,{}\n", row % 2)).collect();
    fs::write(&file, format!("text,label\n{rows}")).unwrap();
    let mut command = program(TRAIN);
    command.current_dir(&dir).args(["--model", path(&model), "--train-file", path(&file)]).env("WARPFIT_CACHE", "");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // The file is read, but not tokenised yet.
    notes.find(|line| line.starts_with("data: ")).unwrap();
    assert!(runs.join("1").exists());
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let (last, code) = (notes.last(), child.wait().unwrap().code());
    let line = "stopped: before the first update: nothing was begun; start the same command again";
    assert_eq!((code, last.as_deref()), (Some(130), Some(line)));
    assert_eq!(names(&runs), BTreeSet::new());
}

/// From too little address space for anything to enough for the run.
#[cfg(target_os = "linux")]
#[test]
fn exhausted_memory_is_reported_in_one_line() {
    let dir = TempDir::new().unwrap();
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let (mut started, mut failures) = (false, BTreeSet::new());
    for kib in (16 << 10..1 << 20).step_by(512) {
        let mut command = without_colour_settings(Command::new("sh"));
        command.args(["-c", &format!("ulimit -v {kib}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_train")]);
        command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&dir.path().join("out"))]);
        command.args(words("--max-steps 2 --batch-size 32 --device cpu --quiet --overwrite-output-dir"));
        let ran = run(&mut command, b"");
        if ran.code == Some(0) {
            break;
        }
        // Below, the loader finds no room for the program.
        started |= ran.err.starts_with("error: `");
        // What the C library itself cannot do without memory, as starting a thread, it ends with an abort of its own.
        if started && !ran.err.contains("Fatal glibc error") {
            failures.insert(ran.err.split('`').nth(1).unwrap_or_default().to_string());
            ran.failed(3, "");
        }
    }
    assert!(failures.contains("cpu") && failures.contains("memory"), "{failures:?}");
}

#[test]
fn a_run_resumes_with_the_settings_of_its_folder() {
    let dir = TempDir::new().unwrap();
    let whole = dir.path().join("whole");
    run_with(&whole, "--learning-rate 1e-3 --weight-decay 0.1 --no-shuffle --report-to jsonl --batch-size 5").done();
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    let stopped = |name: &str| {
        let out = dir.path().join(name);
        copy_all(&whole, &out);
        fs::remove_dir_all(out.join("checkpoint-40")).unwrap();
        fs::remove_file(out.join("model.safetensors")).unwrap();
        out
    };
    let resume = |args: &[&str]| ran(TRAIN, &[args, &["--resume-from-checkpoint"]].concat());

    // The folder, a checkpoint in it, or --output-dir.
    let (a, b, c) = (stopped("a"), stopped("b"), stopped("c"));
    let newest = b.join("checkpoint-35");
    let ways = [vec!["--resume-from-checkpoint", path(&a)], vec!["--resume-from-checkpoint", path(&newest)]];
    let by_output_dir = ["--output-dir", path(&c), "--resume-from-checkpoint"];
    for (way, out) in ways.iter().map(|way| &way[..]).chain([&by_output_dir[..]]).zip([&a, &b, &c]) {
        let ran = ran(TRAIN, way).done();
        let line = format!("settings: those of {}, but for the flags given here\n", out.join("checkpoint-35").display());
        assert!(ran.err.contains(&line) && ran.err.contains("resumed: 35 of 40 updates"), "{way:?} {}", ran.err);
        assert!(!ran.err.contains(" from here on"), "{}", ran.err);
        assert!(weights(out) == weights(&whole), "{way:?}");
        let [was, is] = [&whole, out].map(|out| read(out, "training_args.json"));
        let differing = was.as_object().unwrap().iter().filter(|(key, was)| is[*key] != **was).map(|(key, _)| key.as_str());
        assert_eq!(BTreeSet::from_iter(differing), BTreeSet::from(["output_dir", "resume_from_checkpoint"]));
        assert_eq!(is["resume_from_checkpoint"], path(&out.join("checkpoint-35")));
    }

    // What is given is checked against the run, and a number of epochs replaces its number of updates.
    let out = stopped("d");
    ran(TRAIN, &["--resume-from-checkpoint", path(&out), "--seed", "7"]).failed(2, "was written with --seed 42");
    let other = dir.path().join("other-folder");
    let moved = ran(TRAIN, &["--resume-from-checkpoint", path(&out), "--output-dir", path(&other)]);
    moved.failed(2, "is the folder of another run than --output-dir; leave out --output-dir to continue it");
    assert!(!other.exists());
    let more = ["--resume-from-checkpoint", path(&out), "--learning-rate", "1e-4", "--epochs", "2.5"];
    let longer = ran(TRAIN, &more).done();
    assert!(longer.err.contains("warning: --learning-rate was 0.001, and is 0.0001 from here on"), "{}", longer.err);
    assert!(longer.err.contains("resumed: 35 of 50 updates"), "{}", longer.err);

    // Flags of a damaged checkpoint are not taken, but those of the one before it.
    let out = dir.path().join("e");
    copy_all(&whole, &out);
    let damage = |checkpoint: &str| {
        let args = out.join(checkpoint).join("training_args.json");
        fs::write(&args, fs::read_to_string(&args).unwrap().replace("\"0.1\"", "\"0.2\"")).unwrap();
    };
    damage("checkpoint-40");
    let before = ran(TRAIN, &["--resume-from-checkpoint", path(&out)]).done();
    let line = format!("settings: those of {}, but", out.join("checkpoint-35").display());
    assert!(before.err.contains(&line) && before.err.contains("resumed: 35 of 40 updates"), "{}", before.err);
    ["checkpoint-35", "checkpoint-40"].into_iter().for_each(damage);
    let refused = ran(TRAIN, &["--resume-from-checkpoint", path(&out)]);
    let refused = refused.failed(2, "this folder has no sound checkpoint: ");
    for checkpoint in ["checkpoint-35", "checkpoint-40"] {
        let damaged = format!("{}: has changed since it was written", out.join(checkpoint).join("training_args.json").display());
        assert!(refused.err.contains(&damaged), "{}", refused.err);
    }

    // Other instructions round differently.
    let out = stopped("other");
    let plain = run(program(TRAIN).args(["--resume-from-checkpoint", path(&out)]).env("WARPFIT_CPU", "plain"), b"").done();
    assert!(plain.err.contains("plain the bits may differ from those of an uninterrupted run\n"), "{}", plain.err);
    let again = ran(TRAIN, &["--resume-from-checkpoint", path(&out), "--max-steps", "41"]).done();
    assert!(again.err.contains(", plain: on "), "{}", again.err);

    // An earlier version recorded none.
    let out = stopped("g");
    let newest = out.join("checkpoint-35");
    of_an_earlier_version(&newest);
    fs::remove_file(newest.join("training_args.json")).unwrap();
    let refused = ran(TRAIN, &["--resume-from-checkpoint", path(&out)]);
    refused.failed(2, "checkpoint-35`: does not have the settings of its run; pass the flags of the run");

    // Nor are those of one that is not resumed for another reason.
    let out = dir.path().join("f");
    copy_all(&whole, &out);
    fs::remove_dir_all(out.join("checkpoint-40")).unwrap();
    copy_all(&out.join("checkpoint-35"), &out.join("checkpoint-99"));
    let newest = ran(TRAIN, &["--resume-from-checkpoint", path(&out)]).done();
    let line = format!("settings: those of {}, but", out.join("checkpoint-35").display());
    assert!(newest.err.contains(&line) && newest.err.contains("resumed: 35 of 40 updates"), "{}", newest.err);
    let missing = out.join("checkpoint-34");
    ran(TRAIN, &["--resume-from-checkpoint", path(&missing)]).failed(2, "checkpoint-34`: no such checkpoint; check the path");
    // Runs are numbered from 1, which is a truth value, too.
    copy_all(&whole, &dir.path().join("1"));
    let mut numbered = program(TRAIN);
    let numbered = run(numbered.current_dir(&dir).args(["--resume-from-checkpoint", "1"]), b"").done();
    assert!(numbered.err.contains("settings: those of 1/checkpoint-40"), "{}", numbered.err);

    // The folder of a run goes on in itself; and a folder that was made for a run that is not resumed is removed.
    let (b, new) = (dir.path().join("b"), dir.path().join("new"));
    let at_new = |from: &Path| ran(TRAIN, &["--resume-from-checkpoint", path(from), "--output-dir", path(&new)]);
    at_new(&b).failed(2, "b`: is the folder of another run than --output-dir; leave out");
    at_new(&golden("train/hf_init")).failed(2, "is not a checkpoint of this program");
    assert!(!new.exists());
    for (flags, fact) in [
        ("--batch-size 3", "was written with"),
        ("--train-file nowhere.csv", "nowhere.csv"),
        ("--fail-under x=1", "there is no metric"),
    ] {
        let newest = b.join("checkpoint-40");
        let args = ["--resume-from-checkpoint", path(&newest), "--output-dir", path(&new)];
        ran(TRAIN, &[&args[..], &words(flags)].concat()).failed(2, fact);
        assert!(!new.exists(), "{flags}");
    }

    resume(&[]).failed(2, "`--output-dir`: is missing; name the folder of the run: --resume-from-checkpoint DIR");
    let elsewhere = dir.path().join("elsewhere");
    ran(TRAIN, &["--resume-from-checkpoint", path(&elsewhere)])
        .failed(2, "elsewhere`: no such folder; name the folder of the run");
}

#[test]
fn a_run_with_relative_paths_resumes_in_another_folder() {
    let dir = TempDir::new().unwrap();
    let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
    [&here, &there].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    copy_all(&golden("train/hf_init"), &here.join("model"));
    fs::copy(golden("train/train.csv"), here.join("train.csv")).unwrap();
    let train_in = |folder: &Path, args: &str| {
        let mut command = program(TRAIN);
        run(command.current_dir(folder).args(words(args)).env("HF_HUB_OFFLINE", "1"), b"")
    };
    train_in(&here, "--model model --train-file train.csv --validation-split 0.2 --output-dir out --max-steps 2 --save-strategy steps --save-steps 2")
        .done();
    // Another file of the same name lies there.
    fs::write(there.join("train.csv"), "text,label\ngood,1\nbad,0\n").unwrap();
    let ran = train_in(&there, "--resume-from-checkpoint ../here/out --max-steps 3").done();
    fs::remove_file(there.join("train.csv")).unwrap();
    assert!(ran.err.contains("resumed: 2 of 3 updates") && !ran.err.contains("model was"), "{}", ran.err);
    // The resumed run can be resumed from anywhere, too.
    train_in(dir.path(), "--resume-from-checkpoint here/out --max-steps 4").done();
    fs::rename(here.join("train.csv"), here.join("moved.csv")).unwrap();
    let missing = train_in(&there, "--resume-from-checkpoint ../here/out --max-steps 5");
    missing.failed(2, &format!("`{}`: no such file or folder", path(&here.join("train.csv"))));
    train_in(&there, "--resume-from-checkpoint ../here/out --max-steps 5 --train-file ../here/moved.csv").done();
    // Where a run was started is no setting of it.
    let [one, other] = [here.join("out"), there.join("out")];
    train_in(
        &there,
        "--model ../here/model --train-file ../here/moved.csv --validation-split 0.2 --output-dir out --max-steps 5",
    )
    .done();
    let compared = crate::cli::ran(EVALUATE, &["--compare", path(&one), path(&other)]).done();
    assert!(!(compared.out + &compared.err).contains("working_directory"));
}
