//! Publishes a trained model on the hub: the files of a run folder as one commit, the large ones through Git's large file
//! storage.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::cache::sha256;
use super::client::{Client, Failure, JSON, LFS_JSON, NDJSON, json};
use super::{Kind, MAIN, Repo, explain};
use crate::console::check_interrupt;
use crate::error::{Error, Result};
use crate::flags::truth;
use crate::report::log::Progress;
use crate::report::tensorboard;

/// The files to publish: the results of a run. Checkpoints and other files in the folder are left out.
const PUBLISHED: [&str; 19] = [
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "training_args.json",
    "trainer_state.json",
    "train_results.json",
    "eval_results.json",
    "test_results.json",
    "all_results.json",
    "metrics.jsonl",
    tensorboard::FILE,
    "plots/loss.svg",
    "plots/metrics.svg",
    "plots/learning_rate.svg",
    "plots/grad_norm.svg",
];

/// Keys of the JSON files whose values may be paths of this machine; with hyphens they are flags.
const PATHS: [&str; 19] = [
    "model",
    "algorithms",
    "working_directory",
    "config",
    "output_dir",
    "resume_from_checkpoint",
    "dataset",
    "data_dir",
    "train_file",
    "validation_file",
    "test_file",
    "train",
    "validation",
    "test",
    "best_model_checkpoint",
    "_name_or_path",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
];

/// A repository to push to, to which the token has write access.
pub struct Target {
    repo: Repo,
    /// A missing repository is created private.
    private: bool,
    client: Client,
}

struct Upload {
    name: &'static str,
    path: PathBuf,
    size: u64,
    /// SHA-256 of a file that goes to the large file storage.
    oid: Option<String>,
}

impl Target {
    /// The repository `id`, in the namespace of the token's account if it has no owner. Creates nothing yet: it is called
    /// before a training run, so that an error is reported before and not after it.
    ///
    /// # Errors
    /// An invalid id; no token, or one without write access; no network; an existing public repository if it is to be `private`.
    pub fn check(id: &str, private: bool) -> Result<Target> {
        let bad = |fact: &str, remedy: &str| Err(Error::user(format!("push to {id}"), fact, remedy));
        let repo = match Repo::parse(Kind::Model, id) {
            // A truth value is a switch that was misunderstood.
            Some(repo) if repo.revision == MAIN && truth(id).is_err() => repo,
            _ => return bad("is not a hub id", "write it as owner/name"),
        };
        if super::is_offline() {
            return bad("HF_HUB_OFFLINE is set", "unset it");
        }
        let client = Client::new(super::token(&super::home()?)?)?;
        if client.token.is_none() {
            return bad("no token is set", "set HF_TOKEN to one that may write, from https://huggingface.co/settings/tokens");
        }
        let who = client.get(&format!("{}/api/whoami-v2", client.endpoint), &[]).and_then(json);
        let who = who.map_err(|failure| explain(failure, &repo, &client, ""))?;
        if who["auth"]["accessToken"]["role"] == "read" {
            return bad("the token may only read", "set HF_TOKEN to one that may write");
        }
        let user = who["name"].as_str().unwrap_or_default();
        let (owner, name) = id.split_once('/').unwrap_or((user, id));
        let mut organisations = who["orgs"].as_array().into_iter().flatten();
        if owner != user && !organisations.any(|organisation| organisation["name"] == owner) {
            return bad(
                &format!("the token belongs to {user}, who is not a member of {owner}"),
                "set HF_TOKEN to another, or push elsewhere",
            );
        }
        let repo = Repo { id: format!("{owner}/{name}"), ..repo };
        if private {
            match client.get(&format!("{}/api/models/{}", client.endpoint, repo.id), &[]).and_then(json) {
                Ok(found) if found["private"] == true => {}
                Ok(_) => return bad("the repository exists and is public", "choose another name, or publish it openly"),
                Err(Failure::Refused { status: 404, .. }) => {}
                Err(failure) => return Err(explain(failure, &repo, &client, "")),
            }
        }
        Ok(Target { repo, private, client })
    }

    /// Publishes the model in `folder`, creating a repository if there is none. Returns the address of its page.
    pub fn push(&self, folder: &Path) -> Result<String> {
        self.upload(folder).map_err(|failure| {
            let again = format!("nothing is lost: `warpfit push {} {}` tries again", folder.display(), self.repo);
            explain(failure, &self.repo, &self.client, "").and(&again)
        })?;
        Ok(format!("{}/{}", self.client.endpoint, self.repo))
    }

