//! Reports as the commands write them: pages and plots that show any texts and names, every row in errors.csv, curves of a run,
//! TensorBoard's event files read back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::report::plot::{Axis, Plot, RIGHT, Series, Shape, WRONG};

use crate::cli::{EVALUATE, TRAIN, path, ran};
use crate::fixtures::golden;

/// The entries of a folder, sorted.
fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Checks that tags open and close properly; panics if not. Does not support comments and scripts.
pub fn assert_well_formed(name: &str, xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in xml.split('<').skip(1) {
        let (tag, rest) = part.split_once('>').unwrap_or_else(|| panic!("{name}: <{part}"));
        assert!(!rest.contains('>'), "{name}: {rest}");
        let word = tag.trim_start_matches('/').split_whitespace().next().unwrap();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(word), "{name}"),
            (false, false) => open.push(word),
            (false, true) => (),
        }
    }
    assert_eq!(open, Vec::<&str>::new(), "{name}");
    assert!(!xml.contains("NaN") && !xml.contains("inf\""), "{name} has a value that is not a number: {xml}");
}

#[test]
fn a_report_shows_hostile_texts_as_texts() {
    let dir = TempDir::new().unwrap();
    let (file, out) = (dir.path().join("hostile.csv"), dir.path().join("out"));
    let hostile = "<script>alert(1)</script> & \"quoted\" </td></table>";
    let formula = "=HYPERLINK(\"http://nowhere\")";
    let long = "very ".repeat(100);
    let rows: Vec<String> = [hostile, formula, "+1", "@a", "-b", "one\nline more", &long, "", "\u{b}tab"]
        .iter()
        .enumerate()
        .map(|(i, text)| format!("\"{}\",{}\n", text.replace('"', "\"\""), i % 2))
        .collect();
    fs::write(&file, format!("text,label\n{}", rows.concat())).unwrap();
    let model = golden("text/hf");
    ran(EVALUATE, &["--model", path(&model), "--file", path(&file), "--output-dir", path(&out)]).done();

    assert_eq!(
        entries(&out),
        ["classification_report.txt", "errors.csv", "metrics.json", "plots", "predictions.jsonl", "report.html"]
    );
    let plots = entries(&out.join("plots"));
    assert_eq!(plots.len(), 8, "{plots:?}");
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    for plot in plots {
        let svg = fs::read_to_string(out.join("plots").join(&plot)).unwrap();
        assert_well_formed(&plot, &svg);
        assert!(page.contains(&svg), "{plot} is not in the page");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quoted&quot;"));
    assert_eq!(page.matches("<script>").count(), 1);
    // Nothing is loaded from elsewhere; a namespace is not an address.
    let page = page.replace("http://www.w3.org/2000/svg", "").replace("http://nowhere", "");
    assert!(!page.contains("://") && !page.contains("src=") && !page.contains("@import"));

    let mut csv = csv::Reader::from_path(out.join("errors.csv")).unwrap();
    assert_eq!(csv.headers().unwrap().iter().take(4).collect::<Vec<_>>(), ["id", "label", "predicted", "loss"]);
    let records: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
    assert_eq!(records.len(), 9);
    let losses: Vec<f64> = records.iter().map(|record| record[3].parse().unwrap()).collect();
    assert!(losses.is_sorted_by(|a, b| a >= b), "{losses:?}");
    let texts: Vec<&str> = records.iter().map(|record| &record[record.len() - 1]).collect();
    for text in [hostile, &format!("'{formula}"), "'+1", "'@a", "'-b", "one\nline more", &long] {
        assert!(texts.contains(&text), "{text:?} is not in {texts:?}");
    }
}

#[test]
fn reports_hold_any_number_of_classes_and_rows() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("p.jsonl");
    for classes in [2, 6, 50] {
        // One row; one class alone; every class but the last, with names of any kind and scores of 0 and 1.
        for rows in [1, 3, 200] {
            let name = |class: usize| format!("class <{class}> & a name that is long indeed \u{1f600} 喜");
            let line = |row: usize| {
                let label = if rows == 3 { 0 } else { row % (classes - 1) };
                let score = |class: usize| if class == row * 7 % classes { 1.0 } else { 0.0 };
                let scores: Vec<Value> = (0..classes).map(|class| json!({"label": name(class), "score": score(class)})).collect();
                json!({"label": name(label), "scores": scores}).to_string() + "\n"
            };
            fs::write(&file, (0..rows).map(line).collect::<String>()).unwrap();
            let out = dir.path().join(format!("{classes}-{rows}"));
            ran(EVALUATE, &["--predictions", path(&file), "--output-dir", path(&out)]).done();
            let plots = entries(&out.join("plots"));
            assert_eq!(plots.len(), 6, "{plots:?}");
            for plot in plots {
                let svg = fs::read_to_string(out.join("plots").join(&plot)).unwrap();
                assert_well_formed(&format!("{plot} of {classes} classes and {rows} rows"), &svg);
            }
            let page = fs::read_to_string(out.join("report.html")).unwrap();
            assert_eq!(page.matches("<tr class=\"").count(), rows);
        }
    }

    let folder = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (first, second, other) = (folder("6-200"), folder("6-3"), folder("2-200"));
    let compared = ran(EVALUATE, &["--compare", &first, &second, "--output-dir", &folder("compared")]).done();
    // The first has rows of all its classes but one, the second of one class alone: neither has areas.
    let line = |metric: &str| compared.out.lines().find(|line| line.starts_with(metric)).unwrap().to_string();
    assert!(line("accuracy").matches('*').count() >= 1 && line("roc_auc").contains('-'), "{}", compared.out);
    assert!(compared.out.ends_with(&format!("[1] {first}\n[2] {second}\n")), "{}", compared.out);
    let page = fs::read_to_string(folder("compared/report.html")).unwrap();
    assert!(page.contains("★") && page.contains(&first) && page.contains("<svg"));
    ran(EVALUATE, &["--compare", &first, &other]).failed(2, "its classes are ");
    ran(EVALUATE, &["--compare", &first, "nowhere"]).failed(2, "`nowhere`: no such folder; write one: warpfit evaluate");
    ran(EVALUATE, &["--compare", &first, "--predictions", path(&file)]).failed(2, "cannot be used with");
}

