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
//! A class needs (r + 1) · D + 1 numbers, whatever the number of its examples, and k · D more where k exemplars are kept.
//! Beside them a task keeps one [`Scatter`], D(D + 1)/2 numbers, where the strategy looks at the spread that all classes
//! share, or one [`Gram`], M(M + 1)/2 + C · M numbers, where it regresses on M random features.
//!
//! What a row is, its strategy says: a unit embedding, or an image's tokens one after another.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError, Reader};
use super::exemplars;
use super::gram::Gram;
use super::whitening::Scatter;
use crate::domain::Choice;

/// Share of the mean variance added to every direction while there are too few examples to span the space.
pub const SHRINKAGE: f64 = 0.5;

/// Variance added to every direction, for embeddings of length 1. The method's 1e-4 is meant for CLIP's raw
/// features, whose length is about 10: the same share of the squared length.
pub const FLOOR: f64 = 1e-6;

const FORMAT: &str = "clipkeep statistics 1";

/// A Gaussian over one class's rows.
#[derive(Debug, Clone)]
pub struct ClassStatistics {
    /// Examples seen.
    pub count: usize,
    /// μ, (D): the exact mean of the rows.
    pub mean: Tensor,
    /// A, (r, D): principal directions, each as long as its standard deviation.
    pub components: Tensor,
    /// σ², the variance in every direction beyond the components'.
    pub residual: f64,
    /// Some of the rows themselves, (k, D), where exemplars are kept.
    pub exemplars: Option<Tensor>,
}

/// What is kept of each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    /// Most principal directions.
    pub(super) rank: usize,
    /// How many exemplars, and which.
    pub(super) exemplars: Option<(usize, Choice)>,
}

/// What is kept of classes, in column order: of one task, or of all tasks up to a version.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Each class's Gaussian.
    pub classes: Vec<ClassStatistics>,
    /// The spread within all of them, where it is kept.
    pub scatter: Option<Scatter>,
    /// What ridge regression needs of all of them, where it is kept.
    pub gram: Option<Gram>,
}

impl Statistics {
    /// Of classes from their rows, each (n, D). `rng` draws exemplars where they are drawn.
    ///
    /// # Errors
    /// When there is a class without rows.
    pub(super) fn estimate(rows: &[Tensor], kept: Kept, rng: &mut impl Rng) -> candle_core::Result<Self> {
        let mut classes = Vec::with_capacity(rows.len());
        for rows in rows {
            let mut class = ClassStatistics::estimate(rows, kept.rank)?;
            if let Some((count, choice)) = kept.exemplars {
                class.exemplars = Some(exemplars::choose(rows, count, choice, rng)?);
            }
            classes.push(class);
        }
        Ok(Self {
            classes,
            ..Self::default()
        })
    }

    /// Adds those of the next task.
    ///
    /// # Errors
    /// When rows are of another width, or only one of the two keeps what is common to its classes.
    pub fn extend(&mut self, next: Self) -> candle_core::Result<()> {
        if !next.classes.is_empty() {
            let is_first = self.classes.is_empty();
            join(&mut self.scatter, next.scatter, is_first, Scatter::merge)?;
            join(&mut self.gram, next.gram, is_first, Gram::merge)?;
        }
        self.classes.extend(next.classes);
        Ok(())
    }
}

/// What all tasks so far have in common, and the next one's part of it.
fn join<T>(
    sum: &mut Option<T>,
    next: Option<T>,
    is_first: bool,
    merge: impl FnOnce(&mut T, &T) -> candle_core::Result<()>,
) -> candle_core::Result<()> {
    match (sum, next) {
        (Some(sum), Some(next)) => merge(sum, &next),
        (sum @ None, next) if is_first => {
            *sum = next;
            Ok(())
        }
        (None, None) => Ok(()),
        (Some(_), None) | (None, Some(_)) => {
            candle_core::bail!("what classes have in common is kept of some tasks only")
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    dim: usize,
    /// N − C of the scatter, where there is one.
    freedom: Option<usize>,
    /// M of the random features, where there are any.
    #[serde(default)]
    random_features: Option<usize>,
    classes: Vec<ClassHeader>,
}

#[derive(Serialize, Deserialize)]
struct ClassHeader {
    count: usize,
    rank: usize,
    residual: f64,
    #[serde(default)]
    exemplars: usize,
}

impl ClassStatistics {
    /// From the rows (n, D) of one class, with at most `rank` components and never more than n − 1.
    ///
    /// # Errors
    /// When there is no row.
    pub fn estimate(rows: &Tensor, rank: usize) -> candle_core::Result<Self> {
        let (count, dim) = rows.dims2()?;
        if count == 0 {
            candle_core::bail!("statistics of a class without examples");
        }
        let rows = rows.to_dtype(DType::F64)?;
        let mean = rows.mean_keepdim(0)?;
        let freedom = count.saturating_sub(1).max(1) as f64;
        let deviations = (rows.broadcast_sub(&mean)? / freedom.sqrt())?;
        let total = deviations.sqr()?.sum_all()?.to_scalar::<f64>()?;
        let (components, kept) = principal_directions(&deviations, rank.min(count - 1))?;
        let shrinkage = if count <= dim { SHRINKAGE * total } else { 0.0 };
        let spread = (total - kept).max(0.0) + shrinkage;
        Ok(Self {
            count,
            mean: mean.squeeze(0)?.to_dtype(DType::F32)?,
            components: components.to_dtype(DType::F32)?,
            residual: spread / dim as f64 + FLOOR,
            exemplars: None,
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

/// The statistics of a task's classes as safetensors bytes, in the given order. Components and exemplars are rounded
/// to float16; the same statistics always give the same bytes.
pub fn encode(statistics: &Statistics) -> Result<Vec<u8>, CodecError> {
    let Statistics {
        classes,
        scatter,
        gram,
    } = statistics;
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
            exemplars: class.exemplars.as_ref().map_or(Ok(0), |rows| rows.dim(0))?,
        });
        if let Some(rows) = &class.exemplars {
            tensors.insert(format!("{index:06}.exemplars"), rows.to_dtype(DType::F16)?);
        }
    }
    let dim = classes.first().map_or(Ok(0), |class| class.mean.dims1())?;
    if let Some(scatter) = scatter {
        let packed = scatter.packed()?;
        tensors.insert("scatter".to_owned(), Tensor::new(packed, &Device::Cpu)?);
    }
    if let Some(gram) = gram {
        tensors.insert("gram".to_owned(), gram.packed()?);
        tensors.insert("sums".to_owned(), gram.sums()?);
    }
    codec::encode(
        &Header {
            format: FORMAT.to_owned(),
            dim,
            freedom: scatter.as_ref().map(Scatter::freedom),
            random_features: gram.as_ref().map(Gram::random_features),
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
            exemplars: match class.exemplars {
                0 => None,
                kept => Some(reader.f16(&format!("{index:06}.exemplars"), &[kept, header.dim])?),
            },
        })
    };
    let gram = |size: usize| {
        let packed = reader.f64("gram", &[size * (size + 1) / 2])?;
        let sums = reader.f64("sums", &[header.classes.len(), size])?;
        Ok::<_, CodecError>(Gram::unpack(packed, &sums, size))
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
        gram: header.random_features.map(gram).transpose()?,
    })
}

#[cfg(test)]
mod tests;
