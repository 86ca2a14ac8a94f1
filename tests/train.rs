//! Whole runs: compared with Hugging Face's Trainer number by number, and properties of the loop.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use warpfit::checkpoint::weights::Weights;
use warpfit::data::dataset::{Options, Table};
use warpfit::device::{Device, Precision};
use warpfit::files::seal;
use warpfit::infer::Session;
use warpfit::sample;
use warpfit::train::args::Settings;
use warpfit::train::{Outcome, recipe, train};

use crate::cli::{TRAIN, program};
use crate::fixtures::*;

/// The settings of these flags; on the CPU unless they name a device.
fn settings(flags: &str, out: &Path) -> Settings {
    warpfit::console::be_quiet(true);
    let device = if flags.contains("--device") { "" } else { "--device cpu" };
    let words = ["train"].into_iter().chain(flags.split_whitespace()).chain(device.split_whitespace()).map(OsString::from);
    let words = words.chain(["--output-dir".into(), out.into()]);
    recipe::parse(words).unwrap().unwrap().settings().unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A run on the files of a golden case.
fn golden_run(case: &str, flags: &str, out: &Path) -> Outcome {
    if flags.contains("--device cuda") {
        drop(gpu());
    }
    let folder = golden(case);
    let folder = folder.display();
    let files = format!("--model {folder}/hf_init --train-file {folder}/train.csv --validation-file {folder}/test.csv");
    train(&settings(&format!("{files} {flags}"), out), None).unwrap().unwrap()
}

/// The recipe of the golden README: rows in file order, a linear schedule, every step logged, the last model kept.
const RECIPE: &str = "--epochs 2 --learning-rate 5e-4 --weight-decay 0.01 --no-shuffle --logging-steps 1 \
                      --load-best-model-at-end false --max-length 64";

const BATCHES: [(&str, &str); 2] = [
    ("train", "--batch-size 8"),
    ("train-accumulate", "--batch-size 9 --gradient-accumulation-steps 3 --label-smoothing-factor 0.1"),
];

#[test]
fn golden_trainer_runs() {
    golden_trainer_runs_on(Device::Cpu);
}

#[test]
fn golden_trainer_runs_on_cuda() {
    golden_trainer_runs_on(Device::Cuda(0));
}

fn golden_trainer_runs_on(device: Device) {
    for (case, flags) in BATCHES {
        let dir = tempfile::tempdir().unwrap();
        golden_run(case, &format!("{RECIPE} {flags} --precision fp32 --device {device}"), dir.path());

        let want = json(&format!("{case}/losses.json"));
        let log = read_json(&dir.path().join("trainer_state.json"))["log_history"].as_array().unwrap().clone();
        let entries = |key: &str| log.iter().filter(|entry| entry[key].is_number()).collect::<Vec<_>>();
        let (losses, evaluations) = (entries("loss"), entries("eval_loss"));
        let close = |got: &Value, want: &Value, key: &str, tolerance: f64| {
            let (got, want) = (got[key].as_f64().unwrap(), want[key].as_f64().unwrap());
            assert!((got - want).abs() <= tolerance, "{case} {key}: {got}, but Trainer has {want}");
        };
        let want_losses = want["train"].as_array().unwrap();
        assert_eq!(losses.len(), want_losses.len());
        for (got, want) in losses.into_iter().zip(want_losses) {
            assert_eq!(got["step"], want["step"]);
            close(got, want, "epoch", 1e-12);
            close(got, want, "loss", 1e-5);
            close(got, want, "grad_norm", 2e-5);
            close(got, want, "learning_rate", 1e-15);
        }
        let want_evaluations = want["eval"].as_array().unwrap();
        assert_eq!(evaluations.len(), want_evaluations.len());
        for (got, want) in evaluations.into_iter().zip(want_evaluations) {
            close(got, want, "eval_loss", 1e-5);
            close(got, want, "eval_accuracy", 0.0);
        }

        compare_weights(dir.path(), &golden(case).join("hf_final"));

        // The saved folder, opened again.
        let golden_logits = Tensors::read(&format!("{case}/test_logits.safetensors"));
        let mut classifier = Session::classifier(dir.path(), device, Precision::Fp32, 512, 8).unwrap();
        let table = Table::read(&golden(case).join("test.csv"), &Options::default()).unwrap();
        let encoded = classifier.source.tokenizer().unwrap().encode(&table.texts, 64, &|_| ()).unwrap();
        let logits: Vec<f64> = classifier.logits(&encoded, |_, _| ()).unwrap().into_iter().map(f64::from).collect();
        let difference = max_abs_difference(&logits, golden_logits.get("logits"));
        assert!(difference < 1e-4, "{case} test logits: {difference:e}");
    }
}

/// Within the difference that two correct runs in f32 may have, without key biases.
fn compare_weights(got: &Path, want: &Path) {
    let (got, want) = [got, want].map(|folder| Weights::open(folder).unwrap()).into();
    assert!(got.names().eq(want.names()), "different tensors");
    let mut differences = Vec::new();
    for name in want.names().filter(|name| !name.ends_with("k_lin.bias")) {
        let (got, want) = (got.get(name).unwrap().f32().unwrap(), want.get(name).unwrap().f32().unwrap());
        differences.extend(got.iter().zip(&*want).map(|(a, b)| f64::from(a - b).abs()));
    }
    check_parameters(differences, [1e-6, 1e-5, 3e-4]);
}

/// Weights and logged losses of a short run with all randomness on, with this many threads.
fn short_run(threads: usize, flags: &str) -> (Vec<u8>, Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let flags =
        format!("--epochs 1 --batch-size 9 --dropout 0.1 --classifier-dropout 0.2 --logging-steps 1 --max-length 64 {flags}");
    pool.install(|| golden_run("train", &flags, dir.path()));
    let log = read_json(&dir.path().join("trainer_state.json"))["log_history"].as_array().unwrap().clone();
    let losses = log.iter().map(|entry| entry["loss"].clone()).collect();
    (std::fs::read(dir.path().join("model.safetensors")).unwrap(), losses)
}

#[test]
fn same_bits_on_any_number_of_threads() {
    let one = short_run(1, "");
    assert!(one == short_run(2, "") && one == short_run(3, ""), "the number of threads changed a bit");
    assert!(one == short_run(2, ""), "the same run gave different bits");
    assert!(one.0 != short_run(2, "--seed 7").0, "another seed changed nothing");
}

#[test]
fn accumulated_micro_batches_equal_one_batch() {
    let [whole, parts] = ["--batch-size 32", "--batch-size 8 --gradient-accumulation-steps 4"].map(|flags| {
        let dir = tempfile::tempdir().unwrap();
        golden_run("train", &format!("{RECIPE} {flags}"), dir.path());
        losses(dir.path())
    });
    assert!(!whole.is_empty() && max_abs_difference(&whole, &parts) < 2e-6, "{whole:?} {parts:?}");
}

#[test]
fn the_best_model_is_the_one_saved() {
    let dir = tempfile::tempdir().unwrap();
    // All test rows are right after two epochs, and cannot improve.
    let flags = "--epochs 6 --batch-size 16 --learning-rate 5e-3 --lr-scheduler-type constant --metric-for-best-model accuracy \
                 --early-stopping-patience 2 --save-total-limit 2 --max-length 64";
    let outcome = golden_run("train", flags, dir.path());
    let state = read_json(&dir.path().join("trainer_state.json"));
    let accuracies: Vec<(u64, f64, f64)> = (state["log_history"].as_array().unwrap().iter())
        .filter_map(|entry| Some((entry["step"].as_u64()?, entry["eval_accuracy"].as_f64()?, entry["eval_loss"].as_f64()?)))
        .collect();
    let best = accuracies.iter().map(|a| a.1).fold(0.0, f64::max);
    let first = accuracies.iter().find(|a| a.1 == best).unwrap().0;
    // Of equal accuracies, that with the lowest loss.
    let best_step = accuracies.iter().filter(|a| a.1 == best).min_by(|a, b| a.2.total_cmp(&b.2)).unwrap().0;
    assert!(best_step > first);
    assert_eq!(state["best_global_step"], best_step);
    assert_eq!(outcome.evaluation.unwrap().metrics.accuracy, best);
    assert!(accuracies.len() < 6, "did not stop early");
    assert_eq!(accuracies[accuracies.len() - 3].0, first, "did not stop after two evaluations without an improvement");

    // Rotation keeps the best beside the newest, and the run's final weights are the best's.
    let weights = |folder: &str| std::fs::read(dir.path().join(folder).join("model.safetensors")).unwrap();
    assert!(weights("") == weights(&format!("checkpoint-{best_step}")));
    let folders = std::fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("checkpoint"));
    assert_eq!(folders.count(), 2);
}

