//! The hub, played by two servers on loopback: one with the repositories, and one at another port that stores large files, like
//! the real one's. The commands fetch from it, work from the cache without it, push to it, and encounter its faults.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::checkpoint::{save, tensors};
use crate::cli::{PREDICT, Ran, TRAIN, path, program, run};
use crate::data::{Labels, TEXT_AND_INT, parquet};
use crate::fixtures::golden;

const EVALUATE: &str = "evaluate";
const PUSH: &str = "push";
const COMMIT: &str = "5f7fe2d31a4d4ac3a2e4b8f8e0d6c5b4a3928170";
const TOKEN: &str = "hf_secret";

#[derive(Clone, Debug)]
struct Request {
    method: String,
    /// Without the part after the `?`.
    path: String,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Where the connection breaks.
    cut: Option<usize>,
}

impl Response {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response { status, headers: Vec::new(), body: body.into(), cut: None }
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Response {
        self.headers.push((name, value.to_string()));
        self
    }
}

impl From<Value> for Response {
    fn from(value: Value) -> Response {
        Response::new(200, value.to_string())
    }
}

/// Responds on a port of its own, one request per connection, and records the requests.
struct Server {
    address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn new(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server { address: format!("http://{}", listener.local_addr().unwrap()), seen: Arc::default() };
        let (seen, answer) = (server.seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || exchange(stream.unwrap(), &seen, &*answer));
            }
        });
        server
    }

    /// The requests since the last call.
    fn seen(&self) -> Vec<Request> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn exchange(stream: TcpStream, seen: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Response) {
    let mut reader = BufReader::new(&stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    };
    let first = line();
    let Some((method, rest)) = first.split_once(' ') else { return };
    let path = rest.split([' ', '?']).next().unwrap().to_string();
    let headers: BTreeMap<String, String> = std::iter::from_fn(|| Some(line()).filter(|line| !line.is_empty()))
        .map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string())).unwrap())
        .collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let request = Request { method: method.to_string(), path, headers, body };
    seen.lock().unwrap().push(request.clone());
    let Response { status, headers, mut body, cut } = answer(&request);
    let mut head = format!("HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    body.truncate(cut.unwrap_or(usize::MAX));
    // The client may have disconnected.
    let mut stream = &stream;
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(&body));
    let _ = stream.shutdown(Shutdown::Both);
}

/// Path in the repository and content.
pub type Files = Vec<(String, Vec<u8>)>;

/// A hub, its storage, and a home folder for its users.
pub struct Hub {
    server: Server,
    storage: Arc<Server>,
    home: TempDir,
    /// The number of the storage's next responses that break off in the middle.
    cuts: Arc<AtomicUsize>,
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".parquet")
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hub's ETag of a file: the SHA-256 of a large one, git's shorter hash of another (any will do here).
fn etag(name: &str, content: &[u8]) -> String {
    if is_large(name) { hex(content) } else { hex(content)[..40].to_string() }
}

impl Hub {
    /// Serves `models/owner/name` or `datasets/owner/name`, with `@revision` for one other than main.
    pub fn new(repos: &[(&str, Files)]) -> Hub {
        Hub::with_cards(repos, Value::Null)
    }

    fn with_cards(repos: &[(&str, Files)], card: Value) -> Hub {
        let cuts = Arc::new(AtomicUsize::new(0));
        let (repos, left): (BTreeMap<String, Files>, _) =
            (repos.iter().map(|(id, files)| (id.to_string(), files.clone())).collect(), cuts.clone());
        let blobs: BTreeMap<String, Vec<u8>> =
            repos.values().flatten().map(|(name, content)| (format!("/{}", etag(name, content)), content.clone())).collect();
        let storage = Arc::new(Server::new(move |request| {
            let content = &blobs[&request.path];
            let from = request.headers.get("range").map(|range| range[6..range.len() - 1].parse::<usize>().unwrap());
            let mut answer = match from {
                Some(from) if from >= content.len() => return Response::new(416, ""),
                Some(from) => Response::new(206, &content[from..])
                    .with("Content-Range", format!("bytes {from}-{}/{}", content.len() - 1, content.len())),
                None => Response::new(200, content.clone()),
            };
            if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                // In the middle for a few cuts; at the start for many.
                answer.cut = Some(if left.load(Ordering::SeqCst) > 10 && from.is_some() { 0 } else { answer.body.len() / 2 });
            }
            answer
        }));
        let address = storage.address.clone();
        let server = Server::new(move |request| answer(&repos, &card, &address, request));
        Hub { server, storage, home: TempDir::new().unwrap(), cuts }
    }

    /// A hub that takes pushes with the token `TOKEN`.
    pub fn for_pushes() -> Hub {
        let (server, storage) = takes_pushes(None, Arc::default());
        Hub { server, storage, home: TempDir::new().unwrap(), cuts: Arc::default() }
    }

    /// A command with this hub and a home folder of its own.
    fn command(&self, command: &str, args: &[&str]) -> Command {
        let mut command = program(command);
        self.environment(&mut command).args(args);
        command
    }

    /// Lets a command use this hub and a home folder of its own.
    pub fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HF_") || name.to_lowercase().ends_with("_proxy")) {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.server.address).env("HF_HOME", self.home.path())
    }

    fn ran(&self, command: &str, args: &[&str]) -> Ran {
        run(&mut self.command(command, args), b"")
    }

    fn offline(&self, command: &str, args: &[&str]) -> Ran {
        run(self.command(command, args).env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", "http://127.0.0.1:9"), b"")
    }

    fn cache(&self, repo: &str) -> PathBuf {
        self.home.path().join("hub").join(repo)
    }
}

