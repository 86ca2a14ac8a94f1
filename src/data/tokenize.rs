//! Texts to token ids, with a Hugging Face `tokenizer.json`: special tokens added, truncated to a length, never padded.

use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;
use tokenizers::{Encoding, Token, TruncationDirection};

use crate::data::pack::PackedBatch;
use crate::data::pretrained;
use crate::data::truncation::TruncationSide;
use crate::data::wordpiece::WordPiece;
use crate::error::{Error, Result};

/// Token ids of many texts, laid end to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// (tokens of all rows)
    pub ids: Vec<i32>,
    /// Token types (segments), (tokens of all rows); empty if all are 0.
    pub types: Vec<i32>,
    /// Start of each row in `ids`, and the end of the last, (rows + 1).
    pub offsets: Vec<usize>,
    /// Class of each row, (rows); empty without labels.
    pub labels: Vec<u32>,
    /// Whether each row was truncated, (rows).
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

    /// The number of truncated rows.
    pub fn truncated(&self) -> usize {
        self.cut.iter().filter(|&&cut| cut).count()
    }

    /// Ids, types (empty if all are 0) and label (0 without one) of a row, the input of `PackedBatch::new`.
    pub fn row(&self, row: usize) -> (&[i32], &[i32], u32) {
        let range = self.offsets[row]..self.offsets[row + 1];
        let types = if self.types.is_empty() { &[] } else { &self.types[range.clone()] };
        (&self.ids[range], types, self.labels.get(row).copied().unwrap_or(0))
    }

    /// The rows in order, packed: batches of at most `tokens` tokens and `seqs` rows.
    ///
    /// # Panics
    /// If a row is longer than `tokens`.
    pub fn batches(&self, tokens: usize, seqs: usize) -> impl Iterator<Item = PackedBatch> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let fits = |end: &usize| *end - start <= seqs && self.offsets[*end] - self.offsets[start] <= tokens;
            let rows = start..(start + 1..=self.rows()).take_while(fits).last().unwrap_or(start);
            assert!(!rows.is_empty() || start == self.rows(), "one row fits");
            start = rows.end;
            (!rows.is_empty()).then(|| PackedBatch::new(rows.map(|row| self.row(row))))
        })
    }

    /// Adds a row that was tokenized elsewhere; no types mean all 0. `place` is its source. An error if it has no ids or a
    /// negative one, or if the numbers of ids and types differ.
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

/// The key of `tokenizer_config.json` with the most tokens of a text.
pub const MAX_LENGTH: &str = "model_max_length";

/// The tokenizer of a model folder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// For `tokenizer.json` files that hold BERT's own algorithm.
    fast: Option<WordPiece>,
    frame: Frame,
    /// The `tokenizer.json` that is in effect.
    pub json: Vec<u8>,
    /// `model_max_length` of `tokenizer_config.json`, if it is a meaningful number.
    pub max_length: Option<usize>,
    /// The part of long texts that is cut.
    pub truncation_side: TruncationSide,
    /// Largest token id + 1; must not exceed the model's vocabulary.
    pub vocab: usize,
}

/// A token and its byte range in the text; a special token has none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Piece {
    pub id: u32,
    /// The characters of the text; of a special token its name.
    pub text: String,
    pub special: bool,
    pub start: Option<usize>,
    pub stop: Option<usize>,
}

/// The special tokens added around a text.
struct Frame {
    before: Vec<i32>,
    after: Vec<i32>,
    /// Token types of both, and of the text between them.
    types: Vec<i32>,
}

