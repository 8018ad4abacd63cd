//! Bodies that may take as long as they like, as long as they go on.

use std::time::Duration;

use axum::body::Body;
use futures::{StreamExt as _, stream};

/// The body broke off: nothing arrived for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body stalled: nothing arrived for {} s", .0.as_secs_f64())]
pub(super) struct Stalled(pub(super) Duration);

/// The same body, which fails with [`Stalled`] once nothing has arrived for `longest`.
pub(super) fn with_patience(body: Body, longest: Duration) -> Body {
    let chunks = stream::try_unfold(body.into_data_stream(), move |mut chunks| async move {
        match tokio::time::timeout(longest, chunks.next()).await {
            Ok(Some(Ok(chunk))) => Ok(Some((chunk, chunks))),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) => Ok(None),
            Err(_) => Err(axum::Error::new(Stalled(longest))),
        }
    });
    Body::from_stream(chunks)
}
