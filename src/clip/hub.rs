//! Backbones from the Hugging Face hub, in the ecosystem's own cache.
//!
//! Owner: the loader. What is fetched lands in `HF_HUB_CACHE`, `HF_HOME/hub` or `~/.cache/huggingface/hub`, where
//! other tools find it too. Without a network a complete cache is enough; `HF_HUB_OFFLINE=1` asks for the cache only.
//! Invariant: all files of one backbone come from one commit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::repository::{HFRepository, RepoTypeModel};
use hf_hub::{HFClient, HFError};
use thiserror::Error;

use super::source::{WEIGHTS, WEIGHTS_INDEX, shard_names};
use super::{config, image_processor, tokenizer};

/// How long the hub may take to answer for the first, small file. Later files are large and have no limit.
const FIRST_ANSWER: Duration = Duration::from_secs(15);

/// Why the hub did not give a backbone.
#[derive(Debug, Error)]
pub enum HubError {
    /// The hub, or the way to it, failed.
    #[error("the request for {file} failed")]
    Request {
        /// The file asked for.
        file: String,
        /// Why.
        source: Box<HFError>,
    },
    /// The hub did not answer in time.
    #[error("no answer for {file} within {} s", FIRST_ANSWER.as_secs())]
    Timeout {
        /// The file asked for.
        file: String,
    },
    /// `HF_HUB_OFFLINE` is set, and the cache is incomplete.
    #[error("HF_HUB_OFFLINE is set and {file} is not in the cache")]
    Offline {
        /// The absent file.
        file: String,
    },
    /// The repository has weights in another format only.
    #[error(
        "the repository holds no model.safetensors; name a revision that does (owner/name@revision) or convert it \
         with transformers' save_pretrained"
    )]
    NoSafetensors,
    /// The list of shards cannot be used.
    #[error("model.safetensors.index.json cannot be used")]
    Index(#[source] Box<super::error::BackboneError>),
    /// The list of shards cannot be read back from the cache.
    #[error("cannot read {}", .path.display())]
    Cache {
        /// The file in the cache.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Brings `owner/name` or `owner/name@revision` into the cache and returns the directory of its files.
pub(super) async fn fetch(id: &str) -> Result<PathBuf, HubError> {
    let client = HFClient::builder()
        .retry_max_attempts(1)
        .build()
        .map_err(|source| failed(config::FILE, source))?;
    let (id, revision) = id.split_once('@').unwrap_or((id, "main"));
    let (owner, name) = hf_hub::split_id(id);
    let repository = client.model(owner, name);
    let cached = Download {
        repository: &repository,
        revision,
        cached_only: true,
    };
    if is_offline() {
        return cached.all().await.map_err(|error| match error {
            HubError::Request { file, .. } => HubError::Offline { file },
            other => other,
        });
    }
    // When the hub is out of reach a complete cache will do; else the hub's failure is what the reader must know.
    match (Download {
        cached_only: false,
        ..cached
    })
    .all()
    .await
    {
        Ok(directory) => Ok(directory),
        Err(failure) => cached.all().await.map_err(|_| failure),
    }
}

/// Files of one repository at one revision.
#[derive(Clone, Copy)]
struct Download<'a> {
    repository: &'a HFRepository<RepoTypeModel>,
    revision: &'a str,
    cached_only: bool,
}

impl Download<'_> {
    /// All files that a backbone needs; returns their directory.
    async fn all(&self) -> Result<PathBuf, HubError> {
        let late = |_| {
            Err(HubError::Timeout {
                file: config::FILE.to_owned(),
            })
        };
        let config = tokio::time::timeout(FIRST_ANSWER, self.file(config::FILE))
            .await
            .unwrap_or_else(late)?;
        let directory = config.parent().map(Path::to_owned).unwrap_or_default();
        // The cache names a directory after its commit: the other files are asked for at that commit.
        let commit = directory
            .file_name()
            .and_then(|commit| commit.to_str())
            .unwrap_or(self.revision);
        let same = Download {
            revision: commit,
            ..*self
        };
        same.file(tokenizer::FILE).await?;
        if same.optional(image_processor::FILE).await?.is_none()
            && same.optional(image_processor::NESTED_FILE).await?.is_none()
        {
            // Neither is there: the error names the usual one.
            same.file(image_processor::FILE).await?;
        }
        same.weights().await?;
        Ok(directory)
    }

    async fn weights(&self) -> Result<(), HubError> {
        if self.optional(WEIGHTS).await?.is_some() {
            return Ok(());
        }
        let path = self
            .optional(WEIGHTS_INDEX)
            .await?
            .ok_or(HubError::NoSafetensors)?;
        let index = tokio::fs::read(&path)
            .await
            .map_err(|source| HubError::Cache { path, source })?;
        for shard in shard_names(&index).map_err(|error| HubError::Index(Box::new(error)))? {
            self.file(&shard).await?;
        }
        Ok(())
    }

    /// The path of `file` in the cache, or `None` if the repository does not have it.
    async fn optional(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        match self.file(file).await {
            Ok(path) => Ok(Some(path)),
            Err(HubError::Request { source, .. }) if is_absent(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The path of `file` in the cache.
    async fn file(&self, file: &str) -> Result<PathBuf, HubError> {
        let request = self
            .repository
            .download_file()
            .filename(file)
            .revision(self.revision);
        request
            .local_files_only(self.cached_only)
            .send()
            .await
            .map_err(|source| failed(file, source))
    }
}

/// Whether the repository (or, when only that is asked, the cache) has no such file.
fn is_absent(error: &HFError) -> bool {
    matches!(
        error,
        HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. }
    )
}

fn failed(file: &str, source: HFError) -> HubError {
    HubError::Request {
        file: file.to_owned(),
        source: Box::new(source),
    }
}

/// The ecosystem's switch, with the values that Python's `huggingface_hub` takes for true.
fn is_offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}
