//! config.json: every golden one parsed and written back unchanged, the defaults, and everything that is refused.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use warpfit::model::config::{Arch, Config};
use warpfit::model::names::{Init, params};

use crate::fixtures::{FOLDERS, golden};

fn parse(json: &Value) -> warpfit::Result<Config> {
    Config::parse(json.to_string().as_bytes(), "config.json")
}

fn read(folder: &str) -> Config {
    Config::read(&golden(folder).join("config.json")).unwrap()
}

/// The golden config.json of a folder with some keys replaced.
fn changed(folder: &str, keys: Value) -> Value {
    let mut json: Value = serde_json::from_slice(&std::fs::read(golden(folder).join("config.json")).unwrap()).unwrap();
    json.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    json
}

#[test]
fn golden_configs_round_trip_byte_for_byte() {
    for folder in FOLDERS {
        let path = golden(folder).join("config.json");
        assert_eq!(Config::read(&path).unwrap().to_json(), std::fs::read_to_string(&path).unwrap(), "{folder}");
    }
}

#[test]
fn golden_configs_are_parsed() {
    let a = read("distilbert-a/hf");
    assert_eq!((a.arch, a.vocab, a.positions, a.types), (Arch::DistilBert, 256, 64, 0));
    assert_eq!((a.dim, a.heads, a.head_dim(), a.layers, a.ffn), (64, 4, 16, 2, 128));
    assert_eq!((a.dropout, a.attention_dropout, a.classifier_dropout), (0.0, 0.0, 0.0));
    assert_eq!((a.norm_eps, a.initializer_range, a.pad_token_id), (1e-12, 0.1, Some(0)));
    assert_eq!((a.labels, a.labels_named), (vec!["LABEL_0".to_string(), "LABEL_1".into()], false));

    let b = read("distilbert-b/hf");
    assert_eq!((b.classes(), b.labels_named, b.labels[5].as_str()), (6, false, "LABEL_5"));

    let bert = read("bert-a/hf");
    assert_eq!((bert.arch, bert.types, bert.dim, bert.heads, bert.layers, bert.ffn), (Arch::Bert, 2, 64, 4, 2, 128));

    assert_eq!(parse(&changed("distilbert-a/hf", json!({ "id2label": { "0": 0, "1": true } }))).unwrap().labels, ["0", "true"]);
    let text = read("text/hf");
    assert_eq!((text.labels, text.labels_named), (vec!["NEGATIVE".to_string(), "POSITIVE".into()], true));
}

#[test]
fn absent_keys_have_the_architectures_defaults() {
    let distilbert = parse(&json!({ "model_type": "distilbert" })).unwrap();
    assert_eq!((distilbert.vocab, distilbert.positions, distilbert.types), (30522, 512, 0));
    assert_eq!((distilbert.dim, distilbert.heads, distilbert.layers, distilbert.ffn), (768, 12, 6, 3072));
    assert_eq!((distilbert.dropout, distilbert.attention_dropout, distilbert.classifier_dropout), (0.1, 0.1, 0.2));
    assert_eq!((distilbert.initializer_range, distilbert.norm_eps, distilbert.pad_token_id), (0.02, 1e-12, Some(0)));

    let bert = parse(&json!({ "model_type": "bert", "pad_token_id": null, "hidden_dropout_prob": 0.3 })).unwrap();
    assert_eq!((bert.vocab, bert.positions, bert.types), (30522, 512, 2));
    assert_eq!((bert.dim, bert.heads, bert.layers, bert.ffn), (768, 12, 12, 3072));
    assert_eq!((bert.dropout, bert.attention_dropout, bert.classifier_dropout), (0.3, 0.1, 0.3));
    assert_eq!((bert.initializer_range, bert.norm_eps, bert.pad_token_id), (0.02, 1e-12, None));

    let three = parse(&json!({ "model_type": "bert", "num_labels": 3 })).unwrap();
    assert_eq!((three.classes(), three.labels_named), (3, false));
}

