//! OpenAI's protocol for embeddings.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Shared;
use super::compute::compute;
use super::refusal::{Answered, Refusal};
use super::request::{Inputs, object, typed};
use crate::infer::Output;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Embeddings {
    input: Inputs,
    #[serde(default)]
    encoding_format: EncodingFormat,
    /// There is one model, whatever name the client uses for it.
    #[serde(rename = "model")]
    _model: Option<String>,
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    /// The little-endian bytes of float32.
    Base64,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Gives errors under /v1/ the form of OpenAI's: clients show no message of any other.
pub async fn errors(request: Request, next: Next) -> Response {
    let in_v1 = request.uri().path().starts_with("/v1/");
    let response = next.run(request).await;
    let Some(Refusal { error_type, error, .. }) = response.extensions().get().filter(|_| in_v1) else { return response };
    let body = json!({ "error": { "message": error, "type": error_type, "param": null, "code": null } }).to_string();
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, body.into())
}

/// Vectors of length 1.
pub async fn embeddings(State(service): Shared, request: Request) -> Answered {
    let request: Embeddings = typed(object(request, &service).await?)?;
    let (figures, vectors) = compute(&service, request.input, None, None, Output::Vector { normalize: true }).await?;
    let encode = |vector: Vec<f32>| match request.encoding_format {
        EncodingFormat::Float => Vector::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
            Vector::Base64(BASE64_STANDARD.encode(bytes))
        }
    };
    let embedding = |(index, vector)| Embedding { object: "embedding", index, embedding: encode(vector) };
    let tokens = figures.0.tokens;
    let list = List {
        object: "list",
        data: vectors.into_iter().enumerate().map(embedding).collect(),
        model: &service.served.name,
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
    };
    Ok((figures, Json(list)).into_response())
}
