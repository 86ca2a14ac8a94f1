//! Tokenised texts kept for the next run, in files of the user's cache folder. A file's name is the hash of all that decides
//! its content; it holds a checksum and then safetensors. What does not fit the checksum is made again.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use twox_hash::XxHash3_128;

use crate::data::tokenize::Encoded;
use crate::error::{Error, Result};

/// All files together; beyond it, those used longest ago are removed.
const MOST: u64 = 2 << 30;

/// Where the files lie: in `$WARPFIT_CACHE`, else in `$XDG_CACHE_HOME/warpfit`, else in `~/.cache/warpfit`; nowhere if the
/// first is empty, or none is set.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let absolute = |name: &str| set(name).filter(|path| path.is_absolute());
    let folder = set("WARPFIT_CACHE")
        .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("warpfit")))
        .or_else(|| Some(absolute("HOME")?.join(".cache/warpfit")))?;
    (!folder.as_os_str().is_empty()).then(|| folder.join("tokens"))
}

/// The hash of settings, of every byte of files and folders, and of the build, since another may read or tokenise
/// otherwise. An error where something cannot be read, or is neither file nor folder.
pub fn key<'a>(settings: &Value, paths: impl IntoIterator<Item = &'a Path>) -> io::Result<u128> {
    let build = fs::metadata(std::env::current_exe()?)?;
    let mut hash = XxHash3_128::new();
    hash.write(format!("{settings} {} {:?}", build.len(), build.modified()?).as_bytes());
    for path in paths {
        let ending = path.extension().unwrap_or_default();
        hash.write(&[ending.as_encoded_bytes(), b"\0"].concat());
        hash.write(&hash_path(path, fs::metadata(path)?)?.to_le_bytes());
    }
    Ok(hash.finish_128())
}

fn hash_path(path: &Path, about: Metadata) -> io::Result<u128> {
    let mut hash = XxHash3_128::new();
    if about.is_dir() {
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            hash.write(&[entry.file_name().as_encoded_bytes(), b"\0"].concat());
            // Of the entry itself: links could go round in circles.
            hash.write(&hash_path(&entry.path(), entry.metadata()?)?.to_le_bytes());
        }
    } else if about.is_file() {
        let (mut file, mut block) = (File::open(path)?, vec![0; 1 << 18]);
        loop {
            match file.read(&mut block)? {
                0 => break,
                size => hash.write(&block[..size]),
            }
        }
    } else {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(hash.finish_128())
}

/// What `store` kept under this key, by name, and what it was told about it. `None` where there is no such file, or one
/// that is not as it was written.
pub fn load(folder: &Path, key: u128) -> Option<(HashMap<String, Encoded>, Value)> {
    let path = path(folder, key);
    let file = fs::read(&path).ok()?;
    let (sum, content) = file.split_first_chunk()?;
    if *sum != checksum(key, content) {
        return None;
    }
    let (_, header) = SafeTensors::read_metadata(content).ok()?;
    let about = serde_json::from_str(header.metadata().as_ref()?.get("about")?).ok()?;
    let tensors = SafeTensors::deserialize(content).ok()?;
    let mut parts: HashMap<String, Encoded> = HashMap::new();
    for (name, tensor) in tensors.iter() {
        let (part, field) = name.split_once('/')?;
        let part = parts.entry(part.to_string()).or_default();
        match field {
            "ids" => part.ids = integers(&tensor)?,
            "types" => part.types = integers(&tensor)?,
            "offsets" => part.offsets = integers(&tensor)?,
            "labels" => part.labels = integers(&tensor)?,
            "cut" => part.cut = tensor.data().iter().map(|&cut| cut != 0).collect(),
            _ => return None,
        }
    }
    // Used now, for what is removed first; a folder that cannot be written serves all the same.
    let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
    Some((parts, about))
}

