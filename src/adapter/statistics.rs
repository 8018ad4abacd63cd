//! What is kept of a class instead of its examples: a Gaussian over its embeddings.
//!
//! With few examples the sample covariance is singular and noisy, so it is kept in the form of probabilistic
//! principal components (Tipping & Bishop 1999): the `r` widest directions exactly, everything else spread evenly.
//!
//! ```text
//! S  = Σ (x − μ)(x − μ)ᵀ / (n − 1)              the sample covariance, eigenvalues λ₁ ≥ λ₂ ≥ …
//! σ² = (tr S − Σ_{i≤r} λᵢ) / D + α · tr S / D + ε
//! Σ̂  = Σ_{i≤r} λᵢ vᵢ vᵢᵀ + σ² I                  what is sampled from: μ + Aᵀ z₁ + σ z₂, rows of A = √λᵢ vᵢ
//! ```
//!
//! α is [`SHRINKAGE`] while n ≤ D and 0 after, when S has full rank. ε is [`FLOOR`].
//! A class needs (r + 1) · D + 1 numbers, whatever the number of its examples. Beside them a task keeps one [`Scatter`],
//! D(D + 1)/2 numbers, where the strategy looks at the spread that all classes share.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError, Reader};
use super::embedding::normalise;
use super::whitening::Scatter;

/// Share of the mean variance added to every direction while there are too few examples to span the space.
pub const SHRINKAGE: f64 = 0.5;

/// Variance added to every direction, for embeddings of length 1. The method's 1e-4 is meant for CLIP's raw
/// features, whose length is about 10: the same share of the squared length.
pub const FLOOR: f64 = 1e-6;

const FORMAT: &str = "clipkeep statistics 1";

/// A Gaussian over one class's embeddings.
#[derive(Debug, Clone)]
pub struct ClassStatistics {
    /// Examples seen.
    pub count: usize,
    /// μ, (D): the exact mean of the embeddings.
    pub mean: Tensor,
    /// A, (r, D): principal directions, each as long as its standard deviation.
    pub components: Tensor,
    /// σ², the variance in every direction beyond the components'.
    pub residual: f64,
}

/// What is kept of classes, in column order: of one task, or of all tasks up to a version.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Each class's Gaussian.
    pub classes: Vec<ClassStatistics>,
    /// The spread within all of them, where it is kept.
    pub scatter: Option<Scatter>,
}

impl Statistics {
    /// Of classes from their features, each (n, D) with at most `rank` components.
    ///
    /// # Errors
    /// When there is a class without rows.
    pub(super) fn estimate(
        features: &[Tensor],
        rank: usize,
        keeps_scatter: bool,
    ) -> candle_core::Result<Self> {
        let classes: Vec<ClassStatistics> = features
            .iter()
            .map(|rows| ClassStatistics::estimate(rows, rank))
            .collect::<candle_core::Result<_>>()?;
        let scatter = match features.first() {
            Some(first) if keeps_scatter => {
                let mut scatter = Scatter::empty(first.dim(1)?, first.device())?;
                for rows in features {
                    scatter.add_class(&normalise(rows)?.to_dtype(DType::F64)?)?;
                }
                Some(scatter)
            }
            _ => None,
        };
        Ok(Self { classes, scatter })
    }

