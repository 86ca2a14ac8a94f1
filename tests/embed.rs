//! Vectors against golden hidden states, on every layer and both backends; the probe against scikit-learn.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::embed::probe::Probe;
use warpfit::model::config::Config;
use warpfit::model::plan::Use;
use warpfit::model::{Hyper, Model};
use warpfit::ops::Rows;

use crate::checkpoint::{save, tensors};
use crate::cli::{PREDICT, Ran, path, run};
use crate::fixtures::{On, Tensors, golden, max_abs_difference, pack};

pub const EMBED: &str = env!("CARGO_BIN_EXE_embed");
const CASES: [&str; 2] = ["distilbert-a", "bert-a"];

fn embed(model: &Path, more: &[&str], stdin: &str) -> Ran {
    run(Command::new(EMBED).args(["--model", path(model)]).args(more).env("HF_HUB_OFFLINE", "1"), stdin.as_bytes())
}

/// The golden states of a layer: those of every token of each sequence.
fn states(case: &str, layer: usize) -> Vec<Vec<f64>> {
    let (inputs, forward) =
        (Tensors::read(&format!("{case}/inputs.safetensors")), Tensors::read(&format!("{case}/forward.safetensors")));
    let name = if layer == 0 { "embeddings".to_string() } else { format!("layer.{}", layer - 1) };
    let [_, width, dim] = forward.shape(&name).try_into().unwrap();
    let lengths = inputs.get("attention_mask").chunks_exact(width).map(|mask| mask.iter().sum::<f64>() as usize);
    lengths.zip(forward.get(&name).chunks_exact(width * dim)).map(|(len, states)| states[..len * dim].to_vec()).collect()
}

/// The golden inputs as lines of token ids.
fn lines(case: &str) -> String {
    let inputs = Tensors::read(&format!("{case}/inputs.safetensors"));
    let (ids, mask) = (inputs.ints("input_ids"), inputs.ints("attention_mask"));
    let width = inputs.shape("input_ids")[1];
    let row = |(ids, mask): (&[i32], &[i32])| {
        let ids: Vec<i32> = ids.iter().zip(mask).filter(|(_, mask)| **mask == 1).map(|(id, _)| *id).collect();
        json!({"input_ids": ids}).to_string() + "\n"
    };
    ids.chunks_exact(width).zip(mask.chunks_exact(width)).map(row).collect()
}

/// A model cut behind each layer, planned for inference: one layer's buffers serve all.
fn hidden(on: On, case: &str) {
    let inputs = Tensors::read(&format!("{case}/inputs.safetensors"));
    let weights = Tensors::read(&format!("{case}/hf/model.safetensors"));
    let batch = pack(&inputs.ints("input_ids"), &inputs.ints("attention_mask"), &[], &inputs.ints("labels"));
    let config = Config::read(&golden(case).join("hf/config.json")).unwrap();
    for (layer, last_rows) in [(0, Rows::Tokens), (1, Rows::Tokens), (1, Rows::Seqs), (2, Rows::Tokens), (2, Rows::Seqs)] {
        let config = Config { layers: layer, ..config.clone() };
        let (tokens, seqs) = (batch.rows() + 5, batch.seqs() + 1);
        let what_for = Use { train: false, last_rows, tokens, seqs, arithmetic: on.arithmetic() };
        let mut model = Model::new(&config, what_for, Hyper::default(), on.backend()).unwrap();
        for slot in model.plan.slots.clone() {
            model.write(slot.view, weights.get(&slot.param.name)).unwrap();
        }
        let keep = if last_rows == Rows::Seqs { config.dim } else { usize::MAX };
        let want: Vec<f64> = states(case, layer).iter().flat_map(|s| s[..keep.min(s.len())].to_vec()).collect();
        let difference = max_abs_difference(&model.hidden(&batch).unwrap(), &want);
        assert!(difference < 2e-5, "{on:?} {case} layer {layer} {last_rows:?}: {difference:e}");
    }
}

#[test]
fn hidden_states_of_every_layer() {
    CASES.iter().for_each(|case| hidden(On::Cpu, case));
}

#[test]
fn hidden_states_of_every_layer_on_cuda() {
    CASES.iter().for_each(|case| hidden(On::Cuda, case));
}

