//! The description of the API (OpenAPI 3.1), made of the types in `wire` and the table of routes.
//!
//! What a row of that table does is said here, an entry each; what it takes and answers are the types that its handler reads and
//! writes. `docs/openapi.json` is the same as a file, which a test compares.

use axum::http::StatusCode;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::path::{Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathsBuilder};
use utoipa::openapi::request_body::{RequestBody as Body, RequestBodyBuilder};
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    ContentBuilder, HttpMethod, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required, Response,
    ResponseBuilder, Schema,
};

use super::access::COOKIE;
use super::error::PROBLEM;
use crate::wire::{
    Acted, Bus, Components, Destination, EventRecord, FetchBody, History, LogLine, LogLines, Login, Package, Packages,
    Problem, Publication, Published, Releases, Removed, Repository, RequestBody, Session, Status, TicketAnswer,
};

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";
const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";
/// A digest, as a pattern.
const DIGEST: &str = "^[0-9a-f]{64}$";

/// A route: method, path, and what it takes.
pub(super) type Row = (String, &'static str, &'static str);

/// Collects the schemas of the types that are named.
struct Types(ComponentsBuilder);

impl Types {
    /// Returns a reference to the schema of `T`, whose own types are collected, too.
    fn of<T: ToSchema>(&mut self) -> RefOr<Schema> {
        let mut inner = Vec::new();
        T::schemas(&mut inner);
        self.0 = std::mem::take(&mut self.0).schema_from::<T>().schemas_from_iter(inner);
        Ref::from_schema_name(T::name()).into()
    }
}

/// What is said of a route.
struct Entry {
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    body: Option<Body>,
    answers: Vec<(u16, Response)>,
    /// The statuses of the problems that are its own.
    problems: &'static [u16],
}

impl Entry {
    fn new(id: &'static str, summary: &'static str) -> Self {
        Self { id, summary, parameters: Vec::new(), body: None, answers: Vec::new(), problems: &[] }
    }

    fn with(mut self, parameters: impl IntoIterator<Item = Parameter>) -> Self {
        self.parameters.extend(parameters);
        self
    }

    fn taking(self, required: bool, kind: &str, schema: RefOr<Schema>) -> Self {
        let required = if required { Required::True } else { Required::False };
        let content = ContentBuilder::new().schema(Some(schema)).build();
        Self { body: Some(RequestBodyBuilder::new().content(kind, content).required(Some(required)).build()), ..self }
    }

    fn answering(
        mut self,
        status: u16,
        about: &str,
        contents: impl IntoIterator<Item = (&'static str, RefOr<Schema>)>,
    ) -> Self {
        let content = |schema| ContentBuilder::new().schema(Some(schema)).build();
        let response =
            contents.into_iter().fold(ResponseBuilder::new().description(about), |response, (kind, schema)| {
                response.content(kind, content(schema))
            });
        self.answers.push((status, response.build()));
        self
    }

    fn failing(self, problems: &'static [u16]) -> Self {
        Self { problems, ..self }
    }
}

/// Returns the description of the API that has these `routes`. What is not part of it, such as the page, is left out.
pub(super) fn document(routes: &[Row]) -> OpenApi {
    let mut types = Types(ComponentsBuilder::new());
    let problem = types.of::<Problem>();
    let mut paths = PathsBuilder::new();
    for (method, path, permission) in routes {
        let (Some(http), Some(entry)) = (http_method(method), entry(method, path, &mut types)) else { continue };
        let operation = operation(entry, permission, &problem);
        paths = paths.path(*path, utoipa::openapi::PathItem::new(http, operation));
    }
    let info = InfoBuilder::new()
        .title("Refit")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The API of a self-updating appliance: on the Unix socket `run/refit.sock` of its home, and, for who has signed in, on the \
             admin listener. Fields and names may be added: a reader passes over what it does not know.",
        ))
        .license(Some(LicenseBuilder::new().name("MIT OR Apache-2.0").build()))
        .build();
    let cookie = ApiKeyValue::with_description(COOKIE, "A session of the page, begun with `POST /api/v1/session`.");
    let basic =
        HttpBuilder::new().scheme(HttpAuthScheme::Basic).description(Some("An account of the page and its password."));
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "On the Unix socket: the `REFIT_TOKEN` of a component's process. Operators need none there.",
    ));
    let components = types
        .0
        .security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)))
        .security_scheme("password", SecurityScheme::Http(basic.build()))
        .security_scheme("token", SecurityScheme::Http(token.build()));
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components.build())).build()
}

