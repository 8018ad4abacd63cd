//! `multipart/form-data`, part by part, with every part's head and every field within bounds.
//!
//! The parser below keeps the head of a part until it is complete and searches all of it again whenever more arrives.
//! So the body reaches it in small pieces, one at a time, and breaks off when a head does not end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::StatusCode;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};

use super::problem::Problem;
use super::{body, disposition};

/// Most bytes between the end of one part and the content of the next.
const HEAD_BYTES: usize = 16 << 10;
/// Most bytes that the parser is handed at a time.
const PIECE_BYTES: usize = 8 << 10;
/// The budget while the content of a part is read: that has limits of its own.
const UNLIMITED: usize = usize::MAX;

/// The head of a part is too long.
#[derive(Debug, thiserror::Error)]
#[error("the head of a part is longer than {HEAD_BYTES} bytes")]
pub(super) struct HeadTooLong;

/// A multipart body that is being read.
pub(super) struct Form {
    parts: Multipart,
    budget: Arc<AtomicUsize>,
}

impl Form {
    /// Opens the body.
    ///
    /// # Errors
    /// 400 when the content type says no boundary.
    pub(super) async fn open<S: Send + Sync>(request: Request, state: &S) -> Result<Self, Problem> {
        let budget = Arc::new(AtomicUsize::new(HEAD_BYTES));
        let pieces = Arc::clone(&budget);
        let request = request.map(|body| {
            Body::from_stream(Pieces {
                chunks: body.into_data_stream(),
                rest: Bytes::new(),
                budget: pieces,
                handed: false,
            })
        });
        let parts = Multipart::from_request(request, state).await;
        let parts = parts.map_err(|rejection| {
            Problem::new(rejection.status(), "invalid_multipart", rejection.body_text())
        })?;
        Ok(Self { parts, budget })
    }

    /// The next part, whose content must be read to its end before the one after it is asked for.
    pub(super) async fn next(&mut self) -> Result<Option<Part<'_>>, Problem> {
        self.budget.store(HEAD_BYTES, Ordering::Relaxed);
        let field = self.parts.next_field().await.map_err(|e| problem(&e))?;
        self.budget.store(UNLIMITED, Ordering::Relaxed);
        field.map(Part::new).transpose()
    }
}

/// One part: what it is called, and its content.
pub(super) struct Part<'a> {
    /// Its name; empty when it has none.
    pub(super) name: String,
    /// The name of the file that it was.
    pub(super) file_name: Option<String>,
    field: Field<'a>,
}

impl<'a> Part<'a> {
    fn new(field: Field<'a>) -> Result<Self, Problem> {
        let encoded = |parameter| {
            disposition::encoded(field.headers(), parameter).map_err(|error| {
                Problem::new(StatusCode::BAD_REQUEST, "invalid_part_name", error.to_string())
            })
        };
        // Where a part has a name in both forms, the encoded one counts (RFC 6266, section 4.3).
        let name = encoded("name")?.or_else(|| field.name().map(str::to_owned));
        let file_name = encoded("filename")?.or_else(|| field.file_name().map(str::to_owned));
        if [&name, &file_name]
            .into_iter()
            .flatten()
            .any(|name| name.contains('\0'))
        {
            let detail = "a part's name has a NUL character";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_part_name", detail));
        }
        Ok(Self {
            name: name.unwrap_or_default(),
            file_name,
            field,
        })
    }

    /// The content in memory; the limit on the whole body bounds it.
    pub(super) async fn bytes(self) -> Result<Bytes, Problem> {
        self.field.bytes().await.map_err(|e| problem(&e))
    }

    /// The content as text of at most `most` bytes.
    ///
    /// # Errors
    /// 413 when it is longer, 400 when it is not UTF-8.
    pub(super) async fn text(self, most: usize) -> Result<String, Problem> {
        let name = self.name.clone();
        let mut text = Vec::new();
        let mut chunks = self.chunks();
        while let Some(chunk) = chunks.next().await {
            text.extend_from_slice(&chunk?);
            if text.len() > most {
                return Err(Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "field_too_large",
                    format!("the field {name} has at most {most} bytes"),
                ));
            }
        }
        String::from_utf8(text).map_err(|_| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "invalid_multipart",
                format!("the field {name} is not UTF-8"),
            )
        })
    }

    /// The content as it arrives.
    pub(super) fn chunks(self) -> impl Stream<Item = Result<Bytes, Problem>> + Unpin + use<'a> {
        self.field.map(|chunk| chunk.map_err(|e| problem(&e)))
    }
}

/// What went wrong while reading a multipart body.
fn problem(error: &MultipartError) -> Problem {
    body::known_failure(error)
        .unwrap_or_else(|| Problem::new(error.status(), "invalid_multipart", error.body_text()))
}

/// A body in small pieces. After each the parser gets to look at it before it can have another; otherwise it would
/// take in whatever has arrived.
struct Pieces {
    chunks: BodyDataStream,
    rest: Bytes,
    /// Bytes that may still be handed out.
    budget: Arc<AtomicUsize>,
    /// Whether the last call handed out a piece.
    handed: bool,
}

impl Stream for Pieces {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if std::mem::take(&mut this.handed) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.rest.is_empty() {
            match futures::ready!(this.chunks.poll_next_unpin(cx)) {
                Some(Ok(chunk)) => this.rest = chunk,
                end => return Poll::Ready(end),
            }
        }
        let budget = this.budget.load(Ordering::Relaxed);
        if budget == 0 {
            return Poll::Ready(Some(Err(axum::Error::new(HeadTooLong))));
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
        if budget != UNLIMITED {
            this.budget
                .store(budget.saturating_sub(piece.len()), Ordering::Relaxed);
        }
        this.handed = true;
        Poll::Ready(Some(Ok(piece)))
    }
}
