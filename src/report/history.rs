//! The log of a run: `log_history` of trainer_state.json, and metrics.jsonl.

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

pub type Entry = Map<String, Value>;

/// The entries, each as a line of JSON, in a fifth of the memory of a `Map`: a long run has a hundred thousand.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub struct History(Vec<Box<RawValue>>);

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
        self.0.push(to_raw_value(entry).expect("strings as keys"));
        self.0.last().expect("just added").get()
    }

    /// The entries as lines of metrics.jsonl.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.iter().map(|entry| entry.get())
    }

    pub fn entries(&self) -> impl DoubleEndedIterator<Item = Entry> {
        self.lines().map(|line| serde_json::from_str(line).expect("an object of our own"))
    }
}
