//! The page: embedded at build time, served as it is. It reads and asks through the API and decides nothing.

use std::borrow::Cow;

use axum::http::header;
use axum::response::IntoResponse;

use crate::wire::step;

/// Nothing from anywhere else, nothing inline: what an attacker could put into a name or a log line stays text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// One file of the page.
pub(crate) struct Asset {
    /// Its address.
    pub(crate) path: &'static str,
    kind: &'static str,
    content: Content,
}

/// What a file of the page holds.
enum Content {
    /// This text.
    Text(&'static str),
    /// The steps of an update.
    Steps,
}

const fn asset(path: &'static str, kind: &'static str, content: &'static str) -> Asset {
    Asset { path, kind, content: Content::Text(content) }
}

/// The files of the page.
pub(crate) static ASSETS: [Asset; 8] = [
    asset("/", "text/html; charset=utf-8", include_str!("assets/index.html")),
    asset("/app.js", "text/javascript; charset=utf-8", include_str!("assets/app.js")),
    asset("/lib.js", "text/javascript; charset=utf-8", include_str!("assets/lib.js")),
    asset("/package.js", "text/javascript; charset=utf-8", include_str!("assets/package.js")),
    Asset { path: "/steps.js", kind: "text/javascript; charset=utf-8", content: Content::Steps },
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
        let content = match self.content {
            Content::Text(text) => Cow::Borrowed(text),
            // There is nothing in a step that JSON cannot say.
            Content::Steps => {
                let steps = serde_json::to_string(&step::shown()).unwrap_or_default();
                Cow::Owned(format!("export const STEPS = {steps};\n"))
            }
        };
        (headers, content)
    }
}
