//! Texts to token ids, with a Hugging Face `tokenizer.json`: special tokens added, cut to a length, never padded.

use std::fmt::Display;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;
use tokenizers::{NormalizerWrapper, PostProcessor, PreTokenizerWrapper, TruncationDirection};

use crate::error::{Error, Result};

/// Token ids of many texts, laid end to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// (tokens of all rows)
    pub ids: Vec<i32>,
    /// Token types (segments), (tokens of all rows); empty where all are 0.
    pub types: Vec<i32>,
    /// Where each row starts in `ids`, and the end of the last, (rows + 1).
    pub offsets: Vec<usize>,
    /// Class of each row, (rows); empty where there is none.
    pub labels: Vec<u32>,
    /// Whether each row was cut to the greatest length, (rows).
    pub cut: Vec<bool>,
}

impl Default for Encoded {
    fn default() -> Encoded {
        Encoded { ids: Vec::new(), types: Vec::new(), offsets: vec![0], labels: Vec::new(), cut: Vec::new() }
    }
}

impl Encoded {
    pub fn rows(&self) -> usize {
        self.cut.len()
    }

    /// How many rows were cut.
    pub fn truncated(&self) -> usize {
        self.cut.iter().filter(|&&cut| cut).count()
    }

    /// Ids, types (empty where all are 0) and label (0 where there is none) of a row, as `PackedBatch::new` takes them.
    pub fn row(&self, row: usize) -> (&[i32], &[i32], u32) {
        let range = self.offsets[row]..self.offsets[row + 1];
        let types = if self.types.is_empty() { &[] } else { &self.types[range.clone()] };
        (&self.ids[range], types, self.labels.get(row).copied().unwrap_or(0))
    }

    /// Adds a row that was tokenised elsewhere; no types stand for all 0. `place` is where it came from.
    /// An error where it has no ids or a negative one, or where ids and types differ in number.
    pub fn push(&mut self, place: impl Display, ids: &[i32], types: &[i32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::user(place, "input_ids is empty", "give at least [CLS] and [SEP]"));
        }
        if !types.is_empty() && types.len() != ids.len() {
            let fact = format!("{} token_type_ids for {} input_ids", types.len(), ids.len());
            return Err(Error::user(place, fact, "give one each, or leave them out"));
        }
        if let Some(id) = ids.iter().chain(types).find(|&&id| id < 0) {
            return Err(Error::user(place, format!("the id {id} is negative"), "give the ids of the model's tokenizer"));
        }
        self.append(ids, types, false);
        Ok(())
    }

    /// Adds a row of `other`.
    pub fn append_row(&mut self, other: &Encoded, row: usize) {
        self.append(other.row(row).0, other.row(row).1, other.cut[row]);
    }

    fn append(&mut self, ids: &[i32], types: &[i32], cut: bool) {
        if types.iter().any(|&kind| kind != 0) {
            self.types.resize(self.ids.len(), 0);
            self.types.extend(types);
        }
        self.ids.extend(ids);
        if !self.types.is_empty() {
            self.types.resize(self.ids.len(), 0);
        }
        self.offsets.push(self.ids.len());
        self.cut.push(cut);
    }
}

/// A token and where it stands in its text, in bytes; a special one stands nowhere.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Token {
    pub id: u32,
    /// What stands there in the text; of a special one its name.
    pub text: String,
    pub special: bool,
    pub start: Option<usize>,
    pub stop: Option<usize>,
}

