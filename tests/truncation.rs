//! Which tokens of long texts are kept: exactly, carried by the model folder, and in every command.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::data::tokenize::Tokenizer;
use warpfit::data::truncation::TruncationSide::{Left, Middle, Right};

use crate::cli::{EVALUATE, PREDICT, Ran, TRAIN, path, ran};
use crate::data::assert_error;
use crate::fixtures::golden;

/// A copy of a golden model folder with another value in a JSON file of it.
pub fn with(folder: &str, file: &str, key: &str, value: Value) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(golden(folder)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let mut json = config(copy.path(), file);
    json[key] = value;
    fs::write(copy.path().join(file), json.to_string()).unwrap();
    copy
}

fn config(folder: &Path, file: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap()
}

#[test]
fn the_middle_form_keeps_the_shares_of_its_paper() {
    assert_eq!(Middle.kept(510), [128, 382]);
    let small = [1, 2, 3, 4, 5, 6, 8].map(|room| Middle.kept(room));
    assert_eq!(small, [[1, 0], [1, 1], [1, 2], [1, 3], [2, 3], [2, 4], [2, 6]]);
    assert_eq!((Right.kept(510), Left.kept(510)), ([510, 0], [0, 510]));
}

#[test]
fn each_side_keeps_its_tokens() {
    let tokenizer = Tokenizer::read(&golden("text/hf")).unwrap();
    let ids = |text: &str, length, side| tokenizer.encode_from(&[text], length, side, &|_| ()).unwrap();
    let words = ["good", "great", "fine", "superb", "bad", "awful", "dull", "poor", "film", "movie"];
    let text = words.join(" ");
    let word = |word: &str| ids(word, 3, Right).ids[1];
    for (side, length, kept) in [
        (Right, 8, &words[..6]),
        (Left, 8, &words[4..]),
        (Middle, 8, &["good", "great", "dull", "poor", "film", "movie"]),
        (Middle, 3, &["good"]),
        (Left, 3, &["movie"]),
        (Middle, 12, &words),
        (Left, 12, &words),
        (Left, 100, &words),
    ] {
        let kept_ids: Vec<i32> = kept.iter().map(|one| word(one)).collect();
        let found = ids(&text, length, side);
        assert_eq!(found.ids[1..found.ids.len() - 1], kept_ids, "{side:?} {length}");
        assert_eq!([found.ids[0], *found.ids.last().unwrap()], [ids("", 3, side).ids[0], ids("", 3, side).ids[1]]);
        assert_eq!(found.cut, [kept.len() < words.len()]);
        if (side, length) == (Left, 8) {
            assert_eq!(found.ids, [2, 88, 89, 90, 91, 102, 103, 3], "those of transformers 5.24 with truncation_side left");
        }
        // Ids are cut like their text.
        let whole: Vec<u32> = ids(&text, 100, Right).ids.iter().map(|&id| id as u32).collect();
        let again = tokenizer.encode_ids(&[whole], length, side).unwrap();
        assert_eq!((again.ids, again.cut), (found.ids, found.cut), "{side:?} {length}");
    }
}

