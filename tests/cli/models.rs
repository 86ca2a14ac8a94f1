//! Model folders: every kind of checkpoint, and broken ones.

use crate::checkpoint::{Tensors as Stored, rounded, save, shard, tensors};
use crate::fixtures::golden;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

use super::*;

#[test]
fn checkpoints_of_every_kind_are_read() {
    let plain = tensors(&golden("text/hf"));
    let rename = |from: [&str; 3], to: [&str; 3]| {
        let name = |name: &str| from.iter().zip(to).fold(name.to_string(), |name, (from, to)| name.replace(from, to));
        plain.iter().cloned().map(|t| (name(&t.0), t.1, t.2, t.3)).collect::<Stored>()
    };
    let extra = [plain.clone(), vec![("vocab_projector.bias".into(), Dtype::I64, vec![1], vec![0; 8])]].concat();
    let (f16, wide_f16) = rounded(&plain, Dtype::F16);
    let (bf16, wide_bf16) = rounded(&plain, Dtype::BF16);
    // The predictions of a folder with these weights, and its weights after an update.
    let file = golden("train/train.csv");
    let of = |weights: &Stored, sharded: bool| {
        let (model, out) = (copy("text/hf"), TempDir::new().unwrap());
        save(&model.path().join("model.safetensors"), weights);
        if sharded {
            shard(model.path());
        }
        let args = ["--model", path(model.path())];
        let predicted = ran(PREDICT, &[&args[..], &["--raw-scores", "--top-k", "0", "a good film", "bad"]].concat()).done().out;
        let more = ["--train-file", path(&file), "--output-dir", path(out.path()), "--max-steps", "1", "--save-strategy", "no"];
        ran(TRAIN, &[&args[..], &more].concat()).done();
        (predicted, tensors(out.path()))
    };
    let wanted = of(&plain, false);
    assert!(wanted.1.iter().all(|tensor| tensor.1 == Dtype::F32));
    for (what, weights, sharded, wanted) in [
        ("shards", &plain, true, &wanted),
        ("no prefix", &rename(["distilbert.", "", ""], [""; 3]), false, &wanted),
        ("gamma and beta", &rename(["orm.weight", "orm.bias", ""], ["orm.gamma", "orm.beta", ""]), false, &wanted),
        ("one more", &extra, false, &wanted),
        ("f16", &f16, false, &of(&wide_f16, false)),
        ("bf16", &bf16, false, &of(&wide_bf16, false)),
        ("f16 in shards", &f16, true, &of(&wide_f16, false)),
    ] {
        assert!(of(weights, sharded) == *wanted, "{what}");
    }
    assert_ne!(of(&f16, false).0, wanted.0, "rounding makes a difference");
}

/// A model as BERTimbau and ruBERT are published: a cased vocab.txt without tokenizer.json. Two of the texts differ in accents alone.
#[test]
fn portuguese_and_russian_texts_are_learnt_with_a_cased_vocabulary() {
    for (language, classes) in [("pt", ["negativo", "positivo"]), ("ru", ["отрицательный", "положительный"])]
    {
        let (model, out) = (copy("bert-a/hf"), TempDir::new().unwrap());
        let folder = golden("languages").join(language);
        for name in ["vocab.txt", "tokenizer_config.json"] {
            fs::copy(folder.join(name), model.path().join(name)).unwrap();
        }
        let file = model.path().join("reviews.csv");
        let mut rows = csv::Writer::from_path(&file).unwrap();
        rows.write_record(["text", "label"]).unwrap();
        let labelled = json_lines(&folder.join("texts.jsonl")).into_iter().filter(|row| row["label"].is_string());
        labelled.for_each(|row| rows.write_record([&row["text"], &row["label"]].map(|cell| cell.as_str().unwrap())).unwrap());
        rows.flush().unwrap();
        let out = out.path().join("out");
        let args = ["--model", path(model.path()), "--train-file", path(&file), "--output-dir", path(&out)];
        let more = "--epochs 20 --learning-rate 1e-3 --batch-size 4 --save-strategy no";
        let trained = ran(TRAIN, &[&args[..], &words(more)].concat()).done();
        assert!(trained.err.contains(&format!("training: 18 texts: {}: 9, {}: 9\n", classes[0], classes[1])), "{}", trained.err);
        let names = names(&out);
        assert!(names.contains("vocab.txt") && names.contains("tokenizer_config.json") && !names.contains("tokenizer.json"));
        let report = out.join("report");
        ran(EVALUATE, &["--model", path(&out), "--file", path(&file), "--output-dir", path(&report)]).done();
        assert_eq!(read(&report, "metrics.json")["accuracy"], 1.0, "{language}");
    }
}

