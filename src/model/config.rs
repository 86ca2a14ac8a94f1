//! config.json of DistilBERT and BERT classifiers: the fields that the engine needs, checked. Unknown keys are kept: `to_json`
//! writes the struct's fields over the file as read.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::report::log::counted;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    DistilBert,
    Bert,
}

/// Sizes and rates of a model, under the same names for both architectures.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub arch: Arch,
    pub vocab: usize,
    /// Rows of the position table: the maximum sequence length.
    pub positions: usize,
    /// Rows of the token-type table; 0 for DistilBERT, which has none.
    pub types: usize,
    pub dim: usize,
    pub heads: usize,
    pub layers: usize,
    pub ffn: usize,
    /// `id2label` in order of id; LABEL_0, LABEL_1, ... if the file has none.
    pub labels: Vec<String>,
    /// Whether the file names the labels (other than the default LABEL_i).
    pub labels_named: bool,
    /// Dropout after the embedding norm and in every layer.
    pub dropout: f32,
    pub attention_dropout: f32,
    /// Dropout before the classifier.
    pub classifier_dropout: f32,
    pub norm_eps: f32,
    pub initializer_range: f32,
    /// The row of the word table that gets no gradient.
    pub pad_token_id: Option<usize>,
    /// The file as read, so that unknown keys survive a save.
    pub json: Map<String, Value>,
}

/// Keys that differ between the architectures.
struct Keys {
    model_type: &'static str,
    class: &'static str,
    dim: &'static str,
    heads: &'static str,
    layers: &'static str,
    ffn: &'static str,
    activation: &'static str,
    dropout: &'static str,
    attention_dropout: &'static str,
    classifier_dropout: &'static str,
}

const DISTILBERT: Keys = Keys {
    model_type: "distilbert",
    class: "DistilBertForSequenceClassification",
    dim: "dim",
    heads: "n_heads",
    layers: "n_layers",
    ffn: "hidden_dim",
    activation: "activation",
    dropout: "dropout",
    attention_dropout: "attention_dropout",
    classifier_dropout: "seq_classif_dropout",
};

const BERT: Keys = Keys {
    model_type: "bert",
    class: "BertForSequenceClassification",
    dim: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    ffn: "intermediate_size",
    activation: "hidden_act",
    dropout: "hidden_dropout_prob",
    attention_dropout: "attention_probs_dropout_prob",
    classifier_dropout: "classifier_dropout",
};

impl Arch {
    fn keys(self) -> &'static Keys {
        match self {
            Arch::DistilBert => &DISTILBERT,
            Arch::Bert => &BERT,
        }
    }

    /// `model_type` in config.json, which is also the prefix of the encoder's tensor names.
    pub fn model_type(self) -> &'static str {
        self.keys().model_type
    }
}

// Upper bounds of sizes. They are far beyond any real model, and small enough that no product of them (vocab * dim, layers *
// dim * ffn, times 8 bytes) overflows 64 bits.
const MAX_VOCAB: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 20;
const MAX_TYPES: usize = 1 << 8;
const MAX_DIM: usize = 1 << 16;
const MAX_LAYERS: usize = 1 << 10;
const MAX_FFN: usize = 1 << 20;
const MAX_LABELS: usize = 1 << 16;

