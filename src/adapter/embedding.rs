//! From features to embeddings.

use candle_core::{D, DType, Device, Result, Tensor};
use clipkeep_towers::scores;

use super::host::read;
use crate::domain::Features;

/// Lengths below this count as this, so that an all-zero row stays zero instead of becoming not-a-number.
const SHORTEST: f64 = 1e-12;

/// Stored features as one tensor (n, D) of f32.
///
/// # Errors
/// When the rows differ in length.
pub fn stack<'a>(features: impl ExactSizeIterator<Item = &'a Features>, device: &Device) -> Result<Tensor> {
    let (rows, mut dim, mut values) = (features.len(), 0, Vec::new());
    for row in features {
        if values.is_empty() {
            dim = row.dim();
            values.reserve_exact(rows * dim);
        }
        if row.dim() != dim {
            candle_core::bail!("features of different lengths");
        }
        values.extend(row.values());
    }
    Tensor::from_vec(values, (rows, dim), device)
}

/// Rows (n, D) scaled to length 1.
pub fn normalise(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&lengths(rows)?)
}

/// The products of rows (n, D) with each of C vectors (C, D), as (n, C): `rows · vectorsᵀ`. In f32 on the CPU, where no gradient is
/// asked for, a row's are the same bits whatever rows are beside it.
pub(super) fn against(rows: &Tensor, vectors: &Tensor) -> Result<Tensor> {
    let is_plain = |x: &Tensor| x.device().is_cpu() && x.dtype() == DType::F32 && !x.track_op();
    let (count, dim) = rows.dims2()?;
    if dim != vectors.dim(1)? || !is_plain(rows) || !is_plain(vectors) {
        return rows.matmul(&vectors.t()?);
    }
    let products = read(&rows.contiguous()?, |rows| {
        read(&vectors.contiguous()?, |vectors| Ok(scores(rows, vectors, dim)))
    })?;
    Tensor::from_vec(products, (count, vectors.dim(0)?), &Device::Cpu)
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
    use candle_core::Var;

    use super::*;

    #[test]
    fn directions_do_not_depend_on_length_and_zero_stays_zero() -> Result<()> {
        let rows = Tensor::new(&[[3.0_f32, 4.0], [30.0, 40.0], [0.0, 0.0]], &Device::Cpu)?;
        let expected = vec![vec![0.6, 0.8], vec![0.6, 0.8], vec![0.0, 0.0]];
        assert_eq!(normalise(&rows)?.to_vec2::<f32>()?, expected);
        Ok(())
    }

    #[test]
    fn products_are_those_of_tensors_in_any_type_and_with_gradients() -> Result<()> {
        let values = |rows: usize| Tensor::arange(0_f32, (rows * 3) as f32, &Device::Cpu)?.reshape((rows, 3));
        let vectors = values(5)?;
        for rows in [values(1)?, values(70)?, values(3)?.t()?, vectors.narrow(0, 0, 0)?] {
            let expected = rows.matmul(&vectors.t()?)?.to_vec2::<f32>()?;
            assert_eq!(against(&rows, &vectors)?.to_vec2::<f32>()?, expected);
            let [rows, vectors] = [&rows, &vectors].map(|x| x.to_dtype(DType::F64));
            let wider = against(&rows?, &vectors?)?.to_dtype(DType::F32)?;
            assert_eq!(wider.to_vec2::<f32>()?, expected);
        }
        assert!(against(&values(1)?, &values(4)?.t()?).is_err(), "of other widths");
        let weight = Var::from_tensor(&vectors)?;
        let loss = against(&values(2)?, &weight)?.sum_all()?;
        let slope = loss.backward()?.get(&weight).map(Tensor::to_vec2::<f32>);
        assert_eq!(slope.expect("a gradient")?, vec![vec![3.0, 5.0, 7.0]; 5]);
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
        let stacked = stack([row(&[1.0, 2.0]), row(&[3.0, 4.0])].iter(), &Device::Cpu)?;
        assert_eq!(stacked.to_vec2::<f32>()?, vec![vec![1.0, 2.0], vec![3.0, 4.0]]);
        assert!(stack([row(&[1.0]), row(&[1.0, 2.0])].iter(), &Device::Cpu).is_err());
        Ok(())
    }
}
