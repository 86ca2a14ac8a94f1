//! The routes: requests, responses and errors.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::extract::{FromRequest, Request, State};
use axum::http::header::{
    AUTHORIZATION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::ValueEnum;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::metrics::Metrics;
use super::queue::{Place, Queue};
use super::{Served, Serving};
use crate::error::{Error, Kind};
use crate::infer::Output;
use crate::infer::predictions::ranked;

/// The state shared by all requests.
pub struct Service {
    pub served: Served,
    pub options: Serving,
    /// How long the head of a request, and then its body, may take to arrive.
    pub patience: Duration,
    pub cores: usize,
    pub queue: Queue,
    pub metrics: Arc<Metrics>,
}

type Shared = State<Arc<Service>>;
type Answered<T = Response> = Result<T, Refusal>;

/// A request that is refused or has failed, and why.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    error_type: &'static str,
    error: String,
}

fn refusal(status: StatusCode, error_type: &'static str, error: impl Into<String>) -> Refusal {
    Refusal { status, error_type, error: error.into() }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal { status, error_type, error } = self;
        let mut response = (status, Json(json!({ "error": error, "error_type": error_type }))).into_response();
        response.extensions_mut().insert(Failure(error_type));
        response
    }
}

/// The error type of a response, for the metrics.
#[derive(Clone)]
struct Failure(&'static str);

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error.kind {
            Kind::Device => refusal(StatusCode::SERVICE_UNAVAILABLE, "unhealthy", error.to_string()),
            _ => refusal(StatusCode::FAILED_DEPENDENCY, "backend", error.to_string()),
        }
    }
}

pub fn router(service: Arc<Service>) -> Router {
    let router = Router::new()
        .route("/predict", post(predict))
        .route("/embed", post(embed))
        .route("/tokenize", post(tokenize))
        .route("/info", get(info))
        .route_layer(middleware::from_fn_with_state(service.clone(), check_key))
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(|| async {
            refusal(
                StatusCode::NOT_FOUND,
                "validation",
                "no such path; see /, /predict, /embed, /tokenize, /info, /health, /metrics",
            )
        })
        .method_not_allowed_fallback(|method: Method| async move {
            refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "validation",
                format!("this path does not support {method}; see the Allow header"),
            )
        })
        .layer(middleware::from_fn_with_state(service.clone(), count_failures));
    let origins = &service.options.cors_allow_origin;
    let router = if origins.is_empty() {
        router
    } else {
        let any = origins.iter().any(|origin| origin == "*");
        let allowed = if any { AllowOrigin::any() } else { AllowOrigin::list(origins.clone()) };
        let figures = FIGURES.map(HeaderName::from_static);
        let methods = [Method::GET, Method::POST];
        router.layer(
            CorsLayer::new()
                .allow_origin(allowed)
                .allow_methods(methods)
                .allow_headers([AUTHORIZATION, CONTENT_TYPE])
                .expose_headers(figures),
        )
    };
    router.with_state(service)
}

async fn check_key(State(service): Shared, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match &service.options.api_key {
        // Hashes are compared, so that the time taken reveals nothing about the key.
        Some(key) if given.is_none_or(|given| Sha256::digest(given) != Sha256::digest(key)) => {
            let refusal = refusal(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "the key is missing or wrong; send the header Authorization: Bearer KEY",
            );
            ([(WWW_AUTHENTICATE, "Bearer")], refusal).into_response()
        }
        _ => next.run(request).await,
    }
}

async fn count_failures(State(service): Shared, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(Failure(error_type)) = response.extensions().get() {
        service.metrics.failures.with_label_values(&[error_type]).inc();
    }
    response
}

/// The body of a request as JSON, whatever its Content-Type.
struct Asked<T>(T);

impl<T: DeserializeOwned> FromRequest<Arc<Service>> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, service: &Arc<Service>) -> Answered<Asked<T>> {
        let limit = service.options.payload_limit;
        let (mut body, mut bytes, mut size) = (request.into_body(), Vec::new(), 0);
        let read = async {
            // A body that is too long is still read to its end: clients read the response only after sending.
            while let Some(frame) = body.frame().await {
                let frame =
                    frame.map_err(|e| refusal(StatusCode::BAD_REQUEST, "validation", format!("the body ends early: {e}")))?;
                let data = frame.into_data().unwrap_or_default();
                size += data.len();
                if size <= limit {
                    bytes.extend_from_slice(&data);
                }
            }
            Ok::<(), Refusal>(())
        };
        tokio::time::timeout(service.patience, read).await.map_err(|_| {
            let error = format!("the body did not arrive within {} s", service.patience.as_secs());
            refusal(StatusCode::REQUEST_TIMEOUT, "validation", error)
        })??;
        if size > limit {
            let error = format!("the body has {size} bytes; send at most {limit}");
            return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "validation", error));
        }
        serde_json::from_slice(&bytes).map(Asked).map_err(|e| {
            let status = if e.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
            refusal(status, "validation", format!("the body is invalid: {e}"))
        })
    }
}

