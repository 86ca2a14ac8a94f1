//! `predict`: inputs, outputs and flags.

use crate::fixtures::golden;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

use super::*;

#[test]
fn predictions_match_hugging_face() {
    let dir = TempDir::new().unwrap();
    for (expected, max_length) in [("text/expected.jsonl", "48"), ("text/expected_max16.jsonl", "16")] {
        let wanted = json_lines(&golden(expected));
        // The texts, and Hugging Face's ids for them; with and without a tokenizer.
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
fn predict_reads_texts_from_arguments() {
    let rows = predict(&["The movie was great!", "-1"]).done().json();
    assert_eq!((&rows[0]["id"], &rows[0]["label"], &rows[1]["id"]), (&json!(0), &json!("NEGATIVE"), &json!(1)));
    assert_eq!(rows, predict(&["--text", "The movie was great!", "--text", "-1"]).done().json());

    // Hugging Face's pipeline on texts 0 and 7, as CSV and as text.
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
    let stdin = run(program(PREDICT).args(["--model", path(&golden("text/hf")), "--output", "-", "-"]), b"good\n").done();
    assert_eq!((stdin.json().len(), stdin.err.contains("saved")), (1, false), "{}", stdin.err);
    // The name of the output decides, unless the flag does.
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("scores.csv");
    let written = |more: &[&str]| {
        lines(&[more, &["--output", path(&file), "--top-k", "0"]].concat());
        std::fs::read_to_string(&file).unwrap()
    };
    assert!(written(&[]).lines().eq(&csv));
    assert!(written(&["--format", "jsonl"]).starts_with('{'));
    let text = lines(&["--format", "text"]);
    assert_eq!(text[0], format!("NEGATIVE 0.5482   5/10  {short}"));
    assert!(text[1].starts_with("POSITIVE 0.60") && text[1].contains("   6/10  the film was good and") && text[1].len() < 250);
}

#[test]
fn predict_answers_each_line_before_the_next_arrives() {
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
    // The lines before an invalid one are answered.
    stdin.write_all(b"{\"text\": \"bad\"}\n\n{\"input_ids\": [2, 3]}\n{\"input_ids\": []}\n{\"text\": \"lost\"}\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    reader.join().unwrap();
    let left: Vec<Value> = answers.iter().map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert_eq!(left.iter().map(|row| row["id"].clone()).collect::<Vec<_>>(), [json!(4), json!(5)]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), err.lines().last().unwrap()),
        (Some(2), "error: `standard input:8`: input_ids is empty; give at least [CLS] and [SEP]")
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
    // Token types, for a model that has them and no tokenizer; DistilBERT ignores them.
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
    // With both, the ids are used.
    let both = dir.path().join("both.jsonl");
    fs::write(&both, "{\"text\": \"good good good\", \"input_ids\": [2, 3]}\n{\"text\": \"good\", \"input_ids\": null}\n")
        .unwrap();
    let rows = predict(&["--input", path(&both)]).done().json();
    assert_eq!((&rows[0]["tokens"], &rows[1]["tokens"]), (&json!(2), &json!(3)));
}

#[test]
fn a_broken_pipe_succeeds_and_a_full_disk_fails() {
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
    // It ends too, and breaks this pipe as well.
    while stdin.write_all(b"good\n").is_ok() {}
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(0) && err.starts_with("device: CPU, ") && err.lines().count() == 1, "{err}");

    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program(PREDICT).args(["--model", path(&model), "--device", "cpu", "good"]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.lines().last().unwrap().starts_with("error: `standard output`: "), "{err}");
    predict(&["--output", "/dev/full", "good"]).failed(2, "`/dev/full`: ");
    // An open file keeps what it has.
    let shared = TempDir::new().unwrap();
    let shared = shared.path().join("shared.jsonl");
    fs::write(&shared, "before\n").unwrap();
    let appended = || fs::OpenOptions::new().append(true).open(&shared).unwrap();
    for output in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let args = ["--model", path(&model), "--device", "cpu", "--output", output, "good"];
        assert!(program(PREDICT).args(args).stdout(appended()).stderr(Stdio::null()).status().unwrap().success());
    }
    let lines = fs::read_to_string(&shared).unwrap();
    assert!(lines.starts_with("before\n{") && lines.lines().count() == 4, "{lines}");
    // Progress may have no reader.
    let out = TempDir::new().unwrap();
    let (hf, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let args = ["--model", path(&hf), "--train-file", path(&file), "--output-dir", path(out.path()), "--max-steps", "1"];
    let status = program(TRAIN).args(args).env("WARPFIT_CACHE", "").stdout(Stdio::null()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(out.path().join("model.safetensors").exists());
}

#[test]
fn invalid_flags_of_predict_and_evaluate_are_reported_in_one_line() {
    let (model, file) = (golden("text/hf"), golden("train/test.csv"));
    let (model, file) = (path(&model), path(&file));
    let dir = TempDir::new().unwrap();
    let lines = dir.path().join("lines.txt");
    fs::write(&lines, "good\nbad\n").unwrap();
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
        predict(&["x", file]).fault(2, "test.csv`: is one of several files or texts; name one file, or mark each text"),
        predict(&["x", "--encoding", "cp1251"]).fault(2, "`--encoding`: there is no file to read"),
        ran(EVALUATE, &["--predictions", "p.jsonl", "--device", "cpu"]).fault(2, "cannot be used with"),
        ran(EVALUATE, &["--predictions", "p.jsonl", "--text-column", "t"]).fault(2, "cannot be used with"),
        ran(EVALUATE, &["--model", model, file, "--positive-label", "joy"]).fault(2, "joy"),
        predict(&["x", "--top-k", "-1"]).fault(2, "invalid value '-1' for '--top-k"),
        predict(&["x", "--max-length", "49"]).fault(2, "49 exceeds the model's 48 positions"),
        predict(&["x", "--max-length", "2"]).fault(2, "2 leaves no room for text"),
        predict(&["x", "--format", "xml"]).fault(2, "invalid value 'xml'"),
        ran(EVALUATE, &["--model", model, file, "--output-dir", model])
            .fault(2, "`--output-dir`: is the folder of --model; choose another one"),
        ran(EVALUATE, &["--model", model, file, "--output-dir", file])
            .fault(2, "is a file and not a folder; choose another name"),
        predict(&["x", "--output", "out.tsv"]).fault(2, "`--output`: predictions have no format for .tsv; name a .jsonl, .csv"),
        ran("embed", &["--model", model, "--output", "v.tsv", file])
            .fault(2, "`--output`: vectors have no format for .tsv; name a"),
        predict(&["x", "--batch-size", "0"]).fault(2, "invalid value '0' for '--batch-size"),
        predict(&["x", "--device", "cuda"]).fault(3, "`--device cuda`: "),
        predict(&["--input", file, "--text-column", "nope"]).fault(2, "no column is named nope"),
        ran_with(PREDICT, &["--model", model], b"one\ntwo\xff\n").fault(2, "`standard input:2`: not UTF-8"),
        ran_with(PREDICT, &["--model", model], b"one\ntwo\0\n").fault(2, "`standard input:2`: a NUL byte"),
        ran_with(PREDICT, &["--model", model, "--input-format", "jsonl"], b"good\n").fault(2, "`standard input:1`: "),
        ran_with(PREDICT, &["--model", model, "--text-column", "review"], b"id,review\n1,good\n").fault(
            2,
            "`--text-column`: has no effect on lines of text; give a .csv or .tsv file with --input, or leave the flag out",
        ),
        ran_with(PREDICT, &["--model", model, "--input-format", "jsonl", "--delimiter", ";"], b"{}")
            .fault(2, "`--delimiter`: has no effect on lines of JSON"),
        ran_with("embed", &["--model", model, "--no-header"], b"good\n")
            .fault(2, "`--no-header`: has no effect on lines of text"),
        predict(&["--input", path(&lines), "--delimiter", ";"]).fault(2, "`--delimiter`: has no effect on lines of text"),
        ran(EVALUATE, &["--model", model]).fault(2, "--file <FILE>"),
        ran(EVALUATE, &["--model", model, "--split", "test"]).fault(2, "`--split`: "),
        ran(EVALUATE, &["--file", file]).fault(2, "--model <DIR_OR_ID>"),
        ran(EVALUATE, &["--model", model, "--file", file, "--predictions", "x"]).fault(2, "cannot be used with"),
        ran(EVALUATE, &["--model", model, "--file", file, "--fail-under", "loss=0"]).fault(1, "loss is "),
        ran(EVALUATE, &["--model", model, "--file", file, "--fail-under", "accuracy=99"]).fault(2, "accuracy is from 0 to 1"),
        ran(PREDICT, &["--model", model, "--top-k", "-1", "x"]).fault(2, "use a whole number, 0 or above"),
        ran(PREDICT, &["--modle", model, "x"]).fault(2, "a similar argument exists: '--model'"),
        ran(EVALUATE, &["--model", model, "--file", file, "--fail-under", "beauty=1"]).fault(2, "there is no metric `beauty`"),
        ran(EVALUATE, &["--model", model, "--file", file, "--label-column", "text"]).fault(2, "cannot be both text and label"),
        scored("").fault(2, "the file is empty"),
        scored("{}").fault(2, "p.jsonl:1`: there is no list of scores"),
        scored("{\"label\": \"POSITIVE\", \"score\": 0.9}").fault(2, "p.jsonl:1`: there is no list of scores"),
        scored("{\"label\": 0, \"scores\": []}").fault(2, "p.jsonl:1`: the scores are neither numbers nor objects"),
        scored("{\"label\": 0, \"scores\": [1]}").fault(2, "a classifier needs two classes"),
        scored("{\"label\": 0, \"scores\": [1, 0]}\n{\"label\": 0, \"scores\": [1, 0, 0]}").fault(2, "p.jsonl:2`: 3 scores, but"),
        scored("{\"label\": 0, \"scores\": [1, 0]}\n{\"label\": 2, \"scores\": [1, 0]}")
            .fault(2, "p.jsonl:2`: the label 2 is out of range"),
        scored("{\"label\": 0, \"scores\": [1, 0]}\n{\"scores\": [1, 0]}").fault(2, "p.jsonl:2`: the label is missing"),
        scored("{\"label\": \"a\", \"scores\": [{\"label\": \"a\", \"score\": 1}, {\"label\": \"a\", \"score\": 0}]}")
            .fault(2, "p.jsonl:1`: the class \"a\" has two scores"),
        scored("{\"label\": 0, \"scores\": [1, null]}").fault(2, "p.jsonl:1`: "),
        scored("{\"label\": 0, \"scores\": [1, NaN]}").fault(2, "p.jsonl:1`: "),
        scored("{\"label\": \"a\", \"scores\": [1, 0]}").fault(2, "1 name among the labels, but 2 scores per row"),
        scored("{\"label\": \"c\", \"scores\": [{\"label\": \"a\", \"score\": 1}, {\"label\": \"b\", \"score\": 0}]}")
            .fault(2, "p.jsonl:1`: the label \"c\" is not one of the classes; the classes are a, b"),
    ]);
    // What would have no effect.
    for flags in [
        "--device cpu",
        "--precision fp32",
        "--max-length 8",
        "--text-column a",
        "--label-column b",
        "--encoding utf-8",
        "--delimiter ;",
        "--quoting off",
        "--no-header",
        "--batch-size 3",
        "--max-batch-tokens 9",
        "--split train",
        "--dataset-config en",
    ] {
        let flags = words(flags);
        for instead in ["--predictions", "--compare"] {
            ran(EVALUATE, &[&[instead, file], &flags[..]].concat()).failed(2, &format!("cannot be used with '{}", flags[0]));
        }
    }
    for (flag, value) in [("--split", "train"), ("--dataset-config", "en")] {
        let why = format!("`{flag}`: has no effect without --dataset; leave it out, or pass --dataset");
        for command in [PREDICT, EVALUATE, "embed"] {
            ran(command, &["--model", model, file, flag, value]).failed(2, &why);
        }
    }
    // Found before anything is computed.
    let emotions = ran(EVALUATE, &["--model", model, file, "--positive-label", "joy"]).failed(2, "no class is named joy");
    assert!(!emotions.err.contains("evaluating"), "{}", emotions.err);
    // The labels of another data set.
    let other = dir.path().join("other.csv");
    fs::write(&other, "text,label\na,joy\n").unwrap();
    ran(EVALUATE, &["--model", model, "--file", path(&other)])
        .failed(2, "other.csv:2`: the label \"joy\" is not one of the classes");
}