/// A run that resumes from another's checkpoint.
fn resumed(whole: &Path, step: usize, flags: &str) -> TempDir {
    let part = tempfile::tempdir().unwrap();
    let name = format!("checkpoint-{step}");
    std::fs::create_dir(part.path().join(&name)).unwrap();
    for file in std::fs::read_dir(whole.join(&name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), part.path().join(&name).join(file.file_name())).unwrap();
    }
    golden_run("train", &format!("{flags} --resume-from-checkpoint"), part.path());
    part
}

/// Every logged loss.
fn losses(folder: &Path) -> Vec<f64> {
    let log = read_json(&folder.join("trainer_state.json"))["log_history"].as_array().unwrap().clone();
    log.iter().filter_map(|entry| entry["loss"].as_f64()).collect()
}

/// Ten updates with all randomness on, and a checkpoint in between: the devices draw the same masks, and one resumes from the
/// other's checkpoint as from its own.
#[test]
fn cpu_and_cuda_run_alike() {
    let flags = "--max-steps 10 --batch-size 9 --dropout 0.1 --classifier-dropout 0.2 --learning-rate 5e-4 --save-strategy steps \
                 --save-steps 5 --eval-strategy no --load-best-model-at-end false --logging-steps 1 --max-length 64";
    let on = ["cpu", "cuda"].map(|device| format!("{flags} --precision fp32 --device {device}"));
    let whole = on.each_ref().map(|flags| {
        let dir = tempfile::tempdir().unwrap();
        golden_run("train", flags, dir.path());
        dir
    });
    let close = |folder: &Path, what: &str| {
        let (got, want) = (losses(folder), losses(whole[0].path()));
        assert_eq!(got.len(), 10, "{what}");
        assert!(max_abs_difference(&got, &want) < 1e-5, "{what}: losses {got:?}, not {want:?}");
        compare_weights(folder, whole[0].path());
    };
    close(whole[1].path(), "cuda");
    close(resumed(whole[0].path(), 5, &on[1]).path(), "from the cpu to cuda");
    close(resumed(whole[1].path(), 5, &on[0]).path(), "from cuda to the cpu");
    assert_same_run(resumed(whole[1].path(), 5, &on[1]).path(), whole[1].path());

    for (precision, bound) in [("bf16", 1e-2), ("fp16", 2e-3)] {
        let flags = format!("{flags} --device cuda --precision {precision}");
        let dir = tempfile::tempdir().unwrap();
        golden_run("train", &flags, dir.path());
        assert!(max_abs_difference(&losses(dir.path()), &losses(whole[0].path())) < bound, "{precision}");
        assert_same_run(resumed(dir.path(), 5, &flags).path(), dir.path());
    }
}

