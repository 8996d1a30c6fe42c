//! Who asks, and whether they may: on the Unix socket whoever can open it, on the admin listener who has the password.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;

use super::connection::Peer;
use super::{Problem, Shared};
use crate::auth::Refusal;
use crate::error::Exit;

/// The cookie that holds a session's token.
pub(super) const COOKIE: &str = "refit_session";

/// Who asks, as log and history show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who(pub(super) String);

/// Returns the answer to somebody who is not known.
pub(super) fn unknown(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Wrong => Problem::new(
            StatusCode::UNAUTHORIZED,
            "not_logged_in",
            Exit::Usage,
            "the account or the password is wrong, or you are not logged in",
            "log in with the admin's password; `refit user passwd` on the appliance sets a new one",
        ),
        Refusal::TooMany => Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_logins",
            Exit::TryLater,
            "too many wrong passwords",
            "wait a minute, then try again",
        ),
    }
}

/// Returns the answer to a login that failed.
pub(super) fn refused(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Wrong => Problem::new(
            StatusCode::UNAUTHORIZED,
            "wrong_password",
            Exit::Usage,
            "the account or the password is wrong",
            "try again; `refit user passwd` on the appliance sets a new password",
        ),
        Refusal::TooMany => unknown(refusal),
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
        return next.run(request).await;
    }
    let headers = request.headers().clone();
    match account(&app, &headers).await {
        Ok(user) => {
            request.extensions_mut().insert(Who(format!("{user} (web)")));
            next.run(request).await
        }
        Err(refusal) => unknown(refusal).into_response(),
    }
}

/// Whoever can open the Unix socket may ask everything: its file's permissions decide.
pub(super) async fn trust_socket(mut request: Request, next: Next) -> Response {
    let peer = request.extensions_mut().remove::<Peer>();
    let who = peer.map_or_else(|| "somebody (local)".to_owned(), |Peer(name)| format!("{name} (local)"));
    request.extensions_mut().insert(Who(who));
    next.run(request).await
}

/// Returns the name of the account `uid`, or its number if it has none.
pub(super) fn account_name(uid: u32) -> Peer {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    Peer(user.map_or_else(|| format!("uid {uid}"), |user| user.name).into())
}

/// A browser says where a request comes from; one that changes something must come from our own page.
fn is_foreign(request: &Request) -> bool {
    request.method() != Method::GET
        && request.headers().get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

fn is_open(request: &Request) -> bool {
    let path = request.uri().path();
    if path == "/api/v1/session" {
        return request.method() == Method::POST;
    }
    request.method() == Method::GET && !path.starts_with("/api/") && path != "/metrics"
}

async fn account(app: &Shared, headers: &axum::http::HeaderMap) -> Result<String, Refusal> {
    let sessions = &app.around.estate.sessions;
    if let Some(user) = token(headers).and_then(|token| sessions.user(token)) {
        return Ok(user);
    }
    let (user, password) = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Basic "))
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text.trim()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned())))
        .ok_or(Refusal::Wrong)?;
    check(app, user, password).await
}

/// Checks a password where its hashing holds nobody up.
pub(super) async fn check(app: &Shared, user: String, password: String) -> Result<String, Refusal> {
    let app = Arc::clone(app);
    let work = move || app.around.estate.sessions.check_password(&app.around.home, &user, &password).map(|()| user);
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Refusal::Wrong))
}