#[test]
fn a_file_has_one_name_in_every_command() {
    let (dir, file, model) = (TempDir::new().unwrap(), golden("train/test.csv"), trained());
    let file = path(&file);
    let outputs = |command: &str, more: &[&str]| {
        let named = |flags: &[&str]| ran(command, &[&["--model", path(model.path())], more, flags].concat()).done();
        let argument = named(&[file]);
        assert_eq!(argument.out, named(&["--input", file]).out);
        assert_eq!(argument.out, named(&["--file", file]).out);
        argument
    };
    let predicted = outputs(PREDICT, &[]);
    assert_eq!(predicted.out.lines().count(), 32);
    assert!(
        predicted.err.contains(&format!("note: {file} is read as a file; --text classifies these words")),
        "{}",
        predicted.err
    );
    // A folder of labelled texts, too.
    let texts = dir.path().join("texts");
    for (class, text) in [("neg", "bad"), ("pos", "good")] {
        std::fs::create_dir_all(texts.join(class)).unwrap();
        std::fs::write(texts.join(class).join("1.txt"), text).unwrap();
    }
    let of_folder = ran(PREDICT, &["--model", path(model.path()), path(&texts)]).done();
    assert!(of_folder.out.lines().count() == 2 && of_folder.err.contains("is read as a folder"), "{}", of_folder.err);
    assert_eq!(outputs("embed", &[]).out.lines().count(), 32);
    let report = dir.path().join("report");
    let evaluated = outputs(EVALUATE, &["--output-dir", path(&report)]);
    assert!(evaluated.err.contains(&format!("saved       {}", report.join("report.html").display())), "{}", evaluated.err);

    let one = |args: &[&str]| ran(PREDICT, &[&["--model", path(model.path())], args].concat());
    assert_eq!(one(&["--text", file]).done().out.lines().count(), 1);
    one(&["good", file])
        .failed(2, "test.csv`: is one of several files or texts; name one file, or mark each text with --text; a text");
    one(&["nowhere.csv", "elsewhere.csv"]).failed(2, "`nowhere.csv`: is one of several files or texts");
    one(&["-", "good"]).failed(2, "`-`: is one of several files or texts");
    assert_eq!(one(&["--text", file, "--text", "good"]).done().out.lines().count(), 2);
    one(&["nowhere.csv"]).failed(2, "`nowhere.csv`: no such file or folder; check the path, or classify these words with --text");
    one(&["good.", "--input-format", "jsonl"]).failed(2, "`--input-format`: there is no file to read");
    one(&["good.", "--no-header", "--encoding", "cp1251"])
        .failed(2, "`--no-header`: there is no file to read; leave it out, or name a file with --input");
    one(&[file, "--input", file]).failed(2, "cannot be used with");
    ran(EVALUATE, &["--model", path(model.path()), file, "--file", file]).failed(2, "cannot be used with");
    ran(EVALUATE, &["--model", path(model.path())]).failed(2, "required arguments were not provided");
}

