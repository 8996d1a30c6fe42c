//! Error -> problem details (RFC 9457), with the code, the remedy and the exit status that the command line uses.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use refit_base::{Chain, Exit, Reported};
use refit_updater::receive::ReceiveError;
use refit_updater::release::StoreError;
use refit_updater::removal::RemovalError;

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
            reason_code: code.to_owned(),
            remedy: remedy.to_owned(),
            exit: exit.code(),
        }
    }

    /// Returns the problem that `error` is. The chain goes into the log, too.
    pub fn of(error: &UpdateError) -> Self {
        Self::reported(status(error), error)
    }

    /// Returns the problem that `error` is, with this status.
    pub(super) fn reported(status: StatusCode, error: &(impl Reported + 'static)) -> Self {
        let detail = Chain(error).to_string();
        let (code, reason_code) = (error.code(), error.reason_code());
        tracing::warn!(code, reason_code, "{detail}");
        let problem = Self::new(status, code, error.exit(), detail, error.remedy());
        Self { reason_code: reason_code.to_owned(), ..problem }
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

/// Returns the status of an answer that is `error`, by what kind of error it is: an exit status folds kinds together that HTTP tells apart.
fn status(error: &UpdateError) -> StatusCode {
    match error {
        // Something else is under way, or the appliance is not in a state for it.
        UpdateError::Busy { .. }
        | UpdateError::Receiving
        | UpdateError::NotRunning { .. }
        | UpdateError::Runs { .. }
        | UpdateError::Bus { .. }
        | UpdateError::Confused { .. }
        | UpdateError::Bind(_)
        | UpdateError::Removal(
            RemovalError::Running { .. }
            | RemovalError::LastGood { .. }
            | RemovalError::UnderWay { .. }
            | RemovalError::InUse { .. },
        ) => StatusCode::CONFLICT,
        // It is not there.
        UpdateError::UnknownPackage { .. }
        | UpdateError::UnknownRelease { .. }
        | UpdateError::NoPrevious
        | UpdateError::Store(StoreError::Unknown { .. })
        | UpdateError::Removal(RemovalError::Unknown { .. }) => StatusCode::NOT_FOUND,
        // It is understood, and is not what this appliance takes.
        UpdateError::NotApproved { .. }
        | UpdateError::NoRepository
        | UpdateError::Config { .. }
        | UpdateError::Operators(_)
        | UpdateError::Misnamed { .. }
        | UpdateError::NotExecutable { .. }
        | UpdateError::NotAProgram { .. }
        | UpdateError::NotReached { .. }
        | UpdateError::DryRun { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        // What it was to come from.
        UpdateError::Unreachable { .. } => StatusCode::BAD_GATEWAY,
        UpdateError::Receive(error) => status_of_reception(error),
        UpdateError::Trust(_)
        | UpdateError::HttpClient { .. }
        | UpdateError::Store(_)
        | UpdateError::Removal(_)
        | UpdateError::Journal(_)
        | UpdateError::Damaged { .. }
        | UpdateError::Merge(_)
        | UpdateError::Io { .. }
        | UpdateError::Panicked
        | UpdateError::Worker { .. } => failed(error.exit()),
    }
}

/// Returns the same of a package that was not received.
fn status_of_reception(error: &ReceiveError) -> StatusCode {
    match error.reason_code() {
        "repository_unreachable" => StatusCode::BAD_GATEWAY,
        // It did not come to its end; nothing keeps it from being sent again.
        "package_interrupted" | "cancelled" => StatusCode::CONFLICT,
        _ if error.exit() == Exit::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        _ => failed(error.exit()),
    }
}

/// Returns the same of what failed on this machine.
fn failed(exit: Exit) -> StatusCode {
    match exit {
        Exit::Disk => StatusCode::INSUFFICIENT_STORAGE,
        Exit::Refused | Exit::Config => StatusCode::UNPROCESSABLE_ENTITY,
        Exit::Unavailable | Exit::TryLater => StatusCode::SERVICE_UNAVAILABLE,
        Exit::Done | Exit::Degraded | Exit::Down | Exit::Usage | Exit::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, PROBLEM)], Json(self)).into_response()
    }
}