fn http_method(name: &str) -> Option<HttpMethod> {
    match name {
        "GET" => Some(HttpMethod::Get),
        "POST" => Some(HttpMethod::Post),
        "PUT" => Some(HttpMethod::Put),
        "DELETE" => Some(HttpMethod::Delete),
        _ => None,
    }
}

fn operation(entry: Entry, permission: &str, problem: &RefOr<Schema>) -> Operation {
    let is_public = permission == "public";
    let described = |about: &str| {
        let content = ContentBuilder::new().schema(Some(problem.clone())).build();
        ResponseBuilder::new().description(about).content(PROBLEM, content).build()
    };
    let common: &[u16] = if is_public { &[] } else { &[401, 403, 429] };
    let mut builder = OperationBuilder::new()
        .operation_id(Some(entry.id))
        .summary(Some(entry.summary))
        .description(Some(format!("Permission: {permission}.")))
        .request_body(entry.body);
    for parameter in entry.parameters {
        builder = builder.parameter(parameter);
    }
    for (status, response) in entry.answers {
        builder = builder.response(status.to_string(), response);
    }
    for status in common.iter().chain(entry.problems) {
        builder = builder.response(status.to_string(), described(meaning(*status)));
    }
    builder = builder.response("default", described("What failed, why, and what to do."));
    if !is_public {
        let schemes = ["session", "password", "token"];
        builder = builder.securities(Some(schemes.map(|name| SecurityRequirement::new::<_, _, String>(name, []))));
    }
    builder.build()
}

/// Returns what a problem with this status says.
fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request is not understood.",
        401 => "Nobody is signed in, or the password is wrong.",
        403 => "Who asks is known, and may not do this.",
        404 => "There is no such thing.",
        409 => "Not now: something else is under way, or needs it.",
        413 => "The body is too large.",
        422 => "The package or the configuration is refused.",
        429 => "Too much at a time: try again later.",
        500 => "It was tried, and failed.",
        503 => "The appliance cannot do this at the moment.",
        507 => "The disk is full, or cannot be written to.",
        _ => StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("A problem."),
    }
}

fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).build().into()
}

fn pattern(pattern: &str, example: &str) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).examples([example]).build().into()
}

fn number(example: u64) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).examples([example]).build().into()
}

fn flag() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Boolean).default(Some(Value::Bool(false))).examples([true]).build().into()
}

fn in_path(name: &str, about: &str, schema: RefOr<Schema>) -> Parameter {
    parameter(ParameterIn::Path, name, about, schema)
}

fn in_query(name: &str, about: &str, schema: RefOr<Schema>) -> Parameter {
    parameter(ParameterIn::Query, name, about, schema)
}

fn parameter(place: ParameterIn, name: &str, about: &str, schema: RefOr<Schema>) -> Parameter {
    let required = if matches!(place, ParameterIn::Path) { Required::True } else { Required::False };
    let builder = ParameterBuilder::new().name(name).parameter_in(place).required(required);
    builder.description(Some(about)).schema(Some(schema)).build()
}

/// Returns the name of a component, as a parameter.
fn component() -> Parameter {
    in_path("name", "The component.", pattern("^[A-Za-z0-9._-]+$", "web"))
}

/// Returns what is said of a route; `None` if it is not part of the API.
fn entry(method: &str, path: &str, types: &mut Types) -> Option<Entry> {
    let about_site = site_entry(method, path, types);
    about_site.or_else(|| release_entry(method, path, types))
}