/// The numbers that a file holds, row by row.
fn numbers(file: &Path) -> Vec<f64> {
    let bytes = fs::read(file).unwrap();
    let floats = |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect();
    match file.extension().unwrap().to_str().unwrap() {
        "npy" => {
            let header = String::from_utf8_lossy(&bytes[10..128]);
            assert!(bytes.starts_with(b"\x93NUMPY\x01\x00\x76\x00"), "{header}");
            let rest = "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 64), }";
            assert!(header.starts_with(rest) && header.ends_with(" \n"), "{header}");
            floats(&bytes[128..])
        }
        "safetensors" => {
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let tensor = tensors.tensor("embeddings").unwrap();
            assert_eq!(tensor.shape(), [6, 64]);
            floats(tensor.data())
        }
        _ => {
            let lines = String::from_utf8(bytes).unwrap();
            let rows = lines.lines().enumerate().map(|(row, line)| {
                let line: Value = serde_json::from_str(line).unwrap();
                assert_eq!(line["id"], row);
                Vec::<f64>::from_iter(line["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()))
            });
            rows.flatten().collect()
        }
    }
}

#[test]
fn embed_writes_the_vectors_of_any_layer() {
    let dir = TempDir::new().unwrap();
    let input = dir.path().join("in.jsonl");
    for case in CASES {
        // A base model: the folder without its head.
        let model = dir.path().join(case);
        let mut tensors = tensors(&golden(&format!("{case}/hf")));
        tensors.retain(|tensor| !["classifier", "pooler"].iter().any(|part| tensor.0.contains(part)));
        fs::create_dir(&model).unwrap();
        fs::copy(golden(&format!("{case}/hf/config.json")), model.join("config.json")).unwrap();
        save(&model.join("model.safetensors"), &tensors);
        fs::write(&input, lines(case)).unwrap();
        for (layer, index, pooling, normalize, name) in [
            ("-1", 2, "cls", false, "a.npy"),
            ("2", 2, "mean", false, "a.safetensors"),
            ("1", 1, "cls", true, "a.jsonl"),
            ("-2", 1, "mean", true, "b.npy"),
            ("0", 0, "cls", false, "b.jsonl"),
            ("-3", 0, "mean", false, "b.safetensors"),
        ] {
            let output = dir.path().join(name);
            let args = ["--input", path(&input), "--output", path(&output), "--layer", layer, "--pooling", pooling];
            // Batches of one row or two, and all at once.
            let small = ["--normalize", "--max-batch-tokens", "1"];
            embed(&model, &[&args[..], if normalize { &small } else { &[] }].concat(), "").done();
            let wanted = states(case, index).into_iter().flat_map(|states| {
                let rows = if pooling == "cls" { 1 } else { states.len() / 64 };
                let mut vector: Vec<f64> =
                    (0..64).map(|i| (0..rows).map(|row| states[row * 64 + i]).sum::<f64>() / rows as f64).collect();
                let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
                vector.iter_mut().for_each(|x| *x /= if normalize { length } else { 1.0 });
                vector
            });
            let difference = max_abs_difference(&numbers(&output), &wanted.collect::<Vec<f64>>());
            assert!(difference < 2e-5, "{case} {name}: {difference:e}");
        }
    }
}

#[test]
fn embed_takes_lines_and_refuses_what_it_cannot_do() {
    let model = golden("text/hf");
    let ran = embed(&model, &["--pooling", "mean"], "a good film\n\n").done();
    let rows: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row["embedding"].as_array().unwrap().len()).collect::<Vec<_>>(), [32, 32]);
    assert_ne!(rows[0]["embedding"], rows[1]["embedding"]);

    let dir = TempDir::new().unwrap();
    let file = dir.path().join("a.txt");
    fs::write(&file, "good\n").unwrap();
    let file = path(&file);
    embed(&model, &["--layer", "3"], "x").failed(2, "`--layer`: 3 is not among the model's 2 layers");
    embed(&model, &["--layer", "-4"], "x").failed(2, "give 0 (the embeddings) to 2");
    embed(&model, &["--format", "npy"], "x").failed(2, "`--format`: only jsonl goes to standard output");
    embed(&model, &["--input", file, "--output", file], "").failed(2, "is the file of --input");
    embed(&model, &["--probe"], "").failed(2, "--train-file");
    embed(&model, &["--train-file", file], "").failed(2, "--probe");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
}

