//! `train`: its outputs, its data, its flags.

use crate::data::{Labels, TEXT_AND_INT, parquet, put};
use crate::fixtures::{Tensors, golden, json};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use warpfit::checkpoint::model_dir::ModelDir;
use warpfit::train::args::ClassWeights;
use warpfit::train::recipe;

use super::*;

#[test]
fn training_matches_hugging_face() {
    let out = TempDir::new().unwrap();
    let test = golden("train/test.csv");
    let flags = "--learning_rate 5e-4 --num_train_epochs 2 --per_device_train_batch_size 8 --weight_decay 0.01 --no-shuffle \
                 --logging_steps 1 --load_best_model_at_end false --validation-file";
    train(out.path(), &[words(flags), vec![path(&test)]].concat()).done();

    let state = read(out.path(), "trainer_state.json");
    let golden_state = json("train/trainer_state.json");
    let log = state["log_history"].as_array().unwrap();
    let golden_log = golden_state["log_history"].as_array().unwrap();
    assert_eq!(log.len(), golden_log.len());
    for (entry, golden) in log.iter().zip(golden_log) {
        let unknown = BTreeSet::from(["total_flos"]);
        assert_eq!(&(&keys(golden) - &keys(entry)) - &unknown, BTreeSet::new(), "{entry}");
        for (key, tolerance) in [
            ("loss", 1e-5),
            ("grad_norm", 1e-4),
            ("learning_rate", 1e-12),
            ("eval_loss", 1e-5),
            ("eval_accuracy", 0.0),
            ("epoch", 1e-12),
        ] {
            if let Some(wanted) = golden[key].as_f64() {
                assert!((entry[key].as_f64().unwrap() - wanted).abs() <= tolerance, "{key} of {entry}, not {wanted}");
            }
        }
        assert_eq!(entry["step"], golden["step"]);
    }
    // Omitted: keys of searches, of callbacks, and counts that are off by default.
    let left_out = ["stateful_callbacks", "trial_name", "trial_params", "total_flos", "num_input_tokens_seen"];
    assert_eq!(&keys(&golden_state) - &keys(&state), BTreeSet::from(left_out));
    for key in ["epoch", "global_step", "max_steps", "num_train_epochs", "train_batch_size", "logging_steps"] {
        assert_eq!(state[key], golden_state[key], "{key}");
    }

    let logits = logits(out.path(), &golden("train/test.csv"));
    let wanted = Tensors::read("train/test_logits.safetensors");
    let difference = crate::fixtures::max_abs_difference(&logits, wanted.get("logits"));
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn quiet_runs_print_warnings_and_results_alone() {
    let out = TempDir::new().unwrap();
    let validation = golden("train/test.csv");
    let ran = train(out.path(), &["--max-steps", "1", "--quiet", "--validation-file", path(&validation)]).done();
    assert_eq!(ran.err, "warning: 3 of the 32 validation texts are in the training data too\n");
    assert!(ran.out.starts_with("trained ") && ran.out.contains("saved "), "{}", ran.out);
}

#[test]
fn a_run_writes_all_its_files() {
    let out = TempDir::new().unwrap();
    // A name with spaces and beyond ASCII, in a folder that does not exist yet.
    let out = out.path().join("läufe und 実験/1");
    let (validation, test) = (golden("train/test.csv"), golden("train/test.csv"));
    let ran = train(&out, &["--epochs", "2", "--validation-file", path(&validation), "--test-file", path(&test)]).done();

    let model =
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"];
    let also = ["README.md", "metrics.jsonl", "train_results.json", "eval_results.json", "test_results.json", "all_results.json"];
    let state = ["trainer_state.json", "training_args.json"];
    let drawn = ["plots", "runs", "run.lock", "examples.json"];
    let checkpoints = ["checkpoint-12", "checkpoint-24"];
    let set = |groups: &[&[&str]]| groups.concat().into_iter().map(String::from).collect::<BTreeSet<String>>();
    assert_eq!(names(&out), set(&[&model, &also, &state, &drawn, &checkpoints]));
    for checkpoint in checkpoints {
        assert_eq!(
            names(&out.join(checkpoint)),
            set(&[&model, &state, &["optimizer.safetensors", "state.json", "checksums.json"]])
        );
    }
    for name in &model[2..] {
        let same = |a: &Path, b: &Path| fs::read(a.join(name)).unwrap() == fs::read(b.join(name)).unwrap();
        assert!(same(&out, &golden("train/hf_init")) && same(&out, &out.join("checkpoint-12")), "{name}");
    }

    // Results go to standard output, everything else to standard error.
    let printed: Vec<&str> = ran.out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(printed, ["trained", "validation", "test", "saved"]);
    assert!(ran.err.contains("warning: 3 of the 32 validation texts are in the training data too"), "{}", ran.err);
    // Two checkpoints of three numbers per parameter, a classifier trained before, and what to do next.
    let written: u64 = ["model", "optimizer"]
        .map(|n| fs::metadata(out.join(format!("checkpoint-24/{n}.safetensors"))).unwrap().len())
        .iter()
        .sum();
    let of =
        |line: &str| ran.err.lines().find(|found| found.starts_with(line)).unwrap_or_else(|| panic!("{}", ran.err)).to_string();
    let disk = of("checkpoints: ");
    assert!(disk.starts_with("checkpoints: 2 of ") && disk.ends_with(" in all; --save-total-limit N keeps fewer"), "{disk}");
    let mib: f64 = words(&disk)[3].parse().unwrap();
    assert!((mib - written as f64 / f64::from(1 << 20)).abs() < 0.05, "{disk}, not {written}");
    of("model: training continues with the folder's own classifier, of NEGATIVE, POSITIVE");
    assert_eq!(of("next "), format!("next        warpfit predict --model '{}' \"A text to classify\"", out.display()));
    of(&format!(
        "            warpfit evaluate --model '{}' {} --output-dir report",
        out.display(),
        golden("train/test.csv").display()
    ));
    assert!(!ran.err.contains('\u{1b}') && !ran.err.contains('\r'), "a file is not a terminal: {:?}", ran.err);

    let read = |name| read(&out, name);
    let all = read("all_results.json");
    for (name, keys) in [
        ("train_results.json", &["epoch", "train_loss", "train_runtime", "train_samples", "train_samples_per_second"][..]),
        ("eval_results.json", &["eval_loss", "eval_accuracy", "eval_f1", "eval_runtime", "eval_samples"]),
        ("test_results.json", &["test_loss", "test_accuracy", "test_f1", "test_runtime", "test_samples"]),
    ] {
        for key in keys {
            assert!(read(name)[key].is_number(), "{key} in {name}");
            assert_eq!(read(name)[key], all[key], "{key}");
        }
    }
    let log = json_lines(&out.join("metrics.jsonl"));
    assert_eq!(log, *read("trainer_state.json")["log_history"].as_array().unwrap());
    assert_eq!(log.iter().filter(|entry| entry["eval_loss"].is_number()).count(), 2);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.starts_with("---\n") && card.contains("pipeline_tag: text-classification"), "{card}");

    // The model kept is that of the best evaluation, which is a checkpoint too.
    let best = read("trainer_state.json")["best_model_checkpoint"].as_str().map(PathBuf::from).unwrap();
    assert_eq!(fs::read(best.join("model.safetensors")).unwrap(), fs::read(out.join("model.safetensors")).unwrap());
}