/// Returns what is said of a route that is about the site and its components.
fn site_entry(method: &str, path: &str, types: &mut Types) -> Option<Entry> {
    let last_seen =
        in_query("after", "The number of the last one that was seen: those after it are given.", number(17));
    let entry = match (method, path) {
        ("GET", "/healthz") => Entry::new("health", "Whether the appliance serves.")
            .answering(200, "It serves.", [(TEXT, text())])
            .answering(503, "It does not serve: where it stands.", [(TEXT, text())]),
        ("GET", "/metrics") => Entry::new("metrics", "The figures of the appliance, for Prometheus.").answering(
            200,
            "In Prometheus' text format.",
            [("text/plain; version=0.0.4", text())],
        ),
        ("GET", "/api/v1/openapi.json") => Entry::new("description", "This description.").answering(
            200,
            "An OpenAPI 3.1 document.",
            [(JSON, ObjectBuilder::new().build().into())],
        ),
        ("GET", "/api/v1/status") => Entry::new("status", "How the appliance is.").answering(
            200,
            "As it is now.",
            [(JSON, types.of::<Status>())],
        ),
        ("GET", "/api/v1/components") => Entry::new("components", "The components.").answering(
            200,
            "All of them, by name.",
            [(JSON, types.of::<Components>())],
        ),
        ("GET", "/api/v1/components/{name}/logs") => {
            let contents = [(JSON, types.of::<LogLines>()), (NDJSON, types.of::<LogLine>()), (SSE, text())];
            Entry::new("logs", "What a component printed. With `follow`, what it prints from now on, too: as Server-Sent Events each `data` is a line in JSON.")
                .with([component(), in_query("n", "How many lines: 100 if nothing is said.", number(100)), last_seen])
                .with([in_query("follow", "Whether the answer goes on until the runtime ends.", flag())])
                .answering(
                    200,
                    "Lines, the oldest first. The header `Refit-Cursor` of a stream has the number to go on from.",
                    contents,
                )
                .failing(&[400, 404])
        }
        ("POST", "/api/v1/components/{name}/{action}") => {
            let actions =
                ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["start", "stop", "restart"]));
            Entry::new("act", "Starts, stops or restarts one component, and waits for the outcome.")
                .with([component(), in_path("action", "What to do.", actions.examples(["restart"]).build().into())])
                .answering(200, "It is done.", [(JSON, types.of::<Acted>())])
                .failing(&[404, 500])
        }
        ("GET", "/api/v1/events") => Entry::new(
            "events",
            "What happens, as it happens. The answer does not end by itself.",
        )
        .with([last_seen])
        .answering(
            200,
            "Events, as Server-Sent Events, whose `data` is that of the event with its time in `at`, or as JSON lines.",
            [(SSE, text()), (NDJSON, types.of::<EventRecord>())],
        )
        .failing(&[400]),
        ("GET", "/api/v1/bus") => {
            Entry::new("bus", "The bus as it stands.").answering(200, "As it is now.", [(JSON, types.of::<Bus>())])
        }
        ("POST", "/api/v1/bus/publications") => Entry::new(
            "publish",
            "Publishes on a channel of the appliance's own, and waits for what the listeners answer.",
        )
        .taking(true, JSON, types.of::<Publication>())
        .answering(200, "What each listener answered.", [(JSON, types.of::<Published>())])
        .failing(&[400, 404, 413, 503]),
        ("POST", "/api/v1/bus/requests") => Entry::new("request", "Makes a request. It is followed by its ticket.")
            .taking(true, JSON, types.of::<RequestBody>())
            .answering(202, "It is taken: the ticket.", [(JSON, types.of::<TicketAnswer>())])
            .failing(&[400, 404, 409, 413, 422, 503]),
        ("GET", "/api/v1/bus/requests/{id}") => Entry::new("ticket", "A ticket: what has become of a request.")
            .with([in_path("id", "Its name.", pattern("^[0-9a-z-]+$", "18c2f1-3"))])
            .with([in_query(
                "wait_ms",
                "How long the answer waits for an outcome, in milliseconds; at most 60000.",
                number(10_000),
            )])
            .answering(200, "The ticket.", [(JSON, types.of::<TicketAnswer>())])
            .failing(&[400, 404]),
        ("POST", "/api/v1/session") => Entry::new("sign_in", "Signs in: the answer sets the cookie of a session.")
            .taking(true, JSON, types.of::<Login>())
            .answering(200, "Who is signed in.", [(JSON, types.of::<Session>())])
            .failing(&[400, 401, 403, 413, 429]),
        ("DELETE", "/api/v1/session") => {
            Entry::new("sign_out", "Signs out.").answering(204, "The session has ended.", [])
        }
        _ => return None,
    };
    Some(entry)
}

