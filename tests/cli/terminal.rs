//! What a terminal shows: lines that fit it, a table of evaluations, and colour where it is wanted.

use std::fs;
use std::process::Command;

use tempfile::TempDir;
use warpfit::console::Look;

use super::*;

/// The lines that a command shows on a terminal of 80 columns, without those that are drawn over, and all that was written.
fn on_a_terminal(command: &str, args: &[&str], env: &[(&str, &str)]) -> (Vec<String>, String) {
    on_a_terminal_of(80, command, args, env)
}

fn on_a_terminal_of(columns: usize, command: &str, args: &[&str], env: &[(&str, &str)]) -> (Vec<String>, String) {
    let program = program(command);
    let words = [program.get_program()].into_iter().chain(program.get_args()).map(|word| word.to_str().unwrap());
    let words: Vec<String> = words.chain(args.iter().copied()).map(warpfit::flags::quoted).collect();
    let mut terminal = without_colour_settings(Command::new("script"));
    terminal.args(["-qec", &format!("stty cols {columns} rows 24; {}", words.join(" ")), "/dev/null"]);
    terminal.env("TERM", "xterm-256color").env("HF_HUB_OFFLINE", "1").envs(env.iter().copied());
    let all = run(&mut terminal, b"").done().out;
    let mut shown = String::new();
    let mut codes = all.split('\u{1b}');
    shown += codes.next().unwrap();
    for code in codes {
        let end = code.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        shown += &code[end + 1..];
    }
    let lines = shown.split('\n').map(|line| line.trim_end_matches('\r').rsplit('\r').next().unwrap().to_string());
    (lines.filter(|line| !line.is_empty()).collect(), all)
}

/// Codes that set colours and weights, and not those that move the cursor.
fn is_coloured(all: &str) -> bool {
    all.split('\u{1b}').skip(1).any(|code| code[..=code.find(|c: char| c.is_ascii_alphabetic()).unwrap()].ends_with('m'))
}

#[test]
fn every_command_fits_80_columns() {
    let dir = TempDir::new().unwrap();
    let long = dir.path().join("a folder with a rather long name, as they come from other people's machines");
    fs::create_dir(&long).unwrap();
    let (root, model, file, test) =
        (golden(""), golden("train/hf_init"), long.join("the training data of the month.csv"), golden("train/test.csv"));
    fs::copy(golden("train/train.csv"), &file).unwrap();
    let (out, report) = (long.join("out"), long.join("report"));
    let [model, file, test, out, report] = [&model, &file, &test, &out, &report].map(|path| super::path(path));
    let training = ["--model", model, "--train-file", file, "--validation-file", test, "--output-dir", out, "--epochs", "2"];
    let training = [&training[..], &["--metric-for-best-model", "matthews_correlation"]].concat();
    let checkout = super::path(&root);
    let mut seen = 0;
    for (command, args) in [
        ("describe", vec![file, "--model", model]),
        (TRAIN, training.to_vec()),
        (TRAIN, vec!["--resume-from-checkpoint", out, "--epochs", "3"]),
        (EVALUATE, vec!["--model", out, test, "--output-dir", report]),
        (EVALUATE, vec!["--compare", report, report]),
        (EVALUATE, vec!["--compare", out, out]),
        (PREDICT, vec!["--model", out, "--format", "text", test]),
        ("embed", vec!["--model", out, "--probe", "--train-file", file, "--test-file", test]),
        ("tokenize", vec!["--model", out, "A film that is longer than it needed to be, and better than anyone had expected."]),
        (TRAIN, vec!["--help"]),
        (EVALUATE, vec!["--help"]),
    ] {
        let (lines, all) = on_a_terminal(command, &args, &[]);
        for line in lines {
            // A path is not broken, and a command is one to copy.
            let is_longer_word = line.split(' ').any(|word| word.chars().count() > 60);
            let has_path = line.contains("a folder with a rather long name") || line.contains(checkout);
            assert!(line.chars().count() <= 80 || is_longer_word || has_path, "{command} {args:?}: {line}");
            seen += 1;
        }
        assert_eq!(is_coloured(&all), !["tokenize"].contains(&command), "{command} {args:?}: {all:?}");
    }
    assert!(seen > 200, "{seen}");
}

