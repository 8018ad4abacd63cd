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
    use candle_core::{CudaDevice, CudaStorage, Device, Result, Storage, Tensor, bail};
    use clipkeep_towers::cuda::{Error, ImageTower, Pixels};
    use clipkeep_towers::{ImageShape, Take};

    use crate::clip::error::BackboneError;
    use crate::domain::Reads;

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

        /// Bytes of images to features `(n, dim)`, not normalised, and, if tokens are read, the last layer's hidden states,
        /// `(n, t · width)`. Nobody waits for it here.
        pub(in crate::clip) fn forward(
            &self,
            images: &[&[u8]],
            reads: Reads,
        ) -> Result<(Tensor, Option<Tensor>)> {
            self.encode(&Pixels::Host(images), images.len(), reads)
        }

        /// As [`Self::forward`], of bytes `(n, 3, image_size, image_size)` that are on the device.
        pub(in crate::clip) fn forward_resident(
            &self,
            pixels: &Tensor,
            reads: Reads,
        ) -> Result<(Tensor, Option<Tensor>)> {
            // Views may begin anywhere, and kernels read several values at a time.
            let pixels = match pixels.layout().contiguous_offsets() {
                Some((0, _)) => pixels.clone(),
                _ => pixels.force_contiguous()?,
            };
            let (storage, _) = pixels.storage_and_layout();
            match &*storage {
                Storage::Cuda(values) => {
                    let values = values.as_cuda_slice::<u8>()?.slice(..pixels.elem_count());
                    self.encode(&Pixels::Device(values), pixels.dim(0)?, reads)
                }
                _ => bail!("pixels are on another device"),
            }
        }

        /// Results are in memory of the stream that tensors are in. Whatever is put there to use them waits for them, by the events
        /// that go with memory; what is there already does not, nor what uses other memory.
        fn encode(
            &self,
            pixels: &Pixels<'_>,
            images: usize,
            reads: Reads,
        ) -> Result<(Tensor, Option<Tensor>)> {
            let width = self.shape.tokens() * self.shape.transformer.width;
            let mut features = self.device.alloc_zeros::<f32>(images * self.shape.dim)?;
            let mut states = match reads {
                Reads::Features => None,
                Reads::Tokens => Some(self.device.alloc_zeros::<f32>(images * width)?),
            };
            let encoded = self.tower.forward(pixels, &mut features, states.as_mut());
            encoded.map_err(candle_core::Error::wrap)?;
            let rows = |values, width| {
                let storage = CudaStorage::wrap_cuda_slice(values, self.device.clone());
                let storage = Storage::Cuda(storage);
                Tensor::from_storage(storage, (images, width), BackpropOp::none(), false)
            };
            Ok((
                rows(features, self.shape.dim),
                states.map(|states| rows(states, width)),
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
    use crate::domain::Reads;

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

        pub(in crate::clip) fn forward(&self, _: &[&[u8]], _: Reads) -> Result<(Tensor, Option<Tensor>)> {
            match *self {}
        }

        pub(in crate::clip) fn forward_resident(
            &self,
            _: &Tensor,
            _: Reads,
        ) -> Result<(Tensor, Option<Tensor>)> {
            match *self {}
        }
    }

    impl fmt::Display for CudaTower {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }
}
