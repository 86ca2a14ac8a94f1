//! Labels as they are brought, in `tests/cases`: read as they were meant, reported, or refused by name.

use crate::data::csv;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use warpfit::data::dataset::{ModelClasses, classify};
use warpfit::infer::predictions::star_weights;

use super::*;

fn case(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(file)
}

/// A small untrained model; `names` in place of its own, or none.
fn model(names: Option<&[&str]>) -> TempDir {
    let folder = copy("train/hf_init");
    let mut config = super::read(folder.path(), "config.json");
    let object = config.as_object_mut().unwrap();
    object.retain(|key, _| key != "id2label" && key != "label2id");
    if let Some(names) = names {
        object.insert("id2label".into(), (0..).zip(names).map(|(id, name): (u32, _)| (id.to_string(), json!(name))).collect());
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// Trains enough to learn a few words, with a new head if one is needed.
fn learn(model: &Path, out: &Path, file: &Path, more: &[&str]) -> Ran {
    let args = ["--model", path(model), "--output-dir", path(out), "--train-file", path(file), "--ignore-mismatched-sizes"];
    let flags = words("--batch-size 8 --learning-rate 2e-3 --epochs 4 --save-strategy no --report-to none");
    ran(TRAIN, &[&args[..], &flags, more].concat())
}

fn learnt(file: &str, more: &[&str]) -> (TempDir, Ran) {
    let out = TempDir::new().unwrap();
    let ran = learn(model(None).path(), out.path(), &case(file), more).done();
    (out, ran)
}

fn labels(folder: &Path) -> Vec<String> {
    let config = super::read(folder, "config.json");
    config["id2label"].as_object().map_or(Vec::new(), |names| names.values().map(|name| name.as_str().unwrap().into()).collect())
}

fn evaluate(model: &Path, file: &Path, more: &[&str]) -> Ran {
    ran(EVALUATE, &[&["--model", path(model), "--file", path(file)], more].concat())
}

/// Writes a file into a folder of its own.
fn file(name: &str, content: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join(name);
    fs::write(&file, content).unwrap();
    (folder, file)
}

#[test]
fn a_files_own_names_are_found_among_the_models() {
    let (trained, ran) = learnt("label-names/train_names.csv", &[]);
    assert!(ran.err.contains("train_names.csv: texts from \"text\", labels from \"label\"\n"), "{}", ran.err);
    assert!(ran.err.contains("training: 120 texts: anger: 40, fear: 40, joy: 40\n"), "{}", ran.err);
    let by_name = evaluate(trained.path(), &case("label-names/test_names.csv"), &["--fail-under", "accuracy=1"]).done();
    assert!(by_name.err.contains("texts: 30: anger: 10, fear: 10, joy: 10\n"), "{}", by_name.err);
    let by_index = evaluate(trained.path(), &case("label-names/test_classlabel.parquet"), &[]).done();
    assert_eq!(by_index.out, by_name.out);
    let (_folder, upper) = file("a.csv", "text,label\ngreat charming happy,JOY\nstale worst messy,Anger\n");
    evaluate(trained.path(), &upper, &["--fail-under", "accuracy=1"]).done();

    let again = TempDir::new().unwrap();
    learn(trained.path(), again.path(), &case("label-names/test_classlabel.parquet"), &["--quiet"]).done();
    assert_eq!(labels(again.path()), ["anger", "fear", "joy"], "the model's order");

    let swapped = TempDir::new().unwrap();
    learn(model(Some(&["pos", "neg"])).path(), swapped.path(), &case("label-names/pos_neg.csv"), &[]).done();
    assert_eq!(labels(swapped.path()), ["pos", "neg"]);
    evaluate(swapped.path(), &case("label-names/reviews"), &["--fail-under", "accuracy=1"]).done();
}

#[test]
fn other_names_are_refused_or_replace_the_models() {
    let (six, _) = learnt("label-names/six_emotions.csv", &[]);
    let spam = case("label-names/spam.parquet");
    let lists = "is not one of the classes; the classes are anger, fear, joy, love, sadness, surprise; the labels are ham, spam";
    evaluate(six.path(), &spam, &[]).failed(2, lists);
    let numbers = case("label-names/zero_one.csv");
    evaluate(six.path(), &numbers, &[]).failed(2, "bare numbers fit the 6 named classes only if they reach 5");
    evaluate(six.path(), &numbers, &["--label-names", "anger,fear"]).done();
    let (_folder, one_two) = file("one_two.csv", "text,label\ngood film,2\nbad film,1\n");
    let ranked = evaluate(six.path(), &one_two, &["--label-names", "anger,fear"]).done();
    assert!(ranked.err.contains("anger: 1, fear: 1"), "{}", ranked.err);
    let order = "the labels 1, 2 are taken as anger, fear: --label-names have the order of the numbers\n";
    assert!(ranked.err.contains(order), "{}", ranked.err);
    let (_folder, ones) = file("ones.csv", "text,label\nbad film,1\n");
    let counted = evaluate(six.path(), &ones, &["--label-names", "anger,fear"]).done();
    assert!(counted.err.contains("the label 1 is taken as fear: --label-names are counted from 0\n"), "{}", counted.err);
    let (_folder, truths) = file("truths.csv", "text,label\nbad film,True\n");
    let named = evaluate(six.path(), &truths, &["--label-names", "anger,fear"]).done();
    assert!(named.err.contains("the label true is taken as fear: --label-names are those of false and true\n"), "{}", named.err);
    let three = evaluate(six.path(), &truths, &["--label-names", "anger,fear,joy"]);
    three.failed(2, "`--label-names`: 3 names for false and true; give two, that of false first");

    // Another spelling in another file of the run is the same class.
    let (_folder, train) =
        file("train.csv", "text,label\ngood great film,pos\nbad awful film,neg\ngood film,pos\nbad film,neg\n");
    let (_other, test) = file("test.csv", "text,label\ngood great film,Positive\nbad awful film,negative\n");
    let out = TempDir::new().unwrap();
    let spelled = learn(model(None).path(), out.path(), &train, &["--test-file", path(&test)]).done();
    assert!(
        spelled.err.contains("negative as neg, Positive as pos") || spelled.err.contains("Positive as pos, negative as neg"),
        "{}",
        spelled.err
    );
    assert_eq!(super::read(out.path(), "config.json")["id2label"], json!({"0": "neg", "1": "pos"}));

    // A model without names has the order of the file's, or of --label-names.
    let unnamed = model(None);
    let text = "text,label\ngood great,joy\nbad,fear\n";
    let (_folder, names) = file("a.csv", text);
    evaluate(unnamed.path(), &names, &[]).failed(2, "name the classes in order with --label-names");
    let named = evaluate(unnamed.path(), &names, &["--label-names", "joy,fear"]).done();
    assert!(named.err.contains("texts: 2: joy: 1, fear: 1\n") && named.out.contains("joy"), "{}", named.err);
    let by_order = evaluate(unnamed.path(), &spam, &[]).done();
    assert!(by_order.err.contains("they are taken in the order of the file's ham, spam"), "{}", by_order.err);

    // One to four stars are names, although they could be indices.
    let stars = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"].map(String::from);
    let table = csv("text,label\na,1\nb,4\n");
    let (classes, data) = classify(vec![table], ModelClasses::Fixed(&stars), None).unwrap();
    assert_eq!(
        (&data[0].labels[..], &classes.notes[0][..]),
        (&[0, 3][..], "the labels 1, 4 are taken as the model's 1 star, 4 stars")
    );
    assert_eq!(star_weights(&stars, None).unwrap().unwrap()[3], 0.8);
    assert_eq!(star_weights(&["0", "1"].map(String::from), None).unwrap(), None);

    for (data, names) in [(&spam, vec!["ham", "spam"]), (&numbers, vec![])] {
        let out = TempDir::new().unwrap();
        let args = ["--model", path(six.path()), "--output-dir", path(out.path()), "--train-file", path(data)];
        ran(TRAIN, &args).failed(2, "for another number of labels train with --ignore-mismatched-sizes");
        let ran = learn(six.path(), out.path(), data, &[]).done();
        assert!(ran.err.contains("the model's were anger, fear"), "{}", ran.err);
        let new = "the folder has no classification head for 2 classes; new, and drawn from seed 42: classifier.weight, classifier.bias\n";
        assert!(ran.err.contains(new), "{}", ran.err);
        assert_eq!(labels(out.path()), names);
    }
}

#[test]
fn names_or_indices_is_decided_once_for_all_files() {
    let validation = case("one-decision/validation.parquet");
    let perfect = ["--fail-under", "accuracy=1", "--validation-file"];
    let (stars, _) = learnt("one-decision/train.parquet", &[&perfect[..], &[path(&validation)]].concat());
    assert_eq!(labels(stars.path()), ["1", "2", "3", "4", "5"]);
    let out = TempDir::new().unwrap();
    let validation = case("one-decision/validation_1_to_4.csv");
    let ran =
        learn(stars.path(), out.path(), &case("one-decision/train_0_to_4.csv"), &[&perfect[..], &[path(&validation)]].concat());
    assert!(ran.done().err.contains("the labels 0, 1, 2, 3, 4 are taken as the model's 1, 2, 3, 4, 5"));

    // One boolean is one class in every format.
    let [validation, test] = ["booleans/validation.jsonl", "booleans/test.parquet"].map(case);
    let (booleans, ran) = learnt("booleans/train.csv", &["--validation-file", path(&validation), "--test-file", path(&test)]);
    assert_eq!(ran.err.matches("8 texts: false: 4, true: 4\n").count(), 3, "{}", ran.err);
    for name in ["train.csv", "validation.jsonl", "test.parquet"] {
        assert!(ran.err.contains(&format!("booleans/{name}: texts from \"text\", labels from \"label\"\n")), "{}", ran.err);
    }
    assert_eq!(labels(booleans.path()), ["false", "true"]);
    let upper = file("excel.csv", "text,label\na,TRUE\nb,FALSE\n");
    let named = ["--model", path(booleans.path()), "--train-file", path(&upper.1), "--label-names", "bad,good", "--dry-run"];
    let ran = super::ran(TRAIN, &named).done();
    assert!(ran.err.contains("training: 2 texts: bad: 1, good: 1\n"), "{}", ran.err);
    for file in [&case("booleans/train.csv"), &validation, &test, &upper.1] {
        evaluate(booleans.path(), file, &[]).done();
    }

    // Numbers beside names mean nothing until they are named.
    let validation = case("labels/names_numbers/validation.csv");
    let out = TempDir::new().unwrap();
    let args = ["--validation-file", path(&validation)];
    let train = case("labels/names_numbers/train.csv");
    learn(model(None).path(), out.path(), &train, &args)
        .failed(2, "validation.csv`: the labels are numbers (0, 1), but names in ");
    let named = [&args[..], &["--label-names", "neg,pos"]].concat();
    let ran = learn(model(None).path(), out.path(), &train, &named).done();
    assert_eq!(ran.err.matches("8 texts: neg: 4, pos: 4\n").count(), 2, "{}", ran.err);
}

#[test]
fn doubtful_labels_are_reported() {
    for (name, notes, names) in [
        ("nan_text", &[":4: the label \"nan\" looks like a missing value"][..], &["0", "1", "nan"][..]),
        ("none_text", &[":4: the label \"None\" looks like"], &["0", "1", "None"]),
        ("sentinel", &[":9: the label \"?\" looks like"], &["0", "1", "?"]),
        ("mixed", &[":3: the label \"positive\" is a name among 0, 1"], &["0", "1", "positive"]),
        ("spaces", &["spaces around labels are removed"], &["negative", "positive"]),
        ("codes", &["0111: 3, 0112: 3, 0113: 2\n"], &["0111", "0112", "0113"]),
        ("neg1", &["-1: 4, 0: 2, 1: 2\n"], &["-1", "0", "1"]),
        (
            "case",
            &["the labels Negative, negative differ only in case", "POSITIVE, Positive, positive differ only in case"],
            &["Negative", "POSITIVE", "Positive", "negative", "positive"],
        ),
    ] {
        let (out, ran) = learnt(&format!("labels/{name}.csv"), &["--max-steps", "1"]);
        assert!(notes.iter().all(|note| ran.err.contains(note)), "{name}: {}", ran.err);
        let mut found = labels(out.path());
        found.sort();
        let mut names = names.to_vec();
        names.sort();
        assert_eq!(found, names, "{name}");
    }
    for (content, notes) in [
        (
            "text,label\na,caf\u{e9}\nb,cafe\u{301}\n",
            &["cafe\u{301}, caf\u{e9} differ only in case, spaces, hyphens or Unicode form"][..],
        ),
        ("text,label\na,pos\u{200b}\nb,pos\n", &["pos, pos\u{fffd} differ only in"]),
        (
            "text,label\na,very positive\nb,very_positive\nc,-1\nd,1\n",
            &["the labels very positive, very_positive differ only in"],
        ),
        ("text,label\na,\"x,y\"\nb,x\n", &["a.csv:2: the label \"x,y\" looks like a list of classes"]),
        ("text,label\n,1\nb,0\n \t,1\n", &["a.csv:2: empty texts, which are kept as [CLS] [SEP]: 2"]),
        ("text,label\na,True\nb,0\nc,1\n", &["the labels 0 and 1 are read as false and true", "false: 1, true: 2\n"]),
        ("text;label\na;1,0\nb;2,0\n", &["1: 1, 2: 1\n"]),
    ] {
        let (_folder, path) = file("a.csv", content);
        let model = model(None);
        let args =
            ["--model", super::path(model.path()), "--train-file", super::path(&path), "--ignore-mismatched-sizes", "--dry-run"];
        let ran = ran(TRAIN, &args).done();
        assert!(notes.iter().all(|note| ran.err.contains(note)), "{content}: {}", ran.err);
    }
    let validation = case("labels/typo/validation.csv");
    let (_, ran) = learnt("labels/typo/train.csv", &["--max-steps", "1", "--validation-file", path(&validation)]);
    assert!(ran.err.contains("validation.csv:5: no training row has the label \"pso\"\n"), "{}", ran.err);
    assert!(ran.err.contains("validation: 8 texts: neg: 4, pos: 3, pso: 1\n"), "{}", ran.err);
}

#[test]
fn splits_keep_what_training_needs() {
    let (_, ran) = learnt("labels/rare.csv", &["--validation-split", "0.9", "--max-steps", "1"]);
    assert!(ran.err.contains("training: 3 texts: LABEL_0: 1, LABEL_1: 1, LABEL_2: 1\n"), "{}", ran.err);
    let (out, validation) = (TempDir::new().unwrap(), case("max-train-samples/sorted_val.csv"));
    let few = ["--validation-file", path(&validation), "--max-train-samples", "50"];
    learn(model(None).path(), out.path(), &case("max-train-samples/sorted.csv"), &few)
        .failed(2, "every label of the 50 rows to train on is \"LABEL_0\"");

    for (data, more, part) in [
        ("unlabelled-test/sst2", &[][..], "test-00000-of-00001.parquet: the test split has no labels, and is left out"),
        ("unlabelled-test/kaggle", &["--validation-split", "0.2"], "test.csv: the test split has no labels, and is left out"),
    ] {
        let (out, data) = (TempDir::new().unwrap(), case(data));
        let model = model(None);
        let args = ["--model", path(model.path()), "--output-dir", path(out.path()), "--data-dir", path(&data), "--epochs", "1"];
        let ran = super::ran(TRAIN, &[&args[..], more].concat()).done();
        assert!(ran.err.contains(part) && !ran.out.contains("test  "), "{}", ran.err);
        let card = fs::read_to_string(out.path().join("README.md")).unwrap();
        assert!(!card.contains("test.csv") && card.contains("accuracy"), "{card}");
    }
    let (model, kaggle) = (model(None), case("unlabelled-test/kaggle"));
    let args = ["--model", path(model.path()), "--data-dir", path(&kaggle), "--fail-under", "accuracy=0.5", "--dry-run"];
    super::ran(TRAIN, &args).failed(2, "`--fail-under`: there is nothing to evaluate on");
    // A test file that is asked for must have labels.
    let test = case("unlabelled-test/kaggle/test.csv");
    let train = case("unlabelled-test/kaggle/train.csv");
    learn(model.path(), &out.path().join("asked"), &train, &["--test-file", path(&test)]).failed(2, "no label column among");
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let out = TempDir::new().unwrap();
    let model = model(None);
    let faults = [
        ("a.csv", "sentence1,sentence2,label\na,b,0\nc,d,1\n", "pairs of texts are not supported; name one of them"),
        ("a.tsv", "index\tquestion\tsentence\tlabel\n0\ta\tb\t0\n1\tc\td\t1\n", "question and sentence are two texts per row"),
        ("a.jsonl", "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": 1}\n", "pairs of texts are not supported"),
        ("a.csv", "text,text_pair,label\na,b,0\nc,d,1\n", "pairs of texts are not supported"),
        ("a.csv", "text;label\na;3,5\nb;2,75\n", "the label 3.5 is not a whole number, and regression is not supported"),
        ("a.csv", "text,label\na,3.5\nb,2.75\n", "the label 3.5 is not a whole number, and regression is not supported"),
        ("a.jsonl", "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\": 0.25}\n", "a.jsonl:2`: the label 0.25 is not"),
        ("a.csv", "text,label\na,1.5e0\nb,nan\n", "regression is not supported"),
        ("a.jsonl", "{\"text\": \"a\", \"labels\": [0, 2]}\n", "several labels per text are not supported"),
        ("a.csv", "text,labels\na,\"[0, 2]\"\nb,[1]\n", "a.csv:2`: the label \"[0, 2]\" is a list, and several labels per text"),
        ("a.csv", "id,text,label\n1,a,joy\n2,b,anger\n3,c,joy#anger\n", "several labels per text are not supported"),
        (
            "a.csv",
            "text,choice\na,\"{\"\"choices\"\":[\"\"joy\"\",\"\"fear\"\"]}\"\nb,joy\n",
            "several labels per text are not supported",
        ),
        ("a.csv", "text,labels\na,joy\nb,anger\nc,\"joy,anger\"\n", "several labels per text are not supported"),
        ("a.tsv", "text\tlabels\na\t3,10\nb\t2\n", "several labels per text are not supported"),
        ("a.csv", "id,text,toxic,obscene,threat\n1,a,0,0,1\n2,b,1,1,0\n", "several label columns (multi-label classification)"),
        ("a.csv", "id,comment_text,toxic,obscene\n1,a,0,0\n2,b,1,1\n", "several label columns (multi-label classification)"),
    ];
    assert_none(faults.iter().map(|(name, content, part)| {
        let (_folder, file) = file(name, content);
        learn(model.path(), &out.path().join("none"), &file, &[]).fault(2, part)
    }));
    // With a column named, one text of a pair is what is asked for.
    let (_folder, pairs) = file("a.csv", "sentence1,sentence2,label\na,b,0\nc,d,1\n");
    learn(model.path(), &out.path().join("one"), &pairs, &["--text-column", "sentence2"]).done();

    for (name, beside) in [("WORLD_SIZE", None), ("SLURM_NTASKS", Some("SLURM_PROCID")), ("OMPI_COMM_WORLD_SIZE", None)] {
        let args = ["--model", path(model.path()), "--train-file", path(&pairs), "--text-column", "sentence2", "--dry-run"];
        let ranks = |count: &str| {
            let mut command = program(TRAIN);
            command.args(args).env(name, count).env(beside.unwrap_or("UNUSED"), "0");
            run(&mut command, b"")
        };
        ranks("2").failed(2, &format!("`{name}`: is 2, but training in several processes is not supported"));
        ranks("1").done();
    }
}

#[test]
fn a_dry_run_ends_as_the_run() {
    let (folder, two) = file("two.csv", "text,label\ngood great,1\nbad,0\n");
    let six = folder.path().join("six.csv");
    fs::write(&six, "text,label\nu,a\nv,b\nw,c\nx,d\ny,e\nz,f\n").unwrap();
    let change = |edit: &dyn Fn(&Path)| {
        let model = copy("train/hf_init");
        edit(&model.path().join("model.safetensors"));
        model
    };
    let header = |file: &Path, edit: &dyn Fn(String) -> String| {
        let bytes = fs::read(file).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (json, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let json = edit(String::from_utf8(json.to_vec()).unwrap());
        fs::write(file, [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), data].concat()).unwrap();
    };
    let pickle = change(&|file| fs::rename(file, file.with_file_name("pytorch_model.bin")).unwrap());
    let short = change(&|file| fs::write(file, &fs::read(file).unwrap()[..200_000]).unwrap());
    let doubles = change(&|file| header(file, &|json| json.replace("F32", "U32")));
    let renamed = change(&|file| header(file, &|json| json.replace("distilbert.", "module.x.")));
    let nan = change(&|file| {
        let mut bytes = fs::read(file).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(file, bytes).unwrap();
    });
    let whole = change(&|_| ());
    for (model, data, part) in [
        (&pickle, &two, "its weights are a pickle"),
        (&short, &two, "the file is truncated"),
        (&doubles, &two, "but must be F32, F16 or BF16"),
        (&renamed, &two, "of the model's"),
        (&nan, &two, "holds NaN at element"),
        (&whole, &six, "classifier.weight is [2, 64], but must be [6, 64]"),
    ] {
        for more in [&[][..], &["--dry-run"]] {
            let out = folder.path().join("out");
            let args = ["--model", path(model.path()), "--train-file", path(data), "--output-dir", path(&out)];
            ran(TRAIN, &[&args[..], more].concat()).failed(2, part);
        }
    }
    let args = ["--model", path(whole.path()), "--train-file", path(&six), "--dry-run"];
    ran(TRAIN, &[&args[..], &["--ignore-mismatched-sizes"]].concat()).done();
}

#[test]
fn rounded_probabilities_stay_probabilities() {
    let loss = |file: &Path| {
        let ran = super::ran(EVALUATE, &["--predictions", path(file)]).done();
        let loss: f64 = words(&ran.out)[1].parse().unwrap();
        (loss, ran.err)
    };
    for name in ["exact", "rounded2", "one_rounded"] {
        let (loss, notes) = loss(&case(&format!("rounded-probabilities/{name}.jsonl")));
        assert!(
            (loss - 0.198).abs() < 1e-3 && notes.starts_with("predictions: 30: LABEL_0: 10, LABEL_1: 10, LABEL_2: 10\n\nnext "),
            "{name}: {loss} {notes}"
        );
    }
    let percent = case("rounded-probabilities/percent.jsonl");
    ran(EVALUATE, &["--predictions", path(&percent)]).failed(2, "percent.jsonl:1`: the scores are percentages");
    let whole = TempDir::new().unwrap();
    let whole = whole.path().join("whole.jsonl");
    let row = |label: usize, scores: [u8; 3]| format!("{{\"label\": {label}, \"scores\": {scores:?}}}\n");
    fs::write(&whole, row(0, [33, 33, 33]) + &row(1, [20, 70, 10])).unwrap();
    ran(EVALUATE, &["--predictions", path(&whole)]).failed(2, "whole.jsonl:1`: the scores are percentages");
    let row = |label: usize, scores: [f64; 2]| format!("{{\"label\": {label}, \"scores\": {scores:?}}}\n");
    let (_folder, thousandths) = file("p.jsonl", &(row(0, [900.0, 100.0]) + &row(1, [300.0, 700.0])));
    ran(EVALUATE, &["--predictions", path(&thousandths)])
        .failed(2, "p.jsonl:1`: the scores are shares of one sum: they sum to about 1000");
    let (_folder, zero) = file("p.jsonl", &(row(0, [0.0, 1.0]) + &row(1, [0.0, 1.0])));
    let zero = ran(EVALUATE, &["--predictions", path(&zero)]).done();
    assert!(zero.err.contains("note: the loss is infinite, since labels have a probability of 0: 1"), "{}", zero.err);
    // Many classes, of which most are rounded to 0.
    let row = |label: usize| json!({"label": label, "scores": (0..30).map(|class| if class == label { 0.8 } else { 0.0 }).collect::<Vec<f64>>()});
    let (_folder, many) = file("p.jsonl", &[row(0), row(1)].map(|row| row.to_string()).join("\n"));
    assert_eq!(loss(&many).0, 0.0, "scaled to 1");
    assert!(ran(EVALUATE, &["--predictions", path(&many)]).done().out.starts_with("loss 0.0000 "));
    let (_folder, logits) = file("p.jsonl", "{\"label\": 1, \"scores\": [-1.0, 1.0]}\n{\"label\": 0, \"scores\": [0.5, 0.5]}\n");
    let (found, notes) = loss(&logits);
    let expected = (f64::exp(-2.0).ln_1p() + 2f64.ln()) / 2.0;
    assert!(
        (found - expected).abs() < 1e-4
            && notes.contains("p.jsonl:1: the score -1 is negative, so the scores of all rows are taken as logits"),
        "{found} {notes}"
    );
    let odd = "{\"label\": 1, \"scores\": [0.1, 0.9]}\n{\"label\": 0, \"scores\": [0.75, 0.25]}\n{\"label\": 0, \"scores\": [0.75, 0.5]}\n";
    let (_folder, odd) = file("p.jsonl", odd);
    ran(EVALUATE, &["--predictions", path(&odd)]).failed(2, "p.jsonl:3`: the scores sum to 1.2500, but those of other rows to 1");
}

#[test]
fn the_positive_class_is_the_one_that_is_named() {
    let stars =
        |model: &Path, more: &[&str]| ran(PREDICT, &[&["--model", path(model), "--stars", "good great lovely"], more].concat());
    let (_folder, data) = file(
        "a.csv",
        &fs::read_to_string(case("label-names/pos_neg.csv")).unwrap().replace(",pos", ",bom").replace(",neg", ",ruim"),
    );
    let out = TempDir::new().unwrap();
    let ran = learn(model(None).path(), out.path(), &data, &["--positive-label", "bom", "--validation-split", "0.5"]).done();
    assert!(ran.out.contains("validation  loss "), "{}", ran.out);
    stars(out.path(), &[])
        .failed(2, "`--stars`: the names of the 2 classes do not tell which one is good; name it with --positive-label");
    assert_eq!(stars(out.path(), &["--positive-label", "bom"]).done().json()[0]["stars"], 10);
    assert_eq!(stars(out.path(), &["--positive-label", "ruim"]).done().json()[0]["stars"], 1);

    // One of the two rows of bom is taken for ruim.
    let (_folder, mixed) =
        file("a.csv", "text,label\ngood great lovely,bom\nbad awful worst,bom\nbad awful,ruim\nbad worst,ruim\n");
    let recall = |more: &[&str]| {
        let report = TempDir::new().unwrap();
        evaluate(out.path(), &mixed, &[&["--output-dir", path(report.path())], more].concat()).done();
        super::read(report.path(), "metrics.json")["recall"].clone()
    };
    assert_eq!((recall(&[]), recall(&["--positive-label", "bom"])), (json!(1.0), json!(0.5)));
    evaluate(out.path(), &mixed, &["--positive-label", "otimo"])
        .failed(2, "`--positive-label`: no class is named otimo; name one of bom, ruim");
    assert_eq!(Value::Null, super::read(out.path(), "training_args.json")["test_may_lack_labels"]);
}

/// Names of the model as well, or of its own: three are given, so there are three classes.
#[test]
fn given_names_are_classes_without_rows_too() {
    let (_folder, file) = file("two.csv", "text,label\ngood great film,pos\nbad awful film,neg\ngood film,pos\nbad film,neg\n");
    let names = ["--label-names", "neg,pos,neutral"];
    for own in [None, Some(&["negative", "positive"][..])] {
        let (model, out) = (model(own), TempDir::new().unwrap());
        let ran = learn(model.path(), out.path(), &file, &names).done();
        assert_eq!(labels(out.path()), ["neg", "pos", "neutral"], "{own:?}");
        assert!(ran.err.contains("two.csv: no training row has these of --label-names: neutral\n"), "{}", ran.err);
        assert!(ran.err.contains("training: 4 texts: neg: 2, pos: 2, neutral: 0\n"), "{}", ran.err);
        let described = crate::cli::ran("describe", &[&[path(&file), "--model", path(model.path())][..], &names].concat()).done();
        assert!(described.out.contains("training: no text has the label neutral."), "{}", described.out);
    }
    let model = model(Some(&["negative", "positive"]));
    let (args, out) = (["--model", path(model.path()), "--train-file", path(&file)], TempDir::new().unwrap());
    let refused = ran(TRAIN, &[&args[..], &["--output-dir", path(out.path())], &names].concat());
    refused.failed(2, "for another number of labels train with --ignore-mismatched-sizes");
    // The model's own, in another order and with as many names, stay the model's.
    let same = learn(model.path(), out.path(), &file, &["--label-names", "pos,neg"]).done();
    assert!(labels(out.path()) == ["negative", "positive"] && !same.err.contains("no training row"), "{}", same.err);
}

#[test]
fn a_long_label_is_cut_on_the_terminal_and_whole_in_the_files() {
    let (long, dir) = ("a label of 300 characters ".repeat(12)[..300].trim().to_string(), TempDir::new().unwrap());
    let rows: String = (0..20).map(|row| format!("text {row},{}\n", [&long, "short"][row % 2])).collect();
    let (_folder, data) = file("long.csv", &format!("text,label\n{rows}"));
    let [out, report] = ["out", "report"].map(|name| dir.path().join(name));
    let (init, model) = (golden("train/hf_init"), path(&out));
    learn(&init, &out, &data, &["--max-steps", "1"]).done();
    for args in [
        &["evaluate", "--model", model, path(&data), "--output-dir", path(&report)][..],
        &["evaluate", "--compare", path(&report), path(&report)],
        &["describe", path(&data)],
        &["embed", "--model", model, "--probe", "--train-file", path(&data), "--test-file", path(&data)],
        &["predict", "--model", model, "--format", "text", "--top-k", "0", "good"],
    ] {
        let shown = ran(args[0], &args[1..]).done().out;
        assert!(shown.contains("a label of") && shown.contains('…') && shown.contains("short"), "{args:?}: {shown}");
        let widest = shown.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= if args[0] == "predict" { 200 } else { 120 }, "{args:?}: {widest} columns\n{shown}");
    }
    assert!(labels(&out).contains(&long));
    for name in ["classification_report.txt", "errors.csv", "report.html"] {
        assert!(fs::read_to_string(report.join(name)).unwrap().contains(&long), "{name}");
    }
    assert!(ran(PREDICT, &["--model", model, "--top-k", "0", "good"]).done().out.contains(&long));
}