fn answer(repos: &BTreeMap<String, Files>, card: &Value, storage: &str, request: &Request) -> Response {
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let fault = |status, code: &str| Response::new(status, json!({"error": "a message"}).to_string()).with("X-Error-Code", code);
    match parts[..] {
        // Renamed.
        _ if parts.contains(&"old") => Response::new(307, "").with("Location", request.path.replace("/old/", "/new/")),
        ["api", kind, owner, name, "revision", revision] => {
            let revision = revision.replace("%2F", "/");
            match (name, &*revision) {
                ("gated", _) if !request.headers.contains_key("authorization") => return fault(401, "GatedRepo"),
                ("gated", _) => return fault(403, "GatedRepo"),
                ("private", _) => return fault(401, "RepoNotFound"),
                ("busy", _) => return fault(429, ""),
                ("broken", _) => return fault(500, ""),
                ("page", _) => return Response::new(200, "<html>"),
                ("circle", _) => return Response::new(307, "").with("Location", &request.path),
                _ => (),
            }
            let id = format!("{kind}/{owner}/{name}");
            let at = if revision == "main" || revision == COMMIT { id.clone() } else { format!("{id}@{revision}") };
            let Some(files) = repos.get(&at) else {
                return fault(404, if repos.contains_key(&id) { "RevisionNotFound" } else { "RepoNotFound" });
            };
            let sibling = |(name, content): &(String, Vec<u8>)| {
                let mut sibling = json!({"rfilename": name, "size": content.len(), "blobId": &hex(content)[..40]});
                if is_large(name) {
                    sibling["lfs"] = json!({"sha256": etag(name, content), "size": content.len(), "pointerSize": 134});
                }
                sibling
            };
            json!({"sha": COMMIT, "cardData": card, "siblings": files.iter().map(sibling).collect::<Vec<_>>()}).into()
        }
        ["api", "models", owner, name, "discussions"] => {
            let by = |num: u64, author: &str, status: &str| {
                let title = "Adding `safetensors` variant of this model";
                json!({"num": num, "isPullRequest": true, "title": title, "status": status, "author": {"name": author}})
            };
            let converted = repos.contains_key(&format!("models/{owner}/{name}@refs/pr/2"));
            let bot = if converted { "SFconvertbot" } else { "nobody" };
            json!({"discussions": [by(1, bot, "closed"), by(2, bot, "open"), by(3, "a stranger", "open")], "count": 3}).into()
        }
        ["datasets", owner, name, "resolve", COMMIT, ref file @ ..] => {
            resolve(repos, &format!("datasets/{owner}/{name}"), file, storage)
        }
        [owner, name, "resolve", COMMIT, ref file @ ..] => resolve(repos, &format!("models/{owner}/{name}"), file, storage),
        ["content", etag] => {
            let mut files = repos.values().flatten();
            let content = files.find(|(name, content)| self::etag(name, content) == etag);
            content.map_or_else(|| fault(404, "EntryNotFound"), |(_, content)| Response::new(200, content.clone()))
        }
        _ => fault(404, ""),
    }
}

/// A large file is in the storage, another on this server, each behind a redirect.
fn resolve(repos: &BTreeMap<String, Files>, repo: &str, file: &[&str], storage: &str) -> Response {
    let file = file.join("/");
    let mut files = repos.iter().filter(|(id, _)| id.split('@').next() == Some(repo)).flat_map(|(_, files)| files);
    let Some((name, content)) = files.find(|(name, _)| *name == file) else { return Response::new(404, "") };
    let etag = etag(name, content);
    let (status, target) = if is_large(name) { (302, format!("{storage}/{etag}")) } else { (307, format!("/content/{etag}")) };
    let answer = Response::new(status, "").with("Location", target).with("X-Repo-Commit", COMMIT);
    answer.with("X-Linked-Etag", format!("\"{etag}\"")).with("X-Linked-Size", content.len())
}

pub fn files(folder: &Path) -> Files {
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap())).collect()
}

fn tiny() -> Files {
    let mut files = files(&golden("train/hf_init"));
    files.push(("README.md".to_string(), b"---\nlicense: mit\n---\n".to_vec()));
    files.push(("pytorch_model.bin".to_string(), b"not wanted".to_vec()));
    files
}

fn sample(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sample").join(name)).unwrap()
}

fn reviews(train: &str, test: &str) -> Files {
    vec![(train.to_string(), sample("train.parquet")), (test.to_string(), sample("validation.parquet"))]
}

/// Every file below a folder, by its path relative to it.
fn tree(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if path.is_dir() && !path.is_symlink() {
            found.extend(tree(&path).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            found.insert(name);
        }
    }
    found
}

const SHORT: [&str; 8] = ["--max-steps", "2", "--max-train-samples", "32", "--max-eval-samples", "32", "--save-strategy", "no"];

