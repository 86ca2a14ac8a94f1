//! The commands from outside: their files and output, and one clear line for every error.

mod card;
mod describe;
mod evaluate;
mod files;
mod hugging_face;
mod labels;
mod models;
mod predict;
mod published;
mod runs;
mod saving;
mod terminal;
mod train;
mod version;

use crate::fixtures::golden;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

pub const TRAIN: &str = "train";
pub const PREDICT: &str = "predict";
pub const EVALUATE: &str = "evaluate";

/// A command of the program; `train` by its own name.
pub fn program(command: &str) -> Command {
    if command == TRAIN {
        return without_colour_settings(Command::new(env!("CARGO_BIN_EXE_train")));
    }
    let mut program = without_colour_settings(Command::new(env!("CARGO_BIN_EXE_warpfit")));
    program.arg(command);
    program
}

/// Colour as the test has it, whatever the shell or the CI that runs the tests has asked for.
pub fn without_colour_settings(mut command: Command) -> Command {
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(variable);
    }
    command
}

pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

fn ran_with(command: &str, args: &[&str], stdin: &[u8]) -> Ran {
    // Only the tests of the hub use a network.
    run(program(command).args(args).env("HF_HUB_OFFLINE", "1"), stdin)
}

pub fn run(command: &mut Command, stdin: &[u8]) -> Ran {
    // The tests do not use the user's cache.
    if command.get_envs().all(|(name, _)| name != "WARPFIT_CACHE") {
        command.env("WARPFIT_CACHE", "");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut pipe, stdin) = (child.stdin.take().unwrap(), stdin.to_vec());
    // It may end before reading everything.
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

    /// Ended with `code` and one line of error with a place, `part` and a remedy.
    #[track_caller]
    pub fn failed(self, code: i32, part: &str) -> Ran {
        assert_eq!(self.fault(code, part), None);
        self
    }

    /// Ended with `code`.
    #[track_caller]
    pub fn failed_with(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "{}", self.err);
        self
    }

    /// How its failure differs from the expected one.
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
            () if self.err.lines().last() != Some(line) => "output after the error",
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

/// Names of the entries of a folder.
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

/// Predictions of the text model, or of the `--model` in `more`.
fn predict(more: &[&str]) -> Ran {
    let model = golden("text/hf");
    ran(PREDICT, &[&["--model", path(&model)], more].concat())
}

/// A copy of a model folder, to be modified.
fn copy(folder: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in names(&golden(folder)) {
        fs::copy(golden(folder).join(&name), copy.path().join(&name)).unwrap();
    }
    copy
}

/// The result of the golden run by Hugging Face's Trainer, with its tokenizer.
fn trained() -> TempDir {
    let model = copy("train/hf_final");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden("train/hf_init").join(name), model.path().join(name)).unwrap();
    }
    model
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

/// The faults found in a table of cases, all at once.
fn assert_none(faults: impl IntoIterator<Item = Option<String>>) {
    let faults: Vec<String> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_missing_or_unknown_command_is_reported_in_one_line() {
    let warpfit = |args: &[&str]| run(without_colour_settings(Command::new(env!("CARGO_BIN_EXE_warpfit"))).args(args), b"");
    warpfit(&[]).failed(2, "no command is given; see warpfit --help");
    warpfit(&["trian"]).failed(2, "unrecognized subcommand 'trian'");
    warpfit(&["push", "nowhere", "owner/name"]).failed(2, "`nowhere");
}
