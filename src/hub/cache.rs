//! Hub repositories as folders on this machine, in the layout shared with Python's huggingface_hub:
//! `models--owner--name/{refs,blobs,snapshots}`. A snapshot consists of links to blobs, which are named by their ETag.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::client::{Client, Failure, TRIES, json, pause};
use super::{Repo, escape};
use crate::console::note;
use crate::error::{Error, Result};
use crate::files::write_file;
use crate::report::log::Progress;

/// The account with which the hub converts weights to safetensors.
const CONVERTER: &str = "SFconvertbot";

pub struct Cache {
    pub client: Client,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    folder: PathBuf,
    offline: bool,
}

/// The content of a repository at one commit.
pub struct Listing {
    pub commit: String,
    pub files: Vec<Entry>,
    /// Whether it lists the content of the cache rather than that of the hub.
    pub cached: bool,
    /// The front matter of its card; null if the list was made from the cache.
    pub card: Value,
}

pub struct Entry {
    /// Its path in the repository.
    pub name: String,
    /// `None` if the list was made from the cache.
    blob: Option<Blob>,
}

struct Blob {
    etag: String,
    size: u64,
    /// Whether the ETag is the SHA-256 of the content; otherwise it is a git hash.
    is_sha256: bool,
}

impl Cache {
    /// Configured by the environment.
    pub fn new() -> Result<Cache> {
        let home = super::home()?;
        let folder = super::variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        Ok(Cache { client: Client::new(super::token(&home)?)?, folder, offline: super::is_offline() })
    }

