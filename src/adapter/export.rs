//! A version as one file that goes elsewhere: its snapshot, and the statistics that later tasks are learned with.
//!
//! ```text
//! __metadata__   clipkeep              the snapshot's header, as in its own container
//!                clipkeep.statistics   the statistics' header
//! tensors        anchors, 0.…, 1.…     the snapshot's, under their names
//!                statistics/…          the statistics'
//! ```
//!
//! Two safetensors containers are laid into one and taken out again without a look at what their tensors mean: whatever
//! the two codecs write travels along. Both keep their bytes, so a snapshot that comes out has the digest that it went
//! in with, and the same version always gives the same file.

use std::collections::HashMap;

use bytes::Bytes;
use candle_core::Device;
use safetensors::tensor::{SafeTensorError, SafeTensors};
use serde_json::{Map, Value, json};

use super::codec::{CodecError, HEADER};
use super::snapshot::{Snapshot, SnapshotError};
use super::statistics::{self, Statistics};

/// What the names of the statistics' tensors begin with.
const PREFIX: &str = "statistics/";
/// The metadata entry that holds the statistics' header.
const STATISTICS: &str = "clipkeep.statistics";
/// Headers are filled up with spaces to a multiple of this, so that tensors are aligned.
const ALIGNMENT: usize = 8;

/// A version out of a file, its parts readable and consistent in themselves. What they are worth is another question.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Its snapshot.
    pub snapshot: Snapshot,
    /// What is kept of its classes, in column order; of none where the file has no statistics.
    pub statistics: Statistics,
}

/// Lays a snapshot and statistics, as bytes of their own codecs, into one file: the pieces that follow one another in it.
///
/// # Errors
/// When one of the two is no container of this program's.
pub fn encode(snapshot: Vec<u8>, statistics: Vec<u8>) -> Result<Vec<Bytes>, CodecError> {
    let mut header = Map::new();
    let mut metadata = Map::new();
    let mut pieces = vec![Bytes::new()];
    let mut offset = 0;
    for (part, bytes) in [(Part::Snapshot, snapshot), (Part::Statistics, statistics)] {
        let (length, found) = SafeTensors::read_metadata(&bytes)?;
        let text = found.metadata().as_ref().and_then(|entries| entries.get(HEADER));
        metadata.insert(
            part.entry().to_owned(),
            text.ok_or(CodecError::NoHeader)?.clone().into(),
        );
        for (name, info) in found.tensors() {
            let (start, end) = info.data_offsets;
            let described = json!({
                "dtype": info.dtype,
                "shape": info.shape,
                "data_offsets": [offset + start, offset + end],
            });
            header.insert(part.name(&name), described);
        }
        offset += found.data_len();
        pieces.push(Bytes::from(bytes).slice(size_of::<u64>() + length..));
    }
    header.insert("__metadata__".to_owned(), Value::Object(metadata));
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    pieces[0] = [&(text.len() as u64).to_le_bytes()[..], &text].concat().into();
    Ok(pieces)
}

/// Reads what [`encode`] wrote onto `device`. Bytes may come from anybody: whatever they say, no more memory is taken than
/// they are long, a small number of times. A snapshot alone will do.
///
/// # Errors
/// When the bytes are no such file, or the statistics are of other classes or another width than the snapshot.
pub fn decode(bytes: Vec<u8>, device: &Device) -> Result<Imported, SnapshotError> {
    let parts = SafeTensors::deserialize(&bytes).map_err(CodecError::from)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(CodecError::from)?;
    let entry = |part: Part| metadata.metadata().as_ref()?.get(part.entry()).cloned();
    let header = entry(Part::Snapshot).ok_or(CodecError::NoHeader)?;
    let snapshot = taken_out(&parts, Part::Snapshot, header).map_err(CodecError::from)?;
    let statistics = entry(Part::Statistics)
        .map(|header| taken_out(&parts, Part::Statistics, header))
        .transpose()
        .map_err(CodecError::from)?;
    drop(bytes);
    let snapshot = Snapshot::decode(&snapshot, device)?;
    let statistics = match statistics {
        Some(bytes) => statistics::decode_of(&bytes, snapshot.head().width(), device)?,
        None => Statistics::default(),
    };
    Ok(Imported { snapshot, statistics })
}

/// One of the two containers, with the bytes that it had.
fn taken_out(file: &SafeTensors<'_>, part: Part, header: String) -> Result<Vec<u8>, SafeTensorError> {
    let tensors = file
        .iter()
        .filter_map(|(name, view)| Some((part.own_name(name)?, view)));
    let metadata = HashMap::from([(HEADER.to_owned(), header)]);
    safetensors::serialize(tensors, Some(metadata))
}

/// What is in the file.
#[derive(Clone, Copy)]
enum Part {
    Snapshot,
    Statistics,
}

impl Part {
    /// The metadata entry of its header.
    fn entry(self) -> &'static str {
        match self {
            Self::Snapshot => HEADER,
            Self::Statistics => STATISTICS,
        }
    }

    /// What its tensor `name` is called in the file.
    fn name(self, name: &str) -> String {
        match self {
            Self::Snapshot => name.to_owned(),
            Self::Statistics => format!("{PREFIX}{name}"),
        }
    }

    /// What it calls the file's tensor `name`; `None` where that is not its own.
    fn own_name(self, name: &str) -> Option<&str> {
        match (self, name.strip_prefix(PREFIX)) {
            (Self::Snapshot, None) => Some(name),
            (Self::Statistics, own) => own,
            (Self::Snapshot, Some(_)) => None,
        }
    }
}
