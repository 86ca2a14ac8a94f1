//! `evaluate` of a model or of predictions.

use crate::fixtures::{Tensors, golden, json};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

use super::*;

#[test]
fn evaluated_model_matches_hugging_face() {
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

    // The predictions written can be evaluated without the model.
    let (again, predictions) = (TempDir::new().unwrap(), out.path().join("predictions.jsonl"));
    assert_eq!(json_lines(&predictions).len(), 32);
    let ran_again = crate::cli::ran(EVALUATE, &["--predictions", path(&predictions), "--output-dir", path(again.path())]).done();
    assert_eq!(ran_again.out, ran.out);
    assert_eq!(differences(&read(again.path(), "metrics.json"), &metrics, ""), Vec::<String>::new());
}

#[test]
fn evaluated_predictions_match_scikit_learn() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("p.jsonl");
    for case in json("metrics.json").as_array().unwrap() {
        let (labels, scores) = (case["labels"].as_array().unwrap(), case["scores"].as_array().unwrap());
        let classes = scores[0].as_array().unwrap().len();
        let name = |class: usize| format!("c{class}");
        let numbers = |row: usize| json!({"label": labels[row], "scores": scores[row]});
        // In the format of predict, in another order; the names sort like the classes.
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

/// The places where `found` lacks or differs from a value in `wanted`.
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

#[test]
fn training_runs_are_compared_by_their_validation_figures_and_settings() {
    let dir = TempDir::new().unwrap();
    let folder = |name: &str| dir.path().join(name);
    let (file, common) =
        (golden("train/test.csv"), words("--max-steps 4 --save-strategy no --eval-strategy steps --eval-steps 2"));
    let run = |name: &str, more: &[&str]| {
        train(&folder(name), &[&common[..], &["--validation-file", path(&file)], more].concat()).done();
        path(&folder(name)).to_string()
    };
    let (slow, fast) = (run("slow", &["--learning-rate", "1e-6"]), run("fast", &["--learning-rate", "1e-2", "--dropout", "0.3"]));
    let compare = |folders: &[&str], more: &[&str]| ran(EVALUATE, &[&["--compare"], folders, more].concat());
    let out = folder("compared");
    let compared = compare(&[&slow, &fast], &["--output-dir", path(&out)]).done();
    let line =
        |start: &str| compared.out.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{}", compared.out));
    let figures = |name: &str, key: &str| read(&folder(name), "eval_results.json")[key].as_f64().unwrap();
    for (metric, key) in [("loss ", "eval_loss"), ("accuracy ", "eval_accuracy"), ("roc_auc ", "eval_roc_auc")] {
        let found: Vec<f64> = words(&line(metric).replace('*', ""))[1..].iter().map(|figure| figure.parse().unwrap()).collect();
        let wanted = [figures("slow", key), figures("fast", key)];
        assert!(found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 5e-5), "{metric} {found:?} {wanted:?}");
    }
    // Those that were given, and no other.
    let settings = compared.out.split("settings that differ\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let settings: Vec<Vec<&str>> = settings.lines().map(words).collect();
    assert_eq!(settings, [vec!["[1]", "[2]"], vec!["dropout", "null", "0.3"], vec!["learning_rate", "1e-6", "0.01"]]);
    assert!(compared.out.contains("classes: NEGATIVE, POSITIVE\n") && !compared.err.contains("warning"), "{}", compared.err);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<td>learning_rate</td>") && out.join("plots/loss.svg").exists());

    // Other validation data, none, and runs beside evaluations.
    let split = folder("split");
    train(&split, &[&common[..], &["--validation-split", "0.3"]].concat()).done();
    let doubtful = compare(&[&slow, path(&split)], &[]).done();
    let warning = "warning: the validation data differ, by files.validation, validation_split; compare reports on one file: ";
    assert!(doubtful.err.contains(&format!("{warning}warpfit evaluate --model {slow} FILE ")), "{}", doubtful.err);
    let (blind, report) = (folder("blind"), folder("report"));
    train(&blind, &words("--max-steps 1 --save-strategy no")).done();
    compare(&[path(&blind)], &[])
        .failed(2, &format!("no validation figures; compare reports on one file: warpfit evaluate --model {}", path(&blind)));
    ran(EVALUATE, &["--model", &slow, path(&file), "--output-dir", path(&report)]).done();
    compare(&[path(&report), &slow], &[]).failed(2, "is a training run, and other folders are evaluations; compare reports");
    compare(&[path(dir.path())], &[])
        .failed(2, "has neither an evaluation nor a finished training run; write one: warpfit evaluate");
}

#[test]
fn every_command_names_the_next_one() {
    let (dir, model, file) = (TempDir::new().unwrap(), trained(), golden("train/test.csv"));
    let (model, file) = (path(model.path()), path(&file));
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (report, vectors, projected) = (at("look"), at("v.npy"), at("pictures"));
    for (command, args, next) in [
        (EVALUATE, vec![file], format!("evaluate --model {model} {file} --output-dir report")),
        (EVALUATE, vec![file, "--output-dir", &report], format!("evaluate --compare {report} OTHER_REPORT")),
        (PREDICT, vec!["a text"], format!("evaluate --model {model} LABELLED_FILE --output-dir report")),
        ("embed", vec![file, "--output", &vectors], format!("embed --model {model} {file} --project pca --output-dir projected")),
        (
            "embed",
            vec![file, "--project", "pca", "--output-dir", &projected],
            format!("embed --model {model} --probe --train-file LABELLED_FILE --test-file OTHER_LABELLED_FILE"),
        ),
        (
            "embed",
            vec!["--probe", "--train-file", file, "--test-file", file],
            format!("train --model {model} --train-file {file} --validation-file {file} --output-dir out"),
        ),
    ] {
        // A folder where nothing is in the way of what is proposed.
        let ran = run(program(command).current_dir(&dir).args(["--model", model]).args(&args), b"").done();
        assert!(ran.err.contains(&format!("\n\nnext        warpfit {next}\n")), "{command} {args:?}: {}", ran.err);
    }
    // With the columns that were named, into folders that are free.
    let columns = dir.path().join("columns.csv");
    fs::write(&columns, "a;b\ngood;1\nbad;0\n").unwrap();
    fs::create_dir(dir.path().join("projected")).unwrap();
    fs::write(dir.path().join("projected/of-another"), "").unwrap();
    let reading = ["--delimiter", ";", "--text-column", "a"];
    for (command, args, next) in [
        (
            EVALUATE,
            vec!["columns.csv", "--label-column", "b"],
            "columns.csv --delimiter ';' --text-column a --label-column b --output-dir report",
        ),
        (
            EVALUATE,
            vec!["columns.csv", "--max-length", "9", "--positive-label", "NEGATIVE", "--label-names", "NEGATIVE,POSITIVE"],
            "--text-column a --label-names NEGATIVE,POSITIVE --positive-label NEGATIVE --max-length 9 --output-dir report",
        ),
        (
            "embed",
            vec!["columns.csv", "--output", &vectors],
            "columns.csv --delimiter ';' --text-column a --project pca --output-dir projected-2",
        ),
        (
            "embed",
            vec!["--probe", "--train-file", "columns.csv", "--test-file", "columns.csv", "--label-column", "b"],
            "--validation-file columns.csv --delimiter ';' --text-column a --label-column b --output-dir out",
        ),
    ] {
        let ran = run(program(command).current_dir(&dir).args(["--model", model]).args(&args).args(reading), b"").done();
        assert!(ran.err.contains(next), "{command} {args:?}: {}", ran.err);
    }
    // Not after each line of a dialogue.
    let lines = ran_with(PREDICT, &["--model", model], b"a text\n").done();
    assert!(!lines.err.contains("next "), "{}", lines.err);
}
