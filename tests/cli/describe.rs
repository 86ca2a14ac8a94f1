//! `describe` and `tokenize`: figures counted by hand, and a page for any number of classes.

use approx::assert_abs_diff_eq;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;
use warpfit::data::tokenize::Tokenizer;

use super::*;

fn describe(args: &[&str]) -> Ran {
    ran("describe", args)
}

fn figures(args: &[&str]) -> Value {
    serde_json::from_str(&describe(&[args, &["--format", "json"]].concat()).done().out).unwrap()
}

/// Compares lengths with [minimum, quartiles, 95th percentile, maximum, mean].
#[track_caller]
fn assert_lengths(found: &Value, wanted: [f64; 7]) {
    let keys = ["min", "quartile_1", "median", "quartile_3", "percentile_95", "max", "mean"];
    for (key, wanted) in keys.iter().zip(wanted) {
        assert_abs_diff_eq!(found[key].as_f64().unwrap(), wanted, epsilon = 1e-9);
    }
}

/// Texts of 2, 2, 4, 0, 6 and 4 words; of the validation data the first is training data too.
fn small(dir: &TempDir) -> [PathBuf; 2] {
    let [train, validation] = ["train.csv", "val.csv"].map(|name| dir.path().join(name));
    fs::write(&train, "text,label\na b,x\na b,y\na b c d,x\n,y\nl l l l l l,y\na b c d,x\n").unwrap();
    fs::write(&validation, "text,label\na b c d,x\nfresh,y\n").unwrap();
    [train, validation]
}

#[test]
fn figures_are_those_counted_by_hand() {
    let dir = TempDir::new().unwrap();
    let [train, validation] = small(&dir);
    let all = figures(&[path(&train), "--validation-file", path(&validation)]);
    assert_eq!((&all["unit"], &all["max_length"]), (&json!("words"), &Value::Null));
    let split = &all["splits"][0];
    for (key, wanted) in [("name", json!("training")), ("texts", json!(6)), ("empty", json!(1)), ("duplicates", json!(2))] {
        assert_eq!(split[key], wanted, "{key}");
    }
    assert_eq!(split["histogram"], json!({"width": 1, "counts": [1, 0, 2, 0, 2, 0, 1], "longer": 0}));
    assert_lengths(&split["lengths"], [0.0, 2.0, 3.0, 4.0, 5.5, 6.0, 3.0]);
    let [x, y] = [0, 1].map(|class| &split["classes"][class]);
    assert_eq!((&x["label"], &x["texts"], &x["share"]), (&json!("x"), &json!(3), &json!(0.5)));
    assert_lengths(&x["lengths"], [2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 10.0 / 3.0]);
    assert_lengths(&y["lengths"], [0.0, 1.0, 2.0, 4.0, 5.6, 6.0, 8.0 / 3.0]);
    let example = |which, row, length, text| json!({"which": which, "row": row, "length": length, "text": text});
    let examples = [example("first", 1, 2, "a b"), example("shortest", 3, 0, ""), example("longest", 4, 6, "l l l l l l")];
    assert_eq!(y["examples"], json!(examples));
    assert_eq!(all["splits"][1]["texts"], 2);
    assert_eq!(all["shared"], json!([{"texts": 1, "of": "validation", "with": "training"}]));
    let rows = [json!({"split": "training", "row": 0, "label": "x"}), json!({"split": "training", "row": 1, "label": "y"})];
    assert_eq!(all["contradictions"], json!({"texts": 1, "rows": 2, "example": {"text": "a b", "rows": rows}}));
}

#[test]
fn text_for_people_names_what_to_look_at_and_the_next_command() {
    let dir = TempDir::new().unwrap();
    let [train, validation] = small(&dir);
    let ran = describe(&["--train-file", path(&train), "--validation-file", path(&validation)]).done();
    for line in [
        "class  texts    share  min  25 %  median  75 %  95 %  max",
        "x          3   50.0 %    2     3       4     4     4    4",
        "y          3   50.0 %    0     1       2     4     6    6",
        "- training: empty, and kept as [CLS] [SEP]: 1 of 6 texts (16.7 %).",
        "- training: repeated from an earlier row: 2 of 6 texts (33.3 %).",
        "- validation: in the training data too: 1 of 2 texts (50.0 %).",
        "  longest         6  l l l l l l",
    ] {
        assert!(ran.out.lines().any(|found| found == line), "{line}\n{}", ran.out);
    }
    assert!(ran.err.contains("train.csv: texts from \"text\", labels from \"label\"\n"), "{}", ran.err);
    let next = ran.err.split_once("next        warpfit train ").unwrap().1;
    assert!(next.contains(path(&validation)) && !next.contains("--validation-split"), "{next}");
    describe(&[path(&train), "--label-column", "x"]).failed(2, "no column");
}

