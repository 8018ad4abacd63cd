//! How long learning takes on top of 900 classes: a task of 100 classes with four examples each, and one of 10 classes with
//! a thousand.
//!
//! `just bench --bench fit`. Made-up features of CLIP ViT-B/32's shape: the time does not depend on the values. What a
//! version takes in the store is printed beside each.

use std::hint::black_box;
use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use clipkeep::adapter::embedding::normalise;
use clipkeep::adapter::{
    Base, FitInput, FitProgress, Fitted, Head, Snapshot, Statistics, Towers, fit, statistics,
};
use clipkeep::domain::{Class, ClassId, ModelConfig, Strategy, VersionNumber};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

const DIM: usize = 512;
const OLD: usize = 900;
const SCALE: f64 = 100.0;

/// Classes and examples of each.
const TASKS: [(usize, usize); 2] = [(100, 4), (10, 1000)];

const STRATEGIES: [Strategy; 4] = [
    Strategy::Linear,
    Strategy::Ensemble,
    Strategy::Ridge,
    Strategy::Gda,
];

/// Unit rows.
fn rows(seed: u64, count: usize) -> Tensor {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = StandardNormal.sample_iter(rng).take(count * DIM).collect();
    Tensor::from_vec(values, (count, DIM), &Device::Cpu)
        .and_then(|rows| normalise(&rows))
        .expect("unit rows")
}

fn carry_on(_: FitProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A task on top of what is known before it.
struct Lesson<'a> {
    base: Option<(&'a Head, &'a Statistics)>,
    anchors: Tensor,
    features: Tensor,
    labels: Vec<u32>,
    config: &'a ModelConfig,
}

impl<'a> Lesson<'a> {
    fn new(
        config: &'a ModelConfig,
        base: Option<(&'a Head, &'a Statistics)>,
        (classes, per_class): (usize, usize),
    ) -> Self {
        let known = base.map_or(0, |(head, _)| head.columns());
        Self {
            base,
            anchors: rows(1, known + classes),
            features: rows(2, classes * per_class),
            labels: (0..classes * per_class)
                .map(|row| (known + row / per_class) as u32)
                .collect(),
            config,
        }
    }

    fn learned(&self) -> Fitted {
        let input = FitInput {
            base: self.base.map(|(head, statistics)| Base {
                version: VersionNumber(1),
                head,
                statistics,
            }),
            anchors: &self.anchors,
            features: &self.features,
            labels: &self.labels,
            scale: SCALE,
            towers: Towers::default(),
            config: self.config,
        };
        fit(&input, &mut carry_on).expect("fitted")
    }
}

/// Bytes of a version's snapshot and of what it adds to the statistics.
fn sizes(fitted: &Fitted) -> (usize, usize) {
    let classes = (0..fitted.head.columns()).map(|column| Class {
        id: ClassId::new(),
        label: format!("class {column}").parse().expect("a label"),
        prompt: None,
        task: "task".parse().expect("a name"),
    });
    let snapshot = Snapshot::new(classes.collect(), fitted.head.clone(), String::new());
    let snapshot = snapshot.and_then(|snapshot| snapshot.encode()).expect("encoded");
    let kept = statistics::encode(&fitted.statistics).expect("encoded");
    (snapshot.len(), kept.len())
}

fn learning(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fit after 900 classes");
    for strategy in STRATEGIES {
        let config = ModelConfig::of(strategy);
        let before = Lesson::new(&config, None, (OLD, 4)).learned();
        for task in TASKS {
            let lesson = Lesson::new(&config, Some((&before.head, &before.statistics)), task);
            let (snapshot, kept) = sizes(&lesson.learned());
            let name = format!("{} x {}", task.0, task.1);
            println!("{strategy:?}, {name}: snapshot of {snapshot} bytes, statistics of {kept} bytes");
            group.bench_function(BenchmarkId::new(format!("{strategy:?}"), name), |bencher| {
                bencher.iter(|| black_box(&lesson).learned());
            });
        }
    }
    group.finish();
}

fn scoring(criterion: &mut Criterion) {
    let config = ModelConfig::default();
    let fitted = Lesson::new(&config, None, (1000, 4)).learned();
    let row = rows(3, 1);
    criterion.bench_function("score 1 row against 1,000 classes", |bencher| {
        bencher.iter(|| fitted.head.probabilities(black_box(&row)).expect("scored"));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = learning, scoring
}
criterion_main!(benches);