#[test]
fn checkpoints_rotate_and_the_best_is_kept_and_loaded() {
    let out = TempDir::new().unwrap();
    let dir = TempDir::new().unwrap();
    let validation = dir.path().join("wrong.csv");
    // All labels are wrong, so that the accuracy falls.
    let wrong = rows("train/test.csv").into_iter().map(|(text, label)| (text, if label == "0" { "1" } else { "0" }));
    let mut file = csv::Writer::from_path(&validation).unwrap();
    file.write_record(["text", "label"]).unwrap();
    wrong.for_each(|(text, label)| file.write_record([&text, label]).unwrap());
    file.flush().unwrap();
    let common = "--learning-rate 5e-3 --lr-scheduler-type constant --epochs 4 --eval-strategy steps --eval-steps 4 \
                  --metric-for-best-model accuracy --validation-file";
    let common = [words(common), vec![path(&validation)]].concat();
    train(out.path(), &[words("--save-strategy steps --save-steps 4 --save-total-limit 2"), common.clone()].concat()).done();
    let state = read(out.path(), "trainer_state.json");
    let best = state["best_global_step"].as_u64().unwrap();
    assert!(best < 40, "the best is not among the newest: {best}");
    let left: BTreeSet<String> = names(out.path()).into_iter().filter(|name| name.starts_with("checkpoint")).collect();
    assert_eq!(left, BTreeSet::from([format!("checkpoint-{best}"), "checkpoint-48".to_string()]));
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(weights(&out.path().join(format!("checkpoint-{best}"))), weights(out.path()));
    assert_ne!(weights(&out.path().join("checkpoint-48")), weights(out.path()));
    assert_eq!(read(out.path(), "eval_results.json")["eval_accuracy"], state["best_metric"]);

    // The same run stops after two evaluations without an improvement; without checkpoints the best is still kept.
    let stopped = TempDir::new().unwrap();
    let ran = train(stopped.path(), &[words("--save-strategy no --early-stopping-patience 2"), common].concat()).done();
    assert!(ran.err.contains("stopped early: 2 evaluations without an improvement"), "{}", ran.err);
    let state = read(stopped.path(), "trainer_state.json");
    assert_eq!((&state["global_step"], &state["best_model_checkpoint"]), (&json!(best + 8), &Value::Null));
    assert!(names(stopped.path()).iter().all(|name| !name.starts_with("checkpoint")));
    assert_eq!(weights(stopped.path()), weights(out.path()), "the same run, bit for bit");
}

/// Texts and labels of a golden CSV file.
fn rows(name: &str) -> Vec<(String, String)> {
    let file = csv::Reader::from_path(golden(name)).unwrap();
    file.into_records().map(|row| row.unwrap()).map(|row| (row[0].to_string(), row[1].to_string())).collect()
}