#[test]
fn the_folder_tells_the_side() {
    let side = |file: &str, key: &str, value: Value| {
        let folder = with("text/hf", file, key, value);
        Tokenizer::read(folder.path()).map(|tokenizer| tokenizer.truncation_side)
    };
    const CONFIG: &str = "tokenizer_config.json";
    assert_eq!(Tokenizer::read(&golden("text/hf")).unwrap().truncation_side, Right);
    assert_eq!(side(CONFIG, "truncation_side", json!("left")).unwrap(), Left);
    assert_eq!(side(CONFIG, "truncation_side", Value::Null).unwrap(), Right);
    assert_eq!(side(CONFIG, "warpfit_truncation_side", json!("middle")).unwrap(), Middle);
    for value in [json!("middle"), json!("both"), json!(1)] {
        assert_error(side(CONFIG, "truncation_side", value), CONFIG, "use \"left\" or \"right\"");
    }
    assert_error(side(CONFIG, "warpfit_truncation_side", json!("up")), CONFIG, "use \"left\", \"right\" or \"middle\"");
    // tokenizer.json tells it too, under the configuration.
    let truncation = json!({"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    assert_eq!(side("tokenizer.json", "truncation", truncation.clone()).unwrap(), Left);
    let both = with("text/hf", "tokenizer.json", "truncation", truncation);
    let mut own = config(both.path(), CONFIG);
    own["truncation_side"] = json!("right");
    fs::write(both.path().join(CONFIG), own.to_string()).unwrap();
    assert_eq!(Tokenizer::read(both.path()).unwrap().truncation_side, Right);
}

fn train(out: &Path, more: &str) -> Ran {
    let (model, train, test) = (golden("train/hf_init"), golden("train/train.csv"), golden("train/test.csv"));
    let files = ["--model", path(&model), "--train-file", path(&train), "--validation-file", path(&test)];
    ran(TRAIN, &[&files[..], &["--output-dir", path(out)], &more.split_whitespace().collect::<Vec<_>>()].concat())
}

#[test]
fn a_trained_model_is_used_as_it_was_trained() {
    let out = TempDir::new().unwrap();
    for side in [Left, Middle] {
        let out = out.path().join(side.name());
        let trained = train(&out, &format!("--max-length 6 --max-steps 3 --truncation-side {}", side.name())).done();
        let place = if side == Left { "tokens, at the start (" } else { "tokens, in the middle (" };
        assert!(trained.err.contains(place), "{}", trained.err);
        assert_eq!(trained.err.contains("which transformers does not know"), side == Middle, "{}", trained.err);

        let written = config(&out, "tokenizer_config.json");
        let known = if side == Left { "left" } else { "right" };
        assert_eq!(written["truncation_side"], known);
        assert_eq!(written["warpfit_truncation_side"], if side == Left { Value::Null } else { json!("middle") });
        assert_eq!((&written["model_max_length"], &written["do_lower_case"]), (&json!(6), &json!(true)), "the rest is kept");
        assert_eq!(config(&out, "training_args.json")["truncation_side"], side.name());

        let card = fs::read_to_string(out.join("README.md")).unwrap();
        assert!(card.contains(&format!("- long texts: truncated{}\n", side.place())), "{card}");

        let report = out.join("report");
        let loss = |model: &Path| {
            let test = golden("train/test.csv");
            let file = ["--model", path(model), "--file", path(&test), "--output-dir", path(&report)];
            ran(EVALUATE, &file).done();
            config(&report, "metrics.json")["loss"].as_f64().unwrap()
        };
        let wanted = config(&out, "eval_results.json")["eval_loss"].as_f64().unwrap();
        assert!((loss(&out) - wanted).abs() < 1e-6, "{side:?}");
        // Another side gives another loss: the comparison can fail.
        fs::copy(golden("train/hf_init/tokenizer_config.json"), out.join("tokenizer_config.json")).unwrap();
        assert!((loss(&out) - wanted).abs() > 1e-5, "{side:?}");
    }
}

#[test]
fn predictions_see_the_kept_tokens_alone() {
    for (side, texts, same) in [
        ("left", ["good great bad dull film movie", "awful awful bad dull film movie"], true),
        ("right", ["good great bad dull film movie", "awful awful bad dull film movie"], false),
    ] {
        let model = with("text/hf", "tokenizer_config.json", "truncation_side", json!(side));
        let all = ["--model", path(model.path()), "--max-length", "6", "--raw-scores", "--top-k", "0"];
        let predicted = ran(PREDICT, &[&all[..], &texts].concat()).done().out.replace("\"id\":1", "\"id\":0");
        let lines: Vec<&str> = predicted.lines().collect();
        assert_eq!(lines[0] == lines[1], same, "{side}: {predicted}");
    }
}

#[test]
fn a_resumed_run_keeps_its_side() {
    let out = TempDir::new().unwrap();
    // No text is longer than 64 tokens, so that the ids do not tell.
    train(out.path(), "--max-steps 2 --save-steps 2 --truncation-side left").done();
    let resumed = train(out.path(), "--max-steps 4 --truncation-side right --resume-from-checkpoint");
    resumed.failed(2, "was written with --truncation-side left, but this run has right; resume with the same settings");
    train(out.path(), "--max-steps 4 --resume-from-checkpoint").done();
    assert_eq!(Tokenizer::read(out.path()).unwrap().truncation_side, Left);

    let out = TempDir::new().unwrap();
    train(out.path(), "--max-steps 2 --save-steps 2 --max-length 6 --truncation-side middle").done();
    let resumed = train(out.path(), "--max-steps 4 --truncation-side left --resume-from-checkpoint");
    resumed.failed(2, "was written with --truncation-side middle, but this run has left");
}

#[test]
fn a_side_that_is_none_is_refused() {
    let out = TempDir::new().unwrap();
    train(out.path(), "--truncation-side both").failed(2, "right, left, middle");
}
