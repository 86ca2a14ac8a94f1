//! safetensors: the golden files in full, write and read back bit for bit, and every possible fault of a file.

use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::Result;
use warpfit::checkpoint::weights::{Weights, resolve, write};
use warpfit::files::{CHECKSUMS, seal, verify};
use warpfit::model::config::Config;
use warpfit::model::names::{Param, params};

use crate::fixtures::{FOLDERS, golden};

fn inventory(folder: &str) -> Vec<Param> {
    params(&Config::read(&golden(folder).join("config.json")).unwrap())
}

/// A safetensors file of this header and data.
fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Writes `bytes` to a file and opens it. The map outlives the name.
fn open(bytes: &[u8]) -> Result<Weights> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Weights::open(&path)
}

/// The one-line error of opening `bytes`.
fn refusal(bytes: &[u8]) -> String {
    let message = open(bytes).err().expect("must be refused").to_string();
    assert!(message.contains("model.safetensors`: ") && message.contains("; ") && !message.contains('\n'), "{message}");
    message
}

fn store(path: &Path, tensors: &[(&str, Vec<usize>, impl AsRef<[f32]>)]) {
    write(path, tensors).unwrap();
}

#[test]
fn golden_models_resolve_completely() {
    for folder in FOLDERS {
        let (list, weights) = (inventory(folder), Weights::open(&golden(folder)).unwrap());
        let loaded = resolve(&list, &weights, false).unwrap();
        assert!(loaded.missing.is_empty() && loaded.unexpected.is_empty(), "{folder}");
        for (param, tensor) in list.iter().zip(loaded.tensors) {
            let tensor = tensor.unwrap();
            assert_eq!((tensor.name, tensor.shape), (param.name.as_str(), &param.shape[..]));
            assert_eq!(tensor.f32().unwrap(), weights.f32(&param.name, &param.shape).unwrap());
            assert_eq!(tensor.f32().unwrap().len(), param.count());
        }
    }
}

#[test]
fn rewriting_a_model_gives_the_same_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    for case in FOLDERS {
        let (list, weights) = (inventory(case), Weights::open(&golden(case)).unwrap());
        let tensors = list.iter().map(|param| (&param.name, &param.shape, weights.f32(&param.name, &param.shape).unwrap()));
        write(&path, &tensors.collect::<Vec<_>>()).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(golden(case).join("model.safetensors")).unwrap(), "{case}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file is left");
}

#[test]
fn every_bit_pattern_survives() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.safetensors");
    // Subnormal, smallest, largest, minus zero; an empty tensor, a scalar, a name that JSON escapes.
    let values = vec![-0.0, f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX, f32::MIN, 0.1, 1.0];
    let long: Vec<f32> = (0..150_000).map(|i| i as f32 * 0.37).collect();
    let tensors = [
        ("z", vec![7], values),
        ("empty", vec![0, 3], vec![]),
        ("scalar", vec![], vec![2.5]),
        ("naïve \"q\"\n", vec![1, 2], vec![3.0, 4.0]),
        ("long", vec![3, 50_000], long),
    ];
    store(&path, &tensors);
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.names().count(), tensors.len());
    for (name, shape, values) in &tensors {
        let read = weights.f32(name, shape).unwrap();
        assert!(read.iter().map(|value| value.to_bits()).eq(values.iter().map(|value| value.to_bits())), "{name}");
    }
}

#[test]
fn a_failed_write_keeps_the_previous_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    store(&path, &[("a", vec![1], vec![1.0])]);
    let failed = write(&path, &[("a", [1], [2.0]), ("b", [1], [f32::NAN])]).unwrap_err().to_string();
    assert!(failed.contains("b is not finite (NaN at element 0)"), "{failed}");
    assert_eq!(Weights::open(&path).unwrap().f32("a", &[1]).unwrap()[..], [1.0]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let nowhere = folder.path().join("none/model.safetensors");
    assert!(write(&nowhere, &[("a", [1], [1.0])]).unwrap_err().to_string().contains("no such file or folder"));
}