#[test]
fn a_checkpoint_for_another_task_becomes_a_classifier() {
    let config = parse(&json!({
        "model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"], "torch_dtype": "float16",
        "num_labels": 2, "custom": { "z": [1, 2.5], "a": null },
    }));
    let names: Vec<String> = (0..12).map(|id| format!("class \"{id}\"")).collect();
    let json = config.unwrap().with_labels(names.clone()).unwrap().to_json();
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["architectures"], json!(["DistilBertForSequenceClassification"]));
    assert_eq!((&value["torch_dtype"], &value["num_labels"]), (&json!("float32"), &json!(12)));
    assert_eq!(value["custom"], json!({ "z": [1, 2.5], "a": null }));
    assert_eq!(value["label2id"]["class \"11\""], json!(11));
    let ids: Vec<&String> = value["id2label"].as_object().unwrap().keys().collect();
    assert_eq!(ids, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]);

    let again = Config::parse(json.as_bytes(), "again").unwrap();
    assert_eq!((again.labels.clone(), again.labels_named), (names, true));
    assert_eq!(again.to_json(), json);
}

#[test]
fn dropout_goes_to_the_keys_of_each_architecture() {
    let written = |config: Config, all, classifier| -> Value {
        serde_json::from_str(&config.with_dropout(all, classifier).unwrap().to_json()).unwrap()
    };
    let distilbert = written(read("distilbert-a/hf"), Some(0.1), Some(0.3));
    assert_eq!(distilbert["dropout"], json!(0.1));
    assert_eq!(distilbert["attention_dropout"], json!(0.1));
    assert_eq!(distilbert["seq_classif_dropout"], json!(0.3));
    assert_eq!(written(read("distilbert-a/hf"), Some(0.1), None)["seq_classif_dropout"], json!(0.0));

    let bert = written(read("bert-a/hf"), Some(0.1), None);
    assert_eq!(bert["hidden_dropout_prob"], json!(0.1));
    assert_eq!(bert["attention_probs_dropout_prob"], json!(0.1));
    assert_eq!(bert["classifier_dropout"], json!(0.0));

    let open = || parse(&changed("bert-a/hf", json!({ "classifier_dropout": null }))).unwrap();
    assert_eq!(open().with_dropout(Some(0.25), None).unwrap().classifier_dropout, 0.25);
    assert_eq!(written(open(), Some(0.25), None)["classifier_dropout"], json!(null));
    assert_eq!(written(open(), Some(0.25), Some(0.5))["classifier_dropout"], json!(0.5));
    assert_eq!(written(open(), None, None)["classifier_dropout"], json!(null));

    for rate in [1.0, -0.1, f32::NAN, f32::INFINITY] {
        assert!(read("bert-a/hf").with_dropout(Some(rate), None).is_err(), "{rate}");
        assert!(read("bert-a/hf").with_dropout(None, Some(rate)).is_err(), "{rate}");
    }
}

