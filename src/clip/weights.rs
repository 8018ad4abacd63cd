//! Tensors out of safetensors bytes, by their Hugging Face keys.
//!
//! Owner: the loader. Invariants: every tensor handed out has the shape that was asked for and only finite values;
//! nothing is silently initialised; every error names the tensor.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo};

use super::error::BackboneError;

/// One safetensors file in memory.
pub(super) struct WeightsFile<'a> {
    pub(super) name: String,
    pub(super) bytes: &'a [u8],
}

/// All tensors of a checkpoint, in one file or several shards.
pub(super) struct Weights<'a> {
    tensors: BTreeMap<String, Stored<'a>>,
    /// What is given instead of what is stored.
    replaced: BTreeMap<String, Vec<f32>>,
    /// What was taken, and so found to be finite.
    taken: BTreeSet<String>,
    device: Device,
    dtype: DType,
}

/// A tensor as it lies in the file.
struct Stored<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> Weights<'a> {
    /// Reads the headers of `files`; tensors will be placed on `device` as f32.
    pub(super) fn open(files: &[WeightsFile<'a>], device: &Device) -> Result<Self, BackboneError> {
        let mut tensors = BTreeMap::new();
        for file in files {
            tensors.extend(read_header(file)?);
        }
        Ok(Self {
            tensors,
            replaced: BTreeMap::new(),
            taken: BTreeSet::new(),
            device: device.clone(),
            dtype: DType::F32,
        })
    }

    /// Places the tensors that `load` takes in another type: bf16 on a GPU, f64 where gradients are compared with differences.
    pub(super) fn in_dtype<T>(&mut self, dtype: DType, load: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.dtype, dtype);
        let loaded = load(self);
        self.dtype = before;
        loaded
    }

    /// The tensor `key` with exactly `shape`.
    pub(super) fn take(&mut self, key: &str, shape: &[usize]) -> Result<Tensor, BackboneError> {
        let values = self.values(key, shape)?.into_owned();
        Ok(Tensor::from_vec(values, shape, &self.device)?.to_dtype(self.dtype)?)
    }

    /// The single number `key`, stored with shape `[]` or `[1]`.
    pub(super) fn scalar(&mut self, key: &str) -> Result<f32, BackboneError> {
        let shape: &[usize] = match self.tensors.get(key) {
            Some(stored) if stored.shape == [1] => &[1],
            _ => &[],
        };
        Ok(self.values(key, shape)?[0])
    }

    /// Gives `values` for the tensor `key` from now on, unless one of them is not finite: says whether it does.
    ///
    /// # Panics
    /// When they are not as many.
    pub(super) fn replace(&mut self, key: &str, values: Vec<f32>) -> bool {
        let stored = self.tensors.get(key).map(|stored| stored.shape.iter().product());
        assert_eq!(stored, Some(values.len()), "values for another tensor than {key}");
        let are_finite = are_finite(&values);
        if are_finite {
            self.replaced.insert(key.to_owned(), values);
        }
        are_finite
    }

    /// Checks that nothing of importance was left behind: a layer that nobody took means that the configuration
    /// describes another model. Anything else beyond the towers (position ids, training state) is ignored.
    pub(super) fn finish(self) -> Result<(), BackboneError> {
        for key in self.tensors.into_keys().filter(|key| !self.taken.contains(key)) {
            if key.contains(".encoder.layers.") {
                return Err(BackboneError::ExtraLayer(key));
            }
            tracing::debug!(
                tensor = key,
                "the weights hold a tensor that the towers do not need"
            );
        }
        Ok(())
    }

    /// The values of the tensor `key` with exactly `shape`, in order: where they lie, if they can be read there.
    pub(super) fn values(&mut self, key: &str, shape: &[usize]) -> Result<Cow<'a, [f32]>, BackboneError> {
        let stored = self
            .tensors
            .get(key)
            .ok_or_else(|| BackboneError::MissingTensor(key.to_owned()))?;
        if stored.shape != shape {
            return Err(BackboneError::Shape {
                tensor: key.to_owned(),
                expected: shape.to_vec(),
                found: stored.shape.clone(),
            });
        }
        if let Some(values) = self.replaced.get(key) {
            return Ok(values.clone().into());
        }
        let values = decode(stored.dtype, stored.bytes).ok_or_else(|| BackboneError::Dtype {
            tensor: key.to_owned(),
            dtype: format!("{:?}", stored.dtype),
        })?;
        if !self.taken.contains(key) {
            if !are_finite(&values) {
                return Err(BackboneError::NotFinite(key.to_owned()));
            }
            self.taken.insert(key.to_owned());
        }
        Ok(values)
    }
}

