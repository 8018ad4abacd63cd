//! Statistics as bytes.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{ClassStatistics, Statistics};
use crate::adapter::codec::{self, CodecError, Reader};
use crate::adapter::gram::Gram;
use crate::adapter::whitening::Scatter;

const FORMAT: &str = "clipkeep statistics 1";

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    dim: usize,
    /// N − C of the scatter, where there is one.
    freedom: Option<usize>,
    /// M of the random features in whole steps, where there are any.
    #[serde(default)]
    whole_features: Option<usize>,
    classes: Vec<ClassHeader>,
}

#[derive(Serialize, Deserialize)]
struct ClassHeader {
    count: usize,
    rank: usize,
    residual: f64,
    #[serde(default)]
    exemplars: usize,
    #[serde(default)]
    rows: usize,
}

/// The statistics of a task's classes as safetensors bytes, in the given order. Components and exemplars are rounded
/// to float16, all else stays as it is; the same statistics always give the same bytes.
pub fn encode(statistics: &Statistics) -> Result<Vec<u8>, CodecError> {
    // The sample is one of the rows.
    let Statistics {
        classes,
        scatter,
        gram,
        sample: _,
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
            rows: class.rows.as_ref().map_or(Ok(0), |rows| rows.dim(0))?,
        });
        if let Some(rows) = &class.rows {
            tensors.insert(format!("{index:06}.rows"), rows.clone());
        }
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
            whole_features: gram.as_ref().map(Gram::random_features),
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
pub(in crate::adapter) fn decode_of(
    bytes: &[u8],
    dim: usize,
    device: &Device,
) -> Result<Statistics, CodecError> {
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
            rows: match class.rows {
                0 => None,
                kept => Some(reader.f32(&format!("{index:06}.rows"), &[kept, header.dim])?),
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
    let statistics = Statistics {
        classes: header
            .classes
            .iter()
            .enumerate()
            .map(class)
            .collect::<Result<_, _>>()?,
        scatter: header.freedom.map(scatter).transpose()?,
        gram: header.whole_features.map(gram).transpose()?,
        sample: None,
    };
    Ok(statistics.sampled()?)
}