/// Asserts equality bit for bit.
fn assert_same_run(got: &Path, want: &Path) {
    for file in ["model.safetensors", "checkpoint-10/model.safetensors", "checkpoint-10/optimizer.safetensors"] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(read(got) == read(want), "{file}");
    }
    assert_eq!(losses(got), losses(want));
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_run() {
    // Epochs of 7 updates (the last of two micro-batches); checkpoints within them and at their ends.
    let flags = "--epochs 3 --batch-size 5 --gradient-accumulation-steps 3 --dropout 0.1 --classifier-dropout 0.2 \
                 --eval-strategy steps --eval-steps 3 --save-strategy steps --save-steps 7 --logging-steps 2 --max-length 32";
    let whole = tempfile::tempdir().unwrap();
    golden_run("train", flags, whole.path());
    let read = |folder: &Path, name: &str| std::fs::read(folder.join(name)).unwrap();
    let history = |folder: &Path| lasting(folder).1;
    for step in [7, 14, 21] {
        let part = resumed(whole.path(), step, flags);
        for file in ["model.safetensors", "checkpoint-21/model.safetensors", "checkpoint-21/optimizer.safetensors"] {
            assert!(read(part.path(), file) == read(whole.path(), file), "{file} differs after resuming at {step}");
        }
        assert_eq!(history(part.path()), history(whole.path()), "resumed at {step}");
        assert_eq!(read(part.path(), "metrics.jsonl").iter().filter(|&&b| b == b'\n').count(), history(whole.path()).len());
    }

    let refused = |flags: &str| {
        let folder = golden("train");
        let files = format!("--model {0}/hf_init --train-file {0}/train.csv --validation-file {0}/test.csv", folder.display());
        train(&settings(&format!("{files} {flags} --resume-from-checkpoint"), whole.path()), None).err().unwrap().to_string()
    };
    assert!(
        refused("--batch-size 4 --gradient-accumulation-steps 3 --max-length 32").contains("--batch-size 5, but this run has 4")
    );
    // No text is cut by 40 tokens.
    for length in ["6", "40"] {
        let refused = refused(&format!("--batch-size 5 --gradient-accumulation-steps 3 --max-length {length}"));
        assert!(refused.contains(&format!("was written with --max-length 32, but this run has {length}")), "{refused}");
    }
    let other = "--batch-size 5 --gradient-accumulation-steps 3 --max-length 32 --dropout 0.5";
    assert!(refused(other).contains("dropout 0.1, but this run has 0.5"), "{}", refused(other));
    // Its best evaluation would be compared with others.
    let same = "--batch-size 5 --gradient-accumulation-steps 3 --max-length 32";
    for (changed, part) in [
        ("--max-eval-samples 10", "was written with other validation data"),
        ("--metric-for-best-model accuracy", "--metric-for-best-model loss, but this run has accuracy"),
        ("--from-scratch", "--from-scratch false, but this run has true"),
    ] {
        assert!(refused(&format!("{same} {changed}")).contains(part), "{}", refused(&format!("{same} {changed}")));
    }
}