#[test]
fn a_run_by_ids_fetches_once_and_then_needs_no_network() {
    let data = reviews("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet");
    let unsupervised = ("plain_text/unsupervised-00000-of-00001.parquet".to_string(), b"not wanted".to_vec());
    let hub = Hub::new(&[("models/tiny/distil", tiny()), ("datasets/tiny/reviews", [data, vec![unsupervised]].concat())]);
    let out = TempDir::new().unwrap();
    let ids = ["--model", "tiny/distil", "--dataset", "tiny/reviews", "--validation-split-name", "test"];
    let args = |out: &'static str, folder: &Path| -> Vec<String> {
        let out = folder.join(out);
        [&ids[..], &SHORT, &["--output-dir", path(&out)]].concat().into_iter().map(String::from).collect()
    };
    let first = args("first", out.path());
    let first: Vec<&str> = first.iter().map(|arg| &**arg).collect();
    let ran = run(hub.command(TRAIN, &first).env("HF_TOKEN", TOKEN), b"").done();
    assert!(
        ran.err.contains("fetching tiny/distil 393,352/") && ran.err.contains("fetching tiny/reviews 1,052,192/"),
        "{}",
        ran.err
    );
    assert!(out.path().join("first/eval_results.json").exists(), "the test split was evaluated on");

    // The token goes to the hub alone.
    let bearer = format!("Bearer {TOKEN}");
    let (asked, stored) = (hub.server.seen(), hub.storage.seen());
    assert!(asked.iter().all(|request| request.headers.get("authorization") == Some(&bearer)));
    assert_eq!(stored.len(), 3);
    assert!(stored.iter().all(|request| !request.headers.contains_key("authorization")), "{stored:?}");

    // The cache has huggingface_hub's layout.
    let model = hub.cache("models--tiny--distil");
    assert_eq!(fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    let snapshot = model.join("snapshots").join(COMMIT);
    let wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
    let wanted = [&wanted[..], &["vocab.txt", "README.md"]].concat();
    assert_eq!(tree(&snapshot), BTreeSet::from_iter(wanted.into_iter().map(String::from)));
    for (name, content) in tiny().iter().filter(|(name, _)| name != "pytorch_model.bin") {
        let target = PathBuf::from("../../blobs").join(etag(name, content));
        assert_eq!((fs::read_link(snapshot.join(name)).unwrap(), &fs::read(snapshot.join(name)).unwrap()), (target, content));
    }
    let data = hub.cache("datasets--tiny--reviews").join("snapshots").join(COMMIT).join("plain_text");
    assert_eq!(fs::read(data.join("train-00000-of-00001.parquet")).unwrap(), sample("train.parquet"));
    assert!(fs::read_link(data.join("test-00000-of-00001.parquet")).unwrap().starts_with("../../../blobs"));
    assert_eq!(tree(&data).len(), 2);
    assert!(tree(hub.home.path()).iter().all(|name| !name.contains("incomplete") && !name.contains("partial")));

    // The card names hub ids.
    let card = fs::read_to_string(out.path().join("first/README.md")).unwrap();
    assert!(card.contains("license: mit\nbase_model: tiny/distil\ndatasets:\n- tiny/reviews\n"), "{card}");
    assert!(card.contains("name: tiny/reviews\n      type: tiny/reviews\n      split: test\n"), "{card}");
    assert!(!card.contains(path(hub.home.path())), "{card}");

    // Again: with nothing to fetch, with no hub reachable, and offline, with the same result.
    let weights = |out: &str| fs::read(out_file(&first, out)).unwrap();
    fn out_file(first: &[&str], out: &str) -> PathBuf {
        Path::new(first.last().unwrap()).with_file_name(out).join("model.safetensors")
    }
    let again = |out: &str| {
        let folder = Path::new(first.last().unwrap()).with_file_name(out);
        [&first[..first.len() - 1], &[path(&folder)]].concat().into_iter().map(String::from).collect::<Vec<_>>()
    };
    fn words(args: &[String]) -> Vec<&str> {
        args.iter().map(|arg| &**arg).collect()
    }
    hub.ran(TRAIN, &words(&again("online"))).done();
    assert_eq!((hub.server.seen().len(), hub.storage.seen().len()), (2, 0));
    let lost = run(hub.command(TRAIN, &words(&again("lost"))).env("HF_ENDPOINT", "http://127.0.0.1:9"), b"").done();
    assert!(lost.err.contains("tiny/distil: the hub cannot be reached; taken from the cache"), "{}", lost.err);
    let offline = hub.offline(TRAIN, &words(&again("offline"))).done();
    assert!(!offline.err.contains("cannot be reached"), "{}", offline.err);
    assert!(["online", "lost", "offline"].iter().all(|out| weights(out) == weights("first")));

    let predicted = hub.offline(PREDICT, &["--model", "tiny/distil", "good"]).done();
    assert!(predicted.out.contains("\"label\""), "{}", predicted.out);
    let test = golden("train/test.csv");
    hub.offline(EVALUATE, &["--model", &format!("tiny/distil@{COMMIT}"), "--file", path(&test)]).done();
}

#[test]
fn weights_without_safetensors_are_taken_from_the_hubs_conversion() {
    let without: Files = tiny().into_iter().filter(|(name, _)| !name.ends_with(".safetensors")).collect();
    let hub = Hub::new(&[
        ("models/tiny/old-weights", without.clone()),
        ("models/tiny/old-weights@refs/pr/2", tiny()),
        ("models/tiny/only-pickle", without),
    ]);
    let args = ["--model", "tiny/old-weights", "--device", "cpu", "good"];
    let first = hub.ran(PREDICT, &args).done();
    assert!(
        first.err.contains("note: tiny/old-weights: main has no safetensors; the hub's conversion of it is taken, refs/pr/2")
    );
    assert_eq!(hub.offline(PREDICT, &args).done().out, first.out);
    let strangers = ["--model", "tiny/only-pickle", "--device", "cpu", "good"];
    hub.ran(PREDICT, &strangers).failed(2, "`tiny/only-pickle`: has no model.safetensors");
}

