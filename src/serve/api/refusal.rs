//! Requests that are refused or have failed.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::json;

use crate::error::{Error, Kind};

pub type Answered<T = Response> = Result<T, Refusal>;

/// A request that is refused or has failed, and why. It is also an extension of its response.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub error_type: &'static str,
    pub error: String,
}

pub fn refusal(status: StatusCode, error_type: &'static str, error: impl Into<String>) -> Refusal {
    Refusal { status, error_type, error: error.into() }
}

/// JSON that is no valid request.
pub fn invalid(error: impl Into<String>) -> Refusal {
    refusal(StatusCode::UNPROCESSABLE_ENTITY, "validation", error)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.error, "error_type": self.error_type }));
        (self.status, Extension(self), body).into_response()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error.kind {
            Kind::Device => refusal(StatusCode::SERVICE_UNAVAILABLE, "unhealthy", error.to_string()),
            _ => refusal(StatusCode::FAILED_DEPENDENCY, "backend", error.to_string()),
        }
    }
}
