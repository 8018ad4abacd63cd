//! Damaged, truncated and contradicting files: each is an error that names the file, field or tensor.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use clipkeep::clip::{BackboneError, EncodeError};
use serde_json::{Value, json};

use crate::directory::{copy_of, load, pinned};

pub(crate) const MODEL: &str = "half";

#[test]
fn every_missing_tensor_is_named() {
    for key in tensors(&pinned(MODEL)).into_keys() {
        let error = load_with(|tensors| {
            tensors.remove(&key);
        });
        assert!(
            matches!(&error, BackboneError::MissingTensor(tensor) if *tensor == key),
            "{key}: {error:?}"
        );
    }
}

#[test]
fn every_wrong_shape_is_named() {
    for (key, tensor) in tensors(&pinned(MODEL)) {
        // One dimension more, and the same bytes.
        let wrong = tensor.unsqueeze(0).unwrap().unsqueeze(0).unwrap();
        let error = load_with(|tensors| {
            tensors.insert(key.clone(), wrong);
        });
        match &error {
            BackboneError::Shape {
                tensor: named,
                expected,
                found,
            } => {
                assert_eq!((named, expected.as_slice()), (&key, tensor.dims()));
                assert_eq!(found.len(), tensor.dims().len() + 2);
            }
            other => panic!("{key}: {other:?}"),
        }
        assert!(error.to_string().contains(&key), "{error}");
    }
}

#[test]
fn values_that_are_not_finite_are_named() {
    let key = "vision_model.encoder.layers.0.mlp.fc1.bias";
    let error = load_with(|tensors| {
        let nan = Tensor::full(f32::NAN, 32, &Device::Cpu)
            .unwrap()
            .to_dtype(DType::F16)
            .unwrap();
        tensors.insert(key.to_owned(), nan);
    });
    assert!(
        matches!(&error, BackboneError::NotFinite(tensor) if tensor == key),
        "{error:?}"
    );
}

#[test]
fn a_scale_that_no_logit_survives_is_named() {
    for exponent in [89.0_f32, -110.0] {
        let error = load_with(|tensors| {
            let scale = Tensor::new(exponent, &Device::Cpu).unwrap();
            tensors.insert("logit_scale".to_owned(), scale);
        });
        assert!(
            matches!(error, BackboneError::LogitScale(found) if found.to_bits() == exponent.to_bits()),
            "{error:?}"
        );
        assert!(error.to_string().contains("`logit_scale`"), "{error}");
    }
}

#[test]
fn integers_are_no_weights() {
    let key = "text_projection.weight";
    let error = load_with(|tensors| {
        let integers = tensors[key].to_dtype(DType::I64).unwrap();
        tensors.insert(key.to_owned(), integers);
    });
    assert!(
        matches!(&error, BackboneError::Dtype { tensor, .. } if tensor == key),
        "{error:?}"
    );
}

#[test]
fn truncated_weights_name_the_tensor_that_breaks_off() {
    let copy = copy_of(MODEL);
    let path = copy.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in [whole.len() - 1, whole.len() * 3 / 4, whole.len() / 3] {
        std::fs::write(&path, &whole[..length]).unwrap();
        match failure(copy.path()) {
            BackboneError::Truncated {
                file,
                tensor,
                needed,
                available,
            } => {
                assert_eq!((file.as_str(), available), ("model.safetensors", length as u64));
                assert!(needed > available && needed <= whole.len() as u64);
                assert!(tensors(&pinned(MODEL)).contains_key(&tensor), "{tensor}");
            }
            other => panic!("{length}: {other:?}"),
        }
    }
}

#[test]
fn a_damaged_header_names_the_file() {
    let copy = copy_of(MODEL);
    let path = copy.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut scrambled = whole.clone();
    scrambled[20] = 0;
    let longer = [whole.as_slice(), b"more"].concat();
    let tensor = |shape: &str, offsets: &str| {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat()
    };
    let contradicting = [
        tensor("[2]", "[4,12]"),
        tensor("[3]", "[0,8]"),
        tensor("[4611686018427387904,4]", "[0,8]"),
    ];
    for bytes in contradicting.iter().map(Vec::as_slice).chain([
        &b""[..],
        &whole[..5],
        &whole[..100],
        &[0xff; 64],
        b"<!DOCTYPE html>",
        &scrambled,
        &longer,
    ]) {
        std::fs::write(&path, bytes).unwrap();
        let error = failure(copy.path());
        assert!(
            matches!(&error, BackboneError::WeightsHeader { file, .. } if file == "model.safetensors"),
            "{} bytes: {error:?}",
            bytes.len()
        );
    }
}

