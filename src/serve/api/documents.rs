//! What the server says about itself: the page to try the model, and the OpenAPI document.

use std::sync::LazyLock;

use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::response::{Html, IntoResponse};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

pub async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], include_str!("../openapi.json"))
}

const PAGE: &str = include_str!("../page.html");

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

pub async fn page() -> impl IntoResponse {
    let headers =
        [(CONTENT_SECURITY_POLICY, POLICY.as_str()), (X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer")];
    (headers, Html(PAGE))
}
