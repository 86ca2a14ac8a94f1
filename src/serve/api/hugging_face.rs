//! The protocol of Hugging Face's Inference API and of its Inference Endpoints: one route for whatever the model does.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::response::IntoResponse;

use super::Shared;
use super::refusal::Answered;
use super::request::Asked;
use super::tei::{classify, embed};

/// Classifies, or embeds with a model without a head. One list for each text, also for a single one.
pub async fn infer(State(service): Shared, request: Request) -> Answered {
    if !service.served.classifies {
        let asked = Asked::from_request(request, &service).await?;
        return embed(State(service), asked).await;
    }
    let Asked(request) = Asked::from_request(request, &service).await?;
    let (figures, lists) = classify(&service, request).await?;
    Ok((figures, Json(lists)).into_response())
}
