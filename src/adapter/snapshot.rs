//! An immutable version of a model: its head and its classes, ready to serve and to be written down.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::affine::Affine;
use super::codec::{self, CodecError, Reader};
use super::head::{Adapter, Head, Scorer, Term};
use super::linear::Linear;
use super::prompt::Prompted;
use super::prototypes::Prototypes;
use super::ridge::Ridge;
use super::self_attention::{self, SelfAttention};
use super::whitening::Whitening;
use crate::domain::Class;

const FORMAT: &str = "clipkeep snapshot 1";

/// Why a snapshot could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Another number of classes than the head has columns.
    #[error("{classes} classes for {columns} columns")]
    Columns {
        /// Classes listed.
        classes: usize,
        /// Columns of the head.
        columns: usize,
    },
    /// The bytes are not a snapshot.
    #[error("not a readable snapshot")]
    Codec(#[from] CodecError),
}

/// A head with the classes of its columns. Nothing in it ever changes.
#[derive(Debug, Clone)]
pub struct Snapshot {
    classes: Vec<Class>,
    head: Head,
    backbone: String,
}

/// What stands beside the tensors.
#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    backbone: String,
    terms: Vec<TermHeader>,
    dim: usize,
    scale: f64,
    classes: Vec<Class>,
}

/// A term of the head; its tensors are named after its place.
#[derive(Serialize, Deserialize)]
struct TermHeader {
    weight: f64,
    scorer: ScorerKind,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ScorerKind {
    Anchors,
    LinearAnchors,
    SelfAttentionAnchors {
        tokens: usize,
        width: usize,
        heads: usize,
        epsilon: f64,
    },
    Prototypes,
    Affine,
    Prompts {
        vectors: usize,
        width: usize,
    },
    Ridge {
        random_features: usize,
        lambda: f64,
    },
}

impl Snapshot {
    /// A snapshot of `head` whose column `i` is `classes[i]`. `backbone` identifies the weights that its features
    /// come from; the caller compares it before it serves a decoded snapshot.
    pub fn new(classes: Vec<Class>, head: Head, backbone: String) -> Result<Self, SnapshotError> {
        if classes.len() != head.columns() {
            return Err(SnapshotError::Columns {
                classes: classes.len(),
                columns: head.columns(),
            });
        }
        Ok(Self {
            classes,
            head,
            backbone,
        })
    }

    /// Its classes in column order.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// What scores.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The backbone's identity, as given to [`Self::new`].
    pub fn backbone(&self) -> &str {
        &self.backbone
    }

    /// As safetensors bytes: `anchors` (C, D), the tensors of term n as `n.…`, all in f32, and one metadata entry of
    /// JSON. The same snapshot always gives the same bytes.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut tensors = BTreeMap::from([("anchors".to_owned(), self.head.anchors().clone())]);
        let mut terms = Vec::new();
        for (place, Term { weight, scorer }) in self.head.terms().iter().enumerate() {
            let (scorer, parts) = taken_apart(scorer).map_err(CodecError::from)?;
            let named = parts
                .into_iter()
                .map(|(name, tensor)| (format!("{place}.{name}"), tensor.clone()));
            tensors.extend(named);
            terms.push(TermHeader {
                weight: *weight,
                scorer,
            });
        }
        let header = Header {
            format: FORMAT.to_owned(),
            backbone: self.backbone.clone(),
            terms,
            dim: self.head.dim(),
            scale: self.head.scale(),
            classes: self.classes.clone(),
        };
        Ok(codec::encode(&header, &tensors)?)
    }

    /// Reads what [`Self::encode`] wrote, bit for bit, onto `device`.
    pub fn decode(bytes: &[u8], device: &Device) -> Result<Self, SnapshotError> {
        let (header, reader) = Reader::open::<Header>(bytes, device)?;
        if header.format != FORMAT {
            return Err(CodecError::Format {
                found: header.format,
                expected: FORMAT,
            }
            .into());
        }
        let shape = (header.classes.len(), header.dim);
        let terms = header.terms.iter().enumerate().map(|(place, term)| {
            Ok(Term {
                weight: term.weight,
                scorer: put_together(&term.scorer, &reader, place, shape)?,
            })
        });
        let terms = terms.collect::<Result<_, CodecError>>()?;
        let anchors: Tensor = reader.f32("anchors", &[shape.0, shape.1])?;
        let head = Head::of_terms(terms, anchors, header.scale).map_err(CodecError::from)?;
        Self::new(header.classes, head, header.backbone)
    }
}

