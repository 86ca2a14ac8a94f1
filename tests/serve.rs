//! `serve` over real sockets: the binary with the golden text model, on both backends, and the server in this process around a
//! model that waits, panics or fails on demand.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Parser;
use serde_json::{Value, json};
use tempfile::TempDir;
use warpfit::checkpoint::model_dir::ModelDir;
use warpfit::data::tokenize::{Encoded, Tokenizer};
use warpfit::device::Device;
use warpfit::error::{Error, Kind, Result};
use warpfit::infer::Output;
use warpfit::infer::pooling::Pooling;
use warpfit::infer::predictions::star_weights;
use warpfit::serve::{Served, Serving, listen, serve};

use crate::checkpoint::{save, tensors};
use crate::cli::{PREDICT, path, program, run};
use crate::embed::EMBED;
use crate::fixtures::golden;

const SERVE: &str = "serve";

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let field = |line: &'_ str| line.split_once(": ").is_some_and(|(found, _)| found.eq_ignore_ascii_case(name));
        self.head.lines().find(|line| field(line)).map(|line| line.split_once(": ").unwrap().1)
    }
}

/// A request that waits for its response.
struct Asked(TcpStream);

impl Asked {
    fn raw(address: SocketAddr, bytes: &[u8]) -> Asked {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(bytes).unwrap();
        Asked(stream)
    }

    fn post(address: SocketAddr, path: &str, body: &[u8]) -> Asked {
        Asked::raw(address, &request("POST", path, &[], body))
    }

    fn predict(address: SocketAddr, text: &str) -> Asked {
        Asked::post(address, "/predict", json!({ "inputs": text }).to_string().as_bytes())
    }

    fn reply(mut self) -> Reply {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("incomplete response: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let reply = Reply { status, head: head.to_string(), body: body.to_string() };
        if let Some(length) = reply.header("content-length") {
            assert_eq!(length.parse(), Ok(reply.body.len()), "truncated: {text}");
        }
        reply
    }
}

fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|header| write!(head, "{header}\r\n").unwrap());
    [head.as_bytes(), b"\r\n", body].concat()
}

fn get(address: SocketAddr, path: &str) -> Reply {
    Asked::raw(address, &request("GET", path, &[], b"")).reply()
}

