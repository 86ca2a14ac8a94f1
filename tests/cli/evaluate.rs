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