#[test]
fn predictions_carry_the_columns_of_their_rows() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str, content: &str| {
        fs::write(dir.path().join(name), content).unwrap();
        dir.path().join(name).display().to_string()
    };
    let csv = at("a.csv", "id,text,label,note\n7,\"good, really\",1,x\n8,bad,0,\n");
    let keep = |more: &[&str]| predict(&[more, &["--keep-columns"]].concat()).done();
    let rows = keep(&["--input", &csv]).json();
    assert_eq!(rows[0]["input"], json!({"id": "7", "text": "good, really", "label": "1", "note": "x"}));
    let plain = predict(&["--input", &csv]).done().json();
    assert_eq!((&rows[1]["label"], &rows[1]["score"], &rows[1]["id"]), (&plain[1]["label"], &plain[1]["score"], &json!(8)));
    assert_eq!(plain[0].get("input"), None);

    let lines = keep(&["--input", &csv, "--format", "csv", "--top-k", "0"]).out;
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!((lines[0], lines.len()), ("input_id,text,input_label,note,id,label,score,tokens,truncated", 5));
    assert!(lines[2].starts_with("7,\"good, really\",1,x,7,"), "{}", lines[2]);
    assert!(lines[3].starts_with("8,bad,0,,8,"), "{}", lines[3]);
    let again = at("again.csv", "text,label,input_label\ngood,1,0\n");
    let lines = keep(&["--input", &again, "--format", "csv"]).out;
    assert!(lines.starts_with("text,input_input_label,input_label,id,label,score,tokens,truncated\ngood,1,0,"), "{lines}");

    for (name, content) in [
        ("a.jsonl", "{\"text\": \"good\", \"n\": 1}\n{\"text\": \"bad\", \"n\": null, \"m\": [2]}\n"),
        ("a.json", "[{\"text\": \"good\", \"n\": 1}, {\"text\": \"bad\", \"n\": null, \"m\": [2]}]"),
    ] {
        let file = at(name, content);
        let rows = keep(&["--input", &file]).json();
        assert_eq!(rows[0]["input"], json!({"text": "good", "n": 1}), "{name}");
        assert_eq!(rows[1]["input"], json!({"text": "bad", "n": null, "m": [2]}), "{name}");
        let ran = keep(&["--input", &file, "--format", "csv"]);
        assert!(ran.err.contains("warning: columns that the first row does not have are left out: m; "), "{}", ran.err);
        let csv = ran.out;
        assert!(csv.starts_with("text,n,id,label,score,tokens,truncated\ngood,1,0,"), "{csv}");
        assert!(csv.contains("\nbad,,1,"), "{csv}");
    }
    let parquet = golden("../../src/sample/validation.parquet");
    let kept = keep(&["--input", path(&parquet)]).json();
    let columns = kept[0]["input"].as_object().unwrap();
    assert!(columns["text"].is_string() && columns["label"].is_i64(), "{}", kept[0]);

    // What has no columns has its text.
    let texts = at("a.txt", "good\nbad\n");
    assert_eq!(keep(&["--input", &texts]).json()[1]["input"], json!({"text": "bad"}));
    assert_eq!(keep(&["good"]).json()[0]["input"], json!({"text": "good"}));
    let csv = keep(&["--format", "csv", "good"]).out;
    assert!(csv.starts_with("text,id,label,score,tokens,truncated\ngood,0,"), "{csv}");
    predict(&["--keep-columns", "--format", "text", "good"]).failed(2, "`--keep-columns`: lines for people have no columns");
}

