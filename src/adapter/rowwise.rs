//! One pass over the rows of a matrix on the CPU where tensor operators take ten, and hand each to threads that wait for one
//! another and that no setting of ours bounds.
//!
//! Rows are spread over the threads of the pool that a pass is called in. Each is computed by itself, so that their number
//! does not matter.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use num_traits::{Float, NumAssign};
use rayon::prelude::*;

/// Numbers of a matrix: f32, or f64 in tests of gradients.
pub(super) trait Number: Float + NumAssign + Send + Sync {
    /// The nearest to this.
    fn of(value: f64) -> Self;

    /// The same number.
    fn double(self) -> f64;
}

impl Number for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }

    fn double(self) -> f64 {
        self.into()
    }
}

impl Number for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn double(self) -> f64 {
        self
    }
}

/// What is done to every row.
pub(super) trait Pass: Sync {
    /// Changes the row with this number, given that of the other matrix, and says something of it.
    fn row<T: Number>(&self, number: usize, row: &mut [T], other: &[T]) -> f64;
}

/// Changes every row of `rows` (n, m), which nobody else may hold; what `pass` says of each, in order. It is given empty rows
/// of another matrix.
pub(super) fn each_row(rows: &Tensor, pass: &impl Pass) -> Result<Vec<f64>> {
    let op = EachRow::new(pass);
    rows.inplace_op1(&op)?;
    Ok(op.said())
}

/// The same beside `other` (n, k), or one row (1, k) for all, of the same type.
pub(super) fn each_row_beside(rows: &Tensor, other: &Tensor, pass: &impl Pass) -> Result<Vec<f64>> {
    let op = EachRow::new(pass);
    rows.inplace_op2(&other.contiguous()?, &op)?;
    Ok(op.said())
}

/// Σ of `f` over the values of two slices of one length. In eight sums, which one vector holds.
pub(super) fn sum<T: Number>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut sums = [T::zero(); 8];
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f(*a, *b);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(rest_a).zip(rest_b) {
        *sum += f(*a, *b);
    }
    sums.into_iter().fold(T::zero(), |all, sum| all + sum)
}

struct EachRow<'a, P> {
    pass: &'a P,
    said: Mutex<Vec<f64>>,
}

impl<'a, P: Pass> EachRow<'a, P> {
    fn new(pass: &'a P) -> Self {
        let said = Mutex::default();
        Self { pass, said }
    }

    fn said(self) -> Vec<f64> {
        self.said.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T: Number>(&self, rows: &mut [T], layout: &Layout, other: &[T], beside: &Layout) -> Result<()> {
        let (count, width) = layout.shape().dims2()?;
        let (others, other_width) = beside.shape().dims2()?;
        let [rows_at, other_at] = [layout.contiguous_offsets(), beside.contiguous_offsets()];
        let (Some((start, end)), Some((first, last))) = (rows_at, other_at) else {
            bail!("rows with gaps between them");
        };
        if others != count && others > 1 {
            bail!("{count} rows beside {others}");
        }
        let other = &other[first..last];
        let rows = rows[start..end].par_chunks_mut(width.max(1)).enumerate();
        let said = rows.map(|(number, row)| {
            let number_beside = if others > 1 { number } else { 0 };
            let other = &other[number_beside * other_width..][..other_width];
            self.pass.row(number, row, other)
        });
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said.collect();
        Ok(())
    }
}

impl<P: Pass> InplaceOp1 for EachRow<'_, P> {
    fn name(&self) -> &'static str {
        "each-row"
    }

    fn cpu_fwd(&self, rows: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let nothing = Layout::contiguous((1, 0));
        match rows {
            CpuStorage::F32(rows) => self.run(rows, layout, &[], &nothing),
            CpuStorage::F64(rows) => self.run(rows, layout, &[], &nothing),
            _ => bail!("a pass over rows of other types than f32 and f64"),
        }
    }
}

impl<P: Pass> InplaceOp2 for EachRow<'_, P> {
    fn name(&self) -> &'static str {
        "each-row-beside"
    }

    fn cpu_fwd(
        &self,
        rows: &mut CpuStorage,
        layout: &Layout,
        other: &CpuStorage,
        beside: &Layout,
    ) -> Result<()> {
        match (rows, other) {
            (CpuStorage::F32(rows), CpuStorage::F32(other)) => self.run(rows, layout, other, beside),
            (CpuStorage::F64(rows), CpuStorage::F64(other)) => self.run(rows, layout, other, beside),
            _ => bail!("a pass over rows of other types than f32 and f64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Adds the other row's first value, and says the row's number.
    struct Add;

    impl Pass for Add {
        fn row<T: Number>(&self, number: usize, row: &mut [T], other: &[T]) -> f64 {
            for value in row {
                *value += other[0];
            }
            number as f64
        }
    }

    #[test]
    fn every_row_is_given_its_own_or_the_only_one_beside_it() -> Result<()> {
        let matrix =
            |rows: &[[f32; 2]]| Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu);
        let rows = matrix(&[[1.0, 2.0], [3.0, 4.0]])?;
        assert_eq!(
            each_row_beside(&rows, &matrix(&[[10.0, 0.0], [20.0, 0.0]])?, &Add)?,
            [0.0, 1.0]
        );
        assert_eq!(rows.to_vec2::<f32>()?, [[11.0, 12.0], [23.0, 24.0]]);
        each_row_beside(&rows, &matrix(&[[-11.0, 0.0]])?, &Add)?;
        assert_eq!(rows.to_vec2::<f32>()?, [[0.0, 1.0], [12.0, 13.0]]);
        assert!(each_row_beside(&matrix(&[[0.0; 2]; 3])?, &rows, &Add).is_err());
        Ok(())
    }

    #[test]
    fn sums_leave_nothing_out() {
        let values: Vec<f64> = (0..21).map(f64::from).collect();
        assert!((sum(&values, &values, |a, b| a + b) - 420.0).abs() < 1e-12);
    }
}
