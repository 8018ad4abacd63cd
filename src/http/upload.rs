//! Receives a large body: spools it to disk, whatever its size, and lists what is in it where it is a task.

use std::io::SeekFrom;
use std::path::Path;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::body::BodyForm;
use super::extract::parse_json;
use super::form::Form;
use super::problem::{ItemError, Problem, shortened};
use super::{Api, body};
use crate::domain::{Label, NewClass, Prompt, Split, TaskName};
use crate::learner::{ArchiveKind, Upload, UploadError};

/// Most bytes of the field `name`.
const NAME_BYTES: usize = 1 << 10;
/// Most bytes of the field `classes`.
const CLASSES_BYTES: usize = 1 << 20;

/// A task as it arrived: its name and its examples.
pub(super) struct ReceivedTask {
    /// The name, where the body says it.
    pub(super) name: Option<TaskName>,
    /// The examples.
    pub(super) upload: Upload,
}

/// A class described in the `classes` part.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DescribedClass {
    label: Label,
    #[serde(alias = "description")]
    prompt: Option<Prompt>,
}

/// What a part of the body turned out to hold.
enum Part {
    /// Bytes of the shared spool file.
    Slice(std::ops::Range<u64>),
    /// An archive in a file of its own.
    Archive(ArchiveKind, std::fs::File),
}

/// Reads the body of a task into spool files that vanish with the upload.
pub(super) async fn receive(api: &Api, request: Request) -> Result<ReceivedTask, Problem> {
    const ARCHIVES: [&str; 4] = [
        "application/zip",
        "application/x-zip-compressed",
        "application/x-tar",
        "application/tar",
    ];
    let form = BodyForm::of(request.headers(), |kind| ARCHIVES.contains(&kind));
    match form {
        Some(BodyForm::Multipart) => receive_parts(api, request).await,
        Some(BodyForm::Raw) => receive_archive(api, request).await,
        Some(BodyForm::Json) | None => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send multipart/form-data whose parts are named after the classes, or a zip or tar of class folders",
        )),
    }
}

/// Writes a whole body to a file that vanishes when it is closed.
pub(super) async fn spool(api: &Api, body: Body) -> Result<std::fs::File, Problem> {
    let io = |error: std::io::Error| Problem::internal(&error);
    let mut file = temporary(&api.spool).await?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| body::failure(&error))?;
        file.write_all(&chunk).await.map_err(io)?;
    }
    file.flush().await.map_err(io)?;
    Ok(file.into_std().await)
}

async fn receive_archive(api: &Api, request: Request) -> Result<ReceivedTask, Problem> {
    let mut upload = Upload::new(api.limits.upload, temporary(&api.spool).await?.into_std().await);
    let body: BodyDataStream = body::limited(request, api.limits.upload_bytes).into_data_stream();
    let body = body.map(|chunk| chunk.map_err(|error| body::failure(&error)));
    let mut spool = temporary(&api.spool).await?;
    match spool_part(Box::pin(body), &mut spool, &api.spool).await? {
        Part::Archive(kind, file) => {
            upload = add_archive(upload, kind, file, None).await?;
            Ok(ReceivedTask { name: None, upload })
        }
        Part::Slice(_) => Err(Problem::invalid(
            "not_an_archive",
            "the body is neither a zip nor a tar archive",
        )),
    }
}

