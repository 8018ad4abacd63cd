//! Features that somebody has extracted, as NumPy arrays in a directory.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::{Device, Tensor};
use npyz::{DType, NpyFile, Order, TypeChar};

use super::data::{Data, DataError, Rows};
use crate::adapter::embedding;
use crate::domain::Anchors;

/// Bounds what a stray number makes of the class count.
const MOST_CLASSES: i64 = 1_000_000;

impl Data {
    /// Reads `train_features.npy` and `test_features.npy` (n, D), `train_labels.npy` and `test_labels.npy` (n), and,
    /// for text anchors, `text_embeddings.npy` (C, D). `scale` is the logit scale of the backbone that made them.
    ///
    /// # Errors
    /// [`DataError`], which names the file.
    pub fn read(directory: &Path, anchors: Anchors, scale: f64) -> Result<Self, DataError> {
        let train = Rows::read(directory, "train")?;
        let test = Rows::read(directory, "test")?;
        let classes = train.labels.iter().max().map_or(0, |last| *last as usize + 1);
        let texts = || -> Result<Tensor, DataError> {
            Ok(embedding::normalise(&floats(
                &directory.join("text_embeddings.npy"),
            )?)?)
        };
        let means = || embedding::class_means(&train.features, &train.labels, classes);
        let anchors = match anchors {
            Anchors::Text => texts()?,
            Anchors::Examples => means()?,
            Anchors::Blend => {
                let texts = texts()?;
                if texts.dim(0)? < classes {
                    return Err(DataError::Mismatch(format!(
                        "{classes} classes and {} text embeddings",
                        texts.dim(0)?
                    )));
                }
                embedding::blend(&texts.narrow(0, 0, classes)?, &means()?)?
            }
        };
        let width = |tensor: &Tensor| tensor.dims()[1];
        let widths = [&train.features, &test.features, &anchors].map(width);
        if widths[0] != widths[1] || widths[0] != widths[2] {
            return Err(DataError::Mismatch(format!(
                "rows of {widths:?} values in training, test and text features"
            )));
        }
        if anchors.dim(0)? < classes {
            return Err(DataError::Mismatch(format!(
                "{classes} classes and {} text embeddings",
                anchors.dim(0)?
            )));
        }
        let set = Self {
            anchors: anchors.narrow(0, 0, classes)?,
            train,
            test,
            scale,
            readout: None,
        };
        set.check()?;
        Ok(set)
    }
}

impl Rows {
    fn read(directory: &Path, part: &str) -> Result<Self, DataError> {
        let path = directory.join(format!("{part}_features.npy"));
        let features = embedding::normalise(&floats(&path)?)?;
        let labels = integers(&directory.join(format!("{part}_labels.npy")))?;
        if features.dim(0)? != labels.len() {
            return Err(DataError::Mismatch(format!(
                "{} {part} rows and {} labels",
                features.dim(0)?,
                labels.len()
            )));
        }
        Ok(Self {
            features,
            tokens: None,
            labels,
        })
    }
}

fn open(path: &Path) -> Result<NpyFile<BufReader<File>>, DataError> {
    let read = |source| DataError::Read {
        path: path.to_owned(),
        source,
    };
    NpyFile::new(BufReader::new(File::open(path).map_err(read)?)).map_err(read)
}

/// The kind of numbers in a file and how many bytes each has.
fn kind(file: &NpyFile<BufReader<File>>) -> Option<(TypeChar, u64)> {
    match file.dtype() {
        DType::Plain(plain) => Some((plain.type_char(), plain.size_field())),
        _ => None,
    }
}

/// A matrix of float16 or float32.
fn floats(path: &Path) -> Result<Tensor, DataError> {
    let file = open(path)?;
    let (shape, order) = (file.shape().to_vec(), file.order());
    let read = |source| DataError::Read {
        path: path.to_owned(),
        source,
    };
    let values: Vec<f32> = match (kind(&file), shape.as_slice()) {
        (Some((TypeChar::Float, 4)), [_, _]) => file.into_vec().map_err(read)?,
        (Some((TypeChar::Float, 2)), [_, _]) => {
            let values: Vec<half::f16> = file.into_vec().map_err(read)?;
            values.into_iter().map(half::f16::to_f32).collect()
        }
        _ => {
            return Err(DataError::Content {
                path: path.to_owned(),
                found: format!("{} of shape {shape:?}", file.dtype().descr()),
                expected: "a matrix of float16 or float32",
            });
        }
    };
    if values.iter().any(|value| !value.is_finite()) {
        return Err(DataError::Content {
            path: path.to_owned(),
            found: "a value that is not finite".to_owned(),
            expected: "finite numbers",
        });
    }
    let (rows, columns) = (shape[0] as usize, shape[1] as usize);
    Ok(match order {
        Order::C => Tensor::from_vec(values, (rows, columns), &Device::Cpu)?,
        // Stored column by column.
        Order::Fortran => Tensor::from_vec(values, (columns, rows), &Device::Cpu)?
            .t()?
            .contiguous()?,
    })
}

/// A vector of integers that are no negative numbers.
fn integers(path: &Path) -> Result<Vec<u32>, DataError> {
    let file = open(path)?;
    let read = |source| DataError::Read {
        path: path.to_owned(),
        source,
    };
    let content = |found: String| DataError::Content {
        path: path.to_owned(),
        found,
        expected: "a vector of class numbers",
    };
    let found = format!("{} of shape {:?}", file.dtype().descr(), file.shape());
    if file.shape().len() != 1 {
        return Err(content(found));
    }
    let wide: Vec<i64> = match kind(&file) {
        Some((TypeChar::Int, 8)) => file.into_vec().map_err(read)?,
        Some((TypeChar::Int, 4)) => widened::<i32>(file.into_vec().map_err(read)?),
        Some((TypeChar::Uint, 4)) => widened::<u32>(file.into_vec().map_err(read)?),
        Some((TypeChar::Int, 2)) => widened::<i16>(file.into_vec().map_err(read)?),
        Some((TypeChar::Uint, 2)) => widened::<u16>(file.into_vec().map_err(read)?),
        Some((TypeChar::Uint, 1)) => widened::<u8>(file.into_vec().map_err(read)?),
        _ => return Err(content(found)),
    };
    match wide.iter().find(|&&label| !(0..MOST_CLASSES).contains(&label)) {
        Some(label) => Err(content(format!("the number {label}"))),
        None => Ok(wide.into_iter().map(|label| label as u32).collect()),
    }
}

fn widened<T: Into<i64>>(values: Vec<T>) -> Vec<i64> {
    values.into_iter().map(Into::into).collect()
}
