//! The widest principal directions of a class's rows.
//!
//! Of a few rows, or of few values each, all directions are found, and the widest taken. Otherwise only the widest are, by
//! subspace iteration (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.3):
//!
//! ```text
//! Q = random (D, k),   3 times: Q = orth(Xᵀ X Q),   Qᵀ Xᵀ X Q = U Λ Uᵀ,   V = Q U,   k = 2 r
//! ```
//!
//! How far the i-th direction is missed falls with (λ_{k+1} / λ_i)³: what is mistaken for one another is of nearly the same
//! width.

use candle_core::{DType, Device, Error, Result, Tensor};
use faer::{Mat, MatRef, Side};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::host::read;

/// How many directions are iterated on for one that is wanted.
const WIDER: usize = 2;

/// Iterations.
const POWERS: usize = 3;

/// How many directions there may be for one that is wanted, so that all are found.
const FEW: usize = 4;

/// The `rank` widest principal directions of `deviations` (n, D), whose product XᵀX is the covariance: rows √λᵢ vᵢ of
/// a (rank, D) tensor in f64, and Σ λᵢ.
pub(super) fn principal_directions(deviations: &Tensor, rank: usize) -> Result<(Tensor, f64)> {
    let (count, dim) = deviations.dims2()?;
    let rank = rank.min(count).min(dim);
    if rank == 0 {
        return Ok((Tensor::zeros((0, dim), DType::F64, deviations.device())?, 0.0));
    }
    let find = if count.min(dim) <= FEW * rank { all } else { widest };
    let here = deviations.to_device(&Device::Cpu)?.contiguous()?;
    let Directions { vectors, lambda } = read(&here, |values| {
        find(MatRef::from_row_major_slice(values, count, dim), rank)
    })?;
    let components: Vec<f64> = (0..rank)
        .flat_map(|i| (0..dim).map(move |j| (i, j)))
        .map(|(i, j)| vectors[(j, i)])
        .collect();
    let components = Tensor::from_vec(components, (rank, dim), &Device::Cpu)?;
    Ok((components.to_device(deviations.device())?, lambda.iter().sum()))
}

struct Directions {
    /// √λᵢ vᵢ in columns, (D, r).
    vectors: Mat<f64>,
    /// λᵢ.
    lambda: Vec<f64>,
}

/// By all eigenvectors of the smaller of XXᵀ and XᵀX, which share their eigenvalues.
fn all(rows: MatRef<'_, f64>, rank: usize) -> Result<Directions> {
    if rows.nrows() <= rows.ncols() {
        let (vectors, lambda) = eigenvectors(&(rows * rows.transpose()), rank)?;
        // √λ v = Xᵀ u for unit eigenvectors u of XXᵀ: no division by a λ that may be zero.
        let vectors = rows.transpose() * vectors;
        return Ok(Directions { vectors, lambda });
    }
    let (vectors, lambda) = eigenvectors(&(rows.transpose() * rows), rank)?;
    Ok(scaled(vectors, lambda))
}

/// By subspace iteration, from the same random numbers every time.
fn widest(rows: MatRef<'_, f64>, rank: usize) -> Result<Directions> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let normal = |_, _| -> f64 { StandardNormal.sample(&mut rng) };
    let mut basis = Mat::from_fn(rows.ncols(), WIDER * rank, normal);
    for _ in 0..POWERS {
        let along = rows * &basis;
        basis = (rows.transpose() * along).qr().compute_thin_Q();
    }
    let along = rows * &basis;
    let (vectors, lambda) = eigenvectors(&(along.transpose() * &along), rank)?;
    Ok(scaled(basis * vectors, lambda))
}

/// The unit eigenvectors of a symmetric matrix with the `rank` largest eigenvalues, in columns, and these.
fn eigenvectors(square: &Mat<f64>, rank: usize) -> Result<(Mat<f64>, Vec<f64>)> {
    let eigen = square
        .self_adjoint_eigen(Side::Lower)
        .map_err(|error| Error::msg(format!("eigenvectors of a covariance: {error:?}")))?;
    // Eigenvalues come in rising order.
    let size = square.nrows();
    let lambda = (0..rank).map(|i| eigen.S()[size - 1 - i].max(0.0)).collect();
    let vectors = eigen.U().subcols(size - rank, rank).reverse_cols().to_owned();
    Ok((vectors, lambda))
}

/// Of unit vectors, and their λ.
fn scaled(mut vectors: Mat<f64>, lambda: Vec<f64>) -> Directions {
    for (i, lambda) in lambda.iter().enumerate() {
        vectors
            .col_mut(i)
            .iter_mut()
            .for_each(|value| *value *= lambda.sqrt());
    }
    Directions { vectors, lambda }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::rehearsal::tests::features;

    #[test]
    fn the_widest_of_many_directions_are_nearly_those_of_all() -> Result<()> {
        const RANK: usize = 4;
        let rows = features(200, 60);
        let rows = rows.broadcast_sub(&rows.mean_keepdim(0)?)?.to_dtype(DType::F64)?;
        assert!(rows.dim(1)? > FEW * RANK, "not all are looked at");
        let (found, sum) = principal_directions(&rows, RANK)?;
        let values = rows.flatten_all()?.to_vec1::<f64>()?;
        let Directions { vectors, lambda } = all(MatRef::from_row_major_slice(&values, 200, 60), RANK)?;
        assert!((sum / lambda.iter().sum::<f64>() - 1.0).abs() < 1e-4);
        let found = found.to_vec2::<f64>()?;
        for (i, (found, lambda)) in found.iter().zip(&lambda).enumerate() {
            let along: f64 = found.iter().zip(vectors.col(i).iter()).map(|(a, b)| a * b).sum();
            assert!(
                (along.abs() / lambda - 1.0).abs() < 1e-3,
                "{i}: {along} of {lambda}"
            );
        }
        let again = principal_directions(&rows, RANK)?.0.to_vec2::<f64>()?;
        assert_eq!(found, again, "the same every time");
        Ok(())
    }

    #[test]
    fn more_rows_than_values_and_fewer_have_the_same_directions() -> Result<()> {
        let rows = features(6, 9).to_dtype(DType::F64)?;
        let longer = rows.pad_with_zeros(0, 0, 4)?;
        let (across, sum) = principal_directions(&rows, 5)?;
        let (along, sum_along) = principal_directions(&longer, 5)?;
        assert!((sum / sum_along - 1.0).abs() < 1e-9);
        // Either sign is right.
        let products = (across * along)?.sum(1)?.abs()?.to_vec1::<f64>()?;
        assert!(
            (products.iter().sum::<f64>() / sum - 1.0).abs() < 1e-6,
            "{products:?}"
        );
        Ok(())
    }

    #[test]
    fn copies_of_two_rows_have_one_direction() -> Result<()> {
        const RANK: usize = 3;
        let two = features(2, 40).to_dtype(DType::F64)?;
        let two = two.broadcast_sub(&two.mean_keepdim(0)?)?;
        let rows = Tensor::cat(&[&two; 20], 0)?;
        assert!(rows.dim(0)? > FEW * RANK, "not all are looked at");
        let (found, sum) = principal_directions(&rows, RANK)?;
        let widths = found.sqr()?.sum(1)?.to_vec1::<f64>()?;
        let whole = rows.sqr()?.sum_all()?.to_scalar::<f64>()?;
        assert!((widths[0] / whole - 1.0).abs() < 1e-9 && (sum / whole - 1.0).abs() < 1e-9);
        assert!(
            widths[1..].iter().all(|width| *width < 1e-9 * whole),
            "{widths:?}"
        );
        Ok(())
    }
}
