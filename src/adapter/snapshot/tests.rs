//! Snapshots as bytes.

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
