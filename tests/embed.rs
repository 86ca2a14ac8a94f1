//! Vectors compared with golden hidden states, on every layer and both backends; the probe with scikit-learn; projections with
//! known properties of synthetic vectors.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::infer::pca::Pca;
use warpfit::infer::probe::Probe;
use warpfit::infer::tsne::{Neighbours, tsne};
use warpfit::model::config::Config;
use warpfit::model::infer::Wanted;
use warpfit::model::plan::ModelSpec;
use warpfit::model::{Hyperparameters, Model};
use warpfit::ops::Rows;

use crate::checkpoint::{save, tensors};
use crate::cli::{PREDICT, Ran, path, program, run};
use crate::fixtures::{On, Tensors, golden, max_abs_difference, pack};
use crate::report::assert_well_formed;

pub const EMBED: &str = "embed";
const CASES: [&str; 2] = ["distilbert-a", "bert-a"];

fn embed(model: &Path, more: &[&str], stdin: &str) -> Ran {
    run(program(EMBED).args(["--model", path(model)]).args(more).env("HF_HUB_OFFLINE", "1"), stdin.as_bytes())
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

/// A model truncated after each layer, planned for inference: one layer's buffers serve all.
fn hidden(on: On, case: &str) {
    let inputs = Tensors::read(&format!("{case}/inputs.safetensors"));
    let weights = Tensors::read(&format!("{case}/hf/model.safetensors"));
    let batch = pack(&inputs.ints("input_ids"), &inputs.ints("attention_mask"), &[], &inputs.ints("labels"));
    let config = Config::read(&golden(case).join("hf/config.json")).unwrap();
    for (layer, last_rows) in [(0, Rows::Tokens), (1, Rows::Tokens), (1, Rows::Cls), (2, Rows::Tokens), (2, Rows::Cls)] {
        let config = Config { layers: layer, ..config.clone() };
        let (tokens, seqs) = (batch.tokens() + 5, batch.seqs() + 1);
        let spec = ModelSpec { train: false, last_rows, tokens, seqs, arithmetic: on.arithmetic() };
        let mut model = Model::new(&config, spec, Hyperparameters::default(), on.backend()).unwrap();
        for slot in model.plan.slots.clone() {
            model.write(slot.view, weights.get(&slot.param.name)).unwrap();
        }
        let keep = if last_rows == Rows::Cls { config.dim } else { usize::MAX };
        let want: Vec<f64> = states(case, layer).iter().flat_map(|s| s[..keep.min(s.len())].to_vec()).collect();
        let difference = max_abs_difference(&model.infer(&batch, Wanted::HIDDEN).unwrap().hidden, &want);
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

/// The numbers in a file, row by row.
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
            // Batches of one or two rows, and all at once.
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
fn embed_reads_lines_and_refuses_invalid_flags() {
    let model = golden("text/hf");
    let ran = embed(&model, &["--pooling", "mean"], "a good film\n\n").done();
    let rows: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row["embedding"].as_array().unwrap().len()).collect::<Vec<_>>(), [32, 32]);
    assert_ne!(rows[0]["embedding"], rows[1]["embedding"]);
    let dashes = embed(&model, &["--pooling", "mean", "--input", "-", "--output", "-"], "a good film\n\n").done();
    assert_eq!(dashes.out, ran.out);

    let dir = TempDir::new().unwrap();
    let file = dir.path().join("a.txt");
    fs::write(&file, "good\n").unwrap();
    let file = path(&file);
    embed(&model, &["--layer", "3"], "x").failed(2, "`--layer`: 3 is not among the model's 2 layers");
    embed(&model, &["--layer", "-4"], "x").failed(2, "choose 0 (the embeddings) to 2");
    embed(&model, &["--format", "npy"], "x").failed(2, "`--format`: only jsonl goes to standard output");
    embed(&model, &["--input", file, "--output", file], "").failed(2, "is a file that is read");
    embed(&model, &["--probe"], "").failed(2, "--train-file");
    embed(&model, &["--train-file", file], "").failed(2, "--probe");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no other file is left");
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
fn the_probe_matches_scikit_learns_logistic_regression() {
    // LogisticRegression(C=1, tol=1e-10, max_iter=100000): coefficients and intercept of each logit.
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
        // A class without rows is never predicted; the others sum to 1.
        for scores in probe.scores(&features).chunks_exact(classes as usize) {
            assert!(scores[1] == 0.0 && (scores.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{scores:?}");
        }
    }
    assert!(Probe::fit(&[1.0, 2.0], &[1, 1], 2, |_| ()).is_err(), "a single class is refused");
}

#[test]
fn the_probe_is_compared_with_the_majority() {
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

    let other = dir.path().join("other.csv");
    fs::write(&other, "text,label\na good film,joy\na bad film,fear\n").unwrap();
    let args = ["--probe", "--train-file", path(&train), "--test-file", path(&other)];
    embed(&golden("train/hf_init"), &args, "").failed(2, "train.csv`: the labels are numbers (0, 1), but names in ");
    let named = dir.path().join("named.csv");
    fs::write(&named, "text,label\na good film,love\na bad film,fear\n").unwrap();
    let args = ["--probe", "--train-file", path(&named), "--test-file", path(&other)];
    embed(&golden("train/hf_init"), &args, "").failed(2, "named.csv`: no text has the label joy, which texts of ");
}

#[test]
fn the_components_of_a_rotated_ellipsoid() {
    // Two points on each half-axis, off the origin. The largest entry of an axis is positive, as in a component.
    let axes = [[2.0, 3.0, 6.0], [-3.0, 6.0, -2.0], [6.0, 2.0, -3.0]].map(|axis| axis.map(|x: f64| x / 7.0));
    let along = [(0, 3.0), (0, -3.0), (1, 2.0), (1, -2.0), (2, 1.0), (2, -1.0)];
    let vectors = along.iter().flat_map(|&(axis, x)| [0, 1, 2].map(|i| (5.0 + i as f64 + axes[axis][i] * x) as f32));
    let Pca { points, shares } = Pca::of(&vectors.collect::<Vec<f32>>(), 3);
    // 2 * 9, 2 * 4 and 2 * 1 of 28.
    assert!(max_abs_difference(&shares, &[18.0 / 28.0, 8.0 / 28.0]) < 1e-6, "{shares:?}");
    let wanted = along.map(|(axis, x)| [0, 1].map(|i| if axis == i { x } else { 0.0 }));
    assert!(max_abs_difference(points.as_flattened(), wanted.as_flattened()) < 1e-5, "{points:?}");

    // No variance, or in one direction only, or a single vector.
    for (vectors, dim, share) in [(&[0.1f32, 7.0].repeat(3)[..], 2, 0.0), (&[1.0, 2.0, 4.0], 1, 1.0), (&[1.0, 2.0], 2, 0.0)] {
        let Pca { points, shares } = Pca::of(vectors, dim);
        assert!(shares == [share, 0.0] && points.iter().all(|point| point[1] == 0.0 && point[0].is_finite()), "{points:?}");
    }
}

#[test]
fn t_sne_keeps_clusters_apart_on_any_number_of_threads() {
    // Three clusters of 40 in 19 dimensions; with noise alone a third would have a neighbour of their own cluster.
    let (rows, dim) = (120, 19);
    let noise = |i: usize| ((i as f64 * 12.9898).sin() * 43758.5453).fract() as f32;
    let vectors: Vec<f32> = (0..rows * dim).map(|i| noise(i) + if i % dim == i / dim % 3 { 3.0 } else { 0.0 }).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let neighbours = Neighbours::of(&vectors, dim, || ());
            tsne(&neighbours, &Pca::of(&vectors, dim).points, || ())
        })
    };
    let (points, divergence) = run(1);
    let bits = |points: &[[f64; 2]]| points.as_flattened().iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
    for threads in [2, 3] {
        let (others, other) = run(threads);
        assert_eq!((bits(&points), divergence.to_bits()), (bits(&others), other.to_bits()), "{threads} threads");
    }
    let squared = |a: usize, b: usize| (points[a][0] - points[b][0]).powi(2) + (points[a][1] - points[b][1]).powi(2);
    for row in 0..rows {
        let others = (0..rows).filter(|&other| other != row);
        let nearest = others.min_by(|&a, &b| squared(row, a).total_cmp(&squared(row, b))).unwrap();
        assert_eq!(row % 3, nearest % 3, "{row} lies beside {nearest}");
    }
    // With as many neighbours as a cluster has points, only the differences within a cluster are lost.
    assert!(divergence > 0.0 && divergence < 0.8, "{divergence}");

    // Too few for neighbours, or all equal.
    for rows in [1, 2, 3, 5] {
        for vectors in [vec![1.0; rows * dim], vectors[..rows * dim].to_vec()] {
            let neighbours = Neighbours::of(&vectors, dim, || ());
            let (points, divergence) = tsne(&neighbours, &Pca::of(&vectors, dim).points, || ());
            assert_eq!(points.len(), rows);
            assert!(divergence.is_finite() && points.as_flattened().iter().all(|x| x.is_finite()), "{points:?}");
        }
    }
}

