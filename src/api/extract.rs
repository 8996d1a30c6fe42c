//! What handlers take from a request. What is not understood of it is a problem like every other: a query, a body.

use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::access::Local;
use super::error::PROBLEM;
use super::{Problem, Shared};

/// Bytes of what the HTTP library says of a request that it refuses: a sentence.
const SENTENCE_BYTES_MAX: usize = 4 << 10;

/// A body in JSON.
///
/// On the admin listener it must be sent as `application/json`: a browser sends that for no other site's page, not even for one
/// on another port of this machine, which its cookies do not tell apart from ours. On the Unix socket there are no browsers.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Shared> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(mut request: Request, app: &Shared) -> Result<Self, Problem> {
        if request.extensions().get::<Local>().is_some() {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let body = axum::Json::from_request(request, app).await;
        body.map(|axum::Json(body)| Self(body)).map_err(|error| Problem::usage(error.body_text()))
    }
}

/// A body in JSON that may be missing: nothing is the default then.
pub(super) struct OptionalJsonBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Shared> for OptionalJsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Problem> {
        let body = Bytes::from_request(request, app).await.map_err(|error| Problem::usage(error.body_text()))?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        serde_json::from_slice(&body).map(Self).map_err(|error| Problem::usage(error.to_string()))
    }
}

/// Turns what the HTTP library itself refuses, in plain text or without a word, into a problem; its headers stay.
pub(super) async fn or_problem(request: Request, next: Next) -> Response {
    let answer = next.run(request).await;
    let is_problem = answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM);
    if !answer.status().is_client_error() || is_problem {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let said = to_bytes(body, SENTENCE_BYTES_MAX).await.unwrap_or_default();
    let problem = Problem { status: head.status.as_u16(), ..Problem::usage(String::from_utf8_lossy(&said)) };
    head.headers.remove(header::CONTENT_TYPE);
    head.headers.remove(header::CONTENT_LENGTH);
    let mut described = problem.into_response();
    head.headers.extend(std::mem::take(described.headers_mut()));
    *described.headers_mut() = head.headers;
    described
}