#[test]
fn other_dtypes_of_the_golden_files_are_read() {
    let inputs = Weights::open(&golden("distilbert-a/inputs.safetensors")).unwrap();
    assert_eq!(inputs.get("labels").unwrap().i64().unwrap().len(), 6);
    assert_eq!(inputs.get("input_ids").unwrap().i64().unwrap()[0], 2, "[CLS]");
    let message = inputs.f32("labels", &[6]).unwrap_err().to_string();
    assert!(
        message.ends_with("inputs.safetensors`: tensor labels is I64, but must be F32, F16 or BF16; save it as F32"),
        "{message}"
    );
    let adamw = Weights::open(&golden("distilbert-a/adamw.safetensors")).unwrap();
    let rates = adamw.get("lr").unwrap().f64().unwrap();
    assert_eq!((rates.len(), rates[0], rates[1]), (12, 0.0, 2.5e-4));
    assert!(adamw.get("lr").unwrap().i64().is_err());
}

/// A model's tensors: name, dtype, shape, bytes.
pub type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

pub fn tensors(folder: &Path) -> Tensors {
    let weights = Weights::open(folder).unwrap();
    let tensor = |name| weights.get(name).unwrap();
    weights.names().map(tensor).map(|t| (t.name.to_string(), t.dtype, t.shape.to_vec(), t.bytes.to_vec())).collect()
}

/// The same rounded to f16 or bf16, and these values as f32.
pub fn rounded(tensors: &Tensors, dtype: Dtype) -> (Tensors, Tensors) {
    let (mut halves, mut wide) = (tensors.clone(), tensors.clone());
    for (half, wide) in halves.iter_mut().zip(&mut wide) {
        let (mut narrow, mut back) = (Vec::new(), Vec::new());
        for &bytes in wide.3.as_chunks().0 {
            let value = f32::from_le_bytes(bytes);
            let (bytes, value) = match dtype {
                Dtype::F16 => (f16::from_f32(value).to_le_bytes(), f16::from_f32(value).to_f32()),
                _ => (bf16::from_f32(value).to_le_bytes(), bf16::from_f32(value).to_f32()),
            };
            narrow.extend(bytes);
            back.extend(value.to_le_bytes());
        }
        (half.1, half.3, wide.3) = (dtype, narrow, back);
    }
    (halves, wide)
}

pub fn save(path: &Path, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) {
    let view = |(name, dtype, shape, bytes)| (name, TensorView::new(dtype, shape, bytes).unwrap());
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| view((name, *dtype, shape.clone(), bytes)));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Splits a folder's model into two shards with an index, and returns the index.
pub fn shard(folder: &Path) -> Value {
    let tensors = tensors(folder);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let name = format!("model-{:05}-of-00002.safetensors", number + 1);
        save(&folder.join(&name), part);
        map.extend(part.iter().map(|tensor| (tensor.0.clone(), json!(name))));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    index
}

#[test]
fn half_precision_is_read_exactly() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.safetensors");
    for dtype in [Dtype::F16, Dtype::BF16] {
        let to_f32 = |bits| if dtype == Dtype::F16 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() };
        // Every finite number, starting at an odd byte, in a count that is not a multiple of the eight converted at a time.
        let all: Vec<u16> = (1..=u16::MAX).filter(|&bits| to_f32(bits).is_finite()).collect();
        let w = json!({"dtype": dtype.to_string(), "shape": [all.len()], "data_offsets": [1, 1 + 2 * all.len()]});
        let header = json!({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "w": w}).to_string();
        let data: Vec<u8> = std::iter::once(0).chain(all.iter().flat_map(|bits| bits.to_le_bytes())).collect();
        std::fs::write(&path, file(header.as_bytes(), &data)).unwrap();
        let weights = Weights::open(&path).unwrap();
        let read = weights.f32("w", &[all.len()]).unwrap();
        assert!(read.iter().map(|x| x.to_bits()).eq(all.iter().map(|&bits| to_f32(bits).to_bits())), "{dtype}");

        let infinite = if dtype == Dtype::F16 { 0x7c00u16 } else { 0xff80 }.to_le_bytes().to_vec();
        save(&path, &[("w".into(), dtype, vec![2], [vec![0, 0], infinite].concat())]);
        let message = Weights::open(&path).unwrap().f32("w", &[2]).unwrap_err().to_string();
        assert!(message.contains("tensor w holds") && message.contains("inf at element 1"), "{message}");
    }
    for (dtype, size) in [(Dtype::F64, 8), (Dtype::F8_E4M3, 1), (Dtype::BOOL, 1)] {
        save(&path, &[("w".into(), dtype, vec![1], vec![0; size])]);
        let message = Weights::open(&path).unwrap().f32("w", &[1]).unwrap_err().to_string();
        assert!(message.contains(&format!("tensor w is {dtype}, but must be F32, F16 or BF16; save it as F32")), "{message}");
    }
}

