//! The image tower, whoever computes it.
//!
//! Owner: the backbone. Which it is, is decided at load: packed weights on a processor, kernels of our own on a GPU, and tensors
//! where neither has what the shape or the type needs.

use std::cell::RefCell;
use std::fmt;

use candle_core::{DType, Device, Result, Tensor};
use clipkeep_towers::{ImageShape, ImageTower, Pause};

use super::config::ClipConfig;
use super::cuda::CudaTower;
use super::dtype::Dtype;
use super::error::BackboneError;
use super::rows::{self, bytes, values};
use super::vision::{ImageReadout, VisionTower};
use super::weights::Weights;
use crate::domain::Reads;

/// The image tower with its end.
pub(super) struct Images {
    tower: Tower,
    readout: ImageReadout,
    shape: ImageShape,
    device: Device,
}

enum Tower {
    /// On the processor.
    Packed(Box<ImageTower>),
    /// On a GPU.
    Cuda(Box<CudaTower>),
    Tensors(VisionTower),
}

/// Features `(n, dim)`, not normalised, and, where they are read, tokens: the last layer's hidden states before the closing
/// norm, one after another, class token first, `(n, t · width)`.
pub(super) type Encoded = (Tensor, Option<Tensor>);

impl Images {
    /// Takes `vision_model.…` and `visual_projection`, folded (see [`super::folded`]).
    pub(super) fn load(
        weights: &mut Weights<'_>,
        config: &ClipConfig,
        device: &Device,
        dtype: Dtype,
    ) -> std::result::Result<Self, BackboneError> {
        let shape = config.image_shape();
        let readout = ImageReadout::load(weights, config)?;
        let packed = if device.is_cpu() {
            let mut take = |key: &str, shape: &[usize]| weights.values(key, shape);
            dtype.image_tower(shape, &mut take)?
        } else {
            None
        };
        let tower = match packed {
            Some(tower) => Tower::Packed(Box::new(tower)),
            None => Tower::unpacked(weights, &readout, config, device, dtype)?,
        };
        Ok(Self {
            tower,
            readout,
            shape,
            device: device.clone(),
        })
    }

    /// Whether a GPU computes it in a stream of its own.
    pub(super) fn is_aside(&self) -> bool {
        matches!(self.tower, Tower::Cuda(_))
    }

    /// Images that are computed side by side, each by a thread of its own.
    pub(super) fn abreast(&self) -> usize {
        match self.tower {
            Tower::Packed(_) => rayon::current_num_threads(),
            Tower::Cuda(_) | Tower::Tensors(_) => 1,
        }
    }

    /// The tower's end.
    pub(super) fn readout(&self) -> &ImageReadout {
        &self.readout
    }

    /// Encodes images, `(3, image_size, image_size)` bytes wherever they are. With a `pause` now and then, if there is one, where
    /// packed weights compute.
    pub(super) fn encode(&self, images: &[&[u8]], reads: Reads, pause: Option<Pause<'_>>) -> Result<Encoded> {
        let (n, size) = (images.len(), self.shape.image_size);
        let width = self.shape.tokens() * self.shape.transformer.width;
        let are_tokens_read = reads == Reads::Tokens;
        match &self.tower {
            Tower::Packed(tower) => {
                let mut tokens = are_tokens_read.then(Vec::new);
                let features = tower.forward_pausing(images, tokens.as_mut(), pause);
                let rows = |values, width| Tensor::from_vec(values, (n, width), &self.device);
                Ok((
                    rows(features, self.shape.dim)?,
                    tokens.map(|tokens| rows(tokens, width)).transpose()?,
                ))
            }
            Tower::Cuda(tower) => tower.forward(images, reads),
            Tower::Tensors(tower) => {
                let parts = rows::each(&self.device, n, |rows| {
                    let shape = (rows.len(), 3, size, size);
                    let pixels = Tensor::from_vec(images[rows].concat(), shape, &self.device)?;
                    let states = tower.states(&pixels)?;
                    let features = self.readout.features(&states)?;
                    Ok((
                        features,
                        are_tokens_read.then(|| states.flatten_from(1)).transpose()?,
                    ))
                })?;
                let (features, tokens): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
                let tokens = are_tokens_read.then(|| tokens.into_iter().flatten().collect::<Vec<_>>());
                let stacked = |parts: &[Tensor], width| rows::stacked(parts, width, &self.device);
                Ok((
                    stacked(&features, self.shape.dim)?,
                    tokens.map(|tokens| stacked(&tokens, width)).transpose()?,
                ))
            }
        }
    }

    /// Encodes bytes `(n, 3, image_size, image_size)` that lie on the device; `None` where there is no tower for those.
    pub(super) fn encode_resident(&self, pixels: &Tensor, reads: Reads) -> Result<Option<Encoded>> {
        match &self.tower {
            Tower::Cuda(tower) if !pixels.device().is_cpu() => {
                tower.forward_resident(pixels, reads).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl Tower {
    /// For a GPU, or for a processor where the shape does not suit packed weights.
    fn unpacked(
        weights: &mut Weights<'_>,
        readout: &ImageReadout,
        config: &ClipConfig,
        device: &Device,
        dtype: Dtype,
    ) -> std::result::Result<Self, BackboneError> {
        let (shape, weights) = (config.image_shape(), RefCell::new(weights));
        let load = |found| {
            let mut weights = weights.borrow_mut();
            if found == DType::BF16 {
                let mut take = |key: &str, shape: &[usize]| weights.values(key, shape);
                if let Some(tower) = CudaTower::load(shape, device, &mut take)? {
                    return Ok(Self::Cuda(Box::new(tower)));
                }
            }
            let tower = weights.in_dtype(found, |weights| VisionTower::load(weights, config));
            tower.map(Self::Tensors)
        };
        // On the processor, where it can be: a GPU would prepare what nothing but this comparison needs.
        let exact = || {
            let mut take = |key: &str, shape: &[usize]| weights.borrow_mut().values(key, shape);
            match Dtype::F32.image_tower(shape, &mut take)? {
                Some(tower) => Ok(Self::Packed(Box::new(tower))),
                None => load(DType::F32),
            }
        };
        let features = |tower: &Self, pixels: &Tensor| match tower {
            Self::Packed(tower) => Ok(tower.forward(&bytes(pixels)?, None)),
            Self::Cuda(tower) => values(&tower.forward(&[&bytes(pixels)?], Reads::Features)?.0),
            Self::Tensors(tower) => values(&readout.features(&tower.states(&pixels.to_device(device)?)?)?),
        };
        let fast = if device.is_cpu() { DType::F32 } else { DType::BF16 };
        let tower = dtype.tower(fast, shape, load, exact, features)?;
        if dtype.rounds() && matches!(&tower, Self::Tensors(tower) if tower.dtype() == DType::F32) {
            tracing::warn!("the image tower's shape does not suit packed weights: it computes in f32");
        }
        Ok(tower)
    }
}

impl fmt::Display for Images {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tower.fmt(out)
    }
}

impl fmt::Display for Tower {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packed(tower) => tower.fmt(out),
            Self::Cuda(tower) => tower.fmt(out),
            Self::Tensors(tower) => tower.fmt(out),
        }
    }
}
