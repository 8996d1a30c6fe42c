//! Who asks, and whether they may: on the Unix socket the operators of the machine and components, on the admin listener who has logged
//! in. The table of routes says what that one has to be allowed.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use refit_base::{Exit, Reported};
use refit_bus::RequestKind;

use super::{Problem, Shared};
use crate::access::permission::{Forbidden, Permission};
use crate::access::principal::{Door, IdentityError, Principal};
use crate::auth::LoginError;
use crate::process::caller::Caller;
use crate::requests;

/// The cookie that holds a session's token.
pub(super) const COOKIE: &str = "refit_session";

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

/// Before every route of the admin listener: a browser changes nothing from another site's page.
pub(super) async fn come_from_page(request: Request, next: Next) -> Response {
    if is_foreign(&request) {
        let detail = "the request comes from another site's page";
        return Problem::new(StatusCode::FORBIDDEN, "cross_site", Exit::Usage, detail, "use the appliance's own page")
            .into_response();
    }
    next.run(request).await
}

/// Before every route of the Unix socket.
pub(super) async fn come_from_socket(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Local);
    next.run(request).await
}

/// Returns who asks. On the admin listener who has a session or the password is that account, everybody else nobody; on the Unix socket it
/// is an operator of this machine or a component's process.
///
/// # Errors
/// The answer to somebody whose password or token is wrong, or whom the Unix socket is not for.
pub(super) async fn identify(app: &Shared, request: &mut Request) -> Result<Principal, Problem> {
    if request.extensions().get::<Local>().is_none() {
        let headers = request.headers().clone();
        return match account(app, &headers).await {
            Ok(Some(account)) => Ok(Principal::Operator { account, door: Door::Web }),
            Ok(None) => Ok(Principal::Anonymous),
            Err(error) => Err(unknown(error)),
        };
    }
    let Some(caller) = request.extensions_mut().remove::<Arc<Caller>>() else {
        return Err(not_known(&IdentityError::Gone));
    };
    let token =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let registry = &app.context.registry;
    let principal = match token {
        Some(token) => Principal::by_token(token.trim(), &caller, &app.config, registry),
        None => Principal::without_token(&caller, &app.config, registry, &app.operators),
    };
    principal.map_err(|error| not_known(&error))
}

fn not_known(error: &IdentityError) -> Problem {
    let detail = refit_base::Chain(error).to_string();
    Problem::new(StatusCode::FORBIDDEN, error.code(), error.exit(), detail, error.remedy())
}

/// Returns the answer to `principal` if it may not do what a route takes; `None` if it may.
pub(super) fn authorize(
    app: &Shared,
    principal: &Principal,
    permission: Permission,
    reads: bool,
    request: &Request,
) -> Option<Problem> {
    if !reads
        && let Some(component) = principal.component_name()
        && let Err(error) = app.peers.may_ask(component)
    {
        let (_, code) = error.code();
        let detail = error.to_string();
        return Some(Problem::new(StatusCode::TOO_MANY_REQUESTS, code, Exit::TryLater, detail, error.remedy()));
    }
    match principal.may(permission).err()? {
        Forbidden::Unknown => Some(not_logged_in()),
        Forbidden::Look(reason) => Some(not_permitted(&reason, None)),
        Forbidden::Change(reason) => {
            let asked = if let Permission::Request(kind) = permission {
                kind.name().to_owned()
            } else {
                format!("{} {}", request.method(), request.uri().path())
            };
            Some(refuse(app, principal, &asked, &reason))
        }
    }
}

/// Returns the answer to somebody who has to log in first.
pub(super) fn not_logged_in() -> Problem {
    unknown(LoginError::Wrong)
}

/// Returns why `principal` may not make a request; `None` if it may.
pub(super) fn forbidden_request(app: &Shared, principal: &Principal, kind: RequestKind) -> Option<Problem> {
    principal.forbids(kind).map(|reason| refuse(app, principal, kind.name(), &reason))
}

/// Refuses a change: there is a ticket that says so.
fn refuse(app: &Shared, principal: &Principal, what: &str, reason: &str) -> Problem {
    let ticket = requests::refuse(&app.context.registry, &app.bus, what, &principal.origin(), reason);
    not_permitted(reason, Some(&ticket.id))
}

/// Returns the answer to somebody who is known, and may not do this.
pub(super) fn not_permitted(reason: &str, ticket: Option<&str>) -> Problem {
    let ticket = ticket.map(|id| format!(" (ticket {id})")).unwrap_or_default();
    let detail = format!("not permitted: {reason}{ticket}");
    let remedy = "allow it in appliance.toml, or have the operator ask";
    Problem::new(StatusCode::FORBIDDEN, "not_permitted", Exit::Usage, detail, remedy)
}

/// A browser says where a request comes from; one that changes something must come from our own page.
fn is_foreign(request: &Request) -> bool {
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    !reads && request.headers().get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

/// Returns the account of a session or of a password; `None` if the request has neither, or a session that has ended.
///
/// # Errors
/// The password is wrong, or there were too many wrong ones.
async fn account(app: &Shared, headers: &axum::http::HeaderMap) -> Result<Option<String>, LoginError> {
    let sessions = &app.context.registry.sessions;
    if let Some(user) = token(headers).and_then(|token| sessions.user(token)) {
        return Ok(Some(user));
    }
    let Some(given) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let (user, password) = given
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("Basic "))
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text.trim()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned())))
        .ok_or(LoginError::Wrong)?;
    check(app, user, password).await.map(Some)
}

/// Checks a password where its hashing holds nobody up.
pub(super) async fn check(app: &Shared, user: String, password: String) -> Result<String, LoginError> {
    let app = Arc::clone(app);
    let work = move || app.context.registry.sessions.check_password(&app.context.home, &user, &password).map(|()| user);
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LoginError::Wrong))
}