#[test]
fn unsupported_configs_are_refused_in_one_line() {
    let refused = |folder: &str, keys: Value, fact: &str| {
        let error = parse(&changed(folder, keys.clone())).expect_err(&keys.to_string());
        let message = error.to_string();
        assert!(message.starts_with("`config.json`: ") && message.contains(fact), "{keys}: {message}");
        assert!(message.contains("; ") && !message.contains('\n'), "{keys}: {message}");
    };
    let distilbert = |keys, fact| refused("distilbert-a/hf", keys, fact);
    let bert = |keys, fact| refused("bert-a/hf", keys, fact);

    distilbert(json!({ "model_type": "roberta" }), "model_type is roberta");
    distilbert(json!({ "model_type": null }), "model_type is missing");
    distilbert(json!({ "model_type": 3 }), "model_type is 3, but must be a string");
    distilbert(json!({ "architectures": "x" }), "architectures is a string");
    for (key, value) in [("activation", "relu"), ("activation", "gelu_new"), ("activation", "gelu_pytorch_tanh")] {
        distilbert(json!({ key: value }), value);
    }
    bert(json!({ "hidden_act": "relu" }), "hidden_act is relu");
    distilbert(json!({ "sinusoidal_pos_embds": true }), "sinusoidal_pos_embds is true");
    bert(json!({ "position_embedding_type": "relative_key" }), "position_embedding_type is relative_key");
    bert(json!({ "architectures": ["BertForTokenClassification"] }), "BertForTokenClassification, which labels tokens");
    bert(json!({ "is_decoder": true }), "is_decoder is true");
    bert(json!({ "add_cross_attention": true }), "add_cross_attention is true");
    bert(json!({ "is_decoder": "no" }), "is_decoder is a string");

    distilbert(json!({ "n_heads": 5 }), "dim 64 is not divisible by n_heads 5");
    bert(json!({ "num_attention_heads": 128 }), "hidden_size 64 is not divisible by num_attention_heads 128");
    for key in ["vocab_size", "max_position_embeddings", "dim", "n_heads", "n_layers", "hidden_dim"] {
        for size in [json!(0), json!(u64::MAX), json!(-1), json!(64.0), json!("64"), json!(true), json!(null), json!([64])] {
            distilbert(json!({ key: size }), key);
        }
    }
    distilbert(json!({ "n_layers": 1_000_000 }), "n_layers is 1000000, outside 1 to 1024");
    bert(json!({ "type_vocab_size": 0 }), "type_vocab_size is 0");
    distilbert(json!({ "pad_token_id": 256 }), "pad_token_id 256 is outside the vocabulary of 256");
    distilbert(json!({ "pad_token_id": -1 }), "pad_token_id is -1");

    for key in ["dropout", "attention_dropout", "seq_classif_dropout"] {
        for rate in [json!(1), json!(1.0), json!(-0.1), json!(1e300), json!(0.999999999999), json!("0.1"), json!(null)] {
            distilbert(json!({ key: rate }), key);
        }
    }
    bert(json!({ "classifier_dropout": 1.5 }), "classifier_dropout is 1.5");
    bert(json!({ "layer_norm_eps": 0 }), "layer_norm_eps is 0");
    bert(json!({ "initializer_range": -1 }), "initializer_range is -1");

    distilbert(json!({ "problem_type": "regression" }), "problem_type is regression");
    distilbert(json!({ "problem_type": "multi_label_classification" }), "problem_type is multi_label_classification");
    distilbert(json!({ "num_labels": 1 }), "1 label, but a classifier needs at least two");
    distilbert(json!({ "num_labels": 1_000_000_000_000_u64 }), "num_labels is 1000000000000");
    distilbert(json!({ "id2label": {} }), "0 label");
    distilbert(json!({ "id2label": { "0": "A" } }), "1 label");
    distilbert(json!({ "id2label": { "0": "A", "2": "B" } }), "no id 1");
    for id in ["x", "-1", "+1", "01", " 1", "", "99999999999999999999"] {
        distilbert(json!({ "id2label": { "0": "A", id: "B" } }), "id2label has the id");
    }
    distilbert(json!({ "id2label": { "0": "A", "1": "A" } }), "the label A is listed twice");
    distilbert(json!({ "id2label": { "0": "A", "1": null } }), "id2label is null");
    distilbert(json!({ "id2label": ["A", "B"] }), "id2label is a list");
    distilbert(json!({ "id2label": { "0": "A\nB\u{1b}[31m", "1": "A\nB\u{1b}[31m" } }), "is listed twice");
}

#[test]
fn files_without_a_json_object_are_refused() {
    let deep = "[".repeat(100_000);
    for bytes in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"{\"a\": NaN}",
        b"{\"model_type\": \"bert\"} x",
        b"\xff\xfe",
        b"\"\xff\"",
        deep.as_bytes(),
    ] {
        let message = Config::parse(bytes, "config.json").unwrap_err().to_string();
        assert!(message.starts_with("`config.json`: is not a JSON object ("), "{message}");
    }
    let missing = Config::read(Path::new("no such folder/config.json")).unwrap_err().to_string();
    assert_eq!(missing, "`no such folder/config.json`: no such file or folder; check the path");
}

