//! Which tokens of a text that is too long are kept, and how a model folder carries that choice: Hugging Face's
//! `truncation_side` in `tokenizer_config.json`, and for the middle, which it does not know, a key of our own beside it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The part of a long text that is cut. The names are those of Hugging Face's tokenizers, and `middle`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TruncationSide {
    /// The end is cut, and the start is kept
    #[default]
    Right,
    /// The start is cut, and the end is kept
    Left,
    /// The middle is cut: the first quarter of the tokens that fit is taken from the start, and the rest from the end
    Middle,
}

const KEY: &str = "truncation_side";
const OWN_KEY: &str = "warpfit_truncation_side";

impl TruncationSide {
    /// The tokens kept from the start and from the end of a longer text, for `room` tokens. For the middle the shares are those
    /// of Sun et al. 2019, "How to Fine-Tune BERT for Text Classification": 128 and 382 of 510.
    pub fn kept(self, room: usize) -> [usize; 2] {
        match self {
            TruncationSide::Right => [room, 0],
            TruncationSide::Left => [0, room],
            TruncationSide::Middle => [room.div_ceil(4), room - room.div_ceil(4)],
        }
    }

    /// The choice in the content of a `tokenizer_config.json`; `None` without one. `place` is the file.
    ///
    /// # Errors
    /// Another value than these.
    pub fn of_config(config: &Value, place: &str) -> Result<Option<TruncationSide>> {
        let Some((key, value)) = [OWN_KEY, KEY].iter().find_map(|&key| Some((key, config.get(key)?))) else { return Ok(None) };
        if value.is_null() {
            return Ok(None);
        }
        let side = serde_json::from_value(value.clone()).ok().filter(|side| key == OWN_KEY || *side != TruncationSide::Middle);
        let remedy = if key == OWN_KEY { "use \"left\", \"right\" or \"middle\"" } else { "use \"left\" or \"right\"" };
        side.map(Some).ok_or_else(|| Error::user(place, format!("{key} is {value}"), remedy))
    }

    /// Puts the choice into the content of a `tokenizer_config.json`.
    pub fn write(self, config: &mut Map<String, Value>) {
        config.shift_remove(OWN_KEY);
        let known = if self == TruncationSide::Middle { TruncationSide::Right } else { self };
        config.insert(KEY.to_string(), json!(known));
        if self == TruncationSide::Middle {
            config.insert(OWN_KEY.to_string(), json!(self));
        }
    }

    /// The value of the flag.
    pub fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_string()
    }

    /// The part that is cut, to be appended to a message; nothing for the end, which is usual.
    pub fn place(self) -> &'static str {
        match self {
            TruncationSide::Right => "",
            TruncationSide::Left => ", at the start",
            TruncationSide::Middle => ", in the middle",
        }
    }
}
