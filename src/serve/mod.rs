//! A model behind HTTP: the protocols of text-embeddings-inference, Hugging Face's Inference API, OpenAI's embeddings and
//! SageMaker, and a page to try it. The model stays on the thread that calls [`serve`]; connections and tokenization have
//! threads of their own.

mod access_log;
mod api;
mod metrics;
mod queue;

use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderValue;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::time::sleep;

use crate::checkpoint::model_dir::ModelDir;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result, no_threads};
use crate::flags::count;
use crate::infer::pooling::Pooling;
use access_log::AccessLog;
use api::Service;
use metrics::Metrics;
use queue::Compute;

#[derive(Args, Clone, Debug)]
pub struct Serving {
    /// Concurrent requests, at most; further ones get 429
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 512)]
    pub max_concurrent_requests: usize,
    /// Tokens per batch of waiting requests, at most [default: 16384 on a GPU, 2048 on a CPU]
    #[arg(long, value_name = "N", value_parser = count)]
    pub max_batch_tokens: Option<usize>,
    /// Texts per request, at most
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 32)]
    pub max_client_batch_size: usize,
    /// Bytes of a request's body, at most
    #[arg(long, value_name = "BYTES", value_parser = count, default_value_t = 2_000_000)]
    pub payload_limit: usize,
    /// Seconds that the head of a request, and then its body, may take to arrive
    #[arg(long, value_name = "SECONDS", value_parser = count, default_value_t = 30)]
    pub client_timeout: usize,
    /// Require this key, as "Authorization: Bearer KEY", for all that uses the model; the page, /openapi.json, /health, /ping
    /// and /metrics stay open [default: none]
    #[arg(long, value_name = "KEY", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub api_key: Option<String>,
    /// Allow requests from pages of this origin, such as `https://example.org`; may be repeated; * for all [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_allow_origin: Vec<HeaderValue>,
    /// Write a line per request to standard error: method, path, status, texts, tokens and milliseconds
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "off")]
    pub access_log: AccessLog,
}

/// The model that is served.
pub struct Served {
    pub name: String,
    /// Has a tokenizer.
    pub source: Arc<ModelDir>,
    /// Texts are truncated to this many tokens.
    pub max_length: usize,
    /// Tokens per batch, at most.
    pub batch_tokens: usize,
    /// The precision of products, for /info: float32, bfloat16 or float16.
    pub dtype: &'static str,
    /// How /embed reduces the states of a text to a vector.
    pub pooling: Pooling,
    /// Whether the model has a trained head for /predict.
    pub classifies: bool,
    /// How good each class is, from 0 to 1, for the page's stars; `None` if that is not known.
    pub stars: Option<Vec<f64>>,
    /// Texts that the page offers.
    pub examples: Vec<String>,
}

impl Served {
    fn labels(&self) -> &[String] {
        &self.source.config.labels
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.source.tokenizer.as_ref().expect("a served model has one")
    }
}

/// Binds a port; 0 means any free one.
pub fn listen(hostname: &str, port: u16) -> Result<TcpListener> {
    use std::io::ErrorKind::*;
    TcpListener::bind((hostname, port)).and_then(|listener| listener.set_nonblocking(true).map(|()| listener)).map_err(
        |e| match e.kind() {
            AddrInUse => {
                Error::user(format!("--port {port}"), "is in use", "stop the program that uses it, or choose another port")
            }
            PermissionDenied => Error::user(format!("--port {port}"), "is a privileged port", "choose one above 1023"),
            _ => {
                Error::user(format!("--hostname {hostname}"), e.to_string(), "use an address of this machine, such as 127.0.0.1")
            }
        },
    )
}

/// Serves until `stop` is ready; then it accepts no more connections, and completes all accepted requests. `compute` computes
/// the requested output of each row.
///
/// # Errors
/// Threads cannot be created.
pub fn serve(
    listener: TcpListener,
    served: Served,
    options: &Serving,
    stop: impl Future<Output = ()> + Send + 'static,
    compute: Compute,
) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // The blocking threads tokenize.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(cores).build().map_err(no_threads)?;
    let metrics = Arc::new(Metrics::new());
    let (queue, batches) = queue::queue(options.max_concurrent_requests, served.batch_tokens, &metrics);
    let patience = Duration::from_secs(options.client_timeout as u64);
    let app = api::router(Arc::new(Service { served, options: options.clone(), patience, cores, queue, metrics }));
    let connections = std::thread::Builder::new()
        .name("http".to_string())
        .spawn(move || runtime.block_on(accept(listener, app, patience, stop)))
        .map_err(no_threads)?;
    batches.run(compute); // ends after all connections
    connections.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(no_threads)
}

async fn accept(listener: TcpListener, app: Router, patience: Duration, stop: impl Future<Output = ()>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience);
    let open = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            // File descriptors have probably run out; some are freed as connections end.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
        // Errors of a connection concern its client alone.
        tokio::spawn(open.watch(connection));
    }
    drop(listener);
    open.shutdown().await;
    Ok(())
}
