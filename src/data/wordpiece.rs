//! BERT's tokenizer in one pass over a text: it is cleaned, lower-cased and split into words, and each word into the longest
//! pieces of the vocabulary. The ids equal those of the `tokenizers` library, which applies the same rules one after the other
//! and tracks offsets, and takes twenty times as long. Cases in which the two could differ are left to the library.

use std::collections::HashMap;
use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, MatchKind};
use foldhash::fast::FixedState;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};
use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::char::{canonical_combining_class, decompose_canonical};

use self::Verdict::{Enough, Library, More};

/// Pieces and their ids, by their UTF-8.
type Pieces = HashMap<Box<[u8]>, i32, FixedState>;

pub struct WordPiece {
    /// Pieces that begin a word.
    starts: Pieces,
    /// Pieces that continue a word, without their `##`.
    rests: Pieces,
    /// Length of the longest piece in bytes.
    longest: usize,
    unknown: i32,
    /// Words of more characters are unknown.
    word_limit: usize,
    /// Tokens that are matched verbatim in the text, such as `[SEP]`, and their ids.
    added: AhoCorasick,
    added_ids: Vec<i32>,
    /// Classes of characters, in pages of 256, computed on first use.
    pages: Box<[OnceLock<Box<[Class; 256]>>]>,
    normalizer: BertNormalizer,
}

/// The class of a character after normalisation.
#[derive(Clone, Copy)]
enum Class {
    Nothing,
    /// Ends a word.
    Space,
    /// Is a word by itself.
    Alone(char),
    Letter(char),
    Several,
    /// An accent that is kept. Unicode reorders these across other characters.
    Mark,
}

/// Whether to continue with a text.
#[derive(PartialEq)]
enum Verdict {
    More,
    /// The requested number of tokens is reached.
    Enough,
    Library,
}

impl WordPiece {
    /// The rules of this tokenizer; `None` unless all of them are BERT's.
    pub fn new(tokenizer: &tokenizers::Tokenizer) -> Option<WordPiece> {
        let Some(&NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer() else { return None };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = tokenizer.get_pre_tokenizer() else { return None };
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else { return None };
        let added = tokenizer.get_added_tokens_decoder();
        // Such a token is matched in the normalised text, or absorbs its surroundings.
        if added.values().any(|token| token.normalized || token.single_word || token.lstrip || token.rstrip) {
            return None;
        }
        if model.continuing_subword_prefix != "##" {
            return None;
        }
        let vocabulary = tokenizers::Model::get_vocab(model);
        let unknown = *vocabulary.get(&model.unk_token)? as i32;
        let (mut starts, mut rests) = (Pieces::default(), Pieces::default());
        for (piece, &id) in &vocabulary {
            // A # is punctuation, so no word contains one beside another character.
            match piece.strip_prefix("##") {
                Some(rest) => rests.insert(rest.as_bytes().into(), id as i32),
                None => starts.insert(piece.as_bytes().into(), id as i32),
            };
        }
        let contents = added.values().map(|token| &token.content);
        Some(WordPiece {
            longest: starts.keys().chain(rests.keys()).map(|piece| piece.len()).max().unwrap_or(0),
            starts,
            rests,
            unknown,
            word_limit: model.max_input_chars_per_word,
            added: AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(contents).ok()?,
            added_ids: added.keys().map(|&id| id as i32).collect(),
            pages: (0..=char::MAX as u32 >> 8).map(|_| OnceLock::new()).collect(),
            normalizer,
        })
    }

    /// Appends the ids of a text to `ids`: all, or if there are more than `limit`, at least that many. It reads no further than
    /// it must. `false` leaves the text to the library, with `ids` unchanged.
    pub fn encode(&self, text: &str, limit: usize, ids: &mut Vec<i32>) -> bool {
        let before = ids.len();
        let mut words = Words { rules: self, limit: before.saturating_add(limit), word: Vec::new(), chars: 0, ids };
        let mut verdict = More;
        let mut at = 0;
        for found in self.added.find_iter(text) {
            verdict = words.read(&text[at..found.start()]);
            if verdict != More {
                break;
            }
            words.ids.push(self.added_ids[found.pattern().as_usize()]);
            at = found.end();
        }
        if verdict == More {
            verdict = words.read(&text[at..]);
        }
        if verdict == Library {
            ids.truncate(before);
        }
        verdict != Library
    }
}

impl WordPiece {
    fn class(&self, c: char) -> Class {
        let page = self.pages[c as usize >> 8].get_or_init(|| {
            let first = c as u32 & !255;
            let class = |low: usize| {
                let (mut class, mut classes) = (Class::Nothing, 0);
                let c = char::from_u32(first + low as u32).unwrap_or_default(); // no text contains a surrogate
                self.normalise(c, &mut |one| (class, classes) = (one, classes + 1));
                if classes > 1 { Class::Several } else { class }
            };
            Box::new(std::array::from_fn(class))
        });
        page[c as usize & 255]
    }