#[test]
fn colour_is_for_terminals_that_have_it() {
    let (model, test) = (trained(), golden("train/test.csv"));
    let args = ["--model", path(model.path()), path(&test)];
    assert!(is_coloured(&on_a_terminal(EVALUATE, &args, &[]).1));
    for env in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let (lines, all) = on_a_terminal(EVALUATE, &args, &[env]);
        assert!(!is_coloured(&all) && lines.iter().any(|line| line.starts_with("next ")), "{env:?}: {all:?}");
    }
    let plain = ran(EVALUATE, &args).done();
    assert!(!plain.out.contains('\u{1b}') && !plain.err.contains('\u{1b}'), "{}", plain.err);
    // A file is not wrapped.
    assert!(plain.out.lines().next().unwrap().chars().count() > 80, "{}", plain.out);
}

#[test]
fn lines_are_wrapped_between_words_or_fields() {
    let look = Look { columns: Some(40), colour: false };
    for (line, wanted) in [
        (
            "note: a sentence that is longer than the terminal is wide",
            "note: a sentence that is longer than the\n  terminal is wide",
        ),
        (
            "validation  loss 0.5842  accuracy 0.7900  precision 0.7984",
            "validation  loss 0.5842  accuracy 0.7900\n            precision 0.7984",
        ),
        (
            "saved       a-path/that-is-longer/than-the/terminal-is-wide.json",
            "saved       a-path/that-is-longer/than-the/terminal-is-wide.json",
        ),
        ("short", "short"),
        ("two\nlines", "two\nlines"),
    ] {
        assert_eq!(look.dressed(line), wanted);
        assert_eq!(Look::default().dressed(line), line);
    }
    let coloured = Look { columns: None, colour: true };
    assert_eq!(coloured.dressed("error: no"), "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m no");
    assert_eq!(coloured.dressed("an error: no"), "an error: no");
}

#[test]
fn what_is_in_quotation_marks_is_not_broken() {
    let look = Look { columns: Some(60), colour: false };
    for (line, whole) in [
        (
            "stopped: after 3 of 40 updates; resume with train --resume-from-checkpoint '/tmp/a folder with spaces'",
            "'/tmp/a folder with spaces'",
        ),
        (
            "model: the folder's own classifier is trained on with the name \"a class of several words\", which is long",
            "\"a class of several words\",",
        ),
        (
            "note: the file is named 'it'\\''s a file of mine', and that is a name that needs quotation marks",
            "'it'\\''s a file of mine',",
        ),
    ] {
        let shown = look.dressed(line);
        assert!(
            shown.lines().any(|line| line.contains(whole)) && shown.lines().all(|line| line.chars().count() <= 60),
            "{shown}"
        );
    }
    let apostrophes =
        look.dressed("note: 'tis a line with an apostrophe at the beginning of a word, and it is wrapped all the same");
    assert_eq!(apostrophes.lines().count(), 2, "{apostrophes}");
    let command =
        look.command("warpfit predict --model 'a folder --with a flag in its name' --text \"What -- a --film!\" --quiet");
    let indent = " ".repeat(16);
    let wanted =
        ["warpfit predict --model 'a folder --with a flag in its name' \\", "--text \"What -- a --film!\" \\", "--quiet"];
    assert_eq!(command, wanted.join(&format!("\n{indent}")));
}