#[test]
fn every_format_and_layout_trains_the_same_model() {
    let (train_rows, test_rows) = (rows("train/train.csv"), rows("train/test.csv"));
    assert!(train_rows.iter().all(|(text, _)| !text.contains('\n')));
    let dir = TempDir::new().unwrap();
    let at = |layout: &str| dir.path().join(layout);
    let lines = |rows: &[(String, String)], line: &dyn Fn(&str, &str) -> String| {
        rows.iter().map(|(text, label)| line(text, label) + "\n").collect::<String>()
    };
    let write = |layout: &str, names: [&str; 2], head: &str, line: &dyn Fn(&str, &str) -> String| {
        for (name, rows) in names.iter().zip([&train_rows, &test_rows]) {
            put(&at(layout), &[(name, &(head.to_string() + &lines(rows, line)))]);
        }
    };
    let object = |text: &str, label: &str| json!({"label": label.parse::<u8>().unwrap(), "text": text}).to_string();
    write("tsv", ["Train.tsv", "Test.tsv"], "text\tlabel\n", &|text, label| format!("{text}\t{label}"));
    write("jsonl", ["train.jsonl", "test.jsonl"], "", &object);
    write("json lines", ["data/train.json", "data/test.json"], "", &object);
    write("semicolon", ["train.txt", "test.txt"], "text;label_name\n", &|text, label| format!("{text};{label}"));
    write("no header", ["train.txt", "test.txt"], "", &|text, label| format!("{text};{label}"));
    write("fasttext", ["train.ft.txt", "test.ft.txt"], "", &|text, label| format!("__label__{label} {text}"));
    for (name, rows) in [("train", &train_rows), ("test", &test_rows)] {
        let items: Vec<String> = rows.iter().map(|(text, label)| object(text, label)).collect();
        put(&at("json array"), &[(&format!("{name}.json"), &format!("[{}]", items.join(",\n")))]);
        let shards = rows.chunks(rows.len().div_ceil(3)).enumerate();
        shards.for_each(|(i, rows)| {
            put(&at("shards"), &[(&format!("default/{name}-{i:05}-of-00003.jsonl"), &lines(rows, &object))])
        });
        fs::create_dir_all(at("hub/plain_text")).unwrap();
        let (texts, labels): (Vec<_>, Vec<_>) =
            rows.iter().map(|(text, label)| (Some(text.as_str()), label.parse::<i64>().unwrap())).unzip();
        let file = parquet(&at("hub/plain_text"), TEXT_AND_INT, &texts, Labels::Whole(&labels), Some(&["neg", "pos"]));
        fs::rename(file, at("hub/plain_text").join(format!("{name}-00000-of-00001-0b42a7.parquet"))).unwrap();
    }

    let results = |out: &Path| {
        let test = read(out, "test_results.json");
        let figures = ["test_loss", "test_accuracy", "test_samples"].map(|key| test[key].clone());
        (fs::read(out.join("model.safetensors")).unwrap(), read(out, "config.json")["id2label"].clone(), figures)
    };
    let (model, test) = (golden("train/hf_init"), golden("train/test.csv"));
    let few = words("--max-steps 3 --save-strategy no");
    train(&at("out"), &[few.clone(), vec!["--test-file", path(&test)]].concat()).done();
    let wanted = results(&at("out"));
    let trained_in = |layout: &str| {
        let (data, out) = (at(layout), at(&format!("out of {layout}")));
        let args = ["--model", path(&model), "--data-dir", path(&data), "--output-dir", path(&out)];
        ran(TRAIN, &[&args[..], &few].concat()).done();
        results(&out)
    };
    for layout in ["tsv", "jsonl", "json lines", "json array", "semicolon", "no header", "fasttext", "shards", "hub"] {
        assert!(trained_in(layout) == wanted, "{layout}");
    }

    // A folder of reviews has its own order; the classes are those of the model, by index.
    let sorted = |rows: &[(String, String)]| {
        let class = |class: &'static str| rows.iter().filter(move |row| row.1 == class).cloned();
        class("0").chain(class("1")).collect::<Vec<_>>()
    };
    for (split, rows) in [("train", sorted(&train_rows)), ("test", sorted(&test_rows))] {
        put(&at("sorted"), &[(&format!("{split}.jsonl"), &lines(&rows, &object))]);
        for (i, (text, label)) in rows.iter().enumerate() {
            let class = if label == "0" { "neg" } else { "pos" };
            put(&at("reviews/aclImdb"), &[(&format!("{split}/{class}/{i}_1.txt"), text)]);
        }
        put(&at("reviews/aclImdb"), &[(&format!("{split}/unsup/0_0.txt"), "ignored")]);
    }
    let reviews = trained_in("reviews");
    assert!(reviews == trained_in("sorted") && reviews.0 != wanted.0);
    assert_eq!((&reviews.1["1"], &reviews.2[2]), (&json!("POSITIVE"), &json!(32)));
    // A split alone.
    let (model, folder) = (trained(), at("reviews/aclImdb/test"));
    let metrics = |file: &Path| ran(EVALUATE, &["--model", path(model.path()), "--file", path(file)]).done().out;
    assert_eq!(metrics(&folder), metrics(&at("sorted/test.jsonl")));
    let labels = |file: &Path| ran(PREDICT, &["--model", path(model.path()), "--input", path(file)]).done().out;
    assert_eq!(labels(&folder), labels(&at("sorted/test.jsonl")));
}