#[test]
fn a_split_that_train_would_refuse_is_not_proposed() {
    let dir = TempDir::new().unwrap();
    let (model, file) = (golden("train/hf_init"), dir.path().join("a.csv"));
    let args = ["--train-file", path(&file), "--max-steps", "1", "--validation-split", "0.1"];
    fs::write(&file, "text,label\na text,a label\nanother text,a label\n").unwrap();
    let one_class = describe(&[path(&file)]).done().err;
    assert!(!one_class.contains("warpfit train"), "{one_class}");
    for (rows, splits) in [(1, false), (10, true)] {
        let rows: String = (0..10 * rows).map(|row| format!("a text {row},label {}\n", row % 10)).collect();
        fs::write(&file, format!("text,label\n{rows}")).unwrap();
        let next = describe(&[path(&file)]).done().err;
        assert_eq!(next.contains("--validation-split 0.1"), splits, "{next}");
        let out = dir.path().join("out");
        let trained = crate::cli::ran(TRAIN, &[&args[..], &["--model", path(&model), "--output-dir", path(&out)]].concat());
        assert_eq!(!trained.err.contains("leaves one side empty"), splits, "{}", trained.err);
    }
}

#[test]
fn the_command_that_is_proposed_runs_as_it_is() {
    let (dir, model) = (TempDir::new().unwrap(), trained());
    let [two, three] = [2, 3].map(|classes| {
        let file = dir.path().join(format!("{classes}.csv"));
        let rows: String = (0..60).map(|row| format!("text {row},class {}\n", row % classes)).collect();
        fs::write(&file, format!("text,label\n{rows}")).unwrap();
        file
    });
    let run_in = |words: &[&str]| run(program(words[0]).current_dir(&dir).args(&words[1..]), b"");
    for (file, folder, other_head) in [(&three, "out", true), (&three, "out-2", true), (&two, "out-3", false)] {
        let described = run_in(&["describe", "--model", path(model.path()), path(file)]).done().err;
        let command = described.split_once("next        warpfit ").unwrap().1.replace('\\', "");
        assert_eq!(command.contains("--ignore-mismatched-sizes"), other_head, "{command}");
        assert!(command.trim_end().ends_with(&format!("--output-dir {folder}")), "{command}");
        run_in(&[&words(&command)[..], &["--max-steps", "1"]].concat()).done();
    }
    // So does the one after a probe.
    let (model, file) = (path(model.path()), path(&three));
    let probed = run_in(&["embed", "--model", model, "--probe", "--train-file", file, "--test-file", file]).done().err;
    let command = probed.split_once("next        warpfit ").unwrap().1;
    run_in(&[&words(command)[..], &["--max-steps", "1"]].concat()).done();
}

#[test]
fn a_folder_of_splits_is_described_and_guesses_are_part_of_the_description() {
    let dir = TempDir::new().unwrap();
    small(&dir);
    let all = figures(&[path(dir.path())]);
    let names: Vec<&Value> = all["splits"].as_array().unwrap().iter().map(|split| &split["name"]).collect();
    assert_eq!(names, ["training", "validation"]);
    let ran = describe(&[path(dir.path())]).done();
    assert!(
        ran.err.contains(&format!("--data-dir {}", path(dir.path()))) && !ran.err.contains("--validation-split"),
        "{}",
        ran.err
    );

    let out = dir.path().join("out");
    let guessed = [
        ("odd.csv", "a very good film;1\na very bad film;0\na good film;1\n".to_string(), ["semicolons", "read as a row"]),
        (
            "odd.jsonl",
            r#"{"text": "a", "label": 0, "answer": "reject"}
{"text": "b", "label": 1, "answer": "accept"}
{"text": "c", "label": 0, "answer": "accept"}"#
                .to_string(),
            ["left out: 1", "labels from \"label\""],
        ),
    ];
    for (name, content, notes) in guessed {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        let ran = describe(&[path(&file), "--output-dir", path(&out)]).done();
        let written =
            super::read(&out, "describe.json")["notes"].to_string() + &fs::read_to_string(out.join("describe.html")).unwrap();
        for note in notes {
            assert_eq!(ran.err.matches(note).count(), 1, "{note} {}", ran.err);
            let [plain, escaped] = [note.replace('"', "\\\""), note.replace('"', "&quot;")];
            assert!(written.contains(&plain) && written.contains(&escaped), "{note} {written}");
        }
    }
    // Rates of less than a second are noise.
    let tokens = describe(&[path(&dir.path().join("odd.csv")), "--model", path(&golden("train/hf_init"))]).done();
    assert!(!tokens.err.contains("tokenizing"), "{}", tokens.err);
}

