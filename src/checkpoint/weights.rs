//! Reads and writes safetensors. A file is 8 bytes of header length, a JSON header (name -> dtype, shape, byte range), and the
//! bytes of the tensors end to end; a large model has several files, its shards, with an index of their tensors. The header is
//! checked when a file is opened, and the numbers of a tensor when it is read.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, Kind, Result};
use crate::files::PartialFile;
use crate::model::names::Param;
use crate::report::log::counted;

/// The limit of the format's own library.
const MAX_HEADER: usize = 100_000_000;

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a safetensors file, or of the shards of one, memory-mapped.
pub struct Weights {
    /// The file, or the index of the shards.
    file: PathBuf,
    shards: Vec<Shard>,
    /// The shard of each tensor, and its entry in the header: the range lies inside the map, and matches shape and dtype.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

struct Shard {
    file: PathBuf,
    map: Mmap,
    /// Start of the tensors' bytes in `map`.
    data: usize,
}

/// One tensor of a file: row-major, little-endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub file: &'a Path,
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// The parameters of a model in a file.
#[derive(Debug)]
pub struct Loaded<'a> {
    /// One per parameter, in the order of the inventory; `None` for those in `missing`.
    pub tensors: Vec<Option<Tensor<'a>>>,
    /// Parameters of the head that the file lacks: the caller initialises them.
    pub missing: Vec<&'a str>,
    /// Tensors of the file that are not parameters. The heads of a language model (`vocab_transform`, `cls.predictions`) and
    /// `position_ids` buffers are normal.
    pub unexpected: Vec<&'a str>,
}

impl Weights {
    /// Maps a safetensors file, or the weights of a folder: its `model.safetensors`, or else the shards listed in its
    /// `model.safetensors.index.json`. Checks the headers.
    ///
    /// # Errors
    /// No such file, weights in another format, an invalid header, an index that does not match its shards.
    pub fn open(path: &Path) -> Result<Weights> {
        let file = if path.is_dir() { find(path)? } else { path.to_path_buf() };
        if file.ends_with(INDEX) {
            return Weights::open_shards(file);
        }
        let (shard, tensors) = Shard::open(&file)?;
        let tensors = tensors.into_iter().map(|(name, info)| (name, (0, info))).collect();
        Ok(Weights { file, shards: vec![shard], tensors })
    }

    /// Opens the tensors that the index lists.
    fn open_shards(index: PathBuf) -> Result<Weights> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let fault = |fact: String| Error::user(index.display(), fact, "download or save the model folder again");
        let json = std::fs::read(&index).map_err(|e| Error::io(&index, e))?;
        let Index { weight_map } =
            serde_json::from_slice(&json).map_err(|e| fault(format!("is not an index of shards ({e})")))?;

        let mut names: Vec<&String> = weight_map.values().collect();
        names.sort();
        names.dedup();
        let (mut shards, mut tensors) = (Vec::new(), BTreeMap::new());
        for (number, name) in names.into_iter().enumerate() {
            let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            if !is_inside || name.is_empty() {
                return Err(fault(format!("lists the shard \"{name}\", which is not a file in this folder")));
            }
            let (shard, mut infos) =
                Shard::open(&index.with_file_name(name)).map_err(|e| e.and(&format!("it is listed in {INDEX}")))?;
            for tensor in weight_map.iter().filter(|(_, shard)| *shard == name).map(|(tensor, _)| tensor) {
                let info =
                    infos.remove(tensor).ok_or_else(|| fault(format!("lists {tensor} in {name}, which does not have it")))?;
                tensors.insert(tensor.clone(), (number, info));
            }
            shards.push(shard);
        }
        Ok(Weights { file: index, shards, tensors })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, (shard, info)) = self.tensors.get_key_value(name)?;
        let Shard { file, map, data } = &self.shards[*shard];
        let (start, end) = info.data_offsets;
        Some(Tensor { file, name, dtype: info.dtype, shape: &info.shape, bytes: &map[data + start..data + end] })
    }

    /// The values of a tensor of this shape, as in `Tensor::f32`.
    ///
    /// # Errors
    /// No such tensor, another shape or dtype, or values that are not finite.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Cow<'_, [f32]>> {
        let absent =
            || Error::user(self.file.display(), format!("has no tensor {name}"), "use the file that belongs to this model");
        let tensor = self.get(name).ok_or_else(absent)?;
        tensor.check_shape(shape)?;
        tensor.f32()
    }
}