#[test]
fn absent_files_are_named() {
    for file in [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        let copy = copy_of(MODEL);
        std::fs::remove_file(copy.path().join(file)).unwrap();
        let error = failure(copy.path());
        assert!(
            matches!(&error, BackboneError::MissingFile { file: absent, .. } if *absent == file),
            "{error:?}"
        );
    }
    let copy = copy_of(MODEL);
    std::fs::rename(
        copy.path().join("model.safetensors"),
        copy.path().join("pytorch_model.bin"),
    )
    .unwrap();
    let text = failure(copy.path()).to_string();
    assert!(
        text.contains("pytorch_model.bin") && text.contains("save_pretrained"),
        "{text}"
    );
    let error = failure(Path::new("no/such/directory"));
    assert!(matches!(error, BackboneError::NoDirectory(_)), "{error:?}");
}

#[test]
fn an_absent_shard_is_named_and_none_leaves_the_directory() {
    let copy = copy_of("gelu");
    std::fs::remove_file(copy.path().join("model-00002-of-00003.safetensors")).unwrap();
    let text = failure(copy.path()).to_string();
    assert!(text.contains("model-00002-of-00003.safetensors"), "{text}");
    edit(&copy.path().join("model.safetensors.index.json"), |index| {
        index["weight_map"]["logit_scale"] = json!("../elsewhere.safetensors");
    });
    let text = failure(copy.path()).to_string();
    assert!(
        text.contains("`../elsewhere.safetensors` is not a file name"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_encoded_is_an_error() {
    let backbone = load(&pinned(MODEL)).unwrap();
    for shape in [[1, 3, 8, 9], [1, 1, 8, 8], [2, 3, 224, 224]] {
        let pixels = Tensor::zeros(&shape, DType::U8, &Device::Cpu).unwrap();
        let error = backbone.encode_images(&pixels).unwrap_err();
        assert!(
            matches!(&error, EncodeError::PixelShape { size: 8, found } if *found == shape),
            "{error:?}"
        );
    }
    let floats = Tensor::zeros((1, 3, 8, 8), DType::F32, &Device::Cpu).unwrap();
    let error = backbone.encode_images(&floats).unwrap_err();
    assert!(matches!(error, EncodeError::PixelType(DType::F32)), "{error:?}");
    let text = backbone.tokenizer().encode("a cat").unwrap();
    let encode = |ids: Vec<u32>| backbone.encode_tokens(&[text.clone(), ids]).unwrap_err();
    assert!(matches!(
        encode(vec![]),
        EncodeError::TokenCount {
            row: 1,
            found: 0,
            limit: 16
        }
    ));
    assert!(matches!(
        encode(vec![520; 17]),
        EncodeError::TokenCount {
            row: 1,
            found: 17,
            limit: 16
        }
    ));
    assert!(matches!(
        encode(vec![521]),
        EncodeError::UnknownToken {
            row: 1,
            id: 521,
            vocabulary: 521
        }
    ));
    assert!(matches!(encode(vec![5, 6]), EncodeError::NoEnd(1)));
}

/// The error that a directory gives.
pub(crate) fn failure(directory: &Path) -> BackboneError {
    load(directory)
        .err()
        .unwrap_or_else(|| panic!("{} loads", directory.display()))
}

fn tensors(directory: &Path) -> BTreeMap<String, Tensor> {
    let file = directory.join("model.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu)
        .unwrap()
        .into_iter()
        .collect()
}

/// The error of the pinned model with other tensors.
fn load_with(change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> BackboneError {
    let copy = copy_of(MODEL);
    let mut tensors = tensors(copy.path());
    change(&mut tensors);
    let tensors = tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, copy.path().join("model.safetensors")).unwrap();
    failure(copy.path())
}

/// The error of a pinned model with another `config.json`.
pub(crate) fn load_with_config(model: &str, change: impl FnOnce(&mut Value)) -> BackboneError {
    let copy = copy_of(model);
    edit(&copy.path().join("config.json"), change);
    failure(copy.path())
}

pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}
