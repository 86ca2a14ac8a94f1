//! The bodies of requests: JSON objects whose keys are all known.

use std::sync::Arc;

use axum::body::HttpBody;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::EXPECT;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use super::Service;
use super::refusal::{Answered, Refusal, invalid, refusal};
use crate::data::truncation::TruncationSide;
use crate::report::log::counted;

/// The body of a request of Hugging Face's protocols, whatever its Content-Type. Its options are beside `inputs`, or in
/// `parameters`.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Service>> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, service: &Arc<Service>) -> Answered<Asked<T>> {
        typed(with_parameters(object(request, service).await?)?).map(Asked)
    }
}

/// The body as a JSON object, without the keys whose value is null.
pub async fn object(request: Request, service: &Service) -> Answered<Map<String, Value>> {
    let mut object: Map<String, Value> = serde_json::from_slice(&bytes(request, service).await?).map_err(|e| {
        let status = if e.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        refusal(status, "validation", format!("the body is invalid: {e}"))
    })?;
    object.retain(|_, value| !value.is_null());
    Ok(object)
}

async fn bytes(request: Request, service: &Service) -> Answered<Vec<u8>> {
    let limit = service.options.payload_limit;
    let too_large = |size: u64| {
        let error = format!("the body has {size} bytes; send at most {limit}");
        refusal(StatusCode::PAYLOAD_TOO_LARGE, "validation", error)
    };
    let waits = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    let declared = body.size_hint().lower();
    if declared > limit as u64 {
        // A client that does not wait for leave to send may read the response only after it has sent everything.
        if !waits {
            let unread = async move { while let Some(Ok(_)) = body.frame().await {} };
            tokio::spawn(tokio::time::timeout(service.patience, unread));
        }
        return Err(too_large(declared));
    }
    let (mut bytes, mut size) = (Vec::new(), 0);
    let read = async {
        // A body that is too long is still read to its end, for the same reason.
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| refusal(StatusCode::BAD_REQUEST, "validation", format!("the body ends early: {e}")))?;
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
    if size > limit { Err(too_large(size as u64)) } else { Ok(bytes) }
}

/// Moves the keys of `parameters` beside `inputs`.
fn with_parameters(mut object: Map<String, Value>) -> Answered<Map<String, Value>> {
    let Some(parameters) = object.remove("parameters") else { return Ok(object) };
    let Value::Object(parameters) = parameters else { return Err(invalid("`parameters` must be an object")) };
    for (key, value) in parameters.into_iter().filter(|(_, value)| !value.is_null()) {
        if object.contains_key(&key) {
            return Err(invalid(format!("`{key}` is given twice: in `parameters` and beside it; send it once")));
        }
        object.insert(key, value);
    }
    Ok(object)
}

pub fn typed<T: DeserializeOwned>(object: Map<String, Value>) -> Answered<T> {
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|e| invalid(format!("the body is invalid: {e}")))
}

/// One text, or a list of texts, each alone or in a list of its own; or the same as token ids.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text, a list of texts, or token ids")]
pub enum Inputs {
    One(String),
    Several(Vec<String>),
    Nested(Vec<Vec<String>>),
    Ids(Vec<u32>),
    SeveralIds(Vec<Vec<u32>>),
}

/// What a request gives for the model to read.
pub enum Rows {
    Texts(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

impl Rows {
    pub fn len(&self) -> usize {
        match self {
            Rows::Texts(texts) => texts.len(),
            Rows::Ids(ids) => ids.len(),
        }
    }
}

impl Inputs {
    pub fn is_one(&self) -> bool {
        matches!(self, Inputs::One(_) | Inputs::Ids(_))
    }

    /// At most `most` rows.
    pub fn rows(self, most: usize) -> Answered<Rows> {
        let rows = match self {
            Inputs::One(text) => Rows::Texts(vec![text]),
            Inputs::Several(texts) => Rows::Texts(texts),
            Inputs::Nested(lists) => {
                if let Some(list) = lists.iter().position(|list| list.len() != 1) {
                    let texts = counted(lists[list].len(), "text");
                    return Err(invalid(format!("list {list} of texts has {texts}; pairs are not supported, send one")));
                }
                Rows::Texts(lists.concat())
            }
            Inputs::Ids(ids) => Rows::Ids(vec![ids]),
            Inputs::SeveralIds(ids) => Rows::Ids(ids),
        };
        match rows.len() {
            0 => Err(refusal(StatusCode::BAD_REQUEST, "empty", "there is no text; send at least one")),
            n if n > most => {
                let error = format!("{n} texts; send at most {most} at a time");
                Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "validation", error))
            }
            _ => Ok(rows),
        }
    }
}

/// The side on which long texts are cut.
#[derive(Clone, Copy, Deserialize)]
pub enum TruncationDirection {
    #[serde(rename = "right", alias = "Right")]
    Right,
    #[serde(rename = "left", alias = "Left")]
    Left,
}

impl TruncationDirection {
    pub fn side(self) -> TruncationSide {
        match self {
            TruncationDirection::Right => TruncationSide::Right,
            TruncationDirection::Left => TruncationSide::Left,
        }
    }
}

/// Options of Hugging Face's Inference API about its own machines: without effect here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostOptions {
    #[serde(rename = "use_cache")]
    _use_cache: Option<IgnoredAny>,
    #[serde(rename = "use_gpu")]
    _use_gpu: Option<IgnoredAny>,
    #[serde(rename = "wait_for_model")]
    _wait_for_model: Option<IgnoredAny>,
}