async fn receive_parts(api: &Api, request: Request) -> Result<ReceivedTask, Problem> {
    let limits = api.limits.upload;
    let mut spool = temporary(&api.spool).await?;
    let mut upload = Upload::new(
        limits,
        spool
            .try_clone()
            .await
            .map_err(|e| Problem::internal(&e))?
            .into_std()
            .await,
    );
    let mut name = None;
    let mut form = Form::open(request, api).await?;
    while let Some(part) = form.next().await? {
        let (part_name, file_name) = (part.name.clone(), part.file_name.clone());
        // Fields have no file name; a class may be called "name" all the same.
        match (part_name.as_str(), &file_name) {
            ("name", None) => name = Some(part.text(NAME_BYTES).await?.parse()?),
            ("classes", None) => {
                let classes = part.text(CLASSES_BYTES).await?;
                for class in parse_json::<Vec<DescribedClass>>(classes.as_bytes())? {
                    upload.describe(NewClass {
                        label: class.label,
                        prompt: class.prompt.map(String::from),
                    })?;
                }
            }
            _ => {
                let chunks = part.chunks();
                match spool_part(chunks, &mut spool, &api.spool).await? {
                    Part::Archive(kind, file) => {
                        let split = archive_split(&part_name)?;
                        upload = add_archive(upload, kind, file, split).await?;
                    }
                    Part::Slice(at) => {
                        let label: Label = part_name.parse().map_err(|error: crate::domain::NameError| {
                            let item = ItemError {
                                item: shortened(&part_name).into_owned(),
                                code: "invalid_name",
                                detail: error.to_string(),
                            };
                            Problem::from(error).with_errors(vec![item])
                        })?;
                        let shown = file_name.unwrap_or_else(|| format!("{label}[{}]", upload.len()));
                        upload.add_image(&label, &shown, at)?;
                    }
                }
            }
        }
    }
    Ok(ReceivedTask { name, upload })
}

/// Which split the archive in a part of this name holds.
fn archive_split(part: &str) -> Result<Option<Split>, Problem> {
    match part {
        "archive" | "file" => Ok(None),
        "train" => Ok(Some(Split::Train)),
        "test" => Ok(Some(Split::HeldOut)),
        other => Err(Problem::invalid(
            "unknown_part",
            format!(
                "the archive in part {:?} must be in a part named archive, train or test",
                shortened(other)
            ),
        )),
    }
}

/// Writes a part's bytes to disk: an archive to a file of its own, anything else to the end of `shared`.
async fn spool_part<S>(mut chunks: S, shared: &mut File, directory: &Path) -> Result<Part, Problem>
where
    S: Stream<Item = Result<Bytes, Problem>> + Unpin,
{
    let io = |error: std::io::Error| Problem::internal(&error);
    let mut head = Vec::new();
    while head.len() < ArchiveKind::HEAD {
        match chunks.next().await {
            Some(chunk) => head.extend_from_slice(&chunk?),
            None => break,
        }
    }
    let kind = ArchiveKind::of(&head);
    let mut own = match kind {
        Some(_) => Some(temporary(directory).await?),
        None => None,
    };
    let file = own.as_mut().unwrap_or(shared);
    let start = file.seek(SeekFrom::End(0)).await.map_err(io)?;
    file.write_all(&head).await.map_err(io)?;
    let mut end = start + head.len() as u64;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        file.write_all(&chunk).await.map_err(io)?;
        end += chunk.len() as u64;
    }
    file.flush().await.map_err(io)?;
    match (kind, own) {
        (Some(kind), Some(file)) => Ok(Part::Archive(kind, file.into_std().await)),
        _ => Ok(Part::Slice(start..end)),
    }
}

async fn add_archive(
    mut upload: Upload,
    kind: ArchiveKind,
    file: std::fs::File,
    split: Option<Split>,
) -> Result<Upload, Problem> {
    let listed = tokio::task::spawn_blocking(move || {
        upload.add_archive(kind, file, split)?;
        Ok::<_, UploadError>(upload)
    });
    Ok(listed.await.map_err(|e| Problem::internal(&e))??)
}

/// A file without a name, gone when it is closed.
pub(super) async fn temporary(directory: &Path) -> Result<File, Problem> {
    let directory = directory.to_owned();
    let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(directory)).await;
    file.map_err(|e| Problem::internal(&e))?
        .map(File::from_std)
        .map_err(|e| Problem::internal(&e))
}