#[test]
fn the_folder_is_locked_before_the_checkpoint_is_chosen() {
    let dir = tempfile::tempdir().unwrap();
    golden_run("train", "--max-steps 2 --save-strategy steps --save-steps 1 --max-length 32", dir.path());
    let parse = || recipe::parse(["train".into(), "--resume-from-checkpoint".into(), dir.path().into()]);
    let resumed = parse().unwrap().unwrap();
    let refusal = parse().unwrap_err().to_string();
    assert!(refusal.contains("another run is writing into this folder"), "{refusal}");
    train(&resumed.settings().unwrap(), None).unwrap().unwrap();
    parse().unwrap();
}

/// The output of a run that does not depend on the clock.
fn lasting(folder: &Path) -> (Vec<u8>, Vec<serde_json::Map<String, Value>>) {
    let log = read_json(&folder.join("trainer_state.json"))["log_history"].as_array().unwrap().clone();
    let timeless = |entry: &Value| {
        let mut entry = entry.as_object().unwrap().clone();
        entry.retain(|key, _| !key.ends_with("runtime") && !key.ends_with("per_second"));
        entry
    };
    (std::fs::read(folder.join("model.safetensors")).unwrap(), log.iter().map(timeless).collect())
}

/// A process that is interrupted at arbitrary points, repeatedly, and resumes each time.
fn stopped_again_and_again(device: &str, flags: &str) {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |folder: &Path, more: &[&str]| {
        let mut command = program(TRAIN);
        command.args(flags.split_whitespace()).args(["--device", device, "--quiet", "--output-dir"]).arg(folder).args(more);
        command.env("LD_LIBRARY_PATH", vgpu::directory()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    assert!(start(whole.path(), &[]).wait().unwrap().success());

    let lines = || std::fs::read(parts.path().join("metrics.jsonl")).unwrap_or_default().iter().filter(|&&b| b == b'\n').count();
    let (mut stops, mut within, mut last) = (0, 0, PathBuf::new());
    loop {
        let more: &[&str] = if stops > 0 { &["--resume-from-checkpoint"] } else { &[] };
        let (before, mut child) = (lines(), start(parts.path(), more));
        // Some time after it has made progress.
        while lines() <= before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(stops * 17 % 60));
        let signal = ["-INT", "-TERM"][stops as usize % 2];
        Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
        let ended = child.wait_with_output().unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        if ended.status.success() {
            break;
        }
        assert_eq!(ended.status.code(), Some(130), "{error}");
        let saved = error.split(" updates, saved in ").nth(1).and_then(|rest| rest.split(';').next());
        last = PathBuf::from(saved.unwrap_or_else(|| panic!("{error}")));
        within += usize::from(read_json(&last.join("state.json"))["micro_batch"] != 0);
        stops += 1;
    }
    assert!(stops > 2 && within > 0, "stopped {stops} times, {within} of them within an update; last in {}", last.display());
    let (got, want) = (lasting(parts.path()), lasting(whole.path()));
    assert!(got.0 == want.0, "{device}: different weights after {stops} stops");
    assert_eq!(got.1, want.1, "{device}: different history after {stops} stops");
}

#[test]
fn a_run_interrupted_anywhere_resumes_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    sample::unpack(dir.path()).unwrap();
    let files = format!(
        "--from-scratch --model {0} --train-file {0}/train.parquet --validation-file {0}/validation.parquet",
        dir.path().display()
    );
    let flags = "--max-train-samples 70 --max-eval-samples 40 --batch-size 1 --gradient-accumulation-steps 30 --epochs 4 \
                 --logging-steps 1 --max-length 48 --save-strategy no";
    stopped_again_and_again("cpu", &format!("{files} {flags}"));
}