#[test]
fn flags_override_the_files_of_a_data_folder() {
    let dir = TempDir::new().unwrap();
    let rows = |n: usize| "text,label\n".to_string() + &"good,0\nbad,1\n".repeat(n);
    put(dir.path(), &[("train.csv", &rows(10)), ("val.csv", &rows(2)), ("test.csv", &rows(3)), ("other/a.csv", &rows(1))]);
    let (model, other, out) = (golden("train/hf_init"), dir.path().join("other/a.csv"), dir.path().join("out"));
    let samples = |more: &[&str]| {
        let args =
            ["--model", path(&model), "--data-dir", path(dir.path()), "--output-dir", path(&out), "--overwrite-output-dir"];
        ran(TRAIN, &[&args[..], &words("--max-steps 1 --save-strategy no"), more].concat()).done();
        let all = read(&out, "all_results.json");
        ["train_samples", "eval_samples", "test_samples"].map(|key| all[key].as_u64().unwrap())
    };
    assert_eq!(samples(&[]), [20, 4, 6]);
    assert_eq!(read(&out, "training_args.json")["files"]["validation"], json!([dir.path().join("val.csv")]));
    assert_eq!(samples(&["--train-file", path(&other)]), [2, 4, 6]);
    assert_eq!(samples(&["--validation_file", path(&other)]), [20, 2, 6]);
    assert_eq!(samples(&["--test-file", path(&other)]), [20, 4, 2]);
    assert_eq!(samples(&["--validation-split", "0.5"]), [10, 10, 6]);
}

#[test]
fn invalid_data_folders_are_reported_in_one_line() {
    let (model, csv) = (golden("train/hf_init"), "text,label\na,0\nb,1\n");
    type Files<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Files, &str, &str); 9] = [
        (&[], "", "`: there is no training, validation or test data in this folder"),
        (&[("a.csv", csv)], "", "`: there is no training, validation or test data in this folder"),
        (&[("test.csv", csv)], "", "`: has no training data; name it with --train-file"),
        (&[("test.csv", csv)], "none", "none`: no such file or folder"),
        (&[("test.csv", csv)], "test.csv", "test.csv`: Not a directory"),
        (&[("train.csv", csv), ("train.json", "[]")], "", "`: several files may be its train data: train.csv, train.json; keep"),
        (&[("data/train-00001-of-00002.csv", csv)], "", "data`: shard 00000 of 2 of its train data is missing"),
        (&[("a/train.csv", csv), ("b/train.csv", csv)], "", "`: several folders hold data sets: a, b; name one"),
        (&[("train/neg/0_1.txt", "bad")], "", "train/pos`: no such file or folder"),
    ];
    assert_none(cases.iter().map(|(files, data, part)| {
        let dir = TempDir::new().unwrap();
        put(dir.path(), files);
        let (data, out) = (dir.path().join(data), dir.path().join("out"));
        let ran = ran(TRAIN, &["--model", path(&model), "--data-dir", path(&data), "--output-dir", path(&out)]);
        ran.fault(2, part).or(out.exists().then(|| format!("{part} left something")))
    }));
}

#[test]
fn a_dry_run_and_a_validation_split() {
    let out = TempDir::new().unwrap();
    let never = out.path().join("never");
    let ran = train(&never, &["--dry-run"]).done();
    assert!(ran.out.contains("parameters") && ran.out.contains("36 updates"), "{}", ran.out);
    assert!(!never.exists());

    train(out.path(), &words("--validation-split 0.25 --epochs 1 --save-strategy no --report-to none")).done();
    let all = read(out.path(), "all_results.json");
    assert_eq!((&all["train_samples"], &all["eval_samples"]), (&json!(72), &json!(24)));
    assert!(!out.path().join("metrics.jsonl").exists());
}

/// Rows of an evaluation batch are at most those requested; its tokens are at most those of a training batch.
#[test]
fn a_large_evaluation_batch_needs_no_more_memory() {
    let out = TempDir::new().unwrap();
    let flags =
        words("--validation-split 0.5 --batch-size 2 --max-steps 1 --eval-strategy steps --eval-steps 1 --eval-batch-size");
    let run = |name: &str, more: &[&str]| train(&out.path().join(name), &[&flags[..], more].concat()).done().out;
    let [small, large] = ["2", "64"].map(|rows| {
        let plan = run("never", &[rows, "--dry-run"]);
        let (_, tokens) = plan.split_once("batches of at most ").expect(&plan);
        run(rows, &[rows]);
        (tokens.split_once(',').unwrap().0.to_string(), read(&out.path().join(rows), "all_results.json"))
    });
    assert_eq!(small.0, large.0);
    let loss = |results: &Value| results["eval_loss"].as_f64().unwrap();
    assert!((loss(&small.1) - loss(&large.1)).abs() < 1e-6);
}

#[test]
fn unusable_results_exit_with_1() {
    let out = TempDir::new().unwrap();
    let test = golden("train/test.csv");
    let below = train(&out.path().join("below"), &["--max-steps", "1", "--test-file", path(&test), "--fail-under", "accuracy=1"]);
    assert!(below.out.contains("test        loss") && below.out.contains("saved       "), "{}", below.out);
    below.failed(1, "--fail-under accuracy=1`: accuracy is 0.");
    assert!(out.path().join("below/model.safetensors").exists(), "the model is written nevertheless");
    train(&out.path().join("above"), &["--max-steps", "1", "--test-file", path(&test), "--fail-under", "loss=9"]).done();

    let diverged = out.path().join("diverged");
    let flags = "--learning-rate 1e30 --logging-steps 1 --save-strategy steps --save-steps 1";
    let checkpoint = format!("the last good checkpoint is {}", path(&diverged.join("checkpoint-1")));
    let ran = train(&diverged, &words(flags)).failed(1, &checkpoint);
    assert!(ran.err.contains("`update 2`: the gradient of "), "{}", ran.err);
    assert!(!diverged.join("model.safetensors").exists());

    train(&out.path().join("cuda"), &["--device", "cuda:1"]).failed(3, "`--device cuda:1`: ");
}