/// Keeps tokenised texts, by names without `/`, and what is to be known about them, for the `load` of a later run.
pub fn store(folder: &Path, key: u128, parts: &[(&str, &Encoded)], about: &Value) -> Result<()> {
    let mut tensors = Vec::new();
    for (name, part) in parts {
        let mut add = |field: &str, values: (Dtype, Vec<u8>)| tensors.push((format!("{name}/{field}"), values));
        add("ids", bytes(part.ids.iter().map(|&id| id as u64)));
        add("types", bytes(part.types.iter().map(|&kind| kind as u64)));
        add("offsets", bytes(part.offsets.iter().map(|&offset| offset as u64)));
        add("labels", bytes(part.labels.iter().map(|&label| label as u64)));
        add("cut", (Dtype::U8, part.cut.iter().map(|&cut| cut as u8).collect()));
    }
    let views = tensors.iter().map(|(name, (dtype, values))| {
        let view = TensorView::new(*dtype, vec![values.len() / (dtype.bitsize() / 8)], values);
        (name, view.expect("as many values as bytes allow"))
    });
    let about = HashMap::from([("about".to_string(), about.to_string())]);
    let content = safetensors::serialize(views, Some(about)).expect("names and numbers can be written");

    let (path, io) = (path(folder, key), |e| Error::io(folder, e));
    fs::create_dir_all(folder).map_err(io)?;
    // Two runs may write it at once. It is not synced: what a crash leaves of it does not fit the checksum.
    let mut file = tempfile::Builder::new().suffix(".partial").tempfile_in(folder).map_err(io)?;
    file.write_all(&checksum(key, &content)).and_then(|()| file.write_all(&content)).map_err(io)?;
    file.persist(&path).map_err(|e| io(e.error))?;
    remove_old(folder, &path);
    Ok(())
}

fn path(folder: &Path, key: u128) -> PathBuf {
    folder.join(format!("{key:032x}"))
}

/// Another one for the same content under another key.
fn checksum(key: u128, content: &[u8]) -> [u8; 16] {
    XxHash3_128::oneshot_with_seed(key as u64, content).to_le_bytes()
}

/// Numbers in as few bytes as the largest takes.
fn bytes(values: impl Iterator<Item = u64> + Clone) -> (Dtype, Vec<u8>) {
    match values.clone().max().unwrap_or(0) {
        0..=0xffff => (Dtype::U16, values.flat_map(|value| (value as u16).to_le_bytes()).collect()),
        0x10000..=0xffff_ffff => (Dtype::U32, values.flat_map(|value| (value as u32).to_le_bytes()).collect()),
        _ => (Dtype::U64, values.flat_map(u64::to_le_bytes).collect()),
    }
}

fn integers<T: TryFrom<u64>>(tensor: &TensorView) -> Option<Vec<T>> {
    fn all<const SIZE: usize, T: TryFrom<u64>>(data: &[u8], value: fn([u8; SIZE]) -> u64) -> Option<Vec<T>> {
        let (values, []) = data.as_chunks() else { return None };
        values.iter().map(|&bytes| T::try_from(value(bytes)).ok()).collect()
    }
    match tensor.dtype() {
        Dtype::U16 => all(tensor.data(), |bytes| u16::from_le_bytes(bytes) as u64),
        Dtype::U32 => all(tensor.data(), |bytes| u32::from_le_bytes(bytes) as u64),
        Dtype::U64 => all(tensor.data(), u64::from_le_bytes),
        _ => None,
    }
}

/// Removes those used longest ago, as many as are too many, but never `newest`. What cannot be removed stays.
fn remove_old(folder: &Path, newest: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let about = |entry: fs::DirEntry| entry.metadata().and_then(|about| Ok((about.modified()?, about.len(), entry.path()))).ok();
    let mut files: Vec<_> = entries.filter_map(|entry| about(entry.ok()?)).collect();
    files.sort();
    let mut total: u64 = files.iter().map(|file| file.1).sum();
    for (_, size, path) in files.iter().filter(|file| file.2 != newest) {
        if total <= MOST {
            break;
        }
        if fs::remove_file(path).is_ok() {
            total -= size;
        }
    }
}
