//! Where a backbone comes from, and its files.
//!
//! Owner: the loader. Invariant: the digest covers exactly the bytes that are parsed: small files are read once, and weights do not
//! change while they are read.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use candle_core::Device;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::error::BackboneError;
use super::random::{self, Dimensions, Shape};
use super::weights::Weights;
use super::weights_file::WeightsFile;
use super::{config, image_processor, tokenizer};
use crate::domain::Digest;

/// The usual, single weights file.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The list of shards that stands in its place for large models.
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// What stands before the shape of a backbone with made-up weights.
const RANDOM: &str = "random:";

/// Which backbone to load.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum BackboneSource {
    /// The small one inside this binary.
    #[default]
    Embedded,
    /// A local directory in Hugging Face layout.
    Directory(PathBuf),
    /// A repository of the Hugging Face hub, `owner/name` or `owner/name@revision`.
    Hub(String),
    /// A published shape with made-up weights, to measure what it costs.
    Random(Shape),
}

impl FromStr for BackboneSource {
    type Err = String;

    /// What exists is a directory, and so is what looks like a path; `owner/name` is a repository of the hub;
    /// `embedded` is the embedded one, and `random:vit-b-32` has made-up weights.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(shape) = text.strip_prefix(RANDOM) {
            return shape.parse().map(Self::Random);
        }
        Ok(match text {
            _ if Path::new(text).exists() => Self::Directory(text.into()),
            "embedded" => Self::Embedded,
            _ if is_repository(text) => Self::Hub(text.to_owned()),
            _ => Self::Directory(text.into()),
        })
    }
}

impl fmt::Display for BackboneSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => out.write_str("embedded"),
            Self::Directory(path) => write!(out, "{}", path.display()),
            Self::Hub(id) => out.write_str(id),
            Self::Random(shape) => write!(out, "{RANDOM}{shape}"),
        }
    }
}

