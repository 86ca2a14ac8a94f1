//! Invalid and unusual files of texts and labels.

use crate::fixtures::golden;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

use super::*;

#[test]
fn invalid_files_are_reported_in_one_line() {
    let dir = TempDir::new().unwrap();
    let parquet = fs::read(golden("../../src/sample/train.parquet")).unwrap();
    let long = format!("text,label\n{},0\nb,1,2\n", "x".repeat(2_000_000));
    // Errors of all commands: train and evaluate read labels too, predict only texts.
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
        ("a.csv", b"text,label\na,0\n\nb,1,2\n", "a.csv:4`: 3 fields, but the header has 2"),
        ("a.csv", b"text,label\na\n", "a.csv:2`: 1 field, but the header has 2"),
        ("a.csv", b"text,text\na,0\n", "two columns are named text"),
        ("a.csv", b"x,y,z\na,0,1\n", "no text column among x, y, z"),
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
        ("a.pdf", b"text,label\na,0\n", "cannot tell the format from the file extension; use one of .csv"),
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
        ("a.csv", b"text,label\na,0\nb,0\n", "to train on is \"NEGATIVE\""),
        ("a.csv", b"text,label\na,0\n", "to train on is \"NEGATIVE\""),
        ("a.csv", b"text\na\n", "no label column among text"),
        ("a.csv", b"text,x,y\na,0,1\n", "no label column among text, x, y"),
        ("a.jsonl", b"{\"text\": \"a\", \"label\": [0, 1]}\n", "a.jsonl:1`: label is a list or an object"),
        ("a.txt", b"a;0\nb\n", "a.txt:2`: there is no ; between a text and a label"),
        ("a.txt", b"text;label\n", "a.txt`: no rows"),
        ("a.txt", b"a;0\nb;\n", "a.txt:2`: the label is missing"),
        ("a.txt", b"a;0\nb\xff;1\n", "a.txt:2`: not UTF-8"),
    ];
    // Compared with the classes of the model.
    let evaluating: Vec<(&str, &[u8], &str)> = vec![
        ("a.csv", b"text,label\na,0\nb,2\n", "a.csv:3`: the label 2 is out of range"),
        ("a.csv", b"text,label\na,0\nb,-1\n", "a.csv:3`: the label -1 is negative"),
        ("a.csv", b"text,label\na,0\nb,0.5\n", "a.csv:3`: the label 0.5 is not a whole number"),
        ("a.csv", b"text,label\na,0\nb,\n", "a.csv:3`: the label is missing"),
        ("a.txt", b"a;joy\n", "a.txt:1`: the label \"joy\" is not one of the classes"),
        ("a.json", b"[{\"text\": \"a\"}]", "no label column among text"),
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
fn paths_that_are_not_files_are_reported_in_one_line() {
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
    // An invalid output path.
    predict(&["--output", path(&at("folder.csv")), "good"]).failed(2, "folder.csv`: is a folder");
    predict(&["--output", path(&at("none/out.jsonl")), "good"]).failed(2, "none/out.jsonl`: no such file or folder");
    predict(&["--output", path(&at("loop.csv")), "good"]).failed(2, "loop.csv`: ");
    fs::write(at("in.txt"), "good\n").unwrap();
    predict(&["--input", path(&at("in.txt")), "--output", path(&at("in.txt"))]).failed(2, "in.txt`: is a file that is read");
    assert_eq!(fs::read_to_string(at("in.txt")).unwrap(), "good\n");
}

/// A model, a data set and an input are not replaced by what is made of them.
#[test]
fn outputs_replace_nothing_that_is_read() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in names(&golden("text/hf")) {
        fs::create_dir_all(at("model")).unwrap();
        fs::copy(golden("text/hf").join(&name), at("model").join(&name)).unwrap();
    }
    fs::create_dir(at("data")).unwrap();
    fs::write(at("data/test.csv"), "text,label\ngood,1\nbad,0\n").unwrap();
    let run_in = |command: &str, args: &str| run(program(command).current_dir(&dir).args(words(args)), b"good\n");
    run_in(EVALUATE, "--model model data/test.csv --output-dir report").done();
    let before = names(dir.path());
    for (command, args, fact) in [
        (PREDICT, "--model model --output model/config.json", "`model/config.json`: is a file that is read"),
        ("embed", "--model model --output model/model.safetensors", "model.safetensors`: is a file that is read"),
        (PREDICT, "--model model --dataset data --split test --output data/test.csv", "data/test.csv`: is a file that is read"),
        (EVALUATE, "--model model report/errors.csv --output-dir report", "`report/errors.csv`: is a file that is read"),
    ] {
        run_in(command, args).failed(2, fact);
    }
    for _ in 0..2 {
        run_in(PREDICT, "--model model --output model/predictions.jsonl").done();
    }
    assert_eq!((names(dir.path()), fs::read_to_string(at("data/test.csv")).unwrap().lines().count()), (before, 3));
}