#[test]
fn invalid_model_folders_are_reported_in_one_line() {
    type Edit = Box<dyn Fn(&Path)>;
    fn remove(name: &'static str) -> Edit {
        Box::new(move |folder| fs::remove_file(folder.join(name)).unwrap())
    }
    fn without_tokenizer() -> Edit {
        Box::new(|folder| ["tokenizer.json", "vocab.txt"].iter().for_each(|name| fs::remove_file(folder.join(name)).unwrap()))
    }
    fn replace(name: &'static str, content: &'static [u8]) -> Edit {
        Box::new(move |folder| fs::write(folder.join(name), content).unwrap())
    }
    fn config(key: &'static str, value: Value) -> Edit {
        Box::new(move |folder| {
            let mut config = read(folder, "config.json");
            config[key] = value.clone();
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
        })
    }
    fn weights(edit: impl Fn(&mut Vec<u8>) + 'static) -> Edit {
        Box::new(move |folder| {
            let file = folder.join("model.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            edit(&mut bytes);
            fs::write(&file, bytes).unwrap();
        })
    }
    fn stored(edit: impl Fn(&mut Stored) + 'static) -> Edit {
        Box::new(move |folder| {
            let mut tensors = tensors(folder);
            edit(&mut tensors);
            save(&folder.join("model.safetensors"), &tensors);
        })
    }
    /// The header with a piece of its JSON replaced.
    fn json_of_weights(from: &'static str, to: &'static str) -> Edit {
        weights(move |bytes| {
            let (length, rest) = bytes.split_first_chunk().unwrap();
            let (json, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let json = str::from_utf8(json).unwrap();
            assert!(json.contains(from), "{json}");
            let json = json.replacen(from, to, 1);
            *bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat();
        })
    }
    fn sharded(edit: impl Fn(&Path, &mut Value) + 'static) -> Edit {
        Box::new(move |folder| {
            let mut index = shard(folder);
            edit(folder, &mut index);
            fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        })
    }
    const SECOND: &str = "model-00002-of-00002.safetensors";
    let header = |length: u64| move |bytes: &mut Vec<u8>| bytes[..8].copy_from_slice(&length.to_le_bytes());
    // The last tensor of the file is a weight of the head.
    let last = |floats: usize, value: f32| {
        move |bytes: &mut Vec<u8>| {
            let start = bytes.len() - 4 * floats;
            bytes[start..].copy_from_slice(&value.to_le_bytes().repeat(floats));
        }
    };
    let cases: Vec<(Edit, i32, &str)> = vec![
        (remove("config.json"), 2, "config.json`: no such file"),
        (remove("model.safetensors"), 2, "model.safetensors"),
        (without_tokenizer(), 2, "this folder has no tokenizer.json and no vocab.txt"),
        (replace("config.json", b""), 2, "config.json`: "),
        (replace("config.json", b"{\"model_type\": "), 2, "config.json`: "),
        (replace("tokenizer.json", b"{}"), 2, "tokenizer.json`: "),
        (replace("tokenizer.json", b"\xff"), 2, "tokenizer.json`: "),
        (replace("tokenizer_config.json", b"no"), 2, "tokenizer_config.json`: "),
        (config("model_type", json!("gpt2")), 2, "gpt2"),
        (config("dim", json!(30)), 2, "config.json`: "),
        (config("n_layers", json!(0)), 2, "config.json`: "),
        (config("n_layers", json!(1_000_000)), 2, "config.json`: "),
        (config("n_layers", json!(3)), 2, "layer.2"),
        (config("vocab_size", json!(300)), 2, "word_embeddings"),
        (config("vocab_size", json!(298)), 2, "tokenizer.json`: has ids up to 298"),
        (config("activation", json!("swish")), 2, "swish"),
        (config("id2label", json!({"0": "a", "2": "b"})), 2, "config.json`: "),
        (config("max_position_embeddings", json!(64)), 2, "position_embeddings"),
        (weights(|bytes| bytes.truncate(bytes.len() - 1)), 2, "model.safetensors`: "),
        (weights(|bytes| bytes.push(0)), 2, "model.safetensors`: "),
        (weights(|bytes| bytes.clear()), 2, "model.safetensors`: "),
        (weights(|bytes| bytes.truncate(7)), 2, "model.safetensors`: "),
        (weights(header(0)), 2, "model.safetensors`: "),
        (weights(header(200_000_000)), 2, "model.safetensors`: "),
        (weights(header(u64::MAX)), 2, "model.safetensors`: "),
        (weights(|bytes| bytes[8] = 0xff), 2, "model.safetensors`: "),
        (weights(|bytes| bytes[8] = b'x'), 2, "model.safetensors`: has a header that is not JSON"),
        (json_of_weights("[0,8]", "[4,8]"), 2, "classifier.bias starts at byte 4, not 0: it leaves a gap"),
        (json_of_weights("[8,", "[4,"), 2, "starts at byte 4, not 8: it overlaps"),
        (json_of_weights("\"shape\":[2]", "\"shape\":[9223372036854775808,2]"), 2, "classifier.bias of [9223372036854775808, 2]"),
        (
            json_of_weights("\"classifier.bias\":", "\"classifier.weight\":{},\"classifier.bias\":"),
            2,
            "model.safetensors`: has a header that is not JSON of tensors (missing field",
        ),
        (json_of_weights("\"classifier.bias\"", "\"classifier.weight\""), 2, "classifier.weight is listed twice"),
        (stored(|tensors| tensors.retain(|t| !t.0.ends_with("lin2.bias"))), 2, "lacks 2 of the model's 40 tensors, among them"),
        (stored(|tensors| tensors[1].2.reverse()), 2, "tensor classifier.weight is [32, 2], but must be [2, 32]"),
        (
            stored(|tensors| tensors.iter_mut().for_each(|t| (t.1, t.3) = (Dtype::F64, t.3.repeat(2)))),
            2,
            "word_embeddings.weight is F64, but must be F32, F16 or BF16",
        ),
        (
            stored(|tensors| tensors.iter_mut().for_each(|t| (t.1, t.3) = (Dtype::F16, [0x00, 0x7c].repeat(t.3.len() / 4)))),
            2,
            "word_embeddings.weight holds inf at element 0",
        ),
        (
            sharded(|folder, _| fs::remove_file(folder.join(SECOND)).unwrap()),
            2,
            "model-00002-of-00002.safetensors`: no such file",
        ),
        (
            sharded(|folder, _| fs::write(folder.join(SECOND), "cut").unwrap()),
            2,
            "model-00002-of-00002.safetensors`: has 3 bytes",
        ),
        (sharded(|_, index| index["weight_map"]["ghost"] = json!(SECOND)), 2, "index.json`: lists ghost in model-00002"),
        (sharded(|_, index| index["weight_map"]["ghost"] = json!("../x")), 2, "index.json`: lists the shard \"../x\""),
        (sharded(|_, index| *index = json!([])), 2, "index.json`: is not an index of shards"),
        (
            Box::new(|folder| fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap()),
            2,
            "its weights are a pickle, pytorch_model.bin",
        ),
        (replace("model.safetensors", b"PK\x03\x04 a pickle of PyTorch"), 2, "model.safetensors`: "),
        (weights(last(1, f32::NAN)), 2, "holds NaN"),
        (weights(last(1, f32::NEG_INFINITY)), 2, "pre_classifier.weight"),
        (weights(last(1024, f32::MAX)), 1, "`text 0`: the logits are not finite"),
    ];
    let out = TempDir::new().unwrap();
    assert_none(cases.iter().enumerate().map(|(i, (edit, code, part))| {
        let model = copy("text/hf");
        edit(model.path());
        let (out, output) = (out.path().join("out"), out.path().join("out.jsonl"));
        let predicted = ran(PREDICT, &["--model", path(model.path()), "--output", path(&output), "good"]).fault(*code, part);
        let file = golden("train/train.csv");
        let args =
            ["--model", path(model.path()), "--train-file", path(&file), "--output-dir", path(&out), "--logging-steps", "1"];
        let trained = || if *code == 2 { ran(TRAIN, &args).fault(2, part) } else { None };
        let fault = predicted.or_else(trained).map(|fault| format!("case {i}: {fault}"));
        fault.or((out.exists() || output.exists()).then(|| format!("case {i}: {part} left something")))
    }));
    // A model may be cut, as in transformers; it is reported.
    let cut = copy("text/hf");
    config("n_layers", json!(1))(cut.path());
    let ran_cut = ran(PREDICT, &["--model", path(cut.path()), "good"]).done();
    let left_out =
        "16 tensors of layers are not used, such as distilbert.transformer.layer.1.attention.k_lin.bias: config.json has";
    assert!(ran_cut.err.contains(left_out), "{}", ran_cut.err);
    // Files that are only for people are not needed.
    for name in ["vocab.txt", "special_tokens_map.json", "tokenizer_config.json"] {
        let model = copy("text/hf");
        remove(name)(model.path());
        ran(PREDICT, &["--model", path(model.path()), "good"]).done();
    }
}
