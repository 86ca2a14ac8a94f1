//! The Hugging Face hub: models and data sets by id, fetched once into the cache shared with Python's huggingface_hub, and
//! trained models pushed. The network is used only when an id is given.

pub mod cache;
pub mod client;
pub mod push;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::console::note;
use crate::data::dataset::{self, Split, Splits};
use crate::error::{Error, Result};
use cache::{Cache, Listing};
use client::{Client, Failure};

/// The default revision.
const MAIN: &str = "main";
/// The revision that holds the hub's conversion of a data set to Parquet.
const CONVERTED: &str = "refs/convert/parquet";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Model,
    Dataset,
}

/// A repository at a branch, a tag or a commit. Displays as it is written: `owner/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    pub kind: Kind,
    /// `owner/name`, or `name` alone.
    pub id: String,
    pub revision: String,
}

/// The folder of a model: `name` itself if it is a folder, else that of a hub id, of which missing files are fetched. Without
/// safetensors on main, they are those of the pull request in which the hub's own bot has converted the weights. An invalid id
/// is returned unchanged, to be reported as a missing folder.
///
/// # Errors
/// No such model, or one without safetensors; no access; no network and no copy in the cache; a full disk.
pub fn model(name: &Path) -> Result<PathBuf> {
    let Some(repo) = Repo::of(Kind::Model, name) else { return Ok(name.into()) };
    let hub = Cache::new()?;
    let fetch = || {
        let listing = hub.list(&repo);
        let has_weights = |listing: &Listing| listing.files.iter().any(|file| file.name.ends_with(".safetensors"));
        if repo.revision == MAIN
            && !listing.as_ref().is_ok_and(has_weights)
            && let Some(revision) = hub.conversion(&repo)
        {
            note(format!("note: {repo}: main has no safetensors; the hub's conversion of it is taken, {revision}"));
            let converted = Repo { revision, ..repo.clone() };
            let listing = hub.list(&converted)?;
            return hub.fetch(&converted, &listing, &model_files(&converted, &listing)?);
        }
        let listing = listing?;
        hub.fetch(&repo, &listing, &model_files(&repo, &listing)?)
    };
    fetch().map_err(|failure| explain(failure, &repo, &hub.client, NOT_HERE))
}

/// The files of a data set: those in `name` if it is a folder, else the Parquet files of a hub id, its own or the hub's
/// conversion. `config` chooses one of several configurations. Of a hub id only the `wanted` splits are fetched.
///
/// # Errors
/// Those of [`model`]; several configurations and none chosen.
pub fn dataset(name: &Path, config: Option<&str>, wanted: &[Split]) -> Result<Splits> {
    let Some(repo) = Repo::of(Kind::Dataset, name) else {
        return dataset::splits(&config.map_or(name.into(), |config| name.join(config)));
    };
    let hub = Cache::new()?;
    let fetch = |repo: &Repo| {
        let listing = hub.list(repo)?;
        let Some(files) = parquet_files(repo, &listing, config)? else { return Ok(None) };
        let of = |split, names: Vec<String>| if wanted.contains(&split) { names } else { Vec::new() };
        let [train, validation, test] =
            [(Split::Train, files.train), (Split::Validation, files.validation), (Split::Test, files.test)]
                .map(|(split, names)| of(split, names));
        let names: Vec<&str> = [&train, &validation, &test].into_iter().flatten().map(|f| &**f).collect();
        let folder = hub.fetch(repo, &listing, &names)?;
        let [train, validation, test] =
            [train, validation, test].map(|names| names.iter().map(|name| folder.join(name)).collect());
        Ok(Some(Splits { train, validation, test }))
    };
    let converted = Repo { revision: CONVERTED.to_string(), ..repo.clone() };
    let found = match fetch(&repo) {
        Ok(None) if repo.revision == MAIN => match fetch(&converted) {
            // Not every data set has a conversion.
            Err(Failure::Refused { status: 404, .. }) => Ok(None),
            found => found,
        },
        found => found,
    };
    found.map_err(|failure| explain(failure, &repo, &hub.client, NOT_HERE))?.ok_or_else(|| {
        let fact = "has no Parquet files of train, validation or test data, and the hub has no Parquet conversion of it";
        Error::user(&repo, fact, "download its files and give them with --data-dir or --train-file")
    })
}