/// One text, or a list of texts, each alone or in a list of its own.
#[derive(Deserialize)]
#[serde(untagged, expecting = "`inputs` must be a text or a list of texts")]
enum Inputs {
    One(String),
    Several(Vec<String>),
    Nested(Vec<Vec<String>>),
}

impl Inputs {
    fn is_one(&self) -> bool {
        matches!(self, Inputs::One(_))
    }

    /// The name in the metrics.
    fn method(&self) -> &'static str {
        if self.is_one() { "single" } else { "batch" }
    }

    fn texts(self, most: usize) -> Answered<Vec<String>> {
        let texts = match self {
            Inputs::One(text) => vec![text],
            Inputs::Several(texts) => texts,
            Inputs::Nested(lists) => {
                if let Some(list) = lists.iter().position(|list| list.len() != 1) {
                    let error =
                        format!("list {list} in `inputs` has {} texts; pairs are not supported, send one", lists[list].len());
                    return Err(refusal(StatusCode::UNPROCESSABLE_ENTITY, "validation", error));
                }
                lists.concat()
            }
        };
        match texts.len() {
            0 => Err(refusal(StatusCode::BAD_REQUEST, "empty", "`inputs` is empty; send at least one text")),
            n if n > most => {
                let error = format!("{n} texts in `inputs`; send at most {most} at a time");
                Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "validation", error))
            }
            _ => Ok(texts),
        }
    }
}

#[derive(Deserialize)]
struct Predict {
    inputs: Inputs,
    /// Truncate texts that are too long, instead of refusing them; true by default.
    truncate: Option<bool>,
    /// Logits instead of probabilities.
    #[serde(default)]
    raw_scores: bool,
}

/// Headers of responses to /predict and /embed: milliseconds, tokens read by the model, truncated texts.
const FIGURES: [&str; 6] =
    ["x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time", "x-compute-tokens", "x-truncated-texts"];

async fn predict(State(service): Shared, Asked(request): Asked<Predict>) -> Answered {
    let (served, one) = (&service.served, request.inputs.is_one());
    if !served.classifies {
        let error = "the model has no trained head: fine-tune it with train, or use /embed";
        return Err(refusal(StatusCode::FAILED_DEPENDENCY, "backend", error));
    }
    let (figures, rows) = compute(&service, request.inputs, request.truncate, Output::Logits).await?;
    let mut lists: Vec<_> = rows.iter().map(|logits| ranked(served.labels(), logits, request.raw_scores)).collect();
    let body = if one { Json(lists.remove(0)).into_response() } else { Json(lists).into_response() };
    Ok((figures, body).into_response())
}

#[derive(Deserialize)]
struct Embed {
    inputs: Inputs,
    truncate: Option<bool>,
    /// Scale to length 1; true by default.
    normalize: Option<bool>,
}

/// A list of vectors, also for a single text.
async fn embed(State(service): Shared, Asked(request): Asked<Embed>) -> Answered {
    let output = Output::Vector { normalize: request.normalize.unwrap_or(true) };
    let (figures, vectors) = compute(&service, request.inputs, request.truncate, output).await?;
    Ok((figures, Json(vectors)).into_response())
}

/// The output of each text, and the headers with its figures.
async fn compute(
    service: &Arc<Service>,
    inputs: Inputs,
    truncate: Option<bool>,
    output: Output,
) -> Answered<(HeaderMap, Vec<Vec<f32>>)> {
    let Service { options, queue, metrics, .. } = &**service;
    let start = Instant::now();
    let method = inputs.method();
    metrics.requests.with_label_values(&[method]).inc();
    let texts = inputs.texts(options.max_client_batch_size)?;
    let truncate = truncate.unwrap_or(true);
    let tokenize = move |service: &Service| {
        let (tokenizer, max_length) = (service.served.tokenizer(), service.served.max_length);
        let rows = tokenizer.encode(&texts, max_length, &|_| ()).map_err(untokenized)?;
        match rows.cut.iter().position(|&cut| cut && !truncate) {
            Some(text) => {
                let error = format!("text {text} has more than {max_length} tokens; send a shorter one, or \"truncate\": true");
                Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "validation", error))
            }
            None => Ok(rows),
        }
    };
    let (rows, place) = in_background(service, tokenize).await?;
    let tokenization = start.elapsed();
    let (tokens, cut) = (rows.ids.len(), rows.truncated());
    rows.offsets.windows(2).for_each(|row| metrics.input_length.observe((row[1] - row[0]) as f64));
    let answer = queue.answer(place, rows, output).await?;
    if answer.rows.iter().flatten().any(|x| !x.is_finite()) {
        let remedy = "the model is broken: go back to an earlier checkpoint";
        return Err(Error::new(Kind::Unusable, "model", "its output is not finite", remedy).into());
    }
    let total = start.elapsed();
    metrics.successes.with_label_values(&[method]).inc();
    let [total, tokenization, queued, inference] = [
        (total, &metrics.total),
        (tokenization, &metrics.tokenization),
        (answer.queued, &metrics.queued),
        (answer.computed, &metrics.inference),
    ]
    .map(|(time, histogram)| {
        histogram.observe(time.as_secs_f64());
        format!("{:.3}", time.as_secs_f64() * 1e3)
    });
    let figures = [total, tokenization, queued, inference, tokens.to_string(), cut.to_string()];
    let headers = FIGURES.map(HeaderName::from_static).into_iter().zip(figures.map(|figure| figure.parse().expect("digits")));
    Ok((HeaderMap::from_iter(headers), answer.rows))
}