#[test]
fn a_file_that_is_replaced_keeps_its_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("private.jsonl");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    predict(&["--output", path(&file), "good"]).done();
    assert_eq!((json_lines(&file).len(), fs::metadata(&file).unwrap().permissions().mode() & 0o777), (1, 0o600));
}

#[test]
fn an_output_that_is_a_link_is_written_where_it_leads() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("there")).unwrap();
    fs::write(at("there/old.jsonl"), "of yesterday").unwrap();
    let links = [("old.jsonl", "there/old.jsonl"), ("new.jsonl", "there/new.jsonl"), ("chain.jsonl", "new.jsonl")];
    for (link, target) in links {
        std::os::unix::fs::symlink(target, at(link)).unwrap();
        predict(&["--output", path(&at(link)), "good"]).done();
        assert!(at(link).is_symlink(), "{link}");
        assert_eq!(json_lines(&at(link)).len(), 1, "{link}");
    }
    std::os::unix::fs::symlink("there/new.safetensors", at("new.safetensors")).unwrap();
    let model = golden("text/hf");
    ran_with("embed", &["--model", path(&model), "--output", path(&at("new.safetensors"))], b"good\n").done();
    assert!(at("new.safetensors").is_symlink());
    assert_eq!(names(&at("there")), BTreeSet::from(["old.jsonl", "new.jsonl", "new.safetensors"].map(String::from)));
    std::os::unix::fs::symlink("/dev/stdout", at("stdout.jsonl")).unwrap();
    assert_eq!(predict(&["--output", path(&at("stdout.jsonl")), "good"]).done().json().len(), 1);
}

#[test]
fn unreadable_files_are_reported_in_one_line() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    // All files are accessible to any user: root can read everything, and has to become another user.
    let dir = TempDir::new().unwrap();
    let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    permit(dir.path(), 0o755);
    let (binary, model, file) = (dir.path().join("warpfit"), dir.path().join("model"), dir.path().join("a.csv"));
    // By another process: what another test starts meanwhile would inherit a file that is open for writing, which cannot be run.
    assert!(Command::new("cp").arg(program(PREDICT).get_program()).arg(&binary).status().unwrap().success());
    fs::create_dir(&model).unwrap();
    for name in names(&golden("text/hf")) {
        fs::copy(golden("text/hf").join(&name), model.join(&name)).unwrap();
    }
    fs::write(&file, "text\ngood\n").unwrap();
    let predict = || {
        let mut command = without_colour_settings(Command::new(&binary));
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
    assert!(trained.err.contains("training: 1 of 11 texts truncated to 64 tokens"), "{}", trained.err);
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
    assert!(!people.contains('\u{1b}'), "control sequences of a text reach the terminal");
    ran(PREDICT, &["--model", path(&out), "--stars", "x"])
        .failed(2, "`--stars`: the names of the 3 classes do not tell which one is good; leave out the flag");
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_that_the_files_of_a_run_could_not_hold_is_refused_at_once() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = TempDir::new().unwrap();
    let odd = |name: &str| dir.path().join(OsStr::from_bytes(&[name.as_bytes(), b"\xff"].concat()));
    let data = odd("data");
    fs::create_dir(&data).unwrap();
    fs::create_dir(dir.path().join("splits")).unwrap();
    fs::copy(golden("train/train.csv"), data.join("train.csv")).unwrap();
    fs::copy(golden("train/train.csv"), dir.path().join("splits").join(OsStr::from_bytes(b"train.\xff.csv"))).unwrap();
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let (out, splits) = (dir.path().join("out"), dir.path().join("splits"));
    for (flag, given, place) in [
        ("--train-file", [data.join("train.csv"), out.clone()], "`--train-file`: "),
        ("--train-file", [file.clone(), odd("out")], "`--output-dir`: "),
        ("--data-dir", [splits, out], "its name is not UTF-8"),
    ] {
        for more in [&["--dry-run"][..], &[]] {
            let mut command = program(TRAIN);
            command.args(["--model", path(&model), "--max-steps", "1", flag]).arg(&given[0]).arg("--output-dir").arg(&given[1]);
            run(command.args(more), b"").failed(2, place);
            assert!(!given[1].exists());
        }
    }
}
