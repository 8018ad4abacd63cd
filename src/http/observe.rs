//! A span, a log line and a measurement for every request, also for those that nobody waits for any more.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tower_http::request_id::RequestId;
use tracing::{Instrument as _, Span};

use crate::metrics;

pub(super) async fn observe(request: Request, next: Next) -> Response {
    let method = method_label(request.method());
    // The pattern, not the path: a caller must not choose a metric's labels.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let id = request
        .extensions()
        .get::<RequestId>()
        .and_then(|id| id.header_value().to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let span = tracing::info_span!("request", method, path = %request.uri().path(), id);
    let mut asked = Asked {
        started: Instant::now(),
        method,
        route,
        span: span.clone(),
        status: GIVEN_UP,
    };
    let response = next.run(request).instrument(span).await;
    asked.status = response.status().as_u16();
    response
}

/// The status of a request whose connection went away before it was answered: as nginx counts it.
const GIVEN_UP: u16 = 499;

/// A request; once it is dropped, it is measured.
struct Asked {
    started: Instant,
    method: &'static str,
    route: String,
    span: Span,
    status: u16,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        metrics::request_ended(self.method, &self.route, self.status, took);
        let ms = took.as_secs_f64() * 1e3;
        self.span
            .in_scope(|| tracing::debug!(status = self.status, ms, "ended"));
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}