#[derive(Deserialize)]
struct Tokenize {
    inputs: Inputs,
    add_special_tokens: Option<bool>,
}

async fn tokenize(State(service): Shared, Asked(request): Asked<Tokenize>) -> Answered {
    let texts = request.inputs.texts(service.options.max_client_batch_size)?;
    let specials = request.add_special_tokens.unwrap_or(true);
    let tokenize = move |service: &Service| {
        let pieces = |text: &String| service.served.tokenizer().pieces(text, specials).map_err(untokenized);
        texts.iter().map(pieces).collect::<Answered<Vec<_>>>()
    };
    let (tokens, _place) = in_background(&service, tokenize).await?;
    Ok(Json(tokens).into_response())
}

fn untokenized(error: Error) -> Refusal {
    refusal(StatusCode::UNPROCESSABLE_ENTITY, "tokenizer", error.to_string())
}

/// Runs `work` on a blocking thread, with a place in the queue.
async fn in_background<T: Send + 'static>(
    service: &Arc<Service>,
    work: impl FnOnce(&Service) -> Answered<T> + Send + 'static,
) -> Answered<(T, Place)> {
    let place = service.queue.place().ok_or_else(|| {
        let error = format!("{} requests are being processed already; try again later", service.options.max_concurrent_requests);
        refusal(StatusCode::TOO_MANY_REQUESTS, "overloaded", error)
    })?;
    let service = service.clone();
    // The work continues after its client has disconnected, so it holds the place.
    let done = tokio::task::spawn_blocking(move || work(&service).map(|done| (done, place))).await;
    done.unwrap_or_else(|_| Err(refusal(StatusCode::UNPROCESSABLE_ENTITY, "tokenizer", "the tokenizer panicked")))
}

async fn info(State(service): Shared) -> Json<Value> {
    let Service { served, options, cores, .. } = &*service;
    let labels = || served.labels().iter().enumerate();
    let pooling = served.pooling.to_possible_value().expect("none is hidden").get_name().to_string();
    let id2label: Map<String, Value> = labels().map(|(id, label)| (id.to_string(), json!(label))).collect();
    let label2id: Map<String, Value> = labels().map(|(id, label)| (label.clone(), json!(id))).collect();
    let model_type = match served.classifies {
        true => json!({ "classifier": { "id2label": id2label, "label2id": label2id } }),
        false => json!({ "embedding": { "pooling": pooling } }),
    };
    Json(json!({
        "model_id": served.name,
        "model_sha": null,
        "model_dtype": served.dtype,
        "model_type": model_type,
        "max_concurrent_requests": options.max_concurrent_requests,
        "max_input_length": served.max_length,
        "max_batch_tokens": options.max_batch_tokens,
        "max_batch_requests": null,
        "max_client_batch_size": options.max_client_batch_size,
        "auto_truncate": true,
        "tokenization_workers": cores,
        "version": env!("CARGO_PKG_VERSION"),
        // Extensions to text-embeddings-inference: the pooling of /embed; and for the page, how good each
        // label is, from 0 to 1, if that is known.
        "pooling": pooling,
        "stars": served.stars.as_ref().map(|stars| served.labels().iter().zip(stars).collect::<BTreeMap<_, _>>()),
        "payload_limit": options.payload_limit,
    }))
}

/// 200 while the model works; after a batch that failed, the model is tried again.
async fn health(State(service): Shared) -> Answered<()> {
    if service.queue.is_well() {
        return Ok(());
    }
    let probe =
        |service: &Service| service.served.tokenizer().encode(&[""], service.served.max_length, &|_| ()).map_err(untokenized);
    let (rows, place) = in_background(&service, probe).await?;
    let unhealthy = |e: Error| refusal(StatusCode::SERVICE_UNAVAILABLE, "unhealthy", e.to_string());
    service.queue.answer(place, rows, Output::Logits).await.map(|_| ()).map_err(unhealthy)
}

async fn metrics(State(service): Shared) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], service.metrics.text())
}

const PAGE: &str = include_str!("page.html");

/// Only the page's own style and script may be loaded.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag: &str| {
        let (start, end) = (format!("<{tag}>"), format!("</{tag}>"));
        let inner = PAGE.split_once(&start).and_then(|(_, rest)| rest.split_once(&end)).expect("the page has both").0;
        format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(inner)))
    };
    format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("style"),
        hash("script")
    )
});

async fn page() -> impl IntoResponse {
    let headers =
        [(CONTENT_SECURITY_POLICY, POLICY.as_str()), (X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer")];
    (headers, Html(PAGE))
}
