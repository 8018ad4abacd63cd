//! Both towers against `transformers`' features for the same pixels and ids.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use clipkeep::clip::Backbone;

use crate::directory::{load, pinned};

#[test]
fn quick_gelu_with_legacy_end() {
    agrees_with_reference(&pinned("quick-gelu"));
}

#[test]
fn gelu_in_bfloat16_shards_with_a_remainder_of_pixels() {
    agrees_with_reference(&pinned("gelu"));
}

#[test]
fn float16_with_a_single_patch() {
    agrees_with_reference(&pinned("half"));
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let directory = pinned("quick-gelu");
    let backbone = load(&directory).unwrap();
    let reference = Reference::read(&directory);
    let together = rows(&backbone.encode_images(&reference.pixels).unwrap());
    let texts = rows(&backbone.encode_tokens(&reference.ids).unwrap());
    for row in 0..reference.ids.len() {
        let alone = backbone
            .encode_images(&reference.pixels.narrow(0, row, 1).unwrap())
            .unwrap();
        assert_eq!(rows(&alone)[0], together[row], "image {row}");
        let alone = backbone.encode_tokens(&reference.ids[row..=row]).unwrap();
        assert_eq!(rows(&alone)[0], texts[row], "text {row}");
    }
}

#[test]
fn an_empty_batch_has_no_rows() {
    let backbone = load(&pinned("half")).unwrap();
    let pixels = Tensor::zeros((0, 3, 8, 8), DType::U8, &Device::Cpu).unwrap();
    assert_eq!(backbone.encode_images(&pixels).unwrap().dims(), [0, 20]);
    assert_eq!(backbone.encode_tokens(&[]).unwrap().dims(), [0, 20]);
}

#[test]
fn logit_scale_is_the_exponential_of_the_parameter() {
    // make_reference.py stores 2.5 in float32.
    let backbone = load(&pinned("quick-gelu")).unwrap();
    assert!(
        (backbone.logit_scale() - 2.5_f32.exp()).abs() < 1e-5,
        "{}",
        backbone.logit_scale()
    );
}

/// Pixels and ids, and what `transformers` made of them.
pub(crate) struct Reference {
    pub(crate) pixels: Tensor,
    pub(crate) image_features: Vec<Vec<f32>>,
    pub(crate) ids: Vec<Vec<u32>>,
    pub(crate) text_features: Vec<Vec<f32>>,
}

impl Reference {
    pub(crate) fn read(directory: &Path) -> Self {
        let path = directory.join("reference.safetensors");
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let mut take = |name: &str| tensors.remove(name).unwrap();
        let lengths = take("lengths").to_vec1::<u32>().unwrap();
        let padded = take("ids").to_vec2::<u32>().unwrap();
        Self {
            pixels: take("pixels"),
            image_features: rows(&take("image_features")),
            ids: padded
                .iter()
                .zip(lengths)
                .map(|(ids, length)| ids[..length as usize].to_vec())
                .collect(),
            text_features: rows(&take("text_features")),
        }
    }
}

pub(crate) fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2::<f32>().unwrap()
}

/// The requirement: cosine ≥ 0.99999 and difference ≤ 1e-4 of the output's scale, one at a time and all together.
pub(crate) fn agrees_with_reference(directory: &Path) {
    let backbone = load(directory).unwrap();
    let reference = Reference::read(directory);
    let all = reference.ids.len();
    for batch in [1, all] {
        let images = collect(all, batch, |start| {
            backbone
                .encode_images(&reference.pixels.narrow(0, start, batch).unwrap())
                .unwrap()
        });
        assert_close(
            &format!("{} images, batch {batch}", backbone.name()),
            &images,
            &reference.image_features,
        );
        let texts = collect(all, batch, |start| {
            backbone
                .encode_tokens(&reference.ids[start..start + batch])
                .unwrap()
        });
        assert_close(
            &format!("{} texts, batch {batch}", backbone.name()),
            &texts,
            &reference.text_features,
        );
    }
    assert_padding_is_ignored(&backbone, &reference);
}

fn collect(all: usize, batch: usize, encode: impl Fn(usize) -> Tensor) -> Vec<Vec<f32>> {
    (0..all)
        .step_by(batch)
        .flat_map(|start| rows(&encode(start)))
        .collect()
}

/// Hugging Face pads with the end token; the first end counts.
fn assert_padding_is_ignored(backbone: &Backbone, reference: &Reference) {
    let ids = &reference.ids[1];
    let mut padded = ids.clone();
    padded.resize(backbone.context_length(), *ids.last().unwrap());
    let [plain, padded] = [ids.clone(), padded].map(|ids| rows(&backbone.encode_tokens(&[ids]).unwrap()));
    assert_eq!(plain, padded);
}

pub(crate) fn assert_close(what: &str, ours: &[Vec<f32>], theirs: &[Vec<f32>]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs
        .iter()
        .flatten()
        .fold(0_f32, |scale, value| scale.max(value.abs()));
    let (mut worst_cosine, mut worst_difference) = (1_f64, 0_f32);
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        worst_cosine = worst_cosine.min(cosine(ours, theirs));
        let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
        worst_difference = differences.fold(worst_difference, f32::max);
    }
    let relative = worst_difference / scale;
    eprintln!("{what}: cosine {worst_cosine:.9}, difference {relative:.2e} of {scale:.3}");
    assert!(worst_cosine >= 0.99999, "{what}: cosine {worst_cosine}");
    assert!(
        relative <= 1e-4,
        "{what}: difference {relative} of the scale {scale}"
    );
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