#[test]
fn a_split_of_a_data_set_is_evaluated_predicted_and_embedded() {
    let hub = Hub::new(&[("datasets/tiny/reviews", reviews("data/train-0.parquet", "data/test-0.parquet"))]);
    let model = golden("train/hf_init");
    let args = |more: &[&'static str]| {
        [&["--model", path(&model), "--device", "cpu"], more].concat().iter().map(|a| a.to_string()).collect::<Vec<_>>()
    };
    let ran = |command: &str, more: &[&'static str]| hub.ran(command, &args(more).iter().map(String::as_str).collect::<Vec<_>>());
    let evaluated = ran(EVALUATE, &["--dataset", "tiny/reviews", "--split", "test"]).done();
    assert!(evaluated.err.contains(" --dataset tiny/reviews --split test --output-dir report"), "{}", evaluated.err);
    let stored: Vec<String> = hub.storage.seen().into_iter().map(|request| request.path).collect();
    assert_eq!(stored, [format!("/{}", hex(&sample("validation.parquet")))], "of the data set the test split alone is fetched");
    let file = golden("../../src/sample/validation.parquet");
    assert_eq!(evaluated.out, hub.ran(EVALUATE, &["--model", path(&model), "--device", "cpu", "--file", path(&file)]).done().out);
    let predicted = ran(PREDICT, &["--dataset", "tiny/reviews"]).done();
    assert_eq!(predicted.out.lines().count(), ran("embed", &["--dataset", "tiny/reviews"]).done().out.lines().count());
    ran(PREDICT, &["--dataset", "tiny/reviews", "--split", "validation"]).failed(2, "`--split`: tiny/reviews has no such split");
    ran(PREDICT, &["--dataset", "tiny/reviews", "--input", "a.csv"]).failed(2, "cannot be used with");
    ran(PREDICT, &["--split", "test"]).failed(2, "--dataset");
}

#[test]
fn a_recipe_needs_nothing_else() {
    let data = reviews("split/train-00000-of-00001.parquet", "split/validation-00000-of-00001.parquet");
    let hub = Hub::new(&[("models/distilbert/distilbert-base-uncased", tiny()), ("datasets/dair-ai/emotion", data)]);
    let here = TempDir::new().unwrap();
    let mut command = hub.command(TRAIN, &["--recipe", "emotion", "--seed", "7", "--max-steps", "1"]);
    run(command.current_dir(here.path()), b"").done();
    let settings: Value = serde_json::from_slice(&fs::read(here.path().join("runs/1/training_args.json")).unwrap()).unwrap();
    assert_eq!((&settings["batch_size"], &settings["learning_rate"], &settings["seed"]), (&json!(64), &json!(2e-5), &json!(7)));
}

/// As the hub has them: weights and Parquet files only as conversions, a vocabulary alone, columns and splits that are not read.
#[test]
fn recipes_in_portuguese_and_russian_need_nothing_else() {
    let folder = TempDir::new().unwrap();
    let data = |texts: [&str; 3], column: &str, names: Option<&[&str]>| {
        let schema = TEXT_AND_INT.replace("label", column);
        let texts = texts.map(Some).repeat(8);
        let classes = if names.is_some() { [0, 1, 1] } else { [0, 1, 2] }.repeat(8);
        fs::read(parquet(folder.path(), &schema, &texts, Labels::Whole(&classes), names)).unwrap()
    };
    let portuguese = data(["Péssimo, não gostei.", "Ótima atuação!", "Adorei a história."], "label", Some(&["neg", "pos"]));
    let russian = data(["Обычный день.", "Замечательный фильм, мой любимый!", "Ещё одна скука."], "sentiment", None);
    let model = |language: &str| -> Files {
        let folder = TempDir::new().unwrap();
        let body: Vec<_> = tensors(&golden("bert-a/hf")).into_iter().filter(|tensor| !tensor.0.contains("classifier")).collect();
        save(&folder.path().join("model.safetensors"), &body);
        fs::copy(golden("bert-a/hf/config.json"), folder.path().join("config.json")).unwrap();
        for name in ["vocab.txt", "tokenizer_config.json"] {
            fs::copy(golden("languages").join(language).join(name), folder.path().join(name)).unwrap();
        }
        files(folder.path())
    };
    let pickled = |files: &Files| -> Files {
        let rename = |name: &str| name.replace("model.safetensors", "pytorch_model.bin");
        files.iter().map(|(name, content)| (rename(name), content.clone())).collect()
    };
    let of = |split: &str, content: &[u8]| (format!("{split}/0000.parquet"), content.to_vec());
    let csv = vec![("train.csv".to_string(), b"text,label\na,0\n".to_vec())];
    let (bertimbau, rubert) = (model("pt"), model("ru"));
    let hub = Hub::new(&[
        ("models/neuralmind/bert-base-portuguese-cased", pickled(&bertimbau)),
        ("models/neuralmind/bert-base-portuguese-cased@refs/pr/2", bertimbau),
        ("models/DeepPavlov/rubert-base-cased", pickled(&rubert)),
        ("models/DeepPavlov/rubert-base-cased@refs/pr/2", rubert),
        ("datasets/maritaca-ai/imdb_pt", csv.clone()),
        (
            "datasets/maritaca-ai/imdb_pt@refs/convert/parquet",
            vec![
                of("plain_text/test", &portuguese),
                of("plain_text/test_all", b"not wanted"),
                of("plain_text/train", &portuguese),
            ],
        ),
        ("datasets/MonoHime/ru_sentiment_dataset", csv),
        (
            "datasets/MonoHime/ru_sentiment_dataset@refs/convert/parquet",
            vec![of("default/train", &russian), of("default/validation", &russian)],
        ),
    ]);
    for (recipe, labels, results) in
        [("imdb-pt", "neg, pos", "test_results.json"), ("sentiment-ru", "NEUTRAL, POSITIVE, NEGATIVE", "eval_results.json")]
    {
        let out = folder.path().join(recipe);
        // The small model has 64 positions.
        hub.ran(TRAIN, &["--recipe", recipe, "--max-length", "64", "--max-steps", "2", "--output-dir", path(&out)]).done();
        let card = fs::read_to_string(out.join("README.md")).unwrap();
        assert!(out.join(results).exists() && card.contains(&format!("Labels: {labels}.")), "{card}");
    }
}

#[test]
fn interrupted_downloads_resume_and_damaged_ones_are_discarded() {
    let content = fs::read(golden("train/hf_init/model.safetensors")).unwrap();
    let blob = |hub: &Hub| hub.cache("models--tiny--distil/blobs").join(hex(&content));
    let predict = |hub: &Hub| hub.ran(PREDICT, &["--model", "tiny/distil", "good"]);
    let ranges = |hub: &Hub| -> Vec<Option<String>> {
        hub.storage.seen().iter().map(|request| request.headers.get("range").cloned()).collect()
    };

    // Within one run: half of the file, half of the rest, the rest.
    let hub = Hub::new(&[("models/tiny/distil", tiny())]);
    hub.cuts.store(2, Ordering::SeqCst);
    predict(&hub).done();
    let half = content.len() / 2;
    let three_quarters = half + (content.len() - half) / 2;
    let range = |from: usize| Some(format!("bytes={from}-"));
    assert_eq!(ranges(&hub), [None, range(half), range(three_quarters)]);
    assert_eq!(fs::read(blob(&hub)).unwrap(), content);

    // A run that gives up keeps the partial download; the next one fetches the rest.
    let hub = Hub::new(&[("models/tiny/distil", tiny())]);
    hub.cuts.store(1000, Ordering::SeqCst);
    predict(&hub).failed(2, "cannot be reached");
    let partial = blob(&hub).with_extension("incomplete");
    let have = fs::metadata(&partial).unwrap().len() as usize;
    assert_eq!((have, blob(&hub).exists()), (half, false));
    hub.offline(PREDICT, &["--model", "tiny/distil", "good"]).failed(2, "HF_HUB_OFFLINE is set");
    hub.cuts.store(0, Ordering::SeqCst);
    hub.storage.seen();
    predict(&hub).done();
    assert_eq!((ranges(&hub), partial.exists()), (vec![range(have)], false));

    // A partial download of something else is detected by the checksum, or by its length.
    let hub = Hub::new(&[("models/tiny/distil", tiny())]);
    fs::create_dir_all(blob(&hub).parent().unwrap()).unwrap();
    fs::write(blob(&hub).with_extension("incomplete"), vec![7; half]).unwrap();
    predict(&hub).failed(2, "is damaged: its SHA-256 does not match; try again");
    assert!(!blob(&hub).exists());
    fs::write(blob(&hub).with_extension("incomplete"), vec![7; 2 * content.len()]).unwrap();
    predict(&hub).done();
    assert_eq!(fs::read(blob(&hub)).unwrap(), content);
}

#[test]
fn a_data_set_has_its_own_or_converted_parquet_files() {
    let train = |hub: &Hub, id: &str, more: &[&str]| {
        let out = TempDir::new().unwrap();
        let model = golden("train/hf_init");
        let out = out.path().join("out");
        let args = ["--model", path(&model), "--dataset", id, "--output-dir", path(&out)];
        let ran = hub.ran(TRAIN, &[&args, &SHORT[..], more].concat());
        (ran, fs::read_to_string(out.join("training_args.json")).unwrap_or_default())
    };
    let csv = vec![("train.csv".to_string(), b"text,label\na,0\n".to_vec())];
    let several = [
        reviews("split/train-00000-of-00001.parquet", "split/validation-00000-of-00001.parquet"),
        reviews("unsplit/train-00000-of-00001.parquet", "unsplit/test-00000-of-00001.parquet"),
    ];
    let repos = [
        ("datasets/tiny/csv", csv.clone()),
        ("datasets/tiny/csv@refs/convert/parquet", reviews("default/train/0000.parquet", "default/validation/0000.parquet")),
        ("datasets/tiny/bare", csv),
        ("datasets/tiny/several", several.concat()),
        ("datasets/tiny/new", reviews("train.parquet", "validation.parquet")),
        ("datasets/tiny/test", vec![("test.parquet".to_string(), sample("train.parquet"))]),
    ];
    let hub = Hub::new(&repos);
    let (ran, settings) = train(&hub, "tiny/csv", &[]);
    ran.done();
    assert!(settings.contains(&format!("{COMMIT}/default/validation/0000.parquet")), "{settings}");
    assert_eq!(fs::read_to_string(hub.cache("datasets--tiny--csv/refs/refs/convert/parquet")).unwrap(), COMMIT);
    // Renamed on the hub.
    train(&hub, "tiny/old", &[]).0.done();

    train(&hub, "tiny/bare", &[]).0.failed(2, "`tiny/bare`: has no Parquet files");
    train(&hub, "tiny/test", &[]).0.failed(2, "`tiny/test`: has no training data");
    let split = ["--validation-split-name", "test"];
    train(&hub, "tiny/csv", &split).0.failed(2, "`--validation-split-name`: tiny/csv has no such split");
    train(&hub, "tiny/several", &[]).0.failed(2, "has the configurations split, unsplit; choose one with --dataset-config");
    train(&hub, "tiny/several", &["--dataset-config", "x"]).0.failed(2, "has the configurations split, unsplit");
    let (ran, settings) = train(&hub, "tiny/several", &["--dataset-config", "unsplit"]);
    ran.done();
    assert!(settings.contains("/unsplit/train") && !settings.contains("/split/"), "{settings}");
    // The card names the default.
    let configs = json!({"configs": [{"config_name": "unsplit"}, {"config_name": "split", "default": true}]});
    let (ran, settings) = train(&Hub::with_cards(&repos, configs), "tiny/several", &[]);
    ran.done();
    assert!(settings.contains("/split/train") && !settings.contains("/unsplit/"), "{settings}");
}

#[test]
fn hub_failures_are_reported_in_one_line() {
    let folder = |name: &str| vec![("config.json".to_string(), b"{}".to_vec()), (name.to_string(), b"x".to_vec())];
    let hub = Hub::new(&[
        ("models/tiny/distil", tiny()),
        ("models/tiny/pickle", folder("pytorch_model.bin")),
        ("models/tiny/adapter", vec![("adapter_config.json".to_string(), b"{}".to_vec())]),
        ("models/tiny/escape", folder("../../../model.safetensors")),
        ("models/tiny/empty", Vec::new()),
    ]);
    let fault = |model: &str, part: &str, set: &[(&str, &str)]| {
        let ran = run(hub.command(PREDICT, &["--model", model, "x"]).envs(set.iter().copied()), b"");
        let left = tree(hub.home.path());
        let left = left.iter().find(|name| name.contains("snapshots") || name.contains("refs") || name.ends_with(".safetensors"));
        ran.fault(2, part).or(left.map(|name| format!("{model} left {name}"))).map(|fault| format!("{model}: {fault}"))
    };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let blocked = hub.home.path().join("blocked");
    fs::write(&blocked, "").unwrap();
    let token = ("HF_TOKEN", TOKEN);
    let faults: Vec<String> = [
        fault("tiny/none", "`tiny/none`: there is no such folder here, and the hub (http", &[]),
        fault("tiny/none", "shows no such model; check the name; for a private one set HF_TOKEN", &[]),
        fault("tiny/none", "check the name, and the read access of HF_TOKEN", &[token]),
        fault("tiny/distil@v2", "`tiny/distil@v2`: the hub has no revision v2 of this model", &[]),
        fault("tiny/private", "shows no such model", &[]),
        fault("tiny/private", "the hub refuses the token: a message; check HF_TOKEN", &[token]),
        fault("tiny/gated", "is gated on the hub (401); ask for access at http", &[]),
        fault("tiny/gated", "/tiny/gated, and set HF_TOKEN", &[token]),
        fault("tiny/busy", "the hub limits the rate of requests", &[]),
        fault("tiny/broken", "the hub responds with status 500: a message; try again later", &[]),
        fault("tiny/page", "its response is not JSON", &[]),
        fault("tiny/circle", "too many redirects", &[]),
        fault("tiny/pickle", "`tiny/pickle`: has no model.safetensors", &[]),
        fault("tiny/adapter", "has no config.json", &[]),
        fault("tiny/empty", "has no config.json", &[]),
        fault("tiny/escape", "does not speak the hub's protocol", &[]),
        fault("tiny/distil", "cannot be reached: Connection refused", &[("HF_ENDPOINT", "http://127.0.0.1:9")]),
        fault("tiny/distil", "cannot be reached: ", &[("HF_ENDPOINT", "http://nowhere.invalid")]),
        fault("tiny/distil", "cannot be reached: ", &[("HF_ENDPOINT", "nonsense")]),
        fault("tiny/distil", "no answer in time", &[("HF_ENDPOINT", &silent), ("HF_HUB_DOWNLOAD_TIMEOUT", "1")]),
        fault("tiny/distil", "nor a model in the cache (", &[("HF_HUB_OFFLINE", "1")]),
        fault("tiny/distil", "Not a directory", &[("HF_HUB_CACHE", path(&blocked))]),
        fault("tiny/distil", "`HF_TOKEN`: is not a token", &[("HF_TOKEN", "two\nlines")]),
        // An invalid id is not requested.
        fault("./tiny/distil", "`./tiny/distil`: no such folder", &[("HF_ENDPOINT", "http://127.0.0.1:9")]),
        fault("a/b/c", "`a/b/c`: no such folder", &[("HF_ENDPOINT", "http://127.0.0.1:9")]),
        fault("../x", "`../x`: no such folder", &[("HF_ENDPOINT", "http://127.0.0.1:9")]),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Accepts pushes: `whoami`, the repository, large files in parts of `chunk` bytes or whole, commits.
fn takes_pushes(chunk: Option<usize>, refuses: Arc<AtomicUsize>) -> (Server, Arc<Server>) {
    let store = Arc::new(Server::new(|request| match request.path.as_str() {
        "/unauthorised" => Response::new(403, ""),
        path => Response::new(200, "").with("ETag", format!("\"part{path}\"")),
    }));
    let address = store.address.clone();
    let server = Server::new(move |request| {
        if request.headers.get("authorization").is_none_or(|token| token != &format!("Bearer {TOKEN}") && !token.contains("read"))
        {
            return Response::new(401, json!({"error": "Invalid credentials"}).to_string());
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let host = &request.headers["host"];
        match request.path.trim_start_matches('/') {
            "api/whoami-v2" => {
                let role = if request.headers["authorization"].contains("read") { "read" } else { "write" };
                json!({"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": role}}}).into()
            }
            "api/models/lab/old" => json!({"id": "lab/old", "private": false}).into(),
            "api/models/lab/hidden" => json!({"id": "lab/hidden", "private": true}).into(),
            "api/repos/create" if body["name"] == "old" => Response::new(409, "{}"),
            "api/repos/create" => json!({"url": "x"}).into(),
            path if path.ends_with("/preupload/main") => {
                let mode = |file: &Value| {
                    let mode = if is_large(file["path"].as_str().unwrap()) { "lfs" } else { "regular" };
                    json!({"path": file["path"], "uploadMode": mode, "shouldIgnore": false})
                };
                json!({"files": body["files"].as_array().unwrap().iter().map(mode).collect::<Vec<_>>()}).into()
            }
            path if path.ends_with("/info/lfs/objects/batch") => {
                let object = &body["objects"][0];
                let size = object["size"].as_u64().unwrap() as usize;
                let upload = match chunk {
                    None => json!({"href": format!("{address}/whole"), "header": {"X-Given": "yes"}}),
                    Some(chunk) => {
                        let mut header = json!({"chunk_size": chunk.to_string()});
                        (1..=size.div_ceil(chunk)).for_each(|n| header[format!("{n:05}")] = json!(format!("{address}/{n}")));
                        json!({"href": format!("http://{host}/complete"), "header": header})
                    }
                };
                let verify = json!({"href": format!("http://{host}/verify"), "header": {}});
                json!({"objects": [{"oid": object["oid"], "size": size, "actions": {"upload": upload, "verify": verify}}]}).into()
            }
            "complete" | "verify" => json!({"success": true}).into(),
            path if path.ends_with("/commit/main") && refuses.load(Ordering::SeqCst) > 0 => {
                Response::new(400, json!({"error": "the card is wrong"}).to_string())
            }
            path if path.ends_with("/commit/main") => json!({"success": true, "commitOid": COMMIT}).into(),
            _ => Response::new(404, ""),
        }
    });
    (server, store)
}

#[test]
fn a_run_is_pushed_and_survives_a_failed_push() {
    let refuses = Arc::new(AtomicUsize::new(0));
    let (server, storage) = takes_pushes(None, refuses.clone());
    let whole = Hub { server, storage, home: TempDir::new().unwrap(), cuts: Arc::default() };
    let (model, file) = (golden("train/hf_init"), golden("train/train.csv"));
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let files = ["--model", path(&model), "--train-file", path(&file), "--validation-split", "0.2", "--output-dir", path(&out)];
    let args = [&files[..], &["--max-steps", "1", "--push-to-hub"]].concat();
    let train = |id: &str, token: Option<&str>| {
        run(whole.command(TRAIN, &[&args[..], &[id]].concat()).envs(token.map(|token| ("HF_TOKEN", token))), b"")
    };
    // Before training starts.
    for (id, token, part) in [
        ("name", None, "`push to name`: no token is set; set HF_TOKEN to one that may write"),
        ("me/name", Some("hf_read"), "`push to me/name`: the token may only read"),
        ("me/name", Some("hf_wrong"), "the hub refuses the token: Invalid credentials"),
        ("you/name", Some(TOKEN), "the token belongs to me, who is not a member of you"),
        ("a/b/c", Some(TOKEN), "is not a hub id"),
        ("me/name@v1", Some(TOKEN), "is not a hub id"),
    ] {
        let ran = train(id, token).failed(2, part);
        assert!(!ran.err.contains("training") && !out.exists(), "{}", ran.err);
    }
    assert!(whole.server.seen().iter().all(|request| request.method == "GET"), "nothing was created");

    // A refused commit: the run is complete, and can be pushed later.
    refuses.store(1, Ordering::SeqCst);
    let again = format!("nothing is lost: `warpfit push {} me/name` tries again", path(&out));
    train("name", Some(TOKEN)).failed(2, "the hub responds with status 400: the card is wrong").failed(2, &again);
    assert!(out.join("README.md").exists() && out.join("checkpoint-1").exists());
    refuses.store(0, Ordering::SeqCst);
    fs::write(out.join("thesis.txt"), "ten years").unwrap();
    whole.server.seen();
    whole.storage.seen();
    // As in a run that was started beside its data.
    let settings = fs::read_to_string(out.join("training_args.json")).unwrap();
    fs::write(out.join("training_args.json"), settings.replace(path(&file), "../secret/folder/train.csv")).unwrap();
    let push = |hub: &Hub, id: &str| run(hub.command(PUSH, &[path(&out), id]).env("HF_TOKEN", TOKEN), b"");
    let pushed = push(&whole, "lab/old").done();
    assert_eq!(pushed.out, format!("published   {}/lab/old\n", whole.server.address));

    let weights = fs::read(out.join("model.safetensors")).unwrap();
    let stored = whole.storage.seen();
    assert_eq!((stored.len(), &*stored[0].method, stored[0].body == weights), (1, "PUT", true));
    assert_eq!((stored[0].headers.get("authorization"), &*stored[0].headers["x-given"]), (None, "yes"));
    let asked = whole.server.seen();
    let find = |end: &str| asked.iter().find(|request| request.path.ends_with(end)).unwrap();
    let samples: Value = serde_json::from_slice(&find("/preupload/main").body).unwrap();
    for sample in samples["files"].as_array().unwrap() {
        use base64::Engine;
        let sample = base64::engine::general_purpose::STANDARD.decode(sample["sample"].as_str().unwrap()).unwrap();
        let sample = String::from_utf8_lossy(&sample);
        assert!(!sample.contains(path(&out)) && !sample.contains("secret"), "{sample}");
    }
    assert_eq!(
        serde_json::from_slice::<Value>(&find("/verify").body).unwrap(),
        json!({"oid": hex(&weights), "size": weights.len()})
    );
    let commit = find("/api/models/lab/old/commit/main");
    assert_eq!(commit.headers["content-type"], "application/x-ndjson");
    let lines = String::from_utf8(commit.body.clone()).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["key"], "header");
    let mut published = BTreeSet::new();
    for line in &lines[1..] {
        let name = line["value"]["path"].as_str().unwrap();
        published.insert(name);
        if name == "model.safetensors" {
            let value = json!({"path": name, "algo": "sha256", "oid": hex(&weights), "size": weights.len()});
            assert_eq!(line, &json!({"key": "lfsFile", "value": value}));
        } else {
            use base64::Engine;
            let content = base64::engine::general_purpose::STANDARD.decode(line["value"]["content"].as_str().unwrap()).unwrap();
            assert_eq!(line["key"], "file");
            if ["training_args.json", "trainer_state.json"].contains(&name) {
                // Without the folders of this machine.
                let content = String::from_utf8(content).unwrap();
                let paths = [&model, &out, &out.join("checkpoint-1"), &std::env::current_dir().unwrap()];
                let whole = content.replace("\"train.csv\"", "\"../secret/folder/train.csv\"");
                let whole = paths.iter().fold(whole, |content, path| {
                    content.replace(&format!("{:?}", path.file_name().unwrap()), &format!("{path:?}"))
                });
                let local = fs::read(out.join(name)).unwrap();
                let [whole, local] = [whole.as_bytes(), &local].map(|json| serde_json::from_slice::<Value>(json).unwrap());
                assert_eq!(whole, local);
                assert!(paths.iter().all(|path| !content.contains(self::path(path))) && !content.contains("secret"), "{content}");
            } else {
                assert_eq!(content, fs::read(out.join(name)).unwrap(), "{name}");
            }
        }
    }
    // All files of the run, except its checkpoint, texts of its data and foreign files.
    let left = tree(&out);
    let its_own = |name: &&String| {
        !name.starts_with("checkpoint-1/") && !["thesis.txt", "run.lock", "examples.json"].contains(&name.as_str())
    };
    let left: BTreeSet<&str> = left.iter().filter(its_own).map(String::as_str).collect();
    assert_eq!(published, left);

    // In parts, each in its place.
    let (server, storage) = takes_pushes(Some(weights.len() / 2 - 1), refuses);
    let parts = Hub { server, storage, home: TempDir::new().unwrap(), cuts: Arc::default() };
    push(&parts, "me/name").done();
    let stored = parts.storage.seen();
    assert_eq!(stored.iter().map(|part| &*part.path).collect::<Vec<_>>(), ["/1", "/2", "/3"]);
    assert!(stored.iter().flat_map(|part| &part.body).eq(&weights));
    let complete = parts.server.seen().into_iter().find(|request| request.path == "/complete").unwrap();
    let etag = |n: u64| json!({"partNumber": n, "etag": format!("\"part/{n}\"")});
    let wanted = json!({"oid": hex(&weights), "parts": [etag(1), etag(2), etag(3)]});
    assert_eq!(serde_json::from_slice::<Value>(&complete.body).unwrap(), wanted);

    // A private repository, which an existing public one cannot become.
    let created = || {
        let asked = parts.server.seen();
        asked.iter().find(|request| request.path.ends_with("/create")).map(|r| serde_json::from_slice::<Value>(&r.body).unwrap())
    };
    let hidden = |id: &str| run(parts.command(PUSH, &[path(&out), id, "--private"]).env("HF_TOKEN", TOKEN), b"");
    created();
    hidden("lab/old").failed(2, "`push to lab/old`: the repository exists and is public");
    assert_eq!(created(), None);
    hidden("lab/hidden").done();
    assert_eq!(created().unwrap()["private"], true);
    push(&parts, "me/name").done();
    assert_eq!(created().unwrap()["private"], false);

    // As Hugging Face's scripts spell it. No value of the switch is taken for a repository.
    let pasted = |flags: &str| {
        let mut words: Vec<&str> = args[..args.len() - 1].to_vec();
        words.push("--overwrite_output_dir");
        words.extend(flags.split_whitespace());
        run(parts.command(TRAIN, &words).env("HF_TOKEN", TOKEN), b"")
    };
    pasted("--push_to_hub --hub_model_id me/mine --hub_private_repo True").done();
    assert_eq!(created(), Some(json!({"name": "mine", "organization": "me", "private": true})));
    pasted("--push_to_hub True").done();
    assert_eq!(created(), Some(json!({"name": "out", "organization": "me", "private": false})), "that of the folder");
    pasted("--push_to_hub False --hub_model_id me/mine").done();
    assert_eq!(created(), None);
    pasted("--push_to_hub --hub_model_id True").failed(2, "`push to True`: is not a hub id");
    push(&parts, "true").failed(2, "`push to true`: is not a hub id");
    assert_eq!(created(), None);

    // A folder without a model.
    run(parts.command(PUSH, &[path(dir.path()), "me/x"]).env("HF_TOKEN", TOKEN), b"").failed(2, "config.json`: no such file");
}