#[test]
fn a_folder_with_results_is_not_overwritten() {
    let out = TempDir::new().unwrap();
    fs::write(out.path().join("thesis.txt"), "ten years").unwrap();
    train(out.path(), &["--max-steps", "1"]).failed(2, "the folder is not empty; choose another --output-dir, or pass");
    assert_eq!(names(out.path()), BTreeSet::from(["thesis.txt".to_string()]));
    train(out.path(), &["--max-steps", "1", "--overwrite-output-dir"]).done();
    assert_eq!(fs::read_to_string(out.path().join("thesis.txt")).unwrap(), "ten years");

    let model = golden("train/hf_init");
    for (folder, part) in [
        (out.path().join("thesis.txt"), "is a file"),
        (out.path().join("thesis.txt/below"), "Not a directory"),
        (PathBuf::from("/proc/nowhere"), "no such file or folder"),
        (model.clone(), "is the folder of --model"),
    ] {
        train(&folder, &["--overwrite-output-dir"]).failed(2, part);
    }
    assert_eq!(names(&model), names(&golden("train/hf_init")));
}

#[test]
fn replacing_a_file_during_the_run_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let (model, file, out) = (golden("train/hf_init"), dir.path().join("a.csv"), dir.path().join("out"));
    let steps = words("--max-steps 300 --logging-steps 1 --save-strategy no --max-length 8");
    fs::copy(golden("train/train.csv"), &file).unwrap();
    let args = ["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out)];
    let mut child =
        program(TRAIN).args([&args[..], &steps].concat()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !out.join("metrics.jsonl").exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "the run is in progress");
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::write(&file, "text,label\ncut").unwrap();
    assert!(child.try_wait().unwrap().is_none(), "the run continues");
    assert!(child.wait().unwrap().success());
    let undisturbed = dir.path().join("undisturbed");
    train(&undisturbed, &steps).done();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == fs::read(undisturbed.join("model.safetensors")).unwrap());
}

#[test]
fn invalid_flags_are_reported_in_one_line() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let bad = |flags: &str, part: &str| {
        let code = if flags.ends_with("cuda") { 3 } else { 2 };
        train(&out, &words(flags)).fault(code, part).map(|fault| format!("{flags}: {fault}"))
    };
    let csv = golden("train/test.csv");
    let contradiction = format!("--validation-split 0.1 --validation-file {}", path(&csv));
    let mut faults: Vec<Option<String>> = [
        ("--frobnicate", "unexpected argument '--frobnicate'"),
        ("extra", "unexpected argument 'extra'"),
        ("--epochs", "a value is required for '--epochs"),
        ("--seed 1 --seed 2", "cannot be used multiple times"),
        ("--seed -1", "invalid value '-1' for '--seed <SEED>': use a whole number from 0 to"),
        (&contradiction, "cannot be used with"),
        ("--batch-size 1.5", "use a whole number from 1 to 4294967295"),
        ("--batch-size 99999999999999999999", "use a whole number from 1 to 4294967295"),
        ("--max-length 1", "`--max-length`: 1 leaves no room for text"),
        ("--max-length 2", "`--max-length`: 2 leaves no room for text"),
        ("--max-length 65", "`--max-length`: 65 exceeds the model's 64 positions"),
        ("--warmup-steps 1000", "`--warmup-steps`: 1000, but the whole run has 36 updates"),
        ("--eval-strategy epoch", "`--eval-strategy`: there is nothing to evaluate on"),
        ("--eval-strategy sometimes", "invalid value 'sometimes'"),
        ("--early-stopping-patience 1", "`--early-stopping-patience`: needs evaluations"),
        ("--load-best-model-at-end", "`--load-best-model-at-end`: needs evaluations"),
        ("--metric-for-best-model bleu --validation-split 0.1", "there is no metric `bleu`"),
        ("--fail-under accuracy", "has no ="),
        ("--fail-under accuracy=high", "high is not a number"),
        ("--fail-under accuracy=nan", "nan is not a number"),
        ("--fail-under accuracy=0.5", "there is nothing to evaluate on"),
        ("--class-weights 1,2,3", "`--class-weights`: 3 weights for the 2 classes NEGATIVE, POSITIVE"),
        ("--class-weights 1,-2", "use balanced, or one number per label, from 1e-37 to 1e38"),
        ("--class-weights 1e-60,1e-60", "use balanced, or one number per label, from 1e-37 to 1e38"),
        ("--class-weights 1,1e39", "use balanced, or one number per label, from 1e-37 to 1e38"),
        ("--device tpu", "`--device tpu`: no such device"),
        ("--device cuda:x", "`--device cuda:x`: no such device"),
        ("--device cuda", "`--device cuda`: "),
        ("--precision fp8", "invalid value 'fp8'"),
        ("--delimiter ab", "use one character, or tab"),
        ("--delimiter ;", "no label column among text,label"),
        ("--text-column nope", "no column is named nope; the columns are text, label"),
        ("--label-column text", "cannot be both text and label"),
        ("--validation-split 0.001", "leaves one side empty"),
        ("--model elsewhere --train-file x", "cannot be used multiple times"),
        ("--dataset tiny/reviews", "cannot be used with"),
        ("--dataset-config x", "cannot be used with"),
        ("--validation-split-name test", "cannot be used with"),
        ("--recipe nonsense", "invalid value 'nonsense' for '--recipe"),
        ("--config nowhere.toml", "`nowhere.toml`: no such file"),
        ("--push-to-hub a/b/c", "`push to a/b/c`: is not a hub id"),
        ("--push-to-hub me/x", "`push to me/x`: HF_HUB_OFFLINE is set"),
        ("--push-to-hub me/x --hub-model-id me/y", "`--hub-model-id`: --push-to-hub has an id too"),
        ("--hub-model-id me/x", "required arguments were not provided: --push-to-hub"),
        ("--max-steps 0", "invalid value '0' for '--max-steps"),
        ("--save-steps 0", "invalid value '0' for '--save-steps"),
        ("--save-total-limit 0", "invalid value '0' for '--save-total-limit"),
    ]
    .into_iter()
    .map(|(flags, part)| bad(flags, part))
    .collect();
    // Every number, out of range in every way.
    for (flag, zero) in [
        ("--epochs", true),
        ("--batch-size", true),
        ("--eval-batch-size", true),
        ("--gradient-accumulation-steps", true),
        ("--learning-rate", false),
        ("--weight-decay", false),
        ("--adam-beta1", false),
        ("--adam-beta2", false),
        ("--adam-epsilon", true),
        ("--warmup-steps", false),
        ("--max-grad-norm", false),
        ("--label-smoothing-factor", false),
        ("--dropout", false),
        ("--classifier-dropout", false),
        ("--validation-split", true),
        ("--max-length", true),
        ("--max-train-samples", true),
        ("--max-eval-samples", true),
        ("--logging-steps", true),
        ("--eval-steps", true),
        ("--early-stopping-patience", true),
    ] {
        let values = ["-1", "nan", "inf", "1e999", "many", "0"];
        let values = &values[..if zero { 6 } else { 5 }];
        faults
            .extend(values.iter().map(|value| bad(&format!("{flag} {value}"), &format!("invalid value '{value}' for '{flag}"))));
    }
    assert_none(faults);
    assert!(!out.exists());

    // Extreme but valid.
    for flags in [
        "--learning-rate 0",
        "--learning-rate 1e6",
        "--batch-size 4294967295",
        "--epochs 1e308",
        "--max-length 3",
        "--dropout 0.999",
    ] {
        let out = TempDir::new().unwrap();
        train(out.path(), &[words(flags), words("--max-steps 2 --save-strategy no")].concat()).done();
    }
}