#[test]
fn shards_are_read_through_their_index() {
    let folder = TempDir::new().unwrap();
    let (path, index) = (folder.path(), "model.safetensors.index.json");
    let whole = tensors(&golden("bert-a/hf"));
    let lay_out = || {
        save(&path.join("model.safetensors"), &whole);
        shard(path)
    };
    lay_out();
    assert!(tensors(path) == whole);
    let list = inventory("bert-a/hf");
    assert!(resolve(&list, &Weights::open(path).unwrap(), false).unwrap().unexpected.is_empty());
    // If both exist, the single file is used, as in Hugging Face.
    save(&path.join("model.safetensors"), &whole[..1]);
    assert_eq!(tensors(path).len(), 1);

    type Edit = fn(&Path, &mut Value);
    let first = "model-00001-of-00002.safetensors";
    let cases: [(Edit, &str); 11] = [
        (
            |path, _| std::fs::remove_file(path.join("model-00002-of-00002.safetensors")).unwrap(),
            "model-00002-of-00002.safetensors`: no such file or folder; it is listed in model.safetensors.index.json",
        ),
        (
            |path, _| std::fs::write(path.join("model-00001-of-00002.safetensors"), b"1234567").unwrap(),
            "model-00001-of-00002.safetensors`: has 7 bytes",
        ),
        (
            |_, index| index["weight_map"]["ghost"] = json!("model-00001-of-00002.safetensors"),
            "index.json`: lists ghost in model-00001-of-00002.safetensors, which does not have it",
        ),
        (
            |_, index| index["weight_map"]["ghost"] = json!("model-00003-of-00002.safetensors"),
            "model-00003-of-00002.safetensors`: no such file",
        ),
        (
            |_, index| index["weight_map"]["ghost"] = json!("../model.safetensors"),
            "index.json`: lists the shard \"../model.safetensors\", which is not a file in this folder",
        ),
        (|_, index| index["weight_map"]["ghost"] = json!("/etc/passwd"), "which is not a file in this folder"),
        (|_, index| index["weight_map"]["ghost"] = json!("a/../../b"), "which is not a file in this folder"),
        (|_, index| index["weight_map"]["ghost"] = json!(""), "which is not a file in this folder"),
        (|_, index| index["weight_map"]["ghost"] = json!(1), "is not an index of shards (invalid type: integer `1`"),
        (|_, index| *index = json!({}), "is not an index of shards (missing field `weight_map`"),
        (|_, index| *index = json!([]), "is not an index of shards ("),
    ];
    for (edit, part) in &cases {
        let mut json = lay_out();
        edit(path, &mut json);
        std::fs::write(path.join(index), json.to_string()).unwrap();
        let message = Weights::open(path).err().expect(part).to_string();
        assert!(message.contains(part) && message.lines().count() == 1, "{message}");
        assert!(!path.join("model.safetensors").exists() && path.join(first).exists());
    }
    std::fs::write(path.join(index), "{").unwrap();
    assert!(Weights::open(path).err().unwrap().to_string().contains("is not an index of shards"));
    // A tensor that a shard has and the index does not is ignored.
    let mut json = lay_out();
    json["weight_map"].as_object_mut().unwrap().remove("classifier.bias");
    std::fs::write(path.join(index), json.to_string()).unwrap();
    assert_eq!(resolve(&list, &Weights::open(path).unwrap(), false).unwrap().missing, ["classifier.bias"]);
}

/// Every parameter of a golden model under the name that `rename` returns, if any.
fn renamed(case: &str, folder: &Path, rename: impl Fn(&Param) -> Option<String>) -> Weights {
    let original = Weights::open(&golden(case)).unwrap();
    let kept: Vec<_> = inventory(case).into_iter().filter_map(|param| Some((rename(&param)?, param))).collect();
    let tensors: Vec<_> = kept
        .iter()
        .map(|(name, param)| (name.as_str(), param.shape.clone(), original.f32(&param.name, &param.shape).unwrap()))
        .collect();
    let path = folder.join("model.safetensors");
    store(&path, &tensors);
    Weights::open(folder).unwrap()
}