impl Config {
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    pub fn classes(&self) -> usize {
        self.labels.len()
    }

    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// A file that cannot be read, and the errors of `parse`.
    pub fn read(path: &Path) -> Result<Config> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Config::parse(&bytes, path.display())
    }

    /// Checks the content of a config.json; `place` names it in messages. Absent keys have the defaults of Hugging Face's
    /// DistilBertConfig and BertConfig.
    ///
    /// # Errors
    /// Content that is not JSON, not of these architectures, or not supported by this engine: activations other than exact
    /// GELU, positions other than learned absolute ones, decoders, regression, multi-label classification, absurd sizes.
    pub fn parse(bytes: &[u8], place: impl Display) -> Result<Config> {
        let json = serde_json::from_slice(bytes).map_err(|e| {
            Error::user(&place, format!("is not a JSON object ({e})"), "use the config.json of a Hugging Face model")
        })?;
        let file = File { json: &json, place: &place };
        let arch = match file.text("model_type")? {
            Some("distilbert") => Arch::DistilBert,
            Some("bert") => Arch::Bert,
            Some(other) => return Err(file.error(format!("model_type is {other}"), "use a distilbert or bert model")),
            None => return Err(file.error("model_type is missing", "set it to distilbert or bert, to match the weights")),
        };
        let keys = arch.keys();
        let bert = arch == Arch::Bert;
        file.check_supported(keys)?;
        let (labels, labels_named) = file.labels()?;
        let dropout = file.rate(keys.dropout, 0.1, 0.0..1.0)?;
        let classifier_dropout = match json.get(keys.classifier_dropout) {
            None | Some(Value::Null) if bert => dropout,
            _ => file.rate(keys.classifier_dropout, 0.2, 0.0..1.0)?,
        };
        let config = Config {
            arch,
            vocab: file.size("vocab_size", 30522, MAX_VOCAB)?,
            positions: file.size("max_position_embeddings", 512, MAX_POSITIONS)?,
            types: if bert { file.size("type_vocab_size", 2, MAX_TYPES)? } else { 0 },
            dim: file.size(keys.dim, 768, MAX_DIM)?,
            heads: file.size(keys.heads, 12, MAX_DIM)?,
            layers: file.size(keys.layers, if bert { 12 } else { 6 }, MAX_LAYERS)?,
            ffn: file.size(keys.ffn, 3072, MAX_FFN)?,
            labels,
            labels_named,
            dropout,
            attention_dropout: file.rate(keys.attention_dropout, 0.1, 0.0..1.0)?,
            classifier_dropout,
            norm_eps: if bert { file.rate("layer_norm_eps", 1e-12, f32::MIN_POSITIVE..1.0)? } else { 1e-12 },
            initializer_range: file.rate("initializer_range", 0.02, 0.0..1e3)?,
            pad_token_id: match json.get("pad_token_id") {
                None => Some(0),
                Some(Value::Null) => None,
                Some(id) => Some(file.whole("pad_token_id", id)?),
            },
            json: json.clone(),
        };
        if !config.dim.is_multiple_of(config.heads) {
            let fact = format!("{} {} is not divisible by {} {}", keys.dim, config.dim, keys.heads, config.heads);
            return Err(file.error(fact, "correct the one that does not match the weights"));
        }
        if let Some(pad) = config.pad_token_id.filter(|&pad| pad >= config.vocab) {
            let fact = format!("pad_token_id {pad} is outside the vocabulary of {}", config.vocab);
            return Err(file.error(fact, "correct the one that does not match the tokenizer"));
        }
        Ok(config)
    }

    /// The same model with another label set: `names` in order of class.
    ///
    /// # Errors
    /// Fewer than two names, or a duplicate name.
    pub fn with_labels(self, names: Vec<String>) -> Result<Config> {
        check_labels(&names).map_err(|fact| Error::user("labels", fact, "use two or more different labels"))?;
        Ok(Config { labels: names, labels_named: true, ..self })
    }

    /// Sets the dropout of embeddings, attention and hidden layers to `all`, and that before the classifier to `classifier`, if
    /// given. In a BERT file without a rate for the classifier, `all` applies to it too.
    ///
    /// # Errors
    /// A rate outside [0, 1).
    pub fn with_dropout(mut self, all: Option<f32>, classifier: Option<f32>) -> Result<Config> {
        if let Some(rate) = [all, classifier].into_iter().flatten().find(|rate| !(0.0..1.0).contains(rate)) {
            return Err(Error::user("dropout", format!("{rate} is not a dropout rate"), "use a number from 0 to below 1"));
        }
        let follows = self.arch == Arch::Bert && !self.json.get("classifier_dropout").is_some_and(Value::is_number);
        if let Some(rate) = all {
            self.dropout = rate;
            self.attention_dropout = rate;
        }
        self.classifier_dropout = match classifier {
            Some(rate) => rate,
            None if follows => all.unwrap_or(self.classifier_dropout),
            None => self.classifier_dropout,
        };
        Ok(self)
    }

    /// The config.json of this model in Hugging Face's format: two spaces, sorted keys, a newline at the end. It has every key
    /// of the file that was read, with the values of the struct, and float32 as the type of the weights.
    pub fn to_json(&self) -> String {
        let keys = self.arch.keys();
        let mut json = self.json.clone();
        json.insert("architectures".into(), json!([keys.class]));
        json.insert("model_type".into(), keys.model_type.into());
        json.insert("vocab_size".into(), self.vocab.into());
        json.insert("max_position_embeddings".into(), self.positions.into());
        json.insert(keys.dim.into(), self.dim.into());
        json.insert(keys.heads.into(), self.heads.into());
        json.insert(keys.layers.into(), self.layers.into());
        json.insert(keys.ffn.into(), self.ffn.into());
        json.insert("pad_token_id".into(), self.pad_token_id.into());
        set_rate(&mut json, keys.dropout, self.dropout);
        set_rate(&mut json, keys.attention_dropout, self.attention_dropout);
        set_rate(&mut json, "initializer_range", self.initializer_range);
        if self.arch == Arch::Bert {
            json.insert("type_vocab_size".into(), self.types.into());
            set_rate(&mut json, "layer_norm_eps", self.norm_eps);
        }
        let follows = self.arch == Arch::Bert && !json.get(keys.classifier_dropout).is_some_and(Value::is_number);
        if !(follows && self.classifier_dropout == self.dropout) {
            set_rate(&mut json, keys.classifier_dropout, self.classifier_dropout);
        }
        for key in ["dtype", "torch_dtype"] {
            if let Some(dtype) = json.get_mut(key) {
                *dtype = "float32".into();
            }
        }
        if let Some(count) = json.get_mut("num_labels") {
            *count = self.classes().into();
        }
        json.shift_remove("id2label");
        json.shift_remove("label2id");
        // Hugging Face omits the default labels: two, without names.
        if self.labels != default_labels(2) {
            let ids = self.labels.iter().enumerate();
            json.insert("id2label".into(), Value::Null);
            json.insert("label2id".into(), ids.map(|(id, name)| (name.clone(), id.into())).collect::<Map<_, _>>().into());
        }
        let mut json = Value::Object(json);
        json.sort_all_objects();
        if let Some(id2label) = json.get_mut("id2label") {
            // In order of id: 2 before 10.
            let names = self.labels.iter().enumerate();
            *id2label = names.map(|(id, name)| (id.to_string(), name.as_str().into())).collect::<Map<_, _>>().into();
        }
        format!("{json:#}\n")
    }
}