#[test]
fn settings_that_count_in_evaluation_losses_are_reported() {
    let out = TempDir::new().unwrap();
    let note = "counts in the losses of evaluations too";
    let notes = |flags: &str| train(out.path(), &words(&format!("--dry-run {flags}"))).done().err.matches(note).count();
    let both = "--class-weights balanced --label-smoothing-factor 0.1";
    assert_eq!([both, "--validation-split 0.1", &format!("{both} --validation-split 0.1")].map(notes), [0, 0, 2]);
}

#[test]
fn failures_to_resume_are_reported_in_one_line() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    train(&out, &words("--max-steps 2 --save-strategy steps --save-steps 1")).done();
    let (before, elsewhere) = (names(&out), dir.path().join("elsewhere"));
    let elsewhere = format!("--resume-from-checkpoint {}", path(&elsewhere));
    assert_none(
        [
            ("--resume-from-checkpoint --batch-size 4", "was written with --batch-size 8, but this run has 4"),
            (
                "--resume-from-checkpoint --gradient-accumulation-steps 2",
                "with --gradient-accumulation-steps 1, but this run has 2",
            ),
            ("--resume-from-checkpoint --seed 43", "was written with --seed 42, but this run has 43"),
            ("--resume-from-checkpoint --no-shuffle", "was written with shuffle true"),
            ("--resume-from-checkpoint --max-length 5", "was written with --max-length "),
            (
                "--resume-from-checkpoint --truncation-side left",
                "was written with --truncation-side right, but this run has left",
            ),
            ("--resume-from-checkpoint --max-train-samples 50", "was written with other training data"),
            (&elsewhere, "elsewhere`: no such checkpoint"),
        ]
        .map(|(flags, part)| train(&out, &words(flags)).fault(2, part).map(|fault| format!("{flags}: {fault}"))),
    );
    assert_eq!(names(&out), before);
    let empty = dir.path().join("empty");
    train(&empty, &["--resume-from-checkpoint"]).failed(2, "empty`: no such folder; check the path");
    assert!(!empty.exists());
    fs::create_dir(&empty).unwrap();
    train(&empty, &["--resume-from-checkpoint"]).failed(2, "this folder has no checkpoint");
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let no_folder = ["--model", path(&model), "--train-file", path(&file), "--resume-from-checkpoint"];
    ran(TRAIN, &no_folder).failed(2, "`--output-dir`: is missing");
}

