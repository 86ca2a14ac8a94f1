//! The binaries from outside: what a run leaves, what they print, and one clear line for everything that goes wrong.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::train::args::{Args, ClassWeights};
use warpfit::train::recipe;

use crate::checkpoint::{Tensors as Stored, rounded, save, shard, tensors};
use crate::data::{Labels, TEXT_AND_INT, parquet, put};
use crate::fixtures::{Tensors, golden, json};

pub const TRAIN: &str = "train";
pub const PREDICT: &str = "predict";
pub const EVALUATE: &str = "evaluate";

/// A command of the program; `train` by its own name.
pub fn program(command: &str) -> Command {
    if command == TRAIN {
        return Command::new(env!("CARGO_BIN_EXE_train"));
    }
    let mut program = Command::new(env!("CARGO_BIN_EXE_warpfit"));
    program.arg(command);
    program
}

pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

fn ran_with(command: &str, args: &[&str], stdin: &[u8]) -> Ran {
    // No test but those of the hub asks the network for anything.
    run(program(command).args(args).env("HF_HUB_OFFLINE", "1"), stdin)
}

pub fn run(command: &mut Command, stdin: &[u8]) -> Ran {
    // Nothing of the tests goes into the user's cache.
    if command.get_envs().all(|(name, _)| name != "WARPFIT_CACHE") {
        command.env("WARPFIT_CACHE", "");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut pipe, stdin) = (child.stdin.take().unwrap(), stdin.to_vec());
    // It may end before it has read everything.
    let writer = std::thread::spawn(move || drop(pipe.write_all(&stdin)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

pub fn ran(command: &str, args: &[&str]) -> Ran {
    ran_with(command, args, b"")
}

impl Ran {
    #[track_caller]
    pub fn done(self) -> Ran {
        assert_eq!((self.code, self.err.contains("error: ")), (Some(0), false), "{}", self.err);
        self
    }

    /// Ended with `code` and one line of error that has a place, `part` and a remedy.
    #[track_caller]
    pub fn failed(self, code: i32, part: &str) -> Ran {
        assert_eq!(self.fault(code, part), None);
        self
    }

    /// What is wrong with how it failed.
    pub fn fault(&self, code: i32, part: &str) -> Option<String> {
        let errors: Vec<&str> = self.err.lines().filter(|line| line.starts_with("error")).collect();
        let line = errors.first().copied().unwrap_or_default();
        let wrong = match () {
            () if self.code != Some(code) => "exit code",
            () if errors.len() != 1 => "not one error",
            () if self.err.contains("panicked") || self.err.contains("internal error") => "panic",
            () if !(line.starts_with("error: `") && line.contains("`: ") && line.contains("; ")) => "no place or no remedy",
            () if !line.contains(part) => "another error",
            () if line.len() > 1000 => "a long line",
            () if self.err.lines().last() != Some(line) => "something stands behind the error",
            () => return None,
        };
        Some(format!("{wrong}: wanted {code} and {part}, got {:?} and {}", self.code, self.err))
    }

    #[track_caller]
    fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Names of what a folder holds.
fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn read(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Trains the small golden model on its 96 rows.
fn train(out: &Path, more: &[&str]) -> Ran {
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let args = ["--model", path(&model), "--train-file", path(&file), "--output-dir", path(out)];
    ran(TRAIN, &[&args, more].concat())
}

/// The text model, or another folder, over what is typed.
fn predict(more: &[&str]) -> Ran {
    let model = golden("text/hf");
    ran(PREDICT, &[&["--model", path(&model)], more].concat())
}

/// A model folder of its own, to be changed.
fn copy(folder: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in names(&golden(folder)) {
        fs::copy(golden(folder).join(&name), copy.path().join(&name)).unwrap();
    }
    copy
}

/// What Hugging Face's Trainer left at the end of the golden run, with its tokenizer.
fn trained() -> TempDir {
    let model = copy("train/hf_final");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden("train/hf_init").join(name), model.path().join(name)).unwrap();
    }
    model
}

#[test]
fn training_gives_the_losses_and_the_model_of_hugging_face() {
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
    // What is left out belongs to searches, to callbacks, and to counts that nobody asked for.
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

/// Logits of a file's rows by `predict`, (rows, 2).
fn logits(model: &Path, file: &Path) -> Vec<f64> {
    let ran = ran(PREDICT, &["--model", path(model), "--input", path(file), "--raw-scores", "--top-k", "0"]).done();
    let score = |row: &Value, label: &str| {
        let scored = row["scores"].as_array().unwrap().iter().find(|scored| scored["label"] == label).unwrap();
        scored["score"].as_f64().unwrap()
    };
    ran.json().iter().flat_map(|row| ["NEGATIVE", "POSITIVE"].map(|label| score(row, label))).collect()
}

#[test]
fn a_run_leaves_a_folder_with_everything() {
    let out = TempDir::new().unwrap();
    // A name with spaces and beyond ASCII, below a folder that is not there yet.
    let out = out.path().join("läufe und 実験/1");
    let (validation, test) = (golden("train/test.csv"), golden("train/test.csv"));
    let ran = train(&out, &["--epochs", "2", "--validation-file", path(&validation), "--test-file", path(&test)]).done();

    let model =
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"];
    let also = ["README.md", "metrics.jsonl", "train_results.json", "eval_results.json", "test_results.json", "all_results.json"];
    let state = ["trainer_state.json", "training_args.json"];
    let drawn = ["plots", "runs"];
    let checkpoints = ["checkpoint-12", "checkpoint-24"];
    let set = |groups: &[&[&str]]| groups.concat().into_iter().map(String::from).collect::<BTreeSet<String>>();
    assert_eq!(names(&out), set(&[&model, &also, &state, &drawn, &checkpoints]));
    for checkpoint in checkpoints {
        assert_eq!(names(&out.join(checkpoint)), set(&[&model, &state, &["optimizer.safetensors", "state.json"]]));
    }
    for name in &model[2..] {
        let same = |a: &Path, b: &Path| fs::read(a.join(name)).unwrap() == fs::read(b.join(name)).unwrap();
        assert!(same(&out, &golden("train/hf_init")) && same(&out, &out.join("checkpoint-12")), "{name}");
    }

    // What is printed, is the result; everything else is said on standard error.
    let printed: Vec<&str> = ran.out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(printed, ["trained", "validation", "test", "saved"]);
    assert!(ran.err.contains("warning: 3 of the 32 validation texts stand in the training data too"), "{}", ran.err);
    assert!(!ran.err.contains('\u{1b}') && !ran.err.contains('\r'), "a file is no terminal: {:?}", ran.err);

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

    // The model that was kept is that of the best evaluation, which is a checkpoint too.
    let best = read("trainer_state.json")["best_model_checkpoint"].as_str().map(PathBuf::from).unwrap();
    assert_eq!(fs::read(best.join("model.safetensors")).unwrap(), fs::read(out.join("model.safetensors")).unwrap());
}

#[test]
fn checkpoints_rotate_but_the_best_stays_and_is_loaded() {
    let out = TempDir::new().unwrap();
    let validation = golden("train/test.csv");
    // The accuracy is 1 from an early evaluation on, so that no later one is better.
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

    // The same run stops after two evaluations that were not better; without checkpoints the best is kept all the same.
    let stopped = TempDir::new().unwrap();
    let ran = train(stopped.path(), &[words("--save-strategy no --early-stopping-patience 2"), common].concat()).done();
    assert!(ran.err.contains("stopped early: 2 evaluations without a better one"), "{}", ran.err);
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
    write("tsv", ["Train.tsv", "Test.tsv"], "text\tlabel\n", &|text, label| {
        format!("\"{}\"\t{label}", text.replace('"', "\"\""))
    });
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

    // A folder of reviews has an order of its own; the classes are those of the model, by their index.
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
        put(&at("reviews/aclImdb"), &[(&format!("{split}/unsup/0_0.txt"), "left aside")]);
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
fn what_is_typed_wins_over_what_a_data_folder_holds() {
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
fn what_is_wrong_with_a_data_folder_is_said_in_one_line() {
    let (model, csv) = (golden("train/hf_init"), "text,label\na,0\nb,1\n");
    type Files<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Files, &str, &str); 9] = [
        (&[], "", "`: there is no training, validation or test data in this folder"),
        (&[("a.csv", csv)], "", "`: there is no training, validation or test data in this folder"),
        (&[("test.csv", csv)], "", "`: there is no training data in it; name it with --train-file"),
        (&[("test.csv", csv)], "none", "none`: no such file or folder"),
        (&[("test.csv", csv)], "test.csv", "test.csv`: Not a directory"),
        (&[("train.csv", csv), ("train.json", "[]")], "", "`: several files may be its train data: train.csv, train.json; keep"),
        (&[("data/train-00001-of-00002.csv", csv)], "", "data`: of the 2 files of its train data, number 00000 is missing"),
        (&[("a/train.csv", csv), ("b/train.csv", csv)], "", "`: there are data sets in several folders: a, b; give one"),
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

/// Rows of an evaluation batch are at most those asked for; its tokens are at most those of a training batch.
#[test]
fn a_large_evaluation_batch_takes_no_more_memory() {
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
fn a_result_that_is_not_usable_exits_with_1() {
    let out = TempDir::new().unwrap();
    let test = golden("train/test.csv");
    let below = train(&out.path().join("below"), &["--max-steps", "1", "--test-file", path(&test), "--fail-under", "accuracy=1"]);
    below.failed(1, "--fail-under accuracy=1`: accuracy is 0.");
    assert!(out.path().join("below/model.safetensors").exists(), "the model is written all the same");
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
fn a_folder_with_results_is_left_alone() {
    let out = TempDir::new().unwrap();
    fs::write(out.path().join("thesis.txt"), "ten years").unwrap();
    train(out.path(), &["--max-steps", "1"]).failed(2, "the folder is not empty; give another --output-dir, or pass");
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
fn predictions_are_those_of_hugging_face() {
    let dir = TempDir::new().unwrap();
    for (expected, max_length) in [("text/expected.jsonl", "48"), ("text/expected_max16.jsonl", "16")] {
        let wanted = json_lines(&golden(expected));
        // The texts, and the ids that Hugging Face made of them; with and without a tokenizer.
        let no_tokenizer = copy("text/hf");
        fs::remove_file(no_tokenizer.path().join("tokenizer.json")).unwrap();
        let (texts, ids) = (golden("text/texts.jsonl"), golden(expected));
        for (model, input) in [(golden("text/hf"), &texts), (golden("text/hf"), &ids), (no_tokenizer.path().into(), &ids)] {
            let over = |more: &[&str]| {
                let output = dir.path().join("out.jsonl");
                let args =
                    ["--model", path(&model), "--input", path(input), "--output", path(&output), "--max-length", max_length];
                let ran = ran(PREDICT, &[&args, more].concat()).done();
                assert_eq!(ran.out, "");
                json_lines(&output)
            };
            // Small batches, and all at once.
            let (one, all) = (over(&["--batch-size", "3"]), over(&["--top-k", "0"]));
            let raw = over(&["--top-k", "2", "--raw-scores"]);
            assert_eq!((one.len(), all.len(), raw.len()), (wanted.len(), wanted.len(), wanted.len()));
            for (((wanted, one), all), raw) in wanted.iter().zip(&one).zip(&all).zip(&raw) {
                assert_eq!(Vec::from_iter(one.as_object().unwrap().keys()), ["id", "label", "score", "tokens", "truncated"]);
                assert_eq!(Vec::from_iter(all.as_object().unwrap().keys()), ["id", "scores", "tokens", "truncated"]);
                let tokens = wanted["input_ids"].as_array().unwrap().len();
                assert_eq!((&one["id"], &one["label"]), (&wanted["id"], &wanted["label"]));
                assert_eq!(one["tokens"], tokens);
                let close = |a: &Value, b: &Value, tolerance: f64| {
                    assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < tolerance, "{a}, not {b}, for {wanted}");
                };
                close(&one["score"], &wanted["score"], 2e-5);
                assert_eq!(all["scores"][0]["label"], wanted["label"], "highest first");
                for (scores, key, tolerance) in [(&all["scores"], "probs", 2e-5), (&raw["scores"], "logits", 5e-5)] {
                    for scored in scores.as_array().unwrap() {
                        let class = usize::from(scored["label"] == "POSITIVE");
                        close(&scored["score"], &wanted[key][class], tolerance);
                    }
                }
            }
            let cut = one.iter().filter(|row| row["truncated"] == true).count();
            let longer = |row: &Value| row["input_ids"].as_array().unwrap().len() > max_length.parse().unwrap();
            let longer = if max_length == "16" {
                json_lines(&golden("text/expected.jsonl")).iter().filter(|row| longer(row)).count()
            } else {
                3
            };
            assert_eq!(cut, if input == &texts { longer } else { 0 });
        }
    }
}

#[test]
fn predict_takes_what_is_typed() {
    let rows = predict(&["The movie was great!", "-1"]).done().json();
    assert_eq!((&rows[0]["id"], &rows[0]["label"], &rows[1]["id"]), (&json!(0), &json!("NEGATIVE"), &json!(1)));
    assert_eq!(rows, predict(&["--text", "The movie was great!", "--text", "-1"]).done().json());

    // Hugging Face's pipeline on texts 0 and 7, as a table and for people.
    let texts = json_lines(&golden("text/texts.jsonl"));
    let (short, long) = (texts[0]["text"].as_str().unwrap(), texts[7]["text"].as_str().unwrap());
    let lines = |more: &[&str]| {
        let ran = predict(&[more, &["--stars", short, long]].concat()).done();
        ran.out.lines().map(String::from).collect::<Vec<String>>()
    };
    let csv = lines(&["--format", "csv", "--top-k", "0"]);
    assert_eq!(csv.len(), 5);
    assert_eq!(csv[0], "id,label,score,tokens,truncated,stars");
    assert!(csv[1].starts_with("0,NEGATIVE,0.548") && csv[1].ends_with(",7,false,5"), "{}", csv[1]);
    assert!(csv[2].starts_with("0,POSITIVE,0.451") && csv[2].ends_with(",7,false,5"), "{}", csv[2]);
    assert!(csv[3].starts_with("1,POSITIVE,0.602") && csv[3].ends_with(",48,true,6"), "{}", csv[3]);
    let text = lines(&["--format", "text"]);
    assert_eq!(text[0], format!("NEGATIVE 0.5482   5/10  {short}"));
    assert!(text[1].starts_with("POSITIVE 0.60") && text[1].contains("   6/10  the film was good and") && text[1].len() < 250);
}

#[test]
fn predict_answers_each_line_of_a_stream_before_the_next_one_comes() {
    // From another folder, with a relative path.
    let model = golden("text/hf");
    let mut command = program(PREDICT);
    command.current_dir(model.parent().unwrap()).args(["--model", "hf", "--input-format", "jsonl", "--device", "cpu"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (sender, answers) = mpsc::channel();
    let reader = std::thread::spawn(move || BufReader::new(stdout).lines().for_each(|line| sender.send(line.unwrap()).unwrap()));
    let ids = [json!("a"), json!(7), json!({"k": [1, null]}), Value::Null];
    for id in &ids {
        writeln!(stdin, "{}", json!({"id": id, "text": "good"})).unwrap();
        let answer = answers.recv_timeout(Duration::from_secs(60)).expect("an answer while the stream is open");
        assert_eq!(&serde_json::from_str::<Value>(&answer).unwrap()["id"], id);
    }
    // What stands before a line that is wrong is answered.
    stdin.write_all(b"{\"text\": \"bad\"}\n\n{\"input_ids\": [2, 3]}\n{\"input_ids\": []}\n{\"text\": \"lost\"}\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    reader.join().unwrap();
    let left: Vec<Value> = answers.iter().map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert_eq!(left.iter().map(|row| row["id"].clone()).collect::<Vec<_>>(), [json!(4), json!(5)]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), err.as_str()),
        (Some(2), "error: `standard input:8`: input_ids is empty; give at least [CLS] and [SEP]\n")
    );
}

#[test]
fn predict_reads_every_kind_of_file() {
    let dir = TempDir::new().unwrap();
    let texts = ["plain", "with, comma", "", "gut 😀"];
    let labels = |rows: &[Value]| rows.iter().map(|row| (row["label"].clone(), row["tokens"].clone())).collect::<Vec<_>>();
    let wanted = labels(&predict(&texts).done().json());
    for (name, content, ids) in [
        ("a.txt", "\u{feff}plain\r\nwith, comma\r\n\r\ngut 😀", json!([0, 1, 2, 3])),
        ("b.csv", "text\nplain\n\"with, comma\"\n\"\"\ngut 😀\n", json!([0, 1, 2, 3])),
        ("c.csv", "id,body\n7,plain\nx,\"with, comma\"\n,\n-1,gut 😀\n", json!([7, "x", "", -1])),
        ("d.tsv", "label\ttext\nyes\tplain\nno\twith, comma\n\t\n\tgut 😀\n", json!([0, 1, 2, 3])),
        (
            "e.jsonl",
            "{\"sentence\": \"plain\", \"id\": 0.5}\n{\"sentence\": \"with, comma\"}\n\n{\"sentence\": \"\"}\n{\"sentence\": \"gut 😀\"}\n",
            json!([0.5, 1, 2, 3]),
        ),
        (
            "f.json",
            "[{\"id\": \"a\", \"text\": \"plain\"}, {\"text\": \"with, comma\", \"id\": 1},\n{\"id\": 2, \"text\": \"\"}, {\"text\": \"gut 😀\"}]",
            json!(["a", 1, 2, null]),
        ),
        ("g.ft", "__label__1 plain\n__label__1 with, comma\n__label__2\n__label__2 gut 😀\n", json!([0, 1, 2, 3])),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        let rows = predict(&["--input", path(&file)]).done().json();
        assert_eq!(labels(&rows), wanted, "{name}");
        assert_eq!(Value::from_iter(rows.iter().map(|row| row["id"].clone())), ids, "{name}");
    }
    let sample = golden("../../src/sample/validation.parquet");
    assert_eq!(predict(&["--input", path(&sample)]).done().out.lines().count(), 500);
    // Token types, for a model that has them and no tokenizer; DistilBERT does not look at them.
    let segments = dir.path().join("segments.jsonl");
    let over = |model: &Path, types: Value| {
        let row = |types: &Value| json!({"input_ids": [2, 9, 3, 9, 3], "token_type_ids": types}).to_string() + "\n";
        fs::write(&segments, row(&Value::Null) + &row(&types)).unwrap();
        ran(PREDICT, &["--model", path(model), "--input", path(&segments)])
    };
    let scores = |ran: Ran| ran.done().json().iter().map(|row| row["score"].clone()).collect::<Vec<_>>();
    let bert = scores(over(&golden("bert-a/hf"), json!([0, 0, 0, 1, 1])));
    assert_ne!(bert[0], bert[1]);
    over(&golden("bert-a/hf"), json!([0, 0, 0, 1, 2])).failed(2, "segments.jsonl:2`: the token type 2 is beyond the model's 2");
    let distilbert = scores(over(&golden("text/hf"), json!([0, 0, 0, 1, 9])));
    assert_eq!(distilbert[0], distilbert[1]);
    // Both at once: the ids win.
    let both = dir.path().join("both.jsonl");
    fs::write(&both, "{\"text\": \"good good good\", \"input_ids\": [2, 3]}\n{\"text\": \"good\", \"input_ids\": null}\n")
        .unwrap();
    let rows = predict(&["--input", path(&both)]).done().json();
    assert_eq!((&rows[0]["tokens"], &rows[1]["tokens"]), (&json!(2), &json!(3)));
}

#[test]
fn a_reader_that_leaves_is_no_failure_and_a_full_disk_is_one() {
    let model = golden("text/hf");
    let mut command = program(PREDICT);
    command
        .args(["--model", path(&model), "--device", "cpu"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    // It leaves in its turn, and this pipe breaks too.
    while stdin.write_all(b"good\n").is_ok() {}
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));

    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program(PREDICT).args(["--model", path(&model), "--device", "cpu", "good"]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: `standard output`: "));
    predict(&["--output", "/dev/full", "good"]).failed(2, "`/dev/full`: ");
    // Nobody needs to be reading what is said on the way.
    let out = TempDir::new().unwrap();
    let (hf, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let args = ["--model", path(&hf), "--train-file", path(&file), "--output-dir", path(out.path()), "--max-steps", "1"];
    let status = program(TRAIN).args(args).env("WARPFIT_CACHE", "").stdout(Stdio::null()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(out.path().join("model.safetensors").exists());
}

#[test]
fn evaluate_measures_the_model_of_hugging_face() {
    let (model, file, out) = (trained(), golden("train/test.csv"), TempDir::new().unwrap());
    let args = ["--model", path(model.path()), "--file", path(&file), "--output-dir", path(out.path())];
    let ran = ran(EVALUATE, &[&args[..], &["--batch-size", "5", "--fail-under", "accuracy=0.9"]].concat()).done();
    let last = json("train/losses.json")["eval"].as_array().unwrap().last().unwrap().clone();
    let metrics = read(out.path(), "metrics.json");
    assert_eq!(metrics["accuracy"], last["eval_accuracy"]);
    assert!((metrics["loss"].as_f64().unwrap() - last["eval_loss"].as_f64().unwrap()).abs() < 1e-5);
    assert!(ran.out.starts_with("loss 0.2752  accuracy 0.9062  precision "), "{}", ran.out);
    for line in ["precision    recall  f1-score   support", "NEGATIVE     1.0000    0.8125    0.8966        16", "weighted avg"] {
        assert!(ran.out.contains(line), "{}", ran.out);
    }

    let difference = crate::fixtures::max_abs_difference(
        &logits(model.path(), &file),
        Tensors::read("train/test_logits.safetensors").get("logits"),
    );
    assert!(difference < 1e-4, "{difference}");

    // What was written can be measured again without the model.
    let (again, predictions) = (TempDir::new().unwrap(), out.path().join("predictions.jsonl"));
    assert_eq!(json_lines(&predictions).len(), 32);
    let ran_again = crate::cli::ran(EVALUATE, &["--predictions", path(&predictions), "--output-dir", path(again.path())]).done();
    assert_eq!(ran_again.out, ran.out);
    assert_eq!(differences(&read(again.path(), "metrics.json"), &metrics, ""), Vec::<String>::new());
}

#[test]
fn evaluate_measures_predictions_as_scikit_learn_does() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("p.jsonl");
    for case in json("metrics.json").as_array().unwrap() {
        let (labels, scores) = (case["labels"].as_array().unwrap(), case["scores"].as_array().unwrap());
        let classes = scores[0].as_array().unwrap().len();
        let name = |class: usize| format!("c{class}");
        let numbers = |row: usize| json!({"label": labels[row], "scores": scores[row]});
        // As predict writes them, in an order of their own; the names sort as the classes do.
        let objects = |row: usize| {
            let object = |class: usize| json!({"label": name(class), "score": scores[row][class]});
            json!({"label": name(labels[row].as_u64().unwrap() as usize), "scores": (0..classes).rev().map(object).collect::<Vec<_>>()})
        };
        for form in [&numbers as &dyn Fn(usize) -> Value, &objects] {
            fs::write(&file, (0..labels.len()).map(|row| form(row).to_string() + "\n").collect::<String>()).unwrap();
            let ran = ran(EVALUATE, &["--predictions", path(&file), "--output-dir", path(dir.path())]).done();
            assert!(ran.out.contains("weighted avg"));
            let mut wanted = case.clone();
            wanted.as_object_mut().unwrap().retain(|key, _| !["name", "labels", "scores"].contains(&key.as_str()));
            assert_eq!(differences(&read(dir.path(), "metrics.json"), &wanted, ""), Vec::<String>::new(), "{}", case["name"]);
        }
    }
}

/// Where `found` lacks or differs from what stands in `wanted`.
fn differences(found: &Value, wanted: &Value, at: &str) -> Vec<String> {
    match (found, wanted) {
        (Value::Object(_), Value::Object(wanted)) => {
            wanted.iter().flat_map(|(key, wanted)| differences(&found[key], wanted, &format!("{at}.{key}"))).collect()
        }
        (Value::Array(found), Value::Array(wanted)) if found.len() == wanted.len() => {
            found.iter().zip(wanted).flat_map(|(found, wanted)| differences(found, wanted, at)).collect()
        }
        (Value::Number(a), Value::Number(b)) if (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= 1e-12 => Vec::new(),
        _ if found == wanted => Vec::new(),
        _ => vec![format!("{at}: {found}, not {wanted}")],
    }
}

/// The faults that a table of cases shows, all at once.
fn assert_none(faults: impl IntoIterator<Item = Option<String>>) {
    let faults: Vec<String> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_is_wrong_with_a_file_is_said_in_one_line() {
    let dir = TempDir::new().unwrap();
    let parquet = fs::read(golden("../../src/sample/train.parquet")).unwrap();
    let long = format!("text,label\n{},0\nb,1,2\n", "x".repeat(2_000_000));
    // For all: train and evaluate read labels too, predict the texts alone.
    let both: Vec<(&str, &[u8], &str)> = vec![
        ("a.csv", b"", "a.csv`: the file is empty"),
        ("a.csv", b"\xef\xbb\xbf", "a.csv`: no header and no rows"),
        ("a.csv", b"text,label\r\n", "a.csv`: no rows"),
        ("a.csv", b"text,label\na,0\nb\xff,1\n", "a.csv:3`: not UTF-8"),
        ("a.csv", b"text,label\na,0\nb\0,1\n", "a.csv:3`: a NUL byte"),
        (
            "a.csv",
            "text,label\na,0\nb,1\n好".as_bytes().split_last().unwrap().1,
            "a.csv:4`: ends in the middle of a UTF-8 character",
        ),
        ("a.csv", b"text,label\na,0\n\"b,1\nc,1\n", "a.csv:3`: a quote opens"),
        ("a.csv", b"text,label\na,0\n\nb,1,2\n", "a.csv:4`: 3 fields where the header has 2"),
        ("a.csv", b"text,label\na\n", "a.csv:2`: 1 fields where the header has 2"),
        ("a.csv", b"text,text\na,0\n", "two columns are named text"),
        ("a.csv", b"x,y,z\na,0,1\n", "no column of texts among x, y, z"),
        ("a.csv", long.as_bytes(), "a.csv:3`: 3 fields"),
        ("a.jsonl", b"{\"text\": \"a\", \"label\": 0}\n{\"text\": \"b\"\n", "a.jsonl:2`: "),
        ("a.jsonl", b"{\"text\": \"a\", \"label\": 0}\n[1]\n", "a.jsonl:2`: "),
        ("a.jsonl", b"{\"text\": 1, \"label\": 0}\n", "a.jsonl:1`: "),
        ("a.jsonl", b"{\"text\": \"a\", \"label\": 0}\n{\"label\": 0}\n", "a.jsonl:2`: "),
        ("a.jsonl", b"\n\n", "a.jsonl`: no rows"),
        ("a.jsonl", b"{\"text\": \"\xff\"}\n", "a.jsonl:1`: not UTF-8"),
        ("a.parquet", &parquet[..parquet.len() - 1], "not a whole Parquet file"),
        ("a.parquet", &parquet[parquet.len() / 2..], "not a whole Parquet file"),
        ("a.parquet", b"PAR1PAR1", "not a whole Parquet file"),
        ("a.parquet", b"text,label\na,0\n", "not a whole Parquet file"),
        ("a.pdf", b"text,label\na,0\n", "cannot tell the format from the ending; give one of .csv"),
        ("a.json", b"[{\"text\": \"a\", \"label\": 0},\n", "a.json:2`: EOF while parsing"),
        ("a.json", b"[{\"text\": \"a\", \"label\": 0},\n{\"label\": 0}]", "a.json:2`: text is missing"),
        ("a.json", b"[]", "a.json`: no rows"),
        ("a.json", b"{\"text\": \"a\", \"label\": 0}\n1\n", "a.json:2`: invalid type"),
        ("a.ft", b"__label__0 a\nb\n", "a.ft:2`: the line does not start with __label__"),
        ("a.ft", b"__label__0 __label__1 a\n", "a.ft:1`: there are two labels"),
        ("a.tsv", b"text\tlabel\na\t0\t0\n", "a.tsv:2`: 3 fields"),
    ];
    let training: Vec<(&str, &[u8], &str)> = vec![
        ("a.csv", b"text,label\na,0\nb,\n", "a.csv:3`: the label is missing"),
        ("a.csv", b"text,label\na,0\nb,0.5\n", "a.csv:3`: the label 0.5 is not a whole number"),
        ("a.csv", b"text,label\na,0\nb,-1\n", "a.csv:3`: the label -1 is negative"),
        ("a.csv", b"text,label\na,0\nb,0\n", "every label is \"0\""),
        ("a.csv", b"text,label\na,0\n", "every label is \"0\""),
        ("a.csv", b"text\na\n", "no column of labels among text"),
        ("a.csv", b"text,x,y\na,0,1\n", "no column of labels among text, x, y"),
        ("a.jsonl", b"{\"text\": \"a\", \"label\": [0]}\n", "a.jsonl:1`: label is a list or an object"),
        ("a.txt", b"a;0\nb\n", "a.txt:2`: there is no ; between a text and a label"),
        ("a.txt", b"text;label\n", "a.txt`: no rows"),
        ("a.txt", b"a;0\nb;\n", "a.txt:2`: the label is missing"),
        ("a.txt", b"a;0\nb\xff;1\n", "a.txt:2`: not UTF-8"),
    ];
    // Against the classes of the model.
    let evaluating: Vec<(&str, &[u8], &str)> = vec![
        ("a.csv", b"text,label\na,0\nb,2\n", "a.csv:3`: the label 2 is out of range"),
        ("a.csv", b"text,label\na,0\nb,-1\n", "a.csv:3`: the label -1 is negative"),
        ("a.csv", b"text,label\na,0\nb,0.5\n", "a.csv:3`: the label 0.5 is not a whole number"),
        ("a.csv", b"text,label\na,0\nb,\n", "a.csv:3`: the label is missing"),
        ("a.txt", b"a;joy\n", "a.txt:1`: the label \"joy\" is none of the classes"),
        ("a.json", b"[{\"text\": \"a\"}]", "no column of labels among text"),
    ];
    let predicting: Vec<(&str, &[u8], &str)> = vec![
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b"a\nb\xff\n", "a.txt:2`: not UTF-8"),
        ("a.txt", b"a\nb\0\n", "a.txt:2`: a NUL byte"),
        ("a.txt", "a\n好".as_bytes().split_last().unwrap().1, "a.txt:2`: ends in the middle of a UTF-8 character"),
        ("a.jsonl", b"{\"input_ids\": [2, 299, 3]}\n", "a.jsonl:1`: the id 299 is beyond the model's vocabulary of 299"),
        ("a.jsonl", b"{\"input_ids\": [2, -1, 3]}\n", "a.jsonl:1`: the id -1 is negative"),
        ("a.jsonl", b"{\"input_ids\": [2, 1.5]}\n", "a.jsonl:1`: input_ids is not a list of token ids"),
        ("a.jsonl", b"{\"input_ids\": [[2, 3]]}\n", "a.jsonl:1`: input_ids is not a list of token ids"),
        ("a.jsonl", b"{\"input_ids\": [2, 99999999999]}\n", "a.jsonl:1`: input_ids is not a list of token ids"),
        ("a.jsonl", b"{\"input_ids\": \"2 3\"}\n", "a.jsonl:1`: input_ids is not a list of token ids"),
        ("a.jsonl", b"{\"text\": \"a\"}\n{\"input_ids\": []}\n", "a.jsonl:2`: input_ids is empty"),
        ("a.jsonl", b"{\"input_ids\": [2, 3], \"token_type_ids\": [0]}\n", "a.jsonl:1`: 1 token_type_ids for 2 input_ids"),
        ("a.jsonl", b"{\"input_ids\": [2, 3, 0], \"attention_mask\": [1, 1, 0]}\n", "a.jsonl:1`: attention_mask hides tokens"),
        (
            "a.jsonl",
            b"{\"input_ids\": [2,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,3]}\n",
            "a.jsonl:1`: 49 input_ids for the model's 48 positions",
        ),
    ];
    let (out, output) = (dir.path().join("out"), dir.path().join("out.jsonl"));
    fs::write(&output, "of yesterday").unwrap();
    let (model, trained) = (golden("train/hf_init"), golden("text/hf"));
    let faults = |kind: &[&str], cases: &[(&str, &[u8], &str)]| {
        let case = |&(name, content, part): &(&str, &[u8], &str)| {
            let file = dir.path().join(name);
            fs::write(&file, content).unwrap();
            let train = || {
                let args = ["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out)];
                ran(TRAIN, &args).fault(2, part).or(out.exists().then(|| format!("{part}: train left something")))
            };
            let predict = || {
                let fault = predict(&["--input", path(&file), "--output", path(&output)]).fault(2, part);
                let kept = fs::read(&output).unwrap() == b"of yesterday" && !dir.path().join("out.jsonl.partial").exists();
                fault.or((!kept).then(|| format!("{part}: predict left something")))
            };
            let evaluate = || {
                let args = ["--model", path(&trained), "--file", path(&file), "--output-dir", path(&out)];
                ran(EVALUATE, &args).fault(2, part).or(out.exists().then(|| format!("{part}: evaluate left something")))
            };
            let faults = [
                kind.contains(&"train").then(train),
                kind.contains(&"predict").then(predict),
                kind.contains(&"evaluate").then(evaluate),
            ];
            fs::remove_file(&file).unwrap();
            faults.into_iter().flatten().flatten().map(|fault| format!("{name}: {fault}")).collect::<Vec<_>>()
        };
        cases.iter().flat_map(case).map(Some).collect::<Vec<_>>()
    };
    assert_none(
        [
            faults(&["train", "predict", "evaluate"], &both),
            faults(&["train"], &training),
            faults(&["predict"], &predicting),
            faults(&["evaluate"], &evaluating),
        ]
        .concat(),
    );
}

#[test]
fn what_is_no_file_is_said_in_one_line() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("folder.csv")).unwrap();
    assert!(Command::new("mkfifo").arg(at("pipe.csv")).status().unwrap().success());
    std::os::unix::fs::symlink(at("loop.csv"), at("loop.csv")).unwrap();
    fs::write(at("file"), "").unwrap();
    let long = "x".repeat(300) + ".csv";
    let (model, out) = (golden("train/hf_init"), at("out"));
    assert_none(
        [
            ("missing.csv", "missing.csv`: no such file or folder; check the path"),
            ("folder.csv", "folder.csv`: is a folder; name a file"),
            ("pipe.csv", "pipe.csv`: not a regular file"),
            ("loop.csv", "loop.csv`: "),
            ("file/a.csv", "file/a.csv`: "),
            (&long, "x.csv`: "),
        ]
        .iter()
        .flat_map(|(name, part)| {
            let file = at(name);
            let args = ["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out)];
            [
                ran(TRAIN, &args).fault(2, part),
                predict(&["--input", path(&file)]).fault(2, part),
                ran(EVALUATE, &["--predictions", path(&file)]).fault(2, part),
                ran(EVALUATE, &["--model", path(&golden("text/hf")), "--file", path(&file)]).fault(2, part),
            ]
        }),
    );
    assert!(!out.exists());
    // A place for the results that is none.
    predict(&["--output", path(&at("folder.csv")), "good"]).failed(2, "folder.csv`: is a folder");
    predict(&["--output", path(&at("none/out.jsonl")), "good"]).failed(2, "none/out.jsonl`: no such file or folder");
    fs::write(at("in.txt"), "good\n").unwrap();
    predict(&["--input", path(&at("in.txt")), "--output", path(&at("in.txt"))]).failed(2, "is the file of --input");
    assert_eq!(fs::read_to_string(at("in.txt")).unwrap(), "good\n");
}

#[test]
fn what_may_not_be_read_is_said_in_one_line() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    // Everything lies where any user gets at it, for root may read all and has to become another one.
    let dir = TempDir::new().unwrap();
    let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    permit(dir.path(), 0o755);
    let (binary, model, file) = (dir.path().join("warpfit"), dir.path().join("model"), dir.path().join("a.csv"));
    fs::copy(program(PREDICT).get_program(), &binary).unwrap();
    fs::create_dir(&model).unwrap();
    for name in names(&golden("text/hf")) {
        fs::copy(golden("text/hf").join(&name), model.join(&name)).unwrap();
    }
    fs::write(&file, "text\ngood\n").unwrap();
    let predict = || {
        let mut command = Command::new(&binary);
        command.args([PREDICT, "--model", path(&model), "--input", path(&file)]).current_dir(dir.path());
        if fs::File::open("/etc/shadow").is_ok() {
            command.uid(65534).gid(65534);
        }
        run(&mut command, b"")
    };
    predict().done();
    let faults =
        [&file, &model.join("config.json"), &model.join("tokenizer.json"), &model.join("model.safetensors")].map(|path| {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            permit(path, 0);
            let fault = predict().fault(2, &format!("{}`: Permission denied", path.display()));
            permit(path, mode);
            fault
        });
    assert_none(faults);
}

#[test]
fn a_file_that_is_replaced_during_the_run_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let (model, file, out) = (golden("train/hf_init"), dir.path().join("a.csv"), dir.path().join("out"));
    let steps = words("--max-steps 300 --logging-steps 1 --save-strategy no --max-length 8");
    fs::copy(golden("train/train.csv"), &file).unwrap();
    let args = ["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out)];
    let mut child =
        program(TRAIN).args([&args[..], &steps].concat()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !out.join("metrics.jsonl").exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "the run has begun");
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::write(&file, "text,label\ncut").unwrap();
    assert!(child.try_wait().unwrap().is_none(), "the run goes on");
    assert!(child.wait().unwrap().success());
    let undisturbed = dir.path().join("undisturbed");
    train(&undisturbed, &steps).done();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == fs::read(undisturbed.join("model.safetensors")).unwrap());
}

#[test]
fn odd_texts_and_labels_survive() {
    let dir = TempDir::new().unwrap();
    let (file, validation, out) = (dir.path().join("a.csv"), dir.path().join("v.csv"), dir.path().join("out"));
    // Fewer rows than a batch, a byte order mark, CRLF, labels that need quotes, a class absent from validation.
    let odd = [
        "",
        " ",
        "x",
        "😀😀",
        "电影好看",
        "فيلم رائع",
        "e\u{301}\u{301}\u{301}",
        "good [SEP] bad [PAD]",
        "\u{7}\u{1b}[31m",
        "\u{200b}",
    ];
    let labels = ["a \"b\"", "c,d", "e\r\nf"];
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(["text", "label"]).unwrap();
    let million = "a".repeat(1_000_000) + &" good".repeat(100_000);
    for (row, text) in odd.iter().chain([&million.as_str()]).enumerate() {
        csv.write_record([text, labels[row % 3]]).unwrap();
    }
    let text = String::from_utf8(csv.into_inner().unwrap()).unwrap();
    fs::write(&file, format!("\u{feff}{}", text.replace("\n", "\r\n").replace("\r\r", "\r"))).unwrap();
    fs::write(&validation, "text,label\nfine,\"c,d\"\n").unwrap();
    let model = golden("train/hf_init");
    let args = ["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out), "--epochs", "1"];
    let trained = ran(TRAIN, &[&args[..], &["--from-scratch", "--validation-file", path(&validation)]].concat()).done();
    assert!(trained.err.contains("training: 1 of 11 texts cut to 64 tokens"), "{}", trained.err);
    let id2label = &read(&out, "config.json")["id2label"];
    assert_eq!(id2label, &json!({"0": labels[0], "1": labels[1], "2": labels[2]}));

    let input = dir.path().join("in.jsonl");
    fs::write(&input, odd.iter().map(|text| json!({"text": text}).to_string() + "\n").collect::<String>()).unwrap();
    let over =
        |format| ran(PREDICT, &["--model", path(&out), "--input", path(&input), "--top-k", "0", "--format", format]).done().out;
    assert_eq!(over("jsonl").lines().count(), odd.len());
    let csv = over("csv");
    let rows: Vec<_> = csv::Reader::from_reader(csv.as_bytes()).into_records().collect::<Result<_, _>>().unwrap();
    assert_eq!(rows.len(), 3 * odd.len());
    assert!(rows.iter().all(|row| labels.contains(&&row[1])));
    let people = over("text");
    assert_eq!(people.lines().count(), odd.len());
    assert!(!people.contains('\u{1b}'), "what a text says to the terminal is not passed on");
    ran(PREDICT, &["--model", path(&out), "--stars", "x"]).failed(2, "`--stars`: the model has 3 classes");
}

#[test]
fn what_is_wrong_with_a_flag_is_said_in_one_line() {
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
        ("--seed -1", "invalid value '-1' for '--seed"),
        (&contradiction, "cannot be used with"),
        ("--batch-size 1.5", "give a whole number, 1 or above"),
        ("--batch-size 99999999999999999999", "give a whole number, 1 or above"),
        ("--max-length 1", "`--max-length`: 1 leaves no room for text"),
        ("--max-length 2", "`--max-length`: 2 leaves no room for text"),
        ("--max-length 65", "`--max-length`: 65 is over the model's 64 positions"),
        ("--warmup-steps 1000", "`--warmup-steps`: 1000 where the whole run has 36 updates"),
        ("--eval-strategy epoch", "`--eval-strategy`: there is nothing to evaluate on"),
        ("--eval-strategy sometimes", "invalid value 'sometimes'"),
        ("--eval-steps 5", "`--eval-steps`: has no effect without"),
        ("--save-steps 5", "`--save-steps`: has no effect without"),
        ("--early-stopping-patience 1", "`--early-stopping-patience`: needs evaluations"),
        ("--load-best-model-at-end", "`--load-best-model-at-end`: needs evaluations"),
        ("--metric-for-best-model bleu --validation-split 0.1", "there is no metric `bleu`"),
        ("--fail-under accuracy", "has no ="),
        ("--fail-under accuracy=high", "high is no number"),
        ("--fail-under accuracy=nan", "nan is no number"),
        ("--fail-under accuracy=0.5", "there is nothing to evaluate on"),
        ("--class-weights 1,2,3", "`--class-weights`: 3 weights for the 2 classes NEGATIVE, POSITIVE"),
        ("--class-weights 1,-2", "give balanced, or one number above 0 a label"),
        ("--device tpu", "`--device tpu`: no such device"),
        ("--device cuda:x", "`--device cuda:x`: no such device"),
        ("--device cuda", "`--device cuda`: "),
        ("--precision fp8", "invalid value 'fp8'"),
        ("--delimiter ab", "give one character, or tab"),
        ("--delimiter ;", "no column of labels among text,label"),
        ("--text-column nope", "no column is named nope; the columns are text, label"),
        ("--label-column text", "cannot be both text and label"),
        ("--validation-split 0.001", "leaves one side empty"),
        ("--model elsewhere --train-file x", "cannot be used multiple times"),
        ("--dataset tiny/reviews", "cannot be used with"),
        ("--dataset-config x", "cannot be used with"),
        ("--validation-split-name test", "cannot be used with"),
        ("--recipe nonsense", "invalid value 'nonsense' for '--recipe"),
        ("--config nowhere.toml", "`nowhere.toml`: no such file"),
        ("--push-to-hub a/b/c", "`--push-to-hub a/b/c`: is no id of the hub"),
        ("--push-to-hub me/x", "`--push-to-hub me/x`: HF_HUB_OFFLINE is set"),
    ]
    .into_iter()
    .map(|(flags, part)| bad(flags, part))
    .collect();
    // Every number, out of range in every way.
    for (flag, zero) in [
        ("--epochs", true),
        ("--max-steps", true),
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
        ("--save-steps", true),
        ("--save-total-limit", true),
        ("--early-stopping-patience", true),
    ] {
        let values = ["-1", "nan", "inf", "1e999", "many", "0"];
        let values = &values[..if zero { 6 } else { 5 }];
        faults
            .extend(values.iter().map(|value| bad(&format!("{flag} {value}"), &format!("invalid value '{value}' for '{flag}"))));
    }
    assert_none(faults);
    assert!(!out.exists());

    // Extreme, but meant.
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
fn what_stands_in_a_way_of_going_on_is_said_in_one_line() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    train(&out, &words("--max-steps 2 --save-strategy steps --save-steps 1")).done();
    let (before, elsewhere) = (names(&out), dir.path().join("elsewhere"));
    let elsewhere = format!("--resume-from-checkpoint {}", path(&elsewhere));
    assert_none(
        [
            ("--resume-from-checkpoint --batch-size 4", "was made with batch_size 8, this run has 4"),
            ("--resume-from-checkpoint --gradient-accumulation-steps 2", "with gradient_accumulation_steps 1, this run has 2"),
            ("--resume-from-checkpoint --seed 43", "was made with seed 42, this run has 43"),
            ("--resume-from-checkpoint --no-shuffle", "was made with shuffle true"),
            ("--resume-from-checkpoint --max-length 5", "was made with other training data"),
            ("--resume-from-checkpoint --max-train-samples 50", "was made with other training data"),
            (&elsewhere, "elsewhere/state.json`: no such file"),
        ]
        .map(|(flags, part)| train(&out, &words(flags)).fault(2, part).map(|fault| format!("{flags}: {fault}"))),
    );
    assert_eq!(names(&out), before);
    train(&dir.path().join("empty"), &["--resume-from-checkpoint"]).failed(2, "there is no checkpoint in this folder");
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let no_folder = ["--model", path(&model), "--train-file", path(&file), "--resume-from-checkpoint"];
    ran(TRAIN, &no_folder).failed(2, "`--output-dir`: is not given");
}

#[test]
fn flags_stand_over_a_file_and_a_file_over_a_recipe() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("run.toml");
    let parse = |flags: &str| {
        let flags = format!("train {flags}");
        recipe::parse::<Args>(words(&flags).into_iter().map(Into::into)).map(Option::unwrap)
    };
    // As published: model, data, and the flags that say how.
    let known = |name: &str| {
        let args = parse(&format!("--recipe {name}")).unwrap();
        let text = |path: &Option<PathBuf>| path.as_deref().map_or(String::new(), |path| path.display().to_string());
        let numbers = [args.epochs, args.batch_size.map(|n| n as f64), args.learning_rate, args.weight_decay];
        let numbers = numbers.map(|number| number.unwrap());
        (text(&args.model), text(&args.dataset), args.max_length, args.validation_split, numbers, args.load_best_model_at_end)
    };
    let (distilbert, imdb) = ("distilbert/distilbert-base-uncased".to_string(), "stanfordnlp/imdb".to_string());
    let two = |batch: f64| [2.0, batch, 2e-5, 0.01];
    assert_eq!(known("imdb"), (distilbert.clone(), imdb.clone(), Some(512), None, two(16.0), Some(true)));
    assert_eq!(known("imdb-40k"), (distilbert.clone(), String::new(), Some(512), Some(0.2), two(32.0), Some(true)));
    let bert = "google-bert/bert-base-uncased".to_string();
    assert_eq!(known("imdb-bert"), (bert, imdb, Some(128), Some(0.1), [3.0, 16.0, 2e-5, 0.01], Some(false)));
    assert_eq!(known("emotion"), (distilbert, "dair-ai/emotion".to_string(), None, None, two(64.0), None));
    assert_eq!(parse("").unwrap().recipe.as_deref(), Some("sample"));

    // Each over the next; and what cannot stand together leaves with what it stood under.
    fs::write(&config, "recipe = 'imdb'\nbatch-size = 4\nepochs = 5\nfrom-scratch = true\nclass_weights = [1, 2.5]\n").unwrap();
    let args = parse(&format!("--epochs 7 --config {} --train-file mine.csv", path(&config))).unwrap();
    assert_eq!((args.epochs, args.batch_size, args.eval_batch_size), (Some(7.0), Some(4), Some(16)));
    assert_eq!((args.from_scratch, args.class_weights), (Some(true), Some(ClassWeights::Given(vec![1.0, 2.5]))));
    assert_eq!((args.dataset, args.validation_split_name.is_none()), (None, true));
    let args = parse("--recipe imdb --validation-split 0.3").unwrap();
    assert_eq!((args.validation_split, args.validation_split_name.is_none(), args.dataset.is_some()), (Some(0.3), true, true));
    let args = parse("--recipe sample --validation-split 0.3 --learning_rate 1").unwrap();
    assert_eq!((args.validation_file, args.learning_rate, args.seed), (None, Some(1.0), None));

    // Through the binary, and what is wrong with a file by its line.
    let out = dir.path().join("out");
    fs::write(&config, "max_steps = 1 # one\n\n\"save-strategy\" = 'no'\nquiet = true\nno-shuffle = false\n").unwrap();
    let ran = train(&out, &["--config", path(&config)]).done();
    let settings = read(&out, "training_args.json");
    assert_eq!((&ran.err[..], &settings["max_steps"], &settings["shuffle"]), ("", &json!(1), &json!(true)));
    assert_none(
        [
            ("epochs = 1\n\nepoch = 2", "run.toml:3`: there is no setting epoch; see train --help"),
            ("config = 'other.toml'", "run.toml:1`: there is no setting config"),
            ("help = true", "run.toml:1`: there is no setting help"),
            ("seed = 1\nepochs = 0", "run.toml:2`: invalid value '0' for '--epochs"),
            ("quiet = 3", "run.toml:1`: unexpected value '3' for '--quiet'"),
            (
                "batch-size = 1\nbatch_size = 2",
                "run.toml:2`: the argument '--batch-size <BATCH_SIZE>' cannot be used multiple times",
            ),
            ("seed = 1\nseed = 2", "run.toml:2`: no TOML: duplicate key"),
            ("validation-split = 0.1\nvalidation-file = 'x'", "run.toml:2`: the argument '--validation-"),
            ("seed =", "run.toml:1`: no TOML: "),
            ("[data]\nseed = 1", "run.toml:1`: there is no setting data"),
            ("seed = {a = 1}", "run.toml:1`: seed can be no table"),
            ("seed = 2026-01-01", "run.toml:1`: seed can be no datetime"),
        ]
        .map(|(text, part)| {
            fs::write(&config, text).unwrap();
            train(&out, &["--config", path(&config)]).fault(2, part)
        }),
    );
}

#[test]
fn what_is_wrong_with_predicts_and_evaluates_flags_is_said_in_one_line() {
    let (model, file) = (golden("text/hf"), golden("train/test.csv"));
    let (model, file) = (path(&model), path(&file));
    let dir = TempDir::new().unwrap();
    let scored = |content: &str| {
        let file = dir.path().join("p.jsonl");
        fs::write(&file, content).unwrap();
        ran(EVALUATE, &["--predictions", path(&file)])
    };
    assert_none([
        ran(PREDICT, &[]).fault(2, "--model <DIR_OR_ID>"),
        ran(PREDICT, &["--model", "nowhere", "x"]).fault(2, "`nowhere`: there is no such folder here, nor a model in the cache"),
        ran(PREDICT, &["--model", "./nowhere", "x"]).fault(2, "`./nowhere`: no such folder"),
        ran(PREDICT, &["--model", file, "x"]).fault(2, "test.csv`: is not a folder"),
        predict(&["x", "--text", "y"]).fault(2, "cannot be used with"),
        predict(&["x", "--input", file]).fault(2, "cannot be used with"),
        predict(&["x", "--top-k", "-1"]).fault(2, "invalid value '-1' for '--top-k"),
        predict(&["x", "--max-length", "49"]).fault(2, "49 is over the model's 48 positions"),
        predict(&["x", "--max-length", "2"]).fault(2, "2 leaves no room for text"),
        predict(&["x", "--format", "xml"]).fault(2, "invalid value 'xml'"),
        predict(&["x", "--batch-size", "0"]).fault(2, "invalid value '0' for '--batch-size"),
        predict(&["x", "--device", "cuda"]).fault(3, "`--device cuda`: "),
        predict(&["--input", file, "--text-column", "nope"]).fault(2, "no column is named nope"),
        ran_with(PREDICT, &["--model", model], b"one\ntwo\xff\n").fault(2, "`standard input:2`: not UTF-8"),
        ran_with(PREDICT, &["--model", model], b"one\ntwo\0\n").fault(2, "`standard input:2`: a NUL byte"),
        ran_with(PREDICT, &["--model", model, "--input-format", "jsonl"], b"good\n").fault(2, "`standard input:1`: "),
        ran(EVALUATE, &["--model", model]).fault(2, "--file <FILE>"),
        ran(EVALUATE, &["--file", file]).fault(2, "--model <DIR_OR_ID>"),
        ran(EVALUATE, &["--model", model, "--file", file, "--predictions", "x"]).fault(2, "cannot be used with"),
        ran(EVALUATE, &["--model", model, "--file", file, "--fail-under", "accuracy=1.1"]).fault(1, "accuracy is "),
        ran(EVALUATE, &["--model", model, "--file", file, "--fail-under", "beauty=1"]).fault(2, "there is no metric `beauty`"),
        ran(EVALUATE, &["--model", model, "--file", file, "--label-column", "text"]).fault(2, "cannot be both text and label"),
        scored("").fault(2, "the file is empty"),
        scored("{}").fault(2, "p.jsonl:1`: there is no list of scores"),
        scored("{\"label\": \"POSITIVE\", \"score\": 0.9}").fault(2, "p.jsonl:1`: there is no list of scores"),
        scored("{\"label\": 0, \"scores\": []}").fault(2, "p.jsonl:1`: the scores are neither numbers nor objects"),
        scored("{\"label\": 0, \"scores\": [1]}").fault(2, "one class is no choice"),
        scored("{\"label\": 0, \"scores\": [1, 0]}\n{\"label\": 0, \"scores\": [1, 0, 0]}")
            .fault(2, "p.jsonl:2`: 3 scores where"),
        scored("{\"label\": 0, \"scores\": [1, 0]}\n{\"label\": 2, \"scores\": [1, 0]}")
            .fault(2, "p.jsonl:2`: the label 2 is out of range"),
        scored("{\"label\": 0, \"scores\": [1, 0]}\n{\"scores\": [1, 0]}").fault(2, "p.jsonl:2`: the label is missing"),
        scored("{\"label\": 0, \"scores\": [1, null]}").fault(2, "p.jsonl:1`: "),
        scored("{\"label\": 0, \"scores\": [1, NaN]}").fault(2, "p.jsonl:1`: "),
        scored("{\"label\": \"a\", \"scores\": [1, 0]}").fault(2, "1 names among the labels, 2 scores a row"),
        scored("{\"label\": \"c\", \"scores\": [{\"label\": \"a\", \"score\": 1}, {\"label\": \"b\", \"score\": 0}]}")
            .fault(2, "p.jsonl:1`: the label \"c\" is none of the classes; the classes are a, b"),
    ]);
    // The labels of another data set.
    let other = dir.path().join("other.csv");
    fs::write(&other, "text,label\na,joy\n").unwrap();
    ran(EVALUATE, &["--model", model, "--file", path(&other)])
        .failed(2, "other.csv:2`: the label \"joy\" is none of the classes");
}

#[test]
fn checkpoints_of_every_kind_are_read() {
    let plain = tensors(&golden("text/hf"));
    let rename = |from: [&str; 3], to: [&str; 3]| {
        let name = |name: &str| from.iter().zip(to).fold(name.to_string(), |name, (from, to)| name.replace(from, to));
        plain.iter().cloned().map(|t| (name(&t.0), t.1, t.2, t.3)).collect::<Stored>()
    };
    let extra = [plain.clone(), vec![("vocab_projector.bias".into(), Dtype::I64, vec![1], vec![0; 8])]].concat();
    let (f16, wide_f16) = rounded(&plain, Dtype::F16);
    let (bf16, wide_bf16) = rounded(&plain, Dtype::BF16);
    // What a folder with these weights predicts, and what it is after an update.
    let file = golden("train/train.csv");
    let of = |weights: &Stored, sharded: bool| {
        let (model, out) = (copy("text/hf"), TempDir::new().unwrap());
        save(&model.path().join("model.safetensors"), weights);
        if sharded {
            shard(model.path());
        }
        let args = ["--model", path(model.path())];
        let predicted = ran(PREDICT, &[&args[..], &["--raw-scores", "--top-k", "0", "a good film", "bad"]].concat()).done().out;
        let more = ["--train-file", path(&file), "--output-dir", path(out.path()), "--max-steps", "1", "--save-strategy", "no"];
        ran(TRAIN, &[&args[..], &more].concat()).done();
        (predicted, tensors(out.path()))
    };
    let wanted = of(&plain, false);
    assert!(wanted.1.iter().all(|tensor| tensor.1 == Dtype::F32));
    for (what, weights, sharded, wanted) in [
        ("shards", &plain, true, &wanted),
        ("no prefix", &rename(["distilbert.", "", ""], [""; 3]), false, &wanted),
        ("gamma and beta", &rename(["orm.weight", "orm.bias", ""], ["orm.gamma", "orm.beta", ""]), false, &wanted),
        ("one more", &extra, false, &wanted),
        ("f16", &f16, false, &of(&wide_f16, false)),
        ("bf16", &bf16, false, &of(&wide_bf16, false)),
        ("f16 in shards", &f16, true, &of(&wide_f16, false)),
    ] {
        assert!(of(weights, sharded) == *wanted, "{what}");
    }
    assert_ne!(of(&f16, false).0, wanted.0, "rounding shows");
}

#[test]
fn what_is_wrong_with_a_model_folder_is_said_in_one_line() {
    type Edit = Box<dyn Fn(&Path)>;
    fn remove(name: &'static str) -> Edit {
        Box::new(move |folder| fs::remove_file(folder.join(name)).unwrap())
    }
    fn replace(name: &'static str, content: &'static [u8]) -> Edit {
        Box::new(move |folder| fs::write(folder.join(name), content).unwrap())
    }
    fn config(key: &'static str, value: Value) -> Edit {
        Box::new(move |folder| {
            let mut config = read(folder, "config.json");
            config[key] = value.clone();
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
        })
    }
    fn weights(edit: impl Fn(&mut Vec<u8>) + 'static) -> Edit {
        Box::new(move |folder| {
            let file = folder.join("model.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            edit(&mut bytes);
            fs::write(&file, bytes).unwrap();
        })
    }
    fn stored(edit: impl Fn(&mut Stored) + 'static) -> Edit {
        Box::new(move |folder| {
            let mut tensors = tensors(folder);
            edit(&mut tensors);
            save(&folder.join("model.safetensors"), &tensors);
        })
    }
    /// The header with a piece of its JSON replaced.
    fn json_of_weights(from: &'static str, to: &'static str) -> Edit {
        weights(move |bytes| {
            let (length, rest) = bytes.split_first_chunk().unwrap();
            let (json, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let json = str::from_utf8(json).unwrap();
            assert!(json.contains(from), "{json}");
            let json = json.replacen(from, to, 1);
            *bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat();
        })
    }
    fn sharded(edit: impl Fn(&Path, &mut Value) + 'static) -> Edit {
        Box::new(move |folder| {
            let mut index = shard(folder);
            edit(folder, &mut index);
            fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        })
    }
    const SECOND: &str = "model-00002-of-00002.safetensors";
    let header = |length: u64| move |bytes: &mut Vec<u8>| bytes[..8].copy_from_slice(&length.to_le_bytes());
    // The last tensor of the file is a weight of the head.
    let last = |floats: usize, value: f32| {
        move |bytes: &mut Vec<u8>| {
            let start = bytes.len() - 4 * floats;
            bytes[start..].copy_from_slice(&value.to_le_bytes().repeat(floats));
        }
    };
    let cases: Vec<(Edit, i32, &str)> = vec![
        (remove("config.json"), 2, "config.json`: no such file"),
        (remove("model.safetensors"), 2, "model.safetensors"),
        (remove("tokenizer.json"), 2, "there is no tokenizer.json in this folder"),
        (replace("config.json", b""), 2, "config.json`: "),
        (replace("config.json", b"{\"model_type\": "), 2, "config.json`: "),
        (replace("tokenizer.json", b"{}"), 2, "tokenizer.json`: "),
        (replace("tokenizer.json", b"\xff"), 2, "tokenizer.json`: "),
        (replace("tokenizer_config.json", b"no"), 2, "tokenizer_config.json`: "),
        (config("model_type", json!("gpt2")), 2, "gpt2"),
        (config("dim", json!(30)), 2, "config.json`: "),
        (config("n_layers", json!(0)), 2, "config.json`: "),
        (config("n_layers", json!(1_000_000)), 2, "config.json`: "),
        (config("n_layers", json!(3)), 2, "layer.2"),
        (config("vocab_size", json!(300)), 2, "word_embeddings"),
        (config("vocab_size", json!(298)), 2, "tokenizer.json`: has ids up to 298"),
        (config("activation", json!("swish")), 2, "swish"),
        (config("id2label", json!({"0": "a", "2": "b"})), 2, "config.json`: "),
        (config("max_position_embeddings", json!(64)), 2, "position_embeddings"),
        (weights(|bytes| bytes.truncate(bytes.len() - 1)), 2, "model.safetensors`: "),
        (weights(|bytes| bytes.push(0)), 2, "model.safetensors`: "),
        (weights(|bytes| bytes.clear()), 2, "model.safetensors`: "),
        (weights(|bytes| bytes.truncate(7)), 2, "model.safetensors`: "),
        (weights(header(0)), 2, "model.safetensors`: "),
        (weights(header(200_000_000)), 2, "model.safetensors`: "),
        (weights(header(u64::MAX)), 2, "model.safetensors`: "),
        (weights(|bytes| bytes[8] = 0xff), 2, "model.safetensors`: "),
        (weights(|bytes| bytes[8] = b'x'), 2, "model.safetensors`: has a header that is not JSON"),
        (json_of_weights("[0,8]", "[4,8]"), 2, "classifier.bias starts at byte 4, not 0: it leaves a hole"),
        (json_of_weights("[8,", "[4,"), 2, "starts at byte 4, not 8: it overlaps"),
        (json_of_weights("\"shape\":[2]", "\"shape\":[9223372036854775808,2]"), 2, "classifier.bias of [9223372036854775808, 2]"),
        (
            json_of_weights("\"classifier.bias\":", "\"classifier.weight\":{},\"classifier.bias\":"),
            2,
            "model.safetensors`: has a header that is not JSON of tensors (missing field",
        ),
        (json_of_weights("\"classifier.bias\"", "\"classifier.weight\""), 2, "classifier.weight stands twice"),
        (stored(|tensors| tensors.retain(|t| !t.0.ends_with("lin2.bias"))), 2, "lacks 2 of the model's 40 tensors, among them"),
        (stored(|tensors| tensors[1].2.reverse()), 2, "tensor classifier.weight is [32, 2] where [2, 32] is needed"),
        (
            stored(|tensors| tensors.iter_mut().for_each(|t| (t.1, t.3) = (Dtype::F64, t.3.repeat(2)))),
            2,
            "word_embeddings.weight is F64 where F32, F16 or BF16 is needed",
        ),
        (
            stored(|tensors| tensors.iter_mut().for_each(|t| (t.1, t.3) = (Dtype::F16, [0x00, 0x7c].repeat(t.3.len() / 4)))),
            2,
            "word_embeddings.weight holds inf at element 0",
        ),
        (
            sharded(|folder, _| fs::remove_file(folder.join(SECOND)).unwrap()),
            2,
            "model-00002-of-00002.safetensors`: no such file",
        ),
        (
            sharded(|folder, _| fs::write(folder.join(SECOND), "cut").unwrap()),
            2,
            "model-00002-of-00002.safetensors`: has 3 bytes",
        ),
        (sharded(|_, index| index["weight_map"]["ghost"] = json!(SECOND)), 2, "index.json`: lists ghost in model-00002"),
        (sharded(|_, index| index["weight_map"]["ghost"] = json!("../x")), 2, "index.json`: lists the shard \"../x\""),
        (sharded(|_, index| *index = json!([])), 2, "index.json`: is not an index of shards"),
        (
            Box::new(|folder| fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap()),
            2,
            "its weights are a pickle, pytorch_model.bin",
        ),
        (replace("model.safetensors", b"PK\x03\x04 a pickle of PyTorch"), 2, "model.safetensors`: "),
        (weights(last(1, f32::NAN)), 2, "holds NaN"),
        (weights(last(1, f32::NEG_INFINITY)), 2, "pre_classifier.weight"),
        (weights(last(1024, f32::MAX)), 1, "`text 0`: the logits are not finite"),
    ];
    let out = TempDir::new().unwrap();
    assert_none(cases.iter().enumerate().map(|(i, (edit, code, part))| {
        let model = copy("text/hf");
        edit(model.path());
        let (out, output) = (out.path().join("out"), out.path().join("out.jsonl"));
        let predicted = ran(PREDICT, &["--model", path(model.path()), "--output", path(&output), "good"]).fault(*code, part);
        let file = golden("train/train.csv");
        let args =
            ["--model", path(model.path()), "--train-file", path(&file), "--output-dir", path(&out), "--logging-steps", "1"];
        let trained = || if *code == 2 { ran(TRAIN, &args).fault(2, part) } else { None };
        let fault = predicted.or_else(trained).map(|fault| format!("case {i}: {fault}"));
        fault.or((out.exists() || output.exists()).then(|| format!("case {i}: {part} left something")))
    }));
    // What only helps people is not needed.
    for name in ["vocab.txt", "special_tokens_map.json", "tokenizer_config.json"] {
        let model = copy("text/hf");
        remove(name)(model.path());
        ran(PREDICT, &["--model", path(model.path()), "good"]).done();
    }
}
