//! `POST` and `DELETE /api/v1/session`: logging in and out.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::extract::JsonBody;
use super::{Problem, Shared, access};
use crate::wire::{Login, Session};

pub(super) async fn begin(State(app): State<Shared>, JsonBody(login): JsonBody<Login>) -> Result<Response, Problem> {
    let user = login.user.unwrap_or_else(|| crate::auth::ADMIN.to_owned());
    let user = access::check(&app, user, login.password).await.map_err(access::refused)?;
    let token = app.context.registry.sessions.begin(&user);
    app.context.registry.save();
    let cookie = format!("{}={token}; Path=/; HttpOnly; SameSite=Strict", access::COOKIE);
    Ok(([(header::SET_COOKIE, cookie)], Json(Session { user })).into_response())
}

pub(super) async fn end(State(app): State<Shared>, headers: HeaderMap) -> Response {
    if let Some(token) = access::token(&headers) {
        app.context.registry.sessions.end(token);
        app.context.registry.save();
    }
    let cookie = format!("{}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0", access::COOKIE);
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response()
}