#[test]
fn flags_override_a_file_and_a_file_a_recipe() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("run.toml");
    let parse = |flags: &str| {
        let flags = format!("train {flags}");
        recipe::parse(words(&flags).into_iter().map(Into::into)).map(Option::unwrap)
    };
    // As published: model, data, and hyperparameters.
    let known = |name: &str| {
        let args = parse(&format!("--recipe {name}")).unwrap();
        let text = |path: &Option<PathBuf>| path.as_deref().map_or(String::new(), |path| path.display().to_string());
        let numbers = [args.epochs, args.batch_size.map(|n| n as f64), args.learning_rate, args.weight_decay];
        let numbers = numbers.map(|number| number.unwrap());
        (
            text(&args.model),
            text(&args.data.dataset),
            args.max_length,
            args.validation_split,
            numbers,
            args.load_best_model_at_end,
        )
    };
    let (distilbert, imdb) = ("distilbert/distilbert-base-uncased".to_string(), "stanfordnlp/imdb".to_string());
    let two = |batch: f64| [2.0, batch, 2e-5, 0.01];
    assert_eq!(known("imdb"), (distilbert.clone(), imdb.clone(), Some(512), None, two(16.0), Some(true)));
    assert_eq!(known("imdb-40k"), (distilbert.clone(), String::new(), Some(512), Some(0.2), two(32.0), Some(true)));
    let bert = "google-bert/bert-base-uncased".to_string();
    assert_eq!(known("imdb-bert"), (bert, imdb, Some(128), Some(0.1), [3.0, 16.0, 2e-5, 0.01], Some(false)));
    let bertimbau = "neuralmind/bert-base-portuguese-cased".to_string();
    assert_eq!(known("imdb-pt"), (bertimbau, "maritaca-ai/imdb_pt".to_string(), Some(512), Some(0.1), two(16.0), Some(true)));
    let (rubert, russian) = ("DeepPavlov/rubert-base-cased".to_string(), "MonoHime/ru_sentiment_dataset".to_string());
    assert_eq!(known("sentiment-ru"), (rubert, russian, Some(128), None, [3.0, 16.0, 2e-5, 0.01], Some(true)));
    assert_eq!(known("emotion"), (distilbert, "dair-ai/emotion".to_string(), None, None, two(64.0), None));
    assert_eq!(parse("").unwrap().recipe.as_deref(), Some("sample"));

    // Each overrides the next; a setting that conflicts with a flag is dropped.
    fs::write(&config, "recipe = 'imdb'\nbatch-size = 4\nepochs = 5\nfrom-scratch = true\nclass_weights = [1, 2.5]\n").unwrap();
    let args = parse(&format!("--epochs 7 --config {} --train-file mine.csv", path(&config))).unwrap();
    assert_eq!((args.epochs, args.batch_size, args.eval_batch_size), (Some(7.0), Some(4), Some(16)));
    assert_eq!((args.from_scratch, args.class_weights), (Some(true), Some(ClassWeights::Given(vec![1.0, 2.5]))));
    assert_eq!((args.data.dataset, args.data.validation_split_name.is_none()), (None, true));
    let args = parse("--recipe imdb --validation-split 0.3").unwrap();
    assert_eq!(
        (args.validation_split, args.data.validation_split_name.is_none(), args.data.dataset.is_some()),
        (Some(0.3), true, true)
    );
    // The bundled weights are random, and the bundled reviews are no validation data for other texts.
    for (flags, own) in [("--recipe sample --model m", "--model"), ("--data-dir d --recipe sample", "--data-dir")] {
        let refused = parse(flags).err().unwrap().to_string();
        assert!(refused.contains(own) && refused.contains("the recipe sample has a model and texts of its own"), "{refused}");
    }
    let args = parse("--recipe sample --validation-split 0.3 --learning_rate 1").unwrap();
    assert_eq!((args.data.validation_file, args.learning_rate, args.seed), (None, Some(1.0), None));

    fs::write(&config, b"seed = 1 # \xff").unwrap();
    let refused = parse(&format!("--config {}", path(&config))).err().unwrap().to_string();
    assert!(refused.contains("run.toml`: not UTF-8; save the file as UTF-8"), "{refused}");

    // true is the newest checkpoint, as on the command line.
    for (value, wanted) in [("true", "`nowhere`: no such folder"), ("'other'", "`other`: no such checkpoint")] {
        fs::write(&config, format!("resume-from-checkpoint = {value}\noutput-dir = 'nowhere'")).unwrap();
        let refused = ran(TRAIN, &["--config", path(&config)]).failed(2, wanted);
        assert!(!Path::new("nowhere").exists(), "{}", refused.err);
    }
    for value in ["false", "'False'"] {
        fs::write(&config, format!("resume-from-checkpoint = {value}\nseed = 3")).unwrap();
        let args = parse(&format!("--config {}", path(&config))).unwrap();
        assert_eq!((args.resume_from_checkpoint, args.seed), (None, Some(3)), "{value}");
    }
    fs::write(&config, "resume-from-checkpoint = true").unwrap();
    let out = dir.path().join("out");
    for flags in ["--resume-from-checkpoint false", "--resume_from_checkpoint=False"] {
        train(&out, &words(&format!("--config {} --dry-run {flags}", path(&config)))).done();
    }

    // Through the binary; errors in a file have its line.
    fs::write(&config, "max_steps = 1 # one\n\n\"save-strategy\" = 'no'\nquiet = true\nno-shuffle = false\n").unwrap();
    let ran = train(&out, &["--config", path(&config)]).done();
    let settings = read(&out, "training_args.json");
    assert_eq!((&ran.err[..], &settings["max_steps"], &settings["shuffle"]), ("", &json!(1), &json!(true)));
    assert_none(
        [
            ("epochs = 1\n\nepoch = 2", "run.toml:3`: unknown setting epoch; see train --help"),
            ("config = 'other.toml'", "run.toml:1`: unknown setting config"),
            ("help = true", "run.toml:1`: unknown setting help"),
            ("bf16 = true", "run.toml:1`: unknown setting bf16, which is precision = \"bf16\" here; see train --help"),
            ("warmup_ratio = 0.1", "run.toml:1`: unknown setting warmup_ratio, which is warmup-steps = 0.1 here"),
            ("seed = 1\nepochs = 0", "run.toml:2`: invalid value '0' for '--epochs"),
            ("quiet = 3", "run.toml:1`: unexpected value '3' for '--quiet'"),
            (
                "batch-size = 1\nbatch_size = 2",
                "run.toml:2`: the argument '--batch-size <BATCH_SIZE>' cannot be used multiple times",
            ),
            ("seed = 1\nseed = 2", "run.toml:2`: not TOML: duplicate key"),
            ("validation-split = 0.1\nvalidation-file = 'x'", "run.toml:2`: the argument '--validation-"),
            ("seed =", "run.toml:1`: not TOML: "),
            ("[data]\nseed = 1", "run.toml:1`: unknown setting data"),
            ("seed = {a = 1}", "run.toml:1`: seed cannot be of type table"),
            ("seed = 2026-01-01", "run.toml:1`: seed cannot be of type datetime"),
        ]
        .map(|(text, part)| {
            fs::write(&config, text).unwrap();
            train(&out, &["--config", path(&config)]).fault(2, part)
        }),
    );
}

