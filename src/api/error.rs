//! Error -> problem details (RFC 9457), with the code, the remedy and the exit status that the command line uses.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use refit_base::{Chain, Exit, Reported};

use crate::requests::RequestError;
use crate::update::UpdateError;
use crate::wire::Problem;

/// The type of an answer that is a problem.
pub(super) const PROBLEM: &str = "application/problem+json";

impl Problem {
    /// Returns a problem of this kind.
    pub fn new(status: StatusCode, code: &str, exit: Exit, detail: impl Into<String>, remedy: &str) -> Self {
        Self {
            kind: format!("urn:refit:problem:{code}"),
            title: code.replace('_', " "),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            remedy: remedy.to_owned(),
            exit: exit.code(),
        }
    }

    /// Returns the problem that `error` is. The chain goes into the log, too.
    pub fn of(error: &(impl Reported + 'static)) -> Self {
        let exit = error.exit();
        let status = match exit {
            Exit::Done | Exit::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Exit::Usage => StatusCode::NOT_FOUND,
            Exit::Refused | Exit::Config => StatusCode::UNPROCESSABLE_ENTITY,
            Exit::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Exit::Disk => StatusCode::INSUFFICIENT_STORAGE,
            Exit::TryLater => StatusCode::CONFLICT,
        };
        let detail = Chain(error).to_string();
        tracing::warn!(code = error.code(), "{detail}");
        Self::new(status, error.code(), exit, detail, error.remedy())
    }

    /// Returns the problem of a request that gave no ticket.
    pub(super) fn asking(error: &RequestError) -> Self {
        match error {
            RequestError::Unknown { .. }
            | RequestError::Nowhere
            | RequestError::Forward
            | RequestError::Within { .. }
            | RequestError::NotAReload { .. }
            | RequestError::RestoresAlone => Self::usage(error.to_string()),
            RequestError::Update(error @ UpdateError::Runs { .. }) => {
                Self { status: StatusCode::CONFLICT.as_u16(), ..Self::of(error) }
            }
            RequestError::Update(error) => Self::of(error),
        }
    }

    /// Returns the answer to a request that is not understood.
    pub fn usage(detail: impl Into<String>) -> Self {
        let remedy = "see the documentation of the API; nothing was changed";
        Self::new(StatusCode::BAD_REQUEST, "bad_request", Exit::Usage, detail, remedy)
    }

    /// Returns the answer to a method that does not fit the address: `asked`.
    pub(super) fn not_allowed(asked: &str) -> Self {
        let detail = format!("{asked}: this method is not possible here");
        let remedy = "use one that the header Allow names";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", Exit::Usage, detail, remedy)
    }

    /// Returns the answer to a request for something that is not there.
    pub fn missing(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", Exit::Usage, detail, "check the name")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, PROBLEM)], Json(self)).into_response()
    }
}