/// All of them are looked at, without a way out in between: so it is done by vectors.
fn are_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |all, value| all & value.is_finite())
}

/// The tensors that a file's header lists, each with its bytes.
fn read_header<'a>(file: &WeightsFile<'a>) -> Result<Vec<(String, Stored<'a>)>, BackboneError> {
    let (start, metadata) = match SafeTensors::read_metadata(file.bytes) {
        Ok((header, metadata)) => (LENGTH_BYTES + header, metadata),
        Err(SafeTensorError::MetadataIncompleteBuffer) => return Err(truncated(file)),
        Err(source) => return Err(header_error(file, source)),
    };
    let stored = |(key, info): (String, &TensorInfo)| {
        let (from, to) = info.data_offsets;
        let bytes = file
            .bytes
            .get(start + from..start + to)
            .ok_or_else(|| truncated(file))?;
        Ok((
            key,
            Stored {
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes,
            },
        ))
    };
    metadata.tensors().into_iter().map(stored).collect()
}

/// A safetensors file opens with the length of its header, as eight bytes.
const LENGTH_BYTES: usize = 8;

/// Says which tensor a file that is too short (or too long) breaks off in. The header itself is whole: the
/// safetensors crate checked it before it compared lengths.
fn truncated(file: &WeightsFile<'_>) -> BackboneError {
    let available = file.bytes.len();
    let length = file
        .bytes
        .first_chunk::<LENGTH_BYTES>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize);
    let start = LENGTH_BYTES + length;
    let metadata = file
        .bytes
        .get(LENGTH_BYTES..start)
        .and_then(|header| serde_json::from_slice::<Metadata>(header).ok());
    let ends = metadata.iter().flat_map(|metadata| {
        metadata
            .tensors()
            .into_iter()
            .map(|(key, info)| (start + info.data_offsets.1, key))
            .collect::<Vec<_>>()
    });
    match ends.filter(|(end, _)| *end > available).min() {
        Some((needed, tensor)) => BackboneError::Truncated {
            file: file.name.clone(),
            tensor,
            needed: needed as u64,
            available: available as u64,
        },
        // All tensors are there, so the file has bytes too many.
        None => header_error(file, SafeTensorError::MetadataIncompleteBuffer),
    }
}

fn header_error(file: &WeightsFile<'_>, source: SafeTensorError) -> BackboneError {
    BackboneError::WeightsHeader {
        file: file.name.clone(),
        source,
    }
}

/// Little-endian bytes as numbers; `None` if the type is none of the three that checkpoints use.
fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Cow<'_, [f32]>> {
    // Half floats are converted in bulk, where the half crate has instructions for it.
    match dtype {
        Dtype::F32 => match bytemuck::try_cast_slice(bytes) {
            Ok(values) if cfg!(target_endian = "little") => Some(Cow::Borrowed(values)),
            _ => {
                let values = bytes.as_chunks().0.iter().copied();
                Some(values.map(f32::from_le_bytes).collect())
            }
        },
        Dtype::F16 => {
            let halves: Vec<f16> = bytes
                .as_chunks()
                .0
                .iter()
                .copied()
                .map(f16::from_le_bytes)
                .collect();
            Some(halves.to_f32_vec().into())
        }
        Dtype::BF16 => {
            let halves: Vec<bf16> = bytes
                .as_chunks()
                .0
                .iter()
                .copied()
                .map(bf16::from_le_bytes)
                .collect();
            Some(halves.to_f32_vec().into())
        }
        _ => None,
    }
}
