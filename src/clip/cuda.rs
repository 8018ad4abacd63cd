//! The image tower on an NVIDIA GPU, between tensors.
//!
//! Owner: the backbone. Without the feature `cuda` there is no such tower.

#[cfg(feature = "cuda")]
pub(super) use there::CudaTower;

#[cfg(not(feature = "cuda"))]
pub(super) use nowhere::CudaTower;

#[cfg(feature = "cuda")]
mod there {
    use std::fmt;

    use candle_core::op::BackpropOp;
    use candle_core::{CudaDevice, CudaStorage, Device, Result, Storage, Tensor};
    use clipkeep_towers::cuda::{Error, ImageTower, Pixels};
    use clipkeep_towers::{ImageShape, Take};

    use crate::clip::error::BackboneError;

    /// The tower, and the device whose tensors it makes.
    pub(in crate::clip) struct CudaTower {
        tower: ImageTower,
        shape: ImageShape,
        device: CudaDevice,
    }

    impl CudaTower {
        /// Takes `vision_model.…` and `visual_projection` to `device`; `None` where that is no GPU or has no kernels for the shape.
        pub(in crate::clip) fn load(
            shape: ImageShape,
            device: &Device,
            take: &mut Take<'_, BackboneError>,
        ) -> std::result::Result<Option<Self>, BackboneError> {
            let Device::Cuda(device) = device else {
                return Ok(None);
            };
            if !ImageTower::suits(&shape) {
                return Ok(None);
            }
            let tower = ImageTower::load(shape, device.cuda_stream().context(), take)?;
            Ok(Some(Self {
                tower,
                shape,
                device: device.clone(),
            }))
        }

        /// `(n, 3, image_size, image_size)` f32 pixels, contiguous, to features `(n, dim)`, not normalised, and, if they are
        /// wanted, the last layer's hidden states, `(n, t · width)`. Nobody waits for it here.
        pub(in crate::clip) fn forward(
            &self,
            pixels: &Tensor,
            wants_states: bool,
        ) -> Result<(Tensor, Option<Tensor>)> {
            let (storage, layout) = pixels.storage_and_layout();
            let Some((start, end)) = layout.contiguous_offsets() else {
                candle_core::bail!("pixels lie apart from one another");
            };
            let encoded = match &*storage {
                Storage::Cpu(values) => {
                    let values = &values.as_slice::<f32>()?[start..end];
                    self.tower.forward(Pixels::Host(values), wants_states)
                }
                Storage::Cuda(values) => {
                    let values = values.as_cuda_slice::<f32>()?.slice(start..end);
                    self.tower.forward(Pixels::Device(values), wants_states)
                }
                Storage::Metal(_) => candle_core::bail!("pixels are on another device"),
            };
            let encoded = encoded.map_err(candle_core::Error::wrap)?;
            // What is asked of the device's tensors from now on waits for it.
            let joined = self.device.cuda_stream().join(self.tower.stream());
            joined.map_err(candle_core::Error::wrap)?;
            let rows = |values, width| -> Result<Tensor> {
                let storage = CudaStorage::wrap_cuda_slice(values, self.device.clone());
                let shape = (pixels.dim(0)?, width);
                Ok(Tensor::from_storage(
                    Storage::Cuda(storage),
                    shape,
                    BackpropOp::none(),
                    false,
                ))
            };
            let states = self.shape.tokens() * self.shape.transformer.width;
            Ok((
                rows(encoded.features, self.shape.dim)?,
                encoded.states.map(|values| rows(values, states)).transpose()?,
            ))
        }
    }

    impl From<Error> for BackboneError {
        fn from(error: Error) -> Self {
            Self::Device(candle_core::Error::wrap(error))
        }
    }

    impl fmt::Display for CudaTower {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.tower.fmt(out)
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod nowhere {
    use std::fmt;

    use candle_core::{Device, Result, Tensor};
    use clipkeep_towers::{ImageShape, Take};

    use crate::clip::error::BackboneError;

    /// None there is.
    pub(in crate::clip) enum CudaTower {}

    impl CudaTower {
        #[expect(clippy::unnecessary_wraps, reason = "as where there is one")]
        pub(in crate::clip) fn load(
            _: ImageShape,
            _: &Device,
            _: &mut Take<'_, BackboneError>,
        ) -> std::result::Result<Option<Self>, BackboneError> {
            Ok(None)
        }

        pub(in crate::clip) fn forward(&self, _: &Tensor, _: bool) -> Result<(Tensor, Option<Tensor>)> {
            match *self {}
        }
    }

    impl fmt::Display for CudaTower {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }
}
