//! A model folder, in the format of `from_pretrained` and `save_pretrained`: configuration, weights, tokenizer.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::snapshot::Snapshot;
use super::weights::{self, Weights};
use crate::console::note;
use crate::data::inputs::{Content, Input};
use crate::data::tokenize::{Encoded, MAX_LENGTH, Tokenizer};
use crate::data::truncation::TruncationSide;
use crate::error::{Error, Result};
use crate::files::{checksums, seal, sync_dir, write_file};
use crate::model::Model;
use crate::model::config::Config;
use crate::model::names::params;
use crate::model::plan::{Plan, Slot};
use crate::report::log::counted;

/// The files of a model that [`ModelDir::write`] writes.
pub const FILES: [&str; 6] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"];

/// Texts to try the model on, beside its files in the folder of a run; a JSON list. Not published: they may be private.
pub const EXAMPLES: &str = "examples.json";

/// Where the files of a model are written that are to replace those of the folder, and where they are once they are complete.
pub const PARTIAL: &str = "model.partial";
pub const READY: &str = "model.ready";

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Files beside the weights that are copied unread.
const TOKENIZER_FILES: [&str; 4] = ["tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "vocab.txt"];

pub struct ModelDir {
    pub path: PathBuf,
    pub config: Config,
    /// `None` if the folder has neither tokenizer.json nor vocab.txt.
    pub tokenizer: Option<Tokenizer>,
    /// Names and contents of the tokenizer's files.
    tokenizer_files: Vec<(&'static str, Vec<u8>)>,
}

impl ModelDir {
    /// The files of a model that are in a folder.
    pub fn files(path: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_part = |file: &PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            FILES.contains(&&*name) || name.contains(".safetensors")
        };
        entries.filter(is_part).collect()
    }

    /// Reads everything but the weights. Finishes the replacement of the model if a killed run has begun it.
    pub fn read(path: &Path) -> Result<ModelDir> {
        if !path.is_dir() {
            let fact = if path.exists() { "is not a folder" } else { "no such folder" };
            return Err(Error::user(path.display(), fact, "name a folder with config.json and model.safetensors"));
        }
        finish_replacement(path)?;
        for file in FILES.into_iter().chain(["README.md"]).map(|name| path.join(name)) {
            // Opening a FIFO waits for its writer, the card's at the end of a run.
            if file.metadata().is_ok_and(|about| !about.is_file()) {
                return Err(Error::user(file.display(), "is not a regular file", "use another model folder"));
            }
        }
        let config = Config::read(&path.join("config.json"))?;
        let mut tokenizer_files = Vec::new();
        for name in TOKENIZER_FILES {
            let file = path.join(name);
            if file.exists() {
                check_link(path, &file)?;
                tokenizer_files.push((name, fs::read(&file).map_err(|e| Error::io(&file, e))?));
            }
        }
        let has_tokenizer = ["tokenizer.json", "vocab.txt"].iter().any(|name| path.join(name).exists());
        let tokenizer = has_tokenizer.then(|| Tokenizer::read(path)).transpose()?;
        if let Some(tokenizer) = tokenizer.as_ref().filter(|tokenizer| tokenizer.vocab > config.vocab) {
            let fact = format!("has ids up to {}, but the model's word table has {} rows", tokenizer.vocab - 1, config.vocab);
            return Err(Error::user(
                path.join(TOKENIZER_FILES[0]).display(),
                fact,
                "use the tokenizer that belongs to this model",
            ));
        }
        Ok(ModelDir { path: path.into(), config, tokenizer, tokenizer_files })
    }

    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let fact = "this folder has no tokenizer.json and no vocab.txt";
        self.tokenizer.as_ref().ok_or_else(|| Error::user(self.path.display(), fact, "add the one that belongs to the model"))
    }

    /// Changes which part of long texts is cut, here and in the folders that are written.
    pub fn set_truncation_side(&mut self, side: TruncationSide) -> Result<()> {
        match self.tokenizer.as_mut().filter(|tokenizer| tokenizer.truncation_side != side) {
            Some(tokenizer) => tokenizer.truncation_side = side,
            None => return Ok(()),
        }
        self.edit_tokenizer_config(|config| side.write(config))
    }

    /// Sets the maximum length in tokens, here and in the folders that are written.
    ///
    /// # Errors
    /// The model has fewer positions.
    pub fn set_max_length(&mut self, length: usize) -> Result<()> {
        self.max_length(Some(length))?;
        match self.tokenizer.as_mut().filter(|tokenizer| tokenizer.max_length != Some(length)) {
            Some(tokenizer) => tokenizer.max_length = Some(length),
            None => return Ok(()),
        }
        self.edit_tokenizer_config(|config| drop(config.insert(MAX_LENGTH.to_string(), length.into())))
    }

    fn edit_tokenizer_config(&mut self, edit: impl FnOnce(&mut Map<String, Value>)) -> Result<()> {
        let file = self.path.join(TOKENIZER_CONFIG);
        let at = self.tokenizer_files.iter().position(|(name, _)| *name == TOKENIZER_CONFIG);
        let mut config: Map<String, Value> = match at {
            Some(at) => serde_json::from_slice(&self.tokenizer_files[at].1)
                .map_err(|e| Error::user(file.display(), format!("not a JSON object: {e}"), "download the model folder again"))?,
            None => Map::new(),
        };
        edit(&mut config);
        let content = format!("{:#}\n", Value::Object(config)).into_bytes();
        match at {
            Some(at) => self.tokenizer_files[at].1 = content,
            None => self.tokenizer_files.push((TOKENIZER_CONFIG, content)),
        }
        Ok(())
    }

    /// The token ids of `inputs`, in order. Texts are truncated to `max_length` tokens; token ids are not.
    ///
    /// # Errors
    /// A text for a folder without a tokenizer.
    pub fn encode(&self, inputs: &[Input], max_length: usize) -> Result<Encoded> {
        let texts: Vec<&str> = inputs.iter().filter_map(|input| input.text()).collect();
        let tokenized = match texts.is_empty() {
            true => Encoded::default(),
            false => self.tokenizer()?.encode(&texts, max_length, &|_| ())?,
        };
        if texts.len() == inputs.len() {
            return Ok(tokenized);
        }
        let (mut rows, mut encoded) = (0.., Encoded::default());
        for input in inputs {
            match &input.content {
                Content::Text(_) => encoded.append_row(&tokenized, rows.next().expect("one row per text")),
                Content::Ids { ids, types } => encoded.push(&input.place, ids, types)?,
            }
        }
        Ok(encoded)
    }

    /// At most six texts to try the model on: those that training kept, or those of the card's `widget`; none where there are none.
    pub fn examples(&self) -> Vec<String> {
        let kept = fs::read(self.path.join(EXAMPLES)).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let of_card = || fs::read_to_string(self.path.join("README.md")).map_or(Vec::new(), |card| widget(&card));
        kept.unwrap_or_else(of_card).into_iter().take(6).collect()
    }

    /// The maximum length in tokens: the one requested, else the least of the tokenizer's limit, the position table and 512.
    pub fn max_length(&self, asked: Option<usize>) -> Result<usize> {
        let positions = self.config.positions;
        match asked {
            Some(length) if length > positions => {
                let fact = format!("{length} exceeds the model's {positions} positions");
                Err(Error::user("--max-length", fact, format!("use at most {positions}")))
            }
            Some(length) => Ok(length),
            None => {
                let limit = self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.max_length).unwrap_or(usize::MAX);
                Ok(limit.min(positions).min(512))
            }
        }
    }

    /// Sets the weights of a model laid out for this folder's config, or for that config with another head. Returns the names
    /// of the head's tensors that the folder lacks or, with `other_head`, has in another shape; they are drawn from `seed`.
    pub fn load_weights(&self, model: &mut Model, seed: u64, other_head: bool) -> Result<Vec<String>> {
        let (slots, std) = (model.plan.slots.clone(), model.plan.config.initializer_range);
        self.read_weights(&slots, other_head, |slot, values| {
            model.write_f32(slot.view, &values.unwrap_or_else(|| slot.param.initialise(seed, std).into()))
        })
    }

    /// Reads and checks everything that [`ModelDir::load_weights`] would for a model of this plan.
    pub fn check_weights(&self, plan: &Plan, other_head: bool) -> Result<()> {
        self.read_weights(&plan.slots, other_head, |_, _| Ok(())).map(|_| ())
    }

    /// Whether a model of these classes needs another head than the folder's.
    pub fn needs_other_head(&self, labels: Vec<String>) -> Result<bool> {
        let (params, weights) = (params(&self.config.clone().with_labels(labels)?), Weights::open(&self.path)?);
        Ok(weights::resolve(&params, &weights, false).is_err() && weights::resolve(&params, &weights, true).is_ok())
    }

    /// Calls `each` with the values of each parameter, `None` if they are missing; returns the names of these.
    fn read_weights(
        &self,
        slots: &[Slot],
        other_head: bool,
        mut each: impl FnMut(&Slot, Option<Cow<[f32]>>) -> Result<()>,
    ) -> Result<Vec<String>> {
        let weights = Weights::open(&self.path)?;
        let params: Vec<_> = slots.iter().map(|slot| slot.param.clone()).collect();
        let loaded = weights::resolve(&params, &weights, other_head)?;
        let number = |name: &str| -> Option<usize> { name.split_once(".layer.")?.1.split('.').next()?.parse().ok() };
        let (beyond, others): (Vec<&str>, Vec<&str>) = loaded
            .unexpected
            .iter()
            .copied()
            .filter(|name| number(name).is_some())
            .partition(|name| number(name) >= Some(self.config.layers));
        let layers = format!("config.json has {}", counted(self.config.layers, "layer"));
        for (names, why) in [(beyond, &*layers), (others, "no parameter of this model has such a name")] {
            let Some(first) = names.iter().min() else { continue };
            let (place, count, verb) =
                (self.path.display(), counted(names.len(), "tensor"), if names.len() == 1 { "is" } else { "are" });
            note(format!("warning: {place}: {count} of layers {verb} not used, such as {first}: {why}"));
        }
        for (slot, tensor) in slots.iter().zip(&loaded.tensors) {
            each(slot, tensor.map(|tensor| tensor.f32()).transpose()?)?;
        }
        Ok(loaded.missing.into_iter().map(String::from).collect())
    }

    /// Writes the folder's files with the configuration and the weights of a snapshot into `folder`, each file atomically.
    pub fn write(&self, folder: &Path, snapshot: &Snapshot) -> Result<()> {
        write_file(&folder.join("config.json"), snapshot.plan.config.to_json().as_bytes())?;
        for (name, content) in &self.tokenizer_files {
            write_file(&folder.join(name), content)?;
        }
        snapshot.write(&folder.join("model.safetensors"), &[("", snapshot.plan.params)])
    }

    /// Replaces the model in `folder` and its card, all files or none: they are complete before the first one is moved, and from
    /// then on whoever reads the folder moves the others.
    pub fn replace(&self, folder: &Path, snapshot: &Snapshot, card: &str) -> Result<()> {
        let (partial, ready) = (folder.join(PARTIAL), folder.join(READY));
        fs::create_dir(&partial).map_err(|e| Error::io(&partial, e))?;
        let written = self
            .write(&partial, snapshot)
            .and_then(|()| write_file(&partial.join("README.md"), card.as_bytes()))
            .and_then(|()| seal(&partial))
            .and_then(|()| fs::rename(&partial, &ready).map_err(|e| Error::io(&ready, e)));
        if let Err(error) = written {
            // Of two errors the first is reported.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        sync_dir(folder)?;
        finish_replacement(folder)
    }
}