/// Writes a rate, unless the file has the same: 0.1 stays 0.1 instead of the nearest f32.
fn set_rate(json: &mut Map<String, Value>, key: &str, rate: f32) {
    if json.get(key).and_then(Value::as_f64).is_none_or(|read| read as f32 != rate) {
        // The shortest decimal that rounds to this f32.
        let decimal: f64 = rate.to_string().parse().expect("a finite f32 prints as a decimal number");
        json.insert(key.into(), decimal.into());
    }
}

fn default_labels(count: usize) -> Vec<String> {
    (0..count).map(|id| format!("LABEL_{id}")).collect()
}

/// Checks that these labels can be those of a classifier.
fn check_labels(names: &[String]) -> std::result::Result<(), String> {
    if names.len() < 2 {
        return Err(format!("{}, but a classifier needs at least two", counted(names.len(), "label")));
    }
    let mut seen = HashSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(format!("the label {name} is listed twice")),
        None => Ok(()),
    }
}

/// A config.json being checked: each method reads one key, and refuses a value of the wrong JSON type.
struct File<'a> {
    json: &'a Map<String, Value>,
    place: &'a dyn Display,
}

impl<'a> File<'a> {
    fn error(&self, fact: impl Into<String>, remedy: &str) -> Error {
        Error::user(self.place, fact, remedy)
    }

    fn wrong_type(&self, key: &str, value: &Value, wanted: &str) -> Error {
        let found = match value {
            Value::Null => "null".into(),
            Value::Bool(_) => "true or false".into(),
            Value::Number(number) => number.to_string(),
            Value::String(_) => "a string".into(),
            Value::Array(_) => "a list".into(),
            Value::Object(_) => "an object".to_string(),
        };
        self.error(format!("{key} is {found}, but must be {wanted}"), "correct this key")
    }