/// 40 rows of 3 features, and labels that they do not quite separate; class 1 of `classes` has no row.
fn made_up(classes: u32) -> (Vec<f32>, Vec<u32>) {
    let labels: Vec<u32> = (0..40).map(|row| (row * row + row / 7) % classes).map(|c| if c == 1 { 0 } else { c }).collect();
    let features = (0..40).flat_map(|row: i32| {
        let label = labels[row as usize] as f32;
        [((row * 37 % 17) as f32 - 8.0) / 4.0 + label * 0.5, ((row * 29 % 13) as f32 - 6.0) / 3.0 - label, (row % 5) as f32 * 2.0]
    });
    (features.collect(), labels)
}

#[test]
fn the_probe_is_scikit_learns_logistic_regression() {
    // LogisticRegression(C=1, tol=1e-10, max_iter=100000): a row of coefficients and the intercept for each logit.
    let two: &[f64] = &[0.499369, -1.235906, 0.234827, -3.180650];
    let three: &[f64] = &[
        -0.447898, 1.310311, -0.156454, 3.058914, //
        0.190558, -0.489273, 0.095960, -0.787745, //
        0.257340, -0.821037, 0.060495, -2.271168,
    ];
    for (classes, wanted) in [(3, two), (4, three)] {
        let (features, labels) = made_up(classes);
        let probe = Probe::fit(&features, &labels, classes as usize, |_| ()).unwrap();
        assert!(probe.converged());
        let difference = max_abs_difference(&probe.weights, wanted);
        assert!(difference < 1e-3, "{difference:e}: {:?}", probe.weights);
        // A class without rows is never predicted; the others add up.
        for scores in probe.scores(&features).chunks_exact(classes as usize) {
            assert!(scores[1] == 0.0 && (scores.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{scores:?}");
        }
    }
    assert!(Probe::fit(&[1.0, 2.0], &[1, 1], 2, |_| ()).is_err(), "one class is no problem to solve");
}

#[test]
fn the_probe_is_shown_beside_the_majority() {
    let dir = TempDir::new().unwrap();
    let (train, test) = (golden("train/train.csv"), golden("train/test.csv"));
    let args = ["--probe", "--train-file", path(&train), "--test-file", path(&test), "--output-dir", path(dir.path())];
    let ran = embed(&golden("train/hf_init"), &args, "").done();
    let file: Value = serde_json::from_slice(&fs::read(dir.path().join("probe.json")).unwrap()).unwrap();
    let shown = |metrics: &Value| {
        format!("{:.4}       {:.4}", metrics["accuracy"].as_f64().unwrap(), metrics["weighted"]["f1"].as_f64().unwrap())
    };
    let (majority, probe) = (&file["majority"]["metrics"], &file["probe"]);
    assert!(ran.out.contains(&format!("logistic regression    {}", shown(probe))), "{}", ran.out);
    assert!(
        ran.out.contains(&shown(majority)) && ran.out.contains("support") && ran.out.contains("true \\ predicted"),
        "{}",
        ran.out
    );
    assert_eq!((&file["converged"], &file["majority"]["class"]), (&json!(true), &file["classes"][0]));
    assert!(probe["accuracy"].as_f64() > majority["accuracy"].as_f64(), "{file}");
}

#[test]
fn predict_keeps_the_order_of_a_large_file() {
    let dir = TempDir::new().unwrap();
    let input = dir.path().join("many.txt");
    // Of many lengths, and more than are read at a time.
    let text =
        |row: usize| "the film was good and bad ".repeat(row * row % 9) + if row.is_multiple_of(3) { "good" } else { "bad" };
    fs::write(&input, (0..9000).map(|row| text(row) + "\n").collect::<String>()).unwrap();
    let predict = |more: &[&str]| -> Vec<Value> {
        let args =
            ["--model", path(&golden("text/hf")), "--input", path(&input), "--raw-scores", "--top-k", "0"].map(String::from);
        let ran = run(Command::new(PREDICT).args(args).args(more).env("HF_HUB_OFFLINE", "1"), b"").done();
        ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (rows, alone) = (predict(&[]), predict(&["--batch-size", "1"]));
    assert_eq!((rows.len(), alone.len()), (9000, 9000));
    for (row, (got, alone)) in rows.iter().zip(&alone).enumerate() {
        assert_eq!((&got["id"], &got["tokens"]), (&json!(row), &alone["tokens"]));
        for (got, alone) in got["scores"].as_array().unwrap().iter().zip(alone["scores"].as_array().unwrap()) {
            let difference = got["score"].as_f64().unwrap() - alone["score"].as_f64().unwrap();
            assert!(got["label"] == alone["label"] && difference.abs() < 1e-6, "row {row}: {got} and alone {alone}");
        }
    }
}
