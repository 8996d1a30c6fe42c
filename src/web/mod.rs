//! The page: embedded at build time, served as it is. It reads and asks through the API and decides nothing.

use axum::http::header;
use axum::response::IntoResponse;

/// Nothing from anywhere else, nothing inline: what an attacker could put into a name or a log line stays text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// One file of the page.
pub(crate) struct Asset {
    /// Its address.
    pub(crate) path: &'static str,
    kind: &'static str,
    content: &'static str,
}

const fn asset(path: &'static str, kind: &'static str, content: &'static str) -> Asset {
    Asset { path, kind, content }
}

/// The files of the page.
pub(crate) static ASSETS: [Asset; 7] = [
    asset("/", "text/html; charset=utf-8", include_str!("assets/index.html")),
    asset("/app.js", "text/javascript; charset=utf-8", include_str!("assets/app.js")),
    asset("/lib.js", "text/javascript; charset=utf-8", include_str!("assets/lib.js")),
    asset("/package.js", "text/javascript; charset=utf-8", include_str!("assets/package.js")),
    asset("/tables.js", "text/javascript; charset=utf-8", include_str!("assets/tables.js")),
    asset("/style.css", "text/css; charset=utf-8", include_str!("assets/style.css")),
    asset("/favicon.svg", "image/svg+xml", include_str!("assets/favicon.svg")),
];

impl Asset {
    /// Returns the answer that is this file.
    pub(crate) fn serve(&self) -> impl IntoResponse + use<> {
        let headers = [
            (header::CONTENT_TYPE, self.kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // An update replaces the page, too.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, self.content)
    }
}
