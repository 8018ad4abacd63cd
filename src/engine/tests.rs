//! Engines with the embedded backbone, for the tests of this module's parts.

use std::time::Duration;

use candle_core::{Device, Tensor};

use super::*;
use crate::clip::{BackboneSource, Dtype};

/// One that waits so long for a whole batch of `max_batch`, and has a queue for two.
pub(super) async fn engine(max_batch: usize, max_wait: Duration) -> Engine {
    let backbone = Backbone::load(&BackboneSource::Embedded, &Device::Cpu, Dtype::F32).await;
    let config = EngineConfig {
        policy: Policy {
            max_batch,
            max_wait,
            background_batch: 2,
            background_every: 8,
            batch_time: Duration::MAX,
        },
        queue_capacity: 2 * max_batch,
        decode_threads: 1,
        decode_capacity: 4,
        limits: Limits { max_pixels: 1 << 20 },
        text_cache: 100,
        feature_cache_bytes: 1 << 20,
    };
    Engine::start(backbone.expect("embedded"), &config).expect("threads")
}

/// Two pictures without a pattern.
pub(super) fn pictures(engine: &Engine, asked: &Asked) -> Vec<Looked> {
    let side = engine.info().image_size;
    let picture = |seed: usize| {
        let wave = |n: usize| (128.0 + 127.0 * ((n * seed) as f32).sin()) as u8;
        Looked::Fresh(Pixels {
            decoded: Decoded::new((0..3 * side * side).map(wave).collect()),
            image: None,
            asked: asked.clone(),
        })
    };
    vec![picture(3), picture(7)]
}

/// A head of three classes.
pub(super) fn head(engine: &Engine) -> Arc<Head> {
    let dim = engine.info().dim;
    let anchors: Vec<Vec<f32>> = (0..3)
        .map(|class| (0..dim).map(|n| f32::from(n == class)).collect())
        .collect();
    let head = Tensor::new(anchors, &Device::Cpu).and_then(|anchors| Head::zero_shot(anchors, 100.0));
    Arc::new(head.expect("a head"))
}

/// The answers about images.
pub(super) async fn values(engine: &Engine, images: Vec<Looked>) -> Vec<Vec<f32>> {
    let outputs = engine.encode(images, Priority::Interactive).await;
    let outputs = outputs.expect("encoded").into_iter();
    outputs.map(|output| output.values).collect()
}