/// The texts of the entry `widget` in the front matter of a model card.
fn widget(card: &str) -> Vec<String> {
    let front_matter = card.strip_prefix("---\n").and_then(|rest| rest.split("\n---").next()).unwrap_or_default();
    let entry = front_matter.lines().skip_while(|line| line.trim_end() != "widget:").skip(1);
    let entry = entry.take_while(|line| line.starts_with([' ', '-']));
    let text = |line: &str| {
        let text = line.trim_start_matches([' ', '-']).strip_prefix("text:")?.trim();
        let quoted = ['"', '\''].iter().find_map(|&quote| text.strip_prefix(quote)?.strip_suffix(quote));
        Some(quoted.unwrap_or(text).to_string()).filter(|text| !text.is_empty())
    };
    entry.filter_map(text).collect()
}

/// Refuses a link out of the folder, since the file is copied and may be published. The files of a hub cache are links to its
/// blobs.
fn check_link(folder: &Path, file: &Path) -> Result<()> {
    let io = |e| Error::io(file, e);
    if !file.is_symlink() {
        return Ok(());
    }
    let (folder, target) = (folder.canonicalize().map_err(io)?, file.canonicalize().map_err(io)?);
    let repo = folder.parent().filter(|snapshots| snapshots.ends_with("snapshots")).and_then(Path::parent);
    if target.starts_with(&folder) || repo.is_some_and(|repo| target.starts_with(repo.join("blobs"))) {
        return Ok(());
    }
    let fact = format!("is a link out of this folder, to {}, and would be copied into the new model", target.display());
    Err(Error::user(file.display(), fact, "replace the link by a copy of the file"))
}

/// Moves the files of a complete model into its folder, as often as need be: any process may begin, go on with or finish it.
pub(super) fn finish_replacement(folder: &Path) -> Result<()> {
    let ready = folder.join(READY);
    if !ready.exists() {
        return Ok(());
    }
    let unless_done = |done: std::io::Result<()>| match done {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(&ready, e).and("these files have not yet replaced the model of this folder"))
        }
        _ => Ok(()),
    };
    // Without checksums all files have been moved.
    if let Some(files) = checksums(&ready)? {
        for name in TOKENIZER_FILES.into_iter().filter(|&name| !files.contains_key(name)) {
            unless_done(fs::remove_file(folder.join(name)))?;
        }
        for name in files.keys() {
            unless_done(fs::rename(ready.join(name), folder.join(name)))?;
        }
        sync_dir(folder)?;
    }
    unless_done(fs::remove_dir_all(&ready))?;
    sync_dir(folder)
}
