//! Requests that another site's page has a browser send.
//!
//! Nobody signs in to this server: who reaches it may change it, and a browser beside it reaches it for any page that is open
//! there. Browsers say where a request comes from; other programs say nothing. Who answers names wrongly (DNS rebinding) is not
//! found out by that: a page of theirs is this server's own to a browser.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::problem::Problem;

/// Lets through GET, HEAD and OPTIONS, and what no other site's page asks for.
pub(super) async fn admit(request: Request, next: Next) -> Response {
    let authority = request.uri().authority().map(Authority::as_str);
    if !request.method().is_safe() && is_foreign(request.headers(), authority) {
        let detail = "a page of another site may only read here";
        return Problem::new(StatusCode::FORBIDDEN, "foreign_origin", detail).into_response();
    }
    next.run(request).await
}

/// `authority` is the request's own, where its first line has one.
fn is_foreign(headers: &HeaderMap, authority: Option<&str>) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        // A browser from before that header.
        (None, Some(origin)) => {
            let host = authority.or_else(|| text(header::HOST.as_str()));
            origin.split_once("://").map(|(_, origin)| origin) != host
        }
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_are_told_apart() {
        for (fields, expected) in [
            (&[][..], false),
            (
                &[("sec-fetch-site", "same-origin"), ("origin", "https://proxied")],
                false,
            ),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "cross-site")], true),
            (
                &[("sec-fetch-site", "same-site"), ("origin", "http://here:8080")],
                true,
            ),
            (&[("origin", "http://here:8080")], false),
            (&[("origin", "http://here:3000")], true),
            (&[("origin", "http://there")], true),
            (&[("origin", "null")], true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "here:8080".parse().expect("a value"));
            for (name, value) in fields {
                headers.insert(*name, value.parse().expect("a value"));
            }
            assert_eq!(is_foreign(&headers, None), expected, "{fields:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("origin", "https://here".parse().expect("a value"));
        assert!(!is_foreign(&headers, Some("here")) && is_foreign(&headers, Some("there")));
    }
}
