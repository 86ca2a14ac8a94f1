//! HTTP to the hub. Redirects are followed here and not by the HTTP library, so that the token goes to the endpoint alone and
//! never to the host that stores the files.

use std::time::Duration;

use serde_json::Value;
use ureq::http::{Request, Response, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, AsSendBody, Body, SendBody};

use crate::console::check_interrupt;
use crate::error::{Error, Result};

/// How many times a request is tried when the connection breaks or the server fails.
pub const TRIES: u32 = 5;

pub const JSON: &str = "application/json";
/// One JSON object per line.
pub const NDJSON: &str = "application/x-ndjson";
/// The media type of Git's large file storage.
pub const LFS_JSON: &str = "application/vnd.git-lfs+json";

pub struct Client {
    agent: Agent,
    /// `HF_ENDPOINT` without a trailing slash.
    pub endpoint: String,
    pub token: Option<String>,
    patience: Duration,
}

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// No response, or an incomplete one.
    Unreachable(String),
    /// The server refuses: its status, the hub's error code, and its message.
    Refused { status: u16, code: String, message: String },
    /// A local fault, such as a full disk.
    Here(Error),
}

impl Failure {
    /// Whether it may be transient.
    pub fn is_passing(&self) -> bool {
        match self {
            Failure::Unreachable(_) => true,
            Failure::Refused { status, .. } => *status >= 500,
            Failure::Here(_) => false,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Here(error)
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Failure {
        Failure::Unreachable(match error {
            ureq::Error::Io(error) => error.to_string(),
            ureq::Error::Timeout(_) => "no answer in time".to_string(),
            error => error.to_string(),
        })
    }
}

impl Client {
    /// Configured by the environment: `HF_ENDPOINT`, `HF_HUB_DOWNLOAD_TIMEOUT`, the token, the usual proxy variables, and
    /// `SSL_CERT_FILE` with certificates other than those built in.
    pub fn new(token: Option<String>) -> Result<Client> {
        let seconds = super::variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok()).unwrap_or(10);
        let patience = Duration::from_secs(seconds);
        let roots = match super::variable("SSL_CERT_FILE") {
            None => RootCerts::WebPki,
            Some(path) => {
                let pem = std::fs::read(&path).map_err(|e| Error::io(path.as_ref(), e))?;
                RootCerts::from(parse_pem(&pem).filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                }))
            }
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(patience))
            .user_agent(concat!("warpfit/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build());
        let endpoint = super::variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".to_string());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        Ok(Client { agent: config.build().into(), endpoint, token, patience })
    }

    /// Requests `url` and follows redirects.
    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let mut url = url.to_string();
        for _ in 0..10 {
            let response = self.send("GET", &url, headers, SendBody::none(), self.patience)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let target = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            url = match url.find("://").map(|scheme| scheme + 3) {
                Some(host) if target.starts_with('/') => {
                    let end = url[host..].find('/').map_or(url.len(), |path| host + path);
                    format!("{}{target}", &url[..end])
                }
                _ => target.to_string(),
            };
        }
        Err(Failure::Unreachable("too many redirects".to_string()))
    }

    /// Sends `content` of type `kind`.
    pub fn post(&self, url: &str, kind: &str, content: &str) -> Result<Response<Body>, Failure> {
        // Where there is more than one format, the response comes in the same one.
        let headers = [("Content-Type", kind), ("Accept", if kind == NDJSON { JSON } else { kind })];
        // A commit of many files takes the hub some time.
        let patience = self.patience.max(Duration::from_secs(120));
        retry(|| self.send("POST", url, &headers, content, patience))
    }

    /// Uploads `size` bytes from a fresh `body` on each try.
    pub fn put<R: std::io::Read>(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        size: u64,
        body: impl Fn() -> Result<R>,
    ) -> Result<Response<Body>, Failure> {
        let size = size.to_string();
        let headers = [headers, &[("Content-Length", &size)]].concat();
        let patience = self.patience.max(Duration::from_secs(120));
        retry(|| {
            let mut body = body()?;
            self.send("PUT", url, &headers, SendBody::from_reader(&mut body), patience)
        })
    }

    /// One request and its response. `patience` is the longest wait for the next bytes.
    fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
        patience: Duration,
    ) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let is_ours = url.strip_prefix(&self.endpoint).is_some_and(|rest| rest.starts_with('/'));
        if let Some(token) = self.token.as_ref().filter(|_| is_ours) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(body).map_err(ureq::Error::from)?;
        let request = self.agent.configure_request(request).timeout_per_read(Some(patience)).timeout_per_write(Some(patience));
        let mut response = self.agent.run(request.build())?;
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(String::from);
            let (code, message) = (text("X-Error-Code").unwrap_or_default(), text("X-Error-Message"));
            let said = || {
                let body = response.body_mut().with_config().limit(65536).read_to_string().ok()?;
                Some(serde_json::from_str::<Value>(&body).ok()?["error"].as_str()?.chars().take(300).collect())
            };
            let message = message.or_else(said).unwrap_or(status.canonical_reason().unwrap_or_default().to_string());
            return Err(Failure::Refused { status: status.as_u16(), code, message });
        }
        Ok(response)
    }
}

/// The JSON body of a response.
pub fn json(mut response: Response<Body>) -> Result<Value, Failure> {
    // Enough for the listing of a very large repository.
    let text = response.body_mut().with_config().limit(256 << 20).read_to_string()?;
    serde_json::from_str(&text).map_err(|e| Failure::Unreachable(format!("its response is not JSON: {e}")))
}

/// Retries transient failures, with a longer wait each time, until interrupted.
fn retry<T>(mut request: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        check_interrupt()?;
        match request() {
            Err(failure) if failure.is_passing() && tries < TRIES => pause(tries),
            result => return result,
        }
    }
}

/// The wait before the next try.
pub fn pause(tries: u32) {
    std::thread::sleep(Duration::from_millis(250) * 2u32.pow(tries));
}