impl Shard {
    /// Maps a file, and returns the entries of its header.
    fn open(file: &Path) -> Result<(Shard, BTreeMap<String, TensorInfo>)> {
        // Checked before opening, since opening a FIFO waits for its writer.
        if !std::fs::metadata(file).map_err(|e| Error::io(file, e))?.is_file() {
            return Err(Error::user(file.display(), "is not a regular file", "name a .safetensors file"));
        }
        let handle = File::open(file).map_err(|e| Error::io(file, e))?;
        // SAFETY: the map is only read, and every read is within its length. If another process truncates the file meanwhile,
        // SIGBUS ends this one; this crate replaces such files by renaming only.
        let map = unsafe { Mmap::map(&handle) }.map_err(|e| Error::io(file, e))?;
        let (data, tensors) = header(file, &map)?;
        Ok((Shard { file: file.into(), map, data }, tensors))
    }
}

/// The weights of a model folder, or an error with a remedy for those in another format.
fn find(folder: &Path) -> Result<PathBuf> {
    if let Some(file) = [FILE, INDEX].iter().map(|name| folder.join(name)).find(|file| file.exists()) {
        return Ok(file);
    }
    if ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists()) {
        return Err(Error::user(folder.display(), "its weights are a pickle, pytorch_model.bin, which can run code", CONVERT));
    }
    Err(Error::user(folder.display(), format!("this folder has no {FILE}"), "name the folder of a model"))
}

const CONVERT: &str = "convert them in Python with transformers: \
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)";

/// Parses and checks the header of a file: returns the start of the tensors' bytes, and the tensors.
fn header(file: &Path, bytes: &[u8]) -> Result<(usize, BTreeMap<String, TensorInfo>)> {
    let fault = |fact: String, remedy: &str| Error::user(file.display(), fact, remedy);
    let broken = |fact: String| fault(fact, "download or save the file again");
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(fault("is a Git LFS pointer, not the weights themselves".into(), "run `git lfs pull`"));
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Err(fault("is a pickle of PyTorch, not safetensors".into(), CONVERT));
    }
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(broken(format!("has {}, too few for safetensors", counted(bytes.len(), "byte"))));
    };
    let length = u64::from_le_bytes(*length);
    if length == 0 {
        return Err(broken("has a header of length 0".into()));
    }
    if length > MAX_HEADER as u64 {
        return Err(fault(
            format!("has a header of {length} bytes, more than the limit of {MAX_HEADER}"),
            "check that it is safetensors",
        ));
    }
    let Some((json, data)) = rest.split_at_checked(length as usize) else {
        return Err(broken(format!("ends within its header of {length} bytes")));
    };
    let json = str::from_utf8(json).map_err(|e| broken(format!("has a header that is not UTF-8 ({e})")))?;
    let Header(tensors) =
        serde_json::from_str(json).map_err(|e| broken(format!("has a header that is not JSON of tensors ({e})")))?;

    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut covered = 0;
    for (name, info) in order {
        let (start, end) = info.data_offsets;
        let refuse = |fact| Err(broken(format!("tensor {name} {fact}")));
        if end < start {
            return refuse(format!("ends at byte {end}, before its start at {start}"));
        }
        if end > data.len() {
            return refuse(format!("ends at byte {end} of {}: the file is truncated", data.len()));
        }
        if start != covered {
            let how = if start < covered { "overlaps the previous tensor" } else { "leaves a gap before it" };
            return refuse(format!("starts at byte {start}, not {covered}: it {how}"));
        }
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |product, &size| product.checked_mul(size));
        if bits != (end - start).checked_mul(8) || bits.is_none() {
            return refuse(format!("of {:?} {} has {}", info.shape, info.dtype, counted(end - start, "byte")));
        }
        covered = end;
    }
    if covered != data.len() {
        return Err(broken(format!("has {} of data, but its last tensor ends at {covered}", counted(data.len(), "byte"))));
    }
    Ok((bytes.len() - data.len(), tensors))
}

