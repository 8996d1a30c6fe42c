//! Who asks, and whether they may: on the Unix socket the operators of the machine and components, on the admin listener who has logged
//! in. The table of routes says what that one has to be allowed.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use refit_base::{Exit, Reported};
use refit_bus::RequestKind;

use super::{Problem, Shared};
use crate::access::permission::{Forbidden, Permission};
use crate::access::principal::{Door, IdentityError, Principal};
use crate::auth::{From, Login, LoginError};
use crate::http::RemoteAddress;
use crate::process::caller::Caller;
use crate::requests;

/// The cookie that holds a session's token.
pub(super) const COOKIE: &str = "refit_session";

/// The header with a session's second secret: for what changes something.
pub(super) const SECRET: &str = "refit-secret";

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
        LoginError::Busy => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_logins",
            Exit::TryLater,
            error.to_string(),
            "try again in a few seconds",
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
        LoginError::TooMany | LoginError::Busy => unknown(error),
    }
}

/// Returns what may be the session's token in the request's cookies: a page on another port of this machine may have set others of its name.
pub(super) fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

/// Returns what follows the `scheme` in the request's header Authorization (RFC 9110, 11.4).
fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (found, credentials) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
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
        let (headers, from) = (request.headers().clone(), from(request));
        let Some(login) = login(app, &headers, from).await.map_err(unknown)? else { return Ok(Principal::Anonymous) };
        let account = login.user.clone();
        request.extensions_mut().insert(login);
        return Ok(Principal::Operator { account, door: Door::Web });
    }
    let Some(caller) = request.extensions_mut().remove::<Arc<Caller>>() else {
        return Err(not_known(&IdentityError::Gone));
    };
    let token = credentials(request.headers(), "Bearer").map(str::to_owned);
    let registry = &app.context.registry;
    let principal = match token {
        Some(token) => Principal::by_token(&token, &caller, &app.config, registry),
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

/// Returns where a request on the admin listener comes from.
pub(super) fn from(request: &Request) -> From {
    request.extensions().get::<RemoteAddress>().map(|address| address.0)
}

/// Returns who a session or a password says it is; `None` if the request has neither, or a session that has ended.
///
/// # Errors
/// The password is wrong, or there were too many wrong ones.
async fn login(app: &Shared, headers: &HeaderMap, from: From) -> Result<Option<Login>, LoginError> {
    let (sessions, home) = (&app.context.registry.sessions, &app.context.home);
    if let Some(login) = tokens(headers).find_map(|token| sessions.find(home, token)) {
        return Ok(Some(login));
    }
    if !headers.contains_key(header::AUTHORIZATION) {
        return Ok(None);
    }
    let (user, password) = credentials(headers, "Basic")
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned())))
        .ok_or(LoginError::Wrong)?;
    sessions.check_password(home, &user, &password, from).await.map(Some)
}

/// Done when `login` is good for nothing any more; never if there is none: who is known by the kernel stays that.
pub(super) async fn ended(app: &Shared, login: Option<&Login>) {
    match login {
        Some(login) => app.context.registry.sessions.ended(&app.context.home, login).await,
        None => std::future::pending().await,
    }
}

/// Returns the answer to a change that has a session's cookie and not its second secret; `None` for all others.
pub(super) fn lacks_secret(app: &Shared, request: &Request) -> Option<Problem> {
    let login = request.extensions().get::<Login>().filter(|login| login.is_by_session())?;
    let given = request.headers().get(SECRET).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if app.context.registry.sessions.is_secret(login, given) {
        return None;
    }
    let detail = "the request has a session's cookie, which a browser sends to other pages of this machine, too, and not the session's secret";
    let remedy =
        "log in again; a program sends the `secret` that POST /api/v1/session answers with as the header Refit-Secret";
    Some(Problem::new(StatusCode::FORBIDDEN, "secret_missing", Exit::Usage, detail, remedy))
}