/// The binary, on a port of its own.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(flags: &[&str]) -> Server {
        Server::of(&golden("text/hf"), flags, &[])
    }

    fn of(model: &Path, flags: &[&str], vars: &[(&str, &str)]) -> Server {
        let mut command = program(SERVE);
        command.args(["--model", path(model), "--port", "0"]).args(flags).envs(vars.iter().copied());
        if !flags.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        Server::run(&mut command)
    }

    fn run(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect(&line).parse().unwrap();
        Server { child, address }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// The exit code, and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (code, err)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn bad_requests_get_their_status_and_the_server_survives() {
    let server = Server::start(&[]);
    let address = server.address;
    let texts = |n: usize| json!({ "inputs": vec!["good"; n] }).to_string().into_bytes();
    let sized = |n: usize| {
        let shell = json!({ "inputs": "" }).to_string();
        shell.replace("\"\"", &format!("\"{}\"", " ".repeat(n - shell.len()))).into_bytes()
    };
    let deep = |n: usize| [b"{\"inputs\": ".to_vec(), b"[".repeat(n), b"]".repeat(n), b"}".to_vec()].concat();
    let long = |truncate: bool| json!({ "inputs": "good ".repeat(100_000), "truncate": truncate }).to_string().into_bytes();
    let fine: &[(&str, Vec<u8>)] = &[
        ("one text", br#"{"inputs": "good"}"#.to_vec()),
        ("an empty text", br#"{"inputs": ""}"#.to_vec()),
        ("nulls for defaults", br#"{"inputs": "good", "truncate": null, "else": null, "parameters": null}"#.to_vec()),
        ("32 texts", texts(32)),
        ("2 MB", sized(2_000_000)),
        ("100,000 tokens", long(true)),
    ];
    let bad: &[(&str, Vec<u8>, u16, &str)] = &[
        ("an empty body", vec![], 400, "validation"),
        ("not JSON", b"inputs=good".to_vec(), 400, "validation"),
        ("half a JSON", br#"{"inputs": "go"#.to_vec(), 400, "validation"),
        ("invalid UTF-8", b"{\"inputs\": \"\xff\xfe\"}".to_vec(), 400, "validation"),
        ("half a surrogate pair", br#"{"inputs": "\ud800"}"#.to_vec(), 400, "validation"),
        ("very deep", deep(100_000), 400, "validation"),
        ("no texts", br#"{"inputs": []}"#.to_vec(), 400, "empty"),
        ("null", b"null".to_vec(), 422, "validation"),
        ("no inputs", b"{}".to_vec(), 422, "validation"),
        ("null inputs", br#"{"inputs": null}"#.to_vec(), 422, "validation"),
        ("a number", br#"{"inputs": 5}"#.to_vec(), 422, "validation"),
        ("a null among texts", br#"{"inputs": ["good", null]}"#.to_vec(), 422, "validation"),
        ("a pair", br#"{"inputs": [["good", "bad"]]}"#.to_vec(), 422, "validation"),
        ("an empty list", br#"{"inputs": [["good"], []]}"#.to_vec(), 422, "validation"),
        ("nested twice", br#"{"inputs": [[["good"]]]}"#.to_vec(), 422, "validation"),
        ("a word for a flag", br#"{"inputs": "good", "truncate": "yes"}"#.to_vec(), 422, "validation"),
        ("33 texts", texts(33), 413, "validation"),
        ("an unknown key", br#"{"inputs": "good", "else": [[1]]}"#.to_vec(), 422, "validation"),
        ("2 MB + 1", sized(2_000_001), 413, "validation"),
        ("100,000 tokens, not to be truncated", long(false), 413, "validation"),
    ];
    for (what, body) in fine {
        let reply = Asked::post(address, "/predict", body).reply();
        assert_eq!(reply.status, 200, "{what}: {}", reply.body);
    }
    for (what, body, status, error_type) in bad {
        let reply = Asked::post(address, "/predict", body).reply();
        assert_eq!((reply.status, reply.json()["error_type"].as_str()), (*status, Some(*error_type)), "{what}: {}", reply.body);
        let error = reply.json()["error"].as_str().unwrap().to_string();
        assert!((20..300).contains(&error.len()) && !error.contains('\n'), "{what}: {error}");
    }
    let wrong_method = get(address, "/predict");
    assert_eq!((wrong_method.status, wrong_method.header("allow")), (405, Some("POST")));
    for path in ["/nothing", "/predict/", "/..%2f..%2fetc/passwd"] {
        assert_eq!((get(address, path).status, get(address, path).json()["error_type"].as_str()), (404, Some("validation")));
    }
    assert_eq!(Asked::raw(address, b"\x16\x03\x01 this is not HTTP\r\n\r\n").reply().status, 400);

    let metrics = get(address, "/metrics").body;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    let counts =
        ["count", "success"].map(|name| ["single", "batch"].map(|m| value(&format!("te_request_{name}{{method=\"{m}\"}}"))));
    assert_eq!(counts, [[5 + 1, 1 + 4], [5, 1]]); // refused: 100,000 tokens, no texts, 33 texts, a pair, an empty list
    for name in ["request_duration", "request_tokenization_duration", "request_queue_duration", "request_inference_duration"] {
        assert_eq!(value(&format!("te_{name}_count")), 6, "{name}");
    }
    assert_eq!((value("te_batch_next_size_sum"), value("te_batch_next_size_count")), (5 + 32, 6));
    assert_eq!(value("te_batch_next_tokens_sum"), value("te_request_input_length_sum"));
    assert_eq!(value("te_request_failure{err=\"empty\"}"), 1);
    assert_eq!(value("te_request_failure{err=\"validation\"}"), bad.len() - 1 + 1 + 6);
    assert_eq!((value("te_queue_size"), value("te_request_input_length_count")), (0, 5 + 32));
    assert_eq!(get(address, "/health").status, 200);
}

#[test]
fn the_scores_of_predict() {
    let server = Server::start(&["--max-length", "40"]);
    let texts = texts();
    for raw in [false, true] {
        let flags = ["--top-k", "0", "--raw-scores"];
        let flags = if raw { &flags[..] } else { &flags[..2] };
        let of_predict = |name: &str| written(PREDICT, &golden("text/hf"), flags, name);
        let ask = |inputs: &Value| post(server.address, "/predict", &json!({ "inputs": inputs, "raw_scores": raw }));
        let all = ask(&json!(texts));
        close(&all.json(), &json!(of_predict("scores")));
        assert!(all.json().as_array().unwrap().iter().all(|scores| scores[0]["score"].as_f64() >= scores[1]["score"].as_f64()));
        let sum: u64 = of_predict("tokens").iter().map(|n| n.as_u64().unwrap()).sum();
        let cut = of_predict("truncated").iter().filter(|cut| **cut == true).count();
        assert_eq!(all.header("x-compute-tokens"), Some(&*sum.to_string()));
        assert!(cut > 0 && all.header("x-truncated-texts") == Some(&*cut.to_string()));
        for (text, scores) in texts.iter().zip(of_predict("scores")) {
            close(&ask(text).json(), &scores);
        }
    }
    let [flat, nested, one] = ["flat", "nested", "nested_one"].map(|name| {
        let body = std::fs::read(golden("../cases/tei-batch").join(format!("{name}.json"))).unwrap();
        Asked::post(server.address, "/predict", &body).reply()
    });
    assert_eq!((flat.status, nested.status, one.status), (200, 200, 200));
    close(&nested.json(), &flat.json());
    assert_eq!((one.json().as_array().unwrap().len(), one.json()[0].as_array().unwrap().len()), (1, 2));
}

/// The same labels, and numbers equal up to the rounding of another batch.
fn close(a: &Value, b: &Value) {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a.iter().zip(b).for_each(|(a, b)| close(a, b)),
        (Value::Object(_), Value::Object(_)) => {
            assert_eq!(a["label"], b["label"]);
            close(&a["score"], &b["score"]);
        }
        (Value::Number(a), Value::Number(b)) => {
            let difference = a.as_f64().unwrap() - b.as_f64().unwrap();
            assert!(difference.abs() < 2e-6, "{a} {b}");
        }
        _ => panic!("{a} {b}"),
    }
}

/// A command's output for the golden texts: that key of each line.
fn written(command: &str, model: &Path, flags: &[&str], key: &str) -> Vec<Value> {
    let file = golden("text/texts.jsonl");
    let mut command = program(command);
    command.args(["--model", path(model), "--input", path(&file), "--max-length", "40", "--device", "cpu"]).args(flags);
    let ran = run(&mut command, b"").done();
    ran.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()[key].clone()).collect()
}

fn texts() -> Vec<Value> {
    let lines = std::fs::read_to_string(golden("text/texts.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].clone()).collect()
}

fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    Asked::post(address, path, body.to_string().as_bytes()).reply()
}

#[test]
fn the_vectors_of_embed() {
    let (model, texts) = (golden("text/hf"), texts());
    for pooling in ["cls", "mean"] {
        let server = Server::start(&["--max-length", "40", "--pooling", pooling]);
        let address = server.address;
        let [plain, normalized] = [&[][..], &["--normalize"]]
            .map(|more| written(EMBED, &model, &[&["--pooling", pooling], more].concat(), "embedding"));
        let all = post(address, "/embed", &json!({ "inputs": texts }));
        close(&all.json(), &json!(normalized));
        close(&post(address, "/embed", &json!({ "inputs": texts, "normalize": false })).json(), &json!(plain));
        assert!(all.header("x-compute-tokens").is_some() && all.header("x-truncated-texts").is_some_and(|texts| texts != "0"));
        // One text is a list of one.
        close(&post(address, "/embed", &json!({ "inputs": texts[0] })).json(), &json!([normalized[0]]));
        close(
            &post(address, "/predict", &json!({ "inputs": texts })).json(),
            &json!(written(PREDICT, &model, &["--top-k", "0"], "scores")),
        );
        assert_eq!(get(address, "/info").json()["pooling"], pooling);
        for (body, status, error_type) in [
            (json!({ "inputs": "good ".repeat(100), "truncate": false }), 413, "validation"),
            (json!({ "inputs": vec!["good"; 33] }), 413, "validation"),
            (json!({ "inputs": [] }), 400, "empty"),
            (json!({ "inputs": "good", "normalize": "yes" }), 422, "validation"),
        ] {
            let reply = post(address, "/embed", &body);
            assert_eq!((reply.status, reply.json()["error_type"].as_str()), (status, Some(error_type)), "{}", reply.body);
        }
    }
}

/// The error of a request that is invalid.
fn refusal(address: SocketAddr, path: &str, body: &Value) -> String {
    let reply = post(address, path, body);
    assert_eq!(reply.status, 422, "{body}: {}", reply.body);
    let error = &reply.json()["error"];
    error["message"].as_str().or(error.as_str()).unwrap().to_string()
}

#[test]
fn the_protocols_of_hugging_face_and_sagemaker() {
    let server = Server::start(&["--max-length", "40"]);
    let (address, texts) = (server.address, texts());
    let ask = |body: &Value| post(address, "/", body).json();
    let scores = written(PREDICT, &golden("text/hf"), &["--top-k", "0"], "scores");
    close(&ask(&json!({ "inputs": texts })), &json!(scores));
    for (text, scores) in texts.iter().zip(&scores) {
        close(&ask(&json!({ "inputs": text })), &json!([scores])); // a list of one
    }
    close(&post(address, "/invocations", &json!({ "inputs": texts })).json(), &json!(scores));
    assert_eq!(get(address, "/ping").status, 200);

    let logits = post(address, "/predict", &json!({ "inputs": texts, "raw_scores": true })).json();
    let sigmoid = |logit: &Value| 1.0 / (1.0 + (-logit.as_f64().unwrap()).exp());
    let with = |score: &dyn Fn(&Value) -> f64| -> Value {
        let label = |label: &Value| json!({ "label": label["label"], "score": score(&label["score"]) });
        let lists = logits.as_array().unwrap().iter();
        lists.map(|labels| labels.as_array().unwrap().iter().map(label).collect::<Value>()).collect()
    };
    for (function, wanted) in
        [("softmax", json!(scores)), ("sigmoid", with(&sigmoid)), ("none", with(&|logit: &Value| logit.as_f64().unwrap()))]
    {
        let parameters = json!({ "function_to_apply": function, "top_k": null });
        close(&ask(&json!({ "inputs": texts, "parameters": parameters })), &wanted);
        close(&post(address, "/predict", &json!({ "inputs": texts, "function_to_apply": function })).json(), &wanted);
    }
    let best: Value = scores.iter().map(|labels| json!([labels[0]])).collect();
    let nested: Value = texts.iter().map(|text| json!([text])).collect();
    close(&ask(&json!({ "inputs": nested, "parameters": { "top_k": 1 } })), &best);
    close(&ask(&json!({ "inputs": texts, "top_k": 7 })), &json!(scores));

    let starred = ask(&json!({ "inputs": texts, "parameters": { "stars": true, "function_to_apply": "none" } }));
    for (labels, scores) in starred.as_array().unwrap().iter().zip(&scores) {
        let positive = scores.as_array().unwrap().iter().find(|label| label["label"] == "POSITIVE").unwrap();
        let stars = (10.0 * positive["score"].as_f64().unwrap()).round().max(1.0) as u64;
        assert_eq!((labels[0]["stars"].as_u64(), labels[1].get("stars")), (Some(stars), None), "{labels}");
    }
}

#[test]
fn options_are_heard_or_refused_by_name() {
    let server = Server::start(&["--max-length", "40"]);
    let options = json!({ "use_cache": false, "wait_for_model": true });
    for (path, key, value) in [
        ("/predict", "options", options.clone()),
        ("/", "options", options),
        ("/", "padding", json!("max_length")),
        ("/", "truncation_direction", json!("right")),
        ("/embed", "truncation_direction", json!("Right")),
        ("/embed", "prompt_name", Value::Null),
        ("/predict", "stars", json!(false)),
    ] {
        let [beside, within] =
            [json!({ "inputs": "good", key: value }), json!({ "inputs": "good", "parameters": { key: value } })];
        let plain = post(server.address, path, &json!({ "inputs": "good" })).json();
        assert_eq!(post(server.address, path, &beside).json(), plain, "{path} {beside}");
        assert_eq!(post(server.address, path, &within).json(), plain, "{path} {within}");
    }
    for (path, key, value) in [
        ("/predict", "raw_score", json!(true)),
        ("/predict", "normalize", json!(true)),
        ("/predict", "top_k", json!(0)),
        ("/predict", "top_k", json!(-1)),
        ("/", "function_to_apply", json!("tanh")),
        ("/", "max_length", json!(128)),
        ("/", "truncation_direction", json!("middle")),
        ("/", "truncation", json!("longest_first")),
        ("/", "options", json!({ "use_cash": 1 })),
        ("/embed", "prompt_name", json!("query")),
        ("/embed", "dimensions", json!(8)),
        ("/embed", "raw_scores", json!(true)),
        ("/tokenize", "truncate", json!(true)),
    ] {
        let named = if key == "options" { "use_cash" } else { key };
        for body in [json!({ "inputs": "good", key: value }), json!({ "inputs": "good", "parameters": { key: value } })] {
            let error = refusal(server.address, path, &body);
            assert!(error.contains(named), "{path} {body}: {error}");
        }
    }
    let none = refusal(server.address, "/predict", &json!({ "inputs": "good", "top_k": 0 }));
    assert!(none.contains("`top_k`: send a whole number above 0"), "{none}");
    let both = json!({ "inputs": "good", "top_k": 1, "parameters": { "top_k": 2 } });
    assert!(refusal(server.address, "/", &both).contains("`top_k` is given twice"));
    let both = json!({ "inputs": "good", "raw_scores": true, "function_to_apply": "softmax" });
    assert!(refusal(server.address, "/predict", &both).contains("exclude each other"));
    assert!(refusal(server.address, "/", &json!({ "inputs": "good", "parameters": [] })).contains("`parameters`"));
    let long = json!({ "inputs": "good ".repeat(100), "parameters": { "truncation": false } });
    assert_eq!(post(server.address, "/", &long).status, 413);
}

/// One of which the size is announced is refused before it is sent.
#[test]
fn bodies_that_are_too_large_are_refused() {
    let server = Server::start(&[]);
    let head = "POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: 3000000000\r\n";
    for expect in ["", "Expect: 100-continue\r\n"] {
        let begin = Instant::now();
        let Asked(mut stream) = Asked::raw(server.address, format!("{head}{expect}\r\n").as_bytes());
        let mut answer = String::new();
        while !answer.ends_with('}') {
            let mut bytes = [0; 4096];
            let size = stream.read(&mut bytes).unwrap();
            assert!(size > 0, "{answer}");
            answer += std::str::from_utf8(&bytes[..size]).unwrap();
        }
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("the body has 3000000000 bytes"), "{answer}");
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }
    for (size, status) in [(2_000_000, 200), (2_000_001, 413)] {
        let head = "POST /predict HTTP/1.1\r\nHost: test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        let text = json!({ "inputs": "good" }).to_string();
        let body = text.clone() + &" ".repeat(size - text.len());
        let request = format!("{head}{size:x}\r\n{body}\r\n0\r\n\r\n");
        assert_eq!(Asked::raw(server.address, request.as_bytes()).reply().status, status, "{size} bytes in chunks");
    }
}

#[test]
fn long_texts_are_cut_as_the_model_says_or_as_asked() {
    let model = crate::truncation::with("text/hf", "tokenizer_config.json", "truncation_side", json!("left"));
    let server = Server::of(model.path(), &["--max-length", "6"], &[]);
    let ask = |body: Value| {
        let reply = post(server.address, "/predict", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()
    };
    let text = "good great fine superb bad awful dull poor";
    let [start, end] = ["good great fine superb", "bad awful dull poor"].map(|text| ask(json!({ "inputs": text })));
    assert_ne!(start, end);
    assert_eq!(ask(json!({ "inputs": text })), end);
    assert_eq!(ask(json!({ "inputs": text, "truncation_direction": "Left" })), end);
    assert_eq!(ask(json!({ "inputs": text, "truncation_direction": "right" })), start);
    let ids = tokenizer().encode(&[text], 48, &|_| ()).unwrap().ids;
    assert_eq!(ask(json!({ "inputs": ids })), end);
    assert_eq!(ask(json!({ "inputs": ids, "truncation_direction": "right" })), start);
}

#[test]
fn the_protocol_of_openai() {
    let server = Server::start(&["--max-length", "40"]);
    let (address, texts) = (server.address, texts());
    let ask = |body: &Value| {
        let reply = post(address, "/v1/embeddings", body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
        reply.json()
    };
    let vectors = |reply: &Value| -> Value {
        let data = reply["data"].as_array().unwrap();
        assert!(data.iter().enumerate().all(|(index, item)| item["index"] == index && item["object"] == "embedding"));
        data.iter().map(|item| item["embedding"].clone()).collect()
    };
    let wanted = json!(written(EMBED, &golden("text/hf"), &["--normalize"], "embedding"));
    let all = ask(&json!({ "input": texts, "model": "text-embedding-3-small", "user": "me" }));
    close(&vectors(&all), &wanted);
    let tokens: u64 = written(PREDICT, &golden("text/hf"), &[], "tokens").iter().map(|tokens| tokens.as_u64().unwrap()).sum();
    assert_eq!(all["usage"], json!({ "prompt_tokens": tokens, "total_tokens": tokens }));
    assert_eq!((&all["object"], &all["model"]), (&json!("list"), &json!(path(&golden("text/hf")))));
    close(&vectors(&ask(&json!({ "input": texts[0], "encoding_format": "float" }))), &json!([wanted[0]]));

    let encoded = vectors(&ask(&json!({ "input": texts, "encoding_format": "base64" })));
    let decode = |text: &Value| -> Value {
        let bytes = BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap();
        bytes.chunks_exact(4).map(|bytes| json!(f32::from_le_bytes(bytes.try_into().unwrap()))).collect()
    };
    close(&encoded.as_array().unwrap().iter().map(decode).collect(), &wanted);

    // Token ids, with the special tokens and without, give the vectors of their texts, cut at the same length.
    for specials in [true, false] {
        let tokens = post(address, "/tokenize", &json!({ "inputs": texts, "add_special_tokens": specials })).json();
        let ids = |tokens: &Value| -> Value { tokens.as_array().unwrap().iter().map(|token| token["id"].clone()).collect() };
        let ids: Vec<Value> = tokens.as_array().unwrap().iter().map(ids).collect();
        let reply = ask(&json!({ "input": ids }));
        close(&vectors(&reply), &wanted);
        assert_eq!(reply["usage"], all["usage"]);
        close(&vectors(&ask(&json!({ "input": ids[0] }))), &json!([wanted[0]]));
        close(&post(address, "/embed", &json!({ "inputs": ids })).json(), &wanted);
    }

    for (body, named) in [
        (json!({ "input": "good", "dimensions": 8 }), "dimensions"),
        (json!({ "input": "good", "encoding_format": "int8" }), "encoding_format"),
        (json!({ "input": "good", "parameters": {} }), "parameters"),
        (json!({ "inputs": "good" }), "inputs"),
        (json!({ "model": "m" }), "input"),
        (json!({ "input": [-1] }), "input"),
        (json!({ "input": [123_456_789] }), "123456789"),
    ] {
        assert!(refusal(address, "/v1/embeddings", &body).contains(named), "{body}");
    }
    assert_eq!(post(address, "/v1/embeddings", &json!({ "input": [] })).json()["error"]["type"], "empty");
    assert_eq!(get(address, "/v1/models").json()["error"]["type"], "validation");
    assert_eq!(get(address, "/v1/embeddings").header("allow"), Some("POST"));
}

/// The part of a document that `value` is, or refers to.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let Some(reference) = value["$ref"].as_str() else { return value };
    document.pointer(reference.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{reference}"))
}

#[test]
fn the_openapi_document_is_true_to_the_routes() {
    let server = Server::start(&["--api-key", "sesame"]);
    let ask = |method: &str, path: &str, headers: &[&str], body: &Value| {
        Asked::raw(server.address, &request(method, path, headers, body.to_string().as_bytes())).reply()
    };
    let document = get(server.address, "/openapi.json").json();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let error = get(server.address, "/nothing").json()["error"].as_str().unwrap().to_string();
    let paths: Vec<&str> = error.strip_prefix("no such path; see ").unwrap().split(", ").collect();
    let documented: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(documented, BTreeSet::from_iter(paths.iter().copied()));

    let resolve = |value| resolved(&document, value);
    for path in paths {
        let wrong = ask("DELETE", path, &[], &Value::Null);
        let allowed = wrong.header("allow").unwrap().split(',').filter(|method| *method != "HEAD").map(str::to_lowercase);
        let methods = document["paths"][path].as_object().unwrap();
        assert_eq!(BTreeSet::from_iter(allowed), methods.keys().cloned().collect(), "{path}");
        for (method, operation) in methods {
            let method = method.to_uppercase();
            let keyed = operation.get("security").is_some();
            assert_eq!(ask(&method, path, &[], &Value::Null).status == 401, keyed, "{method} {path}");
            if method == "GET" {
                continue;
            }
            let schema = resolve(&resolve(&operation["requestBody"])["content"]["application/json"]["schema"]);
            let schema = schema["anyOf"].get(0).map_or(schema, resolve);
            let documented: BTreeSet<String> = schema["properties"].as_object().unwrap().keys().cloned().collect();
            let unknown = ask(&method, path, &["Authorization: Bearer sesame"], &json!({ "unknown": 1 })).json()["error"].clone();
            let error = unknown["message"].as_str().or(unknown.as_str()).unwrap();
            let mut known: BTreeSet<String> = error.split('`').skip(3).step_by(2).map(String::from).collect();
            if path != "/v1/embeddings" {
                known.insert("parameters".to_string());
            }
            assert_eq!(documented, known, "{path}: {error}");
        }
    }
}

#[test]
fn every_request_has_its_line_in_the_log() {
    for format in ["off", "text", "json"] {
        let server = Server::start(&["--access-log", format]);
        let before = ["/predict", "/embed"].map(|path| post(server.address, path, &json!({ "inputs": ["good", "bad movie"] })));
        assert!(before.iter().all(|reply| reply.status == 200));
        post(server.address, "/predict", &json!({ "inputs": [] }));
        get(server.address, "/no%0Athing?key=secret");
        server.signal("-TERM");
        let (_, err) = server.end();
        let lines: Vec<&str> = err.lines().skip(1).collect(); // after the name of the device
        let timed = |line: &str| {
            let (line, ms) = line.split_once(" ms=").unwrap_or_else(|| panic!("{line}"));
            assert!((0.0..60_000.0).contains(&ms.parse::<f64>().unwrap()));
            line.to_string()
        };
        match format {
            "off" => assert!(lines.is_empty(), "{err}"),
            "text" => assert_eq!(
                lines.iter().map(|line| timed(line)).collect::<Vec<_>>(),
                [
                    "POST /predict 200 texts=2 tokens=7",
                    "POST /embed 200 texts=2 tokens=7",
                    "POST /predict 400",
                    "GET /no%0Athing 404"
                ]
            ),
            _ => {
                let mut lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
                assert!(lines.iter_mut().all(|line| line.as_object_mut().unwrap().remove("ms").unwrap().is_f64()));
                let wanted = [
                    json!({ "method": "POST", "path": "/predict", "status": 200, "texts": 2, "tokens": 7 }),
                    json!({ "method": "POST", "path": "/embed", "status": 200, "texts": 2, "tokens": 7 }),
                    json!({ "method": "POST", "path": "/predict", "status": 400 }),
                    json!({ "method": "GET", "path": "/no%0Athing", "status": 404 }),
                ];
                assert_eq!(lines, wanted);
            }
        }
    }
}

#[test]
fn flags_are_taken_from_the_environment() {
    let model = golden("text/hf");
    let vars = [("PORT", "0"), ("WARPFIT_MODEL", path(&model)), ("WARPFIT_DEVICE", "cpu"), ("WARPFIT_MAX_LENGTH", "40")];
    let more = [
        ("WARPFIT_API_KEY", "sesame"),
        ("WARPFIT_CORS_ALLOW_ORIGIN", "https://a.example,https://b.example"),
        ("WARPFIT_MAX_BATCH_TOKENS", "4096"),
    ];
    let server = Server::run(program(SERVE).envs(vars).envs(more).args(["--max-batch-tokens", "2048"]));
    assert_eq!(get(server.address, "/info").status, 401);
    let headers = ["Authorization: Bearer sesame", "Origin: https://b.example"];
    let reply = Asked::raw(server.address, &request("GET", "/info", &headers, b"")).reply();
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://b.example"));
    let info = reply.json();
    assert_eq!((&info["max_input_length"], &info["max_batch_tokens"]), (&json!(40), &json!(2048))); // a flag comes first
    run(program(SERVE).envs(vars).env("PORT", "http"), b"")
        .failed(2, "'http' for 'PORT', which is --port <N>: use a whole number from 0 to 65535");
    run(program(SERVE).envs(vars).env("PORT", ""), b"").failed(2, "'' for 'PORT', which is --port <N>");
    let typed = run(program(SERVE).envs(vars).args(["--port", "http"]), b"").failed(2, "'http' for '--port <N>': use a whole");
    assert!(!typed.err.contains("PORT"), "{}", typed.err);
    let help = run(program(SERVE).envs(more).arg("--help"), b"").done().out;
    assert!(help.contains("[env: PORT=]") && !help.contains("sesame"), "{help}");
}

#[test]
fn scores_and_vectors_for_many_clients_at_once() {
    let (model, texts) = (golden("text/hf"), texts());
    let server = Server::start(&["--max-length", "40", "--max-batch-tokens", "300"]);
    let vectors = written(EMBED, &model, &["--normalize"], "embedding");
    let scores = written(PREDICT, &model, &["--top-k", "0"], "scores");
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (texts, vectors, scores, address) = (&texts, &vectors, &scores, server.address);
            scope.spawn(move || {
                for turn in 0..40 {
                    let (from, count) = ((7 * client + turn) % texts.len(), 1 + turn % 5);
                    let range = from..(from + count).min(texts.len());
                    let (path, wanted) = if (client + turn) % 2 == 0 { ("/embed", vectors) } else { ("/predict", scores) };
                    let reply = post(address, path, &json!({ "inputs": texts[range.clone()] }));
                    assert_eq!(reply.status, 200, "{}", reply.body);
                    close(&reply.json(), &json!(wanted[range]));
                }
            });
        }
    });
}

#[test]
fn a_model_without_a_head_embeds_and_does_not_classify() {
    let (model, folder) = (golden("text/hf"), TempDir::new().unwrap());
    for file in std::fs::read_dir(&model).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let mut base = tensors(&model);
    base.retain(|tensor| !tensor.0.contains("classifier"));
    save(&folder.path().join("model.safetensors"), &base);
    let server = Server::of(folder.path(), &["--pooling", "mean", "--max-length", "40"], &[]);
    let vectors = written(EMBED, folder.path(), &["--pooling", "mean", "--normalize"], "embedding");
    close(&post(server.address, "/embed", &json!({ "inputs": texts() })).json(), &json!(vectors));
    for path in ["/", "/invocations"] {
        let body = json!({ "inputs": texts(), "parameters": { "truncate": true } });
        close(&post(server.address, path, &body).json(), &json!(vectors));
        assert!(refusal(server.address, path, &json!({ "inputs": "good", "top_k": 1 })).contains("unknown field `top_k`"));
    }
    let refused = post(server.address, "/predict", &json!({ "inputs": "good" }));
    assert_eq!((refused.status, refused.json()["error_type"].as_str()), (424, Some("backend")));
    assert!(refused.body.contains("no trained head"), "{}", refused.body);
    assert_eq!(get(server.address, "/info").json()["model_type"], json!({ "embedding": { "pooling": "mean" } }));
    assert_eq!(get(server.address, "/health").status, 200);
    server.signal("-TERM");
    let (code, err) = server.end();
    assert_eq!(code, Some(0));
    assert!(err.contains("pre_classifier.weight") && err.contains(": it serves /embed, not /predict"), "{err}");
}

#[test]
fn responses_of_cuda_match_the_cpu() {
    let (model, texts) = (golden("text/hf"), texts());
    let libraries = vgpu::directory();
    let vars = [("LD_LIBRARY_PATH", path(&libraries))];
    for pooling in ["cls", "mean"] {
        let flags =
            ["--device", "cuda", "--precision", "fp32", "--max-length", "40", "--max-batch-tokens", "2048", "--pooling", pooling];
        let server = Server::of(&model, &flags, &vars);
        let vectors = written(EMBED, &model, &["--normalize", "--pooling", pooling], "embedding");
        let scores = written(PREDICT, &model, &["--top-k", "0"], "scores");
        close(&post(server.address, "/embed", &json!({ "inputs": texts })).json(), &json!(vectors));
        close(&post(server.address, "/predict", &json!({ "inputs": texts })).json(), &json!(scores));
        server.signal("-TERM");
        assert_eq!(server.end(), (Some(0), "device: Virtual GPU 0, precision fp32\n".to_string()));
    }
    // A GPU that fails fails its request; nothing more is promised.
    let server = Server::of(&model, &["--device", "cuda"], &[vars[0], ("VGPU_FAIL_LAUNCH", "5")]);
    let reply = post(server.address, "/predict", &json!({ "inputs": "good" }));
    assert_eq!((reply.status, reply.json()["error_type"].as_str()), (503, Some("unhealthy")), "{}", reply.body);
    assert_eq!(get(server.address, "/health").status, 503);
    server.signal("-TERM");
    let (code, err) = server.end();
    assert!(code == Some(0) && err.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{code:?} {err}");
}

#[test]
fn token_offsets_match_the_text() {
    let server = Server::start(&[]);
    let ask = |body: Value| Asked::post(server.address, "/tokenize", body.to_string().as_bytes()).reply().json();
    let text = "The “good” movie, unwatchable";
    let lists = ask(json!({ "inputs": text }));
    assert_eq!(lists.as_array().unwrap().len(), 1);
    let tokens = lists[0].as_array().unwrap();
    assert_eq!(tokens[0], json!({ "id": 2, "text": "[CLS]", "special": true, "start": null, "stop": null }));
    assert_eq!(tokens.last().unwrap()["text"], "[SEP]");
    let inner = &tokens[1..tokens.len() - 1];
    for token in inner {
        let place = token["start"].as_u64().unwrap() as usize..token["stop"].as_u64().unwrap() as usize;
        assert_eq!(token["text"], text[place]);
    }
    assert!(inner.iter().any(|token| token["text"] == "good") && inner.len() > 6, "{inner:?}");
    assert_eq!(ask(json!({ "inputs": [text, ""], "add_special_tokens": false })), json!([inner, []]));
}

#[test]
fn info_and_the_page() {
    let server = Server::start(&["--max-batch-tokens", "4096"]);
    let info = get(server.address, "/info").json();
    let by_default = get(Server::start(&[]).address, "/info").json();
    assert_eq!(by_default["max_batch_tokens"], Device::Cpu.batch_tokens());
    assert_eq!(info["model_type"]["classifier"]["id2label"], json!({ "0": "NEGATIVE", "1": "POSITIVE" }));
    assert_eq!((&info["max_input_length"], &info["max_batch_tokens"]), (&json!(48), &json!(4096)));
    assert_eq!(info["stars"], json!({"NEGATIVE": 0.0, "POSITIVE": 1.0}));
    // The model has neither a card nor texts of its own.
    assert_eq!(info["examples"], json!([]));
    let page = get(server.address, "/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.matches("'sha256-").count() == 2 && !policy.contains("unsafe"));
    // Nothing is loaded from elsewhere: the only address is the name of a namespace.
    assert_eq!((page.body.matches("http").count(), page.body.matches("http://www.w3.org/2000/svg").count()), (1, 1));
}

#[test]
fn keys_and_origins() {
    let flags = ["--api-key", "sesame", "--cors-allow-origin", "https://a.example", "--cors-allow-origin", "https://b.example"];
    let server = Server::start(&flags);
    let ask = |method: &str, path: &str, headers: &[&str]| {
        let body = if method == "POST" { &br#"{"inputs": "good"}"#[..] } else { b"" };
        Asked::raw(server.address, &request(method, path, headers, body)).reply()
    };
    for headers in
        [&[][..], &["Authorization: Bearer sesam"], &["Authorization: Bearer sesame2"], &["Authorization: Basic sesame"]]
    {
        for (method, path) in [("POST", "/predict"), ("POST", "/embed"), ("POST", "/tokenize"), ("GET", "/info")] {
            let reply = ask(method, path, headers);
            assert_eq!((reply.status, reply.json()["error_type"].as_str()), (401, Some("unauthorized")), "{headers:?} {path}");
        }
        let reply = ask("POST", "/v1/embeddings", headers);
        assert_eq!((reply.status, reply.json()["error"]["type"].as_str()), (401, Some("unauthorized")), "{headers:?}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(ask("POST", "/predict", &["Authorization: Bearer sesame"]).status, 200);
    for path in ["/", "/health", "/metrics"] {
        assert_eq!(ask("GET", path, &[]).status, 200, "{path}");
    }
    let asked =
        ["Origin: https://b.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"];
    let preflight = ask("OPTIONS", "/predict", &asked);
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, Some("https://b.example")));
    let stranger = ask("POST", "/predict", &["Authorization: Bearer sesame", "Origin: https://c.example"]);
    assert_eq!((stranger.status, stranger.header("access-control-allow-origin")), (200, None));
}

#[test]
fn a_server_that_cannot_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let model = golden("text/hf");
    let start = |flags: &[&str]| run(program(SERVE).args(["--model", path(&model), "--device", "cpu"]).args(flags), b"");
    start(&["--port", &port]).failed(2, &format!("`--port {port}`: is in use"));
    start(&["--port", "0", "--hostname", "192.0.2.1"]).failed(2, "`--hostname 192.0.2.1`: ");
    start(&["--port", "0", "--max-length", "2"]).failed(2, "2 leaves no room for text");
    start(&["--port", "70000"]).failed(2, "70000");
    start(&["--port", "0", "--max-batch-tokens", "0"]).failed(2, "--max-batch-tokens");
    start(&["--port", "0", "--cors-allow-origin", "a\nb"]).failed(2, "--cors-allow-origin");
}

#[test]
fn requests_before_the_signal_are_answered() {
    for signal in ["-TERM", "-INT"] {
        let server = Server::start(&[]);
        let body = json!({ "inputs": vec!["good"; 32] }).to_string();
        let asked = request("POST", "/predict", &[], body.as_bytes());
        let (first, rest) = asked.split_at(asked.len() - 20);
        let mut asked: Vec<Asked> = (0..20).map(|_| Asked::raw(server.address, first)).collect();
        let idle = Asked::raw(server.address, b"");
        assert_eq!(get(server.address, "/health").status, 200); // earlier connections were accepted too
        server.signal(signal);
        let begin = Instant::now();
        while TcpStream::connect(server.address).is_ok() {
            assert!(begin.elapsed() < Duration::from_secs(20), "it still listens");
        }
        for Asked(stream) in &mut asked {
            stream.write_all(rest).unwrap();
        }
        for asked in asked {
            let reply = asked.reply();
            assert_eq!((reply.status, reply.json().as_array().unwrap().len()), (200, 32));
        }
        let (code, err) = server.end();
        assert!(code == Some(0) && err.starts_with("device: CPU, ") && err.lines().count() == 1, "{code:?} {err}");
        drop(idle);
    }
}

#[test]
fn slow_clients_delay_no_others_and_are_disconnected() {
    let server = Server::start(&["--client-timeout", "2", "--max-concurrent-requests", "4"]);
    let asked = request("POST", "/predict", &[], br#"{"inputs": "good"}"#);
    let begin = Instant::now();
    let slow = |bytes: &[u8]| (0..40).map(|_| Asked::raw(server.address, bytes)).collect::<Vec<Asked>>();
    let (heads, bodies) = (slow(&asked[..30]), slow(&asked[..asked.len() - 5]));
    assert_eq!(Asked::predict(server.address, "good").reply().status, 200);
    assert!(begin.elapsed() < Duration::from_secs(2), "the machine is too slow for this test");
    for body in bodies {
        assert_eq!(body.reply().status, 408);
    }
    for Asked(mut head) in heads {
        head.read_to_end(&mut Vec::new()).unwrap(); // closed
    }
    assert!((2..30).contains(&begin.elapsed().as_secs()));
    assert_eq!(Asked::predict(server.address, "good").reply().status, 200);
}

/// The server in this process, around a controllable model.
struct Fake {
    address: SocketAddr,
    /// The texts of each batch, by their last word's id, when the model begins it.
    batches: Receiver<Vec<i32>>,
    /// While it is held, the model finishes no batch.
    held: Option<Sender<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    options: Serving,
}

/// Words whose ids make the model fail.
const PANICS: &str = "bad";
const BREAKS: &str = "dull";
const NOT_FINITE: &str = "weak";

fn tokenizer() -> Tokenizer {
    Tokenizer::read(&golden("text/hf")).unwrap()
}

/// The id of a word.
fn id(word: &str) -> i32 {
    let encoded = tokenizer().encode(&[word], 48, &|_| ()).unwrap();
    assert_eq!(encoded.ids.len(), 3, "{word} is one token");
    encoded.ids[1]
}

impl Fake {
    fn start(flags: &[&str]) -> Fake {
        let listener = listen("127.0.0.1", 0).unwrap();
        let address = listener.local_addr().unwrap();
        let options = Flags::parse_from([&["serve"], flags].concat()).options;
        let source = Arc::new(ModelDir::read(&golden("text/hf")).unwrap());
        let (name, pooling) = ("fake".to_string(), Pooling::Cls);
        let stars = star_weights(&source.config.labels, None).unwrap();
        let batch_tokens = options.max_batch_tokens.unwrap_or(Device::Cpu.batch_tokens());
        let (examples, classifies) = (Vec::new(), true);
        let served =
            Served { name, source, max_length: 48, batch_tokens, dtype: "float32", pooling, classifies, stars, examples };
        let ((begun, batches), (held, gate)) = (channel(), channel::<()>());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let [panics, breaks, not_finite] = [PANICS, BREAKS, NOT_FINITE].map(id);
        let thread = std::thread::spawn(move || {
            let mut compute = |rows: &Encoded, wanted: &[Output]| {
                let words: Vec<i32> = (0..rows.rows()).map(|row| rows.row(row).0).map(|ids| ids[ids.len() - 2]).collect();
                let _ = begun.send(words.clone());
                let _ = gate.recv(); // ends when the other end is dropped
                assert!(!words.contains(&panics), "told to");
                if words.contains(&breaks) {
                    return Err(Error::new(Kind::Device, "cuda", "an illegal address", "start again"));
                }
                let number = |word: i32| if word == not_finite { f32::NAN } else { word as f32 };
                let answer = |(&word, &wanted): (&i32, &Output)| match wanted {
                    Output::Logits => vec![0.0, number(word)],
                    Output::Vector { normalize } => vec![number(word), f32::from(normalize), 0.5],
                };
                Ok(words.iter().zip(wanted).map(answer).collect())
            };
            serve(listener, served, &options, async { drop(stopped.await) }, &mut compute)
        });
        Fake { address, batches, held: Some(held), stop: Some(stop), thread: Some(thread) }
    }

    fn begun(&self) -> Vec<i32> {
        self.batches.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    fn until_queued(&self, requests: usize) {
        let begin = Instant::now();
        let line = format!("te_queue_size {requests}\n");
        while !get(self.address, "/metrics").body.contains(&line) {
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
    }

    /// Requests the logits of each of `words`, as in [`Fake::all_at_once`].
    fn together(self, words: &[&str]) -> (Fake, Vec<Reply>) {
        let bodies: Vec<_> = words.iter().map(|word| ("/predict", json!({ "inputs": [word], "raw_scores": true }))).collect();
        self.all_at_once(&bodies)
    }

    /// Sends requests while the model is busy with another text, so that they wait; then releases the model.
    fn all_at_once(mut self, requests: &[(&str, Value)]) -> (Fake, Vec<Reply>) {
        let first = Asked::predict(self.address, "movie");
        self.begun();
        let asked: Vec<Asked> = (0..)
            .zip(requests)
            .map(|(n, (path, body))| {
                let asked = Asked::post(self.address, path, body.to_string().as_bytes());
                self.until_queued(n + 1);
                asked
            })
            .collect();
        self.let_go();
        assert_eq!(first.reply().status, 200);
        (self, asked.into_iter().map(Asked::reply).collect())
    }

    /// From now on the model does not wait.
    fn let_go(&mut self) {
        self.held.take();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.let_go();
        let _ = self.stop.take().unwrap().send(());
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || matches!(ended, Ok(Ok(()))));
    }
}

#[test]
fn waiting_requests_form_one_batch_in_order() {
    let words = ["good", "movie", "great", "good", "boring"];
    let (fake, replies) = Fake::start(&[]).together(&words);
    assert_eq!(fake.begun(), words.map(id));
    for (reply, word) in replies.iter().zip(words) {
        let score = |label, score: i32| json!({ "label": label, "score": score as f32 });
        assert_eq!(reply.json(), json!([[score("POSITIVE", id(word)), score("NEGATIVE", 0)]]), "{word}");
    }
    // Each request gets its own result, of the requested kind and in the order of its texts.
    let (fake, replies) = Fake::start(&[]).all_at_once(&[
        ("/embed", json!({ "inputs": ["good", "great"], "normalize": false })),
        ("/predict", json!({ "inputs": ["boring", "good"], "raw_scores": true })),
        ("/embed", json!({ "inputs": "movie" })),
    ]);
    assert_eq!(fake.begun(), ["good", "great", "boring", "good", "movie"].map(id));
    let vector = |word, normalized: f32| json!([id(word) as f32, normalized, 0.5]);
    assert_eq!(replies[0].json(), json!([vector("good", 0.0), vector("great", 0.0)]));
    let scores: Vec<Value> = replies[1].json().as_array().unwrap().iter().map(|scores| scores[0]["score"].clone()).collect();
    assert_eq!(scores, ["boring", "good"].map(|word| json!(id(word) as f32)));
    assert_eq!(replies[2].json(), json!([vector("movie", 1.0)]));
    // Three tokens per text; one text always fits.
    let (fake, _) = Fake::start(&["--max-batch-tokens", "7"]).together(&words);
    let sizes: Vec<usize> = (0..3).map(|_| fake.begun().len()).collect();
    assert_eq!(sizes, [2, 2, 1]);
    let (fake, _) = Fake::start(&["--max-batch-tokens", "1"]).together(&words);
    assert!((0..5).all(|_| fake.begun().len() == 1));
}

#[test]
fn a_full_queue_refuses_at_once_and_recovers() {
    let mut fake = Fake::start(&["--max-concurrent-requests", "3"]);
    let first = Asked::predict(fake.address, "movie");
    fake.begun();
    let waiting = [(); 2].map(|()| Asked::predict(fake.address, "good"));
    fake.until_queued(2);
    for _ in 0..30 {
        let reply = Asked::predict(fake.address, "great").reply();
        assert_eq!((reply.status, reply.json()["error_type"].as_str()), (429, Some("overloaded")));
    }
    fake.let_go();
    for asked in [first].into_iter().chain(waiting) {
        assert_eq!(asked.reply().status, 200);
    }
    for _ in 0..30 {
        assert_eq!(Asked::predict(fake.address, "great").reply().status, 200);
    }
}

#[test]
fn disconnected_clients_are_not_computed() {
    let mut fake = Fake::start(&[]);
    let first = Asked::predict(fake.address, "movie");
    fake.begun();
    let gone = Asked::predict(fake.address, "boring");
    fake.until_queued(1);
    let stays = Asked::predict(fake.address, "good");
    fake.until_queued(2);
    gone.0.shutdown(Shutdown::Both).unwrap();
    std::thread::sleep(Duration::from_secs(1)); // the server needs time to notice
    fake.let_go();
    assert_eq!((first.reply().status, stays.reply().status), (200, 200));
    assert_eq!(fake.begun(), [id("good")]);
}

#[test]
fn a_text_that_breaks_the_model_fails_alone() {
    let (fake, replies) = Fake::start(&[]).together(&["good", PANICS, "great", BREAKS, NOT_FINITE]);
    let status: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(status, [200, 424, 200, 503, 424]);
    let types: Vec<Value> = replies.iter().map(|reply| reply.json()["error_type"].clone()).collect();
    assert_eq!(types[1..], [json!("backend"), json!(null), json!("unhealthy"), json!("backend")]);
    assert!(replies[1].body.contains("told to") && !replies[1].body.contains("panicked"), "{}", replies[1].body);
    // After a failure the model is tried again before it is reported as healthy.
    assert_eq!(Asked::predict(fake.address, BREAKS).reply().status, 503);
    assert_eq!(get(fake.address, "/health").status, 200);
    assert_eq!(Asked::predict(fake.address, "good").reply().status, 200);
}
