//! Where a request says that it comes from, and which appliance it says that it means: what keeps the pages of others out.
//!
//! A browser says of each request which page made it (`Origin`, `Sec-Fetch-Site`) and by which name it was led here (`Host`). Pages of
//! other sites change nothing; nor does one on another port of this machine. A name that is not the appliance's is a name that
//! somebody else has made lead here (DNS rebinding): a page that came by it gets no session. Programs say none of that and are not asked.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use refit_base::Exit;

use super::{Problem, Shared};

/// Before every route: a request says which host it means, once (RFC 9112, 3.2).
pub(super) async fn name_one_host(request: Request, next: Next) -> Response {
    let count = request.headers().get_all(header::HOST).iter().count();
    if count > 1 || (count == 0 && request.version() == Version::HTTP_11) {
        let detail = if count == 0 { "the request has no Host" } else { "the request has more than one Host" };
        return Problem::new(StatusCode::BAD_REQUEST, "bad_request", Exit::Usage, detail, "send one header Host")
            .into_response();
    }
    next.run(request).await
}

/// Before every route of the admin listener.
pub(super) async fn come_from_page(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if is_foreign(request.method(), headers) {
        let detail = "the request comes from another site's page";
        return Problem::new(StatusCode::FORBIDDEN, "cross_site", Exit::Usage, detail, "use the appliance's own page")
            .into_response();
    }
    if is_by_browser(headers) && !is_called(host(headers), &app.config.names, &hostname()) {
        let named = host(headers).chars().take(100).collect::<String>();
        let detail = format!("this appliance is not known by the name {named:?}");
        let remedy = "use its address or its host name, or add the name to `names` below [api] in local.toml";
        return Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown_host", Exit::Usage, detail, remedy)
            .into_response();
    }
    next.run(request).await
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn host(headers: &HeaderMap) -> &str {
    text(headers, header::HOST).unwrap_or_default()
}

/// Returns whether a request comes from a page that was fetched without TLS: with it, a name that somebody else has made lead here has no
/// certificate. One that shows a password or a token means this appliance, by whatever name.
fn is_by_browser(headers: &HeaderMap) -> bool {
    let of_page = text(headers, header::ORIGIN).is_some_and(|origin| origin.starts_with("http://"));
    of_page && !headers.contains_key(header::AUTHORIZATION)
}

/// Returns whether it would change something and comes from a page that is not the appliance's own.
fn is_foreign(method: &Method, headers: &HeaderMap) -> bool {
    if method == Method::GET || method == Method::HEAD {
        return false;
    }
    // A browser says which page it is, wherever it is able to; only where it does not the two addresses are compared: a proxy may have put its
    // own for `Host`.
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    // A page that may not say where it is says "null".
    text(headers, header::ORIGIN).is_some_and(|origin| {
        !origin.split_once("://").is_some_and(|(_scheme, place)| place.eq_ignore_ascii_case(host(headers)))
    })
}

/// Returns whether an appliance on the machine `hostname`, with these further `names`, is called `host`, which may end with a port.
fn is_called(host: &str, names: &[String], hostname: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _port)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let first_label = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    name.parse::<Ipv4Addr>().is_ok()
        || name.parse::<Ipv6Addr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || (!hostname.is_empty() && first_label(&name) == first_label(hostname))
        || names.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

/// Returns the name of this machine; empty if it has none.
fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appliance_is_called_by_its_addresses_and_by_its_names() {
        let names = ["shop.example".to_owned()];
        for host in [
            "127.0.0.1:8443",
            "[::1]:8443",
            "[fe80::1]",
            "192.0.2.7",
            "localhost:80",
            "a.localhost",
            "BOX",
            "box.local:8443",
            "box.customer.example.",
            "shop.example:8443",
            "SHOP.example",
        ] {
            assert!(is_called(host, &names, "box.lan"), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8443",
            "shop.example.evil.example",
            "notbox.lan",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_called(host, &names, "box.lan"), "{host}");
        }
        assert!(!is_called("", &[], ""), "a machine without a name");
    }

    #[test]
    fn a_page_of_others_changes_nothing() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().expect("a value"));
            }
            headers
        };
        let own = [("host", "box:8443"), ("origin", "http://box:8443")];
        let port = [("host", "box:8443"), ("origin", "http://box:8080")];
        let null = [("host", "box:8443"), ("origin", "null")];
        let site = [("host", "box:8443"), ("sec-fetch-site", "same-site")];
        let proxy = [("host", "127.0.0.1:8443"), ("origin", "https://box.example"), ("sec-fetch-site", "same-origin")];
        for (pairs, is_its) in
            [(&own[..], true), (&port, false), (&null, false), (&site, false), (&proxy, true), (&own[..1], true)]
        {
            assert_eq!(is_foreign(&Method::POST, &headers(pairs)), !is_its, "{pairs:?}");
            assert!(!is_foreign(&Method::GET, &headers(pairs)), "{pairs:?}");
        }
    }
}