#[test]
fn a_run_interrupted_anywhere_resumes_to_the_same_bits_on_cuda() {
    drop(gpu());
    let folder = golden("train");
    let files = format!("--model {0}/hf_init --train-file {0}/train.csv --validation-file {0}/test.csv", folder.display());
    let flags = "--batch-size 2 --gradient-accumulation-steps 10 --epochs 2 --dropout 0.1 --logging-steps 1 --max-length 32";
    stopped_again_and_again("cuda", &format!("{files} {flags}"));
}

/// A run whose loss scale became far too large skips updates until f16 holds the gradients. It resumes to the same bits from any
/// checkpoint, also from one between two skipped updates.
#[test]
fn updates_that_overflow_f16_are_skipped_and_a_resumed_run_goes_on_alike() {
    let flags = "--max-steps 12 --batch-size 9 --dropout 0.1 --learning-rate 5e-4 --save-strategy steps --save-steps 1 \
                 --eval-strategy no --load-best-model-at-end false --logging-steps 1 --max-length 64 --device cuda --precision fp16";
    let begun = tempfile::tempdir().unwrap();
    golden_run("train", flags, begun.path());
    let checkpoint = begun.path().join("checkpoint-2");
    let mut state = read_json(&checkpoint.join("state.json"));
    state["status"][4] = 24.into();
    std::fs::write(checkpoint.join("state.json"), state.to_string()).unwrap();
    std::fs::remove_file(checkpoint.join("checksums.json")).unwrap();
    seal(&checkpoint).unwrap();

    let whole = resumed(begun.path(), 2, flags);
    let log = read_json(&whole.path().join("trainer_state.json"))["log_history"].as_array().unwrap().clone();
    let logged: Vec<&Value> = log.iter().filter(|entry| entry["loss"].is_number()).collect();
    let skipped = logged.last().unwrap()["skipped_updates"].as_f64().unwrap();
    assert!((3.0..9.0).contains(&skipped) && logged.len() == 12 - skipped as usize, "{skipped} skipped: {logged:?}");
    assert_eq!(logged.last().unwrap()["loss_scale"], 2f64.powf(24.0 - skipped));
    // A skipped update has an entry without a loss.
    let steps = log.iter().filter(|entry| entry.get("loss").is_some()).map(|entry| entry["step"].as_u64().unwrap());
    assert_eq!(steps.collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    for step in [4, 11] {
        let part = resumed(whole.path(), step, flags);
        assert_eq!(lasting(part.path()), lasting(whole.path()), "resumed at {step}");
    }
    if !is_virtual() {
        return; // The program and the libraries below are those of the virtual GPU.
    }
    for (save, message) in [(1, "\nupdate 3 was skipped, as "), (4, "\nupdates 3 to 4 were skipped, as ")] {
        let folder = golden("train");
        let mut command = program(TRAIN);
        command.arg("--model").arg(folder.join("hf_init")).arg("--train-file").arg(folder.join("train.csv"));
        let flags =
            flags.replace("--save-steps 1", &format!("--save-steps {save}")).replace("--logging-steps 1", "--logging-steps 4");
        command.args(flags.split_whitespace());
        command.arg("--output-dir").arg(whole.path()).arg("--resume-from-checkpoint").arg(&checkpoint);
        let output = command.env("LD_LIBRARY_PATH", vgpu::directory()).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && err.contains(message), "{err}");
    }
}