    /// Lists the content of `repo`: from the hub, or from the cache if the hub cannot be reached.
    pub fn list(&self, repo: &Repo) -> Result<Listing, Failure> {
        if self.offline {
            return self.cached(repo).ok_or_else(|| {
                let cache = self.folder.display();
                let fact =
                    format!("there is no such folder here, nor a {} in the cache ({cache}); HF_HUB_OFFLINE is set", repo.kind);
                Failure::Here(Error::user(repo, fact, "unset HF_HUB_OFFLINE once to fetch it"))
            });
        }
        let revision = escape(&repo.revision).replace('/', "%2F");
        let (endpoint, kind, id) = (&self.client.endpoint, repo.kind, &repo.id);
        let url = format!("{endpoint}/api/{kind}s/{id}/revision/{revision}?blobs=true");
        match self.client.get(&url, &[]).and_then(json) {
            Ok(answer) => Listing::parse(&answer).ok_or_else(|| {
                Failure::Here(Error::user(repo, format!("{endpoint} does not speak the hub's protocol"), "check HF_ENDPOINT"))
            }),
            Err(failure) if failure.is_passing() => {
                let cached = self.cached(repo).ok_or(failure)?;
                note(format!("{repo}: the hub cannot be reached; taken from the cache"));
                Ok(cached)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The revision with the hub's own conversion of a model to safetensors: an open pull request of its bot, the newest; in the
    /// cache if the network must not be used.
    pub fn conversion(&self, repo: &Repo) -> Option<String> {
        const PULLS: &str = "refs/pr";
        let numbers: Vec<u64> = if self.offline {
            let cached = fs::read_dir(self.repo_folder(repo).join("refs").join(PULLS)).into_iter().flatten().flatten();
            cached.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        } else {
            let url = format!(
                "{}/api/{}s/{}/discussions?author={CONVERTER}&type=pull_request",
                self.client.endpoint, repo.kind, repo.id
            );
            // A repository without discussions has no conversion either.
            let found = self.client.get(&url, &[]).and_then(json).ok()?;
            let is_conversion = |pull: &&Value| {
                pull["isPullRequest"] == true
                    && pull["status"] == "open"
                    && pull["author"]["name"] == CONVERTER
                    && pull["title"].as_str().is_some_and(|title| title.contains("safetensors"))
            };
            let pulls = found["discussions"].as_array().into_iter().flatten().filter(is_conversion);
            pulls.filter_map(|pull| pull["num"].as_u64()).collect()
        };
        numbers.into_iter().max().map(|number| format!("{PULLS}/{number}"))
    }

    /// Fetches the files of `names` into the cache, and returns the folder that holds them under these names.
    pub fn fetch(&self, repo: &Repo, listing: &Listing, names: &[&str]) -> Result<PathBuf, Failure> {
        let folder = self.repo_folder(repo);
        let snapshot = folder.join("snapshots").join(&listing.commit);
        let wanted = listing.files.iter().filter(|entry| names.contains(&&*entry.name) && !snapshot.join(&entry.name).exists());
        let wanted: Vec<(&Entry, &Blob)> = wanted.filter_map(|entry| Some((entry, entry.blob.as_ref()?))).collect();
        let bytes = wanted.iter().map(|(_, blob)| blob.size).sum::<u64>();
        let progress = (bytes > 0).then(|| Progress::new(&format!("fetching {repo}"), bytes, &["bytes"]));
        for (entry, blob) in wanted {
            let (endpoint, commit, name) = (&self.client.endpoint, &listing.commit, escape(&entry.name));
            let url = format!("{endpoint}/{}/resolve/{commit}/{name}", repo.path());
            self.download(repo, &url, blob, progress.as_ref())?;
            link(&snapshot, &entry.name, &blob.etag)?;
        }
        if let Some(progress) = progress {
            progress.finish("");
        }
        // Written last, so that a reference leads only to complete snapshots.
        let reference = folder.join("refs").join(&repo.revision);
        if repo.revision != listing.commit && fs::read_to_string(&reference).ok().as_ref() != Some(&listing.commit) {
            create_dir(reference.parent().expect("lies in refs"))?;
            write_file(&reference, listing.commit.as_bytes())?;
        }
        Ok(snapshot)
    }

    fn repo_folder(&self, repo: &Repo) -> PathBuf {
        self.folder.join(format!("{}s--{}", repo.kind, repo.id.replace('/', "--")))
    }

    /// The part of `repo` that is in the cache.
    fn cached(&self, repo: &Repo) -> Option<Listing> {
        let folder = self.repo_folder(repo);
        let commit = fs::read_to_string(folder.join("refs").join(&repo.revision)).unwrap_or(repo.revision.clone());
        let snapshot = folder.join("snapshots").join(&commit);
        let mut files = Vec::new();
        walk(&snapshot, "", &mut files).ok()?;
        Some(Listing { commit, files, cached: true, card: Value::Null })
    }

    /// Downloads a blob into the cache, continuing an incomplete download.
    fn download(&self, repo: &Repo, url: &str, blob: &Blob, progress: Option<&Progress>) -> Result<(), Failure> {
        let folder = self.repo_folder(repo);
        let (path, partial) =
            (folder.join("blobs").join(&blob.etag), folder.join("blobs").join(format!("{}.incomplete", blob.etag)));
        let io = |e| Failure::Here(Error::io(&partial, e));
        let advance = |bytes| progress.map_or((), |progress| progress.add(&[bytes]));
        create_dir(&folder.join("blobs"))?;
        let _lock = self.lock(repo, blob)?;
        if path.exists() {
            advance(blob.size);
            return Ok(());
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&partial).map_err(io)?;
        let mut have = file.metadata().map_err(io)?.len();
        advance(have.min(blob.size));
        // Consecutive tries without progress.
        let mut tries = 0;
        while have != blob.size {
            let result = self.receive(url, &mut file, &partial, have, blob.size, &advance);
            let before = std::mem::replace(&mut have, file.metadata().map_err(io)?.len());
            let failure = match result {
                Ok(()) if have == blob.size => break,
                Ok(()) => Failure::Unreachable("the connection was closed early".to_string()),
                Err(failure) => failure,
            };
            tries = if have > before { 1 } else { tries + 1 };
            if tries == TRIES || !failure.is_passing() {
                return Err(failure);
            }
            pause(tries);
        }
        if blob.is_sha256 && sha256(&partial)? != blob.etag {
            fs::remove_file(&partial).map_err(io)?;
            let fact = format!("the download from {url} is damaged: its SHA-256 does not match");
            return Err(Failure::Here(Error::user(repo, fact, "try again: it is downloaded afresh")));
        }
        file.sync_all().and_then(|()| fs::rename(&partial, &path)).map_err(io)
    }

    /// Appends to `file`, which has `have` bytes, the bytes of `url` from there to `size`.
    fn receive(
        &self,
        url: &str,
        file: &mut File,
        path: &Path,
        have: u64,
        size: u64,
        advance: &dyn Fn(u64),
    ) -> Result<(), Failure> {
        let io = |e| Failure::Here(Error::io(path, e));
        let range = format!("bytes={have}-");
        let headers: &[_] = if have > 0 { &[("Range", &*range)] } else { &[] };
        let response = match self.client.get(url, headers) {
            // The file at `url` is shorter: the local bytes belong to something else.
            Err(Failure::Refused { status: 416, .. }) => return file.set_len(0).map_err(io),
            response => response?,
        };
        let mut left = size.saturating_sub(have);
        if response.status().as_u16() != 206 {
            // The server sends the whole file, regardless of the range requested.
            file.set_len(0).map_err(io)?;
            left = size;
        }
        let mut body = response.into_body().into_reader().take(left);
        let mut buffer = vec![0; 1 << 17];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    file.write_all(&buffer[..n]).map_err(io)?;
                    advance(n as u64);
                }
                Err(error) => return Err(Failure::Unreachable(error.to_string())),
            }
        }
    }