/// The hub id in `name`, without a revision; `None` for a local path or an invalid id.
pub fn id(kind: Kind, name: &Path) -> Option<String> {
    Repo::of(kind, name).map(|repo| repo.id)
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
        })
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &*self.revision {
            MAIN => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

impl Repo {
    /// The repository that `name` refers to; `None` for a local path or an invalid id.
    fn of(kind: Kind, name: &Path) -> Option<Repo> {
        if name.exists() { None } else { Repo::parse(kind, name.to_str()?) }
    }

    /// Parses an id, with or without `@revision`; `None` if it is invalid.
    pub fn parse(kind: Kind, text: &str) -> Option<Repo> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let is_name = |text: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            (1..=96).contains(&text.len())
                && text.bytes().all(allowed)
                && !text.starts_with(['-', '.'])
                && !text.ends_with(['-', '.'])
        };
        let may = |text: &str| !text.contains("..") && !text.contains("--");
        let is_id = may(id) && id.matches('/').count() < 2 && id.split('/').all(is_name);
        let is_revision = !revision.contains("..") && revision.split('/').all(is_name);
        (is_id && is_revision).then(|| Repo { kind, id: id.to_string(), revision: revision.to_string() })
    }

    /// Path of its page, below the endpoint.
    fn path(&self) -> String {
        match self.kind {
            Kind::Model => self.id.clone(),
            Kind::Dataset => format!("datasets/{}", self.id),
        }
    }
}

/// The files to fetch of a model: configuration, tokenizer, card (for the license) and weights.
fn model_files<'a>(repo: &Repo, listing: &'a Listing) -> Result<Vec<&'a str>> {
    const WHOLE: &str = "model.safetensors";
    const BESIDE: [&str; 6] =
        ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "README.md"];
    let names = || listing.files.iter().map(|file| &*file.name);
    let has = |name: &str| names().any(|file| file == name);
    let is_shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let is_weights = |name: &str| match has(WHOLE) {
        true => name == WHOLE,
        false => name == "model.safetensors.index.json" || is_shard(name),
    };
    for (file, there) in [(BESIDE[0], has(BESIDE[0])), (WHOLE, names().any(is_weights))] {
        if !there {
            let place = if listing.cached { "in the cache it has" } else { "has" };
            let remedy = "choose a model in the format of transformers, with safetensors weights";
            return Err(Error::user(repo, format!("{place} no {file}"), remedy));
        }
    }
    Ok(names().filter(|name| BESIDE.contains(name) || is_weights(name)).collect())
}

/// File names of the splits of a data set.
#[derive(Clone, Default)]
struct Names {
    train: Vec<String>,
    validation: Vec<String>,
    test: Vec<String>,
}

/// The Parquet files of the splits of a data set: `data/train-00000-of-00002.parquet`, or in the hub's conversion
/// `default/train/0000.parquet`. The part before the split is the configuration. `None` if there are none.
fn parquet_files(repo: &Repo, listing: &Listing, config: Option<&str>) -> Result<Option<Names>> {
    let mut configs = BTreeMap::<&str, Names>::new();
    for file in listing.files.iter().filter(|file| file.name.ends_with(".parquet")) {
        let (folder, name) = file.name.rsplit_once('/').unwrap_or(("", &file.name));
        let (above, last) = folder.rsplit_once('/').unwrap_or(("", folder));
        for (config, word) in [(folder, name.split(['-', '.']).next()), (above, Some(last))] {
            let files = configs.entry(config).or_default();
            let split = match word {
                Some("train") => &mut files.train,
                Some("validation" | "valid" | "dev" | "val") => &mut files.validation,
                Some("test") => &mut files.test,
                _ => continue,
            };
            split.push(file.name.clone());
            break;
        }
    }
    configs.retain(|_, files| !(files.train.is_empty() && files.validation.is_empty() && files.test.is_empty()));
    let is_called = |folder: &str, name: &str| folder == name || folder.ends_with(&format!("/{name}"));
    let named = |name: &str| configs.iter().find(|(folder, _)| is_called(folder, name)).map(|(_, files)| files.clone());
    let by_card = || {
        let known = listing.card["configs"].as_array()?;
        named(known.iter().find(|config| config["default"] == true)?["config_name"].as_str()?)
    };
    let found = match config {
        Some(name) => named(name),
        None if configs.len() < 2 => return Ok(configs.into_values().next()),
        None => by_card().or_else(|| named("default")),
    };
    let list = configs.keys().copied().collect::<Vec<_>>().join(", ");
    let missing = || Error::user(repo, format!("has the configurations {list}"), "choose one with --dataset-config");
    if configs.is_empty() { Ok(None) } else { found.map(Some).ok_or_else(missing) }
}