#[test]
fn a_run_that_does_not_start_leaves_no_numbered_folder() {
    let folder = TempDir::new().unwrap();
    let model = golden("train/hf_init");
    let args = ["--model", path(&model), "--train-file", "nowhere.csv"];
    run(program(TRAIN).args(args).current_dir(folder.path()), b"").failed(2, "nowhere.csv");
    assert!(names(&folder.path().join("runs")).is_empty());
}

#[test]
fn columns_that_are_guessed_are_reported() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("odd.csv");
    fs::write(&file, "mood,film\n1,a very good film\n0,a very bad film\n").unwrap();
    let model = golden("train/hf_init");
    let out = folder.path().join("out");
    let args = ["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out), "--dry-run"];
    let ran = ran(TRAIN, &args).done();
    assert!(
        ran.err.contains("odd.csv: no recognized column names, so film is taken for the texts and mood for the labels"),
        "{}",
        ran.err
    );
}

/// Every name of a flag in both spellings, the other names of TrainingArguments among them.
#[test]
fn flags_in_both_spellings() {
    let out = TempDir::new().unwrap();
    for (i, batch) in
        ["--batch-size", "--batch_size", "--per-device-train-batch-size", "--per_device_train_batch_size"].into_iter().enumerate()
    {
        let out = out.path().join(i.to_string());
        train(&out, &["--max_steps", "1", batch, "5"]).done();
        assert_eq!(read(&out, "training_args.json")["batch_size"], 5);
    }
}

#[test]
fn a_run_keeps_texts_to_try() {
    let dir = TempDir::new().unwrap();
    let (validation, cache) = (dir.path().join("validation.csv"), dir.path().join("cache"));
    let rows = [
        ("a fine film, and a long one", 1),
        ("short", 0),
        ("  a dull film, and a long one ", 0),
        ("a fine film, and a long one", 1),
        ("another dull film, and long", 0),
        ("a third dull film, and long", 0),
        (&"long ".repeat(40), 1),
    ];
    let rows: String = rows.iter().map(|(text, label)| format!("\"{text}\",{label}\n")).collect();
    fs::write(&validation, format!("text,label\n{rows}")).unwrap();
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let wanted = ["a dull film, and a long one", "a fine film, and a long one", "another dull film, and long"];
    // The second run finds the tokenized texts of the first.
    for out in ["first", "second"].map(|name| dir.path().join(name)) {
        let mut command = program(TRAIN);
        command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out), "--max-steps", "1"]);
        command.args(["--validation-file", path(&validation)]).env("WARPFIT_CACHE", &cache);
        run(&mut command, b"").done();
        assert_eq!(read(&out, "examples.json"), json!(wanted));
        assert_eq!(ModelDir::read(&out).unwrap().examples(), wanted);
    }
    // Without them, those of the card.
    let out = dir.path().join("first");
    fs::write(out.join("examples.json"), json!(vec!["a text"; 1000]).to_string()).unwrap();
    assert_eq!(ModelDir::read(&out).unwrap().examples(), ["a text"; 6]);
    fs::remove_file(out.join("examples.json")).unwrap();
    assert_eq!(ModelDir::read(&out).unwrap().examples(), Vec::<String>::new());
    let card = "---\nlicense: mit\nwidget:\n- text: \"I like you. I love you\"\n  example_title: Love\n- text: 'No'\nmetrics:\n- text: f1\n---\n# A model\n";
    fs::write(out.join("README.md"), card).unwrap();
    assert_eq!(ModelDir::read(&out).unwrap().examples(), ["I like you. I love you", "No"]);
}
