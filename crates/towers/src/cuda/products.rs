//! Products with the weights, by cuBLASLt: bias and residual are part of them.
//!
//! Owner: the tower. Invariant: matrices of a product fit together, or it is not asked for.

#![expect(unsafe_code, reason = "calls of a C library; each block says why it is sound")]

use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as Of, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Wish, cublasLtMatrixLayout_t, cudaDataType,
};
use cudarc::driver::{CudaStream, DriverError};
use half::bf16;

use super::Error;
use super::memory::{Matrix, Memory};

/// What cuBLASLt may use meanwhile: NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;

/// A layer's weights `(outputs, inputs)` and bias.
pub(super) struct Linear {
    weight: Memory<bf16>,
    bias: Option<Memory<bf16>>,
    outputs: usize,
    inputs: usize,
}

impl Linear {
    /// `weight` row by row; no `bias` where it is empty.
    pub(super) fn load(
        stream: &Arc<CudaStream>,
        weight: &[bf16],
        bias: &[bf16],
        inputs: usize,
    ) -> Result<Self, DriverError> {
        let outputs = weight.len() / inputs;
        assert!(
            bias.is_empty() || bias.len() == outputs,
            "a bias of another width"
        );
        let bias = (!bias.is_empty()).then(|| Memory::of(stream, bias));
        Ok(Self {
            weight: Memory::of(stream, weight)?,
            bias: bias.transpose()?,
            outputs,
            inputs,
        })
    }

    pub(super) fn all(&self) -> Outputs {
        Outputs {
            weight: self.weight.matrix(self.outputs, self.inputs),
            bias: self.bias.as_ref().map(|bias| bias.matrix(1, self.outputs)),
        }
    }

    /// Some of its outputs.
    pub(super) fn outputs(&self, first: usize, count: usize) -> Outputs {
        let Outputs { weight, bias } = self.all();
        Outputs {
            weight: weight.rows(first, count),
            bias: bias.map(|bias| bias.columns(first, count)),
        }
    }
}

/// Outputs of a layer.
pub(super) struct Outputs {
    weight: Matrix<bf16>,
    bias: Option<Matrix<bf16>>,
}

/// What a product is added to, its bias aside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Onto {
    /// Nothing: what was there is written over.
    Nothing,
    /// What was there: a residual.
    Itself,
}

/// Types that products are written in.
pub(super) trait Written {
    const TYPE: cudaDataType;
}

impl Written for bf16 {
    const TYPE: cudaDataType = cudaDataType::CUDA_R_16BF;
}

impl Written for f32 {
    const TYPE: cudaDataType = cudaDataType::CUDA_R_32F;
}

/// cuBLASLt on one stream.
pub(super) struct Products {
    handle: Handle,
    workspace: Memory<u8>,
    stream: Arc<CudaStream>,
}

impl Products {
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self, Error> {
        Ok(Self {
            handle: Handle(result::create_handle()?),
            workspace: Memory::zeros(&stream, WORKSPACE)?,
            stream,
        })
    }

    /// `to ← x · weightᵀ + bias`, and `+ to`: rows of inputs to rows of outputs, summed in f32.
    pub(super) fn product<T: Written>(
        &self,
        x: Matrix<bf16>,
        Outputs { weight, bias }: Outputs,
        to: Matrix<T>,
        onto: Onto,
    ) -> Result<(), Error> {
        assert_eq!(x.columns, weight.columns, "a product of other inputs");
        assert_eq!((x.rows, weight.rows), (to.rows, to.columns), "another product");
        // Its matrices lie column by column: to it ours are transposed, and so are their places.
        let description = Description::new()?;
        let yes = 1_i32;
        description.set(Of::CUBLASLT_MATMUL_DESC_TRANSA, &yes)?;
        if let Some(bias) = bias {
            description.set(
                Of::CUBLASLT_MATMUL_DESC_EPILOGUE,
                &cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
            description.set(Of::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.at)?;
        }
        let of_weight = Layout::of(weight)?;
        let of_x = Layout::of(x)?;
        let of_to = Layout::of(to)?;
        let preference = Preference::new()?;
        preference.set(
            Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &self.workspace.values().len(),
        )?;
        let alignments = [
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight.at),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x.at),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, to.at),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, to.at),
        ];
        for (wish, at) in alignments {
            preference.set(wish, &alignment(at))?;
        }
        let one = 1.0_f32;
        let beta = match onto {
            Onto::Nothing => 0.0_f32,
            Onto::Itself => 1.0,
        };
        // SAFETY: handle, description, layouts and preference are alive. The layouts are those of matrices that lie within
        // their memory, which the tower holds, and fit together, as was asserted above; the bias is as long as the product's
        // rows; the workspace is as long as was said. The stream is of the same context.
        unsafe {
            let found = result::get_matmul_algo_heuristic(
                self.handle.0,
                description.0,
                of_weight.0,
                of_x.0,
                of_to.0,
                of_to.0,
                preference.0,
            )?;
            result::matmul(
                self.handle.0,
                description.0,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                weight.at as *const _,
                of_weight.0,
                x.at as *const _,
                of_x.0,
                to.at as *const _,
                of_to.0,
                to.at as *mut _,
                of_to.0,
                &raw const found.algo,
                self.workspace.at() as *mut _,
                self.workspace.values().len(),
                self.stream.cu_stream().cast(),
            )?;
        }
        Ok(())
    }
}

/// Bytes that an address is a multiple of, as far as it matters.
fn alignment(at: u64) -> u32 {
    const MOST: u32 = 256;
    1 << at.trailing_zeros().min(MOST.trailing_zeros())
}

struct Handle(cublasLtHandle_t);

// SAFETY: cuBLASLt's documentation lets threads share a handle.
unsafe impl Send for Handle {}
// SAFETY: the same.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was made by `create_handle`, and nobody else has it.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

struct Description(cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, CublasError> {
        let sums = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        result::create_matmul_desc(sums, cudaDataType::CUDA_R_32F).map(Self)
    }

    fn set<T>(&self, attribute: Of, value: &T) -> Result<(), CublasError> {
        // SAFETY: it is alive, and as many bytes are read as the value has.
        unsafe {
            result::set_matmul_desc_attribute(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was made by `create_matmul_desc`, and nobody else has it.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Layout(cublasLtMatrixLayout_t);

impl Layout {
    /// Of a matrix's transpose.
    fn of<T: Written>(matrix: Matrix<T>) -> Result<Self, CublasError> {
        let Matrix {
            rows, columns, apart, ..
        } = matrix;
        let apart = i64::try_from(apart).expect("a shape of a device's matrix");
        result::create_matrix_layout(T::TYPE, columns as u64, rows as u64, apart).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it was made by `create_matrix_layout`, and nobody else has it.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Preference(cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T>(&self, attribute: Wish, value: &T) -> Result<(), CublasError> {
        // SAFETY: it is alive, and as many bytes are read as the value has.
        unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made by `create_matmul_pref`, and nobody else has it.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