#[test]
fn invalid_label_sets_are_refused() {
    for names in [vec![], vec!["A"], vec!["A", "B", "A"]] {
        let names: Vec<String> = names.into_iter().map(String::from).collect();
        assert!(read("distilbert-a/hf").with_labels(names.clone()).is_err(), "{names:?}");
    }
}

#[test]
fn weight_decay_matches_the_trainer() {
    for case in ["distilbert-a", "distilbert-b", "bert-a"] {
        let case_json: Value = serde_json::from_slice(&std::fs::read(golden(case).join("case.json")).unwrap()).unwrap();
        for (key, decay) in [("decayed", true), ("not_decayed", false)] {
            let list = params(&read(&format!("{case}/hf")));
            let mut ours: Vec<&str> = list.iter().filter(|param| param.decay == decay).map(|param| param.name.as_str()).collect();
            ours.sort();
            let theirs: Vec<&str> =
                case_json["adamw"][key].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
            assert!(!theirs.is_empty());
            assert_eq!(ours, theirs, "{case}: {key}");
        }
    }
}

#[test]
fn published_models_have_their_published_size() {
    let count = |json: Value| params(&parse(&json).unwrap()).iter().map(|param| param.count()).sum::<usize>();
    assert_eq!(count(json!({ "model_type": "distilbert" })), 66_955_010);
    assert_eq!(count(json!({ "model_type": "bert" })), 109_483_778);
}

#[test]
fn new_parameters_depend_on_seed_and_name() {
    let list = params(&parse(&json!({ "model_type": "distilbert" })).unwrap());
    let find = |name: &str| list.iter().find(|param| param.name == name).unwrap();
    let (dense, classifier) = (find("pre_classifier.weight"), find("classifier.weight"));
    let values = dense.initialise(42, 0.02);
    assert_eq!(values.len(), 768 * 768);
    assert_eq!(values, dense.initialise(42, 0.02));
    assert_ne!(values, dense.initialise(43, 0.02));
    assert_ne!(values[..1536], classifier.initialise(42, 0.02));
    assert_ne!(values, find("distilbert.transformer.layer.0.attention.q_lin.weight").initialise(42, 0.02));

    assert_eq!(
        values[..4].iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
        [989420922, 3161960672, 1017094016, 1017300067],
        "the same on every platform"
    );

    // Standard errors: of the mean 2.6e-5, of the deviation 1.8e-5, of the share within one deviation 6e-4.
    let moment = |power| values.iter().map(|&value| f64::from(value).powi(power)).sum::<f64>() / values.len() as f64;
    assert!(moment(1).abs() < 1.1e-4, "{}", moment(1));
    assert!((moment(2).sqrt() - 0.02).abs() < 8e-5, "{}", moment(2).sqrt());
    let within = values.iter().filter(|value| value.abs() < 0.02).count() as f64 / values.len() as f64;
    assert!((within - 0.6827).abs() < 2.5e-3, "{within}");
    // Neighbours, which come from one radius, are uncorrelated.
    let product = values.chunks_exact(2).map(|pair| f64::from(pair[0] * pair[1])).sum::<f64>() / (values.len() / 2) as f64;
    assert!((product / 4e-4).abs() < 8e-3, "{product}");

    assert!(find("classifier.bias").initialise(42, 0.02).iter().all(|&value| value == 0.0));
    assert!(find("distilbert.embeddings.LayerNorm.weight").initialise(42, 0.02).iter().all(|&value| value == 1.0));
    assert_eq!(find("distilbert.embeddings.LayerNorm.weight").init, Init::Ones);
}

proptest! {
    #[test]
    fn damaged_files_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in any::<prop::sample::Index>()) {
        let mut bytes = std::fs::read(golden("text/hf/config.json")).unwrap();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut.index(4) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        match Config::parse(&bytes, "config.json") {
            Ok(config) => {
                let again = Config::parse(config.to_json().as_bytes(), "again").unwrap();
                prop_assert_eq!(again.labels, config.labels);
            }
            Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
        }
    }
}
