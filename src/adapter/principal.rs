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

use candle_core::{Error, Result};
use faer::{ColRef, Mat, MatRef, Side};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// How many directions are iterated on for one that is wanted.
const WIDER: usize = 2;

/// Iterations.
const POWERS: usize = 3;

/// How many directions there may be for one that is wanted, so that all are found.
const FEW: usize = 4;

/// Principal directions, and the variance along them.
pub(super) struct Directions {
    /// √λᵢ vᵢ one after another, (r, D).
    pub(super) vectors: Vec<f32>,
    /// Σ λᵢ.
    pub(super) variance: f64,
}

/// The `rank` widest of `deviations` (n, D), whose product XᵀX is the covariance.
pub(super) fn principal_directions(deviations: &[f32], dim: usize, rank: usize) -> Result<Directions> {
    let count = deviations.len() / dim;
    let rank = rank.min(count).min(dim);
    let (vectors, lambda) = if rank == 0 {
        (Mat::zeros(dim, 0), Vec::new())
    } else if count.min(dim) <= FEW * rank {
        let rows: Vec<f64> = deviations.iter().copied().map(f64::from).collect();
        all(MatRef::from_row_major_slice(&rows, count, dim), rank)?
    } else {
        widest(MatRef::from_row_major_slice(deviations, count, dim), rank)?
    };
    let values = vectors.col_iter().flat_map(ColRef::iter);
    Ok(Directions {
        vectors: values.map(|value| *value as f32).collect(),
        variance: lambda.iter().sum(),
    })
}

/// √λᵢ vᵢ in columns (D, r), and λᵢ, by all eigenvectors of the smaller of XXᵀ and XᵀX, which share their eigenvalues.
fn all(rows: MatRef<'_, f64>, rank: usize) -> Result<(Mat<f64>, Vec<f64>)> {
    if rows.nrows() <= rows.ncols() {
        let (vectors, lambda) = eigenvectors(&(rows * rows.transpose()), rank)?;
        // √λ v = Xᵀ u for unit eigenvectors u of XXᵀ: no division by a λ that may be zero.
        return Ok((rows.transpose() * vectors, lambda));
    }
    let (vectors, lambda) = eigenvectors(&(rows.transpose() * rows), rank)?;
    Ok((scaled(vectors, &lambda), lambda))
}

/// The same by subspace iteration, from the same random numbers every time. In f32: no more is kept of them.
fn widest(rows: MatRef<'_, f32>, rank: usize) -> Result<(Mat<f64>, Vec<f64>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let normal = |_, _| -> f32 { StandardNormal.sample(&mut rng) };
    let mut basis = Mat::from_fn(rows.ncols(), WIDER * rank, normal);
    for _ in 0..POWERS {
        let along = rows * &basis;
        basis = (rows.transpose() * along).qr().compute_thin_Q();
    }
    let along = rows * &basis;
    let (vectors, lambda) = eigenvectors(&wide(&(along.transpose() * &along)), rank)?;
    Ok((scaled(wide(&basis) * vectors, &lambda), lambda))
}

fn wide(matrix: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |row, column| {
        f64::from(matrix[(row, column)])
    })
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

/// Unit vectors in columns, made as long as √λ.
fn scaled(mut vectors: Mat<f64>, lambda: &[f64]) -> Mat<f64> {
    for (i, lambda) in lambda.iter().enumerate() {
        let column = vectors.col_mut(i);
        column.iter_mut().for_each(|value| *value *= lambda.sqrt());
    }
    vectors
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::*;
    use crate::adapter::rehearsal::tests::features;

    /// Rows (n, D) around their mean.
    fn centred(rows: &Tensor) -> Result<Vec<f32>> {
        rows.broadcast_sub(&rows.mean_keepdim(0)?)?
            .flatten_all()?
            .to_vec1()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
    }

    #[test]
    fn the_widest_of_many_directions_are_nearly_those_of_all() -> Result<()> {
        const RANK: usize = 4;
        const DIM: usize = 60;
        const { assert!(DIM > FEW * RANK, "not all are looked at") };
        let rows = centred(&features(200, DIM))?;
        let found = principal_directions(&rows, DIM, RANK)?;
        let doubles: Vec<f64> = rows.iter().copied().map(f64::from).collect();
        let (vectors, lambda) = all(MatRef::from_row_major_slice(&doubles, 200, DIM), RANK)?;
        assert!((found.variance / lambda.iter().sum::<f64>() - 1.0).abs() < 1e-4);
        for (i, (found, lambda)) in found.vectors.chunks_exact(DIM).zip(&lambda).enumerate() {
            let vector: Vec<f32> = vectors.col(i).iter().map(|value| *value as f32).collect();
            let along = dot(found, &vector);
            assert!(
                (along.abs() / lambda - 1.0).abs() < 1e-3,
                "{i}: {along} of {lambda}"
            );
        }
        let again = principal_directions(&rows, DIM, RANK)?.vectors;
        assert_eq!(found.vectors, again, "the same every time");
        Ok(())
    }

    #[test]
    fn more_rows_than_values_and_fewer_have_the_same_directions() -> Result<()> {
        let mut rows = features(6, 9).flatten_all()?.to_vec1::<f32>()?;
        let across = principal_directions(&rows, 9, 5)?;
        rows.resize(10 * 9, 0.0);
        let along = principal_directions(&rows, 9, 5)?;
        assert!((across.variance / along.variance - 1.0).abs() < 1e-9);
        // Either sign is right.
        let pairs = across.vectors.chunks_exact(9).zip(along.vectors.chunks_exact(9));
        let products: f64 = pairs.map(|(a, b)| dot(a, b).abs()).sum();
        assert!((products / across.variance - 1.0).abs() < 1e-5, "{products}");
        Ok(())
    }

    #[test]
    fn copies_of_one_row_have_none() -> Result<()> {
        for value in [0.0, 1e-25_f32] {
            let found = principal_directions(&vec![value; 60 * 40], 40, 3)?;
            assert!(found.vectors.iter().all(|value| value.is_finite()));
            assert!(found.variance.abs() < 1e-20, "{}", found.variance);
        }
        Ok(())
    }

    #[test]
    fn copies_of_two_rows_have_one_direction() -> Result<()> {
        const RANK: usize = 3;
        const DIM: usize = 40;
        const { assert!(DIM > FEW * RANK, "not all are looked at") };
        let rows = centred(&features(2, DIM))?.repeat(20);
        let found = principal_directions(&rows, DIM, RANK)?;
        let widths: Vec<f64> = found.vectors.chunks_exact(DIM).map(|v| dot(v, v)).collect();
        let whole = dot(&rows, &rows);
        assert!((widths[0] / whole - 1.0).abs() < 1e-5 && (found.variance / whole - 1.0).abs() < 1e-5);
        assert!(
            widths[1..].iter().all(|width| *width < 1e-5 * whole),
            "{widths:?}"
        );
        Ok(())
    }
}