/// CRC-32C by long division from the highest bit, bytes and result mirrored: unlike the code under test.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut rest = u32::MAX;
    for byte in bytes {
        rest ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            let high = rest >> 31 == 1;
            rest <<= 1;
            rest ^= if high { 0x1edc_6f41 } else { 0 };
        }
    }
    !rest.reverse_bits()
}

fn unmasked(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap()).wrapping_sub(0xa282_ead8).rotate_left(15)
}

/// The fields of a protobuf message: number, and an integer or bytes.
fn fields(mut message: &[u8]) -> Vec<(u8, u64, &[u8])> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = message[0];
            *message = &message[1..];
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while let [key, rest @ ..] = message {
        message = rest;
        let (value, size) = match key & 7 {
            0 => (varint(&mut message), 0),
            1 => (0, 8),
            2 => (0, varint(&mut message) as usize),
            5 => (0, 4),
            kind => panic!("no such kind of field: {kind}"),
        };
        found.push((key >> 3, value, &message[..size]));
        message = &message[size..];
    }
    found
}

#[derive(Debug, PartialEq)]
enum Event {
    Version(String),
    Start(u64),
    Scalar(u64, String, f32),
}

/// Every event of a file; checks their checksums.
fn events(file: &Path) -> Vec<Event> {
    let bytes = fs::read(file).unwrap();
    let (mut rest, mut found) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let size = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let event = &rest[12..12 + size];
        assert_eq!(unmasked(&rest[8..12]), crc32c(&rest[..8]));
        assert_eq!(unmasked(&rest[12 + size..16 + size]), crc32c(event));
        rest = &rest[16 + size..];
        let fields_of_event = fields(event);
        assert!(fields_of_event[0].0 == 1 && f64::from_le_bytes(fields_of_event[0].2.try_into().unwrap()) > 1.7e9, "time");
        let (2, step, _) = fields_of_event[1] else { panic!("no step") };
        match fields_of_event[2] {
            (3, _, version) => found.push(Event::Version(String::from_utf8(version.to_vec()).unwrap())),
            (5, _, summary) => found.extend(fields(summary).into_iter().map(|(_, _, value)| {
                let [(1, _, tag), (2, _, number)] = fields(value)[..] else { panic!("no scalar") };
                let number = f32::from_le_bytes(number.try_into().unwrap());
                Event::Scalar(step, String::from_utf8(tag.to_vec()).unwrap(), number)
            })),
            (7, _, session) => {
                assert_eq!(fields(session)[0].1, 1);
                found.push(Event::Start(step));
            }
            (field, ..) => panic!("no such field of an event: {field}"),
        }
    }
    found
}