#[test]
fn a_run_in_f16_ends_once_the_loss_scale_is_below_1() {
    drop(gpu());
    let (dir, folder) = (tempfile::tempdir().unwrap(), golden("train"));
    let files = format!("--model {0}/hf_init --train-file {0}/train.csv", folder.display());
    let flags = format!("{files} --learning-rate 1e30 --max-steps 40 --logging-steps 4 --device cuda --precision fp16");
    let error = train(&settings(&flags, dir.path()), None).err().expect("a learning rate of 1e30 cannot work");
    assert_eq!(error.kind, warpfit::Kind::Unusable);
    let error = error.to_string();
    assert!(error.contains("is not finite at any loss scale") && error.contains("or pass --precision fp32"), "{error}");
}

/// Gradients that have overflowed cannot be saved, so that an interrupted update starts again from its first micro-batch.
#[test]
fn a_run_interrupted_amid_overflowing_micro_batches_is_saved() {
    drop(gpu());
    let flags = "--max-steps 8 --batch-size 2 --gradient-accumulation-steps 12 --learning-rate 5e-4 --save-strategy steps --save-steps 1 \
                 --max-length 64 --device cuda --precision fp16";
    let folder = golden("train");
    let start = |out: &Path| {
        let mut command = program(TRAIN);
        command.arg("--model").arg(folder.join("hf_init")).arg("--train-file").arg(folder.join("train.csv"));
        command.args(flags.split_whitespace()).arg("--output-dir").arg(out).arg("--resume-from-checkpoint");
        command.env("LD_LIBRARY_PATH", vgpu::directory()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let begun = tempfile::tempdir().unwrap();
    golden_run(
        "train",
        &format!("{} --eval-strategy no --load-best-model-at-end false", flags.replace("steps 8", "steps 1")),
        begun.path(),
    );
    let checkpoint = begun.path().join("checkpoint-1");
    let mut state = read_json(&checkpoint.join("state.json"));
    state["status"][4] = 26.into();
    std::fs::write(checkpoint.join("state.json"), state.to_string()).unwrap();
    std::fs::remove_file(checkpoint.join("checksums.json")).unwrap();
    seal(&checkpoint).unwrap();
    let planted = || {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("checkpoint-1")).unwrap();
        for file in std::fs::read_dir(&checkpoint).unwrap().map(|file| file.unwrap()) {
            std::fs::copy(file.path(), folder.path().join("checkpoint-1").join(file.file_name())).unwrap();
        }
        folder
    };
    let whole = planted();
    assert!(start(whole.path()).wait().unwrap().success());
    for wait in [200, 350, 500] {
        let part = planted();
        let mut child = start(part.path());
        std::thread::sleep(Duration::from_millis(wait));
        Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
        // On a busy machine the signal may come before it is noticed, and ends the process without a code.
        let code = child.wait().unwrap().code();
        assert!(matches!(code, None | Some(0 | 130)), "{code:?} after {wait} ms");
        assert!(start(part.path()).wait().unwrap().success());
        assert!(lasting(part.path()).0 == lasting(whole.path()).0, "interrupted after {wait} ms");
    }
}

/// A model that f32 holds and f16 does not: no update counts, so that nothing is trained.
#[test]
fn a_run_whose_updates_all_exceed_f16_fails() {
    drop(gpu());
    let (dir, golden) = (tempfile::tempdir().unwrap(), golden("train"));
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(golden.join("hf_init")).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let (data, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    for (_, tensor) in header.tensors().into_iter().filter(|(name, _)| name.contains("ffn.lin")) {
        let (start, end) = tensor.data_offsets;
        for number in bytes[8 + data..][start..end].chunks_exact_mut(4) {
            let value = f32::from_le_bytes(number.try_into().unwrap());
            number.copy_from_slice(&(3000.0 * value).to_le_bytes());
        }
    }
    std::fs::write(&weights, bytes).unwrap();
    let flags = format!("--model {} --train-file {}/train.csv --max-steps 3 --device cuda", model.display(), golden.display());
    let run = |precision: &str| train(&settings(&format!("{flags} --precision {precision}"), &dir.path().join(precision)), None);
    let error = run("fp16").err().expect("it exceeds f16").to_string();
    assert!(error.contains("skipped 3 of 3 updates") && error.contains("pass --precision fp32"), "{error}");
    run("fp32").unwrap();
}

#[test]
fn a_non_finite_loss_stops_the_run() {
    let folder = golden("train");
    let flags = format!("--model {0}/hf_init --train-file {0}/train.csv --learning-rate 1e30", folder.display());
    for (every, place) in [(1, "`update 2`: "), (2, "`between updates 1 and 2`: ")] {
        let dir = tempfile::tempdir().unwrap();
        let error = train(&settings(&format!("{flags} --logging-steps {every}"), dir.path()), None);
        let error = error.err().expect("a learning rate of 1e30 cannot work");
        assert_eq!(error.kind, warpfit::Kind::Unusable);
        let line = error.to_string();
        assert!(line.starts_with(place) && line.contains("is not finite"), "{line}");
    }
}

/// A timed run equals an untimed one; the table has every op of an update, the trace each of its calls.
#[test]
fn a_profile_names_every_op() {
    for device in ["cpu", "cuda"] {
        let flags = format!("--max-steps 4 --batch-size 8 --dropout 0.1 --max-length 32 --device {device}");
        let [plain, timed] = ["", "--profile 2"].map(|more| {
            let dir = tempfile::tempdir().unwrap();
            golden_run("train", &format!("{flags} {more}"), dir.path());
            dir
        });
        assert!(lasting(plain.path()).0 == lasting(timed.path()).0, "{device}: timing changed the weights");
        assert!(!plain.path().join("profile.json").exists());
        let table = std::fs::read_to_string(timed.path().join("profile.txt")).unwrap();
        let trace = read_json(&timed.path().join("profile.json"));
        let events = trace["traceEvents"].as_array().unwrap();
        let calls = |name: &str| events.iter().filter(|event| event["name"].as_str().unwrap().starts_with(name)).count();
        for (name, most) in
            [("attn fwd", 6), ("attn bwd", 6), ("linear fwd", 20), ("add norm bwd", 12), ("grad norm", 1), ("adamw", 1)]
        {
            assert!((1..=most).contains(&(calls(name) / 2)), "{device}: {} calls of {name}", calls(name));
            assert_eq!(calls(name) % 2, 0, "{device}: {name}");
            assert!(table.contains(&format!("\n{name}")), "{device}: {table}");
        }
        let mut end = 0.0;
        for event in events {
            let [start, took] = ["ts", "dur"].map(|key| event[key].as_f64().unwrap());
            assert!(start >= end && took > 0.0, "{device}: {event} begins before {end}");
            end = start + took;
        }
        let shares = table.lines().skip(2).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let share = |words: Vec<&str>| words[words.len() - 4].parse::<f64>().unwrap();
        let mut shares: Vec<f64> = shares.map(share).collect();
        assert_eq!(shares.pop(), Some(100.0), "{device}: {table}");
        assert!((shares.iter().sum::<f64>() - 100.0).abs() < 3.0, "{device}: {table}");
    }
}

/// The data and model of the default run, with a few rows over and over: they must be learnt. The whole run is the README's
/// first command.
#[test]
fn the_sample_trains() {
    let dir = tempfile::tempdir().unwrap();
    sample::unpack(dir.path()).unwrap();
    let flags = format!(
        "--model {0} --from-scratch --train-file {0}/train.parquet --validation-file {0}/validation.parquet --epochs 12 \
         --batch-size 16 --learning-rate 2e-3 --max-train-samples 96 --max-eval-samples 32 --max-length 48 --logging-steps 1",
        dir.path().display()
    );
    let out = dir.path().join("out");
    train(&settings(&flags, &out), None).unwrap().unwrap();
    let losses = losses(&out);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..8]), mean(&losses[losses.len() - 8..]));
    assert!(last < 0.5 * first, "the loss went from {first} to {last}");
}