/// Returns what is said of a route that is about releases and packages.
fn release_entry(method: &str, path: &str, types: &mut Types) -> Option<Entry> {
    let digest = || pattern(DIGEST, "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08");
    let entry = match (method, path) {
        ("GET", "/api/v1/history") => Entry::new("history", "What was tried on the appliance.")
            .answering(200, "The attempts that have ended, the newest first.", [(JSON, types.of::<History>())])
            .failing(&[500, 503]),
        ("GET", "/api/v1/releases") => Entry::new("releases", "The releases on the disk, and the packages that wait.")
            .answering(200, "The newest first.", [(JSON, types.of::<Releases>())])
            .failing(&[500, 503]),
        ("DELETE", "/api/v1/releases/{version}") => {
            Entry::new("remove_release", "Removes a release that nothing needs, and its configuration.")
                .with([in_path("version", "Its version.", pattern(r"^\d+\.\d+\.\d+", "1.0.0"))])
                .answering(200, "It is removed.", [(JSON, types.of::<Removed>())])
                .failing(&[400, 404, 409, 500, 503])
        }
        ("GET", "/api/v1/packages") => Entry::new("packages", "The packages that were received and wait.")
            .answering(200, "In the order in which they came.", [(JSON, types.of::<Packages>())])
            .failing(&[503]),
        ("PUT", "/api/v1/packages") => {
            let bytes = ObjectBuilder::new().schema_type(Type::String).build();
            Entry::new("receive", "Receives a package: it is verified and unpacked while it streams in.")
                .with([in_query(
                    "allow_downgrade",
                    "Whether a version is accepted that is not newer than the running one.",
                    flag(),
                )])
                .with([in_query("digest", "The digest that was approved: any other package is refused.", digest())])
                .taking(true, BYTES, bytes.into())
                .answering(201, "It waits to be installed.", [(JSON, types.of::<Package>())])
                .failing(&[400, 409, 422, 500, 503, 507])
        }
        ("POST", "/api/v1/packages") => Entry::new("fetch", "Fetches a release from the repository.")
            .taking(true, JSON, types.of::<FetchBody>())
            .answering(201, "It waits to be installed.", [(JSON, types.of::<Package>())])
            .failing(&[400, 404, 409, 413, 422, 500, 503, 507]),
        ("DELETE", "/api/v1/packages/{digest}") => Entry::new("discard", "Removes a package that waits.")
            .with([in_path("digest", "The digest of its manifest.", digest())])
            .answering(204, "It is removed.", [])
            .failing(&[400, 404, 500, 503]),
        ("GET", "/api/v1/repository") => Entry::new("repository", "Asks the repository what it offers.")
            .answering(200, "What it offers to this appliance.", [(JSON, types.of::<Repository>())])
            .failing(&[404, 409, 422, 500, 503]),
        ("POST", "/api/v1/updates") => Entry::new("update", "Goes to another release.")
            .taking(true, JSON, types.of::<Destination>())
            .answering(202, "The update has begun: its ticket.", [(JSON, types.of::<TicketAnswer>())])
            .failing(&[400, 404, 409, 413, 422, 500, 503]),
        ("POST", "/api/v1/rollback") => {
            Entry::new("roll_back", "Goes back to a release that was good: the previous one if none is named.")
                .taking(false, JSON, types.of::<Destination>())
                .answering(202, "The rollback has begun: its ticket.", [(JSON, types.of::<TicketAnswer>())])
                .failing(&[400, 404, 409, 413, 422, 500, 503])
        }
        _ => return None,
    };
    Some(entry)
}