#[test]
fn a_run_draws_its_curves_and_tensorboard_reads_its_log() {
    // RFC 3720, B.4.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    let dir = TempDir::new().unwrap();
    let (model, train, test) = (golden("train/hf_init"), golden("train/train.csv"), golden("train/test.csv"));
    let out = dir.path().join("out");
    let fixed = ["--model", path(&model), "--train-file", path(&train), "--validation-file", path(&test)];
    let run = |flags: &str| {
        let flags = ["--output-dir", path(&out)].into_iter().chain(flags.split(' '));
        ran(TRAIN, &fixed.into_iter().chain(flags).collect::<Vec<_>>())
    };
    let flags = "--logging-steps 1 --eval-strategy steps --eval-steps 2 --save-strategy steps --save-steps 2";
    run(&format!("{flags} --max-steps 4")).done();
    assert_eq!(entries(&out.join("plots")), ["grad_norm.svg", "learning_rate.svg", "loss.svg", "metrics.svg"]);
    for plot in entries(&out.join("plots")) {
        let svg = fs::read_to_string(out.join("plots").join(&plot)).unwrap();
        assert_well_formed(&plot, &svg);
        assert!(svg.contains("<polyline"), "{plot} has no curve");
    }

    // Every number of metrics.jsonl, under Trainer's tags.
    let expected = || {
        let mut expected = Vec::new();
        for line in fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines() {
            let entry: Value = serde_json::from_str(line).unwrap();
            for (key, value) in entry.as_object().unwrap().iter().filter(|(key, value)| *key != "step" && value.is_number()) {
                let tag = if key.starts_with("eval_") { key.replacen('_', "/", 1) } else { format!("train/{key}") };
                expected.push(Event::Scalar(entry["step"].as_u64().unwrap(), tag, value.as_f64().unwrap() as f32));
            }
        }
        expected
    };
    let file = out.join("runs/events.out.tfevents.warpfit");
    let before = events(&file);
    assert_eq!(before[0], Event::Version("brain.Event:2".to_string()));
    assert_eq!(before[1..], expected());
    assert!(before.iter().any(|event| matches!(event, Event::Scalar(4, tag, _) if tag == "eval/roc_auc")));

    // The last record was truncated when the run was killed; resuming from the second update voids those after it, and repeats
    // that update's.
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
    let checkpoint = out.join("checkpoint-2");
    run(&format!("{flags} --max-steps 4 --resume-from-checkpoint {}", path(&checkpoint))).done();
    let after = events(&file);
    let start = after.iter().position(|event| *event == Event::Start(2)).unwrap();
    assert_eq!(after[..start], before[..start]);
    let kept = after[1..start].iter().filter(|event| matches!(event, Event::Scalar(..=1, ..)));
    assert_eq!(kept.chain(&after[start + 1..]).collect::<Vec<_>>(), expected().iter().collect::<Vec<_>>());
    // Resumed after its end, its results are shown once.
    run(&format!("{flags} --max-steps 4 --resume-from-checkpoint")).done();
    let after = events(&file);
    let start = after.iter().rposition(|event| *event == Event::Start(4)).unwrap();
    let shown: Vec<Event> = expected().into_iter().filter(|event| matches!(event, Event::Scalar(4, ..))).collect();
    assert_eq!(after[start + 1..], shown);

    run("--report-to none,jsonl --overwrite-output-dir --max-steps 1").failed(2, "none cannot be combined with a log");
    let out = dir.path().join("none");
    let none = ["--output-dir", path(&out), "--max-steps", "1", "--save-strategy", "no", "--report-to", "none"];
    ran(TRAIN, &[&fixed[..], &none].concat()).done();
    assert!(!out.join("runs").exists() && !out.join("metrics.jsonl").exists());
}

