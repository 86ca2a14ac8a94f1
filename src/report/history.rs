//! The log of a run: `log_history` of trainer_state.json, and metrics.jsonl.

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

pub type Entry = Map<String, Value>;

/// The entries as lines of JSON, in a fifth of the memory of `Map`s: a long run has a hundred thousand. Clones share all but the
/// last few.
#[derive(Clone, Default)]
pub struct History {
    blocks: Vec<Arc<str>>,
    /// The block that is not full.
    last: String,
}

/// The size of a block at which the next one begins, in bytes.
const BLOCK: usize = 1 << 13;

impl Serialize for History {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.lines().map(|line| serde_json::from_str::<&RawValue>(line).expect("JSON of our own")))
    }
}

/// The part of trainer_state.json that is read again.
#[derive(Deserialize)]
struct Saved {
    #[serde(default)]
    log_history: Vec<Box<RawValue>>,
}

impl History {
    /// The log in a trainer_state.json, in any layout, up to the update `step`.
    pub fn read(trainer_state: &[u8], step: usize) -> serde_json::Result<History> {
        let saved: Saved = serde_json::from_slice(trainer_state)?;
        let mut history = History::default();
        for entry in saved.log_history {
            let entry: Entry = serde_json::from_str(entry.get())?;
            if entry.get("step").and_then(Value::as_u64).is_some_and(|at| at <= step as u64) {
                history.push(&entry);
            }
        }
        Ok(history)
    }

    /// Appends an entry, and returns its line.
    pub fn push(&mut self, entry: &Entry) -> &str {
        if self.last.len() >= BLOCK {
            self.blocks.push(std::mem::take(&mut self.last).into());
        }
        let (start, line) = (self.last.len(), serde_json::to_string(entry).expect("strings as keys"));
        self.last.extend([&line, "\n"]);
        &self.last[start..][..line.len()]
    }

    /// The entries as lines of metrics.jsonl.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.blocks.iter().map(Arc::as_ref).chain([self.last.as_str()]).flat_map(str::lines)
    }

    pub fn entries(&self) -> impl DoubleEndedIterator<Item = Entry> {
        self.lines().map(|line| serde_json::from_str(line).expect("an object of our own"))
    }
}
