//! Fits behind the embedded backbone's image tower and before its text tower, on made-up tokens and features.

use candle_core::{Device, Tensor};
use clipkeep::adapter::embedding::normalise;
use clipkeep::adapter::{Base, FitInput, Fitted, Prompts, Readout, Towers, fit};
use clipkeep::clip::{Backbone, BackboneSource, Dtype, PromptTower};
use clipkeep::domain::{Initialisation, ModelConfig, Reads, Strategy, VersionNumber};
use clipkeep::engine::{read_out, readout};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::strategies::{lasts_through_its_snapshot, quick};
use crate::world::{PER_CLASS, carry_on};

/// Classes of the first task, and of both. More than the text tower is given at a time.
pub(crate) const KNOWN: usize = 10;
pub(crate) const CLASSES: usize = 20;

/// The parts of the backbone that a fit may look at, and examples of classes.
pub(crate) struct Towered {
    readout: Readout,
    text: PromptTower,
    tokens: Tensor,
    features: Tensor,
}

impl Towered {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let loaded = runtime.expect("a runtime").block_on(Backbone::load(
            &BackboneSource::Embedded,
            &Device::Cpu,
            Dtype::F32,
        ));
        let backbone = loaded.expect("the embedded backbone");
        let readout = readout(backbone.image_readout());
        let tokens = around_centres(readout.tokens * readout.norm_weight.elem_count());
        Self {
            features: read_out(&readout, &tokens).expect("features"),
            tokens,
            readout,
            text: backbone.prompt_tower(),
        }
    }

    /// What a strategy reads of the examples, all rows of the first class first.
    pub(crate) fn rows(&self, strategy: Strategy) -> &Tensor {
        match strategy.reads() {
            Reads::Features => &self.features,
            Reads::Tokens => &self.tokens,
        }
    }

    pub(crate) fn first(&self, config: &ModelConfig) -> Fitted {
        self.learned(None, KNOWN, config)
    }

    /// The other classes, learned on top of `base`.
    pub(crate) fn second(&self, base: &Fitted, config: &ModelConfig) -> Fitted {
        let base = Base {
            version: VersionNumber(1),
            head: &base.head,
            statistics: &base.statistics,
        };
        self.learned(Some(base), CLASSES, config)
    }

    fn learned(&self, base: Option<Base<'_>>, columns: usize, config: &ModelConfig) -> Fitted {
        let words: Vec<String> = (0..columns)
            .map(|class| format!("thing number {class}"))
            .collect();
        let prompts = self.text.prompts(&words, &config.templates[0]).expect("words");
        let anchors = Prompts::template(&prompts)
            .and_then(|context| normalise(&Prompts::encode(&prompts, &context, 0..columns)?))
            .expect("anchors");
        let (start, end) = (
            base.map_or(0, |base| base.head.columns()) * PER_CLASS,
            columns * PER_CLASS,
        );
        let rows = self.rows(config.strategy);
        let input = FitInput {
            base,
            anchors: &anchors,
            features: &rows.narrow(0, start, end - start).expect("rows"),
            labels: &(start..end)
                .map(|row| (row / PER_CLASS) as u32)
                .collect::<Vec<_>>(),
            scale: 20.0,
            towers: Towers {
                readout: Some(&self.readout),
                prompts: Some(&prompts),
            },
            config,
        };
        fit(&input, &mut carry_on).expect("fitted")
    }
}

/// Rows of every class around a centre of its own.
fn around_centres(width: usize) -> Tensor {
    let noise = |seed, rows: usize| {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = StandardNormal.sample_iter(rng).take(rows * width).collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).expect("noise")
    };
    let of: Vec<u32> = (0..CLASSES * PER_CLASS)
        .map(|row| (row / PER_CLASS) as u32)
        .collect();
    noise(1, CLASSES)
        .index_select(&Tensor::new(of, &Device::Cpu).expect("an index"), 0)
        .and_then(|centres| centres + noise(2, CLASSES * PER_CLASS))
        .expect("moved")
}

#[test]
fn what_is_trained_at_the_towers_lasts_through_its_snapshot() {
    let towers = Towered::new();
    for (strategy, initialisation) in [
        (Strategy::SelfAttention, Initialisation::Identity),
        (Strategy::Prompt, Initialisation::Identity),
        (Strategy::Prompt, Initialisation::Kaiming),
    ] {
        let config = ModelConfig {
            epochs: 2,
            batch_size: 60,
            initialisation,
            ..quick(strategy)
        };
        let first = towers.first(&config);
        lasts_through_its_snapshot(first, towers.rows(strategy), |first| {
            towers.second(first, &config)
        });
    }
}