    /// Adds those of the next task.
    ///
    /// # Errors
    /// When embeddings are of another width, or only one of the two keeps the spread within its classes.
    pub fn extend(&mut self, next: Self) -> candle_core::Result<()> {
        match (&mut self.scatter, next.scatter) {
            (Some(sum), Some(next)) => sum.merge(&next)?,
            (sum @ None, next) if self.classes.is_empty() => *sum = next,
            (None, None) => {}
            (Some(_), None) if next.classes.is_empty() => {}
            (Some(_), None) | (None, Some(_)) => {
                candle_core::bail!("the spread within classes is kept of some classes only")
            }
        }
        self.classes.extend(next.classes);
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    dim: usize,
    /// N − C of the scatter, where there is one.
    freedom: Option<usize>,
    classes: Vec<ClassHeader>,
}

#[derive(Serialize, Deserialize)]
struct ClassHeader {
    count: usize,
    rank: usize,
    residual: f64,
}

impl ClassStatistics {
    /// From the features (n, D) of one class, with at most `rank` components and never more than n − 1.
    ///
    /// # Errors
    /// When there is no row.
    pub fn estimate(features: &Tensor, rank: usize) -> candle_core::Result<Self> {
        let (count, dim) = features.dims2()?;
        if count == 0 {
            candle_core::bail!("statistics of a class without examples");
        }
        let embeddings = normalise(features)?.to_dtype(DType::F64)?;
        let mean = embeddings.mean_keepdim(0)?;
        let freedom = count.saturating_sub(1).max(1) as f64;
        let deviations = (embeddings.broadcast_sub(&mean)? / freedom.sqrt())?;
        let total = deviations.sqr()?.sum_all()?.to_scalar::<f64>()?;
        let (components, kept) = principal_directions(&deviations, rank.min(count - 1))?;
        let shrinkage = if count <= dim { SHRINKAGE * total } else { 0.0 };
        let spread = (total - kept).max(0.0) + shrinkage;
        Ok(Self {
            count,
            mean: mean.squeeze(0)?.to_dtype(DType::F32)?,
            components: components.to_dtype(DType::F32)?,
            residual: spread / dim as f64 + FLOOR,
        })
    }
}

/// The `rank` widest principal directions of `deviations` (n, D), whose product XᵀX is the covariance: rows √λᵢ vᵢ of
/// a (rank, D) tensor, and Σ λᵢ. Works on the smaller of XXᵀ and XᵀX, which share their eigenvalues.
fn principal_directions(deviations: &Tensor, rank: usize) -> candle_core::Result<(Tensor, f64)> {
    let (count, dim) = deviations.dims2()?;
    let rank = rank.min(dim);
    if rank == 0 {
        return Ok((Tensor::zeros((0, dim), DType::F64, deviations.device())?, 0.0));
    }
    let across_examples = count <= dim;
    let square = if across_examples {
        deviations.matmul(&deviations.t()?)?
    } else {
        deviations.t()?.contiguous()?.matmul(deviations)?
    };
    let size = count.min(dim);
    let values = square.to_vec2::<f64>()?;
    let matrix = faer::Mat::from_fn(size, size, |i, j| values[i][j]);
    let eigen = matrix
        .self_adjoint_eigen(faer::Side::Lower)
        .map_err(|error| candle_core::Error::msg(format!("eigenvectors of a covariance: {error:?}")))?;
    // Eigenvalues come in rising order: the widest directions are the last columns.
    let widest = || (size - rank..size).rev();
    let lambda: Vec<f64> = widest().map(|i| eigen.S()[i].max(0.0)).collect();
    let vectors: Vec<f64> = widest()
        .flat_map(|i| (0..size).map(move |j| (i, j)))
        .map(|(i, j)| eigen.U()[(j, i)])
        .collect();
    let vectors = Tensor::from_vec(vectors, (rank, size), deviations.device())?;
    let components = if across_examples {
        // √λ v = Xᵀ u for unit eigenvectors u of XXᵀ: no division by a λ that may be zero.
        vectors.matmul(deviations)?
    } else {
        let roots: Vec<f64> = lambda.iter().map(|l| l.sqrt()).collect();
        vectors.broadcast_mul(&Tensor::from_vec(roots, (rank, 1), deviations.device())?)?
    };
    Ok((components, lambda.iter().sum()))
}

/// The statistics of a task's classes as safetensors bytes, in the given order. Components are rounded to float16;
/// the same statistics always give the same bytes.
pub fn encode(statistics: &Statistics) -> Result<Vec<u8>, CodecError> {
    let Statistics { classes, scatter } = statistics;
    let mut tensors = BTreeMap::new();
    let mut headers = Vec::with_capacity(classes.len());
    for (index, class) in classes.iter().enumerate() {
        tensors.insert(format!("{index:06}.mean"), class.mean.clone());
        tensors.insert(
            format!("{index:06}.components"),
            class.components.to_dtype(DType::F16)?,
        );
        let rank = class.components.dim(0)?;
        headers.push(ClassHeader {
            count: class.count,
            rank,
            residual: class.residual,
        });
    }
    let dim = classes.first().map_or(Ok(0), |class| class.mean.dims1())?;
    if let Some(scatter) = scatter {
        let packed = scatter.packed()?;
        tensors.insert("scatter".to_owned(), Tensor::new(packed, &Device::Cpu)?);
    }
    codec::encode(
        &Header {
            format: FORMAT.to_owned(),
            dim,
            freedom: scatter.as_ref().map(Scatter::freedom),
            classes: headers,
        },
        &tensors,
    )
}

/// Reads what [`encode`] wrote onto `device`.
pub fn decode(bytes: &[u8], device: &Device) -> Result<Statistics, CodecError> {
    let (header, reader) = open(bytes, device)?;
    read(&header, &reader, device)
}

/// [`decode`] of bytes from anybody, which must be statistics over embeddings of `dim` values, or of nothing.
pub(super) fn decode_of(bytes: &[u8], dim: usize, device: &Device) -> Result<Statistics, CodecError> {
    let (header, reader) = open(bytes, device)?;
    // A width that is not known to be small must not be multiplied.
    match (header.dim, header.classes.is_empty()) {
        (_, true) => Ok(Statistics::default()),
        (found, _) if found == dim => read(&header, &reader, device),
        (found, _) => Err(CodecError::Width { found, expected: dim }),
    }
}

fn open<'a>(bytes: &'a [u8], device: &'a Device) -> Result<(Header, Reader<'a>), CodecError> {
    let (header, reader) = Reader::open::<Header>(bytes, device)?;
    if header.format != FORMAT {
        return Err(CodecError::Format {
            found: header.format,
            expected: FORMAT,
        });
    }
    Ok((header, reader))
}

