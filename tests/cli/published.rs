//! `docs/published-runs.md`: every command on small files, and what it is said to give.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::{save, tensors};
use crate::data::{Labels, TEXT_AND_INT, parquet};
use crate::hub::{Files, Hub, files};

/// The rows of the document's tables: number, action, command, and what it gives.
fn rows(document: &str) -> Vec<[&str; 4]> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'));
    let cells = rows.map(|row| row.split(" | ").map(str::trim).collect::<Vec<_>>());
    let numbered = cells.filter(|cells| cells[0].parse::<usize>().is_ok());
    numbered.map(|cells| cells.try_into().expect("four cells")).collect()
}

/// The parts in backticks.
fn spans(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

const REVIEWS: [&str; 4] = ["a good film", "a bad film, boring", "wonderful and good", "bad acting and a dull end"];

/// The files that the document names: `base` is a model without a head, and `out` a trained one.
fn place() -> TempDir {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name);
    let write = |name: &str, rows: &[[&str; 2]]| {
        let mut file = csv::Writer::from_path(at(name)).unwrap();
        file.write_record(["text", "label"]).unwrap();
        rows.iter().for_each(|row| file.write_record(row).unwrap());
        file.flush().unwrap();
    };
    let texts: Vec<String> = (0..48).map(|i| format!("{} in scene {i}", REVIEWS[i % 4])).collect();
    let labelled = |labels: &[&'static str]| -> Vec<[String; 2]> {
        texts.iter().enumerate().map(|(i, text)| [text.clone(), labels[i % labels.len()].to_string()]).collect()
    };
    let (reviews, emotions) = (labelled(&["1", "0"]), labelled(&["sadness", "joy", "love", "anger", "fear", "surprise"]));
    let [reviews, emotions] = [&reviews, &emotions].map(|rows| rows.iter().map(|row| [&*row[0], &*row[1]]).collect::<Vec<_>>());
    write("train.csv", &[&reviews[..], &reviews[..1]].concat());
    write("valid.csv", &reviews[..16]);
    write("test.csv", &reviews[8..32]);
    write("emotions.csv", &emotions);
    let long = "a good film ".repeat(400);
    write("long.csv", &[[&long, "1"], ["a bad film", "0"]]);
    fs::write(at("ten.txt"), texts[..10].join("\n")).unwrap();

    // The recipes read 512 tokens.
    let small = copy("train/hf_init");
    let mut config = read(small.path(), "config.json");
    config["max_position_embeddings"] = json!(512);
    ["id2label", "label2id"].iter().for_each(|key| drop(config.as_object_mut().unwrap().remove(*key)));
    fs::write(small.path().join("config.json"), config.to_string()).unwrap();
    fs::write(small.path().join("tokenizer_config.json"), "{\"model_max_length\": 512}").unwrap();
    let (base, out, file) = (at("base"), at("out"), at("train.csv"));
    let args = ["--train-file", path(&file), "--label-names", "NEGATIVE,POSITIVE", "--save-strategy", "no", "--max-steps", "4"];
    let train = |more: &[&str]| drop(ran(TRAIN, &[&args[..], more].concat()).done());
    train(&["--model", path(small.path()), "--from-scratch", "--output-dir", path(&out)]);
    fs::create_dir(&base).unwrap();
    names(small.path()).iter().for_each(|name| fs::copy(small.path().join(name), base.join(name)).map(drop).unwrap());
    let body: Vec<_> = tensors(&out).into_iter().filter(|tensor| !tensor.0.contains("classifier")).collect();
    save(&base.join("model.safetensors"), &body);
    place
}