#[test]
fn a_projection_has_one_panel_per_class_and_one_line_per_text() {
    let dir = TempDir::new().unwrap();
    let (model, input, out) = (golden("text/hf"), dir.path().join("in.csv"), dir.path().join("out"));
    let text = |row: usize| ["good ", "bad ", "film the ", "a "][row % 4].repeat(1 + row * 7 % 11);
    let project = |file: &str, method: &str, more: &[&str]| {
        fs::write(&input, file).unwrap();
        let args = ["--project", method, "--input", path(&input), "--output-dir", path(&out)];
        embed(&model, &[&args[..], more].concat(), "")
    };
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    for (classes, rows, method) in
        [(1, 1, "pca"), (1, 2, "tsne"), (2, 9, "pca"), (6, 40, "tsne"), (30, 60, "pca"), (0, 7, "tsne")]
    {
        let hostile = |row: usize| format!("=\"\"{}\"\" <b> & 'x'", row % classes.max(1));
        let file: String = (0..rows).map(|row| format!("x{row},{},\"{}\"\n", text(row), hostile(row))).collect();
        let header = if classes > 0 { "id,text,label\n" } else { "id,text,note\n" };
        let ran = project(&format!("{header}{file}"), method, &[]).done();
        assert!(ran.out.contains("%") || ran.out.contains("KL divergence"), "{}", ran.out);
        let svg = read(&format!("{method}.svg"));
        assert_well_formed(&format!("{method} of {classes} classes"), &svg);
        assert_eq!(svg.matches("<use ").count(), classes.max(1), "{classes} classes");
        assert!(svg.matches("the densest 95 %").count() == classes.max(1), "each has points");
        let mut csv = csv::Reader::from_path(out.join(format!("{method}.csv"))).unwrap();
        let lines: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
        assert_eq!(lines.len(), rows);
        for (row, line) in lines.iter().enumerate() {
            let label = if classes > 0 { format!("'=\"{}\" <b> & 'x'", row % classes) } else { String::new() };
            assert_eq!((&line[0], &line[1]), (&*format!("x{row}"), &*label));
            assert!(line[2].parse::<f32>().unwrap().is_finite() && line[3].parse::<f32>().unwrap().is_finite());
        }
    }

    // A class of the model that is not in the file; lines without labels.
    let ran = project("text,label\ngood,POSITIVE\nbad,POSITIVE\ngood bad,POSITIVE\n", "pca", &[]).done();
    let figures: Value = serde_json::from_str(&read("pca.json")).unwrap();
    let shares = figures["explained_variance_ratio"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
    assert!((shares.sum::<f64>() - 1.0).abs() < 1e-9, "three points lie in a plane: {figures}");
    assert!(ran.out.contains("together 100.0 %"), "{}", ran.out);
    let svg = read("pca.svg");
    assert_eq!((svg.matches("<use ").count(), svg.matches("the densest 95 %").count()), (2, 1));
    assert!(svg.contains("PCA of 3 texts") && svg.contains("component 2: ") && svg.contains(">POSITIVE<"));
    project("good;1\nbad;2\n", "pca", &["--input-format", "text"]).done();
    assert_eq!(read("pca.csv").lines().map(|line| line.split(',').nth(1).unwrap()).collect::<Vec<_>>(), ["label", "", ""]);

    let unlabelled = dir.path().join("in.txt");
    fs::write(&unlabelled, "good;not too long\nbad film;much too long\n").unwrap();
    let ran = embed(&model, &["--project", "pca", "--input", path(&unlabelled), "--output-dir", path(&out)], "").done();
    assert_eq!(read("pca.csv").lines().count(), 3);
    assert_eq!(ran.err.matches("whole lines are read as texts; if semicolons").count(), 1, "{}", ran.err);

    // More texts than requested: the seed chooses.
    let many: String = (0..50).map(|row| format!("{},c{}\n", text(row), row % 2)).collect();
    let drawn = |seed: &str| {
        let ran = project(&format!("text,label\n{many}"), "pca", &["--max-samples", "20", "--seed", seed]).done();
        assert!(ran.err.contains(&format!("20 of 50 texts, sampled with --seed {seed}")), "{}", ran.err);
        read("pca.csv")
    };
    let (first, second) = (drawn("1"), drawn("2"));
    assert!(first != second && first == drawn("1") && first.lines().count() == 21);
}

#[test]
fn invalid_projections_are_refused() {
    let dir = TempDir::new().unwrap();
    let (model, out, input) = (golden("text/hf"), dir.path().join("out"), dir.path().join("a.csv"));
    let out = path(&out);
    let fails = |args: &[&str], stdin: &str, part: &str| drop(embed(&model, args, stdin).failed(2, part));
    fails(&["--project", "umap", "--output-dir", out], "a", "possible values: pca, tsne");
    fails(&["--project", "pca"], "a", "--output-dir");
    fails(&["--project", "pca", "--output-dir", out, "--probe"], "a", "--probe");
    fails(&["--project", "pca", "--output-dir", out, "--output", "a.npy"], "a", "--output");
    fails(&["--output-dir", out], "a", "--project");
    fails(&["--seed", "1"], "a", "--project");
    fails(&["--project", "pca", "--output-dir", out, "--max-samples", "0"], "a", "a whole number from 1");
    assert!(!Path::new(out).exists());
    fails(&["--project", "pca", "--output-dir", out], "", "`standard input`: no rows");
    for (content, part) in [("text,label\n", "no rows"), ("text,label\na,\n", "a.csv:2`: the label is missing")] {
        fs::write(&input, content).unwrap();
        fails(&["--project", "tsne", "--output-dir", out, "--input", path(&input)], "", part);
    }
    assert_eq!(fs::read_dir(out).unwrap().count(), 0, "no partial output");

    // Weights so large that a state overflows.
    let broken = dir.path().join("broken");
    fs::create_dir(&broken).unwrap();
    for file in fs::read_dir(&model).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), broken.join(file.file_name())).unwrap();
    }
    let mut tensors = tensors(&model);
    for (name, _, _, bytes) in &mut tensors {
        if name.ends_with("output_layer_norm.weight") {
            bytes.chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&f32::MAX.to_le_bytes()));
        }
    }
    save(&broken.join("model.safetensors"), &tensors);
    embed(&broken, &["--project", "tsne", "--output-dir", out], "a good film\nbad\n").failed(1, "is not finite");
    assert_eq!(fs::read_dir(out).unwrap().count(), 0, "no partial output");
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
        let ran = run(program(PREDICT).args(args).args(more).env("HF_HUB_OFFLINE", "1"), b"").done();
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