    fn upload(&self, folder: &Path) -> Result<(), Failure> {
        let mut files = Vec::new();
        // Of files that are not published as they are.
        let rewritten = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), e))?;
        for name in PUBLISHED {
            let path = public(folder, name, rewritten.path())?;
            match fs::metadata(&path) {
                Ok(about) => files.push(Upload { name, path, size: about.len(), oid: None }),
                Err(error) if ["config.json", "model.safetensors"].contains(&name) => return Err(Error::io(&path, error).into()),
                Err(_) => (),
            }
        }
        self.create()?;
        self.choose_storage(&mut files)?;
        self.store(&files)?;
        self.commit(&files)
    }

    /// Creates the repository unless it exists.
    fn create(&self) -> Result<(), Failure> {
        let (owner, name) = self.repo.id.split_once('/').expect("checked");
        let request = json!({"name": name, "organization": owner, "private": self.private});
        match self.client.post(&format!("{}/api/repos/create", self.client.endpoint), JSON, &request.to_string()) {
            // It exists; or the token may write to existing repositories and not create one.
            Ok(_) | Err(Failure::Refused { status: 403 | 409, .. }) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Asks the hub which files are too large for Git.
    fn choose_storage(&self, files: &mut [Upload]) -> Result<(), Failure> {
        let mut asked = Vec::new();
        for file in &*files {
            let mut sample = Vec::new();
            let read = File::open(&file.path).and_then(|content| content.take(512).read_to_end(&mut sample));
            read.map_err(|e| Error::io(&file.path, e))?;
            asked.push(json!({"path": file.name, "size": file.size, "sample": STANDARD.encode(sample)}));
        }
        let answer = json(self.client.post(&self.api("preupload"), JSON, &json!({"files": asked}).to_string())?)?;
        let modes = answer["files"].as_array().into_iter().flatten();
        for mode in modes.filter(|mode| mode["uploadMode"] == "lfs") {
            // The large file storage refuses empty files.
            if let Some(file) = files.iter_mut().find(|file| mode["path"] == file.name && file.size > 0) {
                file.oid = Some(sha256(&file.path)?);
            }
        }
        Ok(())
    }

    /// Uploads the large files that are missing from the large file storage.
    fn store(&self, files: &[Upload]) -> Result<(), Failure> {
        let large: Vec<_> = files.iter().filter_map(|file| Some((file, file.oid.as_ref()?))).collect();
        if large.is_empty() {
            return Ok(());
        }
        let objects: Vec<Value> = large.iter().map(|(file, oid)| json!({"oid": oid, "size": file.size})).collect();
        let request = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256", "ref": {"name": MAIN},
            "objects": objects,
        });
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.client.endpoint, self.repo.id);
        let answer = json(self.client.post(&url, LFS_JSON, &request.to_string())?)?;
        let total = large.iter().map(|(file, _)| file.size).sum::<u64>();
        let progress = Progress::new(&format!("pushing to {}", self.repo), total, &["bytes"]);
        for (file, oid) in large {
            let mut objects = answer["objects"].as_array().into_iter().flatten();
            let object = objects
                .find(|object| object["oid"] == **oid)
                .ok_or_else(|| refused("it returned no upload address for a file"))?;
            if let Some(message) = object["error"]["message"].as_str() {
                return Err(refused(message));
            }
            let actions = &object["actions"];
            let Some(href) = actions["upload"]["href"].as_str() else {
                progress.add(&[file.size]);
                continue;
            };
            self.transfer(file, oid, href, &actions["upload"]["header"], &progress)?;
            if let Some(verify) = actions["verify"]["href"].as_str() {
                self.client.post(verify, JSON, &json!({"oid": oid, "size": file.size}).to_string())?;
            }
        }
        progress.finish("");
        Ok(())
    }

    /// Uploads one file, whole or in parts, as `header` requires: `chunk_size`, and an address under the number of each part.
    fn transfer(&self, file: &Upload, oid: &str, href: &str, header: &Value, progress: &Progress) -> Result<(), Failure> {
        let header = header.as_object().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
        let part = |start: u64, size: u64| move || Part::open(&file.path, start, size, progress);
        let Some(chunk) = header.get("chunk_size").and_then(|size| text(size).parse::<u64>().ok()).filter(|&size| size > 0)
        else {
            let header: Vec<(&str, String)> = header.iter().map(|(name, value)| (&**name, text(value))).collect();
            let header: Vec<(&str, &str)> = header.iter().map(|(name, value)| (*name, &**value)).collect();
            return self.client.put(href, &header, file.size, part(0, file.size)).map(drop);
        };
        let mut urls: Vec<(u64, String)> =
            header.iter().filter_map(|(name, url)| Some((name.parse().ok()?, text(url)))).collect();
        urls.sort();
        if urls.len() as u64 != file.size.div_ceil(chunk) {
            return Err(refused("its upload addresses do not match the parts of a file"));
        }
        let mut parts = Vec::new();
        for ((number, url), start) in urls.iter().zip((0..file.size).step_by(chunk as usize)) {
            let size = chunk.min(file.size - start);
            let answer = self.client.put(url, &[], size, part(start, size))?;
            let etag = answer.headers().get("ETag").and_then(|etag| etag.to_str().ok()).unwrap_or_default();
            parts.push(json!({"partNumber": number, "etag": etag}));
        }
        self.client.post(href, LFS_JSON, &json!({"oid": oid, "parts": parts}).to_string()).map(drop)
    }

    fn commit(&self, files: &[Upload]) -> Result<(), Failure> {
        let mut lines = json!({"key": "header", "value": {"summary": "End of training", "description": ""}}).to_string();
        for Upload { name, path, size, oid } in files {
            let line = match oid {
                Some(oid) => json!({"key": "lfsFile", "value": {"path": name, "algo": "sha256", "oid": oid, "size": size}}),
                None => {
                    let content = STANDARD.encode(fs::read(path).map_err(|e| Error::io(path, e))?);
                    json!({"key": "file", "value": {"path": name, "encoding": "base64", "content": content}})
                }
            };
            lines += &format!("\n{line}");
        }
        self.client.post(&self.api("commit"), NDJSON, &lines).map(drop)
    }

    fn api(&self, what: &str) -> String {
        format!("{}/api/models/{}/{what}/{MAIN}", self.client.endpoint, self.repo.id)
    }
}

