//! Every route, in one table: method, path, what it takes, who handles it.
//!
//! What a row says is asked before its handler runs (`access`), which then finds the principal in the request's extensions; a route that is
//! in no row does not exist.

use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use refit_bus::RequestKind;
use utoipa::openapi::OpenApi;

use super::{
    Problem, Shared, access, bus, components, events, extract, logs, metrics, origin, packages, releases, session,
};
use super::{openapi, status, updates};
use crate::access::permission::Permission;
use crate::access::principal::Principal;
use crate::web;

/// One row of the table.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) permission: Permission,
    /// Whether it works with the files of the home: while that is not where it was, what they are said to lack would be wrong.
    needs_home: bool,
    handler: MethodRouter<Shared>,
}

/// Returns a row: GET, which is HEAD, too (RFC 9110, 9.3.2).
fn get<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Shared>) -> Route {
    row(Method::GET, MethodFilter::GET, path, permission, handler)
}

fn post<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Shared>) -> Route {
    row(Method::POST, MethodFilter::POST, path, permission, handler)
}

fn put<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Shared>) -> Route {
    row(Method::PUT, MethodFilter::PUT, path, permission, handler)
}

fn delete<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Shared>) -> Route {
    row(Method::DELETE, MethodFilter::DELETE, path, permission, handler)
}

fn row<T: 'static>(
    method: Method,
    filter: MethodFilter,
    path: &'static str,
    permission: Permission,
    handler: impl Handler<T, Shared>,
) -> Route {
    Route { method, path, permission, needs_home: false, handler: on(filter, handler) }
}

impl Route {
    /// Says that it works with the files of the home.
    fn in_home(self) -> Self {
        Self { needs_home: true, ..self }
    }
}

/// Returns every route.
pub(super) fn table() -> Vec<Route> {
    use Permission::{AnyRequest, Operate, Public, Publish, Read, Request as Ask, Session, Status, Ticket};
    use RequestKind::{Rollback, Update};
    let mut table = vec![
        get("/healthz", Public, status::healthz),
        get("/metrics", Read, metrics::metrics),
        get("/api/v1/openapi.json", Status, describe),
        get("/api/v1/status", Status, status::status),
        get("/api/v1/history", Read, status::history).in_home(),
        get("/api/v1/components", Read, components::list),
        get("/api/v1/components/{name}/logs", Read, logs::logs),
        post("/api/v1/components/{name}/{action}", Operate, components::act),
        get("/api/v1/events", Read, events::stream),
        get("/api/v1/bus", Read, bus::show),
        post("/api/v1/bus/publications", Publish, bus::publish),
        post("/api/v1/bus/requests", AnyRequest, bus::request),
        get("/api/v1/bus/requests/{id}", Ticket, bus::ticket),
        post("/api/v1/session", Public, session::begin),
        delete("/api/v1/session", Session, session::end),
        get("/api/v1/releases", Read, releases::list).in_home(),
        delete("/api/v1/releases/{version}", Ask(Update), releases::remove).in_home(),
        get("/api/v1/packages", Read, packages::list).in_home(),
        put("/api/v1/packages", Ask(Update), packages::receive).in_home(),
        post("/api/v1/packages", Ask(Update), packages::fetch).in_home(),
        delete("/api/v1/packages/{digest}", Ask(Update), packages::discard).in_home(),
        get("/api/v1/repository", Read, packages::check).in_home(),
        post("/api/v1/updates", Ask(Update), updates::update).in_home(),
        post("/api/v1/rollback", Ask(Rollback), updates::rollback).in_home(),
    ];
    table.extend(web::ASSETS.iter().map(|asset| get(asset.path, Public, move || async move { asset.serve() })));
    table
}

/// Returns method, path and permission of every route, in the words of the documentation.
pub fn routes_with_permissions() -> Vec<(String, &'static str, &'static str)> {
    table().into_iter().map(|route| (route.method.to_string(), route.path, route.permission.name())).collect()
}

/// Returns the description of the API, as `GET /api/v1/openapi.json` answers it.
pub fn description() -> OpenApi {
    openapi::document(&routes_with_permissions())
}

async fn describe() -> Json<OpenApi> {
    Json(description())
}

/// Returns the routes of the table, each behind what it takes. Who asks has to be known before them.
pub(super) fn routes(app: Shared) -> Router {
    let add = |router: Router<Shared>, Route { method, path, permission, needs_home, handler }: Route| {
        let handler = if needs_home {
            handler.route_layer(from_fn_with_state(std::sync::Arc::clone(&app), require_home))
        } else {
            handler
        };
        let gate = Gate { app: std::sync::Arc::clone(&app), permission, reads: method == Method::GET };
        router.route(path, handler.route_layer(from_fn_with_state(gate, require_permission)))
    };
    let router = table().into_iter().fold(Router::new(), add);
    router
        .fallback(|State(app): State<Shared>, request: Request| {
            unrouted(app, request, Problem::missing("there is nothing at this address"))
        })
        .method_not_allowed_fallback(|State(app): State<Shared>, request: Request| {
            let asked = format!("{} {}", request.method(), request.uri().path());
            unrouted(app, request, Problem::not_allowed(&asked))
        })
        .layer(from_fn(extract::or_problem))
        .layer(from_fn(describe_answers))
        .layer(from_fn(origin::name_one_host))
        .with_state(app)
}

/// What stands before a handler.
#[derive(Clone)]
struct Gate {
    app: Shared,
    permission: Permission,
    /// Whether the route changes nothing.
    reads: bool,
}

/// Finds out who asks, and refuses who may not do what the route takes. What is public asks nobody for an account.
async fn require_permission(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if gate.permission == Permission::Public {
        return next.run(request).await;
    }
    let principal = match access::identify(&gate.app, &mut request).await {
        Ok(principal) => principal,
        Err(unknown) => return unknown.into_response(),
    };
    if !gate.reads
        && gate.permission != Permission::Session
        && let Some(problem) = access::lacks_secret(&gate.app, &request)
    {
        return problem.into_response();
    }
    if let Some(forbidden) = access::authorize(&gate.app, &principal, gate.permission, gate.reads, &request) {
        return forbidden.into_response();
    }
    request.extensions_mut().insert(principal);
    next.run(request).await
}

/// Refuses what needs the home while that is not where it was.
async fn require_home(State(app): State<Shared>, request: Request, next: Next) -> Response {
    match app.context.home.require() {
        Ok(()) => next.run(request).await,
        Err(moved) => Problem::reported(StatusCode::SERVICE_UNAVAILABLE, &moved).into_response(),
    }
}

/// Says of every answer of the API that it is what it says, and only for who asked.
async fn describe_answers(request: Request, next: Next) -> Response {
    let is_api = request.uri().path().starts_with("/api/");
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if is_api {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    answer
}

/// Answers with `problem`; who is not known learns nothing of the API's addresses.
async fn unrouted(app: Shared, mut request: Request, problem: Problem) -> Problem {
    if !request.uri().path().starts_with("/api/") {
        return problem;
    }
    match access::identify(&app, &mut request).await {
        Ok(Principal::Anonymous) => access::not_logged_in(),
        Ok(Principal::Operator { .. } | Principal::Component { .. }) => problem,
        Err(unknown) => unknown,
    }
}