/// Prefix of a message about something that was looked for on the hub because it is not a local folder.
const NOT_HERE: &str = "there is no such folder here, and ";

/// A failure as one line; `first` precedes messages whose cause may be a mistyped local path.
fn explain(failure: Failure, repo: &Repo, client: &Client, first: &str) -> Error {
    let endpoint = &client.endpoint;
    let Repo { kind, revision, .. } = repo;
    let (fact, remedy) = match failure {
        Failure::Here(error) => return error,
        Failure::Unreachable(why) => {
            (format!("{first}the hub ({endpoint}) cannot be reached: {why}"), "check the network and HF_ENDPOINT".to_string())
        }
        Failure::Refused { status, code, message } => match (status, &*code, &client.token) {
            (401 | 403, "GatedRepo", _) => (
                format!("is gated on the hub ({status})"),
                format!("ask for access at {endpoint}/{}, and set HF_TOKEN to a token of that account", repo.path()),
            ),
            (404, "RevisionNotFound", _) => {
                (format!("the hub has no revision {revision} of this {kind}"), "check the revision after the @".to_string())
            }
            (401, _, Some(_)) => (format!("the hub refuses the token: {message}"), "check HF_TOKEN".to_string()),
            // The hub does not reveal the existence of a private repository.
            (401 | 404, _, token) => (
                format!("{first}the hub ({endpoint}) shows no such {kind}"),
                match token {
                    None => "check the name; for a private one set HF_TOKEN".to_string(),
                    Some(_) => "check the name, and the read access of HF_TOKEN".to_string(),
                },
            ),
            (403, ..) => (format!("the hub refuses access: {message}"), "check the permissions of HF_TOKEN".to_string()),
            (429, ..) => ("the hub limits the rate of requests".to_string(), "try again in a while, or set HF_TOKEN".to_string()),
            _ => (format!("the hub responds with status {status}: {message}"), "try again later".to_string()),
        },
    };
    Error::user(repo, fact, remedy)
}

/// A non-empty environment variable.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `HF_HUB_OFFLINE`: the network must not be used.
fn is_offline() -> bool {
    variable("HF_HUB_OFFLINE").is_some_and(|value| ["1", "on", "yes", "true"].contains(&&*value.to_lowercase()))
}

/// `HF_HOME`, the folder of tokens and caches.
fn home() -> Result<PathBuf> {
    let cache = || variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache")));
    let home = variable("HF_HOME").map(PathBuf::from).or_else(|| Some(cache()?.join("huggingface")));
    home.ok_or_else(|| Error::user("HF_HOME", "is not set, and there is no home folder", "set it to a folder for downloads"))
}

/// `HF_TOKEN`, or the content of the file `HF_TOKEN_PATH` or `token` in `HF_HOME`, where `hf auth login` puts it.
fn token(home: &Path) -> Result<Option<String>> {
    let path = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
    let from_file = || match std::fs::read_to_string(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, error)),
        text => Ok(text.ok()),
    };
    let text = variable("HF_TOKEN").map_or_else(from_file, |token| Ok(Some(token)))?;
    match text.map(|text| text.trim().to_string()).filter(|text| !text.is_empty()) {
        Some(token) if !token.bytes().all(|b| b.is_ascii_graphic()) => {
            Err(Error::user("HF_TOKEN", "is not a token", "create one at https://huggingface.co/settings/tokens"))
        }
        token => Ok(token),
    }
}

/// Escapes a path for use in a URL.
fn escape(path: &str) -> String {
    const KEPT: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');
    utf8_percent_encode(path, &KEPT).to_string()
}
