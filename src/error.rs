//! The error type of the whole crate: a place, a fact and a remedy, on one line. Its kind is the exit code of the program.

use std::fmt;
use std::path::Path;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error, with its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The run completed, but its result is not usable (a loss that is not finite, a threshold not met).
    Unusable = 1,
    /// The input, a flag or a file is wrong.
    User = 2,
    /// The device or memory has failed.
    Device = 3,
    /// Stopped by a signal; the message says what was saved.
    Interrupted = 130,
    /// The reader of standard output has gone: not a failure.
    BrokenPipe = 0,
}

/// Displays as "`place`: fact; remedy".
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    place: String,
    fact: String,
    remedy: String,
}

/// Whether a terminal acts on a character instead of showing it: control characters, and those that reorder the text around them
/// (the embeddings, overrides and isolates of Unicode's UAX #9).
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Remedy for outputs that are not finite.
pub const BROKEN: &str =
    "the model is broken (go back to an earlier checkpoint), or exceeds the range of fp16 (pass --precision fp32)";

/// A thread cannot be started.
pub fn no_threads(e: impl fmt::Display) -> Error {
    Error::new(Kind::Device, "threads", e.to_string(), "raise the limits of memory and processes")
}

impl Error {
    pub fn new(kind: Kind, place: impl fmt::Display, fact: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error { kind, place: place.to_string(), fact: fact.into(), remedy: remedy.into() }
    }

    /// Bad input: `place` is a file, `file:line`, a tensor or a flag; `fact` says what is wrong; `remedy` what to do.
    pub fn user(place: impl fmt::Display, fact: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::new(Kind::User, place, fact, remedy)
    }

    /// A stop that a signal asked for: where, and how to go on.
    pub fn interrupted(fact: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::new(Kind::Interrupted, "", fact, remedy)
    }

    /// What is wrong, without place and remedy.
    pub fn fact(&self) -> &str {
        &self.fact
    }

    /// The message without the remedy.
    pub fn without_remedy(&self) -> String {
        format!("{}: {}", self.place, self.fact)
    }

    /// Appends detail to the message.
    pub fn and(mut self, fact: &str) -> Error {
        self.fact = format!("{}; {fact}", self.fact);
        self
    }

    /// Appends detail to the remedy.
    pub fn remedy_and(mut self, detail: &str) -> Error {
        self.remedy = format!("{}; {detail}", self.remedy);
        self
    }

    /// A file that could not be read or written.
    pub fn io(path: &Path, error: std::io::Error) -> Error {
        use std::io::ErrorKind::*;
        let remedy = match error.kind() {
            BrokenPipe => return Error::new(Kind::BrokenPipe, path.display(), error.to_string(), ""),
            // There is no address space left for a mapped file.
            OutOfMemory => {
                return Error::new(Kind::Device, path.display(), error.to_string(), "stop other programs, or lower --batch-size");
            }
            NotFound => "check the path",
            PermissionDenied => "check the permissions",
            ReadOnlyFilesystem => "choose another place",
            StorageFull | QuotaExceeded => "free some space",
            IsADirectory => "name a file, not a folder",
            _ => "check the file system",
        };
        let fact = match error.kind() {
            NotFound => "no such file or folder".to_string(),
            IsADirectory => "is a folder".to_string(),
            _ => error.to_string(),
        };
        Error::user(path.display(), fact, remedy)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // The message may quote a file: keep it on one line, and without control characters.
        let line = |s: &str| s.chars().map(|c| if is_control(c) { ' ' } else { c }).collect::<String>();
        if !self.place.is_empty() {
            write!(f, "`{}`: ", line(&self.place))?;
        }
        write!(f, "{}", line(&self.fact))?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", line(&self.remedy))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