/// The header's JSON; duplicate names are refused.
struct Header(BTreeMap<String, TensorInfo>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let (mut tensors, mut seen) = (BTreeMap::new(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name} is listed twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<HashMap<String, String>>()?;
                    } else {
                        tensors.insert(name, map.next_value()?);
                    }
                }
                Ok(Header(tensors))
            }
        }
        json.deserialize_map(Entries)
    }
}

impl<'a> Tensor<'a> {
    /// The values of an F32, F16 or BF16 tensor, in place if possible.
    ///
    /// # Errors
    /// Another dtype, or a NaN or infinite value.
    pub fn f32(&self) -> Result<Cow<'a, [f32]>> {
        let values = match self.dtype {
            Dtype::F16 => self.numbers(f16::from_le_bytes).to_f32_vec().into(),
            Dtype::BF16 => self.numbers(bf16::from_le_bytes).to_f32_vec().into(),
            Dtype::F32 => match bytemuck::try_cast_slice(self.bytes) {
                Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
                _ => self.numbers(f32::from_le_bytes).into(),
            },
            other => return Err(self.error(format!("is {other}, but must be F32, F16 or BF16"), "save it as F32")),
        };
        match first_not_finite(&values) {
            Some(at) => Err(self.error(format!("holds {} at element {at}", values[at]), "use another checkpoint")),
            None => Ok(values),
        }
    }

    /// The values of an F64 tensor; NaN and infinite values are allowed.
    ///
    /// # Errors
    /// Another dtype.
    pub fn f64(&self) -> Result<Vec<f64>> {
        self.must_be(Dtype::F64)?;
        Ok(self.numbers(f64::from_le_bytes))
    }

    /// The values of an I64 tensor.
    ///
    /// # Errors
    /// Another dtype.
    pub fn i64(&self) -> Result<Vec<i64>> {
        self.must_be(Dtype::I64)?;
        Ok(self.numbers(i64::from_le_bytes))
    }

    fn must_be(&self, dtype: Dtype) -> Result<()> {
        match self.dtype == dtype {
            true => Ok(()),
            false => Err(self.error(format!("is {}, but must be {dtype}", self.dtype), &format!("save it as {dtype}"))),
        }
    }

    fn numbers<T, const N: usize>(&self, from: fn([u8; N]) -> T) -> Vec<T> {
        self.bytes.as_chunks().0.iter().map(|&bytes| from(bytes)).collect()
    }

    fn check_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        let remedy = match self.name {
            "classifier.weight" | "classifier.bias" => "for another number of labels train with --ignore-mismatched-sizes",
            _ => "use the config.json that belongs to these weights",
        };
        Err(self.error(format!("is {:?}, but must be {shape:?}", self.shape), remedy))
    }

    fn error(&self, fact: String, remedy: &str) -> Error {
        Error::user(self.file.display(), format!("tensor {} {fact}", self.name), remedy)
    }
}

/// The place of the first value that is not finite.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    // A block has no branches, so that it is vectorised.
    const BLOCK: usize = 1024;
    let is_finite = |block: &[f32]| block.iter().fold(true, |all, value| all & value.is_finite());
    let start = BLOCK * values.chunks(BLOCK).position(|block| !is_finite(block))?;
    values[start..].iter().position(|value| !value.is_finite()).map(|at| start + at)
}

