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
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::domain::{ClassId, Label, TaskName};

    fn class(label: &str) -> Class {
        Class {
            id: ClassId::new(),
            label: Label::try_from(label.to_owned()).expect("a label"),
            prompt: None,
            task: TaskName::try_from("birds".to_owned()).expect("a task's name"),
        }
    }

    fn snapshot() -> Snapshot {
        let device = Device::Cpu;
        let weight = Tensor::new(&[[1.0_f32, 1e-30], [-0.0, f32::MIN_POSITIVE]], &device).expect("a tensor");
        let bias = Tensor::new(&[0.1_f32, 1.0 / 3.0], &device).expect("a tensor");
        let anchors = Tensor::new(&[[0.6_f32, 0.8], [1.0, 0.0], [0.0, 1.0]], &device).expect("a tensor");
        let head = Head::new(Adapter::Linear(Linear { weight, bias }), anchors, 100.000_001).expect("a head");
        let classes = vec![class("crow"), class("ära \"x\""), class("wren")];
        Snapshot::new(classes, head, "sha256:00".to_owned()).expect("as many classes as columns")
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor
            .flatten_all()
            .and_then(|flat| flat.to_vec1::<f32>())
            .expect("values");
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn decoding_gives_back_every_bit() {
        let before = snapshot();
        let bytes = before.encode().expect("encoded");
        let after = Snapshot::decode(&bytes, &Device::Cpu).expect("decoded");
        let linear = |snapshot: &Snapshot| {
            let Linear { weight, bias } = snapshot.head.linear().expect("an adapter");
            (bits(weight), bits(bias))
        };
        assert_eq!(linear(&before), linear(&after));
        assert_eq!(bits(before.head.anchors()), bits(after.head.anchors()));
        assert_eq!(before.head.scale().to_bits(), after.head.scale().to_bits());
        assert_eq!(
            (before.classes(), before.backbone()),
            (after.classes(), after.backbone())
        );
        assert_eq!(
            bytes,
            after.encode().expect("encoded"),
            "and the same bytes again"
        );
    }

    #[test]
    fn a_zero_shot_snapshot_stays_one() {
        let anchors = Tensor::new(&[[0.6_f32, 0.8]], &Device::Cpu).expect("a tensor");
        let head = Head::zero_shot(anchors, 100.0).expect("a head");
        let bytes = Snapshot::new(vec![class("crow")], head, String::new()).and_then(|s| s.encode());
        let after = Snapshot::decode(&bytes.expect("encoded"), &Device::Cpu).expect("decoded");
        assert!(after.head().linear().is_none() && after.head().terms().len() == 1);
    }

    #[test]
    fn classes_and_columns_must_match() {
        let Snapshot {
            mut classes,
            head,
            backbone,
        } = snapshot();
        classes.pop();
        let error = Snapshot::new(classes, head, backbone).expect_err("a class is missing");
        assert_eq!(error.to_string(), "2 classes for 3 columns");
    }

    /// A snapshot's header with tensors of our own.
    fn decode_with(change: impl FnOnce(&mut serde_json::Value, &mut BTreeMap<String, Tensor>)) -> CodecError {
        let good = snapshot();
        let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).expect("a tensor");
        let mut tensors: BTreeMap<_, _> = [
            ("anchors", &[3, 2][..]),
            ("0.linear.weight", &[2, 2]),
            ("0.linear.bias", &[2]),
        ]
        .map(|(name, shape)| (name.to_owned(), tensor(shape)))
        .into();
        let mut header = serde_json::json!({
            "format": FORMAT, "backbone": "", "dim": 2, "scale": 1.0, "classes": good.classes,
            "terms": [{"weight": 1.0, "scorer": "linear_anchors"}],
        });
        change(&mut header, &mut tensors);
        let bytes = codec::encode(&header, &tensors).expect("encoded");
        match Snapshot::decode(&bytes, &Device::Cpu).expect_err("damaged") {
            SnapshotError::Codec(error) => error,
            error @ SnapshotError::Columns { .. } => panic!("{error}"),
        }
    }

    #[test]
    fn damage_is_named() {
        let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).expect("a tensor");
        let error = decode_with(|_, tensors| drop(tensors.insert("anchors".to_owned(), tensor(&[2, 2]))));
        assert_eq!(
            error.to_string(),
            "tensor `anchors` is F32 [2, 2], expected F32 [3, 2]"
        );
        let error = decode_with(|_, tensors| drop(tensors.remove("0.linear.bias")));
        assert!(matches!(error, CodecError::Container(_)), "{error:?}");
        let error = decode_with(|_, tensors| {
            let half = tensor(&[2]).to_dtype(DType::F16).expect("converted");
            tensors.insert("0.linear.bias".to_owned(), half);
        });
        assert_eq!(
            error.to_string(),
            "tensor `0.linear.bias` is F16 [2], expected F32 [2]"
        );
        let error = decode_with(|_, tensors| {
            let values = Tensor::new(&[1.0, f32::NAN], &Device::Cpu).expect("a tensor");
            tensors.insert("0.linear.bias".to_owned(), values);
        });
        assert!(matches!(error, CodecError::NotFinite { name } if name == "0.linear.bias"));
        let error = decode_with(|header, _| header["format"] = "clipkeep snapshot 99".into());
        assert_eq!(
            error.to_string(),
            format!("the container holds `clipkeep snapshot 99`, expected `{FORMAT}`")
        );
        let error = decode_with(|header, _| header["terms"][0]["scorer"] = "telepathy".into());
        assert!(matches!(error, CodecError::Header(_)), "{error:?}");
    }

    #[test]
    fn truncated_bytes_are_refused() {
        let bytes = snapshot().encode().expect("encoded");
        for length in [0, 7, 8, 100, bytes.len() - 1] {
            assert!(
                Snapshot::decode(&bytes[..length], &Device::Cpu).is_err(),
                "{length} bytes"
            );
        }
    }
}
