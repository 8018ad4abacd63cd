//! How long learning takes: a task of 100 classes with four examples each, on top of 900 classes.
//!
//! `cargo bench --bench fit`. Made-up features of CLIP ViT-B/32's shape: the time does not depend on the values.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Duration;

use candle_core::{Device, Tensor};
use clipkeep::adapter::embedding::normalise;
use clipkeep::adapter::{Base, ClassStatistics, FitInput, Head, Linear, Statistics, Towers, fit};
use clipkeep::domain::{Initialisation, ModelConfig, VersionNumber};
use criterion::{Criterion, criterion_group, criterion_main};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const DIM: usize = 512;
const OLD: usize = 900;
const CLASSES: usize = 1000;
const PER_CLASS: usize = 4;

/// Normal numbers with a variance of 2 / `CLASSES`.
fn noise(seed: u64, rows: usize) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Linear::initial(Initialisation::Kaiming, CLASSES, &mut rng, &Device::Cpu)
        .and_then(|linear| linear.weight.narrow(0, 0, rows)?.narrow(1, 0, DIM)?.contiguous())
        .expect("noise")
}

fn learning(criterion: &mut Criterion) {
    let anchors = normalise(&noise(1, CLASSES)).expect("unit rows");
    let old = anchors.narrow(0, 0, OLD).expect("rows");
    let config = ModelConfig::default();
    let classes: Vec<ClassStatistics> = (0..OLD as u64)
        .map(|class| ClassStatistics::estimate(&noise(class, PER_CLASS), 32).expect("estimated"))
        .collect();
    let statistics = Statistics {
        classes,
        scatter: None,
        gram: None,
    };
    let head = Head::zero_shot(old, 100.0).expect("a head");
    let labels: Vec<u32> = (0..(CLASSES - OLD) * PER_CLASS)
        .map(|row| (OLD + row / PER_CLASS) as u32)
        .collect();
    let features = noise(2, labels.len());
    let input = FitInput {
        base: Some(Base {
            version: VersionNumber(1),
            head: &head,
            statistics: &statistics,
        }),
        anchors: &anchors,
        features: &features,
        labels: &labels,
        scale: 100.0,
        towers: Towers::default(),
        config: &config,
    };
    criterion.bench_function("fit 100 classes after 900", |bencher| {
        bencher.iter(|| fit(black_box(&input), &mut |_| ControlFlow::Continue(())).expect("fitted"));
    });

    let row = noise(3, 1);
    let fitted = fit(&input, &mut |_| ControlFlow::Continue(())).expect("fitted");
    criterion.bench_function("score 1 row against 1,000 classes", |bencher| {
        bencher.iter(|| fitted.head.probabilities(black_box(&row)).expect("scored"));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(20));
    targets = learning
}
criterion_main!(benches);
