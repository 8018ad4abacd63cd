//! An immutable version of a model: its head and its classes, ready to serve and to be written down.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError, Reader};
use super::head::{Adapter, Head};
use super::linear::Linear;
use crate::domain::{Class, Strategy};

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
    /// `None` where no adapter is applied.
    strategy: Option<Strategy>,
    dim: usize,
    scale: f64,
    classes: Vec<Class>,
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

    /// As safetensors bytes: `anchors` (C, D), `linear.weight` (D, D) and `linear.bias` (D) in f32, and one metadata
    /// entry of JSON. The same snapshot always gives the same bytes.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut tensors = BTreeMap::from([("anchors".to_owned(), self.head.anchors().clone())]);
        let strategy = match self.head.adapter() {
            Adapter::Identity => None,
            Adapter::Linear(Linear { weight, bias }) => {
                tensors.insert("linear.weight".to_owned(), weight.clone());
                tensors.insert("linear.bias".to_owned(), bias.clone());
                Some(Strategy::Linear)
            }
        };
        let header = Header {
            format: FORMAT.to_owned(),
            backbone: self.backbone.clone(),
            strategy,
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
        let dim = header.dim;
        let adapter = match header.strategy {
            None => Adapter::Identity,
            Some(Strategy::Linear) => Adapter::Linear(Linear {
                weight: reader.f32("linear.weight", &[dim, dim])?,
                bias: reader.f32("linear.bias", &[dim])?,
            }),
        };
        let anchors: Tensor = reader.f32("anchors", &[header.classes.len(), dim])?;
        let head = Head::new(adapter, anchors, header.scale).map_err(CodecError::from)?;
        Self::new(header.classes, head, header.backbone)
    }
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
        let linear = |snapshot: &Snapshot| match snapshot.head.adapter() {
            Adapter::Linear(Linear { weight, bias }) => (bits(weight), bits(bias)),
            Adapter::Identity => panic!("an adapter went missing"),
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
        assert!(matches!(after.head().adapter(), Adapter::Identity));
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
            ("linear.weight", &[2, 2]),
            ("linear.bias", &[2]),
        ]
        .map(|(name, shape)| (name.to_owned(), tensor(shape)))
        .into();
        let mut header = serde_json::json!({
            "format": FORMAT, "backbone": "", "strategy": "linear", "dim": 2, "scale": 1.0, "classes": good.classes,
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
        let error = decode_with(|_, tensors| drop(tensors.remove("linear.bias")));
        assert!(matches!(error, CodecError::Container(_)), "{error:?}");
        let error = decode_with(|_, tensors| {
            let half = tensor(&[2]).to_dtype(DType::F16).expect("converted");
            tensors.insert("linear.bias".to_owned(), half);
        });
        assert_eq!(
            error.to_string(),
            "tensor `linear.bias` is F16 [2], expected F32 [2]"
        );
        let error = decode_with(|_, tensors| {
            let values = Tensor::new(&[1.0, f32::NAN], &Device::Cpu).expect("a tensor");
            tensors.insert("linear.bias".to_owned(), values);
        });
        assert!(matches!(error, CodecError::NotFinite { name } if name == "linear.bias"));
        let error = decode_with(|header, _| header["format"] = "clipkeep snapshot 99".into());
        assert_eq!(
            error.to_string(),
            format!("the container holds `clipkeep snapshot 99`, expected `{FORMAT}`")
        );
        let error = decode_with(|header, _| header["strategy"] = "telepathy".into());
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