    /// The rules of BertNormalizer and BertPreTokenizer for a character.
    fn normalise(&self, c: char, emit: &mut dyn FnMut(Class)) {
        let BertNormalizer { clean_text, handle_chinese_chars, strip_accents, lowercase, .. } = self.normalizer;
        if clean_text && is_dropped(c) {
            return;
        }
        let alone = handle_chinese_chars && is_chinese(c);
        let mut split = |c: char| {
            emit(match c {
                _ if c.is_whitespace() => Class::Space,
                _ if alone || c.is_ascii_punctuation() || c.is_punctuation() => Class::Alone(c),
                _ => Class::Letter(c),
            })
        };
        let mut lower = |c: char| if lowercase { c.to_lowercase().for_each(&mut split) } else { split(c) };
        if !strip_accents.unwrap_or(lowercase) {
            return lower(c);
        }
        let mut stays = false;
        decompose_canonical(c, |part| {
            if !part.is_mark_nonspacing() {
                stays |= canonical_combining_class(part) != 0;
                lower(part);
            }
        });
        if stays {
            emit(Class::Mark);
        }
    }
}

/// The state of one text: the current word, and the ids of the words before it.
struct Words<'a> {
    rules: &'a WordPiece,
    limit: usize,
    /// Its UTF-8, up to the word limit.
    word: Vec<u8>,
    chars: usize,
    ids: &'a mut Vec<i32>,
}

impl Words<'_> {
    /// A text without added tokens.
    fn read(&mut self, text: &str) -> Verdict {
        for c in text.chars() {
            match self.rules.class(c) {
                Class::Letter(c) => self.push(c),
                class => {
                    let mut marked = false;
                    match class {
                        Class::Several => self.rules.normalise(c, &mut |class| marked |= !self.take(class)),
                        class => marked = !self.take(class),
                    }
                    if marked {
                        return Library;
                    }
                    if self.ids.len() >= self.limit {
                        return Enough;
                    }
                }
            }
        }
        self.end();
        if self.ids.len() >= self.limit { Enough } else { More }
    }

    /// `false` for what is left to the library.
    fn take(&mut self, class: Class) -> bool {
        match class {
            Class::Nothing => {}
            Class::Space => self.end(),
            Class::Alone(c) => self.alone(c),
            Class::Letter(c) => self.push(c),
            Class::Several | Class::Mark => return false,
        }
        true
    }

    #[inline]
    fn push(&mut self, c: char) {
        self.chars += 1;
        // Words beyond the limit are unknown, whatever their characters.
        if self.chars <= self.rules.word_limit {
            match u8::try_from(c) {
                Ok(byte) if byte.is_ascii() => self.word.push(byte),
                _ => self.word.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    /// A word of one character.
    fn alone(&mut self, c: char) {
        self.end();
        self.push(c);
        self.end();
    }

    /// Ends the current word, if there is one.
    fn end(&mut self) {
        if self.chars == 0 {
            return;
        }
        let before = self.ids.len();
        let mut rest = if self.chars <= self.rules.word_limit { &self.word[..] } else { &[] };
        let mut pieces = &self.rules.starts;
        while !rest.is_empty() {
            // Pieces are valid UTF-8: a match ends between characters.
            let longest = (1..=rest.len().min(self.rules.longest)).rev();
            let Some((size, id)) =
                longest.map(|size| (size, pieces.get(&rest[..size]))).find_map(|(size, id)| Some((size, *id?)))
            else {
                self.ids.truncate(before);
                break;
            };
            self.ids.push(id);
            rest = &rest[size..];
            pieces = &self.rules.rests;
        }
        if self.ids.len() == before {
            self.ids.push(self.rules.unknown);
        }
        self.word.clear();
        self.chars = 0;
    }
}

/// Control characters other than white space, NUL, and the replacement character.
fn is_dropped(c: char) -> bool {
    c == '\u{fffd}' || !matches!(c, '\t' | '\n' | '\r') && c.is_other()
}

/// The blocks of ideographs, each of which is a word of its own; other scripts of East Asia are not in them.
fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2a6df}'
        | '\u{2a700}'..='\u{2b73f}' | '\u{2b740}'..='\u{2b81f}' | '\u{2b920}'..='\u{2ceaf}' | '\u{2f800}'..='\u{2fa1f}')
}
