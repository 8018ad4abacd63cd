//! The kernels of `kernels.cu`, launched with shapes that were checked.
//!
//! Owner: the tower. Invariant: nothing is launched that would read or write beyond its matrices.

#![expect(
    unsafe_code,
    reason = "kernels are launched with pointers; the block says why it is sound"
)]

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg as _};
use cudarc::nvrtc::Ptx;
use half::bf16;

use super::memory::{Matrix, Memory};
use crate::{Activation, ImageShape, MIDDLE};
use Argument::{At, Real, Size};

/// What they were compiled to, for processors of the build's compute capability and later ones.
const COMPILED: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Heads that there is attention for, by their width.
pub(super) const HEADS: [usize; 3] = [32, 64, 80];
/// Widest row that is normalised.
pub(super) const WIDEST: usize = 2048;

/// Threads of a block.
const THREADS: usize = 256;
/// Rows that a block normalises: a warp has one.
const WARPS: usize = 4;
/// Threads of a block of attention, and its queries.
const ATTENDING: (usize, usize) = (128, 64);
/// Values that a thread takes at a time where there are no rows.
const EIGHT: usize = 8;

/// A layer norm's weights.
pub(super) struct Norm {
    pub(super) weight: Memory<f32>,
    pub(super) bias: Memory<f32>,
    pub(super) epsilon: f32,
}

pub(super) struct Kernels {
    stream: Arc<CudaStream>,
    unfold: CudaFunction,
    widen: CudaFunction,
    embed: CudaFunction,
    layer_norm: CudaFunction,
    activation: CudaFunction,
    attend: CudaFunction,
    /// Values of a head.
    head: usize,
}

/// What a kernel takes.
enum Argument {
    /// A pointer.
    At(CUdeviceptr),
    /// An `int`.
    Int(i32),
    /// A `size_t`.
    Size(usize),
    /// A `float`.
    Real(f32),
}

impl Kernels {
    pub(super) fn load(stream: Arc<CudaStream>, shape: &ImageShape) -> Result<Self, DriverError> {
        let module = stream.context().load_module(Ptx::from_src(COMPILED))?;
        let head = shape.transformer.width / shape.transformer.heads;
        Ok(Self {
            unfold: module.load_function("unfold")?,
            widen: module.load_function("widen")?,
            embed: module.load_function("embed")?,
            layer_norm: module.load_function("layer_norm")?,
            activation: module.load_function(match shape.transformer.activation {
                Activation::QuickGelu => "quick_gelu",
                Activation::Gelu => "gelu",
            })?,
            attend: module.load_function(&format!("attend_{head}"))?,
            stream,
            head,
        })
    }

    /// Bytes `(n · 3 · size, size)` to patches `(n · grid², inputs)` of what they are more than [`MIDDLE`], with zeros behind what a
    /// patch has.
    pub(super) fn unfold(
        &self,
        shape: &ImageShape,
        pixels: Matrix<u8>,
        patches: Matrix<bf16>,
    ) -> Result<(), DriverError> {
        let ImageShape {
            image_size: size,
            patch_size: patch,
            ..
        } = *shape;
        let images = patches.rows / shape.grid().pow(2);
        assert_eq!((pixels.rows, pixels.columns), (images * 3 * size, size));
        assert!(patches.columns >= 3 * patch * patch);
        pixels.assert_dense();
        patches.assert_dense();
        let config = blocks(patches.rows, THREADS);
        let of = [size, patch, shape.grid(), patches.columns, MIDDLE.into()].map(int);
        self.launch(
            &self.unfold,
            config,
            [At(pixels.at), At(patches.at)].into_iter().chain(of),
        )
    }

    /// bfloat16 to f32, as many.
    pub(super) fn widen(&self, from: Matrix<bf16>, to: Matrix<f32>) -> Result<(), DriverError> {
        let count = eights(from.count(), to.count());
        self.launch(&self.widen, over(count), [At(from.at), At(to.at), Size(count)])
    }

    /// Patches, projected, `(n · (t − 1), width)`, to normalised tokens `(n · t, width)`, class token first: `positions` are
    /// added, of which the class token's is the token itself.
    pub(super) fn embed(
        &self,
        patches: Matrix<bf16>,
        positions: Matrix<f32>,
        norm: &Norm,
        to: Matrix<bf16>,
    ) -> Result<(), DriverError> {
        let (tokens, width) = (positions.rows, positions.columns);
        let images = to.rows / tokens;
        assert_eq!((to.rows, to.columns), (images * tokens, width));
        assert_eq!((patches.rows, patches.columns), (images * (tokens - 1), width));
        let (weight, bias) = norm.of(width);
        let config = blocks(to.rows.div_ceil(WARPS), 32 * WARPS);
        let matrices = [patches.at, to.at, positions.at, weight, bias].map(At);
        let of = [int(to.rows), int(tokens), int(width), Real(norm.epsilon)];
        self.launch(&self.embed, config, matrices.into_iter().chain(of))
    }