#[test]
fn base_checkpoints_get_a_fresh_head() {
    let folder = TempDir::new().unwrap();
    let cases = [
        ("distilbert-a/hf", "distilbert.", &["pre_classifier.weight", "pre_classifier.bias"][..]),
        ("bert-a/hf", "bert.", &["bert.pooler.dense.weight", "bert.pooler.dense.bias"][..]),
    ];
    for (case, prefix, dense) in cases {
        let list = inventory(case);
        let original = Weights::open(&golden(case)).unwrap();
        let classifier = ["classifier.weight", "classifier.bias"];

        // As saved from the encoder alone: no prefix, no head.
        let weights = renamed(case, folder.path(), |param| (!param.head).then(|| param.name.replace(prefix, "")));
        let loaded = resolve(&list, &weights, false).unwrap();
        assert_eq!(loaded.missing, [dense, &classifier].concat());
        assert!(loaded.unexpected.is_empty());
        for (param, tensor) in list.iter().zip(&loaded.tensors).filter(|(param, _)| !param.head) {
            assert_eq!(tensor.unwrap().bytes, original.get(&param.name).unwrap().bytes, "{}", param.name);
        }

        // A language model converted from TensorFlow: gamma and beta, other heads, with the pooler in BERT.
        let old = |name: &str| name.replace("orm.weight", "orm.gamma").replace("orm.bias", "orm.beta");
        let weights = renamed(case, folder.path(), |param| match param.name.as_str() {
            "classifier.weight" => Some("vocab_transform.weight".into()),
            "classifier.bias" => Some("cls.predictions.bias".into()),
            name => Some(old(name)),
        });
        assert_eq!(weights.names().filter(|name| name.ends_with("orm.gamma")).count(), 5);
        let loaded = resolve(&list, &weights, false).unwrap();
        assert_eq!(loaded.missing, classifier);
        assert_eq!(loaded.unexpected, ["cls.predictions.bias", "vocab_transform.weight"]);
    }
}

#[test]
fn mismatched_models_are_refused() {
    let folder = TempDir::new().unwrap();
    let case = "distilbert-a/hf";
    let weights = Weights::open(&golden(case)).unwrap();
    let config = Config::read(&golden(case).join("config.json")).unwrap();
    let refused = |list: &[Param], weights: &Weights| resolve(list, weights, false).expect_err("must be refused").to_string();

    let six = config.clone().with_labels((0..6).map(|i| i.to_string()).collect()).unwrap();
    let message = refused(&params(&six), &weights);
    assert!(
        message.contains(
            "tensor classifier.weight is [2, 64], but must be [6, 64]; for another number of labels train with --ignore"
        ),
        "{message}"
    );

    let deeper = Config { layers: 3, ..config.clone() };
    let message = refused(&params(&deeper), &weights);
    assert!(message.contains("lacks 16 of the model's 56 tensors, among them distilbert.transformer.layer.2."), "{message}");

    let words = Config { vocab: 300, ..config.clone() };
    let message = refused(&params(&words), &weights);
    assert!(message.contains("word_embeddings.weight is [256, 64], but must be [300, 64]"), "{message}");

    let message = refused(&inventory("bert-a/hf"), &weights);
    assert!(message.contains("lacks 39 of the model's 41 tensors"), "{message}");

    let lost = "distilbert.transformer.layer.1.ffn.lin2.bias";
    let weights = renamed(case, folder.path(), |param| (param.name != lost).then(|| param.name.clone()));
    let message = refused(&params(&config), &weights);
    assert!(message.contains(&format!("lacks 1 of the model's 40 tensors, among them {lost}")), "{message}");
}

#[test]
fn non_finite_weights_are_reported() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut data = vec![0u8; 16];
        data[8..12].copy_from_slice(&value.to_le_bytes());
        let weights = open(&file(br#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, &data)).unwrap();
        let message = weights.f32("w", &[2, 2]).unwrap_err().to_string();
        assert!(message.contains(&format!("tensor w holds {shown} at element 2; ")), "{message}");
        let message = weights.f32("w", &[4]).unwrap_err().to_string();
        assert!(message.contains("tensor w is [2, 2], but must be [4]"), "{message}");
        let message = weights.f32("v", &[4]).unwrap_err().to_string();
        assert!(message.contains("has no tensor v"), "{message}");
    }
}

