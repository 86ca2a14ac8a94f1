//! The log of a run in TensorBoard's format: a file of framed records, each a protobuf message `Event`. Events are not
//! buffered.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::history::{Entry, History};
use crate::error::{Error, Result};

/// In the folder of a run; TensorBoard looks for `tfevents` in the name.
pub const FILE: &str = "runs/events.out.tfevents.warpfit";

pub struct Events {
    /// Created with the first entry.
    file: Option<File>,
    path: PathBuf,
}

// Field numbers, from event.proto and summary.proto.
const WALL_TIME: u8 = 1;
const STEP: u8 = 2;
const FILE_VERSION: u8 = 3;
const SUMMARY: u8 = 5;
const SESSION_LOG: u8 = 7;
const SUMMARY_VALUE: u8 = 1;
const VALUE_TAG: u8 = 1;
const VALUE_SIMPLE: u8 = 2;
const SESSION_STATUS: u8 = 1;
const SESSION_START: u64 = 1;

impl Events {
    /// The file of a new run.
    pub fn new(run: &Path) -> Events {
        Events { file: None, path: run.join(FILE) }
    }

    /// Continues the file of a run after the update `step`, with the entries of the log up to there: the events of that update
    /// and of later ones are marked as void, since a killed run may have logged more, and those of `log` are repeated.
    pub fn resume(run: &Path, step: usize, log: &History) -> Result<Events> {
        let mut events = Events::new(run);
        events.write(step, text(SESSION_LOG, &integer(SESSION_STATUS, SESSION_START)))?;
        log.entries().filter(|entry| entry["step"] == step).try_for_each(|entry| events.add(step, &entry))?;
        Ok(events)
    }

    /// Opens the file; the last record of a killed run may be truncated.
    fn open(&self) -> std::io::Result<File> {
        fs::create_dir_all(self.path.parent().expect("FILE is in a folder"))?;
        let end = whole(&fs::read(&self.path).unwrap_or_default());
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.set_len(end as u64)?;
        if end == 0 {
            file.write_all(&record(0, text(FILE_VERSION, b"brain.Event:2")))?;
        }
        Ok(file)
    }

    /// Adds the numbers of a log entry, under Trainer's tags: `loss` as train/loss, `eval_loss` as eval/loss.
    pub fn add(&mut self, step: usize, entry: &Entry) -> Result<()> {
        let mut summary = Vec::new();
        for (key, value) in entry.iter().filter(|(key, _)| *key != "step") {
            let Some(value) = value.as_f64() else { continue };
            let tag = match key.split_once('_') {
                Some((split @ ("eval" | "test"), name)) => format!("{split}/{name}"),
                _ => format!("train/{key}"),
            };
            let mut scalar = text(VALUE_TAG, tag.as_bytes());
            scalar.push(VALUE_SIMPLE << 3 | 5);
            scalar.extend((value as f32).to_le_bytes());
            summary.extend(text(SUMMARY_VALUE, &scalar));
        }
        self.write(step, text(SUMMARY, &summary))
    }

    fn write(&mut self, step: usize, what: Vec<u8>) -> Result<()> {
        let opened = self.file.take().map_or_else(|| self.open(), Ok);
        let written = opened.and_then(|mut file| file.write_all(&record(step, what)).map(|()| file));
        self.file = Some(written.map_err(|e| Error::io(&self.path, e))?);
        Ok(())
    }
}

/// One event: time, step and `what`.
fn record(step: usize, what: Vec<u8>) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut event = vec![WALL_TIME << 3 | 1];
    event.extend(now.to_le_bytes());
    event.extend(integer(STEP, step as u64));
    event.extend(what);
    let size = (event.len() as u64).to_le_bytes();
    [&size[..], &masked_crc(&size), &event, &masked_crc(&event)].concat()
}

/// Length of the whole records in `file`.
fn whole(file: &[u8]) -> usize {
    let mut end = 0;
    while let Some(size) = file[end..].first_chunk::<8>() {
        let next = u64::from_le_bytes(*size).checked_add(end as u64 + 16);
        let Some(next) = next.filter(|&next| next <= file.len() as u64) else { break };
        end = next as usize;
    }
    end
}

/// An integer field.
fn integer(field: u8, value: u64) -> Vec<u8> {
    let mut bytes = vec![field << 3];
    varint(value, &mut bytes);
    bytes
}

/// A field of bytes: a string, or a message.
fn text(field: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// Seven bits per byte, lowest first; the eighth bit marks a continuation.
fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value > 127 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The checksum of a record: CRC-32C, rotated and offset so that checksums can be checksummed themselves.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    let bit = |crc: u32, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let crc = !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit));
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}
