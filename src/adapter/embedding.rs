//! From features to embeddings.

use candle_core::{D, Device, Result, Tensor};

use crate::domain::Features;

/// Lengths below this count as this, so that an all-zero row stays zero instead of becoming not-a-number.
const SHORTEST: f64 = 1e-12;

/// On the CPU, fewer rows than this are multiplied by reading the other matrix as it lies, which for more is packed first.
const FEW: usize = 64;

/// Stored features as one tensor (n, D) of f32.
///
/// # Errors
/// When the rows differ in length.
pub fn stack(features: &[Features], device: &Device) -> Result<Tensor> {
    let dim = features.first().map_or(0, Features::dim);
    let values: Vec<f32> = features.iter().flat_map(Features::values).collect();
    if features.iter().any(|row| row.dim() != dim) {
        candle_core::bail!("features of different lengths");
    }
    Tensor::from_vec(values, (features.len(), dim), device)
}

/// Rows (n, D) scaled to length 1.
pub fn normalise(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&lengths(rows)?)
}

/// The products of rows (n, D) with each of C vectors (C, D), as (n, C): `rows · vectorsᵀ`.
pub(super) fn against(rows: &Tensor, vectors: &Tensor) -> Result<Tensor> {
    if rows.dim(0)? < FEW && rows.device().is_cpu() {
        vectors.matmul(&rows.t()?)?.t()?.contiguous()
    } else {
        rows.matmul(&vectors.t()?)
    }
}

/// The mean of each class's rows as unit rows (C, D): what stands for a class whose label says nothing. `labels` (n)
/// are below `classes`; a class without rows gets a zero row.
pub fn class_means(rows: &Tensor, labels: &[u32], classes: usize) -> Result<Tensor> {
    let index = Tensor::new(labels, rows.device())?;
    let sums = Tensor::zeros((classes, rows.dim(1)?), rows.dtype(), rows.device())?;
    normalise(&sums.index_add(&index, &normalise(rows)?, 0)?)
}

/// The mean of two lists of unit rows (C, D), as unit rows: half words, half examples.
pub fn blend(texts: &Tensor, means: &Tensor) -> Result<Tensor> {
    normalise(&(texts + means)?)
}

/// The Euclidean length of each row of (n, D), as (n, 1).
pub(super) fn lengths(rows: &Tensor) -> Result<Tensor> {
    rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_do_not_depend_on_length_and_zero_stays_zero() -> Result<()> {
        let rows = Tensor::new(&[[3.0_f32, 4.0], [30.0, 40.0], [0.0, 0.0]], &Device::Cpu)?;
        let expected = vec![vec![0.6, 0.8], vec![0.6, 0.8], vec![0.0, 0.0]];
        assert_eq!(normalise(&rows)?.to_vec2::<f32>()?, expected);
        Ok(())
    }

    #[test]
    fn few_rows_and_many_are_multiplied_alike() -> Result<()> {
        let values = |rows: usize| Tensor::arange(0_f32, (rows * 3) as f32, &Device::Cpu)?.reshape((rows, 3));
        for rows in [1, FEW - 1, FEW] {
            let (rows, vectors) = (values(rows)?, values(5)?);
            let expected = rows.matmul(&vectors.t()?)?;
            assert_eq!(
                against(&rows, &vectors)?.to_vec2::<f32>()?,
                expected.to_vec2::<f32>()?
            );
        }
        Ok(())
    }

    #[test]
    fn means_of_classes_are_directions() -> Result<()> {
        let rows = Tensor::new(&[[2.0_f32, 0.0], [0.0, 1.0], [0.0, 9.0]], &Device::Cpu)?;
        let means = class_means(&rows, &[1, 0, 1], 3)?.to_vec2::<f32>()?;
        let half = 0.5_f32.sqrt();
        let expected = [[0.0, 1.0], [half, half], [0.0, 0.0]];
        for (mean, expected) in means.iter().zip(expected) {
            assert!(
                mean.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
                "{means:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn features_stack_row_by_row() -> Result<()> {
        let row = |values: &[f32]| Features::from_f32(values).expect("in range");
        let stacked = stack(&[row(&[1.0, 2.0]), row(&[3.0, 4.0])], &Device::Cpu)?;
        assert_eq!(stacked.to_vec2::<f32>()?, vec![vec![1.0, 2.0], vec![3.0, 4.0]]);
        assert!(stack(&[row(&[1.0]), row(&[1.0, 2.0])], &Device::Cpu).is_err());
        Ok(())
    }
}
