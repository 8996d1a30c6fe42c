//! What handlers take from a request. What is not understood of it is a problem like every other: a query, a body.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use refit_base::{Chain, Exit};
use serde::de::DeserializeOwned;

use super::access::Local;
use super::error::PROBLEM;
use super::{Problem, Shared};

/// Bytes of what the HTTP library says of a request that it refuses: a sentence.
const SENTENCE_BYTES_MAX: usize = 4 << 10;

/// The largest body in JSON: an argument of a publication is a message, not a file.
const BODY_BYTES_MAX: usize = 256 << 10;
/// The largest body of a login, which anybody may send.
pub(super) const LOGIN_BYTES_MAX: usize = 4 << 10;
/// How long a body in JSON may take.
const BODY_MAX: Duration = Duration::from_secs(10);

/// A body in JSON, of at most `BYTES_MAX` bytes.
///
/// On the admin listener it must be sent as `application/json`: a browser sends that for no other site's page, not even for one
/// on another port of this machine, which its cookies do not tell apart from ours. On the Unix socket there are no browsers.
pub(super) struct JsonBody<T, const BYTES_MAX: usize = BODY_BYTES_MAX>(pub(super) T);

impl<T: DeserializeOwned, const BYTES_MAX: usize> FromRequest<Shared> for JsonBody<T, BYTES_MAX> {
    type Rejection = Problem;

    async fn from_request(request: Request, _app: &Shared) -> Result<Self, Problem> {
        let is_local = request.extensions().get::<Local>().is_some();
        let mut headers = request.headers().clone();
        if is_local {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let body = read(request, BYTES_MAX).await?;
        // The library looks at the type, too, and says what is wrong where.
        let mut whole = Request::new(Body::from(body.clone()));
        *whole.headers_mut() = headers;
        let read = axum::Json::from_request(whole, &()).await;
        let axum::Json(read) = read.map_err(|error| Problem::usage(error.body_text()))?;
        if is_object(&body) { Ok(Self(read)) } else { Err(Problem::usage(NOT_AN_OBJECT)) }
    }
}

/// A body in JSON that may be missing: nothing is the default then.
pub(super) struct OptionalJsonBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Shared> for OptionalJsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _app: &Shared) -> Result<Self, Problem> {
        let body = read(request, BODY_BYTES_MAX).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        let read = serde_json::from_slice(&body).map_err(|error| Problem::usage(error.to_string()))?;
        if is_object(&body) { Ok(Self(read)) } else { Err(Problem::usage(NOT_AN_OBJECT)) }
    }
}

/// What is said of a body that is JSON and no object.
const NOT_AN_OBJECT: &str = "the body is not a JSON object";

/// Returns whether a body that could be read is an object: the library takes an array for an object's fields in their order, too, which is
/// nothing to rely on.
fn is_object(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'{')
}

/// Returns the whole body, if it comes in its time and is not too large.
async fn read(request: Request, bytes_max: usize) -> Result<Bytes, Problem> {
    let remedy = "send less, and at once; nothing was changed";
    let mut stream = request.into_body().into_data_stream();
    let whole = async {
        let mut body = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| Problem::usage(Chain(&error).to_string()))?;
            if body.len() + chunk.len() > bytes_max {
                let detail = format!("the body has more than {bytes_max} bytes");
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", Exit::Usage, detail, remedy));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Bytes::from(body))
    };
    match tokio::time::timeout(BODY_MAX, whole).await {
        Ok(body) => body,
        Err(_elapsed) => {
            let detail = format!("the body did not come within {} s", BODY_MAX.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", Exit::Usage, detail, remedy))
        }
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