    /// Rows, normalised.
    pub(super) fn layer_norm(
        &self,
        x: Matrix<bf16>,
        norm: &Norm,
        to: Matrix<bf16>,
    ) -> Result<(), DriverError> {
        assert_eq!((x.rows, x.columns), (to.rows, to.columns));
        assert!(x.apart.is_multiple_of(EIGHT));
        to.assert_dense();
        let (weight, bias) = norm.of(x.columns);
        let config = blocks(x.rows.div_ceil(WARPS), 32 * WARPS);
        let matrices = [x.at, to.at, weight, bias].map(At);
        let of = [int(x.rows), int(x.columns), Size(x.apart), Real(norm.epsilon)];
        self.launch(&self.layer_norm, config, matrices.into_iter().chain(of))
    }

    /// In place.
    pub(super) fn activation(&self, x: Matrix<bf16>) -> Result<(), DriverError> {
        let count = eights(x.count(), x.count());
        self.launch(&self.activation, over(count), [At(x.at), Size(count)])
    }

    /// Queries, keys and values `(n · t, 3 · width)`, side by side, to what they mix `(n · t, width)`: for the first `queries`
    /// tokens of each image.
    pub(super) fn attend(
        &self,
        mixing: Matrix<bf16>,
        to: Matrix<bf16>,
        tokens: usize,
        queries: usize,
    ) -> Result<(), DriverError> {
        let width = to.columns;
        assert!(to.rows.is_multiple_of(tokens) && width.is_multiple_of(self.head));
        assert_eq!((mixing.rows, mixing.columns), (to.rows, 3 * width));
        assert!(queries <= tokens);
        mixing.assert_dense();
        to.assert_dense();
        let (threads, of_block) = ATTENDING;
        let images = to.rows / tokens;
        let heads = width / self.head;
        let config = LaunchConfig {
            grid_dim: (queries.div_ceil(of_block) as u32, heads as u32, images as u32),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        let scale = std::f32::consts::LOG2_E / (self.head as f32).sqrt();
        let of = [
            At(mixing.at),
            At(to.at),
            int(tokens),
            int(heads),
            int(queries),
            Real(scale),
        ];
        self.launch(&self.attend, config, of)
    }

    fn launch(
        &self,
        kernel: &CudaFunction,
        config: LaunchConfig,
        arguments: impl IntoIterator<Item = Argument>,
    ) -> Result<(), DriverError> {
        let arguments: Vec<Argument> = arguments.into_iter().collect();
        let mut launch = self.stream.launch_builder(kernel);
        for argument in &arguments {
            match argument {
                Argument::At(value) => launch.arg(value),
                Argument::Int(value) => launch.arg(value),
                Argument::Size(value) => launch.arg(value),
                Argument::Real(value) => launch.arg(value),
            };
        }
        // SAFETY: the callers above give each kernel the arguments that it has in `kernels.cu`, in order; what it reads and
        // writes lies within matrices, whose shapes they compared.
        unsafe { launch.launch(config) }?;
        Ok(())
    }
}

impl Norm {
    /// Where weight and bias for rows of this width are.
    fn of(&self, width: usize) -> (u64, u64) {
        assert!(
            width.is_multiple_of(EIGHT) && width <= WIDEST,
            "rows too wide to be normalised"
        );
        (self.weight.matrix(1, width).at, self.bias.matrix(1, width).at)
    }
}

/// A number that fits: sizes of matrices on a device do.
fn int(of: usize) -> Argument {
    Argument::Int(i32::try_from(of).expect("a shape of a device's matrix"))
}

/// How many values, if they are as many as others and in eights.
fn eights(count: usize, others: usize) -> usize {
    assert!(
        count == others && count.is_multiple_of(EIGHT),
        "values that are not in eights"
    );
    count
}

/// Blocks that have so many values.
fn over(count: usize) -> LaunchConfig {
    blocks(count.div_ceil(EIGHT * THREADS), THREADS)
}

fn blocks(count: usize, threads: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count as u32, 1, 1),
        block_dim: (threads as u32, 1, 1),
        shared_mem_bytes: 0,
    }
}
