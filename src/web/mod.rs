//! The page: embedded at build time, served as it is. It reads and asks through the API and decides nothing.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

/// Nothing from anywhere else, nothing inline: what an attacker could put into a name or a log line stays text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// One file of the page: path, type, content.
type Asset = (&'static str, &'static str, &'static str);

const ASSETS: [Asset; 7] = [
    ("/", "text/html; charset=utf-8", include_str!("assets/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("assets/app.js")),
    ("/lib.js", "text/javascript; charset=utf-8", include_str!("assets/lib.js")),
    ("/package.js", "text/javascript; charset=utf-8", include_str!("assets/package.js")),
    ("/tables.js", "text/javascript; charset=utf-8", include_str!("assets/tables.js")),
    ("/style.css", "text/css; charset=utf-8", include_str!("assets/style.css")),
    ("/favicon.svg", "image/svg+xml", include_str!("assets/favicon.svg")),
];

/// Returns the routes of the page.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(move || async move { serve(kind, content) }))
    })
}

fn serve(kind: &'static str, content: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // An update replaces the page, too.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content)
}
