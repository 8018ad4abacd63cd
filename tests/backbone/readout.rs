//! The image tower's hidden states, and what makes features of them.

use candle_core::{D, DType, Device, Tensor};
use clipkeep::clip::{BackboneSource, ImageReadout};

use crate::directory::{load, load_source, pinned};
use crate::features::{Reference, rows};

#[test]
fn features_are_the_same_bits_whether_or_not_tokens_are_asked_for() {
    for name in ["quick-gelu", "gelu", "half"] {
        let directory = pinned(name);
        let backbone = load(&directory).unwrap();
        let Reference { pixels, .. } = Reference::read(&directory);
        let states = backbone.encode_images_and_tokens(&pixels).unwrap();
        let features = rows(&states.features);
        assert_eq!(
            features,
            rows(&backbone.encode_images(&pixels).unwrap()),
            "{name}"
        );
        let last = pixels.narrow(0, features.len() - 1, 1).unwrap();
        let alone = backbone.encode_images_and_tokens(&last).unwrap();
        assert_eq!(rows(&alone.tokens).last(), rows(&states.tokens).last(), "{name}");
    }
}

#[test]
fn the_readout_makes_features_of_tokens() {
    for name in ["quick-gelu", "gelu", "half"] {
        let directory = pinned(name);
        let backbone = load(&directory).unwrap();
        let states = backbone
            .encode_images_and_tokens(&Reference::read(&directory).pixels)
            .unwrap();
        let by_hand = read_out(&backbone.image_readout(), &states.tokens);
        let apart = (by_hand - states.features)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        let apart = apart.to_scalar::<f32>().unwrap();
        assert!(apart < 1e-5, "{name}: {apart}");
    }
}

/// A layer norm of the class token and a product, written out.
fn read_out(readout: &ImageReadout, tokens: &Tensor) -> Tensor {
    let width = readout.norm_weight.elem_count();
    assert_eq!(tokens.dim(1).unwrap(), readout.tokens * width);
    let class = tokens.narrow(1, 0, width).unwrap();
    let centred = class
        .broadcast_sub(&class.mean_keepdim(D::Minus1).unwrap())
        .unwrap();
    let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
    let deviation = (variance + f64::from(readout.norm_epsilon))
        .unwrap()
        .sqrt()
        .unwrap();
    centred
        .broadcast_div(&deviation)
        .and_then(|normal| normal.broadcast_mul(&readout.norm_weight))
        .and_then(|scaled| scaled.broadcast_add(&readout.norm_bias))
        .and_then(|normalised| normalised.matmul(&readout.projection))
        .unwrap()
}

#[test]
fn an_empty_batch_has_no_tokens() {
    let backbone = load_source(&BackboneSource::Embedded).unwrap();
    let pixels = Tensor::zeros((0, 3, 36, 36), DType::U8, &Device::Cpu).unwrap();
    let states = backbone.encode_images_and_tokens(&pixels).unwrap();
    let readout = backbone.image_readout();
    assert_eq!((readout.tokens, readout.heads), (37, 6));
    assert_eq!(states.features.dims(), [0, 256]);
    assert_eq!(states.tokens.dims(), [0, 37 * 192]);
}
