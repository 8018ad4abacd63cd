//! The published outputs of OpenAI's ViT-B/32, where somebody has its weights.

use std::path::Path;

use candle_core::Tensor;
use clipkeep::clip::{Backbone, Limits};
use serde_json::Value;

use crate::directory::{from_environment, load, shared};
use crate::features::{cosine, rows};

/// Names a directory with the real `openai/clip-vit-base-patch32`.
const VARIABLE: &str = "CLIPKEEP_VIT_B_32";

const LIMITS: Limits = Limits { max_pixels: 1 << 24 };

#[test]
fn published_outputs_are_repeated() {
    let Some(directory) = from_environment(VARIABLE, "the weights of openai/clip-vit-base-patch32") else {
        return;
    };
    let Some(data) = shared("data/clip-reference") else {
        return;
    };
    let backbone = load(&directory).unwrap();
    let expected: Value =
        serde_json::from_slice(&std::fs::read(data.join("expected.json")).unwrap()).unwrap();
    let scale = expected["logit_scale"].as_f64().unwrap();
    assert!(
        (f64::from(backbone.logit_scale()) - scale).abs() < 1e-2,
        "{}",
        backbone.logit_scale()
    );
    openai_s_example(&backbone, &data, &expected["numpyclip"]);
    qdrant_s_example(&backbone, &data, &expected["fastembed"]);
    hugging_face_s_example(&backbone, &data, &expected["huggingface"]);
}

fn openai_s_example(backbone: &Backbone, data: &Path, expected: &Value) {
    // OpenAI dropped the alpha channel of this picture, where transformers has since come to lay it over white.
    let picture = image::open(data.join(expected["image"].as_str().unwrap()))
        .unwrap()
        .into_rgb8();
    let mut opaque = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut opaque, image::ImageFormat::Png).unwrap();
    let image = image_features(backbone, opaque.get_ref());
    let texts = text_features(backbone, &strings(&expected["texts"]));
    let published = |name: &str, row: usize| {
        let numbers = npyz::NpyFile::new(std::fs::File::open(data.join(name)).unwrap()).unwrap();
        let numbers: Vec<f32> = numbers.into_vec().unwrap();
        numbers[row * backbone.dim()..][..backbone.dim()].to_vec()
    };
    let agreement = cosine(&image, &published("image_features.npy", 0));
    assert!(agreement >= 0.9999, "image: cosine {agreement}");
    for (row, text) in texts.iter().enumerate() {
        let agreement = cosine(text, &published("text_features.npy", row));
        assert!(agreement >= 0.99999, "text {row}: cosine {agreement}");
    }
    let logits: Vec<f64> = texts.iter().map(|text| 100.0 * cosine(&image, text)).collect();
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    for (logit, published) in logits.iter().zip(numbers(&expected["probs"])) {
        let probability = logit.exp() / sum;
        assert!(
            (probability - published).abs() < 1e-3,
            "probability {probability}, published {published}"
        );
    }
}

fn qdrant_s_example(backbone: &Backbone, data: &Path, expected: &Value) {
    let bytes = std::fs::read(data.join(expected["image"].as_str().unwrap())).unwrap();
    let tolerance = expected["atol"].as_f64().unwrap();
    let image = image_features(backbone, &bytes);
    let text = text_features(backbone, &[expected["text"].as_str().unwrap().to_owned()]).remove(0);
    for (features, published) in [(image, "normalised_first5"), (text, "text_first5")] {
        let norm = features
            .iter()
            .map(|value| f64::from(*value).powi(2))
            .sum::<f64>()
            .sqrt();
        for (ours, theirs) in features.iter().zip(numbers(&expected[published])) {
            let ours = f64::from(*ours) / norm;
            assert!(
                (ours - theirs).abs() <= tolerance,
                "{published}: {ours}, published {theirs}"
            );
        }
    }
}

fn hugging_face_s_example(backbone: &Backbone, data: &Path, expected: &Value) {
    let bytes = std::fs::read(data.join(expected["image"].as_str().unwrap())).unwrap();
    let image = image_features(backbone, &bytes);
    let texts = text_features(backbone, &strings(&expected["texts"]));
    for (text, published) in texts.iter().zip(numbers(&expected["logits_per_image"])) {
        let logit = f64::from(backbone.logit_scale()) * cosine(&image, text);
        // Published for the JPEG of this picture; decoders differ.
        assert!(
            (logit - published).abs() < 0.05,
            "logit {logit}, published {published}"
        );
    }
}

fn image_features(backbone: &Backbone, bytes: &[u8]) -> Vec<f32> {
    let processor = backbone.image_processor();
    let [channels, height, width] = processor.output_shape();
    let pixels = processor.process(bytes, LIMITS).unwrap();
    let pixels = Tensor::from_vec(pixels, (1, channels, height, width), backbone.device()).unwrap();
    rows(&backbone.encode_images(&pixels).unwrap()).remove(0)
}

fn text_features(backbone: &Backbone, texts: &[String]) -> Vec<Vec<f32>> {
    let ids: Vec<_> = texts
        .iter()
        .map(|text| backbone.tokenizer().encode(text).unwrap())
        .collect();
    rows(&backbone.encode_tokens(&ids).unwrap())
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap())
        .collect()
}