#[test]
fn an_interrupt_leaves_no_half_written_file() {
    let dir = TempDir::new().unwrap();
    let (model, output) = (golden("text/hf"), dir.path().join("out.jsonl"));
    let file = ["--output", path(&output)];
    let folder = ["--project", "pca", "--output-dir", path(&output)];
    for (command, flags, written, fact, signal) in [
        (PREDICT, &file[..], "out.jsonl.partial", "is not written", "INT"),
        ("embed", &file, "out.jsonl.partial", "is not written", "TERM"),
        ("embed", &folder, "out.jsonl", "is not complete", "INT"),
    ] {
        let mut command = program(command);
        command.args(["--model", path(&model)]).args(flags);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It waits for the next line of its input.
        child.stdin.as_mut().unwrap().write_all(b"good\n").unwrap();
        let (written, begin) = (dir.path().join(written), Instant::now());
        while !written.exists() {
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success());
        let stdin = child.stdin.take();
        let ended = child.wait_with_output().unwrap();
        drop(stdin);
        let line = format!("stopped: {} {fact}; start the same command again\n", output.display());
        let err = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(130) && err.ends_with(&line), "{:?} {err}", ended.status);
        assert_eq!(names(dir.path()), if written.is_dir() { BTreeSet::from(["out.jsonl".into()]) } else { BTreeSet::new() });
    }
    assert_eq!(names(&output), BTreeSet::new());
}
