//! The protocol of text-embeddings-inference.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use clap::ValueEnum;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::compute::{Figures, compute, in_background, untokenized};
use super::refusal::{Answered, invalid, refusal};
use super::request::{Asked, HostOptions, Inputs, Rows, TruncationDirection};
use super::{Service, Shared};
use crate::error::Error;
use crate::infer::Output;
use crate::infer::predictions::{Ranked, ranked, stars};
use crate::metrics::softmax;
use crate::serve::access_log::Size;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predict {
    inputs: Inputs,
    /// Truncate texts that are too long, instead of refusing them; true by default.
    #[serde(alias = "truncation")]
    truncate: Option<bool>,
    /// The model's by default.
    truncation_direction: Option<TruncationDirection>,
    /// Logits instead of probabilities.
    raw_scores: Option<bool>,
    function_to_apply: Option<Function>,
    /// The highest labels alone.
    top_k: Option<i64>,
    /// From 1 to 10, with the highest label.
    stars: Option<bool>,
    /// There is none.
    #[serde(rename = "padding")]
    _padding: Option<IgnoredAny>,
    #[serde(rename = "options")]
    _options: Option<HostOptions>,
}

/// What makes scores of logits.
#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Function {
    Softmax,
    Sigmoid,
    None,
}

/// A label with its score; the first of a text also with the text's stars, on request.
#[derive(Serialize)]
pub struct Scored<'a> {
    #[serde(flatten)]
    ranked: Ranked<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stars: Option<u32>,
}

/// One list of labels for each text.
pub async fn classify(service: &Arc<Service>, request: Predict) -> Answered<(Figures, Vec<Vec<Scored<'_>>>)> {
    let served = &service.served;
    if !served.classifies {
        let error = "the model has no trained head: fine-tune it with train, or use /embed";
        return Err(refusal(StatusCode::FAILED_DEPENDENCY, "backend", error));
    }
    let function = match (request.raw_scores, request.function_to_apply) {
        (Some(_), Some(_)) => return Err(invalid("`raw_scores` and `function_to_apply` exclude each other; send one")),
        (Some(true), None) => Function::None,
        (_, function) => function.unwrap_or(Function::Softmax),
    };
    let most = request.top_k.map_or(Some(usize::MAX), |k| usize::try_from(k).ok().filter(|&k| k > 0));
    let most = most.ok_or_else(|| invalid("`top_k`: send a whole number above 0, or leave it out for all labels"))?;
    let unknown = || {
        invalid(match served.labels().len() {
            2 => "`stars`: the labels do not tell which of them is good; start the server with --positive-label",
            _ => "`stars`: the labels do not tell how good each of them is; leave it out",
        })
    };
    let weights = match request.stars {
        Some(true) => Some(served.stars.as_deref().ok_or_else(unknown)?),
        _ => None,
    };
    let (figures, rows) =
        compute(service, request.inputs, request.truncate, request.truncation_direction, Output::Logits).await?;
    let scored = |logits: &Vec<f32>| {
        let mut labels = ranked(served.labels(), logits, function != Function::Softmax);
        labels.truncate(most);
        if function == Function::Sigmoid {
            labels.iter_mut().for_each(|label| label.score = sigmoid(label.score));
        }
        let mut scored: Vec<_> = labels.into_iter().map(|ranked| Scored { ranked, stars: None }).collect();
        scored[0].stars = weights.map(|weights| stars(&softmax(logits), weights));
        scored
    };
    Ok((figures, rows.iter().map(scored).collect()))
}

fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}

/// A list of labels for one text, a list of lists for several.
pub async fn predict(State(service): Shared, Asked(request): Asked<Predict>) -> Answered {
    let one = request.inputs.is_one();
    let (figures, mut lists) = classify(&service, request).await?;
    let body = if one { Json(lists.remove(0)).into_response() } else { Json(lists).into_response() };
    Ok((figures, body).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    inputs: Inputs,
    #[serde(alias = "truncation")]
    truncate: Option<bool>,
    /// The model's by default.
    truncation_direction: Option<TruncationDirection>,
    /// Scale to length 1; true by default.
    normalize: Option<bool>,
    #[serde(rename = "padding")]
    _padding: Option<IgnoredAny>,
    #[serde(rename = "options")]
    _options: Option<HostOptions>,
}

/// A list of vectors, also for a single text.
pub async fn embed(State(service): Shared, Asked(request): Asked<Embed>) -> Answered {
    let output = Output::Vector { normalize: request.normalize.unwrap_or(true) };
    let (figures, vectors) = compute(&service, request.inputs, request.truncate, request.truncation_direction, output).await?;
    Ok((figures, Json(vectors)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenize {
    inputs: Inputs,
    add_special_tokens: Option<bool>,
}

pub async fn tokenize(State(service): Shared, Asked(request): Asked<Tokenize>) -> Answered {
    let Rows::Texts(texts) = request.inputs.rows(service.options.max_client_batch_size)? else {
        return Err(invalid("`inputs` are tokens already; send texts"));
    };
    let (specials, count) = (request.add_special_tokens.unwrap_or(true), texts.len());
    let tokenize = move |service: &Service| {
        let pieces = |text: &String| service.served.tokenizer().pieces(text, specials).map_err(untokenized);
        texts.iter().map(pieces).collect::<Answered<Vec<_>>>()
    };
    let (tokens, _place) = in_background(&service, tokenize).await?;
    let size = Size { texts: count, tokens: tokens.iter().map(Vec::len).sum() };
    Ok((Extension(size), Json(tokens)).into_response())
}

pub async fn info(State(service): Shared) -> Json<Value> {
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
        "max_batch_tokens": served.batch_tokens,
        "max_batch_requests": null,
        "max_client_batch_size": options.max_client_batch_size,
        "auto_truncate": true,
        "tokenization_workers": cores,
        "version": env!("CARGO_PKG_VERSION"),
        // Extensions to text-embeddings-inference: the pooling of /embed; and for the page, how good each
        // label is, from 0 to 1, if that is known, and texts to try.
        "pooling": pooling,
        "stars": served.stars.as_ref().map(|stars| served.labels().iter().zip(stars).collect::<BTreeMap<_, _>>()),
        "payload_limit": options.payload_limit,
        "examples": served.examples,
    }))
}

/// 200 while the model works; after a batch that failed, the model is tried again.
pub async fn health(State(service): Shared) -> Answered<()> {
    if service.queue.is_well() {
        return Ok(());
    }
    let probe =
        |service: &Service| service.served.tokenizer().encode(&[""], service.served.max_length, &|_| ()).map_err(untokenized);
    let (rows, place) = in_background(&service, probe).await?;
    let unhealthy = |e: Error| refusal(StatusCode::SERVICE_UNAVAILABLE, "unhealthy", e.to_string());
    service.queue.answer(place, rows, Output::Logits).await.map(|_| ()).map_err(unhealthy)
}

pub async fn metrics(State(service): Shared) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], service.metrics.text())
}
