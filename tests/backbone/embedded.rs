//! The backbone inside the binary: it loads, and its parts fit together.

use clipkeep::clip::{Backbone, BackboneSource};

use crate::directory::load_source;
use crate::features::rows;

#[test]
fn the_embedded_backbone_loads_and_encodes() {
    let backbone = load_source(&BackboneSource::Embedded).unwrap();
    assert_eq!(backbone.name(), "clipkeep/mini-clip");
    let [channels, height, width] = backbone.image_processor().output_shape();
    let pixels = candle_core::Tensor::zeros(
        (2, channels, height, width),
        candle_core::DType::F32,
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

#[test]
fn a_backbone_moves_to_the_thread_that_owns_it() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync + Clone>() {}
    is_send::<Backbone>();
    is_shared::<clipkeep::clip::ClipTokenizer>();
    is_shared::<std::sync::Arc<clipkeep::clip::ImageProcessor>>();
}
