//! Tensors and one JSON header as safetensors bytes: what snapshots and statistics share.
//!
//! The same content always gives the same bytes: tensors are ordered by name, and the header is one metadata entry,
//! because the format's own metadata is a hash map without an order.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The metadata entry that holds the header.
pub(super) const HEADER: &str = "clipkeep";

/// Why bytes are not what they should be, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The container is damaged or something else altogether.
    #[error("not a safetensors container")]
    Container(#[from] SafeTensorError),
    /// A container that this program did not write.
    #[error("the container has no `{HEADER}` entry in its metadata")]
    NoHeader,
    /// A header of another kind or version.
    #[error("the container's header does not read")]
    Header(#[from] serde_json::Error),
    /// A container of another kind or version.
    #[error("the container holds `{found}`, expected `{expected}`")]
    Format {
        /// What it says it is.
        found: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// A tensor of the wrong shape or type.
    #[error("tensor `{name}` is {found}, expected {expected}")]
    Tensor {
        /// Its name.
        name: String,
        /// Its type and shape.
        found: String,
        /// The type and shape it should have.
        expected: String,
    },
    /// Statistics over embeddings of another width than the snapshot's.
    #[error("statistics of width {found} beside a snapshot of width {expected}")]
    Width {
        /// The statistics' width.
        found: usize,
        /// The snapshot's width.
        expected: usize,
    },
    /// A number that is none.
    #[error("tensor `{name}` holds a value that is not finite")]
    NotFinite {
        /// The tensor's name.
        name: String,
    },
    /// A tensor could not be read from or put on its device.
    #[error("a tensor operation failed")]
    Device(#[from] candle_core::Error),
}

/// Writes `tensors` (f32, f16 or f64) and `header` down.
pub(super) fn encode(
    header: &impl Serialize,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<Vec<u8>, CodecError> {
    let bytes: Vec<Vec<u8>> = tensors.values().map(tensor_bytes).collect::<Result<_, _>>()?;
    let views = tensors.iter().zip(&bytes).map(|((name, tensor), bytes)| {
        let dtype = match tensor.dtype() {
            DType::F16 => Dtype::F16,
            DType::F64 => Dtype::F64,
            _ => Dtype::F32,
        };
        Ok((name, TensorView::new(dtype, tensor.dims().to_vec(), bytes)?))
    });
    let views: Vec<_> = views.collect::<Result<_, SafeTensorError>>()?;
    let metadata = HashMap::from([(HEADER.to_owned(), serde_json::to_string(header)?)]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>, CodecError> {
    let flat = tensor.flatten_all()?;
    Ok(match flat.dtype() {
        DType::F16 => flat
            .to_vec1::<f16>()?
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        DType::F64 => flat
            .to_vec1::<f64>()?
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        _ => flat
            .to_vec1::<f32>()?
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
    })
}

/// A container being read.
pub(super) struct Reader<'a> {
    tensors: SafeTensors<'a>,
    device: &'a Device,
}

impl<'a> Reader<'a> {
    /// Opens a container and reads its header. Tensors will be put on `device`.
    pub(super) fn open<H: DeserializeOwned>(
        bytes: &'a [u8],
        device: &'a Device,
    ) -> Result<(H, Self), CodecError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let text = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(HEADER));
        let header = serde_json::from_str(text.ok_or(CodecError::NoHeader)?)?;
        Ok((
            header,
            Self {
                tensors: SafeTensors::deserialize(bytes)?,
                device,
            },
        ))
    }

    /// The f32 tensor `name`, which must have exactly `shape` and finite values.
    pub(super) fn f32(&self, name: &str, shape: &[usize]) -> Result<Tensor, CodecError> {
        let bytes = self.checked(name, Dtype::F32, shape)?;
        let values = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        self.tensor(name, values, shape)
    }

    /// The f16 tensor `name` widened to f32; it must have exactly `shape` and finite values.
    pub(super) fn f16(&self, name: &str, shape: &[usize]) -> Result<Tensor, CodecError> {
        let bytes = self.checked(name, Dtype::F16, shape)?;
        let values = bytes
            .chunks_exact(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect();
        self.tensor(name, values, shape)
    }

    /// The values of the f64 tensor `name`, which must have exactly `shape` and be finite.
    pub(super) fn f64(&self, name: &str, shape: &[usize]) -> Result<Vec<f64>, CodecError> {
        let bytes = self.checked(name, Dtype::F64, shape)?;
        let values: Vec<f64> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f64::from_le_bytes(*bytes))
            .collect();
        if values.iter().any(|v| !v.is_finite()) {
            return Err(CodecError::NotFinite {
                name: name.to_owned(),
            });
        }
        Ok(values)
    }

    fn checked(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'a [u8], CodecError> {
        let view = self.tensors.tensor(name)?;
        if view.dtype() == dtype && view.shape() == shape {
            return Ok(view.data());
        }
        Err(CodecError::Tensor {
            name: name.to_owned(),
            found: format!("{:?} {:?}", view.dtype(), view.shape()),
            expected: format!("{dtype:?} {shape:?}"),
        })
    }

    fn tensor(&self, name: &str, values: Vec<f32>, shape: &[usize]) -> Result<Tensor, CodecError> {
        if values.iter().any(|v| !v.is_finite()) {
            return Err(CodecError::NotFinite {
                name: name.to_owned(),
            });
        }
        Ok(Tensor::from_vec(values, shape, self.device)?)
    }
}
