//! One line per request on standard error.

use clap::ValueEnum;
use serde::Serialize;

use crate::console::complain;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    Off,
    /// POST /predict 200 texts=2 tokens=31 ms=4.2
    Text,
    /// {"method":"POST","path":"/predict","status":200,"texts":2,"tokens":31,"ms":4.2}
    Json,
}

#[derive(Serialize)]
pub struct Entry<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub status: u16,
    /// Absent where the model has read nothing.
    #[serde(flatten)]
    pub size: Option<Size>,
    pub ms: f64,
}

/// How much a request has given the model to read.
#[derive(Clone, Copy, Serialize)]
pub struct Size {
    pub texts: usize,
    pub tokens: usize,
}

impl AccessLog {
    pub fn write(self, entry: &Entry) {
        let Entry { method, path, status, size, ms } = entry;
        match self {
            AccessLog::Off => (),
            AccessLog::Text => {
                let size = size.map_or(String::new(), |Size { texts, tokens }| format!(" texts={texts} tokens={tokens}"));
                complain(format!("{method} {path} {status}{size} ms={ms:.1}"));
            }
            AccessLog::Json => complain(serde_json::to_string(entry).expect("every part is JSON")),
        }
    }
}