    /// The value of a key; null counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong_type(key, value, "a string"))).transpose()
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| self.wrong_type(key, value, "true or false")))
    }

    fn whole(&self, key: &str, value: &Value) -> Result<usize> {
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| self.wrong_type(key, value, "a whole number from 0"))
    }

    fn size(&self, key: &str, default: usize, max: usize) -> Result<usize> {
        let Some(value) = self.json.get(key) else { return Ok(default) };
        let size = self.whole(key, value)?;
        if (1..=max).contains(&size) {
            return Ok(size);
        }
        Err(self.error(format!("{key} is {size}, outside 1 to {max}"), "correct this key"))
    }

    fn rate(&self, key: &str, default: f32, range: Range<f32>) -> Result<f32> {
        let Some(value) = self.json.get(key) else { return Ok(default) };
        let rate = value.as_f64().ok_or_else(|| self.wrong_type(key, value, "a number"))?;
        // Compared as f32, since 1 - 1e-12 would become a dropout of 1.
        if range.contains(&(rate as f32)) {
            return Ok(rate as f32);
        }
        let fact = format!("{key} is {rate}, not from {} to below {}", range.start, range.end);
        Err(self.error(fact, "correct this key"))
    }

    /// Refuses models that this engine would compute differently.
    fn check_supported(&self, keys: &Keys) -> Result<()> {
        if let Some(value) = self.get("architectures").filter(|value| !value.is_array()) {
            return Err(self.wrong_type("architectures", value, "a list"));
        }
        // Its classifier has the name of one for texts.
        let classes = self.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        if let Some(class) = classes.into_iter().find(|class| class.ends_with("ForTokenClassification")) {
            return Err(self.error(
                format!("architectures is {class}, which labels tokens"),
                "use a base model, or one that classifies texts",
            ));
        }
        if let Some(other) = self.text(keys.activation)?.filter(|name| *name != "gelu") {
            return Err(self.error(format!("{} is {other}", keys.activation), "use a model whose activation is gelu"));
        }
        if let Some(other) = self.text("position_embedding_type")?.filter(|name| *name != "absolute") {
            let fact = format!("position_embedding_type is {other}");
            return Err(self.error(fact, "use a model with absolute positions"));
        }
        if self.flag("sinusoidal_pos_embds")? {
            return Err(self.error("sinusoidal_pos_embds is true", "use a model with learned positions"));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if self.flag(key)? {
                return Err(self.error(format!("{key} is true"), "use an encoder; decoders are not supported"));
            }
        }
        match self.text("problem_type")? {
            None | Some("single_label_classification") => Ok(()),
            Some(other) => {
                let remedy = "only single_label_classification, one label per text, is supported";
                Err(self.error(format!("problem_type is {other}"), remedy))
            }
        }
    }

    /// The label names by id, and whether the file names them. As in Hugging Face, id2label overrides num_labels.
    fn labels(&self) -> Result<(Vec<String>, bool)> {
        let names = match self.get("id2label") {
            None => match self.get("num_labels") {
                None => default_labels(2),
                Some(_) => default_labels(self.size("num_labels", 2, MAX_LABELS)?),
            },
            Some(Value::Object(ids)) => {
                if let Some(id) = ids.keys().find(|id| id.parse().map(|number: usize| number.to_string()).as_ref() != Ok(*id)) {
                    return Err(self.error(format!("id2label has the id {id}"), "number the labels 0, 1, 2, ..."));
                }
                let name = |id: usize| {
                    let gap = || {
                        self.error(
                            format!("id2label has {} and no id {id}", counted(ids.len(), "label")),
                            "number them 0, 1, 2, ...",
                        )
                    };
                    let value = ids.get(&id.to_string()).ok_or_else(gap)?;
                    match value {
                        Value::String(name) => Ok(name.clone()),
                        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
                        _ => Err(self.wrong_type("id2label", value, "a string for each label")),
                    }
                };
                (0..ids.len()).map(name).collect::<Result<_>>()?
            }
            Some(value) => return Err(self.wrong_type("id2label", value, "an object from id to name")),
        };
        if names.len() > MAX_LABELS {
            return Err(self.error(format!("id2label has {} labels", names.len()), &format!("use at most {MAX_LABELS}")));
        }
        check_labels(&names).map_err(|fact| self.error(fact, "use a classifier of two or more different labels"))?;
        let named = names != default_labels(names.len());
        Ok((names, named))
    }
}
