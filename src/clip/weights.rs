//! Tensors out of safetensors files, by their Hugging Face keys.
//!
//! Owner: the loader. Invariants: every tensor handed out has the shape that was asked for and only finite values;
//! nothing is silently initialised; every error names the tensor.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorInfo};

use super::error::BackboneError;
use super::weights_file::WeightsFile;

/// All tensors of a checkpoint, in one file or several shards.
pub(super) struct Weights<'a> {
    tensors: BTreeMap<String, Stored<'a>>,
    /// What is given instead of what is stored.
    replaced: BTreeMap<String, Vec<f32>>,
    /// What was taken, and so found to be finite: it is the same when it is taken again, or the file has changed, which is found out
    /// in the end.
    taken: BTreeSet<String>,
    device: Device,
    dtype: DType,
}

/// A tensor as it lies in its file.
struct Stored<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    file: &'a WeightsFile,
    /// Its bytes.
    range: Range<usize>,
}

impl<'a> Weights<'a> {
    /// Reads the headers of `files`; tensors will be placed on `device` as f32.
    pub(super) fn open(files: &'a [WeightsFile], device: &Device) -> Result<Self, BackboneError> {
        let mut tensors = BTreeMap::new();
        for file in files {
            let (start, metadata) = file.header()?;
            let stored = |(key, info): (String, &TensorInfo)| {
                let (from, to) = info.data_offsets;
                let (dtype, shape, range) = (info.dtype, info.shape.clone(), start + from..start + to);
                (
                    key,
                    Stored {
                        dtype,
                        shape,
                        file,
                        range,
                    },
                )
            };
            tensors.extend(metadata.tensors().into_iter().map(stored));
        }
        Ok(Self {
            tensors,
            replaced: BTreeMap::new(),
            taken: BTreeSet::new(),
            device: device.clone(),
            dtype: DType::F32,
        })
    }

    /// Those of the image tower, and all others: each part can be taken from beside the other.
    pub(super) fn apart(mut self) -> (Self, Self) {
        let is_of_images =
            |key: &str| key.starts_with("vision_model.") || key.starts_with("visual_projection.");
        let images = Self {
            tensors: self.tensors.extract_if(.., |key, _| is_of_images(key)).collect(),
            replaced: self.replaced.extract_if(.., |key, _| is_of_images(key)).collect(),
            taken: self.taken.extract_if(.., |key| is_of_images(key)).collect(),
            device: self.device.clone(),
            dtype: self.dtype,
        };
        (images, self)
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
        let values = stored.values()?.ok_or_else(|| BackboneError::Dtype {
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

impl<'a> Stored<'a> {
    /// `None` if the type is none of the three that checkpoints use.
    fn values(&self) -> Result<Option<Cow<'a, [f32]>>, BackboneError> {
        let halves = || {
            let mut halves = self.file.numbers::<u16>(self.range.clone())?;
            if cfg!(target_endian = "big") {
                let halves = halves.to_mut().iter_mut();
                halves.for_each(|half| *half = u16::from_le(*half));
            }
            Ok::<_, BackboneError>(halves)
        };
        // Half floats are converted in bulk, where the half crate has instructions for it.
        Ok(Some(match self.dtype {
            Dtype::F32 if cfg!(target_endian = "little") => self.file.numbers(self.range.clone())?,
            Dtype::F32 => {
                let values = self.file.numbers(self.range.clone())?;
                values.iter().copied().map(f32::from_le_bytes).collect()
            }
            Dtype::F16 => halves()?.reinterpret_cast::<f16>().to_f32_vec().into(),
            Dtype::BF16 => halves()?.reinterpret_cast::<bf16>().to_f32_vec().into(),
            _ => return Ok(None),
        }))
    }
}