/// Where the file of this name is as it is published: of paths in JSON only the last part is left, in a copy in `rewritten`.
fn public(folder: &Path, name: &str, rewritten: &Path) -> Result<PathBuf> {
    let (path, copy) = (folder.join(name), rewritten.join(name));
    let parsed = || serde_json::from_slice::<Value>(&fs::read(&path).ok()?).ok();
    let Some(mut json) = name.ends_with(".json").then(parsed).flatten() else { return Ok(path) };
    if !shorten_paths(&mut json, false) {
        return Ok(path);
    }
    fs::write(&copy, format!("{json:#}\n")).map_err(|e| Error::io(&copy, e))?;
    Ok(copy)
}

/// Shortens the paths in a value, itself `of_path` or with keys of paths; whether there were any. `owner/name` is an id of the hub.
fn shorten_paths(value: &mut Value, of_path: bool) -> bool {
    let is_path = |text: &str| {
        let path = Path::new(text);
        path.is_absolute() || path.components().count() > 2 || path.components().any(|part| part == Component::ParentDir)
    };
    match value {
        Value::String(text) if of_path && is_path(text) => {
            *text = Path::new(text).file_name().unwrap_or_default().to_string_lossy().into_owned();
            true
        }
        Value::Array(values) => values.iter_mut().fold(false, |any, value| shorten_paths(value, of_path) | any),
        Value::Object(values) => values
            .iter_mut()
            .fold(false, |any, (key, value)| shorten_paths(value, PATHS.contains(&&*key.replace('-', "_"))) | any),
        _ => false,
    }
}

/// An error that the hub reports inside a successful response.
fn refused(message: &str) -> Failure {
    Failure::Refused { status: 422, code: String::new(), message: message.to_string() }
}

/// A part of a file, counted while it is read.
struct Part<'a> {
    content: std::io::Take<File>,
    progress: &'a Progress,
}

impl<'a> Part<'a> {
    fn open(path: &Path, start: u64, size: u64, progress: &'a Progress) -> Result<Part<'a>> {
        let io = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        file.seek(SeekFrom::Start(start)).map_err(io)?;
        Ok(Part { content: file.take(size), progress })
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        check_interrupt().map_err(std::io::Error::other)?;
        let read = self.content.read(buffer)?;
        self.progress.add(&[read as u64]);
        Ok(read)
    }
}
