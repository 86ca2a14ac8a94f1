//! The tokenizer that `AutoTokenizer.from_pretrained` makes of a model folder: of BERT's classes, `tokenizer_config.json` decides
//! over normalisation, whatever `tokenizer.json` says, and `vocab.txt` alone is enough.

use serde_json::{Map, Value, json};

use crate::console::note;
use crate::error::{Error, Result};

/// The names of BERT's class.
const CLASSES: [&str; 7] = [
    "BertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
];

/// The content of a `tokenizer.json` with the normalisation of `config`, which is null without a `tokenizer_config.json`. A
/// difference is reported. Unchanged for other classes than BERT's, and if it is no tokenizer of that kind.
pub fn configured(json: Vec<u8>, config: &Value, place: &str) -> Vec<u8> {
    let Ok(Value::Object(mut tokenizer)) = serde_json::from_slice(&json) else { return json };
    // Older files do not name the type.
    let is_wordpiece = tokenizer.get("model").is_some_and(|model| {
        model["type"] == "WordPiece" || model["type"].is_null() && model["continuing_subword_prefix"].is_string()
    });
    if !is_wordpiece || !is_bert(config) {
        return json;
    }
    let before = tokenizer.insert("normalizer".to_string(), normalizer(config)).unwrap_or_default();
    let split = tokenizer.insert("pre_tokenizer".to_string(), json!({"type": "BertPreTokenizer"})).unwrap_or_default();
    let after = &tokenizer["normalizer"];
    if before == *after && split == tokenizer["pre_tokenizer"] {
        return json;
    }
    let differs = |(key, value): (&String, &Value)| (before[key] != *value).then(|| format!("{key} {value}"));
    let mut differences: Vec<String> = after.as_object().into_iter().flatten().filter_map(differs).collect();
    if split != tokenizer["pre_tokenizer"] {
        differences.push("BERT's split into words".to_string());
    }
    note(format!("note: {place}: read with {}, as tokenizer_config.json and its defaults say", differences.join(", ")));
    Value::from(tokenizer).to_string().into_bytes()
}

/// The `tokenizer.json` that belongs to a `vocab.txt`, one piece per line.
///
/// # Errors
/// A class other than BERT's; a vocabulary without the special tokens.
pub fn from_vocabulary(vocabulary: &[u8], config: &Value, place: &str) -> Result<Vec<u8>> {
    if !is_bert(config) {
        let fact = format!("is not enough for a {}", config["tokenizer_class"].as_str().unwrap_or_default());
        return Err(Error::user(place, fact, "add the tokenizer.json that belongs to the model"));
    }
    let text = str::from_utf8(vocabulary).map_err(|_| Error::user(place, "not UTF-8", "download the model folder again"))?;
    let pieces: Map<String, Value> = text.lines().zip(0..).map(|(piece, id)| (piece.trim_end().to_string(), id.into())).collect();
    let name = |key: &str, usual: &str| {
        let token = &config[key];
        token.as_str().or(token["content"].as_str()).unwrap_or(usual).to_string()
    };
    let [unknown, sep, pad, cls, mask] = [
        ("unk_token", "[UNK]"),
        ("sep_token", "[SEP]"),
        ("pad_token", "[PAD]"),
        ("cls_token", "[CLS]"),
        ("mask_token", "[MASK]"),
    ]
    .map(|(key, usual)| name(key, usual));
    if let Some(missing) = [&unknown, &sep, &cls].into_iter().find(|token| !pieces.contains_key(*token)) {
        return Err(Error::user(place, format!("has no {missing}"), "use the vocab.txt of a BERT or DistilBERT model"));
    }
    let added = [&pad, &unknown, &cls, &sep, &mask].into_iter().filter_map(|token| {
        let id = pieces.get(token)?;
        Some(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
        }))
    });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<Value>>(),
        "normalizer": normalizer(config),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": [sep, pieces[&sep]], "cls": [cls, pieces[&cls]]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": pieces,
        },
    });
    Ok(tokenizer.to_string().into_bytes())
}

/// Whether the class is BERT's, which it is for a BERT or DistilBERT model if none is named.
fn is_bert(config: &Value) -> bool {
    let class = config["tokenizer_class"].as_str().unwrap_or("BertTokenizer");
    CLASSES.contains(&class.trim_end_matches("Fast"))
}

/// BERT's normaliser with the settings of `config`; what it does not set has the defaults of the class.
fn normalizer(config: &Value) -> Value {
    json!({
        "type": "BertNormalizer",
        "clean_text": true,
        "handle_chinese_chars": config["tokenize_chinese_chars"].as_bool().unwrap_or(true),
        "strip_accents": config["strip_accents"].as_bool(),
        "lowercase": config["do_lower_case"].as_bool().unwrap_or(true),
    })
}