/// A scorer's kind and its tensors by name.
fn taken_apart(scorer: &Scorer) -> candle_core::Result<(ScorerKind, Vec<(&'static str, &Tensor)>)> {
    Ok(match scorer {
        Scorer::Anchors(Adapter::Identity) => (ScorerKind::Anchors, Vec::new()),
        Scorer::Anchors(Adapter::Linear(Linear { weight, bias })) => (
            ScorerKind::LinearAnchors,
            vec![("linear.weight", weight), ("linear.bias", bias)],
        ),
        Scorer::Prototypes(Prototypes {
            whitening: Whitening { centre, transform },
            adapter: Linear { weight, bias },
            rows,
        }) => (
            ScorerKind::Prototypes,
            vec![
                ("centre", centre),
                ("transform", transform),
                ("linear.weight", weight),
                ("linear.bias", bias),
                ("rows", rows),
            ],
        ),
        Scorer::Affine(Affine { weight, bias }) => {
            (ScorerKind::Affine, vec![("weight", weight), ("bias", bias)])
        }
        Scorer::Anchors(Adapter::SelfAttention(attention)) => (
            ScorerKind::SelfAttentionAnchors {
                tokens: attention.tokens,
                width: attention.dims()?.0 / attention.tokens.max(1),
                heads: attention.heads,
                epsilon: attention.epsilon,
            },
            self_attention::NAMES
                .into_iter()
                .zip(&attention.parameters)
                .collect(),
        ),
        Scorer::Prompts(Prompted { context, rows }) => {
            let (vectors, width) = context.dims2()?;
            (
                ScorerKind::Prompts { vectors, width },
                vec![("context", context), ("rows", rows)],
            )
        }
        Scorer::Ridge(Ridge {
            projection,
            weight,
            lambda,
        }) => (
            ScorerKind::Ridge {
                random_features: projection.dim(0)?,
                lambda: *lambda,
            },
            vec![("projection", projection), ("weight", weight)],
        ),
    })
}

/// The scorer of the term at `place`, for a head of `columns` classes and embeddings of `dim` values.
fn put_together(
    kind: &ScorerKind,
    reader: &Reader<'_>,
    place: usize,
    (columns, dim): (usize, usize),
) -> Result<Scorer, CodecError> {
    let tensor = |name: &str, shape: &[usize]| reader.f32(&format!("{place}.{name}"), shape);
    let linear = || {
        Ok::<_, CodecError>(Linear {
            weight: tensor("linear.weight", &[dim, dim])?,
            bias: tensor("linear.bias", &[dim])?,
        })
    };
    Ok(match *kind {
        ScorerKind::SelfAttentionAnchors {
            tokens,
            width,
            heads,
            epsilon,
        } => {
            let shapes = SelfAttention::shapes(width, dim);
            let named = self_attention::NAMES.into_iter().zip(&shapes);
            Scorer::Anchors(Adapter::SelfAttention(SelfAttention {
                tokens,
                heads,
                epsilon,
                parameters: named
                    .map(|(name, shape)| tensor(name, shape))
                    .collect::<Result<_, _>>()?,
            }))
        }
        ScorerKind::Prompts { vectors, width } => Scorer::Prompts(Prompted {
            context: tensor("context", &[vectors, width])?,
            rows: tensor("rows", &[columns, dim])?,
        }),
        ScorerKind::Ridge {
            random_features,
            lambda,
        } => Scorer::Ridge(Ridge {
            projection: tensor("projection", &[random_features, dim])?,
            weight: tensor("weight", &[columns, random_features])?,
            lambda,
        }),
        ScorerKind::Anchors => Scorer::Anchors(Adapter::Identity),
        ScorerKind::LinearAnchors => Scorer::Anchors(Adapter::Linear(linear()?)),
        ScorerKind::Prototypes => Scorer::Prototypes(Prototypes {
            whitening: Whitening {
                centre: tensor("centre", &[1, dim])?,
                transform: tensor("transform", &[dim, dim])?,
            },
            adapter: linear()?,
            rows: tensor("rows", &[columns, dim])?,
        }),
        ScorerKind::Affine => Scorer::Affine(Affine {
            weight: tensor("weight", &[columns, dim])?,
            bias: tensor("bias", &[columns])?,
        }),
    })
}

#[cfg(test)]
mod tests;