#[test]
fn descriptions_and_tokens_fit_60_columns() {
    let dir = TempDir::new().unwrap();
    let (model, file) = (golden("train/hf_init"), dir.path().join("a.csv"));
    let long = "good ".repeat(1200);
    let rows = format!("text,label\n{long},a label with a long name\n{long}a,another label with a long name\n{long},b\nbad,b\n");
    fs::write(&file, rows).unwrap();
    for (command, args) in [
        ("describe", vec![path(&file), "--model", path(&model), "--max-length", "16"]),
        (
            "tokenize",
            vec![
                "--model",
                path(&model),
                "--max-length",
                "16",
                "A film that is longer than it needed to be, and better than anyone had expected.",
            ],
        ),
    ] {
        let (lines, _) = on_a_terminal_of(60, command, &args, &[]);
        assert!(lines.len() > 10, "{lines:?}");
        for line in lines.iter().filter(|line| !line.contains(path(dir.path())) && !line.contains(path(&model))) {
            assert!(line.chars().count() <= 60, "{command}: {line}");
        }
    }
}

/// Characters that reorder a line, or move the cursor, do nothing in labels, texts and names.
#[test]
fn control_characters_are_not_shown() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("a.csv");
    let odd = "x\u{202e}y\u{2066}z\u{1b}[31m";
    fs::write(&file, format!("text,label\ngood {odd},{odd}\nbad {odd},b\nbad,b\n")).unwrap();
    let model = golden("text/hf");
    for (command, shown, args) in [
        ("describe", "x y z", vec![path(&file)]),
        ("tokenize", "##y", vec!["--model", path(&model), odd]),
        (PREDICT, "x y z", vec!["--model", path(&model), "--format", "text", odd, "good"]),
        (EVALUATE, "x y z", vec!["--model", path(&model), path(&file)]),
        (
            TRAIN,
            "x y z",
            vec!["--model", path(&model), "--train-file", path(&file), "--output-dir", path(dir.path()), "--device", odd],
        ),
    ] {
        let ran = ran(command, &args);
        let all = ran.out + &ran.err;
        assert!(all.contains(shown) && !all.contains(['\u{202e}', '\u{2066}', '\u{1b}']), "{command}: {all:?}");
    }
    assert_eq!(Look::default().dressed("note: x\u{202e}y\nz"), "note: x y\nz");
}

#[test]
fn evaluations_are_rows_of_a_table() {
    let (out, test) = (TempDir::new().unwrap(), golden("train/test.csv"));
    let flags = words("--epochs 2 --save-strategy epoch --eval-strategy epoch");
    let ran = train(out.path(), &[&flags[..], &["--validation-file", path(&test)]].concat()).done();
    let rows: Vec<Vec<&str>> = ran.err.lines().skip_while(|line| !line.contains("validation loss")).map(words).take(3).collect();
    assert_eq!(rows[0], words("epoch step training loss validation loss accuracy f1"), "{}", ran.err);
    let log = json_lines(&out.path().join("metrics.jsonl"));
    for (row, epoch) in rows[1..].iter().zip(1..) {
        let of = |key: &str| log.iter().filter(|entry| entry["epoch"] == f64::from(epoch)).find_map(|entry| entry[key].as_f64());
        let figures = ["loss", "eval_loss", "eval_accuracy", "eval_f1"].map(|key| format!("{:.4}", of(key).unwrap()));
        let step = (epoch * 12).to_string();
        assert_eq!(row[..], [&[&*format!("{epoch}.00"), &step], &figures.each_ref().map(|figure| &**figure)[..]].concat());
    }
    // With the metric that decides, and from its own header on after a resume.
    let out = TempDir::new().unwrap();
    let metric = ["--metric-for-best-model", "balanced_accuracy", "--validation-file", path(&test)];
    train(out.path(), &[&flags[..], &metric].concat()).done();
    let more = ["--resume-from-checkpoint", path(out.path()), "--epochs", "3"];
    let resumed = crate::cli::ran(TRAIN, &more).done();
    let heads = "epoch     step  training loss  validation loss  accuracy  balanced_accuracy";
    assert!(resumed.err.lines().any(|line| line.trim_start() == heads), "{}", resumed.err);
}
