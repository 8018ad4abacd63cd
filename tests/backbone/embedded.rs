//! The backbone inside the binary: it loads, and its parts fit together.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use candle_core::{D, Tensor};
use clipkeep::adapter::embedding::normalise;
use clipkeep::clip::{Backbone, BackboneSource, Dtype, Limits};
use zip::ZipArchive;

use crate::directory::{load_in, load_source, shared};
use crate::features::rows;

/// Test pictures of each class that are looked at.
const PICTURES: usize = 5;

#[test]
fn the_embedded_backbone_loads_and_encodes() {
    let backbone = load_source(&BackboneSource::Embedded).unwrap();
    assert_eq!(backbone.name(), "clipkeep/mini-clip");
    let [channels, height, width] = backbone.image_processor().output_shape();
    let pixels = candle_core::Tensor::zeros(
        (2, channels, height, width),
        candle_core::DType::U8,
        backbone.device(),
    );
    let images = rows(&backbone.encode_images(&pixels.unwrap()).unwrap());
    assert_eq!((images.len(), images[0].len()), (2, backbone.dim()));
    let ids =
        ["a photo of a cat", "a photo of a truck"].map(|text| backbone.tokenizer().encode(text).unwrap());
    let texts = rows(&backbone.encode_tokens(&ids).unwrap());
    assert_eq!((texts.len(), texts[0].len()), (2, backbone.dim()));
    assert_ne!(texts[0], texts[1]);
    assert!(
        images
            .iter()
            .chain(&texts)
            .flatten()
            .all(|value| value.is_finite())
    );
    assert!(backbone.logit_scale().is_finite() && backbone.logit_scale() >= 1.0);
}

/// Its card says 59.9 % for all 50 test pictures of each class; chance is 1.7 %.
#[test]
fn the_embedded_backbone_knows_the_classes_it_was_trained_on() {
    let Some(archive) = shared("data/cifar100/base-test.zip") else {
        return;
    };
    let pictures = pictures(&archive);
    let answers = answers(&load_source(&BackboneSource::Embedded).unwrap(), &pictures);
    let right = (0_u32..).zip(answers.chunks(PICTURES));
    let right = right.flat_map(|(class, answers)| answers.iter().filter(move |answer| **answer == class));
    let accuracy = right.count() as f64 / answers.len() as f64;
    eprintln!("60-way zero-shot on {} pictures: {accuracy:.3}", answers.len());
    assert!(accuracy >= 0.5, "{accuracy}");
}

#[test]
fn what_is_rounded_answers_nearly_always_the_same() {
    let Some(archive) = shared("data/cifar100/base-test.zip") else {
        return;
    };
    let pictures = pictures(&archive);
    let of = |dtype| answers(&load_in(&BackboneSource::Embedded, dtype).unwrap(), &pictures);
    let exact = of(Dtype::F32);
    for (dtype, least) in [
        (Dtype::Auto, 0.99),
        (Dtype::Bf16, 0.99),
        (Dtype::Int16, 0.99),
        (Dtype::Int8, 0.95),
    ] {
        let same = of(dtype)
            .iter()
            .zip(&exact)
            .filter(|(found, wanted)| found == wanted)
            .count();
        let share = same as f64 / exact.len() as f64;
        eprintln!("{dtype:?}: {same} of {} answers as in f32", exact.len());
        assert!(share >= least, "{dtype:?}: {share}");
    }
}

/// The likeliest class of each picture, class by class.
fn answers(backbone: &Backbone, pictures: &BTreeMap<String, Vec<Vec<u8>>>) -> Vec<u32> {
    assert_eq!(pictures.len(), 60);
    let prompts = pictures.keys().map(|class| {
        let text = format!("a good photo of a {}.", class.replace('_', " "));
        backbone.tokenizer().encode(&text).unwrap()
    });
    let classes = backbone.encode_tokens(&prompts.collect::<Vec<_>>()).unwrap();
    let classes = normalise(&classes).unwrap().t().unwrap();
    let processor = backbone.image_processor();
    let [channels, height, width] = processor.output_shape();
    let best = |pictures: &Vec<Vec<u8>>| {
        let limits = Limits { max_pixels: 1 << 20 };
        let pixels: Vec<u8> = pictures
            .iter()
            .flat_map(|picture| processor.process(picture, limits).unwrap())
            .collect();
        let shape = (PICTURES, channels, height, width);
        let pixels = Tensor::from_vec(pixels, shape, backbone.device()).unwrap();
        // A picture's length changes nothing about which class is nearest.
        let scores = backbone.encode_images(&pixels).unwrap().matmul(&classes).unwrap();
        scores.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap()
    };
    pictures.values().flat_map(best).collect()
}

/// Every tenth picture of each class.
fn pictures(archive: &Path) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut archive = ZipArchive::new(File::open(archive).unwrap()).unwrap();
    let mut seen = BTreeMap::<String, usize>::new();
    let mut found = BTreeMap::<String, Vec<Vec<u8>>>::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        let Some((class, _)) = name.split_once('/').filter(|_| entry.is_file()) else {
            continue;
        };
        let count = seen.entry(class.to_owned()).or_default();
        if count.is_multiple_of(10) {
            let mut picture = Vec::new();
            entry.read_to_end(&mut picture).unwrap();
            found.entry(class.to_owned()).or_default().push(picture);
        }
        *count += 1;
    }
    for pictures in found.values_mut() {
        pictures.truncate(PICTURES);
    }
    found
}

#[test]
fn a_backbone_moves_to_the_thread_that_owns_it() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync + Clone>() {}
    is_send::<Backbone>();
    is_shared::<clipkeep::clip::ClipTokenizer>();
    is_shared::<std::sync::Arc<clipkeep::clip::ImageProcessor>>();
}