/// The tokenizer of a model folder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer.json` as read, to be copied beside a trained model.
    pub json: Vec<u8>,
    /// `model_max_length` of `tokenizer_config.json`, where there is one that means something.
    pub max_length: Option<usize>,
    /// Largest token id + 1; may not be above the model's vocabulary.
    pub vocab: usize,
    /// Whether white space parts a text into pieces that are tokenised each for itself.
    by_words: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` where it stands beside it.
    pub fn read(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let mut tokenizer = Tokenizer::parse(&json, path.display())?;
        let path = folder.join("tokenizer_config.json");
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&path, e)),
            Ok(config) => {
                let config: Value = serde_json::from_slice(&config)
                    .map_err(|e| Error::user(path.display(), format!("not JSON: {e}"), "fetch the model folder again"))?;
                // Without a limit of its own, Hugging Face writes 1e30.
                tokenizer.max_length = config["model_max_length"].as_u64().map(|n| n as usize);
            }
        }
        Ok(tokenizer)
    }

    /// Takes the content of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Tokenizer> {
        Tokenizer::parse(json, "tokenizer.json")
    }

    fn parse(json: &[u8], place: impl Display) -> Result<Tokenizer> {
        let bad = |fact: String| Error::user(&place, fact, "give the tokenizer.json of a BERT or DistilBERT model");
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| bad(format!("not a tokenizer: {e}")))?;
        // A file may carry a length to cut or pad to: both are for the caller to say.
        inner.with_padding(None).with_truncation(None).map_err(|e| bad(e.to_string()))?;
        let vocab = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let by_words = matches!(inner.get_normalizer(), None | Some(NormalizerWrapper::BertNormalizer(_)))
            && matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
            && inner.get_added_tokens_decoder().values().all(|token| !token.content.contains(char::is_whitespace));
        let tokenizer = Tokenizer { inner, json: json.to_vec(), max_length: None, vocab, by_words };
        if tokenizer.specials() == 0 {
            return Err(bad("adds no [CLS] and [SEP] to a text".to_string()));
        }
        Ok(tokenizer)
    }

    /// How many special tokens are added to a text.
    fn specials(&self) -> usize {
        self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false))
    }

    /// Token ids of each text, in order, cut on the right to `max_length` tokens with the special ones, on all cores.
    /// `progress` hears, from any thread, how many more texts are done. An error where `max_length` leaves no room for text.
    pub fn encode<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        max_length: usize,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Encoded> {
        let room = max_length.checked_sub(self.specials()).filter(|&room| room > 0).ok_or_else(|| {
            let fact = format!("{max_length} leaves no room for text beside {} special tokens", self.specials());
            Error::user("--max-length", fact, format!("give at least {}", self.specials() + 1))
        })?;
        let chunks = texts.par_chunks(256).map(|chunk| {
            let mut encoded = Encoded::default();
            for text in chunk {
                self.encode_text(text.as_ref(), room, &mut encoded)?;
            }
            progress(chunk.len());
            Ok(encoded)
        });
        let mut all = Encoded::default();
        for chunk in chunks.collect::<Result<Vec<Encoded>>>()? {
            (0..chunk.rows()).for_each(|row| all.append_row(&chunk, row));
        }
        Ok(all)
    }

    /// The tokens of a text, all of them, with the special ones or without.
    pub fn tokens(&self, text: &str, specials: bool) -> Result<Vec<Token>> {
        let encoding = self.inner.encode(text, specials).map_err(untokenised)?;
        let special = encoding.get_special_tokens_mask().iter().map(|&special| special == 1);
        let tokens = encoding.get_ids().iter().zip(encoding.get_tokens()).zip(encoding.get_offsets()).zip(special);
        let token = |(((&id, name), &(start, stop)), special): (((&u32, &String), &(usize, usize)), bool)| {
            let text = if special { name.as_str() } else { text.get(start..stop).unwrap_or_default() }.to_string();
            Token { id, text, special, start: (!special).then_some(start), stop: (!special).then_some(stop) }
        };
        Ok(tokens.map(token).collect())
    }

    fn encode_text(&self, text: &str, room: usize, out: &mut Encoded) -> Result<()> {
        // Tokenising takes time and a hundred times the memory for every byte, and only `room` tokens are kept: a head of
        // the text that gives more than these will do.
        let mut size = room.saturating_mul(8);
        let mut encoding = loop {
            let head = self.head(text, size);
            let encoding = self.inner.encode_fast(head, false).map_err(untokenised)?;
            if encoding.len() > room || head.len() == text.len() {
                break encoding;
            }
            size = head.len().saturating_mul(4);
        };
        let cut = encoding.len() > room;
        encoding.truncate(room, 0, TruncationDirection::Right);
        encoding.take_overflowing(); // what was cut off would get special tokens too
        let encoding = self.inner.post_process(encoding, None, true).map_err(untokenised)?;
        let as_i32 = |ids: &[u32]| ids.iter().map(|&id| id as i32).collect::<Vec<i32>>();
        out.append(&as_i32(encoding.get_ids()), &as_i32(encoding.get_type_ids()), cut);
        Ok(())
    }

    /// The text up to the first white space from byte `size` on, where that gives the same first tokens.
    fn head<'a>(&self, text: &'a str, size: usize) -> &'a str {
        let rest = text.as_bytes().get(size..).filter(|_| self.by_words).unwrap_or_default();
        match rest.iter().position(u8::is_ascii_whitespace) {
            Some(space) => &text[..size + space],
            None => text,
        }
    }
}

fn untokenised(e: tokenizers::Error) -> Error {
    Error::user("tokenizer.json", format!("a text cannot be tokenised: {e}"), "check the vocabulary")
}