/// Finds each parameter of a model in a file, under any of its spellings, and checks its shape. Values are read and checked by
/// [`Tensor::f32`]. With `other_head`, a parameter of the head that has another shape in the file counts as missing.
///
/// # Errors
/// A missing parameter of the encoder, or a tensor of another shape (a classifier for another number of labels).
pub fn resolve<'a>(params: &'a [Param], weights: &'a Weights, other_head: bool) -> Result<Loaded<'a>> {
    let tensor = |param: &Param| {
        let tensor = param.spellings().find_map(|name| weights.get(&name))?;
        (!(other_head && param.head) || tensor.shape == param.shape).then_some(tensor)
    };
    let tensors: Vec<_> = params.iter().map(tensor).collect();
    let absent = || params.iter().zip(&tensors).filter(|(_, tensor)| tensor.is_none()).map(|(param, _)| param);
    if let Some(first) = absent().find(|param| !param.head) {
        let fact = format!("lacks {} of the model's {} tensors, among them {}", absent().count(), params.len(), first.name);
        return Err(Error::user(weights.file.display(), fact, "use the config.json that belongs to these weights"));
    }
    for (param, tensor) in params.iter().zip(&tensors) {
        tensor.map_or(Ok(()), |tensor| tensor.check_shape(&param.shape))?;
    }
    let missing = absent().map(|param| param.name.as_str()).collect();
    let used: HashSet<_> = tensors.iter().flatten().map(|tensor| tensor.name).collect();
    let unexpected = weights.names().filter(|name| !used.contains(name)).collect();
    Ok(Loaded { tensors, missing, unexpected })
}

/// Writes F32 tensors (name, shape, values) as Hugging Face does: sorted by name, metadata `{"format": "pt"}`. The file is written
/// atomically and synced to disk; syncing the folder is left to the caller.
///
/// # Errors
/// Those of the file system; a value that is not finite. A previous file at `path` is then unchanged.
pub fn write<N: AsRef<str>, S: AsRef<[usize]>, V: AsRef<[f32]>>(path: &Path, tensors: &[(N, S, V)]) -> Result<()> {
    let mut file = PartialFile::create(path)?;
    write_to(&mut file, tensors)?;
    file.finish()
}

/// The same into a file that the caller finishes.
pub fn write_to<N: AsRef<str>, S: AsRef<[usize]>, V: AsRef<[f32]>>(file: &mut PartialFile, tensors: &[(N, S, V)]) -> Result<()> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| tensors[i].0.as_ref());
    let count = |i: usize| tensors[i].1.as_ref().iter().product::<usize>();

    let mut end = 0;
    let infos = order.iter().map(|&i| {
        let start = end;
        end += count(i) * size_of::<f32>();
        let (name, shape) = (tensors[i].0.as_ref().to_string(), tensors[i].1.as_ref().to_vec());
        (name, TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) })
    });
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(format), infos.collect()).expect("contiguous ranges are valid");
    let mut json = serde_json::to_vec(&metadata).expect("names and numbers are JSON");
    // The tensors start at a multiple of 8 bytes.
    json.resize(json.len().next_multiple_of(8), b' ');

    file.write(&(json.len() as u64).to_le_bytes())?;
    file.write(&json)?;
    let mut bytes = Vec::new();
    for &i in &order {
        let (name, values) = (tensors[i].0.as_ref(), tensors[i].2.as_ref());
        assert_eq!(values.len(), count(i), "{name}");
        if let Some(at) = first_not_finite(values) {
            let fact = format!("{name} is not finite ({} at element {at})", values[at]);
            return Err(Error::new(Kind::Unusable, file.path().display(), fact, "go back to an earlier checkpoint"));
        }
        for block in values.chunks(1 << 16) {
            bytes.clear();
            bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
            file.write(&bytes)?;
        }
    }
    Ok(())
}
