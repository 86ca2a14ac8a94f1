//! The model card: its front matter by a YAML parser, its text by a Markdown parser.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

use super::*;

/// Front matter and text of the card in a run's folder.
fn card(out: &Path) -> (Value, String) {
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    let (front_matter, text) = card.strip_prefix("---\n").unwrap().split_once("\n---\n\n").unwrap();
    (serde_saphyr::from_str(front_matter).unwrap(), text.to_string())
}

/// The text that a reader sees, a line per heading, paragraph, list item and table cell. Fails for HTML, images and code.
fn shown(markdown: &str) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH) {
        match event {
            Event::Text(text) => line += &text,
            Event::End(TagEnd::Heading(_) | TagEnd::Paragraph | TagEnd::Item | TagEnd::TableCell) => {
                lines.push(std::mem::take(&mut line));
            }
            Event::Start(
                Tag::Heading { .. }
                | Tag::Paragraph
                | Tag::List(_)
                | Tag::Item
                | Tag::Link { .. }
                | Tag::Table(_)
                | Tag::TableHead
                | Tag::TableRow
                | Tag::TableCell,
            )
            | Event::End(_) => (),
            other => panic!("{other:?} in {markdown}"),
        }
    }
    lines
}

/// The values of a split's metrics in the `model-index`, by type.
fn values(result: &Value) -> Value {
    let metrics = result["metrics"].as_array().unwrap();
    metrics
        .iter()
        .map(|metric| (metric["type"].as_str().unwrap().to_string(), metric["value"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[test]
fn the_card_has_the_results_of_the_saved_model_by_split() {
    let out = TempDir::new().unwrap();
    let test = golden("train/test.csv");
    train(
        out.path(),
        &["--epochs", "3", "--validation-split", "0.15", "--test-file", path(&test), "--positive-label", "NEGATIVE"],
    )
    .done();
    let (front_matter, text) = card(out.path());
    let name = out.path().file_name().unwrap().to_str().unwrap();
    let [index] = front_matter["model-index"].as_array().unwrap().as_slice() else { panic!("{front_matter}") };
    let results = index["results"].as_array().unwrap();
    assert_eq!((&index["name"], results.len()), (&json!(name), 2));
    for (result, split, prefix, file) in
        [(&results[0], "validation", "eval", "train.csv"), (&results[1], "test", "test", "test.csv")]
    {
        assert_eq!(result["task"], json!({"name": "Text Classification", "type": "text-classification"}));
        assert_eq!(result["dataset"], json!({"name": file, "type": "csv", "split": split}));
        let measured = read(out.path(), &format!("{prefix}_results.json"));
        let metrics = values(result);
        assert_eq!(metrics.as_object().unwrap().len(), 10);
        for (metric, value) in metrics.as_object().unwrap() {
            assert_eq!(value, &measured[format!("{prefix}_{metric}")], "{metric} of {split}");
        }
        let accuracy = format!("{:.4}", measured[format!("{prefix}_accuracy")].as_f64().unwrap());
        assert!(shown(&text).contains(&accuracy), "{text}");
    }
    for line in [
        "Validation: 15 % of the training data, held out, 14 texts",
        "Test: test.csv, 32 texts",
        "Precision, recall, F1 and the areas are those of the class NEGATIVE.",
        "learning rate: 5e-5",
        "saved model: that of the best validation loss",
        "precision: fp32",
        "seed: 42",
    ] {
        assert!(shown(&text).iter().any(|shown| shown == line), "{line}: {text}");
    }
    let date = chrono::Utc::now().date_naive().to_string();
    assert!(text.contains(&format!("with warpfit {} on {date}", env!("CARGO_PKG_VERSION"))), "{text}");

    // Without an evaluation there are no results, as in Trainer's cards.
    let out = TempDir::new().unwrap();
    train(out.path(), &["--max-steps", "1"]).done();
    let (front_matter, text) = card(out.path());
    assert_eq!(front_matter["model-index"][0]["results"], json!([]));
    assert_eq!(front_matter.get("metrics"), None);
    assert!(!text.contains("Results") && !text.contains("held out"), "{text}");
}

#[test]
fn names_with_a_meaning_in_markdown_or_yaml_are_shown_as_they_are() {
    let dir = TempDir::new().unwrap();
    let labels = ["a|b `c` *d* _e_ <script>alert(1)</script>", "# [no](http://x) ![i](j): ~~é~~ &lt; \\ $x$ 'q' \"r\""];
    let folder = dir.path().join("- # yes: `*_1_*` |x| <b> [a](b)");
    let [file, test] = ["1. `t`_*_|.csv", "no: '#'.csv"].map(|name| dir.path().join(name));
    fs::copy(golden("train/train.csv"), &file).unwrap();
    fs::copy(golden("train/test.csv"), &test).unwrap();
    let base = dir.path().join("+ base\n<i>");
    fs::rename(copy("train/hf_init").keep(), &base).unwrap();
    let args = ["--model", path(&base), "--train-file", path(&file), "--test-file", path(&test), "--output-dir", path(&folder)];
    ran(TRAIN, &[&args[..], &["--label-names", &labels.join(","), "--max-steps", "1", "--save-strategy", "no"]].concat()).done();

    let (front_matter, text) = card(&folder);
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    let index = &front_matter["model-index"][0];
    assert_eq!(index["name"], json!(name(&folder)));
    assert_eq!(index["results"][0]["dataset"], json!({"name": name(&test), "type": "csv", "split": "test"}));
    let lines = shown(&text);
    assert_eq!(lines[0], name(&folder));
    let sentence =
        format!("a fine-tuned version of {} (distilbert), trained on {} with", name(&base).replace('\n', " "), name(&file));
    assert!(lines[1].contains(&sentence) && lines[1].ends_with(&format!("Labels: {}.", labels.join(", "))), "{text}");
    assert!(lines.contains(&format!("Test: {}, 32 texts", name(&test))), "{text}");
    assert!(!text.contains(path(dir.path())), "{text}");
}

#[test]
fn the_license_of_the_base_model_is_carried_over() {
    let model = copy("train/hf_init");
    for (readme, wanted, noted) in [
        ("---\nlicense: mit\n---\n# x", json!({"license": "mit"}), false),
        (
            "\u{feff}---\r\nlanguage: pt\r\nlicense: \"Apache-2.0\" # as written\r\n---\r\n\r\nlicense: gpl\r\n",
            json!({"license": "apache-2.0"}),
            false,
        ),
        ("---\nlicense:\n- mit\n- cc-by-4.0\n---\n", json!({"license": ["mit", "cc-by-4.0"]}), false),
        (
            "---\nlicense: other\nlicense_name: 'a: b'\nlicense_link: https://example.org/x\n---",
            json!({"license": "other", "license_name": "a: b", "license_link": "https://example.org/x"}),
            false,
        ),
        // A file that is not beside the new card.
        ("---\nlicense: other\nlicense_link: LICENSE\n---\n", json!({"license": "other"}), false),
        // The hub would refuse the card.
        ("---\nlicense: no\n---\n", json!({}), true),
        ("---\nlicense: see the file LICENSE\n---\n", json!({}), true),
        ("---\nlicense: {\n---\n", json!({}), true),
        ("# A model\n\n---\nlicense: mit\n---\n", json!({}), false),
        ("license: mit\n", json!({}), false),
        ("", json!({}), false),
    ] {
        fs::write(model.path().join("README.md"), readme).unwrap();
        let (out, file) = (TempDir::new().unwrap(), golden("train/train.csv"));
        let args = ["--model", path(model.path()), "--train-file", path(&file), "--output-dir", path(out.path())];
        let ran = ran(TRAIN, &[&args[..], &["--max-steps", "1", "--save-strategy", "no"]].concat()).done();
        let notes = ran.err.matches("; the new model's card has no license\n").count();
        assert_eq!(notes, usize::from(noted), "{readme}: {}", ran.err);
        let (front_matter, _) = card(out.path());
        let found = front_matter.as_object().unwrap().iter().filter(|(key, _)| key.starts_with("license"));
        assert_eq!(Value::from_iter(found.map(|(key, value)| (key.clone(), value.clone()))), wanted, "{readme}");
    }
}
