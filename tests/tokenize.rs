//! Tokenization, compared with the `tokenizers` library; and its cache.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rayon::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::data::cache;
use warpfit::data::tokenize::{Encoded, Tokenizer};
use warpfit::data::wordpiece::WordPiece;

use crate::cli::{Ran, TRAIN, path, program, run};
use crate::data::assert_error;
use crate::fixtures::golden;

fn ignore(_: usize) {}

fn json_lines(path: PathBuf) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn ids_match_hugging_face() {
    let tokenizer = Tokenizer::read(&golden("text/hf")).unwrap();
    assert_eq!((tokenizer.max_length, tokenizer.vocab), (Some(48), 299));
    let texts: Vec<String> =
        json_lines(golden("text/texts.jsonl")).iter().map(|t| t["text"].as_str().unwrap().to_string()).collect();
    let untruncated = tokenizer.encode(&texts, 100_000, &ignore).unwrap();
    for (file, max_length) in [("expected.jsonl", 48), ("expected_max16.jsonl", 16)] {
        let expected = json_lines(golden("text").join(file));
        let encoded = tokenizer.encode(&texts, max_length, &ignore).unwrap();
        assert_eq!((encoded.rows(), expected.len()), (texts.len(), texts.len()));
        for (row, expected) in expected.iter().enumerate() {
            assert_eq!(json!(encoded.row(row).0), expected["input_ids"], "{file} {row}");
            assert_eq!(encoded.cut[row], untruncated.row(row).0.len() > max_length);
        }
        assert!(encoded.types.is_empty() && encoded.truncated() > 0);
    }
}