/// A hub with the models and data sets of the recipes: small ones of the same layout.
fn hub(place: &Path) -> Hub {
    let data = |column: &str, classes: &[i64]| {
        let folder = TempDir::new().unwrap();
        let texts: Vec<Option<&str>> = REVIEWS.into_iter().map(Some).collect::<Vec<_>>().repeat(12);
        let labels: Vec<i64> = classes.iter().copied().cycle().take(texts.len()).collect();
        fs::read(parquet(folder.path(), &TEXT_AND_INT.replace("label", column), &texts, Labels::Whole(&labels), None)).unwrap()
    };
    let split = |name: &str, content: &[u8]| (format!("data/{name}-00000-of-00001.parquet"), content.to_vec());
    let (two, three) = (data("label", &[1, 0]), data("sentiment", &[0, 1, 2]));
    let base = files(&place.join("base"));
    let reviews: Files = vec![split("train", &two), split("test", &two)];
    Hub::new(&[
        ("models/distilbert/distilbert-base-uncased", base.clone()),
        ("models/neuralmind/bert-base-portuguese-cased", base.clone()),
        ("models/DeepPavlov/rubert-base-cased", base),
        ("datasets/stanfordnlp/imdb", reviews.clone()),
        ("datasets/maritaca-ai/imdb_pt", reviews),
        ("datasets/MonoHime/ru_sentiment_dataset", vec![split("train", &three), split("validation", &three)]),
    ])
}

/// Copies the files of the place, and its `out` unless the command makes it.
fn copy_of(place: &Path, command: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    let copied =
        |name: &&String| !(*name == "out" && (command.contains("--output-dir out") || command.contains("--output_dir out")));
    for name in names(place).iter().filter(copied) {
        let (from, to) = (place.join(name), copy.path().join(name));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            let below = names(&from).into_iter().filter(|name| from.join(name).is_file());
            below.for_each(|name| fs::copy(from.join(&name), to.join(&name)).map(drop).unwrap());
        } else {
            fs::copy(from, to).unwrap();
        }
    }
    copy
}

/// The response of a running `serve` to the request in the document's row.
fn response(command: &mut Command, here: &str) -> String {
    let mut child = command.env("PORT", "0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").expect(&line);
    let request = spans(here).find(|span| span.contains("127.0.0.1:3000")).expect(here);
    let route = request.split("127.0.0.1:3000").nth(1).unwrap().split(' ').next().unwrap();
    let answer = match request.split('\'').nth(1) {
        Some(body) => ureq::post(format!("{address}{route}")).send(body),
        None => ureq::get(format!("{address}{route}")).call(),
    };
    let answer = answer.and_then(|answer| answer.into_body().read_to_string());
    child.kill().unwrap();
    child.wait().unwrap();
    answer.unwrap_or_else(|error| error.to_string())
}

#[test]
fn every_command_works_and_gives_what_is_quoted() {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/published-runs.md")).unwrap();
    let rows = rows(&document);
    let numbers: Vec<usize> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=41).collect::<Vec<_>>());
    let missing = rows.iter().filter(|row| row[2].starts_with("missing: ")).count();
    assert!(document.contains(&format!("{} of the 41 actions", 41 - missing)), "{missing} are missing");

    let place = place();
    let (hub, pushes) = (hub(place.path()), Hub::for_pushes());
    let programs = Path::new(env!("CARGO_BIN_EXE_warpfit")).parent().unwrap().display();
    let programs = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let (mut done, mut faults) = (0, Vec::new());
    for [number, action, here, gives] in rows {
        let mut quoted: Vec<&str> = spans(gives).collect();
        let mut said = String::new();
        for line in spans(here).filter(|span| span.starts_with("warpfit ") || span.starts_with("HF_TOKEN=")) {
            done += 1;
            let copy = copy_of(place.path(), line);
            let mut command = Command::new("sh");
            let hub = if line.contains(" push ") { &pushes } else { &hub };
            hub.environment(&mut command).env("PATH", &programs).env("WARPFIT_CACHE", "").current_dir(copy.path());
            if line.starts_with("warpfit serve") {
                said += &response(command.args(["-c", &format!("exec {line}")]), here);
            } else {
                let ran = run(command.args(["-c", line]), b"");
                if ran.code != Some(0) {
                    faults.push(Some(format!("{number}: {line}: {}", ran.err)));
                }
                said += &(ran.out + &ran.err);
            }
            quoted.retain(|quote| !(said.contains(quote) || copy.path().join(quote).exists()));
        }
        if !quoted.is_empty() {
            faults.push(Some(format!("{number}, {action}: {quoted:?} not given by {here}: {said}")));
        }
    }
    assert_none(faults);
    assert!(done > 35, "{done} commands");
}
