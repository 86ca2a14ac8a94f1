//! Tokenized texts kept for later runs, in files of the user's cache folder. A file's name is the hash of everything that
//! determines its content; it holds a checksum followed by safetensors. A file whose checksum does not match is written again.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use twox_hash::XxHash3_128;

use crate::data::tokenize::Encoded;
use crate::error::{Error, Result};
use crate::files;

/// Limit on the size of all files; beyond it, the least recently used are removed.
const MOST: u64 = 2 << 30;

/// The user's cache folder: `$WARPFIT_CACHE`, else `$XDG_CACHE_HOME/warpfit`, else `~/.cache/warpfit`. `None` if the first is
/// empty, or none is set. Tokenized texts are in its folder `tokens`.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let absolute = |name: &str| set(name).filter(|path| path.is_absolute());
    let folder = set("WARPFIT_CACHE")
        .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("warpfit")))
        .or_else(|| Some(absolute(if cfg!(windows) { "USERPROFILE" } else { "HOME" })?.join(".cache/warpfit")))?;
    Some(folder).filter(|folder| !folder.as_os_str().is_empty())
}

/// The hash of the settings, of every byte of the files and folders, and of the build, as another build may read or tokenize
/// differently. An error if something cannot be read, or is neither file nor folder.
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
            // The entry's own metadata: links could be circular.
            hash.write(&hash_path(&entry.path(), entry.metadata()?)?.to_le_bytes());
        }
    } else {
        return files::checksum(path);
    }
    Ok(hash.finish_128())
}

/// The tokenized texts that `store` kept under this key, by name, and their metadata. `None` if there is no such file, or it is
/// damaged.
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
    // The time of last use, by which old files are removed. Failing on a read-only folder does no harm.
    let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
    Some((parts, about))
}

/// Keeps tokenized texts, by names without `/`, and their metadata, for the `load` of a later run.
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
        (name, view.expect("the bytes are a whole number of values"))
    });
    let about = HashMap::from([("about".to_string(), about.to_string())]);
    let content = safetensors::serialize(views, Some(about)).expect("names and numbers can be written");

    let (path, io) = (path(folder, key), |e| Error::io(folder, e));
    fs::create_dir_all(folder).map_err(io)?;
    // Two runs may write it at once. It is not synced: after a crash the checksum does not match.
    let mut file = tempfile::Builder::new().suffix(".partial").tempfile_in(folder).map_err(io)?;
    file.write_all(&checksum(key, &content)).and_then(|()| file.write_all(&content)).map_err(io)?;
    file.persist(&path).map_err(|e| io(e.error))?;
    remove_old(folder, &path);
    Ok(())
}

fn path(folder: &Path, key: u128) -> PathBuf {
    folder.join(format!("{key:032x}"))
}

/// Depends on the key, so that a file does not pass under another name.
fn checksum(key: u128, content: &[u8]) -> [u8; 16] {
    XxHash3_128::oneshot_with_seed(key as u64, content).to_le_bytes()
}

/// Numbers in the narrowest type that holds the largest.
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
        let mut all = Vec::with_capacity(values.len());
        for &bytes in values {
            all.push(T::try_from(value(bytes)).ok()?);
        }
        Some(all)
    }
    match tensor.dtype() {
        Dtype::U16 => all(tensor.data(), |bytes| u16::from_le_bytes(bytes) as u64),
        Dtype::U32 => all(tensor.data(), |bytes| u32::from_le_bytes(bytes) as u64),
        Dtype::U64 => all(tensor.data(), u64::from_le_bytes),
        _ => None,
    }
}

/// Removes the least recently used files until the rest fit, but never `newest`. Failures are ignored.
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
