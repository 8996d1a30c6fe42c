//! `POST` and `DELETE /api/v1/session`: logging in and out.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::extract::{JsonBody, LOGIN_BYTES_MAX};
use super::{Problem, Shared, access};
use crate::auth::{self, Begun};
use crate::http::RemoteAddress;
use crate::wire::{Login, Session};

pub(super) async fn begin(
    State(app): State<Shared>,
    from: Option<Extension<RemoteAddress>>,
    JsonBody(login): JsonBody<Login, LOGIN_BYTES_MAX>,
) -> Result<Response, Problem> {
    let (sessions, home) = (&app.context.registry.sessions, &app.context.home);
    let from = from.map(|Extension(address)| address.0);
    let user = login.user.as_deref().unwrap_or(auth::ADMIN);
    let login = sessions.check_password(home, user, &login.password, from).await.map_err(access::refused)?;
    let Begun { token, secret } = sessions.begin(&login, from);
    app.context.registry.save();
    let cookie = format!("{}={token}; Path=/; HttpOnly; SameSite=Strict", access::COOKIE);
    Ok(([(header::SET_COOKIE, cookie)], Json(Session { user: login.user, secret })).into_response())
}

pub(super) async fn end(State(app): State<Shared>, headers: HeaderMap) -> Response {
    for token in access::tokens(&headers) {
        app.context.registry.sessions.end(token);
    }
    app.context.registry.save();
    let cookie = format!("{}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0", access::COOKIE);
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response()
}