    /// Held while a blob is written; huggingface_hub takes the same lock.
    fn lock(&self, repo: &Repo, blob: &Blob) -> Result<File, Failure> {
        let folder = self.folder.join(".locks").join(self.repo_folder(repo).file_name().expect("has a name"));
        create_dir(&folder)?;
        let path = folder.join(format!("{}.lock", blob.etag));
        let io = |e| Failure::Here(Error::io(&path, e));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(io)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                note(format!("{repo}: another process is fetching it; waiting"));
                file.lock().map_err(io)?;
            }
            // On a file system without locks the checksum has to do.
            Ok(()) | Err(TryLockError::Error(_)) => (),
        }
        Ok(file)
    }
}

impl Listing {
    /// Parses the hub's response; `None` if it has another form. Its names become paths and are not trusted.
    fn parse(answer: &Value) -> Option<Listing> {
        let is_name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let commit = answer["sha"].as_str().filter(|sha| is_name(sha))?.to_string();
        let mut files = Vec::new();
        for sibling in answer["siblings"].as_array()? {
            let name = sibling["rfilename"].as_str()?.to_string();
            if !Path::new(&name).components().all(|part| matches!(part, Component::Normal(_))) {
                return None;
            }
            let (sha256, id) = (sibling["lfs"]["sha256"].as_str(), sibling["blobId"].as_str());
            let etag = sha256.or(id).filter(|etag| is_name(etag))?.to_string();
            let size = sibling["lfs"]["size"].as_u64().or(sibling["size"].as_u64())?;
            files.push(Entry { name, blob: Some(Blob { etag, size, is_sha256: sha256.is_some() }) });
        }
        Some(Listing { commit, files, cached: false, card: answer["cardData"].clone() })
    }
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    let io = |e| Error::io(path, e);
    let (mut file, mut hasher, mut buffer) = (File::open(path).map_err(io)?, Sha256::new(), vec![0; 1 << 17]);
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Lists the files below a folder, with paths relative to `prefix`.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<Entry>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        // Follows links: a dangling link is not a file.
        if path.is_dir() {
            walk(&path, &format!("{name}/"), files)?;
        } else if path.is_file() {
            files.push(Entry { name, blob: None });
        }
    }
    Ok(())
}

/// Links `name` in a snapshot to a blob, relatively, so that the cache can be moved.
fn link(snapshot: &Path, name: &str, etag: &str) -> Result<()> {
    let path = snapshot.join(name);
    create_dir(path.parent().expect("lies in the snapshot"))?;
    #[cfg(unix)]
    let linked = {
        let up = "../".repeat(2 + name.matches('/').count());
        std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &path)
    };
    // Symbolic links are a privilege on Windows.
    #[cfg(not(unix))]
    let linked = fs::hard_link(snapshot.join("../../blobs").join(etag), &path);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::io(&path, error)),
        _ => Ok(()),
    }
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, e))
}