#[test]
fn lengths_in_tokens_are_the_tokenizers_and_truncated_texts_those_of_train() {
    let (model, file, out) = (golden("train/hf_init"), golden("train/train.csv"), TempDir::new().unwrap());
    let all = figures(&[path(&file), "--model", path(&model), "--max-length", "8"]);
    let split = &all["splits"][0];
    let tokenizer = Tokenizer::read(&model).unwrap();
    let rows: Vec<_> = csv::Reader::from_path(&file).unwrap().into_records().collect::<Result<_, _>>().unwrap();
    let columns = csv::Reader::from_path(&file).unwrap().headers().unwrap().clone();
    let text = columns.iter().position(|name| name == "text").unwrap();
    let lengths: Vec<usize> = rows.iter().map(|row| tokenizer.pieces(&row[text], true).unwrap().len()).collect();
    assert_eq!(split["lengths"]["min"], json!(lengths.iter().min()));
    assert_eq!(split["lengths"]["max"], json!(lengths.iter().max()));
    assert_abs_diff_eq!(
        split["lengths"]["mean"].as_f64().unwrap(),
        lengths.iter().sum::<usize>() as f64 / lengths.len() as f64,
        epsilon = 1e-9
    );
    let truncated = lengths.iter().filter(|&&length| length > 8).count();
    assert!(truncated > 0 && split["truncated"] == json!(truncated));
    let trained = train(out.path(), &["--max-length", "8", "--dry-run"]).done();
    assert!(trained.err.contains(&format!("training: {truncated} of 96 texts truncated to 8 tokens")), "{}", trained.err);
    describe(&[path(&file), "--max-length", "8"]).failed(2, "--model");
}

#[test]
fn any_number_of_classes_has_a_page_without_links_and_lines_of_80_characters() {
    let dir = TempDir::new().unwrap();
    let (file, out) = (dir.path().join("a.csv"), dir.path().join("out"));
    let rows = |classes: usize| -> String {
        let row = |i: usize| format!("{},class <{}> of a rather long name\n", "word ".repeat(i % 7 * 90 + 1), i % classes);
        "text,label\n".to_string() + &(0..classes * 10).map(row).collect::<String>()
    };
    let numbers = "text,label\none,0\ntwo words,1\n".to_string();
    let one = "text,label\nonly,x\n".to_string();
    let cases = [(one, 1, None), (rows(2), 2, None), (rows(6), 6, None), (rows(30), 30, None), (numbers, 3, Some("a,b,none"))];
    for (content, classes, names) in cases {
        fs::write(&file, content).unwrap();
        let named = names.map(|names| ["--label-names", names]);
        let args = [path(&file), "--output-dir", path(&out)];
        let ran = describe(&[&args[..], named.as_ref().map_or(&[], |named| &named[..])].concat()).done();
        let long: Vec<&str> = ran.out.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{long:?}");
        assert_eq!(ran.out.contains("training: every text has the label x; training needs"), classes == 1, "{}", ran.out);
        assert_eq!(ran.out.contains("training: no text has the label none."), names.is_some(), "{}", ran.out);
        let all = super::read(&out, "describe.json");
        assert_eq!(all["splits"][0]["classes"].as_array().unwrap().len(), classes);
        assert_eq!(names.is_some(), all["splits"][0]["classes"][classes - 1]["lengths"].is_null());
        let page = fs::read_to_string(out.join("describe.html")).unwrap();
        assert_eq!((page.matches("<figure>").count(), page.matches("<figcaption>").count()), (3, 3));
        assert!(page.starts_with("<!doctype html>") && page.contains("default-src 'none'") && !page.contains("class <0>"));
        let links = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!links.contains("://") && !links.contains("NaN") && !links.contains("inf\""), "{classes}");
    }
}

#[test]
fn tokens_are_shown_with_those_that_are_truncated() {
    let model = golden("train/hf_init");
    let text = "a charming film, not a stale one";
    let pieces = Tokenizer::read(&model).unwrap().pieces(text, true).unwrap();
    let shown = |length: &str| ran("tokenize", &["--model", path(&model), "--max-length", length, text]).done().out;
    let lines = |out: &str| out.lines().skip(1).take(pieces.len()).map(String::from).collect::<Vec<String>>();
    let all = shown("64");
    for (line, piece) in lines(&all).iter().zip(&pieces) {
        assert!(words(line).contains(&&*piece.id.to_string()) && line.contains(&piece.text), "{line}");
    }
    assert!(!all.contains("truncated") && all.contains(&format!("{0} tokens, of which the model reads {0}", pieces.len())));
    let cut: Vec<bool> = lines(&shown("5")).iter().map(|line| line.ends_with("truncated")).collect();
    // [CLS], three tokens, and [SEP] at the end.
    let wanted: Vec<bool> = (0..pieces.len()).map(|i| i >= 4 && i < pieces.len() - 1).collect();
    assert_eq!(cut, wanted);
    assert!(pieces.len() > 5);
}
