//! The routes, one file per protocol: `tei` (text-embeddings-inference), `hugging_face` (its Inference API) and `openai`.
//! Requests pass through `request` (bodies), `compute` (the model) and `refusal` (errors); `documents` is the rest.

mod compute;
mod documents;
mod hugging_face;
mod openai;
mod refusal;
mod request;
mod tei;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderName, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use sha2::{Digest, Sha256};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::access_log::{Entry, Size};
use super::metrics::Metrics;
use super::queue::Queue;
use super::{Served, Serving};
use compute::FIGURES;
use refusal::{Refusal, refusal};

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
type Route = (&'static str, MethodRouter<Arc<Service>>);

/// The routes that need the key, if there is one.
fn keyed() -> [Route; 7] {
    [
        ("/", post(hugging_face::infer)),
        ("/predict", post(tei::predict)),
        ("/embed", post(tei::embed)),
        ("/tokenize", post(tei::tokenize)),
        ("/info", get(tei::info)),
        ("/v1/embeddings", post(openai::embeddings)),
        ("/invocations", post(hugging_face::infer)), // SageMaker's name for it
    ]
}

/// The routes that are open to all.
fn open() -> [Route; 5] {
    [
        ("/", get(documents::page)),
        ("/openapi.json", get(documents::openapi)),
        ("/health", get(tei::health)),
        ("/ping", get(tei::health)), // SageMaker's name for it
        ("/metrics", get(tei::metrics)),
    ]
}

pub fn router(service: Arc<Service>) -> Router {
    let paths: BTreeSet<&str> = keyed().into_iter().chain(open()).map(|(path, _)| path).collect();
    let no_such_path = format!("no such path; see {}", Vec::from_iter(paths).join(", "));
    let add = |router: Router<_>, (path, methods): Route| router.route(path, methods);
    let router = keyed().into_iter().fold(Router::new(), add);
    let router = router.route_layer(middleware::from_fn_with_state(service.clone(), check_key));
    let router = open()
        .into_iter()
        .fold(router, add)
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "validation", no_such_path) })
        .method_not_allowed_fallback(|method: Method| async move {
            refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "validation",
                format!("this path does not support {method}; see the Allow header"),
            )
        })
        .layer(middleware::from_fn(openai::errors))
        .layer(middleware::from_fn_with_state(service.clone(), observe));
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

/// Counts failures, and logs the request.
async fn observe(State(service): Shared, request: Request, next: Next) -> Response {
    let (start, method, path) = (Instant::now(), request.method().clone(), request.uri().path().to_string());
    let response = next.run(request).await;
    if let Some(Refusal { error_type, .. }) = response.extensions().get() {
        service.metrics.failures.with_label_values(&[error_type]).inc();
    }
    service.options.access_log.write(&Entry {
        method: method.as_str(),
        path: &path,
        status: response.status().as_u16(),
        size: response.extensions().get::<Size>().copied(),
        ms: start.elapsed().as_secs_f64() * 1e3,
    });
    response
}
