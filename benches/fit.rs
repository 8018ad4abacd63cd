//! How long learning takes on top of 900 classes: a task of 100 classes with four examples each, and one of 10 classes with
//! a thousand. And before the embedded backbone's text tower or behind its image tower: a pass over 10 classes with 20 on top of 10.
//!
//! `just bench --bench fit`. Made-up features of CLIP ViT-B/32's shape: the time does not depend on the values. What a
//! version takes in the store is printed beside each.

use std::hint::black_box;
use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use clipkeep::adapter::embedding::normalise;
use clipkeep::adapter::{
    Base, FitInput, FitProgress, Fitted, Head, Prompts, Readout, Snapshot, Statistics, Towers, fit,
    statistics,
};
use clipkeep::clip::{Backbone, BackboneSource, ClassPrompts, Dtype, PromptTower};
use clipkeep::domain::{Class, ClassId, ModelConfig, Reads, Strategy, VersionNumber};
use clipkeep::engine::{read_out, readout};
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

/// Rows without a pattern.
fn noise(seed: u64, shape: (usize, usize)) -> Tensor {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let values = StandardNormal.sample_iter(rng).take(shape.0 * shape.1);
    Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu).expect("rows")
}

/// Unit rows.
fn rows(seed: u64, count: usize) -> Tensor {
    normalise(&noise(seed, (count, DIM))).expect("unit rows")
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

/// What trains at the towers, and classes with rows that it reads.
struct AtTowers {
    text: PromptTower,
    readout: Readout,
    tokens: Tensor,
    features: Tensor,
    scale: f64,
}

impl AtTowers {
    const CLASSES: usize = 10;
    const PER_CLASS: usize = 20;

    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let backbone = Backbone::load(&BackboneSource::Embedded, &Device::Cpu, Dtype::Auto);
        let backbone = runtime.block_on(backbone).expect("a backbone");
        let readout = readout(backbone.image_readout());
        let width = readout.tokens * readout.norm_weight.elem_count();
        let tokens = noise(4, (2 * Self::CLASSES * Self::PER_CLASS, width));
        Self {
            text: backbone.prompt_tower(),
            features: read_out(&readout, &tokens).expect("features"),
            scale: backbone.logit_scale().into(),
            readout,
            tokens,
        }
    }

    /// The first so many classes, behind the text tower and by their words.
    fn named(&self, count: usize, config: &ModelConfig) -> (ClassPrompts, Tensor) {
        let words: Vec<String> = (0..count).map(|class| format!("thing number {class}")).collect();
        let prompts = self.text.prompts(&words, &config.templates[0]).expect("words");
        let anchors = Prompts::template(&prompts)
            .and_then(|context| normalise(&Prompts::encode(&prompts, &context, 0..count)?));
        (prompts, anchors.expect("anchors"))
    }

    /// Learns those of some classes that are not known yet.
    fn learned(
        &self,
        config: &ModelConfig,
        (prompts, anchors): &(ClassPrompts, Tensor),
        base: Option<&Fitted>,
    ) -> Fitted {
        let known = base.map_or(0, |base| base.head.columns());
        let (first, count) = (known * Self::PER_CLASS, Self::CLASSES * Self::PER_CLASS);
        let labels: Vec<u32> = (first..first + count)
            .map(|row| (row / Self::PER_CLASS) as u32)
            .collect();
        let rows = match config.strategy.reads() {
            Reads::Features => &self.features,
            Reads::Tokens => &self.tokens,
        };
        let input = FitInput {
            base: base.map(|base| Base {
                version: VersionNumber(1),
                head: &base.head,
                statistics: &base.statistics,
            }),
            anchors,
            features: &rows.narrow(0, first, count).expect("rows"),
            labels: &labels,
            scale: self.scale,
            towers: Towers {
                readout: Some(&self.readout),
                prompts: Some(prompts),
            },
            config,
        };
        fit(&input, &mut carry_on).expect("fitted")
    }
}

fn learning_at_the_towers(criterion: &mut Criterion) {
    let towers = AtTowers::new();
    let mut group = criterion.benchmark_group("a pass at the towers");
    for strategy in [Strategy::SelfAttention, Strategy::Prompt] {
        let config = ModelConfig {
            epochs: 1,
            min_steps: 1,
            ..ModelConfig::of(strategy)
        };
        let [first, all] = [1, 2].map(|tasks| towers.named(tasks * AtTowers::CLASSES, &config));
        let before = towers.learned(&config, &first, None);
        group.bench_function(format!("{strategy:?}"), |bencher| {
            bencher.iter(|| black_box(&towers).learned(&config, &all, Some(&before)));
        });
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
    targets = learning, learning_at_the_towers, scoring
}
criterion_main!(benches);