fn read(header: &Header, reader: &Reader<'_>, device: &Device) -> Result<Statistics, CodecError> {
    let class = |(index, class): (usize, &ClassHeader)| {
        Ok::<_, CodecError>(ClassStatistics {
            count: class.count,
            mean: reader.f32(&format!("{index:06}.mean"), &[header.dim])?,
            components: reader.f16(&format!("{index:06}.components"), &[class.rank, header.dim])?,
            residual: class.residual,
        })
    };
    let scatter = |freedom| {
        let dim = header.dim;
        let packed = reader.f32("scatter", &[dim * (dim + 1) / 2])?.to_vec1::<f32>()?;
        Ok::<_, CodecError>(Scatter::unpack(&packed, dim, freedom, device)?)
    };
    Ok(Statistics {
        classes: header
            .classes
            .iter()
            .enumerate()
            .map(class)
            .collect::<Result<_, _>>()?,
        scatter: header.freedom.map(scatter).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::rehearsal::tests::{documented, features, moments};

    fn furthest(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
        a.iter()
            .flatten()
            .zip(b.iter().flatten())
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn full_rank_keeps_the_sample_covariance() {
        for count in [40, 9] {
            let features = features(count, 8);
            let statistics = ClassStatistics::estimate(&features, 8).expect("estimated");
            let (mean, covariance) = moments(&normalise(&features).expect("normalised"));
            let found: Vec<f32> = statistics.mean.to_vec1().expect("values");
            assert!(
                found
                    .iter()
                    .zip(&mean)
                    .all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6)
            );
            assert!((statistics.residual - FLOOR).abs() < 1e-9, "nothing is left over");
            assert!(furthest(&documented(&statistics), &covariance) < 2.0 * FLOOR);
        }
    }

    #[test]
    fn variance_outside_the_components_is_spread_evenly() {
        let features = features(60, 8);
        let statistics = ClassStatistics::estimate(&features, 2).expect("estimated");
        let (_, covariance) = moments(&normalise(&features).expect("normalised"));
        let trace = |matrix: &[Vec<f64>]| (0..8).map(|i| matrix[i][i]).sum::<f64>();
        assert_eq!(statistics.components.dims(), [2, 8]);
        assert!((trace(&documented(&statistics)) - trace(&covariance) - 8.0 * FLOOR).abs() < 1e-6);
    }

    #[test]
    fn few_examples_are_shrunk_and_one_is_a_point() {
        let dim = 32;
        let statistics = ClassStatistics::estimate(&features(4, dim), 32).expect("estimated");
        assert_eq!(
            statistics.components.dims(),
            [3, dim],
            "never more than n − 1 directions"
        );
        let kept = statistics
            .components
            .sqr()
            .and_then(|s| s.sum_all())
            .and_then(|s| s.to_scalar::<f32>());
        let expected = SHRINKAGE * f64::from(kept.expect("a sum")) / dim as f64 + FLOOR;
        assert!((statistics.residual / expected - 1.0).abs() < 1e-4);

        let one = ClassStatistics::estimate(&features(1, dim), 32).expect("estimated");
        assert_eq!((one.components.dims(), one.residual), (&[0, dim][..], FLOOR));
        assert!(ClassStatistics::estimate(&features(0, dim), 32).is_err());
    }

    #[test]
    fn statistics_survive_their_codec() {
        let rows = [4, 1, 50].map(|count| features(count, 6));
        let statistics = Statistics::estimate(&rows, 3, true).expect("estimated");
        let bytes = encode(&statistics).expect("encoded");
        let decoded = decode(&bytes, &Device::Cpu).expect("decoded");
        assert_eq!(decoded.classes.len(), 3);
        assert_eq!(decoded.scatter.as_ref().map(Scatter::freedom), Some(3 + 49));
        for (before, after) in statistics.classes.iter().zip(&decoded.classes) {
            assert_eq!(before.count, after.count);
            assert_eq!(before.residual.to_bits(), after.residual.to_bits());
            assert_eq!(
                before.mean.to_vec1::<f32>().expect("values"),
                after.mean.to_vec1::<f32>().expect("values")
            );
            // Float16 keeps 11 bits: half a unit in the last place is 2⁻¹¹ of the value.
            let rounded = furthest(&documented(before), &documented(after));
            assert!(
                rounded < 2e-3 * documented(before)[0][0].max(before.residual),
                "{rounded}"
            );
        }
        assert_eq!(
            bytes,
            encode(&decoded).expect("encoded"),
            "and the same bytes again"
        );
        assert!(decode(&bytes[..bytes.len() - 1], &Device::Cpu).is_err());
        assert!(
            decode(&encode(&Statistics::default()).expect("encoded"), &Device::Cpu)
                .expect("decoded")
                .classes
                .is_empty()
        );
    }
}
