//! Who asks, and whether they may: on the Unix socket whoever runs the appliance, and components within their rights; on the
//! admin listener who has the password.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use refit_base::{Exit, Reported};
use refit_bus::RequestKind;

use super::{Problem, Shared};
use crate::access::principal::{IdentityError, Principal};
use crate::auth::LoginError;
use crate::process::caller::Caller;
use crate::requests;

/// The cookie that holds a session's token.
pub(super) const COOKIE: &str = "refit_session";

/// Who asks, as log and history show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who(pub(super) String);

/// Marks a request that came over the Unix socket, where no browser is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local;

/// Returns the answer to somebody who is not known.
pub(super) fn unknown(error: LoginError) -> Problem {
    match error {
        LoginError::Wrong => Problem::new(
            StatusCode::UNAUTHORIZED,
            "not_logged_in",
            Exit::Usage,
            format!("{error}, or you are not logged in"),
            "log in with the admin's password; `refit user passwd` on the appliance sets a new one",
        ),
        LoginError::TooMany => Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_logins",
            Exit::TryLater,
            error.to_string(),
            "wait a minute, then try again",
        ),
    }
}

/// Returns the answer to a login that failed.
pub(super) fn refused(error: LoginError) -> Problem {
    match error {
        LoginError::Wrong => Problem::new(
            StatusCode::UNAUTHORIZED,
            "wrong_password",
            Exit::Usage,
            error.to_string(),
            "try again; `refit user passwd` on the appliance sets a new password",
        ),
        LoginError::TooMany => unknown(error),
    }
}

/// Returns the session's token in the request's cookies.
pub(super) fn token(request: &axum::http::HeaderMap) -> Option<&str> {
    request
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value)
}

/// Lets through what needs no account, and whoever has one.
pub(super) async fn require_account(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    if is_foreign(&request) {
        let detail = "the request comes from another site's page";
        return Problem::new(StatusCode::FORBIDDEN, "cross_site", Exit::Usage, detail, "use the appliance's own page")
            .into_response();
    }
    if is_open(&request) {
        request.extensions_mut().insert(Who("nobody (web)".to_owned()));
        request.extensions_mut().insert(Principal::Operator { account: "nobody".to_owned() });
        return next.run(request).await;
    }
    let headers = request.headers().clone();
    match account(&app, &headers).await {
        Ok(user) => {
            request.extensions_mut().insert(Who(format!("{user} (web)")));
            request.extensions_mut().insert(Principal::Operator { account: user });
            next.run(request).await
        }
        Err(error) => unknown(error).into_response(),
    }
}

/// Whoever runs the appliance may ask everything on the Unix socket; a component only what `appliance.toml` allows it.
pub(super) async fn trust_socket(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions_mut().remove::<Arc<Caller>>() else {
        return not_known(&IdentityError::Gone).into_response();
    };
    let token =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let principal = match token {
        Some(token) => Principal::by_token(token.trim(), &caller, &app.config, &app.context.registry),
        None => Principal::without_token(&caller, &app.config, &app.context.registry),
    };
    let principal = match principal {
        Ok(principal) => principal,
        // The socket's permissions have let it in: an account of the runtime's group.
        Err(IdentityError::Stranger { .. }) => Principal::Operator { account: caller.account() },
        Err(error) => return not_known(&error).into_response(),
    };
    if let Some(problem) = forbidden(&app, &principal, request.method(), request.uri().path()) {
        return problem.into_response();
    }
    request.extensions_mut().insert(Local);
    request.extensions_mut().insert(Who(principal.origin()));
    request.extensions_mut().insert(principal);
    next.run(request).await
}

fn not_known(error: &IdentityError) -> Problem {
    let detail = refit_base::Chain(error).to_string();
    Problem::new(StatusCode::FORBIDDEN, error.code(), error.exit(), detail, error.remedy())
}

/// Returns why a component may not change this; what it asks of the bus is looked at where it is asked.
fn forbidden(app: &Shared, principal: &Principal, method: &Method, path: &str) -> Option<Problem> {
    let component = principal.component_name()?;
    if only_reads(method) {
        return None;
    }
    if let Err(error) = app.peers.may_ask(component) {
        let (_, code) = error.code();
        let detail = error.to_string();
        return Some(Problem::new(StatusCode::TOO_MANY_REQUESTS, code, Exit::TryLater, detail, error.remedy()));
    }
    let path = path.strip_prefix("/api/v1/").unwrap_or(path);
    let needs = match path {
        "bus/requests" | "bus/publications" => return None,
        "rollback" => RequestKind::Rollback,
        "updates" | "packages" => RequestKind::Update,
        _ if path.starts_with("packages/") || path.starts_with("releases/") => RequestKind::Update,
        _ => {
            let what = format!("{method} {path}");
            let reason = format!("the component {component} may only ask for what appliance.toml allows it");
            return Some(refuse(app, principal, &what, &reason));
        }
    };
    forbidden_request(app, principal, needs)
}

/// Returns why `principal` may not make a request; `None` if it may.
pub(super) fn forbidden_request(app: &Shared, principal: &Principal, kind: RequestKind) -> Option<Problem> {
    principal.forbids(kind).map(|reason| refuse(app, principal, kind.name(), &reason))
}

fn refuse(app: &Shared, principal: &Principal, what: &str, reason: &str) -> Problem {
    let ticket = requests::refuse(&app.context.registry, &app.bus, what, &principal.origin(), reason);
    let detail = format!("not permitted: {reason} (ticket {})", ticket.id);
    let remedy = "allow it in appliance.toml, or have the operator ask";
    Problem::new(StatusCode::FORBIDDEN, "not_permitted", Exit::Usage, detail, remedy)
}

/// HEAD is GET without the body (RFC 9110, 9.3.2).
fn only_reads(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// A browser says where a request comes from; one that changes something must come from our own page.
fn is_foreign(request: &Request) -> bool {
    !only_reads(request.method())
        && request.headers().get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

fn is_open(request: &Request) -> bool {
    let path = request.uri().path();
    if path == "/api/v1/session" {
        return request.method() == Method::POST;
    }
    only_reads(request.method()) && !path.starts_with("/api/") && path != "/metrics"
}

async fn account(app: &Shared, headers: &axum::http::HeaderMap) -> Result<String, LoginError> {
    let sessions = &app.context.registry.sessions;
    if let Some(user) = token(headers).and_then(|token| sessions.user(token)) {
        return Ok(user);
    }
    let (user, password) = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Basic "))
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text.trim()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned())))
        .ok_or(LoginError::Wrong)?;
    check(app, user, password).await
}

/// Checks a password where its hashing holds nobody up.
pub(super) async fn check(app: &Shared, user: String, password: String) -> Result<String, LoginError> {
    let app = Arc::clone(app);
    let work = move || app.context.registry.sessions.check_password(&app.context.home, &user, &password).map(|()| user);
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LoginError::Wrong))
}