/// Real weights, if WARPFIT_MINILM names their folder (all-MiniLM-L6-v2 folded into a DistilBERT classifier, head seed 0).
/// Without it this test is ignored, which the output shows.
#[test]
#[ignore = "needs WARPFIT_MINILM, the folder of the folded MiniLM weights"]
fn golden_minilm() {
    let folder = std::env::var_os("WARPFIT_MINILM").expect("WARPFIT_MINILM names the folder of the folded MiniLM weights");
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(golden("minilm").join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (sentences, want) = (lines("sentences.jsonl"), lines("logits_head0.jsonl"));
    let mut classifier = Session::classifier(Path::new(&folder), Device::Cpu, Precision::Fp32, 2048, 4).unwrap();
    let texts: Vec<&str> = sentences.iter().map(|line| line["text"].as_str().unwrap()).collect();
    let encoded = classifier.source.tokenizer().unwrap().encode(&texts, 512, &|_| ()).unwrap();
    for (row, line) in sentences.iter().enumerate() {
        assert_eq!(serde_json::json!(encoded.row(row).0), line["input_ids"], "ids of {row}");
    }
    let logits: Vec<f64> = classifier.logits(&encoded, |_, _| ()).unwrap().into_iter().map(f64::from).collect();
    let want: Vec<f64> = want.iter().flat_map(|line| line["logits"].as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect();
    let difference = max_abs_difference(&logits, &want);
    assert!(difference < 2e-6, "logits: {difference:e}");

    let features = Tensors::read("minilm/features.safetensors");
    let batch = warpfit::data::pack::PackedBatch::new((0..encoded.rows()).map(|row| encoded.row(row)));
    let config = classifier.source.config.clone();
    let spec = warpfit::model::plan::ModelSpec {
        train: false,
        last_rows: warpfit::ops::Rows::Tokens,
        tokens: batch.tokens(),
        seqs: batch.seqs(),
        arithmetic: warpfit::ops::Arithmetic::F32,
    };
    let backend = Box::new(warpfit::cpu::Cpu::<f32>::poisoned());
    let mut model = warpfit::model::Model::new(&config, spec, Default::default(), backend).unwrap();
    classifier.source.load_weights(&mut model, 0, false).unwrap();
    model.infer(&batch, warpfit::model::infer::Wanted::LOGITS).unwrap();
    let hidden = model.read(model.plan.layers.last().unwrap().out).unwrap();
    let dim = config.dim;
    for (b, seq) in batch.cu_seqlens.windows(2).enumerate() {
        let rows: Vec<&[f64]> = (seq[0]..seq[1]).map(|r| &hidden[r as usize * dim..][..dim]).collect();
        let mean: Vec<f64> = (0..dim).map(|c| rows.iter().map(|row| row[c]).sum::<f64>() / rows.len() as f64).collect();
        for (name, got) in [("cls", rows[0]), ("mean", &mean)] {
            let difference = max_abs_difference(got, &features.get(name)[b * dim..][..dim]);
            assert!(difference < 2e-5, "{name} of sentence {b}: {difference:e}");
        }
    }
}

/// In a process of its own, since all threads are counted, with one worker: the first product of a thread makes its buffer, of
/// the size of the L2 cache, and which of several has its first one when is chance.
#[test]
fn memory_grows_by_no_more_than_the_log() {
    let name = "train::memory_grows_by_no_more_than_the_log";
    if !std::env::args().any(|arg| arg == name) {
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", name, "--nocapture"]).env("RAYON_NUM_THREADS", "1").output().unwrap();
        let [text, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
        return;
    }
    let peak = |updates: usize| {
        let dir = tempfile::tempdir().unwrap();
        let flags = format!(
            "--max-steps {updates} --batch-size 1 --max-length 4 --logging-steps 1 --save-strategy steps --save-steps 1000 \
             --save-total-limit 1 --eval-strategy no --load-best-model-at-end false"
        );
        peak_of(|| drop(golden_run("train", &flags, dir.path())))
    };
    // What is read at the start is more than the log of few updates; in the first run, it includes what is read once.
    let [_, few, many] = [100, 12_000, 24_000].map(peak);
    let each = (many - few) / 12_000;
    assert!((100..250).contains(&each), "{each} bytes per entry: {few} bytes after 12,000, {many} after 24,000");
}

#[test]
fn a_checkpoint_does_not_end_a_logging_window() {
    let flags = "--max-steps 10 --batch-size 9 --dropout 0.1 --save-strategy steps --save-steps 3 --logging-steps 4 --eval-strategy no \
                 --load-best-model-at-end false --max-length 32";
    let logged = |folder: &Path| -> Vec<Value> {
        let log = read_json(&folder.join("trainer_state.json"))["log_history"].as_array().unwrap().clone();
        log.into_iter().filter(|entry| entry["loss"].is_number()).collect()
    };
    let whole = tempfile::tempdir().unwrap();
    golden_run("train", flags, whole.path());
    let steps: Vec<u64> = logged(whole.path()).iter().map(|entry| entry["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [4, 8, 10]);
    for step in [3, 6, 9] {
        assert_eq!(logged(resumed(whole.path(), step, flags).path()), logged(whole.path()), "resumed at {step}");
    }
}