impl Frame {
    /// The special tokens around a text of one token; `None` unless the text occurs exactly once.
    fn of(inner: &tokenizers::Tokenizer) -> tokenizers::Result<Option<Frame>> {
        const TEXT: u32 = u32::MAX;
        let framed = inner.post_process(Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0), None, true)?;
        let as_i32 = |ids: &[u32]| ids.iter().map(|&id| id as i32).collect::<Vec<i32>>();
        let parts: Vec<Vec<i32>> = framed.get_ids().split(|&id| id == TEXT).map(as_i32).collect();
        let frame = |[before, after]: [Vec<i32>; 2]| Frame { before, after, types: as_i32(framed.get_type_ids()) };
        Ok(parts.try_into().ok().map(frame))
    }

    /// The number of special tokens.
    fn specials(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// Token types for a text of this many tokens; empty if all are 0.
    fn types(&self, tokens: usize) -> Vec<i32> {
        if self.types.iter().all(|&kind| kind == 0) {
            return Vec::new();
        }
        let (before, text) = self.types.split_at(self.before.len());
        [before, &vec![text[0]; tokens], &text[1..]].concat()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or makes it from `vocab.txt`, with the settings of `tokenizer_config.json` if it exists.
    pub fn read(folder: &Path) -> Result<Tokenizer> {
        let read = |name: &str| match std::fs::read(folder.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&folder.join(name), e)),
        };
        let path = |name: &str| folder.join(name).display().to_string();
        let config: Value = match read("tokenizer_config.json")? {
            Some(json) => serde_json::from_slice(&json).map_err(|e| {
                Error::user(path("tokenizer_config.json"), format!("not JSON: {e}"), "download the model folder again")
            })?,
            None => Value::Null,
        };
        let (place, json) = match read("tokenizer.json")? {
            Some(json) => (path("tokenizer.json"), pretrained::configured(json, &config, &path("tokenizer.json"))),
            None => match read("vocab.txt")? {
                Some(vocabulary) => (path("vocab.txt"), pretrained::from_vocabulary(&vocabulary, &config, &path("vocab.txt"))?),
                None => return Err(Error::io(&folder.join("tokenizer.json"), std::io::ErrorKind::NotFound.into())),
            },
        };
        let mut tokenizer = Tokenizer::parse(&json, place)?;
        // If there is no limit, Hugging Face writes 1e30.
        tokenizer.max_length = config[MAX_LENGTH].as_u64().map(|n| n as usize);
        if let Some(side) = TruncationSide::of_config(&config, &path("tokenizer_config.json"))? {
            tokenizer.truncation_side = side;
        }
        Ok(tokenizer)
    }

    /// Parses the content of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Tokenizer> {
        Tokenizer::parse(json, "tokenizer.json")
    }

    fn parse(json: &[u8], place: impl Display) -> Result<Tokenizer> {
        let bad = |fact: String| Error::user(&place, fact, "give the tokenizer.json of a BERT or DistilBERT model");
        // Parsing a string is compiled in their crate; the generic `from_bytes` would be compiled once more in ours.
        let inner = str::from_utf8(json).map_err(tokenizers::Error::from).and_then(str::parse::<tokenizers::Tokenizer>);
        let mut inner = inner.map_err(|e| bad(format!("not a tokenizer: {e}")))?;
        // A file may ask for truncation and padding. The caller decides about both; only the side of truncation is kept, as in
        // Hugging Face's tokenizers.
        let truncation_side = match inner.get_truncation() {
            Some(truncation) if truncation.direction == TruncationDirection::Left => TruncationSide::Left,
            _ => TruncationSide::Right,
        };
        inner.with_padding(None).with_truncation(None).map_err(|e| bad(e.to_string()))?;
        let vocab = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let frame = Frame::of(&inner).map_err(|e| bad(e.to_string()))?.filter(|frame| frame.specials() > 0);
        let frame = frame.ok_or_else(|| bad("it adds no [CLS] and [SEP]".to_string()))?;
        let (fast, json) = (WordPiece::new(&inner), json.to_vec());
        Ok(Tokenizer { fast, inner, frame, json, max_length: None, truncation_side, vocab })
    }

    /// Token ids of each text, in order, truncated to `max_length` tokens including the special ones, on all cores. `progress`
    /// is called from any thread with the number of texts just finished. An error if `max_length` leaves no room for text.
    pub fn encode<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        max_length: usize,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Encoded> {
        self.encode_from(texts, max_length, self.truncation_side, progress)
    }

    /// The same, with another part of long texts cut than the model's.
    pub fn encode_from<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        max_length: usize,
        side: TruncationSide,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Encoded> {
        let room = self.room(max_length)?;
        // When the end is cut, the rest of the text need not be read.
        let limit = if side == TruncationSide::Right { room.saturating_add(1) } else { usize::MAX };
        let chunks = texts.par_chunks(256).map(|chunk| {
            let (mut encoded, mut ids) = (Encoded::default(), Vec::new());
            for text in chunk {
                ids.clone_from(&self.frame.before);
                self.tokens(text.as_ref(), limit, &mut ids)?;
                let start = self.frame.before.len();
                let cut = cut(ids.len() - start, room, side);
                ids.drain(start + cut.start..start + cut.end);
                let types = self.frame.types(ids.len() - start);
                ids.extend(&self.frame.after);
                encoded.append(&ids, &types, !cut.is_empty());
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

    /// Tokens of a text that fit beside the special ones.
    fn room(&self, max_length: usize) -> Result<usize> {
        let specials = self.frame.specials();
        max_length.checked_sub(specials).filter(|&room| room > 0).ok_or_else(|| {
            let fact = format!("{max_length} leaves no room for text beside {specials} special tokens");
            Error::user("--max-length", fact, format!("give at least {}", specials + 1))
        })
    }

    /// Rows of token ids, truncated like texts; the special tokens around a text are added unless they are there.
    pub fn encode_ids(&self, rows: &[Vec<u32>], max_length: usize, side: TruncationSide) -> Result<Encoded> {
        let room = self.room(max_length)?;
        let mut encoded = Encoded::default();
        for row in rows {
            if let Some(id) = row.iter().find(|&&id| id as usize >= self.vocab) {
                let fact = format!("{id} is not in the vocabulary of {} tokens", self.vocab);
                return Err(Error::user("token ids", fact, "send ids of this model's tokenizer, or texts"));
            }
            let row: Vec<i32> = row.iter().map(|&id| id as i32).collect();
            let Frame { before, after, .. } = &self.frame;
            let text = row.strip_prefix(&before[..]).and_then(|row| row.strip_suffix(&after[..])).unwrap_or(&row);
            let cut = cut(text.len(), room, side);
            let kept = [&text[..cut.start], &text[cut.end..]].concat();
            encoded.append(&[before, &kept[..], after].concat(), &self.frame.types(kept.len()), !cut.is_empty());
        }
        Ok(encoded)
    }

    /// All tokens of a text, with or without the special ones.
    pub fn pieces(&self, text: &str, specials: bool) -> Result<Vec<Piece>> {
        let encoding = self.inner.encode(text, specials).map_err(untokenized)?;
        let piece = |i: usize| {
            let special = encoding.get_special_tokens_mask()[i] == 1;
            let (start, stop) = encoding.get_offsets()[i];
            let text = if special { &*encoding.get_tokens()[i] } else { text.get(start..stop).unwrap_or_default() };
            let place = |at| (!special).then_some(at);
            Piece { id: encoding.get_ids()[i], text: text.to_string(), special, start: place(start), stop: place(stop) }
        };
        Ok((0..encoding.len()).map(piece).collect())
    }

    /// Which of a text's pieces, with the special ones, are cut so that `max_length` are left.
    pub fn cut(&self, pieces: &[Piece], max_length: usize) -> Result<Range<usize>> {
        let (before, room) = (self.frame.before.len(), self.room(max_length)?);
        let cut = cut(pieces.len() - self.frame.specials(), room, self.truncation_side);
        Ok(before + cut.start..before + cut.end)
    }

    /// A token as the vocabulary has it: `##ing`.
    pub fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    /// Appends the ids of a text without special tokens: all, or at least `limit`.
    fn tokens(&self, text: &str, limit: usize, ids: &mut Vec<i32>) -> Result<()> {
        if self.fast.as_ref().is_some_and(|fast| fast.encode(text, limit, ids)) {
            return Ok(());
        }
        let encoding = self.inner.encode_fast(text, false).map_err(untokenized)?;
        ids.extend(encoding.get_ids().iter().map(|&id| id as i32));
        Ok(())
    }
}

/// The tokens of a text of this many that are cut so that `room` are left; empty if all fit.
fn cut(tokens: usize, room: usize, side: TruncationSide) -> Range<usize> {
    match tokens.checked_sub(room) {
        None | Some(0) => tokens..tokens,
        Some(_) => {
            let [head, tail] = side.kept(room);
            head..tokens - tail
        }
    }
}

fn untokenized(e: tokenizers::Error) -> Error {
    Error::user("tokenizer.json", format!("a text cannot be tokenized: {e}"), "check the vocabulary")
}
