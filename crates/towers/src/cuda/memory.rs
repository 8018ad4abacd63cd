//! Memory on the device, and matrices in it.
//!
//! Owner: the tower. Invariant: a matrix lies within the memory that it was taken from. Whoever has one sees to the order of
//! what reads and writes it: all of that goes into one stream.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr as _, DeviceRepr, DriverError, SyncOnDrop, ValidAsZeroBits,
};

/// Values of what is lent that a kernel reads at a time.
const TOGETHER: usize = 2;

/// Values on the device.
pub(super) struct Memory<T> {
    values: CudaSlice<T>,
    at: CUdeviceptr,
}

impl<T: DeviceRepr> Memory<T> {
    fn new(values: CudaSlice<T>) -> Self {
        let stream = Arc::clone(values.stream());
        let at = values.device_ptr(&stream).0;
        Self { values, at }
    }

    /// A copy of `values`.
    pub(super) fn of(stream: &Arc<CudaStream>, values: &[T]) -> Result<Self, DriverError> {
        Ok(Self::new(stream.clone_htod(values)?))
    }

    pub(super) fn zeros(stream: &Arc<CudaStream>, len: usize) -> Result<Self, DriverError>
    where
        T: ValidAsZeroBits,
    {
        Ok(Self::new(stream.alloc_zeros(len)?))
    }

    /// For copies.
    pub(super) fn values(&self) -> &CudaSlice<T> {
        &self.values
    }

    /// For copies.
    pub(super) fn values_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.values
    }

    /// Where it is.
    pub(super) fn at(&self) -> CUdeviceptr {
        self.at
    }

    /// The first `rows` rows of `columns` values, one after another.
    pub(super) fn matrix(&self, rows: usize, columns: usize) -> Matrix<T> {
        assert!(rows * columns <= self.values.len(), "a matrix beyond its memory");
        Matrix {
            at: self.at,
            rows,
            columns,
            apart: columns,
            of: PhantomData,
        }
    }
}

/// Rows of `columns` values on the device, the first values of two rows `apart` from one another.
pub(super) struct Matrix<T> {
    pub(super) at: CUdeviceptr,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) apart: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Matrix<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Matrix<T> {}

impl<T> Matrix<T> {
    /// What somebody lends to what is put into `stream` next, once it is written, as rows of `columns` values. The guard is to be
    /// dropped when what reads it is in the stream.
    pub(super) fn lent<'a>(
        stream: &'a CudaStream,
        values: &'a CudaView<'_, T>,
        columns: usize,
    ) -> (Self, SyncOnDrop<'a>) {
        assert!(values.len().is_multiple_of(columns), "rows of another width");
        let (at, guard) = values.device_ptr(stream);
        assert!(
            at.is_multiple_of((TOGETHER * size_of::<T>()) as u64),
            "values between those that are read together"
        );
        let matrix = Self {
            at,
            rows: values.len() / columns,
            columns,
            apart: columns,
            of: PhantomData,
        };
        (matrix, guard)
    }

    /// These columns of it.
    pub(super) fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.columns, "columns beyond a matrix");
        Self {
            at: self.at + (first * size_of::<T>()) as u64,
            columns: count,
            ..self
        }
    }

    /// These rows of it.
    pub(super) fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows beyond a matrix");
        Self {
            at: self.at + (first * self.apart * size_of::<T>()) as u64,
            rows: count,
            ..self
        }
    }

    /// The first row of every `of`.
    pub(super) fn firsts(self, of: usize) -> Self {
        assert!(self.rows.is_multiple_of(of), "rows that are no multiple");
        Self {
            rows: self.rows / of,
            apart: self.apart * of,
            ..self
        }
    }

    /// How many values.
    ///
    /// # Panics
    /// When there is something between the rows.
    pub(super) fn count(self) -> usize {
        self.assert_dense();
        self.rows * self.columns
    }

    pub(super) fn assert_dense(self) {
        assert_eq!(self.apart, self.columns, "rows apart from one another");
    }
}
