//! From texts to the model's output, through the queue.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::http::{HeaderMap, HeaderName, StatusCode};

use super::Service;
use super::refusal::{Answered, Refusal, refusal};
use super::request::{Inputs, Rows, TruncationDirection};
use crate::error::{BROKEN, Error, Kind};
use crate::infer::Output;
use crate::report::log::counted;
use crate::serve::access_log::Size;
use crate::serve::queue::Place;

/// Headers of responses from the model: milliseconds, tokens read by the model, truncated texts.
pub const FIGURES: [&str; 6] =
    ["x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time", "x-compute-tokens", "x-truncated-texts"];

/// The parts of a response that come with the output.
pub type Figures = (Extension<Size>, HeaderMap);

/// The output of each text.
pub async fn compute(
    service: &Arc<Service>,
    inputs: Inputs,
    truncate: Option<bool>,
    direction: Option<TruncationDirection>,
    output: Output,
) -> Answered<(Figures, Vec<Vec<f32>>)> {
    let Service { options, queue, metrics, .. } = &**service;
    let start = Instant::now();
    let method = if inputs.is_one() { "single" } else { "batch" };
    metrics.requests.with_label_values(&[method]).inc();
    let rows = inputs.rows(options.max_client_batch_size)?;
    let truncate = truncate.unwrap_or(true);
    let tokenize = move |service: &Service| {
        let (tokenizer, max_length) = (service.served.tokenizer(), service.served.max_length);
        let side = direction.map_or(tokenizer.truncation_side, TruncationDirection::side);
        let rows = match rows {
            Rows::Texts(texts) => tokenizer.encode_from(&texts, max_length, side, &|_| ()),
            Rows::Ids(ids) => tokenizer.encode_ids(&ids, max_length, side),
        };
        let rows = rows.map_err(untokenized)?;
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
    let (size, cut) = (Size { texts: rows.rows(), tokens: rows.ids.len() }, rows.truncated());
    rows.offsets.windows(2).for_each(|row| metrics.input_length.observe((row[1] - row[0]) as f64));
    let answer = queue.answer(place, rows, output).await?;
    if answer.rows.iter().flatten().any(|x| !x.is_finite()) {
        return Err(Error::new(Kind::Unusable, "model", "its output is not finite", BROKEN).into());
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
    let figures = [total, tokenization, queued, inference, size.tokens.to_string(), cut.to_string()];
    let headers = FIGURES.map(HeaderName::from_static).into_iter().zip(figures.map(|figure| figure.parse().expect("digits")));
    Ok(((Extension(size), HeaderMap::from_iter(headers)), answer.rows))
}

pub fn untokenized(error: Error) -> Refusal {
    refusal(StatusCode::UNPROCESSABLE_ENTITY, "tokenizer", error.to_string())
}

/// Runs `work` on a blocking thread, with a place in the queue.
pub async fn in_background<T: Send + 'static>(
    service: &Arc<Service>,
    work: impl FnOnce(&Service) -> Answered<T> + Send + 'static,
) -> Answered<(T, Place)> {
    let place = service.queue.place().ok_or_else(|| {
        let error =
            format!("{} in progress already; try again later", counted(service.options.max_concurrent_requests, "request"));
        refusal(StatusCode::TOO_MANY_REQUESTS, "overloaded", error)
    })?;
    let service = service.clone();
    // The work continues after its client has disconnected, so it holds the place.
    let done = tokio::task::spawn_blocking(move || work(&service).map(|done| (done, place))).await;
    done.unwrap_or_else(|_| Err(refusal(StatusCode::UNPROCESSABLE_ENTITY, "tokenizer", "the tokenizer panicked")))
}