/// Whether `text` has the form of a hub id: two names of letters, digits, `-`, `_` and `.`, none of them starting
/// with a dot; the revision after `@` is free.
fn is_repository(text: &str) -> bool {
    let (id, revision) = text
        .split_once('@')
        .map_or((text, None), |(id, revision)| (id, Some(revision)));
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with('.')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    revision != Some("")
        && id
            .split_once('/')
            .is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

/// A backbone's files.
pub(super) struct BackboneFiles {
    pub(super) config: Bytes,
    pub(super) tokenizer: Bytes,
    /// Which of the two files describes the preprocessing, and its bytes.
    pub(super) preprocessor: (&'static str, Bytes),
    /// One, or the shards in the order of their names.
    pub(super) weights: Vec<WeightsFile>,
}

impl BackboneFiles {
    /// The files compiled into this binary.
    pub(super) fn embedded() -> Self {
        macro_rules! asset {
            ($file:literal) => {
                Bytes::from_static(include_bytes!(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/assets/mini-clip/",
                    $file
                )))
            };
        }
        Self {
            config: asset!("config.json"),
            tokenizer: asset!("tokenizer.json"),
            preprocessor: (image_processor::FILE, asset!("preprocessor_config.json")),
            weights: vec![WeightsFile::in_memory(WEIGHTS, asset!("model.safetensors"))],
        }
    }

    /// Made-up weights in a published shape, with the embedded tokenizer.
    pub(super) fn random(dimensions: &Dimensions) -> Result<Self, BackboneError> {
        let weights = random::weights(dimensions).map_err(|source| BackboneError::WeightsHeader {
            file: WEIGHTS.to_owned(),
            source,
        })?;
        Ok(Self {
            config: random::config(dimensions).into(),
            tokenizer: Self::embedded().tokenizer,
            preprocessor: (image_processor::FILE, random::preprocessor().into()),
            weights: vec![WeightsFile::in_memory(WEIGHTS, weights.into())],
        })
    }

    /// The files of a local directory.
    pub(super) fn read(directory: &Path) -> Result<Self, BackboneError> {
        if !directory.is_dir() {
            return Err(BackboneError::NoDirectory(directory.to_owned()));
        }
        let required = |file, hint| match read(&directory.join(file))? {
            Some(bytes) => Ok(bytes),
            None => Err(BackboneError::MissingFile {
                directory: directory.to_owned(),
                file,
                hint,
            }),
        };
        let config = required(config::FILE, "")?;
        let tokenizer = required(tokenizer::FILE, "; save it with transformers' CLIPTokenizerFast")?;
        // Where both are, the first is the whole and the other often has no word on images.
        let nested = image_processor::NESTED_FILE;
        let (file, preprocessor) = match read(&directory.join(image_processor::FILE))? {
            Some(plain) => (image_processor::FILE, plain),
            None if directory.join(nested).exists() => (nested, required(nested, "")?),
            None => (image_processor::FILE, required(image_processor::FILE, "")?),
        };
        let weights = match WeightsFile::open(directory, WEIGHTS)? {
            Some(single) => vec![single],
            None => Self::read_shards(directory)?,
        };
        Ok(Self {
            config,
            tokenizer,
            preprocessor: (file, preprocessor),
            weights,
        })
    }

    fn read_shards(directory: &Path) -> Result<Vec<WeightsFile>, BackboneError> {
        let missing = |file, hint| BackboneError::MissingFile {
            directory: directory.to_owned(),
            file,
            hint,
        };
        let Some(index) = read(&directory.join(WEIGHTS_INDEX))? else {
            let hint = if directory.join("pytorch_model.bin").exists() {
                "; pytorch_model.bin is not read, convert it with transformers' save_pretrained"
            } else {
                ""
            };
            return Err(missing(WEIGHTS, hint));
        };
        let shard = |name: String| {
            let absent = || BackboneError::Invalid {
                file: WEIGHTS_INDEX,
                reason: format!("it lists {name}, which is not there"),
            };
            WeightsFile::open(directory, &name)?.ok_or_else(absent)
        };
        shard_names(&index)?.into_iter().map(shard).collect()
    }

    /// All tensors, to be placed on `device`.
    pub(super) fn tensors(&self, device: &Device) -> Result<Weights<'_>, BackboneError> {
        Weights::open(&self.weights, device)
    }

    /// SHA-256 over the SHA-256 of weights, config, tokenizer and preprocessor, in this order: a second for a large model.
    pub(super) fn digest(&self) -> Result<Digest, BackboneError> {
        let weights = self.weights.iter().map(WeightsFile::digest);
        let (_, preprocessor) = &self.preprocessor;
        let others = [&self.config, &self.tokenizer, preprocessor].map(|bytes| Ok(Digest::of(bytes)));
        let mut digest = Sha256::new();
        for part in weights.chain(others) {
            digest.update(part?.0);
        }
        Ok(Digest(digest.finalize().into()))
    }

    /// Checks that the weights are what they were when they were opened.
    pub(super) fn check_unchanged(&self) -> Result<(), BackboneError> {
        self.weights.iter().try_for_each(WeightsFile::check_unchanged)
    }
}

/// The shards that `model.safetensors.index.json` names, sorted, each once and each a plain file name.
pub(super) fn shard_names(index: &[u8]) -> Result<Vec<String>, BackboneError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|source| BackboneError::Json {
        file: WEIGHTS_INDEX,
        source,
    })?;
    let names: std::collections::BTreeSet<String> = index.weight_map.into_values().collect();
    // A name with a separator would leave the directory.
    match names.iter().find(|name| {
        Path::new(name)
            .file_name()
            .is_none_or(|file| file != name.as_str())
    }) {
        Some(name) => {
            let reason = format!("`{name}` is not a file name");
            Err(BackboneError::Invalid {
                file: WEIGHTS_INDEX,
                reason,
            })
        }
        None => Ok(names.into_iter().collect()),
    }
}

/// A file's bytes; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Bytes>, BackboneError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BackboneError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}