#[test]
fn the_configuration_decides_over_normalisation() {
    let cases = golden("../cases/tokenizer-config");
    let expected: Value = serde_json::from_slice(&fs::read(cases.join("expected_ids.json")).unwrap()).unwrap();
    for (folder, texts) in expected.as_object().unwrap() {
        let tokenizer = Tokenizer::read(&cases.join(folder)).unwrap();
        assert_eq!(tokenizer.max_length, Some(64));
        for (text, ids) in texts.as_object().unwrap() {
            assert_eq!(json!(tokenizer.encode(&[text], 100, &ignore).unwrap().row(0).0), *ids, "{folder}: {text}");
        }
    }
    // What the configuration leaves out has the defaults of the class; another class leaves tokenizer.json as it is.
    let folder = TempDir::new().unwrap();
    fs::copy(cases.join("json_cased_cfg_lower/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let ids = |config: Option<Value>, text: &str| {
        let path = folder.path().join("tokenizer_config.json");
        match config {
            Some(config) => fs::write(path, config.to_string()).unwrap(),
            None => drop(fs::remove_file(path)),
        }
        Tokenizer::read(folder.path()).unwrap().encode(&[text], 100, &ignore).unwrap().ids
    };
    let (lower, cased) = ([2, 74, 102, 3], [2, 1, 1, 3]);
    assert_eq!(ids(None, "Good FILM"), lower);
    assert_eq!(ids(Some(json!({})), "Good FILM"), lower);
    assert_eq!(ids(Some(json!({"tokenizer_class": "BertTokenizerFast"})), "Good FILM"), lower);
    assert_eq!(ids(Some(json!({"do_lower_case": false})), "Good FILM"), cased);
    assert_eq!(ids(Some(json!({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": true})), "Good FILM"), cased);
    assert_eq!(ids(Some(json!({})), "电影"), [2, 292, 293, 3]);
    assert_ne!(ids(Some(json!({"tokenize_chinese_chars": false})), "电影"), [2, 292, 293, 3], "one word");

    // A vocabulary alone.
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let vocabulary = fs::read_to_string(cases.join("vocab_only/vocab.txt")).unwrap();
    fs::write(folder.path().join("vocab.txt"), vocabulary.replace('\n', "\r\n")).unwrap();
    assert_eq!(ids(None, "Good [MASK] FILM"), [2, 74, 4, 102, 3]);
    assert_eq!(ids(Some(json!({"do_lower_case": false, "cls_token": {"content": "[CLS]"}})), "Good FILM"), cased);
    fs::write(folder.path().join("tokenizer_config.json"), "{\"tokenizer_class\": \"BertJapaneseTokenizer\"}").unwrap();
    assert_error(
        Tokenizer::read(folder.path()),
        "vocab.txt",
        "is not enough for a BertJapaneseTokenizer; add the tokenizer.json",
    );
    fs::write(folder.path().join("tokenizer_config.json"), "{\"cls_token\": \"<s>\"}").unwrap();
    assert_error(Tokenizer::read(folder.path()), "vocab.txt", "has no <s>; use the vocab.txt of");
}

#[test]
fn cased_vocabularies_keep_accents_and_cyrillic() {
    for language in ["pt", "ru"] {
        let folder = golden("languages").join(language);
        let tokenizer = Tokenizer::read(&folder).unwrap();
        let rows = json_lines(folder.join("texts.jsonl"));
        assert_eq!(rows.len(), 24);
        for row in rows {
            let text = row["text"].as_str().unwrap();
            assert_eq!(json!(tokenizer.encode(&[text], 512, &ignore).unwrap().ids), row["input_ids"], "{text}");
        }
    }
}

#[test]
fn baked_in_lengths_are_overridden() {
    let plain = fs::read(golden("text/hf/tokenizer.json")).unwrap();
    let mut baked: Value = serde_json::from_slice(&plain).unwrap();
    baked["truncation"] = json!({"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 2});
    baked["padding"] = json!({"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
    let texts = ["good", "a good, good, lovely film with a very bad screen and a boring actor", ""];
    let encode = |json: &[u8]| Tokenizer::from_bytes(json).unwrap().encode(&texts, 12, &ignore).unwrap();
    let baked = serde_json::to_vec(&baked).unwrap();
    assert_eq!(encode(&baked), encode(&plain));
    assert_eq!(encode(&baked).cut, [false, true, false]);
    assert_eq!(encode(&baked).row(2).0, [2, 3], "an empty text is [CLS] [SEP]");
    assert_eq!(Tokenizer::from_bytes(&baked).unwrap().json, baked, "the bytes are unchanged");
}

#[test]
fn many_texts_keep_their_order() {
    let tokenizer = Tokenizer::read(&golden("text/hf")).unwrap();
    let texts: Vec<String> = (0..1000).map(|i| "good ".repeat(i % 37)).collect();
    let (calls, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let progress = |done: usize| {
        calls.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(done, Ordering::Relaxed);
    };
    let encoded = tokenizer.encode(&texts, 30, &progress).unwrap();
    assert!((0..1000).all(|i| encoded.row(i).0.len() == (i % 37 + 2).min(30)));
    assert!(calls.into_inner() > 1 && sum.into_inner() == 1000);
    assert_eq!(tokenizer.encode::<String>(&[], 30, &ignore).unwrap(), Encoded::default());
}

#[test]
fn token_types_are_kept() {
    let mut json: Value = serde_json::from_slice(&fs::read(golden("text/hf/tokenizer.json")).unwrap()).unwrap();
    json["post_processor"]["single"][1]["Sequence"]["type_id"] = json!(1);
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
    let encoded = tokenizer.encode(&["", "good good"], 9, &ignore).unwrap();
    assert_eq!((encoded.row(0).1, encoded.row(1).1), ([0, 0].as_slice(), [0, 1, 1, 0].as_slice()));
}

#[test]
fn hostile_texts() {
    let tokenizer = Tokenizer::read(&golden("text/hf")).unwrap();
    let texts = [
        "\0".to_string(),
        " \t\r\n\u{a0}\u{3000}".repeat(1000),
        "a".repeat(1_000_000),
        "a ".repeat(500_000),
        "[SEP]".repeat(100),
        "[CLS] [SEP] [PAD]".to_string(),
        "👩‍👩‍👧🏽".repeat(500),
        "日本語".repeat(500),
        "العربية\u{202e}".to_string(),
        "e\u{301}\u{323}".repeat(1000),
        "\u{ffff}\u{e000}\u{10ffff}\u{feff}".to_string(),
    ];
    let encoded = tokenizer.encode(&texts, 48, &ignore).unwrap();
    for row in 0..texts.len() {
        let ids = encoded.row(row).0;
        assert!((2..=48).contains(&ids.len()) && ids[0] == 2 && ids[ids.len() - 1] == 3, "row {row}");
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab));
    }
}

#[test]
fn tokenizer_faults() {
    let good = fs::read_to_string(golden("text/hf/tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_bytes(good.as_bytes()).unwrap();
    for length in [0, 1, 2] {
        assert_error(
            tokenizer.encode(&["a"], length, &ignore),
            "--max-length",
            "leaves no room for text beside 2 special tokens; give at least 3",
        );
    }
    assert_eq!(tokenizer.encode(&["good good"], 3, &ignore).unwrap().ids.len(), 3);

    let folder = TempDir::new().unwrap();
    let read = || Tokenizer::read(folder.path());
    assert_error(read(), "tokenizer.json", "no such file");
    for content in ["", "{", "[]", "{\"version\":\"1.0\"}"] {
        fs::write(folder.path().join("tokenizer.json"), content).unwrap();
        assert_error(read(), "tokenizer.json", "not a tokenizer");
    }
    let mut bare: Value = serde_json::from_str(&good).unwrap();
    bare["post_processor"] = Value::Null;
    fs::write(folder.path().join("tokenizer.json"), bare.to_string()).unwrap();
    assert_error(read(), "tokenizer.json", "adds no [CLS]");
    fs::write(folder.path().join("tokenizer.json"), &good).unwrap();
    assert_eq!(read().unwrap().max_length, None);
    for (limit, meant) in [("512", Some(512)), ("1000000000000000019884624838656", None), ("null", None)] {
        fs::write(folder.path().join("tokenizer_config.json"), format!("{{\"model_max_length\": {limit}}}")).unwrap();
        assert_eq!(read().unwrap().max_length, meant);
    }
    fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
    assert_error(read(), "tokenizer_config.json", "not JSON");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Truncating early gives the same as truncating late, whatever the text at the cut.
    #[test]
    fn long_texts_are_truncated_like_short_ones(
        words in prop::collection::vec("good|lovely|[a-z]{1,30}|\\[SEP\\]|\\[MASK\\]|日本|e\u{301}|\u{301}|[.,\"-]|\\PC{1,5}", 1..300),
        spaces in "[ \t\n\u{a0}]{1,3}",
        max_length in 3..40usize,
    ) {
        let tokenizer = Tokenizer::read(&golden("text/hf")).unwrap();
        let text = words.join(&spaces);
        let whole = tokenizer.encode(&[&text], 1_000_000, &ignore).unwrap().ids;
        let cut = tokenizer.encode(&[&text], max_length, &ignore).unwrap();
        let mut expected = whole.clone();
        if whole.len() > max_length {
            expected.truncate(max_length - 1);
            expected.push(3);
        }
        prop_assert_eq!((&cut.ids, cut.cut[0]), (&expected, whole.len() > max_length));
    }
}

// ---- word pieces, compared with the library

/// tokenizer.json of the golden text model, changed.
fn changed(change: impl FnOnce(&mut Value)) -> tokenizers::Tokenizer {
    let mut json: Value = serde_json::from_slice(&fs::read(golden("text/hf/tokenizer.json")).unwrap()).unwrap();
    change(&mut json);
    tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap()
}

type Judged = (tokenizers::Tokenizer, WordPiece);

/// With every setting of the normalizer, its own first; and a vocabulary that reveals the normalised characters: every letter
/// and mark, as a word and within one, beside the golden words. Words of at most 20 characters.
static JUDGED: LazyLock<Vec<Judged>> = LazyLock::new(|| {
    let blocks = [0..0x3400, 0xa000..0xac00, 0xf900..0x12000, 0x1d000..0x1f000].into_iter().flatten();
    let chars: Vec<char> = blocks.filter_map(char::from_u32).collect();
    let bits = |bits: u32| [bits & 1 == 0, bits & 2 == 0, bits & 4 == 0];
    let all = (0..18).map(|setting| match setting {
        0 | 1 => (None, bits(setting)),
        _ => (Some(setting % 2 == 0), bits(setting / 2 - 1)),
    });
    let judged = all.collect::<Vec<_>>().into_par_iter().map(|(strip_accents, [lowercase, chinese, clean])| {
        let library = changed(|json| {
            json["normalizer"] = json!({"type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese,
                "strip_accents": strip_accents, "lowercase": lowercase});
            json["model"]["max_input_chars_per_word"] = json!(20);
            let vocab = json["model"]["vocab"].as_object_mut().unwrap();
            for piece in chars.iter().flat_map(|c| [c.to_string(), format!("##{c}")]).chain(["##".to_string(), "".to_string()]) {
                let next = vocab.len();
                vocab.entry(piece).or_insert(json!(next));
            }
            for (id, content) in [(1_000_000, "[A]"), (1_000_001, "[A][B]")] {
                let token = json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": false});
                json["added_tokens"].as_array_mut().unwrap().push(token);
                json["model"]["vocab"][content] = json!(id);
            }
        });
        let ours = WordPiece::new(&library).expect("all its rules are BERT's");
        (library, ours)
    });
    judged.collect()
});

/// `None` if the text was left to the library; otherwise the ids must equal its own.
#[track_caller]
fn same((library, ours): &Judged, text: &str) -> Option<Vec<i32>> {
    let mut ids = vec![-7];
    if !ours.encode(text, usize::MAX, &mut ids) {
        assert_eq!(ids, [-7], "ids changed by a text left to the library: {text:?}");
        return None;
    }
    let wanted: Vec<i32> = library.encode_fast(text, false).unwrap().get_ids().iter().map(|&id| id as i32).collect();
    assert_eq!(ids[1..], wanted, "{text:?} with {:?}", library.get_normalizer());
    Some(wanted)
}

/// Each between two letters. Settings other than the first skip long blocks of equivalent characters.
#[test]
fn every_character_of_unicode() {
    let left: usize = (JUDGED.par_iter().enumerate())
        .map(|(i, judged)| {
            let alike = |c| matches!(c, 0x20000..0x2f800 | 0x30000..0xe0000 | 0xf0000..);
            let chars: Vec<char> = ('\0'..=char::MAX).filter(|&c| i == 0 || !alike(c as u32)).collect();
            let left = chars.par_chunks(64).map(|block| {
                let text = |c: &char| format!("a{c}b ");
                match same(judged, &block.iter().map(text).collect::<String>()) {
                    Some(_) => 0,
                    None => block.iter().filter(|&c| same(judged, &text(c)).is_none()).count(),
                }
            });
            let left = left.sum::<usize>();
            assert!(left < 250, "{left} characters alone send a text to the library with {:?}", judged.0.get_normalizer());
            left
        })
        .sum();
    assert!(left > 0, "only the library reorders accents that are kept");
}

#[test]
fn words_and_pieces() {
    let judged = &JUDGED[0];
    for text in [
        "",
        " ",
        "good",
        "goodgood",
        "GOOD-lovely",
        "##",
        "##good # #good",
        "[SEP]good[SEP]",
        "[sep] [ SEP ]",
        "[A][B][A]",
        "[[A]]",
        "x[A",
        "\u{301}",
        "e\u{301}\u{323}e",
        "[\u{301}SEP]",
        "[A]\u{301}good",
        "good\u{200b}good",
        "日good本",
        "İΣς ßﬁ",
        "각",
    ] {
        assert!(same(judged, text).is_some(), "{text:?}");
    }
    for size in [19, 20, 21, 22, 1000] {
        assert_eq!(same(judged, &"a".repeat(size)).unwrap().len(), if size <= 20 { size } else { 1 });
        assert!(same(judged, &format!("{0}\u{301} {0}\u{200b}z {1}", "é".repeat(size), "日".repeat(size))).is_some());
    }
    // These two are kept, and swap places.
    let text = "a\u{1d16d}\u{1d165}b";
    assert_eq!(same(judged, text), None);
    let tokenizer = Tokenizer::from_bytes(judged.0.to_string(false).unwrap().as_bytes()).unwrap();
    let wanted: Vec<i32> = judged.0.encode_fast(text, true).unwrap().get_ids().iter().map(|&id| id as i32).collect();
    assert_eq!(tokenizer.encode(&[text], 99, &ignore).unwrap().ids, wanted);
}

#[test]
fn other_tokenizers_are_left_to_the_library() {
    assert!(WordPiece::new(&changed(|_| ())).is_some());
    let added = |key: &str| changed(|json| json["added_tokens"][4][key] = json!(true));
    for other in [
        changed(|json| json["normalizer"] = json!({"type": "Lowercase"})),
        changed(|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})),
        changed(|json| json["model"]["continuing_subword_prefix"] = json!("@@")),
        changed(|json| json["model"]["unk_token"] = json!("[NONE]")),
        added("normalized"),
        added("single_word"),
        added("lstrip"),
        added("rstrip"),
    ] {
        assert!(WordPiece::new(&other).is_none(), "{}", other.to_string(false).unwrap());
    }
    // Through the library, a text is truncated and framed in the same way.
    let texts = ["a good [MASK] film", "", "good good good good"];
    let encode = |tokenizer: tokenizers::Tokenizer| {
        Tokenizer::from_bytes(tokenizer.to_string(false).unwrap().as_bytes()).unwrap().encode(&texts, 5, &ignore).unwrap()
    };
    assert_eq!(encode(added("single_word")), encode(changed(|_| ())));
}

/// 100 MB without white space, and the same length of words: read quickly, and no further than needed.
#[test]
fn a_very_long_text_is_cheap() {
    let tokenizer = Tokenizer::read(&golden("text/hf")).unwrap();
    for (word, tokens) in [("a", 3), ("é", 3), ("a ", 48), ("日", 48), ("[SEP]", 48), (".", 48)] {
        let text = word.repeat(100_000_000 / word.len());
        let start = std::time::Instant::now();
        let ids = tokenizer.encode(&[&text], 48, &ignore).unwrap().ids;
        assert_eq!(ids.len(), tokens, "{word:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{word:?} took {:?}", start.elapsed());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn hostile_texts_match_the_library(
        parts in prop::collection::vec(prop_oneof![
            "good|Lovely|[a-zA-Z]{1,25}|##[a-z]|\\[SEP\\]|\\[sep\\]|\\[A\\]|\\[A\\]\\[B\\]|[!-/:-@\\[-`{-~]",
            "[ \t\r\n\u{a0}\u{3000}\u{2028}\u{85}\u{b}\u{1680}]|[\0\u{1}\u{7f}\u{ad}\u{200b}-\u{200f}\u{feff}\u{fffd}\u{e0001}]",
            "[\u{300}-\u{36f}\u{5b0}-\u{5bd}\u{64b}-\u{652}\u{93c}\u{302e}\u{1d165}\u{1d16d}\u{345}\u{34f}]{1,4}",
            "[日本語\u{f900}\u{2f800}가힣ﬁİıßſΣΩÅǆᾂ≠\u{37e}\u{212b}א-תا-ي]|👩\u{200d}👩\u{1f3fd}|🇩🇪",
            any::<char>().prop_map(String::from),
        ], 0..40),
        setting in 0..18usize,
        limit in 1..30usize,
    ) {
        let text = parts.concat();
        let judged = &JUDGED[setting];
        if let Some(wanted) = same(judged, &text) {
            let mut ids = Vec::new();
            prop_assert!(judged.1.encode(&text, limit, &mut ids));
            prop_assert!(ids.len() >= wanted.len().min(limit));
            let kept = limit.min(wanted.len());
            prop_assert_eq!(&ids[..kept], &wanted[..kept]);
        }
    }
}

// ---- the cache

/// A dry run on a file of a folder, with or without the cache of an earlier one.
fn dry_run(data: &Path, kept: &Path, more: &[&str]) -> Ran {
    let (model, out) = (golden("train/hf_init"), data.with_file_name("out"));
    let mut command = program(TRAIN);
    command.args(["--model", path(&model), "--train-file", path(data), "--output-dir", path(&out), "--dry-run"]).args(more);
    run(command.env("WARPFIT_CACHE", kept), b"").done()
}

impl Ran {
    fn is_from_cache(&self) -> bool {
        self.err.contains("tokenized by an earlier run")
    }

    /// The notes about the data.
    fn warnings(&self) -> Vec<&str> {
        self.err.lines().filter(|line| line.contains("truncated to") || line.contains("warning")).collect()
    }
}

/// A copy of the golden training file in a folder of its own.
fn rows() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("train.csv");
    fs::copy(golden("train/train.csv"), &data).unwrap();
    (folder, data)
}

#[test]
fn a_second_run_reuses_the_tokens_of_the_first() {
    let (folder, data) = rows();
    let kept = folder.path().join("kept/here");
    let test = golden("train/test.csv");
    let more = ["--max-length", "8", "--validation-file", path(&data), "--test-file", path(&test)];
    let (first, second) = (dry_run(&data, &kept, &more), dry_run(&data, &kept, &more));
    assert_eq!((first.is_from_cache(), second.is_from_cache()), (false, true), "{}", second.err);
    assert_eq!(first.warnings(), second.warnings());
    assert_eq!(first.warnings().len(), 4, "{}", first.err);
    assert_eq!(first.out, second.out);

    // Training gives the same bits.
    let runs = ["one", "two", "three"].map(|name| {
        let out = folder.path().join(name);
        let model = golden("train/hf_init");
        let mut command = program(TRAIN);
        command.args(["--model", path(&model), "--train-file", path(&data), "--output-dir", path(&out), "--device", "cpu"]);
        command.args(["--max-steps", "5", "--validation-split", "0.2"]);
        let ran = run(command.env("WARPFIT_CACHE", if name == "three" { Path::new("") } else { &kept }), b"").done();
        (ran.is_from_cache(), fs::read(out.join("model.safetensors")).unwrap())
    });
    assert_eq!(runs.each_ref().map(|run| run.0), [false, true, false]);
    assert!(runs[0].1 == runs[1].1 && runs[0].1 == runs[2].1);
}

#[test]
fn other_data_or_settings_are_tokenized_again() {
    let (folder, data) = rows();
    let kept = folder.path().join("kept");
    let fresh = |more: &[&str]| !dry_run(&data, &kept, more).is_from_cache() && dry_run(&data, &kept, more).is_from_cache();
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    for entry in fs::read_dir(golden("train/hf_init")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), other.join(entry.file_name())).unwrap();
    }
    let json = fs::read_to_string(other.join("tokenizer.json")).unwrap();
    fs::write(other.join("tokenizer.json"), json.replace("\"lowercase\": true", "\"lowercase\":false")).unwrap();
    let settings: [&[&str]; 11] = [
        &[],
        &["--max-length", "9"],
        &["--max-length", "9", "--truncation-side", "left"],
        &["--max-length", "9", "--truncation-side", "middle"],
        &["--max-train-samples", "50"],
        &["--validation-split", "0.2"],
        &["--validation-split", "0.3"],
        &["--validation-split", "0.2", "--seed", "7"],
        &["--validation-split", "0.2", "--max-eval-samples", "5"],
        &["--validation-file", path(&data)],
        &["--test-file", path(&data)],
    ];
    assert!(settings.iter().all(|more| fresh(more)));
    assert!(dry_run(&data, &kept, &["--seed", "7"]).is_from_cache(), "without a split the seed does not matter");
    let mut command = program(TRAIN);
    command.args([
        "--model",
        path(&other),
        "--train-file",
        path(&data),
        "--output-dir",
        path(&folder.path().join("out")),
        "--dry-run",
    ]);
    assert!(!run(command.env("WARPFIT_CACHE", &kept), b"").done().is_from_cache(), "another tokenizer");

    // Another file with the same name, size and time.
    let modified = fs::metadata(&data).unwrap().modified().unwrap();
    let text = fs::read_to_string(&data).unwrap();
    fs::write(&data, text.replacen("good", "look", 1)).unwrap();
    fs::File::options().append(true).open(&data).unwrap().set_modified(modified).unwrap();
    assert!(fresh(&[]));
    // The same rows in another file, which is named in what is reported.
    let moved = folder.path().join("moved.csv");
    fs::rename(&data, &moved).unwrap();
    let of_moved = dry_run(&moved, &kept, &[]);
    assert!(!of_moved.is_from_cache() && of_moved.err.contains("moved.csv: texts from"), "{}", of_moved.err);
}

#[test]
fn damaged_cache_files_are_rewritten() {
    let (folder, data) = rows();
    let kept = folder.path().join("kept");
    dry_run(&data, &kept, &[]);
    let files = || fs::read_dir(kept.join("tokens")).unwrap().map(|entry| entry.unwrap().path()).collect::<BTreeSet<_>>();
    let file = files().pop_first().unwrap();
    let whole = fs::read(&file).unwrap();
    dry_run(&data, &kept, &["--max-length", "9"]);
    let foreign = fs::read(files().into_iter().find(|other| *other != file).unwrap()).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let cut = |size: usize| whole[..size].to_vec();
    let longer = [&whole[..], b"x"].concat();
    for (i, damaged) in [
        vec![],
        cut(7),
        cut(16),
        cut(40),
        cut(whole.len() - 1),
        longer,
        foreign,
        flipped(3),
        flipped(30),
        flipped(whole.len() / 2),
        flipped(whole.len() - 1),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(&file, damaged).unwrap();
        assert!(!dry_run(&data, &kept, &[]).is_from_cache(), "damage {i}");
        assert!(fs::read(&file).unwrap() == whole, "damage {i}");
    }
    assert!(dry_run(&data, &kept, &[]).is_from_cache());
}

#[test]
fn an_unwritable_cache_is_one_note() {
    let (folder, data) = rows();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let ran = dry_run(&data, &file, &[]);
    assert_eq!(ran.err.matches("not cached: `").count(), 1, "{}", ran.err);
    assert!(!dry_run(&data, &file, &[]).is_from_cache());
    let mut command = program(TRAIN);
    let model = golden("train/hf_init");
    command.args([
        "--model",
        path(&model),
        "--train-file",
        path(&data),
        "--output-dir",
        path(&folder.path().join("out")),
        "--dry-run",
    ]);
    let ran = run(command.env_remove("HOME").env_remove("XDG_CACHE_HOME").env_remove("WARPFIT_CACHE"), b"").done();
    assert!(!ran.err.contains("not cached"), "no folder at all: {}", ran.err);
}

#[test]
fn least_recently_used_files_are_removed_first() {
    let (folder, data) = rows();
    let kept = folder.path().join("tokens");
    fs::create_dir(&kept).unwrap();
    let file = |name: &str, size: u64, hours: u64| {
        let file = fs::File::create(kept.join(name)).unwrap();
        file.set_len(size).unwrap(); // a sparse file: it occupies no space
        file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
    };
    file("oldest", 1 << 30, 3);
    file("old", 1 << 30, 2);
    file("new", 1 << 30, 1);
    dry_run(&data, folder.path(), &[]);
    let names: BTreeSet<String> = fs::read_dir(&kept).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!((names.len(), names.contains("new"), names.contains("old")), (2, true, false), "{names:?}");
    // Using a file makes it recent again.
    let stored = kept.join(names.into_iter().find(|name| name != "new").unwrap());
    let modified = || fs::metadata(&stored).unwrap().modified().unwrap();
    fs::File::options().append(true).open(&stored).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert!(dry_run(&data, folder.path(), &[]).is_from_cache() && modified() > SystemTime::now() - Duration::from_secs(60));
}

#[test]
fn the_cache_key_covers_every_byte() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let key = |names: &[&str]| {
        cache::key(&json!({}), names.iter().map(|name| at(name)).collect::<Vec<_>>().iter().map(|p| p.as_path()))
    };
    fs::create_dir_all(at("a/neg")).unwrap();
    let mut keys = BTreeSet::new();
    let mut new = |names: &[&str]| assert!(keys.insert(key(names).unwrap()) && keys.contains(&key(names).unwrap()), "{names:?}");
    new(&["a"]);
    for (name, content) in
        [("a/neg/1.txt", ""), ("a/neg/2.txt", "x"), ("a/neg/1.txt", "x"), ("a/3.csv", "x"), ("b.tsv", "x"), ("b.csv", "y")]
    {
        fs::write(at(name), content).unwrap();
        new(&["a", name]);
        new(&[name, "a"]);
    }
    fs::rename(at("a/neg"), at("a/pos")).unwrap();
    new(&["a"]);
    new(&["b.csv", "b.csv"]);
    new(&[]);
    assert_eq!(key(&["none"]).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    std::os::unix::fs::symlink(folder.path(), at("a/pos/round")).unwrap();
    assert!(key(&["a"]).is_err());
    assert!(Command::new("mkfifo").arg(at("pipe.csv")).status().unwrap().success());
    assert!(key(&["pipe.csv"]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..Default::default() })]

    #[test]
    fn cached_tokens_round_trip(
        rows in prop::collection::vec((prop::collection::vec(0..70_000i32, 1..9), any::<bool>(), any::<u32>()), 0..20),
        largest in prop_oneof![Just(9), Just(0xffff), Just(0x10000), Just(i32::MAX)],
        key: u128,
    ) {
        let mut data = Encoded::default();
        for (row, (ids, typed, label)) in rows.iter().enumerate() {
            let ids: Vec<i32> = ids.iter().map(|&id| id.min(largest)).chain([largest]).collect();
            data.push(row, &ids, &if *typed { vec![1; ids.len()] } else { vec![] }).unwrap();
            data.labels.push(*label);
            data.cut[row] = *typed;
        }
        let folder = TempDir::new().unwrap();
        let about = json!({"names": ["\u{e9}\n", ""]});
        cache::store(folder.path(), key, &[("one", &data), ("two", &Encoded::default())], &about).unwrap();
        let (mut parts, told) = cache::load(folder.path(), key).unwrap();
        prop_assert_eq!((parts.remove("one"), parts.remove("two"), parts.len(), told), (Some(data), Some(Encoded::default()), 0, about));
        prop_assert!(cache::load(folder.path(), key ^ 1).is_none());
    }
}
