//! The backbone inside the binary: it loads, and its parts fit together.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use candle_core::Tensor;
use clipkeep::adapter::Head;
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
    let right = (0..).zip(answers.chunks(PICTURES));
    let right = right.flat_map(|(class, answers)| answers.iter().filter(move |answer| answer.class == class));
    let accuracy = right.count() as f64 / answers.len() as f64;
    eprintln!("60-way zero-shot on {} pictures: {accuracy:.3}", answers.len());
    assert!(accuracy >= 0.5, "{accuracy}");
}

#[test]
fn what_is_rounded_changes_no_answer_that_was_decided() {
    let Some(archive) = shared("data/cifar100/base-test.zip") else {
        return;
    };
    let pictures = pictures(&archive);
    let of = |dtype| answers(&load_in(&BackboneSource::Embedded, dtype).unwrap(), &pictures);
    let exact = of(Dtype::F32);
    for (dtype, undecided) in [
        (Dtype::Auto, 0.02),
        (Dtype::Bf16, 0.02),
        (Dtype::Int16, 0.002),
        (Dtype::Int8, 0.06),
    ] {
        let pairs = exact.iter().zip(of(dtype));
        let changed = pairs.filter(|(exact, rounded)| exact.class != rounded.class);
        let margins: Vec<f32> = changed.map(|(exact, _)| exact.margin).collect();
        eprintln!(
            "{dtype:?}: of {} answers other than in f32: {margins:?}",
            exact.len()
        );
        assert!(margins.iter().all(|margin| *margin <= undecided), "{dtype:?}");
    }
}

/// Of a picture.
struct Answer {
    /// The likeliest one.
    class: usize,
    /// Its probability, less that of the second one.
    margin: f32,
}

impl Answer {
    fn of(probabilities: &[f32]) -> Self {
        let mut classes: Vec<usize> = (0..probabilities.len()).collect();
        classes.sort_by(|one, other| probabilities[*other].total_cmp(&probabilities[*one]));
        Self {
            class: classes[0],
            margin: probabilities[classes[0]] - probabilities[classes[1]],
        }
    }
}

/// What each picture is, class by class.
fn answers(backbone: &Backbone, pictures: &BTreeMap<String, Vec<Vec<u8>>>) -> Vec<Answer> {
    assert_eq!(pictures.len(), 60);
    let prompts = pictures.keys().map(|class| {
        let text = format!("a good photo of a {}.", class.replace('_', " "));
        backbone.tokenizer().encode(&text).unwrap()
    });
    let classes = backbone.encode_tokens(&prompts.collect::<Vec<_>>()).unwrap();
    let head = Head::zero_shot(normalise(&classes).unwrap(), backbone.logit_scale().into()).unwrap();
    let processor = backbone.image_processor();
    let [channels, height, width] = processor.output_shape();
    let answers = |pictures: &Vec<Vec<u8>>| {
        let limits = Limits { max_pixels: 1 << 20 };
        let pixels: Vec<u8> = pictures
            .iter()
            .flat_map(|picture| processor.process(picture, limits).unwrap())
            .collect();
        let shape = (PICTURES, channels, height, width);
        let pixels = Tensor::from_vec(pixels, shape, backbone.device()).unwrap();
        let features = backbone.encode_images(&pixels).unwrap();
        head.probabilities(&features).unwrap()
    };
    let probabilities = pictures.values().flat_map(answers);
    probabilities.map(|of| Answer::of(&of)).collect()
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