#[test]
fn charts_say_how_to_read_them_and_a_report_how_it_was_made() {
    let dir = TempDir::new().unwrap();
    let [out, report] = ["out", "report"].map(|name| dir.path().join(name));
    let (model, train, test) = (golden("train/hf_init"), golden("train/train.csv"), golden("train/test.csv"));
    ran(TRAIN, &["--model", path(&model), "--train-file", path(&train), "--output-dir", path(&out), "--max-steps", "2"]).done();
    ran(EVALUATE, &["--model", path(&out), path(&test), "--output-dir", path(&report)]).done();
    let page = fs::read_to_string(report.join("report.html")).unwrap();
    let captions: BTreeSet<&str> =
        page.split("<figcaption>").skip(1).map(|rest| rest.split("</figcaption>").next().unwrap()).collect();
    assert_eq!((page.matches("<figure>").count(), captions.len()), (8, 8), "one for each, and none twice");
    assert!(captions.iter().all(|caption| caption.len() > 40 && caption.ends_with('.')), "{captions:?}");
    for (name, value) in [
        ("date", "20"),
        ("warpfit", env!("CARGO_PKG_VERSION")),
        ("model", path(&out)),
        ("data", path(&test)),
        ("maximum length", "64 tokens"),
        ("precision", "fp32"),
        ("positive class", "POSITIVE"),
        ("training", &format!("from {}, updates 2, batch size 8, learning rate 0.00005, seed 42", path(&model))),
    ] {
        assert!(page.contains(&format!("<th>{name}</th><td>{value}")), "{name}: {value}\n{page}");
    }

    // Cells of the confusion matrix by their colours.
    let matrix = fs::read_to_string(report.join("plots/confusion_matrix.svg")).unwrap();
    let mut cells = 0;
    for cell in matrix.split("<rect ").filter(|cell| cell.contains(" predicted as ")) {
        let about = cell.split("<title>").nth(1).unwrap().split(": ").next().unwrap();
        let (label, predicted) = about.split_once(" predicted as ").unwrap();
        let colour = if label == predicted { RIGHT } else { WRONG };
        assert!(cell.contains(&format!("fill=\"{colour}\"")), "{cell}");
        cells += 1;
    }
    assert!(cells >= 2 && RIGHT != WRONG, "{matrix}");
}

#[test]
fn curves_that_coincide_are_told_apart() {
    let points = vec![[0.0, 0.0], [0.5, 0.7], [1.0, 1.0]];
    let series = (0..8).map(|i| Series::new(format!("series {i}"), Shape::Dots, points.clone()));
    let svg = |series: Vec<Series>| Plot { title: "Eight".to_string(), x: Axis::unit("x"), y: Axis::unit("y"), series }.svg();
    let drawn = svg(series.clone().collect());
    let of = |element: &str, key: &str| -> Vec<String> {
        let (tag, key) = (format!("<{element} "), format!("{key}=\""));
        let value = |rest: &str| Some(rest.split("/>").next()?.split(&key).nth(1)?.split('"').next()?.to_string());
        drawn.split(&tag).skip(1).filter_map(value).collect()
    };
    let dashes = of("polyline", "stroke-dasharray");
    assert_eq!((dashes.len(), BTreeSet::from_iter(&dashes).len()), (8, 8), "{dashes:?}");
    assert_eq!(BTreeSet::from_iter(of("polyline", "stroke")).len(), 8);
    // The legend has the same samples, in the same order, and markers of five kinds.
    assert_eq!(of("line", "stroke-dasharray"), dashes);
    let corners = |points: &str| -> Vec<[f64; 2]> {
        let number = |text: &str| text.parse::<f64>().unwrap();
        points.split(' ').map(|point| point.split_once(',').unwrap()).map(|(x, y)| [number(x), number(y)]).collect()
    };
    let shape = |points: &String| {
        let [first, ..] = corners(points)[..] else { panic!("{points}") };
        let relative = corners(points).into_iter().map(|[x, y]| format!("{:.0} {:.0}", x - first[0], y - first[1]));
        relative.collect::<Vec<_>>().join(", ")
    };
    let shapes: BTreeSet<String> = of("polygon", "points").iter().map(shape).collect();
    assert_eq!((shapes.len(), of("circle", "r").len()), (4, 8), "{shapes:?}");
    // A colour of its own takes no other's look.
    let own = svg([Series::new("own", Shape::Line, points.clone()).coloured("currentColor")].into_iter().chain(series).collect());
    assert!(own.contains("stroke=\"currentColor\" stroke-width=\"2\" stroke-dasharray=\"none\""));
    assert_eq!(own.matches("stroke-dasharray=\"8 5\"").count(), 2);
}