#[test]
fn invalid_headers_are_refused() {
    let refused = |bytes: &[u8], fact: &str| {
        let message = refusal(bytes);
        assert!(message.contains(fact), "{message}");
    };
    refused(b"", "has 0 bytes, too few");
    refused(b"1234567", "has 7 bytes, too few");
    refused(&[0; 8], "a header of length 0");
    refused(&[0; 4096], "a header of length 0");
    refused(&u64::MAX.to_le_bytes(), "more than the limit of 100000000");
    refused(&100_000_001u64.to_le_bytes(), "a header of 100000001 bytes, more than the limit");
    refused(&100_000_000u64.to_le_bytes(), "ends within its header of 100000000 bytes");
    refused(&[&3u64.to_le_bytes()[..], b"{}"].concat(), "ends within its header of 3 bytes");
    refused(&file(b"{\"\xff\":1}", b""), "not UTF-8");
    refused(&file(b"{", b""), "is not JSON of tensors");
    refused(&file(b"{} x", b""), "is not JSON of tensors");
    refused(&file("[".repeat(10_000).as_bytes(), b""), "is not JSON of tensors");
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer");
    refused(b"PK\x03\x04 and so on", "is a pickle");

    let data = [0u8; 16];
    let header = |json: &str, fact: &str| refused(&file(json.as_bytes(), &data), fact);
    header("[]", "is not JSON of tensors");
    header(r#"{"w":1}"#, "is not JSON of tensors");
    header(r#"{"w":{"dtype":"F32","shape":[4]}}"#, "missing field `data_offsets`");
    header(r#"{"w":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}}"#, "unknown variant `F33`");
    header(r#"{"w":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#, "integer `-4`");
    header(r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16,32]}}"#, "is not JSON of tensors");
    header(r#"{"__metadata__":{"format":1},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, "is not JSON of tensors");
    header(
        r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#,
        "w is listed twice",
    );
    header(r#"{"w":{"dtype":"F32","shape":[4],"shape":[4],"data_offsets":[0,16]}}"#, "duplicate field");
    header(r#"{"w":{"dtype":"F32","shape":[5],"data_offsets":[0,20]}}"#, "tensor w ends at byte 20 of 16: the file is truncated");
    header(r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#, "has 16 bytes of data, but its last tensor ends at 12");
    header("{}", "has 16 bytes of data, but its last tensor ends at 0");
    header(r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}}"#, "tensor w starts at byte 4, not 0: it leaves a gap");
    header(r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[16,4]}}"#, "tensor w ends at byte 4, before its start");
    let two = |v: &str, w: &str| {
        format!(
            r#"{{"v":{{"dtype":"F32","shape":[2],"data_offsets":{v}}},"w":{{"dtype":"F32","shape":[2],"data_offsets":{w}}}}}"#
        )
    };
    header(&two("[0,8]", "[4,12]"), "tensor w starts at byte 4, not 8: it overlaps");
    header(&two("[0,8]", "[0,8]"), "tensor w starts at byte 0, not 8: it overlaps");
    header(&two("[8,16]", "[4,12]"), "tensor w starts at byte 4, not 0");
    header(r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}}"#, "tensor w of [3] F32 has 16 bytes");
    header(r#"{"w":{"dtype":"F64","shape":[4],"data_offsets":[0,16]}}"#, "tensor w of [4] F64 has 16 bytes");
    let huge = "18446744073709551615";
    header(&format!(r#"{{"w":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,16]}}}}"#), "has 16 bytes");
    header(r#"{"w":{"dtype":"F32","shape":[4611686018427387908],"data_offsets":[0,16]}}"#, "has 16 bytes");
    header(&format!(r#"{{"w":{{"dtype":"F32","shape":[4],"data_offsets":[0,{huge}]}}}}"#), "is truncated");
    header(&format!(r#"{{"w":{{"dtype":"U8","shape":[{huge}],"data_offsets":[0,{huge}]}}}}"#), "is truncated");

    let sound = file(two("[0,8]", "[8,16]").as_bytes(), &data);
    assert!(open(&sound).is_ok());
    refused(&sound[..sound.len() - 1], "tensor w ends at byte 16 of 15: the file is truncated");
    refused(&[&sound[..], b"\0"].concat(), "has 17 bytes of data, but its last tensor ends at 16");
}

#[test]
fn folders_without_safetensors_are_refused_with_a_remedy() {
    let folder = TempDir::new().unwrap();
    let message = || Weights::open(folder.path()).err().expect("must be refused").to_string();
    assert!(message().contains("this folder has no model.safetensors"));
    std::fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(message().contains("pytorch_model.bin") && message().contains("save_pretrained"));
    std::fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert!(message().contains("is not a regular file"));
    assert!(Weights::open(Path::new("no such folder")).err().unwrap().to_string().contains("no such file or folder"));
}

#[cfg(unix)]
#[test]
fn a_fifo_is_refused_without_blocking() {
    let folder = TempDir::new().unwrap();
    let fifo = folder.path().join("model.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(Weights::open(&fifo).err().expect("must be refused").to_string().contains("is not a regular file"));
}

/// A checkpoint replaced by one of the same step can be opened at any moment.
#[cfg(target_os = "linux")]
#[test]
fn a_checkpoint_is_replaced_without_a_gap() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let folder = TempDir::new().unwrap();
    let run = warpfit::checkpoint::run_dir::RunDir::create(folder.path(), false).unwrap();
    let save = || run.checkpoint(5, |at| warpfit::files::write_file(&at.join("state.json"), b"{\"run\": {}}")).unwrap();
    let (path, done) = (save(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut missing = 0;
            while !done.load(Ordering::Relaxed) {
                missing += usize::from(!path.exists());
            }
            missing
        });
        (0..300).for_each(|_| drop(save()));
        done.store(true, Ordering::Relaxed);
        assert_eq!(reader.join().unwrap(), 0, "times it was missing");
    });
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "the checkpoint and the lock");
}

#[test]
fn folders_that_appear_during_a_run_are_neither_replaced_nor_rotated() {
    let folder = TempDir::new().unwrap();
    let mut run = warpfit::checkpoint::run_dir::RunDir::create(folder.path(), false).unwrap();
    run.begin().unwrap();
    let state = serde_json::json!({"run_id": run.id, "run": {}}).to_string();
    let save = |step| run.checkpoint(step, |at| warpfit::files::write_file(&at.join("state.json"), state.as_bytes())).unwrap();
    save(5);
    for step in [4, 10] {
        let copied = folder.path().join(format!("checkpoint-{step}"));
        std::fs::create_dir(&copied).unwrap();
        std::fs::write(copied.join("optimizer.pt"), "moments").unwrap();
    }
    save(10);
    run.rotate(1, 10, None).unwrap();
    let exists = |name: &str| folder.path().join(name).exists();
    assert!(exists("checkpoint-4/optimizer.pt") && exists("earlier-run-1/checkpoint-10/optimizer.pt"));
    assert!(!exists("checkpoint-5") && exists("checkpoint-10/state.json"));
}

proptest! {
    #[test]
    fn damaged_files_never_panic(flips in prop::collection::vec((0usize..260, any::<u8>()), 0..4), cut in prop::option::of(0usize..260)) {
        let header = r#"{"__metadata__":{"format":"pt"},"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"I64","shape":[1,2],"data_offsets":[8,24]}}"#;
        let mut bytes = file(header.as_bytes(), &[1; 24]);
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        match open(&bytes) {
            Ok(weights) => for name in weights.names() {
                let tensor = weights.get(name).unwrap();
                let _ = (tensor.f32(), tensor.f64(), tensor.i64());
                prop_assert_eq!(tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize(), tensor.bytes.len() * 8);
            },
            Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
        }
    }
}

#[test]
fn weights_and_state_without_a_checksum_are_not_sound() {
    let dir = TempDir::new().unwrap();
    for name in ["model.safetensors", "state.json", "notes.txt"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    assert!(!verify(dir.path()).unwrap());
    seal(dir.path()).unwrap();
    // A file of the user's own is no fault.
    std::fs::write(dir.path().join("more.txt"), "").unwrap();
    assert!(verify(dir.path()).unwrap());
    std::fs::write(dir.path().join(CHECKSUMS), "{}").unwrap();
    let error = verify(dir.path()).unwrap_err().to_string();
    assert!(error.contains("has no checksum of "), "{error}");
}
